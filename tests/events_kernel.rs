//! Events of a kernel in a network namespace, under many changes.

#![cfg(feature = "cli")] // The helpers start the command, too.
#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

mod support_events;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use nlbus::endpoint::{Endpoint, Event, Filter, KernelGroup, Subscription};
use nlbus::node::{Node, NodeOptions};
use nlbus::service::netlink::{Kernel, KernelOptions, NETLINK_ROUTE};
use nlbus::transport::ListenOptions;
use nlbus::wire::{Attributes, Message, MessageBuilder, Messages, nlm};
use serde_json::Value;
use support_events::{Namespace, PATIENCE};
use tokio::time::timeout;

const CHANGES: u32 = 20_000;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
/// The last route of all.
const LAST: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 255);

/// Host routes of the main table.
type Table = BTreeSet<Ipv4Addr>;

/// The n-th of the routes.
fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 1, 0, 0)) + number)
}

/// Three routes are added for one that is deleted, and one more at the end.
fn changes() -> String {
    let mut commands = String::new();
    for number in 0..CHANGES {
        let (verb, number) = if number % 4 == 3 { ("del", number - 2) } else { ("add", number) };
        writeln!(commands, "route {verb} {} dev v0", address(number)).unwrap();
    }
    writeln!(commands, "route add {LAST} dev v0").unwrap();
    commands
}

/// A kernel with a device, and somebody who hears of its routes.
struct Scene {
    namespace: Namespace,
    /// Has no part in it but to live.
    _node: Node,
    endpoint: Endpoint,
    subscription: Subscription,
}

impl Scene {
    async fn set() -> Option<Self> {
        let namespace = Namespace::new()?;
        namespace.ip("link add v0 type veth peer name v1");
        namespace.ip("link set v1 up");
        namespace.ip("link set v0 up");
        let node = Node::new(NodeOptions::default());
        let mut options = KernelOptions::default();
        options.netns = Some(namespace.name.clone());
        let kernel = Kernel::open(&options).unwrap();
        kernel.serve(&Endpoint::attach(&node).unwrap(), "route", NETLINK_ROUTE).await.unwrap();
        let url = format!("unix://@{}", namespace.name).parse().unwrap();
        node.listen(&url, &ListenOptions::default()).await.unwrap();
        let endpoint = Endpoint::connect(&url).await.unwrap();
        let filter = Filter::group(KernelGroup::Route).from("route");
        let subscription = endpoint.subscribe(filter).await.unwrap();
        Some(Self { namespace, _node: node, endpoint, subscription })
    }

    async fn next(&mut self) -> Event {
        timeout(PATIENCE, self.subscription.next()).await.expect("in time").expect("a link")
    }

    /// The table as the kernel says it is now.
    async fn dump(&self) -> Table {
        loop {
            let mut table = Table::new();
            let request = MessageBuilder::new(RTM_GETROUTE, nlm::REQUEST | nlm::DUMP)
                .body(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
                .finish();
            let mut replies = self.endpoint.request("route", &request).await.unwrap();
            let mut whole = true;
            while let Some(reply) = replies.next().await {
                let reply = reply.unwrap();
                whole &= reply.header().flags & nlm::DUMP_INTR == 0;
                apply(&mut table, &Message::parse(reply.bytes()).unwrap());
            }
            if whole {
                return table;
            }
        }
    }

    /// The table as `ip` in the namespace has it.
    fn table_of_ip(&self) -> Table {
        let routes: Value = self.namespace.ip("-j route show dev v0").parse().unwrap();
        let routes = routes.as_array().unwrap().iter();
        routes.filter_map(|route| route["dst"].as_str()?.parse().ok()).collect()
    }
}

/// Does to `table` what `message` says has happened.
fn apply(table: &mut Table, message: &Message<'_>) {
    let Some((header, attributes)) = message.body().split_first_chunk::<12>() else { return };
    let [family, length, .., main, _, _, kind, _, _, _, _] = header;
    if (*family, *length, *main, *kind) != (2, 32, 254, 1) {
        return;
    }
    let dst = Attributes::new(attributes, 0).map_while(Result::ok).find(|nla| nla.kind == 1);
    let address = dst.and_then(|dst| dst.payload.first_chunk().map(|dst| Ipv4Addr::from(*dst)));
    let address = address.expect("a host route has a destination");
    match message.header.kind {
        RTM_NEWROUTE => drop(table.insert(address)),
        RTM_DELROUTE => drop(table.remove(&address)),
        other => panic!("a message of type {other}"),
    }
}

/// The table after these events. A loss is made good by reading the table anew.
async fn follow(scene: &mut Scene, mut table: Table) -> (Table, u64, u64) {
    let (mut events, mut lost) = (0, 0);
    while !table.contains(&LAST) {
        match scene.next().await {
            Event::Message { payload, .. } => {
                for message in Messages::new(&payload) {
                    apply(&mut table, &message.unwrap());
                    events += 1;
                }
            }
            Event::Lost(count) => {
                lost += count;
                table = scene.dump().await;
            }
        }
    }
    (table, events, lost)
}

fn assert_whole(table: &Table, scene: &Scene) {
    // 15,000 added, 5,000 of them deleted, and the last
    assert_eq!(table.len(), CHANGES as usize / 2 + 1);
    assert!(*table == scene.table_of_ip(), "the table differs from that of `ip`");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_20_000_changes_a_subscriber_that_slept_has_the_table_of_the_kernel() {
    let Some(mut scene) = Scene::set().await else { return };
    tokio::task::block_in_place(|| scene.namespace.ip_batch(&changes()));
    // nobody has taken anything so far
    let (table, events, lost) = follow(&mut scene, Table::new()).await;
    println!("{events} events, {lost} lost");
    assert!(lost > 0 || events > u64::from(CHANGES), "all of it, or a mark where something lacks");
    assert_whole(&table, &scene);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_keeps_up_sees_each_of_20_000_changes() {
    let Some(mut scene) = Scene::set().await else { return };
    let commands = changes();
    let commands: Vec<&str> = commands.lines().collect();
    let mut table = Table::new();
    // in pieces that fit what may wait, and each is waited for
    for piece in commands.chunks(1_000) {
        let mark = Ipv4Addr::new(10, 254, 0, 1);
        let mut batch = piece.join("\n");
        write!(batch, "\nroute add {mark} dev v0\nroute del {mark} dev v0\n").unwrap();
        tokio::task::block_in_place(|| scene.namespace.ip_batch(&batch));
        let mut seen = false;
        while !seen || table.contains(&mark) {
            let event = timeout(Duration::from_secs(60), scene.subscription.next()).await;
            let Event::Message { payload, .. } = event.unwrap().unwrap() else { panic!("lost") };
            for message in Messages::new(&payload) {
                apply(&mut table, &message.unwrap());
                seen |= table.contains(&mark);
            }
        }
    }
    assert_whole(&table, &scene);
}
