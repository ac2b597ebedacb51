//! Messages in the order in which they are delivered, and those that are held.

use std::collections::{BTreeMap, BTreeSet};

use crate::store::Time;

/// One line of messages. All consumers of a shared queue stand at one; in a fanout each has its own.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Those that wait, by id, so that what comes back stands where it was.
    pub(super) ready: BTreeMap<u64, Waiting>,
    pub(super) leases: BTreeMap<u64, Lease>,
    ends: BTreeSet<(Time, u64)>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiting {
    /// How often it was delivered.
    pub(super) attempts: u32,
    /// The session that held it last and did not give it back: it may still be done with it.
    pub(super) late: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) session: u32,
    /// The subscription; none if it was taken by a RECEIVE.
    pub(super) consumer: Option<u32>,
    pub(super) until: Time,
    /// This delivery included.
    pub(super) attempts: u32,
}

impl Lane {
    /// Hands a waiting message out.
    pub(super) fn lease(&mut self, id: u64, lease: Lease) {
        self.ready.remove(&id);
        self.ends.insert((lease.until, id));
        self.leases.insert(id, lease);
    }

    /// Ends a lease.
    pub(super) fn release(&mut self, id: u64) -> Option<Lease> {
        let lease = self.leases.remove(&id)?;
        self.ends.remove(&(lease.until, id));
        Some(lease)
    }

    pub(super) fn extend(&mut self, id: u64, until: Time) {
        if let Some(lease) = self.leases.get_mut(&id) {
            self.ends.remove(&(lease.until, id));
            lease.until = until;
            self.ends.insert((until, id));
        }
    }

    /// When the first lease ends, and whose.
    pub(super) fn first_end(&self) -> Option<(Time, u64)> {
        self.ends.first().copied()
    }

    pub(super) fn holds(&self, id: u64) -> bool {
        self.ready.contains_key(&id) || self.leases.contains_key(&id)
    }
}
