//! Brokers linked to each other over real sockets: names, bodies, events, and what a broken or hostile
//! neighbour does to the others.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

#[path = "transport/authority.rs"]
#[allow(dead_code, reason = "the tests of the transport use the rest")]
mod authority;
mod support_node;

use std::time::Duration;

use authority::Authority;
use nlbus::endpoint::{
    ConnectOptions, Endpoint, Event, Filter, Provider, RequestError, RequestOptions, Subscription,
};
use nlbus::node::{Node, NodeOptions, UplinkOptions};
use nlbus::transport::ListenOptions;
use nlbus::url::BusUrl;
use nlbus::wire::{
    Command, Control, ControlAttribute, ControlBuilder, EnvelopeHead, address, errno, flag,
};
use support_node::chain::{down, eventually, export, link, trusting, up, uplink};
use support_node::frames::{data, head_of, message, payload_of};
use support_node::peer::{Server, until, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};

const BODY_BYTES: usize = 5 << 20;

fn long() -> RequestOptions {
    RequestOptions::default().deadline(Duration::from_secs(60))
}

/// Answers every request with the request's body, reversed.
async fn reverse(node: &Node, name: &str) {
    let mut provider: Provider = Endpoint::attach(node).unwrap().provide(name).await.unwrap();
    tokio::spawn(async move {
        while let Some(request) = provider.next_request().await {
            let answer: Vec<u8> = request.body().iter().rev().copied().collect();
            // an asker may have gone
            let _ = request.reply(&answer).await;
        }
    });
}

async fn call(endpoint: &Endpoint, name: &str, body: &[u8]) -> Result<Vec<u8>, RequestError> {
    within(endpoint.call_with(name, body, long())).await.map(|body| body.to_vec())
}

async fn assert_reversed(endpoint: &Endpoint, name: &str, body: &[u8]) {
    let wanted: Vec<u8> = body.iter().rev().copied().collect();
    assert!(call(endpoint, name, body).await.unwrap() == wanted, "{name}");
}

async fn start() -> Server {
    let server = Server::start(NodeOptions::default()).await;
    trusting(&server.node);
    server
}

fn body() -> Vec<u8> {
    (0..BODY_BYTES).map(|n| (n % 251) as u8).collect()
}

// --- names and bodies ---

/// An asker, two brokers and a third one with a provider, all over one kind of socket; and a provider at the
/// asker's broker that the third one's asker reaches.
async fn three_in_a_row(
    listen: &[&str; 3],
    options: &ListenOptions,
    adjust: impl Fn(&mut UplinkOptions),
    connect: &ConnectOptions,
) {
    let mut nodes = Vec::new();
    for at in listen {
        let node = Node::new(NodeOptions::default());
        trusting(&node);
        let at = node.listen(&at.parse().unwrap(), options).await.unwrap();
        nodes.push((node, at));
    }
    let [(one, at_one), (two, at_two), (three, at_three)] = &nodes[..] else { unreachable!() };
    reverse(one, "first").await;
    reverse(three, "last").await;
    let linking = |name: &str, exports| {
        let mut options = uplink(name);
        options.exports = exports;
        adjust(&mut options);
        options
    };
    link(one, at_two, linking("two", vec![export("first", "first@one")])).await;
    link(two, at_three, linking("three", vec![export("first@one", "first@one@two")])).await;
    let asker = Endpoint::connect_with(at_one, connect).await.unwrap();
    let body = body();
    assert_reversed(&asker, "last@three@two", b"short").await;
    assert_reversed(&asker, "last@three@two", &body).await;
    let other = Endpoint::connect_with(at_three, connect).await.unwrap();
    eventually(async || other.discover("first@one@two").await.ok()).await;
    assert_reversed(&other, "first@one@two", &body).await;
    // both ways at once, several at a time
    let both = [(&asker, "last@three@two"), (&other, "first@one@two")];
    let [(a, a_name), (b, b_name)] = both;
    tokio::join!(
        assert_reversed(a, a_name, &body),
        assert_reversed(a, a_name, b""),
        assert_reversed(b, b_name, &body),
        assert_reversed(b, b_name, b"x"),
    );
    let unknown = call(&asker, "nobody@three@two", b"").await.unwrap_err();
    assert_eq!(unknown.errno(), Some(errno::ENOENT), "{unknown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_long_bodies_go_both_ways_through_three_brokers_over_tcp() {
    let options = (ListenOptions::default(), ConnectOptions::default());
    three_in_a_row(&["tcp://127.0.0.1:0"; 3], &options.0, |_| (), &options.1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_long_bodies_go_both_ways_through_three_brokers_over_unix() {
    let place = tempfile::tempdir().unwrap();
    let urls = [1, 2, 3].map(|n| format!("unix://{}/{n}.sock", place.path().display()));
    let urls = [urls[0].as_str(), &urls[1], &urls[2]];
    let options = (ListenOptions::default(), ConnectOptions::default());
    three_in_a_row(&urls, &options.0, |_| (), &options.1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_long_bodies_go_both_ways_through_three_brokers_over_tls() {
    let authority = Authority::new();
    let listen = ListenOptions { tls: Some(authority.server()), ..ListenOptions::default() };
    let mut connect = ConnectOptions::default();
    connect.dial.tls = Some(authority.client());
    let dial = connect.dial.clone();
    let adjust = |options: &mut UplinkOptions| options.dial = dial.clone();
    three_in_a_row(&["tls://localhost:0"; 3], &listen, adjust, &connect).await;
}

// --- events ---

async fn next(subscription: &mut Subscription) -> Event {
    within(subscription.next()).await.expect("the link is up")
}

/// The payload of the next event, whatever was lost before it.
async fn next_payload(subscription: &mut Subscription) -> Vec<u8> {
    loop {
        if let Event::Message { payload, .. } = next(subscription).await {
            return payload.to_vec();
        }
    }
}

/// Waits until `count` subscriptions have come to this node.
async fn subscribed(node: &Node, count: usize) {
    let endpoint = Endpoint::attach(node).unwrap();
    eventually(async || {
        let all = endpoint.subscriptions().await.unwrap();
        (all.len() == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_go_both_ways_between_brokers_that_trust_each_other() {
    let (near, far) = (start().await, start().await);
    link(&near.node, &far.tcp, uplink("far")).await;
    let (here, there) = (near.connect().await, far.connect().await);
    let mut hears = here.subscribe(Filter::all().group_name("alerts")).await.unwrap();
    let mut hears_too = there.subscribe(Filter::all()).await.unwrap();
    // its own, and what the other broker asks for
    subscribed(&near.node, 2).await;
    subscribed(&far.node, 2).await;
    let (one, two) = (message(0, 1, b"from there"), message(0, 2, b"from here"));
    there.publish_to_group("else", &message(0, 0, b"not this one")).await.unwrap();
    there.publish_to_group("alerts", &one).await.unwrap();
    let Event::Message { from: 0, group: Some(group), payload } = next(&mut hears).await else {
        panic!("not a message to a group")
    };
    assert_eq!((group.as_str(), &payload[..]), ("alerts", &one[..]));
    here.publish(&two).await.unwrap();
    let mut payloads = Vec::new();
    for _ in 0..3 {
        payloads.push(next_payload(&mut hears_too).await);
    }
    assert_eq!(payloads, [message(0, 0, b"not this one"), one, two]);
    drop(hears);
    drop(hears_too);
    subscribed(&near.node, 0).await;
    subscribed(&far.node, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_of_three_brokers_delivers_every_broadcast_once() {
    const EACH: u32 = 200;
    let ring = [start().await, start().await, start().await];
    for (n, server) in ring.iter().enumerate() {
        link(&server.node, &ring[(n + 1) % 3].tcp, uplink("next")).await;
    }
    let mut hearing = Vec::new();
    for server in &ring {
        let endpoint = server.connect().await;
        hearing.push((endpoint.subscribe(Filter::all()).await.unwrap(), endpoint));
    }
    for server in &ring {
        subscribed(&server.node, 3).await;
    }
    for sequence in 0..EACH {
        for (sender, (_, endpoint)) in hearing.iter().enumerate() {
            let sender = sender as u32;
            endpoint.publish(&message(0, sequence, &sender.to_le_bytes())).await.unwrap();
        }
    }
    // each goes over three links and is taken twice, or over four
    let counted = |which: fn(&nlbus::node::NodeCounters) -> u64| -> u64 {
        ring.iter().map(|server| which(&server.node.counters())).sum()
    };
    let mut all = Vec::new();
    for (subscription, _) in &mut hearing {
        let mut heard = Vec::new();
        while heard.len() < 3 * EACH as usize {
            heard.push(next_payload(subscription).await);
        }
        all.push(heard);
    }
    until(|| counted(|c| c.core.duplicates) == u64::from(2 * 3 * EACH)).await;
    for (subscription, endpoint) in &mut hearing {
        endpoint.flush(Duration::from_secs(60)).await.unwrap();
        assert_eq!(subscription.try_next(), None, "no more than that");
    }
    for heard in &mut all {
        for sender in 0..3u32 {
            let from = |payload: &&Vec<u8>| payload[16..] == sender.to_le_bytes();
            let sequences = heard.iter().filter(from).map(|payload| payload[8..12].to_vec());
            let wanted = (0..EACH).map(|n| n.to_le_bytes().to_vec());
            assert!(sequences.eq(wanted), "in order, each once");
        }
    }
}

// --- links that are lost ---

/// As coming from the subsystem.
async fn broadcast(provider: &Provider, payload: &[u8]) {
    let mut frame = [&[0; 28], payload, &[0; 3]].concat();
    provider.publisher().publish_in_place(&mut frame, payload.len()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_is_told_of_a_lost_link_and_hears_again_when_it_is_back() {
    let near = start().await;
    let far = Node::new(NodeOptions::default());
    let at: BusUrl = "tcp://127.0.0.1:0".parse().unwrap();
    let at = far.listen(&at, &ListenOptions::default()).await.unwrap();
    let provider = Endpoint::attach(&far).unwrap().provide("news").await.unwrap();
    let address = link(&near.node, &at, uplink("far")).await;
    let endpoint = near.connect().await;
    let mut hears = endpoint.subscribe(Filter::all().from("news@far")).await.unwrap();
    subscribed(&far, 1).await;
    broadcast(&provider, &message(0, 1, b"before")).await;
    assert_eq!(next_payload(&mut hears).await, message(0, 1, b"before"));

    far.shutdown(Duration::ZERO).await;
    assert!(matches!(next(&mut hears).await, Event::Lost(_)));
    let owner = Endpoint::connect(&near.unix).await.unwrap();
    down(&owner, address).await;
    let lost = call(&endpoint, "news@far", b"").await.unwrap_err();
    assert_eq!(lost.errno(), Some(errno::EHOSTUNREACH), "{lost}");

    let far = Node::new(NodeOptions::default());
    let provider = Endpoint::attach(&far).unwrap().provide("news").await.unwrap();
    far.listen(&at, &ListenOptions::default()).await.unwrap();
    subscribed(&far, 1).await;
    broadcast(&provider, &message(0, 2, b"after")).await;
    assert!(matches!(next(&mut hears).await, Event::Lost(_)), "what came meanwhile is not known");
    assert_eq!(next_payload(&mut hears).await, message(0, 2, b"after"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_works_again_for_the_same_endpoint_when_its_broker_is_back() {
    let near = start().await;
    let mut far = Node::new(NodeOptions::default());
    let at: BusUrl = "tcp://127.0.0.1:0".parse().unwrap();
    let at = far.listen(&at, &ListenOptions::default()).await.unwrap();
    reverse(&far, "reverse").await;
    let uplink = link(&near.node, &at, uplink("far")).await;
    let endpoint = near.connect().await;
    assert_reversed(&endpoint, "reverse@far", b"one").await;
    let address = endpoint.discover("reverse@far").await.unwrap();
    let owner = Endpoint::connect(&near.unix).await.unwrap();
    for round in 0..5 {
        far.shutdown(Duration::ZERO).await;
        down(&owner, uplink).await;
        far = Node::new(NodeOptions::default());
        // the name has another address there now
        let mut others = Vec::new();
        for n in 0..=round {
            let other = Endpoint::attach(&far).unwrap();
            others.push(other.provide(&format!("other{n}")).await.unwrap());
        }
        reverse(&far, "reverse").await;
        far.listen(&at, &ListenOptions::default()).await.unwrap();
        up(&owner, uplink).await;
        // the link is up a moment before the name is asked for there
        eventually(async || call(&endpoint, "reverse@far", b"ab").await.ok()).await;
        assert_reversed(&endpoint, "reverse@far", b"two").await;
        assert_eq!(endpoint.discover("reverse@far").await.unwrap(), address);
    }
}

#[tokio::test(start_paused = true)]
async fn an_uplink_that_is_ended_is_not_tried_any_more() {
    const AGES: Duration = Duration::from_secs(600);
    let node = Node::new(NodeOptions::default());
    let endpoint = Endpoint::attach(&node).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at: BusUrl = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
    let again = async || tokio::time::timeout(AGES, listener.accept()).await;
    let address = node.uplink(&at, uplink("far")).unwrap();
    for _ in 0..5 {
        drop(again().await.unwrap().unwrap());
    }
    endpoint.disconnect_broker(address).await.unwrap();
    // an attempt may have been under way
    while let Ok(accepted) = tokio::time::timeout(Duration::from_millis(1), listener.accept()).await
    {
        drop(accepted.unwrap());
    }
    assert!(again().await.is_err());
    assert!(!node.unlink(address));
}

// --- neighbours of another kind ---

async fn read_frame(socket: &mut TcpStream) -> Option<Vec<u8>> {
    let length = socket.read_u32_le().await.ok()?;
    let mut frame = length.to_le_bytes().to_vec();
    frame.resize(length as usize, 0);
    socket.read_exact(&mut frame[4..]).await.ok()?;
    Some(frame)
}

fn command_of(frame: &[u8]) -> Option<Command> {
    Control::parse(payload_of(frame)).unwrap().command()
}

#[tokio::test]
async fn a_server_of_the_original_takes_requests_though_it_does_not_know_hello() {
    let near = start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at: BusUrl = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
    let serving = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut told = Vec::new();
        while let Some(frame) = read_frame(&mut socket).await {
            let head = head_of(&frame);
            let back = EnvelopeHead { flags: 0, dst: head.src, src: head.dst, ..head };
            let mut answer = Vec::new();
            if head.flags & flag::CONTROL != 0 {
                told.push(command_of(&frame).unwrap());
                ControlBuilder::new(&mut answer, back, Command::Err).finish();
            } else {
                assert_eq!(head.dst, address::SUBSYSTEM_FIRST);
                assert!(frame.len() <= 16_384);
                answer = data(back, payload_of(&frame));
            }
            socket.write_all(&answer).await.unwrap();
        }
        told
    });
    let uplink = link(&near.node, &at, uplink("old")).await;
    let endpoint = near.connect().await;
    for n in 0..3 {
        let request = message(0, n, b"as in 2013");
        let replies = endpoint.request_with(uplink, &request, long()).await.unwrap();
        let replies = within(replies.collect()).await.unwrap();
        assert_eq!(replies[0].bytes(), &request);
        let by_name = endpoint.request_with("@old", &request, long()).await.unwrap();
        assert_eq!(within(by_name.collect()).await.unwrap()[0].bytes(), &request);
    }
    let unknown = endpoint.discover("route@old").await;
    assert_eq!(unknown.unwrap_err().errno(), Some(errno::EOPNOTSUPP));
    let long_one = message(0, 9, &[0; 20_000]);
    let replies = endpoint.request_with(uplink, &long_one, long()).await.unwrap();
    let too_long = within(replies.collect()).await.unwrap_err();
    assert_eq!(too_long.errno(), Some(errno::EMSGSIZE));
    near.node.unlink(uplink);
    assert_eq!(within(serving).await.unwrap(), [Command::Hello, Command::Discover]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_that_talks_all_the_time_and_never_greets_is_dropped_too() {
    let near = start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at: BusUrl = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
    let mut options = uplink("talker");
    options.greeting_max = Duration::from_millis(20);
    near.node.uplink(&at, options).unwrap();
    let talk = data(EnvelopeHead { dst: 0, ..EnvelopeHead::default() }, &message(0, 1, b"talk"));
    let talk = talk.repeat(100);
    for _ in 0..2 {
        let (mut socket, _) = within(listener.accept()).await.unwrap();
        within(async { while socket.write_all(&talk).await.is_ok() {} }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uplink_that_is_made_again_under_its_name_has_one_link() {
    let (near, far) = (start().await, start().await);
    reverse(&far.node, "reverse").await;
    let endpoint = Endpoint::attach(&near.node).unwrap();
    for round in 0..200 {
        let address = near.node.uplink(&far.tcp, uplink("far")).unwrap();
        for _ in 0..round % 20 {
            tokio::task::yield_now().await;
        }
        assert!(near.node.unlink(address));
    }
    link(&near.node, &far.tcp, uplink("far")).await;
    assert_reversed(&endpoint, "reverse@far", b"ab").await;
    let watching = Endpoint::attach(&far.node).unwrap();
    eventually(async || {
        let links = watching.links().await.unwrap();
        let over_sockets = links.iter().filter(|link| link.peer != "this process").count();
        (over_sockets == 1).then_some(())
    })
    .await;
    assert_reversed(&endpoint, "reverse@far", b"cd").await;
}

#[tokio::test]
async fn a_neighbour_that_does_not_greet_in_time_is_dropped_and_tried_again() {
    let near = start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at: BusUrl = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
    let mut options = uplink("silent");
    options.greeting_max = Duration::from_millis(20);
    near.node.uplink(&at, options).unwrap();
    for _ in 0..3 {
        let (mut socket, _) = within(listener.accept()).await.unwrap();
        let hello = within(read_frame(&mut socket)).await.unwrap();
        assert_eq!(command_of(&hello), Some(Command::Hello));
        assert_eq!(within(socket.read_to_end(&mut Vec::new())).await.unwrap(), 0);
    }
    assert!(near.node.counters().silent >= 2);
    let asked = near.connect().await.discover("route@silent").await;
    assert_eq!(asked.unwrap_err().errno(), Some(errno::EHOSTUNREACH));
}

#[tokio::test]
async fn a_neighbour_that_stops_reading_loses_its_link_and_nobody_else_notices() {
    let mut options = NodeOptions::default();
    options.outbox_bytes_max = 16 << 10;
    let near = Server::start(options).await;
    near.echo("echo").await;
    let far = start().await;
    reverse(&far.node, "reverse").await;
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("stalled.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let at: BusUrl = format!("unix://{}", path.display()).parse().unwrap();
    link(&near.node, &far.tcp, uplink("far")).await;
    let stalled = near.node.uplink(&at, uplink("stalled")).unwrap();
    let (mut socket, _) = within(listener.accept()).await.unwrap();
    let mut hello = [0; 28];
    within(socket.read_exact(&mut hello)).await.unwrap();
    let mut answer = Vec::new();
    let head = EnvelopeHead { sequence: 1, ..EnvelopeHead::default() };
    ControlBuilder::new(&mut answer, head, Command::Ack)
        .u32(ControlAttribute::Version, 1)
        .and_then(|ack| ack.u32(ControlAttribute::FrameMax, 65_560))
        .unwrap()
        .finish();
    socket.write_all(&answer).await.unwrap();
    let owner = Endpoint::connect(&near.unix).await.unwrap();
    up(&owner, stalled).await;

    // each is told to both neighbours: more than sockets and outbox hold
    let mut hearing = Vec::new();
    let first_links = async || {
        let all = owner.uplinks().await.unwrap();
        all.into_iter().find(|one| one.address == stalled).is_some_and(|one| one.link.is_some())
    };
    'telling: loop {
        let guest = near.connect().await;
        for n in 0..1_000 {
            let group = format!("{}-{n:0>200}", hearing.len());
            let subscribed = guest.subscribe(Filter::all().group_name(group)).await.unwrap();
            hearing.push((subscribed, guest.clone()));
            if !first_links().await {
                break 'telling;
            }
        }
    }
    // it is tried again; the others never noticed
    within(listener.accept()).await.unwrap();
    let guest = near.connect().await;
    let request = message(0, 1, b"well");
    let replies = guest.request_with("echo", &request, long()).await.unwrap();
    assert_eq!(within(replies.collect()).await.unwrap()[0].bytes(), &request);
    assert_reversed(&guest, "reverse@far", b"well").await;
    let (last, teller) = (hearing.len() - 1, far.connect().await);
    subscribed(&far.node, hearing.len()).await;
    let group = format!("{last}-{:0>200}", last % 1_000);
    teller.publish_to_group(&group, &message(0, 3, b"heard")).await.unwrap();
    assert_eq!(next_payload(&mut hearing[last].0).await, message(0, 3, b"heard"));
}
