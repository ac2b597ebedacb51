//! `nlbus queue`, by the rows C1 to C10 of `docs/message-switch.md`. What `tests/queue_cli.rs` covers whole is
//! not here; the table says where.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]
#![cfg(feature = "cli")]

mod support_cli;
mod support_rows;

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;
use support_cli::{Serve, nlbus, run, text};
use support_rows::{Bus, Running};

#[test]
fn c01_list_names_the_queues_that_are_served_or_all_and_how_they_are() {
    let bus = Bus::new();
    let _serve = bus.serve(&[]);
    for queue in ["jobs", "jobs/old", "other"] {
        bus.out(&["create", queue]);
    }
    bus.out(&["send", "jobs", "x"]);
    assert_eq!(bus.out(&["list"]), "");
    let server = bus.server(&["other", "--program", "/bin/cat"]);
    assert_eq!(bus.out(&["list"]), "other\n");
    assert_eq!(bus.out(&["list", "--all", "--prefix", "jobs"]), "jobs\njobs/old\n");
    let long = bus.out(&["list", "--all", "--long"]);
    let mut lines = long.lines();
    let head: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["QUEUE", "SERVICE", "CONSUMERS", "READY", "HELD", "BYTES", "OLDEST"]);
    let jobs: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(jobs[..6], ["jobs", "never", "started", "0", "1", "0"]);
    assert_eq!(jobs.last(), Some(&"s"), "{long}");
    assert!(long.contains("other     running "), "{long}");
    let found = bus.json(&["list", "--all", "--json"]);
    assert_eq!(found[0]["name"], "jobs");
    assert_eq!((&found[0]["ready"], &found[2]["consumers"]), (&1.into(), &1.into()));
    server.end();
}

#[test]
fn c02_tail_prints_what_happened_and_follows() {
    let bus = Bus::new();
    let _serve = bus.serve(&[]);
    bus.out(&["send", "jobs", "before", "--create"]);
    let long = "x".repeat(1_000);
    bus.out(&["send", "other", "hidden", "--create"]);
    let mut tail = bus.start(&["tail", "-f", "--prefix", "jobs", "--json"]);
    let event = |line: String| serde_json::from_str::<Value>(&line).unwrap();
    assert_eq!(event(tail.line())["payload"], "before");
    bus.out(&["send", "jobs", &long]);
    bus.out(&["send", "other", "hidden"]);
    bus.out(&["recv", "jobs"]);
    let found = [event(tail.line()), event(tail.line()), event(tail.line())];
    let what: Vec<_> = found.iter().map(|found| found["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["sent", "delivered", "acked"]);
    assert!(found.iter().all(|found| found["queue"] == "jobs"));
    // of a long one there is the beginning
    assert!(found[0]["payload"].as_str().unwrap().starts_with("xxxx"), "{}", found[0]);
    tail.end();
    let said = bus.out(&["tail"]);
    assert!(said.lines().any(|line| line.contains("other") && line.ends_with("hidden")), "{said}");
    assert!(said.contains("xxx…"), "{said}");
}

#[test]
fn c03_charts_tell_requests_from_answers_and_name_methods() {
    let bus = Bus::new();
    let _serve = bus.serve(&[]);
    let program =
        r#"read request; case "$request" in *start*) echo '{"result": 1}';; *) exit 1; esac"#;
    let server = bus.server(&["vms", "--program", "sh", "--", "-c", program]);
    let request = |method: &str| format!("{{\"method\": \"{method}\", \"params\": []}}\n");
    bus.out(&["call", "vms", "--body", &request("VM.start")]);
    bus.queue(&["call", "vms", "--body", &request("VM.stop")]).failed(3, &[]);
    server.end();
    let chart = bus.out(&["tail", "--chart", "mscgen"]);
    assert!(chart.starts_with("msc {\n") && chart.ends_with("}\n"), "{chart}");
    for part in [
        "=> \"vms\" [label=\"VM.start\"];",
        "\"vms\" => ",
        "[label=\"VM.stop\"];",
        "[label=\"OK\"];",
        "[label=\"FAILURE\"];",
    ] {
        assert!(chart.contains(part), "no {part:?} in {chart}");
    }
    let answers = chart.lines().filter(|line| line.contains(" >> ")).count();
    assert_eq!(answers, 4, "two answers, each sent and delivered: {chart}");
    let chart = bus.out(&["tail", "--chart", "mermaid"]);
    assert!(chart.starts_with("sequenceDiagram\n") && chart.contains("-->>"), "{chart}");
}

#[test]
fn c05_destroy_takes_the_messages_along_unless_it_is_told_not_to() {
    let bus = Bus::new();
    let _serve = bus.serve(&[]);
    bus.out(&["send", "q", "x", "--create"]);
    bus.queue(&["destroy", "q", "--if-empty"]).failed(3, &["1 messages"]);
    bus.out(&["destroy", "q"]);
    assert_eq!(bus.out(&["list", "--all"]), "");
    bus.queue(&["destroy", "q"]).failed(5, &["there is no queue"]);
    bus.out(&["create", "q"]);
    bus.out(&["destroy", "q", "--if-empty"]);
}

#[test]
fn c06_call_takes_its_body_from_anywhere_and_prints_the_answer_in_any_form() {
    let bus = Bus::new();
    let _serve = bus.serve(&[]);
    let server = bus.server(&["foo", "--program", "/bin/cat"]);
    let bytes: Vec<u8> = (0..=255).collect();
    let file = bus.write("request", &bytes);
    let (code, answer) = bus.with_input(&["call", "foo", "--format", "raw"], &bytes);
    assert_eq!((code, answer.as_slice()), (Some(0), bytes.as_slice()), "from standard input");
    let hex = bus.out(&["call", "foo", "--file", text(&file), "--format", "hex"]);
    assert!(hex.starts_with("00010203") && hex.ends_with("feff\n"), "{hex}");
    let found = bus.json(&["call", "foo", "--file", text(&file), "--format", "json"]);
    assert_eq!(found["bytes"], 256);
    assert_eq!(found["payload"]["hex"], hex.trim());
    let found = bus.json(&["call", "foo", "--body", "text\n\n", "--format", "json"]);
    assert_eq!(found["payload"], "text\n\n", "blank lines at the end stay");
    assert_eq!(bus.out(&["call", "foo", "--body", "hello"]), "hello\n");
    assert_eq!(bus.out(&["call", "foo", "--body", "hello\n"]), "hello\n");
    let both = ["call", "foo", "--body", "x", "--file", text(&file)];
    bus.queue(&both).failed(2, &["cannot be used with"]);
    bus.queue(&["call", "foo", "--file", "/nowhere"]).failed(5, &[]);
    server.end();
    bus.queue(&["call", "foo", "--body", "x", "--timeout", "0.05"]).failed(4, &["no answer"]);
    bus.until("foo", |queue| queue["messages"] == 0);
}

#[test]
fn c07_serve_copes_with_whatever_its_program_does() {
    let bus = Bus::new();
    let _serve = bus.serve(&[]);
    let call = |queue: &str, body: &str| bus.queue(&["call", queue, "--body", body]);
    let shell = |queue: &str, script: &str| {
        bus.server(&[queue, "--jobs", "1", "--program", "sh", "--", "-c", script])
    };
    // 1 MiB on standard error would fill its pipe many times over
    let loud = shell("loud", "head -c 1048576 /dev/zero >&2; cat");
    assert_eq!(call("loud", "hello").out, "hello\n");
    loud.end();
    let failing = shell("failing", "echo why >&2; exit 3");
    call("failing", "x").failed(3, &["why"]);
    failing.end();
    let deaf = shell("deaf", "echo done");
    let long = bus.write("long", vec![b'x'; 3 << 20]);
    assert_eq!(bus.out(&["call", "deaf", "--file", text(&long)]), "done\n");
    deaf.end();
    let both = bus.server(&["both", "--program", "/bin/cat"]);
    let raw = ["call", "both", "--file", text(&long), "--format", "raw"];
    assert_eq!(bus.out(&raw).len(), 3 << 20);
    both.end();
    let told = shell("told", "printf '%s %s %s' $NLBUS_QUEUE $NLBUS_ID $NLBUS_ATTEMPT");
    let said = call("told", "x").out;
    let fields: Vec<&str> = said.split_whitespace().collect();
    assert!(matches!(fields[..], ["told", id, "1"] if id.parse::<u64>().is_ok()), "{said:?}");
    told.end();
    let slow = ["slow", "--time", "0.05", "--program", "sh", "--", "-c", "exec tail -f /dev/null"];
    let slow = bus.server(&slow);
    call("slow", "x").failed(3, &["took more than"]);
    slow.end();
    let missing = bus.server(&["missing", "--program", "/nowhere"]);
    call("missing", "x").failed(3, &["cannot be run"]);
    missing.end();
}

#[test]
fn c07_serve_ends_with_an_error_where_there_are_no_queues() {
    let bus = Bus::new();
    let _serve = Serve::start(&[&bus.url], 1);
    bus.queue(&["serve", "foo", "--program", "/bin/cat"]).failed(5, &["queue"]);
}

#[test]
fn c08_diagnostics_tell_what_runs_what_never_did_and_what_seems_dead() {
    let bus = Bus::new();
    let _serve = bus.serve(&[]);
    let server = bus.server(&["gone", "--program", "/bin/cat"]);
    server.end();
    bus.until("gone", |queue| queue["service"] == "seems dead");
    let running = bus.server(&["runs", "--program", "/bin/cat"]);
    bus.out(&["send", "gone", "unanswered", "--reply-to", "nobody"]);
    let call = bus.start(&["call", "waits", "--body", "hello"]);
    bus.until("waits", |queue| queue["messages"] == 1);
    let said = bus.out(&["diagnostics", "--payloads"]);
    for part in [
        "broker up for ",
        "queue gone: seems dead, last ",
        "nobody does not wait for an answer any more: unanswered",
        "queue runs: running; 1 consumers",
        "queue waits: never started; ",
        "waits for an answer: hello",
        "\ntransient queue ",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    let found = bus.json(&["diagnostics", "--json"]);
    let services = found["queues"].as_array().unwrap().iter();
    let services: Vec<_> = services
        .filter(|queue| queue["kind"] == "persistent")
        .map(|queue| queue["service"].as_str().unwrap())
        .collect();
    assert_eq!(services, ["seems dead", "running", "never started"]);
    call.kill();
    running.end();
}

#[test]
fn c09_shutdown_ends_the_broker_in_good_order_if_that_was_allowed() {
    let bus = Bus::new();
    let state = bus.state();
    let serve = bus.serve(&["--state", &state]);
    bus.queue(&["shutdown"]).failed(3, &["not to be shut down"]);
    serve.end();
    let serve = bus.serve(&["--state", &state, "--allow-shutdown"]);
    bus.out(&["send", "q", "x", "--create"]);
    bus.out(&["shutdown"]);
    assert_eq!(serve.wait(), Some(0));
    assert!(!bus.path("socket").exists());
    bus.queue(&["list"]).failed(5, &["socket"]);
    let _serve = bus.serve(&["--state", &state]);
    assert_eq!(bus.out(&["recv", "q"]), "x");
}

#[test]
fn c10_shells_can_complete_every_command() {
    for (shell, part) in
        [("bash", "complete -F _nlbus"), ("zsh", "#compdef nlbus"), ("fish", "complete -c nlbus")]
    {
        let said = run(nlbus(&["completions", shell]));
        said.ok();
        for part in [part, "diagnostics", "chaos-duplicate"] {
            assert!(said.out.contains(part), "no {part:?} for {shell}");
        }
    }
    run(nlbus(&["completions", "tcsh"])).failed(2, &["tcsh"]);
    // whoever reads only the beginning is no reason to panic
    let mut child = Command::new(support_cli::program());
    child.args(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert!(!String::from_utf8_lossy(&ended.stderr).contains("panicked"));
    // what the shell itself says of it, if it is there
    let Ok(mut bash) = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn() else { return };
    let script = run(nlbus(&["completions", "bash"])).out;
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
}

#[test]
fn c10_the_quick_start_in_the_help_is_what_works() {
    let help = run(nlbus(&["queue", "--help"])).out;
    for line in [
        "nlbus queue call foo --body hello",
        "nlbus queue diagnostics",
        "nlbus queue serve foo --program /bin/cat",
    ] {
        assert!(help.contains(line), "no {line:?} in {help}");
    }
    let bus = Bus::new();
    let _serve = bus.serve(&[]);
    let call: Running = bus.start(&["call", "foo", "--body", "hello"]);
    bus.until("foo", |queue| queue["service"] == "never started" && queue["messages"] == 1);
    let server = bus.server(&["foo", "--program", "/bin/cat"]);
    assert_eq!(call.wait(), (Some(0), "hello\n".to_owned()));
    server.end();
}
