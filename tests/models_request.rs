//! REQ/REP between programs, over every transport that carries it: answers, errors, sharing, long bodies.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_node;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nlbus::endpoint::{
    Destination, Endpoint, MESSAGE_BYTES_MAX, ProvideOptions, Provider, Request, RequestError,
    RequestOptions,
};
use nlbus::node::NodeOptions;
use nlbus::service::netlink::{Kernel, KernelOptions, NETLINK_ROUTE};
use nlbus::wire::{LEGACY_FRAME_MAX, Message, MessageBuilder, PAYLOAD_MAX, errno, flag, nlm};
use support_node::frames::{ask, data, head_of, payload_of};
use support_node::peer::{Peer, Server, next_request, until, within};
use tokio::task::JoinSet;

/// Waits as long as the test does.
fn unhurried() -> RequestOptions {
    RequestOptions::default().deadline(None)
}

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

/// Answers each request with its bytes backwards.
fn reverse(provider: Provider) {
    each(provider, |request| async move {
        let mut body = request.body().to_vec();
        body.reverse();
        request.reply(&body).await.unwrap();
    });
}

fn each<W: Future<Output = ()> + Send + 'static>(
    mut provider: Provider,
    mut serve: impl FnMut(Request) -> W + Send + 'static,
) {
    tokio::spawn(async move {
        while let Some(request) = provider.next_request().await {
            tokio::spawn(serve(request));
        }
    });
}

fn numbered(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 + n / 251) as u8).collect()
}

fn backwards(body: &[u8]) -> Vec<u8> {
    body.iter().rev().copied().collect()
}

async fn call(
    endpoint: &Endpoint,
    to: impl Into<Destination>,
    body: &[u8],
) -> Result<Vec<u8>, RequestError> {
    within(endpoint.call_with(to, body, unhurried())).await.map(|body| body.to_vec())
}

fn refused(result: Result<Vec<u8>, RequestError>) -> (i32, String) {
    match result {
        Err(RequestError::Refused { errno, text }) => (errno, text.unwrap_or_default()),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_answered_once_whatever_lies_between() {
    let server = Server::start(NodeOptions::default()).await;
    for (there, provider) in providing(&server).await {
        let name = format!("reverse-{there}");
        reverse(provider.provide(&name).await.unwrap());
        for (here, endpoint) in everywhere(&server).await {
            // at the lengths where a frame is just full, and just too small
            for length in [0, 1, 3, PAYLOAD_MAX - 16, PAYLOAD_MAX - 15, 200_001] {
                let body = numbered(length);
                let answer = call(&endpoint, name.as_str(), &body).await;
                assert!(answer.is_ok_and(|got| got == backwards(&body)), "{here} {there} {length}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_one_answer_come_in_order_and_end() {
    let server = Server::start(NodeOptions::default()).await;
    for (there, provider) in providing(&server).await {
        let name = format!("many-{there}");
        each(provider.provide(&name).await.unwrap(), |mut request| async move {
            for length in [3, 0, 100_000, 7] {
                request.part(&numbered(length)).await.unwrap();
            }
            match &request.body()[..] {
                b"reply" => request.reply(b"last").await.unwrap(),
                b"fail" => request.fail(errno::ENOSPC, "enough").await.unwrap(),
                _ => request.finish().await.unwrap(),
            }
        });
        for (_, endpoint) in everywhere(&server).await {
            for end in ["finish", "reply", "fail"] {
                let mut answers =
                    endpoint.ask_with(name.as_str(), end.as_bytes(), unhurried()).await.unwrap();
                for length in [3, 0, 100_000, 7] {
                    assert_eq!(within(answers.next()).await.unwrap().unwrap(), numbered(length));
                }
                match (end, within(answers.next()).await) {
                    ("finish", None) => continue,
                    ("reply", Some(Ok(body))) => assert_eq!(body, "last"),
                    ("fail", Some(Err(error))) => assert_eq!(error.errno(), Some(errno::ENOSPC)),
                    (_, other) => panic!("{end}: {other:?}"),
                }
                assert!(within(answers.next()).await.is_none());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_a_body_is_told_from_an_empty_one() {
    let server = Server::start(NodeOptions::default()).await;
    each(server.provide("empty").await, |request| async move {
        match &request.body()[..] {
            b"none" => request.finish().await.unwrap(),
            _ => request.reply(b"").await.unwrap(),
        }
    });
    let endpoint = server.connect().await;
    assert_eq!(call(&endpoint, "empty", b"").await.unwrap(), b"");
    assert!(matches!(call(&endpoint, "empty", b"none").await, Err(RequestError::NoBody)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_fails_or_is_dropped_is_answered_with_an_error() {
    let server = Server::start(NodeOptions::default()).await;
    for (there, provider) in providing(&server).await {
        let name = format!("no-{there}");
        each(provider.provide(&name).await.unwrap(), |request| async move {
            if &request.body()[..4] == b"fail" {
                request.fail(errno::EBUSY, "not on a Sunday").await.unwrap();
            }
        });
        for (_, endpoint) in everywhere(&server).await {
            for length in [0, 100_000] {
                let body = |word: &[u8]| [word, &numbered(length)].concat();
                let failed = refused(call(&endpoint, name.as_str(), &body(b"fail")).await);
                assert_eq!(failed, (errno::EBUSY, "not on a Sunday".to_owned()));
                let dropped = refused(call(&endpoint, name.as_str(), &body(b"drop")).await);
                assert_eq!(dropped, (errno::EIO, "the provider gave no answer".to_owned()));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_name_and_an_unknown_address_are_told_at_once() {
    let server = Server::start(NodeOptions::default()).await;
    for (here, endpoint) in everywhere(&server).await {
        for to in [Destination::from("nobody"), Destination::from(0x0001_7777)] {
            for length in [1, 1_000_000] {
                match call(&endpoint, to.clone(), &numbered(length)).await {
                    Err(RequestError::Undeliverable { errno: errno::ENOENT, .. }) => {}
                    other => panic!("{here} {to:?}: {other:?}"),
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_was_withdrawn_is_told_and_found_again_when_it_is_back() {
    let server = Server::start(NodeOptions::default()).await;
    for (here, endpoint) in everywhere(&server).await {
        let name = format!("here-today-{here}");
        let owner = Endpoint::connect(&server.unix).await.unwrap();
        let mut provider = owner.provide(&name).await.unwrap();
        let (answer, ()) = tokio::join!(call(&endpoint, name.as_str(), b"1"), async {
            next_request(&mut provider).await.reply(b"yes").await.unwrap();
        });
        assert_eq!(answer.unwrap(), b"yes");
        drop(provider);
        // whether the broker knows already, or the provider's own link has to say it
        let gone = call(&endpoint, name.as_str(), b"2").await;
        assert_eq!(gone.unwrap_err().errno(), Some(errno::ENOENT), "{here}");
        until(|| server.node.subsystems().iter().all(|(provided, _)| *provided != name)).await;
        reverse(server.provide(&name).await);
        assert_eq!(call(&endpoint, name.as_str(), b"34").await.unwrap(), b"43");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_askers_and_six_providers_of_one_name_mix_nothing_up() {
    const ASKERS: usize = 64;
    const CALLS: usize = 20;
    let server = Server::start(NodeOptions::default()).await;
    let served: Arc<[AtomicUsize; 6]> = Arc::default();
    for index in 0..6 {
        let endpoint = match index % 2 {
            0 => Endpoint::connect(&server.unix).await.unwrap(),
            _ => Endpoint::attach(&server.node).unwrap(),
        };
        let served = Arc::clone(&served);
        each(endpoint.provide("shared").await.unwrap(), move |request| {
            served[index].fetch_add(1, Ordering::Relaxed);
            let answer = backwards(&request.body());
            async move { request.reply(&answer).await.unwrap() }
        });
    }
    let links = everywhere(&server).await;
    let mut askers = JoinSet::new();
    for asker in 0..ASKERS {
        // some on a link of their own, most with ports of a shared one
        let endpoint = match asker % 8 {
            0 => server.connect().await,
            _ => links[asker % 3].1.open(),
        };
        askers.spawn(async move {
            for number in 0..CALLS {
                let body = format!("{asker} {number}").repeat(1 + 9_000 * (number % 3));
                let answer = call(&endpoint, "shared", body.as_bytes()).await.unwrap();
                assert!(answer == backwards(body.as_bytes()), "{asker} {number}");
            }
        });
    }
    while let Some(done) = within(askers.join_next()).await {
        done.unwrap();
    }
    let served: Vec<usize> = served.iter().map(|n| n.load(Ordering::Relaxed)).collect();
    assert_eq!(served.iter().sum::<usize>(), ASKERS * CALLS, "{served:?}");
    assert!(served.iter().all(|count| *count > 0), "{served:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_16_mib_passes_both_ways_and_one_byte_more_does_not() {
    let server = Server::start(NodeOptions::default()).await;
    let at_limit = numbered(MESSAGE_BYTES_MAX);
    let past = numbered(MESSAGE_BYTES_MAX + 1);
    for (there, provider) in providing(&server).await {
        let name = format!("large-{there}");
        each(provider.provide(&name).await.unwrap(), |request| async move {
            let body = request.body();
            match body.len() {
                // "one more than you take, please"
                4 => request.reply(&numbered(MESSAGE_BYTES_MAX + 1)).await.unwrap(),
                _ => request.reply(&body).await.unwrap(),
            }
        });
        for (here, endpoint) in everywhere(&server).await {
            let name = name.as_str();
            let answer = call(&endpoint, name, &at_limit).await.unwrap();
            assert!(answer == at_limit, "{here} {there}");
            let (number, text) = refused(call(&endpoint, name, &past).await);
            assert_eq!(number, errno::EMSGSIZE);
            assert_eq!(text, "the request is longer than 16777216 bytes");
            match call(&endpoint, name, b"more").await {
                Err(RequestError::TooLong { max: MESSAGE_BYTES_MAX }) => {}
                other => panic!("{:?}", other.map(|body| body.len())),
            }
            assert_eq!(call(&endpoint, name, b"still there").await.unwrap(), b"still there");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_two_askers_that_alternate_are_joined_apart() {
    let server = Server::start(NodeOptions::default()).await;
    let owner = Endpoint::connect(&server.unix).await.unwrap();
    let provider = owner.provide("joined").await.unwrap();
    let address = provider.address();
    reverse(provider);
    let mut peers = [Peer::dial(&server.tcp).await, Peer::dial(&server.tcp).await];
    let part = |flags, kind, body: &[u8]| {
        // the same numbers for both: only the link tells them apart
        let message = MessageBuilder::new(kind, flags).sequence(9).pid(5).body(body).finish();
        ask(address, 3, 70, &message)
    };
    for round in ["one ", "two ", "three"] {
        for (peer, word) in peers.iter_mut().zip(["left", "right"]) {
            peer.send(&part(nlm::MULTI, nlm::DATA, format!("{word} {round}").as_bytes())).await;
            // an answer in between says that the broker has passed it on
            peer.hello().await;
        }
    }
    for (peer, body) in
        peers.iter_mut().zip(["left one left two left three", "right one right two right three"])
    {
        let length = (body.len() as u32).to_le_bytes();
        peer.send(&part(nlm::MULTI, nlm::DONE, &[[0; 4], length].concat())).await;
        let answer = peer.receive().await.unwrap();
        assert_eq!(head_of(&answer).flags, flag::RESPONSE | flag::LAST);
        let message = Message::parse(payload_of(&answer)).unwrap();
        assert_eq!(message.body(), backwards(body.as_bytes()));
        assert_eq!((message.header.kind, message.header.sequence), (nlm::DATA, 9));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_which_a_part_is_missing_is_refused() {
    let server = Server::start(NodeOptions::default()).await;
    let provider = server.provide("joined").await;
    let address = provider.address();
    reverse(provider);
    let mut peer = Peer::dial(&server.unix).await;
    let message = |kind, body: &[u8]| {
        let message = MessageBuilder::new(kind, nlm::MULTI).sequence(9).body(body).finish();
        ask(address, 3, 70, &message)
    };
    peer.send(&message(nlm::DATA, b"one of two")).await;
    peer.send(&message(nlm::DONE, &[0, 0, 0, 0, 20, 0, 0, 0])).await;
    let answer = peer.receive().await.unwrap();
    assert_eq!(head_of(&answer).flags, flag::RESPONSE | flag::LAST);
    let error = Message::parse(payload_of(&answer)).unwrap();
    assert_eq!((error.header.kind, error.header.sequence), (nlm::ERROR, 9));
    assert_eq!(error.body()[..4], (-errno::EIO).to_le_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_the_original_gets_a_long_answer_in_frames_that_it_can_take() {
    let server = Server::start(NodeOptions::default()).await;
    each(server.provide("long").await, |request| async move {
        request.reply(&numbered(50_000)).await.unwrap();
    });
    let mut peer = Peer::dial(&server.tcp).await;
    let head = head_of(&ask(nlbus::wire::address::SUBSYSTEM_FIRST, 0, 65_534, b""));
    let head = nlbus::wire::EnvelopeHead { flags: 0, ..head };
    peer.send(&data(head, &MessageBuilder::new(18, nlm::REQUEST).sequence(4).finish())).await;
    let mut body = Vec::new();
    loop {
        let frame = peer.receive().await.unwrap();
        assert!(frame.len() <= LEGACY_FRAME_MAX);
        assert_eq!((head_of(&frame).flags, head_of(&frame).sequence), (0, 65_534));
        let message = Message::parse(payload_of(&frame)).unwrap();
        assert_eq!((message.header.flags, message.header.sequence), (nlm::MULTI, 4));
        if message.header.kind == nlm::DONE {
            break;
        }
        body.extend_from_slice(message.body());
    }
    assert_eq!(body, numbered(50_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_is_busy_says_so_and_can_still_ask() {
    let server = Server::start(NodeOptions::default()).await;
    reverse(server.provide("reverse").await);
    let busy = Endpoint::connect(&server.unix).await.unwrap();
    let options = ProvideOptions::default().waiting_max(2);
    let mut provider = busy.provide_with("busy", options).await.unwrap();
    let asker = server.connect().await;
    let mut asked = Vec::new();
    for number in 0..5u8 {
        asked.push(asker.ask_with("busy", &[number], unhurried()).await.unwrap());
    }
    for answers in &mut asked[2..] {
        let error = within(answers.next()).await.unwrap().unwrap_err();
        assert_eq!(error.errno(), Some(errno::EBUSY), "{error}");
    }
    assert_eq!(call(&busy, "reverse", b"abc").await.unwrap(), b"cba");
    for (number, answers) in asked[..2].iter_mut().enumerate() {
        let request = next_request(&mut provider).await;
        assert_eq!(request.body(), [number as u8][..]);
        request.reply(b"at last").await.unwrap();
        assert_eq!(within(answers.next()).await.unwrap().unwrap(), "at last");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_wait_are_bounded_too_and_one_request_always_fits() {
    let server = Server::start(NodeOptions::default()).await;
    let owner = Endpoint::connect(&server.unix).await.unwrap();
    let options = ProvideOptions::default().waiting_bytes_max(100_000);
    let mut provider = owner.provide_with("small", options).await.unwrap();
    let asker = server.connect().await;
    let mut asked = Vec::new();
    for length in [300_000, 1, 0] {
        asked.push(asker.ask_with("small", &numbered(length), unhurried()).await.unwrap());
    }
    for answers in &mut asked[1..] {
        let error = within(answers.next()).await.unwrap().unwrap_err();
        assert_eq!(error.errno(), Some(errno::EBUSY), "{error}");
    }
    assert_eq!(next_request(&mut provider).await.body(), numbered(300_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_says_which_frame_of_its_answer_is_the_last() {
    let server = Server::start(NodeOptions::default()).await;
    let kernel = Kernel::open(&KernelOptions::default()).unwrap();
    let endpoint = Endpoint::attach(&server.node).unwrap();
    let address = kernel.serve(&endpoint, "route", NETLINK_ROUTE).await.unwrap();
    let mut peer = Peer::dial(&server.unix).await;
    peer.hello().await;
    let request = |flags, sequence: u32, index: u32| {
        let body = [0, index, 0, 0].map(u32::to_le_bytes).concat();
        MessageBuilder::new(18, nlm::REQUEST | flags).sequence(sequence).body(&body).finish()
    };
    let cases: HashMap<u32, (Vec<u8>, &[u16])> = HashMap::from([
        (1, (request(nlm::DUMP, 1, 0), &[16, nlm::DONE][..])),
        (2, (request(0, 2, 1), &[16][..])),
        (3, (request(nlm::ACK, 3, 1), &[16, nlm::ERROR][..])),
        (4, (request(0, 4, u32::MAX >> 1), &[nlm::ERROR][..])),
        (5, ([request(0, 5, 1), request(0, 6, 1)].concat(), &[16, 16][..])),
    ]);
    for (number, (payload, expected)) in cases {
        peer.send(&ask(address, 3, number, &payload)).await;
        let mut kinds = Vec::new();
        loop {
            let frame = peer.receive().await.unwrap();
            for message in nlbus::wire::Messages::new(payload_of(&frame)) {
                kinds.push(message.unwrap().header.kind);
            }
            assert_eq!(head_of(&frame).sequence, number);
            if head_of(&frame).flags & flag::LAST != 0 {
                break;
            }
        }
        if number == 1 {
            kinds.dedup();
        }
        assert_eq!(kinds, expected, "request {number}");
    }
}
