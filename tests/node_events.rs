//! Subscriptions of endpoints on a node, and what becomes of those that are too slow.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_node;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nlbus::endpoint::{Endpoint, Event, Filter, RequestError, RequestOptions, Subscription};
use nlbus::node::NodeOptions;
use nlbus::wire::{Message, MessageBuilder, nlm};
use support_node::frames::message;
use support_node::peer::{Server, next_request, until, within};

const LONG: Duration = Duration::from_secs(60);

fn long() -> RequestOptions {
    RequestOptions::default().deadline(LONG)
}

async fn collect(
    endpoint: &Endpoint,
    to: u32,
    message: &[u8],
) -> Result<Vec<Vec<u8>>, RequestError> {
    let replies = within(endpoint.request_with(to, message, long())).await?;
    let replies = within(replies.collect()).await?;
    Ok(replies.iter().map(|reply| reply.bytes().to_vec()).collect())
}

#[tokio::test]
async fn a_subscription_gets_what_was_published_after_it_was_made() {
    let server = Server::start(NodeOptions::default()).await;
    let provider = server.provide("news").await;
    let publisher = provider.publisher();
    for endpoint in [server.connect().await, Endpoint::attach(&server.node).unwrap()] {
        let mut all = endpoint.subscribe(Filter::all()).await.unwrap();
        let mut one = endpoint.subscribe(Filter::all().from("news")).await.unwrap();
        let mut frame = vec![0; 28 + 24];
        let payload = message(0, 1, b"event!!!");
        frame[28..].copy_from_slice(&payload);
        publisher.publish_in_place(&mut frame, payload.len()).await.unwrap();
        endpoint.publish(&message(0, 2, b"mine")).await.unwrap();
        for (subscription, count) in [(&mut all, 2), (&mut one, 1)] {
            for n in 0..count {
                match within(subscription.next()).await {
                    Some(Event::Message { from, payload: got, .. }) if n == 0 => {
                        assert_eq!((from, &got[..]), (provider.address(), &payload[..]));
                    }
                    Some(Event::Message { from, .. }) => assert_eq!(from, 0),
                    _ => panic!("an event"),
                }
            }
        }
    }
}

#[tokio::test]
async fn a_subscription_that_is_dropped_is_withdrawn() {
    let server = Server::start(NodeOptions::default()).await;
    let local = Endpoint::attach(&server.node).unwrap();
    let wanted = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&wanted);
    local.on_events_wanted(move |now| told.store(now, Ordering::SeqCst));
    assert!(!wanted.load(Ordering::SeqCst));
    let endpoint = server.connect().await;
    let one = endpoint.subscribe(Filter::all()).await.unwrap();
    assert!(wanted.load(Ordering::SeqCst), "told before the subscriber is");
    let two = endpoint.subscribe(Filter::all()).await.unwrap();
    drop(one);
    let mut two = two;
    endpoint.publish(&message(0, 1, b"")).await.unwrap();
    assert!(matches!(within(two.next()).await, Some(Event::Message { .. })));
    assert!(wanted.load(Ordering::SeqCst));
    drop(two);
    until(|| !wanted.load(Ordering::SeqCst)).await;
    endpoint.publish(&message(0, 1, b"")).await.unwrap();
    until(|| server.node.counters().core.unwanted == 1).await;

    // the end of the link withdraws it too
    let three = endpoint.subscribe(Filter::all()).await.unwrap();
    assert!(wanted.load(Ordering::SeqCst));
    drop((three, endpoint));
    until(|| !wanted.load(Ordering::SeqCst)).await;
}

#[tokio::test]
async fn a_subscription_ends_with_its_link() {
    let server = Server::start(NodeOptions::default()).await;
    let mut subscription = server.connect().await.subscribe(Filter::all()).await.unwrap();
    server.node.shutdown(Duration::from_secs(5)).await;
    assert!(within(subscription.next()).await.is_none());
}

/// Takes the events from number `next` until `end`: how many were lost. A gap is told of before the
/// event that follows it.
async fn account(subscription: &mut Subscription, mut next: u32, end: u32) -> u64 {
    let mut all = 0;
    while next < end {
        match within(subscription.next()).await {
            Some(Event::Message { payload, .. }) => {
                let sequence = Message::parse(&payload).unwrap().header.sequence;
                assert_eq!(sequence, next, "a gap is told of where it is");
                next += 1;
            }
            Some(Event::Lost(lost)) => {
                next += lost as u32;
                all += lost;
            }
            None => panic!("the link is up"),
        }
    }
    assert_eq!(next, end);
    all
}

#[tokio::test]
async fn a_subscriber_over_a_socket_that_is_slow_is_told_where_and_how_many() {
    let server = Server::start(NodeOptions::default()).await;
    let endpoint = server.connect().await;
    let mut subscription = endpoint.subscribe(Filter::all()).await.unwrap();
    let mut sentinel = server.connect().await.subscribe(Filter::all()).await.unwrap();
    let publisher = server.connect().await;
    for n in 0..6_000 {
        publisher.publish(&message(0, n, b"")).await.unwrap();
        within(sentinel.next()).await.unwrap();
    }
    // the endpoint has looked at all of them once it has an answer behind them
    assert!(endpoint.discover("nobody").await.is_err());
    assert_eq!(account(&mut subscription, 0, 100).await, 0, "the first ones are there");
    // there is room again: the gap is before the events that come now
    for n in 6_000..6_050 {
        publisher.publish(&message(0, n, b"")).await.unwrap();
        within(sentinel.next()).await.unwrap();
    }
    assert_eq!(account(&mut subscription, 100, 6_050).await, 6_000 - 4_096);
}

#[tokio::test]
async fn a_subscriber_inside_the_process_that_is_slow_is_told_too() {
    let server = Server::start(NodeOptions::default()).await;
    let endpoint = Endpoint::attach(&server.node).unwrap();
    let mut subscription = endpoint.subscribe(Filter::all()).await.unwrap();
    let mut sentinel = server.connect().await.subscribe(Filter::all()).await.unwrap();
    let publisher = server.connect().await;
    for n in 0..6_000 {
        publisher.publish(&message(0, n, b"")).await.unwrap();
        within(sentinel.next()).await.unwrap();
    }
    assert_eq!(account(&mut subscription, 0, 6_000).await, 6_000 - 4_096);
}

#[tokio::test]
async fn a_slow_subscriber_inside_the_process_does_not_hold_up_its_own_requests() {
    let server = Server::start(NodeOptions::default()).await;
    let mut provider = server.provide("both").await;
    let address = provider.address();
    let endpoint = Endpoint::attach(&server.node).unwrap();
    let _unread = endpoint.subscribe(Filter::all()).await.unwrap();
    let mut sentinel = server.connect().await.subscribe(Filter::all()).await.unwrap();
    let (publisher, count) = (provider.publisher(), 3_000);
    for n in 0..count {
        let payload = message(0, n, b"");
        let mut frame = vec![0; 28 + payload.len()];
        frame[28..].copy_from_slice(&payload);
        publisher.publish_in_place(&mut frame, payload.len()).await.unwrap();
        within(sentinel.next()).await.unwrap();
    }
    let answering = async {
        let request = next_request(&mut provider).await;
        within(request.responder().send(&message(0, 1, b"answer"))).await.unwrap();
    };
    let request = message(0, 1, b"");
    let (got, ()) = tokio::join!(collect(&endpoint, address, &request), answering);
    assert_eq!(got.unwrap().len(), 1);
}

#[tokio::test]
async fn a_loss_at_the_broker_is_told_to_who_waits_without_a_further_event() {
    let server = Server::start(NodeOptions::default()).await;
    let endpoint = server.connect().await;
    let mut subscription = endpoint.subscribe(Filter::all()).await.unwrap();
    let service = Endpoint::attach(&server.node).unwrap();
    let overrun = MessageBuilder::new(nlm::OVERRUN, 0).body(&[7, 0, 0, 0]).finish();
    let waiting = async {
        match within(subscription.next()).await {
            Some(Event::Lost(7)) => {}
            _ => panic!("a loss"),
        }
    };
    let publishing = async {
        tokio::task::yield_now().await; // the subscriber waits first
        service.publish(&overrun).await.unwrap();
    };
    tokio::join!(waiting, publishing);
}
