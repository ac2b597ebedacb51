//! Frames for whoever subscribed.

use std::ops::Range;

use super::action::{Actions, Delivery, Source};
use super::link::{Carrier, LinkId};
use super::origins::Copy;
use super::subscriptions::is_overrun;
use super::{Broker, Names, RETURN_BASE, has_gone_far};
use crate::wire::{Broadcast, Envelope, EnvelopeHead, MessageBuilder, address, flag, nlm};

/// A broadcast on its way out: where it begins, and whom it may reach.
struct Event<'e> {
    /// The broker's link that it came over.
    via: Option<LinkId>,
    /// The subsystem that broadcast, 0 if none did.
    src: u32,
    /// A subsystem of another broker did, which has no name here.
    foreign: bool,
    /// It may go to no further broker.
    far: bool,
    /// A copy of it was here before.
    copy: Copy,
    /// It concerns these subsystems too, if it is an overrun.
    behind: &'e [u32],
    frame: &'e [u8],
    source: Source,
    range: Range<usize>,
}

impl Broker {
    /// A frame for whoever subscribed. Its header is wiped: of the sender only the subsystem stays, and
    /// for a link that has not said HELLO not even that, as the original has it. Where there are other
    /// brokers, number and pid become the mark by which they know it.
    pub(super) fn broadcast(
        &mut self,
        from: LinkId,
        at: usize,
        head: EnvelopeHead,
        frame: &mut [u8],
        actions: &mut Actions,
    ) {
        self.counters.broadcasts += 1;
        let Some(link) = self.links.get(from) else { return };
        let provided = link.ports.get(&head.src).copied();
        let src = provided.filter(|address| *address < RETURN_BASE).unwrap_or(0);
        let far = link.far.is_some();
        let carrier = link.carrier;
        let copy = match head.pid {
            id if far && id == self.id => Copy::Again,
            id if far && id != 0 => self.origins.copy(id, head.sequence, src),
            _ => Copy::First,
        };
        if copy == Copy::Again {
            self.counters.duplicates += 1;
            return;
        }
        let foreign = far && src == 0 && head.src != 0;
        // the next broker has to know that some subsystem did, and which links may not hear of it
        let said = if foreign { address::FOREIGN } else { src };
        let wiped = EnvelopeHead { src: said, ..EnvelopeHead::default() };
        let marked = match far {
            true if head.pid != 0 => EnvelopeHead {
                flags: head.flags & flag::HOPS_MASK,
                sequence: head.sequence,
                pid: head.pid,
                ..wiped
            },
            _ => self.mark(wiped),
        };
        marked.write_over(frame);
        let frame: &[u8] = frame;
        let Ok(broadcast) = Envelope::parse(frame).and_then(|envelope| envelope.broadcast()) else {
            self.counters.dropped += 1;
            return;
        };
        let overrun = is_overrun(broadcast.payload);
        if overrun && src == 0 && !far && carrier != Carrier::Local {
            // it would have everybody ask for everything again
            self.counters.forbidden += 1;
            return;
        }
        let behind = if overrun && far && src == 0 { self.behind(from) } else { Vec::new() };
        let event = Event {
            via: far.then_some(from),
            src,
            foreign,
            far: has_gone_far(&head),
            copy,
            behind: &behind,
            frame,
            source: Source::Input,
            range: at..at + frame.len(),
        };
        self.deliver(&event, &broadcast, actions);
    }

    /// Tells subscribers of `src` that there is a gap; with `src` 0, those to everything and those to what
    /// is `behind` the broker that `via` led to.
    pub(super) fn overrun(
        &mut self,
        src: u32,
        behind: &[u32],
        via: Option<LinkId>,
        actions: &mut Actions,
    ) {
        if self.subscriptions.len() == 0 {
            return;
        }
        // how many are lost nobody knows
        let message = MessageBuilder::new(nlm::OVERRUN, 0).body(&0u32.to_le_bytes()).finish();
        let head = self.mark(EnvelopeHead { src, ..EnvelopeHead::default() });
        let start = actions.scratch.len();
        if head.emit(&message, &mut actions.scratch).is_err() {
            return;
        }
        let frame = actions.scratch[start..].to_vec();
        let broadcast = Broadcast { payload: &message, group: None };
        let range = start..start + frame.len();
        let source = Source::Scratch;
        let (foreign, far, copy) = (false, false, Copy::First);
        let event = Event { via, src, foreign, far, copy, behind, frame: &frame, source, range };
        self.deliver(&event, &broadcast, actions);
    }

    /// The subsystems here that `link` provides.
    pub(super) fn behind(&self, link: LinkId) -> Vec<u32> {
        let ports = self.links.get(link).map(|link| link.ports.values());
        let addresses = ports.into_iter().flatten().copied();
        addresses.filter(|address| *address < RETURN_BASE).collect()
    }

    /// Numbers a broadcast that begins here, if there are brokers who may see it twice.
    fn mark(&mut self, head: EnvelopeHead) -> EnvelopeHead {
        if self.far_links.is_empty() {
            return head;
        }
        self.sequence = self.sequence.wrapping_add(1);
        EnvelopeHead { sequence: self.sequence, pid: self.id, ..head }
    }

    fn deliver(&mut self, event: &Event<'_>, broadcast: &Broadcast<'_>, actions: &mut Actions) {
        self.event += 1;
        let frame = event.frame;
        let plain = event.src == 0 && broadcast.group.is_none() && self.far_links.is_empty();
        let mut wanted = false;
        let mut wiped = None;
        let Self { subscriptions, links, subsystems, counters, .. } = self;
        let number = self.event;
        if let Copy::Named { first } = event.copy {
            // who takes it by whatever name has had it; who may read only some names, if it had one
            subscriptions.each_match(0, broadcast, &[], |subscription| {
                if let Some(link) = links.get_mut(subscription.link)
                    && link.far.is_none()
                    && (!first || link.access.read == Names::All)
                {
                    link.last_event = number;
                }
            });
        }
        subscriptions.each_match(event.src, broadcast, event.behind, |subscription| {
            wanted = true;
            let to = subscription.link;
            let Some(link) = links.get_mut(to) else { return };
            // another broker has had it too, but for the name
            let had = match event.copy {
                Copy::Named { first } => !first || link.access.read == Names::All,
                _ => false,
            };
            if had && link.far.is_some() && subscription.filter.from.is_none() {
                return;
            }
            let back = event.via == Some(to);
            if link.last_event == number || back || (event.far && link.far.is_some()) {
                return;
            }
            link.last_event = number;
            let hears = match &link.access.read {
                Names::All => true,
                _ if event.foreign => false,
                names if event.src != 0 => {
                    subsystems.name(event.src).is_some_and(|name| names.contains(name))
                }
                _ => true,
            };
            if !hears {
                return;
            }
            if frame.len() > link.frame_max {
                counters.too_long += 1;
            } else if link.greeted || plain {
                actions.send(to, event.source, event.range.clone(), Delivery::Shed);
            } else {
                let range =
                    wiped.get_or_insert_with(|| wipe(frame, broadcast, &mut actions.scratch));
                actions.send(to, Source::Scratch, range.clone(), Delivery::Shed);
            }
        });
        if !wanted {
            self.counters.unwanted += 1;
        }
    }
}

/// Appends a copy of `frame` whose header says nothing at all, and which has no group.
fn wipe(frame: &[u8], broadcast: &Broadcast<'_>, scratch: &mut Vec<u8>) -> Range<usize> {
    let start = scratch.len();
    let nobody = EnvelopeHead::default();
    // a payload that came in one frame fits one
    if broadcast.group.is_none() || nobody.emit(broadcast.payload, scratch).is_err() {
        scratch.extend_from_slice(frame);
        nobody.write_over(&mut scratch[start..]);
    }
    start..scratch.len()
}
