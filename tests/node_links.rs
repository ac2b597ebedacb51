//! Endpoints on a node: requests, answers, and the ends of links.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_node;

use std::io::{Read as _, Write as _};
use std::time::Duration;

use nlbus::endpoint::{ConnectError, Endpoint, Filter, Incoming, RequestError, RequestOptions};
use nlbus::node::{Node, NodeOptions};
use nlbus::url::BusUrl;
use nlbus::wire::{EnvelopeHead, Message, MessageBuilder, errno, flag, nlm};
use support_node::fake::fake_server;
use support_node::frames::{ack, done, message};
use support_node::peer::{Server, next_request, until, within};
use tokio::time::Instant;

/// Payloads of frames, or messages.
type Parts = Vec<Vec<u8>>;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_get_their_own_answers_in_whatever_order() {
    let server = Server::start(NodeOptions::default()).await;
    let mut provider = server.provide("reverse").await;
    let endpoint = server.connect().await;
    // all of one inner sequence number: only the envelope's tells them apart
    let mut asking = tokio::task::JoinSet::new();
    for n in 0..64u32 {
        let endpoint = endpoint.clone();
        asking.spawn(async move {
            let payload = message(0, 1, &n.to_le_bytes());
            let replies = endpoint.request_with("reverse", &payload, long()).await.unwrap();
            let replies = replies.collect().await.unwrap();
            let [one, two] = replies.as_slice() else { panic!("{replies:?}") };
            assert_eq!((one.body(), two.body()), (&n.to_le_bytes()[..], &n.to_le_bytes()[..]));
        });
    }
    let mut requests = Vec::new();
    for _ in 0..64 {
        requests.push(next_request(&mut provider).await);
    }
    for part in 0..2 {
        for request in requests.iter().rev() {
            let payload = request.payload().unwrap();
            let body = Message::parse(&payload).unwrap().body().to_vec();
            let mut answer = message(nlm::MULTI, 1, &body);
            if part == 1 {
                answer.extend(done(1, 0));
            }
            request.responder().send(&answer).await.unwrap();
        }
    }
    while let Some(asked) = within(asking.join_next()).await {
        asked.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_one_after_another_get_their_own_answers() {
    let server = Server::start(NodeOptions::default()).await;
    let address = server.echo("echo").await;
    for endpoint in [server.connect().await, Endpoint::attach(&server.node).unwrap()] {
        for n in 0..1_000 {
            let payload = message(0, n, &n.to_le_bytes());
            assert_eq!(collect(&endpoint, address, &payload).await.unwrap(), [payload]);
        }
    }
}

#[tokio::test]
async fn an_answer_ends_where_netlink_says_that_it_ends() {
    let server = Server::start(NodeOptions::default()).await;
    let mut provider = server.provide("script").await;
    let address = provider.address();
    let endpoint = server.connect().await;
    let part = |n: u8| message(nlm::MULTI, 1, &[n; 4]);
    let single = message(0, 1, b"a single");
    let request = message(nlm::REQUEST, 1, b"");
    let wants_ack = message(nlm::REQUEST | nlm::ACK, 1, b"");
    let header = Message::parse(&request).unwrap().header;
    // what is asked, what is answered frame by frame, what comes out
    let cases: [(&[u8], Parts, Parts); 9] = [
        (&request, vec![single.clone()], vec![single.clone()]),
        (&request, vec![[part(1), part(2), done(1, 0)].concat()], vec![part(1), part(2)]),
        (&request, vec![part(1), part(2), done(1, 0)], vec![part(1), part(2)]),
        (&request, vec![done(1, 0)], vec![]),
        (&request, vec![ack(&header)], vec![]),
        (&wants_ack, vec![ack(&header)], vec![]),
        (&wants_ack, vec![single.clone(), ack(&header)], vec![single.clone()]),
        (&wants_ack, vec![[single.clone(), ack(&header)].concat()], vec![single.clone()]),
        (&wants_ack, vec![part(1), done(1, 0)], vec![part(1)]),
    ];
    for (number, (request, answer, expected)) in cases.into_iter().enumerate() {
        let answering = async {
            let asked = next_request(&mut provider).await;
            assert!(asked.asks());
            for frame in answer {
                asked.responder().send(&frame).await.unwrap();
            }
        };
        let (got, ()) = tokio::join!(collect(&endpoint, address, request), answering);
        assert_eq!(got.unwrap(), expected, "case {number}");
    }
}

#[tokio::test]
async fn errors_of_the_answerer_come_out_with_number_and_text() {
    let server = Server::start(NodeOptions::default()).await;
    let mut provider = server.provide("script").await;
    let address = provider.address();
    let endpoint = server.connect().await;
    let request = message(nlm::REQUEST, 1, b"");
    let header = Message::parse(&request).unwrap().header;

    let answering = async {
        let asked = next_request(&mut provider).await;
        asked.responder().send_error(errno::ENODEV, &header, "no device called x").await.unwrap();
    };
    let (got, ()) = tokio::join!(collect(&endpoint, address, &request), answering);
    match got.unwrap_err() {
        RequestError::Refused { errno: errno::ENODEV, text } => {
            assert_eq!(text.as_deref(), Some("no device called x"));
        }
        other => panic!("{other:?}"),
    }

    // a dump that fails half-way: what came is yielded, then the error
    let answering = async {
        let asked = next_request(&mut provider).await;
        let parts = [message(nlm::MULTI, 1, b"part"), done(1, -errno::EIO)].concat();
        asked.responder().send(&parts).await.unwrap();
    };
    let asking = async {
        let mut replies = endpoint.request_with(address, &request, long()).await.unwrap();
        assert_eq!(within(replies.next()).await.unwrap().unwrap().body(), b"part");
        let error = within(replies.next()).await.unwrap().unwrap_err();
        assert_eq!(error.errno(), Some(errno::EIO));
        assert!(within(replies.next()).await.is_none());
    };
    tokio::join!(asking, answering);

    // the kernel ran out of room
    let answering = async {
        let asked = next_request(&mut provider).await;
        let overrun = MessageBuilder::new(nlm::OVERRUN, 0).body(&[0; 4]).finish();
        asked.responder().send(&overrun).await.unwrap();
    };
    let (got, ()) = tokio::join!(collect(&endpoint, address, &request), answering);
    assert!(matches!(got, Err(RequestError::Overrun)), "{got:?}");

    // what makes no sense is an error of this request alone
    let answering = async {
        let asked = next_request(&mut provider).await;
        asked.responder().send(&[200, 0, 0, 0, 1, 2, 3]).await.unwrap();
    };
    let (got, ()) = tokio::join!(collect(&endpoint, address, &request), answering);
    assert!(matches!(got, Err(RequestError::Malformed(_))), "{got:?}");
    let answering = async {
        let asked = next_request(&mut provider).await;
        asked.responder().send(&message(0, 1, b"fine")).await.unwrap();
    };
    let (got, ()) = tokio::join!(collect(&endpoint, address, &request), answering);
    assert_eq!(got.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_an_answer_is_over_at_its_deadline() {
    let node = Node::new(NodeOptions::default());
    let mut provider = Endpoint::attach(&node).unwrap().provide("silent").await.unwrap();
    let endpoint = Endpoint::attach(&node).unwrap();
    for (options, after) in [
        (RequestOptions::default(), Duration::from_secs(5)),
        (RequestOptions::default().deadline(Duration::from_secs(77)), Duration::from_secs(77)),
    ] {
        let started = Instant::now();
        let replies = endpoint.request_with("silent", &message(0, 1, b""), options).await.unwrap();
        let error = replies.collect().await.unwrap_err();
        assert!(matches!(error, RequestError::Timeout { after: said } if said == after));
        assert_eq!(started.elapsed().as_secs(), after.as_secs());
    }
    // half an answer is none
    let started = Instant::now();
    let mut replies = endpoint.request("silent", &message(0, 1, b"")).await.unwrap();
    let mut asked = next_request(&mut provider).await;
    for _ in 0..2 {
        asked = next_request(&mut provider).await;
    }
    asked.responder().send(&message(nlm::MULTI, 1, b"half")).await.unwrap();
    assert_eq!(replies.next().await.unwrap().unwrap().body(), b"half");
    assert!(matches!(replies.next().await, Some(Err(RequestError::Timeout { .. }))));
    assert!(replies.next().await.is_none());
    assert_eq!(started.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_is_dropped_and_the_link_goes_on() {
    let node = Node::new(NodeOptions::default());
    let mut provider = Endpoint::attach(&node).unwrap().provide("slow").await.unwrap();
    let endpoint = Endpoint::attach(&node).unwrap();
    let replies = endpoint.request("slow", &message(0, 1, b"first")).await.unwrap();
    assert!(matches!(replies.collect().await, Err(RequestError::Timeout { .. })));
    let first = next_request(&mut provider).await;
    for _ in 0..200 {
        first.responder().send(&message(0, 1, b"late")).await.unwrap();
    }
    let replies = endpoint.request("slow", &message(0, 1, b"second")).await.unwrap();
    let second = next_request(&mut provider).await;
    second.responder().send(&message(0, 1, b"in time")).await.unwrap();
    let replies = replies.collect().await.unwrap();
    assert_eq!(replies.iter().map(|reply| reply.body()).collect::<Vec<_>>(), [b"in time"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_dropped_half_way_does_not_hold_up_the_link() {
    let server = Server::start(NodeOptions::default()).await;
    let echo = server.echo("echo").await;
    let mut provider = server.provide("flood").await;
    let address = provider.address();
    let flooding = tokio::spawn(async move {
        let request = next_request(&mut provider).await;
        for _ in 0..2_000 {
            request.responder().send(&message(nlm::MULTI, 1, &[1; 8_000])).await.unwrap();
        }
        request.responder().send(&done(1, 0)).await.unwrap();
        provider
    });
    let endpoint = server.connect().await;
    let request = message(0, 1, b"");
    let mut replies = endpoint.request_with(address, &request, long()).await.unwrap();
    for _ in 0..3 {
        within(replies.next()).await.unwrap().unwrap();
    }
    drop(replies);
    within(flooding).await.unwrap();
    let payload = message(0, 9, b"usable");
    assert_eq!(collect(&endpoint, echo, &payload).await.unwrap(), [payload]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_many_frames_arrives_whole_and_in_order() {
    let server = Server::start(NodeOptions::default()).await;
    let mut provider = server.provide("dump").await;
    tokio::spawn(async move {
        for _ in 0..2 {
            let request = next_request(&mut provider).await;
            for n in 0..5_000u32 {
                request.responder().send(&message(nlm::MULTI, n, &[1; 700])).await.unwrap();
            }
            request.responder().send(&done(1, 0)).await.unwrap();
        }
    });
    for url in server.urls() {
        let endpoint = Endpoint::connect(url).await.unwrap();
        let request = message(0, 1, b"");
        let replies = endpoint.request_with("dump", &request, long()).await.unwrap();
        let replies = within(replies.collect()).await.unwrap();
        let sequences = replies.iter().map(|reply| reply.header().sequence);
        assert!(sequences.eq(0..5_000), "{}", replies.len());
    }
}

#[tokio::test]
async fn a_message_too_long_for_a_frame_is_refused_before_it_is_sent() {
    let server = Server::start(NodeOptions::default()).await;
    let address = server.echo("echo").await;
    let endpoint = server.connect().await;
    let frames = server.node.counters().core.frames;
    let got = collect(&endpoint, address, &message(0, 1, &[0; 65_516])).await;
    assert!(matches!(got, Err(RequestError::TooBig(_))), "{got:?}");
    assert_eq!(server.node.counters().core.frames, frames);
}

#[tokio::test]
async fn a_name_or_an_address_that_nobody_has_is_enoent() {
    let server = Server::start(NodeOptions::default()).await;
    let endpoint = server.connect().await;
    let by_name = endpoint.request("nobody", &message(0, 1, b"")).await;
    assert!(
        matches!(by_name, Err(RequestError::Undeliverable { errno: errno::ENOENT, .. })),
        "{:?}",
        by_name.err()
    );
    let by_address = collect(&endpoint, 0x0001_0003, &message(0, 1, b"")).await;
    assert!(
        matches!(by_address, Err(RequestError::Undeliverable { errno: errno::ENOENT, .. })),
        "{by_address:?}"
    );
}

#[tokio::test]
async fn a_name_whose_provider_is_dropped_is_enoent_for_later_askers() {
    let server = Server::start(NodeOptions::default()).await;
    let provider = server.provide("gone").await;
    let endpoint = server.connect().await;
    let address = endpoint.discover("gone").await.unwrap();
    assert_eq!(address, provider.address());
    drop(provider);
    until(|| server.node.subsystems().is_empty()).await;
    // by the name that was looked up before, and by one that is looked up now
    for _ in 0..2 {
        let got = match endpoint.request("gone", &message(0, 1, b"")).await {
            Ok(replies) => within(replies.collect()).await.map(|_| ()),
            Err(error) => Err(error),
        };
        assert!(
            matches!(got, Err(RequestError::Undeliverable { errno: errno::ENOENT, .. })),
            "{got:?}"
        );
    }
    // somebody else takes the name over
    server.echo("gone").await;
    let replies = endpoint.request("gone", &message(0, 1, b"")).await.unwrap();
    assert_eq!(within(replies.collect()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn requests_that_wait_at_a_provider_that_is_dropped_come_back_as_enoent() {
    let server = Server::start(NodeOptions::default()).await;
    let provider = server.provide("busy").await;
    let address = provider.address();
    let endpoint = server.connect().await;
    let mut waiting = Vec::new();
    for n in 0..200 {
        waiting.push(endpoint.request_with(address, &message(0, n, b""), long()).await.unwrap());
    }
    until(|| server.node.counters().core.requests == 200).await;
    drop(provider);
    for replies in waiting {
        let got = within(replies.collect()).await;
        assert_eq!(got.err().and_then(|error| error.errno()), Some(errno::ENOENT));
    }
}

#[tokio::test]
async fn clones_are_one_endpoint_and_open_makes_another_on_the_same_link() {
    let server = Server::start(NodeOptions::default()).await;
    let mut provider = server.provide("who").await;
    let address = provider.address();
    let endpoint = server.connect().await;
    let (clone, other) = (endpoint.clone(), endpoint.open());
    let mut askers = Vec::new();
    for asking in [&endpoint, &clone, &other] {
        let request = message(0, 1, b"");
        let asked = async {
            let request = next_request(&mut provider).await;
            let asker = request.asker();
            request.responder().send(&message(0, 1, &asker.to_le_bytes())).await.unwrap();
            asker
        };
        let (got, asker) = tokio::join!(collect(asking, address, &request), asked);
        assert_eq!(got.unwrap()[0][16..], asker.to_le_bytes());
        askers.push(asker);
    }
    assert_eq!(askers[0], askers[1]);
    assert_ne!(askers[0], askers[2]);
    assert_eq!(server.node.counters().links, 2, "the provider's and one");
    drop((endpoint, clone));
    assert!(other.discover("who").await.is_ok(), "the link is up as long as one is held");
}

#[tokio::test]
async fn the_last_handle_closes_the_link_after_everything_was_sent() {
    let server = Server::start(NodeOptions::default()).await;
    let mut provider = server.provide("sink").await;
    let address = provider.address();
    for url in server.urls() {
        let endpoint = Endpoint::connect(url).await.unwrap();
        for n in 0..50 {
            let request = message(0, n, &[1; 10_000]);
            drop(endpoint.request_with(address, &request, long()).await.unwrap());
        }
        drop(endpoint);
        for n in 0..50 {
            let request = next_request(&mut provider).await;
            let payload = request.payload().unwrap();
            assert_eq!(Message::parse(&payload).unwrap().header.sequence, n);
        }
        match within(provider.next()).await {
            Some(Incoming::Gone { .. }) => {}
            other => panic!("{other:?}"),
        }
        until(|| server.node.counters().links == 1).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_held_keeps_the_link_up() {
    let server = Server::start(NodeOptions::default()).await;
    let mut provider = server.provide("slow").await;
    let endpoint = server.connect().await;
    let request = message(0, 1, b"");
    let replies = endpoint.request_with(provider.address(), &request, long()).await.unwrap();
    drop(endpoint);
    let asked = next_request(&mut provider).await;
    asked.responder().send(&message(0, 1, b"answer")).await.unwrap();
    assert_eq!(within(replies.collect()).await.unwrap().len(), 1);
    until(|| server.node.counters().links == 1).await;
}

#[tokio::test]
async fn a_link_that_is_lost_ends_its_requests_at_once() {
    let (url, serving) = fake_server(|_, _| {});
    let endpoint = Endpoint::connect(&url).await.unwrap();
    let mut subscription_less = endpoint.clone();
    let request = message(0, 1, b"");
    let options = RequestOptions::default().deadline(None);
    let replies = endpoint.request_with(0x10003, &request, options).await.unwrap();
    let error = within(replies.collect()).await.unwrap_err();
    assert!(matches!(error, RequestError::Lost(_)), "{error:?}");
    subscription_less = subscription_less.open();
    let later = subscription_less.request(0x10003, &request).await;
    assert!(matches!(later, Err(RequestError::Lost(_))), "{:?}", later.err());
    assert!(matches!(endpoint.subscribe(Filter::all()).await, Err(RequestError::Lost(_))));
    serving.join().unwrap();
}

#[tokio::test]
async fn a_link_that_is_lost_inside_an_answer_yields_what_came_and_then_says_so() {
    for (cut, inside_a_frame) in [(0, false), (10, true)] {
        let (url, serving) = fake_server(move |socket, head| {
            let answer =
                EnvelopeHead { flags: flag::RESPONSE, dst: head.src, src: head.dst, ..head };
            let part = support_node::frames::data(answer, &message(nlm::MULTI, 1, b"part"));
            socket.write_all(&[&part[..], &part[..cut]].concat()).unwrap();
        });
        let endpoint = Endpoint::connect(&url).await.unwrap();
        let request = message(0, 1, b"");
        let mut replies = endpoint.request_with(0x10003, &request, long()).await.unwrap();
        assert_eq!(within(replies.next()).await.unwrap().unwrap().body(), b"part");
        match within(replies.next()).await.unwrap().unwrap_err() {
            RequestError::Lost(why) => assert_eq!(why.is_some(), inside_a_frame),
            other => panic!("{other:?}"),
        }
        assert!(within(replies.next()).await.is_none());
        serving.join().unwrap();
    }
}

#[tokio::test]
async fn a_server_that_sends_garbage_is_lost_and_the_reason_is_kept() {
    let (url, serving) = fake_server(|socket, _| socket.write_all(&[0; 28]).unwrap());
    let endpoint = Endpoint::connect(&url).await.unwrap();
    let request = message(0, 1, b"");
    let replies = endpoint.request_with(0x10003, &request, long()).await.unwrap();
    let error = within(replies.collect()).await.unwrap_err();
    let source = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(source.contains("not a frame"), "{source}");
    serving.join().unwrap();
}

#[tokio::test]
async fn connecting_to_what_is_no_bus_says_so() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url: BusUrl = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
    let serving = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(b"220 mail.example ESMTP\r\n").unwrap();
        let _ = socket.read_to_end(&mut Vec::new());
    });
    let error = within(Endpoint::connect(&url)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Greeting { .. }), "{error:?}");
    assert!(error.to_string().contains(&url.to_string()));
    serving.join().unwrap();
}
