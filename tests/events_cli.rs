//! `nlbus subscribe` and `nlbus publish`, from outside.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

mod support_events;

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support_events::{Program, Served};

fn subscribed(served: &Served, arguments: &[&str]) -> Program {
    let program = served.command(&[&["subscribe", "-v"], arguments].concat());
    program.error_line("subscribed");
    program
}

/// Leaves out what this machine's kernel has to say meanwhile.
const BODIES: &str = "4:16:0xffff";

#[track_caller]
fn publish(served: &Served, arguments: &[&str]) {
    served.command(&[&["publish"], arguments].concat()).assert_ends_with(0);
}

#[test]
fn what_one_program_publishes_another_prints_as_json() {
    let served = Served::start(None);
    let subscriber = subscribed(&served, &["-C", "2", "--key", BODIES]);
    publish(&served, &["hello, bus"]);
    publish(&served, &["grün", "--group", "colours"]);
    let lines: Vec<Value> =
        subscriber.assert_ends_with(0).iter().map(|line| line.parse().unwrap()).collect();
    let message = |text| json!([{ "type": 16, "flags": 0, "sequence": 0, "pid": 0, "text": text }]);
    let expected = [
        json!({ "from": 0, "length": 26, "messages": message("hello, bus") }),
        json!({ "from": 0, "group": "colours", "length": 21, "messages": message("grün") }),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn each_event_is_there_as_soon_as_it_came() {
    let served = Served::start(None);
    let subscriber = subscribed(&served, &["--format", "hex", "--key", BODIES]);
    for (body, digits) in [("a", "61"), ("", ""), ("bc", "6263")] {
        publish(&served, &[body]);
        let length = 16 + body.len();
        let expected = format!("{length:02x}00000010000000{:016}{digits}", 0);
        assert_eq!(subscriber.line(), expected);
    }
    subscriber.signal("TERM");
    subscriber.assert_ends_with(0);
}

#[test]
fn a_group_or_a_key_leaves_out_the_rest() {
    let served = Served::start(None);
    let group = subscribed(&served, &["--group", "a", "-C", "1"]);
    // the first three bytes of the body; there have to be four
    let key = subscribed(&served, &["--key", "16:0x00636261:0xffffff", "-C", "1"]);
    for arguments in [&["abde"][..], &["x", "--group", "b"], &["abcd"], &["y", "--group", "a"]] {
        publish(&served, arguments);
    }
    let text = |program: Program| {
        let lines = program.assert_ends_with(0);
        lines[0].parse::<Value>().unwrap()["messages"][0]["text"].clone()
    };
    assert_eq!((text(group), text(key)), (json!("y"), json!("abcd")));
}

#[test]
fn whole_messages_from_standard_input_come_out_as_the_same_bytes() {
    let served = Served::start(None);
    let mut command = Command::new(env!("CARGO_BIN_EXE_nlbus"));
    command.args(["subscribe", "-v", "--format", "raw", "-C", "1", "-u", &served.url]);
    let mut subscriber = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut errors = std::io::BufReader::new(subscriber.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("subscribed") {
        line.clear();
        std::io::BufRead::read_line(&mut errors, &mut line).unwrap();
    }
    let messages = [[20, 0, 0, 0, 0, 3, 0, 0].as_slice(), &[0; 8], b"\xff\n\x00\x01"].concat();
    let mut publisher = served.command(&["publish", "-", "--raw"]);
    publisher.stdin().write_all(&messages).unwrap();
    publisher.assert_ends_with(0);
    let mut printed = Vec::new();
    subscriber.stdout.take().unwrap().read_to_end(&mut printed).unwrap();
    assert_eq!(printed, messages);
    assert_eq!(subscriber.wait().unwrap().code(), Some(0));
}

#[test]
fn waiting_for_what_does_not_come_ends_with_4() {
    let served = Served::start(None);
    served.command(&["subscribe", "-W", "0.01"]).assert_ends_with(4);
    served.command(&["subscribe", "-W", "0.01", "-C", "1"]).assert_ends_with(4);
}

#[test]
fn a_closed_output_ends_a_subscriber_well_and_a_lost_broker_does_not() {
    let served = Served::start(None);
    let mut command = Command::new("sh");
    let nlbus = env!("CARGO_BIN_EXE_nlbus");
    let script = r#"{ "$0" subscribe -v --format hex -u "$1"; echo "status $?" >&2; } | head -n 1"#;
    command.args(["-c", script, nlbus, &served.url]);
    let pipe = Program::start(command);
    pipe.error_line("subscribed");
    publish(&served, &["one"]);
    pipe.line();
    // the second finds the output closed; head may take a moment to go, so perhaps it is the third
    let ended = loop {
        publish(&served, &["two"]);
        if let Some(line) = pipe.error_line_so_far("status") {
            break line;
        }
    };
    assert!(ended.ends_with("status 0"), "{ended}");

    let left = subscribed(&served, &[]);
    drop(served);
    left.assert_ends_with(6);
}

#[test]
fn a_wrong_command_line_is_said_and_nothing_is_sent() {
    let served = Served::start(None);
    for (arguments, words) in [
        (&["subscribe", "--key", "4:x:1"][..], "KEY \"x\""),
        (&["subscribe", "--group", ""], "1 to 255"),
        (&["subscribe", "-C", "0"], "0"),
        (&["publish"], "BODY"),
        (&["publish", "not netlink", "--raw"], "not whole netlink messages"),
    ] {
        let program = served.command(arguments);
        program.error_line(words);
        program.assert_ends_with(2);
    }
    served.command(&["subscribe", "--from", "nobody"]).assert_ends_with(5);
}
