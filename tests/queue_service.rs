//! Queues over the bus: what a program sees, through real sockets.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_queue;

use std::time::Duration;

use bytes::Bytes;
use nlbus::endpoint::{Endpoint, RequestOptions};
use nlbus::node::NodeOptions;
use nlbus::service::queue::machine::{Command, Service, Subscribe, What};
use nlbus::service::queue::protocol::{Body, Said, emit_command, read_answers};
use nlbus::service::queue::{
    Mode, OutMessage, Policy, QueueError, QueueOptions, ReceiveOptions, SubscribeOptions,
};
use nlbus::store::SendId;
use nlbus::wire::errno;
use support_queue::{Broker, HANG, in_time, next};

fn now() -> ReceiveOptions {
    ReceiveOptions::default().messages_max(1_000)
}

fn waiting() -> ReceiveOptions {
    now().wait(HANG)
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, QueueError>, number: i32) {
    assert_eq!(outcome.unwrap_err().errno(), Some(number));
}

#[tokio::test]
async fn a_queue_is_made_once_listed_and_destroyed() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    assert!(client.create("jobs", None).await.unwrap());
    assert!(!client.create("jobs", None).await.unwrap(), "the second time it is there");
    assert!(client.create("jobs/old", None).await.unwrap());
    refused(
        client.create("jobs", Some(QueueOptions::default().messages_max(3))).await,
        errno::EEXIST,
    );
    refused(client.create("", None).await, errno::EINVAL);
    refused(client.create(&"x".repeat(256), None).await, errno::EINVAL);
    assert!(client.create(&"x".repeat(255), None).await.unwrap());
    let names = |queues: Vec<nlbus::service::queue::machine::QueueInfo>| -> Vec<String> {
        queues.into_iter().map(|queue| queue.name.to_string()).collect()
    };
    assert_eq!(names(client.list("jobs", false).await.unwrap()), ["jobs", "jobs/old"]);
    assert!(client.list("jobs", true).await.unwrap().is_empty(), "nobody listens");
    client.send("jobs", "x").await.unwrap();
    refused(client.destroy("jobs", true).await, errno::EBUSY);
    client.destroy("jobs", false).await.unwrap();
    refused(client.destroy("jobs", false).await, errno::ENOENT);
    assert_eq!(names(client.list("jobs", false).await.unwrap()), ["jobs/old"]);
}

#[tokio::test]
async fn a_transient_queue_is_its_owners_alone_and_gone_with_it() {
    let broker = Broker::start(None).await;
    let (owner, other) = (broker.client().await, broker.client().await);
    let name = owner.create_transient(None, None).await.unwrap();
    refused(other.create_transient(Some(&name), None).await, errno::EEXIST);
    other.send(&name, "an answer").await.unwrap();
    refused(other.receive(&[&name], now()).await, errno::EPERM);
    refused(other.destroy(&name, false).await, errno::EPERM);
    refused(other.purge(&name).await, errno::EPERM);
    refused(other.ack_ids(&name, &[1], true).await, errno::EPERM);
    assert_eq!(owner.receive(&[&name], now()).await.unwrap().len(), 1);
    drop(owner);
    while in_time(other.list(&name, false)).await.unwrap().len() == 1 {
        tokio::task::yield_now().await;
    }
    refused(other.send(&name, "too late").await, errno::ENOENT);
}

#[tokio::test]
async fn messages_come_in_order_with_all_that_was_sent_whatever_the_bytes() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    let bytes: Bytes = (0..=255).collect();
    let message = OutMessage::new(bytes.clone())
        .correlation(&b"c\0rr"[..])
        .reply_to("back")
        .header("a", &b"1"[..])
        .header("a", &b"\0\xff"[..]);
    client.send("q", message).await.unwrap();
    for n in 0..5 {
        client.send("q", format!("job{n}").as_str()).await.unwrap();
    }
    let many = (0..700).map(|n| OutMessage::new(vec![n as u8; 200]));
    let sent = client.send_all("many", many.map(OutMessage::create)).await.unwrap();
    let ids: Vec<_> = sent.iter().map(|sent| sent.id.unwrap()).collect();
    assert_eq!(ids, (1..=700).collect::<Vec<u64>>());
    for too_long in [
        OutMessage::from("x").header("name", vec![0; 65_531 - 4]),
        OutMessage::from("x").correlation(vec![0; 65_532]),
    ] {
        refused(client.send("q", too_long.clone()).await, errno::EMSGSIZE);
        refused(client.send_all("q", [too_long]).await, errno::EMSGSIZE);
    }
    let long: Bytes = (0..3_000_000_u32).map(|n| n as u8).collect();
    client.send("q", long.clone()).await.unwrap();
    let messages = client.receive(&["q"], now()).await.unwrap();
    let first = &messages[0];
    assert_eq!((first.payload(), &first.record.correlation[..]), (&bytes, &b"c\0rr"[..]));
    assert_eq!(first.record.reply_to.as_deref(), Some("back"));
    assert_eq!(first.record.headers.len(), 2);
    assert_eq!((first.id, first.attempt), (1, 1));
    let jobs: Vec<_> = messages[1..6].iter().map(|message| message.payload().clone()).collect();
    assert_eq!(jobs, ["job0", "job1", "job2", "job3", "job4"]);
    let messages = match messages.get(6) {
        Some(last) => vec![last.clone()],
        None => client.receive(&["q"], now()).await.unwrap(),
    };
    assert_eq!(messages[0].payload(), &long);
}

#[tokio::test]
async fn what_cannot_be_done_is_said() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    refused(client.send("none", "x").await, errno::ENOENT);
    assert!(!client.send("made", OutMessage::from("x").create()).await.unwrap().again);
    refused(client.receive(&["none"], now()).await, errno::ENOENT);
    refused(client.ack_ids("made", &[99], false).await, errno::ENOENT);
    refused(client.ack_ids("made", &[1], false).await, errno::EPERM);
    refused(client.purge("none").await, errno::ENOENT);
    let other = broker.client().await;
    let held = other.receive(&["made"], now()).await.unwrap();
    refused(client.ack(&held[0]).await, errno::EPERM);
    refused(client.nack(&held[0]).await, errno::EPERM);
    client.ack_ids("made", &[held[0].id], true).await.unwrap();
    refused(other.ack(&held[0]).await, errno::ENOENT);
}

#[tokio::test]
async fn bytes_that_are_no_request_are_answered_with_an_error_and_harm_nobody() {
    let broker = Broker::start(None).await;
    let endpoint = Endpoint::connect(&broker.url).await.unwrap();
    let mut header = [0_u8; 20];
    header[0] = 20;
    header[4] = 0x20;
    for (command, version) in [(0, 1), (250, 1), (1, 9), (4, 1), (5, 1), (6, 1)] {
        let mut message = header;
        message[16] = command;
        message[17] = version;
        let answer = in_time(endpoint.call("queue", &message)).await.unwrap();
        assert_eq!(answer[4], 2, "NLMSG_ERROR");
        assert!(i32::from_le_bytes(answer[16..20].try_into().unwrap()) < 0);
    }
    for body in [&b"GET / HTTP/1.1"[..], &[0xff; 40], &[16, 0, 0, 0, 0x20, 0]] {
        let answer = in_time(endpoint.call("queue", body)).await.unwrap();
        assert_eq!(answer[4], 2, "NLMSG_ERROR");
    }
    broker.client().await.create("alive", None).await.unwrap();
}

#[tokio::test]
async fn two_queues_in_one_receive_lose_nothing_and_the_wait_ends_with_the_first_message() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    for queue in ["m1", "m2"] {
        client.create(queue, None).await.unwrap();
    }
    for _ in 0..4 {
        client.send("m1", "one").await.unwrap();
    }
    let options = now().messages_max(2);
    assert_eq!(client.receive(&["m1", "m2"], options).await.unwrap().len(), 2);
    client.send("m2", "two").await.unwrap();
    let mut found = Vec::new();
    while found.len() < 3 {
        let messages = client.receive(&["m1", "m2"], options).await.unwrap();
        found.extend(messages.into_iter().map(|message| message.payload().clone()));
    }
    assert_eq!(found.iter().filter(|found| *found == "two").count(), 1);

    let receiver = client.clone();
    let blocked = tokio::spawn(async move { receiver.receive(&["m1", "m2"], waiting()).await });
    while client.list("m", true).await.unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
    client.send("m2", "late").await.unwrap();
    let messages = in_time(blocked).await.unwrap().unwrap();
    assert_eq!(messages[0].payload(), "late");
    assert!(client.list("m", true).await.unwrap().is_empty(), "nobody listens any more");
    let none = now().wait(Duration::from_millis(1));
    assert!(client.receive(&["m1", "m2"], none).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_not_acknowledged_comes_again_with_a_count_and_then_goes_to_the_dead_letters() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    let options = QueueOptions::default().dead_letter(Some("dead".to_owned())).attempts_max(3);
    client.create("q", Some(options)).await.unwrap();
    client.send("q", OutMessage::from("poison").header("k", &b"v"[..])).await.unwrap();
    let short = waiting().lease(Duration::from_millis(20));
    // one: the lease ends
    let first = client.receive(&["q"], short).await.unwrap();
    assert_eq!(first[0].attempt, 1);
    // two: given back; the late one may still be acknowledged only by who holds it now
    let second = client.receive(&["q"], waiting()).await.unwrap();
    assert_eq!((second[0].id, second[0].attempt), (first[0].id, 2));
    client.nack(&second[0]).await.unwrap();
    // three: its holder goes
    let other = broker.client().await;
    assert_eq!(other.receive(&["q"], waiting()).await.unwrap()[0].attempt, 3);
    drop(other);
    let dead = client.receive(&["dead"], waiting()).await.unwrap();
    assert_eq!(dead[0].payload(), "poison");
    for (name, value) in [("dead-queue", "q"), ("dead-attempts", "3"), ("k", "v")] {
        assert_eq!(dead[0].header(name).unwrap(), value, "{name}");
    }
    assert!(client.receive(&["q"], now()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lease_can_be_extended_and_an_ack_that_comes_late_counts_if_nobody_else_holds_it() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    client.send("q", "x").await.unwrap();
    let held = client.receive(&["q"], now().lease(Duration::from_millis(1))).await.unwrap();
    if client.extend(&held[0], HANG).await.is_ok() {
        assert!(client.receive(&["q"], now()).await.unwrap().is_empty());
    }
    client.ack(&held[0]).await.unwrap();
    assert!(client.receive(&["q"], now()).await.unwrap().is_empty());
}

#[tokio::test]
async fn consumers_share_the_work_within_their_credit() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    let (one, two) = (broker.client().await, broker.client().await);
    let credit = SubscribeOptions::default().credit(2);
    let mut consumers =
        [one.subscribe("q", credit).await.unwrap(), two.subscribe("q", credit).await.unwrap()];
    assert_eq!(client.list("q", true).await.unwrap()[0].consumers, 2);
    for n in 0..6 {
        client.send("q", format!("{n}").as_str()).await.unwrap();
    }
    let mut held = Vec::new();
    for consumer in &mut consumers {
        held.push([next(consumer).await, next(consumer).await]);
    }
    let info = client.list("q", false).await.unwrap().remove(0);
    assert_eq!((info.ready, info.leased), (2, 4));
    one.ack(&held[0][0]).await.unwrap();
    let fifth = next(&mut consumers[0]).await;
    assert_eq!(fifth.payload(), "4");
    // the other goes: what it held comes again, first
    drop(consumers);
    drop(two);
    let again = client.receive(&["q"], waiting()).await.unwrap();
    assert_eq!(again[0].attempt, 2);
}

#[tokio::test]
async fn every_consumer_of_a_fanout_gets_every_message() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    let options = QueueOptions::default().mode(Mode::Fanout);
    client.create("news", Some(options)).await.unwrap();
    client.send("news", "0").await.unwrap();
    let clients = [broker.client().await, broker.client().await, broker.client().await];
    let mut consumers = Vec::new();
    for client in &clients {
        consumers.push(client.subscribe("news", SubscribeOptions::default()).await.unwrap());
    }
    for n in 1..4 {
        client.send("news", format!("{n}").as_str()).await.unwrap();
    }
    for (at, (consumer, client)) in consumers.iter_mut().zip(&clients).enumerate() {
        for n in (if at == 0 { 0 } else { 1 })..4 {
            let message = next(consumer).await;
            assert_eq!(message.payload(), format!("{n}").as_str());
            client.ack(&message).await.unwrap();
        }
    }
    assert_eq!(client.list("news", false).await.unwrap()[0].messages, 0);
    refused(client.receive(&["news"], now()).await, errno::EOPNOTSUPP);
}

#[tokio::test]
async fn limits_are_kept_and_a_full_queue_hurts_no_other() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    let small = QueueOptions::default().messages_max(2).message_bytes_max(100);
    client.create("small", Some(small.clone())).await.unwrap();
    client.create("other", None).await.unwrap();
    refused(client.send("small", &[0_u8; 101][..]).await, errno::EMSGSIZE);
    for _ in 0..2 {
        client.send("small", "x").await.unwrap();
    }
    refused(client.send("small", "x").await, errno::ENOBUFS);

    client.create("block", Some(small.policy(Policy::Block))).await.unwrap();
    let blocked: Vec<_> = (0..20)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.send("block", format!("{n}").as_str()).await })
        })
        .collect();
    client.send("other", "goes on").await.unwrap();
    let mut got = 0;
    while got < 20 {
        for message in client.receive(&["block"], waiting()).await.unwrap() {
            client.ack(&message).await.unwrap();
            got += 1;
        }
    }
    for send in blocked {
        assert!(!in_time(send).await.unwrap().unwrap().again);
    }
}

#[tokio::test]
async fn a_message_is_dropped_when_its_time_is_over() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    client.send("q", OutMessage::from("short").ttl(Duration::from_millis(1))).await.unwrap();
    client.send("q", "long").await.unwrap();
    while client.list("q", false).await.unwrap()[0].messages == 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(client.receive(&["q"], now()).await.unwrap()[0].payload(), "long");
    let (_, events) = client.trace(0, Duration::ZERO, "q").await.unwrap();
    assert!(events.iter().any(|event| event.what == What::Expired && event.id == 1));
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_told_so_when_it_does_and_others_get_what_it_held() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("unix://{}", directory.path().join("socket").display()).parse().unwrap();
    let mut options = NodeOptions::default();
    options.outbox_bytes_max = 256 << 10;
    options.reply_hold_max = HANG;
    let broker = Broker::start_with(None, &url, options).await;
    let client = broker.inside();
    client.create("q", None).await.unwrap();
    let endpoint = Endpoint::connect(&broker.url).await.unwrap();
    let mut body = Body::default();
    let queue = "q".to_owned();
    let subscribe = Subscribe { queue, credit: 65_536, credit_bytes: 1 << 30, lease_ms: None };
    emit_command(&Command::Subscribe(subscribe), 7, &mut body);
    let options = RequestOptions::default().deadline(None);
    let mut answers = in_time(endpoint.ask_with("queue", body.as_bytes(), options)).await.unwrap();
    while client.list("q", true).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let mut sent = 0;
    while client.list("q", true).await.unwrap().len() == 1 {
        for _ in 0..200 {
            client.send("q", &[7; 1_000][..]).await.unwrap();
            sent += 1;
        }
    }
    let mut said = Vec::new();
    while let Some(body) = in_time(answers.next()).await {
        read_answers(&body.unwrap(), |_, answer| match answer {
            Said::Message(message) => assert!(message.id <= sent),
            answer => said.push(answer),
        })
        .unwrap();
    }
    assert!(matches!(said.as_slice(), [Said::Subscribed(_), Said::Refused(_)]), "{said:?}");
    let info = client.list("q", false).await.unwrap().remove(0);
    assert_eq!((info.ready, info.leased), (sent, 0));
}

#[tokio::test]
async fn diagnostics_of_long_messages_fit_in_an_answer() {
    let broker = Broker::start(None).await;
    let client = broker.inside();
    let messages = (0..400).map(|_| OutMessage::new(vec![7; 60_000]).create());
    client.send_all("q", messages).await.unwrap();
    let (_, queues) = client.diagnostics("", 1_000, u32::MAX).await.unwrap();
    let entries = &queues[0].entries;
    let shown: usize = entries.iter().map(|entry| entry.record.len()).sum();
    assert_eq!(entries.len(), 400);
    assert!((2 << 20..=4 << 20).contains(&shown), "{shown} bytes are shown");
}

#[tokio::test]
async fn diagnostics_tell_who_waits_and_whether_anybody_serves() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    client.send("q", OutMessage::from("hello").reply_to("nobody")).await.unwrap();
    let (info, queues) = client.diagnostics("", 10, 1_000).await.unwrap();
    assert!(!info.durable && info.queues == 1 && info.now >= info.started);
    assert_eq!(queues[0].service, Service::NeverStarted);
    let entry = &queues[0].entries[0];
    assert_eq!((entry.id, entry.reply_alive, entry.holder), (1, Some(false), None));
    assert!(entry.record.windows(5).any(|window| window == b"hello"));
    let (_, queues) = client.diagnostics("", 10, 0).await.unwrap();
    assert!(queues[0].entries[0].record.is_empty(), "payloads are shown only when asked for");

    let consumer = client.subscribe("q", SubscribeOptions::default()).await.unwrap();
    assert_eq!(client.list("q", true).await.unwrap()[0].service, Service::Running);
    drop(consumer);
    while client.list("q", false).await.unwrap()[0].service != Service::SeemsDead {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_trace_waits_for_what_happens_next() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    let (from, events) = client.trace(0, Duration::ZERO, "").await.unwrap();
    assert!(events.is_empty());
    let follower = client.clone();
    let waits = tokio::spawn(async move { follower.trace(from, HANG, "q").await });
    client.send("q", &[b'x'; 1_000][..]).await.unwrap();
    let (next, events) = in_time(waits).await.unwrap().unwrap();
    assert_eq!((events.len(), events[0].what, next), (1, What::Sent, from + 1));
    assert_eq!(events[0].record.len(), 256, "cut");
}

#[tokio::test]
async fn a_message_sent_again_is_stored_once_over_any_number_of_connections() {
    let broker = Broker::start(None).await;
    broker.client().await.create("q", None).await.unwrap();
    // 100,000 messages three times over 20 connections, each a third of the way into the next
    let (count, connections) = (100_000_u64, 20_u64);
    let mut fresh = 0_u64;
    for connection in 0..connections {
        let client = broker.client().await;
        let share = 3 * count / connections;
        let messages = (connection * share..(connection + 1) * share)
            .map(|n| OutMessage::from("x").send_id(SendId { sender: 5, sequence: n % count + 1 }));
        for sent in client.send_all("q", messages).await.unwrap() {
            fresh += u64::from(!sent.again);
        }
    }
    let info = broker.client().await.list("q", false).await.unwrap().remove(0);
    assert_eq!((fresh, info.messages), (count, count));
}
