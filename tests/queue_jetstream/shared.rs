//! One queue, several brokers.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use nlbus::service::queue::{CallError, Client, OutMessage, Server, SubscribeOptions};
use nlbus::store::SendId;
use nlbus::wire::errno;

use crate::support_nats::{HANG, in_time, next};
use crate::{drain, names, nats, now, refused, waiting};

#[tokio::test]
async fn two_brokers_share_one_queue_and_each_message_goes_to_one_of_them() {
    let nats = nats!();
    let brokers = [nats.broker().await, nats.broker().await];
    let clients = [brokers[0].client().await, brokers[1].client().await];
    clients[0].create("q", None).await.unwrap();
    let credit = SubscribeOptions::default().credit(4);
    let mut consumers = [
        clients[0].subscribe("q", credit).await.unwrap(),
        clients[1].subscribe("q", credit).await.unwrap(),
    ];
    let messages: Vec<_> = (0..200).map(|n| OutMessage::new(n.to_string())).collect();
    let (first, second) = messages.split_at(100);
    let (one, two) = tokio::join!(
        clients[0].send_all("q", first.to_vec()),
        clients[1].send_all("q", second.to_vec())
    );
    assert!(one.is_ok() && two.is_ok());
    let mut seen = BTreeSet::new();
    let mut shares = [0; 2];
    let [one, two] = &mut consumers;
    while seen.len() < 200 {
        let (at, message) = tokio::select! {
            message = next(one) => (0, message),
            message = next(two) => (1, message),
        };
        assert!(seen.insert(message.id), "{} came twice", message.id);
        assert_eq!(message.attempt, 1);
        shares[at] += 1;
        clients[at].ack(&message).await.unwrap();
    }
    assert!(shares[0] > 0 && shares[1] > 0, "{shares:?}");
    assert_eq!(clients[0].list("q", false).await.unwrap()[0].messages, 0, "acked is gone");
}

#[tokio::test]
async fn a_message_sent_again_over_another_broker_is_stored_once() {
    let nats = nats!();
    let (one, two) = (nats.broker().await, nats.broker().await);
    let (one, two) = (one.client().await, two.client().await);
    one.create("q", None).await.unwrap();
    for sequence in 1..=3 {
        let send_id = SendId { sender: 77, sequence };
        let message = OutMessage::from("once").send_id(send_id);
        let first = one.send("q", message.clone()).await.unwrap();
        let second = two.send("q", message.clone()).await.unwrap();
        assert_eq!((first.id, first.again), (Some(sequence), false));
        assert_eq!((second.id, second.again), (Some(sequence), true));
        assert!(one.send("q", message).await.unwrap().again);
    }
    assert_eq!(drain(&two, "q", 3).await.len(), 3);
    assert!(one.receive(&["q"], now()).await.unwrap().is_empty());
}

async fn echo(client: &Client, queue: &str) -> Server {
    let handler = |message: nlbus::service::queue::Message| async move {
        Ok::<Bytes, (i32, String)>(message.payload().clone())
    };
    Server::listen(client, queue, handler, 4).await.unwrap()
}

#[tokio::test]
async fn a_call_over_one_broker_is_answered_by_a_server_at_another() {
    let nats = nats!();
    let (here, there) = (nats.broker().await, nats.broker().await);
    let caller = here.client().await;
    let early = caller.clone();
    let call = tokio::spawn(async move { early.call("echo", "early", None).await });
    let server = echo(&there.client().await, "echo").await;
    assert_eq!(in_time(call).await.unwrap().unwrap(), "early");
    for n in 0..50 {
        let body = n.to_string();
        assert_eq!(in_time(caller.call("echo", body.clone(), HANG)).await.unwrap(), body.as_str());
    }
    in_time(server.stop()).await.unwrap();
    // one that is given up is taken back
    let short = Duration::from_millis(30);
    assert!(matches!(caller.call("none", "x", short).await, Err(CallError::Timeout { .. })));
    while caller.list("none", false).await.unwrap().iter().any(|queue| queue.messages > 0) {
        tokio::task::yield_now().await;
    }
    // the queue for the answers goes with the caller
    let watcher = there.client().await;
    let echo_and_answers = async || {
        let names = names(&watcher, "").await;
        names.iter().filter(|name| *name != "none").count()
    };
    assert_eq!(echo_and_answers().await, 2);
    drop(caller);
    while echo_and_answers().await > 1 {
        tokio::task::yield_now().await;
    }
    here.end().await;
    there.end().await;
}

#[tokio::test]
async fn a_transient_queue_is_its_owners_alone_and_gone_with_it() {
    let nats = nats!();
    let (one, two) = (nats.broker().await, nats.broker().await);
    let (owner, other, far) = (one.client().await, one.client().await, two.client().await);
    let name = owner.create_transient(None, None).await.unwrap();
    refused(other.create_transient(Some(&name), None).await, errno::EEXIST);
    far.send(&name, "an answer").await.unwrap();
    for client in [&other, &far] {
        refused(client.receive(&[&name], now()).await, errno::EPERM);
        let options = SubscribeOptions::default();
        refused(client.subscribe(&name, options).await.map(drop), errno::EPERM);
    }
    assert_eq!(owner.receive(&[&name], waiting()).await.unwrap().len(), 1);
    drop(owner);
    while !names(&far, &name).await.is_empty() {
        tokio::task::yield_now().await;
    }
    refused(far.send(&name, "too late").await, errno::ENOENT);
}
