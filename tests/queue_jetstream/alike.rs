//! What a queue in a cluster has in common with one of a broker alone.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use nlbus::service::queue::machine::{Service, What};
use nlbus::service::queue::{Mode, OutMessage, Policy, QueueOptions, SubscribeOptions};
use nlbus::wire::errno;

use crate::support_nats::{HANG, in_time, next};
use crate::{drain, names, nats, now, refused, waiting};

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
    // what is lost does not come back within the time of this test
    let options = QueueOptions::default().lease_ms(3_600_000);
    for queue in ["m1", "m2"] {
        client.create(queue, Some(options.clone())).await.unwrap();
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
        assert!(one.is_ok() && two.is_ok());
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
    client.create("q", Some(QueueOptions::default().lease_ms(3_000))).await.unwrap();
    client.send("q", "x").await.unwrap();
    client.send("q", "y").await.unwrap();
    let one = waiting().messages_max(1);
    let long = client.receive(&["q"], one.lease(HANG)).await.unwrap().remove(0);
    let late = client.receive(&["q"], one).await.unwrap().remove(0);
    // the second comes again, the first does not
    let again = client.receive(&["q"], one).await.unwrap().remove(0);
    assert_eq!((again.id, again.attempt), (late.id, 2));
    client.extend(&again, HANG).await.unwrap();
    client.ack(&again).await.unwrap();
    client.ack(&long).await.unwrap();
    client.send("q", "z").await.unwrap();
    let late = client.receive(&["q"], one.lease(Duration::from_millis(1))).await.unwrap().remove(0);
    let mut from = 0;
    let mut back = false;
    while !back {
        let (next, events) = client.trace(from, HANG, "q").await.unwrap();
        from = next;
        back = events.iter().any(|event| event.what == What::Returned && event.id == late.id);
    }
    client.ack(&late).await.unwrap();
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
