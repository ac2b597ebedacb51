//! Calls through queues: a request waits in a queue until a server takes it, the answer comes back through
//! a queue of the caller's own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, warn};

use super::super::machine::{Command, Create, Refusal};
use super::super::options::Kind;
use super::consumer::{Consumer, SubscribeOptions};
use super::error::QueueError;
use super::message::{Message, OutMessage};
use super::{Client, random};
use crate::store::SendId;
use crate::wire::errno;

/// How long a server holds a request before it says that it still works on it.
const LEASE: Duration = Duration::from_secs(30);

/// How often an answer is tried when the caller's queue is not there: the caller may have lost its connection,
/// and make its queue again. The request is held meanwhile, because nobody would answer it if it was acknowledged
/// and this process ended then. So a caller that is gone for good costs a place among those that are handled at
/// once, for as long as this.
const ANSWER_ATTEMPTS: u32 = 15;

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
    /// The request could not be sent. [`QueueError::Lost`]: its answer cannot come any more, because the queue for
    /// it was lost with the connection and could not be made again; a server may have carried it out.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// The calls of one client.
#[derive(Default)]
pub(super) struct Calls {
    state: Mutex<State>,
    /// Held by who makes the queue for answers.
    making: Arc<tokio::sync::Mutex<()>>,
    ended: Notify,
}

#[derive(Default)]
struct State {
    /// The name of the queue for answers, as long as somebody reads it, and whether it is there now.
    replies: Option<(String, watch::Receiver<bool>)>,
    /// Who waits for an answer in it, by the correlation.
    waiting: HashMap<Bytes, oneshot::Sender<Message>>,
}

impl Calls {
    /// A panic of another holder leaves nothing half-done.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an answer in this queue, if it is still the one.
    fn expect(&self, queue: &str, correlation: &Bytes) -> Option<oneshot::Receiver<Message>> {
        let mut state = self.state();
        state.replies.as_ref().filter(|(name, _)| name == queue)?;
        let (answer, answered) = oneshot::channel();
        state.waiting.insert(correlation.clone(), answer);
        Some(answered)
    }

    /// Nothing comes in this queue any more.
    fn lose(&self, queue: &str) {
        let mut state = self.state();
        if state.replies.as_ref().is_some_and(|(name, _)| name == queue) {
            *state = State::default();
        }
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
    ///
    /// Over a new connection the queue for answers is made again under its name. If that is not to be had, the
    /// request is taken back and sent again with another, or if a server has it, the call fails.
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
        loop {
            if let Some(answer) = self.ask_once(queue, body.clone(), ttl).await? {
                return match answer.record.error {
                    Some((errno, text)) => Err(CallError::Refused { errno, text }),
                    None => Ok(answer.record.payload),
                };
            }
        }
    }

    /// The answer; none if it could not have come, and no server has the request.
    async fn ask_once(
        &self,
        queue: &str,
        body: Bytes,
        ttl: Option<Duration>,
    ) -> Result<Option<Message>, QueueError> {
        // nobody but the server can know it, and answer in its place
        let correlation = Bytes::copy_from_slice(&random().to_le_bytes());
        let (replies, answered) = self.expect(&correlation).await?;
        let send_id = self.next_send_id();
        let mut withdraw = Withdraw {
            client: self.inner(),
            queue: queue.to_owned(),
            send_id,
            correlation: correlation.clone(),
            armed: true,
        };
        let message = OutMessage::new(body).correlation(correlation).reply_to(replies);
        let mut message = message.create().send_id(send_id);
        message.ttl = ttl;
        self.send(queue, message).await?;
        if let Ok(answer) = answered.await {
            withdraw.armed = false;
            return Ok(Some(answer));
        }
        let taken_back = self.done(Command::Withdraw { queue: queue.to_owned(), send_id }).await;
        withdraw.armed = false;
        match taken_back {
            Ok(()) => Ok(None),
            // a server has it, or had it
            Err(QueueError::Refused { .. }) => Err(QueueError::Lost),
            Err(error) => Err(error),
        }
    }

    /// Waits for an answer: in which queue.
    async fn expect(
        &self,
        correlation: &Bytes,
    ) -> Result<(String, oneshot::Receiver<Message>), QueueError> {
        let calls = &self.shared.calls;
        loop {
            let replies = calls.state().replies.clone();
            let Some((name, mut up)) = replies else {
                self.make_replies().await?;
                continue;
            };
            // over a new connection it is to be made again first, and may not be to be had
            if up.wait_for(|up| *up).await.is_err() {
                calls.lose(&name);
            } else if let Some(answered) = calls.expect(&name, correlation) {
                return Ok((name, answered));
            }
        }
    }

    /// Makes the queue for answers, if it is not there, and has somebody read it.
    async fn make_replies(&self) -> Result<(), QueueError> {
        let making = Arc::clone(&self.shared.calls.making).lock_owned().await;
        if self.shared.calls.state().replies.is_some() {
            return Ok(());
        }
        let client = self.inner();
        // a call that is given up leaves it to the next one
        let made = tokio::spawn(async move {
            let _making = making;
            let name = format!("{}-{:016x}", program(), random() as u64);
            let create = Create {
                queue: Some(name.clone()),
                kind: Kind::Transient,
                options: None,
                exclusive: false,
            };
            let options = SubscribeOptions::default().credit(1_024).credit_bytes(16 << 20);
            match Consumer::start(&client, &name, options, Some(create)).await {
                Ok(consumer) => {
                    let replies = Some((name.clone(), consumer.up()));
                    client.shared.calls.state().replies = replies;
                    tokio::spawn(take_replies(client, name, consumer));
                    Ok(())
                }
                Err(error) => {
                    // it may be there all the same
                    let _ = client.destroy(&name, false).await;
                    Err(error)
                }
            }
        });
        made.await.unwrap_or(Err(QueueError::Lost))
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

async fn take_replies(client: Client, queue: String, mut replies: Consumer) {
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
                let waiting = calls.state().waiting.remove(&message.record.correlation);
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
            // over a new connection the name may be another's: that of a connection of which the broker does not
            // know yet that it has ended, or of somebody who takes it
            Some(Err(error)) => warn!(%error, "the queue for answers to calls is lost"),
            None => break,
        }
    }
    calls.lose(&queue);
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
        self.client.shared.calls.state().waiting.remove(&self.correlation);
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
    /// `concurrency` at once, with 1 in the order in which they are delivered. A request is acknowledged once its
    /// answer is sent: if this process dies before, another server gets it. While the handler works, the request is
    /// held. If the connection is lost meanwhile the request is delivered again, and handled again, here not before
    /// the handler that has it is done.
    ///
    /// The handler returns the answer, or an error number, positive, and a text, of which up to 65,531 bytes are
    /// sent. An answer that is refused, as one that is too long, becomes an error with that number. If the caller is
    /// not there it is waited for, up to 3 s.
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
        let places = concurrency.max(1) as usize;
        let serving = serve(client.clone(), consumer, Arc::new(handler), places, Arc::clone(&stop));
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
    places: usize,
    stop: Arc<Notify>,
) -> Result<(), QueueError>
where
    H: Fn(Message) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Bytes, (i32, String)>> + Send + 'static,
{
    let mut under_way = JoinSet::new();
    let outcome = loop {
        let message = tokio::select! {
            // what is delivered again over a new connection waits until there is a place for it
            message = consumer.next(), if under_way.len() < places => message,
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
        let answer = match answer {
            Ok(body) => OutMessage::new(body),
            Err((errno, text)) => OutMessage::default().error(Refusal { errno, text }),
        };
        let answer = answer.correlation(message.record.correlation.clone());
        // a queue that takes it only when there is room holds nobody up for ever
        if timeout(LEASE, send_answer(client, reply_to, answer)).await.is_err() {
            debug!(reply_to, "the answer is not taken");
        }
    } else if let Err((_, text)) = answer {
        debug!(text, "a request without a caller failed");
    }
    if let Err(error) = client.ack(&message).await {
        debug!(%error, "a request may come again");
    }
}

async fn send_answer(client: &Client, reply_to: &str, mut answer: OutMessage) {
    let mut pauses = interval(ANSWER_PAUSE);
    for _ in 0..ANSWER_ATTEMPTS {
        pauses.tick().await;
        let error = match client.send(reply_to, answer.clone()).await {
            Ok(_) => return,
            Err(error) => error,
        };
        match error.errno() {
            Some(errno::ENOENT) => {}
            // the caller is told instead
            Some(errno) if answer.record.error.is_none() => {
                warn!(%error, reply_to, "the answer is refused");
                let refusal = Refusal { errno, text: format!("the answer is refused: {error}") };
                let correlation = answer.record.correlation;
                answer = OutMessage::default().correlation(correlation).error(refusal);
            }
            _ => return warn!(%error, reply_to, "cannot answer"),
        }
    }
    debug!(reply_to, "the caller is gone");
}
