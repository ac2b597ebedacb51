//! A message comes in, is stored, and can then be delivered.

use bytes::Bytes;

use super::command::{Answer, Effect, Refusal, Send, What};
use super::queue::{Entry, Parked, Queue};
use super::senders::{Known, Waiting};
use super::shared::{Place, Shared, Waiter};
use super::{ENTRY_BYTES, Kind, LANE_BYTES, PARKED_BYTES_MAX, PARKED_MAX, RECORD_BYTES_MAX};
use super::{Machine, Withdrawing};
use crate::service::queue::options::{Mode, Policy, QueueOptions};
use crate::service::queue::protocol::with_dead_letter;
use crate::store::{Op, SendId, StoreError, Stored, Time};
use crate::wire::errno;

/// WITHDRAWs that wait for one message.
const WITHDRAWING_MAX: usize = 16;

/// In how many places a SEND to a full fanout looks for old messages that nobody holds.
const LOOKS_MAX: usize = 8_192;

/// A message that there is room for.
struct Arrival {
    record: Bytes,
    expires: Option<Time>,
    send_id: Option<SendId>,
    reply_to: Option<Box<str>>,
}

impl Machine {
    pub(super) fn send(&mut self, now: Time, session: u32, token: u64, send: Send) {
        if let Some(send_id) = send.send_id {
            match self.senders.judge(send_id) {
                Known::New => {}
                Known::UnderWay => {
                    self.sessions.entry(session).or_default();
                    let is_there = |session| self.sessions.contains_key(&session);
                    if !self.senders.join(send_id, Waiting { token, session }, is_there) {
                        let text = "it was sent often enough, and is under way";
                        let refusal = Refusal::new(errno::EBUSY, text);
                        self.shared.answer(token, Answer::Refused(refusal));
                    }
                    return;
                }
                Known::Before(place) => {
                    let answer = Answer::Sent { id: place.map(|place| place.id), again: true };
                    return self.shared.answer(token, answer);
                }
                Known::TooOld => {
                    let text = "it is too old to tell whether it came before";
                    let refusal = Refusal::new(errno::ERANGE, text);
                    return self.shared.answer(token, Answer::Refused(refusal));
                }
            }
        }
        let send_id = send.send_id;
        if let Err(refusal) = self.take_in(now, session, token, send) {
            self.refuse_send(now, token, send_id, refusal);
        }
    }

    /// Says that a message was not taken in.
    pub(super) fn refuse_send(
        &mut self,
        now: Time,
        token: u64,
        send_id: Option<SendId>,
        refusal: Refusal,
    ) {
        let others = send_id.map(|send_id| self.senders.failed(send_id)).unwrap_or_default();
        for token in std::iter::once(token).chain(others.iter().map(|other| other.token)) {
            self.shared.answer(token, Answer::Refused(refusal.clone()));
        }
        self.end_withdrawing(now, send_id, None);
    }

    fn take_in(&mut self, now: Time, session: u32, token: u64, send: Send) -> Result<(), Refusal> {
        let number = match self.names.get(send.queue.as_str()) {
            Some(number) => *number,
            None if send.create => {
                self.add_queue(&send.queue, Kind::Persistent, None, QueueOptions::default())?
            }
            None => return Err(Refusal::missing(&send.queue)),
        };
        let bytes_left = self.options.bytes_max.saturating_sub(self.shared.memory);
        let Some(queue) = self.queues.get_mut(&number) else {
            return Err(Refusal::missing(&send.queue));
        };
        let shared = &mut self.shared;
        let length = send.record.len() as u64;
        let refused = |queue: &mut Queue, errno, text: String| {
            queue.counters.refused += 1;
            Err(Refusal::new(errno, text))
        };
        let max = queue.options.message_bytes_max.min(queue.options.bytes_max);
        let max = max.min(RECORD_BYTES_MAX);
        if length > max {
            let text = format!("the message has {length} bytes, {:?} takes {max}", queue.name);
            return refused(queue, errno::EMSGSIZE, text);
        }
        if queue.counts_for(length) > bytes_left {
            let text = "the broker holds as many bytes of messages as it may".to_owned();
            return refused(queue, errno::ENOBUFS, text);
        }
        if queue.options.policy == Policy::DropOldest {
            queue.make_room(length, now, shared);
        }
        if !queue.parked.is_empty() || !queue.has_room(length) {
            let (parked, bytes) = (queue.parked.len(), queue.parked_bytes + length);
            let waits = if queue.creating {
                // it will be in the queue soon
                (parked as u64) < queue.options.messages_max && bytes <= queue.options.bytes_max
            } else {
                let fits = parked < PARKED_MAX && bytes <= PARKED_BYTES_MAX;
                fits && queue.options.policy == Policy::Block
            };
            if waits {
                queue.parked_bytes += length;
                queue.charge(length + ENTRY_BYTES, shared);
                if let Some(send_id) = send.send_id {
                    self.senders.start(send_id);
                }
                shared.effects.push(Effect::Parked { token });
                queue.parked.push_back(Parked { since: now, token, session, send });
                self.sessions.entry(session).or_default().parking.insert(number);
                return Ok(());
            }
            let name = &queue.name;
            shared.trace.push(now, What::Refused, name, (0, session), (now, &send.record));
            let text = format!("the queue {name:?} is full");
            return refused(queue, errno::ENOBUFS, text);
        }
        self.place(now, number, Parked { since: now, token, session, send });
        Ok(())
    }

    /// Puts a message into its queue, which has room for it. Its time to live began when it came.
    fn place(&mut self, now: Time, number: u32, parked: Parked) {
        let Parked { since, token, session, send } = parked;
        let Some(queue) = self.queues.get_mut(&number) else { return };
        let ttl_max = Some(queue.options.ttl_ms_max).filter(|max| *max > 0);
        let ttl = match (send.ttl_ms, ttl_max) {
            (Some(ttl), Some(max)) => Some(ttl.min(max)),
            (ttl, max) => ttl.or(max),
        };
        let send_id = send.send_id;
        let arrival = Arrival {
            record: send.record,
            expires: ttl.map(|ttl| since.after_ms(ttl)),
            send_id,
            reply_to: send.reply_to.map(Into::into),
        };
        let waiter = |id| Waiter::Sent { queue: number, id, session, token, send_id };
        let id = queue.append(now, session, arrival, &mut self.shared, waiter);
        if !queue.durable {
            queue.admit(id, 0, &mut self.shared);
            self.answer_sent(now, token, send_id, (number, id));
        } else if let Some(send_id) = send_id {
            self.senders.start(send_id);
        }
    }

    fn answer_sent(
        &mut self,
        now: Time,
        token: u64,
        send_id: Option<SendId>,
        (queue, id): (u32, u64),
    ) {
        let others = send_id.map(|send_id| self.senders.stored(send_id, queue, id));
        self.shared.answer(token, Answer::Sent { id: Some(id), again: false });
        for Waiting { token, .. } in others.unwrap_or_default() {
            self.shared.answer(token, Answer::Sent { id: Some(id), again: true });
        }
        self.end_withdrawing(now, send_id, Some((queue, id)));
    }

    /// Lets messages in for which there was no room.
    pub(super) fn unpark(&mut self, now: Time, number: u32) {
        while let Some(queue) = self.queues.get_mut(&number)
            && let Some(first) = queue.parked.front()
        {
            let length = first.send.record.len() as u64;
            if queue.options.policy == Policy::DropOldest {
                queue.make_room(length, now, &mut self.shared);
            }
            if !queue.has_room(length) {
                return;
            }
            let Some(parked) = queue.parked.pop_front() else { return };
            queue.parked_bytes -= length;
            queue.discharge(length + ENTRY_BYTES, &mut self.shared);
            self.place(now, number, parked);
        }
    }

    /// Gives up a message that waited for room.
    pub(super) fn drop_parked(&mut self, now: Time, number: u32, parked: Parked, refusal: Refusal) {
        let length = parked.send.record.len() as u64;
        if let Some(queue) = self.queues.get_mut(&number) {
            queue.parked_bytes -= length;
            queue.discharge(length + ENTRY_BYTES, &mut self.shared);
            // those behind it may fit
            queue.touch(&mut self.shared);
        }
        self.refuse_send(now, parked.token, parked.send.send_id, refusal);
    }

    /// The oldest batch that was polled is through.
    pub fn handle_stored(&mut self, now: Time, result: Result<(), StoreError>) {
        for waiter in self.shared.storing.pop_front().unwrap_or_default() {
            match (waiter, result) {
                (Waiter::Sent { queue, id, session, token, send_id }, Ok(())) => {
                    if let Some(queue) = self.queues.get_mut(&queue) {
                        queue.taken_in(now, id, session, &mut self.shared);
                    }
                    self.sent(now, queue, id, token, send_id);
                }
                (Waiter::Sent { queue, id, token, send_id, .. }, Err(error)) => {
                    if let Some(queue) = self.queues.get_mut(&queue) {
                        queue.forget_unstored(id, &mut self.shared);
                        queue.counters.refused += 1;
                    }
                    self.refuse_send(now, token, send_id, unstored(error));
                }
                (Waiter::Created { queue, answer }, Ok(())) => {
                    if let Some(queue) = self.queues.get_mut(&queue) {
                        queue.creating = false;
                        queue.touch(&mut self.shared);
                        for token in std::mem::take(&mut queue.awaited) {
                            let name = std::sync::Arc::clone(&queue.name);
                            let answer = Answer::Created { queue: name, new: false };
                            self.shared.answer(token, answer);
                        }
                    }
                    if let Some((token, answer)) = answer {
                        self.shared.answer(token, answer);
                    }
                }
                (Waiter::Created { queue, answer }, Err(error)) => {
                    self.forget_queue(now, queue, &unstored(error));
                    if let Some((token, _)) = answer {
                        self.shared.answer(token, Answer::Refused(unstored(error)));
                    }
                }
                (Waiter::Answer { token, .. }, Err(error)) if !error.frees() => {
                    let Refusal { errno, text } = unstored(error);
                    let text = format!("it may be undone if the broker ends now: {text}");
                    self.shared.answer(token, Answer::Refused(Refusal::new(errno, text)));
                }
                (Waiter::Answer { token, answer }, _) => self.shared.answer(token, answer),
                // if that could not be written down, its receiver has it at least
                (Waiter::Taken { token, messages }, _) => self.shared.end_taking(token, messages),
                (Waiter::Moved { from, to, to_id }, result) => {
                    self.moved(now, from, (to, to_id), result.is_ok());
                }
            }
        }
    }

    fn sent(&mut self, now: Time, number: u32, id: u64, token: u64, send_id: Option<SendId>) {
        let Some(queue) = self.queues.get_mut(&number) else {
            let refusal = Refusal::new(errno::ENOENT, "the queue is gone");
            return self.refuse_send(now, token, send_id, refusal);
        };
        queue.admit(id, 0, &mut self.shared);
        // what was of no use any more before it was stored could not go until now
        if queue.entries.get(&id).is_some_and(|entry| entry.expires.is_some_and(|at| at <= now)) {
            queue.handle_time(now, &mut self.shared);
        }
        self.answer_sent(now, token, send_id, (number, id));
    }

    /// Sends what was delivered too often to the dead-letter queue; if that does not take it, it waits
    /// on.
    pub(super) fn bury(&mut self, now: Time, number: u32, id: u64, lane: Option<u32>) {
        let Some(queue) = self.queues.get_mut(&number) else { return };
        let Some(name) = queue.options.dead_letter.clone() else { return };
        let (from, durable) = (std::sync::Arc::clone(&queue.name), queue.durable);
        // whoever has a transient queue may not be one to make others
        let makes = queue.kind == Kind::Persistent;
        let Some(waiting) = queue.lane(lane).and_then(|lane| lane.ready.remove(&id)) else {
            return;
        };
        let Some(entry) = queue.entries.get_mut(&id) else { return };
        entry.apart = true;
        let record = with_dead_letter(&entry.record, &from, id, waiting.attempts).into();
        let reply_to = entry.reply_to.clone();
        let place = Place { queue: number, id, lane, attempts: waiting.attempts };
        let to = match self.names.get(name.as_str()) {
            Some(to) => Some(*to),
            None if makes => {
                self.add_queue(&name, Kind::Persistent, None, QueueOptions::default()).ok()
            }
            None => None,
        };
        let bytes_left = self.options.bytes_max.saturating_sub(self.shared.memory);
        let arrival = Arrival { record, expires: None, send_id: None, reply_to };
        let length = arrival.record.len() as u64;
        let dead = to.and_then(|to| self.queues.get_mut(&to));
        // nothing leaves the disk for a queue in memory
        let dead = dead.filter(|dead| dead.durable || !durable);
        match dead.filter(|dead| dead.takes(length) && dead.counts_for(length) <= bytes_left) {
            None => self.moved(now, place, (0, 0), false),
            Some(dead) => {
                let to = dead.number;
                let ttl = Some(dead.options.ttl_ms_max).filter(|max| *max > 0);
                let arrival = Arrival { expires: ttl.map(|ttl| now.after_ms(ttl)), ..arrival };
                let moved = |to_id| Waiter::Moved { from: place, to, to_id };
                let to_id = dead.append(now, 0, arrival, &mut self.shared, moved);
                if !dead.durable {
                    self.moved(now, place, (to, to_id), true);
                }
            }
        }
    }

    fn moved(&mut self, now: Time, from: Place, (to, to_id): (u32, u64), stored: bool) {
        let Place { queue, id, lane, attempts } = from;
        let dead = self.queues.get_mut(&to);
        // if that queue has gone meanwhile, the message stays where it is
        let stored = stored && dead.is_some();
        if let Some(dead) = dead {
            if stored {
                if dead.durable {
                    dead.taken_in(now, to_id, 0, &mut self.shared);
                }
                dead.admit(to_id, 0, &mut self.shared);
            } else {
                dead.forget_unstored(to_id, &mut self.shared);
            }
        }
        let Some(queue) = self.queues.get_mut(&queue) else { return };
        let Some(entry) = queue.entries.get_mut(&id) else { return };
        entry.apart = false;
        if stored {
            queue.counters.dead += 1;
            let about = (entry.arrived, &entry.record);
            self.shared.trace.push(now, What::Dead, &queue.name, (id, 0), about);
            queue.leave(id, &mut self.shared);
        } else {
            queue.put_back(id, lane, attempts, now, &mut self.shared);
        }
    }

    /// Takes back a message that nobody holds.
    pub(super) fn withdraw(
        &mut self,
        now: Time,
        token: u64,
        name: &str,
        send_id: SendId,
    ) -> Result<Option<Answer>, Refusal> {
        let under_way = self.senders.judge(send_id) == Known::UnderWay;
        let place = self.senders.recent(send_id);
        let (queue, _) = self.queue(name)?;
        let number = queue.number;
        if under_way {
            let at = queue.parked.iter().position(|parked| parked.send.send_id == Some(send_id));
            if let Some(parked) = at.and_then(|at| queue.parked.remove(at)) {
                let refusal = Refusal::new(errno::ENOENT, "the message was taken back");
                self.drop_parked(now, number, parked, refusal);
                return Ok(Some(Answer::Done));
            }
            // it is being stored, and goes before anybody gets it
            let waiting = self.withdrawing.entry(send_id).or_default();
            if waiting.len() >= WITHDRAWING_MAX {
                return Err(Refusal::new(errno::EBUSY, "the message is under way"));
            }
            waiting.push(Withdrawing { token, queue: number });
            return Ok(None);
        }
        let place = place.filter(|place| place.queue == number).ok_or_else(not_there)?;
        let entry = queue.entries.get(&place.id).filter(|entry| entry.send_id == Some(send_id));
        entry.ok_or_else(not_there)?;
        self.take_back(now, token, number, place.id)
    }

    fn take_back(
        &mut self,
        now: Time,
        token: u64,
        number: u32,
        id: u64,
    ) -> Result<Option<Answer>, Refusal> {
        let queue = self.queues.get_mut(&number).ok_or_else(not_there)?;
        if !queue.is_free(id) {
            return Err(Refusal::new(errno::EBUSY, "a consumer holds the message"));
        }
        queue.drop_entry(id, now, &mut self.shared);
        let durable = queue.durable;
        Ok(self.answer_when_stored(token, Answer::Done, durable))
    }

    /// A message is in a queue, or not: those who wanted it back can be told.
    fn end_withdrawing(&mut self, now: Time, send_id: Option<SendId>, place: Option<(u32, u64)>) {
        let waiting = send_id.and_then(|send_id| self.withdrawing.remove(&send_id));
        for Withdrawing { token, queue } in waiting.unwrap_or_default() {
            let outcome = match place.filter(|(number, _)| *number == queue) {
                Some((number, id)) => self.take_back(now, token, number, id),
                None => Err(not_there()),
            };
            self.answer_outcome(token, outcome);
        }
    }
}

fn not_there() -> Refusal {
    Refusal::new(errno::ENOENT, "there is no such message any more")
}

impl Queue {
    pub(super) fn has_room(&self, length: u64) -> bool {
        !self.creating && self.fits(length)
    }

    /// Whether a message is within its limits.
    fn fits(&self, length: u64) -> bool {
        (self.entries.len() as u64) < self.options.messages_max
            && self.bytes + length <= self.options.bytes_max
    }

    /// Whether it takes a dead letter.
    fn takes(&self, length: u64) -> bool {
        self.fits(length) && length <= RECORD_BYTES_MAX
    }

    /// Drops the oldest messages that nobody holds, if that makes room for one of this length.
    fn make_room(&mut self, length: u64, now: Time, shared: &mut Shared) {
        if self.creating {
            return;
        }
        let mut left = (self.entries.len() as u64, self.bytes);
        let fits = |(messages, bytes): (u64, u64)| {
            messages < self.options.messages_max && bytes + length <= self.options.bytes_max
        };
        let mut oldest = Vec::new();
        let mut free = self.free_ids(LOOKS_MAX);
        while !fits(left) {
            let Some(id) = free.next() else { return };
            left = (left.0 - 1, left.1 - self.length(id));
            oldest.push(id);
        }
        drop(free);
        for id in oldest {
            self.drop_entry(id, now, shared);
        }
    }

    /// What a message would count for in memory.
    fn counts_for(&self, length: u64) -> u64 {
        let lanes = match self.options.mode {
            Mode::Share => 1,
            Mode::Fanout => self.consumers.len().max(1) as u64,
        };
        length + ENTRY_BYTES + lanes * LANE_BYTES
    }

    /// Adds a message that there is room for: its id. It is not in a lane yet.
    fn append(
        &mut self,
        now: Time,
        session: u32,
        arrival: Arrival,
        shared: &mut Shared,
        waiter: impl FnOnce(u64) -> Waiter,
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let Arrival { record, expires, send_id, reply_to } = arrival;
        let length = record.len() as u64;
        self.bytes += length;
        shared.bytes += length;
        self.charge(length + ENTRY_BYTES, shared);
        let mut key = 0;
        if self.durable {
            shared.last_key += 1;
            key = shared.last_key;
            let stored = Stored {
                key,
                queue: self.number,
                id,
                arrived: now,
                expires,
                attempts: 0,
                send_id,
                record: record.clone(),
            };
            shared.ops.push_back((Op::Put(stored), Some(waiter(id))));
        }
        if let Some(expires) = expires {
            self.expiring.insert((expires, id));
            self.schedule(expires, shared);
        }
        let entry = Entry {
            key,
            record,
            arrived: now,
            expires,
            send_id,
            reply_to,
            apart: true,
            lanes: 0,
            taken: false,
            duplicated: false,
        };
        self.entries.insert(id, entry);
        if !self.durable {
            self.taken_in(now, id, session, shared);
        }
        id
    }

    /// A message is there to stay.
    fn taken_in(&mut self, now: Time, id: u64, session: u32, shared: &mut Shared) {
        let Some(entry) = self.entries.get(&id) else { return };
        let about = (entry.arrived, &entry.record);
        shared.trace.push(now, What::Sent, &self.name, (id, session), about);
        self.counters.sent += 1;
    }

    /// Forgets a message that the store did not take.
    fn forget_unstored(&mut self, id: u64, shared: &mut Shared) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.key = 0;
        }
        self.remove(id, shared);
    }
}

fn unstored(error: StoreError) -> Refusal {
    let number = match error {
        StoreError::Full | StoreError::Owed { full: true } => errno::ENOSPC,
        _ => errno::EIO,
    };
    Refusal::new(number, error.to_string())
}
