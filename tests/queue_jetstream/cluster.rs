//! A cluster of three servers, of which one is killed.

use std::collections::BTreeSet;

use nlbus::service::queue::{Client, Message, OutMessage, QueueOptions, SubscribeOptions};
use nlbus::store::SendId;

use crate::support_nats::{Nats, in_time, next};
use crate::{is_away, until_done};

/// Sends a message until the cluster has it.
async fn send(client: &Client, sequence: u64) {
    let send_id = SendId { sender: 9, sequence };
    let message = OutMessage::new(sequence.to_string()).send_id(send_id);
    until_done(|| client.send("q", message.clone())).await;
}

#[tokio::test]
async fn a_queue_on_three_servers_outlives_any_one_of_them_while_it_is_used() {
    let Some(mut servers) = Nats::start_cluster().await else { return };
    let first = servers[0].broker_of_cluster(3).await;
    let second = servers[1].broker_of_cluster(3).await;
    let (sender, receiver) = (first.client().await, second.client().await);
    let options = QueueOptions::default().lease_ms(2_000);
    until_done(|| sender.create("q", Some(options.clone()))).await;
    let credit = SubscribeOptions::default().credit(16);
    let mut consumer = receiver.subscribe("q", credit).await.unwrap();
    let mut seen = Seen::default();
    let mut sent = 0;
    // the server of the sender's broker, then, with that one back, the server of the receiver's
    for killed in [0, 1] {
        for _ in 0..50 {
            sent += 1;
            send(&sender, sent).await;
        }
        servers[killed].kill();
        let more = tokio::spawn({
            let sender = sender.clone();
            async move {
                for sequence in sent + 1..=sent + 50 {
                    send(&sender, sequence).await;
                }
            }
        });
        sent += 50;
        while seen.acked.union(&seen.unsure).count() < sent as usize {
            let message = next(&mut consumer).await;
            seen.ack(&receiver, &message).await;
        }
        in_time(more).await.unwrap();
        servers[killed].start_again();
    }
    in_time(async {
        loop {
            tokio::select! {
                message = next(&mut consumer) => seen.ack(&receiver, &message).await,
                () = empty(&receiver) => break,
            }
        }
    })
    .await;
    let all: BTreeSet<u64> = seen.acked.union(&seen.unsure).copied().collect();
    assert_eq!(all, (1..=sent).collect());
}

/// What became of the messages that were received.
#[derive(Default)]
struct Seen {
    acked: BTreeSet<u64>,
    /// The cluster did not say: it may have taken the acknowledgement all the same.
    unsure: BTreeSet<u64>,
}

impl Seen {
    async fn ack(&mut self, client: &Client, message: &Message) {
        let number: u64 = str::from_utf8(message.payload()).unwrap().parse().unwrap();
        assert!(!self.acked.contains(&number), "{number} came after it was acknowledged");
        match client.ack(message).await {
            Ok(()) => self.acked.insert(number),
            Err(error) => {
                is_away(&error);
                self.unsure.insert(number)
            }
        };
    }
}

/// Waits until nothing is in the queue.
async fn empty(client: &Client) {
    while client.list("q", false).await.map_or(true, |queues| queues[0].messages > 0) {
        tokio::task::yield_now().await;
    }
}
