//! Calls through queues: a request waits in a queue until a server takes it, the answer comes back through
//! a queue of the caller's own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{Notify, OnceCell, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, warn};

use super::super::machine::{Command, Create, Refusal};
use super::super::options::Kind;
use super::Client;
use super::consumer::{Consumer, SubscribeOptions};
use super::error::QueueError;
use super::message::{Message, OutMessage};
use crate::store::SendId;
use crate::wire::errno;

/// How long a server holds a request before it says that it still works on it.
const LEASE: Duration = Duration::from_secs(30);

/// How often an answer is tried when the caller's queue is not there: after a restart of the broker the
/// caller may come back later than the server.
const ANSWER_ATTEMPTS: u32 = 10;

/// The time between these.
const ANSWER_PAUSE: Duration = Duration::from_millis(200);

/// Why a call got no answer, or one that says no.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum CallError {
    /// The server said no.
    #[error("{text}")]
    Refused {
        /// An error number, positive.
        errno: i32,
        /// What it said in words.
        text: String,
    },
    /// There was no answer in time. The request is not in the queue any more; a server that had taken it
    /// may have carried it out.
    #[error("no answer within {after:?}")]
    Timeout {
        /// The time it had.
        after: Duration,
    },
    /// The request could not be sent.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// The calls of one client.
#[derive(Default)]
pub(super) struct Calls {
    /// The name of the queue for answers.
    replies: OnceCell<String>,
    waiting: Mutex<HashMap<Bytes, oneshot::Sender<Message>>>,
    ended: Notify,
}

impl Calls {
    /// A panic of another holder leaves nothing half-done.
    fn waiting(&self) -> MutexGuard<'_, HashMap<Bytes, oneshot::Sender<Message>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody calls any more.
    pub(super) fn end(&self) {
        self.ended.notify_one();
    }
}

impl Client {
    /// Sends `body` as a request to `queue`, which is made if it is not there, and returns the answer of
    /// whichever server takes it. `None` waits for ever.
    ///
    /// # Errors
    /// [`CallError::Refused`] with what the server says; [`CallError::Timeout`]; [`CallError::Queue`].
    ///
    /// Cancel-safe: dropped, the request is taken back if no server has it.
    pub async fn call(
        &self,
        queue: &str,
        body: impl Into<Bytes>,
        after: impl Into<Option<Duration>>,
    ) -> Result<Bytes, CallError> {
        let after = after.into();
        let exchange = self.exchange(queue, body.into(), after);
        let Some(after) = after else { return exchange.await };
        timeout(after, exchange).await.unwrap_or(Err(CallError::Timeout { after }))
    }

    async fn exchange(
        &self,
        queue: &str,
        body: Bytes,
        ttl: Option<Duration>,
    ) -> Result<Bytes, CallError> {
        let replies = self.replies().await?;
        let send_id = self.next_send_id();
        let correlation = Bytes::copy_from_slice(
            &[&send_id.sender.to_le_bytes()[..], &send_id.sequence.to_le_bytes()].concat(),
        );
        let mut message = OutMessage::new(body)
            .correlation(correlation.clone())
            .reply_to(replies)
            .create()
            .send_id(send_id);
        message.ttl = ttl;
        let (answer, answered) = oneshot::channel();
        self.shared.calls.waiting().insert(correlation.clone(), answer);
        let mut withdraw = Withdraw {
            client: self.inner(),
            queue: queue.to_owned(),
            send_id,
            correlation,
            armed: true,
        };
        self.send(queue, message).await?;
        let answer = answered.await.map_err(|_| QueueError::Lost)?;
        withdraw.armed = false;
        match answer.record.error {
            Some((errno, text)) => Err(CallError::Refused { errno, text }),
            None => Ok(answer.record.payload),
        }
    }

    /// The queue for answers, and somebody who reads it.
    async fn replies(&self) -> Result<&str, QueueError> {
        let calls = &self.shared.calls;
        let name = calls.replies.get_or_try_init(|| async {
            let name = format!("{}-{:016x}", program(), self.shared.sender as u64);
            let create = Create {
                queue: Some(name.clone()),
                kind: Kind::Transient,
                options: None,
                exclusive: false,
            };
            let options = SubscribeOptions::default().credit(1_024).credit_bytes(16 << 20);
            let client = self.inner();
            let consumer = Consumer::start(&client, &name, options, Some(create)).await?;
            tokio::spawn(take_replies(client, consumer));
            Ok::<_, QueueError>(name)
        });
        Ok(name.await?)
    }

    /// A handle that does not keep the client in use.
    fn inner(&self) -> Client {
        Client { shared: Arc::clone(&self.shared), _held: None }
    }
}

/// The name of this program and its process, for people who look who waits.
fn program() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
    format!("{name}:{}", std::process::id())
}

async fn take_replies(client: Client, mut replies: Consumer) {
    let calls = Arc::clone(&client.shared.calls);
    // no more than there is credit for
    let mut acks = JoinSet::new();
    loop {
        let message = tokio::select! {
            message = replies.next() => message,
            () = calls.ended.notified() => return,
        };
        match message {
            Some(Ok(message)) => {
                let waiting = calls.waiting().remove(&message.record.correlation);
                acks.spawn({
                    let (client, message) = (client.clone(), message.clone());
                    async move { client.ack(&message).await }
                });
                while acks.try_join_next().is_some() {}
                match waiting {
                    Some(waiting) => drop(waiting.send(message)),
                    None => debug!("an answer that nobody waits for"),
                }
            }
            Some(Err(error)) => warn!(%error, "answers to calls do not come any more"),
            None => break,
        }
    }
    calls.waiting().clear();
}

/// Takes a request back that nobody waits for any more.
struct Withdraw {
    client: Client,
    queue: String,
    send_id: SendId,
    correlation: Bytes,
    armed: bool,
}

impl Drop for Withdraw {
    fn drop(&mut self) {
        self.client.shared.calls.waiting().remove(&self.correlation);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.armed {
            let (client, queue) = (self.client.clone(), self.queue.clone());
            let send_id = self.send_id;
            runtime.spawn(async move {
                if let Err(error) = client.done(Command::Withdraw { queue, send_id }).await {
                    debug!(%error, "cannot take a request back");
                }
            });
        }
    }
}

/// A server that listens to a queue. Dropping it lets what is under way be done by others.
pub struct Server {
    stop: Arc<Notify>,
    task: JoinHandle<Result<(), QueueError>>,
}

impl Server {
    /// Has `handler` answer the requests in `queue`, which is made if it is not there; up to
    /// `concurrency` at once, with 1 in their order. A request is acknowledged once its answer is sent:
    /// if this process dies before, another server gets it. While the handler works, the request is held.
    ///
    /// The handler returns the answer, or an error number, positive, and a text.
    ///
    /// # Errors
    /// As [`Client::subscribe`].
    pub async fn listen<H, F>(
        client: &Client,
        queue: &str,
        handler: H,
        concurrency: u32,
    ) -> Result<Self, QueueError>
    where
        H: Fn(Message) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Bytes, (i32, String)>> + Send + 'static,
    {
        let create = Create {
            queue: Some(queue.to_owned()),
            kind: Kind::Persistent,
            options: None,
            exclusive: false,
        };
        let options = SubscribeOptions::default()
            .credit(concurrency.max(1))
            .credit_bytes(u64::MAX)
            .lease(LEASE);
        let consumer = Consumer::start(client, queue, options, Some(create)).await?;
        let stop = Arc::new(Notify::new());
        let serving = serve(client.clone(), consumer, Arc::new(handler), Arc::clone(&stop));
        Ok(Self { stop, task: tokio::spawn(serving) })
    }

    /// Takes no further request, and waits until those under way are answered.
    ///
    /// # Errors
    /// Why it had stopped before.
    ///
    /// Not cancel-safe: dropped half-way, what is under way is done by others.
    pub async fn stop(mut self) -> Result<(), QueueError> {
        self.stop.notify_one();
        self.ended().await
    }

    /// Waits until it stops by itself, as when the broker is gone for good. Cancel-safe.
    ///
    /// # Errors
    /// Why it stopped.
    pub async fn ended(&mut self) -> Result<(), QueueError> {
        (&mut self.task).await.unwrap_or(Err(QueueError::Lost))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<H, F>(
    client: Client,
    mut consumer: Consumer,
    handler: Arc<H>,
    stop: Arc<Notify>,
) -> Result<(), QueueError>
where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Bytes, (i32, String)>> + Send + 'static,
{
    let mut under_way = JoinSet::new();
    let outcome = loop {
        let message = tokio::select! {
            message = consumer.next() => message,
            () = stop.notified() => break Ok(()),
            Some(_) = under_way.join_next() => continue,
        };
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        };
        let (client, handler) = (client.clone(), Arc::clone(&handler));
        under_way.spawn(async move { perform(&client, &*handler, message).await });
    };
    while under_way.join_next().await.is_some() {}
    drop(consumer);
    outcome
}

async fn perform<H, F>(client: &Client, handler: &H, message: Message)
where
    H: Fn(Message) -> F,
    F: Future<Output = Result<Bytes, (i32, String)>>,
{
    let mut working = std::pin::pin!(handler(message.clone()));
    let mut ticks = interval(LEASE / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let answer = loop {
        tokio::select! {
            answer = &mut working => break answer,
            _ = ticks.tick() => {
                if let Err(error) = client.extend(&message, LEASE).await {
                    debug!(%error, "a request is not held any more");
                }
            }
        }
    };
    if let Some(reply_to) = &message.record.reply_to {
        let out = OutMessage { send_id: Some(client.next_send_id()), ..OutMessage::default() };
        let out = out.correlation(message.record.correlation.clone());
        let out = match answer {
            Ok(body) => {
                let mut out = out;
                out.record.payload = body;
                out
            }
            Err((number, text)) => out.error(Refusal { errno: number, text }),
        };
        send_answer(client, reply_to, out, message.attempt > 1).await;
    } else if let Err((_, text)) = answer {
        debug!(text, "a request without a caller failed");
    }
    if let Err(error) = client.ack(&message).await {
        debug!(%error, "a request may come again");
    }
}

async fn send_answer(client: &Client, reply_to: &str, answer: OutMessage, patient: bool) {
    let mut pauses = interval(ANSWER_PAUSE);
    let attempts = if patient { ANSWER_ATTEMPTS } else { 1 };
    for _ in 0..attempts {
        pauses.tick().await;
        match client.send(reply_to, answer.clone()).await {
            Ok(_) => return,
            Err(error) if error.errno() == Some(errno::ENOENT) => {}
            Err(error) => return warn!(%error, reply_to, "cannot answer"),
        }
    }
    debug!(reply_to, "the caller is gone");
}
