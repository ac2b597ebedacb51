//! The bus as a pure state machine: links, addresses, subscriptions, rights.
//!
//! A [`Broker`] has no sockets, no clock and no randomness. What happens comes in by `link_up`,
//! `link_down` and `handle_bytes`; what is to be done goes out as [`Actions`], to be carried out in their
//! order. It looks at a frame's header and addresses and never at what is inside, but for control frames,
//! which are meant for it, and for broadcasts, which subscriptions choose from.
//!
//! ```text
//! frame.dst   0, 0xffffffff           everybody who subscribed
//!             0x00010003 … 0x0001ffff a subsystem: one of its providers
//!             0x80000000 …            a return address: the port of the link that it stands for
//!             anything else           comes back if the frame says ASK, else as 0
//! ```

mod access;
mod action;
mod broadcast;
mod chain;
mod control;
mod forward;
mod interests;
mod limits;
mod link;
mod list;
mod open;
mod order;
mod origins;
mod returns;
mod subscriptions;
mod subsystems;
mod uplinks;

pub use access::{Access, Names, Rights};
pub use action::{Action, Actions, Delivery, Source};
pub use forward::Sharing;
pub use limits::{Counters, Limits};
pub use link::{Carrier, LinkId, LinkKind};
pub use order::{Answer, Entry, Order, OrderFiles, Refusal};
pub use returns::{RETURN_BASE, RETURNS_CEILING};
pub use subsystems::{SUBSYSTEM_BASE, SUBSYSTEM_LAST};
pub use uplinks::{Export, UplinkKind};

use std::num::NonZeroU32;

use interests::Interests;
use link::Links;
use origins::Origins;
use returns::Returns;
use subscriptions::Subscriptions;
use subsystems::{Subsystems, Wanted};
use uplinks::Uplinks;

use crate::wire::{
    Envelope, EnvelopeHead, ErrorMessage, FRAME_MAX, Fault, Frames, Header, Malformed,
    TRANSPORT_TYPE, errno, flag,
};

/// The address of everybody who subscribed; 0 means the same.
pub const EVERYBODY: u32 = u32::MAX;

/// One hop, in the flags.
const HOP: u16 = flag::HOPS_MASK & flag::HOPS_MASK.wrapping_neg();

/// Whether a frame may go to no further broker.
#[inline]
fn has_gone_far(head: &EnvelopeHead) -> bool {
    head.flags & flag::HOPS_MASK >= flag::HOPS_MAX * HOP
}

/// What [`Broker::handle_bytes`] did with its buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    /// This many bytes were whole frames and are dealt with; the rest begins a frame that is not whole.
    pub consumed: usize,
    /// The bytes after `consumed` make no sense: the link is to be closed.
    pub fault: Option<Malformed>,
}

/// The core. See the [module](self).
#[derive(Debug)]
pub struct Broker {
    limits: Limits,
    counters: Counters,
    links: Links,
    returns: Returns,
    subsystems: Subsystems,
    subscriptions: Subscriptions,
    /// Counts broadcasts, so that a link gets each once.
    event: u64,
    /// Counts reads.
    batch: u64,
    /// Where the bytes of this read end.
    batch_end: usize,
    /// The link whose bytes are being handled: it is read no further while its answers have no room.
    reading: Option<LinkId>,
    /// What it is known by to other brokers.
    id: u32,
    /// Of the broadcasts that began here.
    sequence: u32,
    uplinks: Uplinks,
    /// Links to other brokers, whoever made them.
    far_links: Vec<LinkId>,
    /// Links inside the process.
    local_links: Vec<LinkId>,
    interests: Interests,
    origins: Origins,
    /// What REGISTER has to say.
    secret: Option<Box<[u8]>>,
}

impl Broker {
    /// A broker without links. Of [`Limits::frame_bytes_max`] no more is taken than [`FRAME_MAX`]. Among
    /// brokers that are linked to each other `id` has to be its own; chosen at random it is so but for
    /// one in four thousand million for each pair.
    pub fn new(mut limits: Limits, id: NonZeroU32) -> Self {
        limits.frame_bytes_max = limits.frame_bytes_max.min(FRAME_MAX);
        Self {
            limits,
            counters: Counters::default(),
            links: Links::default(),
            returns: Returns::default(),
            subsystems: Subsystems::default(),
            subscriptions: Subscriptions::default(),
            event: 0,
            batch: 0,
            batch_end: 0,
            reading: None,
            id: id.get(),
            sequence: 0,
            uplinks: Uplinks::default(),
            far_links: Vec::new(),
            local_links: Vec::new(),
            interests: Interests::default(),
            origins: Origins::default(),
            secret: None,
        }
    }

    /// Gives whoever says `secret` in a REGISTER the right to control; with `None` nobody gets it that
    /// way. Who has it already keeps it.
    pub fn set_secret(&mut self, secret: Option<&[u8]>) {
        self.secret = secret.map(Box::from);
    }

    /// What has been counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether a link has got beyond its greeting: one that this broker has made to another is until HELLO is
    /// answered not.
    pub fn is_greeted(&self, id: LinkId) -> bool {
        let far = self.links.get(id).and_then(|link| link.far.as_ref());
        far.is_none_or(|far| far.is_ready())
    }

    /// How many links are up.
    pub fn links_len(&self) -> usize {
        self.links.len()
    }

    /// How many return addresses are in use.
    pub fn returns_len(&self) -> usize {
        self.returns.len()
    }

    /// Another number whenever the providers of anything have changed.
    pub fn providers_version(&self) -> u64 {
        self.subsystems.version()
    }

    /// How many subscriptions there are.
    pub fn subscriptions_len(&self) -> usize {
        self.subscriptions.len()
    }

    /// Every name, its address, and how many provide it.
    pub fn subsystems(&self) -> impl Iterator<Item = (&str, u32, usize)> {
        self.subsystems.iter()
    }

    /// Takes a link in. `None` if [`Limits::links_max`] are up: close it.
    pub fn link_up(&mut self, kind: LinkKind) -> Option<LinkId> {
        if self.links.len() >= self.limits.links_max {
            self.counters.links_refused += 1;
            return None;
        }
        let cids = self.limits.subscriptions_per_link_max.min(1_024);
        let local = kind.carrier == Carrier::Local;
        let id = self.links.insert(kind, self.limits.frame_bytes_max, cids);
        if local {
            self.local_links.push(id);
        }
        Some(id)
    }

    /// Forgets a link and everything that was its own.
    pub fn link_down(&mut self, id: LinkId, actions: &mut Actions) {
        let behind = self.behind(id);
        let Some(mut link) = self.links.remove(id) else { return };
        let far = link.far.take();
        if link.carrier == Carrier::Local {
            self.local_links.retain(|other| *other != id);
        }
        for (port, address) in link.ports {
            if address >= RETURN_BASE {
                self.forget_return(address, actions);
            } else {
                self.unprovide(address, id, port, actions);
            }
        }
        let errno = if far.is_some() { errno::EHOSTUNREACH } else { errno::EPIPE };
        for ((asker, sequence), open) in link.open.into_iter() {
            self.give_up(asker, sequence, open, errno, actions);
        }
        let gone = self.subscriptions.remove_link(id);
        for subscription in &gone {
            self.interests.remove(subscription);
        }
        if let Some(far) = far {
            self.far_down(id, *far, &behind, actions);
        }
        for subscription in &gone {
            self.advertise(&subscription.filter, actions);
        }
        if !gone.is_empty() && self.subscriptions.len() == 0 {
            actions.push(Action::EventsChanged);
        }
    }

    /// Takes a port out of the providers of a subsystem.
    fn unprovide(&mut self, address: u32, link: LinkId, port: u32, actions: &mut Actions) {
        self.subsystems.remove(address, link, Some(port));
        if !self.subsystems.is_provided(address)
            && let Some(name) = self.subsystems.name(address).map(str::to_owned)
        {
            self.export_changed(&name, false, actions);
        }
    }

    /// Says whether much waits for a link. What several links provide goes to those for which it does not,
    /// while there is one.
    pub fn set_slow(&mut self, id: LinkId, slow: bool) {
        if let Some(link) = self.links.get_mut(id) {
            link.slow = slow;
        }
    }

    /// Routes the whole frames at the start of `bytes`, which came in over link `from`. Addresses are
    /// overwritten in place; the actions refer to `bytes`, so carry them out before using it again.
    pub fn handle_bytes(
        &mut self,
        from: LinkId,
        bytes: &mut [u8],
        actions: &mut Actions,
    ) -> Handled {
        self.batch += 1;
        self.batch_end = bytes.len();
        self.reading = Some(from);
        let mut frames = Frames::new(bytes, self.limits.frame_bytes_max);
        let mut consumed = 0;
        let mut fault = None;
        while let Some((at, frame)) = frames.next_frame() {
            if let Err(stop) = self.handle_frame(from, at, frame, actions) {
                fault = Some(Malformed::new(stop, at));
                break;
            }
            consumed = at + frame.len();
        }
        self.reading = None;
        fault = fault.or(frames.fault());
        if fault.is_some() {
            self.counters.malformed += 1;
        }
        Handled { consumed, fault }
    }

    #[inline]
    fn handle_frame(
        &mut self,
        from: LinkId,
        at: usize,
        frame: &mut [u8],
        actions: &mut Actions,
    ) -> Result<(), Fault> {
        let (kind, head) = EnvelopeHead::read(frame).ok_or(Fault::HeaderCut)?;
        if kind != TRANSPORT_TYPE {
            return Err(Fault::NotTransport);
        }
        self.counters.frames += 1;
        let Some(link) = self.links.get(from) else { return Ok(()) };
        let head = match &link.far {
            Some(_) if head.flags & flag::CONTROL == 0 => {
                match self.hop(from, head, frame, actions) {
                    Some(head) => head,
                    None => return Ok(()),
                }
            }
            _ => head,
        };
        let Some(link) = self.links.get(from) else { return Ok(()) };
        if link.carrier == Carrier::Datagram {
            self.handle_datagram(from, at, head, frame, actions);
        } else if head.flags & flag::CONTROL != 0 {
            self.counters.control += 1;
            self.handle_control(from, head, frame, actions);
        } else if !link.access.rights.use_bus {
            self.counters.forbidden += 1;
            self.bounce(from, head, frame, errno::EPERM, "this link may not send", actions);
        } else {
            match head.dst {
                0 | EVERYBODY => self.broadcast(from, at, head, frame, actions),
                RETURN_BASE.. => self.reply(from, at, head, frame, actions),
                _ => self.request(from, at, head, frame, actions),
            }
        }
        Ok(())
    }

    /// Counts a frame's way from another broker to this one; `None` if that should not have been.
    #[cold]
    fn hop(
        &mut self,
        from: LinkId,
        mut head: EnvelopeHead,
        frame: &mut [u8],
        actions: &mut Actions,
    ) -> Option<EnvelopeHead> {
        if has_gone_far(&head) {
            self.counters.looped += 1;
            self.bounce(from, head, frame, errno::ELOOP, "too many brokers on the way", actions);
            return None;
        }
        head.flags += HOP;
        head.write_over(frame);
        Some(head)
    }

    /// A frame that came as a datagram: for a puller, or else for subscribers. It is never answered, and
    /// reaches nobody who would answer.
    fn handle_datagram(
        &mut self,
        from: LinkId,
        at: usize,
        head: EnvelopeHead,
        frame: &mut [u8],
        actions: &mut Actions,
    ) {
        let allowed = self.links.get(from).is_some_and(|link| link.access.rights.use_bus);
        if head.flags & flag::CONTROL != 0 || !allowed {
            self.counters.forbidden += 1;
            return;
        }
        match self.subsystems.next_provider(head.dst, Wanted::Pulling, &self.links) {
            Some(provider) if self.may_read(from, head.dst) => {
                if !self.fits(provider.link, frame) {
                    self.counters.too_long += 1;
                    return;
                }
                // what it asks has no way back: an answer would go to everybody
                EnvelopeHead { flags: 0, dst: provider.port, src: 0, ..head }.write_over(frame);
                actions.send(provider.link, Source::Input, at..at + frame.len(), Delivery::Shed);
            }
            _ => self.broadcast(from, at, head, frame, actions),
        }
    }

    /// The address that answers to `port` of `link` go to, made on first use.
    #[inline]
    fn address_of(&mut self, id: LinkId, port: u32) -> Option<u32> {
        let link = self.links.get_mut(id)?;
        if let Some((last, address)) = link.last_port
            && last == port
        {
            return Some(address);
        }
        let address = match link.ports.get(&port) {
            Some(address) => *address,
            None => {
                let limits = &self.limits;
                let max = match link.far {
                    Some(_) => limits.ports_per_broker_max,
                    None => limits.ports_per_link_max,
                };
                if link.ports.len() >= max {
                    return None;
                }
                let address = self.returns.insert(id, port, self.limits.returns_max)?;
                link.ports.insert(port, address);
                address
            }
        };
        link.last_port = Some((port, address));
        Some(address)
    }

    /// Gives a frame that nobody takes back to its sender, if it asked to know.
    #[cold]
    fn bounce(
        &mut self,
        from: LinkId,
        head: EnvelopeHead,
        frame: &[u8],
        number: i32,
        text: &str,
        actions: &mut Actions,
    ) {
        if head.flags & flag::ASK == 0 || head.flags & (flag::RESPONSE | flag::EXCEPTION) != 0 {
            self.counters.dropped += 1;
            return;
        }
        self.counters.exceptions += 1;
        let request = Envelope::parse(frame)
            .and_then(|envelope| envelope.payload())
            .and_then(Header::parse)
            .unwrap_or_default();
        let error = ErrorMessage::emit(-number, &request, text);
        let answer = EnvelopeHead {
            flags: flag::EXCEPTION | flag::RESPONSE,
            dst: head.src,
            src: head.dst,
            ..head
        };
        // two brokers that wait for each other to read would wait for ever
        let far = self.links.get(from).is_some_and(|link| link.far.is_some());
        let delivery = if far { Delivery::Must } else { Delivery::Hold };
        actions.send_made(from, delivery, |out| {
            answer.emit(&error, out).unwrap_or_else(|too_big| {
                unreachable!("an error message is far below {}", too_big.max)
            });
        });
    }
}
