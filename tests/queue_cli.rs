//! `nlbus queue` and `nlbus serve --queues` as processes.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]
#![cfg(feature = "cli")]

mod support_cli;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support_cli::{Ended, Serve, nlbus, run, text};

struct Bus {
    directory: tempfile::TempDir,
    url: String,
}

impl Bus {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("unix://{}", text(&directory.path().join("socket")));
        Self { directory, url }
    }

    fn serve(&self, arguments: &[&str]) -> Serve {
        Serve::start(&[&["--queues", self.url.as_str()], arguments].concat(), 1)
    }

    fn queue(&self, arguments: &[&str]) -> Ended {
        run(nlbus(&[&["queue"], arguments, &["-u", &self.url]].concat()))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let ended = self.queue(arguments);
        ended.ok();
        serde_json::from_str(&ended.out).unwrap()
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = nlbus(&[&["queue"], arguments].concat());
        command.env("NLBUS_URL", &self.url);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// A server, once it serves.
    fn server(&self, arguments: &[&str]) -> Child {
        let mut child = self.start(arguments);
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("serving"), "{line:?}");
        child
    }
}

fn end(mut child: Child) {
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_quick_start_of_message_switch_works() {
    let bus = Bus::new();
    let state = text(bus.directory.path()).to_owned();
    let broker = bus.serve(&["--state", &state, "--allow-shutdown"]);
    let call = bus.start(&["call", "foo", "--body", "hello"]);
    let found = loop {
        let found = bus.json(&["diagnostics", "--json"]);
        if found["queues"].as_array().unwrap().iter().any(|queue| queue["messages"] == 1) {
            break found;
        }
    };
    let foo = found["queues"].as_array().unwrap().iter().find(|q| q["name"] == "foo").unwrap();
    assert_eq!(foo["service"], "never started");
    assert_eq!(foo["entries"][0]["reply_alive"], true);
    assert!(foo["entries"][0].get("payload").is_none(), "not without being asked");
    let said = bus.queue(&["diagnostics", "--payloads"]).out;
    for part in ["queue foo: never started", "waits for an answer: hello", "1 waiting"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let server = bus.server(&["serve", "foo", "--program", "/bin/cat"]);
    let answered = call.wait_with_output().unwrap();
    assert_eq!((answered.status.code(), answered.stdout.as_slice()), (Some(0), &b"hello\n"[..]));
    assert_eq!(bus.queue(&["list"]).out, "foo\n");
    end(server);
    assert_eq!(bus.queue(&["list"]).out, "", "nobody serves it any more");
    assert_eq!(bus.json(&["list", "--all", "--json"])[0]["service"], "seems dead");
    bus.queue(&["shutdown"]).ok();
    drop(broker);
}

#[test]
fn a_program_that_fails_is_an_error_for_the_caller() {
    let bus = Bus::new();
    let _broker = bus.serve(&[]);
    let server =
        bus.server(&["serve", "q", "--program", "sh", "--", "-c", "echo no such luck >&2; exit 3"]);
    bus.queue(&["call", "q", "--body", "x"]).failed(3, &["no such luck"]);
    end(server);
    bus.queue(&["call", "q", "--body", "x", "--timeout", "0.1"]).failed(4, &["no answer within"]);
    bus.queue(&["shutdown"]).failed(3, &["not to be shut down"]);
}

#[test]
fn messages_are_sent_received_acknowledged_and_dropped() {
    let bus = Bus::new();
    let _broker = bus.serve(&[]);
    bus.queue(&["send", "jobs", "x"]).failed(5, &["there is no queue \"jobs\""]);
    bus.queue(&["create", "jobs", "--messages-max", "3", "--lease", "60"]).ok();
    bus.queue(&["create", "jobs", "--exclusive"]).failed(3, &["already"]);
    for (n, body) in ["one", "two", "three"].into_iter().enumerate() {
        let sent = bus.queue(&["send", "jobs", body, "--header", "n=v"]);
        assert_eq!(sent.out, format!("{}\n", n + 1), "{sent:?}");
    }
    bus.queue(&["send", "jobs", "four"]).failed(3, &["is full"]);
    let message = bus.json(&["recv", "jobs", "--json"]);
    assert_eq!((&message["payload"], &message["id"]), (&"one".into(), &1.into()));
    assert_eq!(message["headers"][0][1], "v");
    bus.queue(&["ack", "jobs", "2"]).ok();
    bus.queue(&["ack", "jobs", "2"]).failed(5, &["no message 2"]);
    assert_eq!(bus.queue(&["recv", "jobs", "--no-ack"]).out, "three");
    bus.queue(&["destroy", "jobs", "--if-empty"]).failed(3, &["1 messages"]);
    assert_eq!(bus.queue(&["purge", "jobs"]).out, "1\n");
    bus.queue(&["recv", "jobs"]).failed(4, &[]);
    let said = bus.queue(&["tail"]).out;
    for part in ["sent", "delivered", "acked", "refused", "returned", "dropped", "three"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    for line in bus.queue(&["tail", "--json"]).out.lines() {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["queue"], "jobs");
    }
    assert!(bus.queue(&["tail", "--chart", "mscgen"]).out.starts_with("msc {"));
    assert!(bus.queue(&["tail", "--chart", "mermaid"]).out.starts_with("sequenceDiagram"));
    bus.queue(&["destroy", "jobs"]).ok();
    bus.queue(&["destroy", "jobs"]).failed(5, &["there is no queue"]);
}

#[test]
fn a_state_directory_that_cannot_be_used_is_told_of() {
    let bus = Bus::new();
    let directory = text(bus.directory.path());
    let refused = |state: &str, code, part| {
        let url = format!("{}2", bus.url);
        run(nlbus(&["serve", "--queues", "--state", state, &url])).failed(code, &[part]);
    };
    refused(&format!("{directory}/none"), 5, "does not exist");
    std::fs::write(bus.directory.path().join("file"), "").unwrap();
    refused(&format!("{directory}/file"), 1, "is not a directory");
    let _broker = bus.serve(&["--state", directory]);
    refused(directory, 3, "in use by another broker");
    let url = format!("{}3", bus.url);
    run(nlbus(&["serve", "--state", directory, &url])).failed(2, &["--queues"]);
}

#[test]
#[cfg(not(feature = "jetstream"))]
fn a_cluster_is_refused_by_a_command_that_was_built_without_it() {
    for state in ["nats://me:s3cret@127.0.0.1", "nats+tls://127.0.0.1"] {
        let ended = run(nlbus(&["serve", "--queues", "--state", state, "tcp://127.0.0.1:0"]));
        ended.failed(2, &["--features jetstream"]);
        assert!(!ended.err.contains("s3cret"), "{ended:?}");
    }
}

#[test]
fn a_configuration_file_says_it_too() {
    let bus = Bus::new();
    let directory = bus.directory.path();
    std::fs::create_dir(directory.join("state")).unwrap();
    let file = directory.join("serve.toml");
    let config = format!("listen = [{:?}]\nqueues = true\nstate = \"state\"\n", bus.url);
    std::fs::write(&file, config).unwrap();
    let _broker = Serve::start(&["--config", text(&file)], 1);
    bus.queue(&["send", "q", "x", "--create"]).ok();
    assert_eq!(bus.json(&["diagnostics", "--json"])["durable"], true);
    assert!(directory.join("state/queues.db").exists());
}

#[test]
fn damaged_options_of_a_queue_are_told_of_and_its_messages_are_there() {
    let bus = Bus::new();
    let state = text(bus.directory.path()).to_owned();
    let broker = bus.serve(&["--state", &state]);
    bus.queue(&["create", "jobs", "--messages-max", "5"]).ok();
    bus.queue(&["send", "jobs", "build it"]).ok();
    broker.end();
    let database = rusqlite::Connection::open(format!("{state}/queues.db")).unwrap();
    assert_eq!(database.execute("UPDATE queues SET options = x'ff00'", []).unwrap(), 1);
    drop(database);
    let broker = bus.serve(&["--state", &state]);
    let line = broker.wait_for_log("options are damaged");
    assert!(line.contains("jobs"), "{line}");
    assert_eq!(bus.queue(&["recv", "jobs"]).out, "build it");
    broker.end();
}
