//! The machine of queues under a test's control: commands in, effects out, a store that does as it is told.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

use bytes::Bytes;
use nlbus::service::queue::machine::{
    Answer, Command, Create, Effect, Machine, MachineOptions, Receive, Send, Subscribe,
};
use nlbus::service::queue::{Kind, QueueOptions};
use nlbus::store::{Loaded, Op, Time};

/// A machine, its clock, and what it has said.
pub(crate) struct Queues {
    pub(crate) machine: Machine,
    pub(crate) now: Time,
    pub(crate) token: u64,
    pub(crate) effects: Vec<Effect>,
}

impl Queues {
    pub(crate) fn new(durable: bool) -> Self {
        Self::with(MachineOptions::default(), durable, Loaded::default())
    }

    pub(crate) fn with(options: MachineOptions, durable: bool, loaded: Loaded) -> Self {
        let now = Time(1_000_000);
        let machine = Machine::new(options, durable, loaded, now);
        Self { machine, now, token: 0, effects: Vec::new() }
    }

    /// Hands a command in: its token.
    pub(crate) fn hand_in(&mut self, session: u32, command: Command) -> u64 {
        self.token += 1;
        self.machine.handle(self.now, session, self.token, command);
        self.token
    }

    pub(crate) fn poll(&mut self) {
        self.machine.poll_effects(self.now, &mut self.effects);
    }

    /// Hands a command in and has the machine settle: its answer, if there is one.
    pub(crate) fn ask(&mut self, session: u32, command: Command) -> Option<Answer> {
        let token = self.hand_in(session, command);
        self.poll();
        self.answer(token)
    }

    pub(crate) fn answer(&self, token: u64) -> Option<Answer> {
        let mut answers = self.effects.iter().filter_map(|effect| match effect {
            Effect::Answer { token: of, answer } if *of == token => Some(answer.clone()),
            _ => None,
        });
        let answer = answers.next();
        assert!(answers.next().is_none(), "{token} is answered twice");
        answer
    }

    pub(crate) fn create(&mut self, name: &str, options: QueueOptions) -> Option<Answer> {
        let queue = Some(name.to_owned());
        let (kind, options) = (Kind::Persistent, Some(options));
        self.ask(9, Command::Create(Create { queue, kind, options, exclusive: false }))
    }

    pub(crate) fn subscribe(&mut self, session: u32, queue: &str) -> u64 {
        let queue = queue.to_owned();
        let subscribe = Subscribe { queue, credit: 8, credit_bytes: 1 << 20, lease_ms: None };
        self.ask(session, Command::Subscribe(subscribe));
        self.token
    }

    pub(crate) fn receive(&mut self, session: u32, queue: &str) -> Vec<u64> {
        let receive = Receive {
            queues: vec![queue.to_owned()],
            messages_max: 1_000,
            timeout_ms: 0,
            lease_ms: None,
            auto_ack: false,
        };
        let token = self.hand_in(session, Command::Receive(receive));
        self.poll();
        self.delivered(token)
    }

    pub(crate) fn nack(&mut self, session: u32, queue: &str, id: u64) -> Option<Answer> {
        self.ask(session, Command::Nack { queue: queue.to_owned(), ids: vec![id] })
    }

    /// Ids of what was delivered for a token.
    pub(crate) fn delivered(&self, token: u64) -> Vec<u64> {
        let delivered = self.effects.iter().filter_map(|effect| match effect {
            Effect::Deliver { token: of, message } if *of == token => Some(message.id),
            _ => None,
        });
        delivered.collect()
    }

    /// Stores what is to be stored.
    pub(crate) fn store(&mut self) -> Vec<Op> {
        let mut ops = Vec::new();
        loop {
            self.poll();
            let Some(batch) = self.machine.poll_batch() else { return ops };
            ops.extend(batch);
            self.machine.handle_stored(self.now, Ok(()));
        }
    }
}

pub(crate) fn send(queue: &str, record: &'static [u8]) -> Send {
    Send {
        queue: queue.to_owned(),
        create: false,
        send_id: None,
        ttl_ms: None,
        reply_to: None,
        record: Bytes::from_static(record),
    }
}

#[track_caller]
pub(crate) fn refused(answer: Option<Answer>, number: i32) {
    match answer {
        Some(Answer::Refused(refusal)) => assert_eq!(refusal.errno, number, "{refusal:?}"),
        other => panic!("{other:?}"),
    }
}
