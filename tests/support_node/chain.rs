//! Brokers that are linked to each other, in this process, over real sockets.

use std::time::Duration;

use nlbus::broker::{Access, Export};
use nlbus::endpoint::{Endpoint, RequestError, UplinkEntry};
use nlbus::node::{AccessList, Node, UplinkOptions};
use nlbus::url::BusUrl;

use super::peer::within;

/// An uplink called `name` that tries again without much ado.
pub(crate) fn uplink(name: &str) -> UplinkOptions {
    let mut options = UplinkOptions::default();
    options.name = name.to_owned();
    options.pause_min = Duration::from_millis(1);
    options.pause_max = Duration::from_millis(20);
    options
}

/// `name` here is `alias` there.
pub(crate) fn export(name: &str, alias: &str) -> Export {
    Export { name: name.to_owned(), alias: alias.to_owned(), mode: 0 }
}

/// Takes everybody who comes for a broker.
pub(crate) fn trusting(node: &Node) {
    node.set_access(AccessList {
        anonymous: Access::ALL,
        certified: Access::ALL,
        ..AccessList::default()
    });
}

/// Links `from` to `to`, and waits until that is done; the uplink's address.
pub(crate) async fn link(from: &Node, to: &BusUrl, options: UplinkOptions) -> u32 {
    let address = from.uplink(to, options).unwrap();
    let endpoint = Endpoint::attach(from).unwrap();
    up(&endpoint, address).await;
    address
}

/// Waits until the uplink at `address` is up.
pub(crate) async fn up(endpoint: &Endpoint, address: u32) {
    let is_up = |one: &UplinkEntry| one.address == address && one.link.is_some();
    uplinks_until(endpoint, |all| all.iter().any(is_up)).await;
}

/// Waits until the uplink at `address` is down.
pub(crate) async fn down(endpoint: &Endpoint, address: u32) {
    let is_up = |one: &UplinkEntry| one.address == address && one.link.is_some();
    uplinks_until(endpoint, |all| !all.iter().any(is_up)).await;
}

async fn uplinks_until(endpoint: &Endpoint, condition: impl Fn(&[UplinkEntry]) -> bool) {
    eventually(async || {
        let all = endpoint.uplinks().await.unwrap();
        condition(&all).then_some(())
    })
    .await;
}

/// Asks again and again until there is something.
pub(crate) async fn eventually<T>(mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    within(async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
}

/// The error number of what was refused.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(outcome: Result<T, RequestError>) -> i32 {
    match outcome {
        Err(RequestError::Refused { errno, .. }) => errno,
        other => panic!("{other:?}"),
    }
}
