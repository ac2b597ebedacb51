//! What `--help` promises: an example for each command, and the exit codes.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

mod support_events;

use std::net::TcpListener;
use std::process::{Command, Stdio};

use support_events::{Program, Served};

fn nlbus(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nlbus"));
    command.args(arguments).stdin(Stdio::null()).env_remove("NLBUS_URL");
    command
}

fn help(command: &[&str]) -> String {
    let output = nlbus(&[command, &["--help"]].concat()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names under "Commands:", clap's own `help` left out.
fn subcommands(help: &str) -> Vec<&str> {
    let after = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = after.take_while(|line| !line.is_empty()).filter_map(|line| {
        // a longer description goes on in lines that are indented further
        line.strip_prefix("  ").filter(|line| !line.starts_with(' '))?.split_whitespace().next()
    });
    names.filter(|name| *name != "help").collect()
}

/// Checks a command and all below it; how many there are.
fn examined(command: &[&str]) -> usize {
    let help = help(command);
    let words = [&["nlbus"][..], command].concat().join(" ");
    let (_, examples) = help.split_once("Example").unwrap_or_else(|| panic!("{words}: {help}"));
    let shown = examples.lines().any(|line| line.trim_start().starts_with(&words));
    assert!(shown, "no example of {words}: {help}");
    let below = subcommands(&help).into_iter().map(|name| examined(&[command, &[name]].concat()));
    1 + below.sum::<usize>()
}

#[test]
fn every_command_shows_an_example_of_itself() {
    let examined = examined(&[]);
    assert!(examined > 11, "{examined} commands: the list of them is not read right");
}

#[test]
fn the_exit_codes_in_the_readme_are_those_in_the_help() {
    let codes =
        help(&[]).lines().find_map(|line| line.strip_prefix("Exit codes: ").map(str::to_owned));
    let readme = include_str!("../README.md");
    assert!(readme.contains(&format!("## Exit codes\n\n{}\n", codes.unwrap())));
}

#[test]
fn each_exit_code_of_the_help_is_that_of_a_command() {
    let code = |arguments: &[&str]| {
        let output = nlbus(arguments).output().unwrap();
        output.status.code().unwrap_or_else(|| panic!("{arguments:?}: {output:?}"))
    };
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = code(&["show", "link", "-u", &format!("tcp://{nobody}")]);
    let served = Served::start(None);
    let url = ["-u", &served.url];
    let lost: Program = served.command(&["pull", "jobs", "-v"]);
    lost.error_line("pulling");
    let mut codes = vec![
        ("ok", code(&[&["show", "link"], &url[..]].concat())),
        ("failed", code(&["decode", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])),
        ("usage", code(&["show", "nothing"])),
        ("refused", refused),
        ("timeout", code(&[&["pull", "-W", "0.01"], &url[..]].concat())),
        ("not found", code(&[&["request", "nobody"], &url[..]].concat())),
    ];
    served.program.signal("TERM");
    let (_, status) = lost.finish();
    codes.push(("connection lost", status.code().unwrap()));
    let said: Vec<String> = codes.iter().map(|(word, code)| format!("{code} {word}")).collect();
    assert!(help(&[]).contains(&format!("Exit codes: {}.", said.join(", "))), "{said:?}");
}
