//! Pushing over UDP: what a datagram reaches, and what it never does.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_node;

use std::net::UdpSocket;

use nlbus::endpoint::{Endpoint, Event, Filter, UdpPusher, body_of};
use nlbus::node::{Node, NodeOptions};
use nlbus::service::netlink::{Kernel, KernelOptions, NETLINK_ROUTE};
use nlbus::transport::ListenOptions;
use nlbus::url::BusUrl;
use nlbus::wire::{Command, ControlAttribute, EnvelopeHead, MessageBuilder, nlm};
use support_node::frames::{ask, control, data, push};
use support_node::peer::{until, within};

/// RTM_GETLINK.
const GETLINK: u16 = 18;

async fn listening() -> (Node, BusUrl) {
    let node = Node::new(NodeOptions::default());
    let any = "udp://127.0.0.1:0".parse().unwrap();
    let url = node.listen(&any, &ListenOptions::default()).await.unwrap();
    (node, url)
}

fn socket_to(url: &BusUrl) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", url.port().unwrap())).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datagram_reaches_the_puller_of_its_address_and_else_who_subscribed() {
    let (node, url) = listening().await;
    let endpoint = Endpoint::attach(&node).unwrap();
    let mut puller = endpoint.pull("jobs").await.unwrap();
    let mut subscription =
        Endpoint::attach(&node).unwrap().subscribe(Filter::all().from(0u32)).await.unwrap();
    let pusher = UdpPusher::connect(&url).await.unwrap();
    pusher.push(puller.address(), b"for the puller").await.unwrap();
    assert_eq!(within(puller.next()).await.unwrap().body, "for the puller");
    pusher.push(0u32, b"for whoever listens").await.unwrap();
    let Some(Event::Message { payload, from: 0, .. }) = within(subscription.next()).await else {
        panic!("no message")
    };
    assert_eq!(body_of(&payload), "for whoever listens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datagram_never_reaches_a_kernel_and_is_never_answered() {
    let (node, url) = listening().await;
    let kernel = Kernel::open(&KernelOptions::default()).unwrap();
    let service = Endpoint::attach(&node).unwrap();
    let route = kernel.serve(&service, "route", NETLINK_ROUTE).await.unwrap();
    let mut subscription = service.subscribe(Filter::all().from(0u32)).await.unwrap();
    let socket = socket_to(&url);
    let request = MessageBuilder::new(GETLINK, nlm::REQUEST | nlm::DUMP).body(&[0; 16]).finish();
    socket.send(&ask(route, 0, 1, &request)).unwrap();
    let Some(Event::Message { payload, .. }) = within(subscription.next()).await else {
        panic!("no message")
    };
    assert_eq!(payload, request, "it went to who subscribed instead");
    // a return address, and a control message, which asks for an answer as no other frame does
    socket.send(&ask(0x8000_0000, 0, 2, b"")).unwrap();
    let discover = control(0, 3, Command::Discover, |c| c.string(ControlAttribute::Host, "route"));
    socket.send(&discover).unwrap();
    socket.send(&push(0, 0, 4, b"the last")).unwrap();
    within(async {
        loop {
            match subscription.next().await {
                Some(Event::Message { payload, .. }) if payload == "the last"[..] => break,
                Some(_) => {}
                None => panic!("the link ended"),
            }
        }
    })
    .await;
    let counters = node.counters().core;
    assert_eq!((counters.requests, counters.exceptions), (0, 0));
    assert_eq!(counters.forbidden, 1, "the control message");
    let nothing = socket.recv(&mut [0; 100]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datagram_that_is_not_whole_frames_is_counted_and_the_next_one_counts_for_itself() {
    let (node, url) = listening().await;
    let mut subscription = Endpoint::attach(&node).unwrap().subscribe(Filter::all()).await.unwrap();
    let socket = socket_to(&url);
    let whole = data(EnvelopeHead::default(), b"whole");
    for bad in [&b"?"[..], &[0xff; 40], &whole[..whole.len() - 4]] {
        socket.send(bad).unwrap();
    }
    socket.send(&[whole.clone(), whole].concat()).unwrap();
    for _ in 0..2 {
        let Some(Event::Message { payload, .. }) = within(subscription.next()).await else {
            panic!("no message")
        };
        assert_eq!(payload, "whole"[..]);
    }
    assert_eq!(node.counters().datagrams_malformed, 3);
    node.shutdown(std::time::Duration::from_secs(5)).await;
    until(|| UdpSocket::bind(("127.0.0.1", url.port().unwrap())).is_ok()).await;
}
