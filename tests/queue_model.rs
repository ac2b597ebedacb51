//! The machine of queues against a model: random commands, failures of the store and crashes.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use nlbus::service::queue::machine::{
    Answer, Command, Create, Effect, Machine, MachineOptions, Receive, Send, Subscribe,
};
use nlbus::service::queue::{Kind, Policy, QueueOptions};
use nlbus::store::{Loaded, LoadedQueue, Op, Seen, SendId, StoreError, Stored, Time};
use proptest::prelude::*;

const QUEUES: [&str; 3] = ["a", "b", "c"];
const LEASE_MS: u64 = 1_000;

#[derive(Clone, Debug)]
enum Step {
    Send { queue: usize, again: bool, ttl_ms: Option<u64> },
    Receive { queue: usize, session: u32, count: u32, wait: bool },
    Subscribe { queue: usize, session: u32, credit: u32 },
    Ack { session: u32, nth: usize },
    Nack { session: u32, nth: usize },
    Gone { session: u32 },
    Destroy { queue: usize },
    Advance { ms: u64 },
    Stored { fails: bool },
    Crash { kept: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (queue, session) = (0..QUEUES.len(), 1..4_u32);
    prop_oneof![
        8 => (queue.clone(), prop::bool::weighted(0.2), prop::option::weighted(0.1, 1..3_000_u64))
            .prop_map(|(queue, again, ttl_ms)| Step::Send { queue, again, ttl_ms }),
        4 => (queue.clone(), session.clone(), 1..4_u32, any::<bool>())
            .prop_map(|(queue, session, count, wait)| Step::Receive { queue, session, count, wait }),
        2 => (queue.clone(), session.clone(), 1..4_u32)
            .prop_map(|(queue, session, credit)| Step::Subscribe { queue, session, credit }),
        6 => (session.clone(), 0..8_usize).prop_map(|(session, nth)| Step::Ack { session, nth }),
        2 => (session.clone(), 0..8_usize).prop_map(|(session, nth)| Step::Nack { session, nth }),
        1 => session.prop_map(|session| Step::Gone { session }),
        1 => queue.prop_map(|queue| Step::Destroy { queue }),
        3 => (0..700_u64).prop_map(|ms| Step::Advance { ms }),
        6 => prop::bool::weighted(0.1).prop_map(|fails| Step::Stored { fails }),
        1 => (0..4_usize).prop_map(|kept| Step::Crash { kept }),
    ]
}

/// What is on the disk of the model.
#[derive(Clone, Debug, Default)]
struct Disk {
    queues: BTreeMap<u32, LoadedQueue>,
    messages: BTreeMap<u64, Stored>,
    senders: BTreeMap<u128, Seen>,
    id_floor: u64,
    last_key: u64,
    epoch: u32,
}

impl Disk {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Create { queue, name, options, first_id } => {
                self.queues.insert(queue, LoadedQueue { queue, name, options, next_id: first_id });
            }
            Op::Destroy { queue, id_floor, keys } => {
                self.queues.remove(&queue);
                keys.iter().for_each(|key| drop(self.messages.remove(key)));
                let left = self.messages.values().any(|message| message.queue == queue);
                assert!(!left, "a message has no queue");
                self.id_floor = self.id_floor.max(id_floor);
            }
            Op::Put(message) => {
                let queue = self.queues.get_mut(&message.queue).expect("its queue is there");
                queue.next_id = queue.next_id.max(message.id + 1);
                if let Some(SendId { sender, sequence }) = message.send_id {
                    self.senders.entry(sender).or_default().insert(sequence);
                }
                assert!(message.key > self.last_key, "a key is used twice");
                self.last_key = message.key;
                self.messages.insert(message.key, message);
            }
            Op::Delete { key } => drop(self.messages.remove(&key)),
            Op::Attempts { key, attempts } => {
                if let Some(message) = self.messages.get_mut(&key) {
                    message.attempts = attempts;
                }
            }
        }
    }

    fn load(&mut self) -> Loaded {
        self.epoch += 1;
        Loaded {
            epoch: self.epoch,
            id_floor: self.id_floor,
            queues: self.queues.values().cloned().collect(),
            messages: self.messages.values().cloned().collect(),
            senders: self.senders.clone().into_iter().collect(),
            last_key: self.last_key,
            quarantined: Vec::new(),
        }
    }
}

/// A message by queue and id.
type Place = (String, u64);

/// The world around a machine, and what it expects of it.
struct World {
    machine: Machine,
    durable: bool,
    disk: Disk,
    under_way: VecDeque<Vec<Op>>,
    now: Time,
    token: u64,
    sequence: u64,
    /// Sends that wait for an answer, by token: their queue, number, and whether they have a time to live.
    sends: BTreeMap<u64, (String, u64, bool)>,
    /// Where each number went, once that was answered.
    sent: BTreeMap<u64, Place>,
    /// What was answered and not yet acknowledged, without a time to live.
    alive: BTreeSet<Place>,
    acks: BTreeMap<u64, Place>,
    acked: BTreeSet<Place>,
    /// Who holds what.
    held: BTreeMap<Place, (u32, Time)>,
    takers: BTreeMap<u64, u32>,
    seen_ids: BTreeSet<Place>,
    highest: BTreeMap<String, u64>,
    first_delivered: BTreeMap<String, u64>,
}

impl World {
    fn new(durable: bool) -> Self {
        let mut disk = Disk { id_floor: 1, ..Disk::default() };
        let now = Time(1_000_000);
        let machine = Machine::new(MachineOptions::default(), durable, disk.load(), now);
        Self {
            machine,
            durable,
            disk,
            under_way: VecDeque::new(),
            now,
            token: 0,
            sequence: 0,
            sends: BTreeMap::new(),
            sent: BTreeMap::new(),
            alive: BTreeSet::new(),
            acks: BTreeMap::new(),
            acked: BTreeSet::new(),
            held: BTreeMap::new(),
            takers: BTreeMap::new(),
            seen_ids: BTreeSet::new(),
            highest: BTreeMap::new(),
            first_delivered: BTreeMap::new(),
        }
    }

    fn command(&mut self, session: u32, command: Command) -> u64 {
        self.token += 1;
        self.machine.handle(self.now, session, self.token, command);
        self.token
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Send { queue, again, ttl_ms } => self.send(queue, again, ttl_ms),
            Step::Receive { queue, session, count, wait } => {
                let queues = vec![QUEUES[queue].to_owned()];
                let timeout_ms = if wait { 500 } else { 0 };
                let lease_ms = Some(LEASE_MS);
                let receive =
                    Receive { queues, messages_max: count, timeout_ms, lease_ms, auto_ack: false };
                self.takers.insert(self.token + 1, session);
                self.command(session, Command::Receive(receive));
            }
            Step::Subscribe { queue, session, credit } => {
                let queue = QUEUES[queue].to_owned();
                let lease_ms = Some(LEASE_MS);
                let subscribe = Subscribe { queue, credit, credit_bytes: 1 << 20, lease_ms };
                self.takers.insert(self.token + 1, session);
                self.command(session, Command::Subscribe(subscribe));
            }
            Step::Ack { session, nth } => {
                let Some((queue, id)) = self.nth_held(session, nth) else { return };
                self.held.remove(&(queue.clone(), id));
                self.acks.insert(self.token + 1, (queue.clone(), id));
                self.command(session, Command::Ack { queue, ids: vec![id], force: false });
            }
            Step::Nack { session, nth } => {
                let Some((queue, id)) = self.nth_held(session, nth) else { return };
                self.held.remove(&(queue.clone(), id));
                self.command(session, Command::Nack { queue, ids: vec![id] });
            }
            Step::Gone { session } => {
                self.held.retain(|_, (holder, _)| *holder != session);
                self.machine.handle_gone(self.now, session);
            }
            Step::Destroy { queue } => {
                let queue = QUEUES[queue].to_owned();
                self.alive.retain(|(name, _)| *name != queue);
                self.held.retain(|(name, _), _| *name != queue);
                self.sends.retain(|_, (name, _, _)| *name != queue);
                self.command(9, Command::Destroy { queue, if_empty: false });
            }
            Step::Advance { ms } => {
                self.now = self.now.after_ms(ms);
                self.held.retain(|_, (_, until)| *until > self.now);
                self.machine.handle_time(self.now);
            }
            Step::Stored { fails } => self.stored(fails),
            Step::Crash { kept } => self.crash(kept),
        }
        self.poll();
    }

    fn send(&mut self, queue: usize, again: bool, ttl_ms: Option<u64>) {
        // what is sent again is sent to where it was sent before
        let before = self.sent.last_key_value().map(|(number, place)| (*number, place.0.clone()));
        let (sequence, queue) = match before.filter(|_| again) {
            Some(before) => before,
            None => {
                self.sequence += 1;
                (self.sequence, QUEUES[queue].to_owned())
            }
        };
        self.sends.insert(self.token + 1, (queue.clone(), sequence, ttl_ms.is_some()));
        let send = Send {
            queue,
            create: true,
            send_id: Some(SendId { sender: 7, sequence }),
            ttl_ms,
            reply_to: None,
            record: Bytes::copy_from_slice(&sequence.to_le_bytes()),
        };
        self.command(8, Command::Send(send));
    }

    fn nth_held(&self, session: u32, nth: usize) -> Option<Place> {
        let mut held = self.held.iter().filter(|(_, (holder, _))| *holder == session);
        held.nth(nth).map(|(place, _)| place.clone())
    }

    fn stored(&mut self, fails: bool) {
        let Some(batch) = self.under_way.pop_front() else { return };
        let fails = fails && batch.iter().any(|op| !op.frees());
        for op in batch.into_iter().filter(|op| !fails || op.frees()) {
            self.disk.apply(op);
        }
        let result = if fails { Err(StoreError::Full) } else { Ok(()) };
        self.machine.handle_stored(self.now, result);
    }

    /// The process dies; of what was under way the first `kept` batches reached the disk.
    fn crash(&mut self, kept: usize) {
        if !self.durable {
            return;
        }
        for op in self.under_way.drain(..).take(kept).flatten() {
            self.disk.apply(op);
        }
        self.under_way.clear();
        self.held.clear();
        self.takers.clear();
        self.sends.clear();
        // whether these reached the disk is not known
        for place in std::mem::take(&mut self.acks).into_values() {
            self.alive.remove(&place);
        }
        self.first_delivered.clear();
        self.machine = Machine::new(MachineOptions::default(), true, self.disk.load(), self.now);
    }

    fn poll(&mut self) {
        let mut effects = Vec::new();
        self.machine.poll_effects(self.now, &mut effects);
        while let Some(batch) = self.machine.poll_batch() {
            self.under_way.push_back(batch);
        }
        assert!(self.durable || self.under_way.is_empty(), "nothing is stored without a store");
        for effect in effects {
            match effect {
                Effect::Answer { token, answer } => self.answer(token, answer),
                Effect::Deliver { token, message } => {
                    let place = (message.queue.to_string(), message.id);
                    let session = self.takers[&token];
                    assert!(!self.acked.contains(&place), "{place:?} came back once acknowledged");
                    if message.attempt == 1 {
                        let last = self.first_delivered.insert(place.0.clone(), place.1);
                        assert!(last.is_none_or(|last| last < place.1), "{place:?} overtook");
                    }
                    self.seen_ids.insert(place.clone());
                    let before =
                        self.held.insert(place.clone(), (session, self.now.after_ms(LEASE_MS)));
                    assert_eq!(before, None, "{place:?} was held already");
                }
                Effect::End { .. } | Effect::Parked { .. } => {}
            }
        }
    }

    fn answer(&mut self, token: u64, answer: Answer) {
        match answer {
            Answer::Sent { id, again } => {
                let Some((queue, sequence, mortal)) = self.sends.remove(&token) else { return };
                let Some(id) = id else { return assert!(again) };
                let place = (queue, id);
                match self.sent.get(&sequence) {
                    Some(before) => assert_eq!(*before, place, "sent twice"),
                    None => {
                        // an answer may overtake another, but an id is given out once
                        let fresh = self.sent.values().all(|other| *other != place);
                        assert!(fresh, "{place:?} was used before");
                        let highest = self.highest.entry(place.0.clone()).or_default();
                        assert!(place.1 > *highest || again, "{place:?} is not above {highest}");
                        *highest = place.1.max(*highest);
                        self.sent.insert(sequence, place.clone());
                        if !mortal && !self.acked.contains(&place) {
                            self.alive.insert(place);
                        }
                    }
                }
            }
            Answer::Done => {
                if let Some(place) = self.acks.remove(&token) {
                    self.alive.remove(&place);
                    self.acked.insert(place);
                }
            }
            _ => {}
        }
    }

    /// Everything that was answered is there, once, in order.
    fn drain(&mut self) {
        while !self.under_way.is_empty() {
            self.stored(false);
            self.poll();
        }
        for session in 1..4 {
            self.run(Step::Gone { session });
        }
        self.run(Step::Advance { ms: 10 * LEASE_MS });
        while !self.under_way.is_empty() {
            self.stored(false);
            self.poll();
        }
        self.held.clear();
        for queue in 0..QUEUES.len() {
            for _ in 0..200 {
                self.run(Step::Receive { queue, session: 1, count: 1_000, wait: false });
            }
        }
        let found: BTreeSet<Place> = self.held.keys().cloned().collect();
        let lost: Vec<_> = self.alive.difference(&found).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_was_answered_is_lost_or_comes_twice(
        durable in any::<bool>(),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut world = World::new(durable);
        for step in steps {
            world.run(step);
        }
        world.drain();
    }
}

#[test]
fn ten_thousand_mixed_times_to_live_are_each_over_within_a_tenth_of_a_second() {
    let mut now = Time(0);
    let mut machine = Machine::new(MachineOptions::default(), false, Loaded::default(), now);
    let create =
        Create { queue: Some("q".into()), kind: Kind::Persistent, options: None, exclusive: false };
    machine.handle(now, 1, 0, Command::Create(create));
    let mut expected = BTreeMap::new();
    for n in 0..10_000_u64 {
        let ttl_ms = 1 + n * 7_919 % 60_000;
        *expected.entry(now.after_ms(ttl_ms)).or_insert(0_u64) += 1;
        let record = Bytes::from_static(b"x");
        let send = Send {
            queue: "q".into(),
            create: false,
            send_id: None,
            ttl_ms: Some(ttl_ms),
            reply_to: None,
            record,
        };
        machine.handle(now, 1, n, Command::Send(send));
    }
    let mut effects = Vec::new();
    machine.poll_effects(now, &mut effects);
    while let Some(next) = machine.poll_time() {
        let before = machine.bytes();
        now = next;
        machine.handle_time(now);
        machine.poll_effects(now, &mut effects);
        // each at its very time: the clock is this loop
        assert_eq!(Some(before - machine.bytes()), expected.remove(&now), "at {now:?}");
    }
    assert!(expected.is_empty() && machine.bytes() == 0);
}

#[test]
fn a_full_queue_refuses_drops_or_waits_as_its_policy_says() {
    for (policy, expected) in
        [(Policy::Reject, "refused"), (Policy::DropOldest, "sent"), (Policy::Block, "waits")]
    {
        let now = Time(0);
        let mut machine = Machine::new(MachineOptions::default(), false, Loaded::default(), now);
        let options = QueueOptions::default().messages_max(2).policy(policy);
        let create = Create {
            queue: Some("q".into()),
            kind: Kind::Persistent,
            options: Some(options),
            exclusive: true,
        };
        machine.handle(now, 1, 0, Command::Create(create));
        let mut effects = Vec::new();
        for token in 1..=3 {
            let record = Bytes::from_static(b"x");
            let send = Send {
                queue: "q".into(),
                create: false,
                send_id: None,
                ttl_ms: None,
                reply_to: None,
                record,
            };
            machine.handle(now, 1, token, Command::Send(send));
        }
        machine.poll_effects(now, &mut effects);
        let third = effects.iter().find_map(|effect| match effect {
            Effect::Answer { token: 3, answer: Answer::Sent { .. } } => Some("sent"),
            Effect::Answer { token: 3, answer: Answer::Refused(_) } => Some("refused"),
            _ => None,
        });
        assert_eq!(third.unwrap_or("waits"), expected, "{policy:?}");
        machine.handle(now, 1, 4, Command::Purge { queue: "q".into() });
        effects.clear();
        machine.poll_effects(now, &mut effects);
        let later = effects.iter().any(|effect| matches!(effect, Effect::Answer { token: 3, .. }));
        assert_eq!(later, expected == "waits", "{policy:?}");
    }
}
