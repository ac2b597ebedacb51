//! Pullers that share a name, one of which does not read.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_node;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use nlbus::endpoint::{Endpoint, ProvideOptions, Puller};
use nlbus::node::{AccessList, LocalItem, LocalLink, LocalReceiver, Node, NodeOptions};
use nlbus::transport::ListenOptions;
use nlbus::url::BusUrl;
use nlbus::wire::{Command, ControlAttribute, EnvelopeHead, address};
use support_node::frames::{Said, control, data, head_of};
use support_node::peer::within;
use tokio::sync::watch;

const PUSHES: u32 = 16_000;
/// Pushed at the end, until each puller that reads has got one.
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
    let options = ProvideOptions::default().waiting_max(16);
    for _ in 0..3 {
        let endpoint = within(Endpoint::connect(&url)).await.unwrap();
        pullers.push(within(endpoint.pull_with("jobs", options)).await.unwrap());
    }
    let stalled = pullers.pop().unwrap();
    let pusher = within(Endpoint::connect(&url)).await.unwrap();
    let (ended, mut all_ended) = watch::channel(0);
    let ended = Arc::new(ended);
    let pushing = tokio::spawn(async move {
        for number in 0..PUSHES {
            let mut body = vec![0; BODY_BYTES];
            body[..4].copy_from_slice(&number.to_le_bytes());
            pusher.push("jobs", &body).await.unwrap();
        }
        // whose turn it is depends on who is slow, and when all have ended only the stalled one is left
        let more = async {
            loop {
                pusher.push("jobs", &END.to_le_bytes()).await.unwrap();
                pusher.flush(Duration::from_secs(60)).await.unwrap();
            }
        };
        tokio::select! {
            () = more => {}
            ended = all_ended.wait_for(|ended| *ended == 2) => drop(ended.unwrap()),
        }
    });
    let pulled = pullers.into_iter().map(|mut puller| {
        let ended = Arc::clone(&ended);
        tokio::spawn(async move {
            let mut numbers = Vec::new();
            while let Some(message) = puller.next().await {
                match u32::from_le_bytes(message.body[..4].try_into().unwrap()) {
                    END => break,
                    number => numbers.push(number),
                }
            }
            ended.send_modify(|ended| *ended += 1);
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

/// Frames that one who does not take them is given.
const CREDIT_FRAMES: usize = 3;

#[tokio::test]
async fn what_was_held_for_a_puller_that_goes_is_taken_by_another() {
    let mut options = NodeOptions::default();
    options.credit_frames_max = CREDIT_FRAMES;
    let node = Node::new(options);
    let (first, mut first_takes) = provider(&node, 1).await;
    let (_second, mut second_takes) = provider(&node, 2).await;
    let (pusher, _) = node.attach().unwrap();
    let frames = 10;
    let mut run: Vec<u8> = (0..frames)
        .flat_map(|sequence| data(head(address::SUBSYSTEM_FIRST, sequence), b"job"))
        .collect();
    let pushing = tokio::spawn(async move { pusher.send(&mut run).await });
    // both have all that they may have, and the pusher waits for one of them
    within(async {
        while node.counters().held == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(first);
    let mut sequences = Vec::new();
    while let Some(LocalItem::Frame(frame)) = within(first_takes.next()).await {
        sequences.push(head_of(&frame.bytes).sequence);
    }
    assert!(sequences.len() <= CREDIT_FRAMES);
    while sequences.len() < frames as usize {
        match within(second_takes.next()).await {
            Some(LocalItem::Frame(frame)) => sequences.push(head_of(&frame.bytes).sequence),
            _ => panic!("{sequences:?}"),
        }
    }
    sequences.sort_unstable();
    assert_eq!(sequences, (0..frames).collect::<Vec<_>>());
    assert!(within(pushing).await.unwrap());
}

fn head(dst: u32, sequence: u32) -> EnvelopeHead {
    EnvelopeHead { dst, sequence, ..EnvelopeHead::default() }
}

/// A link that provides the first subsystem.
async fn provider(node: &Node, port: u32) -> (LocalLink, LocalReceiver) {
    let (link, mut receiver) = node.attach().unwrap();
    let mut provide =
        control(port, 1, Command::Provide, |c| c.string(ControlAttribute::Host, "jobs"));
    assert!(link.send(&mut provide).await);
    let Some(LocalItem::Frame(answer)) = within(receiver.next()).await else { panic!("an answer") };
    assert_eq!(Said::of(&answer.bytes).addr, Some(address::SUBSYSTEM_FIRST));
    (link, receiver)
}
