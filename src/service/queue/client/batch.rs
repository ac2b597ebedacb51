//! Requests that go out together: many callers, one frame.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, oneshot};

use super::super::machine::Command;
use super::super::protocol::{Body, Said, emit_command, emit_shutdown, read_answers};
use super::connection::{Connection, Connections};
use super::error::QueueError;
use crate::endpoint::RequestOptions;

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
    task: Task,
    /// Its answer has several messages, and an end.
    many: bool,
    said: Vec<Said>,
    /// Sends without an answer.
    open: usize,
    answer: Option<oneshot::Sender<Answer>>,
}

impl Job {
    pub(super) fn new(task: Task, many: bool) -> (Self, oneshot::Receiver<Answer>) {
        let (answer, receiver) = oneshot::channel();
        let mut job = Self { task, many, said: Vec::new(), open: 0, answer: Some(answer) };
        job.reset();
        (job, receiver)
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
        if let Task::Sends(sends) = &self.task {
            self.open = sends.len();
            self.said.resize(sends.len(), Said::Done);
        }
    }

    /// How many messages it has.
    fn len(&self) -> usize {
        if let Task::Sends(sends) = &self.task { sends.len() } else { 1 }
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
            said if matches!(self.task, Task::Sends(_)) => {
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

    /// Whether it can be asked again without harm when it is not known whether it was carried out.
    fn is_repeatable(&self) -> bool {
        match &self.task {
            Task::Shutdown => false,
            Task::Sends(_) => true,
            Task::Command(command) => !matches!(
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
        let mut length = length(&batch[0]);
        while batch.len() < BATCH_MAX
            && let Ok(job) = jobs.try_recv()
        {
            length += self::length(&job);
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

/// About how long a request is, in bytes.
fn length(job: &Job) -> usize {
    match &job.task {
        Task::Command(command) if matches!(command, Command::Send(_)) => send_length(command),
        Task::Sends(sends) => sends.iter().map(send_length).sum(),
        Task::Command(Command::Ack { ids, .. }) => ids.len() * 8 + 100,
        _ => 200,
    }
}

fn send_length(command: &Command) -> usize {
    match command {
        Command::Send(send) => send.record.len() + send.queue.len() + 100,
        _ => 100,
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
        let error = match exchange(&connections.name, &connection, &mut batch).await {
            Ok(()) => QueueError::Nonsense,
            Err(error) => error,
        };
        if !matches!(error, QueueError::Lost) {
            return batch.iter_mut().for_each(|job| job.finish(Err(error.clone())));
        }
        generation = connection.generation;
        connections.lost(generation);
        for job in batch.iter_mut().filter(|job| !job.is_repeatable()) {
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
    let mut body = Body::default();
    // the first number of each job, ascending
    let mut firsts = Vec::with_capacity(batch.len());
    let mut next = 0;
    for job in batch.iter() {
        firsts.push(next);
        match &job.task {
            Task::Command(command) => emit_command(command, next as u32, &mut body),
            Task::Sends(sends) => {
                for (at, command) in sends.iter().enumerate() {
                    emit_command(command, (next + at) as u32, &mut body);
                }
            }
            Task::Shutdown => emit_shutdown(next as u32, &mut body),
        }
        next += job.len();
    }
    let options = RequestOptions::default().deadline(None).message_bytes_max(ANSWER_BYTES_MAX);
    let mut answers = connection.endpoint.ask_with(name, body.as_bytes(), options).await?;
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
