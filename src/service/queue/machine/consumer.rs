//! Who takes messages, and how many it may hold.

use super::lane::{Lane, Lease, Waiting};
use crate::store::Time;

/// A subscription.
pub(super) struct Consumer {
    pub(super) token: u64,
    pub(super) session: u32,
    pub(super) lease_ms: u64,
    pub(super) credit: u32,
    pub(super) credit_bytes: u64,
    pub(super) held: u32,
    pub(super) held_bytes: u64,
    /// It is in no turn, for want of room.
    pub(super) resting: bool,
    /// Of a fanout.
    pub(super) lane: Lane,
}

/// Who can be given messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taker {
    Consumer(u32),
    Receive(u32),
}

impl Consumer {
    pub(super) fn has_room(&self, length: u64) -> bool {
        self.held < self.credit
            && (self.held == 0 || self.held_bytes.saturating_add(length) <= self.credit_bytes)
    }

    /// Counts a message of so many bytes as held: the lease of `number`, which this is.
    pub(super) fn hold(&mut self, number: u32, length: u64, waiting: Waiting, now: Time) -> Lease {
        self.held += 1;
        self.held_bytes += length;
        Lease {
            session: self.session,
            consumer: Some(number),
            until: now.after_ms(self.lease_ms),
            attempts: waiting.attempts + 1,
        }
    }
}
