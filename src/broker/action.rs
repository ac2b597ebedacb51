//! What the core wants done: values, carried out by the node in their order.

use std::ops::Range;

use super::link::LinkId;
use super::order::Order;
use crate::wire::EnvelopeHead;

/// What becomes of a frame whose target has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The sender is not read until there is room: requests and pushes.
    Hold,
    /// As `Hold`, but another provider of this subsystem may take it instead, see
    /// [`Broker::share`](super::Broker::share): whole pushes to a name that several provide.
    Share(u32),
    /// As `Hold`, but a target that takes nothing for too long is closed: answers, so that an asker
    /// that does not read cannot stall its provider for ever.
    Reply,
    /// The frame is dropped, and the target is told how many were: broadcasts.
    Shed,
    /// The frame is taken up to twice the bound, and past that the target is closed: what brokers tell
    /// each other, of which nothing may be missing while the link is up.
    Must,
}

/// Where the bytes of a [`Action::Send`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In the buffer that was handed to the core.
    Input,
    /// In [`Actions::scratch`].
    Scratch,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a run of whole frames.
    Send {
        /// The target.
        to: LinkId,
        /// Which bytes they are in.
        source: Source,
        /// Which of those bytes.
        range: Range<usize>,
        /// What to do when the target has no room.
        delivery: Delivery,
    },
    /// The link has said HELLO: it reassembles, and takes frames up to this many bytes.
    Greeted {
        /// The link.
        link: LinkId,
    },
    /// The first subscription came, or the last one went. To be carried out before what follows: the
    /// answer to SUBSCRIBE promises that events are seen from then on.
    EventsChanged,
    /// A return address is gone; a local provider lets go of what it keeps for it.
    Gone {
        /// The provider's link.
        to: LinkId,
        /// The address.
        address: u32,
    },
    /// A command that the node carries out; it owes the link an [`answer`](super::Broker::answer).
    Order {
        /// Who gave it.
        link: LinkId,
        /// What the answer echoes.
        head: EnvelopeHead,
        /// What to do.
        order: Order,
    },
    /// The broker behind an uplink has answered its greeting.
    Linked {
        /// The uplink's address.
        address: u32,
    },
    /// Another broker did not do what this one asked of it: for the log.
    Refused {
        /// The other broker.
        link: LinkId,
        /// What it did not do, and why.
        text: String,
    },
}

/// The list of what to do, reused from call to call so that it allocates nothing in the long run.
#[derive(Debug, Default)]
pub struct Actions {
    /// What to do, in this order.
    pub list: Vec<Action>,
    /// Bytes that the core itself made.
    pub scratch: Vec<u8>,
    /// By the slot of a link, its last run, so that frames for several targets by turns make one run for
    /// each. Looked at only once there are several targets.
    last_runs: Vec<LastRun>,
    /// Tells entries of `last_runs` from those of earlier rounds.
    round: u32,
    /// Runs before this place are not made longer: what comes later may depend on what stands there.
    barrier: usize,
}

#[derive(Clone, Copy, Debug)]
struct LastRun {
    round: u32,
    /// Its place in the list.
    at: u32,
}

impl Actions {
    /// Forgets everything, and keeps the room.
    pub fn clear(&mut self) {
        self.list.clear();
        self.scratch.clear();
        self.barrier = 0;
        self.round = self.round.wrapping_add(1);
        if self.round == 0 {
            self.last_runs.clear();
        }
    }

    /// Adds something else than frames, to be done after what is there and before what comes.
    pub(super) fn push(&mut self, action: Action) {
        self.list.push(action);
        self.barrier = self.list.len();
    }

    /// Adds a frame; one that continues the last run for its target makes that run longer. What is for one
    /// target keeps its order, and that is all that is promised.
    #[inline]
    pub(super) fn send(
        &mut self,
        to: LinkId,
        source: Source,
        range: Range<usize>,
        delivery: Delivery,
    ) {
        let last = self.list.len().wrapping_sub(1);
        if self.lengthen(last, to, source, &range, delivery) {
            return;
        }
        if last != usize::MAX {
            match self.last_runs.get(to.index()) {
                Some(run) if run.round == self.round && run.at as usize >= self.barrier => {
                    if self.lengthen(run.at as usize, to, source, &range, delivery) {
                        return;
                    }
                }
                Some(_) => {}
                None => self.reach(to.index()),
            }
            self.note(last);
            let at = last as u32 + 1;
            self.last_runs[to.index()] = LastRun { round: self.round, at };
        }
        self.list.push(Action::Send { to, source, range, delivery });
    }

    /// Notes the run that was pushed when it was still the only one.
    fn note(&mut self, first: usize) {
        if first != 0 {
            return;
        }
        if let Some(Action::Send { to, .. }) = self.list.first() {
            let slot = to.index();
            self.reach(slot);
            self.last_runs[slot] = LastRun { round: self.round, at: 0 };
        }
    }

    fn reach(&mut self, slot: usize) {
        if self.last_runs.len() <= slot {
            let none = LastRun { round: self.round.wrapping_sub(1), at: 0 };
            self.last_runs.resize(slot + 1, none);
        }
    }

    /// Makes the run at a place of the list longer, if the frame continues it.
    #[inline]
    fn lengthen(
        &mut self,
        at: usize,
        to: LinkId,
        source: Source,
        range: &Range<usize>,
        delivery: Delivery,
    ) -> bool {
        match self.list.get_mut(at) {
            Some(Action::Send { to: last_to, source: last_source, range: last, delivery: how })
                if *last_to == to
                    && last.end == range.start
                    && *last_source == source
                    && *how == delivery =>
            {
                last.end = range.end;
                true
            }
            _ => false,
        }
    }

    /// Adds a frame that `write` appends to the scratch bytes.
    pub(super) fn send_made(
        &mut self,
        to: LinkId,
        delivery: Delivery,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = self.scratch.len();
        write(&mut self.scratch);
        let end = self.scratch.len();
        if end > start {
            self.send(to, Source::Scratch, start..end, delivery);
        }
    }
}
