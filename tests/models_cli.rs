//! `nlbus request`, `reply`, `push` and `pull` against a served broker, as a shell would use them.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

mod support_events;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nlbus::wire::{Messages, nlm};
use support_events::{Program, Served};

/// Longer than anything here takes.
const LONG: &str = "60";

/// Runs a command to its end, with `input`.
fn run(served: &Served, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_nlbus"))
        .args(arguments)
        .env("NLBUS_URL", &served.url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // who does not read it closes it
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap();
    output
}

#[track_caller]
fn ok(output: Output) -> Vec<u8> {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    output.stdout
}

/// What a command that failed with `code` said.
#[track_caller]
fn failed(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

fn request(served: &Served, name: &str, body: &str) -> Output {
    run(served, &["request", name, body, "--timeout", LONG], b"")
}

/// `nlbus reply`, ready.
fn reply(served: &Served, name: &str, options: &[&str], program: &[&str]) -> Program {
    let url = ["-u", &served.url, "--"];
    let reply = Program::nlbus(&[&["reply", name], options, &url, program].concat());
    assert!(reply.line().starts_with(&format!("answering {name} at 0x0001")));
    reply
}

/// `nlbus pull`, ready.
fn pull(served: &Served, arguments: &[&str]) -> Program {
    let pull = served.command(&[&["pull", "-v"], arguments].concat());
    pull.error_line("pulling");
    pull
}

fn push(served: &Served, arguments: &[&str]) {
    ok(run(served, &[&["push"], arguments].concat(), b""));
}

#[test]
fn a_program_answers_with_its_standard_output() {
    let served = Served::start(None);
    let _upper = reply(&served, "upper", &[], &["tr", "a-z", "A-Z"]);
    assert_eq!(ok(request(&served, "upper", "hello")), b"HELLO");
    assert_eq!(ok(request(&served, "upper", "")), b"");
    let long: Vec<u8> = b"abc\0\n".repeat(200_000);
    let answer = ok(run(&served, &["request", "upper", "-", "--timeout", LONG], &long));
    assert!(answer == long.to_ascii_uppercase());
}

#[test]
fn a_program_is_told_the_name_and_who_asks() {
    let served = Served::start(None);
    let _who = reply(&served, "who", &[], &["sh", "-c", "echo $NLBUS_NAME $NLBUS_ASKER"]);
    let answer = String::from_utf8(ok(request(&served, "who", ""))).unwrap();
    let asker = answer.trim().strip_prefix("who 0x8").expect(&answer);
    assert!(asker.len() == 7 && u32::from_str_radix(asker, 16).is_ok(), "{answer}");
}

#[test]
fn what_goes_wrong_has_its_exit_code_and_its_text() {
    let served = Served::start(None);
    let no = failed(&request(&served, "nobody", ""), 5);
    assert!(no.contains("nobody provides \"nobody\""), "{no}");
    failed(&request(&served, "0x00017777", ""), 5);
    failed(&run(&served, &["request", "0xyz"], b""), 2);

    let script = r#"read word; echo "no $word,
        sorry" >&2; exit 7"#;
    let _no = reply(&served, "no", &[], &["sh", "-c", script]);
    let no = failed(&request(&served, "no", "eggs\n"), 3);
    assert_eq!(no, "nlbus: no eggs,         sorry (EIO)");

    let _silent = reply(&served, "silent", &[], &["sh", "-c", "exit 7"]);
    let silent = failed(&request(&served, "silent", ""), 3);
    assert!(silent.contains("exit status: 7"), "{silent}");

    let _missing = reply(&served, "missing", &[], &["/nowhere/to/be/found"]);
    let missing = failed(&request(&served, "missing", ""), 3);
    assert!(missing.contains("the program cannot be run"), "{missing}");
    assert!(!missing.contains("nowhere"), "an asker is not told of files: {missing}");

    let _stuck = reply(&served, "stuck", &["--time", "1"], &["sleep", "1000"]);
    failed(&run(&served, &["request", "stuck", "--timeout", "0.1"], b""), 4);
    let stuck = failed(&request(&served, "stuck", ""), 3);
    assert!(stuck.contains("more than 1s (ETIMEDOUT)"), "{stuck}");
}

#[test]
fn an_answer_has_its_limit_and_so_has_the_text_of_an_error() {
    let served = Served::start(None);
    let script = "head -c $(cat) /dev/zero";
    let _zeros = reply(&served, "zeros", &["--limit", "70000"], &["sh", "-c", script]);
    assert_eq!(ok(request(&served, "zeros", "70000")), [0; 70_000]);
    let long = failed(&request(&served, "zeros", "70001"), 3);
    assert!(long.contains("longer than 70000 bytes"), "{long}");
    let short = run(&served, &["request", "zeros", "70000", "--limit", "69999"], b"");
    assert!(failed(&short, 1).contains("longer than 69999 bytes"));

    let script = "head -c 300000 /dev/zero | tr '\\0' x >&2; exit 1";
    let _wordy = reply(&served, "wordy", &[], &["sh", "-c", script]);
    let wordy = failed(&request(&served, "wordy", ""), 3);
    assert_eq!(wordy.matches('x').count(), 1_024, "{wordy}");
}

#[test]
fn raw_messages_go_out_and_come_back_with_their_headers() {
    let served = Served::start(None);
    let links = nlbus::wire::MessageBuilder::new(18, nlm::REQUEST | nlm::DUMP).body(&[0; 16]);
    let answer = ok(run(&served, &["request", "route", "-", "--raw"], &links.finish()));
    let kinds: Vec<u16> =
        Messages::new(&answer).map(|message| message.unwrap().header.kind).collect();
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == 16), "{kinds:?}");
}

fn fifo(directory: &Path, name: &str) -> String {
    let path = directory.join(name).display().to_string();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

/// Processes whose parent is `id`.
fn children(id: u32) -> String {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).unwrap();
    tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default())
        .collect()
}

#[test]
fn sigterm_ends_a_replier_after_the_programs_that_run() {
    let served = Served::start(None);
    let directory = tempfile::tempdir().unwrap();
    let bodies = ["one", "two"];
    let [started, go] = ["started", "go"]
        .map(|word| bodies.map(|body| fifo(directory.path(), &format!("{word}-{body}"))));
    let script = "body=$(cat); cd \"$0\"; echo >started-$body; echo $body $(cat go-$body)";
    let path = directory.path().display().to_string();
    let replier = reply(&served, "slow", &["--jobs", "2"], &["sh", "-c", script, &path]);
    let askers = bodies.map(|body| served.command(&["request", "slow", body, "--timeout", LONG]));
    for started in &started {
        File::open(started).unwrap().read_to_end(&mut Vec::new()).unwrap();
    }
    replier.signal("TERM");
    while request(&served, "slow", "late").status.code() == Some(3) {}
    failed(&request(&served, "slow", "late"), 5);
    for go in &go {
        fs::write(go, "done\n").unwrap();
    }
    let mut answers = askers.map(|asker| asker.assert_ends_with(0)).concat();
    answers.sort();
    assert_eq!(answers, ["one done", "two done"]);
    replier.assert_ends_with(0);
}

#[test]
fn programs_that_have_ended_leave_nothing_behind() {
    let served = Served::start(None);
    let script = "case $(cat) in ok) ;; kill) kill -9 $$;; stuck) exec sleep 1000;; esac";
    let replier = reply(&served, "jobs", &["--time", "1"], &["sh", "-c", script]);
    for (body, code) in [("ok", 0), ("kill", 3), ("stuck", 3), ("ok", 0)] {
        assert_eq!(request(&served, "jobs", body).status.code(), Some(code), "{body}");
        // the answer goes out when the program was waited for
        assert_eq!(children(replier.id()), "", "{body}");
    }
}

#[test]
fn more_requests_than_jobs_wait_for_their_turn() {
    let served = Served::start(None);
    let _replier = reply(&served, "cat", &["--jobs", "1"], &["cat"]);
    let askers: Vec<Program> = (0..8)
        .map(|n| served.command(&["request", "cat", &n.to_string(), "--timeout", LONG]))
        .collect();
    for (number, asker) in askers.into_iter().enumerate() {
        assert_eq!(asker.assert_ends_with(0), [number.to_string()]);
    }
}

#[test]
fn what_is_pushed_to_a_name_is_pulled_in_its_order_and_each_format() {
    let served = Served::start(None);
    let puller = pull(&served, &["jobs", "-C", "3", "--format", "json"]);
    for body in ["first", "", "se\"cond"] {
        push(&served, &[body, "--to", "jobs"]);
    }
    let lines = puller.assert_ends_with(0);
    let bodies: Vec<serde_json::Value> =
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(bodies.iter().map(|b| &b["text"]).collect::<Vec<_>>(), ["first", "", "se\"cond"]);
    assert!(bodies[0]["from"].as_str().unwrap().starts_with("0x8"));

    let puller = pull(&served, &["jobs", "-C", "1", "--format", "hex"]);
    ok(run(&served, &["push", "-", "--to", "jobs"], b"\0\xff"));
    assert_eq!(puller.assert_ends_with(0), ["00ff"]);

    let puller = pull(&served, &["jobs", "-C", "1"]);
    let long = b"abcdefg\n".repeat(100_000);
    ok(run(&served, &["push", "-", "--to", "jobs"], &long));
    let lines = puller.assert_ends_with(0);
    assert_eq!((lines.len(), lines[0].as_str()), (100_000, "abcdefg"));
}

#[test]
fn what_is_pushed_to_no_one_reaches_everybody_who_pulls_without_a_name() {
    let served = Served::start(None);
    let one = pull(&served, &["-C", "2", "--format", "json"]);
    let two = pull(&served, &["-C", "2", "--format", "json"]);
    push(&served, &["hello"]);
    push(&served, &["bye", "--to", "0x00017777"]);
    for puller in [one, two] {
        let lines = puller.assert_ends_with(0);
        let [hello, bye] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(hello.contains("\"text\":\"hello\""), "{hello}");
        assert!(bye.contains("\"text\":\"bye\""), "{bye}");
    }
}

#[test]
fn what_is_pushed_over_udp_reaches_the_puller_of_a_name_and_who_pulls_without_one() {
    let (served, udp) = Served::start_with(&["udp://127.0.0.1:0"]);
    assert!(udp.starts_with("udp://127.0.0.1:"), "{udp}");
    let jobs = pull(&served, &["jobs", "-C", "1"]);
    let anybody = pull(&served, &["-C", "1"]);
    // route, generic, and then the puller's name
    push(&served, &["for jobs", "--to", "0x00010005", "-u", &udp]);
    push(&served, &["for anybody", "-u", &udp]);
    assert_eq!(jobs.assert_ends_with(0).concat(), "for jobs");
    assert_eq!(anybody.assert_ends_with(0).concat(), "for anybody");
}

#[test]
fn taking_datagrams_from_anybody_has_to_be_said_in_so_many_words() {
    let output = Command::new(env!("CARGO_BIN_EXE_nlbus"))
        .args(["serve", "udp://0.0.0.0:0"])
        .output()
        .unwrap();
    let said = failed(&output, 2);
    assert!(said.contains("--insecure") && said.contains("push"), "{said}");
}

#[test]
fn a_puller_ends_as_it_was_told() {
    let served = Served::start(None);
    failed(&run(&served, &["push", "lost", "--to", "jobs"], b""), 5);
    failed(&run(&served, &["pull", "jobs", "-W", "0.01"], b""), 4);
    let puller = pull(&served, &["jobs"]);
    puller.signal("TERM");
    puller.assert_ends_with(0);
    let puller = pull(&served, &["jobs", "--format", "hex"]);
    push(&served, &["x", "--to", "jobs"]);
    assert_eq!(puller.line(), "78");
    puller.signal("INT");
    puller.assert_ends_with(0);
    let puller = pull(&served, &["jobs"]);
    served.program.signal("TERM");
    puller.assert_ends_with(6);
}

#[test]
fn every_command_shows_an_example() {
    for command in ["request", "reply", "push", "pull"] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_nlbus")).args([command, "--help"]).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains("Example:\n  nlbus "), "{help}");
        assert!(help.contains(&format!("nlbus {command} ")), "{help}");
    }
}
