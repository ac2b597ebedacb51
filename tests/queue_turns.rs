//! The machine of queues: who gets a message first, and what becomes of one that is under way.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

#[path = "support_machine/mod.rs"]
mod support_machine;

use nlbus::service::queue::machine::{Answer, Command, Receive, Send};
use nlbus::service::queue::{Mode, Policy, QueueOptions};
use nlbus::store::{Op, SendId, StoreError};
use nlbus::wire::errno;
use support_machine::{Queues, refused, send};

fn receive(queues: &[&str], messages_max: u32, timeout_ms: u64) -> Command {
    let queues = queues.iter().map(|queue| (*queue).to_owned()).collect();
    Command::Receive(Receive { queues, messages_max, timeout_ms, lease_ms: None, auto_ack: false })
}

fn withdraw(queue: &str, send_id: SendId) -> Command {
    Command::Withdraw { queue: queue.to_owned(), send_id }
}

fn numbered(queue: &str, send_id: SendId) -> Command {
    Command::Send(Send { send_id: Some(send_id), ..send(queue, b"x") })
}

const FIRST: SendId = SendId { sender: 5, sequence: 1 };

#[test]
fn a_receive_takes_from_the_first_queue_it_names_that_has_some_whatever_came_before_it() {
    let mut queues = Queues::new(false);
    queues.create("high", QueueOptions::default());
    queues.create("low", QueueOptions::default());
    queues.ask(9, Command::Send(send("high", b"1")));
    // the other one is looked at first for what comes into it in the same turn
    queues.hand_in(9, Command::Send(send("low", b"2")));
    let token = queues.hand_in(1, receive(&["high", "low"], 8, 0));
    queues.poll();
    assert_eq!((queues.delivered(token), queues.answer(token)), (vec![1], Some(Answer::Done)));
    assert_eq!(queues.receive(1, "high"), [0; 0]);
    assert_eq!(queues.receive(1, "low"), [1]);
}

#[test]
fn receives_that_are_over_leave_their_places_to_others_in_every_queue_that_they_named() {
    let mut queues = Queues::new(false);
    let names: Vec<String> = (0..8).map(|n| format!("q{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.iter().for_each(|name| drop(queues.create(name, QueueOptions::default())));
    for session in 1..=40 {
        for _ in 0..200 {
            queues.hand_in(session, receive(&names, 1, 5));
        }
    }
    queues.poll();
    let list = || Command::List { prefix: String::new(), alive: true };
    let takers = |answer| match answer {
        Some(Answer::Queues(infos)) => infos.iter().map(|info| info.consumers).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(takers(queues.ask(99, list())), [8_000; 8]);
    for session in 1..=20 {
        queues.machine.handle_gone(queues.now, session);
    }
    assert_eq!(takers(queues.ask(99, list())), [4_000; 8]);
    queues.now = queues.now.after_ms(5);
    queues.poll();
    assert_eq!(takers(queues.ask(99, list())), [0; 0], "nobody takes from them any more");
    let token = queues.hand_in(50, receive(&["q3"], 1, 1_000));
    queues.ask(9, Command::Send(send("q3", b"x")));
    assert_eq!(queues.delivered(token), [1]);
}

#[test]
fn a_message_that_waits_for_room_can_be_taken_back() {
    let mut queues = Queues::new(false);
    queues.create("q", QueueOptions::default().messages_max(1).policy(Policy::Block));
    queues.ask(9, Command::Send(send("q", b"first")));
    assert_eq!(queues.ask(1, numbered("q", FIRST)), None, "it waits");
    let sent = queues.token;
    assert_eq!(queues.ask(2, withdraw("q", FIRST)), Some(Answer::Done));
    refused(queues.answer(sent), errno::ENOENT);
    queues.ask(9, Command::Purge { queue: "q".to_owned() });
    assert_eq!(queues.receive(1, "q"), [0; 0]);
    refused(queues.ask(2, withdraw("q", FIRST)), errno::ENOENT);
}

#[test]
fn a_message_that_is_being_stored_is_taken_back_before_anybody_gets_it() {
    for outcome in [Ok(()), Err(StoreError::Full)] {
        let mut queues = Queues::new(true);
        queues.create("q", QueueOptions::default());
        queues.store();
        let waits = queues.hand_in(3, receive(&["q"], 1, 60_000));
        let sent = queues.hand_in(1, numbered("q", FIRST));
        let withdrawn = queues.hand_in(1, withdraw("q", FIRST));
        let elsewhere = queues.hand_in(
            1,
            Command::Create(nlbus::service::queue::machine::Create {
                queue: Some("r".to_owned()),
                kind: nlbus::service::queue::Kind::Transient,
                options: None,
                exclusive: false,
            }),
        );
        let wrong = queues.hand_in(1, withdraw("r", FIRST));
        queues.poll();
        assert!(queues.answer(elsewhere).is_some());
        assert_eq!((queues.answer(withdrawn), queues.answer(wrong)), (None, None));
        queues.machine.poll_batch().unwrap();
        queues.machine.handle_stored(queues.now, outcome);
        queues.poll();
        refused(queues.answer(wrong), errno::ENOENT);
        if outcome.is_err() {
            refused(queues.answer(sent), errno::ENOSPC);
            refused(queues.answer(withdrawn), errno::ENOENT);
            continue;
        }
        assert_eq!(queues.answer(sent), Some(Answer::Sent { id: Some(1), again: false }));
        assert_eq!(queues.answer(withdrawn), None, "it is still on disk");
        let gone = queues.store();
        assert!(matches!(gone[..], [Op::Delete { .. }]), "{gone:?}");
        queues.poll();
        assert_eq!(queues.answer(withdrawn), Some(Answer::Done));
        assert_eq!(queues.delivered(waits), [0; 0]);
    }
}

#[test]
fn the_time_of_a_message_that_waits_for_room_runs_from_its_arrival() {
    let mut queues = Queues::new(false);
    queues.create("q", QueueOptions::default().messages_max(1).policy(Policy::Block));
    queues.ask(9, Command::Send(send("q", b"first")));
    for ttl_ms in [5, 50] {
        queues.hand_in(1, Command::Send(Send { ttl_ms: Some(ttl_ms), ..send("q", b"late") }));
    }
    queues.poll();
    queues.now = queues.now.after_ms(20);
    queues.ask(9, Command::Purge { queue: "q".to_owned() });
    queues.machine.handle_time(queues.now);
    queues.poll();
    assert_eq!(queues.receive(1, "q"), [3], "the one with 5 ms is over, the one with 50 is not");
}

#[test]
fn what_only_one_subscriber_of_a_fanout_had_goes_to_those_who_are_there_when_he_goes() {
    let mut queues = Queues::new(false);
    queues.create("all", QueueOptions::default().mode(Mode::Fanout));
    let before = queues.subscribe(1, "all");
    queues.ask(9, Command::Send(send("all", b"x")));
    assert_eq!(queues.delivered(before), [1]);
    // the same program over another link, before the end of the first one is noticed
    let after = queues.subscribe(2, "all");
    queues.machine.handle_gone(queues.now, 1);
    queues.poll();
    assert_eq!(queues.delivered(after), [1]);
    queues.ask(2, Command::Ack { queue: "all".to_owned(), ids: vec![1], force: false });
    assert_eq!(queues.machine.bytes(), 0);
}

#[test]
fn a_dead_letter_does_not_keep_out_what_is_sent_to_a_queue_that_drops_the_oldest() {
    let mut queues = Queues::new(true);
    queues.create("q", QueueOptions::default().dead_letter(Some("dead".into())).attempts_max(1));
    queues.store();
    queues.ask(9, Command::Destroy { queue: "dead".to_owned(), if_empty: false });
    queues.hand_in(9, Command::Send(send("q", b"x")));
    queues.store();
    assert_eq!(queues.receive(1, "q"), [1]);
    queues.create("dead", QueueOptions::default().messages_max(1).policy(Policy::DropOldest));
    queues.nack(1, "q", 1);
    let sent = queues.hand_in(9, Command::Send(send("dead", b"y")));
    queues.store();
    queues.store();
    assert!(matches!(queues.answer(sent), Some(Answer::Sent { .. })), "{:?}", queues.answer(sent));
}

#[test]
fn one_message_is_waited_for_by_so_many_and_no_more() {
    let mut queues = Queues::new(false);
    queues.create("q", QueueOptions::default().messages_max(1).policy(Policy::Block));
    queues.ask(9, Command::Send(send("q", b"first")));
    let first = queues.token + 1;
    while queues.ask(1, numbered("q", FIRST)).is_none() {
        assert!(queues.token < 10_000, "there is no end to it");
    }
    refused(queues.answer(queues.token), errno::EBUSY);
    queues.ask(9, Command::Purge { queue: "q".to_owned() });
    let answered = (first..queues.token).filter_map(|token| queues.answer(token));
    let again = answered.filter(|answer| matches!(answer, Answer::Sent { again: true, .. }));
    assert_eq!(again.count(), 64);
}

#[test]
fn an_ack_that_names_an_unknown_message_too_is_answered_when_the_others_are_gone_from_the_disk() {
    let mut queues = Queues::new(true);
    queues.create("q", QueueOptions::default());
    queues.hand_in(9, Command::Send(send("q", b"x")));
    queues.store();
    assert_eq!(queues.receive(1, "q"), [1]);
    let ids = vec![1, 99];
    let token = queues.hand_in(1, Command::Ack { queue: "q".to_owned(), ids, force: false });
    queues.poll();
    assert_eq!(queues.answer(token), None);
    assert!(matches!(queues.store()[..], [Op::Delete { .. }]));
    queues.poll();
    refused(queues.answer(token), errno::ENOENT);
}

#[test]
fn a_session_has_so_many_subscriptions_to_a_fanout_and_is_done_with_a_message_in_each() {
    let mut queues = Queues::new(false);
    queues.create("all", QueueOptions::default().mode(Mode::Fanout));
    let tokens: Vec<u64> = (0..16).map(|_| queues.subscribe(1, "all")).collect();
    let other = queues.subscribe(2, "all");
    let once_more = queues.subscribe(1, "all");
    refused(queues.answer(once_more), errno::EMFILE);
    queues.ask(9, Command::Send(send("all", b"x")));
    for token in tokens.iter().chain([&other]) {
        assert_eq!(queues.delivered(*token), [1]);
    }
    let ack = || Command::Ack { queue: "all".to_owned(), ids: vec![1], force: false };
    for _ in &tokens {
        assert_eq!(queues.ask(1, ack()), Some(Answer::Done));
    }
    refused(queues.ask(1, ack()), errno::EPERM);
    assert_eq!(queues.ask(2, ack()), Some(Answer::Done));
    refused(queues.ask(2, ack()), errno::ENOENT);
}
