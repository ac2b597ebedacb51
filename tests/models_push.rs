//! PUSH/PULL between programs: in order, nothing lost, and only who pushes is held back.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_node;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nlbus::endpoint::{
    ConnectOptions, Destination, Endpoint, Event, Filter, MESSAGE_BYTES_MAX, ProvideOptions,
    Puller, RequestError, RequestOptions, UdpPusher, body_of,
};
use nlbus::node::NodeOptions;
use nlbus::transport::{DialOptions, ListenOptions, SocketOptions, UDP_DATAGRAM_BYTES_MAX};
use nlbus::url::BusUrl;
use nlbus::wire::{Message, MessageBuilder, PAYLOAD_MAX, errno, nlm};
use support_node::frames::{head_of, payload_of};
use support_node::peer::{Peer, Server, within};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Endpoints over tcp, over unix and inside the process.
async fn everywhere(server: &Server) -> [(&'static str, Endpoint); 3] {
    [
        ("tcp", Endpoint::connect(&server.tcp).await.unwrap()),
        ("unix", Endpoint::connect(&server.unix).await.unwrap()),
        ("mem", Endpoint::attach(&server.node).unwrap()),
    ]
}

/// Endpoints that may provide.
async fn providing(server: &Server) -> [(&'static str, Endpoint); 2] {
    [
        ("unix", Endpoint::connect(&server.unix).await.unwrap()),
        ("mem", Endpoint::attach(&server.node).unwrap()),
    ]
}

/// A body that says who pushed it and as which of its own, and is of this length at least.
fn body(pusher: usize, number: usize, length: usize) -> Vec<u8> {
    let mut body = [pusher as u32, number as u32].map(u32::to_le_bytes).concat();
    body.resize(length.max(8), (pusher + number) as u8);
    body
}

fn numbers(body: &[u8]) -> (usize, usize) {
    let word = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap()) as usize;
    (word(0), word(4))
}

async fn take(puller: &mut Puller) -> Vec<u8> {
    within(puller.next()).await.expect("the link is up").body.to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_each_pusher_pushes_arrives_whole_and_in_its_order() {
    const EACH: usize = 2_000;
    let server = Server::start(NodeOptions::default()).await;
    // every 500th does not fit one frame
    let length = |number: usize| if number % 500 == 499 { 300_000 } else { number % 50 };
    for (there, owner) in providing(&server).await {
        let name = format!("jobs-{there}");
        let mut puller = owner.pull(&name).await.unwrap();
        let mut pushers = JoinSet::new();
        for (pusher, (_, endpoint)) in everywhere(&server).await.into_iter().enumerate() {
            let name = name.clone();
            pushers.spawn(async move {
                for number in 0..EACH {
                    let body = body(pusher, number, length(number));
                    endpoint.push(name.as_str(), &body).await.unwrap();
                }
            });
        }
        let mut next = [0; 3];
        for _ in 0..3 * EACH {
            let got = take(&mut puller).await;
            let (pusher, number) = numbers(&got);
            assert_eq!(number, next[pusher], "{there}: pusher {pusher}");
            assert!(got == body(pusher, number, length(number)), "{there}: {pusher} {number}");
            next[pusher] += 1;
        }
        while let Some(pushed) = within(pushers.join_next()).await {
            pushed.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_pullers_share_and_none_gets_what_another_has() {
    const ALL: usize = 3_000;
    let server = Server::start(NodeOptions::default()).await;
    let (sender, mut taken) = tokio::sync::mpsc::channel(64);
    for index in 0..4 {
        let endpoint = match index % 2 {
            0 => Endpoint::connect(&server.unix).await.unwrap(),
            _ => Endpoint::attach(&server.node).unwrap(),
        };
        let mut puller = endpoint.pull("shared").await.unwrap();
        let sender = sender.clone();
        tokio::spawn(async move {
            while let Some(message) = puller.next().await {
                sender.send((index, message.body)).await.unwrap();
            }
        });
    }
    let pusher = server.connect().await;
    let pushing = tokio::spawn(async move {
        for number in 0..ALL {
            // long ones too: all parts of one go to the same puller
            let length = if number % 100 == 0 { 150_000 } else { 8 };
            pusher.push("shared", &body(0, number, length)).await.unwrap();
        }
        pusher
    });
    let (mut seen, mut counts) = (BTreeSet::new(), [0; 4]);
    while seen.len() < ALL {
        let (index, body) = within(taken.recv()).await.unwrap();
        assert!(seen.insert(numbers(&body).1), "twice: {:?}", numbers(&body));
        counts[index] += 1;
    }
    assert!(counts.iter().all(|count| *count > ALL / 8), "{counts:?}");
    pushing.await.unwrap();
}

/// Small socket buffers, so that who does not read is soon noticed.
fn small_buffers() -> SocketOptions {
    SocketOptions {
        send_buffer_bytes: Some(16 * 1024),
        receive_buffer_bytes: Some(16 * 1024),
        ..SocketOptions::default()
    }
}

async fn connect_small(url: &BusUrl) -> Endpoint {
    let dial = DialOptions { socket: small_buffers(), ..DialOptions::default() };
    let mut options = ConnectOptions::default();
    options.dial = dial;
    Endpoint::connect_with(url, &options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_puller_that_takes_nothing_holds_its_pushers_back_and_nobody_else() {
    const EACH: usize = 2_000;
    const LENGTH: usize = 8_000;
    let mut options = NodeOptions::default();
    options.outbox_bytes_max = 64 * 1024;
    options.credit_bytes_max = 64 * 1024;
    let listen = ListenOptions { socket: small_buffers(), ..ListenOptions::default() };
    let server = Server::start_with(options, &listen).await;
    let mut healthy = server.provide("healthy").await;
    tokio::spawn(async move {
        while let Some(request) = healthy.next_request().await {
            let body = request.body();
            request.reply(&body).await.unwrap();
        }
    });
    let small = ProvideOptions::default().waiting_max(16);
    let owners = [
        ("unix", connect_small(&server.unix).await),
        ("mem", Endpoint::attach(&server.node).unwrap()),
    ];
    for (there, owner) in owners {
        let name = format!("slow-{there}");
        let mut puller = owner.pull_with(&name, small).await.unwrap();
        let pushed: Arc<[AtomicUsize; 3]> = Arc::default();
        let mut pushers = JoinSet::new();
        let ends = [
            connect_small(&server.tcp).await,
            connect_small(&server.unix).await,
            Endpoint::attach(&server.node).unwrap(),
        ];
        for (pusher, endpoint) in ends.into_iter().enumerate() {
            let (name, pushed) = (name.clone(), Arc::clone(&pushed));
            pushers.spawn(async move {
                for number in 0..EACH {
                    endpoint.push(name.as_str(), &body(pusher, number, LENGTH)).await.unwrap();
                    pushed[pusher].fetch_add(1, Ordering::Relaxed);
                }
                endpoint
            });
        }
        let so_far = || pushed.each_ref().map(|pushed| pushed.load(Ordering::Relaxed));
        // everybody who has nothing to do with it is served; meanwhile the pushers come to a halt
        let others = everywhere(&server).await;
        let mut halted = so_far();
        loop {
            for (_, other) in &others {
                for _ in 0..50 {
                    let options = RequestOptions::default().deadline(None);
                    let answer = within(other.call_with("healthy", b"well?", options)).await;
                    assert_eq!(answer.unwrap(), "well?", "{there}");
                }
            }
            let now = so_far();
            if now == halted && now.iter().all(|pushed| *pushed > 0) {
                break;
            }
            halted = now;
        }
        // outboxes, credits and buffers, of which the kernel doubles what it was asked for
        let held: usize = halted.iter().sum::<usize>() * LENGTH;
        assert!(held < 6 << 20, "{there}: {held} bytes wait somewhere: {halted:?}");
        let mut next = [0; 3];
        for _ in 0..3 * EACH {
            let got = take(&mut puller).await;
            let (pusher, number) = numbers(&got);
            assert_eq!((number, got.len()), (next[pusher], LENGTH), "{there}: pusher {pusher}");
            next[pusher] += 1;
        }
        while let Some(pushed) = within(pushers.join_next()).await {
            pushed.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_past_the_limit_is_passed_over_and_what_follows_arrives() {
    let server = Server::start(NodeOptions::default()).await;
    for (there, owner) in providing(&server).await {
        let name = format!("jobs-{there}");
        let mut puller = owner.pull(&name).await.unwrap();
        for (_, pusher) in everywhere(&server).await {
            pusher.push(name.as_str(), &body(1, 1, MESSAGE_BYTES_MAX + 1)).await.unwrap();
            pusher.push(name.as_str(), &body(1, 2, MESSAGE_BYTES_MAX)).await.unwrap();
            assert!(take(&mut puller).await == body(1, 2, MESSAGE_BYTES_MAX), "{there}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_a_puller_is_told_that_it_does_not_answer() {
    let server = Server::start(NodeOptions::default()).await;
    let mut puller = Endpoint::connect(&server.unix).await.unwrap().pull("jobs").await.unwrap();
    for (_, asker) in everywhere(&server).await {
        match within(asker.call("jobs", b"well?")).await {
            Err(RequestError::Refused { errno: errno::EOPNOTSUPP, .. }) => {}
            other => panic!("{other:?}"),
        }
        asker.push("jobs", b"then take this").await.unwrap();
        assert_eq!(take(&mut puller).await, b"then take this");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_to_an_unknown_name_is_refused_and_one_to_nobody_reaches_subscribers() {
    let server = Server::start(NodeOptions::default()).await;
    let listener = server.connect().await;
    let mut subscription = listener.subscribe(Filter::all().from(0u32)).await.unwrap();
    for (_, pusher) in everywhere(&server).await {
        let error = pusher.push("nobody", b"lost?").await.unwrap_err();
        assert_eq!(error.errno(), Some(errno::ENOENT), "{error}");
        for to in [0, 0x0001_7777] {
            pusher.push(Destination::Address(to), b"to whom it may concern").await.unwrap();
            match within(subscription.next()).await {
                Some(Event::Message { from: 0, payload, .. }) => {
                    assert_eq!(body_of(&payload), "to whom it may concern");
                }
                _ => panic!("no message"),
            }
        }
        let too_long = vec![0; PAYLOAD_MAX - 15];
        match pusher.push(0u32, &too_long).await {
            Err(RequestError::TooBig(too_big)) => assert_eq!(too_big.max, PAYLOAD_MAX - 16),
            other => panic!("{other:?}"),
        }
        pusher.push(0u32, &too_long[1..]).await.unwrap();
        let Some(Event::Message { payload, .. }) = within(subscription.next()).await else {
            panic!("no message")
        };
        assert_eq!(body_of(&payload).len(), PAYLOAD_MAX - 16);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_data_is_pulled_as_it_was_pushed() {
    let server = Server::start(NodeOptions::default()).await;
    let mut puller = Endpoint::connect(&server.unix).await.unwrap().pull("anything").await.unwrap();
    let mut peer = Peer::dial(&server.tcp).await;
    let netlink = MessageBuilder::new(18, nlm::REQUEST).body(b"12345").finish();
    for payload in [&b"add@/devices/virtual"[..], b"", &netlink] {
        peer.send(&support_node::frames::push(puller.address(), 0, 1, payload)).await;
        assert_eq!(take(&mut puller).await, payload);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_flush_returns_the_broker_has_dealt_with_what_was_pushed() {
    let server = Server::start(NodeOptions::default()).await;
    let mut puller = Endpoint::attach(&server.node).unwrap().pull("jobs").await.unwrap();
    for (number, url) in server.urls().into_iter().enumerate() {
        let pusher = Endpoint::connect(url).await.unwrap();
        pusher.push("jobs", &body(1, number, 500_000)).await.unwrap();
        let (flushed, got) =
            tokio::join!(pusher.flush(std::time::Duration::MAX), take(&mut puller));
        flushed.unwrap();
        assert_eq!(numbers(&got), (1, number));
    }
}

#[tokio::test]
async fn a_push_over_udp_is_one_datagram_that_holds_one_frame() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let url = format!("udp://{}", socket.local_addr().unwrap()).parse().unwrap();
    let pusher = UdpPusher::connect(&url).await.unwrap();
    let mut buffer = vec![0; 70_000];
    let longest = (UDP_DATAGRAM_BYTES_MAX - 28 - 16) & !3;
    // frames are padded to 4
    for (number, length) in [5, longest].into_iter().enumerate() {
        pusher.push(0x0001_0003, &body(1, 2, length)).await.unwrap();
        let received = within(socket.recv(&mut buffer)).await.unwrap();
        let frame = &buffer[..received];
        let head = head_of(frame);
        assert_eq!((head.flags, head.sequence, head.src), (0, number as u32 + 1, 0));
        assert_eq!(head.dst, 0x0001_0003);
        let message = Message::parse(payload_of(frame)).unwrap();
        assert_eq!((message.header.kind, message.header.flags), (nlm::DATA, 0));
        assert_eq!(message.body(), body(1, 2, length));
    }
    let error = pusher.push(0, &body(1, 2, longest + 1)).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(errno::EMSGSIZE));
}
