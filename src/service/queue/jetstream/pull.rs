//! Messages on their way from a queue's consumer to this broker.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures_core::Stream as _;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::super::machine::Refusal;
use super::cluster::{CALL_MAX, Cluster, Opened, bounded};
use super::faults::away;
use crate::store::Time;

/// Messages that one pull asks for. It bounds what has to be given back when a pull is ended early, and
/// what is said for that.
pub(super) const PULL_MAX: u32 = 64;

/// How long a pull waits at the server.
pub(super) const PULL_EXPIRES: Duration = Duration::from_secs(30);

/// How often the server says that a pull still waits, if it does so for long enough. It does not take more
/// than half of that time.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// The header with the time at which a message is of no use any more, in microseconds.
pub(super) const EXPIRES: &str = "Nlbus-Expires";

/// A message that the cluster leaves to this broker for a while.
#[derive(Debug)]
pub(super) struct Pulled {
    pub(super) opened: Arc<Opened>,
    pub(super) id: u64,
    pub(super) attempt: u32,
    pub(super) arrived: Time,
    pub(super) expires: Option<Time>,
    pub(super) record: Bytes,
    /// Where to say what becomes of it.
    pub(super) ack: String,
}

impl Pulled {
    fn read(opened: &Arc<Opened>, message: async_nats::Message) -> Option<Self> {
        let ack = message.reply?.to_string();
        // $JS.ACK.(domain.account.)stream.consumer.deliveries.sequence.consumer's.nanoseconds.pending
        let mut tokens = ack.split('.').skip(if ack.split('.').count() > 9 { 6 } else { 4 });
        let mut number = || tokens.next()?.parse::<u64>().ok();
        let (attempt, sequence, _, nanoseconds) = (number()?, number()?, number()?, number()?);
        let headers = message.headers.as_ref();
        let expires = headers.and_then(|headers| headers.get(EXPIRES)?.as_str().parse().ok());
        Some(Self {
            opened: Arc::clone(opened),
            id: opened.id(sequence),
            attempt: attempt.min(u32::MAX.into()) as u32,
            arrived: Time(nanoseconds / 1_000),
            expires: expires.map(Time),
            record: message.payload,
            ack,
        })
    }
}

/// What comes of a pull.
pub(super) enum Came {
    Message(Pulled),
    Ended(End),
}

/// Why a pull is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// There is nothing, or not in time.
    Empty,
    /// The next message is longer than the bytes that were asked for.
    TooLong,
    /// The queue or its consumer is gone, or it cannot be known whether it is.
    Lost,
}

/// A place for what is pulled from one queue, one pull at a time.
pub(super) struct Inbox {
    cluster: Arc<Cluster>,
    opened: Arc<Opened>,
    subscriber: Subscriber,
    subject: String,
    /// What came, ends of pulls included.
    read: u64,
    /// Messages that the pull may still bring.
    outstanding: u32,
    /// How long the server may say nothing.
    silence_max: Duration,
    /// When it should have said something.
    overdue: Pin<Box<Sleep>>,
    /// When something was last read.
    heard: Instant,
}

impl Inbox {
    pub(super) async fn open(
        cluster: &Arc<Cluster>,
        opened: &Arc<Opened>,
    ) -> Result<Self, Refusal> {
        let subject = cluster.client.new_inbox();
        let subscriber = bounded(cluster.client.subscribe(subject.clone())).await?.map_err(away)?;
        Ok(Self {
            cluster: Arc::clone(cluster),
            opened: Arc::clone(opened),
            subscriber,
            subject,
            read: 0,
            outstanding: 0,
            silence_max: CALL_MAX,
            overdue: Box::pin(sleep_until(Instant::now() + CALL_MAX)),
            heard: Instant::now(),
        })
    }

    pub(super) fn is_asking(&self) -> bool {
        self.outstanding > 0
    }

    /// Asks for up to `messages`, at most [`PULL_MAX`], of up to `bytes`, if that is given; those that are
    /// there, or those that come within `wait`.
    pub(super) async fn ask(
        &mut self,
        messages: u32,
        bytes: Option<u64>,
        wait: Option<Duration>,
    ) -> Result<(), Refusal> {
        let messages = messages.clamp(1, PULL_MAX);
        let bytes = bytes.map_or(String::new(), |max| {
            format!(",\"max_bytes\":{}", max.clamp(1, i32::MAX as u64))
        });
        let wait_ns = wait.unwrap_or_default().as_nanos().clamp(1, u64::MAX.into());
        let (ending, silence_max) = match wait {
            None => ("\"no_wait\":true".to_owned(), CALL_MAX),
            Some(wait) if wait >= 2 * HEARTBEAT => {
                let heartbeat = HEARTBEAT.as_nanos();
                let ending = format!("\"expires\":{wait_ns},\"idle_heartbeat\":{heartbeat}");
                (ending, 2 * HEARTBEAT + CALL_MAX)
            }
            Some(wait) => (format!("\"expires\":{wait_ns}"), wait + CALL_MAX),
        };
        let body = format!("{{\"batch\":{messages}{bytes},{ending}}}");
        let Opened { stream, consumer, .. } = &*self.opened;
        let api = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        let asked = self.cluster.client.publish_with_reply(api, self.subject.clone(), body.into());
        bounded(asked).await?.map_err(away)?;
        self.outstanding = messages;
        self.silence_max = silence_max;
        self.hear();
        Ok(())
    }

    /// The server is there.
    fn hear(&mut self) {
        self.heard = Instant::now();
        self.overdue.as_mut().reset(self.heard + self.silence_max);
    }

    /// The next thing that comes of the pull, if there is one. Cancel-safe.
    pub(super) async fn next(&mut self) -> Came {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Came> {
        while self.outstanding > 0 {
            let message = match Pin::new(&mut self.subscriber).poll_next(context) {
                Poll::Ready(Some(message)) => message,
                Poll::Ready(None) => {
                    self.outstanding = 0;
                    return Poll::Ready(Came::Ended(End::Lost));
                }
                Poll::Pending => {
                    std::task::ready!(self.overdue.as_mut().poll(context));
                    // still to be reckoned with when it is closed
                    return Poll::Ready(Came::Ended(End::Lost));
                }
            };
            self.read += 1;
            self.hear();
            if let Some(status) = message.status {
                let said = message.description.as_deref().unwrap_or_default();
                let end = match status.as_u16() {
                    100 => continue,
                    404 | 408 => End::Empty,
                    409 if said.contains("MaxBytes") => End::TooLong,
                    _ => End::Lost,
                };
                self.outstanding = 0;
                return Poll::Ready(Came::Ended(end));
            }
            if let Some(pulled) = Pulled::read(&self.opened, message) {
                self.outstanding -= 1;
                return Poll::Ready(Came::Message(pulled));
            }
        }
        Poll::Pending
    }

    /// Ends it: what had been on its way, which is to be given back.
    ///
    /// If the server were only told that nobody listens any more, messages that it has sent by then would be
    /// lost until their lease is over. So it is told how many things may still come, as many as the pull had
    /// left, and these are sent right behind: whatever the server sent before stands before them.
    pub(super) async fn close(mut self) -> Vec<Pulled> {
        if self.outstanding == 0 || self.cluster.check().is_err() {
            return Vec::new();
        }
        // the messages, the end, and what else the server may have said since something was read
        let beats = self.heard.elapsed().as_secs() / HEARTBEAT.as_secs() + 1;
        let left = u64::from(self.outstanding) + 1 + beats;
        let mut found = Vec::new();
        let closing = async {
            if self.subscriber.unsubscribe_after(self.read + left).await.is_err() {
                return;
            }
            for _ in 0..left {
                let fence = self.cluster.client.publish(self.subject.clone(), Bytes::new());
                if fence.await.is_err() {
                    return;
                }
            }
            let next = |inbox: &mut Self, context: &mut Context<'_>| {
                Pin::new(&mut inbox.subscriber).poll_next(context)
            };
            while let Some(message) = std::future::poll_fn(|context| next(&mut self, context)).await
            {
                found.extend(Pulled::read(&self.opened, message));
            }
        };
        let _ = timeout(CALL_MAX, closing).await;
        self.forget().await;
        found
    }

    /// Has the server see that nobody waits here any more, as it does when it is asked about the consumer.
    /// Servers up to 2.9 otherwise look only after they have taken a message for the pull; one that had been
    /// given back before would then be lost until its lease is over.
    async fn forget(&self) {
        let Opened { stream, consumer, .. } = &*self.opened;
        let api = format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}");
        let _ = bounded(self.cluster.client.request(api, Bytes::new())).await;
    }
}
