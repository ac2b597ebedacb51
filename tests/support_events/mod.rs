//! A network namespace, the served kernel of it, and programs whose lines are read one by one.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]
#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio, id};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

/// How long anything may take that is sure to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait before a question is asked again.
const RETRY: Duration = Duration::from_millis(50);

/// Goes with the value.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    /// `None`, and the reason printed, if this process may not make one.
    pub(crate) fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nlb-events-{}-{}", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let made = Command::new("ip").args(["netns", "add", &name]).output();
        if made.is_ok_and(|output| output.status.success()) {
            return Some(Self { name });
        }
        eprintln!(
            "skipped: cannot make a network namespace, which takes root and the command `ip`"
        );
        None
    }

    /// Runs `ip` with these arguments in it; what it printed.
    #[track_caller]
    pub(crate) fn ip(&self, arguments: &str) -> String {
        let output =
            Command::new("ip").args(["-n", &self.name]).args(arguments.split(' ')).output();
        let output = output.unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {arguments}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Has `ip` carry out many commands in one go.
    #[track_caller]
    pub(crate) fn ip_batch(&self, commands: &str) {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// A program under test. Killed with the value.
pub(crate) struct Program {
    child: Child,
    lines: Option<Receiver<String>>,
    errors: Receiver<String>,
}

impl Program {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = Some(lines(child.stdout.take().unwrap()));
        let errors = lines_of_errors(&mut child);
        Self { child, lines, errors }
    }

    pub(crate) fn nlbus(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nlbus"));
        command.args(arguments);
        Self::start(command)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line of standard output.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines.as_ref().unwrap().recv_timeout(PATIENCE).expect("a line of standard output")
    }

    /// The lines up to the first that `ends`, which is left out.
    #[track_caller]
    pub(crate) fn lines_until(&self, ends: impl Fn(&str) -> bool) -> Vec<String> {
        std::iter::from_fn(|| Some(self.line()).filter(|line| !ends(line))).collect()
    }

    /// Calls `poke` until a line comes.
    #[track_caller]
    pub(crate) fn poke_until_it_speaks(&self, poke: impl Fn()) {
        loop {
            poke();
            match self.lines.as_ref().unwrap().recv_timeout(RETRY) {
                Ok(_) => return,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("the program has ended"),
            }
        }
    }

    /// Waits for a line of standard error that contains `words`.
    #[track_caller]
    pub(crate) fn error_line(&self, words: &str) -> String {
        loop {
            let line = self.errors.recv_timeout(PATIENCE).expect("a line of standard error");
            if line.contains(words) {
                return line;
            }
        }
    }

    /// The line of standard error that contains `words`, if it has come.
    pub(crate) fn error_line_so_far(&self, words: &str) -> Option<String> {
        self.errors.try_iter().find(|line| line.contains(words))
    }

    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Sends a signal as kill(1) names it.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// What is left of standard output, and how it ended.
    pub(crate) fn finish(mut self) -> (Vec<String>, ExitStatus) {
        drop(self.child.stdin.take());
        let rest = self.lines.take().unwrap().iter().collect();
        (rest, self.child.wait().unwrap())
    }

    #[track_caller]
    pub(crate) fn assert_ends_with(self, code: i32) -> Vec<String> {
        let (rest, status) = self.finish();
        assert_eq!(status.code(), Some(code), "{rest:?}");
        rest
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of_errors(child: &mut Child) -> Receiver<String> {
    lines(child.stderr.take().unwrap())
}

fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = sync_channel(1_000_000);
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// `nlbus serve` at an abstract unix socket, up and listening.
pub(crate) struct Served {
    pub(crate) url: String,
    pub(crate) program: Program,
}

impl Served {
    #[track_caller]
    pub(crate) fn start(namespace: Option<&Namespace>) -> Self {
        let arguments: Vec<&str> =
            namespace.iter().flat_map(|namespace| ["--netns", &namespace.name]).collect();
        Self::start_with(&arguments).0
    }

    /// A broker on a socket of its own, with further arguments; and what it says that it listens on last.
    #[track_caller]
    pub(crate) fn start_with(further: &[&str]) -> (Self, String) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let url = format!("unix://@nlbus-events-{}-{count}", id());
        let program = Program::nlbus(&[&["serve", &url], further].concat());
        let urls = 1 + further.iter().filter(|argument| argument.contains("://")).count();
        let mut last = String::new();
        for _ in 0..urls {
            last = loop {
                if let Some(url) = program.line().strip_prefix("listening on ") {
                    break url.to_owned();
                }
            };
        }
        (Self { url, program }, last)
    }

    /// A command that talks to it.
    pub(crate) fn command(&self, arguments: &[&str]) -> Program {
        Program::nlbus(&[arguments, &["-u", &self.url]].concat())
    }
}
