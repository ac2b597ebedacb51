//! SUBSCRIBE: broadcasts, chosen by conditions.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc};

use super::error::RequestError;
use super::link::{Frame, Handle};
use super::request::REQUEST_DEADLINE;
use super::{Destination, Endpoint};
use crate::wire::{Command, ControlAttribute, Key, Messages, nlm};

/// How many events wait to be taken; further ones are lost and counted.
const EVENTS_MAX: usize = 4_096;

/// Which broadcasts a subscription is for: all, unless narrowed down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    keys: Vec<Key>,
    from: Option<Destination>,
}

impl Filter {
    /// Everything that is broadcast.
    pub fn all() -> Self {
        Self::default()
    }

    /// Adds a condition on the payload; all must match. A broker takes at most 16.
    #[must_use]
    pub fn key(mut self, key: Key) -> Self {
        self.keys.push(key);
        self
    }

    /// Only what this subsystem broadcasts.
    #[must_use]
    pub fn from(mut self, subsystem: impl Into<Destination>) -> Self {
        self.from = Some(subsystem.into());
        self
    }
}

/// Something that was broadcast.
#[derive(Clone)]
pub enum Event {
    /// A payload.
    Message {
        /// The address of the subsystem that it came from; 0 if it came from none.
        from: u32,
        /// What was broadcast, as it was: one or more messages.
        payload: Bytes,
    },
    /// At least this many frames before the next event were lost, here, at the broker or in the kernel:
    /// the subscriber was too slow. A table that is kept up to date from events is to be read anew.
    Lost(u64),
}

/// A subscription. Ends with the link; dropping it unsubscribes.
pub struct Subscription {
    handle: Arc<Handle>,
    subscriber: Arc<Subscriber>,
    cid: u32,
    port: u32,
}

impl Endpoint {
    /// Subscribes to broadcasts. What is broadcast after this returns is received.
    ///
    /// # Errors
    /// As [`request`](Self::request); [`RequestError::Refused`] if the broker does not let this link
    /// subscribe.
    ///
    /// Not cancel-safe: dropped half-way, the subscription may stay until the link ends, and its events
    /// are dropped on arrival.
    pub async fn subscribe(&self, filter: Filter) -> Result<Subscription, RequestError> {
        let link = &self.handle.0;
        let from = match filter.from {
            Some(from) => Some(self.resolve(from, Some(REQUEST_DEADLINE)).await?),
            None => None,
        };
        let subscriber = Arc::new(Subscriber::new(filter.keys.clone(), from));
        link.add_subscriber(Arc::clone(&subscriber));
        let answer = link
            .control(self.port, Command::Subscribe, REQUEST_DEADLINE, |mut control| {
                if let Some(from) = from {
                    control = control.u32(ControlAttribute::Addr, from)?;
                }
                filter.keys.iter().try_fold(control, |control, key| control.key(*key))
            })
            .await;
        match answer.map(|answer| answer.cid) {
            Ok(Some(cid)) => Ok(Subscription {
                handle: Arc::clone(&self.handle),
                subscriber,
                cid,
                port: self.port,
            }),
            other => {
                link.remove_subscriber(&subscriber);
                Err(other.err().unwrap_or_else(|| link.lost()))
            }
        }
    }

    /// Broadcasts `message` to everybody who subscribed. Nobody answers; nobody may be there.
    ///
    /// # Errors
    /// [`RequestError::TooBig`], [`RequestError::Lost`].
    ///
    /// Cancel-safe: sent or not.
    pub async fn publish(&self, message: &[u8]) -> Result<(), RequestError> {
        let link = &self.handle.0;
        let mut frame = Vec::new();
        link.head(0, 0, 0, self.port).emit(message, &mut frame)?;
        link.send(&mut frame).await
    }
}

impl Subscription {
    /// The next event; `None` when the link has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.subscriber.next().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let handle = Arc::clone(&self.handle);
        handle.0.remove_subscriber(&self.subscriber);
        let (cid, port) = (self.cid, self.port);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let unsubscribed =
                handle.0.control(port, Command::Unsubscribe, REQUEST_DEADLINE, |c| {
                    c.u32(ControlAttribute::Cid, cid)
                });
            if let Err(error) = unsubscribed.await {
                tracing::debug!(%error, cid, "cannot unsubscribe");
            }
        });
    }
}

/// The link's side of a subscription. Several on one link share what the broker sends once, so each
/// looks for itself at what it gets.
pub(super) struct Subscriber {
    keys: Vec<Key>,
    from: Option<u32>,
    queue: std::sync::Mutex<Queue>,
    receiver: Mutex<mpsc::Receiver<(Event, Frame)>>,
}

struct Queue {
    /// `None` when the link has ended.
    sender: Option<mpsc::Sender<(Event, Frame)>>,
    /// Events that found no room since the last one that did.
    lost: u64,
}

impl Subscriber {
    fn new(keys: Vec<Key>, from: Option<u32>) -> Self {
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        let queue = std::sync::Mutex::new(Queue { sender: Some(sender), lost: 0 });
        Self { keys, from, queue, receiver: Mutex::new(receiver) }
    }

    /// Takes an event if it is wanted; never waits.
    pub(super) fn offer(&self, from: u32, payload: &Bytes, frame: &Frame) {
        let concerns = from == 0 || self.from.is_none_or(|wanted| wanted == from);
        let event = match overrun(payload) {
            Some(lost) if concerns => Event::Lost(lost),
            _ if self.wants(from, payload) => Event::Message { from, payload: payload.clone() },
            _ => return,
        };
        crate::node::lock(&self.queue).push(event, frame);
    }

    fn wants(&self, from: u32, payload: &[u8]) -> bool {
        self.from.is_none_or(|wanted| wanted == from)
            && self.keys.iter().all(|key| key.matches(payload))
    }

    pub(super) fn end(&self) {
        crate::node::lock(&self.queue).sender = None;
    }

    async fn next(&self) -> Option<Event> {
        let mut receiver = self.receiver.lock().await;
        {
            let mut queue = crate::node::lock(&self.queue);
            if queue.lost > 0 && receiver.is_empty() {
                return Some(Event::Lost(std::mem::take(&mut queue.lost)));
            }
        }
        receiver.recv().await.map(|(event, _)| event)
    }
}

impl Queue {
    /// Puts an event at the end, behind the word of those that found no room before it.
    fn push(&mut self, event: Event, frame: &Frame) {
        let Some(sender) = &self.sender else { return };
        if self.lost > 0 && sender.try_send((Event::Lost(self.lost), frame.clone())).is_ok() {
            self.lost = 0;
        }
        let count = if let Event::Lost(count) = event { count } else { 1 };
        if sender.try_send((event, frame.clone())).is_err() {
            self.lost += count;
        }
    }
}

/// The count in the message that says that events were lost; at least 1, as a kernel does not say.
fn overrun(payload: &[u8]) -> Option<u64> {
    let message = Messages::new(payload).next()?.ok()?;
    let count = message.body().first_chunk::<4>().map(|count| u32::from_le_bytes(*count))?;
    (message.header.kind == nlm::OVERRUN).then_some(u64::from(count.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::MessageBuilder;

    fn offer(subscriber: &Subscriber, from: u32, payload: impl Into<Bytes>) {
        let payload = payload.into();
        let frame = Frame { bytes: payload.clone(), _held: None };
        subscriber.offer(from, &payload, &frame);
    }

    fn overrun_of(count: u32) -> Vec<u8> {
        MessageBuilder::new(nlm::OVERRUN, 0).body(&count.to_le_bytes()).finish()
    }

    async fn number(subscriber: &Subscriber) -> Result<u32, u64> {
        match subscriber.next().await.unwrap() {
            Event::Message { payload, .. } => {
                Ok(u32::from_le_bytes(payload[..].try_into().unwrap()))
            }
            Event::Lost(count) => Err(count),
        }
    }

    #[tokio::test]
    async fn a_gap_is_told_before_what_comes_after_it() {
        let subscriber = Subscriber::new(Vec::new(), None);
        let max = EVENTS_MAX as u32;
        for event in 0..max + 3 {
            offer(&subscriber, 0, event.to_le_bytes().to_vec());
        }
        assert_eq!(number(&subscriber).await, Ok(0));
        assert_eq!(number(&subscriber).await, Ok(1));
        offer(&subscriber, 0, 9_999u32.to_le_bytes().to_vec());
        offer(&subscriber, 0, 10_000u32.to_le_bytes().to_vec());
        for event in 2..max {
            assert_eq!(number(&subscriber).await, Ok(event));
        }
        assert_eq!(number(&subscriber).await, Err(3));
        assert_eq!(number(&subscriber).await, Ok(9_999));
        assert_eq!(number(&subscriber).await, Err(1));
    }

    #[tokio::test]
    async fn an_overrun_passes_every_key_and_wakes_who_waits() {
        let nothing = Key { offset: 0, key: 1, mask: u32::MAX };
        let subscriber = Subscriber::new(vec![nothing], Some(7));
        let (told, ()) = tokio::join!(number(&subscriber), async {
            offer(&subscriber, 8, overrun_of(5));
            offer(&subscriber, 7, overrun_of(0));
        });
        assert_eq!(told, Err(1), "of another subsystem is no concern, and a kernel does not count");
        offer(&subscriber, 0, overrun_of(4));
        assert_eq!(number(&subscriber).await, Err(4), "the broker's own word");
    }
}
