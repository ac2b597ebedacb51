//! A program's way to queues.

mod batch;
mod connection;
mod consumer;
mod error;
mod inbox;
mod job;
mod message;
mod rpc;

pub use connection::ClientOptions;
pub use consumer::{Consumer, SubscribeOptions};
pub use error::QueueError;
pub use message::{Message, OutMessage};
pub use rpc::{CallError, Server};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::machine::{
    BrokerInfo, Command, Create, Event, QueueInfo, RECEIVE_QUEUES_MAX, Receive, Send,
};
use super::options::{Kind, QueueOptions};
use super::protocol::Said;
use crate::endpoint::Endpoint;
use crate::store::SendId;
use crate::url::BusUrl;
use connection::Connections;
use job::{Job, Jobs, Outcome, Reply, Task};
use rpc::Calls;

/// Messages of one [`Client::send_all`] that go out together.
const SENDS_MAX: usize = 256;

/// Ids that one request may name.
const IDS_MAX: usize = 8_000;

/// A client of the queues of one broker.
///
/// Clones are the same client: one session, that is, one owner of transient queues and of messages that
/// are held. If the connection ends, it is made again, and what had no answer is sent again: a message is
/// known by its number, so that it is stored once. Messages that were held are delivered again.
///
/// Messages are taken in in the order in which they were sent, over a new connection too: those of one task,
/// and those of futures in the order in which they are first polled. Up to 4,096 requests that may wait at the
/// broker, as a send to a full queue, are under way at once, and 4,096 others; further ones wait here.
///
/// Each method waits until the broker has answered, over as many connections as that takes, but not
/// longer than [`ClientOptions::reconnect_max`] without any. Dropped before it returns, the request is
/// sent or not; this is what cancel-safe means here, for all of them. A name longer than 255 bytes is `EINVAL`,
/// and not sent.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    /// Only those that programs hold have it.
    _held: Option<Arc<Held>>,
}

/// As long as a program holds the client.
struct Held(Arc<Calls>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.end();
    }
}

struct Shared {
    connections: Arc<Connections>,
    jobs: Jobs,
    /// Chosen at random.
    sender: u128,
    sequence: AtomicU64,
    calls: Arc<Calls>,
}

/// How a message was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its id in the queue, if it is still known.
    pub id: Option<u64>,
    /// It had been sent before, over another connection.
    pub again: bool,
}

/// How messages are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceiveOptions {
    /// How many at most. Default 1.
    pub messages_max: u32,
    /// How long to wait for the first. Default: not at all.
    pub wait: Duration,
    /// How long to hold them. Default: as long as the queue says.
    pub lease: Option<Duration>,
    /// They are done with before they are delivered, and lost if they do not arrive. Default: no.
    pub auto_ack: bool,
}

impl Default for ReceiveOptions {
    fn default() -> Self {
        Self { messages_max: 1, wait: Duration::ZERO, lease: None, auto_ack: false }
    }
}

impl ReceiveOptions {
    /// The same with another [`messages_max`](Self::messages_max).
    #[must_use]
    pub fn messages_max(mut self, max: u32) -> Self {
        self.messages_max = max;
        self
    }

    /// The same with another [`wait`](Self::wait).
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// The same with another [`lease`](Self::lease).
    #[must_use]
    pub fn lease(mut self, lease: impl Into<Option<Duration>>) -> Self {
        self.lease = lease.into();
        self
    }

    /// The same with [`auto_ack`](Self::auto_ack).
    #[must_use]
    pub fn auto_ack(mut self) -> Self {
        self.auto_ack = true;
        self
    }
}

impl Client {
    /// Connects to the broker at `url`.
    ///
    /// # Errors
    /// [`QueueError::Connect`].
    pub async fn connect(url: &BusUrl) -> Result<Self, QueueError> {
        Self::connect_with(url, ClientOptions::default()).await
    }

    /// As [`connect`](Self::connect), with options.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_with(url: &BusUrl, options: ClientOptions) -> Result<Self, QueueError> {
        let connections = Connections::dial(url.clone(), options);
        connections.after(0).await?;
        Ok(Self::start(connections))
    }

    /// Over an endpoint, for as long as its link is up.
    pub fn over(endpoint: Endpoint, options: &ClientOptions) -> Self {
        Self::start(Connections::fixed(endpoint, options.name.clone()))
    }

    fn start(connections: Arc<Connections>) -> Self {
        let jobs = Jobs::start(Arc::clone(&connections));
        let calls = Arc::new(Calls::default());
        let held = Held(Arc::clone(&calls));
        let shared =
            Shared { connections, jobs, sender: random(), sequence: AtomicU64::new(0), calls };
        Self { shared: Arc::new(shared), _held: Some(Arc::new(held)) }
    }

    /// Makes a persistent queue, or sees that there is one: whether it is new.
    ///
    /// # Errors
    /// `EEXIST` if there is one with other `options`.
    pub async fn create(
        &self,
        queue: &str,
        options: Option<QueueOptions>,
    ) -> Result<bool, QueueError> {
        let queue = Some(queue.to_owned());
        let create = Create { queue, kind: Kind::Persistent, options, exclusive: false };
        Ok(self.create_with(create).await?.1)
    }

    /// Makes a queue that lives as long as this client's connection: its name, which is made up if there
    /// is none.
    ///
    /// # Errors
    /// `EEXIST`.
    pub async fn create_transient(
        &self,
        queue: Option<&str>,
        options: Option<QueueOptions>,
    ) -> Result<String, QueueError> {
        let queue = queue.map(str::to_owned);
        let create = Create { queue, kind: Kind::Transient, options, exclusive: true };
        Ok(self.create_with(create).await?.0)
    }

    /// Makes a queue, or sees that there is one: its name, and whether it is new.
    ///
    /// # Errors
    /// `EEXIST`.
    pub async fn create_with(&self, create: Create) -> Result<(String, bool), QueueError> {
        match self.one(Command::Create(create)).await? {
            Said::Created(name, new) => Ok((name.to_string(), new)),
            _ => Err(QueueError::Nonsense),
        }
    }

    /// Removes a queue and what is in it.
    ///
    /// # Errors
    /// `ENOENT`; with `if_empty`, `EBUSY`.
    pub async fn destroy(&self, queue: &str, if_empty: bool) -> Result<(), QueueError> {
        self.done(Command::Destroy { queue: queue.to_owned(), if_empty }).await
    }

    /// Queues whose names begin with `prefix`, by name; with `alive`, those that somebody takes messages
    /// from.
    ///
    /// # Errors
    /// [`QueueError::Lost`].
    pub async fn list(&self, prefix: &str, alive: bool) -> Result<Vec<QueueInfo>, QueueError> {
        let said = self.many(Command::List { prefix: prefix.to_owned(), alive }).await?;
        Ok(queues_of(said).1)
    }

    /// Appends a message. When this returns it is in the queue, and on disk if that sort of queue is.
    ///
    /// # Errors
    /// `ENOENT` without such a queue; `ENOBUFS` if it is full, `ENOSPC` if the disk is, `EMSGSIZE`.
    pub async fn send(
        &self,
        queue: &str,
        message: impl Into<OutMessage>,
    ) -> Result<Sent, QueueError> {
        let (send, _) = self.to_send(queue, message.into())?;
        self.send_command(send).await
    }

    /// As [`send`](Self::send), for several messages to one queue, in their order: how each was taken in.
    ///
    /// # Errors
    /// As [`send`](Self::send), for the first that was not taken in; others may have been.
    pub async fn send_all(
        &self,
        queue: &str,
        messages: impl IntoIterator<Item = OutMessage>,
    ) -> Result<Vec<Sent>, QueueError> {
        let mut all = Vec::new();
        let mut messages = messages.into_iter().peekable();
        let mut answers = Vec::new();
        while messages.peek().is_some() {
            let (mut part, mut length) = (Vec::new(), 0);
            while part.len() < SENDS_MAX
                && length < batch::BATCH_BYTES
                && let Some(message) = messages.next()
            {
                let (send, _) = self.to_send(queue, message)?;
                length += send.record.len();
                part.push(Command::Send(send));
            }
            let (job, answer) = Job::new(&Task::Sends(part), false)?;
            self.shared.jobs.hand_in(job).await?;
            answers.push(answer);
        }
        for answer in answers {
            for said in answer.await.map_err(|_| QueueError::Lost)??.said {
                match said {
                    Said::Sent(id, again) => all.push(Sent { id, again }),
                    _ => return Err(QueueError::Nonsense),
                }
            }
        }
        Ok(all)
    }

    /// As what the next message is known, should it be sent again.
    fn next_send_id(&self) -> SendId {
        let sequence = self.shared.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        SendId { sender: self.shared.sender, sequence }
    }

    fn to_send(&self, queue: &str, message: OutMessage) -> Result<(Send, SendId), QueueError> {
        message.check()?;
        let send_id = message.send_id.unwrap_or_else(|| self.next_send_id());
        Ok((message.into_send(queue, send_id), send_id))
    }

    async fn send_command(&self, send: Send) -> Result<Sent, QueueError> {
        match self.one(Command::Send(send)).await? {
            Said::Sent(id, again) => Ok(Sent { id, again }),
            _ => Err(QueueError::Nonsense),
        }
    }

    /// Takes messages from the first of `queues`, at most 64, that has some: none if none come in time.
    ///
    /// # Errors
    /// `ENOENT` without such a queue, `EOPNOTSUPP` for a fanout, `EPERM` for another session's.
    ///
    /// Dropped before it returns, it cannot be taken back: messages may still be taken for it, and are held until
    /// their lease is over, or lost with [`auto_ack`](ReceiveOptions::auto_ack).
    pub async fn receive(
        &self,
        queues: &[&str],
        options: ReceiveOptions,
    ) -> Result<Vec<Message>, QueueError> {
        let queues = queues.iter().take(RECEIVE_QUEUES_MAX + 1).map(|name| (*name).to_owned());
        let command = Command::Receive(Receive {
            queues: queues.collect(),
            messages_max: options.messages_max,
            timeout_ms: millis(options.wait),
            lease_ms: options.lease.map(millis),
            auto_ack: options.auto_ack,
        });
        let Reply { said, generation } =
            self.shared.ask(&Task::Command(command), true, None).await?;
        let messages = said.into_iter().filter_map(|said| match said {
            Said::Message(delivery) => Some(Message::new(delivery, generation)),
            _ => None,
        });
        Ok(messages.collect())
    }

    /// Is done with a message; when this returns it does not come back.
    ///
    /// # Errors
    /// `EPERM` or `ENOENT` if this client does not hold it any more; [`QueueError::Lost`] if the
    /// connection that it came over has ended, so that it comes back, unless that was under way and it may be
    /// done with.
    pub async fn ack(&self, message: &Message) -> Result<(), QueueError> {
        let (queue, ids) = (message.queue.to_string(), vec![message.id]);
        self.held(message, Command::Ack { queue, ids, force: false }).await
    }

    /// Is done with messages of one queue, whatever connection they came over, 8,000 in one request; with
    /// `force` also with those that others hold or that wait.
    ///
    /// # Errors
    /// `EPERM` or `ENOENT` for the first that is not done with, [`QueueError::Lost`] if a connection ended under
    /// way; the others are done with.
    pub async fn ack_ids(&self, queue: &str, ids: &[u64], force: bool) -> Result<(), QueueError> {
        let mut outcome = Ok(());
        for ids in ids.chunks(IDS_MAX) {
            let command = Command::Ack { queue: queue.to_owned(), ids: ids.to_vec(), force };
            outcome = outcome.and(self.done(command).await);
        }
        outcome
    }

    /// Gives a message back: it is delivered again, or goes to the dead-letter queue.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub async fn nack(&self, message: &Message) -> Result<(), QueueError> {
        let (queue, ids) = (message.queue.to_string(), vec![message.id]);
        self.held(message, Command::Nack { queue, ids }).await
    }

    /// Holds a message until `lease` from now.
    ///
    /// # Errors
    /// As [`ack`](Self::ack).
    pub async fn extend(&self, message: &Message, lease: Duration) -> Result<(), QueueError> {
        let (queue, ids) = (message.queue.to_string(), vec![message.id]);
        self.held(message, Command::Extend { queue, ids, lease_ms: millis(lease) }).await
    }

    /// Takes messages as they come.
    ///
    /// # Errors
    /// `ENOENT` without such a queue, `EPERM` for another session's, `EMFILE` past 256 of them.
    ///
    /// Dropped before it returns, there is no subscription, or it ends at once.
    pub async fn subscribe(
        &self,
        queue: &str,
        options: SubscribeOptions,
    ) -> Result<Consumer, QueueError> {
        Consumer::start(self, queue, options, None).await
    }

    /// How the broker is, and its queues whose names begin with `prefix`, with up to `entries_max` messages
    /// each; what of them is not longer than `payload_max` bytes is shown.
    ///
    /// # Errors
    /// [`QueueError::Lost`].
    pub async fn diagnostics(
        &self,
        prefix: &str,
        entries_max: u32,
        payload_max: u32,
    ) -> Result<(BrokerInfo, Vec<QueueInfo>), QueueError> {
        let prefix = prefix.to_owned();
        let said = self.many(Command::Diagnostics { prefix, entries_max, payload_max }).await?;
        Ok(queues_of(said))
    }

    /// What happened from event `from` on, waiting up to `wait` until something does; and the next `from`.
    ///
    /// # Errors
    /// [`QueueError::Lost`].
    pub async fn trace(
        &self,
        from: u64,
        wait: Duration,
        prefix: &str,
    ) -> Result<(u64, Vec<Event>), QueueError> {
        let prefix = prefix.to_owned();
        let said = self.many(Command::Trace { from, timeout_ms: millis(wait), prefix }).await?;
        let mut next = from;
        let mut events = Vec::new();
        for said in said {
            match said {
                Said::Event(event) => events.push(event),
                Said::Next(number) => next = number,
                _ => {}
            }
        }
        Ok((next, events))
    }

    /// Drops what is in a queue and nobody holds: how many messages.
    ///
    /// # Errors
    /// `ENOENT`.
    pub async fn purge(&self, queue: &str) -> Result<u64, QueueError> {
        match self.one(Command::Purge { queue: queue.to_owned() }).await? {
            Said::Purged(messages) => Ok(messages),
            _ => Err(QueueError::Nonsense),
        }
    }

    /// Ends the broker, if it lets itself be ended.
    ///
    /// # Errors
    /// `EPERM`.
    pub async fn shutdown(&self) -> Result<(), QueueError> {
        match self.shared.ask(&Task::Shutdown, false, None).await?.said.pop() {
            Some(Said::Done) => Ok(()),
            _ => Err(QueueError::Nonsense),
        }
    }

    async fn done(&self, command: Command) -> Result<(), QueueError> {
        self.one(command).await.map(drop)
    }

    /// Asks for something that only makes sense over the connection that a message came over: over another one
    /// it is not held, and after a restart without state its id may be another message's.
    async fn held(&self, message: &Message, command: Command) -> Result<(), QueueError> {
        self.shared.ask(&Task::Command(command), false, Some(message.generation)).await.map(drop)
    }

    async fn one(&self, command: Command) -> Result<Said, QueueError> {
        let said = self.shared.ask(&Task::Command(command), false, None).await?.said.pop();
        said.ok_or(QueueError::Nonsense)
    }

    async fn many(&self, command: Command) -> Result<Vec<Said>, QueueError> {
        Ok(self.shared.ask(&Task::Command(command), true, None).await?.said)
    }
}

impl Shared {
    /// `over`: only over this connection.
    async fn ask(&self, task: &Task, many: bool, over: Option<u64>) -> Outcome {
        let (job, answer) = Job::new(task, many)?;
        self.jobs.hand_in(job.over(over)).await?;
        answer.await.map_err(|_| QueueError::Lost)?
    }
}

fn queues_of(said: Vec<Said>) -> (BrokerInfo, Vec<QueueInfo>) {
    let mut broker = BrokerInfo::default();
    let mut queues: Vec<QueueInfo> = Vec::new();
    for said in said {
        match said {
            Said::Broker(info) => broker = info,
            Said::Queue(info) => queues.push(*info),
            Said::Entry(entry) => {
                if let Some(queue) = queues.last_mut() {
                    queue.entries.push(entry);
                }
            }
            _ => {}
        }
    }
    (broker, queues)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A number that no other client has.
fn random() -> u128 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let half = || {
        // its keys are random
        let mut hasher = std::hash::RandomState::new().build_hasher();
        hasher.write_u32(std::process::id());
        hasher.finish()
    };
    u128::from(half()) << 64 | u128::from(half())
}
