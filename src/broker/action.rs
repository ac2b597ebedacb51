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
}

impl Actions {
    /// Forgets everything, and keeps the room.
    pub fn clear(&mut self) {
        self.list.clear();
        self.scratch.clear();
    }

    /// Adds a frame; one that continues the run before it makes that run longer.
    #[inline]
    pub(super) fn send(
        &mut self,
        to: LinkId,
        source: Source,
        range: Range<usize>,
        delivery: Delivery,
    ) {
        if let Some(Action::Send { to: last_to, source: last_source, range: last, delivery: how }) =
            self.list.last_mut()
            && *last_to == to
            && *last_source == source
            && last.end == range.start
            && *how == delivery
        {
            last.end = range.end;
            return;
        }
        self.list.push(Action::Send { to, source, range, delivery });
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
