//! Sessions, queues and messages, by the rows M10 to M26 of `docs/message-switch.md`. Rows that another file
//! covers whole are not here; the table says where.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]
#![cfg(feature = "cli")]

mod support_cli;
mod support_queue;
mod support_rows;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nlbus::service::queue::{OutMessage, QueueError, QueueOptions, ReceiveOptions};
use nlbus::wire::errno;
use support_cli::{Serve, nlbus, run, text};
use support_queue::{Broker, HANG, in_time};
use support_rows::Bus;

fn now() -> ReceiveOptions {
    ReceiveOptions::default().messages_max(1_000)
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, QueueError>, number: i32) {
    assert_eq!(outcome.unwrap_err().errno(), Some(number));
}

#[test]
fn m10_who_may_not_ask_the_queues_is_told_so_and_others_may() {
    let bus = Bus::new();
    let config = format!(
        "listen = [{:?}, \"tcp://127.0.0.1:0\"]\nqueues = true\n\
         [access.anonymous]\nrights = [\"use\"]\nread = [\"route\"]\n",
        bus.url
    );
    let file = bus.write("serve.toml", config);
    let serve = Serve::start(&["--config", text(&file)], 2);
    bus.out(&["create", "q"]);
    let tcp = serve.urls.iter().find(|url| url.starts_with("tcp:")).unwrap();
    let ask = |verb: &[&str]| run(nlbus(&[&["queue"], verb, &["-u", tcp]].concat()));
    for verb in [&["list"][..], &["destroy", "q"], &["send", "q", "x"], &["diagnostics"]] {
        ask(verb).failed(3, &["may not use", "EPERM"]);
    }
    run(nlbus(&["show", "link", "-u", tcp])).ok();
    assert_eq!(bus.out(&["list", "--all"]), "q\n");
}

#[tokio::test]
async fn m10_a_session_is_its_link_and_nobody_elses() {
    let broker = Broker::start(None).await;
    let (one, two) = (broker.client().await, broker.client().await);
    let replies = one.create_transient(Some("one:1"), None).await.unwrap();
    // the same name, as if it were the same session
    refused(two.create_transient(Some("one:1"), None).await, errno::EEXIST);
    refused(two.subscribe(&replies, Default::default()).await.map(drop), errno::EPERM);
    one.create("q", None).await.unwrap();
    one.send("q", "x").await.unwrap();
    let held = one.receive(&["q"], now()).await.unwrap();
    refused(two.ack(&held[0]).await, errno::EPERM);
    refused(two.nack(&held[0]).await, errno::EPERM);
    refused(two.extend(&held[0], HANG).await, errno::EPERM);
    one.ack(&held[0]).await.unwrap();
}

#[test]
fn m11_a_consumer_that_is_killed_while_it_waits_is_noticed_before_its_wait_is_over() {
    let bus = Bus::new();
    let _serve = bus.serve(&[]);
    bus.out(&["create", "q"]);
    // ten times as long as any test may take
    let waiting = bus.start(&["recv", "q", "--wait", "600"]);
    bus.until("q", |queue| queue["service"] == "running");
    waiting.kill();
    bus.until("q", |queue| queue["service"] == "seems dead");
    assert_eq!(bus.out(&["list"]), "");
    // nothing is lost to it either
    let waiting = bus.start(&["recv", "q", "--wait", "600"]);
    bus.until("q", |queue| queue["consumers"] == 1);
    waiting.kill();
    bus.until("q", |queue| queue["consumers"] == 0);
    bus.out(&["send", "q", "x"]);
    assert_eq!(bus.out(&["recv", "q"]), "x");
}

#[test]
fn m14_with_managers_others_use_queues_and_do_not_make_or_break_them() {
    let bus = Bus::new();
    let managers = format!("unix://{}", text(&bus.path("managers")));
    let own = rustix::process::geteuid().as_raw();
    // two links of one user: over TCP he is anybody, over the socket he is himself
    let config = format!(
        "listen = [{managers:?}, \"tcp://127.0.0.1:0\"]\nqueues = true\nqueues_managed = true\n\
         allow_shutdown = true\n[access.user.{own}]\nrights = [\"use\"]\nwrite = [\"queue\"]\n"
    );
    let file = bus.write("serve.toml", config);
    let serve = Serve::start(&["--config", text(&file)], 2);
    let tcp = serve.urls.iter().find(|url| url.starts_with("tcp:")).unwrap().clone();
    let manage = |verb: &[&str]| run(nlbus(&[&["queue"], verb, &["-u", &managers]].concat()));
    let work = |verb: &[&str]| run(nlbus(&[&["queue"], verb, &["-u", &tcp]].concat()));

    work(&["create", "q"]).failed(3, &["make queues"]);
    work(&["send", "q", "x", "--create"]).failed(3, &["make queues"]);
    work(&["call", "q", "--body", "x", "--timeout", "5"]).failed(3, &["make queues"]);
    manage(&["create", "q"]).ok();
    work(&["create", "q"]).ok();
    work(&["send", "q", "secret"]).ok();
    work(&["destroy", "q"]).failed(3, &["destroy queues"]);
    work(&["purge", "q"]).failed(3, &["purge queues"]);
    work(&["ack", "q", "1"]).failed(3, &["acknowledge"]);
    work(&["tail"]).failed(3, &["what happens"]);
    work(&["shutdown"]).failed(3, &["end the broker"]);
    let looked = work(&["diagnostics", "--payloads"]);
    looked.ok();
    assert!(!looked.out.contains("secret") && looked.out.contains("1 waiting"), "{looked:?}");
    assert!(manage(&["diagnostics", "--payloads"]).out.contains("secret"));
    assert_eq!(work(&["recv", "q"]).out, "secret");

    manage(&["create", "foo"]).ok();
    let mut command = nlbus(&["queue", "serve", "foo", "--program", "/bin/cat", "-u", &tcp]);
    command.env_remove("NLBUS_URL");
    let mut server = support_rows::Running::spawn(command);
    assert!(server.line().starts_with("serving"));
    assert_eq!(work(&["call", "foo", "--body", "hello", "--timeout", "60"]).out, "hello\n");
    // what a caller had made for its answers has gone with it
    let given_up = std::time::Instant::now() + HANG;
    while manage(&["list", "--all"]).out.lines().count() > 2 {
        assert!(std::time::Instant::now() < given_up);
    }
    manage(&["shutdown"]).ok();
    assert_eq!(serve.wait(), Some(0));
}

#[tokio::test]
async fn m17_transfer_gives_a_backlog_in_its_order_and_no_more_than_was_asked_for() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    for n in 0..5 {
        client.send("q", OutMessage::from(format!("job{n}").as_str()).create()).await.unwrap();
    }
    let mut found = Vec::new();
    for count in [2, 1, 9] {
        let options = ReceiveOptions::default().messages_max(count);
        let messages = client.receive(&["q"], options).await.unwrap();
        assert!(messages.len() <= count as usize);
        found.extend(messages.into_iter().map(|message| message.payload().clone()));
    }
    assert_eq!(found, ["job0", "job1", "job2", "job3", "job4"]);
    refused(client.receive(&["q", "no such"], now().wait(HANG)).await, errno::ENOENT);
    // however many there are, one answer has a bounded length
    let long = OutMessage::new(vec![0; 400_000]);
    client.send_all("long", (0..5).map(|_| long.clone().create())).await.unwrap();
    assert_eq!(client.receive(&["long"], now()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn m18_acknowledgements_come_in_any_order_and_say_what_was_not_there() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    for _ in 0..3 {
        client.send("q", OutMessage::from("x").create()).await.unwrap();
    }
    let held = client.receive(&["q"], now()).await.unwrap();
    for at in [2, 0, 1] {
        client.ack(&held[at]).await.unwrap();
        refused(client.ack(&held[at]).await, errno::ENOENT);
    }
    assert_eq!(client.list("q", false).await.unwrap()[0].messages, 0);
    refused(client.ack_ids("no such", &[1], true).await, errno::ENOENT);
}

#[test]
fn m22_metrics_tell_depth_age_rates_and_how_long_it_took() {
    let bus = Bus::new();
    let serve = bus.serve(&["--metrics", "tcp://127.0.0.1:0"]);
    let place = serve.said.iter().find_map(|line| line.strip_prefix("metrics at tcp://"));
    let place = place.unwrap().to_owned();
    bus.out(&["create", "a\"b\\c"]);
    for body in ["one", "two", "three"] {
        bus.out(&["send", "jobs", body, "--create"]);
    }
    bus.out(&["recv", "jobs", "--no-ack"]);
    bus.out(&["recv", "jobs"]);
    let said = bus.out(&["metrics"]);
    let jobs = |name: &str| format!("nlbus_queue_{name}{{queue=\"jobs\",kind=\"persistent\"}}");
    for line in [
        format!("{} 2", jobs("messages")),
        format!("{} 2", jobs("ready")),
        format!("{} 0", jobs("held")),
        format!("{} 3", jobs("sent_total")),
        format!("{} 2", jobs("delivered_total")),
        format!("{} 1", jobs("redelivered_total")),
        format!("{} 1", jobs("returned_total")),
        format!("{} 1", jobs("acked_total")),
        format!("{} 0", jobs("expired_total")),
        format!("{} 0", jobs("dead_lettered_total")),
        format!("{} 1", jobs("wait_seconds_count")),
        format!("{} 1", jobs("done_seconds_count")),
        "nlbus_queues{kind=\"persistent\"} 2".to_owned(),
        "nlbus_queue_messages{queue=\"a\\\"b\\\\c\",kind=\"persistent\"} 0".to_owned(),
    ] {
        assert!(said.lines().any(|found| found == line), "no {line:?} in {said}");
    }
    let value = |name: &str| -> f64 {
        let line = said.lines().find(|line| line.starts_with(&jobs(name))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("oldest_age_seconds") > 0.0 && value("bytes") > 0.0);
    assert!(value("done_seconds_sum") >= value("wait_seconds_sum"));
    sound(&said);

    let file = bus.path("nlbus.prom");
    bus.out(&["metrics", "--output", text(&file), "--prefix", "jobs"]);
    let written = std::fs::read_to_string(&file).unwrap();
    sound(&written);
    assert!(written.contains("queue=\"jobs\"") && !written.contains("a\\\"b"));

    let ask = |request: &str| {
        let mut stream = std::net::TcpStream::connect(&place).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let answer = ask("GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    sound(body);
    assert!(body.contains("nlbus_node_frames_total ") && body.contains(&jobs("messages")));
    assert!(ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(ask("PUT /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(ask("nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(8_192));
    assert!(ask(&long[..8_192]).starts_with("HTTP/1.1 431 "));
    let longest = format!("{}\r\n\r\n", &long[..8_188]);
    assert!(ask(&longest).starts_with("HTTP/1.1 200 "));
    // as many as may be there at once, who say nothing: the next one has its turn when one of them goes
    let mut silent: Vec<_> =
        (0..8).map(|_| std::net::TcpStream::connect(&place).unwrap()).collect();
    let next = std::thread::spawn({
        let place = place.clone();
        move || {
            let mut stream = std::net::TcpStream::connect(place).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        }
    });
    silent.pop();
    assert!(next.join().unwrap().starts_with("HTTP/1.1 200 "));
    drop(silent);
    // half a request does not keep the broker from ending
    let mut half = std::net::TcpStream::connect(&place).unwrap();
    half.write_all(b"GET /me").unwrap();
    serve.end();
}

/// What Prometheus' text format asks of each line: that the sample has a type that was told before.
#[track_caller]
fn sound(text: &str) {
    let mut family = String::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(told) = line.strip_prefix("# TYPE ") {
            let (name, kind) = told.split_once(' ').unwrap();
            assert!(["gauge", "counter", "summary"].contains(&kind), "{line}");
            family = name.to_owned();
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(sample.starts_with(&family), "{line} stands under {family}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}

#[test]
fn m22_metrics_are_told_over_a_unix_socket_too_without_any_queues() {
    let bus = Bus::new();
    let path = bus.path("metrics");
    let metrics = format!("unix://{}", text(&path));
    let serve = Serve::start(&["--metrics", &metrics, &bus.url], 1);
    support_rows::wait_for(&path);
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\nnlbus_node_links "), "{answer}");
    assert!(!answer.contains("nlbus_queue"), "{answer}");
    serve.end();
    assert!(!path.exists());
}

#[tokio::test]
async fn m23_the_trace_keeps_the_last_events_each_of_bounded_length() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    client.create("other", None).await.unwrap();
    let messages = (0..1_500).map(|_| OutMessage::new(vec![b'x'; 1_000]).create());
    client.send_all("q", messages).await.unwrap();
    client.send("other", "y").await.unwrap();
    let (next, events) = client.trace(0, Duration::ZERO, "").await.unwrap();
    assert_eq!((events.len(), next), (1_024, 1_502));
    assert_eq!(events[0].number, 1_501 - 1_023, "the oldest are lost, and that can be seen");
    assert!(events.iter().all(|event| event.record.len() <= 256));
    let (_, events) = client.trace(0, Duration::ZERO, "other").await.unwrap();
    assert_eq!(events.len(), 1);
}

#[test]
fn m25_what_a_page_would_show_every_listing_tells_as_json() {
    let bus = Bus::new();
    let _serve = bus.serve(&[]);
    bus.out(&["send", "q", "<script>\u{1b}[31m", "--create"]);
    for verb in [&["list", "--all"][..], &["list", "--all", "--long"], &["diagnostics"]] {
        let found = bus.json(&[verb, &["--json"]].concat());
        assert!(found.is_array() || found["queues"].is_array(), "{found}");
    }
    for verb in [&["tail", "--json"][..], &["recv", "q", "--no-ack", "--json"]] {
        let found: serde_json::Value =
            serde_json::from_str(bus.out(verb).lines().next().unwrap()).unwrap();
        assert_eq!(found["payload"], "<script>\u{1b}[31m");
    }
    // for people no byte moves their cursor
    for verb in [&["tail"][..], &["diagnostics", "--payloads"]] {
        assert!(!bus.out(verb).contains('\u{1b}'));
    }
}

#[tokio::test]
async fn m21_diagnostics_show_the_first_messages_of_each_queue_and_count_the_rest() {
    let broker = Broker::start(None).await;
    let client = broker.client().await;
    client.create("q", Some(QueueOptions::default())).await.unwrap();
    client.send_all("q", (0..300).map(|_| OutMessage::from("x"))).await.unwrap();
    let (info, queues) = in_time(client.diagnostics("q", 100, 0)).await.unwrap();
    assert_eq!((queues[0].entries.len(), queues[0].messages), (100, 300));
    assert!(queues[0].entries.iter().all(|entry| entry.arrived >= info.started));
    assert!(queues[0].oldest.unwrap() <= info.now);
}
