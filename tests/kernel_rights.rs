//! What askers may change: nothing, unless it is allowed; and that it is the kernel who says so.

#![allow(clippy::unwrap_used)] // helpers fail as the tests do that call them

mod support_kernel;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;

use nlbus::endpoint::{Endpoint, RequestError};
use nlbus::service::netlink::NETLINK_ROUTE;
use nlbus::wire::errno;
use serde_json::Value;
use support_kernel::message::{
    GETLINK, add_address, add_pfifo, add_route, add_veth, delete_link, dump, set_up,
};
use support_kernel::netns::{Netns, address};
use support_kernel::raw::{Raw, Send, give_up_capabilities};
use support_kernel::served::{Served, ask, serve, serve_writable};

const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);

/// Something that only who has CAP_NET_ADMIN may do.
struct Change {
    what: &'static str,
    message: Vec<u8>,
    /// Whether it is done, as the kernel sees it.
    done: fn(&Netns) -> bool,
}

fn any(list: &Value, matches: impl Fn(&Value) -> bool) -> bool {
    list.as_array().unwrap().iter().any(matches)
}

fn has_link(netns: &Netns, name: &str) -> bool {
    any(&netns.ip_json("link"), |link| link["ifname"] == name)
}

fn has_address(netns: &Netns, address: Ipv4Addr) -> bool {
    let has = |info: &Value| info["local"] == address.to_string();
    any(&netns.ip_json("addr"), |link| any(&link["addr_info"], has))
}

fn is_up(netns: &Netns) -> bool {
    any(&netns.ip_json("link show v"), |link| any(&link["flags"], |flag| flag == "UP"))
}

fn has_route(netns: &Netns) -> bool {
    any(&netns.ip_json("route"), |route| route["dst"] == DESTINATION.to_string())
}

fn has_pfifo(netns: &Netns) -> bool {
    any(&netns.tc_json("qdisc"), |qdisc| qdisc["dev"] == "v" && qdisc["kind"] == "pfifo")
}

/// One change of each kind; makes what they are about.
fn changes(netns: &Netns) -> Vec<Change> {
    let (index, old) = (netns.veth("v"), netns.veth("old"));
    let change = |what, message, done| Change { what, message, done };
    vec![
        change("a new link", add_veth("new", "newp"), |n| has_link(n, "new")),
        change("a link set up", set_up(index), is_up),
        change("a new address", add_address(index, address(1)), |n| has_address(n, address(1))),
        change("a new route", add_route(index, DESTINATION), has_route),
        change("a new qdisc", add_pfifo(index), has_pfifo),
        change("a deleted link", delete_link(old), |n| !has_link(n, "old")),
    ]
}

/// Everything that the changes could touch.
fn state(netns: &Netns) -> [Value; 5] {
    let ip = |arguments| netns.ip_json(arguments);
    let routes = [ip("route show table all"), ip("-6 route show table all")];
    let [ipv4, ipv6] = routes;
    [ip("-d link"), ip("addr"), ipv4, ipv6, netns.tc_json("qdisc")]
}

async fn make(endpoint: &Endpoint, change: &[u8]) -> Result<(), i32> {
    match ask(endpoint, change).await {
        Ok(replies) => {
            assert!(replies.is_empty(), "a change is acknowledged and no more");
            Ok(())
        }
        Err(RequestError::Refused { errno, .. }) => Err(errno),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_is_refused_while_askers_may_only_read_and_nothing_is_changed() {
    let Some(netns) = Netns::new("refused") else { return };
    let changes = changes(&netns);
    let before = state(&netns);
    let served = serve(&netns).await;
    let endpoint = served.endpoint().await;
    for Change { what, message, done } in &changes {
        assert_eq!(make(&endpoint, message).await, Err(errno::EPERM), "{what}");
        assert!(!done(&netns), "{what}");
    }
    assert_eq!(state(&netns), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_works_if_askers_may_write() {
    let Some(netns) = Netns::new("allowed") else { return };
    let changes = changes(&netns);
    let served = serve_writable(&netns).await;
    let endpoint = served.endpoint().await;
    for Change { what, message, done } in &changes {
        assert!(!done(&netns), "{what}");
        assert_eq!(make(&endpoint, message).await, Ok(()), "{what}");
        assert!(done(&netns), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_among_reads_in_one_payload_is_refused_alone() {
    let Some(netns) = Netns::new("among") else { return };
    let index = netns.veth("v");
    let served = serve(&netns).await;
    let mut endpoint = support_kernel::original::Original::connect(&served.unix);
    let payload = [add_address(index, address(1)), dump(GETLINK, 2, 0)].concat();
    let frames = endpoint.ask(&support_kernel::original::frame(1, &payload));
    let refused = support_kernel::raw::header(support_kernel::original::payload(&frames[0]));
    assert_eq!(refused.kind, nlbus::wire::nlm::ERROR);
    assert!(!has_address(&netns, address(1)));
}

/// The rule that both fences of the product are for (`netlink_ns_capable`, net/netlink/af_netlink.c):
/// both who opened a socket and who sends need CAP_NET_ADMIN, but with a destination address Linux does
/// not look at who opened it.
#[test]
fn the_kernel_forgets_who_opened_a_socket_if_a_message_has_a_destination_address() {
    let Some(netns) = Netns::new("trap") else { return };
    let index = netns.veth("v");
    let opened = |privileged: bool| {
        netns.inside(|| {
            if !privileged {
                give_up_capabilities();
            }
            Raw::open(NETLINK_ROUTE)
        })
    };
    let (privileged, without) = (true, false);
    let refused = Err(errno::EPERM);
    let rule = [
        (without, privileged, Send::ToTheKernel, Ok(())),
        (without, privileged, Send::WithoutAddress, refused),
        (privileged, without, Send::ToTheKernel, refused),
        (privileged, without, Send::WithoutAddress, refused),
        (without, without, Send::ToTheKernel, refused),
        (without, without, Send::WithoutAddress, refused),
        (privileged, privileged, Send::ToTheKernel, Ok(())),
        (privileged, privileged, Send::WithoutAddress, Ok(())),
    ];
    for (number, (opener, sender, how, expected)) in (1..).zip(rule) {
        let mut socket = opened(opener);
        let change = add_address(index, address(number));
        let outcome = std::thread::scope(|scope| {
            let send = || {
                if !sender {
                    give_up_capabilities();
                }
                socket.change(change, how)
            };
            scope.spawn(send).join().unwrap()
        });
        let case = format!("opener {opener}, sender {sender}, {how:?}");
        assert_eq!(outcome, expected, "{case}");
        assert_eq!(has_address(&netns, address(number)), expected.is_ok(), "{case}");
    }
}

/// The half of the rule that no request can show, as long as the other half holds.
#[test]
fn nothing_in_the_kernel_subsystem_sends_with_a_destination_address() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/service/netlink");
    let mut files = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let source = fs::read_to_string(&path).unwrap();
        files += 1;
        for (number, line) in (1..).zip(source.lines()) {
            let code = line.split("//").next().unwrap();
            for word in ["sendto", "send_to", "sendmsg", "connect", "SocketAddr"] {
                assert!(!code.contains(word), "{}:{number}: {word}", path.display());
            }
        }
    }
    assert!(files >= 5, "the files are where they were");
}

/// A thread of this process, as `/proc` shows it.
#[derive(Debug, PartialEq, Eq)]
struct Thread {
    netns: u64,
    capabilities: Vec<u64>,
}

fn thread(path: &str) -> Option<Thread> {
    let status = fs::read_to_string(format!("{path}/status")).ok()?;
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
    };
    let capabilities = ["CapEff", "CapPrm", "CapInh", "CapAmb"].map(value).to_vec();
    let netns = fs::metadata(format!("{path}/ns/net")).ok()?.ino();
    Some(Thread { netns, capabilities })
}

/// The threads called `netlink` that are in `netns`.
fn netlink_threads(netns: &Netns) -> Vec<Thread> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let paths = tasks.map(|task| task.unwrap().path().display().to_string());
    let netlink = paths.filter(|path| {
        fs::read_to_string(format!("{path}/comm")).is_ok_and(|name| name.trim() == "netlink")
    });
    let threads = netlink.filter_map(|path| thread(&path));
    threads.filter(|thread| thread.netns == netns.inode()).collect()
}

async fn serve_and_ask(served: &Served) {
    let endpoint = served.endpoint().await;
    assert!(!ask(&endpoint, &dump(GETLINK, 1, 1)).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_netlink_thread_gives_up_its_capabilities_and_enters_the_namespace() {
    let Some(netns) = Netns::new("thread") else { return };
    let main = format!("/proc/self/task/{}", std::process::id());
    let all = || ["/proc/thread-self", &main].map(|path| thread(path).unwrap());
    let before = all();
    assert_ne!(before[0].capabilities[0], 0, "root has capabilities");

    let served = serve(&netns).await;
    serve_and_ask(&served).await;
    let [netlink] = &netlink_threads(&netns)[..] else { panic!("one thread") };
    assert_eq!(netlink.capabilities, [0; 4]);
    assert_eq!(all(), before);
    let worker = tokio::spawn(async { thread("/proc/thread-self").unwrap() }).await.unwrap();
    assert_eq!(worker, before[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_netlink_thread_keeps_its_capabilities_if_askers_may_write() {
    let Some(netns) = Netns::new("keeps") else { return };
    let before = thread("/proc/thread-self").unwrap();
    let served = serve_writable(&netns).await;
    serve_and_ask(&served).await;
    let [netlink] = &netlink_threads(&netns)[..] else { panic!("one thread") };
    assert_eq!(netlink.capabilities, before.capabilities);
    assert_eq!(thread("/proc/thread-self").unwrap(), before);
}
