//! Pullers that share a name, one of which does not read.

mod support_node;

use std::collections::HashSet;
use std::time::Duration;

use nlbus::endpoint::{Endpoint, Puller};
use nlbus::node::{AccessList, Node, NodeOptions};
use nlbus::transport::ListenOptions;
use nlbus::url::BusUrl;
use support_node::peer::within;

const PUSHES: u32 = 4_000;
/// Pushed at the end, often enough for each puller that reads to get one.
const END: u32 = u32::MAX;

const BODY_BYTES: usize = 8_000;

/// Far less than is pushed, so that one that does not read cannot hold its share of it.
const OUTBOX_BYTES_MAX: usize = 512 * 1_024;

async fn bus() -> (Node, BusUrl) {
    let mut options = NodeOptions::default();
    options.outbox_bytes_max = OUTBOX_BYTES_MAX;
    let node = Node::new(options);
    let mut access = AccessList::default();
    access.anonymous.rights.provide = true;
    node.set_access(access);
    let url = "tcp://127.0.0.1:0".parse().unwrap();
    let bound = node.listen(&url, &ListenOptions::default()).await.unwrap();
    (node, bound)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stalled_puller_does_not_take_goes_to_those_who_share_its_name() {
    let (_node, url) = bus().await;
    let mut pullers: Vec<Puller> = Vec::new();
    for _ in 0..3 {
        let endpoint = within(Endpoint::connect(&url)).await.unwrap();
        pullers.push(within(endpoint.pull("jobs")).await.unwrap());
    }
    let stalled = pullers.pop().unwrap();
    let pusher = within(Endpoint::connect(&url)).await.unwrap();
    let pushing = tokio::spawn(async move {
        for number in 0..PUSHES {
            let mut body = vec![0; BODY_BYTES];
            body[..4].copy_from_slice(&number.to_le_bytes());
            pusher.push("jobs", &body).await.unwrap();
        }
        for _ in 0..10 {
            pusher.push("jobs", &END.to_le_bytes()).await.unwrap();
        }
        pusher.flush(Duration::from_secs(60)).await.unwrap();
    });
    let pulled = pullers.into_iter().map(|mut puller| {
        tokio::spawn(async move {
            let mut numbers = Vec::new();
            while let Some(message) = puller.next().await {
                match u32::from_le_bytes(message.body[..4].try_into().unwrap()) {
                    END => break,
                    number => numbers.push(number),
                }
            }
            numbers
        })
    });
    let pulled: Vec<_> = pulled.collect();
    within(pushing).await.unwrap();
    let mut healthy = HashSet::new();
    for puller in pulled {
        let numbers = within(puller).await.unwrap();
        assert!(numbers.is_sorted(), "in order for each");
        assert!(numbers.len() > PUSHES as usize / 4, "both have their share: {}", numbers.len());
        healthy.extend(numbers);
    }
    drop(stalled);
    let missing = PUSHES as usize - healthy.len();
    assert!(missing > 0, "the stalled one was given something before it stalled");
    // outbox, the run that passed it, and both sockets' buffers
    assert!(missing * BODY_BYTES < 12 << 20, "{missing} are with the stalled one");
}
