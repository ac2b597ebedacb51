//! Queues in a NATS JetStream cluster: what programs see of them, over one broker and over several.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_cli;
mod support_nats;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use nlbus::service::queue::machine::{Service, What};
use nlbus::service::queue::{
    CallError, Client, JetStream, JetStreamError, Mode, OutMessage, Policy, QueueError,
    QueueOptions, ReceiveOptions, Server, SubscribeOptions,
};
use nlbus::store::SendId;
use nlbus::wire::errno;
use support_cli::{Serve, nlbus, run, text};
use support_nats::{HANG, Nats, in_time, next};

/// A server, or the end of the test, which has been told of.
macro_rules! nats {
    () => {
        match Nats::start() {
            Some(nats) => nats,
            None => return,
        }
    };
}

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

async fn names(client: &Client, prefix: &str) -> Vec<String> {
    let queues = client.list(prefix, false).await.unwrap();
    queues.into_iter().map(|queue| queue.name.to_string()).collect()
}

/// Receives until there were so many, and acknowledges each.
async fn drain(client: &Client, queue: &str, count: usize) -> Vec<Bytes> {
    let mut found = Vec::new();
    while found.len() < count {
        for message in client.receive(&[queue], waiting()).await.unwrap() {
            client.ack(&message).await.unwrap();
            found.push(message.payload().clone());
        }
    }
    found
}

#[tokio::test]
async fn a_queue_is_made_once_listed_and_destroyed_by_any_broker() {
    let nats = nats!();
    let (one, two) = (nats.broker().await, nats.broker().await);
    let (one, two) = (one.client().await, two.client().await);
    let options = QueueOptions::default().lease_ms(1_234).dead_letter(Some("d".to_owned()));
    assert!(one.create("jobs", Some(options.clone())).await.unwrap());
    assert!(!two.create("jobs", None).await.unwrap(), "it is there");
    assert!(!two.create("jobs", Some(options)).await.unwrap(), "with the same options");
    refused(two.create("jobs", Some(QueueOptions::default())).await, errno::EEXIST);
    refused(one.create("", None).await, errno::EINVAL);
    refused(one.create(&"x".repeat(256), None).await, errno::EINVAL);
    let odd = ["jobs/ü.*>= \\", &"ö".repeat(127), &"x".repeat(255)];
    for name in odd {
        assert!(one.create(name, None).await.unwrap(), "{name}");
        assert!(!two.create(name, None).await.unwrap(), "{name}");
    }
    assert_eq!(names(&two, "jobs").await, ["jobs", odd[0]]);
    assert_eq!(names(&two, "").await.len(), 5, "and the dead letters");
    let fanout = QueueOptions::default().mode(Mode::Fanout);
    refused(one.create("fan", Some(fanout)).await, errno::EOPNOTSUPP);
    one.send("jobs", "x").await.unwrap();
    refused(two.destroy("jobs", true).await, errno::EBUSY);
    two.destroy("jobs", false).await.unwrap();
    refused(one.destroy("jobs", false).await, errno::ENOENT);
    refused(one.send("jobs", "x").await, errno::ENOENT);
    let sent = one.send("jobs", OutMessage::from("x").create()).await.unwrap();
    assert!(sent.id.unwrap() > 1, "an id is not given out again");
}

#[tokio::test]
async fn messages_come_in_order_with_all_that_was_sent_whatever_the_bytes() {
    let nats = nats!();
    let broker = nats.broker().await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    let bytes: Bytes = (0..=255).collect();
    let message = OutMessage::new(bytes.clone())
        .correlation(&b"c\0rr"[..])
        .reply_to("back")
        .header("a", &b"1"[..])
        .header("a", &b"\0\xff"[..]);
    client.send("q", message).await.unwrap();
    let many = (0..700).map(|n| OutMessage::new(vec![n as u8; 200]));
    let sent = client.send_all("many", many.map(OutMessage::create)).await.unwrap();
    let ids: Vec<_> = sent.iter().map(|sent| sent.id.unwrap()).collect();
    assert_eq!(ids, (1..=700).collect::<Vec<u64>>());
    let found = drain(&client, "many", 700).await;
    assert!(found.iter().enumerate().all(|(n, body)| body[0] == n as u8 && body.len() == 200));
    let long: Bytes = (0..3_000_000_u32).map(|n| n as u8).collect();
    client.send("q", long.clone()).await.unwrap();
    let messages = client.receive(&["q"], now()).await.unwrap();
    let first = &messages[0];
    assert_eq!((first.payload(), &first.record.correlation[..]), (&bytes, &b"c\0rr"[..]));
    assert_eq!(first.record.reply_to.as_deref(), Some("back"));
    assert_eq!(first.record.headers.len(), 2);
    assert_eq!((first.id, first.attempt), (1, 1));
    assert_eq!(messages.len(), 1, "the next one is too long for the same answer");
    let messages = client.receive(&["q"], now()).await.unwrap();
    assert_eq!(messages[0].payload(), &long);
    let too_long = vec![0; 8 << 20];
    refused(client.send("q", OutMessage::new(too_long)).await, errno::EMSGSIZE);
}

#[tokio::test]
async fn what_cannot_be_done_is_said() {
    let nats = nats!();
    let broker = nats.broker().await;
    let client = broker.client().await;
    refused(client.send("none", "x").await, errno::ENOENT);
    assert!(!client.send("made", OutMessage::from("x").create()).await.unwrap().again);
    refused(client.receive(&["none"], now()).await, errno::ENOENT);
    refused(client.subscribe("none", SubscribeOptions::default()).await.map(drop), errno::ENOENT);
    refused(client.ack_ids("made", &[99], false).await, errno::ENOENT);
    refused(client.ack_ids("made", &[1], false).await, errno::EPERM);
    refused(client.purge("none").await, errno::ENOENT);
    let other = broker.client().await;
    let held = other.receive(&["made"], now()).await.unwrap();
    refused(client.ack(&held[0]).await, errno::EPERM);
    refused(client.nack(&held[0]).await, errno::EPERM);
    client.ack_ids("made", &[held[0].id], true).await.unwrap();
    refused(other.ack(&held[0]).await, errno::ENOENT);
    for body in ["1", "2", "3"] {
        client.send("made", body).await.unwrap();
    }
    assert_eq!(client.purge("made").await.unwrap(), 3);
    assert!(client.receive(&["made"], now()).await.unwrap().is_empty());
}

#[tokio::test]
async fn two_queues_in_one_receive_lose_nothing_and_the_wait_ends_with_the_first_message() {
    let nats = nats!();
    let broker = nats.broker().await;
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
    for round in 0..20 {
        let receiver = client.clone();
        let blocked = tokio::spawn(async move { receiver.receive(&["m1", "m2"], waiting()).await });
        while client.list("m", true).await.unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
        // one of them wins, the other one is not lost
        let (one, two) = tokio::join!(client.send("m1", "a"), client.send("m2", "b"));
        (one.unwrap(), two.unwrap());
        let mut got = in_time(blocked).await.unwrap().unwrap();
        assert_eq!(got.len(), 1, "in round {round}");
        got.extend(in_time(client.receive(&["m1", "m2"], waiting())).await.unwrap());
        let got: BTreeSet<_> = got.iter().map(|message| message.payload().clone()).collect();
        assert_eq!(got.len(), 2, "in round {round}");
    }
    let none = now().wait(Duration::from_millis(1));
    assert!(client.receive(&["m1", "m2"], none).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_not_acknowledged_comes_again_with_a_count_and_then_goes_to_the_dead_letters() {
    let nats = nats!();
    let broker = nats.broker().await;
    let client = broker.client().await;
    let options = QueueOptions::default().dead_letter(Some("dead".to_owned())).attempts_max(3);
    client.create("q", Some(options)).await.unwrap();
    client.send("q", OutMessage::from("poison").header("k", &b"v"[..])).await.unwrap();
    let short = waiting().lease(Duration::from_millis(20));
    let first = client.receive(&["q"], short).await.unwrap();
    assert_eq!(first[0].attempt, 1);
    let second = client.receive(&["q"], waiting()).await.unwrap();
    assert_eq!((second[0].id, second[0].attempt), (first[0].id, 2));
    client.nack(&second[0]).await.unwrap();
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
async fn a_lease_can_be_longer_than_the_queues_and_an_ack_may_come_late() {
    let nats = nats!();
    let broker = nats.broker().await;
    let client = broker.client().await;
    client.create("q", Some(QueueOptions::default().lease_ms(200))).await.unwrap();
    client.send("q", "x").await.unwrap();
    client.send("q", "y").await.unwrap();
    let one = waiting().messages_max(1);
    let long = client.receive(&["q"], one.lease(HANG)).await.unwrap().remove(0);
    let late = client.receive(&["q"], one).await.unwrap().remove(0);
    // the second comes again, the first does not
    let again = client.receive(&["q"], one).await.unwrap().remove(0);
    assert_eq!((again.id, again.attempt), (late.id, 2));
    let again = client.receive(&["q"], one).await.unwrap().remove(0);
    assert_eq!((again.id, again.attempt), (late.id, 3));
    client.extend(&again, HANG).await.unwrap();
    client.ack(&again).await.unwrap();
    client.ack(&long).await.unwrap();
    assert_eq!(client.list("q", false).await.unwrap()[0].messages, 0);
}

#[tokio::test]
async fn consumers_share_the_work_within_their_credit() {
    let nats = nats!();
    let broker = nats.broker().await;
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
    assert_eq!(next(&mut consumers[0]).await.payload(), "4");
    drop(consumers);
    drop((one, two));
    let mut again = BTreeSet::new();
    while again.len() < 5 {
        let messages = client.receive(&["q"], waiting()).await.unwrap();
        again.extend(messages.iter().map(|message| message.payload().clone()));
    }
}

#[tokio::test]
async fn a_message_longer_than_the_credit_is_let_through_when_nothing_else_is_held() {
    let nats = nats!();
    let broker = nats.broker().await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    for body in [vec![1; 10], vec![2; 5_000], vec![3; 10]] {
        client.send("q", OutMessage::new(body)).await.unwrap();
    }
    let credit = SubscribeOptions::default().credit_bytes(1_000);
    let mut consumer = client.subscribe("q", credit).await.unwrap();
    for first in 1..=3 {
        let message = next(&mut consumer).await;
        assert_eq!(message.payload()[0], first);
        client.ack(&message).await.unwrap();
    }
}

#[tokio::test]
async fn limits_are_kept_and_who_may_wait_for_room_does() {
    let nats = nats!();
    let broker = nats.broker().await;
    let client = broker.client().await;
    let small = QueueOptions::default().messages_max(2).message_bytes_max(100);
    client.create("small", Some(small.clone())).await.unwrap();
    refused(client.send("small", &[0_u8; 101][..]).await, errno::EMSGSIZE);
    for _ in 0..2 {
        client.send("small", "x").await.unwrap();
    }
    refused(client.send("small", "x").await, errno::ENOBUFS);

    let newest = small.clone().policy(Policy::DropOldest);
    client.create("newest", Some(newest)).await.unwrap();
    for n in 0..4 {
        client.send("newest", format!("{n}").as_str()).await.unwrap();
    }
    assert_eq!(drain(&client, "newest", 2).await, ["2", "3"]);

    client.create("block", Some(small.policy(Policy::Block))).await.unwrap();
    let blocked: Vec<_> = (0..20)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.send("block", format!("{n}").as_str()).await })
        })
        .collect();
    assert_eq!(drain(&client, "block", 20).await.len(), 20);
    for send in blocked {
        assert!(!in_time(send).await.unwrap().unwrap().again);
    }
}

#[tokio::test]
async fn a_message_whose_time_is_over_is_not_delivered() {
    let nats = nats!();
    let broker = nats.broker().await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    client.send("q", OutMessage::from("short").ttl(Duration::from_millis(1))).await.unwrap();
    client.send("q", "long").await.unwrap();
    let found = client.receive(&["q"], now()).await.unwrap();
    assert_eq!(found.last().unwrap().payload(), "long");
    if found.len() == 1 {
        let (_, events) = client.trace(0, Duration::ZERO, "q").await.unwrap();
        assert!(events.iter().any(|event| event.what == What::Expired && event.id == 1));
    }
    let limited = QueueOptions::default().ttl_ms_max(100);
    client.create("limited", Some(limited)).await.unwrap();
    client.send("limited", "x").await.unwrap();
    while client.list("limited", false).await.unwrap()[0].messages > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn diagnostics_tell_who_waits_and_whether_anybody_serves() {
    let nats = nats!();
    let broker = nats.broker().await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    client.send("q", OutMessage::from("hello").reply_to("nobody")).await.unwrap();
    let (info, queues) = client.diagnostics("", 10, 1_000).await.unwrap();
    assert!(info.durable && info.queues == 1 && info.now >= info.started);
    assert_eq!(queues[0].service, Service::NeverStarted);
    let entry = &queues[0].entries[0];
    assert_eq!((entry.id, entry.reply_alive, entry.holder), (1, Some(false), None));
    assert!(entry.record.windows(5).any(|window| window == b"hello"));
    let held = client.receive(&["q"], now()).await.unwrap();
    let (_, queues) = client.diagnostics("", 10, 0).await.unwrap();
    assert!(queues[0].entries[0].record.is_empty(), "payloads are shown only when asked for");
    assert!(queues[0].entries[0].holder.is_some());
    assert_eq!((queues[0].leased, queues[0].service), (1, Service::SeemsDead));
    client.ack(&held[0]).await.unwrap();
    let (_, events) = client.trace(0, Duration::ZERO, "q").await.unwrap();
    let events: Vec<What> = events.into_iter().map(|event| event.what).collect();
    assert_eq!(events, [What::Sent, What::Delivered, What::Acked]);
}

#[tokio::test]
async fn two_brokers_share_one_queue_and_each_message_goes_to_one_of_them() {
    let nats = nats!();
    let brokers = [nats.broker().await, nats.broker().await];
    let clients = [brokers[0].client().await, brokers[1].client().await];
    clients[0].create("q", None).await.unwrap();
    let credit = SubscribeOptions::default().credit(4);
    let mut consumers = [
        clients[0].subscribe("q", credit).await.unwrap(),
        clients[1].subscribe("q", credit).await.unwrap(),
    ];
    let messages: Vec<_> = (0..200).map(|n| OutMessage::new(n.to_string())).collect();
    let (first, second) = messages.split_at(100);
    let (one, two) = tokio::join!(
        clients[0].send_all("q", first.to_vec()),
        clients[1].send_all("q", second.to_vec())
    );
    (one.unwrap(), two.unwrap());
    let mut seen = BTreeSet::new();
    let mut shares = [0; 2];
    let [one, two] = &mut consumers;
    while seen.len() < 200 {
        let (at, message) = tokio::select! {
            message = next(one) => (0, message),
            message = next(two) => (1, message),
        };
        assert!(seen.insert(message.id), "{} came twice", message.id);
        assert_eq!(message.attempt, 1);
        shares[at] += 1;
        clients[at].ack(&message).await.unwrap();
    }
    assert!(shares[0] > 0 && shares[1] > 0, "{shares:?}");
    assert_eq!(clients[0].list("q", false).await.unwrap()[0].messages, 0, "acked is gone");
}

#[tokio::test]
async fn a_message_sent_again_over_another_broker_is_stored_once() {
    let nats = nats!();
    let (one, two) = (nats.broker().await, nats.broker().await);
    let (one, two) = (one.client().await, two.client().await);
    one.create("q", None).await.unwrap();
    for sequence in 1..=3 {
        let send_id = SendId { sender: 77, sequence };
        let message = OutMessage::from("once").send_id(send_id);
        let first = one.send("q", message.clone()).await.unwrap();
        let second = two.send("q", message.clone()).await.unwrap();
        assert_eq!((first.id, first.again), (Some(sequence), false));
        assert_eq!((second.id, second.again), (Some(sequence), true));
        assert!(one.send("q", message).await.unwrap().again);
    }
    assert_eq!(drain(&two, "q", 3).await.len(), 3);
    assert!(one.receive(&["q"], now()).await.unwrap().is_empty());
}

async fn echo(client: &Client, queue: &str) -> Server {
    let handler = |message: nlbus::service::queue::Message| async move {
        Ok::<Bytes, (i32, String)>(message.payload().clone())
    };
    Server::listen(client, queue, handler, 4).await.unwrap()
}

#[tokio::test]
async fn a_call_over_one_broker_is_answered_by_a_server_at_another() {
    let nats = nats!();
    let (here, there) = (nats.broker().await, nats.broker().await);
    let caller = here.client().await;
    let early = caller.clone();
    let call = tokio::spawn(async move { early.call("echo", "early", None).await });
    let server = echo(&there.client().await, "echo").await;
    assert_eq!(in_time(call).await.unwrap().unwrap(), "early");
    for n in 0..50 {
        let body = n.to_string();
        assert_eq!(in_time(caller.call("echo", body.clone(), HANG)).await.unwrap(), body.as_str());
    }
    in_time(server.stop()).await.unwrap();
    // one that is given up is taken back
    let short = Duration::from_millis(30);
    assert!(matches!(caller.call("none", "x", short).await, Err(CallError::Timeout { .. })));
    while caller.list("none", false).await.unwrap().iter().any(|queue| queue.messages > 0) {
        tokio::task::yield_now().await;
    }
    // the queue for the answers goes with the caller
    let watcher = there.client().await;
    assert_eq!(names(&watcher, "").await.len(), 3);
    drop(caller);
    while names(&watcher, "").await.len() > 2 {
        tokio::task::yield_now().await;
    }
    here.end().await;
    there.end().await;
}

#[tokio::test]
async fn a_transient_queue_is_its_owners_alone_and_gone_with_it() {
    let nats = nats!();
    let (one, two) = (nats.broker().await, nats.broker().await);
    let (owner, other, far) = (one.client().await, one.client().await, two.client().await);
    let name = owner.create_transient(None, None).await.unwrap();
    refused(other.create_transient(Some(&name), None).await, errno::EEXIST);
    far.send(&name, "an answer").await.unwrap();
    for client in [&other, &far] {
        refused(client.receive(&[&name], now()).await, errno::EPERM);
        let options = SubscribeOptions::default();
        refused(client.subscribe(&name, options).await.map(drop), errno::EPERM);
    }
    assert_eq!(owner.receive(&[&name], waiting()).await.unwrap().len(), 1);
    drop(owner);
    while !names(&far, &name).await.is_empty() {
        tokio::task::yield_now().await;
    }
    refused(far.send(&name, "too late").await, errno::ENOENT);
}

#[tokio::test]
async fn what_was_acknowledged_by_the_cluster_is_there_after_its_server_was_killed() {
    let mut nats = nats!();
    let broker = nats.broker().await;
    let client = broker.client().await;
    client.create("q", None).await.unwrap();
    let mut consumer = client.subscribe("q", SubscribeOptions::default()).await.unwrap();
    client.send("q", "before").await.unwrap();
    let held = next(&mut consumer).await;
    let transient = client.create_transient(None, None).await.unwrap();
    client.send(&transient, "lost").await.unwrap();
    client.create("kept", None).await.unwrap();
    let many = (0..100).map(|n| OutMessage::new(n.to_string()));
    client.send_all("kept", many).await.unwrap();
    nats.kill();
    // it is said, and does not hang
    loop {
        match in_time(client.send("q", "away")).await {
            Err(error) => break assert_eq!(error.errno(), Some(errno::EHOSTUNREACH)),
            Ok(_) => tokio::task::yield_now().await,
        }
    }
    nats.start_again();
    while in_time(client.send("q", "after")).await.is_err() {
        tokio::task::yield_now().await;
    }
    while next(&mut consumer).await.payload() != "after" {}
    client.ack(&held).await.unwrap();
    let kept = drain(&client, "kept", 100).await;
    assert!(kept.iter().enumerate().all(|(n, body)| *body == n.to_string().as_str()));
    // what the cluster had in memory is made again, empty
    let receiver = client.clone();
    let name = transient.clone();
    let waits = tokio::spawn(async move { receiver.receive(&[&name], waiting()).await });
    while in_time(client.send(&transient, "anew")).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(in_time(waits).await.unwrap().unwrap()[0].payload(), "anew");
}

fn serve(nats: &Nats, directory: &tempfile::TempDir, name: &str) -> (Serve, String) {
    let url = format!("unix://{}/{name}", text(directory.path()));
    (Serve::start(&["--queues", "--state", &nats.url(), &url], 1), url)
}

#[tokio::test]
async fn what_a_killed_broker_held_goes_to_others_and_its_transient_queues_go_away() {
    let nats = nats!();
    let directory = tempfile::tempdir().unwrap();
    let (killed, url) = serve(&nats, &directory, "killed");
    let other = nats.broker().await;
    let other = other.client().await;
    let victim = Client::connect(&url.parse().unwrap()).await.unwrap();
    let options = QueueOptions::default().lease_ms(500);
    victim.create("q", Some(options)).await.unwrap();
    let transient = victim.create_transient(None, None).await.unwrap();
    for n in 0..10 {
        victim.send("q", n.to_string().as_str()).await.unwrap();
    }
    let held = victim.receive(&["q"], now().messages_max(4)).await.unwrap();
    assert_eq!(held.len(), 4);
    victim.ack(&held[0]).await.unwrap();
    killed.kill();
    let found = drain(&other, "q", 9).await;
    let found: BTreeSet<_> = found.into_iter().collect();
    assert_eq!(found.len(), 9);
    assert!(!found.contains(&Bytes::from("0")), "acknowledged is gone");
    let later = nats.broker().await;
    let later = later.client().await;
    in_time(async {
        while !names(&later, &transient).await.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_ends_in_good_order_gives_back_what_its_clients_held() {
    let nats = nats!();
    let directory = tempfile::tempdir().unwrap();
    let (ends, url) = serve(&nats, &directory, "ends");
    let client = Client::connect(&url.parse().unwrap()).await.unwrap();
    // the lease is much longer than the test waits
    client.create("q", Some(QueueOptions::default().lease_ms(3_600_000))).await.unwrap();
    client.send("q", "x").await.unwrap();
    let transient = client.create_transient(None, None).await.unwrap();
    assert_eq!(client.receive(&["q"], now()).await.unwrap().len(), 1);
    ends.end();
    let other = nats.broker().await;
    let other = other.client().await;
    let again = in_time(other.receive(&["q"], waiting())).await.unwrap();
    assert_eq!((again[0].payload(), again[0].attempt), (&Bytes::from("x"), 2));
    assert!(names(&other, &transient).await.is_empty());
}

#[tokio::test]
async fn a_cluster_that_cannot_be_used_is_told_of_without_what_is_secret() {
    async fn refused(url: &str) -> JetStreamError {
        let error = in_time(JetStream::connect(&url.parse().unwrap())).await.err().unwrap();
        assert!(!error.to_string().contains("s3cret"), "{error}");
        error
    }
    let Some(plain) = Nats::start_with("\n") else { return };
    let error = refused(&plain.url()).await;
    assert!(matches!(error, JetStreamError::NoJetStream { .. }), "{error}");
    assert!(error.to_string().contains("-js"), "{error}");
    let config = "jetstream { store_dir: \"STORE\" }\n\
                  authorization { user: me, password: s3cret }\n";
    let Some(locked) = Nats::start_with(config) else { return };
    let error = refused(&format!("nats://me:s3cretno@{}", locked.address())).await;
    assert!(matches!(error, JetStreamError::Denied { .. }), "{error}");
    assert!(matches!(refused(&locked.url()).await, JetStreamError::Denied { .. }));
    let url = format!("nats://me:s3cret@{}", locked.address());
    in_time(JetStream::connect(&url.parse().unwrap())).await.unwrap();
    let address = locked.address();
    drop(locked);
    let error = refused(&format!("nats://me:s3cret@{address}")).await;
    assert!(matches!(error, JetStreamError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&address), "{error}");

    // the command says the same
    let url = format!("nats://me:s3cret@{address}");
    let arguments = ["serve", "--queues", "--state", &url, "tcp://127.0.0.1:0"];
    let ended = run(nlbus(&arguments));
    ended.failed(6, &[&format!("nats://{address}")]);
    assert!(!ended.err.contains("s3cret"), "{ended:?}");
    let wrong = ["serve", "--queues", "--state", "nats://host:port", "tcp://127.0.0.1:0"];
    run(nlbus(&wrong)).failed(2, &["the port in the URL of the cluster"]);
}

#[tokio::test]
async fn a_configuration_file_and_the_commands_work_with_a_cluster_too() {
    let nats = nats!();
    let directory = tempfile::tempdir().unwrap();
    let url = format!("unix://{}/socket", text(directory.path()));
    let file = directory.path().join("serve.toml");
    let config = format!("listen = [{url:?}]\nqueues = true\nstate = {:?}\n", nats.url());
    std::fs::write(&file, config).unwrap();
    let broker = Serve::start(&["--config", text(&file)], 1);
    let queue = |arguments: &[&str]| run(nlbus(&[&["queue"], arguments, &["-u", &url]].concat()));
    assert_eq!(queue(&["send", "jobs", "build it", "--create"]).out, "1\n");
    assert!(queue(&["list", "--all", "--long"]).out.contains("jobs"));
    assert!(queue(&["diagnostics", "--payloads"]).out.contains("build it"));
    assert_eq!(queue(&["recv", "jobs"]).out, "build it");
    queue(&["recv", "jobs"]).failed(4, &[]);
    queue(&["send", "jobs", "two"]).ok();
    queue(&["ack", "jobs", "2"]).ok();
    queue(&["ack", "jobs", "2"]).failed(5, &["no message 2"]);
    queue(&["destroy", "jobs"]).ok();
    queue(&["destroy", "jobs"]).failed(5, &["there is no queue"]);
    broker.end();
}
