//! Queues as a pure state machine: commands, the time and what became of the store in; effects and changes
//! to be stored out. No I/O, no clock, no randomness.
//!
//! ```text
//! handle(command) ─┐                      ┌─ poll_effects: answers, deliveries
//! handle_gone     ─┤  Machine, settled at ┤
//! handle_stored   ─┤  each poll           ├─ poll_batch: changes, for the store
//! handle_time     ─┘                      └─ poll_time: when to call handle_time
//! ```
//!
//! A message's way through a queue that is kept on disk (elsewhere it begins at *waits*):
//!
//! ```text
//!  send ──► being stored ──► waits ──► held by a consumer ──► gone (acked)
//!               │ no room      ▲ │          │ lease over, nack, session gone
//!               ▼              │ ▼          ▼
//!            refused           │ expired    delivered too often? ──► dead-letter queue
//!                              └────────────┘ no
//! ```
//!
//! A message is delivered, and its sender answered, only when it is stored: so no id is seen that a crash
//! could take back.

mod command;
mod consumer;
mod info;
mod lane;
mod manage;
mod queue;
mod senders;
mod sending;
mod shared;
mod taking;
mod trace;

pub use command::{
    Answer, BrokerInfo, Command, Counters, Create, Delivery, Effect, EntryInfo, Event, QueueInfo,
    Receive, Refusal, Send, Service, Subscribe, What,
};
pub use senders::{RECENT_MAX, SENDERS_MAX};
#[cfg(feature = "jetstream")]
pub(super) use trace::Trace;
pub use trace::{TRACE_ANSWER_MAX, TRACE_RECORD_BYTES_MAX};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::hash::Table;
use super::options::Kind;
use super::protocol::{options_from_bytes, reply_to_of};
use crate::store::{Loaded, Op, SendId, Stored, Time};
use queue::{Entry, Queue};
use senders::Senders;
use shared::Shared;

/// The longest name of a queue, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Queues that one RECEIVE may name.
pub const RECEIVE_QUEUES_MAX: usize = 64;

/// Bytes of messages that one RECEIVE takes, but for its first message.
pub const RECEIVE_BYTES_MAX: u64 = 1 << 20;

/// Sends that wait for room in one queue.
pub const PARKED_MAX: usize = 1_024;

/// The same in bytes of messages.
pub const PARKED_BYTES_MAX: u64 = 16 << 20;

/// Subscriptions, waiting RECEIVEs and waiting TRACEs that one session may have, each.
pub const WAITING_PER_SESSION_MAX: usize = 256;

/// Waiting TRACEs of all sessions.
pub const TAILS_MAX: usize = 4_096;

/// The most that one subscription may hold, in messages and in bytes, whatever it asks for.
pub const CREDIT_MAX: (u32, u64) = (65_536, 16 << 20);

/// Queues that one LIST or DIAGNOSTICS tells of.
pub const LIST_MAX: usize = 10_000;

/// The longest record of a message, in bytes, whatever a queue allows: with what is said of it, it still
/// reaches a consumer that takes answers of 16 MiB.
pub const RECORD_BYTES_MAX: u64 = (16 << 20) - 4_096;

/// What a message counts for in memory besides its bytes, in bytes.
pub const ENTRY_BYTES: u64 = 256;

/// What a message counts for in memory for each consumer that is to get it, in bytes.
pub const LANE_BYTES: u64 = 64;

/// Changes that one batch holds, unless many wait.
const BATCH_MAX: usize = 256;

/// Changes that one batch holds at most.
const BATCH_LARGE_MAX: usize = 16_384;

/// The bounds of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MachineOptions {
    /// Queues. Default 65,536; a further one is refused with `EMFILE`.
    pub queues_max: usize,
    /// Bytes of messages in all queues, which are all in memory; each counts for [`ENTRY_BYTES`] more, and
    /// for [`LANE_BYTES`] for each consumer that is to get it. What waits for room counts too. Default
    /// 4 GiB; past it any message is refused with `ENOBUFS`.
    pub bytes_max: u64,
    /// Events that are kept for TRACE. Default 1,024.
    pub trace_events_max: usize,
    /// For tests of consumers: of so many messages of a queue that are acknowledged, one is delivered once
    /// more, as if its acknowledgement had been lost. Default 0: none.
    pub duplicate_every: u32,
}

impl Default for MachineOptions {
    fn default() -> Self {
        Self { queues_max: 65_536, bytes_max: 4 << 30, trace_events_max: 1_024, duplicate_every: 0 }
    }
}

/// All queues of a broker.
pub struct Machine {
    options: MachineOptions,
    durable: bool,
    started: Time,
    names: BTreeMap<Arc<str>, u32>,
    queues: Table<u32, Queue>,
    last_queue: u32,
    sessions: Table<u32, Session>,
    senders: Senders,
    shared: Shared,
    /// When RECEIVEs have waited long enough.
    deadlines: BTreeSet<(Time, u32)>,
    last_taker: u32,
    takers_wrapped: bool,
    tails: Vec<Tail>,
    /// WITHDRAWs of messages that are being stored.
    withdrawing: BTreeMap<SendId, Vec<Withdrawing>>,
    quarantined: Vec<(String, u64)>,
    /// The first id of new queues that are stored, and of those that are not.
    id_floors: [u64; 2],
    made_up: u64,
}

/// Who asks: an endpoint, as long as its link is up.
#[derive(Default)]
struct Session {
    /// Transient queues.
    queues: BTreeSet<u32>,
    /// Subscriptions, and to which queue.
    consumers: BTreeMap<u32, u32>,
    receives: BTreeSet<u32>,
    /// Queues of which it holds messages without a subscription.
    leasing: BTreeSet<u32>,
    /// Queues where its messages wait for room.
    parking: BTreeSet<u32>,
}

/// A WITHDRAW that waits until its message is stored.
struct Withdrawing {
    token: u64,
    queue: u32,
}

/// A TRACE that waits.
struct Tail {
    token: u64,
    session: u32,
    from: u64,
    deadline: Time,
    prefix: String,
}

impl Machine {
    /// A machine with what a store had. `durable`: there is a store that outlives the process.
    pub fn new(options: MachineOptions, durable: bool, loaded: Loaded, now: Time) -> Self {
        let transient_floor = (u64::from(loaded.epoch) << 32) + 1;
        let mut machine = Self {
            options,
            durable,
            started: now,
            names: BTreeMap::new(),
            queues: Table::default(),
            last_queue: 0,
            sessions: Table::default(),
            senders: Senders::new(loaded.senders),
            shared: Shared::new(&options, loaded.last_key),
            deadlines: BTreeSet::new(),
            last_taker: 0,
            takers_wrapped: false,
            tails: Vec::new(),
            withdrawing: BTreeMap::new(),
            quarantined: loaded.quarantined,
            id_floors: [loaded.id_floor.max(1), transient_floor],
            made_up: 0,
        };
        for found in loaded.queues {
            let options = options_from_bytes(&found.options).unwrap_or_default();
            let mut queue = Queue::new(found.queue, found.name.into(), Kind::Persistent, options);
            queue.durable = durable;
            queue.next_id = found.next_id;
            machine.last_queue = machine.last_queue.max(found.queue);
            machine.names.insert(Arc::clone(&queue.name), found.queue);
            machine.queues.insert(found.queue, queue);
        }
        for message in loaded.messages {
            machine.restore(message);
        }
        machine
    }

    fn restore(&mut self, message: Stored) {
        let Some(queue) = self.queues.get_mut(&message.queue) else { return };
        let shared = &mut self.shared;
        let Stored { key, id, arrived, expires, attempts, send_id, record, .. } = message;
        queue.bytes += record.len() as u64;
        shared.bytes += record.len() as u64;
        queue.charge(record.len() as u64 + ENTRY_BYTES, shared);
        let reply_to = reply_to_of(&record).map(Into::into);
        let entry = Entry {
            key,
            record,
            arrived,
            expires,
            send_id,
            reply_to,
            apart: true,
            lanes: 0,
            taken: false,
            duplicated: false,
        };
        queue.entries.insert(id, entry);
        queue.next_id = queue.next_id.max(id + 1);
        if let Some(expires) = expires {
            queue.expiring.insert((expires, id));
            queue.schedule(expires, shared);
        }
        if let Some(send_id) = send_id {
            self.senders.restored(send_id, message.queue, id);
        }
        queue.admit(id, attempts, shared);
        if queue.is_dead(attempts) {
            shared.dead.push((queue.number, id, None));
        }
    }

    /// Takes a command of `session`. `token` stands for it in the effects.
    pub fn handle(&mut self, now: Time, session: u32, token: u64, command: Command) {
        let answer = match command {
            Command::Send(send) => return self.send(now, session, token, send),
            Command::Create(create) => self.create(session, token, create),
            Command::Destroy { queue, if_empty } => {
                self.destroy_named(now, token, &queue, if_empty)
            }
            Command::List { prefix, alive } => Ok(Some(self.list(&prefix, alive))),
            Command::Receive(receive) => self.receive(now, session, token, receive),
            Command::Ack { queue, ids, force } => {
                self.ack(now, session, token, &queue, &ids, force)
            }
            Command::Nack { queue, ids } => self.nack(now, session, &queue, &ids),
            Command::Extend { queue, ids, lease_ms } => {
                self.extend(now, session, &queue, &ids, lease_ms)
            }
            Command::Subscribe(subscribe) => self.subscribe(session, token, &subscribe),
            Command::Unsubscribe { consumer } => self.unsubscribe(now, session, consumer),
            Command::Diagnostics { prefix, entries_max, payload_max } => {
                Ok(Some(self.diagnostics(now, &prefix, entries_max, payload_max)))
            }
            Command::Trace { from, timeout_ms, prefix } => {
                let deadline = now.after_ms(timeout_ms);
                self.tail(Tail { token, session, from, deadline, prefix })
            }
            Command::Purge { queue } => self.purge(now, token, &queue),
            Command::Withdraw { queue, send_id } => self.withdraw(now, token, &queue, send_id),
        };
        self.answer_outcome(token, answer);
    }

    /// `None`: the answer comes later.
    fn answer_outcome(&mut self, token: u64, outcome: Result<Option<Answer>, Refusal>) {
        match outcome {
            Ok(Some(answer)) => self.shared.answer(token, answer),
            Ok(None) => {}
            Err(refusal) => self.shared.answer(token, Answer::Refused(refusal)),
        }
    }

    /// Does what is due.
    pub fn handle_time(&mut self, now: Time) {
        while let Some(&(time, number)) = self.shared.wake.first()
            && time <= now
        {
            self.shared.wake.pop_first();
            let Some(queue) = self.queues.get_mut(&number) else { continue };
            queue.scheduled = None;
            queue.handle_time(now, &mut self.shared);
        }
    }

    /// Settles everything, and moves what is to be done, in this order, to the end of `effects`.
    pub fn poll_effects(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.settle(now);
        effects.append(&mut self.shared.effects);
    }

    /// The next changes to be stored, once effects were polled. [`handle_stored`](Self::handle_stored) is
    /// to be called for each such batch, in their order. Without a store there are none.
    pub fn poll_batch(&mut self) -> Option<Vec<Op>> {
        // what a purge or the end of many times to live left does not hold up all others for long
        let length = (self.shared.ops.len() / 16).clamp(BATCH_MAX, BATCH_LARGE_MAX);
        let length = length.min(self.shared.ops.len());
        if length == 0 {
            return None;
        }
        let (ops, waiters): (Vec<_>, Vec<_>) = self.shared.ops.drain(..length).unzip();
        self.shared.storing.push_back(waiters.into_iter().flatten().collect());
        Some(ops)
    }

    /// When [`handle_time`](Self::handle_time) is to be called, if nothing else happens.
    pub fn poll_time(&self) -> Option<Time> {
        let wake = self.shared.wake.first().map(|(time, _)| *time);
        let receives = self.deadlines.first().map(|(time, _)| *time);
        let tails = self.tails.iter().map(|tail| tail.deadline).min();
        [wake, receives, tails].into_iter().flatten().min()
    }

    /// Bytes of messages in all queues.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes
    }

    fn settle(&mut self, now: Time) {
        self.settle_queues(now);
        while let Some(&(deadline, number)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.end_receive(number, Answer::Done);
        }
        self.answer_tails(now);
    }

    /// Hands out what can be.
    fn settle_queues(&mut self, now: Time) {
        loop {
            // before they are handed out once more
            for (number, id, lane) in std::mem::take(&mut self.shared.dead) {
                self.bury(now, number, id, lane);
            }
            let dirty = std::mem::take(&mut self.shared.dirty);
            if dirty.is_empty() {
                break;
            }
            for number in dirty {
                if let Some(queue) = self.queues.get_mut(&number) {
                    queue.dirty = false;
                    queue.pump(now, &mut self.shared);
                }
                self.unpark(now, number);
                self.clear_finished();
            }
        }
    }

    /// Forgets RECEIVEs that are over, and notes who holds what.
    fn clear_finished(&mut self) {
        for (session, queue) in std::mem::take(&mut self.shared.leasing) {
            self.sessions.entry(session).or_default().leasing.insert(queue);
        }
        for finished in std::mem::take(&mut self.shared.finished) {
            self.deadlines.remove(&(finished.deadline, finished.number));
            if let Some(session) = self.sessions.get_mut(&finished.session) {
                session.receives.remove(&finished.number);
            }
            for number in finished.queues {
                if let Some(queue) = self.queues.get_mut(&number) {
                    queue.end_receive(&self.shared.receives);
                }
            }
        }
    }

    fn end_receive(&mut self, number: u32, answer: Answer) {
        if let Some(receive) = self.shared.receives.remove(&number) {
            self.deadlines.remove(&(receive.deadline, number));
            self.shared.answer(receive.token, answer);
            self.shared.finished.push(receive.end(number));
        }
        self.clear_finished();
    }

    fn queue(&mut self, name: &str) -> Result<(&mut Queue, &mut Shared), Refusal> {
        let queue = self.names.get(name).and_then(|number| self.queues.get_mut(number));
        let queue = queue.ok_or_else(|| Refusal::missing(name))?;
        Ok((queue, &mut self.shared))
    }
}
