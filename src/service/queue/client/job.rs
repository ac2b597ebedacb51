//! A request, from who asks to the answer.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::super::machine::{Command, NAME_BYTES_MAX};
use super::super::protocol::{Body, Said, emit_command, emit_shutdown};
use super::batch;
use super::connection::Connections;
use super::error::QueueError;
use crate::wire::{HEADER_LEN, Header, align4, errno};

/// Requests of one client without an answer: so many that the broker answers at once, and so many that may
/// wait there.
const PLACES: usize = 4_096;

/// What was said to a request, and over which connection.
pub(super) struct Reply {
    pub(super) said: Vec<Said>,
    pub(super) generation: u64,
}

pub(super) type Outcome = Result<Reply, QueueError>;

/// What is asked for.
pub(super) enum Task {
    Command(Command),
    /// Several sends; what is said of each, in their order.
    Sends(Vec<Command>),
    Shutdown,
}

/// Where requests are handed in. They are sent in that order.
pub(super) struct Jobs {
    queue: mpsc::Sender<Job>,
    prompt: Arc<Semaphore>,
    /// Of requests that may wait at the broker. What they wait for, as an ACK, must not wait behind them.
    patient: Arc<Semaphore>,
}

impl Jobs {
    pub(super) fn start(connections: Arc<Connections>) -> Self {
        // whoever has a place has room
        let (queue, jobs) = mpsc::channel(2 * PLACES);
        tokio::spawn(batch::run(connections, jobs));
        let [prompt, patient] = [(); 2].map(|()| Arc::new(Semaphore::new(PLACES)));
        Self { queue, prompt, patient }
    }

    pub(super) async fn hand_in(&self, mut job: Job) -> Result<(), QueueError> {
        let places = if job.may_wait { &self.patient } else { &self.prompt };
        job.place = Arc::clone(places).acquire_owned().await.ok();
        self.queue.send(job).await.map_err(|_| QueueError::Lost)
    }
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
    /// It is answered when something else happens.
    may_wait: bool,
    /// Only over this connection.
    over: Option<u64>,
    /// Its answer has several messages, and an end.
    many: bool,
    /// Over which connection it was sent last.
    generation: u64,
    said: Vec<Said>,
    /// Sends without an answer.
    open: usize,
    answer: Option<oneshot::Sender<Outcome>>,
    /// Until it is answered.
    place: Option<OwnedSemaphorePermit>,
}

impl Job {
    /// # Errors
    /// `EINVAL` if there is a name in it that is too long.
    pub(super) fn new(
        task: &Task,
        many: bool,
    ) -> Result<(Self, oneshot::Receiver<Outcome>), QueueError> {
        let (answer, receiver) = oneshot::channel();
        let mut body = Body::default();
        let commands = match task {
            Task::Command(command) => std::slice::from_ref(command),
            Task::Sends(sends) => sends,
            Task::Shutdown => &[],
        };
        for command in commands {
            check_names(command)?;
            emit_command(command, 0, &mut body);
        }
        if matches!(task, Task::Shutdown) {
            emit_shutdown(0, &mut body);
        }
        let job = Self {
            bytes: body.into_bytes(),
            count: commands.len().max(1),
            each: matches!(task, Task::Sends(_)),
            repeatable: task.is_repeatable(),
            may_wait: task.may_wait(),
            over: None,
            many,
            generation: 0,
            said: Vec::new(),
            open: 0,
            answer: Some(answer),
            place: None,
        };
        Ok((job, receiver))
    }

    /// The same, if there is one over this connection or not at all.
    pub(super) fn over(mut self, generation: Option<u64>) -> Self {
        self.over = generation;
        self
    }

    /// The length of its messages, in bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// How many messages it has.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Appends its messages, the first with the sequence number `first`.
    pub(super) fn emit(&self, first: usize, out: &mut Vec<u8>) {
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

    /// Before it is sent over this connection: whether it is to be.
    pub(super) fn prepare(&mut self, generation: u64) -> bool {
        if self.over.is_some_and(|over| over != generation) {
            self.finish(Err(QueueError::Lost));
        }
        self.generation = generation;
        self.said.clear();
        if self.each {
            self.open = self.count;
            self.said.resize(self.count, Said::Done);
        }
        self.is_open()
    }

    /// The connection that it was sent over is lost: whether it is to be sent again.
    pub(super) fn survive(&mut self) -> bool {
        if !self.repeatable {
            self.finish(Err(QueueError::Lost));
        }
        self.is_open()
    }

    pub(super) fn finish(&mut self, outcome: Result<Vec<Said>, QueueError>) {
        let generation = self.generation;
        self.place = None;
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(outcome.map(|said| Reply { said, generation }));
        }
    }

    /// `at`: which of its messages is answered.
    pub(super) fn take(&mut self, at: usize, said: Said) {
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

    fn is_open(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| !answer.is_closed())
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

    fn may_wait(&self) -> bool {
        match self {
            Self::Shutdown => false,
            Self::Sends(_) => true,
            Self::Command(command) => {
                matches!(command, Command::Send(_) | Command::Receive(_) | Command::Trace { .. })
            }
        }
    }
}

/// # Errors
/// `EINVAL` if there is a name in it that is longer than names may be: not every one could be said.
pub(super) fn check_names(command: &Command) -> Result<(), QueueError> {
    let long = |name: &str| name.len() > NAME_BYTES_MAX;
    let is_long = match command {
        Command::Create(create) => {
            let dead_letter = create.options.as_ref().and_then(|it| it.dead_letter.as_deref());
            create.queue.as_deref().is_some_and(long) || dead_letter.is_some_and(long)
        }
        Command::Send(send) => long(&send.queue) || send.reply_to.as_deref().is_some_and(long),
        Command::Receive(receive) => receive.queues.iter().any(|queue| long(queue)),
        Command::Subscribe(subscribe) => long(&subscribe.queue),
        Command::List { prefix: name, .. }
        | Command::Diagnostics { prefix: name, .. }
        | Command::Trace { prefix: name, .. }
        | Command::Destroy { queue: name, .. }
        | Command::Ack { queue: name, .. }
        | Command::Nack { queue: name, .. }
        | Command::Extend { queue: name, .. }
        | Command::Purge { queue: name }
        | Command::Withdraw { queue: name, .. } => long(name),
        Command::Unsubscribe { .. } => false,
    };
    if !is_long {
        return Ok(());
    }
    let text = format!("a name has at most {NAME_BYTES_MAX} bytes");
    Err(QueueError::Refused { errno: errno::EINVAL, text })
}
