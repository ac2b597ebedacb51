//! Who may have a kernel changed that is behind another broker.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_kernel;
mod support_node;

use nlbus::broker::{Access, Names, Rights};
use nlbus::endpoint::{Endpoint, RequestOptions};
use nlbus::node::{AccessList, Node, NodeOptions};
use nlbus::service::netlink::{Kernel, KernelOptions, NETLINK_ROUTE};
use nlbus::wire::{errno, mode};
use support_kernel::PATIENCE;
use support_kernel::message::{GETLINK, add_address, dump};
use support_kernel::netns::{Netns, address};
use support_kernel::served::{Served, serve, serve_nothing};
use support_node::chain::{eventually, export, link, trusting, uplink};
use support_node::peer::within;

/// Outcome of a request for `name`: the error number if it was refused.
async fn ask(endpoint: &Endpoint, name: &str, message: &[u8]) -> Result<(), i32> {
    let options = RequestOptions::default().deadline(PATIENCE);
    let replies = endpoint.request_with(name, message, options).await;
    let outcome = match replies {
        Ok(replies) => within(replies.collect()).await.map(drop),
        Err(error) => Err(error),
    };
    outcome.map_err(|error| error.errno().unwrap_or_else(|| panic!("{error}")))
}

/// A second kernel behind `served`, for who may write.
async fn serve_writers(netns: &Netns, served: &Served) -> Kernel {
    let mut options = KernelOptions::default();
    options.netns = Some(netns.name().to_owned());
    options.allow_write = true;
    let kernel = Kernel::open(&options).unwrap();
    let endpoint = Endpoint::attach(&served.node).unwrap();
    kernel.serve_writers(&endpoint, "route", NETLINK_ROUTE).await.unwrap();
    kernel
}

fn may_use(write: Names) -> Access {
    Access { rights: Rights::USE, read: Names::All, write }
}

fn only(name: &str) -> Names {
    Names::Only([name.to_owned()].into())
}

/// `own` is what the test's own unix sockets get, `anonymous` what comes over TCP.
fn access(node: &Node, own: Access, anonymous: Access) {
    node.set_access(AccessList { own, anonymous, ..AccessList::default() });
}

fn has(netns: &Netns, number: u32) -> bool {
    netns.ip_json("addr").to_string().contains(&address(number).to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exported_kernel_is_changed_only_if_the_export_says_so_and_the_hub_too() {
    let Some(netns) = Netns::new("export") else { return };
    let index = netns.veth("v");
    let edge = serve(&netns).await;
    let _kernel = serve_writers(&netns, &edge).await;
    let hub = serve_nothing(NodeOptions::default()).await;
    trusting(&hub.node);
    for (number, writes, name) in [(1, false, "route@reader"), (2, true, "route@writer")] {
        let mut options = uplink(if writes { "w" } else { "r" });
        let mut exported = export("route", name);
        exported.mode = if writes { mode::WRITE } else { 0 };
        options.exports = vec![exported];
        if writes {
            options.access =
                Some(Access { rights: Rights::USE, read: only("route"), write: only("route") });
        }
        link(&edge.node, &hub.tcp, options).await;
        let asker = hub.endpoint().await;
        eventually(async || asker.discover(name).await.ok()).await;
        if !writes {
            assert_eq!(ask(&asker, name, &dump(GETLINK, 1, 0)).await, Ok(()));
            let refused = ask(&asker, name, &add_address(index, address(number))).await;
            assert_eq!((refused, has(&netns, number)), (Err(errno::EPERM), false));
            continue;
        }
        access(&hub.node, may_use(only(name)), may_use(Names::None));
        let writer = hub.endpoint().await;
        assert_eq!(ask(&writer, name, &add_address(index, address(number))).await, Ok(()));
        assert!(has(&netns, number));
        let reader = Endpoint::connect(&hub.tcp).await.unwrap();
        let refused = ask(&reader, name, &add_address(index, address(3))).await;
        assert_eq!((refused, has(&netns, 3)), (Err(errno::EPERM), false));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_far_broker_lets_this_one_change_is_for_its_writers_only_where_that_is_said() {
    let Some(netns) = Netns::new("writers") else { return };
    let index = netns.veth("v");
    let far = serve(&netns).await;
    let _kernel = serve_writers(&netns, &far).await;
    // the far broker sees one link, and lets it do everything
    trusting(&far.node);
    let near = serve_nothing(NodeOptions::default()).await;
    let mut options = uplink("far");
    options.writes = true;
    link(&near.node, &far.tcp, options).await;
    access(&near.node, may_use(only("route@far")), may_use(Names::None));
    let (writer, reader) = (near.endpoint().await, Endpoint::connect(&near.tcp).await.unwrap());
    eventually(async || writer.discover("route@far").await.ok()).await;
    for message in [add_address(index, address(1)), dump(GETLINK, 1, 0)] {
        assert_eq!(ask(&reader, "route@far", &message).await, Err(errno::EPERM));
        assert_eq!(ask(&reader, "@far", &message).await, Err(errno::EPERM));
    }
    assert!(!has(&netns, 1));
    assert_eq!(ask(&writer, "route@far", &add_address(index, address(1))).await, Ok(()));
    assert!(has(&netns, 1));
    // without that, whoever may use the near broker has its rights at the far one
    link(&near.node, &far.tcp, uplink("open")).await;
    eventually(async || reader.discover("route@open").await.ok()).await;
    assert_eq!(ask(&reader, "route@open", &add_address(index, address(2))).await, Ok(()));
    assert!(has(&netns, 2));
}
