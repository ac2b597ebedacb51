//! docs/models.md does what it says: its commands are run, and so are the programs that it shows.

#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

#[path = "../examples/push_pull_udp.rs"]
#[allow(dead_code, reason = "its main function")]
mod push_pull_udp;
#[path = "../examples/req_rep.rs"]
#[allow(dead_code, reason = "its main function")]
mod req_rep;
#[path = "../examples/subscribe_ssl.rs"]
#[allow(dead_code, reason = "its main function")]
mod subscribe_ssl;
mod support_events;

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use nlbus::service::netlink::KernelOptions;
use support_events::{Namespace, PATIENCE, Program};
use tempfile::TempDir;

/// The port of every URL in the document.
const PORT: &str = "9824";

/// The address that the document adds.
const ADDED: &str = "192.0.2.7/32";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The part of the document under a heading that begins with this word.
fn chapter(word: &str) -> String {
    let document = fs::read_to_string(root().join("docs/models.md")).unwrap();
    let begins = |chapter: &&str| chapter.starts_with(word);
    document.split("\n## ").find(begins).expect(word).to_owned()
}

/// The code blocks of this language.
fn blocks<'a>(text: &'a str, language: &'a str) -> impl Iterator<Item = &'a str> {
    let fence = format!("```{language}\n");
    text.split("\n```\n").filter_map(move |part| Some(part.split_once(&fence)?.1))
}

/// Where the commands are run: a directory with `tools` in it; the binary under test is `nlbus`. With a
/// network namespace everything is run in there and as it stands. Else the port is another one, which is
/// free.
struct Place {
    directory: TempDir,
    namespace: Option<Namespace>,
    port: String,
}

/// What the commands printed that were waited for, one behind the other.
type Said = Vec<String>;

impl Place {
    fn new(namespace: Option<Namespace>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        symlink(root().join("tools"), directory.path().join("tools")).unwrap();
        let port = match &namespace {
            Some(namespace) => {
                namespace.ip("link set lo up");
                PORT.to_owned()
            }
            None => {
                let free = TcpListener::bind("127.0.0.1:0").unwrap();
                free.local_addr().unwrap().port().to_string()
            }
        };
        Self { directory, namespace, port }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &namespace.name, "bash"]);
                command
            }
            None => Command::new("bash"),
        };
        let line = line.replace(PORT, &self.port);
        command.args(["-e", "-o", "pipefail", "-c", &line]).current_dir(self.directory.path());
        for variable in ["URL", "CERT", "KEY", "CA", "SERVER_NAME"] {
            command.env_remove(format!("NLBUS_{variable}"));
        }
        // tells when a command that waits is ready
        command.env("NLBUS_LOG", "info").env("PATH", path());
        command
    }

    /// Runs each line; what they printed. One with `&` at its end goes on while the next ones run, and those
    /// of them that say how much they take are waited for at the end.
    fn run(&self, lines: &str) -> Said {
        let (mut serving, mut taking, mut said) = (Vec::new(), Vec::new(), Said::new());
        for line in lines.lines() {
            let Some(line) = line.strip_suffix('&') else {
                let output = self.command(line).output().unwrap();
                let errors = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{line}: {errors}");
                said.push(String::from_utf8(output.stdout).unwrap());
                continue;
            };
            let program = Program::start(self.command(&format!("exec {line}")));
            if line.contains(" serve ") {
                for _ in line.matches("://") {
                    program.lines_until(|line| line.starts_with("listening on "));
                }
                serving.push(program);
            } else {
                program.error_line(if line.contains(" pull ") { "pulling" } else { "subscribed" });
                assert!(line.contains(" -C "), "{line}");
                taking.push(program);
            }
        }
        said.extend(taking.into_iter().map(|program| program.assert_ends_with(0).join("\n")));
        said
    }
}

/// That of this process, with the directory of the binary in front.
fn path() -> OsString {
    let binary = Path::new(env!("CARGO_BIN_EXE_nlbus"));
    let mut directories = vec![binary.parent().unwrap().to_owned()];
    directories.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    std::env::join_paths(directories).unwrap()
}

/// The only block of commands in a chapter.
fn commands(chapter: &str) -> String {
    let blocks: Vec<&str> = blocks(chapter, "sh").collect();
    let [commands] = blocks[..] else { panic!("{blocks:?}") };
    commands.to_owned()
}

#[test]
fn the_commands_of_req_rep_show_a_kernels_addresses() {
    for namespace in [None, Namespace::new()] {
        let said = Place::new(namespace).run(&commands(&chapter("REQ/REP")));
        assert!(said[0].contains("127.0.0.1/8"), "{said:?}");
    }
}

#[test]
fn the_commands_of_push_pull_bring_addresses_over_udp() {
    for namespace in [None, Namespace::new()] {
        let said = Place::new(namespace).run(&commands(&chapter("PUSH/PULL")));
        let [nothing, pulled] = &said[..] else { panic!("{said:?}") };
        assert_eq!(nothing, "");
        let devices: Vec<serde_json::Value> = serde_json::from_str(pulled).unwrap();
        assert_eq!(devices[0]["addr_info"][0]["local"], "127.0.0.1", "{pulled}");
    }
}

#[test]
fn the_commands_of_subscribe_tell_of_an_address_over_ssl() {
    let Some(namespace) = Namespace::new() else { return };
    let said = Place::new(Some(namespace)).run(&commands(&chapter("SUBSCRIBE")));
    assert!(said.last().unwrap().contains(ADDED), "{said:?}");
}

#[test]
fn the_programs_in_the_document_are_those_in_examples() {
    for (word, name) in
        [("REQ/REP", "req_rep"), ("PUSH/PULL", "push_pull_udp"), ("SUBSCRIBE", "subscribe_ssl")]
    {
        let chapter = chapter(word);
        let shown: Vec<&str> = blocks(&chapter, "rust").collect();
        let file = fs::read_to_string(root().join(format!("examples/{name}.rs"))).unwrap();
        assert_eq!(shown, [file.trim_end()], "{name}");
        assert!(chapter.contains(&format!("cargo run --example {name}")), "{name}");
    }
}

#[tokio::test]
async fn the_program_of_req_rep_reads_a_kernels_addresses() {
    let url = req_rep::serve(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addresses = req_rep::addresses(&url).await.unwrap();
    assert!(addresses.iter().any(|address| address == "127.0.0.1/8"), "{addresses:?}");
}

#[tokio::test]
async fn the_program_of_push_pull_brings_addresses_over_udp() {
    let any = "udp://127.0.0.1:0".parse().unwrap();
    let (url, mut pulled) = push_pull_udp::serve(&any).await.unwrap();
    let pushed = push_pull_udp::push_addresses(&url).await.unwrap();
    assert_ne!(pushed, 0);
    for _ in 0..pushed {
        let next = tokio::time::timeout(PATIENCE, push_pull_udp::next(&mut pulled));
        let (kind, _) = next.await.expect("a push").unwrap();
        assert_eq!(kind, 20, "RTM_NEWADDR");
    }
}

#[tokio::test]
async fn the_program_of_subscribe_tells_of_an_address_over_ssl() {
    let Some(namespace) = Namespace::new() else { return };
    let place = Place::new(None);
    place.run("tools/certs.sh certs");
    let certs: PathBuf = place.directory.path().join("certs");
    let mut kernel = KernelOptions::default();
    kernel.netns = Some(namespace.name.clone());
    let any = "ssl://127.0.0.1:0".parse().unwrap();
    let url = subscribe_ssl::serve(&any, &certs, &kernel).await.unwrap();
    let mut events = subscribe_ssl::subscribe(&url, &certs).await.unwrap();
    namespace.ip(&format!("address add {ADDED} dev lo"));
    let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event").unwrap();
    let lines = subscribe_ssl::lines(event);
    assert!(lines[0].starts_with("a message of type 20,"), "{lines:?}");
}
