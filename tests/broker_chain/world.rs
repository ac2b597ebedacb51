//! Several cores and the wires between them, without a socket. What is on its way over one wire keeps its
//! order; which wire goes next is chance, by a seed.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;

use nlbus::broker::{
    Action, Actions, Broker, Export, Limits, LinkId, LinkKind, Source, UplinkKind,
};
use nlbus::wire::{Command, ControlAttribute, ControlBuilder, TooBig};

use super::support_node::bus::REMOTE;
use super::support_node::frames::{Said, control, split};

/// A broker's number in its world.
pub(crate) type At = usize;

/// One end of a wire or of a client's link.
pub(crate) type End = (At, LinkId);

/// More frames than that under way mean that they go in circles.
const STEPS_MAX: usize = 100_000;

pub(crate) struct World {
    pub(crate) brokers: Vec<Broker>,
    /// The other end.
    wires: Vec<(End, End)>,
    under_way: BTreeMap<(usize, bool), VecDeque<Vec<u8>>>,
    /// What clients have received.
    inboxes: Vec<(End, Vec<Vec<u8>>)>,
    /// What became known beside frames.
    pub(crate) noted: Vec<(At, Action)>,
    /// Data frames that have crossed a wire.
    pub(crate) crossed: usize,
    random: u64,
}

impl World {
    pub(crate) fn new(brokers: usize, seed: u64) -> Self {
        let broker =
            |id: usize| Broker::new(Limits::default(), NonZeroU32::new(id as u32 + 100).unwrap());
        Self {
            brokers: (0..brokers).map(broker).collect(),
            wires: Vec::new(),
            under_way: BTreeMap::new(),
            inboxes: Vec::new(),
            noted: Vec::new(),
            crossed: 0,
            random: seed | 1,
        }
    }

    /// xorshift64*
    fn chance(&mut self, of: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % of
    }

    pub(crate) fn client(&mut self, at: At, kind: LinkKind) -> End {
        let end = (at, self.brokers[at].link_up(kind).unwrap());
        self.inboxes.push((end, Vec::new()));
        end
    }

    pub(crate) fn uplink(&mut self, at: At, name: &str, exports: &[(&str, &str)]) -> u32 {
        let exports = exports.iter().map(|(name, alias)| Export {
            name: (*name).into(),
            alias: (*alias).into(),
            mode: 0,
        });
        let kind = UplinkKind {
            name: name.to_owned(),
            url: format!("mem://{name}"),
            exports: exports.collect(),
            writes: false,
        };
        self.brokers[at].add_uplink(kind).unwrap()
    }

    /// Connects an uplink of `from` to `to`; the ends.
    pub(crate) fn wire(&mut self, from: At, uplink: u32, to: At, kind: LinkKind) -> (End, End) {
        let there = (to, self.brokers[to].link_up(kind).unwrap());
        let mut actions = Actions::default();
        let here = self.brokers[from].uplink_up(uplink, REMOTE, &mut actions).unwrap();
        let ends = ((from, here), there);
        self.wires.push(ends);
        self.carry_out(from, &[], &actions);
        ends
    }

    /// Links two brokers, and waits until they know each other.
    pub(crate) fn link(&mut self, from: At, name: &str, to: At) -> (End, End) {
        let uplink = self.uplink(from, name, &[]);
        let ends = self.wire(from, uplink, to, REMOTE);
        self.settle();
        ends
    }

    /// Cuts a wire: what is on its way over it is lost.
    pub(crate) fn cut(&mut self, ends: (End, End)) {
        let number = self.wires.iter().position(|wire| *wire == ends).unwrap();
        self.under_way.remove(&(number, false));
        self.under_way.remove(&(number, true));
        for (at, link) in [ends.0, ends.1] {
            self.down((at, link));
        }
    }

    pub(crate) fn down(&mut self, (at, link): End) {
        let mut actions = Actions::default();
        self.brokers[at].link_down(link, &mut actions);
        self.carry_out(at, &[], &actions);
    }

    pub(crate) fn send(&mut self, end: End, frame: &[u8]) {
        self.give(end, frame);
        self.settle();
    }

    /// Hands a frame to a broker, and leaves what follows from it on its way.
    pub(crate) fn give(&mut self, (at, link): End, frame: &[u8]) {
        let (mut bytes, mut actions) = (frame.to_vec(), Actions::default());
        let handled = self.brokers[at].handle_bytes(link, &mut bytes, &mut actions);
        assert_eq!((handled.fault, handled.consumed), (None, frame.len()));
        self.carry_out(at, &bytes, &actions);
    }

    fn carry_out(&mut self, at: At, input: &[u8], actions: &Actions) {
        for action in &actions.list {
            let Action::Send { to, source, range, .. } = action else {
                self.noted.push((at, action.clone()));
                continue;
            };
            let from = match source {
                Source::Input => input,
                Source::Scratch => actions.scratch.as_slice(),
            };
            let end = (at, *to);
            let wire = self.wires.iter().position(|(one, other)| *one == end || *other == end);
            for frame in split(&from[range.clone()]) {
                match wire {
                    Some(number) => {
                        let forth = self.wires[number].0 == end;
                        self.under_way.entry((number, forth)).or_default().push_back(frame);
                    }
                    None => {
                        let inbox = self.inboxes.iter_mut().find(|(of, _)| *of == end);
                        inbox.expect("a link that is up").1.push(frame);
                    }
                }
            }
        }
    }

    /// Lets everything arrive that is on its way.
    pub(crate) fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            self.under_way.retain(|_, frames| !frames.is_empty());
            if self.under_way.is_empty() {
                return;
            }
            let chosen = self.chance(self.under_way.len());
            let (number, forth) = *self.under_way.keys().nth(chosen).unwrap();
            let frame = self.under_way.get_mut(&(number, forth)).unwrap().pop_front().unwrap();
            let (one, other) = self.wires[number];
            if super::support_node::frames::head_of(&frame).flags & 1 == 0 {
                self.crossed += 1;
            }
            self.give(if forth { other } else { one }, &frame);
        }
        panic!("frames go in circles");
    }

    /// What a client has received since it was asked last.
    pub(crate) fn received(&mut self, end: End) -> Vec<Vec<u8>> {
        let inbox = self.inboxes.iter_mut().find(|(of, _)| *of == end).unwrap();
        std::mem::take(&mut inbox.1)
    }

    pub(crate) fn control(
        &mut self,
        end: End,
        command: Command,
        fill: impl FnOnce(ControlBuilder<'_>) -> Result<ControlBuilder<'_>, TooBig>,
    ) -> Said {
        self.received(end);
        self.send(end, &control(0, 9, command, fill));
        let mut got = self.received(end);
        assert_eq!(got.len(), 1, "one answer");
        Said::of(&got.remove(0))
    }

    pub(crate) fn discover(&mut self, end: End, name: &str) -> Said {
        self.control(end, Command::Discover, |c| c.string(ControlAttribute::Host, name))
    }

    pub(crate) fn provide(&mut self, end: End, name: &str) -> u32 {
        let said = self.control(end, Command::Provide, |c| c.string(ControlAttribute::Host, name));
        said.addr.unwrap()
    }

    pub(crate) fn subscribe(&mut self, end: End) -> u32 {
        self.control(end, Command::Subscribe, |c| Ok(c)).cid.unwrap()
    }

    pub(crate) fn unsubscribe(&mut self, end: End, cid: u32) {
        let said = self.control(end, Command::Unsubscribe, |c| c.u32(ControlAttribute::Cid, cid));
        assert!(said.is_ack());
    }
}
