//! A node against peers that send what they should not, or do not read: only they notice.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_node;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nlbus::node::NodeOptions;
use nlbus::transport::{DialOptions, ListenOptions, SocketOptions};
use nlbus::wire::{FRAME_MAX, LEGACY_FRAME_MAX, Message, PAYLOAD_MAX, PAYLOAD_OFFSET, nlm};
use support_node::frames::{ask, head_of, message, payload_of, push};
use support_node::peer::{Peer, Server, next_request, until, within};

const LONG: Duration = Duration::from_secs(3_600);

fn options(change: impl FnOnce(&mut NodeOptions)) -> NodeOptions {
    let mut options = NodeOptions::default();
    change(&mut options);
    options
}

/// Small socket buffers, so that a peer that does not read is soon noticed.
fn small_buffers() -> SocketOptions {
    SocketOptions {
        send_buffer_bytes: Some(16 * 1024),
        receive_buffer_bytes: Some(16 * 1024),
        ..SocketOptions::default()
    }
}

fn small_listen() -> ListenOptions {
    ListenOptions { socket: small_buffers(), ..ListenOptions::default() }
}

fn small_dial() -> DialOptions {
    DialOptions { socket: small_buffers(), ..DialOptions::default() }
}

// --- bytes ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_sends_no_frame_is_closed_and_another_notices_nothing() {
    let server = Server::start(NodeOptions::default()).await;
    let address = server.echo("echo").await;
    let good = ask(address, 0, 1, &message(0, 1, b"good"));
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let mut malformed = 0;
    for url in server.urls() {
        let mut well_behaved = Peer::dial(url).await;
        for frame in [
            with(0, &0u32.to_le_bytes()),
            with(0, &4u32.to_le_bytes()),
            with(0, &27u32.to_le_bytes()),
            with(0, &24u32.to_le_bytes()),
            with(0, &30u32.to_le_bytes()),
            with(0, &(FRAME_MAX as u32 + 1).to_le_bytes()),
            with(0, &(FRAME_MAX as u32 + 4).to_le_bytes()),
            with(0, &0x8000_0000u32.to_le_bytes()),
            with(0, &u32::MAX.to_le_bytes()),
            with(4, &14u16.to_le_bytes()),
            with(4, &0x0fffu16.to_le_bytes()),
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            0xffu32.to_be_bytes().to_vec(),
        ] {
            well_behaved.assert_served(address).await;
            let mut hostile = Peer::dial(url).await;
            hostile.assert_served(address).await;
            hostile.send(&frame).await;
            well_behaved.assert_served(address).await;
            hostile.assert_closed().await;
            malformed += 1;
            assert_eq!(server.node.counters().core.malformed, malformed);
            well_behaved.assert_served(address).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_before_a_malformed_frame_was_handled() {
    let server = Server::start(NodeOptions::default()).await;
    let mut provider = server.provide("echo").await;
    let mut hostile = Peer::dial(&server.tcp).await;
    let good = push(provider.address(), 0, 1, &message(0, 1, b"good"));
    hostile.send(&[&good[..], &good, &[0; 64], &good].concat()).await;
    for _ in 0..2 {
        let request = next_request(&mut provider).await;
        assert_eq!(request.payload().unwrap(), message(0, 1, b"good"));
    }
    hostile.assert_closed().await;
    assert_eq!(server.node.counters().core.requests, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_may_come_one_byte_at_a_time() {
    let server = Server::start(NodeOptions::default()).await;
    let address = server.echo("echo").await;
    for url in server.urls() {
        let mut peer = Peer::dial(url).await;
        for sequence in 0..3 {
            for byte in ask(address, 0, sequence, &message(0, sequence, b"slowly")) {
                peer.send(&[byte]).await;
            }
            let answer = peer.receive().await.expect("an answer");
            assert_eq!(head_of(&answer).sequence, sequence);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_frames_may_come_in_one_write_cut_anywhere() {
    let server = Server::start(NodeOptions::default()).await;
    let address = server.echo("echo").await;
    for url in server.urls() {
        let run: Vec<u8> =
            (0..3).flat_map(|n| ask(address, 0, n, &message(0, n, b"run of frames"))).collect();
        let mut peer = Peer::dial(url).await;
        for cut in 0..=run.len() {
            peer.send(&run[..cut]).await;
            // an answer from behind the cut says that the node has read up to there
            peer.send(&run[cut..]).await;
            for sequence in 0..3 {
                let answer = peer.receive().await.expect("an answer");
                assert_eq!(head_of(&answer).sequence, sequence, "cut at {cut}");
                assert_eq!(payload_of(&answer), message(0, sequence, b"run of frames"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_frames_in_one_write_are_answered_in_order() {
    let server = Server::start(NodeOptions::default()).await;
    let address = server.echo("echo").await;
    for url in server.urls() {
        let mut peer = Peer::dial(url).await;
        let run: Vec<u8> = (0..5_000)
            .flat_map(|n| ask(address, n % 5, n, &message(0, n, &vec![7; n as usize % 300])))
            .collect();
        let mut writer = std::mem::replace(&mut peer.stream.writer, Box::new(tokio::io::sink()));
        let writing = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut writer, &run).await.unwrap();
            writer
        });
        for n in 0..5_000 {
            let answer = peer.receive().await.expect("an answer");
            let head = head_of(&answer);
            assert_eq!((head.sequence, head.dst), (n, n % 5));
            assert_eq!(payload_of(&answer).len(), 16 + n as usize % 300);
        }
        within(writing).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_of_exactly_the_limit_passes_both_ways() {
    let server = Server::start(NodeOptions::default()).await;
    let address = server.echo("echo").await;
    for url in server.urls() {
        let mut peer = Peer::dial(url).await;
        peer.hello().await;
        let body = vec![0x5a; PAYLOAD_MAX - 16];
        let payload = message(0, 1, &body);
        let frame = ask(address, 0, 1, &payload);
        assert_eq!((frame.len(), payload.len()), (FRAME_MAX, PAYLOAD_MAX));
        peer.send(&frame).await;
        assert_eq!(payload_of(&peer.receive().await.expect("an answer")), payload);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lower_limit_is_exact() {
    let max = 20_000;
    let server = Server::start(options(|options| options.limits.frame_bytes_max = max)).await;
    let address = server.echo("echo").await;
    let mut peer = Peer::dial(&server.tcp).await;
    peer.hello().await;
    let at = ask(address, 0, 1, &message(0, 1, &vec![1; max - PAYLOAD_OFFSET - 16]));
    assert_eq!(at.len(), max);
    peer.send(&at).await;
    assert_eq!(peer.receive().await.expect("an answer").len(), max);
    peer.send_in_vain(&ask(address, 0, 1, &message(0, 1, &vec![1; max - PAYLOAD_OFFSET]))).await;
    peer.assert_closed().await;
    assert_eq!(server.node.counters().core.malformed, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_without_hello_gets_whole_frames_of_at_most_16384_bytes() {
    let server = Server::start(NodeOptions::default()).await;
    let address = server.echo("echo").await;
    let mut peer = Peer::dial(&server.tcp).await;
    let payload = |length: usize| message(0, 1, &vec![1; length - PAYLOAD_OFFSET - 16]);
    peer.send(&ask(address, 0, 1, &payload(LEGACY_FRAME_MAX))).await;
    assert_eq!(peer.receive().await.expect("an answer").len(), LEGACY_FRAME_MAX);
    // the answer that is too long is dropped: the provider did not ask to know
    peer.send(&ask(address, 0, 2, &payload(LEGACY_FRAME_MAX + 4))).await;
    peer.assert_served(address).await;
    assert_eq!(server.node.counters().core.too_long, 1);
}

// --- half frames ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_frame_is_closed_after_its_time_and_counted() {
    assert_eq!(NodeOptions::default().half_frame_max, Duration::from_secs(30));
    let short = Duration::from_millis(50);
    let server = Server::start(options(|options| options.half_frame_max = short)).await;
    let address = server.echo("echo").await;
    let frame = ask(address, 0, 1, &message(0, 1, b"half"));
    let mut count = 0;
    for url in server.urls() {
        let mut quiet = Peer::dial(url).await;
        for cut in [1, 3, 4, 16, 27, frame.len() - 1] {
            let mut hostile = Peer::dial(url).await;
            hostile.send(&frame[..cut]).await;
            hostile.assert_closed().await;
            count += 1;
            assert_eq!(server.node.counters().half_frames, count);
        }
        // who says nothing has all the time there is
        quiet.assert_served(address).await;
    }
    assert_eq!(server.node.counters().core.malformed, 0);
}

#[tokio::test(start_paused = true)]
async fn half_a_frame_waits_for_30_seconds() {
    let server = Server::start(NodeOptions::default()).await;
    let mut hostile = Peer::dial(&server.tcp).await;
    let started = tokio::time::Instant::now();
    hostile.send(&[28, 0]).await;
    hostile.assert_closed().await;
    assert!(started.elapsed() >= Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(server.node.counters().half_frames, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trickling_bytes_do_not_extend_the_time_of_half_a_frame() {
    let short = Duration::from_millis(100);
    let server = Server::start(options(|options| options.half_frame_max = short)).await;
    let address = server.echo("echo").await;
    let mut hostile = Peer::dial(&server.tcp).await;
    // at this pace the frame would be whole after five minutes: `within` would not wait for that
    let frame = ask(address, 0, 1, &vec![0; 60_000]);
    let mut writer = std::mem::replace(&mut hostile.stream.writer, Box::new(tokio::io::sink()));
    let trickle = tokio::spawn(async move {
        for byte in frame {
            if tokio::io::AsyncWriteExt::write_all(&mut writer, &[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    hostile.assert_closed().await;
    assert_eq!(server.node.counters().half_frames, 1);
    trickle.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announced_bytes_that_do_not_come_cost_nothing_and_can_still_come() {
    let server = Server::start(options(|options| options.half_frame_max = LONG)).await;
    let address = server.echo("echo").await;
    let payload = message(0, 1, &vec![1; PAYLOAD_MAX - 16]);
    let frame = ask(address, 0, 1, &payload);
    let mut waiting = Vec::new();
    for _ in 0..200 {
        let mut peer = Peer::dial(&server.unix).await;
        peer.hello().await;
        peer.send(&frame[..8]).await;
        waiting.push(peer);
    }
    let mut well_behaved = Peer::dial(&server.tcp).await;
    well_behaved.assert_served(address).await;
    for peer in &mut waiting[..20] {
        peer.send(&frame[8..]).await;
        assert_eq!(payload_of(&peer.receive().await.expect("an answer")), payload);
    }
    assert_eq!(server.node.counters().links, 200 + 1 + 1);
}

// --- counts ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_past_links_max_is_closed_at_once_and_room_comes_back() {
    // the provider's link counts too
    let server = Server::start(options(|options| options.limits.links_max = 3)).await;
    let address = server.echo("echo").await;
    let (mut one, mut two) = (Peer::dial(&server.tcp).await, Peer::dial(&server.unix).await);
    one.assert_served(address).await;
    two.assert_served(address).await;
    for refused in 1..=3 {
        let mut third = Peer::dial(&server.tcp).await;
        third.assert_closed().await;
        assert_eq!(server.node.counters().core.links_refused, refused);
    }
    assert!(nlbus::endpoint::Endpoint::attach(&server.node).is_err());
    drop(one);
    until(|| server.node.counters().links == 2).await;
    Peer::dial(&server.tcp).await.assert_served(address).await;
    two.assert_served(address).await;
}

// --- peers that do not read ---

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_asker_that_never_reads_is_closed_and_holds_up_nobody() {
    assert_eq!(NodeOptions::default().reply_hold_max, Duration::from_secs(10));
    let outbox = 64 * 1024;
    let options = options(|options| {
        options.outbox_bytes_max = outbox;
        options.reply_hold_max = Duration::from_secs(4);
    });
    let server = Server::start_with(options, &small_listen()).await;
    let echo = server.echo("echo").await;
    let mut provider = server.provide("flood").await;
    let (flood, sent) = (provider.address(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&sent);
    let answering = tokio::spawn(async move {
        let mut floods = tokio::task::JoinSet::new();
        for _ in 0..2 {
            let request = next_request(&mut provider).await;
            let sent = Arc::clone(&counted);
            floods.spawn(async move {
                let part = message(nlm::MULTI, 1, &[1; 8_000]);
                // 16 MiB: far more than any buffer on the way
                for _ in 0..2_000 {
                    let _ = request.responder().send(&part).await;
                    sent.fetch_add(part.len(), Ordering::Relaxed);
                }
            });
        }
        floods.join_all().await;
        provider
    });
    let mut well_behaved = Peer::dial(&server.tcp).await;
    let mut deaf = Peer::dial_with(&server.unix, &small_dial()).await;
    deaf.send(&ask(flood, 0, 1, b"")).await;
    until(|| server.node.counters().held > 0).await;
    let most = sent.load(Ordering::Relaxed);
    assert!(most < 1 << 20, "{most} bytes are on their way to who does not read");
    for _ in 0..20 {
        well_behaved.assert_served(echo).await;
    }
    until(|| server.node.counters().stalled == 1).await;
    // another one of the same provider's askers reads, and gets everything
    let mut hearing = Peer::dial_with(&server.unix, &small_dial()).await;
    hearing.send(&ask(flood, 0, 1, b"")).await;
    for _ in 0..2_000 {
        hearing.receive().await.expect("all parts");
    }
    within(answering).await.unwrap();
    assert_eq!(server.node.counters().stalled, 1);
    let rest = deaf.receive_to_end().await.len();
    assert!(rest < 1 << 20, "{rest} bytes were kept for who did not read");
    well_behaved.assert_served(echo).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_subscriber_loses_the_newest_and_is_told_exactly_how_many() {
    let options = options(|options| options.outbox_bytes_max = 64 * 1024);
    let server = Server::start_with(options, &small_listen()).await;
    let mut slow = Peer::dial_with(&server.unix, &small_dial()).await;
    slow.hello().await;
    slow.subscribe().await;
    let mut fast = Peer::dial(&server.tcp).await;
    fast.subscribe().await;
    let mut publisher = Peer::dial(&server.tcp).await;
    let mut published = 0u32;
    for _round in 0..3 {
        for _ in 0..200 {
            let mut run = Vec::new();
            for _ in 0..10 {
                run.extend(push(0, 0, 0, &message(0, published, &[9; 400])));
                published += 1;
            }
            publisher.send(&run).await;
            for n in published - 10..published {
                let event = fast.receive().await.expect("an event");
                assert_eq!(Message::parse(payload_of(&event)).unwrap().header.sequence, n);
            }
        }
        // now it reads: what it has, and what it was told of, leave no gap
        let mut next = published - 2_000;
        let mut lost = 0;
        while next < published {
            let event = slow.receive().await.expect("an event");
            let message = Message::parse(payload_of(&event)).unwrap();
            if message.header.kind == nlm::OVERRUN {
                let count = u32::from_le_bytes(*message.body().first_chunk().unwrap());
                assert!(count > 0);
                next += count;
                lost += count;
            } else {
                assert_eq!(message.header.sequence, next, "the order is kept");
                next += 1;
            }
        }
        assert_eq!(next, published);
        assert!(lost > 0, "800 KiB do not fit");
    }
    assert!(server.node.counters().shed > 0);
    assert_eq!(server.node.counters().stalled, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_provider_holds_its_sender_back_and_nobody_else() {
    let frames = 8;
    let server = Server::start(options(|options| options.credit_frames_max = frames)).await;
    let echo = server.echo("echo").await;
    let mut slow = server.provide("slow").await;
    let address = slow.address();
    let mut sender = Peer::dial(&server.tcp).await;
    let run: Vec<u8> =
        (0..1_000).flat_map(|n| push(address, 0, n, &message(0, n, b"push"))).collect();
    sender.send(&run).await;
    sender.send(&ask(echo, 3, 1_000, &message(0, 0, b"behind it"))).await;
    until(|| server.node.counters().held > 0).await;

    // others go on, also those who send to the same provider
    let mut other = Peer::dial(&server.unix).await;
    for _ in 0..20 {
        other.assert_served(echo).await;
    }
    other.send(&push(address, 0, 0, &message(0, 5_555, b"from another"))).await;
    other.assert_served(echo).await;

    let (mut next, mut others) = (0, 0);
    let mut kept = std::collections::VecDeque::new();
    while next < 1_000 || others == 0 {
        let request = next_request(&mut slow).await;
        let sequence = Message::parse(&request.payload().unwrap()).unwrap().header.sequence;
        if sequence == 5_555 {
            others += 1;
            continue;
        }
        assert_eq!(sequence, next, "the order is kept, and nothing is lost");
        next += 1;
        kept.push_back(request);
        // what is taken and not done counts too
        if kept.len() == frames {
            kept.pop_front();
        }
    }
    drop(kept);
    let answer = sender.receive().await.expect("an answer");
    assert_eq!(head_of(&answer).sequence, 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_may_have_as_many_requests_at_a_provider_as_its_credit() {
    let frames = 4;
    let server = Server::start(options(|options| options.credit_frames_max = frames)).await;
    let mut provider = server.provide("slow").await;
    let address = provider.address();
    let mut sender = Peer::dial(&server.tcp).await;
    let mut kept = Vec::new();
    for n in 0..frames as u32 {
        sender.send(&push(address, 0, n, &message(0, n, b""))).await;
        kept.push(next_request(&mut provider).await);
    }
    assert_eq!(server.node.counters().held, 0, "at the bound");
    sender.send(&push(address, 0, 9, &message(0, 9, b""))).await;
    until(|| server.node.counters().held == 1).await;
    kept.pop();
    next_request(&mut provider).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_come_and_go_leave_nothing_behind() {
    let server = Server::start(NodeOptions::default()).await;
    let address = server.echo("echo").await;
    let mut well_behaved = Peer::dial(&server.tcp).await;
    for round in 0..200 {
        let mut peer = Peer::dial(server.urls()[round % 2]).await;
        peer.subscribe().await;
        peer.send(&ask(address, round as u32, 1, &message(0, 1, b"and gone"))).await;
        if round % 3 == 0 {
            peer.send(&[44, 0, 0]).await;
        }
        drop(peer);
        if round % 20 == 0 {
            well_behaved.assert_served(address).await;
        }
    }
    until(|| server.node.counters().links == 2).await;
    well_behaved.assert_served(address).await;
}
