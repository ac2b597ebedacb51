//! Messages of a subscription that wait to be taken.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::error::QueueError;
use super::message::Message;

/// Between the task of a subscription, which never waits, and who takes the messages.
///
/// The broker lets no more be held than there is credit for, and the leases of what waits here end in the
/// order in which it came. So what is older than the newest ones that there is credit for has lost its lease
/// and comes again, as what came over an earlier connection does.
pub(super) struct Inbox {
    state: Mutex<State>,
    /// There is something to take.
    news: Notify,
    /// Nobody takes anything any more.
    closed: Notify,
    credit: usize,
    credit_bytes: u64,
}

#[derive(Default)]
struct State {
    /// As they came, each with the length of its record.
    waiting: BTreeMap<u64, (Message, u64)>,
    /// Which of them has an id.
    places: HashMap<u64, u64>,
    bytes: u64,
    last: u64,
    /// It has ended, and why if that is still to be told.
    ended: Option<Option<QueueError>>,
}

impl State {
    fn remove(&mut self, place: u64) -> Option<Message> {
        let (message, length) = self.waiting.remove(&place)?;
        self.places.remove(&message.id);
        self.bytes -= length;
        Some(message)
    }

    fn oldest(&self) -> Option<u64> {
        self.waiting.first_key_value().map(|(place, _)| *place)
    }
}

impl Inbox {
    pub(super) fn new(credit: u32, credit_bytes: u64) -> Self {
        Self {
            state: Mutex::default(),
            news: Notify::new(),
            closed: Notify::new(),
            credit: credit.max(1) as usize,
            credit_bytes,
        }
    }

    /// A panic of another holder leaves nothing half-done.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a message in place of an earlier delivery of it.
    pub(super) fn put(&self, message: Message, length: u64) {
        let mut state = self.state();
        if let Some(place) = state.places.get(&message.id).copied() {
            state.remove(place);
        }
        state.last += 1;
        let place = state.last;
        state.places.insert(message.id, place);
        state.waiting.insert(place, (message, length));
        state.bytes += length;
        while (state.waiting.len() > self.credit
            || state.waiting.len() > 1 && state.bytes > self.credit_bytes)
            && let Some(oldest) = state.oldest()
        {
            state.remove(oldest);
        }
        drop(state);
        self.news.notify_one();
    }

    /// The connection is lost, and nothing that came over it is held any more.
    pub(super) fn clear(&self) {
        let mut state = self.state();
        *state = State { last: state.last, ..State::default() };
    }

    /// Nothing follows.
    pub(super) fn end(&self, why: Option<QueueError>) {
        self.state().ended = Some(why);
        self.news.notify_one();
    }

    /// The next message; `None` after the end. Cancel-safe, for one taker.
    pub(super) async fn next(&self) -> Option<Result<Message, QueueError>> {
        loop {
            {
                let mut state = self.state();
                if let Some(oldest) = state.oldest() {
                    return state.remove(oldest).map(Ok);
                }
                if let Some(why) = &mut state.ended {
                    return why.take().map(Err);
                }
            }
            self.news.notified().await;
        }
    }

    pub(super) fn close(&self) {
        self.closed.notify_one();
    }

    /// Waits until it is closed; completes once. Cancel-safe.
    pub(super) async fn closed(&self) {
        self.closed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::machine::Delivery;
    use super::*;
    use crate::store::Time;

    fn message(id: u64, attempt: u32) -> Message {
        let queue = "q".into();
        let record = bytes::Bytes::new();
        Message::new(Delivery { queue, id, attempt, arrived: Time(0), record }, 1)
    }

    async fn all(inbox: &Inbox) -> Vec<(u64, u32)> {
        inbox.end(None);
        let mut all = Vec::new();
        while let Some(Ok(message)) = inbox.next().await {
            all.push((message.id, message.attempt));
        }
        all
    }

    #[tokio::test]
    async fn of_a_message_the_last_delivery_waits_alone() {
        let inbox = Inbox::new(3, 100);
        for (id, attempt) in [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)] {
            inbox.put(message(id, attempt), 10);
        }
        assert_eq!(all(&inbox).await, [(3, 1), (1, 2), (2, 2)]);
        assert_eq!(inbox.state().bytes, 0);
    }

    #[tokio::test]
    async fn what_waits_is_bounded_by_the_credit_in_messages_and_in_bytes() {
        let inbox = Inbox::new(3, 100);
        for id in 1..=4 {
            inbox.put(message(id, 1), 10);
        }
        assert_eq!(inbox.state().places.len(), 3);
        inbox.put(message(5, 1), 81);
        assert_eq!(inbox.state().waiting.len(), 2, "of 101 and 91 bytes the first is too much");
        inbox.put(message(6, 1), 1_000);
        assert_eq!(all(&inbox).await, [(6, 1)], "one is let through");
    }

    #[tokio::test]
    async fn what_came_over_a_lost_connection_is_forgotten() {
        let inbox = Inbox::new(3, 100);
        inbox.put(message(1, 1), 60);
        inbox.clear();
        inbox.put(message(2, 1), 60);
        assert_eq!(all(&inbox).await, [(2, 1)]);
    }
}
