//! Clients and servers of queues, by the rows M40 to M51 of `docs/message-switch.md`. Rows that another file
//! covers whole are not here; the table says where.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]
#![cfg(feature = "cli")]

mod support_cli;
mod support_queue;
mod support_rows;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nlbus::endpoint::Endpoint;
use nlbus::node::{Node, NodeOptions};
use nlbus::service::queue::machine::MachineOptions;
use nlbus::service::queue::{
    CallError, Client, ClientOptions, Message, OutMessage, QueueError, ReceiveOptions,
    ServeOptions, Server, SubscribeOptions, serve,
};
use nlbus::store::{Loaded, Store};
use nlbus::transport::ListenOptions;
use nlbus::wire::errno;
use support_cli::Serve;
use support_queue::{Broker, HANG, in_time, next};
use support_rows::{Bus, Running};

async fn echo(client: &Client, queue: &str) -> Server {
    let handler = |message: Message| async move { Ok(message.payload().clone()) };
    Server::listen(client, queue, handler, 4).await.unwrap()
}

#[tokio::test]
async fn m40_two_clients_of_one_process_have_a_queue_for_answers_each() {
    let broker = Broker::start(None).await;
    let _server = echo(&broker.client().await, "echo").await;
    let clients = [broker.client().await, broker.client().await];
    let calls = (0..200).map(|n| {
        let client = clients[n % 2].clone();
        tokio::spawn(async move {
            let body = Bytes::from(n.to_string());
            assert_eq!(client.call("echo", body.clone(), HANG).await.unwrap(), body);
        })
    });
    for call in calls.collect::<Vec<_>>() {
        in_time(call).await.unwrap();
    }
    let queues = clients[0].list("", false).await.unwrap();
    let names: BTreeSet<_> = queues.iter().map(|queue| &queue.name).collect();
    assert_eq!(names.len(), 3, "echo, and one for each client: {names:?}");
}

#[tokio::test]
async fn m41_a_client_waits_for_its_broker_as_long_as_it_was_told_and_then_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("unix://{}/socket", directory.path().display()).parse().unwrap();
    let impatient = ClientOptions::default().reconnect_max(Duration::ZERO);
    let refused = in_time(Client::connect_with(&url, impatient)).await;
    match refused.map(drop) {
        Err(error @ QueueError::Connect(_)) => assert!(error.to_string().contains("socket")),
        other => panic!("{other:?}"),
    }
    let patient = ClientOptions::default().reconnect_max(HANG);
    let early = url.clone();
    let waiting = tokio::spawn(async move {
        let client = Client::connect_with(&early, patient).await.unwrap();
        client.create("q", None).await.unwrap()
    });
    let broker = Broker::start_at(None, &url).await;
    assert!(in_time(waiting).await.unwrap());
    broker.end().await;
}

#[tokio::test]
async fn m42_a_call_whose_time_is_over_is_not_carried_out_later() {
    let broker = Broker::start(None).await;
    let caller = broker.client().await;
    let short = Duration::from_millis(20);
    let timed_out = in_time(caller.call("q", "late", short)).await;
    assert!(matches!(timed_out, Err(CallError::Timeout { after }) if after == short));
    // one whose caller is killed before it can take its request back
    let message = OutMessage::from("abandoned").reply_to("nobody").ttl(Duration::from_millis(1));
    caller.send("q", message.create()).await.unwrap();
    while caller.list("q", false).await.unwrap()[0].messages > 0 {
        tokio::task::yield_now().await;
    }
    let seen = Arc::new(AtomicU32::new(0));
    let handled = Arc::clone(&seen);
    let handler = move |message: Message| {
        handled.fetch_add(1, Ordering::Relaxed);
        async move { Ok(message.payload().clone()) }
    };
    let _server = Server::listen(&broker.client().await, "q", handler, 1).await.unwrap();
    assert_eq!(in_time(caller.call("q", "now", HANG)).await.unwrap(), "now");
    assert_eq!(seen.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn m44_a_client_in_rust_does_all_that_the_commands_do() {
    let mut broker = Broker::start(None).await;
    let client = broker.client().await;
    assert!(client.create("q", None).await.unwrap());
    client.send("q", "x").await.unwrap();
    client.send("q", "y").await.unwrap();
    assert_eq!(client.list("q", false).await.unwrap()[0].messages, 2);
    assert_eq!(client.diagnostics("q", 9, 0).await.unwrap().1[0].entries.len(), 2);
    assert_eq!(client.trace(0, Duration::ZERO, "q").await.unwrap().1.len(), 2);
    client.ack_ids("q", &[1], true).await.unwrap();
    assert_eq!(client.purge("q").await.unwrap(), 1);
    client.destroy("q", true).await.unwrap();
    client.shutdown().await.unwrap();
    in_time(broker.served.shutdown_asked()).await;
    drop(client);
    broker.end().await;
}

#[tokio::test]
async fn m45_errors_are_told_apart_without_reading_their_text() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    assert!(matches!(
        client.send("none", "x").await,
        Err(QueueError::Refused { errno: errno::ENOENT, .. })
    ));
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.call("q", "x", None).await }
    });
    while client.list("q", false).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    // a broker without queues
    let node = Node::new(NodeOptions::default());
    let url = node
        .listen(&"tcp://127.0.0.1:0".parse().unwrap(), &ListenOptions::default())
        .await
        .unwrap();
    let elsewhere = Client::connect(&url).await.unwrap();
    match in_time(elsewhere.list("", false)).await {
        Err(QueueError::Request(error)) => assert_eq!(error.errno(), Some(errno::ENOENT)),
        other => panic!("{other:?}"),
    }
    // the broker goes and does not come back
    let inside = broker.inside();
    broker.end().await;
    assert!(matches!(in_time(inside.list("", false)).await, Err(QueueError::Lost)));
    call.abort();
}

#[tokio::test]
async fn m46_a_server_that_is_stopped_answers_what_it_has_begun_and_takes_no_more() {
    let broker = Broker::start(None).await;
    let (begun, started) = tokio::sync::oneshot::channel();
    let (finish, finished) = tokio::sync::oneshot::channel::<()>();
    let once = std::sync::Mutex::new(Some((begun, finished)));
    let handler = move |message: Message| {
        let once = once.lock().unwrap().take();
        async move {
            if let Some((begun, finished)) = once {
                begun.send(()).unwrap();
                finished.await.unwrap();
            }
            Ok(message.payload().clone())
        }
    };
    let server = Server::listen(&broker.client().await, "q", handler, 1).await.unwrap();
    let caller = broker.client().await;
    let first = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call("q", "first", HANG).await }
    });
    in_time(started).await.unwrap();
    let stopping = tokio::spawn(server.stop());
    finish.send(()).unwrap();
    in_time(stopping).await.unwrap().unwrap();
    assert_eq!(in_time(first).await.unwrap().unwrap(), "first");
    caller.send("q", "later").await.unwrap();
    let left = caller.receive(&["q"], ReceiveOptions::default()).await.unwrap();
    assert_eq!(left[0].attempt, 1, "nobody had it");
}

#[tokio::test]
async fn m48_on_request_messages_come_twice_and_never_more_often() {
    let node = Node::new(NodeOptions::default());
    let endpoint = Endpoint::attach(&node).unwrap();
    let mut machine = MachineOptions::default();
    machine.duplicate_every = 2;
    let options = ServeOptions::default().machine(machine);
    let _served = serve(&endpoint, Store::memory(), Loaded::default(), options).await.unwrap();
    let client = Client::over(Endpoint::attach(&node).unwrap(), &ClientOptions::default());
    client.send_all("q", (0..10).map(|n| OutMessage::new(vec![n]).create())).await.unwrap();
    let mut consumer = client.subscribe("q", SubscribeOptions::default().credit(1)).await.unwrap();
    let mut seen = [0_u32; 10];
    loop {
        let message = next(&mut consumer).await;
        let times = &mut seen[usize::from(message.payload()[0])];
        *times += 1;
        assert_eq!(message.attempt, *times);
        client.ack(&message).await.unwrap();
        if client.list("q", false).await.unwrap()[0].messages == 0 {
            break;
        }
    }
    // every second of what had not come twice before
    assert_eq!(seen.iter().filter(|times| **times == 2).count(), 5, "{seen:?}");
    assert!(seen.iter().all(|times| (1..=2).contains(times)), "{seen:?}");

    // a caller sees nothing of it
    let runs = Arc::new(AtomicU32::new(0));
    let ran = Arc::clone(&runs);
    let handler = move |message: Message| {
        ran.fetch_add(1, Ordering::Relaxed);
        async move { Ok(message.payload().clone()) }
    };
    let _server = Server::listen(&client, "calls", handler, 1).await.unwrap();
    for n in 0..10 {
        let body = Bytes::from(vec![n]);
        assert_eq!(in_time(client.call("calls", body.clone(), HANG)).await.unwrap(), body);
    }
    while client.list("calls", false).await.unwrap()[0].messages > 0 {
        tokio::task::yield_now().await;
    }
    assert!(runs.load(Ordering::Relaxed) > 10);
}

#[test]
fn m51_a_client_in_python_and_the_command_understand_each_other() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python/nlbus_queue.py");
    let there = Command::new("python3").arg("--version").stdout(Stdio::null()).status();
    if !there.is_ok_and(|status| status.success()) {
        eprintln!("skipped: there is no python3");
        return;
    }
    let bus = Bus::new();
    let serve = Serve::start(&["--queues", &bus.url, "tcp://127.0.0.1:0"], 2);
    let tcp = serve.urls.iter().find(|url| url.starts_with("tcp:")).unwrap();
    let python = |url: &str, arguments: &[&str]| {
        let mut command = Command::new("python3");
        command.args([script, "-u", url]).args(arguments);
        command
    };
    let run = |url: &str, arguments: &[&str]| support_cli::run(python(url, arguments));
    for url in [&bus.url, tcp] {
        run(url, &["create", "q"]).ok();
        assert_eq!(bus.out(&["list", "--all", "--prefix", "q"]), "q\n");
        // there
        run(url, &["send", "q", "from Python"]).ok();
        assert_eq!(bus.out(&["recv", "q"]), "from Python");
        // and back
        bus.out(&["send", "q", "from Rust", "--header", "k=v"]);
        assert_eq!(run(url, &["recv", "q"]).out, "from Rust");
        assert_eq!(run(url, &["recv", "q"]).code, Some(4));
        run(url, &["ack", "q", "99"]).failed(1, &["no message 99"]);
        run(url, &["send", "none", "x"]).failed(1, &["there is no queue \"none\""]);
        bus.out(&["send", "q", "x"]);
        assert_eq!(run(url, &["purge", "q"]).out, "1\n");

        // it serves a call of the command: longer than a frame, any bytes
        let long: Vec<u8> = (0..=255).cycle().take(200_000).collect();
        let file = bus.write("long", &long);
        let mut server = Running::spawn(python(url, &["serve", "echo", "--count", "1"]));
        assert_eq!(server.line(), "serving the queue echo\n");
        let file = support_cli::text(&file);
        let answer =
            bus.out(&["call", "echo", "--file", file, "--format", "hex", "--timeout", "60"]);
        assert_eq!(answer.len(), 2 * long.len() + 1);
        assert!(answer.starts_with("000102"));
        assert_eq!(server.wait().0, Some(0));

        // the command serves a call of it
        let server = bus.server(&["foo", "--program", "/bin/cat"]);
        assert_eq!(run(url, &["call", "foo", "hello", "--timeout", "60"]).out, "hello");
        server.end();
        let no = run(url, &["call", "foo", "hello", "--timeout", "0.05"]);
        no.failed(1, &["no answer within"]);
        run(url, &["destroy", "q"]).ok();
    }
}
