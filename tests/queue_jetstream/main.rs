//! Queues in a NATS JetStream cluster: what programs see of them, over one broker and over several.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod alike;
#[path = "../transport/authority.rs"]
#[allow(dead_code, reason = "the tests of the transport use the rest")]
mod authority;
mod cluster;
mod failing;
mod given_back;
mod majority;
mod shared;
#[path = "../support_cli/mod.rs"]
mod support_cli;
#[path = "../support_nats/mod.rs"]
mod support_nats;

use bytes::Bytes;
use nlbus::service::queue::{Client, QueueError, ReceiveOptions};
use nlbus::wire::errno;
use support_nats::HANG;

/// A server, or the end of the test, which has been told of.
macro_rules! nats {
    () => {
        match crate::support_nats::Nats::start() {
            Some(nats) => nats,
            None => return,
        }
    };
}
use nats;

fn now() -> ReceiveOptions {
    ReceiveOptions::default().messages_max(1_000)
}

fn waiting() -> ReceiveOptions {
    now().wait(HANG)
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, QueueError>, number: i32) {
    assert_eq!(outcome.unwrap_err().errno(), Some(number));
}

/// Does it again until the cluster does it. Until then it may only say that the cluster is away.
async fn until_done<T, F>(mut call: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, QueueError>>,
{
    support_nats::in_time(async {
        loop {
            match call().await {
                Ok(done) => break done,
                Err(error) => is_away(&error),
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[track_caller]
fn is_away(error: &QueueError) {
    assert_eq!(error.errno(), Some(errno::EHOSTUNREACH), "{error}");
}

async fn names(client: &Client, prefix: &str) -> Vec<String> {
    let queues = client.list(prefix, false).await.unwrap();
    queues.into_iter().map(|queue| queue.name.to_string()).collect()
}

/// Receives until there were so many, and acknowledges each.
async fn drain(client: &Client, queue: &str, count: usize) -> Vec<Bytes> {
    let mut found = Vec::new();
    while found.len() < count {
        for message in client.receive(&[queue], waiting()).await.unwrap() {
            client.ack(&message).await.unwrap();
            found.push(message.payload().clone());
        }
    }
    found
}
