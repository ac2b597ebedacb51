//! Which messages have come before.

use std::collections::{BTreeMap, VecDeque};

use super::super::hash::Table;
pub use crate::store::SENDERS_MAX;
use crate::store::{Judgement, Seen, SendId};

/// Of how many messages of a sender the ids are known, too.
pub const RECENT_MAX: usize = 256;

/// SENDs that wait for what becomes of one message, besides the first.
const JOINED_MAX: usize = 64;

/// How much later a sender is taken to have sent last before that is written down.
const USE_GRAIN: u64 = 1_024;

#[derive(Debug, Default)]
pub(super) struct Senders {
    senders: Table<u128, Sender>,
    /// Senders in the order in which they last sent, roughly.
    order: BTreeMap<u64, u128>,
    last_use: u64,
    /// Messages that are being stored or wait for room, and who else waits for what becomes of them: by
    /// sender, whose numbers mostly ascend.
    under_way: Table<u128, BTreeMap<u64, Vec<Waiting>>>,
}

#[derive(Debug, Default)]
struct Sender {
    seen: Seen,
    recent: VecDeque<Recent>,
    used: u64,
}

/// A SEND that waits for what becomes of an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) token: u64,
    pub(super) session: u32,
}

/// Where a message went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recent {
    sequence: u64,
    pub(super) queue: u32,
    pub(super) id: u64,
}

/// What is known of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    New,
    /// It is on its way.
    UnderWay,
    /// It came before; where to, if that is still known.
    Before(Option<Recent>),
    TooOld,
}

impl Sender {
    fn remember(&mut self, recent: Recent) {
        if self.recent.len() >= RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(recent);
    }
}

impl Senders {
    pub(super) fn new(loaded: Vec<(u128, Seen)>) -> Self {
        let mut senders = Self::default();
        for (sender, seen) in loaded {
            senders.entry(sender).seen = seen;
        }
        senders
    }

    pub(super) fn judge(&self, send_id: SendId) -> Known {
        let under_way = self.under_way.get(&send_id.sender);
        if under_way.is_some_and(|numbers| numbers.contains_key(&send_id.sequence)) {
            return Known::UnderWay;
        }
        let sender = self.senders.get(&send_id.sender);
        match sender.map(|sender| sender.seen.judge(send_id.sequence)) {
            None | Some(Judgement::New) if send_id.sequence > 0 => Known::New,
            Some(Judgement::Seen) => Known::Before(self.recent(send_id)),
            _ => Known::TooOld,
        }
    }

    pub(super) fn recent(&self, send_id: SendId) -> Option<Recent> {
        let recent = &self.senders.get(&send_id.sender)?.recent;
        recent.iter().rev().find(|recent| recent.sequence == send_id.sequence).copied()
    }

    /// It is on its way from now on.
    pub(super) fn start(&mut self, send_id: SendId) {
        self.under_way.entry(send_id.sender).or_default().entry(send_id.sequence).or_default();
    }

    /// Another waits for what becomes of it too, unless too many do. `is_there`: whether a session has not gone.
    pub(super) fn join(
        &mut self,
        send_id: SendId,
        waiting: Waiting,
        is_there: impl Fn(u32) -> bool,
    ) -> bool {
        let Some(waits) = self.waits(send_id) else { return false };
        // a client that is cut off again and again leaves one behind each time
        if waits.len() >= JOINED_MAX {
            waits.retain(|waiting| is_there(waiting.session));
        }
        let room = waits.len() < JOINED_MAX;
        if room {
            waits.push(waiting);
        }
        room
    }

    /// Who sent the same and is still there, and is now the one who sends it.
    pub(super) fn take_over(
        &mut self,
        send_id: SendId,
        is_there: impl Fn(u32) -> bool,
    ) -> Option<Waiting> {
        let waits = self.waits(send_id)?;
        let at = waits.iter().position(|waiting| is_there(waiting.session))?;
        Some(waits.remove(at))
    }

    fn waits(&mut self, SendId { sender, sequence }: SendId) -> Option<&mut Vec<Waiting>> {
        self.under_way.get_mut(&sender)?.get_mut(&sequence)
    }

    /// A message that was in a queue when the broker started.
    pub(super) fn restored(&mut self, SendId { sender, sequence }: SendId, queue: u32, id: u64) {
        if let Some(sender) = self.senders.get_mut(&sender) {
            sender.remember(Recent { sequence, queue, id });
        }
    }

    /// It is in a queue. Who else waits for that.
    pub(super) fn stored(&mut self, send_id: SendId, queue: u32, id: u64) -> Vec<Waiting> {
        let sequence = send_id.sequence;
        let sender = self.entry(send_id.sender);
        sender.seen.insert(sequence);
        sender.remember(Recent { sequence, queue, id });
        self.end(send_id)
    }

    /// It did not get into a queue. Who else waits for that.
    pub(super) fn failed(&mut self, send_id: SendId) -> Vec<Waiting> {
        self.end(send_id)
    }

    fn end(&mut self, send_id: SendId) -> Vec<Waiting> {
        let Some(numbers) = self.under_way.get_mut(&send_id.sender) else { return Vec::new() };
        let waits = numbers.remove(&send_id.sequence).unwrap_or_default();
        if numbers.is_empty() {
            self.under_way.remove(&send_id.sender);
        }
        waits
    }

    fn entry(&mut self, sender: u128) -> &mut Sender {
        self.last_use += 1;
        let now = self.last_use;
        if self.senders.len() >= SENDERS_MAX
            && !self.senders.contains_key(&sender)
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.senders.remove(&oldest);
        }
        let entry = self.senders.entry(sender).or_default();
        if entry.used == 0 || now - entry.used > USE_GRAIN {
            self.order.remove(&entry.used);
            entry.used = now;
            self.order.insert(now, sender);
        }
        entry
    }
}
