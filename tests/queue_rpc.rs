//! Calls through queues, and what a restart of the broker leaves of them.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_queue;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nlbus::service::queue::{
    CallError, Client, OutMessage, ReceiveOptions, Server, SubscribeOptions,
};
use nlbus::wire::errno;
use support_queue::{Broker, HANG, in_time, next};
use tokio::sync::Notify;

/// A server that answers with what it was sent.
async fn echo(client: &Client, queue: &str, concurrency: u32) -> Server {
    let handler = |message: nlbus::service::queue::Message| async move {
        Ok::<Bytes, (i32, String)>(message.payload().clone())
    };
    Server::listen(client, queue, handler, concurrency).await.unwrap()
}

#[tokio::test]
async fn a_call_waits_for_a_server_and_gets_its_answer() {
    let broker = Broker::start(None).await;
    let caller = broker.client().await;
    let early = caller.clone();
    let call = tokio::spawn(async move { early.call("echo", "early", None).await });
    let watcher = broker.client().await;
    while watcher.list("echo", false).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let server = echo(&broker.client().await, "echo", 4).await;
    assert_eq!(in_time(call).await.unwrap().unwrap(), "early");
    let all: Bytes = (0..=255).cycle().take(200_000).collect();
    assert_eq!(in_time(caller.call("echo", all.clone(), HANG)).await.unwrap(), all);
    in_time(server.stop()).await.unwrap();
    while watcher.list("echo", false).await.unwrap()[0].messages > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_error_of_the_server_is_the_callers() {
    let broker = Broker::start(None).await;
    let handler = |_| async { Err::<Bytes, _>((errno::EACCES, "not you".to_owned())) };
    let _server = Server::listen(&broker.client().await, "q", handler, 1).await.unwrap();
    match in_time(broker.client().await.call("q", "x", HANG)).await {
        Err(CallError::Refused { errno: errno::EACCES, text }) => assert_eq!(text, "not you"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_is_taken_back() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    let short = Duration::from_millis(30);
    assert!(matches!(client.call("q", "x", short).await, Err(CallError::Timeout { .. })));
    let given_up = client.call("q", "y", None);
    assert!(tokio::time::timeout(short, given_up).await.is_err());
    while client.list("q", false).await.unwrap().iter().any(|queue| queue.messages > 0) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn requests_are_served_in_their_order_by_one_and_at_once_by_several() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    for n in 0..5 {
        client.send("jobs", OutMessage::from(format!("{n}").as_str()).create()).await.unwrap();
    }
    let (done, mut seen) = tokio::sync::mpsc::channel(8);
    let handler = move |message: nlbus::service::queue::Message| {
        let done = done.clone();
        async move {
            done.send(message.payload().clone()).await.unwrap();
            Ok(Bytes::new())
        }
    };
    let server = Server::listen(&broker.client().await, "jobs", handler, 1).await.unwrap();
    for n in 0..5 {
        assert_eq!(in_time(seen.recv()).await.unwrap(), format!("{n}").as_str());
    }
    in_time(server.stop()).await.unwrap();

    // four that wait for each other
    let barrier = Arc::new(tokio::sync::Barrier::new(4));
    let handler = move |_| {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
            Ok(Bytes::new())
        }
    };
    let _server = Server::listen(&broker.client().await, "meet", handler, 4).await.unwrap();
    let calls = [(); 4].map(|()| {
        let client = client.clone();
        tokio::spawn(async move { client.call("meet", "", HANG).await })
    });
    for call in calls {
        in_time(call).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_server_that_dies_before_its_answer_leaves_the_request_to_another() {
    let broker = Broker::start(None).await;
    let started = Arc::new(Notify::new());
    let first = broker.client().await;
    let stuck = Arc::clone(&started);
    let handler = move |_| {
        let stuck = Arc::clone(&stuck);
        async move {
            stuck.notify_one();
            std::future::pending::<Result<Bytes, (i32, String)>>().await
        }
    };
    let dying = Server::listen(&first, "q", handler, 1).await.unwrap();
    let caller = broker.client().await;
    let call = tokio::spawn(async move { caller.call("q", "once more", HANG).await });
    in_time(started.notified()).await;
    let attempts = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&attempts);
    let handler = move |message: nlbus::service::queue::Message| {
        seen.store(message.attempt, Ordering::Relaxed);
        async move { Ok(message.payload().clone()) }
    };
    let _second = Server::listen(&broker.client().await, "q", handler, 1).await.unwrap();
    drop((dying, first));
    assert_eq!(in_time(call).await.unwrap().unwrap(), "once more");
    assert_eq!(attempts.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn callers_and_servers_outlive_their_broker() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(Some(directory.path())).await;
    let (url, caller) = (broker.url.clone(), broker.client().await);
    let server = echo(&broker.client().await, "echo", 2).await;
    for round in 0..3 {
        let body = format!("round {round}");
        assert_eq!(in_time(caller.call("echo", body.clone(), HANG)).await.unwrap(), body.as_str());
    }
    // nobody serves this one yet
    let waits = caller.clone();
    let waiting = tokio::spawn(async move { waits.call("later", "x", None).await });
    while caller.list("later", false).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    broker.end().await;
    let broker = Broker::start_at(Some(directory.path()), &url).await;
    assert_eq!(in_time(caller.call("echo", "after", HANG)).await.unwrap(), "after");
    let _later = echo(&broker.client().await, "later", 1).await;
    assert_eq!(in_time(waiting).await.unwrap().unwrap(), "x");
    in_time(server.stop()).await.unwrap();
}

#[tokio::test]
async fn after_a_restart_messages_limits_and_ids_are_as_before_and_what_was_transient_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let state = Some(directory.path());
    let broker = Broker::start(state).await;
    let client = broker.client().await;
    let options = nlbus::service::queue::QueueOptions::default()
        .messages_max(4)
        .dead_letter(Some("dead".to_owned()))
        .attempts_max(3);
    client.create("q", Some(options.clone())).await.unwrap();
    let transient = client.create_transient(None, None).await.unwrap();
    for n in 1..=3 {
        assert_eq!(client.send("q", format!("{n}").as_str()).await.unwrap().id, Some(n));
    }
    client.send("q", OutMessage::from("short").ttl(Duration::from_millis(1))).await.unwrap();
    let receive = ReceiveOptions::default().messages_max(3);
    let held = client.receive(&["q"], receive).await.unwrap();
    client.ack(&held[2]).await.unwrap();
    client.nack(&held[1]).await.unwrap();
    drop(client);
    broker.end().await;

    let broker = Broker::start(state).await;
    let client = broker.client().await;
    assert!(client.list(&transient, false).await.unwrap().is_empty());
    assert!(!client.create("q", Some(options)).await.unwrap(), "with the same options");
    let (info, _) = client.diagnostics("", 0, 0).await.unwrap();
    assert!(info.durable);
    let mut consumer = client.subscribe("q", SubscribeOptions::default()).await.unwrap();
    let [one, two] = [next(&mut consumer).await, next(&mut consumer).await];
    assert_eq!((one.payload(), two.payload()), (&Bytes::from("1"), &Bytes::from("2")));
    assert_eq!(two.attempt, 2, "it had come back");
    assert_eq!(client.send("q", "5").await.unwrap().id, Some(5), "4 and 3 are used");
    client.destroy("q", false).await.unwrap();
    client.create("q", None).await.unwrap();
    assert_eq!(client.send("q", "6").await.unwrap().id, Some(6));
    broker.end().await;
}
