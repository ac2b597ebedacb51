//! What is wanted here of other brokers' broadcasts, and what they have been told of it
//! (proto-spec/envelope.md, "Between brokers").
//!
//! A broker subscribes at its neighbours to what its own links subscribe to, and to what its other
//! neighbours have subscribed to here. Each such subscription says how many brokers it has come through.
//! Where brokers form a ring, two could otherwise keep each other's subscription alive after the last
//! subscriber has gone; so its number grows with every turn, and ends at the bound.

use std::collections::HashMap;
use std::sync::Arc;

use super::link::LinkId;
use super::subscriptions::{Filter, Subscription};
use crate::wire::flag::HOPS_MAX;

/// Who wants what a filter chooses.
#[derive(Debug, Default)]
struct Interest {
    /// How many subscriptions of links that are no brokers'.
    local: usize,
    /// Subscriptions of other brokers: which, its number there, and how many brokers it has come through.
    far: Vec<(LinkId, u32, u32)>,
}

#[derive(Debug, Default)]
pub(super) struct Interests {
    map: HashMap<Arc<Filter>, Interest>,
}

impl Interests {
    /// Notes a subscription.
    pub(super) fn insert(
        &mut self,
        filter: &Arc<Filter>,
        link: LinkId,
        cid: u32,
        hops: Option<u32>,
    ) {
        let interest = self.map.entry(Arc::clone(filter)).or_default();
        match hops {
            None => interest.local += 1,
            Some(hops) => interest.far.push((link, cid, hops)),
        }
    }

    /// Forgets a subscription.
    pub(super) fn remove(&mut self, gone: &Subscription) {
        let Some(interest) = self.map.get_mut(&gone.filter) else { return };
        match gone.hops {
            None => interest.local -= 1,
            Some(_) => interest.far.retain(|(link, cid, _)| (*link, *cid) != (gone.link, gone.cid)),
        }
        if interest.local == 0 && interest.far.is_empty() {
            self.map.remove(&gone.filter);
        }
    }

    /// How many brokers a subscription for `filter` at `neighbour` has come through; `None` if nobody but
    /// the neighbour itself wants it.
    pub(super) fn hops_to(&self, filter: &Filter, neighbour: LinkId) -> Option<u32> {
        let interest = self.map.get(filter)?;
        if interest.local > 0 {
            return Some(0);
        }
        let others = interest.far.iter().filter(|(link, ..)| *link != neighbour);
        let hops = others.map(|(_, _, hops)| hops.saturating_add(1)).min()?;
        (hops < u32::from(HOPS_MAX)).then_some(hops)
    }

    /// The filters for broadcasts of `from`, in an order that is the same each time.
    pub(super) fn filters(&self, from: Option<u32>) -> Vec<Arc<Filter>> {
        let filters = self.map.keys().filter(|filter| filter.from == from);
        let mut filters: Vec<_> = filters.cloned().collect();
        filters.sort_unstable_by(|a, b| (&a.group, order(a)).cmp(&(&b.group, order(b))));
        filters
    }
}

fn order(filter: &Filter) -> Vec<(u32, u32, u32)> {
    filter.keys.iter().map(|key| (key.offset, key.key, key.mask)).collect()
}
