//! Messages as they come, over one connection after another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::debug;

use super::super::machine::{Command, Create, Subscribe};
use super::super::protocol::{Body, Said, emit_command, read_answers};
use super::connection::Connection;
use super::error::QueueError;
use super::message::Message;
use super::{Client, Shared, millis};
use crate::endpoint::{Answers, RequestOptions};

/// How messages are taken as they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscribeOptions {
    /// Messages that may be held at once, those that wait to be taken included. Default 256.
    pub credit: u32,
    /// The same in bytes. Default 1 MiB; one message is always let through.
    pub credit_bytes: u64,
    /// How long each may be held. Default: as long as the queue says.
    pub lease: Option<Duration>,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self { credit: 256, credit_bytes: 1 << 20, lease: None }
    }
}

impl SubscribeOptions {
    /// The same with another [`credit`](Self::credit).
    #[must_use]
    pub fn credit(mut self, credit: u32) -> Self {
        self.credit = credit;
        self
    }

    /// The same with another [`credit_bytes`](Self::credit_bytes).
    #[must_use]
    pub fn credit_bytes(mut self, bytes: u64) -> Self {
        self.credit_bytes = bytes;
        self
    }

    /// The same with another [`lease`](Self::lease).
    #[must_use]
    pub fn lease(mut self, lease: impl Into<Option<Duration>>) -> Self {
        self.lease = lease.into();
        self
    }
}

/// A subscription. If the connection is lost it is made again over the next one; what was held then
/// comes again. Dropping it gives back what is held.
pub struct Consumer {
    messages: mpsc::Receiver<Result<Message, QueueError>>,
    client: Client,
    consumer: Arc<std::sync::Mutex<Option<u32>>>,
    generation: Arc<AtomicU64>,
}

impl Consumer {
    /// Subscribes. `create` is made before, over each connection.
    pub(super) async fn start(
        client: &Client,
        queue: &str,
        options: SubscribeOptions,
        create: Option<Create>,
    ) -> Result<Self, QueueError> {
        // what comes is bounded by the credit; the link is never held up for it
        let (messages, receiver) = mpsc::channel(options.credit.clamp(1, 65_536) as usize);
        let mut commands: Vec<Command> = create.map(Command::Create).into_iter().collect();
        commands.push(Command::Subscribe(Subscribe {
            queue: queue.to_owned(),
            credit: options.credit.min(65_536),
            credit_bytes: options.credit_bytes,
            lease_ms: options.lease.map(millis),
        }));
        let consumer = Arc::default();
        let generation = Arc::default();
        let mut stream = Stream {
            commands,
            messages,
            consumer: Arc::clone(&consumer),
            generation: Arc::clone(&generation),
        };
        let shared = Arc::clone(&client.shared);
        let (connection, answers) = stream.begin(&shared, 0).await?;
        tokio::spawn(stream.run(shared, connection, answers));
        Ok(Self { messages: receiver, client: client.clone(), consumer, generation })
    }

    /// The next message; `None` when the subscription has ended, as when its queue was destroyed.
    /// Cancel-safe.
    ///
    /// # Errors
    /// Why it ended; after that, `None`.
    pub async fn next(&mut self) -> Option<Result<Message, QueueError>> {
        loop {
            let next = self.messages.recv().await?;
            // what came over an earlier connection is not held any more, and comes again
            let stale =
                |message: &Message| message.generation < self.generation.load(Ordering::Relaxed);
            if !next.as_ref().is_ok_and(stale) {
                return Some(next);
            }
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let consumer = self.consumer.lock().ok().and_then(|mut consumer| consumer.take());
        if let (Some(consumer), Ok(runtime)) = (consumer, tokio::runtime::Handle::try_current()) {
            let client = self.client.clone();
            runtime.spawn(async move {
                if let Err(error) = client.done(Command::Unsubscribe { consumer }).await {
                    debug!(%error, "cannot unsubscribe");
                }
            });
        }
    }
}

struct Stream {
    commands: Vec<Command>,
    messages: mpsc::Sender<Result<Message, QueueError>>,
    consumer: Arc<std::sync::Mutex<Option<u32>>>,
    /// Of the last connection.
    generation: Arc<AtomicU64>,
}

impl Stream {
    /// Subscribes over a connection later than `generation`.
    async fn begin(
        &mut self,
        shared: &Shared,
        mut generation: u64,
    ) -> Result<(Connection, Answers), QueueError> {
        loop {
            let connection = shared.connections.after(generation).await?;
            match self.ask(&shared.connections.name, &connection).await {
                Ok(answers) => return Ok((connection, answers)),
                Err(QueueError::Lost) => {
                    generation = connection.generation;
                    shared.connections.lost(generation);
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn ask(&mut self, name: &str, connection: &Connection) -> Result<Answers, QueueError> {
        let mut body = Body::default();
        for (sequence, command) in self.commands.iter().enumerate() {
            emit_command(command, sequence as u32, &mut body);
        }
        let options = RequestOptions::default().deadline(None).message_bytes_max(64 << 20);
        let mut answers = connection.endpoint.ask_with(name, body.as_bytes(), options).await?;
        loop {
            let body = answers.next().await.ok_or(QueueError::Nonsense)??;
            let mut begun = false;
            let mut refused = None;
            let mut early = Vec::new();
            let read = read_answers(&body, |_, said| match said {
                Said::Subscribed(consumer) => {
                    begun = true;
                    if let Ok(mut place) = self.consumer.lock() {
                        *place = Some(consumer);
                    }
                }
                Said::Refused(refusal) => refused = Some(refusal),
                Said::Message(delivery) => early.push(delivery),
                _ => {}
            });
            read.map_err(|_| QueueError::Nonsense)?;
            if let Some(refusal) = refused {
                return Err(QueueError::Refused { errno: refusal.errno, text: refusal.text });
            }
            for delivery in early {
                // what came over the last connection may still take up the room
                let message = Message::new(delivery, connection.generation);
                let _ = self.messages.send(Ok(message)).await;
            }
            if begun {
                return Ok(answers);
            }
        }
    }

    async fn run(mut self, shared: Arc<Shared>, mut connection: Connection, mut answers: Answers) {
        loop {
            let outcome = self.pass_on(&connection, &mut answers).await;
            let error = match outcome {
                Ok(()) => return,
                Err(QueueError::Lost) => {
                    let generation = connection.generation;
                    self.generation.store(generation + 1, Ordering::Relaxed);
                    shared.connections.lost(generation);
                    match self.begin(&shared, generation).await {
                        Ok(begun) => {
                            (connection, answers) = begun;
                            continue;
                        }
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            let _ = self.messages.send(Err(error)).await;
            return;
        }
    }

    /// Until the subscription ends, or nobody listens.
    async fn pass_on(
        &mut self,
        connection: &Connection,
        answers: &mut Answers,
    ) -> Result<(), QueueError> {
        loop {
            let body = tokio::select! {
                body = answers.next() => body,
                () = self.messages.closed() => return Ok(()),
            };
            let Some(body) = body else { return Ok(()) };
            let mut came = Vec::new();
            let mut end = None;
            read_answers(&body?, |_, said| match said {
                Said::Message(delivery) => {
                    came.push(Message::new(delivery, connection.generation));
                }
                Said::Refused(refusal) => end = Some(refusal),
                _ => {}
            })
            .map_err(|_| QueueError::Nonsense)?;
            for message in came {
                if self.messages.send(Ok(message)).await.is_err() {
                    return Ok(());
                }
            }
            if let Some(refusal) = end {
                return Err(QueueError::Refused { errno: refusal.errno, text: refusal.text });
            }
        }
    }
}
