//! Who takes messages at this broker, and what each gets.

use std::sync::Arc;

use tokio::sync::{oneshot, watch};

use super::super::machine::{
    Answer, CREDIT_MAX, Delivery, Effect, RECEIVE_QUEUES_MAX, Receive, Refusal, Subscribe,
    WAITING_PER_SESSION_MAX, What,
};
use super::engine::Front;
use super::event::Grant;
use super::pull::Pulled;
use super::receive::Receiving;
use super::subscription::Subscription;
use crate::store::Time;
use crate::wire::errno;

/// RECEIVEs and subscriptions of this broker.
const TAKERS_MAX: usize = 8_192;

/// Bytes of messages that sessions of this broker hold, past which no further RECEIVE is taken, and
/// subscriptions get one message at a time.
const HELD_BYTES_MAX: u64 = 1 << 30;

/// What has to be done with until all is as before: else it would change with each message.
const HELD_BYTES_LEFT: u64 = HELD_BYTES_MAX / 8;

/// Whoever takes messages.
pub(super) struct Taker {
    /// How many there had been when it was made, this one included.
    pub(super) made: u64,
    pub(super) token: u64,
    pub(super) session: u32,
    pub(super) queues: Vec<Arc<str>>,
    pub(super) lease_ms: Option<u64>,
    pub(super) how: How,
    pub(super) pulling: Pulling,
}

/// It is closed when the task of a taker pulls no more.
pub(super) type Pulling = watch::Sender<()>;

pub(super) enum How {
    Subscribed(Subscribed),
    /// Its task ends when this is dropped. `auto_ack`: it does not hold what it gets.
    Receives {
        _over: oneshot::Sender<()>,
        auto_ack: bool,
    },
}

pub(super) struct Subscribed {
    grants: watch::Sender<Grant>,
    credit: (u64, u64),
    came: (u64, u64),
    pub(super) held: (u64, u64),
}

impl Subscribed {
    /// Lets it take as much as it has room for, and if this broker is full, one message at most.
    pub(super) fn grant(&self, full: bool) {
        let most = if full { 1 } else { self.credit.0 };
        let room = (most.saturating_sub(self.held.0), self.credit.1.saturating_sub(self.held.1));
        self.grants.send_replace(Grant {
            messages: self.came.0 + room.0,
            bytes: self.came.1 + room.1,
            came: self.came.0,
            idle: self.held.0 == 0,
        });
    }
}

impl Front {
    pub(super) fn receive(
        &mut self,
        now: Time,
        session: u32,
        token: u64,
        mut receive: Receive,
    ) -> Result<(), Refusal> {
        let queues = std::mem::take(&mut receive.queues);
        if queues.is_empty() || queues.len() > RECEIVE_QUEUES_MAX || receive.messages_max == 0 {
            let text = format!("1 to {RECEIVE_QUEUES_MAX} queues and at least 1 message, please");
            return Err(Refusal::new(errno::EINVAL, text));
        }
        if self.is_full {
            let text = "consumers at this broker hold as many bytes of messages as they may";
            return Err(Refusal::new(errno::ENOBUFS, text));
        }
        let taker = self.new_taker(session)?;
        let (mut names, mut found, mut orders) = (Vec::new(), Vec::new(), Vec::new());
        for name in &queues {
            if names.iter().any(|known: &Arc<str>| **known == **name) {
                continue;
            }
            found.push(self.find(name)?);
            let (name, here) = self.here(name)?;
            orders.push(here.orders.clone());
            names.push(name);
        }
        for name in &names {
            if let Some(here) = self.queues.get_mut(name) {
                here.takers += 1;
                here.last_taken = Some(now);
            }
        }
        let (over, ended) = oneshot::channel();
        let how = How::Receives { _over: over, auto_ack: receive.auto_ack };
        let lease_ms = receive.lease_ms;
        let (pulling, pulls) = watch::channel(());
        let made = self.takers_made;
        self.takers
            .insert(taker, Taker { made, token, session, queues: names, lease_ms, how, pulling });
        self.sessions.entry(session).or_default().takers.insert(taker);
        let receiving = Receiving {
            cluster: Arc::clone(&self.cluster),
            taker,
            session,
            receive,
            orders,
            events: self.report.clone(),
            _pulls: pulls,
        };
        tokio::spawn(receiving.run(found, ended, self.taking()));
        Ok(())
    }

    pub(super) fn subscribe(
        &mut self,
        now: Time,
        session: u32,
        token: u64,
        subscribe: &Subscribe,
    ) -> Result<(), Refusal> {
        if subscribe.credit == 0 {
            return Err(Refusal::new(errno::EINVAL, "a credit of 0 gets nothing"));
        }
        let taker = self.new_taker(session)?;
        let found = self.find(&subscribe.queue)?;
        let (name, here) = self.here(&subscribe.queue)?;
        here.takers += 1;
        here.last_taken = Some(now);
        let orders = here.orders.clone();
        let credit =
            (subscribe.credit.min(CREDIT_MAX.0).into(), subscribe.credit_bytes.min(CREDIT_MAX.1));
        let (grants, granted) = watch::channel(Grant::default());
        let subscribed = Subscribed { grants, credit, came: (0, 0), held: (0, 0) };
        subscribed.grant(self.is_full);
        let how = How::Subscribed(subscribed);
        let lease_ms = subscribe.lease_ms;
        let (pulling, pulls) = watch::channel(());
        let made = self.takers_made;
        self.takers.insert(
            taker,
            Taker { made, token, session, queues: vec![name], lease_ms, how, pulling },
        );
        self.sessions.entry(session).or_default().takers.insert(taker);
        let subscription = Subscription {
            cluster: Arc::clone(&self.cluster),
            taker,
            session,
            orders,
            events: self.report.clone(),
            grants: granted,
            passed: (0, 0),
            _pulls: pulls,
        };
        tokio::spawn(subscription.run(found, self.taking()));
        Ok(())
    }

    /// Takes note of how much is held here.
    pub(super) fn weigh(&mut self) {
        let most = HELD_BYTES_MAX - if self.is_full { HELD_BYTES_LEFT } else { 0 };
        let full = self.held_bytes >= most;
        if std::mem::replace(&mut self.is_full, full) == full {
            return;
        }
        for taker in self.takers.values() {
            if let How::Subscribed(subscribed) = &taker.how {
                subscribed.grant(full);
            }
        }
    }

    fn new_taker(&mut self, session: u32) -> Result<u32, Refusal> {
        let of_session = self.sessions.get(&session).map_or(0, |session| session.takers.len());
        if of_session >= WAITING_PER_SESSION_MAX || self.takers.len() >= TAKERS_MAX {
            return Err(Refusal::new(errno::EMFILE, "too many requests wait for messages"));
        }
        self.takers_made += 1;
        loop {
            self.last_taker = self.last_taker.wrapping_add(1);
            if self.last_taker != 0 && !self.takers.contains_key(&self.last_taker) {
                return Ok(self.last_taker);
            }
        }
    }

    /// Takes a taker away. What it holds is not touched.
    pub(super) fn end_taker(&mut self, number: u32, now: Time) -> Option<Taker> {
        let taker = self.takers.remove(&number)?;
        if let Some(session) = self.sessions.get_mut(&taker.session) {
            session.takers.remove(&number);
        }
        for name in &taker.queues {
            if let Some(here) = self.queues.get_mut(name) {
                here.takers = here.takers.saturating_sub(1);
                here.last_taken = Some(now);
            }
        }
        Some(taker)
    }

    pub(super) fn unsubscribe(
        &mut self,
        now: Time,
        session: u32,
        consumer: u32,
    ) -> Result<Answer, Refusal> {
        let taker = self
            .takers
            .get(&consumer)
            .filter(|taker| taker.session == session && matches!(taker.how, How::Subscribed(_)));
        let missing = || Refusal::new(errno::ENOENT, "there is no such subscription");
        let token = taker.ok_or_else(missing)?.token;
        let ended = self.end_taker(consumer, now).map(|taker| taker.pulling);
        let messages = self.take_back(now, session, |held| held.taker == Some(consumer));
        self.give_back(messages, ended.into_iter().collect());
        self.effects.push(Effect::End { token, refusal: None });
        Ok(Answer::Done)
    }

    pub(super) fn came(&mut self, now: Time, number: u32, message: Arc<Pulled>) {
        let Some(taker) = self.takers.get_mut(&number) else {
            return self.hand_back(vec![message]);
        };
        let (token, session, lease_ms) = (taker.token, taker.session, taker.lease_ms);
        if let How::Subscribed(subscribed) = &mut taker.how {
            let length = message.record.len() as u64;
            subscribed.came = (subscribed.came.0 + 1, subscribed.came.1 + length);
            subscribed.held = (subscribed.held.0 + 1, subscribed.held.1 + length);
            subscribed.grant(self.is_full);
        }
        self.hold(now, (session, Some(number)), lease_ms, Arc::clone(&message));
        self.deliver(now, token, session, &message);
    }

    pub(super) fn received(
        &mut self,
        now: Time,
        number: u32,
        outcome: Result<Vec<Arc<Pulled>>, Refusal>,
    ) {
        let Some(taker) = self.end_taker(number, now) else {
            return self.hand_back(outcome.unwrap_or_default());
        };
        let answer = match outcome {
            Err(refusal) => Answer::Refused(refusal),
            Ok(messages) => {
                for message in messages {
                    if matches!(taker.how, How::Receives { auto_ack: true, .. }) {
                        self.count(&message.opened.name, |counters| counters.acked += 1);
                    } else {
                        let holder = (taker.session, None);
                        self.hold(now, holder, taker.lease_ms, Arc::clone(&message));
                    }
                    self.deliver(now, taker.token, taker.session, &message);
                }
                Answer::Done
            }
        };
        self.answer(taker.token, answer);
    }

    fn deliver(&mut self, now: Time, token: u64, session: u32, message: &Pulled) {
        let queue = &message.opened.name;
        if let Some(here) = self.queues.get_mut(queue) {
            here.counters.delivered += 1;
            here.last_taken = Some(now);
        }
        let about = (message.arrived, &message.record);
        self.trace.push(now, What::Delivered, queue, (message.id, session), about);
        let message = Delivery {
            queue: Arc::clone(queue),
            id: message.id,
            attempt: message.attempt,
            arrived: message.arrived,
            record: message.record.clone(),
        };
        self.effects.push(Effect::Deliver { token, message });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_as_much_is_held_as_may_be_a_subscription_gets_one_message_at_a_time() {
        let (grants, granted) = watch::channel(Grant::default());
        let mut subscribed = Subscribed { grants, credit: (8, 100), came: (3, 30), held: (0, 0) };
        let mut granted_for = |held, full| {
            subscribed.held = held;
            subscribed.grant(full);
            granted.borrow().messages - 3
        };
        assert_eq!(granted_for((0, 0), false), 8);
        assert_eq!(granted_for((3, 30), false), 5);
        assert_eq!(granted_for((3, 30), true), 0);
        assert_eq!(granted_for((0, 0), true), 1);
    }
}
