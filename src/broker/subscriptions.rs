//! Subscriptions: which broadcasts a link wants.

use super::link::LinkId;
use crate::wire::{Header, Key, nlm};

#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) link: LinkId,
    pub(super) cid: u32,
    /// Only broadcasts of this subsystem.
    pub(super) from: Option<u32>,
    /// All must match.
    pub(super) keys: Box<[Key]>,
}

impl Subscription {
    /// An overrun of the subsystem itself concerns every subscription to it, whatever its keys.
    fn wants(&self, from: u32, message: &[u8]) -> bool {
        self.from.is_none_or(|wanted| wanted == from)
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

    /// The links that want `message`, which comes from the subsystem `from`. A link is named once for
    /// each of its subscriptions that match.
    pub(super) fn matching(&self, from: u32, message: &[u8]) -> impl Iterator<Item = LinkId> {
        self.list
            .iter()
            .filter(move |subscription| subscription.wants(from, message))
            .map(|subscription| subscription.link)
    }
}
