//! SUBSCRIBE: broadcasts, chosen by conditions.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Notify;

use super::Endpoint;
use super::error::RequestError;
use super::filter::Filter;
use super::link::Handle;
use super::request::REQUEST_DEADLINE;
use crate::node::lock;
use crate::wire::{Command, ControlAttribute, Key, Messages, TooBig, nlm};

/// How many events wait to be taken; further ones are lost and counted.
pub const EVENTS_MAX: usize = 4_096;

/// How many bytes of events wait to be taken, passed by at most one event.
pub const EVENTS_BYTES_MAX: usize = 8 << 20;

/// Below this length an event is copied: a small piece would keep its whole read buffer alive.
const COPIED_BYTES_MAX: usize = 1_024;

/// Something that was broadcast, or that was not heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A payload.
    Message {
        /// The address of the subsystem that it came from; 0 if it came from none.
        from: u32,
        /// The group that it was published to.
        group: Option<String>,
        /// What was broadcast, as it was: one or more messages.
        payload: Bytes,
    },
    /// Between the event before and the one after this, so many were lost, here, at the broker or in the
    /// kernel: the subscriber was too slow. What the broker lost is counted for the link, whichever of its
    /// subscriptions would have had it; the kernel does not count, and 1 stands for any number. A table
    /// that is kept up to date from events is to be read anew.
    Lost(u64),
}

/// A subscription. Ends with the link; dropping it unsubscribes.
pub struct Subscription {
    handle: Arc<Handle>,
    subscriber: Arc<Subscriber>,
    cids: Vec<u32>,
    port: u32,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("cids", &self.cids).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Subscribes to broadcasts. What is broadcast after this returns is received.
    ///
    /// At most [`EVENTS_MAX`] events and [`EVENTS_BYTES_MAX`] bytes wait to be taken.
    ///
    /// # Errors
    /// As [`request`](Self::request); [`RequestError::Refused`] if the broker does not let this link
    /// subscribe.
    ///
    /// Not cancel-safe: dropped half-way, a subscription may stay until the link ends, and its events
    /// are dropped on arrival.
    pub async fn subscribe(&self, filter: Filter) -> Result<Subscription, RequestError> {
        self.subscribe_any([filter]).await
    }

    /// Subscribes to what meets at least one of `filters`. The events come in the order in which the
    /// broker saw them, each once.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe). Not cancel-safe likewise.
    pub async fn subscribe_any(
        &self,
        filters: impl IntoIterator<Item = Filter>,
    ) -> Result<Subscription, RequestError> {
        let mut choices = Vec::new();
        for Filter { keys, from, group } in filters {
            let from = match from {
                Some(from) => Some(self.resolve(from, None).await?),
                None => None,
            };
            choices.push(Choice { keys, from, group });
        }
        let subscriber = Arc::new(Subscriber::new(choices));
        self.handle.0.add_subscriber(Arc::clone(&subscriber));
        // from here on dropping it undoes what was done
        let mut subscription = Subscription {
            handle: Arc::clone(&self.handle),
            subscriber: Arc::clone(&subscriber),
            cids: Vec::new(),
            port: self.port,
        };
        for choice in &subscriber.choices {
            subscription.cids.push(self.subscribe_to(choice).await?);
        }
        Ok(subscription)
    }

    /// The number of the subscription at the broker.
    async fn subscribe_to(&self, choice: &Choice) -> Result<u32, RequestError> {
        let link = &self.handle.0;
        let subscribe = link.control(
            self.port,
            Command::Subscribe,
            link.command_max(REQUEST_DEADLINE),
            |mut control| {
                if let Some(from) = choice.from {
                    control = control.u32(ControlAttribute::Addr, from)?;
                }
                if let Some(group) = &choice.group {
                    control = control.string(ControlAttribute::Group, group)?;
                }
                choice.keys.iter().try_fold(control, |control, key| control.key(*key))
            },
        );
        subscribe.await?.cid.ok_or_else(|| link.lost())
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

    /// As [`publish`](Self::publish), to who subscribed to the group `group`
    /// ([`Filter::group_name`]), or to everything.
    ///
    /// # Errors
    /// As [`publish`](Self::publish); [`RequestError::TooBig`] also if the name is longer than 255 bytes.
    /// Cancel-safe likewise.
    pub async fn publish_to_group(&self, group: &str, message: &[u8]) -> Result<(), RequestError> {
        let link = &self.handle.0;
        let mut frame = Vec::new();
        link.head(0, 0, 0, self.port).emit_to_group(group, message, &mut frame)?;
        link.send(&mut frame).await
    }

    /// Broadcasts several messages, each a frame of its own, in one go: fewer system calls than as many
    /// calls of [`publish`](Self::publish).
    ///
    /// # Errors
    /// As [`publish`](Self::publish); nothing is sent then.
    ///
    /// Cancel-safe over a socket: all of them are sent or none.
    pub async fn publish_all<'m>(
        &self,
        messages: impl IntoIterator<Item = &'m [u8]>,
    ) -> Result<(), RequestError> {
        let link = &self.handle.0;
        let head = link.head(0, 0, 0, self.port);
        let mut run = Vec::new();
        messages
            .into_iter()
            .try_for_each(|message| head.emit(message, &mut run))
            .map_err(|too_big: TooBig| RequestError::from(too_big))?;
        link.send(&mut run).await
    }
}

impl Subscription {
    /// The next event; `None` when the link has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.subscriber.next().await
    }

    /// The next event if there is one already. `None` does not mean that none will come.
    pub fn try_next(&mut self) -> Option<Event> {
        lock(&self.subscriber.queue).pop()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let handle = Arc::clone(&self.handle);
        handle.0.remove_subscriber(&self.subscriber);
        let (cids, port) = (std::mem::take(&mut self.cids), self.port);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            for cid in cids {
                let unsubscribed =
                    handle.0.control(port, Command::Unsubscribe, REQUEST_DEADLINE, |c| {
                        c.u32(ControlAttribute::Cid, cid)
                    });
                if let Err(error) = unsubscribed.await {
                    tracing::debug!(%error, cid, "cannot unsubscribe");
                }
            }
        });
    }
}

/// What a frame for subscribers holds.
pub(super) struct Offer<'f> {
    pub(super) from: u32,
    pub(super) group: Option<&'f [u8]>,
    pub(super) payload: Bytes,
    /// The payload shares its memory with nothing but its own frame.
    pub(super) alone: bool,
}

/// A [`Filter`] whose names are resolved.
struct Choice {
    keys: Vec<Key>,
    from: Option<u32>,
    group: Option<String>,
}

impl Choice {
    /// As the broker decides it.
    fn wants(&self, offer: &Offer<'_>, overrun: bool) -> bool {
        self.from.is_none_or(|wanted| wanted == offer.from)
            && self.group.as_ref().is_none_or(|group| offer.group == Some(group.as_bytes()))
            && (overrun || self.keys.iter().all(|key| key.matches(&offer.payload)))
    }
}

/// The link's side of a subscription. Several on one link share what the broker sends once, so each
/// looks for itself at what it gets.
pub(super) struct Subscriber {
    choices: Vec<Choice>,
    queue: Mutex<Queue>,
    /// Something came, or the link has ended. One waits.
    arrived: Notify,
}

impl Subscriber {
    fn new(choices: Vec<Choice>) -> Self {
        Self { choices, queue: Mutex::default(), arrived: Notify::new() }
    }

    /// Takes an event if it is wanted; never waits.
    pub(super) fn offer(&self, offer: &Offer<'_>) {
        let lost = overrun(&offer.payload);
        // from nobody: the broker itself has lost what was for this link
        let told = lost.is_some() && offer.from == 0 && offer.group.is_none();
        if !told && !self.choices.iter().any(|choice| choice.wants(offer, lost.is_some())) {
            return;
        }
        match lost {
            Some(lost) => lock(&self.queue).lose(lost),
            None => lock(&self.queue).push(offer),
        }
        self.arrived.notify_one();
    }

    pub(super) fn end(&self) {
        lock(&self.queue).ended = true;
        self.arrived.notify_one();
    }

    async fn next(&self) -> Option<Event> {
        loop {
            {
                let mut queue = lock(&self.queue);
                let event = queue.pop();
                if event.is_some() || queue.ended {
                    return event;
                }
            }
            self.arrived.notified().await;
        }
    }
}

/// Invariant: no two `Lost` stand next to each other, so there are at most one more of them than of
/// messages, which are bounded.
#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    messages: usize,
    bytes: usize,
    ended: bool,
}

impl Queue {
    fn push(&mut self, offer: &Offer<'_>) {
        if self.messages >= EVENTS_MAX || self.bytes >= EVENTS_BYTES_MAX {
            return self.lose(1);
        }
        let payload = match offer.payload.len() {
            ..COPIED_BYTES_MAX if !offer.alone => Bytes::copy_from_slice(&offer.payload),
            _ => offer.payload.clone(),
        };
        self.messages += 1;
        self.bytes += payload.len();
        let group = offer.group.map(|group| String::from_utf8_lossy(group).into_owned());
        self.events.push_back(Event::Message { from: offer.from, group, payload });
    }

    fn lose(&mut self, count: u64) {
        match self.events.back_mut() {
            Some(Event::Lost(lost)) => *lost = lost.saturating_add(count),
            _ => self.events.push_back(Event::Lost(count)),
        }
    }

    fn pop(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Message { payload, .. } = &event {
            self.messages -= 1;
            self.bytes -= payload.len();
        }
        Some(event)
    }
}

/// The count in the message that says that events were lost; at least 1, as a kernel does not say.
fn overrun(payload: &[u8]) -> Option<u64> {
    let message = Messages::new(payload).next()?.ok()?;
    if message.header.kind != nlm::OVERRUN {
        return None;
    }
    let count = message.body().first_chunk::<4>().map_or(0, |count| u32::from_le_bytes(*count));
    Some(u64::from(count.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::wire::MessageBuilder;

    fn subscriber(choices: Vec<Choice>) -> Subscriber {
        Subscriber::new(choices)
    }

    fn everything() -> Choice {
        Choice { keys: Vec::new(), from: None, group: None }
    }

    fn offer(from: u32, payload: Vec<u8>) -> Offer<'static> {
        Offer { from, group: None, payload: payload.into(), alone: false }
    }

    fn numbered(number: usize) -> Vec<u8> {
        MessageBuilder::new(0x20, 0).body(&(number as u32).to_le_bytes()).finish()
    }

    fn overrun_of(count: u32) -> Vec<u8> {
        MessageBuilder::new(nlm::OVERRUN, 0).body(&count.to_le_bytes()).finish()
    }

    fn drain(subscriber: &Subscriber) -> Vec<Event> {
        std::iter::from_fn(|| lock(&subscriber.queue).pop()).collect()
    }

    #[test]
    fn events_at_the_bound_are_kept_and_one_past_it_is_counted_where_it_was() {
        let subscriber = subscriber(vec![everything()]);
        for number in 0..EVENTS_MAX + 3 {
            subscriber.offer(&offer(0, numbered(number)));
        }
        assert!(matches!(lock(&subscriber.queue).pop(), Some(Event::Message { .. })));
        subscriber.offer(&offer(0, numbered(7)));
        let events = drain(&subscriber);
        assert_eq!(events.len(), EVENTS_MAX + 1);
        assert_eq!(
            events[EVENTS_MAX - 1],
            Event::Lost(3),
            "between those before and the one after"
        );
        assert_eq!(lock(&subscriber.queue).bytes, 0);
    }

    #[test]
    fn events_are_bounded_in_bytes_too() {
        let subscriber = subscriber(vec![everything()]);
        let payload = MessageBuilder::new(0x20, 0).body(&vec![1; (1 << 16) - 16]).finish();
        let fits = EVENTS_BYTES_MAX >> 16;
        for _ in 0..fits + 2 {
            subscriber.offer(&offer(0, payload.clone()));
        }
        let events = drain(&subscriber);
        assert_eq!((events.len(), events.last()), (fits + 1, Some(&Event::Lost(2))));
    }

    #[test]
    fn an_overrun_of_a_wanted_subsystem_passes_the_keys_and_one_of_another_does_not_count() {
        let keys = vec![Key { offset: 4, key: 24, mask: 0xfffc }];
        let subscriber = subscriber(vec![Choice { keys, from: Some(5), group: None }]);
        subscriber.offer(&offer(6, overrun_of(9)));
        assert_eq!(drain(&subscriber), []);
        subscriber.offer(&offer(5, overrun_of(0)));
        subscriber.offer(&offer(0, overrun_of(2)));
        assert_eq!(drain(&subscriber), [Event::Lost(3)], "1 for any number, and 2 at the broker");
    }

    #[test]
    fn one_of_several_choices_is_enough_and_gives_one_copy() {
        let from = |from| Choice { keys: Vec::new(), from: Some(from), group: None };
        let group = Choice { group: Some("a".to_owned()), ..everything() };
        let subscriber = subscriber(vec![from(5), from(5), group]);
        subscriber.offer(&offer(5, numbered(0)));
        subscriber.offer(&offer(6, numbered(1)));
        subscriber.offer(&Offer { group: Some(b"a"), ..offer(6, numbered(2)) });
        subscriber.offer(&Offer { group: Some(b"ab"), ..offer(6, numbered(3)) });
        let events = drain(&subscriber);
        assert_eq!(events.len(), 2);
        let Event::Message { group, from: 6, .. } = &events[1] else { panic!("{events:?}") };
        assert_eq!(group.as_deref(), Some("a"));
    }
}
