//! SUBSCRIBE: broadcasts, chosen by conditions.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;

use super::error::RequestError;
use super::link::Handle;
use super::request::REQUEST_DEADLINE;
use super::{Destination, Endpoint};
use crate::node::lock;
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
    /// This many frames before the next event were lost, here or at the broker: the subscriber was too
    /// slow. A table that is kept up to date from events is to be read anew.
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
    queue: Mutex<Queue>,
    /// An event or a loss is there, or the link has ended.
    arrived: Notify,
}

#[derive(Default)]
struct Queue {
    /// Each with how many were lost before it.
    events: VecDeque<(u64, Event)>,
    /// Lost after all of those.
    lost: u64,
    ended: bool,
}

impl Subscriber {
    fn new(keys: Vec<Key>, from: Option<u32>) -> Self {
        Self { keys, from, queue: Mutex::default(), arrived: Notify::new() }
    }

    /// Takes an event if it is wanted; never waits. What waits here does not count against the sender's
    /// credit: a subscriber that does not read must hold up nobody.
    pub(super) fn offer(&self, from: u32, payload: &Bytes) {
        let mut queue = lock(&self.queue);
        if from == 0
            && let Some(lost) = overrun(payload)
        {
            queue.lost += lost;
        } else if !self.wants(from, payload) {
            return;
        } else if queue.events.len() >= EVENTS_MAX {
            queue.lost += 1;
        } else {
            let lost = std::mem::take(&mut queue.lost);
            queue.events.push_back((lost, Event::Message { from, payload: payload.clone() }));
        }
        drop(queue);
        self.arrived.notify_one();
    }

    fn wants(&self, from: u32, payload: &[u8]) -> bool {
        self.from.is_none_or(|wanted| wanted == from)
            && self.keys.iter().all(|key| key.matches(payload))
    }

    pub(super) fn end(&self) {
        lock(&self.queue).ended = true;
        self.arrived.notify_one();
    }

    async fn next(&self) -> Option<Event> {
        loop {
            {
                let mut queue = lock(&self.queue);
                let lost = match queue.events.front_mut() {
                    Some((lost, _)) => std::mem::take(lost),
                    None => std::mem::take(&mut queue.lost),
                };
                if lost > 0 {
                    return Some(Event::Lost(lost));
                }
                match queue.events.pop_front() {
                    Some((_, event)) => return Some(event),
                    None if queue.ended => return None,
                    None => {}
                }
            }
            self.arrived.notified().await;
        }
    }
}

/// The count in the frame that a broker sends to a slow subscriber.
fn overrun(payload: &[u8]) -> Option<u64> {
    let message = Messages::new(payload).next()?.ok()?;
    let count = message.body().first_chunk::<4>().map(|count| u32::from_le_bytes(*count))?;
    (message.header.kind == nlm::OVERRUN).then_some(u64::from(count))
}
