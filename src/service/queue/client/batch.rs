//! Requests that go out together: many callers, one frame. One task sends them, in their order; over the
//! next connection it begins with what had no answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::super::protocol::read_answers;
use super::connection::{Connection, Connections};
use super::error::QueueError;
use super::job::Job;
use crate::endpoint::{Answers, RequestOptions};

/// Requests in one frame.
const BATCH_MAX: usize = 256;

/// Bytes past which no further request is put into a frame.
pub(super) const BATCH_BYTES: usize = 48 << 10;

/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Puts requests together and sends them until nobody is left who asks.
pub(super) async fn run(connections: Arc<Connections>, mut jobs: mpsc::Receiver<Job>) {
    let mut batches = Batches {
        connections,
        current: 0,
        lost: 0,
        last: 0,
        unsent: BTreeMap::new(),
        under_way: JoinSet::new(),
    };
    let mut next: Option<Job> = None;
    loop {
        let first = match next.take() {
            Some(job) => job,
            None => tokio::select! {
                Some(ended) = batches.under_way.join_next() => {
                    batches.take_back(ended);
                    batches.send().await;
                    continue;
                }
                job = jobs.recv() => match job {
                    Some(job) => job,
                    None => return,
                },
            },
        };
        // whoever is ready to ask does so first: an answer to many wakes them one after the other
        tokio::task::yield_now().await;
        let mut length = first.len();
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(job) = jobs.try_recv()
        {
            length += job.len();
            if length > BATCH_BYTES {
                next = Some(job);
                break;
            }
            batch.push(job);
        }
        batches.last += 1;
        batches.unsent.insert(batches.last, batch);
        batches.send().await;
    }
}

/// A batch that was lost with its connection, by its number.
type Ended = Option<(u64, Vec<Job>)>;

struct Batches {
    connections: Arc<Connections>,
    /// The connection that was sent over last.
    current: u64,
    /// The last one that is known to have ended.
    lost: u64,
    /// The number of the last batch.
    last: u64,
    /// By their numbers.
    unsent: BTreeMap<u64, Vec<Job>>,
    /// What waits for answers, over the current connection. It takes no more than those who ask have places.
    under_way: JoinSet<Ended>,
}

impl Batches {
    /// Sends all that is not sent, over as many connections as it takes.
    async fn send(&mut self) {
        while let Some(ended) = self.under_way.try_join_next() {
            self.take_back(ended);
        }
        while !self.unsent.is_empty() {
            let connection = match self.connections.after(self.lost).await {
                Ok(connection) => connection,
                Err(error) => {
                    let batches = std::mem::take(&mut self.unsent);
                    return batches.into_values().for_each(|batch| fail(batch, &error));
                }
            };
            if connection.generation != self.current {
                // the last link has ended, and so they all do
                while let Some(ended) = self.under_way.join_next().await {
                    self.take_back(ended);
                }
                self.current = connection.generation;
            }
            let Some((number, mut batch)) = self.unsent.pop_first() else { return };
            batch.retain_mut(|job| job.prepare(connection.generation));
            if batch.is_empty() {
                continue;
            }
            match ask(&self.connections.name, &connection, &batch).await {
                Ok(answers) => {
                    self.under_way.spawn(hand_out(answers, number, batch));
                }
                Err(QueueError::Lost) => self.take_back(Ok(Some((number, batch)))),
                Err(error) => fail(batch, &error),
            }
        }
    }

    fn take_back(&mut self, ended: Result<Ended, JoinError>) {
        let Ok(Some((number, mut batch))) = ended else { return };
        self.lost = self.current;
        self.connections.lost(self.current);
        batch.retain_mut(Job::survive);
        self.unsent.insert(number, batch);
    }
}

fn fail(batch: Vec<Job>, error: &QueueError) {
    for mut job in batch {
        job.finish(Err(error.clone()));
    }
}

async fn ask(name: &str, connection: &Connection, batch: &[Job]) -> Result<Answers, QueueError> {
    let mut body = Vec::with_capacity(batch.iter().map(Job::len).sum());
    let mut next = 0;
    for job in batch {
        job.emit(next, &mut body);
        next += job.count();
    }
    let options = RequestOptions::default().deadline(None).message_bytes_max(ANSWER_BYTES_MAX);
    Ok(connection.endpoint.ask_with(name, &body, options).await?)
}

/// Hands out answers until there is one to each request, or the connection is lost.
async fn hand_out(mut answers: Answers, number: u64, mut batch: Vec<Job>) -> Ended {
    // the first number of each job, ascending
    let mut firsts = Vec::with_capacity(batch.len());
    let mut next = 0;
    for job in &batch {
        firsts.push(next);
        next += job.count();
    }
    let error = loop {
        let answer = match answers.next().await.map(|answer| answer.map_err(QueueError::from)) {
            Some(Ok(answer)) => answer,
            Some(Err(QueueError::Lost)) => return Some((number, batch)),
            Some(Err(error)) => break error,
            None => break QueueError::Nonsense,
        };
        let read = read_answers(&answer, |sequence, said| {
            let sequence = sequence as usize;
            let at = firsts.partition_point(|first| *first <= sequence).saturating_sub(1);
            if let Some(job) = batch.get_mut(at) {
                job.take(sequence - firsts[at], said);
            }
        });
        if read.is_err() {
            break QueueError::Nonsense;
        }
    };
    fail(batch, &error);
    None
}
