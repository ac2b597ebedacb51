//! Messages that come back, and those that nobody had.

use std::collections::BTreeSet;

use bytes::Bytes;
use nlbus::service::queue::{OutMessage, QueueOptions, SubscribeOptions};
use nlbus::wire::errno;

use crate::support_nats::{in_time, next};
use crate::{nats, now, waiting};

fn to_the_dead(attempts_max: u32) -> QueueOptions {
    QueueOptions::default().dead_letter(Some("dead".to_owned())).attempts_max(attempts_max)
}

#[tokio::test]
async fn a_message_that_no_consumer_saw_does_not_go_to_the_dead_letters() {
    let nats = nats!();
    let broker = nats.broker().await;
    let client = broker.client().await;
    for queue in ["m1", "m2"] {
        let options = to_the_dead(1).lease_ms(3_600_000);
        client.create(queue, Some(options)).await.unwrap();
    }
    for round in 0..20 {
        let receiver = client.clone();
        let blocked = tokio::spawn(async move { receiver.receive(&["m1", "m2"], waiting()).await });
        while client.list("m", true).await.unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
        // what comes from the other one at the same time was never given to anybody
        let (one, two) = tokio::join!(client.send("m1", "a"), client.send("m2", "b"));
        assert!(one.is_ok() && two.is_ok());
        let mut got = in_time(blocked).await.unwrap().unwrap();
        got.extend(in_time(client.receive(&["m1", "m2", "dead"], waiting())).await.unwrap());
        let queues: BTreeSet<&str> = got.iter().map(|message| &*message.queue).collect();
        assert_eq!(queues, BTreeSet::from(["m1", "m2"]), "in round {round}");
        for message in &got {
            client.ack(message).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_message_whose_holders_do_nothing_goes_to_the_dead_letters() {
    let nats = nats!();
    let broker = nats.broker().await;
    let client = broker.client().await;
    client.create("q", Some(to_the_dead(2).lease_ms(400))).await.unwrap();
    let mut consumer = client.subscribe("q", SubscribeOptions::default()).await.unwrap();
    client.send("q", "poison").await.unwrap();
    let attempts = [next(&mut consumer).await.attempt, next(&mut consumer).await.attempt];
    assert_eq!(attempts, [1, 2]);
    let dead = in_time(client.receive(&["dead"], waiting())).await.unwrap();
    assert_eq!(dead[0].payload(), "poison");
    while client.list("q", false).await.unwrap()[0].messages > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn nothing_is_left_with_a_broker_that_ends_while_messages_come() {
    let nats = nats!();
    let other = nats.broker().await;
    let sender = other.client().await;
    // what is left with it does not come back within the time of this test
    sender.create("q", Some(QueueOptions::default().lease_ms(3_600_000))).await.unwrap();
    for round in 0..4 {
        let ends = nats.broker().await;
        let client = ends.client().await;
        let credit = SubscribeOptions::default().credit(64);
        let mut consumers = Vec::new();
        for _ in 0..8 {
            consumers.push(client.subscribe("q", credit).await.unwrap());
        }
        let many = sender.clone();
        let sending = tokio::spawn(async move {
            for n in 0..600 {
                many.send("q", OutMessage::new(n.to_string())).await.unwrap();
            }
        });
        let mut seen: BTreeSet<Bytes> = BTreeSet::new();
        while seen.len() < 20 {
            let message = next(&mut consumers[0]).await;
            client.ack(&message).await.unwrap();
            seen.insert(message.payload().clone());
        }
        ends.end().await;
        in_time(sending).await.unwrap();
        in_time(async {
            while sender.list("q", false).await.unwrap()[0].messages > 0 {
                for message in sender.receive(&["q"], now()).await.unwrap() {
                    if let Err(error) = sender.ack(&message).await {
                        // the server gave it twice when its taker went
                        assert_eq!(error.errno(), Some(errno::ENOENT), "{error}");
                        assert!(seen.contains(message.payload()));
                    }
                    seen.insert(message.payload().clone());
                }
            }
        })
        .await;
        assert_eq!(seen.len(), 600, "in round {round}");
    }
}
