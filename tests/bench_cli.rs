//! `nlbus bench`: what it counts and how it reports. How fast anything is, no test says.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_cli;

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nlbus::wire::flag;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support_cli::{Serve, nlbus, run, text};

/// Runs `nlbus bench` for a moment; its JSON.
#[track_caller]
fn bench(arguments: &[&str]) -> Value {
    let mut command = nlbus(&["bench", "--json", "--seconds", "0.2"]);
    command.args(arguments);
    let ended = run(command);
    ended.ok();
    serde_json::from_str(&ended.out).unwrap()
}

/// Every message was counted, and something was measured.
#[track_caller]
fn assert_sound(row: &Value) {
    let count = |name: &str| row["counts"][name].as_u64().unwrap();
    assert!(count("sent") > 0, "{row}");
    assert_eq!(count("sent"), count("received"), "{row}");
    assert_eq!((count("lost"), count("duplicated"), count("reordered")), (0, 0, 0), "{row}");
    assert!(row["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{row}");
    assert!(row["rate"].as_f64().unwrap() > 0.0, "{row}");
}

/// What the broker that was started used is known.
#[track_caller]
fn assert_metered(row: &Value) {
    assert!(row["broker"]["resident_bytes"].as_u64().unwrap() > 0, "{row}");
}

#[test]
fn reqrep_counts_an_answer_for_each_request() {
    let report = bench(&["reqrep", "--clients", "3", "--outstanding", "10"]);
    assert_eq!((&report["kind"], &report["started"]), (&"reqrep".into(), &true.into()));
    assert_sound(&report["runs"][0]);
    assert_metered(&report["runs"][0]);
}

#[test]
fn pushpull_counts_each_push_once_whichever_puller_takes_it() {
    for (clients, size) in [("1", "16"), ("4", "128"), ("2", "61440")] {
        let report = bench(&["pushpull", "--clients", clients, "--size", size]);
        assert_sound(&report["runs"][0]);
        assert_metered(&report["runs"][0]);
    }
}

#[test]
fn fanout_counts_each_delivery_to_each_subscriber() {
    let report = bench(&["fanout", "--clients", "5"]);
    let row = &report["runs"][0];
    assert_sound(row);
    assert_eq!(row["counts"]["sent"].as_u64().unwrap() % 5, 0);
}

#[test]
fn idle_measures_requests_without_and_with_links_that_do_nothing() {
    let report = bench(&["idle", "--clients", "200"]);
    for row in [&report["runs"][0], &report["runs"][1]] {
        assert_sound(row);
    }
    assert_eq!((&report["idle"]["links"], &report["idle"]["wanted"]), (&200.into(), &200.into()));
    assert!(report["idle"]["bytes_per_link"].is_number(), "{report}");
    assert!(report["idle"]["p99_ratio"].as_f64().unwrap() > 0.0, "{report}");
}

#[test]
fn kernel_asks_through_the_broker_and_without_it() {
    let report = bench(&["kernel"]);
    let rows = report["runs"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["getlink", "getlink raw", "getaddr", "getaddr raw"]);
    rows.iter().for_each(assert_sound);
}

#[test]
fn queue_counts_what_is_sent_received_and_acknowledged_in_memory() {
    for (producers, consumers, outstanding) in
        [("1", "1", "8192"), ("3", "2", "10"), ("1", "1", "1")]
    {
        let mut arguments = vec!["queue", "--only", "memory", "--outstanding", outstanding];
        arguments.extend(["--producers", producers, "--consumers", consumers]);
        let report = bench(&arguments);
        let rows = report["runs"].as_array().unwrap();
        assert_eq!((rows.len(), &rows[0]["name"]), (1, &"memory".into()), "{report}");
        assert_sound(&rows[0]);
        assert_metered(&rows[0]);
    }
}

#[test]
fn queue_on_disk_is_measured_beside_sqlite_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let report = bench(&["queue", "--only", "durable", "--state", text(directory.path())]);
    let rows = report["runs"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!((names, &report["started"]), (vec!["durable", "sqlite"], &true.into()));
    rows.iter().for_each(assert_sound);
    assert_eq!(rows[0]["outstanding"], 64);
    assert_metered(&rows[0]);
    assert!(report["durable_of_sqlite"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn queue_measures_of_a_broker_that_runs_what_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let socket = |name: &str| format!("unix://{}", text(&directory.path().join(name)));
    let memory = Serve::start(&["--queues", &socket("memory")], 1);
    let durable = Serve::start(&["--queues", "--state", text(&state), &socket("durable")], 1);
    for (serve, name) in [(&memory, "memory"), (&durable, "durable")] {
        for arguments in [&[][..], &["--only", name]] {
            let report = bench(&[&["queue", "-u", &serve.urls[0]], arguments].concat());
            let rows = report["runs"].as_array().unwrap();
            assert_eq!(
                (rows.len(), &rows[0]["name"]),
                (1, &name.into()),
                "no directory, no SQLite"
            );
            assert_sound(&rows[0]);
        }
    }
    for (serve, name) in [(&memory, "durable"), (&durable, "memory")] {
        let ended = run(nlbus(&["bench", "queue", "--only", name, "-u", &serve.urls[0]]));
        ended.failed(1, &["the queues of this broker are not"]);
    }
    memory.end();
    durable.end();
    let without = Serve::start(&["tcp://127.0.0.1:0"], 1);
    run(nlbus(&["bench", "queue", "-u", &without.urls[0]]))
        .failed(5, &["nobody provides \"queue\""]);
    without.end();
}

#[test]
fn a_broker_that_runs_is_measured_over_its_socket_and_its_memory_is_not_known() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus.sock");
    let serve = Serve::start(&[&format!("unix://{}", text(&socket))], 1);
    for kind in ["reqrep", "pushpull", "fanout", "kernel"] {
        let report = bench(&[kind, "-u", &serve.urls[0]]);
        assert_sound(&report["runs"][0]);
        assert_eq!(
            (&report["started"], &report["runs"][0]["broker"]),
            (&false.into(), &Value::Null)
        );
    }
    serve.end();
}

#[test]
fn without_the_right_to_provide_it_says_so() {
    let serve = Serve::start(&["tcp://127.0.0.1:0"], 1);
    let ended = run(nlbus(&["bench", "pushpull", "-u", &serve.urls[0]]));
    ended.failed(1, &["needs the right to provide", "refuses provide"]);
    serve.end();
}

#[test]
fn what_cannot_be_measured_is_a_usage_error() {
    for (arguments, part) in [
        (&["reqrep", "-u", "tls://localhost"][..], "only tcp:// and unix:// are measured"),
        (&["reqrep", "--clients", "4", "--outstanding", "3"], "4 askers cannot share 3 requests"),
        (&["reqrep", "--size", "15"], "not a number from 16 to 61440"),
        (&["reqrep", "--cpu", "100000"], "there is no CPU 100000"),
        (&["queue", "--clients", "4"], "--producers and --consumers in place of --clients"),
    ] {
        let mut command = nlbus(&["bench"]);
        command.args(arguments);
        run(command).failed(2, &[part]);
    }
}

#[test]
fn the_table_has_a_line_for_each_load_and_says_what_was_counted() {
    let ended = run(nlbus(&["bench", "reqrep", "--seconds", "0.1"]));
    ended.ok();
    let lines: Vec<&str> = ended.out.lines().collect();
    assert!(lines[0].starts_with("reqrep at tcp://127.0.0.1:"), "{lines:?}");
    assert!(lines[1].contains("p99.9") && lines[2].starts_with("reqrep "), "{lines:?}");
    assert!(lines[3].ends_with("received"), "{lines:?}");
    assert_eq!(ended.err, "", "no bar where no terminal is");
}

#[test]
fn the_broker_that_was_started_does_not_outlive_sigterm() {
    let mut command = nlbus(&["bench", "pushpull", "--seconds", "600"]);
    let mut bench = command.stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_child(&bench);
    let broker = loop {
        match child_of(pid) {
            Some(broker) => break broker,
            None => std::thread::yield_now(),
        }
    };
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(bench.wait().unwrap().code(), Some(1));
    assert!(!Path::new("/proc").join(broker).exists(), "the broker is gone");
}

/// proc(5): the first process whose parent, field 4 of its `stat`, this is.
fn child_of(parent: Pid) -> Option<String> {
    let parent = parent.to_string();
    std::fs::read_dir("/proc").unwrap().map_while(Result::ok).find_map(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        let own = fields.split_whitespace().nth(1) == Some(&parent);
        own.then(|| entry.file_name().to_string_lossy().into_owned())
    })
}

/// What a relay between the load and the broker does to one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meddling {
    Drops,
    Doubles,
    Swaps,
}

/// Passes connections on to the unix socket at `to`, and meddles with one of the frames that come back and
/// are no control frames; its URL.
fn meddler(to: &Path, meddling: Meddling) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let to = to.to_owned();
    let seen = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let broker = UnixStream::connect(&to).unwrap();
            let (mut back, mut forth) = (client.try_clone().unwrap(), broker.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut &client, &mut forth);
                let _ = forth.shutdown(Shutdown::Both);
            });
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || {
                let mut broker = BufReader::new(broker);
                let mut kept = None;
                while let Some(frame) = next_frame(&mut broker) {
                    let data = frame[6] & flag::CONTROL as u8 == 0;
                    let mut write = |bytes: &[u8]| back.write_all(bytes).is_ok();
                    let alive = match meddling {
                        _ if !data || seen.fetch_add(1, Ordering::Relaxed) != 100 => write(&frame),
                        Meddling::Drops => true,
                        Meddling::Doubles => write(&frame) && write(&frame),
                        Meddling::Swaps => {
                            kept = Some(frame);
                            continue;
                        }
                    };
                    let alive = alive && kept.take().is_none_or(|kept| write(&kept));
                    if !alive {
                        break;
                    }
                }
            });
        }
    });
    url
}

fn next_frame(from: &mut impl Read) -> Option<Vec<u8>> {
    let mut frame = vec![0; 4];
    from.read_exact(&mut frame).ok()?;
    let length = u32::from_le_bytes(*frame.first_chunk()?) as usize;
    frame.resize(length, 0);
    from.read_exact(&mut frame[4..]).ok()?;
    Some(frame)
}

#[test]
fn a_message_that_is_lost_doubled_or_overtaken_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus.sock");
    let serve = Serve::start(&[&format!("unix://{}", text(&socket))], 1);
    for (meddling, complaint) in [
        (Meddling::Doubles, "0 were lost, 1 came twice, 0 came out of order"),
        (Meddling::Swaps, "0 were lost, 0 came twice, 1 came out of order"),
        (Meddling::Drops, "1 were lost, 0 came twice"),
    ] {
        for kind in ["pushpull", "fanout"] {
            let url = meddler(&socket, meddling);
            let mut command = nlbus(&["bench", kind, "--clients", "1", "-u", &url]);
            command.args(["--seconds", "0.2"]);
            run(command).failed(1, &[complaint]);
        }
    }
    serve.end();
}
