//! Consumers: they subscribe or ask, hold messages, and are done with them or not.

use super::command::{Answer, Effect, Receive, Refusal, Subscribe, What};
use super::consumer::{Consumer, Taker};
use super::lane::Lane;
use super::queue::Queue;
use super::shared::{Shared, Waits};
use super::{CREDIT_MAX, Machine, RECEIVE_QUEUES_MAX, TAILS_MAX, Tail, WAITING_PER_SESSION_MAX};
use crate::service::queue::options::Mode;
use crate::store::Time;
use crate::wire::errno;

/// Subscriptions of one session to one fanout: with each, every message is there once more.
const FANOUT_PER_SESSION_MAX: usize = 16;

type Outcome = Result<Option<Answer>, Refusal>;

impl Machine {
    pub(super) fn receive(
        &mut self,
        now: Time,
        session: u32,
        token: u64,
        receive: Receive,
    ) -> Outcome {
        let Receive { queues, messages_max, timeout_ms, lease_ms, auto_ack } = receive;
        if queues.is_empty() || queues.len() > RECEIVE_QUEUES_MAX || messages_max == 0 {
            let text = format!("1 to {RECEIVE_QUEUES_MAX} queues and at least 1 message, please");
            return Err(Refusal::new(errno::EINVAL, text));
        }
        let mut numbers = Vec::with_capacity(queues.len());
        for name in &queues {
            let (queue, _) = self.queue(name)?;
            queue.check_reader(session)?;
            if queue.options.mode == Mode::Fanout {
                let text = format!("{name:?} is a fanout: subscribe to it");
                return Err(Refusal::new(errno::EOPNOTSUPP, text));
            }
            if !numbers.contains(&queue.number) {
                numbers.push(queue.number);
            }
        }
        // whoever came before has what there was
        self.settle_queues(now);
        let number = self.new_taker();
        let held = self.sessions.entry(session).or_default();
        if held.receives.len() >= WAITING_PER_SESSION_MAX {
            return Err(Refusal::new(errno::EMFILE, "too many requests wait for messages"));
        }
        held.receives.insert(number);
        let deadline = now.after_ms(timeout_ms);
        self.deadlines.insert((deadline, number));
        let waits = Waits {
            token,
            session,
            queues: numbers.clone(),
            messages_max,
            lease_ms,
            auto_ack,
            deadline,
        };
        self.shared.receives.insert(number, waits);
        for queue in &numbers {
            let Some(queue) = self.queues.get_mut(queue) else { continue };
            queue.last_taken = Some(now);
            queue.receiving += 1;
        }
        for queue in numbers {
            let Some(queue) = self.queues.get_mut(&queue) else { continue };
            queue.turn.push_back(Taker::Receive(number));
            queue.pump(now, &mut self.shared);
            if !self.shared.receives.contains_key(&number) {
                break;
            }
        }
        self.clear_finished();
        Ok(None)
    }

    pub(super) fn subscribe(&mut self, session: u32, token: u64, subscribe: &Subscribe) -> Outcome {
        let number = self.new_taker();
        let (queue, _) = self.queue(&subscribe.queue)?;
        queue.check_reader(session)?;
        let queue_number = queue.number;
        if subscribe.credit == 0 {
            return Err(Refusal::new(errno::EINVAL, "a credit of 0 gets nothing"));
        }
        if queue.options.mode == Mode::Fanout
            && self.subscriptions(session, &subscribe.queue).len() >= FANOUT_PER_SESSION_MAX
        {
            let text = "the session has too many subscriptions to this fanout";
            return Err(Refusal::new(errno::EMFILE, text));
        }
        let held = self.sessions.entry(session).or_default();
        if held.consumers.len() >= WAITING_PER_SESSION_MAX {
            return Err(Refusal::new(errno::EMFILE, "the session has too many subscriptions"));
        }
        held.consumers.insert(number, queue_number);
        let (queue, shared) = self.queue(&subscribe.queue)?;
        let mut consumer = Consumer {
            token,
            session,
            lease_ms: subscribe.lease_ms.unwrap_or(queue.options.lease_ms),
            credit: subscribe.credit.min(CREDIT_MAX.0),
            credit_bytes: subscribe.credit_bytes.min(CREDIT_MAX.1),
            held: 0,
            held_bytes: 0,
            resting: false,
            lane: Lane::default(),
        };
        if queue.options.mode == Mode::Fanout {
            consumer.lane.ready = std::mem::take(&mut queue.common.ready);
        }
        queue.consumers.insert(number, consumer);
        queue.turn.push_back(Taker::Consumer(number));
        queue.touch(shared);
        Ok(Some(Answer::Subscribed { consumer: number }))
    }

    /// The subscriptions of a session to a queue.
    fn subscriptions(&self, session: u32, name: &str) -> Vec<u32> {
        let session = self.sessions.get(&session);
        let all = session.into_iter().flat_map(|session| &session.consumers);
        let Some(queue) = self.names.get(name) else { return Vec::new() };
        all.filter(|(_, of)| *of == queue).map(|(number, _)| *number).collect()
    }

    pub(super) fn unsubscribe(&mut self, now: Time, session: u32, consumer: u32) -> Outcome {
        let held = self.sessions.get_mut(&session);
        let queue = held.and_then(|held| held.consumers.remove(&consumer));
        let missing = || Refusal::new(errno::ENOENT, "there is no such subscription");
        self.end_consumer(now, queue.ok_or_else(missing)?, consumer);
        Ok(Some(Answer::Done))
    }

    /// Ends a subscription; what it holds is given to others.
    pub(super) fn end_consumer(&mut self, now: Time, queue: u32, number: u32) {
        let Some(queue) = self.queues.get_mut(&queue) else { return };
        let shared = &mut self.shared;
        queue.turn.retain(|taker| *taker != Taker::Consumer(number));
        let count = queue.consumers.get(&number).map_or(0, |consumer| consumer.held as usize);
        let leases = queue.common.leases.iter();
        let held = leases.filter(|(_, lease)| lease.consumer == Some(number)).map(|(id, _)| *id);
        let held: Vec<u64> = held.take(count).collect();
        for id in held {
            queue.give_back(id, None, false, now, shared);
        }
        queue.turn.retain(|taker| *taker != Taker::Consumer(number));
        let Some(consumer) = queue.consumers.remove(&number) else { return };
        queue.last_taken = Some(now);
        for (id, lease) in consumer.lane.leases {
            queue.count_return(id, lease, now, shared);
            queue.put_back(id, Some(number), lease.attempts, now, shared);
        }
        for (id, waiting) in consumer.lane.ready {
            queue.put_back(id, Some(number), waiting.attempts, now, shared);
        }
        queue.touch(shared);
        shared.effects.push(Effect::End { token: consumer.token, refusal: None });
    }

    pub(super) fn ack(
        &mut self,
        now: Time,
        session: u32,
        token: u64,
        name: &str,
        ids: &[u64],
        force: bool,
    ) -> Outcome {
        let own = self.subscriptions(session, name);
        let (queue, shared) = self.queue(name)?;
        let mut refusal = None;
        for id in ids {
            match queue.find(*id, session, &own, force) {
                Some(_) if force => queue.take_out(*id, What::Acked, now, shared),
                Some(lane) => queue.ack(*id, lane, now, shared),
                None => {
                    refusal.get_or_insert_with(|| queue.not_held(*id));
                }
            }
        }
        let durable = queue.durable;
        let answer = refusal.map_or(Answer::Done, Answer::Refused);
        Ok(self.answer_when_stored(token, answer, durable))
    }

    pub(super) fn nack(&mut self, now: Time, session: u32, name: &str, ids: &[u64]) -> Outcome {
        let own = self.subscriptions(session, name);
        let (queue, shared) = self.queue(name)?;
        queue.each_lease((session, &own), ids, |queue, id, lane| {
            queue.give_back(id, lane, false, now, shared);
        })
    }

    pub(super) fn extend(
        &mut self,
        now: Time,
        session: u32,
        name: &str,
        ids: &[u64],
        lease_ms: u64,
    ) -> Outcome {
        let own = self.subscriptions(session, name);
        let (queue, shared) = self.queue(name)?;
        let until = now.after_ms(lease_ms);
        queue.schedule(until, shared);
        queue.each_lease((session, &own), ids, |queue, id, lane| {
            if let Some(lane) = queue.lane(lane) {
                lane.extend(id, until);
            }
        })
    }

    pub(super) fn tail(&mut self, tail: Tail) -> Outcome {
        let tails = self.tails.iter().filter(|other| other.session == tail.session).count();
        if tails >= WAITING_PER_SESSION_MAX {
            return Err(Refusal::new(errno::EMFILE, "too many requests wait for events"));
        }
        if self.tails.len() >= TAILS_MAX {
            let text = "too many sessions wait for events";
            return Err(Refusal::new(errno::EMFILE, text));
        }
        // so that its end is the end of this too
        self.sessions.entry(tail.session).or_default();
        self.tails.push(tail);
        Ok(None)
    }

    pub(super) fn answer_tails(&mut self, now: Time) {
        let trace = &self.shared.trace;
        let effects = &mut self.shared.effects;
        self.tails.retain_mut(|tail| {
            let (next, events) = match tail.from < trace.next() {
                true => trace.read(tail.from, &tail.prefix),
                false => (tail.from.min(trace.next()), Vec::new()),
            };
            if events.is_empty() && tail.deadline > now {
                tail.from = next;
                return true;
            }
            let answer = Answer::Trace { next, events };
            effects.push(Effect::Answer { token: tail.token, answer });
            false
        });
    }

    fn new_taker(&mut self) -> u32 {
        let mut number = self.last_taker.wrapping_add(1);
        if number == 0 {
            self.takers_wrapped = true;
        }
        let taken = |number: &u32| {
            *number == 0
                || self.shared.receives.contains_key(number)
                || self.sessions.values().any(|session| session.consumers.contains_key(number))
        };
        // only once 2^32 have been given out is it worth a look
        while self.takers_wrapped && taken(&number) {
            number = number.wrapping_add(1);
        }
        self.last_taker = number;
        number
    }
}

impl Queue {
    /// Does what is due.
    pub(super) fn handle_time(&mut self, now: Time, shared: &mut Shared) {
        let due = self.expiring.range(..=(now, u64::MAX));
        let due: Vec<(Time, u64)> =
            due.filter(|(_, id)| self.entries.get(id).is_some_and(|e| !e.apart)).copied().collect();
        for (expires, id) in due {
            self.expiring.remove(&(expires, id));
            self.expire(id, now, shared);
        }
        let numbers: Vec<Option<u32>> = match self.options.mode {
            Mode::Share => vec![None],
            Mode::Fanout => self.consumers.keys().copied().map(Some).collect(),
        };
        let mut next = self.expiring.range((now, u64::MAX)..).next().map(|(time, _)| *time);
        for lane in numbers {
            while let Some((end, id)) = self.lane(lane).and_then(|lane| lane.first_end()) {
                if end > now {
                    next = Some(next.map_or(end, |next| next.min(end)));
                    break;
                }
                self.give_back(id, lane, true, now, shared);
            }
        }
        if let Some(next) = next {
            self.schedule(next, shared);
        }
    }

    /// A transient queue is its owner's alone.
    fn check_reader(&self, session: u32) -> Result<(), Refusal> {
        if self.owner.is_some_and(|owner| owner != session) {
            let text = format!("{:?} is for its owner", self.name);
            return Err(Refusal::new(errno::EPERM, text));
        }
        Ok(())
    }

    fn not_held(&self, id: u64) -> Refusal {
        if self.entries.contains_key(&id) {
            let text = format!("message {id} in {:?} is not held here", self.name);
            return Refusal::new(errno::EPERM, text);
        }
        Refusal::new(errno::ENOENT, format!("there is no message {id} in {:?}", self.name))
    }

    fn each_lease(
        &mut self,
        (session, own): (u32, &[u32]),
        ids: &[u64],
        mut act: impl FnMut(&mut Self, u64, Option<u32>),
    ) -> Outcome {
        let mut refusal = None;
        for id in ids {
            let lane = self.find(*id, session, own, false);
            let leased = lane
                .filter(|lane| self.lane(*lane).is_some_and(|lane| lane.leases.contains_key(id)));
            match leased {
                Some(lane) => act(self, *id, lane),
                None => {
                    refusal.get_or_insert_with(|| self.not_held(*id));
                }
            }
        }
        refusal.map_or(Ok(Some(Answer::Done)), Err)
    }
}
