//! What all queues of a machine have in common.

use std::collections::{BTreeSet, VecDeque};

use super::super::hash::Table;
use super::MachineOptions;
use super::command::{Answer, Delivery, Effect};
use super::trace::Trace;
use crate::store::{Op, SendId, Time};

pub(super) struct Shared {
    pub(super) effects: Vec<Effect>,
    /// What is to be stored, and who waits for it.
    pub(super) ops: VecDeque<(Op, Option<Waiter>)>,
    /// For each batch that is being stored.
    pub(super) storing: VecDeque<Vec<Waiter>>,
    pub(super) trace: Trace,
    /// Those that wait for a message.
    pub(super) receives: Table<u32, Waits>,
    /// Those that wait no more, and have to be taken out of queues' turns.
    pub(super) finished: Vec<Finished>,
    /// Queues to be looked at before the machine is done.
    pub(super) dirty: Vec<u32>,
    /// Queue, message and lane of what was delivered too often.
    pub(super) dead: Vec<(u32, u64, Option<u32>)>,
    /// Sessions that hold messages without a subscription, and of which queue.
    pub(super) leasing: Vec<(u32, u32)>,
    /// When queues are to be looked at.
    pub(super) wake: BTreeSet<(Time, u32)>,
    /// Of messages in all queues.
    pub(super) bytes: u64,
    /// The same with what is kept of each besides.
    pub(super) memory: u64,
    pub(super) last_key: u64,
    /// See [`MachineOptions::duplicate_every`].
    pub(super) duplicate_every: u32,
}

/// Who waits until something is stored.
pub(super) enum Waiter {
    Sent {
        queue: u32,
        id: u64,
        session: u32,
        token: u64,
        send_id: Option<SendId>,
    },
    Created {
        queue: u32,
        answer: Option<(u64, Answer)>,
    },
    Answer {
        token: u64,
        answer: Answer,
    },
    /// Messages that are gone once they are handed out, to a RECEIVE that ends with them.
    Taken {
        token: u64,
        messages: Vec<Delivery>,
    },
    /// A message that goes to the dead-letter queue.
    Moved {
        from: Place,
        to: u32,
        to_id: u64,
    },
}

/// Where a message was that goes to the dead-letter queue.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) queue: u32,
    pub(super) id: u64,
    /// The consumer of a fanout that gave it back.
    pub(super) lane: Option<u32>,
    pub(super) attempts: u32,
}

/// A RECEIVE that waits.
pub(super) struct Waits {
    pub(super) token: u64,
    pub(super) session: u32,
    /// In whose turns it stands.
    pub(super) queues: Vec<u32>,
    pub(super) messages_max: u32,
    pub(super) lease_ms: Option<u64>,
    pub(super) auto_ack: bool,
    pub(super) deadline: Time,
}

/// A RECEIVE that is over.
pub(super) struct Finished {
    pub(super) number: u32,
    pub(super) session: u32,
    pub(super) queues: Vec<u32>,
    pub(super) deadline: Time,
}

impl Waits {
    pub(super) fn end(self, number: u32) -> Finished {
        let Self { session, queues, deadline, .. } = self;
        Finished { number, session, queues, deadline }
    }
}

impl Shared {
    pub(super) fn new(options: &MachineOptions, last_key: u64) -> Self {
        Self {
            effects: Vec::new(),
            ops: VecDeque::new(),
            storing: VecDeque::new(),
            trace: Trace::new(options.trace_events_max),
            receives: Table::default(),
            finished: Vec::new(),
            dirty: Vec::new(),
            dead: Vec::new(),
            leasing: Vec::new(),
            wake: BTreeSet::new(),
            bytes: 0,
            memory: 0,
            last_key,
            duplicate_every: options.duplicate_every,
        }
    }

    pub(super) fn answer(&mut self, token: u64, answer: Answer) {
        self.effects.push(Effect::Answer { token, answer });
    }

    /// Hands messages to a RECEIVE, and ends it.
    pub(super) fn end_taking(&mut self, token: u64, messages: Vec<Delivery>) {
        let messages = messages.into_iter();
        self.effects.extend(messages.map(|message| Effect::Deliver { token, message }));
        self.answer(token, Answer::Done);
    }
}
