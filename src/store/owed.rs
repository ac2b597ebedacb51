//! Changes that free room and could not be made yet.

use std::collections::{BTreeMap, VecDeque};

use super::Op;

/// Changes that are owed, in their order. At most two for each message, and one for each queue: a message is
/// deleted once, and of its counts only the last one is kept.
#[derive(Debug, Default)]
pub(super) struct Owed {
    ops: VecDeque<Op>,
    attempts: BTreeMap<u64, u32>,
}

impl Owed {
    pub(super) fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.attempts.is_empty()
    }

    /// Takes from a batch what frees room.
    pub(super) fn extend(&mut self, batch: Vec<Op>) {
        for op in batch {
            match op {
                Op::Attempts { key, attempts } => drop(self.attempts.insert(key, attempts)),
                Op::Delete { key } => {
                    self.attempts.remove(&key);
                    self.ops.push_back(op);
                }
                op if op.frees() => self.ops.push_back(op),
                _ => {}
            }
        }
    }

    /// The first `count`, or all there are.
    pub(super) fn first(&self, count: usize) -> Vec<Op> {
        let attempts = self.attempts.iter();
        let attempts =
            attempts.map(|(key, attempts)| Op::Attempts { key: *key, attempts: *attempts });
        attempts.chain(self.ops.iter().cloned()).take(count).collect()
    }

    /// Those were made.
    pub(super) fn pay(&mut self, count: usize) {
        let left = count.saturating_sub(self.attempts.len());
        for _ in left..count {
            self.attempts.pop_first();
        }
        self.ops.drain(..left);
    }
}
