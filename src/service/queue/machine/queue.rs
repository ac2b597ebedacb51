//! One queue: its messages, who takes them, and how they are handed out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::super::options::{Kind, Mode, QueueOptions};
use super::command::{Counters, Delivery, Effect, Send, What};
use super::consumer::{Consumer, Taker};
use super::lane::{Lane, Lease, Waiting};
use super::shared::{Shared, Waiter, Waits};
use super::{ENTRY_BYTES, LANE_BYTES, Table};
use crate::store::{Op, SendId, Time};

/// RECEIVEs that are over and may stand in a turn, besides as many as there are others.
const TURN_SPARE: usize = 64;

pub(super) struct Queue {
    pub(super) number: u32,
    pub(super) name: Arc<str>,
    pub(super) kind: Kind,
    pub(super) owner: Option<u32>,
    /// It is kept on disk.
    pub(super) durable: bool,
    /// It is not on disk yet: messages wait for that.
    pub(super) creating: bool,
    /// Further CREATEs that wait for that.
    pub(super) awaited: Vec<u64>,
    pub(super) options: QueueOptions,
    pub(super) next_id: u64,
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) bytes: u64,
    /// What its messages, and what waits for room, count for.
    pub(super) memory: u64,
    /// The lane of a shared queue; in a fanout, of what nobody has got yet.
    pub(super) common: Lane,
    pub(super) consumers: BTreeMap<u32, Consumer>,
    /// Who may be given the next message, in turn. Whoever is not in it has no room. A RECEIVE that is over may
    /// still stand in it.
    pub(super) turn: VecDeque<Taker>,
    /// RECEIVEs that wait.
    pub(super) receiving: u32,
    pub(super) parked: VecDeque<Parked>,
    pub(super) parked_bytes: u64,
    pub(super) expiring: BTreeSet<(Time, u64)>,
    /// When the machine looks at it next.
    pub(super) scheduled: Option<Time>,
    pub(super) dirty: bool,
    pub(super) last_taken: Option<Time>,
    pub(super) counters: Counters,
    /// Messages acknowledged since one came again on purpose.
    pub(super) since_repeat: u32,
}

pub(super) struct Entry {
    /// In the store; 0 if it is not there.
    pub(super) key: u64,
    pub(super) record: Bytes,
    pub(super) arrived: Time,
    pub(super) expires: Option<Time>,
    pub(super) send_id: Option<SendId>,
    pub(super) reply_to: Option<Box<str>>,
    /// It is not on disk yet, or on its way to the dead-letter queue: in no lane.
    pub(super) apart: bool,
    /// In how many lanes it is.
    pub(super) lanes: u32,
    /// Some consumer of a fanout is done with it.
    pub(super) taken: bool,
    /// It was delivered once more on purpose.
    pub(super) duplicated: bool,
}

/// A message that waits for room.
pub(super) struct Parked {
    /// Since when.
    pub(super) since: Time,
    pub(super) token: u64,
    pub(super) session: u32,
    pub(super) send: Send,
}

impl Queue {
    pub(super) fn charge(&mut self, bytes: u64, shared: &mut Shared) {
        self.memory += bytes;
        shared.memory += bytes;
    }

    pub(super) fn discharge(&mut self, bytes: u64, shared: &mut Shared) {
        self.memory -= bytes;
        shared.memory -= bytes;
    }

    /// Puts a message that is there to stay where it can be delivered from.
    pub(super) fn admit(&mut self, id: u64, attempts: u32, shared: &mut Shared) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.apart = false;
        let waiting = Waiting { attempts, late: None };
        if self.options.mode == Mode::Fanout && !self.consumers.is_empty() {
            entry.lanes = self.consumers.len() as u32;
            for consumer in self.consumers.values_mut() {
                consumer.lane.ready.insert(id, waiting);
            }
        } else {
            entry.lanes = 1;
            self.common.ready.insert(id, waiting);
        }
        let lanes = u64::from(entry.lanes);
        self.charge(lanes * LANE_BYTES, shared);
        self.touch(shared);
    }

    /// Has the machine look at it before it is done.
    pub(super) fn touch(&mut self, shared: &mut Shared) {
        if !self.dirty {
            self.dirty = true;
            shared.dirty.push(self.number);
        }
    }

    /// Hands out what can be.
    pub(super) fn pump(&mut self, now: Time, shared: &mut Shared) {
        match self.options.mode {
            Mode::Share => self.pump_common(now, shared),
            Mode::Fanout => self.pump_each(now, shared),
        }
    }

    fn pump_common(&mut self, now: Time, shared: &mut Shared) {
        while let Some((&id, &waiting)) = self.common.ready.first_key_value() {
            if self.is_expired(id, now) {
                self.expire(id, now, shared);
                continue;
            }
            let Some(taker) = self.turn.pop_front() else { return };
            match taker {
                Taker::Receive(receive) => self.fill(receive, now, shared),
                Taker::Consumer(number) => {
                    let length = self.length(id);
                    let Some(consumer) = self.consumers.get_mut(&number) else { continue };
                    if !consumer.has_room(length) {
                        consumer.resting = true;
                        continue;
                    }
                    self.turn.push_back(taker);
                    let lease = consumer.hold(number, length, waiting, now);
                    let token = consumer.token;
                    self.common.lease(id, lease);
                    self.schedule(lease.until, shared);
                    self.deliver(id, lease, token, now, shared);
                }
            }
        }
    }

    fn pump_each(&mut self, now: Time, shared: &mut Shared) {
        let numbers: Vec<u32> = self.consumers.keys().copied().collect();
        for number in numbers {
            while let Some(consumer) = self.consumers.get_mut(&number) {
                let Some((&id, &waiting)) = consumer.lane.ready.first_key_value() else { break };
                let Some(entry) = self.entries.get(&id) else {
                    consumer.lane.ready.remove(&id);
                    continue;
                };
                let length = entry.record.len() as u64;
                if entry.expires.is_some_and(|expires| expires <= now) {
                    self.expire(id, now, shared);
                    continue;
                }
                if !consumer.has_room(length) {
                    break;
                }
                let lease = consumer.hold(number, length, waiting, now);
                let token = consumer.token;
                consumer.lane.lease(id, lease);
                self.schedule(lease.until, shared);
                self.deliver(id, lease, token, now, shared);
            }
        }
    }

    /// Gives a RECEIVE as many as it takes and there are, and answers it.
    pub(super) fn fill(&mut self, number: u32, now: Time, shared: &mut Shared) {
        let waits = shared.receives.get(&number);
        if !waits.is_some_and(|waits| waits.queues.contains(&self.number)) {
            return;
        }
        let Some(receive) = shared.receives.remove(&number) else { return };
        let until = now.after_ms(receive.lease_ms.unwrap_or(self.options.lease_ms));
        let mut bytes = 0;
        let mut count = 0;
        let mut taken = Vec::new();
        while count < receive.messages_max
            && let Some((&id, &waiting)) = self.common.ready.first_key_value()
        {
            if self.is_expired(id, now) {
                self.expire(id, now, shared);
                continue;
            }
            bytes += self.length(id) + LANE_BYTES;
            if count > 0 && bytes > super::RECEIVE_BYTES_MAX {
                break;
            }
            count += 1;
            let attempts = waiting.attempts + 1;
            let lease = Lease { session: receive.session, consumer: None, until, attempts };
            if receive.auto_ack {
                taken.extend(self.hand_out(id, lease, now, shared));
                self.common.ready.remove(&id);
                self.counters.acked += 1;
                if let Some(entry) = self.remove(id, shared) {
                    let about = (entry.arrived, &entry.record);
                    shared.trace.push(now, What::Acked, &self.name, (id, receive.session), about);
                    self.counters.done_us += now.us_since(entry.arrived);
                }
            } else {
                self.deliver(id, lease, receive.token, now, shared);
                self.common.lease(id, lease);
                self.schedule(until, shared);
                shared.leasing.push((receive.session, self.number));
            }
        }
        let token = receive.token;
        match shared.ops.back_mut() {
            // what is gone does not come again, so it is gone from the disk before anybody sees it
            Some((_, waiter @ None)) if self.durable && !taken.is_empty() => {
                *waiter = Some(Waiter::Taken { token, messages: taken });
            }
            _ => shared.end_taking(token, taken),
        }
        shared.finished.push(receive.end(number));
    }

    fn deliver(&mut self, id: u64, lease: Lease, token: u64, now: Time, shared: &mut Shared) {
        if let Some(message) = self.hand_out(id, lease, now, shared) {
            shared.effects.push(Effect::Deliver { token, message });
        }
    }

    /// A message as it goes to who holds it from now on.
    fn hand_out(
        &mut self,
        id: u64,
        lease: Lease,
        now: Time,
        shared: &mut Shared,
    ) -> Option<Delivery> {
        let entry = self.entries.get(&id)?;
        self.counters.delivered += 1;
        match lease.attempts {
            0 | 1 => self.counters.waited_us += now.us_since(entry.arrived),
            _ => self.counters.redelivered += 1,
        }
        self.last_taken = Some(now);
        let about = (entry.arrived, &entry.record);
        shared.trace.push(now, What::Delivered, &self.name, (id, lease.session), about);
        Some(Delivery {
            queue: Arc::clone(&self.name),
            id,
            attempt: lease.attempts,
            arrived: entry.arrived,
            record: entry.record.clone(),
        })
    }

    /// Ends a lease that was given out, and lets its consumer have another message.
    pub(super) fn release(
        &mut self,
        id: u64,
        lane: Option<u32>,
        shared: &mut Shared,
    ) -> Option<Lease> {
        let lease = self.lane(lane)?.release(id)?;
        let length = self.length(id);
        if let Some(number) = lease.consumer
            && let Some(consumer) = self.consumers.get_mut(&number)
        {
            consumer.held -= 1;
            consumer.held_bytes = consumer.held_bytes.saturating_sub(length);
            if std::mem::take(&mut consumer.resting) {
                self.turn.push_back(Taker::Consumer(number));
            }
        }
        self.touch(shared);
        Some(lease)
    }

    /// The lane of a consumer of a fanout, or the common one.
    pub(super) fn lane(&mut self, consumer: Option<u32>) -> Option<&mut Lane> {
        match consumer {
            None => Some(&mut self.common),
            Some(number) => self.consumers.get_mut(&number).map(|consumer| &mut consumer.lane),
        }
    }

    /// In which lane `session` holds a message, or, if `force`, anybody does or it waits. `own`: its
    /// subscriptions.
    pub(super) fn find(
        &self,
        id: u64,
        session: u32,
        own: &[u32],
        force: bool,
    ) -> Option<Option<u32>> {
        let mine = |lane: &Lane| {
            lane.leases.get(&id).is_some_and(|lease| lease.session == session)
                || lane.ready.get(&id).is_some_and(|waiting| waiting.late == Some(session))
                || force && lane.holds(id)
        };
        if mine(&self.common) {
            return Some(None);
        }
        if self.options.mode == Mode::Share || !self.entries.contains_key(&id) {
            return None;
        }
        let is_mine =
            |number: &&u32| self.consumers.get(number).is_some_and(|consumer| mine(&consumer.lane));
        let found = match force {
            true => self.consumers.keys().find(is_mine),
            false => own.iter().find(is_mine),
        };
        found.copied().map(Some)
    }

    /// A consumer is done with a message.
    pub(super) fn ack(&mut self, id: u64, lane: Option<u32>, now: Time, shared: &mut Shared) {
        let lease = self.release(id, lane, shared);
        if let Some(lease) = lease
            && shared.duplicate_every > 0
            && self.is_to_repeat(id, shared.duplicate_every)
        {
            return self.repeat(id, lane, lease, now, shared);
        }
        let session = lease.map_or(0, |lease| lease.session);
        if let Some(lane) = self.lane(lane) {
            lane.ready.remove(&id);
        }
        self.counters.acked += 1;
        if let Some(entry) = self.entries.get_mut(&id) {
            let about = (entry.arrived, &entry.record);
            shared.trace.push(now, What::Acked, &self.name, (id, session), about);
            self.counters.done_us += now.us_since(entry.arrived);
            entry.taken = true;
            self.leave(id, shared);
        }
    }

    /// Whether a message is the one of so many acknowledged ones that comes again. Each queue counts for
    /// itself: requests and their answers would take turns otherwise.
    fn is_to_repeat(&mut self, id: u64, every: u32) -> bool {
        if self.entries.get(&id).is_none_or(|entry| entry.duplicated) {
            return false;
        }
        self.since_repeat += 1;
        let due = self.since_repeat >= every;
        if due {
            self.since_repeat = 0;
        }
        due
    }

    /// Has a message that was acknowledged delivered once more.
    fn repeat(&mut self, id: u64, lane: Option<u32>, lease: Lease, now: Time, shared: &mut Shared) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.duplicated = true;
        self.counters.returned += 1;
        let about = (entry.arrived, &entry.record);
        shared.trace.push(now, What::Returned, &self.name, (id, lease.session), about);
        if let Some(lane) = self.lane(lane) {
            lane.ready.insert(id, Waiting { attempts: lease.attempts, late: None });
        }
    }

    /// A delivery came back: it waits again, or has been delivered too often. `late`: its consumer may
    /// still be done with it.
    pub(super) fn give_back(
        &mut self,
        id: u64,
        lane: Option<u32>,
        late: bool,
        now: Time,
        shared: &mut Shared,
    ) {
        let Some(lease) = self.release(id, lane, shared) else { return };
        self.count_return(id, lease, now, shared);
        let Some(entry) = self.entries.get(&id) else { return };
        let expired = entry.expires.is_some_and(|expires| expires <= now);
        let waiting = Waiting { attempts: lease.attempts, late: late.then_some(lease.session) };
        if let Some(lane) = self.lane(lane) {
            lane.ready.insert(id, waiting);
        }
        if expired {
            self.expire_in(id, lane, now, shared);
        } else if self.is_dead(lease.attempts) {
            shared.dead.push((self.number, id, lane));
        }
    }

    pub(super) fn count_return(&mut self, id: u64, lease: Lease, now: Time, shared: &mut Shared) {
        let Some(entry) = self.entries.get(&id) else { return };
        self.counters.returned += 1;
        let about = (entry.arrived, &entry.record);
        shared.trace.push(now, What::Returned, &self.name, (id, lease.session), about);
        if entry.key > 0 {
            let op = Op::Attempts { key: entry.key, attempts: lease.attempts };
            shared.ops.push_back((op, None));
        }
    }

    /// Whether that is too often.
    pub(super) fn is_dead(&self, attempts: u32) -> bool {
        self.options.dead_letter.is_some() && attempts >= self.options.attempts_max
    }

    /// Puts a message that is in no lane for now back into its own, of which it is still counted to be;
    /// if that has gone, and other consumers do not have it, into those there are, or else the common one.
    pub(super) fn put_back(
        &mut self,
        id: u64,
        lane: Option<u32>,
        attempts: u32,
        now: Time,
        shared: &mut Shared,
    ) {
        let Some(entry) = self.entries.get(&id) else { return };
        let (elsewhere, expires) = (entry.lanes > 1 || entry.taken, entry.expires);
        let stays = self.lane(lane).is_some();
        if !stays && elsewhere {
            self.leave(id, shared);
            return;
        }
        if !stays && !self.consumers.is_empty() {
            // nobody else has had it: it is for those who are there now, as one that has just come in
            self.discharge(LANE_BYTES, shared);
            self.admit(id, attempts, shared);
            if expires.is_some_and(|expires| expires <= now) {
                self.expire(id, now, shared);
            }
            return;
        }
        let lane = if stays { lane } else { None };
        if let Some(lane) = self.lane(lane) {
            lane.ready.insert(id, Waiting { attempts, late: None });
        }
        if expires.is_some_and(|expires| expires <= now) {
            self.expire_in(id, lane, now, shared);
        } else if !stays && self.is_dead(attempts) {
            shared.dead.push((self.number, id, lane));
        }
        self.touch(shared);
    }

    /// Drops a message whose time is over from every lane in which nobody holds it.
    pub(super) fn expire(&mut self, id: u64, now: Time, shared: &mut Shared) {
        self.expire_in(id, None, now, shared);
        if self.options.mode == Mode::Fanout {
            let numbers: Vec<u32> = self.consumers.keys().copied().collect();
            for number in numbers {
                self.expire_in(id, Some(number), now, shared);
            }
        }
    }

    fn expire_in(&mut self, id: u64, lane: Option<u32>, now: Time, shared: &mut Shared) {
        let waited = self.lane(lane).and_then(|lane| lane.ready.remove(&id)).is_some();
        if waited
            && self.leave(id, shared).is_some_and(|(arrived, record)| {
                shared.trace.push(now, What::Expired, &self.name, (id, 0), (arrived, &record));
                true
            })
        {
            self.counters.expired += 1;
        }
    }

    /// Counts a lane that it has left. What it was, if it is gone now.
    pub(super) fn leave(&mut self, id: u64, shared: &mut Shared) -> Option<(Time, Bytes)> {
        let entry = self.entries.get_mut(&id)?;
        if entry.lanes > 1 {
            entry.lanes -= 1;
            self.discharge(LANE_BYTES, shared);
            return None;
        }
        let about = (entry.arrived, entry.record.clone());
        self.remove(id, shared);
        Some(about)
    }

    /// Forgets a message that is in no lane.
    pub(super) fn remove(&mut self, id: u64, shared: &mut Shared) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        let length = entry.record.len() as u64;
        self.bytes -= length;
        shared.bytes -= length;
        self.discharge(length + ENTRY_BYTES + u64::from(entry.lanes) * LANE_BYTES, shared);
        if let Some(expires) = entry.expires {
            self.expiring.remove(&(expires, id));
        }
        if entry.key > 0 {
            shared.ops.push_back((Op::Delete { key: entry.key }, None::<Waiter>));
        }
        if !self.parked.is_empty() {
            self.touch(shared);
        }
        Some(entry)
    }

    /// Drops a message from all lanes, whoever holds it.
    pub(super) fn drop_entry(&mut self, id: u64, now: Time, shared: &mut Shared) {
        self.take_out(id, What::Dropped, now, shared);
    }

    /// Takes a message out of all lanes, whoever holds it.
    pub(super) fn take_out(&mut self, id: u64, what: What, now: Time, shared: &mut Shared) {
        let numbers: Vec<Option<u32>> =
            std::iter::once(None).chain(self.consumers.keys().copied().map(Some)).collect();
        for number in numbers {
            self.release(id, number, shared);
            if let Some(lane) = self.lane(number) {
                lane.ready.remove(&id);
            }
        }
        let entry = self.remove(id, shared);
        match what {
            What::Acked => {
                self.counters.acked += 1;
                let age = entry.as_ref().map_or(0, |entry| now.us_since(entry.arrived));
                self.counters.done_us += age;
            }
            _ => self.counters.dropped += 1,
        }
        if let Some(entry) = entry {
            let about = (entry.arrived, &entry.record);
            shared.trace.push(now, what, &self.name, (id, 0), about);
        }
    }

    /// Messages that nobody holds, from the oldest on. `looks_max`: of a fanout, in how many places to look
    /// for them.
    pub(super) fn free_ids(&self, looks_max: usize) -> Box<dyn Iterator<Item = u64> + '_> {
        match self.options.mode {
            Mode::Share => Box::new(self.common.ready.keys().copied()),
            Mode::Fanout => {
                let ids = self.entries.keys().copied().take(looks_max / (self.consumers.len() + 1));
                Box::new(ids.filter(|id| self.is_free(*id)))
            }
        }
    }

    /// Whether a message is in the queue and nobody holds it.
    pub(super) fn is_free(&self, id: u64) -> bool {
        let lanes =
            || std::iter::once(&self.common).chain(self.consumers.values().map(|c| &c.lane));
        self.entries.get(&id).is_some_and(|entry| !entry.apart)
            && !lanes().any(|lane| lane.leases.contains_key(&id))
    }

    pub(super) fn length(&self, id: u64) -> u64 {
        self.entries.get(&id).map_or(0, |entry| entry.record.len() as u64)
    }

    fn is_expired(&self, id: u64, now: Time) -> bool {
        self.entries.get(&id).is_none_or(|entry| entry.expires.is_some_and(|at| at <= now))
    }

    /// Has the machine look at it at `time`, or before.
    pub(super) fn schedule(&mut self, time: Time, shared: &mut Shared) {
        if self.scheduled.is_none_or(|scheduled| time < scheduled) {
            if let Some(scheduled) = self.scheduled.replace(time) {
                shared.wake.remove(&(scheduled, self.number));
            }
            shared.wake.insert((time, self.number));
        }
    }

    /// One RECEIVE less waits. Those that are over are taken out of the turn once they are the most in it.
    pub(super) fn end_receive(&mut self, receives: &Table<u32, Waits>) {
        self.receiving -= 1;
        if self.turn.len() > 2 * (self.receiving as usize + self.consumers.len()) + TURN_SPARE {
            self.turn.retain(|taker| match taker {
                Taker::Consumer(_) => true,
                Taker::Receive(number) => receives.contains_key(number),
            });
        }
    }

    /// Somebody takes its messages.
    pub(super) fn is_alive(&self) -> bool {
        !self.consumers.is_empty() || self.receiving > 0
    }
}
