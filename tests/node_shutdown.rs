//! How a node ends.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_node;

use std::sync::Arc;
use std::time::Duration;

use nlbus::endpoint::{Endpoint, RequestOptions};
use nlbus::node::{Node, NodeOptions};
use nlbus::transport::{DialError, DialOptions, ListenOptions, dial};
use nlbus::wire::{Message, nlm};
use support_node::frames::{MESSAGE_TYPE, ask, done, message, payload_of, push};
use support_node::peer::{Peer, Server, next_request, until, within};
use tokio::sync::Notify;
use tokio::time::Instant;

const LONG: Duration = Duration::from_secs(60);

fn long() -> RequestOptions {
    RequestOptions::default().deadline(LONG)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_lets_answers_under_way_go_out_and_closes_everything() {
    let server = Server::start(NodeOptions::default()).await;
    let mut provider = server.provide("slow").await;
    let address = provider.address();
    let mut askers = [Peer::dial(&server.tcp).await, Peer::dial(&server.unix).await];
    let file = server.directory.path().join("bus.sock");
    assert!(file.exists());
    let mut requests = Vec::new();
    for asker in &mut askers {
        asker.send(&ask(address, 0, 1, b"")).await;
        requests.push(next_request(&mut provider).await);
    }
    let node = server.node.clone();
    let shutdown = tokio::spawn(async move { node.shutdown(LONG).await });
    // listeners close first, each in its own time, and the socket file goes
    until(|| !file.exists()).await;
    let refused = within(async {
        loop {
            if let Err(error) = dial(&server.tcp, &DialOptions::default()).await {
                return error;
            }
        }
    });
    let refused = refused.await;
    assert!(matches!(refused, DialError::Refused { .. }), "{refused:?}");
    // nothing new is read
    for asker in &mut askers {
        asker.send_in_vain(&ask(address, 0, 2, b"")).await;
    }
    // the provider is told that nothing more comes, and answers what it has
    assert!(within(provider.next()).await.is_none());
    for request in requests {
        for _ in 0..20 {
            let part = message(nlm::MULTI, 1, &[1; 10_000]);
            request.responder().send(&part).await.unwrap();
        }
        request.responder().send(&done(1, 0)).await.unwrap();
    }
    drop(provider);
    for asker in &mut askers {
        for _ in 0..20 {
            let part = asker.receive().await.expect("all of the answer");
            assert_eq!(payload_of(&part).len(), 10_016);
        }
        let last = asker.receive().await.expect("the end of the answer");
        assert_eq!(Message::parse(payload_of(&last)).unwrap().header.kind, nlm::DONE);
    }
    for asker in &mut askers {
        asker.assert_closed().await;
    }
    within(shutdown).await.unwrap();
    assert_eq!(server.node.counters().core.requests, 2);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_longer_than_its_grace() {
    let node = Node::new(NodeOptions::default());
    let mut provider = Endpoint::attach(&node).unwrap().provide("never").await.unwrap();
    let endpoint = Endpoint::attach(&node).unwrap();
    let request = message(0, 1, b"");
    let _asked = endpoint.request_with("never", &request, long()).await.unwrap();
    let _held = next_request(&mut provider).await;
    let started = Instant::now();
    node.shutdown(Duration::from_secs(7)).await;
    assert_eq!(started.elapsed().as_secs(), 7);
    // again, with nothing left to do but the same
    node.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_shutdown_without_work_is_over_at_once() {
    let server = Server::start(NodeOptions::default()).await;
    server.echo("echo").await;
    let endpoint = server.connect().await;
    let mut idle = Peer::dial(&server.unix).await;
    idle.subscribe().await;
    within(server.node.shutdown(Duration::from_secs(1 << 30))).await;
    idle.assert_closed().await;
    let got = within(endpoint.request("echo", &message(0, 1, b""))).await;
    assert!(got.is_err());
    assert_eq!(server.node.counters().links, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_longer_than_the_sockets_buffers_survives_a_shutdown() {
    let listen = ListenOptions::default();
    let mut options = NodeOptions::default();
    // however slow this machine is: what is tested is that nothing is lost before
    options.linger_max = LONG;
    let server = Server::start_with(options, &listen).await;
    let mut provider = server.provide("large").await;
    let address = provider.address();
    let mut asker = Peer::dial(&server.tcp).await;
    asker.send(&ask(address, 0, 1, b"")).await;
    let request = next_request(&mut provider).await;
    let parts = 300;
    let part = message(nlm::MULTI, 1, &[1; 10_000]);
    for _ in 0..parts {
        request.responder().send(&part).await.unwrap();
    }
    drop((request, provider));
    let node = server.node.clone();
    let started = Arc::new(Notify::new());
    let shutdown = tokio::spawn({
        let started = Arc::clone(&started);
        async move {
            started.notify_one();
            node.shutdown(LONG).await;
        }
    });
    started.notified().await;
    let file = server.directory.path().join("bus.sock");
    until(|| !file.exists()).await;
    // it goes on asking, and nobody reads that
    asker.send_in_vain(&push(address, 0, 2, &[1; 1_000])).await;
    for n in 0..parts {
        let frame = asker.receive().await.unwrap_or_else(|| panic!("part {n} of {parts}"));
        let reply = Message::parse(payload_of(&frame)).unwrap();
        assert_eq!((reply.header.kind, reply.body().len()), (MESSAGE_TYPE, 10_000));
    }
    asker.assert_closed().await;
    drop(asker);
    within(shutdown).await.unwrap();
}
