//! Messages as they come, over one connection after another.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tracing::debug;

use super::super::machine::{CREDIT_MAX, Command, Create, Subscribe};
use super::super::protocol::{Body, Said, emit_command, read_answers};
use super::connection::Connection;
use super::error::QueueError;
use super::inbox::Inbox;
use super::job::{Task, check_names};
use super::message::Message;
use super::{Client, Shared, millis};
use crate::endpoint::RequestOptions;

/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

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
/// comes again. Dropping it, at any time, ends it, and what waits to be taken is given back.
///
/// What waits so long that its lease ends is not handed out any more: the broker delivers it again, here or
/// elsewhere.
pub struct Consumer {
    inbox: Arc<Inbox>,
    up: watch::Receiver<bool>,
    /// It keeps the client in use.
    _client: Client,
}

impl Consumer {
    /// Subscribes. `create` is made before, over each connection.
    ///
    /// Cancel-safe: dropped, there is no subscription, or it ends at once.
    pub(super) async fn start(
        client: &Client,
        queue: &str,
        options: SubscribeOptions,
        create: Option<Create>,
    ) -> Result<Self, QueueError> {
        let credit = options.credit.min(CREDIT_MAX.0);
        let credit_bytes = options.credit_bytes.min(CREDIT_MAX.1);
        let mut commands: Vec<Command> = create.map(Command::Create).into_iter().collect();
        commands.push(Command::Subscribe(Subscribe {
            queue: queue.to_owned(),
            credit,
            credit_bytes,
            lease_ms: options.lease.map(millis),
        }));
        commands.iter().try_for_each(check_names)?;
        let inbox = Arc::new(Inbox::new(credit, credit_bytes));
        let (up, is_up) = watch::channel(false);
        let consumer = Self { inbox: Arc::clone(&inbox), up: is_up, _client: client.clone() };
        let (begun, is_begun) = oneshot::channel();
        let shared = Arc::clone(&client.shared);
        let subscription = Subscription { shared, commands, inbox, up, begun: Some(begun) };
        tokio::spawn(subscription.run());
        is_begun.await.map_err(|_| QueueError::Lost)??;
        Ok(consumer)
    }

    /// The next message; `None` when the subscription has ended, as when its queue was destroyed.
    /// Cancel-safe.
    ///
    /// # Errors
    /// Why it ended; after that, `None`.
    pub async fn next(&mut self) -> Option<Result<Message, QueueError>> {
        self.inbox.next().await
    }

    /// Whether it is there over the connection of now. An error once it has ended.
    pub(super) fn up(&self) -> watch::Receiver<bool> {
        self.up.clone()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

/// The task of a [`Consumer`]: whatever it began at the broker, it ends.
struct Subscription {
    shared: Arc<Shared>,
    commands: Vec<Command>,
    inbox: Arc<Inbox>,
    up: watch::Sender<bool>,
    /// Until it has begun for the first time.
    begun: Option<oneshot::Sender<Result<(), QueueError>>>,
}

impl Subscription {
    async fn run(mut self) {
        let mut generation = 0;
        let outcome = loop {
            let connection = tokio::select! {
                biased;
                () = self.inbox.closed() => return,
                connection = self.shared.connections.after(generation) => connection,
            };
            let connection = match connection {
                Ok(connection) => connection,
                Err(error) => break Err(error),
            };
            match self.follow(&connection).await {
                Err(QueueError::Lost) => {
                    self.up.send_replace(false);
                    self.inbox.clear();
                    generation = connection.generation;
                    self.shared.connections.lost(generation);
                }
                outcome => break outcome,
            }
        };
        match self.begun.take() {
            Some(begun) => drop(begun.send(outcome)),
            None => self.inbox.end(outcome.err()),
        }
    }

    /// Subscribes over a connection, and takes what comes until that ends or nobody listens.
    async fn follow(&mut self, connection: &Connection) -> Result<(), QueueError> {
        let mut body = Body::default();
        for (sequence, command) in self.commands.iter().enumerate() {
            emit_command(command, sequence as u32, &mut body);
        }
        let subscribe = self.commands.len() - 1;
        let name = self.shared.connections.name.as_str();
        let options = RequestOptions::default().deadline(None).message_bytes_max(ANSWER_BYTES_MAX);
        let mut answers = connection.endpoint.ask_with(name, body.as_bytes(), options).await?;
        let mut consumer = None;
        let mut refused = None;
        let mut is_over = false;
        loop {
            let body = match consumer {
                // whoever asks for a subscription gets its number, and cannot end it before
                None => answers.next().await,
                Some(consumer) => tokio::select! {
                    body = answers.next() => body,
                    () = self.inbox.closed() => {
                        // what still comes of it is passed over
                        drop(answers);
                        self.unsubscribe(consumer, connection.generation).await;
                        return Ok(());
                    }
                },
            };
            let Some(body) = body else {
                return if consumer.is_some() { Ok(()) } else { Err(QueueError::Nonsense) };
            };
            read_answers(&body?, |sequence, said| match said {
                Said::Subscribed(number) => consumer = Some(number),
                Said::Message(delivery) => {
                    let length = delivery.record.len() as u64;
                    self.inbox.put(Message::new(delivery, connection.generation), length);
                }
                Said::Refused(refusal) => {
                    is_over |= sequence as usize == subscribe;
                    refused.get_or_insert(refusal);
                }
                _ => {}
            })
            .map_err(|_| QueueError::Nonsense)?;
            match (consumer, refused.take_if(|_| is_over || consumer.is_some())) {
                (consumer, Some(refusal)) => {
                    if let (Some(consumer), false) = (consumer, is_over) {
                        drop(answers);
                        self.unsubscribe(consumer, connection.generation).await;
                    }
                    return Err(QueueError::Refused { errno: refusal.errno, text: refusal.text });
                }
                (Some(_), None) => {
                    self.up.send_if_modified(|up| !std::mem::replace(up, true));
                    if let Some(begun) = self.begun.take() {
                        let _ = begun.send(Ok(()));
                    }
                }
                (None, None) => {}
            }
        }
    }

    /// Over this connection alone: over another the number is another subscription's.
    async fn unsubscribe(&self, consumer: u32, generation: u64) {
        let task = Task::Command(Command::Unsubscribe { consumer });
        let asked = self.shared.ask(&task, false, Some(generation));
        if let Err(error) = asked.await {
            debug!(%error, "cannot unsubscribe");
        }
    }
}
