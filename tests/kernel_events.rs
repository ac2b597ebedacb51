//! What the kernel tells without being asked, to who subscribed.

#![allow(clippy::unwrap_used)] // helpers fail as the tests do that call them

mod support_kernel;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nlbus::endpoint::{Endpoint, Event, Filter, Subscription};
use nlbus::service::netlink::NETLINK_ROUTE;
use nlbus::wire::{
    Command, ControlAttribute, ControlBuilder, EnvelopeHead, Key, Message, flag, nlm,
};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use support_kernel::message::{
    DELADDR, DELLINK, NEWADDR, NEWLINK, NEWQDISC, NEWROUTE, add_address, add_route, add_veth,
    address_in, delete_address, delete_link, delete_route, link, set_up,
};
use support_kernel::netns::{Netns, address};
use support_kernel::original::{Original, frame, head, payload, vector};
use support_kernel::raw::{Raw, Send, header};
use support_kernel::served::serve;
use support_kernel::{PATIENCE, wait_until};
use tokio::time::timeout;

const ROUTE: u32 = 0x0001_0003;

/// The type of a message stands at offset 4 of its header.
fn of_type(kind: u16) -> Filter {
    Filter::all().key(Key { offset: 4, key: kind.into(), mask: 0xffff })
}

/// The next payload, which is the subsystem's; `None` if some were lost before it.
async fn next(subscription: &mut Subscription) -> Option<Bytes> {
    match timeout(PATIENCE, subscription.next()).await.unwrap().unwrap() {
        Event::Message { from, payload, .. } => {
            assert_eq!(from, ROUTE);
            Some(payload)
        }
        Event::Lost(_) => None,
    }
}

/// The next payload that begins with a message of type `kind`, and the body of that.
async fn next_of(subscription: &mut Subscription, kind: u16) -> Vec<u8> {
    loop {
        let payload = next(subscription).await.expect("nothing is lost");
        let message = Message::parse(&payload).unwrap();
        if message.header.kind == kind {
            return message.body().to_vec();
        }
    }
}

fn change(raw: &mut Raw, message: Vec<u8>) {
    assert_eq!(raw.change(message, Send::WithoutAddress), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_right_after_subscribing_is_told_every_time() {
    let Some(netns) = Netns::new("rightafter") else { return };
    let index = netns.veth("v");
    netns.ip("link set v up");
    let served = serve(&netns).await;
    let mut raw = Raw::open_in(&netns, NETLINK_ROUTE);
    for round in 1..=50 {
        // a new link to the broker, and the only subscription, so that the groups are joined each time
        let endpoint = Endpoint::connect(&served.unix).await.unwrap();
        let mut subscription = endpoint.subscribe(Filter::all()).await.unwrap();
        change(&mut raw, add_address(index, address(round)));
        let told = next_of(&mut subscription, NEWADDR).await;
        assert_eq!(address_in(&told), Some(address(round)));
        change(&mut raw, add_route(index, address(1_000 + round)));
        let wanted = address(1_000 + round).octets();
        while !next_of(&mut subscription, NEWROUTE).await.windows(4).any(|four| four == wanted) {}
        drop(subscription);
        drop(endpoint);
        wait_until("the link is gone", || served.node.counters().links == 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribing_and_unsubscribing_on_one_link_misses_nothing() {
    let Some(netns) = Netns::new("onelink") else { return };
    let index = netns.veth("v");
    let served = serve(&netns).await;
    let endpoint = served.endpoint().await;
    let mut raw = Raw::open_in(&netns, NETLINK_ROUTE);
    for round in 1..=50 {
        let mut subscription = endpoint.subscribe(of_type(NEWADDR)).await.unwrap();
        change(&mut raw, add_address(index, address(round)));
        let told = next(&mut subscription).await.unwrap();
        assert_eq!(address_in(Message::parse(&told).unwrap().body()), Some(address(round)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_lets_through_only_what_it_names() {
    let Some(netns) = Netns::new("filter") else { return };
    let index = netns.veth("v");
    let served = serve(&netns).await;
    let endpoint = served.endpoint().await;
    let mut additions = endpoint.subscribe(of_type(NEWADDR)).await.unwrap();
    let mut deletions = endpoint.subscribe(of_type(DELADDR).from("route")).await.unwrap();
    let mut links = served.endpoint().await.subscribe(of_type(DELLINK)).await.unwrap();
    let mut raw = Raw::open_in(&netns, NETLINK_ROUTE);
    for number in 1..=10 {
        change(&mut raw, add_address(index, address(number)));
        change(&mut raw, delete_address(index, address(number)));
    }
    change(&mut raw, delete_link(index));
    for number in 1..=10 {
        for (subscription, kind) in [(&mut additions, NEWADDR), (&mut deletions, DELADDR)] {
            let told = next(subscription).await.unwrap();
            let message = Message::parse(&told).unwrap();
            assert_eq!(message.header.kind, kind);
            assert_eq!(address_in(message.body()), Some(address(number)));
        }
    }
    for _ in ["v", "vp"] {
        let told = next(&mut links).await.unwrap();
        assert_eq!(header(&told).kind, DELLINK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_subscribers_are_told_the_same_and_one_goes_on_when_the_other_leaves() {
    let Some(netns) = Netns::new("two") else { return };
    let index = netns.veth("v");
    let served = serve(&netns).await;
    let (first, second) = (served.endpoint().await, served.endpoint().await);
    let mut one = first.subscribe(of_type(NEWADDR)).await.unwrap();
    let mut other = second.subscribe(of_type(NEWADDR)).await.unwrap();
    let mut raw = Raw::open_in(&netns, NETLINK_ROUTE);
    for number in 1..=20 {
        change(&mut raw, add_address(index, address(number)));
        let told = next(&mut one).await.unwrap();
        assert_eq!(next(&mut other).await.unwrap(), told);
        assert_eq!(address_in(Message::parse(&told).unwrap().body()), Some(address(number)));
    }
    drop(one);
    drop(first);
    wait_until("the first has left", || served.node.counters().links == 2);
    change(&mut raw, add_address(index, address(21)));
    let told = next(&mut other).await.unwrap();
    assert_eq!(address_in(Message::parse(&told).unwrap().body()), Some(address(21)));
}

/// What `marker` comes to is the last of what is compared.
fn until(marker: Ipv4Addr, payload: &[u8]) -> bool {
    let message = Message::parse(payload).unwrap();
    message.header.kind == NEWADDR && address_in(message.body()) == Some(marker)
}

fn make_changes(netns: &Netns, raw: &mut Raw, marker: Ipv4Addr) {
    let index = netns.index("v");
    change(raw, add_veth("new", "newp"));
    change(raw, set_up(index));
    change(raw, add_address(index, address(1)));
    change(raw, add_route(index, address(2)));
    change(raw, delete_route(index, address(2)));
    change(raw, delete_address(index, address(1)));
    change(raw, delete_link(netns.index("new")));
    change(raw, add_address(index, marker));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_byte_for_byte_what_the_kernel_told_with_the_subsystem_as_their_source() {
    let Some(netns) = Netns::new("bytes") else { return };
    netns.veth("v");
    let served = serve(&netns).await;
    let endpoint = served.endpoint().await;
    let mut subscription = endpoint.subscribe(Filter::all()).await.unwrap();
    let listener = Raw::listen_in(&netns, NETLINK_ROUTE);
    let marker = address(99);
    make_changes(&netns, &mut Raw::open_in(&netns, NETLINK_ROUTE), marker);

    let mut told = Vec::new();
    while !told.last().is_some_and(|last: &Bytes| until(marker, last)) {
        told.push(next(&mut subscription).await.expect("nothing is lost"));
    }
    let mut heard = Vec::new();
    while !heard.last().is_some_and(|last: &Vec<u8>| until(marker, last)) {
        heard.push(listener.receive());
    }
    // the listener came second: what it heard is the end of what was told
    let kinds: Vec<_> = heard.iter().map(|datagram| header(datagram).kind).collect();
    assert!([NEWLINK, NEWADDR, NEWROUTE, DELADDR, DELLINK].iter().all(|kind| kinds.contains(kind)));
    assert!(told.len() >= heard.len());
    assert_eq!(told[told.len() - heard.len()..], heard);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_the_original_gets_events_in_envelopes_of_zeros() {
    let Some(netns) = Netns::new("zeros") else { return };
    netns.veth("v");
    let served = serve(&netns).await;
    let mut client = Original::connect(&served.tcp);
    client.send(&vector("subscribe/request-all"));
    assert_eq!(client.receive(), vector("subscribe/reply"));
    let listener = Raw::listen_in(&netns, NETLINK_ROUTE);
    let marker = address(99);
    make_changes(&netns, &mut Raw::open_in(&netns, NETLINK_ROUTE), marker);

    let mut told = Vec::new();
    while !told.last().is_some_and(|last: &Vec<u8>| until(marker, last)) {
        let frame = client.receive();
        assert_eq!(head(&frame), EnvelopeHead::default());
        told.push(payload(&frame).to_vec());
    }
    let mut heard = Vec::new();
    while !heard.last().is_some_and(|last: &Vec<u8>| until(marker, last)) {
        heard.push(listener.receive());
    }
    assert!(told.len() >= heard.len());
    assert_eq!(told[told.len() - heard.len()..], heard);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_unsubscribed_is_told_no_more_while_others_are() {
    let Some(netns) = Netns::new("unsubscribed") else { return };
    let index = netns.veth("v");
    let served = serve(&netns).await;
    let mut client = Original::connect(&served.unix);
    client.send(&vector("subscribe/request-all"));
    assert_eq!(client.receive(), vector("subscribe/reply"));
    let mut unsubscribe = Vec::new();
    ControlBuilder::new(&mut unsubscribe, EnvelopeHead::default(), Command::Unsubscribe)
        .u32(ControlAttribute::Cid, 1_023)
        .unwrap()
        .finish();
    client.send(&unsubscribe);
    assert_eq!(head(&client.receive()).flags, flag::CONTROL);

    let mut other = served.endpoint().await.subscribe(of_type(NEWADDR)).await.unwrap();
    let mut raw = Raw::open_in(&netns, NETLINK_ROUTE);
    change(&mut raw, add_address(index, address(1)));
    next(&mut other).await.unwrap();
    client.send(&frame(5, &link(index, 6, 7)));
    let reply = client.receive();
    assert_eq!((head(&reply).sequence, header(payload(&reply)).kind), (5, NEWLINK));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_told_before_a_subscription_and_nothing_after_it() {
    let Some(netns) = Netns::new("after") else { return };
    let index = netns.veth("v");
    let served = serve(&netns).await;
    let endpoint = served.endpoint().await;
    let mut raw = Raw::open_in(&netns, NETLINK_ROUTE);
    change(&mut raw, add_address(index, address(1)));
    let told = served.node.counters().core.broadcasts;
    assert_eq!(told, 0, "nobody wanted it, so nobody listened");

    let subscription = endpoint.subscribe(Filter::all()).await.unwrap();
    let listens = || netns.sockets(NETLINK_ROUTE).iter().any(|socket| socket.groups != 0);
    assert!(listens());
    drop(subscription);
    wait_until("the groups are left", || !listens());
    let told = served.node.counters().core.broadcasts;
    change(&mut raw, add_address(index, address(2)));
    let mut again = endpoint.subscribe(of_type(NEWADDR)).await.unwrap();
    change(&mut raw, add_address(index, address(3)));
    let event = next(&mut again).await.unwrap();
    assert_eq!(address_in(Message::parse(&event).unwrap().body()), Some(address(3)));
    assert!(served.node.counters().core.broadcasts > told);
}

/// The room is taken away where the kernel looks: from the socket's receive buffer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_the_kernel_had_no_room_for_are_told_to_every_subscriber_as_lost() {
    let Some(netns) = Netns::new("eventsoverrun") else { return };
    let served = serve(&netns).await;
    let endpoint = served.endpoint().await;
    // what these name never happens
    let of_route = of_type(NEWQDISC).from("route");
    let mut one = endpoint.subscribe(of_type(NEWQDISC)).await.unwrap();
    let mut other = endpoint.subscribe(of_route).await.unwrap();
    let mut original = Original::connect(&served.unix);
    original.send(&vector("subscribe/request-dellink-only"));
    assert_eq!(head(&original.receive()).flags, flag::CONTROL);
    let [monitor] = &netns.descriptors(NETLINK_ROUTE)[..] else { panic!("one socket") };
    set_socket_recv_buffer_size(monitor, 1).unwrap();

    let mut raw = Raw::open_in(&netns, NETLINK_ROUTE);
    let deadline = Instant::now() + PATIENCE;
    let broadcasts = || served.node.counters().core.broadcasts;
    let mut first = std::pin::pin!(one.next());
    let told = loop {
        // makes the kernel tell thousands of things at once, far faster than they are read
        netns.addresses(1_000);
        let before = broadcasts();
        change(&mut raw, delete_link(netns.index("many")));
        wait_until("something is told", || broadcasts() > before);
        if let Ok(told) = timeout(Duration::ZERO, &mut first).await {
            break told;
        }
        assert!(Instant::now() < deadline, "nothing is ever lost");
    };
    assert!(matches!(told, Some(Event::Lost(1))));
    assert_eq!(next(&mut other).await, None);
    loop {
        let frame = original.receive();
        assert_eq!(head(&frame), EnvelopeHead::default());
        match header(payload(&frame)).kind {
            nlm::OVERRUN => break,
            kind => assert_eq!(kind, DELLINK),
        }
    }

    // it goes on; with so little room, this too may be lost
    let mut events = endpoint.subscribe(of_type(NEWLINK)).await.unwrap();
    loop {
        change(&mut raw, add_veth("new", "newp"));
        change(&mut raw, delete_link(netns.index("new")));
        if let Ok(Some(told)) = timeout(Duration::ZERO, next(&mut events)).await {
            break assert_eq!(header(&told).kind, NEWLINK);
        }
        assert!(Instant::now() < deadline, "nothing is told any more");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_are_no_netlink_come_as_they_are() {
    const KOBJECT_UEVENT: u16 = 15;
    let Some(netns) = Netns::new("uevent") else { return };
    let served = serve(&netns).await;
    let uevent = served.add("uevent", KOBJECT_UEVENT).await;
    let endpoint = served.endpoint().await;
    let mut subscription = endpoint.subscribe(Filter::all().from("uevent")).await.unwrap();
    let listener = Raw::listen_in(&netns, KOBJECT_UEVENT);
    netns.veth("v");
    let heard = listener.receive();
    assert!(heard.starts_with(b"add@/"), "{}", String::from_utf8_lossy(&heard));
    match timeout(PATIENCE, subscription.next()).await.unwrap().unwrap() {
        Event::Message { from, payload, .. } => {
            assert_eq!((from, &payload[..]), (uevent, &heard[..]));
        }
        Event::Lost(count) => panic!("{count} lost"),
    }
}
