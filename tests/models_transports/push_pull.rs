//! PUSH/PULL over streams.

use std::time::Duration;

use nlbus::endpoint::Puller;

use crate::carriers::Everywhere;
use crate::support_node::peer::within;

/// A body with a number, of this length at least.
fn body(number: usize, length: usize) -> Vec<u8> {
    let mut body = (number as u32).to_le_bytes().to_vec();
    body.resize(length.max(4), number as u8);
    body
}

fn number_of(body: &[u8]) -> usize {
    u32::from_le_bytes(*body.first_chunk().unwrap()) as usize
}

async fn take(puller: &mut Puller) -> Vec<u8> {
    within(puller.next()).await.expect("the link is up").body.to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pushed_over_each_transport_is_pulled_whole_and_in_its_order() {
    const ALL: usize = 2_000;
    let bus = Everywhere::start("order").await;
    // some do not fit one frame
    let length = |number: usize| if number % 500 == 499 { 300_000 } else { number % 50 };
    for carrier in &bus.carriers {
        let owner = bus.connect(carrier).await;
        let mut puller = owner.pull(carrier.name).await.unwrap();
        let pusher = bus.connect(carrier).await;
        let name = carrier.name;
        let pushing = tokio::spawn(async move {
            for number in 0..ALL {
                pusher.push(name, &body(number, length(number))).await.unwrap();
            }
            pusher.flush(Duration::MAX).await.unwrap();
        });
        for number in 0..ALL {
            let got = take(&mut puller).await;
            assert!(got == body(number, length(number)), "{name}: {number}: {}", number_of(&got));
        }
        within(pushing).await.unwrap();
    }
    assert_eq!(bus.node.counters().core.dropped, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pullers_share_what_is_pushed_over_each_transport() {
    const ALL: usize = 1_000;
    let bus = Everywhere::start("share").await;
    for carrier in &bus.carriers {
        let name = carrier.name;
        let mut pullers = [
            bus.connect(carrier).await.pull(name).await.unwrap(),
            bus.connect(carrier).await.pull(name).await.unwrap(),
        ];
        let pusher = bus.connect(carrier).await;
        let pushing = tokio::spawn(async move {
            for number in 0..ALL {
                let length = if number % 100 == 0 { 150_000 } else { 4 };
                pusher.push(name, &body(number, length)).await.unwrap();
            }
            pusher.flush(Duration::MAX).await.unwrap();
        });
        let (mut seen, mut counts) = (vec![false; ALL], [0; 2]);
        for _ in 0..ALL {
            let [one, two] = &mut pullers;
            let (index, message) = within(async {
                tokio::select! {
                    message = one.next() => (0, message),
                    message = two.next() => (1, message),
                }
            })
            .await;
            let number = number_of(&message.expect("the link is up").body);
            assert!(!std::mem::replace(&mut seen[number], true), "{name}: {number} twice");
            counts[index] += 1;
        }
        assert!(counts.iter().all(|count| *count > ALL / 4), "{name}: {counts:?}");
        within(pushing).await.unwrap();
    }
}

/// Under TLS the last of it may wait in the writer for a socket that is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_pushed_arrives_although_its_link_is_dropped_at_once_over_each_transport() {
    const LONG: usize = 2_000_000;
    let bus = Everywhere::start("dropped").await;
    for carrier in &bus.carriers {
        let mut puller = bus.connect(carrier).await.pull(carrier.name).await.unwrap();
        for number in 0..20 {
            let pusher = bus.connect(carrier).await;
            pusher.push(carrier.name, &body(number, LONG)).await.unwrap();
            drop(pusher);
            assert!(take(&mut puller).await == body(number, LONG), "{} {number}", carrier.name);
        }
    }
}
