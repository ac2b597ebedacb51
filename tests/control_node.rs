//! Commands to a node over real sockets: what they do, and what they answer when they cannot.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_node;

use std::collections::HashMap;
use std::time::Duration;

use nlbus::broker::{Access, Rights};
use nlbus::endpoint::{Endpoint, Filter, RequestError};
use nlbus::node::{AccessList, ControlOptions, NodeOptions, Wish};
use nlbus::url::BusUrl;
use nlbus::wire::{Command, ControlAttribute, Key, errno, kind, right};
use rustix::process::geteuid;
use support_node::chain::{down, link, refused, trusting, uplink};
use support_node::frames::{Said, control, message};
use support_node::peer::{Peer, Server, until, within};
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;

const SECRET: &[u8] = b"0123456789abcdef";

fn url(text: &str) -> BusUrl {
    text.parse().unwrap()
}

/// A server, and an endpoint on its unix socket, which may do everything.
async fn owned() -> (Server, Endpoint) {
    let server = Server::start(NodeOptions::default()).await;
    let endpoint = Endpoint::connect(&server.unix).await.unwrap();
    (server, endpoint)
}

// --- REGISTER ---

#[tokio::test]
async fn the_secret_gives_a_link_the_right_to_control_until_it_gives_that_back() {
    let server = Server::start(NodeOptions::default()).await;
    let endpoint = server.connect().await;
    assert_eq!(refused(endpoint.register(SECRET).await), errno::EPERM, "there is none");
    server.node.set_secret(Some(SECRET));
    assert_eq!(refused(endpoint.stats().await), errno::EPERM);
    assert_eq!(refused(endpoint.register(b"0123456789abcdeF").await), errno::EPERM);
    assert_eq!(refused(endpoint.stats().await), errno::EPERM);
    endpoint.register(SECRET).await.unwrap();
    endpoint.stats().await.unwrap();
    endpoint.open().stats().await.unwrap();
    assert_eq!(refused(server.connect().await.stats().await), errno::EPERM, "each link its own");
    server.node.set_secret(None);
    endpoint.stats().await.unwrap();
    endpoint.unregister().await.unwrap();
    assert_eq!(refused(endpoint.stats().await), errno::EPERM);
    assert_eq!(refused(endpoint.register(SECRET).await), errno::EPERM, "it is forgotten");
}

// --- CONNECT and DISCONNECT ---

#[tokio::test]
async fn a_broker_that_is_connected_to_is_reached_by_name_until_it_is_disconnected() {
    let (near, endpoint) = owned().await;
    let far = Server::start(NodeOptions::default()).await;
    far.echo("echo").await;
    for to in far.urls() {
        let address = endpoint.connect_broker(to, Some("far"), None).await.unwrap();
        let [uplink] = &endpoint.uplinks().await.unwrap()[..] else { panic!("one") };
        assert_eq!((uplink.name.as_str(), uplink.url.as_str()), ("far", &*to.to_string()));
        assert_eq!(uplink.address, address);
        assert!(uplink.link.is_some(), "it is up when that is answered");
        let payload = message(0, 1, b"there and back");
        let replies = endpoint.request("echo@far", &payload).await.unwrap();
        assert_eq!(within(replies.collect()).await.unwrap()[0].bytes(), &payload);
        // the uplink's own address stands for the other broker's first subsystem
        let replies = endpoint.request(address, &payload).await.unwrap();
        assert_eq!(within(replies.collect()).await.unwrap()[0].bytes(), &payload);
        let taken = endpoint.connect_broker(to, Some("far"), None).await;
        assert_eq!(refused(taken), errno::EEXIST);

        endpoint.disconnect_broker(address).await.unwrap();
        assert_eq!(endpoint.uplinks().await.unwrap(), []);
        until(|| far.node.counters().links == 1).await;
        assert_eq!(refused(endpoint.disconnect_broker(address).await), errno::ENOENT);
    }
    assert_eq!(near.node.counters().links, 1, "the asker's own");
}

#[tokio::test]
async fn uplinks_without_a_name_are_called_uplink_and_uplink2() {
    let (_near, endpoint) = owned().await;
    let far = Server::start(NodeOptions::default()).await;
    for _ in 0..2 {
        endpoint.connect_broker(&far.tcp, None, None).await.unwrap();
    }
    let names: Vec<_> = endpoint.uplinks().await.unwrap().into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["uplink", "uplink2"]);
}

#[tokio::test]
async fn connecting_to_what_is_not_there_says_why_and_leaves_nothing_behind() {
    let (_near, endpoint) = owned().await;
    let nobody = {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("tcp://{}", taken.local_addr().unwrap())
    };
    for (to, name, wanted) in [
        (nobody.as_str(), None, errno::ECONNREFUSED),
        ("unix:///nowhere/x.sock", None, errno::ENOENT),
        ("tcp://no-such-host.invalid:9824", None, errno::EHOSTUNREACH),
        ("tls://127.0.0.1:1", None, errno::EINVAL),
        ("udp://127.0.0.1:1", None, errno::EPROTONOSUPPORT),
    ] {
        let outcome = endpoint.connect_broker(&url(to), name, None).await;
        let errno = refused(outcome);
        // a machine whose resolver does not answer
        let unresolved = to.contains("invalid") && errno == errno::ETIMEDOUT;
        assert!(errno == wanted || unresolved, "{to}: {errno}");
    }
    assert_eq!(endpoint.uplinks().await.unwrap(), []);
    let far = Server::start(NodeOptions::default()).await;
    for name in ["a@b", &"x".repeat(256)] {
        let outcome = endpoint.connect_broker(&far.tcp, Some(name), None).await;
        assert_eq!(refused(outcome), errno::EINVAL, "{name}");
    }
    until(|| far.node.counters().links == 0).await;
}

#[tokio::test]
async fn an_uplink_that_waits_for_its_greeting_is_closed_when_it_is_disconnected() {
    let (near, endpoint) = owned().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = url(&format!("tcp://{}", silent.local_addr().unwrap()));
    let mut options = uplink("silent");
    options.greeting_max = Duration::from_secs(24 * 60 * 60);
    let address = near.node.uplink(&to, options).unwrap();
    let (mut socket, _) = within(silent.accept()).await.unwrap();
    // the beginning of its greeting
    within(socket.read_u8()).await.unwrap();
    endpoint.disconnect_broker(address).await.unwrap();
    within(socket.read_to_end(&mut Vec::new())).await.unwrap();
    until(|| near.node.counters().links == 1).await;
}

#[tokio::test]
async fn connecting_to_what_ends_the_connection_without_a_greeting_is_econnreset() {
    let (_near, endpoint) = owned().await;
    let rude = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = url(&format!("tcp://{}", rude.local_addr().unwrap()));
    let accepting = async { drop(within(rude.accept()).await.unwrap()) };
    let (outcome, ()) = tokio::join!(endpoint.connect_broker(&to, Some("a"), None), accepting);
    assert_eq!(refused(outcome), errno::ECONNRESET);
    assert_eq!(endpoint.uplinks().await.unwrap(), []);
    let far = Server::start(NodeOptions::default()).await;
    endpoint.connect_broker(&far.tcp, Some("a"), None).await.unwrap();
}

// --- SERVE and SHUTDOWN ---

#[tokio::test]
async fn a_url_that_is_served_works_and_one_that_is_shut_down_does_not_but_its_links_live() {
    let (server, endpoint) = owned().await;
    let address = server.echo("echo").await;
    let path = server.directory.path().join("more.sock");
    let more = url(&format!("unix://{}", path.display()));
    for _ in 0..3 {
        endpoint.listen(&more, None).await.unwrap();
        assert!(endpoint.listeners().await.unwrap().contains(&more.to_string()));
        let mut peer = Peer::dial(&more).await;
        peer.assert_served(address).await;
        assert_eq!(refused(endpoint.listen(&more, None).await), errno::EADDRINUSE);
        endpoint.unlisten(&more).await.unwrap();
        assert!(Endpoint::connect(&more).await.is_err());
        assert!(!endpoint.listeners().await.unwrap().contains(&more.to_string()));
        peer.assert_served(address).await;
        assert_eq!(refused(endpoint.unlisten(&more).await), errno::ENOENT);
    }
}

#[tokio::test]
async fn a_port_that_the_system_chose_is_listed_and_is_shut_down_by_either_name() {
    let (server, endpoint) = owned().await;
    let address = server.echo("echo").await;
    let any = url("tcp://127.0.0.1:0");
    for by_its_number in [true, false] {
        endpoint.listen(&any, None).await.unwrap();
        let all = endpoint.listeners().await.unwrap();
        let bound = url(all.last().unwrap());
        assert_ne!(bound.port(), Some(0));
        Peer::dial(&bound).await.assert_served(address).await;
        if by_its_number {
            endpoint.unlisten(&bound).await.unwrap();
        } else {
            // the server itself was started with this one too, and it came first
            endpoint.unlisten(&any).await.unwrap();
            assert!(Endpoint::connect(&server.tcp).await.is_err());
            Peer::dial(&bound).await.assert_served(address).await;
        }
    }
}

#[tokio::test]
async fn a_port_is_free_for_the_next_listener_as_soon_as_its_shutdown_is_answered() {
    let (server, endpoint) = owned().await;
    for _ in 0..100 {
        endpoint.unlisten(&server.tcp).await.unwrap();
        endpoint.listen(&server.tcp, None).await.unwrap();
    }
    assert_eq!(endpoint.listeners().await.unwrap().len(), 2);
}

#[tokio::test]
async fn strangers_are_let_in_only_by_a_node_that_was_told_to() {
    let (server, endpoint) = owned().await;
    let taken = server.tcp.to_string();
    for (at, wanted) in [
        ("tcp://0.0.0.0:0", errno::EACCES),
        ("tcp://[::]:0", errno::EACCES),
        ("udp://0.0.0.0:0", errno::EACCES),
        (taken.as_str(), errno::EADDRINUSE),
        ("tcp://192.0.2.1:0", errno::EACCES),
        ("tls://127.0.0.1:0", errno::EINVAL),
        ("unix:///nowhere/at/all.sock", errno::ENOENT),
    ] {
        assert_eq!(refused(endpoint.listen(&url(at), None).await), wanted, "{at}");
    }
    assert_eq!(endpoint.listeners().await.unwrap().len(), 2);
    let mut options = ControlOptions::default();
    options.insecure = true;
    server.node.set_control(options);
    endpoint.listen(&url("tcp://0.0.0.0:0"), None).await.unwrap();
    let elsewhere = endpoint.listen(&url("tcp://192.0.2.1:0"), None).await;
    assert_eq!(refused(elsewhere), errno::EADDRNOTAVAIL);
}

// --- LIST and STATS ---

#[tokio::test]
async fn lists_say_what_there_is() {
    let (server, endpoint) = owned().await;
    let far = Server::start(NodeOptions::default()).await;
    trusting(&far.node);
    let address = server.echo("echo").await;
    let guest = server.connect().await;
    guest.discover("echo").await.unwrap();
    let key = Key { offset: 4, key: 1, mask: 3 };
    let filter = Filter::all().key(key).group_name("alerts").from("echo");
    let _subscription = guest.subscribe(filter).await.unwrap();
    let uplink = link(&server.node, &far.tcp, uplink("far")).await;

    let links = endpoint.links().await.unwrap();
    let (guests, owners): (Vec<_>, Vec<_>) = links.iter().partition(|one| one.rights == right::USE);
    // the guest and the uplink; the endpoint, and the provider in the process
    assert_eq!((guests.len(), owners.len()), (2, 2), "{links:?}");
    assert_eq!(owners[0].right_names(), ["use", "provide", "control"]);
    let brokers: Vec<_> = links.iter().filter(|one| one.broker).collect();
    let [broker] = &brokers[..] else { panic!("{links:?}") };
    assert!(broker.peer.contains(&far.tcp.port().unwrap().to_string()), "{broker:?}");

    let subsystems = endpoint.subsystems().await.unwrap();
    let all: Vec<_> =
        subsystems.iter().map(|s| (s.name.as_str(), s.address, s.providers)).collect();
    assert_eq!(all, [("echo", address, 1), ("@far", uplink, 1)]);
    let listeners = endpoint.listeners().await.unwrap();
    assert_eq!(listeners, server.urls().map(ToString::to_string));
    let [one] = &endpoint.uplinks().await.unwrap()[..] else { panic!("one") };
    assert_eq!((one.name.as_str(), one.link), ("far", Some(broker.slot)));

    let [one] = &endpoint.subscriptions().await.unwrap()[..] else { panic!("one") };
    assert_eq!(
        (one.cid, one.subsystem, one.group.as_deref()),
        (1_023, Some(address), Some("alerts"))
    );
    assert_eq!((one.keys.as_slice(), one.hops), (&[key][..], None));
    assert!(guests.iter().any(|guest| guest.slot == one.link && !guest.broker));

    let stats: HashMap<_, _> = endpoint.stats().await.unwrap().into_iter().collect();
    assert_eq!(stats.len(), server.node.counters().named().len());
    assert_eq!(stats["links"], server.node.counters().links as u64);
    assert!(stats["control"] > 5 && stats["frames"] >= stats["control"], "{stats:?}");
}

#[tokio::test]
async fn a_list_of_many_comes_whole_over_a_socket() {
    let (server, endpoint) = owned().await;
    let name = |n: usize| format!("a-name-that-is-rather-long-for-a-name-{n:04}");
    let mut providers = Vec::new();
    let provider = Endpoint::attach(&server.node).unwrap();
    for n in 0..700 {
        providers.push(provider.open().provide(&name(n)).await.unwrap());
    }
    let all = endpoint.subsystems().await.unwrap();
    let names: Vec<_> = all.into_iter().map(|one| one.name).collect();
    assert_eq!(names, (0..700).map(name).collect::<Vec<_>>());
}

// --- what the program around the node does ---

#[tokio::test]
async fn instructions_reach_the_program_and_its_answer_the_asker() {
    let (server, endpoint) = owned().await;
    assert_eq!(refused(endpoint.stop().await), errno::EOPNOTSUPP);
    assert_eq!(refused(endpoint.reload().await), errno::EOPNOTSUPP);
    assert_eq!(refused(endpoint.log_level("debug").await), errno::EOPNOTSUPP);

    let mut instructions = server.node.instructions();
    let (outcome, ()) = tokio::join!(endpoint.reload(), async {
        let instruction = within(instructions.recv()).await.unwrap();
        assert_eq!(instruction.wish, Wish::Reload);
        instruction.answer(Ok(()));
    });
    outcome.unwrap();
    let (outcome, ()) = tokio::join!(endpoint.log_level("a=loud"), async {
        let instruction = within(instructions.recv()).await.unwrap();
        assert_eq!(instruction.wish, Wish::LogLevel("a=loud".to_owned()));
        instruction.answer(Err("loud is no level".to_owned()));
    });
    match outcome {
        Err(RequestError::Refused { errno: errno::EINVAL, text: Some(text) }) => {
            assert_eq!(text, "loud is no level");
        }
        other => panic!("{other:?}"),
    }
    // one that is dropped was not carried out
    let (outcome, ()) = tokio::join!(endpoint.reload(), async {
        drop(within(instructions.recv()).await);
    });
    assert_eq!(refused(outcome), errno::EBUSY);
    endpoint.stop().await.unwrap();
    let instruction = within(instructions.recv()).await.unwrap();
    assert_eq!(instruction.wish, Wish::Stop);
    drop(instructions);
    assert_eq!(refused(endpoint.stop().await), errno::EOPNOTSUPP);
}

#[tokio::test]
async fn instructions_that_nobody_takes_are_bounded() {
    let (server, endpoint) = owned().await;
    let mut instructions = server.node.instructions();
    let mut asking = JoinSet::new();
    for _ in 0..17 {
        let endpoint = endpoint.clone();
        asking.spawn(async move { endpoint.reload().await });
    }
    let first = within(asking.join_next()).await.unwrap().unwrap();
    assert_eq!(refused(first), errno::EBUSY);
    for _ in 0..16 {
        within(instructions.recv()).await.unwrap().answer(Ok(()));
    }
    while let Some(outcome) = within(asking.join_next()).await {
        outcome.unwrap().unwrap();
    }
}

#[tokio::test]
async fn commands_under_way_are_bounded_and_a_new_one_goes_when_one_is_answered() {
    let mut options = NodeOptions::default();
    options.orders_max = 2;
    let server = Server::start(options).await;
    let endpoint = Endpoint::connect(&server.unix).await.unwrap();
    let mut instructions = server.node.instructions();
    for _ in 0..20 {
        let (one, other, ()) = tokio::join!(endpoint.reload(), endpoint.reload(), async {
            let two = [within(instructions.recv()).await, within(instructions.recv()).await];
            assert_eq!(refused(endpoint.stats().await), errno::EBUSY);
            // what the core does by itself takes no room
            endpoint.links().await.unwrap();
            for instruction in two.into_iter().flatten() {
                instruction.answer(Ok(()));
            }
        });
        one.and(other).unwrap();
        endpoint.stats().await.unwrap();
    }
}

// --- who may ---

/// Which right each command takes.
const TABLE: [(Command, &str); 17] = [
    (Command::Connect, "control"),
    (Command::Disconnect, "control"),
    (Command::Serve, "control"),
    (Command::Shutdown, "control"),
    (Command::List, "control"),
    (Command::Stats, "control"),
    (Command::LogLevel, "control"),
    (Command::Reload, "control"),
    (Command::Stop, "control"),
    (Command::Unregister, "control"),
    (Command::Subscribe, "use"),
    (Command::Unsubscribe, "use"),
    (Command::Discover, "use"),
    (Command::Provide, "provide"),
    (Command::Remove, "provide"),
    (Command::Hello, ""),
    (Command::Release, ""),
];

#[tokio::test]
async fn each_command_takes_its_right_and_no_other() {
    let server = Server::start(NodeOptions::default()).await;
    let mut instructions = server.node.instructions();
    tokio::spawn(async move {
        while let Some(instruction) = instructions.recv().await {
            instruction.answer(Ok(()));
        }
    });
    let socket = format!("unix://{}/other.sock", server.directory.path().display());
    for granted in ["use", "provide", "control", ""] {
        let rights = Rights {
            use_bus: granted == "use",
            provide: granted == "provide",
            control: granted == "control",
        };
        let mut access = AccessList::default();
        access.users.insert(geteuid().as_raw(), Access::reading(rights));
        server.node.set_access(access);
        for (command, needed) in TABLE {
            let mut peer = Peer::dial(&server.unix).await;
            let host = match command {
                Command::Serve | Command::Shutdown => socket.as_str(),
                Command::Connect => "tcp://127.0.0.1:1",
                _ => "name",
            };
            let frame = control(0, 1, command, |c| {
                c.string(ControlAttribute::Host, host)?
                    .string(ControlAttribute::Text, "info")?
                    .u32(ControlAttribute::Addr, 0x1_0003)?
                    .u32(ControlAttribute::Cid, 70_000)?
                    .u32(ControlAttribute::Kind, kind::LINK)?
                    .u32(ControlAttribute::Version, 1)?
                    .u32(ControlAttribute::FrameMax, 20_000)
            });
            peer.send(&frame).await;
            let said = Said::of(&peer.receive().await.expect("an answer"));
            let may = needed.is_empty() || needed == granted;
            let text = said.error.clone().unwrap_or_default();
            let case = format!("{command:?} with {granted:?}: {said:?}");
            assert_eq!(said.errno != Some(errno::EPERM), may, "{case}");
            assert_eq!(text.contains(&format!("needs the right {needed:?}")), !may, "{case}");
        }
    }
}

#[tokio::test]
async fn what_was_refused_did_not_happen() {
    let server = Server::start(NodeOptions::default()).await;
    let mut instructions = server.node.instructions();
    let stranger = server.connect().await;
    let socket = url(&format!("unix://{}/other.sock", server.directory.path().display()));
    assert_eq!(refused(stranger.stop().await), errno::EPERM);
    assert_eq!(refused(stranger.reload().await), errno::EPERM);
    assert_eq!(refused(stranger.log_level("trace").await), errno::EPERM);
    assert_eq!(refused(stranger.listen(&socket, None).await), errno::EPERM);
    assert_eq!(refused(stranger.unlisten(&server.unix).await), errno::EPERM);
    assert_eq!(refused(stranger.connect_broker(&server.unix, None, None).await), errno::EPERM);
    assert_eq!(refused(stranger.disconnect_broker(0x1_0003).await), errno::EPERM);
    assert!(instructions.try_recv().is_err());
    let owner = Endpoint::connect(&server.unix).await.unwrap();
    assert_eq!(owner.listeners().await.unwrap(), server.urls().map(ToString::to_string));
    assert_eq!(owner.uplinks().await.unwrap(), []);
    // and one that is gone makes no sense for whoever comes into its place
    let address = owner.connect_broker(&server.unix, Some("itself"), None).await.unwrap();
    owner.disconnect_broker(address).await.unwrap();
    down(&owner, address).await;
}
