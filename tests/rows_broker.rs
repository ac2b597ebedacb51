//! The broker's process, by the rows M1 to M8 and M30 to M36 of `docs/message-switch.md`.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]
#![cfg(feature = "cli")]

mod support_cli;
mod support_rows;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nlbus::service::queue::machine::{
    Answer, Command, Effect, Machine, MachineOptions, Receive, Send,
};
use nlbus::service::queue::{Client, ClientOptions};
use nlbus::store::{Loaded, Time};
use support_cli::{Serve, nlbus, run, text};
use support_rows::{Bus, Running, wait_for};

#[test]
fn m01_options_are_told_and_what_cannot_be_used_is_one_line() {
    let version = run(nlbus(&["--version"]));
    version.ok();
    assert_eq!(version.out, format!("nlbus {}\n", env!("CARGO_PKG_VERSION")));
    let bus = Bus::new();
    let nowhere = format!("unix://{}", text(&bus.path("none/socket")));
    let refused = run(nlbus(&["serve", "--queues", &nowhere]));
    refused.failed(5, &[&nowhere]);
    assert_eq!(refused.err.lines().filter(|line| line.starts_with("nlbus: ")).count(), 1);
    let serve = bus.serve(&["--state", &bus.state()]);
    let addresses = ["route at 0x00010003", "generic at 0x00010004", "queue at 0x00010005"];
    for (line, address) in serve.said.iter().zip(addresses) {
        assert!(line.contains(address), "the kernel is where it always is: {:?}", serve.said);
    }
    serve.end();
}

#[test]
fn m02_every_key_of_the_file_takes_effect_and_check_config_starts_nothing() {
    let bus = Bus::new();
    bus.state();
    let config = format!(
        "listen = [{:?}]\nqueues = true\nstate = \"state\"\nstate_max = 100000000\n\
         allow_shutdown = true\nqueues_managed = true\nchaos_duplicate = 1\npidfile = \"pid\"\n\
         socket_mode = \"0600\"\nsocket_user = \"{}\"\nsocket_group = \"{}\"\n\
         metrics = \"unix://{}\"\n[access.own]\nrights = [\"use\"]\nwrite = [\"queue\"]\n",
        bus.url,
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
        text(&bus.path("metrics")),
    );
    let file = bus.write("serve.toml", config);
    let check = ["serve", "--config", text(&file), "--check-config"];
    run(nlbus(&check)).ok();
    assert!(!bus.path("socket").exists() && !bus.path("state/lock").exists());

    let serve = Serve::start(&["--config", text(&file)], 1);
    wait_for(&bus.path("pid"));
    assert_eq!(fs::metadata(bus.path("socket")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::metadata(bus.path("metrics")).unwrap().file_type().is_socket());
    bus.out(&["create", "q"]);
    bus.out(&["send", "q", "twice"]);
    for _ in 0..2 {
        assert_eq!(bus.out(&["recv", "q"]), "twice", "chaos_duplicate");
    }
    assert_eq!(bus.json(&["diagnostics", "--json"])["durable"], true);
    bus.out(&["shutdown"]);
    assert_eq!(serve.wait(), Some(0));
    let reader = fs::read_to_string(&file).unwrap().replace("write = [\"queue\"]", "");
    fs::write(&file, reader).unwrap();
    let serve = Serve::start(&["--config", text(&file)], 1);
    bus.queue(&["create", "r"]).failed(3, &["may make queues"]);
    serve.end();

    for (wrong, code, part) in [
        ("queues = true\nstate = \"none\"", 5, "none"),
        ("state = \"state\"", 2, "--queues"),
        ("pidfile = 5", 2, "pidfile: "),
        ("socket_mode = \"rw\"", 2, "socket_mode: "),
        ("socket_group = \"no such\"", 2, "/etc/group"),
        ("metrics = \"tcp://192.0.2.1:9\"", 2, "--insecure"),
        ("metrics = \"udp://127.0.0.1:9\"", 2, "stream"),
        ("chaos_duplicate = -1", 2, "chaos_duplicate: "),
        ("queue = true", 2, "`queues`"),
    ] {
        fs::write(&file, wrong).unwrap();
        run(nlbus(&check)).failed(code, &[part]);
    }
}

#[test]
fn m04_a_socket_belongs_to_whom_it_was_given_and_has_the_mode_that_was_asked_for() {
    let bus = Bus::new();
    let root = rustix::process::geteuid().is_root();
    let group = if root { 4_242 } else { rustix::process::getegid().as_raw() };
    let group = group.to_string();
    let serve = bus.serve(&["--socket-mode", "660", "--socket-group", &group]);
    let found = fs::metadata(bus.path("socket")).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
    assert_eq!(found.gid().to_string(), group);
    serve.end();
    assert!(!bus.path("socket").exists());
    if root {
        let serve = bus.serve(&["--socket-user", "4243"]);
        assert_eq!(fs::metadata(bus.path("socket")).unwrap().uid(), 4_243);
        serve.end();
    }
    let url = bus.url.as_str();
    run(nlbus(&["serve", "--socket-mode", "888", url])).failed(2, &["888"]);
    run(nlbus(&["serve", "--socket-user", "no such", url])).failed(2, &["/etc/passwd"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn m05_sigterm_lets_nothing_go_that_was_answered_and_takes_the_socket_away() {
    let bus = Bus::new();
    let state = bus.state();
    let serve = bus.serve(&["--state", &state]);
    let options = ClientOptions::default().reconnect_max(Duration::ZERO);
    let client = Client::connect_with(&bus.url.parse().unwrap(), options).await.unwrap();
    client.create("q", None).await.unwrap();
    let (first, first_answer) = tokio::sync::oneshot::channel();
    let sending = tokio::spawn(async move {
        let (mut answered, mut first) = (Vec::new(), Some(first));
        while let Ok(sent) = client.send("q", "x").await {
            answered.push(sent.id.unwrap());
            if let Some(first) = first.take() {
                first.send(()).unwrap();
            }
        }
        answered
    });
    first_answer.await.unwrap();
    tokio::task::spawn_blocking(|| serve.end()).await.unwrap();
    let answered = sending.await.unwrap();
    assert!(!bus.path("socket").exists());
    let _again = bus.serve(&["--state", &state]);
    let found = bus.json(&["diagnostics", "--json"]);
    let stored = found["queues"][0]["messages"].as_u64().unwrap();
    assert!(stored >= answered.len() as u64, "{stored} of {}", answered.len());
    assert_eq!(answered, (1..=answered.len() as u64).collect::<Vec<_>>());
}

#[test]
fn m06_a_pidfile_is_whole_and_goes_with_its_process() {
    let bus = Bus::new();
    let stale = "99999999999999999999\n";
    let pidfile = bus.write("pid", stale);
    let argument = text(&pidfile).to_owned();
    let serve = bus.serve(&["--pidfile", &argument]);
    let given_up = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(&pidfile).unwrap() == stale {
        assert!(Instant::now() < given_up);
        std::thread::yield_now();
    }
    let pid: i32 = fs::read_to_string(&pidfile).unwrap().trim_end().parse().unwrap();
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(name, "nlbus\n");
    assert_eq!(fs::metadata(&pidfile).unwrap().permissions().mode() & 0o022, 0);
    serve.end();
    assert!(!pidfile.exists());
    // another process has taken it meanwhile: then it is not ours to remove
    let serve = bus.serve(&["--pidfile", &argument]);
    wait_for(&pidfile);
    fs::write(&pidfile, "1\n").unwrap();
    serve.end();
    assert_eq!(fs::read_to_string(&pidfile).unwrap(), "1\n");
    let refused = run(nlbus(&["serve", "--pidfile", text(&bus.path("none/pid")), &bus.url]));
    refused.failed(5, &["none/pid"]);
    assert!(!bus.path("socket").exists());
}

#[test]
fn m08_what_comes_into_one_queue_wakes_nobody_at_another() {
    let now = Time(1);
    let mut machine = Machine::new(MachineOptions::default(), false, Loaded::default(), now);
    let mut effects = Vec::new();
    for session in 1..=1_000_u32 {
        let send = |create| {
            let (queue, record) = (format!("q{session}"), bytes::Bytes::new());
            Send { queue, create, send_id: None, ttl_ms: None, reply_to: None, record }
        };
        machine.handle(now, session, 1, Command::Send(send(true)));
        let receive = Receive {
            queues: vec![format!("q{session}")],
            messages_max: 1,
            timeout_ms: 60_000,
            lease_ms: None,
            auto_ack: true,
        };
        // the first one takes what is there, the second one waits
        machine.handle(now, session, 2, Command::Receive(receive.clone()));
        machine.handle(now, session, u64::from(session) + 10, Command::Receive(receive));
    }
    machine.poll_effects(now, &mut effects);
    effects.clear();
    let record = bytes::Bytes::new();
    let queue = "q7".to_owned();
    let send = Send { queue, create: false, send_id: None, ttl_ms: None, reply_to: None, record };
    machine.handle(now, 5_000, 3, Command::Send(send));
    machine.poll_effects(now, &mut effects);
    let touched: Vec<u64> = effects
        .iter()
        .map(|effect| match effect {
            Effect::Answer { token, answer: Answer::Sent { .. } | Answer::Done } => *token,
            Effect::Deliver { token, .. } => *token,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(touched, [3, 17, 17], "the sender, the message, and the end of that receive");
}

#[test]
fn m30_without_a_state_directory_queues_end_with_the_broker() {
    let bus = Bus::new();
    let serve = bus.serve(&[]);
    bus.out(&["send", "q", "x", "--create"]);
    assert_eq!(bus.json(&["diagnostics", "--json"])["durable"], false);
    serve.end();
    let _serve = bus.serve(&[]);
    assert_eq!(bus.out(&["list", "--all"]), "");
}

#[test]
fn m32_after_a_kill_order_and_ids_go_on_and_a_server_that_stayed_hears_the_next_call() {
    let bus = Bus::new();
    let state = bus.state();
    let serve = bus.serve(&["--state", &state]);
    for (n, body) in ["one", "two", "three"].into_iter().enumerate() {
        let id = bus.out(&["send", "q", body, "--create"]);
        assert_eq!(id, format!("{}\n", n + 1));
    }
    bus.out(&["ack", "q", "3"]);
    let server: Running = bus.server(&["foo", "--program", "/bin/cat"]);
    assert_eq!(bus.out(&["call", "foo", "--body", "before"]), "before\n");
    serve.kill();
    let _serve = bus.serve(&["--state", &state]);
    assert_eq!(bus.out(&["call", "foo", "--body", "after"]), "after\n");
    assert_eq!(bus.out(&["send", "q", "four"]), "4\n", "3 is used up");
    assert_eq!(bus.out(&["recv", "q", "-C", "9"]), "onetwofour");
    server.end();
}

#[test]
fn m35_a_message_has_a_limit_of_its_own_and_one_that_is_refused_uses_no_id_up() {
    let bus = Bus::new();
    let _serve = bus.serve(&["--state", &bus.state()]);
    let long = bus.write("long", vec![b'x'; 14 << 20]);
    bus.out(&["create", "small", "--message-max", "1000"]);
    bus.out(&["create", "q"]);
    let refused = bus.queue(&["send", "small", "--file", text(&long)]);
    refused.failed(3, &["takes 1000"]);
    assert_eq!(bus.out(&["send", "small", "x"]), "1\n");
    assert_eq!(bus.out(&["send", "q", "--file", text(&long)]), "1\n");
    assert_eq!(bus.out(&["recv", "q"]).len(), 14 << 20);
}

#[test]
fn m36_times_are_those_of_the_day_before_and_after_a_restart() {
    let micros = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    let bus = Bus::new();
    let state = bus.state();
    let serve = bus.serve(&["--state", &state]);
    let before = micros();
    bus.out(&["send", "q", "x", "--create"]);
    let after = micros();
    serve.end();
    let _serve = bus.serve(&["--state", &state]);
    let found = bus.json(&["diagnostics", "--json"]);
    let arrived = found["queues"][0]["entries"][0]["arrived_us"].as_u64().unwrap();
    // the clock of the day may be set while a test runs, but not by an hour
    let hour = 3_600_000_000;
    assert!(before - hour < arrived && arrived < after + hour, "{before} {arrived} {after}");
    assert!(found["now_us"].as_u64().unwrap() + hour > arrived);
    let said = bus.out(&["diagnostics"]);
    assert!(said.contains(" old"), "{said}");
}

#[test]
fn m07_the_log_goes_to_standard_error_and_says_as_much_as_was_asked_for() {
    let bus = Bus::new();
    let mut quiet = nlbus(&["serve", "--queues", &bus.url]);
    quiet.env("NLBUS_LOG", "error");
    let mut serve = Running::spawn(quiet);
    serve.until_line("listening on");
    bus.out(&["create", "q"]);
    assert_eq!(serve.end_and_log(), "");
    let serve = Serve::start(&["--queues", &bus.url], 1);
    bus.out(&["create", "q"]);
    let line = serve.wait_for_log("up link=");
    assert!(line.contains("INFO"), "{line}");
    serve.end();
    // what a command itself is asked to say is on its standard output alone
    let said = run(nlbus(&["queue", "list", "-vv", "-u", "unix:///nowhere"]));
    assert_eq!((said.code, said.out.as_str()), (Some(5), ""));
    assert!(!said.err.is_empty());
}

#[test]
fn m33_ids_of_messages_that_are_done_with_are_not_given_out_again() {
    let bus = Bus::new();
    let state = bus.state();
    for round in 0..3_u64 {
        let serve = bus.serve(&["--state", &state]);
        let id = bus.out(&["send", "q", "x", "--create"]);
        assert_eq!(id, format!("{}\n", round + 1));
        bus.out(&["ack", "q", id.trim()]);
        bus.queue(&["ack", "q", id.trim()]).failed(5, &["no message"]);
        serve.end();
    }
}
