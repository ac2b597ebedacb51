//! The machine of queues where things go wrong: fanouts, dead letters, sessions that end, stores that fail.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

use bytes::Bytes;
use nlbus::service::queue::machine::{
    Answer, Command, Create, Effect, Machine, MachineOptions, Receive, Send, Subscribe,
};
use nlbus::service::queue::{Kind, Mode, QueueOptions};
use nlbus::store::{Loaded, LoadedQueue, Op, Seen, SendId, Time};
use nlbus::wire::errno;

/// A machine, its clock, and what it has said.
struct Queues {
    machine: Machine,
    now: Time,
    token: u64,
    effects: Vec<Effect>,
}

impl Queues {
    fn new(durable: bool) -> Self {
        Self::with(MachineOptions::default(), durable, Loaded::default())
    }

    fn with(options: MachineOptions, durable: bool, loaded: Loaded) -> Self {
        let now = Time(1_000_000);
        let machine = Machine::new(options, durable, loaded, now);
        Self { machine, now, token: 0, effects: Vec::new() }
    }

    /// Hands a command in: its token.
    fn hand_in(&mut self, session: u32, command: Command) -> u64 {
        self.token += 1;
        self.machine.handle(self.now, session, self.token, command);
        self.token
    }

    fn poll(&mut self) {
        self.machine.poll_effects(self.now, &mut self.effects);
    }

    /// Hands a command in and has the machine settle: its answer, if there is one.
    fn ask(&mut self, session: u32, command: Command) -> Option<Answer> {
        let token = self.hand_in(session, command);
        self.poll();
        self.answer(token)
    }

    fn answer(&self, token: u64) -> Option<Answer> {
        let mut answers = self.effects.iter().filter_map(|effect| match effect {
            Effect::Answer { token: of, answer } if *of == token => Some(answer.clone()),
            _ => None,
        });
        let answer = answers.next();
        assert!(answers.next().is_none(), "{token} is answered twice");
        answer
    }

    fn create(&mut self, name: &str, options: QueueOptions) -> Option<Answer> {
        let queue = Some(name.to_owned());
        let (kind, options) = (Kind::Persistent, Some(options));
        self.ask(9, Command::Create(Create { queue, kind, options, exclusive: false }))
    }

    fn subscribe(&mut self, session: u32, queue: &str) -> u64 {
        let queue = queue.to_owned();
        let subscribe = Subscribe { queue, credit: 8, credit_bytes: 1 << 20, lease_ms: None };
        self.ask(session, Command::Subscribe(subscribe));
        self.token
    }

    fn receive(&mut self, session: u32, queue: &str) -> Vec<u64> {
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

    fn nack(&mut self, session: u32, queue: &str, id: u64) -> Option<Answer> {
        self.ask(session, Command::Nack { queue: queue.to_owned(), ids: vec![id] })
    }

    /// Ids of what was delivered for a token.
    fn delivered(&self, token: u64) -> Vec<u64> {
        let delivered = self.effects.iter().filter_map(|effect| match effect {
            Effect::Deliver { token: of, message } if *of == token => Some(message.id),
            _ => None,
        });
        delivered.collect()
    }

    /// Stores what is to be stored.
    fn store(&mut self) -> Vec<Op> {
        let mut ops = Vec::new();
        loop {
            self.poll();
            let Some(batch) = self.machine.poll_batch() else { return ops };
            ops.extend(batch);
            self.machine.handle_stored(self.now, Ok(()));
        }
    }
}

fn send(queue: &str, record: &'static [u8]) -> Send {
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
fn refused(answer: Option<Answer>, number: i32) {
    match answer {
        Some(Answer::Refused(refusal)) => assert_eq!(refusal.errno, number, "{refusal:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_fanouts_dead_letter_for_which_there_is_no_room_stays_with_the_consumer_that_gave_it_back() {
    let mut queues = Queues::new(false);
    queues.create("dead", QueueOptions::default().messages_max(0));
    let options = QueueOptions::default().mode(Mode::Fanout).attempts_max(1).lease_ms(1_000);
    queues.create("news", options.dead_letter(Some("dead".to_owned())));
    let (one, two) = (queues.subscribe(1, "news"), queues.subscribe(2, "news"));
    queues.ask(9, Command::Send(send("news", b"x")));
    queues.now = queues.now.after_ms(10);
    assert_eq!(queues.nack(1, "news", 1), Some(Answer::Done));
    assert_eq!(queues.delivered(one), [1, 1]);
    assert_eq!(queues.delivered(two), [1], "it still holds the first one");
    // the leases end, of which each message has one
    for _ in 0..3 {
        queues.now = queues.now.after_ms(1_000);
        queues.machine.handle_time(queues.now);
        queues.poll();
    }
    let ack = |queue: &str| Command::Ack { queue: queue.to_owned(), ids: vec![1], force: false };
    assert_eq!(queues.ask(1, ack("news")), Some(Answer::Done));
    assert_eq!(queues.ask(2, ack("news")), Some(Answer::Done));
    assert_eq!(queues.machine.bytes(), 0);
}

#[test]
fn a_session_that_only_waits_for_events_leaves_nothing_when_it_ends() {
    let mut queues = Queues::new(false);
    let trace = || Command::Trace { from: 9, timeout_ms: u64::MAX, prefix: String::new() };
    for session in 1..1_000 {
        assert_eq!(queues.ask(session, trace()), None);
        let token = queues.token;
        queues.machine.handle_gone(queues.now, session);
        queues.poll();
        refused(queues.answer(token), errno::EPIPE);
        assert_eq!(queues.machine.poll_time(), None, "it still waits");
    }
}

#[test]
fn a_subscriber_gets_a_message_as_often_as_the_queue_says_and_then_it_is_a_dead_letter() {
    for mode in [Mode::Share, Mode::Fanout] {
        let mut queues = Queues::new(true);
        let options = QueueOptions::default().mode(mode).attempts_max(3);
        queues.create("q", options.dead_letter(Some("dead".to_owned())));
        queues.store();
        let token = queues.subscribe(1, "q");
        queues.hand_in(9, Command::Send(send("q", b"poison")));
        queues.store();
        queues.nack(1, "q", 1);
        queues.nack(1, "q", 1);
        // the third time with its session
        queues.machine.handle_gone(queues.now, 1);
        queues.store();
        assert_eq!(queues.delivered(token), [1, 1, 1], "{mode:?}");
        assert_eq!(queues.receive(2, "dead"), [1], "{mode:?}");
        let left = Command::Destroy { queue: "q".to_owned(), if_empty: true };
        queues.hand_in(9, left);
        queues.store();
        assert_eq!(queues.answer(queues.token), Some(Answer::Done), "{mode:?}");
    }
}

#[test]
fn what_had_been_delivered_too_often_when_the_broker_ended_goes_to_the_dead_letters_at_once() {
    let mut queues = Queues::new(true);
    let options = QueueOptions::default().attempts_max(2).dead_letter(Some("dead".to_owned()));
    queues.create("q", options);
    let mut disk = queues.store();
    queues.hand_in(9, Command::Send(send("q", b"poison")));
    disk.extend(queues.store());
    let mut loaded = loaded(disk);
    loaded.messages[0].attempts = 2;
    let mut queues = Queues::with(MachineOptions::default(), true, loaded);
    let token = queues.subscribe(1, "q");
    queues.store();
    assert_eq!(queues.delivered(token), [0; 0]);
    assert_eq!(queues.receive(2, "dead"), [1]);
}

#[test]
fn a_dead_letter_stays_on_disk_when_a_queue_in_memory_has_the_name() {
    let mut queues = Queues::new(true);
    let options = QueueOptions::default().attempts_max(1).dead_letter(Some("dead".to_owned()));
    queues.create("q", options);
    queues.hand_in(9, Command::Destroy { queue: "dead".to_owned(), if_empty: true });
    queues.store();
    let queue = Some("dead".to_owned());
    let (kind, options) = (Kind::Transient, None);
    queues.ask(5, Command::Create(Create { queue, kind, options, exclusive: false }));
    queues.hand_in(9, Command::Send(send("q", b"poison")));
    queues.store();
    assert_eq!(queues.receive(1, "q"), [1]);
    queues.nack(1, "q", 1);
    let ops = queues.store();
    assert!(!ops.iter().any(|op| matches!(op, Op::Delete { .. })), "{ops:?}");
    assert_eq!(queues.receive(1, "q"), [1]);
}

/// What a store has after these changes.
fn loaded(ops: Vec<Op>) -> Loaded {
    let mut loaded = Loaded { epoch: 2, id_floor: 1, ..Loaded::default() };
    for op in ops {
        match op {
            Op::Create { queue, name, options, first_id } => {
                loaded.queues.push(LoadedQueue { queue, name, options, next_id: first_id });
            }
            Op::Put(message) => {
                if let Some(SendId { sender, sequence }) = message.send_id {
                    let mut seen = Seen::default();
                    seen.insert(sequence);
                    loaded.senders.push((sender, seen));
                }
                loaded.last_key = message.key;
                loaded.messages.push(message);
            }
            other => panic!("{other:?}"),
        }
    }
    loaded
}
