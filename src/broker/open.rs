//! Requests that a provider has taken and not yet answered, so that their askers can be told if it goes.
//!
//! Only those that ask are kept, and only at providers behind a connection: one in the broker's own process
//! goes with the broker. An answer's LAST frame ends them. Nothing of this is needed to deliver an answer.

use std::collections::HashMap;

/// What the asker gets back of its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    /// The subsystem that was asked.
    pub(super) subsystem: u32,
    /// The asker's pid.
    pub(super) pid: u32,
}

/// Room for as many is kept when none is open.
const KEPT: usize = 2_048;

/// By return address and sequence number.
#[derive(Debug, Default)]
pub(super) struct OpenRequests(HashMap<(u32, u32), Open>);

impl OpenRequests {
    /// Keeps a request; whether there was room for it among at most `max`.
    pub(super) fn insert(&mut self, asker: u32, sequence: u32, open: Open, max: usize) -> bool {
        let room = self.0.len() < max || self.0.contains_key(&(asker, sequence));
        if room {
            self.0.insert((asker, sequence), open);
        }
        room
    }

    pub(super) fn remove(&mut self, asker: u32, sequence: u32) {
        self.0.remove(&(asker, sequence));
        if self.0.is_empty() && self.0.capacity() > KEPT {
            self.0 = HashMap::new();
        }
    }

    pub(super) fn into_iter(self) -> impl Iterator<Item = ((u32, u32), Open)> {
        self.0.into_iter()
    }
}
