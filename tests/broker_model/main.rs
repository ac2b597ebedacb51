//! The core against a naive model of it: random links, names, subscriptions and frames, in random chunks.
//!
//! The model is told what the core is free to choose (which provider's turn it is, which number a
//! return address or a subscription has) and checks that the choice is a lawful one.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod ops;
#[path = "../support_node/mod.rs"]
mod support_node;

use std::collections::{BTreeMap, BTreeSet};

use nlbus::broker::{
    Action, Carrier, Counters, Delivery, LinkId, LinkKind, RETURN_BASE, SUBSYSTEM_BASE,
};
use nlbus::wire::{
    Command, ControlAttribute, EnvelopeHead, FRAME_MAX, Header, Key, LEGACY_FRAME_MAX, errno, flag,
};
use ops::{Filter, NAMES, Op, Step, To, ops};
use proptest::prelude::*;
use support_node::bus::{Bus, Got};
use support_node::frames::{Said, control, data, exception};

/// Names a link for ever: the core's ids are the core's business.
type Serial = usize;

struct Link {
    id: LinkId,
    kind: LinkKind,
    greeted: bool,
    frame_max: usize,
    /// `Some` is a subsystem's address, `None` stands for a return address.
    ports: BTreeMap<u32, Option<u32>>,
    has_provided: bool,
    /// What it was asked and has not answered: the asker, its port, the number.
    open: BTreeSet<(Serial, u32, u32)>,
    subscriptions: BTreeMap<u32, Filter>,
}

impl Link {
    fn provides(&self) -> bool {
        self.ports.values().any(Option::is_some)
    }
}

#[derive(Default)]
struct Model {
    links: BTreeMap<Serial, Link>,
    /// In the order of their addresses.
    names: Vec<usize>,
    /// What each return address stands for, as far as it was seen; those of links that are gone stay.
    backs: BTreeMap<u32, (Serial, u32)>,
    counters: Counters,
    events_changed: usize,
    greeted: usize,
}

impl Model {
    fn pick(&self, number: usize) -> Option<Serial> {
        self.links.keys().nth(number.checked_rem(self.links.len())?).copied()
    }

    fn serial(&self, id: LinkId) -> Serial {
        let found = self.links.iter().find(|(_, link)| link.id == id);
        *found.expect("nothing is delivered to a link that is down").0
    }

    fn address(&self, name: usize) -> Option<u32> {
        let index = self.names.iter().position(|known| *known == name)?;
        Some(SUBSYSTEM_BASE + index as u32)
    }

    fn subscriptions(&self) -> usize {
        self.links.values().map(|link| link.subscriptions.len()).sum()
    }

    fn returns(&self) -> usize {
        let ports = self.links.values().flat_map(|link| link.ports.values());
        ports.filter(|port| port.is_none()).count()
    }

    /// Checks that `address` may stand for the pair, and remembers it.
    fn learn(&mut self, address: u32, pair: (Serial, u32)) {
        assert!((RETURN_BASE..u32::MAX).contains(&address), "{address:#x}");
        let known = *self.backs.entry(address).or_insert(pair);
        assert_eq!(known, pair, "{address:#x} has stood for another");
        let others = self.backs.iter().filter(|(_, other)| **other == pair).count();
        assert_eq!(others, 1, "a pair has one address");
    }

    /// Checks the `src` of a frame that came from `pair`.
    fn check_src(&mut self, pair: (Serial, u32), src: u32) {
        match self.links[&pair.0].ports[&pair.1] {
            Some(address) => assert_eq!(src, address),
            None => self.learn(src, pair),
        }
    }

    /// Where a frame to a return address may go: the pair, if it is up.
    fn back(&self, address: u32) -> Option<(Serial, u32)> {
        let pair = *self.backs.get(&address)?;
        self.links.contains_key(&pair.0).then_some(pair)
    }

    /// A control step: `Ok` with what ACK holds, or the error number.
    fn control(&mut self, from: Serial, step: &Step, said: &Said) -> Result<(), i32> {
        let (_, rights) = (self.counters.control += 1, self.links[&from].kind.access.rights);
        let permitted = match step {
            Step::Hello(_) => true,
            Step::Provide(..) | Step::Remove(..) => rights.provide,
            _ => rights.use_bus,
        };
        if !permitted {
            self.counters.forbidden += 1;
            return Err(errno::EPERM);
        }
        let before = self.subscriptions();
        let known = |model: &Self, name| model.address(name);
        match *step {
            Step::Hello(max) if (max as usize) < LEGACY_FRAME_MAX => return Err(errno::EINVAL),
            Step::Hello(max) => {
                let link = self.links.get_mut(&from).unwrap();
                link.greeted = true;
                link.frame_max = FRAME_MAX.min(max as usize);
                self.greeted += 1;
            }
            Step::Provide(name, port) => {
                if self.links[&from].ports.contains_key(&port) {
                    return Err(errno::EEXIST);
                }
                if known(self, name).is_none() {
                    self.names.push(name);
                }
                let address = known(self, name);
                let link = self.links.get_mut(&from).unwrap();
                link.ports.insert(port, address);
                link.has_provided = true;
                assert_eq!(said.addr, address);
            }
            Step::Remove(name, port) => {
                let address = known(self, name).ok_or(errno::ENOENT)?;
                let link = self.links.get_mut(&from).unwrap();
                if link.ports.get(&port) != Some(&Some(address)) {
                    return Err(errno::ENOENT);
                }
                link.ports.remove(&port);
            }
            Step::Subscribe(filter) => {
                let filter = match filter {
                    Filter::Name(name) => Filter::Address(known(self, name).ok_or(errno::ENOENT)?),
                    other => other,
                };
                let cid = said.cid.expect("a number");
                assert!(cid < 1_024);
                let link = self.links.get_mut(&from).unwrap();
                assert!(link.subscriptions.insert(cid, filter).is_none(), "{cid} is taken");
            }
            Step::Unsubscribe(cid) => {
                let link = self.links.get_mut(&from).unwrap();
                link.subscriptions.remove(&cid).ok_or(errno::ENOENT)?;
            }
            Step::Frame { .. } => unreachable!(),
        }
        self.events_changed += usize::from((before == 0) != (self.subscriptions() == 0));
        Ok(())
    }

    /// A frame that is not control: checks `got`, which is everything that came of it.
    fn frame(&mut self, from: Serial, frame: &[u8], got: &[Got]) {
        let head = support_node::frames::head_of(frame);
        let rights = self.links[&from].kind.access.rights;
        if !rights.use_bus {
            self.counters.forbidden += 1;
            return self.bounced(from, frame, got, errno::EPERM);
        }
        let providers = self.providers(head.dst);
        match head.dst {
            0 | u32::MAX => self.broadcast(from, frame, got),
            RETURN_BASE.. => self.reply(from, frame, got),
            _ if !providers.is_empty() => {
                self.passed(from, frame, got, &providers, Delivery::Hold);
            }
            _ if head.flags & flag::ASK == 0 => self.broadcast(from, frame, got),
            _ => self.bounced(from, frame, got, errno::ENOENT),
        }
    }

    fn providers(&self, address: u32) -> Vec<(Serial, u32)> {
        let mut all = Vec::new();
        for (serial, link) in &self.links {
            let ports = link.ports.iter().filter(|(_, known)| **known == Some(address));
            all.extend(ports.map(|(port, _)| (*serial, *port)));
        }
        all
    }

    fn use_port(&mut self, from: Serial, port: u32) {
        self.links.get_mut(&from).unwrap().ports.entry(port).or_insert(None);
    }

    fn reply(&mut self, from: Serial, frame: &[u8], got: &[Got]) {
        let head = support_node::frames::head_of(frame);
        if !self.links[&from].has_provided {
            self.counters.forbidden += 1;
            return self.bounced(from, frame, got, errno::EPERM);
        }
        let Some(pair) = self.back(head.dst) else {
            self.counters.stale += 1;
            return self.bounced(from, frame, got, errno::ENOENT);
        };
        self.learn(head.dst, pair);
        self.passed(from, frame, got, &[pair], Delivery::Reply);
    }

    /// The frame went to one of `targets`, or was too long for one.
    fn passed(
        &mut self,
        from: Serial,
        frame: &[u8],
        got: &[Got],
        targets: &[(Serial, u32)],
        delivery: Delivery,
    ) {
        let fits = |(serial, _): &&(Serial, u32)| self.links[serial].frame_max >= frame.len();
        let fitting: Vec<_> = targets.iter().filter(fits).copied().collect();
        let delivered = got.iter().find(|got| got.delivery == delivery && !is_exception(got));
        let Some(delivered) = delivered else {
            assert!(fitting.len() < targets.len(), "it was not delivered");
            self.counters.too_long += 1;
            return self.bounced(from, frame, got, errno::EMSGSIZE);
        };
        assert_eq!(got.len(), 1);
        // only now: what is too long for its target leaves no return address behind
        self.use_port(from, support_node::frames::head_of(frame).src);
        let (was, is) = (support_node::frames::head_of(frame), delivered.head());
        assert!(fitting.contains(&(self.serial(delivered.to), is.dst)), "{delivered:?}");
        self.check_src((from, was.src), is.src);
        let expected = EnvelopeHead { dst: is.dst, src: is.src, ..was };
        let payload = support_node::frames::payload_of(frame);
        assert_eq!(delivered.frame, data(expected, payload));
        match delivery {
            Delivery::Reply => {
                self.counters.replies += 1;
                if was.flags & (flag::LAST | flag::EXCEPTION) != 0 {
                    let to = self.serial(delivered.to);
                    let open = &mut self.links.get_mut(&from).unwrap().open;
                    open.remove(&(to, is.dst, was.sequence));
                }
            }
            _ => {
                self.counters.requests += 1;
                let to = self.serial(delivered.to);
                let plain = self.links[&from].ports.get(&was.src) == Some(&None);
                let target = self.links.get_mut(&to).unwrap();
                if plain && was.flags & flag::ASK != 0 && target.kind.carrier != Carrier::Local {
                    target.open.insert((from, was.src, was.sequence));
                }
            }
        }
    }

    fn bounced(&mut self, from: Serial, frame: &[u8], got: &[Got], number: i32) {
        let head = support_node::frames::head_of(frame);
        let bounces =
            head.flags & flag::ASK != 0 && head.flags & (flag::EXCEPTION | flag::RESPONSE) == 0;
        if !bounces {
            self.counters.dropped += 1;
            return assert_eq!(got, []);
        }
        self.counters.exceptions += 1;
        let [got] = got else { panic!("{got:?}") };
        assert_eq!((self.serial(got.to), got.delivery), (from, Delivery::Hold));
        let (is, back) = (got.head(), exception(&got.frame));
        assert_eq!((is.dst, is.src), (head.src, head.dst));
        assert_eq!((is.sequence, is.pid), (head.sequence, head.pid));
        let inner = Header::parse(support_node::frames::payload_of(frame)).unwrap_or_default();
        assert_eq!((back.0, back.1), (number, inner));
    }

    fn broadcast(&mut self, from: Serial, frame: &[u8], got: &[Got]) {
        self.counters.broadcasts += 1;
        let head = support_node::frames::head_of(frame);
        let payload = support_node::frames::payload_of(frame);
        let word = u32::from_le_bytes(payload[4..8].try_into().unwrap());
        let src = self.links[&from].ports.get(&head.src).copied().flatten().unwrap_or(0);
        let mut wanted = false;
        let mut expected = BTreeMap::new();
        for (serial, link) in &self.links {
            let wants = link.subscriptions.values().any(|filter| match filter {
                Filter::All => true,
                Filter::Address(address) => src == *address,
                Filter::Word(wanted) => word == *wanted,
                Filter::Name(_) => unreachable!("it was looked up"),
            });
            wanted |= wants;
            if wants && frame.len() > link.frame_max {
                self.counters.too_long += 1;
            } else if wants {
                let src = if link.greeted { src } else { 0 };
                let wiped = data(EnvelopeHead { src, ..EnvelopeHead::default() }, payload);
                expected.insert(*serial, wiped);
            }
        }
        self.counters.unwanted += u64::from(!wanted);
        let seen: BTreeMap<_, _> =
            got.iter().map(|got| (self.serial(got.to), got.frame.clone())).collect();
        assert_eq!(seen.len(), got.len(), "one copy each");
        assert_eq!(seen, expected);
        assert!(got.iter().all(|got| got.delivery == Delivery::Shed));
    }

    fn down(&mut self, from: Serial, actions: &[Action], got: &[Got]) {
        let link = self.links.remove(&from).unwrap();
        let gone = link.ports.values().filter(|port| port.is_none()).count();
        let locals: BTreeSet<_> = (self.links.values())
            .filter(|link| link.kind.carrier == Carrier::Local && link.provides())
            .map(|link| link.id.index())
            .collect();
        let mut told = 0;
        let mut changed = 0;
        for action in actions {
            match action {
                Action::Gone { to, address } => {
                    assert!(locals.contains(&to.index()));
                    assert!(self.backs.get(address).is_none_or(|pair| pair.0 == from));
                    told += 1;
                }
                Action::EventsChanged => changed += 1,
                Action::Send { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        let left: BTreeSet<_> =
            link.open.into_iter().filter(|open| self.links.contains_key(&open.0)).collect();
        let excused: BTreeSet<_> = (got.iter())
            .map(|got| {
                assert_eq!(exception(&got.frame).0, errno::EPIPE);
                let head = got.head();
                (self.serial(got.to), head.dst, head.sequence)
            })
            .collect();
        assert_eq!(excused.len(), got.len(), "each once");
        assert_eq!(excused, left);
        self.counters.given_up += got.len() as u64;
        assert_eq!(told, gone * locals.len());
        let last = !link.subscriptions.is_empty() && self.subscriptions() == 0;
        assert_eq!(changed, usize::from(last));
    }
}

/// Whether the core made this EXCEPTION: senders here set that flag too.
fn is_exception(got: &Got) -> bool {
    got.head().flags & flag::EXCEPTION != 0 && got.delivery == Delivery::Hold && {
        // NLMSG_ERROR stands where a frame of ours has its word
        let payload = got.payload();
        payload.len() >= 36 && u16::from_le_bytes([payload[4], payload[5]]) == 2
    }
}

/// The core and the model, side by side.
#[derive(Default)]
struct World {
    bus: Bus,
    model: Model,
    next: Serial,
    /// Counts frames; each carries its number, so that what comes out can be told apart.
    number: u32,
    /// Frames that came from links that were down.
    ignored: u64,
}

impl World {
    fn run(&mut self, op: &Op) {
        match op {
            Op::Up(kind) => {
                let id = self.bus.up(kind.clone());
                let frame_max =
                    if kind.carrier == Carrier::Local { FRAME_MAX } else { LEGACY_FRAME_MAX };
                let link = Link {
                    id,
                    kind: kind.clone(),
                    greeted: kind.carrier == Carrier::Local,
                    frame_max,
                    ports: BTreeMap::new(),
                    has_provided: false,
                    open: BTreeSet::new(),
                    subscriptions: BTreeMap::new(),
                };
                let same = self.model.links.values().any(|other| other.id.index() == id.index());
                assert!(!same, "two links that are up share a slot");
                self.model.links.insert(self.next, link);
                self.next += 1;
            }
            Op::Down(pick) => {
                if let Some(from) = self.model.pick(*pick) {
                    self.down(from);
                }
            }
            Op::Garbage(pick) => {
                let Some(from) = self.model.pick(*pick) else { return };
                let id = self.model.links[&from].id;
                let (handled, got) = self.bus.handle(id, &[1; 28]);
                assert!(handled.fault.is_some() && got.is_empty());
                self.model.counters.malformed += 1;
                self.down(from);
            }
            Op::Batch(pick, steps, cuts) => {
                if let Some(from) = self.model.pick(*pick) {
                    self.batch(from, steps, cuts);
                }
            }
        }
        self.check();
    }

    fn down(&mut self, from: Serial) {
        let id = self.model.links[&from].id;
        let got = self.bus.down_frames(id);
        let actions = self.bus.actions.list.clone();
        self.model.down(from, &actions, &got);
        // what it sends now goes nowhere
        let frame = data(EnvelopeHead { dst: SUBSYSTEM_BASE, ..EnvelopeHead::default() }, &[0; 8]);
        assert_eq!(self.bus.send(id, &frame), []);
        self.model.counters.frames += 1;
        self.ignored += 1;
    }

    fn batch(&mut self, from: Serial, steps: &[Step], cuts: &[usize]) {
        let backs: Vec<u32> = self.model.backs.keys().copied().collect();
        let first = self.number;
        let frames: Vec<Vec<u8>> = steps.iter().map(|step| self.frame_of(step, &backs)).collect();
        let (got, changes, greetings) = self.feed(from, &frames.concat(), cuts);

        let mut of: Vec<Vec<Got>> = vec![Vec::new(); frames.len()];
        let mut last = BTreeMap::new();
        for got in got {
            let number = number_of(&got).wrapping_sub(first) as usize;
            let last = last.entry(got.to.index()).or_insert(0);
            assert!(number >= *last, "the order is kept for each target");
            *last = number;
            of[number].push(got);
        }
        self.model.events_changed = 0;
        self.model.greeted = 0;
        for ((step, frame), got) in steps.iter().zip(&frames).zip(&of) {
            self.model.counters.frames += 1;
            if let Step::Frame { .. } = step {
                self.model.frame(from, frame, got);
                continue;
            }
            let [answer] = got.as_slice() else { panic!("{step:?}: {got:?}") };
            assert_eq!(self.model.serial(answer.to), from);
            let said = Said::of(&answer.frame);
            let expected = self.model.control(from, step, &said);
            assert_eq!((said.is_ack(), said.errno), (expected.is_ok(), expected.err()), "{step:?}");
        }
        assert_eq!((changes, greetings), (self.model.events_changed, self.model.greeted));
    }

    /// Hands bytes over as a socket would: in pieces, with what was left over before.
    fn feed(&mut self, from: Serial, bytes: &[u8], cuts: &[usize]) -> (Vec<Got>, usize, usize) {
        let id = self.model.links[&from].id;
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let (mut all, mut changes, mut greetings, mut at) = (Vec::new(), 0, 0, 0);
        for end in ends {
            let (handled, got) = self.bus.handle(id, &bytes[at..end]);
            assert_eq!(handled.fault, None);
            at += handled.consumed;
            all.extend(got);
            for action in &self.bus.actions.list {
                changes += usize::from(*action == Action::EventsChanged);
                greetings += usize::from(matches!(action, Action::Greeted { .. }));
            }
        }
        assert_eq!(at, bytes.len());
        (all, changes, greetings)
    }

    fn frame_of(&mut self, step: &Step, backs: &[u32]) -> Vec<u8> {
        let number = self.number;
        self.number += 1;
        let host = |name: usize, port: u32, command| {
            control(0, number, command, |control| {
                control
                    .string(ControlAttribute::Host, NAMES[name])?
                    .u32(ControlAttribute::Port, port)
            })
        };
        match *step {
            Step::Hello(max) => control(0, number, Command::Hello, |control| {
                control.u32(ControlAttribute::Version, 1)?.u32(ControlAttribute::FrameMax, max)
            }),
            Step::Provide(name, port) => host(name, port, Command::Provide),
            Step::Remove(name, port) => host(name, port, Command::Remove),
            Step::Subscribe(filter) => control(0, number, Command::Subscribe, |c| match filter {
                Filter::All => Ok(c),
                Filter::Address(address) => c.u32(ControlAttribute::Addr, address),
                Filter::Name(name) => c.string(ControlAttribute::Host, NAMES[name]),
                Filter::Word(key) => c.key(Key { offset: 4, key, mask: u32::MAX }),
            }),
            Step::Unsubscribe(cid) => control(0, number, Command::Unsubscribe, |control| {
                control.u32(ControlAttribute::Cid, cid)
            }),
            Step::Frame { to, src, flags, length, word } => {
                let dst = match to {
                    To::Address(address) => address,
                    To::Back(pick) => {
                        pick.checked_rem(backs.len()).map_or(RETURN_BASE, |at| backs[at])
                    }
                };
                let mut payload = number.to_le_bytes().to_vec();
                payload.extend_from_slice(&word.to_le_bytes());
                payload.resize(length, 0x5a);
                data(EnvelopeHead { flags, sequence: number, pid: 7, dst, src }, &payload)
            }
        }
    }

    /// What can be asked from outside at any time.
    fn check(&self) {
        let (broker, model) = (&self.bus.broker, &self.model);
        assert_eq!(broker.links_len(), model.links.len());
        assert_eq!(broker.returns_len(), model.returns());
        assert_eq!(broker.subscriptions_len(), model.subscriptions());
        assert_eq!(*broker.counters(), model.counters);
        let names: Vec<_> = broker.subsystems().collect();
        let expected: Vec<_> = (model.names.iter().zip(SUBSYSTEM_BASE..))
            .map(|(name, at)| (NAMES[*name], at, model.providers(at).len()))
            .collect();
        assert_eq!(names, expected);
        let counters = broker.counters();
        let went = counters.control + counters.requests + counters.replies + counters.broadcasts;
        let back = counters.exceptions + counters.dropped;
        assert_eq!(went + back + self.ignored, counters.frames, "each frame has one fate");
        assert!(counters.unwanted <= counters.broadcasts);
    }
}

/// The number of the frame that `got` came of: in the payload, if that is the sender's.
fn number_of(got: &Got) -> u32 {
    let head = got.head();
    if head.flags & flag::CONTROL != 0 || is_exception(got) {
        return head.sequence;
    }
    u32::from_le_bytes(got.payload()[..4].try_into().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_core_does_what_the_model_says(ops in ops()) {
        let mut world = World::default();
        for op in &ops {
            world.run(op);
        }
        // everything ends, and nothing stays
        while let Some(serial) = world.model.pick(0) {
            world.down(serial);
        }
        world.check();
        prop_assert_eq!(world.bus.broker.returns_len(), 0);
        prop_assert_eq!(world.bus.broker.subscriptions_len(), 0);
    }
}
