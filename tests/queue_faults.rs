//! The machine of queues where things go wrong: fanouts, dead letters, sessions that end, stores that fail.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

#[path = "support_machine/mod.rs"]
mod support_machine;

use nlbus::service::queue::machine::{
    Answer, Command, Create, ENTRY_BYTES, LANE_BYTES, MachineOptions, Receive, Send,
};
use nlbus::service::queue::{Kind, Mode, Policy, QueueOptions};
use nlbus::store::{Loaded, LoadedQueue, Op, Seen, SendId, StoreError};
use nlbus::wire::errno;
use support_machine::{Queues, refused, send};

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

#[test]
fn what_a_sender_sent_again_over_another_link_outlives_the_end_of_the_first() {
    let mut queues = Queues::new(false);
    queues.create("q", QueueOptions::default().messages_max(1).policy(Policy::Block));
    queues.ask(9, Command::Send(send("q", b"first")));
    let send_id = Some(SendId { sender: 5, sequence: 1 });
    let command = || Command::Send(Send { send_id, ..send("q", b"second") });
    assert_eq!(queues.ask(1, command()), None, "it waits for room");
    let before = queues.token;
    assert_eq!(queues.ask(2, command()), None, "it waits for the first one");
    let after = queues.token;
    queues.machine.handle_gone(queues.now, 1);
    queues.poll();
    assert_eq!((queues.answer(before), queues.answer(after)), (None, None));
    queues.ask(9, Command::Purge { queue: "q".to_owned() });
    assert_eq!(queues.answer(after), Some(Answer::Sent { id: Some(2), again: false }));
    assert_eq!(queues.receive(3, "q"), [2]);
    // and the end of the second is the end of what waits
    assert_eq!(queues.ask(2, Command::Send(send("q", b"third"))), None);
    queues.machine.handle_gone(queues.now, 2);
    queues.poll();
    refused(queues.answer(queues.token), errno::EPIPE);
}

#[test]
fn a_message_that_waits_for_room_is_not_left_to_a_session_that_has_gone_before() {
    let mut queues = Queues::new(false);
    queues.create("q", QueueOptions::default().messages_max(1).policy(Policy::Block));
    queues.ask(9, Command::Send(send("q", b"first")));
    let send_id = Some(SendId { sender: 5, sequence: 1 });
    for session in 1..=4 {
        assert_eq!(queues.ask(session, Command::Send(Send { send_id, ..send("q", b"") })), None);
    }
    let tokens = queues.token - 3..=queues.token;
    for session in [3, 2, 1, 4] {
        queues.machine.handle_gone(queues.now, session);
    }
    queues.ask(9, Command::Purge { queue: "q".to_owned() });
    assert_eq!(queues.receive(9, "q"), [0; 0], "nobody is left who sent it");
    for token in tokens {
        let answer = queues.answer(token);
        assert!(matches!(answer, None | Some(Answer::Refused(_))), "{token}: {answer:?}");
    }
    // so it never came, and can come
    let again = queues.ask(5, Command::Send(Send { send_id, ..send("q", b"") }));
    assert_eq!(again, Some(Answer::Sent { id: Some(2), again: false }));
}

#[test]
fn messages_without_a_byte_count_too_and_so_do_those_that_wait_and_those_of_each_consumer() {
    let mut options = MachineOptions::default();
    options.bytes_max = 100 * (ENTRY_BYTES + LANE_BYTES);
    let mut fit = Vec::new();
    for (policy, mode, consumers) in [
        (Policy::Reject, Mode::Share, 0),
        (Policy::Block, Mode::Share, 0),
        (Policy::Reject, Mode::Fanout, 16),
    ] {
        let mut queues = Queues::with(options, false, Loaded::default());
        let messages_max = if policy == Policy::Block { 0 } else { 1_000_000 };
        let options = QueueOptions::default().policy(policy).mode(mode);
        queues.create("q", options.messages_max(messages_max));
        for session in 0..consumers {
            queues.subscribe(session, "q");
        }
        let count = (0..1_000).take_while(|_| {
            let answer = queues.ask(9, Command::Send(send("q", b"")));
            !matches!(answer, Some(Answer::Refused(_)))
        });
        fit.push(count.count() as u64);
        refused(queues.answer(queues.token), errno::ENOBUFS);
        // all of it is given back
        queues.ask(9, Command::Destroy { queue: "q".to_owned(), if_empty: false });
        queues.create("r", QueueOptions::default());
        for _ in 0..100 {
            let answer = queues.ask(9, Command::Send(send("r", b"")));
            assert!(matches!(answer, Some(Answer::Sent { .. })), "{answer:?}");
        }
    }
    let waiting = 100 * (ENTRY_BYTES + LANE_BYTES) / ENTRY_BYTES;
    assert!(fit[0] == 100 && fit[1] <= waiting && fit[1] >= 100 && fit[2] < 26, "{fit:?}");
}

#[test]
fn a_queue_that_is_being_made_takes_as_many_as_it_will_hold_and_is_told_of_once_it_is_there() {
    let mut queues = Queues::new(true);
    for _ in 0..5_000 {
        queues.hand_in(9, Command::Send(Send { create: true, ..send("q", b"x") }));
    }
    let create =
        Create { queue: Some("q".into()), kind: Kind::Persistent, options: None, exclusive: false };
    assert_eq!(queues.ask(1, Command::Create(create)), None, "it is not on disk yet");
    let created = queues.token;
    queues.store();
    for token in 1..=5_000 {
        let answer = queues.answer(token);
        assert_eq!(answer, Some(Answer::Sent { id: Some(token), again: false }));
    }
    assert!(matches!(queues.answer(created), Some(Answer::Created { new: false, .. })));
}

#[test]
fn a_message_that_was_stored_before_a_restart_can_be_withdrawn_after_it() {
    let mut queues = Queues::new(true);
    queues.create("q", QueueOptions::default());
    let mut disk = queues.store();
    let send_id = SendId { sender: 5, sequence: 7 };
    let command = || Command::Send(Send { send_id: Some(send_id), ..send("q", b"x") });
    queues.hand_in(1, command());
    disk.extend(queues.store());
    let mut queues = Queues::with(MachineOptions::default(), true, loaded(disk));
    let again = queues.ask(1, command());
    assert_eq!(again, Some(Answer::Sent { id: Some(1), again: true }));
    queues.hand_in(1, Command::Withdraw { queue: "q".to_owned(), send_id });
    queues.store();
    assert_eq!(queues.answer(queues.token), Some(Answer::Done));
    assert_eq!(queues.machine.bytes(), 0);
}

#[test]
fn nothing_is_dropped_for_a_message_that_does_not_fit_all_the_same() {
    let mut queues = Queues::new(false);
    queues.create("q", QueueOptions::default().bytes_max(10).policy(Policy::DropOldest));
    queues.ask(9, Command::Send(send("q", b"8_bytes_")));
    assert_eq!(queues.receive(1, "q"), [1]);
    queues.ask(9, Command::Send(send("q", b"2b")));
    refused(queues.ask(9, Command::Send(send("q", b"9_bytes__"))), errno::ENOBUFS);
    assert!(matches!(queues.ask(9, Command::Send(send("q", b"b2"))), Some(Answer::Sent { .. })));
    assert_eq!(queues.receive(1, "q"), [3], "the second made room for the third");
}

#[test]
fn what_the_store_refuses_was_never_sent() {
    let mut queues = Queues::new(true);
    queues.create("q", QueueOptions::default());
    queues.store();
    queues.hand_in(9, Command::Send(send("q", b"x")));
    queues.poll();
    let trace = || Command::Trace { from: 0, timeout_ms: 0, prefix: String::new() };
    assert_eq!(queues.ask(9, trace()), Some(Answer::Trace { next: 1, events: Vec::new() }));
    queues.machine.poll_batch().unwrap();
    queues.machine.handle_stored(queues.now, Err(StoreError::Full));
    let list = Command::List { prefix: String::new(), alive: false };
    let Some(Answer::Queues(infos)) = queues.ask(9, list) else { panic!("a list") };
    assert_eq!((infos[0].counters.sent, infos[0].counters.refused), (0, 1));
    assert_eq!(queues.machine.bytes(), 0);
}

#[test]
fn what_is_taken_for_good_is_gone_from_the_disk_before_it_is_handed_out() {
    for outcome in [Ok(()), Err(StoreError::Io), Err(StoreError::Owed { full: false })] {
        let mut queues = Queues::new(true);
        queues.create("q", QueueOptions::default());
        queues.hand_in(9, Command::Send(send("q", b"x")));
        queues.hand_in(9, Command::Send(send("q", b"y")));
        queues.store();
        let taking = Receive {
            queues: vec!["q".to_owned()],
            messages_max: 8,
            timeout_ms: 0,
            lease_ms: None,
            auto_ack: true,
        };
        let token = queues.hand_in(1, Command::Receive(taking));
        queues.poll();
        assert_eq!((queues.delivered(token), queues.answer(token)), (vec![], None));
        let ops = queues.machine.poll_batch().unwrap();
        assert!(matches!(ops[..], [Op::Delete { .. }, Op::Delete { .. }]), "{ops:?}");
        assert_eq!(queues.receive(2, "q"), [0; 0], "nobody else gets them meanwhile");
        queues.machine.handle_stored(queues.now, outcome);
        queues.poll();
        assert_eq!(queues.delivered(token), [1, 2]);
        assert_eq!(queues.answer(token), Some(Answer::Done));
    }
}

#[test]
fn an_ack_that_the_store_could_not_write_down_is_refused_and_the_message_does_not_come_again() {
    let mut queues = Queues::new(true);
    queues.create("q", QueueOptions::default());
    queues.hand_in(9, Command::Send(send("q", b"x")));
    queues.store();
    for (at, error) in [StoreError::Full, StoreError::Owed { full: true }].into_iter().enumerate() {
        queues.hand_in(9, Command::Send(send("q", b"x")));
        queues.store();
        let id = queues.receive(1, "q")[0];
        queues.hand_in(1, Command::Ack { queue: "q".to_owned(), ids: vec![id], force: false });
        queues.poll();
        queues.machine.poll_batch().unwrap();
        queues.machine.handle_stored(queues.now, Err(error));
        queues.poll();
        match at {
            0 => assert_eq!(queues.answer(queues.token), Some(Answer::Done)),
            _ => refused(queues.answer(queues.token), errno::ENOSPC),
        }
        assert_eq!(
            queues.nack(1, "q", id).map(|_| queues.receive(2, "q").contains(&id)),
            Some(false)
        );
    }
}

#[test]
fn two_queues_that_are_each_others_dead_letters_do_not_make_a_message_longer_each_time() {
    let mut queues = Queues::new(false);
    let options = QueueOptions::default().attempts_max(1);
    queues.create("a", options.clone().dead_letter(Some("b".to_owned())));
    queues.ask(9, Command::Destroy { queue: "b".to_owned(), if_empty: true });
    queues.create("b", options.ttl_ms_max(50).dead_letter(Some("a".to_owned())));
    queues.ask(9, Command::Send(send("a", b"")));
    let mut lengths = Vec::new();
    for id in 1..4 {
        for queue in ["a", "b"] {
            assert_eq!(queues.receive(1, queue), [id]);
            queues.nack(1, queue, id);
        }
        lengths.push(queues.machine.bytes());
    }
    assert_eq!((lengths[0], lengths[1]), (lengths[1], lengths[2]));
    // what goes to `b` is there as long as what is sent there
    assert_eq!(queues.receive(1, "a"), [4]);
    queues.nack(1, "a", 4);
    queues.now = queues.now.after_ms(50);
    queues.machine.handle_time(queues.now);
    queues.poll();
    assert_eq!(queues.machine.bytes(), 0);
}

#[test]
fn a_queue_in_memory_gives_out_no_id_that_one_of_its_name_gave_out_however_long_they_live() {
    let mut queues = Queues::new(false);
    for expected in 1..5 {
        let queue = Some("q".to_owned());
        let kind = if expected % 2 == 0 { Kind::Persistent } else { Kind::Transient };
        queues.ask(1, Command::Create(Create { queue, kind, options: None, exclusive: true }));
        let answer = queues.ask(1, Command::Send(send("q", b"x")));
        assert_eq!(answer, Some(Answer::Sent { id: Some(expected), again: false }));
        queues.ask(1, Command::Destroy { queue: "q".to_owned(), if_empty: false });
    }
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
