//! Links: who is connected, and what they may do.

use std::collections::HashMap;
use std::fmt;

use super::access::{Access, Rights};
use super::chain::Far;
use super::open::OpenRequests;
use super::subsystems::Provider;
use crate::wire::LEGACY_FRAME_MAX;

/// Names a link for as long as the broker runs: the slot may be used again, its generation is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl LinkId {
    /// The link's slot; no two links that are up share one.
    pub fn index(self) -> usize {
        self.index as usize
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// What the core has to know of a new link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkKind {
    /// What it may do.
    pub access: Access,
    /// How it is connected.
    pub carrier: Carrier,
    /// Where its other end is, for listings.
    pub peer: String,
}

/// How a link is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// By a stream of bytes.
    Stream,
    /// By datagrams from anybody: nothing ever goes back, and only subscribers and pullers are reached.
    Datagram,
    /// In the broker's own process: it reassembles, and is told when a return address is gone.
    Local,
}

impl LinkKind {
    /// A link in the broker's own process, which may do everything.
    pub const LOCAL: Self =
        Self { access: Access::ALL, carrier: Carrier::Local, peer: String::new() };

    /// A connection.
    pub const fn stream(access: Access) -> Self {
        Self { access, carrier: Carrier::Stream, peer: String::new() }
    }

    /// A socket that receives datagrams.
    pub const fn datagram(access: Access) -> Self {
        Self { access, carrier: Carrier::Datagram, peer: String::new() }
    }

    /// The same, with the place of its other end.
    #[must_use]
    pub fn peer(mut self, peer: impl Into<String>) -> Self {
        self.peer = peer.into();
        self
    }
}

/// What parts of one message have in common: `dst`, `src` and sequence number.
pub(super) type Pick = (u32, u32, u32);

/// How many messages in parts are kept in each half of [`Parts`].
const PARTS_MAX: usize = 1_024;

/// Which provider the first part of a message went to. When one half is full it is the older one, and what was
/// that is forgotten: messages of which no part came for as long.
#[derive(Debug, Default)]
pub(super) struct Parts {
    young: HashMap<Pick, Provider>,
    old: HashMap<Pick, Provider>,
}

impl Parts {
    pub(super) fn get(&self, pick: &Pick) -> Option<Provider> {
        self.young.get(pick).or_else(|| self.old.get(pick)).copied()
    }

    pub(super) fn insert(&mut self, pick: Pick, provider: Provider) {
        if self.young.len() >= PARTS_MAX {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(pick, provider);
    }

    pub(super) fn remove(&mut self, pick: &Pick) {
        self.young.remove(pick);
        self.old.remove(pick);
    }
}

/// The provider of a subsystem for one read, or while it is the only one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    /// Which read.
    pub(super) batch: u64,
    /// Of the providers of everything.
    pub(super) version: u64,
    pub(super) subsystem: u32,
    pub(super) provider: Provider,
    /// How many bytes of this read each provider takes before the next one does.
    pub(super) run: usize,
    /// It takes what begins before this place.
    pub(super) until: usize,
    /// At most so many more frames: bodies may differ in length.
    pub(super) left: u32,
}

impl Choice {
    /// Every byte: there is no other provider.
    pub(super) const ALL: usize = usize::MAX;

    /// How many frames a provider takes one after the other.
    pub(super) const RUN_FRAMES_MAX: u32 = 32;
}

/// One link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) access: Access,
    /// Has said the secret.
    pub(super) registered: bool,
    pub(super) carrier: Carrier,
    pub(super) peer: String,
    /// The other end is a broker too.
    pub(super) far: Option<Box<Far>>,
    /// Has said HELLO, or is local.
    pub(super) greeted: bool,
    /// The longest frame that it takes.
    pub(super) frame_max: usize,
    /// Its ports and the addresses that stand for them. The peer chooses the keys.
    pub(super) ports: HashMap<u32, u32>,
    /// The pair that was looked up last: most links have one port.
    pub(super) last_port: Option<(u32, u32)>,
    /// The provider of the last request: what follows under the same number goes there too, for it may be
    /// another part of the same message.
    pub(super) last_pick: Option<(Pick, Provider)>,
    /// The providers of messages that come in parts, whatever comes between them.
    pub(super) parts: Option<Box<Parts>>,
    /// The provider that goes on taking what comes in the same read.
    pub(super) choice: Option<Choice>,
    /// What it has been asked and has not answered.
    pub(super) open: OpenRequests,
    /// How many names it provides.
    pub(super) provides: u32,
    /// It provides a name, or has: what it was asked before it withdrew, it may still answer.
    pub(super) may_answer: bool,
    /// Much waits for it: what several share goes to the others.
    pub(super) slow: bool,
    /// Numbers of subscriptions that were given back.
    pub(super) cids_free: Vec<u32>,
    /// The lowest number given out so far; they count down.
    pub(super) cid_next: u32,
    /// The last event that was sent to it, so that two subscriptions give one copy.
    pub(super) last_event: u64,
}

impl Link {
    fn new(kind: LinkKind, frame_max: usize, cids: u32) -> Self {
        let local = kind.carrier == Carrier::Local;
        Self {
            access: kind.access,
            registered: false,
            carrier: kind.carrier,
            peer: kind.peer,
            far: None,
            greeted: local,
            frame_max: if local { frame_max } else { LEGACY_FRAME_MAX.min(frame_max) },
            last_pick: None,
            parts: None,
            choice: None,
            open: OpenRequests::default(),
            ports: HashMap::new(),
            last_port: None,
            provides: 0,
            may_answer: false,
            slow: false,
            cids_free: Vec::new(),
            cid_next: cids,
            last_event: 0,
        }
    }

    /// What it may do now.
    pub(super) fn rights(&self) -> Rights {
        let rights = self.access.rights;
        Rights { control: rights.control || self.registered, ..rights }
    }
}

/// The links that are up, by slot.
#[derive(Debug, Default)]
pub(super) struct Links {
    slots: Vec<Slot>,
    free: Vec<u32>,
    up: usize,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    link: Option<Link>,
}

impl Links {
    pub(super) fn len(&self) -> usize {
        self.up
    }

    pub(super) fn insert(&mut self, kind: LinkKind, frame_max: usize, cids: u32) -> LinkId {
        let link = Link::new(kind, frame_max, cids);
        self.up += 1;
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.link = Some(link);
            return LinkId { index, generation: slot.generation };
        }
        let index = self.slots.len() as u32;
        self.slots.push(Slot { generation: 0, link: Some(link) });
        LinkId { index, generation: 0 }
    }

    pub(super) fn remove(&mut self, id: LinkId) -> Option<Link> {
        let slot =
            self.slots.get_mut(id.index()).filter(|slot| slot.generation == id.generation)?;
        let link = slot.link.take()?;
        self.up -= 1;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(link)
    }

    #[inline]
    pub(super) fn get(&self, id: LinkId) -> Option<&Link> {
        let slot = self.slots.get(id.index())?;
        if slot.generation == id.generation { slot.link.as_ref() } else { None }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        let slot = self.slots.get_mut(id.index())?;
        if slot.generation == id.generation { slot.link.as_mut() } else { None }
    }

    /// Those that are up, from the slot `from` on.
    pub(super) fn iter_from(&self, from: usize) -> impl Iterator<Item = (u32, &Link)> {
        let slots = self.slots.iter().enumerate().skip(from);
        slots.filter_map(|(index, slot)| Some((index as u32, slot.link.as_ref()?)))
    }
}
