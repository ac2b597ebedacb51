//! Links between brokers (proto-spec/envelope.md, "Between brokers").
//!
//! Towards its neighbour a broker is a client as any other: it says HELLO, asks for names, provides names
//! and subscribes. A subsystem of the neighbour is a name here whose provider is the link, at the port that
//! is the subsystem's address there; so requests, pushes and answers need nothing of this file.
//!
//! ```text
//!            uplink_up ──▶ HELLO ──ACK──▶ subsystems, exports, subscriptions
//! HELLO with MODE broker ──▶ ACK ──▶ subscriptions
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::action::{Action, Actions, Delivery};
use super::control::VERSION;
use super::link::{LinkId, LinkKind};
use super::order::{Refusal, refuse};
use super::subscriptions::Filter;
use super::subsystems::{ProvideError, Provider, SUBSYSTEM_BASE};
use super::uplinks::{AT, UplinkKind};
use super::{Broker, RETURN_BASE};
use crate::wire::{
    CID_CHOSEN_FIRST, Command, Control, ControlAttribute, ControlBuilder, EnvelopeHead,
    LEGACY_FRAME_MAX, TooBig, errno, flag, mode,
};

/// How many bytes the commands may have that wait for one neighbour to know names.
const WAITING_BYTES_MAX: usize = 256 * 1024;

/// How many brokers a name may lead through; frames get no further than half as many.
const NAME_PARTS_MAX: usize = 16;

/// How many commands to a neighbour are remembered until it has answered them.
const PENDING_MAX: usize = 65_536;

/// What is kept of a neighbour.
#[derive(Debug)]
pub(super) struct Far {
    /// The uplink whose link this is; `None` if the neighbour made the link.
    pub(super) uplink: Option<u32>,
    /// The neighbour has answered HELLO, or said it.
    ready: bool,
    sequence: u32,
    /// What it was asked and has not answered.
    pending: HashMap<u32, Pending>,
    /// Subscriptions there, and the number and hops of each.
    told: HashMap<Arc<Filter>, (u32, u32)>,
    next_cid: u32,
    /// Of the frames that wait in `pending`.
    waiting_bytes: usize,
    /// Return addresses that it has seen, and is told of when they go.
    knows: HashSet<u32>,
}

impl Far {
    fn new(uplink: Option<u32>) -> Self {
        Self {
            uplink,
            ready: uplink.is_none(),
            sequence: 0,
            pending: HashMap::new(),
            told: HashMap::new(),
            next_cid: CID_CHOSEN_FIRST,
            waiting_bytes: 0,
            knows: HashSet::new(),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    pub(super) fn saw(&mut self, address: u32) {
        self.knows.insert(address);
    }
}

/// What an answer is for.
#[derive(Debug)]
enum Pending {
    Hello,
    /// The address of a name, and who waits for it: their link and frame, which is then handled again.
    Resolve {
        name: String,
        waiting: Vec<(LinkId, Vec<u8>)>,
    },
    /// Something that only has to be reported if it is refused.
    Other(String),
}

impl Broker {
    /// Takes an uplink in: the address that stands for its broker's first subsystem.
    ///
    /// # Errors
    /// `EINVAL` for a name that cannot be one or has an `@`, `EEXIST` if it is taken, `ENOSPC`.
    pub fn add_uplink(&mut self, mut kind: UplinkKind) -> Result<u32, Refusal> {
        if kind.name.is_empty() {
            let numbered = (2..).map(|number| format!("uplink{number}"));
            let mut names = std::iter::once("uplink".to_owned()).chain(numbered);
            kind.name = names.find(|name| !self.uplinks.is_name(name)).unwrap_or_default();
        }
        let name = &kind.name;
        if name.contains(AT) {
            return refuse(errno::EINVAL, format!("the name {name:?} of an uplink has an \"@\""));
        }
        if self.uplinks.is_name(name) {
            return refuse(errno::EEXIST, format!("there is an uplink {name:?} already"));
        }
        if self.uplinks.iter_from(0).count() >= self.limits.uplinks_max {
            self.counters.over_limit += 1;
            return refuse(errno::ENOSPC, "no room for another uplink");
        }
        let door = format!("{AT}{name}");
        match self.subsystems.reserve(&door, &self.limits) {
            Ok(address) => {
                self.uplinks.insert(address, kind);
                Ok(address)
            }
            Err(ProvideError::Name) => refuse(errno::EINVAL, format!("{name:?} is no name")),
            Err(ProvideError::Full) => refuse(errno::ENOSPC, "no room for another subsystem"),
        }
    }

    /// Forgets an uplink; its link if there is one, greeted or not, to be closed. `None` if there is no such
    /// uplink.
    pub fn remove_uplink(&mut self, address: u32) -> Option<Option<LinkId>> {
        self.uplinks.remove(address)?;
        let is_its = |id: &LinkId| {
            let far = self.links.get(*id).and_then(|link| link.far.as_ref());
            far.is_some_and(|far| far.uplink == Some(address))
        };
        Some(self.far_links.iter().copied().find(is_its))
    }

    /// Takes the link of an uplink in, and greets its broker. `None` if there is no such uplink any more, or
    /// as many links are up as may be: close it.
    pub fn uplink_up(
        &mut self,
        address: u32,
        kind: LinkKind,
        actions: &mut Actions,
    ) -> Option<LinkId> {
        self.uplinks.get(address)?;
        let id = self.link_up(kind)?;
        let link = self.links.get_mut(id)?;
        link.far = Some(Box::new(Far::new(Some(address))));
        link.may_answer = true;
        self.far_links.push(id);
        let frame_max = self.limits.frame_bytes_max as u32;
        self.tell(id, Command::Hello, Pending::Hello, actions, |hello| {
            hello
                .u32(ControlAttribute::Version, VERSION)?
                .u32(ControlAttribute::FrameMax, frame_max)?
                .u32(ControlAttribute::Mode, mode::BROKER)
        });
        Some(id)
    }

    /// The neighbour at the other end of `from` has said that it is a broker. Whether it is taken for one:
    /// what it says of broadcasts is believed, so it has to have the right to provide.
    pub(super) fn neighbour(&mut self, from: LinkId) -> bool {
        let Some(link) = self.links.get_mut(from) else { return false };
        if !link.access.rights.provide {
            return false;
        }
        if link.far.is_none() {
            link.far = Some(Box::new(Far::new(None)));
            link.may_answer = true;
            self.far_links.push(from);
        }
        true
    }

    /// Handles what a neighbour answers.
    pub(super) fn answered(
        &mut self,
        from: LinkId,
        sequence: u32,
        control: &Control<'_>,
        actions: &mut Actions,
    ) {
        let Some(far) = self.links.get_mut(from).and_then(|link| link.far.as_mut()) else { return };
        let Some(pending) = far.pending.remove(&sequence) else { return };
        if let Pending::Resolve { waiting, .. } = &pending {
            let bytes: usize = waiting.iter().map(|(_, frame)| frame.len()).sum();
            far.waiting_bytes = far.waiting_bytes.saturating_sub(bytes);
        }
        let refused = match control.command() {
            Some(Command::Ack) => None,
            _ => Some(Refusal {
                errno: control.errno.map_or(errno::EOPNOTSUPP, |errno| errno as i32),
                text: control.error.unwrap_or("refused").to_owned(),
            }),
        };
        match (pending, refused) {
            (Pending::Hello, refused) => self.welcomed(from, control, refused.is_none(), actions),
            (Pending::Resolve { name, waiting }, None) => {
                let provided = match control.addr {
                    Some(port) => self.provide_far(from, &name, port, actions),
                    None => Err(ProvideError::Name),
                };
                if provided.is_err() {
                    let text = format!("no room for {name:?} here");
                    self.give_answers(waiting, &Refusal { errno: errno::ENOSPC, text }, actions);
                } else {
                    for (link, frame) in waiting {
                        if let Some((_, head)) = EnvelopeHead::read(&frame) {
                            self.handle_control(link, head, &frame, actions);
                        }
                    }
                }
            }
            (Pending::Resolve { waiting, .. }, Some(refusal)) => {
                self.give_answers(waiting, &refusal, actions);
            }
            (Pending::Other(_), None) => {}
            (Pending::Other(what), Some(refusal)) => {
                self.counters.refused += 1;
                let text = format!("{what}: {} (error {})", refusal.text, refusal.errno);
                actions.push(Action::Refused { link: from, text });
            }
        }
    }

    fn give_answers(
        &mut self,
        waiting: Vec<(LinkId, Vec<u8>)>,
        refusal: &Refusal,
        actions: &mut Actions,
    ) {
        for (link, frame) in waiting {
            if let Some((_, head)) = EnvelopeHead::read(&frame) {
                self.answer(link, head, Err(refusal.clone()), actions);
            }
        }
    }

    /// HELLO is answered. A broker that does not know it, or does not take this one for a broker, is asked
    /// and subscribed at all the same.
    fn welcomed(&mut self, id: LinkId, hello: &Control<'_>, known: bool, actions: &mut Actions) {
        let ours = self.limits.frame_bytes_max;
        let Some(link) = self.links.get_mut(id) else { return };
        let Some(far) = link.far.as_mut() else { return };
        let Some(address) = far.uplink else { return };
        far.ready = true;
        if known {
            let theirs = hello.frame_max.map_or(LEGACY_FRAME_MAX, |max| max as usize);
            link.frame_max = theirs.max(LEGACY_FRAME_MAX).min(ours);
            link.greeted = true;
            actions.push(Action::Greeted { link: id });
        }
        let Some(uplink) = self.uplinks.get_mut(address) else { return };
        uplink.link = Some(id);
        actions.push(Action::Linked { address });
        let (name, exports) = (uplink.kind.name.clone(), uplink.kind.exports.clone());
        let door = format!("{AT}{name}");
        // it has room: its name is there already
        let _ = self.provide_far(id, &door, SUBSYSTEM_BASE, actions);
        for inner in self.subsystems.names_ending_in(&door) {
            let name = format!("{inner}{door}");
            self.ask_name(id, &inner, name, Vec::new(), actions);
        }
        for export in exports {
            if let Some(port) = self.subsystems.discover(&export.name) {
                self.export(id, &export.alias, export.mode, port, actions);
            }
        }
        if known {
            self.greet_neighbour(actions);
        }
    }

    /// Subscribes at neighbours to what is wanted here, where that is not done yet.
    pub(super) fn greet_neighbour(&mut self, actions: &mut Actions) {
        for filter in self.interests.filters(None) {
            self.advertise(&filter, actions);
        }
    }

    /// Makes `name` reachable over `link`, where it has the address `port`.
    fn provide_far(
        &mut self,
        id: LinkId,
        name: &str,
        port: u32,
        actions: &mut Actions,
    ) -> Result<u32, ProvideError> {
        let Some(link) = self.links.get_mut(id) else { return Err(ProvideError::Full) };
        let uplink = link.far.as_ref().and_then(|far| far.uplink);
        let writes = uplink
            .and_then(|address| self.uplinks.get(address))
            .is_some_and(|uplink| uplink.kind.writes);
        let provider = Provider { link: id, port, pulls: false, writes };
        if let Some(address) = self.subsystems.address(name)
            && self.subsystems.provides(address, &provider)
        {
            return Ok(address);
        }
        let address = self.subsystems.provide(name, provider, &self.limits)?;
        link.provides += 1;
        link.last_port = None;
        if name.starts_with(AT) {
            // broadcasts are better known by the subsystem's own name
            link.ports.entry(port).or_insert(address);
        } else {
            link.ports.insert(port, address);
        }
        self.back_again(address, actions);
        Ok(address)
    }

    /// A subsystem has got a provider: who subscribed to it is told that there is a gap, and a neighbour
    /// that provides it, what is wanted.
    pub(super) fn back_again(&mut self, address: u32, actions: &mut Actions) {
        let filters = self.interests.filters(Some(address));
        if filters.is_empty() {
            return;
        }
        for filter in filters {
            self.advertise(&filter, actions);
        }
        self.overrun(address, &[], None, actions);
    }

    /// Provides a name of this broker's at a neighbour.
    fn export(&mut self, id: LinkId, alias: &str, mode: u32, port: u32, actions: &mut Actions) {
        let what = Pending::Other(format!("provide {alias:?}"));
        self.tell(id, Command::Provide, what, actions, |provide| {
            provide
                .string(ControlAttribute::Host, alias)?
                .u32(ControlAttribute::Port, port)?
                .u32(ControlAttribute::Mode, mode)
        });
    }

    /// `name` has got its first provider, or lost its last.
    pub(super) fn export_changed(&mut self, name: &str, provided: bool, actions: &mut Actions) {
        let Some(port) = self.subsystems.address(name) else { return };
        for (id, export) in self.uplinks.exporting(name) {
            if provided {
                self.export(id, &export.alias, export.mode, port, actions);
                continue;
            }
            let what = Pending::Other(format!("withdraw {:?}", export.alias));
            self.tell(id, Command::Remove, what, actions, |remove| {
                remove
                    .string(ControlAttribute::Host, &export.alias)?
                    .u32(ControlAttribute::Port, port)
            });
        }
    }

    /// Asks the neighbour behind an uplink for the `inner` name, and handles `frame` again when that is
    /// known as `name`.
    pub(super) fn resolve(
        &mut self,
        from: LinkId,
        (inner, uplink): (&str, u32),
        name: &str,
        frame: &[u8],
        actions: &mut Actions,
    ) -> Result<(), Refusal> {
        let max = self.limits.name_bytes_max;
        if name.len() > max {
            return refuse(errno::EINVAL, format!("a name has 1 to {max} bytes"));
        }
        if name.matches(AT).count() > NAME_PARTS_MAX {
            return refuse(errno::ELOOP, "too many brokers on the way");
        }
        let Some(id) = self.uplinks.get(uplink).and_then(|uplink| uplink.link) else {
            return refuse(errno::EHOSTUNREACH, format!("the link to {name:?} is down"));
        };
        let far = self.links.get(id).and_then(|link| link.far.as_ref());
        let waiting = far.map_or(0, |far| far.waiting_bytes);
        if waiting + frame.len() > WAITING_BYTES_MAX {
            self.counters.over_limit += 1;
            return refuse(errno::EBUSY, "too many ask for names of that broker");
        }
        if let Some(far) = self.links.get_mut(id).and_then(|link| link.far.as_mut()) {
            far.waiting_bytes += frame.len();
        }
        let far = self.links.get_mut(id).and_then(|link| link.far.as_mut());
        let under_way = far.and_then(|far| {
            far.pending.values_mut().find_map(|pending| match pending {
                Pending::Resolve { name: other, waiting } if other == name => Some(waiting),
                _ => None,
            })
        });
        match under_way {
            Some(waiting) => {
                waiting.push((from, frame.to_vec()));
                Ok(())
            }
            None => {
                let waiting = vec![(from, frame.to_vec())];
                self.ask_name(id, inner, name.to_owned(), waiting, actions);
                Ok(())
            }
        }
    }

    fn ask_name(
        &mut self,
        id: LinkId,
        inner: &str,
        name: String,
        waiting: Vec<(LinkId, Vec<u8>)>,
        actions: &mut Actions,
    ) {
        self.tell(id, Command::Discover, Pending::Resolve { name, waiting }, actions, |discover| {
            discover.string(ControlAttribute::Host, inner)
        });
    }

    /// Tells neighbours what is wanted of the broadcasts that `filter` chooses, where that has changed.
    pub(super) fn advertise(&mut self, filter: &Arc<Filter>, actions: &mut Actions) {
        for id in self.far_links.clone() {
            let hops = self.interests.hops_to(filter, id);
            let addr = match filter.from {
                None => Some(None),
                Some(subsystem) => self.subsystems.port_at(subsystem, id).map(Some),
            };
            let Some(far) = self.links.get_mut(id).and_then(|link| link.far.as_mut()) else {
                continue;
            };
            if !far.ready {
                continue;
            }
            let told = far.told.get(filter).copied();
            match (hops.zip(addr), told) {
                (None, None) => {}
                (None, Some((cid, _))) => {
                    far.told.remove(filter);
                    let what = Pending::Other("unsubscribe".to_owned());
                    self.tell(id, Command::Unsubscribe, what, actions, |unsubscribe| {
                        unsubscribe.u32(ControlAttribute::Cid, cid)
                    });
                }
                (Some((hops, _)), Some((_, before))) if hops == before => {}
                (Some((hops, addr)), told) => {
                    let cid = told.map_or(far.next_cid, |(cid, _)| cid);
                    if told.is_none() {
                        far.next_cid = far.next_cid.checked_add(1).unwrap_or(CID_CHOSEN_FIRST);
                    }
                    far.told.insert(Arc::clone(filter), (cid, hops));
                    self.subscribe_at(id, filter, (cid, hops), addr, actions);
                }
            }
        }
    }

    fn subscribe_at(
        &mut self,
        id: LinkId,
        filter: &Filter,
        (cid, hops): (u32, u32),
        addr: Option<u32>,
        actions: &mut Actions,
    ) {
        let what = Pending::Other("subscribe".to_owned());
        self.tell(id, Command::Subscribe, what, actions, |mut subscribe| {
            subscribe = subscribe.u32(ControlAttribute::Cid, cid)?;
            subscribe = subscribe.u32(ControlAttribute::Hops, hops)?;
            if let Some(addr) = addr {
                subscribe = subscribe.u32(ControlAttribute::Addr, addr)?;
            }
            if let Some(group) = &filter.group {
                subscribe = subscribe.string(ControlAttribute::Group, group)?;
            }
            for key in &filter.keys {
                subscribe = subscribe.key(*key)?;
            }
            Ok(subscribe)
        });
    }

    /// A port of `from` is no more, and with it the return address that stood for it.
    pub(super) fn release(&mut self, from: LinkId, port: u32, actions: &mut Actions) {
        let Some(link) = self.links.get_mut(from) else { return };
        match link.ports.get(&port) {
            Some(address) if *address >= RETURN_BASE => {
                let address = *address;
                link.ports.remove(&port);
                link.last_port = None;
                self.forget_return(address, actions);
            }
            _ => {}
        }
    }

    /// Frees a return address, and tells everybody who may keep something for it.
    pub(super) fn forget_return(&mut self, address: u32, actions: &mut Actions) {
        self.returns.remove(address);
        for to in &self.local_links {
            if self.links.get(*to).is_some_and(|link| link.provides > 0) {
                actions.push(Action::Gone { to: *to, address });
            }
        }
        for id in self.far_links.clone() {
            let far = self.links.get_mut(id).and_then(|link| link.far.as_mut());
            if far.is_some_and(|far| far.knows.remove(&address)) {
                let what = Pending::Other("release".to_owned());
                self.tell(id, Command::Release, what, actions, |release| {
                    release.u32(ControlAttribute::Port, address)
                });
            }
        }
    }

    /// The link to a neighbour is down: `ports` are the addresses here of what it provided.
    pub(super) fn far_down(&mut self, id: LinkId, far: Far, behind: &[u32], actions: &mut Actions) {
        self.far_links.retain(|other| *other != id);
        if let Some(uplink) = far.uplink.and_then(|address| self.uplinks.get_mut(address))
            && uplink.link == Some(id)
        {
            uplink.link = None;
        }
        self.subsystems.remove_link(id);
        let mut pending: Vec<_> = far.pending.into_iter().collect();
        pending.sort_unstable_by_key(|(sequence, _)| *sequence);
        for (_, pending) in pending {
            if let Pending::Resolve { name, waiting } = pending {
                let text = format!("the link to {name:?} is down");
                let refusal = Refusal { errno: errno::EHOSTUNREACH, text };
                self.give_answers(waiting, &refusal, actions);
            }
        }
        self.overrun(0, behind, Some(id), actions);
    }

    /// Sends a command to a neighbour.
    fn tell(
        &mut self,
        id: LinkId,
        command: Command,
        pending: Pending,
        actions: &mut Actions,
        fill: impl FnOnce(ControlBuilder<'_>) -> Result<ControlBuilder<'_>, TooBig>,
    ) {
        let Some(far) = self.links.get_mut(id).and_then(|link| link.far.as_mut()) else { return };
        far.sequence = far.sequence.wrapping_add(1);
        let sequence = far.sequence;
        // one that answers nothing is not remembered for ever; who waits for a name has to be
        if far.pending.len() < PENDING_MAX || !matches!(pending, Pending::Other(_)) {
            far.pending.insert(sequence, pending);
        }
        let head = EnvelopeHead { flags: flag::CONTROL, sequence, ..EnvelopeHead::default() };
        actions.send_made(id, Delivery::Must, |out| {
            if let Ok(filled) = fill(ControlBuilder::new(out, head, command)) {
                filled.finish();
            }
        });
    }
}
