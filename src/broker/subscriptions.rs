//! Subscriptions: which broadcasts a link wants.

use super::link::LinkId;
use crate::wire::{Broadcast, Header, Key, nlm};

#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) link: LinkId,
    pub(super) cid: u32,
    /// Only broadcasts of this subsystem.
    pub(super) from: Option<u32>,
    /// Only broadcasts for this group.
    pub(super) group: Option<Box<str>>,
    /// All must match.
    pub(super) keys: Box<[Key]>,
}

impl Subscription {
    /// An overrun of the subsystem itself concerns every subscription to it, whatever its keys.
    fn wants(&self, from: u32, broadcast: &Broadcast<'_>) -> bool {
        let message = broadcast.payload;
        self.from.is_none_or(|wanted| wanted == from)
            && self.group.as_ref().is_none_or(|group| broadcast.group == Some(group.as_bytes()))
            && (is_overrun(message) || self.keys.iter().all(|key| key.matches(message)))
    }
}

fn is_overrun(message: &[u8]) -> bool {
    Header::parse(message).is_ok_and(|header| header.kind == nlm::OVERRUN)
}

#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    list: Vec<Subscription>,
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn insert(&mut self, subscription: Subscription) {
        self.list.push(subscription);
    }

    /// Removes `link`'s subscription `cid`; whether there was one.
    pub(super) fn remove(&mut self, link: LinkId, cid: u32) -> bool {
        let before = self.list.len();
        self.list.retain(|subscription| subscription.link != link || subscription.cid != cid);
        self.list.len() < before
    }

    pub(super) fn remove_link(&mut self, link: LinkId) {
        self.list.retain(|subscription| subscription.link != link);
    }

    /// The links that want `broadcast`, which comes from the subsystem `from`. A link is named once for
    /// each of its subscriptions that match.
    pub(super) fn matching(
        &self,
        from: u32,
        broadcast: &Broadcast<'_>,
    ) -> impl Iterator<Item = LinkId> {
        self.list
            .iter()
            .filter(move |subscription| subscription.wants(from, broadcast))
            .map(|subscription| subscription.link)
    }
}
