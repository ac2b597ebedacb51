//! `nlbus` as processes.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// When a test gives up. Nothing passes or fails by being faster or slower than it.
const HANG: Duration = Duration::from_secs(120);

/// `nlbus` with these arguments, none of its variables set.
pub(crate) fn nlbus(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments);
    clean(&mut command);
    command
}

/// The binary; there is none without the feature `cli`.
pub(crate) fn program() -> &'static str {
    match option_env!("CARGO_BIN_EXE_nlbus") {
        Some(path) => path,
        None => panic!("the feature `cli` is off"),
    }
}

fn clean(command: &mut Command) {
    for variable in ["URL", "CERT", "KEY", "CA", "SERVER_NAME", "SECRET_FILE", "LOG"] {
        command.env_remove(format!("NLBUS_{variable}"));
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a command to its end.
pub(crate) fn run(mut command: Command) -> Ended {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

impl Ended {
    /// It did what it was asked.
    #[track_caller]
    pub(crate) fn ok(&self) {
        assert_eq!(self.code, Some(0), "{self:?}");
    }

    /// It ended with this code, and said in one line each of these things.
    #[track_caller]
    pub(crate) fn failed(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for part in parts {
            assert!(self.err.lines().any(|line| line.contains(part)), "no {part:?} in {self:?}");
        }
    }
}

/// A running `nlbus serve`. Dropping it ends it.
pub(crate) struct Serve {
    child: Child,
    log: Receiver<String>,
    /// Where it listens, in the order of the arguments.
    pub(crate) urls: Vec<String>,
    /// What it said until then.
    pub(crate) said: Vec<String>,
}

impl Serve {
    /// Starts it, and waits until it listens at `count` URLs.
    pub(crate) fn start(arguments: &[&str], count: usize) -> Self {
        let mut command = nlbus(&["serve"]);
        command.args(arguments);
        Self::spawn(command, count)
    }

    /// As [`start`](Self::start), for a command that becomes `nlbus serve`.
    pub(crate) fn spawn(mut command: Command, count: usize) -> Self {
        clean(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = lines(child.stdout.take().unwrap());
        let log = lines(child.stderr.take().unwrap());
        let mut serve = Self { child, log, urls: Vec::new(), said: Vec::new() };
        while serve.urls.len() < count {
            let Ok(line) = out.recv_timeout(HANG) else {
                let log: Vec<String> = serve.log.iter().collect();
                panic!("it does not listen: {log:#?}");
            };
            serve.urls.extend(line.strip_prefix("listening on ").map(str::to_owned));
            serve.said.push(line);
        }
        serve
    }

    pub(crate) fn hang_up(&self) {
        kill_process(self.pid(), Signal::HUP).unwrap();
    }

    /// Waits for a line of the log, from where the last wait ended.
    #[track_caller]
    pub(crate) fn wait_for_log(&self, part: &str) -> String {
        loop {
            match self.log.recv_timeout(HANG) {
                Ok(line) if line.contains(part) => return line,
                Ok(_) => {}
                Err(error) => panic!("no {part:?} in the log: {error}"),
            }
        }
    }

    /// The lines of the log from where the last wait ended to one with this in it.
    #[track_caller]
    pub(crate) fn log_to(&self, part: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.log.recv_timeout(HANG) {
                Ok(line) if line.contains(part) => return lines,
                Ok(line) => lines.push(line),
                Err(error) => panic!("no {part:?} in the log: {error}"),
            }
        }
    }

    /// Waits until it has ended by itself: its exit code.
    pub(crate) fn wait(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Ends it without any order.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it in good order.
    #[track_caller]
    pub(crate) fn end(mut self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    lines
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
