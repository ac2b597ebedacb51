//! Requests to the kernel as a subsystem: each asker gets its own answers, all of them, in its own numbers.

#![allow(clippy::unwrap_used)] // helpers fail as the tests do that call them

mod support_kernel;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write as _};
use std::net::Ipv4Addr;

use assert_cmd::Command;
use nlbus::endpoint::{Endpoint, Reply, RequestError, RequestOptions};
use nlbus::node::NodeOptions;
use nlbus::service::netlink::{KernelError, NETLINK_GENERIC, NETLINK_ROUTE};
use nlbus::url::BusUrl;
use nlbus::wire::{
    ErrorMessage, HEADER_LEN, Header, Message, MessageBuilder, Messages, PAYLOAD_MAX, errno, nlm,
};
use rustix::net::sockopt::set_socket_recv_buffer_size;
use serde_json::Value;
use support_kernel::message::{
    GETADDR, GETLINK, GETROUTE, NEWLINK, address_in, dump, index_in, link, numbered, set_up,
};
use support_kernel::netns::{Netns, address};
use support_kernel::original::{Original, asking, frame, head, payload};
use support_kernel::raw::Raw;
use support_kernel::served::{ask, request, serve, serve_with};
use support_kernel::{PATIENCE, wait_until};
use tokio::task::JoinSet;

/// What requests are about, and what their answers have to be, apart from the numbers of who asked.
#[derive(Clone)]
struct World {
    links: Vec<u32>,
    addresses: Vec<Vec<u8>>,
    routes: Vec<Vec<u8>>,
}

impl World {
    /// Devices that are down, so that nothing moves, and addresses on them.
    fn make(netns: &Netns) -> Self {
        for number in 1..=10 {
            let device = format!("v{number}");
            netns.veth(&device);
            netns.ip(&format!("addr add {}/24 dev {device}", address(number * 256)));
            netns.ip(&format!("route add table {number} 10.200.{number}.0/24 dev lo"));
        }
        let mut raw = Raw::open_in(netns, NETLINK_ROUTE);
        let mut table = |kind| -> Vec<_> {
            let messages = raw.dump(dump(kind, 0, 0)).into_iter();
            messages.map(|message| numbered(message, 0, 0)).collect()
        };
        let [links, addresses, routes] = [GETLINK, GETADDR, GETROUTE].map(&mut table);
        let links = links.iter().map(|link| index_in(&link[16..])).collect();
        Self { links, addresses, routes }
    }

    /// Asks for something that depends on `number`, as `sequence` and `pid`, and judges the answer.
    async fn ask(&self, endpoint: &Endpoint, number: usize, sequence: u32, pid: u32) {
        let wanted = self.links[number % self.links.len()];
        let message = match number % 5 {
            0 => dump(GETLINK, sequence, pid),
            1 => dump(GETADDR, sequence, pid),
            2 => dump(GETROUTE, sequence, pid),
            _ => link(wanted, sequence, pid),
        };
        let replies = ask(endpoint, &message).await.unwrap();
        for reply in &replies {
            assert_eq!((reply.header().sequence, reply.header().pid), (sequence, pid));
        }
        match number % 5 {
            0 => assert_eq!(indexes(&replies), self.links),
            1 => assert_eq!(unnumbered(&replies), self.addresses),
            2 => assert_eq!(unnumbered(&replies), self.routes),
            _ => assert_eq!(indexes(&replies), [wanted]),
        }
    }
}

fn indexes(links: &[Reply]) -> Vec<u32> {
    assert!(links.iter().all(|link| link.header().kind == NEWLINK));
    links.iter().map(|link| index_in(link.body())).collect()
}

/// The messages without the numbers of who asked.
fn unnumbered(replies: &[Reply]) -> Vec<Vec<u8>> {
    replies.iter().map(|reply| numbered(reply.bytes().to_vec(), 0, 0)).collect()
}

fn world(test: &str) -> Option<(Netns, World)> {
    let netns = Netns::new(test)?;
    let world = World::make(&netns);
    Some((netns, world))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_one_after_another_get_their_own_answers() {
    let Some((netns, world)) = world("thousand") else { return };
    let served = serve(&netns).await;
    let endpoint = Endpoint::connect(&served.tcp).await.unwrap();
    for number in 0..1_000 {
        world.ask(&endpoint, number, number as u32, 7 + number as u32).await;
    }
    assert_eq!(netns.sockets(NETLINK_ROUTE).len(), 2, "one for events, one for all the requests");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_requests_at_once_on_one_endpoint_get_their_own_answers() {
    let Some((netns, world)) = world("sixtyfour") else { return };
    let served = serve(&netns).await;
    for url in [&served.tcp, &served.unix] {
        let endpoint = Endpoint::connect(url).await.unwrap();
        let mut askers = JoinSet::new();
        for number in 0..64 {
            let (endpoint, world) = (endpoint.clone(), world.clone());
            // the inner sequence numbers need not differ
            let sequence = (number as u32) % 8;
            askers.spawn(async move {
                for round in 0..4 {
                    world.ask(&endpoint, number + round, sequence, number as u32).await;
                }
            });
        }
        askers.join_all().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_on_one_link_have_sockets_of_their_own_and_may_use_the_same_numbers() {
    let Some((netns, world)) = world("endpoints") else { return };
    let served = serve(&netns).await;
    let monitor = netns.sockets(NETLINK_ROUTE);
    assert_eq!(monitor.len(), 1);
    let first = served.endpoint().await;
    let endpoints: Vec<_> = std::iter::repeat_with(|| first.open()).take(12).collect();
    let mut askers = JoinSet::new();
    for (number, endpoint) in endpoints.iter().cloned().enumerate() {
        let world = world.clone();
        askers.spawn(async move {
            for sequence in 1..=10 {
                world.ask(&endpoint, number + sequence as usize, sequence, 42).await;
            }
        });
    }
    askers.join_all().await;
    let sockets = netns.sockets(NETLINK_ROUTE);
    let ports: BTreeSet<_> = sockets.iter().map(|socket| socket.port_id).collect();
    assert_eq!((sockets.len(), ports.len()), (13, 13));
    assert!(sockets.contains(&monitor[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_asker_sees_its_own_numbers_in_the_header_that_an_error_embeds() {
    let Some(netns) = Netns::new("numbers") else { return };
    let served = serve(&netns).await;
    let mut client = Original::connect(&served.unix);
    for modern in [false, true] {
        let message = link(9_999, 5, 0xdead_beef);
        let request = if modern { asking(1, 9, &message) } else { frame(1, &message) };
        let frames = client.ask(&request);
        let message = Message::parse(payload(&frames[0])).unwrap();
        let error = ErrorMessage::parse(&message).unwrap();
        let sent = Header::parse(payload(&request)).unwrap();
        assert_eq!((message.header.sequence, message.header.pid), (5, 0xdead_beef));
        assert_eq!((error.code, error.request), (-errno::ENODEV, sent));
        assert_eq!(head(&frames[0]).dst, if modern { 9 } else { 0 });
    }
    assert_eq!(netns.sockets(NETLINK_ROUTE).len(), 3, "a socket for each port");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernels_own_words_come_with_an_error() {
    let Some(netns) = Netns::new("words") else { return };
    let served = serve(&netns).await;
    let endpoint = served.endpoint().await;
    // AF_INET, and nothing else of struct rtmsg
    let short = MessageBuilder::new(GETROUTE, nlm::REQUEST).body(&[2, 0, 0, 0]).finish();
    match ask(&endpoint, &short).await {
        Err(RequestError::Refused { errno: errno::EINVAL, text: Some(text) }) => {
            assert!(text.contains("header"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let refused = ask(&endpoint, &set_up(1)).await.unwrap_err();
    assert_eq!(refused.errno(), Some(errno::EPERM));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_with_an_acknowledgement_ends_at_that() {
    let Some(netns) = Netns::new("acks") else { return };
    let served = serve(&netns).await;
    let endpoint = served.endpoint().await;
    let acknowledged = |mut message: Vec<u8>| {
        message[6] |= nlm::ACK as u8;
        message
    };
    for round in 0..20 {
        let replies = ask(&endpoint, &acknowledged(link(1, round, 3))).await.unwrap();
        assert_eq!(indexes(&replies), [1]);
        let replies = ask(&endpoint, &acknowledged(dump(GETLINK, round, 3))).await.unwrap();
        assert_eq!(indexes(&replies), [1]);
        let noop = MessageBuilder::new(nlm::NOOP, nlm::REQUEST | nlm::ACK).finish();
        assert!(ask(&endpoint, &noop).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_in_one_payload_are_answered_each_in_its_own_numbers() {
    let Some(netns) = Netns::new("batch") else { return };
    let index = netns.veth("v");
    let served = serve(&netns).await;
    let mut client = Original::connect(&served.tcp);
    let batch = [link(1, 5, 6), link(index, 7, 8), link(9_999, 9, 10)].concat();
    client.send(&asking(1, 0, &batch));
    let mut found = Vec::new();
    while found.len() < 3 {
        let frame = client.receive();
        assert_eq!(head(&frame).sequence, 1);
        for message in Messages::new(payload(&frame)).map(Result::unwrap) {
            let Header { kind, sequence, pid, .. } = message.header;
            found.push((kind, sequence, pid, index_in(message.body())));
        }
    }
    assert_eq!(found[..2], [(NEWLINK, 5, 6, 1), (NEWLINK, 7, 8, index)]);
    assert_eq!((found[2].0, found[2].1, found[2].2), (nlm::ERROR, 9, 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_messages_as_fit_one_payload_are_all_answered() {
    let Some(netns) = Netns::new("many") else { return };
    let served = serve(&netns).await;
    let mut client = Original::connect(&served.unix);
    // of type NOOP, which the kernel only acknowledges
    let noop = |n| MessageBuilder::new(nlm::NOOP, nlm::REQUEST | nlm::ACK).sequence(n).pid(6);
    let numbers = 0..(PAYLOAD_MAX / HEADER_LEN) as u32;
    let batch: Vec<u8> = numbers.clone().flat_map(|n| noop(n).finish()).collect();
    client.send(&asking(1, 0, &batch));
    for number in numbers {
        let frame = client.receive();
        let header = Header::parse(payload(&frame)).unwrap();
        assert_eq!((header.kind, header.sequence, header.pid), (nlm::ERROR, number, 6));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_netlink_is_refused_in_words_and_hurts_nobody() {
    let Some(netns) = Netns::new("garbage") else { return };
    let served = serve(&netns).await;
    let endpoint = served.endpoint().await;
    let mut too_long = link(1, 1, 1);
    too_long[0] = 99;
    let behind = [link(1, 1, 1), vec![7; 5]].concat();
    for garbage in [&[][..], &[1, 2, 3], &[0; 16], &[0xff; 40], &too_long, &behind] {
        match ask(&endpoint, garbage).await {
            Err(RequestError::Refused { errno: errno::EINVAL, text: Some(text) }) => {
                assert!(!text.is_empty());
            }
            other => panic!("{garbage:?}: {other:?}"),
        }
        assert_eq!(indexes(&ask(&endpoint, &link(1, 1, 1)).await.unwrap()), [1]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_name_or_address_is_told_and_not_waited_for() {
    let Some(netns) = Netns::new("unknown") else { return };
    let served = serve(&netns).await;
    let endpoint = served.endpoint().await;
    let forever = RequestOptions::default().deadline(None);
    let nobody = endpoint.request_with("nobody", &link(1, 1, 1), forever).await;
    let nowhere = endpoint.request_with(0x0001_ff00, &link(1, 1, 1), forever).await.unwrap();
    for error in [nobody.err().unwrap(), nowhere.collect().await.unwrap_err()] {
        assert!(matches!(error, RequestError::Undeliverable { errno: errno::ENOENT, .. }));
    }
}

fn addresses(replies: &[Reply]) -> Vec<Ipv4Addr> {
    replies.iter().filter_map(|reply| address_in(reply.body())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_of_five_thousand_addresses_arrives_whole_over_tcp_and_unix() {
    let Some(netns) = Netns::new("fivethousand") else { return };
    netns.addresses(5_000);
    let expected: Vec<Ipv4Addr> = netns
        .ip_json("-4 addr")
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|link| link["addr_info"].as_array().unwrap())
        .map(|info| info["local"].as_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(expected.len(), 5_001, "and that of lo");
    let served = serve(&netns).await;
    let whole = async |url: &BusUrl| {
        let endpoint = Endpoint::connect(url).await.unwrap();
        assert_eq!(addresses(&ask(&endpoint, &dump(GETADDR, 1, 1)).await.unwrap()), expected);
    };
    whole(&served.tcp).await;
    whole(&served.unix).await;
    let both = [Endpoint::connect(&served.tcp), Endpoint::connect(&served.unix)];
    for endpoint in both {
        let endpoint = endpoint.await.unwrap();
        let mut askers = JoinSet::new();
        for _ in 0..4 {
            let endpoint = endpoint.clone();
            askers.spawn(async move { ask(&endpoint, &dump(GETADDR, 1, 1)).await.unwrap() });
        }
        for replies in askers.join_all().await {
            assert_eq!(addresses(&replies), expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_shows_a_thousand_addresses_as_ip_does() {
    let Some(netns) = Netns::new("show") else { return };
    for name in ["va", "vb", "vc"] {
        netns.veth(name);
        netns.ip(&format!("link set {name} up"));
        netns.ip(&format!("link set {name}p up"));
    }
    netns.addresses(1_000);
    netns.ip("addr add fd00::1/64 dev va nodad");
    netns.ip("addr add 10.9.8.7/24 brd + dev vb label vb:x");
    let served = serve(&netns).await;
    for url in [&served.tcp, &served.unix] {
        for object in ["addr", "link", "route"] {
            // the namespace was just set up, and is in motion for a while
            wait_until(object, || {
                let mut show = Command::cargo_bin("nlbus").unwrap();
                let shown = show.args(["show", object, "-j", "-u", &url.to_string()]).output();
                let shown = shown.unwrap();
                let error = String::from_utf8_lossy(&shown.stderr);
                assert!(shown.status.success(), "{error}");
                let ours: Value = serde_json::from_slice(&shown.stdout).unwrap();
                ours == netns.ip_json(&format!("{object} show"))
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_of_an_asker_who_leaves_in_the_middle_of_a_dump_is_closed() {
    let Some(netns) = Netns::new("gone") else { return };
    netns.addresses(3_000);
    let mut options = NodeOptions::default();
    options.outbox_bytes_max = 32 << 10;
    options.reply_hold_max = PATIENCE;
    let served = serve_with(&netns, options, |_| ()).await;
    let before = netns.sockets(NETLINK_ROUTE);
    for round in 1..=3 {
        let mut client = Original::connect(&served.unix);
        for number in 1..=3 {
            client.send(&frame(number, &dump(GETADDR, number, 0)));
        }
        wait_until("a dump is held back", || served.node.counters().held >= round);
        assert_eq!(netns.sockets(NETLINK_ROUTE).len(), before.len() + 1);
        drop(client);
        wait_until("the socket is closed", || netns.sockets(NETLINK_ROUTE) == before);
    }
    let endpoint = served.endpoint().await;
    assert_eq!(addresses(&ask(&endpoint, &dump(GETADDR, 1, 1)).await.unwrap()).len(), 3_001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_and_never_reads_is_held_back_alone_and_loses_nothing() {
    /// Far more than all the room that there is on the way.
    const TOO_MANY: u32 = 40_000;
    let Some(netns) = Netns::new("held") else { return };
    let mut options = NodeOptions::default();
    options.outbox_bytes_max = 256 << 10;
    options.reply_hold_max = 4 * PATIENCE;
    let served = serve_with(&netns, options, |_| ()).await;
    let mut socket = served.unix_stream();
    socket.set_nonblocking(true).unwrap();
    let mut sent = 0;
    loop {
        match socket.write(&frame(sent, &link(1, sent, 5))) {
            Ok(written) => assert_eq!(written, 60),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if served.node.counters().held > 0 {
                    break;
                }
                std::thread::yield_now();
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        sent += 1;
        assert!(sent < TOO_MANY, "is not held back");
    }
    let endpoint = served.endpoint().await;
    for sequence in 0..200 {
        assert_eq!(indexes(&ask(&endpoint, &link(1, sequence, 5)).await.unwrap()), [1]);
    }
    socket.set_nonblocking(false).unwrap();
    let mut client = Original::over_unix(socket);
    for sequence in 0..sent {
        let reply = client.receive();
        assert_eq!(head(&reply).sequence, sequence);
        assert_eq!(Header::parse(payload(&reply)).unwrap().sequence, sequence);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_asker_more_than_the_limit_is_refused_until_another_has_left() {
    let Some(netns) = Netns::new("limit") else { return };
    let options = NodeOptions::default();
    let served = serve_with(&netns, options, |kernel| kernel.askers_max = Some(2)).await;
    let [first, second, third] =
        [served.endpoint().await, served.endpoint().await, served.endpoint().await];
    for endpoint in [&first, &second] {
        ask(endpoint, &link(1, 1, 1)).await.unwrap();
    }
    let refused = ask(&third, &link(1, 1, 1)).await.unwrap_err();
    assert_eq!(refused.errno(), Some(errno::EMFILE));
    ask(&first, &link(1, 1, 1)).await.unwrap();
    assert_eq!(netns.sockets(NETLINK_ROUTE).len(), 3);

    drop(first);
    wait_until("the first has left", || netns.sockets(NETLINK_ROUTE).len() == 2);
    assert_eq!(indexes(&ask(&third, &link(1, 1, 1)).await.unwrap()), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_families_are_served_beside_and_an_impossible_one_is_refused() {
    const NETLINK_AUDIT: u16 = 9;
    const KOBJECT_UEVENT: u16 = 15;
    const GETFAMILY: u8 = 3;
    let Some(netns) = Netns::new("families") else { return };
    let served = serve(&netns).await;
    assert_eq!(served.add("generic", NETLINK_GENERIC).await, 0x0001_0004);
    assert_eq!(served.add("audit", NETLINK_AUDIT).await, 0x0001_0005);
    assert_eq!(served.add("uevent", KOBJECT_UEVENT).await, 0x0001_0006);
    let local = Endpoint::attach(&served.node).unwrap();
    let impossible = served.kernel.as_ref().unwrap().serve(&local, "none", 99).await;
    assert!(matches!(impossible, Err(KernelError::Socket { protocol: 99, .. })));

    let endpoint = served.endpoint().await;
    let families = MessageBuilder::new(16, nlm::REQUEST | nlm::DUMP).body(&[GETFAMILY, 2, 0, 0]);
    let replies = endpoint.request("generic", &families.sequence(3).finish()).await.unwrap();
    let replies = replies.collect().await.unwrap();
    let named = |reply: &Reply| reply.bytes().windows(7).any(|name| name == b"nlctrl\0");
    assert!(replies.iter().any(named));
    assert!(replies.iter().all(|reply| reply.header().sequence == 3));
    assert_eq!(indexes(&ask(&endpoint, &link(1, 1, 1)).await.unwrap()), [1]);
}

/// The room is taken away where the kernel looks: from the socket's receive buffer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_the_kernel_had_no_room_for_end_with_an_overrun() {
    let Some(netns) = Netns::new("overrun") else { return };
    let served = serve(&netns).await;
    let endpoint = served.endpoint().await;
    ask(&endpoint, &link(1, 1, 1)).await.unwrap();
    for socket in netns.descriptors(NETLINK_ROUTE) {
        set_socket_recv_buffer_size(&socket, 1).unwrap();
    }
    // the kernel answers all of them before anybody can read
    let many: Vec<u8> = (1..=50).flat_map(|sequence| link(1, sequence, 9)).collect();
    let mut replies = request(&endpoint, &many).await;
    assert!(matches!(replies.next().await, Some(Err(RequestError::Overrun))));
    for sequence in 100..120 {
        let replies = ask(&endpoint, &link(1, sequence, 9)).await.unwrap();
        assert_eq!(indexes(&replies), [1]);
        assert_eq!((replies[0].header().sequence, replies[0].header().pid), (sequence, 9));
    }

    let mut client = Original::connect(&served.unix);
    client.ask(&frame(1, &link(1, 1, 9)));
    for socket in netns.descriptors(NETLINK_ROUTE) {
        set_socket_recv_buffer_size(&socket, 1).unwrap();
    }
    client.send(&frame(2, &many));
    client.send(&frame(3, &link(1, 60, 9)));
    let mut overruns = 0;
    loop {
        let frame = client.receive();
        let header = Header::parse(payload(&frame)).unwrap();
        assert_eq!(header.pid, 9, "its own numbers, whatever it is");
        if head(&frame).sequence == 3 {
            assert_eq!((header.kind, header.sequence), (NEWLINK, 60));
            break;
        }
        assert!((1..=50).contains(&header.sequence));
        overruns += usize::from(header.kind == nlm::OVERRUN);
    }
    assert!(overruns > 0);
}
