//! A client of the original implementation, which sends its captured frames and takes what comes.

#![allow(clippy::unwrap_used)] // helpers fail as the tests do that call them

mod support_kernel;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use nlbus::node::NodeOptions;
use nlbus::service::netlink::NETLINK_ROUTE;
use nlbus::url::BusUrl;
use nlbus::wire::{Command, Control, EnvelopeHead, ErrorMessage, Message, Messages, errno, nlm};
use rustix::net::sockopt::tcp_nodelay;
use rustix::net::{RecvFlags, getpeername, recv};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use support_kernel::message::{GETADDR, address_in, dump, index_in, link, numbered};
use support_kernel::netns::{Netns, address};
use support_kernel::original::{Original, frame, head, payload, vector};
use support_kernel::raw::{Raw, header};
use support_kernel::served::{serve, serve_nothing, serve_with, serve_writable};
use support_kernel::{PATIENCE, wait_until};

const ROUTE: u32 = 0x0001_0003;

/// The sequence number and port id of the message in a request frame.
fn inner(request: &[u8]) -> (u32, u32) {
    let header = header(payload(request));
    (header.sequence, header.pid)
}

/// Sends a captured request; the messages of its answer, once every number in it is what the client
/// expects.
fn ask(client: &mut Original, name: &str) -> Vec<Vec<u8>> {
    let request = vector(name);
    let sent = head(&request);
    assert_eq!((sent.flags, sent.dst, sent.src), (0, ROUTE, 0));
    let mut found = Vec::new();
    for frame in client.ask(&request) {
        assert_eq!(head(&frame), EnvelopeHead { dst: 0, src: ROUTE, ..sent }, "{name}");
        for message in Messages::new(payload(&frame)).map(Result::unwrap) {
            let header = message.header;
            assert_eq!((header.sequence, header.pid), inner(&request), "{name}");
            found.push(message.bytes().to_vec());
        }
    }
    found
}

/// What the kernel itself answers to the captured request for a dump, with the numbers of that.
fn kernel_says(netns: &Netns, name: &str) -> Vec<Vec<u8>> {
    let request = vector(name);
    let (sequence, pid) = inner(&request);
    let messages = Raw::open_in(netns, NETLINK_ROUTE).dump(payload(&request).to_vec());
    messages.into_iter().map(|message| numbered(message, sequence, pid)).collect()
}

fn assert_captured_requests_are_answered(netns: &Netns, url: &BusUrl) {
    let mut client = Original::connect(url);
    for name in ["reqrep/get_addr/00", "reqrep/get_links/00", "reqrep/get_routes/00"] {
        // a namespace that was just set up may still be in motion
        wait_until(name, || {
            let mut messages = ask(&mut client, name);
            let done = header(&messages.pop().unwrap());
            assert_eq!((done.kind, done.flags & nlm::MULTI), (nlm::DONE, nlm::MULTI), "{name}");
            assert!(!messages.is_empty(), "{name}");
            messages == kernel_says(netns, name)
        });
    }
    let messages = ask(&mut client, "reqrep/get_link_1/00");
    let [link] = &messages[..] else { panic!("one link") };
    assert_eq!((header(link).kind, header(link).flags), (16, 0));
    assert_eq!(index_in(Message::parse(link).unwrap().body()), 1);

    let messages = ask(&mut client, "reqrep/link_up_nodev/00");
    let [error] = &messages[..] else { panic!("one error") };
    let error = ErrorMessage::parse(&Message::parse(error).unwrap()).unwrap();
    assert_eq!(error.code, -errno::EPERM, "askers may only read");
    let (sequence, pid) = inner(&vector("reqrep/link_up_nodev/00"));
    assert_eq!((error.request.sequence, error.request.pid), (sequence, pid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captured_requests_are_answered_over_tcp_and_unix() {
    let Some(netns) = Netns::new("captured") else { return };
    let index = netns.veth("v");
    netns.ip("link set v up");
    netns.ip("addr add 10.1.2.3/24 dev v");
    netns.ip("route add 10.11.12.0/24 dev v");
    assert!(index > 1);
    let served = serve(&netns).await;
    assert_captured_requests_are_answered(&netns, &served.tcp);
    assert_captured_requests_are_answered(&netns, &served.unix);
}

/// The captured reply holds the numbers of the original's own netlink socket in the header that it
/// embeds; ours are the client's, and all else is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captured_changes_get_the_captured_replies_if_askers_may_write() {
    let Some(netns) = Netns::new("changes") else { return };
    let served = serve_writable(&netns).await;
    for url in [&served.tcp, &served.unix] {
        let mut client = Original::connect(url);
        for name in ["link_up_nodev", "link_up_lo"] {
            let request = vector(&format!("reqrep/{name}/00"));
            let mut expected = vector(&format!("reqrep/{name}/01"));
            expected[56..64].copy_from_slice(&request[36..44]);
            assert_eq!(client.ask(&request), [expected], "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_answers_is_sent_to_who_only_asks() {
    let Some(netns) = Netns::new("answers") else { return };
    let served = serve(&netns).await;
    let mut clients = [&served.tcp, &served.unix].map(Original::connect);
    let mut silent = [&served.tcp, &served.unix].map(Original::connect);
    for client in &mut clients {
        ask(client, "reqrep/get_link_1/00");
        ask(client, "reqrep/get_links/00");
    }
    served.node.shutdown(PATIENCE).await;
    for client in clients.iter_mut().chain(&mut silent) {
        client.assert_closed();
    }
}

fn assert_table_is_whole(netns: &Netns, url: &BusUrl, count: u32) {
    let frames = Original::connect(url).ask(&frame(9, &dump(GETADDR, 3, 4)));
    let messages = frames.iter().flat_map(|frame| Messages::new(payload(frame)));
    let mut found = Vec::new();
    for message in messages.map(Result::unwrap) {
        assert_eq!((message.header.sequence, message.header.pid), (3, 4));
        if message.header.kind != nlm::DONE {
            found.push(message.bytes().to_vec());
        }
    }
    let kernel = Raw::open_in(netns, NETLINK_ROUTE).dump(dump(GETADDR, 1, 0));
    let kernel: Vec<_> = kernel.into_iter().map(|message| numbered(message, 3, 4)).collect();
    assert!(found == kernel, "{} messages, {} of the kernel", found.len(), kernel.len());
    let ipv4 = found.iter().filter_map(|message| address_in(&message[16..]));
    let many = ipv4.filter(|found| (address(1)..=address(count)).contains(found)).count();
    assert_eq!(many, count as usize);
}

/// That each frame has at most 16,384 bytes is for the client to assert.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_table_comes_whole_in_frames_that_such_a_client_can_take() {
    let Some(netns) = Netns::new("large") else { return };
    netns.addresses(2_000);
    let served = serve(&netns).await;
    assert_table_is_whole(&netns, &served.tcp, 2_000);
    assert_table_is_whole(&netns, &served.unix, 2_000);
}

/// What waits in a socket, without taking it.
fn waiting(socket: &UnixStream, buffer: &mut [u8]) -> usize {
    match recv(socket, &mut *buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, count)) => {
            assert!(count < buffer.len());
            count
        }
        Err(rustix::io::Errno::AGAIN) => 0,
        Err(error) => panic!("{error}"),
    }
}

/// A unix socket takes a write of this size whole or not at all, so what waits in it ends where a write
/// ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_finds_no_half_of_a_frame() {
    const DUMPS: usize = 10;
    let Some(netns) = Netns::new("slowly") else { return };
    netns.addresses(1_500);
    let mut options = NodeOptions::default();
    options.outbox_bytes_max = 256 << 10;
    options.reply_hold_max = PATIENCE;
    let served = serve_with(&netns, options, |_| ()).await;
    let socket = served.unix_stream();
    let mut client = Original::over_unix(socket.try_clone().unwrap());
    for number in 1..=DUMPS as u32 {
        client.send(&frame(number, &dump(GETADDR, number, 0)));
    }
    wait_until("the answers are held back", || served.node.counters().held > 0);

    let mut buffer = vec![0; 4 << 20];
    let mut most = 0;
    let mut dones = 0;
    while dones < DUMPS {
        let count = waiting(&socket, &mut buffer);
        let mut at = 0;
        while at < count {
            at += u32::from_le_bytes(buffer[at..at + 4].try_into().unwrap()) as usize;
        }
        assert_eq!(at, count, "what waits ends where a frame ends");
        most = most.max(count);
        let frame = client.receive();
        let messages = Messages::new(payload(&frame)).map(Result::unwrap);
        dones += messages.filter(|message| message.header.kind == nlm::DONE).count();
    }
    assert!(most > 100_000, "much was waiting: {most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captured_subscriptions_get_the_captured_replies() {
    let served = serve_nothing(NodeOptions::default()).await;
    for url in [&served.tcp, &served.unix] {
        let mut client = Original::connect(url);
        for (request, reply) in [
            ("request-all", "reply"),
            ("request-dellink-only", "reply-2"),
            ("request-two-keys", "reply-3"),
            ("request-no-key", "reply-4"),
        ] {
            client.send(&vector(&format!("subscribe/{request}")));
            assert_eq!(client.receive(), vector(&format!("subscribe/{reply}")), "{request}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_who_has_not_registered_are_refused_as_captured_but_with_a_reason() {
    let served = serve_nothing(NodeOptions::default()).await;
    let mut client = Original::connect(&served.tcp);
    for (name, expected) in [
        ("unregistered/CONNECT", errno::EPERM),
        ("unregistered/DISCONNECT", errno::EPERM),
        ("unregistered/SERVE", errno::EPERM),
        ("unregistered/SHUTDOWN", errno::EPERM),
        ("unregistered/STOP", errno::EPERM),
        ("unregistered/RELOAD", errno::EPERM),
        ("unregistered/ROUTE", errno::EOPNOTSUPP),
        ("unknown-cmd", errno::EOPNOTSUPP),
    ] {
        client.send(&vector(&format!("control/{name}/request")));
        let (reply, captured) = (client.receive(), vector(&format!("control/{name}/reply")));
        assert_eq!(head(&reply), head(&captured), "{name}");
        let (reply, captured) = (payload(&reply), payload(&captured));
        assert_eq!(reply[4..20], captured[4..20], "{name}: all but the length");
        let control = Control::parse(reply).unwrap();
        assert_eq!(control.command(), Some(Command::Err), "{name}");
        assert_eq!(control.errno, Some(expected as u32), "{name}");
        assert!(control.error.is_some_and(|text| !text.is_empty()), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noop_ack_and_err_are_never_answered() {
    let served = serve_nothing(NodeOptions::default()).await;
    for url in [&served.tcp, &served.unix] {
        let mut client = Original::connect(url);
        for name in ["unregistered/NOOP", "ACK-as-request", "ERR-as-request"] {
            client.send(&vector(&format!("control/{name}/request")));
        }
        client.send(&vector("subscribe/request-all"));
        assert_eq!(client.receive(), vector("subscribe/reply"), "the first that comes");
        client.send(&vector("subscribe/request-dellink-only"));
        assert_eq!(client.receive(), vector("subscribe/reply-2"), "and the next");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_to_nobody_is_delivered_to_subscribers_as_captured_and_its_sender_gets_nothing() {
    let served = serve_nothing(NodeOptions::default()).await;
    for url in [&served.tcp, &served.unix] {
        let [mut subscriber, mut sender] = [url, url].map(Original::connect);
        subscriber.send(&vector("subscribe/request-all"));
        assert_eq!(subscriber.receive(), vector("subscribe/reply"));

        sender.send(&vector("subscribe/push-unknown-dst/request"));
        assert_eq!(subscriber.receive(), vector("subscribe/push-unknown-dst/delivered"));
        sender.send(&vector("subscribe/request-all"));
        assert_eq!(sender.receive(), vector("subscribe/reply"), "the first that comes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_in_pieces_and_two_frames_in_one_piece_are_taken() {
    let Some(netns) = Netns::new("pieces") else { return };
    let served = serve(&netns).await;
    for url in [&served.tcp, &served.unix] {
        let mut client = Original::connect(url);
        let both = [frame(1, &link(1, 5, 6)), frame(2, &link(1, 7, 8))].concat();
        for piece in both.chunks(7) {
            client.send(piece);
        }
        client.send(&both);
        for (sequence, numbers) in [(1, (5, 6)), (2, (7, 8)), (1, (5, 6)), (2, (7, 8))] {
            let reply = client.receive();
            assert_eq!((head(&reply).sequence, inner(&reply)), (sequence, numbers));
        }
    }
}

/// Looks at the server's own socket, which is in this process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_tcp_connection_has_nodelay() {
    let served = serve_nothing(NodeOptions::default()).await;
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, served.tcp.port().unwrap())).unwrap();
    let ours = stream.local_addr().unwrap();
    let mut client = Original::over_tcp(stream);
    client.send(&vector("subscribe/request-all"));
    client.receive();

    let Ok(process) = pidfd_open(getpid(), PidfdFlags::empty()) else {
        return eprintln!("skipped: this kernel has no pidfd_open");
    };
    let mut seen = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let number = entry.unwrap().file_name().into_string().unwrap().parse().unwrap();
        let Ok(socket) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else { continue };
        let peer = getpeername(&socket).ok().flatten();
        if peer.is_some_and(|peer| SocketAddr::try_from(peer) == Ok(ours)) {
            assert!(tcp_nodelay(&socket).unwrap());
            seen += 1;
        }
    }
    assert_eq!(seen, 1, "the server's end of the connection");
}
