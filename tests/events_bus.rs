//! Subscriptions through endpoints and links: who hears what, who is told what, and whose they are.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

mod support_node;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nlbus::endpoint::{Endpoint, Event, Filter, RequestError, Subscription};
use nlbus::node::{FrameReader, FrameWriter, Node, NodeOptions, framed};
use nlbus::transport::{DialOptions, ListenOptions, dial};
use nlbus::url::BusUrl;
use nlbus::wire::{
    Command, ControlAttribute, EnvelopeHead, FRAME_MAX, GROUP_BYTES_MAX, Key, LEGACY_FRAME_MAX,
    MessageBuilder, PAYLOAD_MAX, errno,
};
use support_node::bus::{Bus, SERVICE, STRANGER};
use support_node::frames::{Said, control, data, message, push};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long anything may take that is sure to come.
const PATIENCE: Duration = Duration::from_secs(60);

async fn served() -> (Node, BusUrl) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let node = Node::new(NodeOptions::default());
    let url = format!("unix://@nlbus-events-bus-{}-{count}", std::process::id()).parse().unwrap();
    node.listen(&url, &ListenOptions::default()).await.unwrap();
    (node, url)
}

fn numbered(number: u32) -> Vec<u8> {
    MessageBuilder::new(0x20, 0).body(&number.to_le_bytes()).finish()
}

fn number_of(payload: &[u8]) -> u32 {
    u32::from_le_bytes(payload[16..20].try_into().unwrap())
}

async fn next(subscription: &mut Subscription) -> Event {
    timeout(PATIENCE, subscription.next()).await.expect("an event in time").expect("a link")
}

/// The number and the group of the next event, which is a message.
async fn next_number(subscription: &mut Subscription) -> (u32, Option<String>) {
    match next(subscription).await {
        Event::Message { payload, group, .. } => (number_of(&payload), group),
        Event::Lost(count) => panic!("lost {count}"),
    }
}

/// A link that is spoken to in frames.
async fn raw_link(url: &BusUrl) -> (FrameReader, FrameWriter) {
    framed(dial(url, &DialOptions::default()).await.unwrap(), 1 << 20, FRAME_MAX)
}

async fn said(reader: &mut FrameReader) -> Said {
    Said::of(&timeout(PATIENCE, reader.next()).await.unwrap().unwrap().unwrap())
}

/// Told whether anybody subscribes.
fn wanted(node: &Node) -> (Endpoint, watch::Receiver<bool>) {
    let endpoint = Endpoint::attach(node).unwrap();
    let (sender, receiver) = watch::channel(false);
    endpoint.on_events_wanted(move |wanted| {
        sender.send_replace(wanted);
    });
    (endpoint, receiver)
}

async fn wait_for(wanted: &mut watch::Receiver<bool>, state: bool) {
    timeout(PATIENCE, wanted.wait_for(|now| *now == state)).await.unwrap().unwrap();
}

// --- losses ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_does_not_take_its_events_is_told_of_each_gap_exactly() {
    const EVENTS: u32 = 20_000;
    let (node, url) = served().await;
    for subscriber in [Endpoint::connect(&url).await.unwrap(), Endpoint::attach(&node).unwrap()] {
        let mut subscription = subscriber.subscribe(Filter::all()).await.unwrap();
        let publisher = Endpoint::connect(&url).await.unwrap();
        let messages: Vec<_> = (0..EVENTS).map(numbered).collect();
        for run in messages.chunks(1_000) {
            publisher.publish_all(run.iter().map(Vec::as_slice)).await.unwrap();
        }
        publisher.flush(PATIENCE).await.unwrap();
        let (mut heard, mut lost) = (0, 0);
        while heard + lost < EVENTS {
            match next(&mut subscription).await {
                Event::Message { payload, .. } => {
                    assert_eq!(number_of(&payload), heard + lost);
                    heard += 1;
                }
                Event::Lost(count) => lost += count as u32,
            }
        }
        assert_eq!(heard + lost, EVENTS);
        assert!(lost > 0, "{subscriber:?}");
        publisher.publish(&numbered(EVENTS)).await.unwrap();
        assert_eq!(next_number(&mut subscription).await, (EVENTS, None), "it goes on");
    }
}

// --- groups ---

#[tokio::test]
async fn a_group_hears_its_own_and_who_hears_everything_sees_the_group() {
    let (_node, url) = served().await;
    let endpoint = Endpoint::connect(&url).await.unwrap();
    let group = |name: &str| Filter::all().group_name(name);
    let mut a = endpoint.open().subscribe(group("a")).await.unwrap();
    let mut b = Endpoint::connect(&url).await.unwrap().subscribe(group("b")).await.unwrap();
    let mut all = endpoint.open().subscribe(Filter::all()).await.unwrap();
    let long = "g".repeat(GROUP_BYTES_MAX);
    let mut longest = endpoint.subscribe(group(&long)).await.unwrap();

    let publisher = Endpoint::connect(&url).await.unwrap();
    let groups = [Some("a"), None, Some("b"), Some("ab"), Some(&long), Some("a"), Some("b")];
    for (number, group) in (0..).zip(groups) {
        match group {
            Some(group) => publisher.publish_to_group(group, &numbered(number)).await.unwrap(),
            None => publisher.publish(&numbered(number)).await.unwrap(),
        }
    }
    for (number, group) in (0..).zip(groups) {
        let expected = (number, group.map(str::to_owned));
        assert_eq!(next_number(&mut all).await, expected);
        match group {
            Some("a") => assert_eq!(next_number(&mut a).await, expected),
            Some("b") => assert_eq!(next_number(&mut b).await, expected),
            Some("ab") | None => {}
            Some(_) => assert_eq!(next_number(&mut longest).await, expected),
        }
    }
    for subscription in [&mut a, &mut b, &mut all, &mut longest] {
        assert_eq!(subscription.try_next(), None);
    }
}

#[tokio::test]
async fn the_name_of_a_group_is_bounded_and_so_is_what_is_published_to_it() {
    let (_node, url) = served().await;
    let endpoint = Endpoint::connect(&url).await.unwrap();
    let long = "g".repeat(GROUP_BYTES_MAX + 1);
    for name in ["", &long] {
        let error = endpoint.subscribe(Filter::all().group_name(name)).await.unwrap_err();
        assert_eq!(error.errno(), Some(errno::EINVAL), "{error}");
    }
    let error = endpoint.publish_to_group(&long, b"").await.unwrap_err();
    assert!(matches!(error, RequestError::TooBig(_)), "{error}");

    let mut subscription = endpoint.subscribe(Filter::all().group_name("g")).await.unwrap();
    // an attribute of 4 bytes and "g" with its NUL, padded
    let max = PAYLOAD_MAX + 1 - 8;
    let error = endpoint.publish_to_group("g", &vec![1; max + 1]).await.unwrap_err();
    assert!(matches!(error, RequestError::TooBig(_)), "{error}");
    endpoint.publish_to_group("g", &vec![1; max]).await.unwrap();
    let Event::Message { payload, .. } = next(&mut subscription).await else { panic!("a message") };
    assert_eq!(payload.len(), max);
}

fn to_group(group: &str, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    EnvelopeHead::default().emit_to_group(group, payload, &mut frame).unwrap();
    frame
}

#[test]
fn a_link_that_has_not_said_hello_gets_a_broadcast_without_its_group() {
    let mut bus = Bus::default();
    let [sender, old, new] = [(); 3].map(|()| bus.up(STRANGER));
    assert!(bus.hello(new, FRAME_MAX as u32).is_ack());
    bus.subscribe(old);
    bus.subscribe(new);
    let payload = message(0, 1, b"odd");
    let got = bus.send(sender, &to_group("alerts", &payload));
    let plain = data(EnvelopeHead::default(), &payload);
    let frames: Vec<_> = got.into_iter().map(|got| (got.to, got.frame)).collect();
    assert_eq!(frames, [(old, plain), (new, to_group("alerts", &payload))]);
    let long = vec![1; LEGACY_FRAME_MAX];
    assert_eq!(bus.send_one(sender, &to_group("a", &long)).to, new, "too long for the other");
}

#[test]
fn a_group_and_keys_must_both_match_and_an_overrun_of_others_is_not_for_the_group() {
    let mut bus = Bus::default();
    // of strangers an overrun is not taken
    let [sender, subscriber] = [SERVICE, STRANGER].map(|kind| bus.up(kind));
    let said = bus.control(subscriber, Command::Subscribe, |control| {
        let key = Key { offset: 16, key: 7, mask: u32::MAX };
        control.string(ControlAttribute::Group, "a")?.key(key)
    });
    assert!(said.is_ack(), "{said:?}");
    let overrun = MessageBuilder::new(nlbus::wire::nlm::OVERRUN, 0).body(&[3, 0, 0, 0]).finish();
    for (frame, wanted) in [
        (to_group("a", &numbered(7)), true),
        (to_group("a", &numbered(8)), false),
        (to_group("b", &numbered(7)), false),
        (push(0, 0, 0, &numbered(7)), false),
        (push(0, 0, 0, &overrun), false),
        (to_group("a", &overrun), true),
    ] {
        assert_eq!(bus.send(sender, &frame).len(), usize::from(wanted), "{frame:?}");
    }
    let stranger = bus.up(STRANGER);
    assert!(bus.send(stranger, &to_group("a", &overrun)).is_empty());
    assert_eq!(bus.counters().forbidden, 1);
}

// --- several filters ---

#[tokio::test]
async fn several_filters_give_one_stream_in_order_and_each_event_once() {
    let (_node, url) = served().await;
    let endpoint = Endpoint::connect(&url).await.unwrap();
    let odd = Filter::all().key(Key { offset: 16, key: 1, mask: 1 });
    let third = |rest: u32| Filter::all().key(Key { offset: 20, key: rest, mask: u32::MAX });
    let mut subscription = endpoint.subscribe_any([odd, third(0)]).await.unwrap();
    let mut nothing = endpoint.subscribe_any([]).await.unwrap();
    let event = |number: u32| {
        let message = MessageBuilder::new(0x20, 0).body(&number.to_le_bytes());
        message.body(&(number % 3).to_le_bytes()).finish()
    };
    for number in 0..=99 {
        endpoint.publish(&event(number)).await.unwrap();
    }
    for number in (0..=99).filter(|number| number % 2 == 1 || number % 3 == 0) {
        assert_eq!(next_number(&mut subscription).await.0, number);
    }
    assert_eq!((subscription.try_next(), nothing.try_next()), (None, None));
}

#[tokio::test]
async fn a_subscription_that_is_refused_half_way_leaves_nothing_behind() {
    let (node, url) = served().await;
    let (_held, mut wanted) = wanted(&node);
    let endpoint = Endpoint::connect(&url).await.unwrap();
    let too_many = (0..17).fold(Filter::all(), |filter, _| filter.key(Key::default()));
    let error = endpoint.subscribe_any([Filter::all(), too_many]).await.unwrap_err();
    assert_eq!(error.errno(), Some(errno::E2BIG));
    wait_for(&mut wanted, false).await;
    let error = endpoint.subscribe(Filter::all().from("nobody")).await.unwrap_err();
    assert_eq!(error.errno(), Some(errno::ENOENT));
}

// --- whose subscriptions ---

#[tokio::test]
async fn a_dropped_subscription_and_a_dead_subscriber_leave_nothing_behind() {
    let (node, url) = served().await;
    let (_held, mut wanted) = wanted(&node);
    let endpoint = Endpoint::connect(&url).await.unwrap();
    let subscription = endpoint.subscribe_any([Filter::all(), Filter::all()]).await.unwrap();
    wait_for(&mut wanted, true).await;
    drop(subscription);
    wait_for(&mut wanted, false).await;

    let (mut reader, writer) = raw_link(&url).await;
    assert!(writer.send(&control(0, 1, Command::Subscribe, |c| Ok(c))).await);
    assert!(said(&mut reader).await.is_ack());
    wait_for(&mut wanted, true).await;
    writer.close();
    drop((reader, writer));
    wait_for(&mut wanted, false).await;

    endpoint.publish(&numbered(0)).await.unwrap();
    endpoint.flush(PATIENCE).await.unwrap();
    let counters = node.counters().core;
    assert_eq!((counters.broadcasts, counters.unwanted), (1, 1));
}

#[tokio::test]
async fn nobody_ends_the_subscription_of_another() {
    let (_node, url) = served().await;
    let (mut owner, writer) = raw_link(&url).await;
    assert!(writer.send(&control(0, 1, Command::Subscribe, |c| Ok(c))).await);
    let cid = said(&mut owner).await.cid.unwrap();
    let (mut thief, stealing) = raw_link(&url).await;
    let unsubscribe = |sequence| {
        control(0, sequence, Command::Unsubscribe, |c| c.u32(ControlAttribute::Cid, cid))
    };
    assert!(stealing.send(&unsubscribe(1)).await);
    assert_eq!(said(&mut thief).await.errno, Some(errno::ENOENT));

    assert!(stealing.send(&push(0, 0, 0, &numbered(5))).await);
    let frame = timeout(PATIENCE, owner.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(frame, data(EnvelopeHead::default(), &numbered(5)));
    assert!(writer.send(&unsubscribe(2)).await);
    assert!(said(&mut owner).await.is_ack());
}

// --- publishing ---

#[tokio::test]
async fn what_was_flushed_arrives_although_its_link_is_gone() {
    let (_node, url) = served().await;
    let mut subscription =
        Endpoint::connect(&url).await.unwrap().subscribe(Filter::all()).await.unwrap();
    let publisher = Endpoint::connect(&url).await.unwrap();
    publisher.publish_all([numbered(1), numbered(2)].iter().map(Vec::as_slice)).await.unwrap();
    publisher.flush(PATIENCE).await.unwrap();
    drop(publisher);
    assert_eq!(next_number(&mut subscription).await.0, 1);
    assert_eq!(next_number(&mut subscription).await.0, 2);
}
