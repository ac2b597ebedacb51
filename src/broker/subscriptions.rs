//! Subscriptions: which broadcasts a link wants.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use slab::Slab;

use super::link::LinkId;
use crate::wire::{Broadcast, Header, Key, nlm};

/// What a subscription chooses by. Addresses are this broker's.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Filter {
    /// Only broadcasts of this subsystem.
    pub(super) from: Option<u32>,
    /// Only broadcasts for this group.
    pub(super) group: Option<Box<str>>,
    /// All must match.
    pub(super) keys: Box<[Key]>,
}

impl Filter {
    /// An overrun of the subsystem itself concerns every subscription to it, whatever its keys; one of
    /// `behind` concerns those to any of these subsystems.
    #[inline]
    fn wants(&self, from: u32, broadcast: &Broadcast<'_>, overrun: bool, behind: &[u32]) -> bool {
        let message = broadcast.payload;
        self.from.is_none_or(|wanted| wanted == from || (overrun && behind.contains(&wanted)))
            && self.group.as_ref().is_none_or(|group| broadcast.group == Some(group.as_bytes()))
            && (overrun || self.keys.iter().all(|key| key.matches(message)))
    }

    /// The key that names one value of one place, if there is such a key.
    fn exact(&self) -> Option<&Key> {
        self.keys.iter().find(|key| key.mask == u32::MAX)
    }
}

pub(super) fn is_overrun(message: &[u8]) -> bool {
    Header::parse(message).is_ok_and(|header| header.kind == nlm::OVERRUN)
}

#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) link: LinkId,
    pub(super) cid: u32,
    pub(super) filter: Arc<Filter>,
    /// How many brokers it has come through, if it is another broker's.
    pub(super) hops: Option<u32>,
    /// Its place in its bucket.
    place: usize,
}

/// Subscriptions that are looked at together.
type Bucket = Vec<usize>;

/// Every subscription is in one bucket: that of its group if it has one, else that of its first exact key,
/// else that of those that every broadcast is compared with.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    all: Slab<Subscription>,
    of_link: HashMap<LinkId, HashMap<u32, usize>>,
    groups: HashMap<Box<str>, Bucket>,
    /// By offset, then by value.
    exact: BTreeMap<u32, HashMap<u32, Bucket>>,
    others: Bucket,
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn len_of(&self, link: LinkId) -> usize {
        self.of_link.get(&link).map_or(0, HashMap::len)
    }

    /// Adds one; `link` has none of the number `cid`.
    pub(super) fn insert(
        &mut self,
        link: LinkId,
        cid: u32,
        filter: Arc<Filter>,
        hops: Option<u32>,
    ) {
        let entry = self.all.vacant_entry();
        let id = entry.key();
        let bucket = match (&filter.group, filter.exact()) {
            (Some(group), _) => self.groups.entry(group.clone()).or_default(),
            (None, Some(key)) => {
                self.exact.entry(key.offset).or_default().entry(key.key).or_default()
            }
            (None, None) => &mut self.others,
        };
        let place = bucket.len();
        bucket.push(id);
        entry.insert(Subscription { link, cid, filter, hops, place });
        self.of_link.entry(link).or_default().insert(cid, id);
    }

    /// Removes `link`'s subscription `cid`, if there is one.
    pub(super) fn remove(&mut self, link: LinkId, cid: u32) -> Option<Subscription> {
        let cids = self.of_link.get_mut(&link)?;
        let id = cids.remove(&cid)?;
        if cids.is_empty() {
            self.of_link.remove(&link);
        }
        Some(self.take_out(id))
    }

    /// Removes all of a link's.
    pub(super) fn remove_link(&mut self, link: LinkId) -> Vec<Subscription> {
        let mut ids: Vec<_> = self.of_link.remove(&link).unwrap_or_default().into_iter().collect();
        // the order must not depend on a hash: what follows from it is seen outside
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| self.take_out(id)).collect()
    }

    fn take_out(&mut self, id: usize) -> Subscription {
        let gone = self.all.remove(id);
        let filter = &*gone.filter;
        match (&filter.group, filter.exact()) {
            (Some(group), _) => {
                if let Some(bucket) = self.groups.get_mut(group) {
                    vacate(bucket, gone.place, &mut self.all);
                    if bucket.is_empty() {
                        self.groups.remove(group);
                    }
                }
            }
            (None, Some(key)) => {
                if let Some(values) = self.exact.get_mut(&key.offset)
                    && let Some(bucket) = values.get_mut(&key.key)
                {
                    vacate(bucket, gone.place, &mut self.all);
                    if bucket.is_empty() {
                        values.remove(&key.key);
                    }
                    if values.is_empty() {
                        self.exact.remove(&key.offset);
                    }
                }
            }
            (None, None) => vacate(&mut self.others, gone.place, &mut self.all),
        }
        gone
    }

    /// The subscriptions from the `skip`th on, in no particular order.
    pub(super) fn iter_from(&self, skip: usize) -> impl Iterator<Item = (usize, &Subscription)> {
        self.all.iter().skip_while(move |(id, _)| *id < skip)
    }

    /// Names the links that want `broadcast`, which comes from the subsystem `from`, or from something
    /// `behind` which these are: once for each of their subscriptions that match.
    #[inline]
    pub(super) fn each_match(
        &self,
        from: u32,
        broadcast: &Broadcast<'_>,
        behind: &[u32],
        mut name: impl FnMut(&Subscription),
    ) {
        if is_overrun(broadcast.payload) {
            // it passes keys, which the index is made of
            for (_, subscription) in &self.all {
                if subscription.filter.wants(from, broadcast, true, behind) {
                    name(subscription);
                }
            }
            return;
        }
        let mut look = |bucket: &Bucket| {
            for id in bucket {
                if let Some(subscription) = self.all.get(*id)
                    && subscription.filter.wants(from, broadcast, false, behind)
                {
                    name(subscription);
                }
            }
        };
        if let Some(group) = broadcast.group
            && let Ok(group) = str::from_utf8(group)
            && let Some(bucket) = self.groups.get(group)
        {
            look(bucket);
        }
        for (offset, values) in &self.exact {
            let word = broadcast.payload.get(*offset as usize..).and_then(<[u8]>::first_chunk::<4>);
            if let Some(word) = word
                && let Some(bucket) = values.get(&u32::from_le_bytes(*word))
            {
                look(bucket);
            }
        }
        look(&self.others);
    }
}

/// Takes the entry at `place` out of a bucket; the last one moves there.
fn vacate(bucket: &mut Bucket, place: usize, all: &mut Slab<Subscription>) {
    bucket.swap_remove(place);
    if let Some(moved) = bucket.get(place).and_then(|id| all.get_mut(*id)) {
        moved.place = place;
    }
}
