//! Requests that go out together: many callers, one frame.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::super::machine::Command;
use super::super::protocol::{Body, Said, emit_command, emit_shutdown, read_answers};
use super::connection::{Connection, Connections};
use super::error::QueueError;
use crate::endpoint::RequestOptions;
use crate::wire::{HEADER_LEN, Header, align4};

/// Requests in one frame.
const BATCH_MAX: usize = 256;

/// Bytes past which no further request is put into a frame.
pub(super) const BATCH_BYTES: usize = 48 << 10;

/// Frames of which the answers are still to come.
const UNDER_WAY_MAX: usize = 512;

/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

type Answer = Result<Vec<Said>, QueueError>;

/// What is asked for.
pub(super) enum Task {
    Command(Command),
    /// Several sends; what is said of each, in their order.
    Sends(Vec<Command>),
    Shutdown,
}

/// A request, and who waits for its answer.
pub(super) struct Job {
    /// Its messages, as they are sent but for their sequence numbers.
    bytes: Vec<u8>,
    /// How many messages it has.
    count: usize,
    /// There are several sends, and each is answered.
    each: bool,
    /// It can be asked again without harm when it is not known whether it was carried out.
    repeatable: bool,
    /// Only over this connection.
    over: Option<u64>,
    /// Its answer has several messages, and an end.
    many: bool,
    said: Vec<Said>,
    /// Sends without an answer.
    open: usize,
    answer: Option<oneshot::Sender<Answer>>,
}

impl Job {
    pub(super) fn new(task: &Task, many: bool) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        let mut body = Body::default();
        let count = match task {
            Task::Command(command) => {
                emit_command(command, 0, &mut body);
                1
            }
            Task::Sends(sends) => {
                sends.iter().for_each(|send| emit_command(send, 0, &mut body));
                sends.len()
            }
            Task::Shutdown => {
                emit_shutdown(0, &mut body);
                1
            }
        };
        let mut job = Self {
            bytes: body.into_bytes(),
            count,
            each: matches!(task, Task::Sends(_)),
            repeatable: task.is_repeatable(),
            over: None,
            many,
            said: Vec::new(),
            open: 0,
            answer: Some(answer),
        };
        job.reset();
        (job, receiver)
    }

    /// The same, over this connection or not at all.
    pub(super) fn over(mut self, generation: u64) -> Self {
        self.over = Some(generation);
        self
    }

    /// Appends its messages, the first with the sequence number `first`.
    fn emit(&self, first: usize, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let mut rest = &mut out[start..];
        let mut sequence = first as u32;
        while let Ok(header) = Header::parse(rest)
            && let Some((message, behind)) =
                rest.split_at_mut_checked(align4(header.length as usize))
        {
            let header = Header { sequence, ..header };
            message[..HEADER_LEN].copy_from_slice(&header.to_bytes());
            sequence = sequence.wrapping_add(1);
            rest = behind;
        }
    }

    fn is_open(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| !answer.is_closed())
    }

    fn finish(&mut self, outcome: Answer) {
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(outcome);
        }
    }

    /// Before it is asked, for the first time or again.
    fn reset(&mut self) {
        self.said.clear();
        if self.each {
            self.open = self.count;
            self.said.resize(self.count, Said::Done);
        }
    }

    /// `at`: which of its messages is answered.
    fn take(&mut self, at: usize, said: Said) {
        match said {
            Said::Refused(refusal) => {
                let (errno, text) = (refusal.errno, refusal.text);
                self.finish(Err(QueueError::Refused { errno, text }));
            }
            Said::Done if self.many => {
                let said = std::mem::take(&mut self.said);
                self.finish(Ok(said));
            }
            said if self.each => {
                if let Some(place) = self.said.get_mut(at) {
                    *place = said;
                }
                self.open = self.open.saturating_sub(1);
                if self.open == 0 {
                    let said = std::mem::take(&mut self.said);
                    self.finish(Ok(said));
                }
            }
            said if self.many => self.said.push(said),
            said => self.finish(Ok(vec![said])),
        }
    }
}

impl Task {
    fn is_repeatable(&self) -> bool {
        match self {
            Self::Shutdown => false,
            Self::Sends(_) => true,
            Self::Command(command) => !matches!(
                command,
                Command::Ack { .. }
                    | Command::Nack { .. }
                    | Command::Extend { .. }
                    | Command::Destroy { .. }
                    | Command::Unsubscribe { .. }
            ),
        }
    }
}

/// Puts requests together until nobody is left who asks.
pub(super) async fn run(connections: Arc<Connections>, mut jobs: mpsc::Receiver<Job>) {
    let places = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let mut next: Option<Job> = None;
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let first = match next.take() {
            Some(job) => job,
            None => match jobs.recv().await {
                Some(job) => job,
                None => return,
            },
        };
        // whoever is ready to ask does so first: an answer to many wakes them one after the other
        tokio::task::yield_now().await;
        let mut batch = vec![first];
        let mut length = batch[0].bytes.len();
        while batch.len() < BATCH_MAX
            && let Ok(job) = jobs.try_recv()
        {
            length += job.bytes.len();
            if length > BATCH_BYTES {
                next = Some(job);
                break;
            }
            batch.push(job);
        }
        let connections = Arc::clone(&connections);
        tokio::spawn(async move {
            see_to(&connections, batch).await;
            drop(place);
        });
    }
}

/// Sends a batch, over as many connections as it takes.
async fn see_to(connections: &Connections, mut batch: Vec<Job>) {
    let mut generation = 0;
    loop {
        let connection = match connections.after(generation).await {
            Ok(connection) => connection,
            Err(error) => return batch.iter_mut().for_each(|job| job.finish(Err(error.clone()))),
        };
        batch.retain_mut(|job| {
            let here = job.over.is_none_or(|over| over == connection.generation);
            if !here {
                job.finish(Err(QueueError::Lost));
            }
            here
        });
        if batch.is_empty() {
            return;
        }
        let error = match exchange(&connections.name, &connection, &mut batch).await {
            Ok(()) => QueueError::Nonsense,
            Err(error) => error,
        };
        if !matches!(error, QueueError::Lost) {
            return batch.iter_mut().for_each(|job| job.finish(Err(error.clone())));
        }
        generation = connection.generation;
        connections.lost(generation);
        for job in batch.iter_mut().filter(|job| !job.repeatable) {
            job.finish(Err(QueueError::Lost));
        }
        batch.retain(Job::is_open);
        batch.iter_mut().for_each(Job::reset);
        if batch.is_empty() {
            return;
        }
    }
}

/// Sends a batch and hands out the answers.
async fn exchange(
    name: &str,
    connection: &Connection,
    batch: &mut [Job],
) -> Result<(), QueueError> {
    let mut body = Vec::with_capacity(batch.iter().map(|job| job.bytes.len()).sum());
    // the first number of each job, ascending
    let mut firsts = Vec::with_capacity(batch.len());
    let mut next = 0;
    for job in batch.iter() {
        firsts.push(next);
        job.emit(next, &mut body);
        next += job.count;
    }
    let options = RequestOptions::default().deadline(None).message_bytes_max(ANSWER_BYTES_MAX);
    let mut answers = connection.endpoint.ask_with(name, &body, options).await?;
    while let Some(answer) = answers.next().await {
        let read = read_answers(&answer?, |sequence, said| {
            let sequence = sequence as usize;
            let at = firsts.partition_point(|first| *first <= sequence).saturating_sub(1);
            if let Some(job) = batch.get_mut(at) {
                job.take(sequence - firsts[at], said);
            }
        });
        read.map_err(|_| QueueError::Nonsense)?;
    }
    Ok(())
}
