//! Frames for one receiver: requests and pushes to a provider, answers to an asker.

use super::action::{Actions, Delivery, Source};
use super::link::{self, Carrier, Choice, LinkId};
use super::open::Open;
use super::subsystems::{Provider, Subsystems, Wanted};
use super::uplinks::AT;
use super::{Access, Broker, Names, RETURN_BASE, has_gone_far};
use crate::wire::{
    EnvelopeHead, ErrorMessage, HEADER_LEN, Header, PAYLOAD_OFFSET, errno, flag, nlm,
};

impl Broker {
    /// A frame for a subsystem, or for an address that means nothing.
    #[inline]
    pub(super) fn request(
        &mut self,
        from: LinkId,
        at: usize,
        head: EnvelopeHead,
        frame: &mut [u8],
        actions: &mut Actions,
    ) {
        let part = part_of(frame);
        let Some(provider) = self.pick(from, at, &head, part) else {
            return self.unreached(from, at, head, frame, actions);
        };
        let (to, port) = (provider.link, provider.port);
        if !self.fits(to, frame) {
            return self.too_long(from, to, head, frame, actions);
        }
        if has_gone_far(&head) && self.far_links.contains(&to) {
            self.counters.looped += 1;
            let text = "too many brokers on the way";
            return self.bounce(from, head, frame, errno::ELOOP, text, actions);
        }
        let Some(src) = self.address_of(from, head.src) else {
            self.counters.over_limit += 1;
            let text = "no return address left for this port";
            return self.bounce(from, head, frame, errno::ENOSPC, text, actions);
        };
        let delivery =
            match head.flags & flag::ASK == 0 && self.subsystems.providers_len(head.dst) > 1 {
                true if part == Part::None => Delivery::Share(head.dst),
                _ => Delivery::Hold,
            };
        EnvelopeHead::rewrite(frame, port, src);
        actions.send(to, Source::Input, at..at + frame.len(), delivery);
        self.counters.requests += 1;
        // a port that provides has no return address
        if src >= RETURN_BASE {
            self.note_sent(to, src, &head);
        }
    }

    /// Remembers that the provider behind `to` knows `asker`, who may wait for an answer of it.
    #[inline]
    fn note_sent(&mut self, to: LinkId, asker: u32, head: &EnvelopeHead) {
        let max = self.limits.open_requests_per_link_max;
        let Some(link) = self.links.get_mut(to) else { return };
        if let Some(far) = &mut link.far {
            far.saw(asker);
        }
        let open = Open { subsystem: head.dst, pid: head.pid };
        if head.flags & flag::ASK != 0
            && link.carrier != Carrier::Local
            && !link.open.insert(asker, head.sequence, open, max)
        {
            self.counters.untracked += 1;
        }
    }

    /// Tells an asker that the provider of its request is gone.
    pub(super) fn give_up(
        &mut self,
        asker: u32,
        sequence: u32,
        open: Open,
        errno: i32,
        actions: &mut Actions,
    ) {
        let Some((to, port)) = self.returns.find(asker) else { return };
        self.counters.given_up += 1;
        let error = ErrorMessage::emit(-errno, &Header::default(), "the provider is gone");
        let flags = flag::EXCEPTION | flag::RESPONSE;
        let head = EnvelopeHead { flags, sequence, pid: open.pid, dst: port, src: open.subsystem };
        actions.send_made(to, Delivery::Reply, |out| {
            head.emit(&error, out).unwrap_or_else(|too_big| {
                unreachable!("an error message is far below {}", too_big.max)
            });
        });
    }

    /// A frame for a return address: only providers answer.
    #[inline]
    pub(super) fn reply(
        &mut self,
        from: LinkId,
        at: usize,
        head: EnvelopeHead,
        frame: &mut [u8],
        actions: &mut Actions,
    ) {
        if self.links.get(from).is_none_or(|link| !link.may_answer) {
            self.counters.forbidden += 1;
            let text = "only a provider may send to a return address";
            return self.bounce(from, head, frame, errno::EPERM, text, actions);
        }
        let Some((to, port)) = self.returns.find(head.dst) else {
            self.counters.stale += 1;
            return self.bounce(from, head, frame, errno::ENOENT, "the asker is gone", actions);
        };
        if !self.fits(to, frame) {
            return self.too_long(from, to, head, frame, actions);
        }
        let Some(src) = self.address_of(from, head.src) else {
            self.counters.over_limit += 1;
            let text = "no return address left for this port";
            return self.bounce(from, head, frame, errno::ENOSPC, text, actions);
        };
        EnvelopeHead::rewrite(frame, port, src);
        actions.send(to, Source::Input, at..at + frame.len(), Delivery::Reply);
        if src >= RETURN_BASE
            && let Some(far) = self.links.get_mut(to).and_then(|link| link.far.as_mut())
        {
            far.saw(src);
        }
        self.counters.replies += 1;
        if head.flags & (flag::LAST | flag::EXCEPTION) != 0
            && let Some(link) = self.links.get_mut(from)
        {
            link.open.remove(head.dst, head.sequence);
        }
    }

    /// The provider that takes a frame at `at`; `None` if there is none, or none that this link may reach.
    /// Of what is pushed in one read each of several providers gets a run.
    #[inline]
    fn pick(
        &mut self,
        from: LinkId,
        at: usize,
        head: &EnvelopeHead,
        part: Part,
    ) -> Option<Provider> {
        if part == Part::None {
            return self.pick_any(from, at, head);
        }
        let pick = (head.dst, head.src, head.sequence);
        let known = self.links.get(from)?.parts.as_ref().and_then(|parts| parts.get(&pick));
        let provider = match known.filter(|known| self.subsystems.provides(head.dst, known)) {
            Some(known) => known,
            None => self.pick_any(from, at, head)?,
        };
        let parts = self.links.get_mut(from)?.parts.get_or_insert_default();
        match part {
            Part::Last => parts.remove(&pick),
            _ if known != Some(provider) => parts.insert(pick, provider),
            _ => {}
        }
        Some(provider)
    }

    #[inline]
    fn pick_any(&mut self, from: LinkId, at: usize, head: &EnvelopeHead) -> Option<Provider> {
        match &self.links.get(from)?.choice {
            Some(choice)
                if choice.until == Choice::ALL
                    && choice.subsystem == head.dst
                    && choice.version == self.subsystems.version() =>
            {
                Some(choice.provider)
            }
            _ => self.pick_anew(from, at, head),
        }
    }

    fn pick_anew(&mut self, from: LinkId, at: usize, head: &EnvelopeHead) -> Option<Provider> {
        let (batch, batch_end) = (self.batch, self.batch_end);
        let pick = (head.dst, head.src, head.sequence);
        let link = self.links.get_mut(from)?;
        let version = self.subsystems.version();
        let choice = link
            .choice
            .filter(|c| c.batch == batch && c.version == version && c.subsystem == head.dst);
        if let Some((last, provider)) = &link.last_pick
            && *last == pick
            && head.sequence != 0
            && self.subsystems.provides(head.dst, provider)
        {
            return Some(*provider);
        }
        let pushed = head.flags & flag::ASK == 0;
        if let Some(choice) = choice
            && at < choice.until
            && choice.left > 0
            && pushed
        {
            link.choice = Some(Choice { left: choice.left - 1, ..choice });
            link.last_pick = Some((pick, choice.provider));
            return Some(choice.provider);
        }
        let wanted = self.wanted(from, head.dst)?;
        let provider = self.subsystems.next_provider(head.dst, wanted, &self.links)?;
        let run = match (self.subsystems.providers_len(head.dst), choice) {
            (1, _) => Choice::ALL,
            (_, Some(choice)) => choice.run,
            (count, None) if pushed => batch_end.saturating_sub(at) / count,
            (_, None) => 0,
        };
        let until = at.saturating_add(run);
        let left = Choice::RUN_FRAMES_MAX - 1;
        let link = self.links.get_mut(from)?;
        link.choice =
            Some(Choice { batch, version, subsystem: head.dst, provider, run, until, left });
        link.last_pick = Some((pick, provider));
        Some(provider)
    }

    /// Which providers of a subsystem a link may reach; `None` if none.
    #[inline]
    fn wanted(&self, link: LinkId, subsystem: u32) -> Option<Wanted> {
        match &self.links.get(link)?.access {
            Access { read: Names::All, write: Names::All, .. } => Some(Wanted::Writing),
            access => {
                let name = self.subsystems.name(subsystem)?;
                if !access.read.contains(name) {
                    return None;
                }
                Some(if access.write.contains(name) { Wanted::Writing } else { Wanted::Reading })
            }
        }
    }

    /// Who of the providers of a subsystem could take what `from` has pushed, of which the longest frame is
    /// `longest` bytes, instead of the link `other_than`.
    pub fn share(
        &mut self,
        from: LinkId,
        subsystem: u32,
        longest: usize,
        other_than: LinkId,
    ) -> Sharing {
        let Some(wanted) = self.wanted(from, subsystem) else { return Sharing::Nobody };
        // what has been decided for the first one need not hold for another broker
        let links = &self.links;
        let takes = |id: LinkId| {
            let link = links.get(id).filter(|_| id != other_than);
            link.is_some_and(|link| link.frame_max >= longest && link.far.is_none())
        };
        match self.subsystems.next_other(subsystem, wanted, links, takes) {
            None => Sharing::Nobody,
            Some(provider) if links.get(provider.link).is_some_and(|link| link.slow) => {
                Sharing::Later
            }
            Some(provider) => Sharing::With(provider.link, provider.port),
        }
    }

    pub(super) fn may_read(&self, link: LinkId, subsystem: u32) -> bool {
        self.links.get(link).is_some_and(|link| may_hear(&self.subsystems, link, subsystem))
    }

    /// A frame that no provider takes: it goes to subscribers, unless somebody else would have had it.
    #[cold]
    fn unreached(
        &mut self,
        from: LinkId,
        at: usize,
        head: EnvelopeHead,
        frame: &mut [u8],
        actions: &mut Actions,
    ) {
        if self.subsystems.is_provided(head.dst) {
            self.counters.forbidden += 1;
            let text = format!("this link may not use {:#010x}", head.dst);
            return self.bounce(from, head, frame, errno::EPERM, &text, actions);
        }
        if self.subsystems.name(head.dst).is_some_and(|name| name.contains(AT)) {
            // not for the subscribers here, whatever it is
            let text = format!("the broker behind {:#010x} is not linked now", head.dst);
            return self.bounce(from, head, frame, errno::EHOSTUNREACH, &text, actions);
        }
        if head.flags & flag::ASK == 0 {
            return self.broadcast(from, at, head, frame, actions);
        }
        let text = format!("nobody has the address {:#010x}", head.dst);
        self.bounce(from, head, frame, errno::ENOENT, &text, actions);
    }

    #[inline]
    pub(super) fn fits(&self, to: LinkId, frame: &[u8]) -> bool {
        self.links.get(to).is_some_and(|link| frame.len() <= link.frame_max)
    }

    #[cold]
    fn too_long(
        &mut self,
        from: LinkId,
        to: LinkId,
        head: EnvelopeHead,
        frame: &[u8],
        actions: &mut Actions,
    ) {
        self.counters.too_long += 1;
        let frame_max = self.links.get(to).map_or(0, |link| link.frame_max);
        let text = format!("the other end takes frames of at most {frame_max} bytes");
        self.bounce(from, head, frame, errno::EMSGSIZE, &text, actions);
    }
}

/// Who else takes what a provider has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// This link, at this port.
    With(LinkId, u32),
    /// There are others, and for each much is waiting.
    Later,
    /// There is no other.
    Nobody,
}

/// What a frame holds of a message that comes in several, which have to stay together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    None,
    Some,
    Last,
}

/// What is no netlink message is whole.
#[inline]
fn part_of(frame: &[u8]) -> Part {
    let Some(payload) = frame.get(PAYLOAD_OFFSET..) else { return Part::None };
    let Some([l0, l1, l2, l3, k0, k1, f0, f1]) = payload.first_chunk() else { return Part::None };
    let length = u32::from_le_bytes([*l0, *l1, *l2, *l3]) as usize;
    let sound = (HEADER_LEN..=payload.len()).contains(&length);
    if !sound || u16::from_le_bytes([*f0, *f1]) & nlm::MULTI == 0 {
        return Part::None;
    }
    if u16::from_le_bytes([*k0, *k1]) == nlm::DONE { Part::Last } else { Part::Some }
}

fn may_hear(subsystems: &Subsystems, link: &link::Link, subsystem: u32) -> bool {
    match &link.access.read {
        Names::All => true,
        names => subsystems.name(subsystem).is_some_and(|name| names.contains(name)),
    }
}
