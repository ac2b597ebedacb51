//! Any commands, in any order, of sessions that come and go, with a store that fails: the machine of queues
//! never loses count.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use nlbus::service::queue::machine::{
    Answer, Command, Create, Effect, Machine, MachineOptions, QueueInfo, Receive, Send, Subscribe,
};
use nlbus::service::queue::{Kind, Mode, Policy, QueueOptions};
use nlbus::store::{Loaded, SendId, StoreError, Time};

const QUEUES: [&str; 4] = ["a", "b", "c", "d"];

/// What is left of the input.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, bound: u8) -> u8 {
        self.byte() % bound
    }

    fn queue(&mut self) -> String {
        QUEUES[usize::from(self.below(QUEUES.len() as u8))].to_owned()
    }

    /// A number is sent to one queue.
    fn send_id(&mut self) -> (String, SendId) {
        let sequence = u64::from(self.below(64));
        let queue = QUEUES[sequence as usize % QUEUES.len()].to_owned();
        (queue, SendId { sender: 1, sequence })
    }

    fn ids(&mut self) -> Vec<u64> {
        (0..=self.below(3)).map(|_| u64::from(self.byte())).collect()
    }

    fn command(&mut self) -> Command {
        match self.below(16) {
            0 => {
                let options = QueueOptions::default()
                    .mode(if self.byte() & 1 == 0 { Mode::Share } else { Mode::Fanout })
                    .policy(
                        [Policy::Reject, Policy::DropOldest, Policy::Block]
                            [usize::from(self.below(3))],
                    )
                    .messages_max(self.below(8).into())
                    .bytes_max(u64::from(self.byte()) * 4)
                    .ttl_ms_max(self.below(4).into())
                    .lease_ms(1 + u64::from(self.below(9)))
                    .attempts_max(1 + u32::from(self.below(3)))
                    .dead_letter((self.byte() & 1 == 0).then(|| self.queue()));
                Command::Create(Create {
                    queue: (self.byte() & 7 != 0).then(|| self.queue()),
                    kind: if self.byte() & 3 == 0 { Kind::Transient } else { Kind::Persistent },
                    options: (self.byte() & 3 != 0).then_some(options),
                    exclusive: self.byte() & 3 == 0,
                })
            }
            1 => Command::Destroy { queue: self.queue(), if_empty: self.byte() & 1 == 0 },
            2 => Command::Receive(Receive {
                queues: (0..=self.below(3)).map(|_| self.queue()).collect(),
                messages_max: self.below(4).into(),
                timeout_ms: self.below(20).into(),
                lease_ms: (self.byte() & 1 == 0).then(|| 1 + u64::from(self.below(9))),
                auto_ack: self.byte() & 3 == 0,
            }),
            3 | 4 => {
                Command::Ack { queue: self.queue(), ids: self.ids(), force: self.byte() & 7 == 0 }
            }
            5 => Command::Nack { queue: self.queue(), ids: self.ids() },
            6 => {
                let lease_ms = 1 + u64::from(self.below(9));
                Command::Extend { queue: self.queue(), ids: self.ids(), lease_ms }
            }
            7 => Command::Subscribe(Subscribe {
                queue: self.queue(),
                credit: self.below(4).into(),
                credit_bytes: self.byte().into(),
                lease_ms: (self.byte() & 1 == 0).then(|| 1 + u64::from(self.below(9))),
            }),
            8 => Command::Unsubscribe { consumer: self.byte().into() },
            9 => Command::Purge { queue: self.queue() },
            10 => {
                let (queue, send_id) = self.send_id();
                Command::Withdraw { queue, send_id }
            }
            11 => {
                let (from, timeout_ms) = (self.byte().into(), self.below(20).into());
                Command::Trace { from, timeout_ms, prefix: String::new() }
            }
            12 => Command::Diagnostics {
                prefix: String::new(),
                entries_max: self.byte().into(),
                payload_max: self.byte().into(),
            },
            _ => {
                let (queue, send_id) = self.send_id();
                Command::Send(Send {
                    queue,
                    create: self.byte() & 1 == 0,
                    send_id: (self.byte() & 1 == 0).then_some(send_id),
                    ttl_ms: (self.byte() & 3 == 0).then(|| self.below(9).into()),
                    reply_to: None,
                    record: Bytes::from(vec![0; usize::from(self.below(64)) * 4]),
                })
            }
        }
    }
}

/// A machine and what is known of it.
struct World {
    machine: Machine,
    durable: bool,
    now: Time,
    token: u64,
    under_way: usize,
    answered: BTreeSet<u64>,
    /// Names of queues and ids that were answered.
    given_out: BTreeSet<(String, u64)>,
    sends: BTreeMap<u64, String>,
}

impl World {
    fn handle(&mut self, session: u32, command: Command) {
        self.token += 1;
        if let Command::Send(send) = &command {
            self.sends.insert(self.token, send.queue.clone());
        }
        self.machine.handle(self.now, session, self.token, command);
    }

    fn poll(&mut self) {
        let mut effects = Vec::new();
        self.machine.poll_effects(self.now, &mut effects);
        for effect in effects {
            match effect {
                Effect::Answer { answer: Answer::Subscribed { .. }, .. } => {}
                Effect::Answer { token, answer } => {
                    assert!(self.answered.insert(token), "{token} is answered twice");
                    if let Answer::Sent { id: Some(id), again: false } = answer {
                        let place = (self.sends[&token].clone(), id);
                        assert!(self.given_out.insert(place), "{id} is given out twice");
                    }
                }
                Effect::End { token, .. } => {
                    assert!(self.answered.insert(token), "{token} ends twice");
                }
                Effect::Deliver { .. } | Effect::Parked { .. } => {}
            }
        }
        while self.machine.poll_batch().is_some() {
            self.under_way += 1;
        }
    }

    fn stored(&mut self, result: Result<(), StoreError>) {
        if self.under_way > 0 {
            self.under_way -= 1;
            self.machine.handle_stored(self.now, result);
        }
    }

    fn advance(&mut self, ms: u64) {
        self.now = self.now.after_ms(ms);
        // what comes in while others go may be over at once
        for _ in 0..100 {
            self.machine.handle_time(self.now);
            self.poll();
            if self.machine.poll_time().is_none_or(|next| next > self.now) {
                return;
            }
        }
        panic!("it is never done");
    }

    fn settle(&mut self) {
        self.poll();
        while self.under_way > 0 {
            self.stored(Ok(()));
            self.poll();
        }
    }

    /// The counts agree, once nothing is under way.
    fn check(&mut self) -> Vec<QueueInfo> {
        self.settle();
        self.token += 1;
        let list = Command::List { prefix: String::new(), alive: false };
        self.machine.handle(self.now, 99, self.token, list);
        let mut effects = Vec::new();
        self.machine.poll_effects(self.now, &mut effects);
        let queues = effects.into_iter().find_map(|effect| match effect {
            Effect::Answer { answer: Answer::Queues(queues), .. } => Some(queues),
            _ => None,
        });
        let queues = queues.expect("a list is answered at once");
        let bytes: u64 = queues.iter().map(|queue| queue.bytes).sum();
        assert_eq!(bytes, self.machine.bytes());
        for queue in queues.iter().filter(|queue| queue.mode == Mode::Share) {
            assert_eq!(queue.messages, queue.ready + queue.leased, "{queue:?}");
            let counters = queue.counters;
            let gone = counters.acked + counters.expired + counters.dropped + counters.dead;
            assert_eq!(counters.sent, gone + queue.messages, "{queue:?}");
        }
        queues
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let durable = input.byte() & 1 == 0;
    let mut options = MachineOptions::default();
    options.bytes_max = 1_000 + 64 * u64::from(input.byte());
    options.queues_max = 5;
    let now = Time(1_000_000);
    let mut world = World {
        machine: Machine::new(
            options,
            durable,
            Loaded { epoch: durable.into(), ..Loaded::default() },
            now,
        ),
        durable,
        now,
        token: 0,
        under_way: 0,
        answered: BTreeSet::new(),
        given_out: BTreeSet::new(),
        sends: BTreeMap::new(),
    };
    while !input.0.is_empty() {
        let session = 1 + u32::from(input.below(3));
        match input.below(16) {
            0 => world.machine.handle_gone(world.now, session),
            1 | 2 => world.advance(input.below(12).into()),
            3 | 4 => world.stored(Ok(())),
            5 => world.stored(Err(StoreError::Full)),
            6 => world.stored(Err(StoreError::Owed { full: input.byte() & 1 == 0 })),
            7 => drop(world.check()),
            8 => world.poll(),
            _ => {
                let command = input.command();
                world.handle(session, command);
            }
        }
    }
    for session in 1..4 {
        world.machine.handle_gone(world.now, session);
    }
    for queue in world.check() {
        assert_eq!((queue.consumers, queue.leased, queue.owner), (0, 0, None), "{queue:?}");
    }
    assert!(world.durable || world.under_way == 0);
    // every message that nobody holds can be removed, and nothing is left of it
    for queue in QUEUES {
        world.handle(5, Command::Purge { queue: queue.to_owned() });
    }
    world.settle();
    assert_eq!(world.machine.bytes(), 0);
});
