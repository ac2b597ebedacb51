//! A broker with queues as a process, and commands to it.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support_cli::{Ended, Serve, nlbus, run, text};

/// When a test gives up. Nothing passes or fails by being faster or slower than it.
const HANG: Duration = Duration::from_secs(60);

/// A directory of one's own, and a socket in it.
pub(crate) struct Bus {
    directory: tempfile::TempDir,
    pub(crate) url: String,
}

impl Bus {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("unix://{}", text(&directory.path().join("socket")));
        Self { directory, url }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The path of a directory for the state.
    pub(crate) fn state(&self) -> String {
        let path = self.path("state");
        std::fs::create_dir_all(&path).unwrap();
        text(&path).to_owned()
    }

    pub(crate) fn serve(&self, arguments: &[&str]) -> Serve {
        Serve::start(&[&["--queues", self.url.as_str()], arguments].concat(), 1)
    }

    /// `nlbus queue …` at this broker.
    pub(crate) fn queue(&self, arguments: &[&str]) -> Ended {
        run(self.command(arguments))
    }

    /// What `nlbus queue …` printed; it must not have failed.
    #[track_caller]
    pub(crate) fn out(&self, arguments: &[&str]) -> String {
        let ended = self.queue(arguments);
        ended.ok();
        ended.out
    }

    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.out(arguments)).unwrap()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = nlbus(&[&["queue"], arguments].concat());
        command.env("NLBUS_URL", &self.url);
        command
    }

    /// Starts it without waiting for its end.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::spawn(self.command(arguments))
    }

    /// A server, once it serves.
    pub(crate) fn server(&self, arguments: &[&str]) -> Running {
        let mut server = self.start(&[&["serve"], arguments].concat());
        let line = server.line();
        assert!(line.starts_with("serving"), "{line:?}");
        server
    }

    /// Runs it with this as its standard input: its exit code and what it printed.
    pub(crate) fn with_input(&self, arguments: &[&str], input: &[u8]) -> (Option<i32>, Vec<u8>) {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writing = std::thread::spawn({
            let input = input.to_vec();
            move || stdin.write_all(&input)
        });
        let output = child.wait_with_output().unwrap();
        let _ = writing.join().unwrap();
        (output.status.code(), output.stdout)
    }

    /// Looks at a queue until it is as it should be.
    pub(crate) fn until(&self, queue: &str, is: impl Fn(&Value) -> bool) -> Value {
        let given_up = Instant::now() + HANG;
        loop {
            let queues = self.json(&["list", "--all", "--json", "--prefix", queue]);
            let found = queues.as_array().unwrap().iter().find(|found| found["name"] == queue);
            if let Some(found) = found.filter(|found| is(found)) {
                return found.clone();
            }
            assert!(Instant::now() < given_up, "it stays as it is: {queues}");
        }
    }
}

/// A process that has not ended yet. Dropping it ends it.
pub(crate) struct Running {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Running {
    pub(crate) fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }

    /// Reads until a line that begins so.
    #[track_caller]
    pub(crate) fn until_line(&mut self, start: &str) {
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "it ended without saying {start:?}");
            if line.starts_with(start) {
                return;
            }
        }
    }

    /// Waits for its end: the exit code and what else it printed.
    pub(crate) fn wait(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it in good order.
    #[track_caller]
    pub(crate) fn end(self) {
        self.end_and_log();
    }

    /// The same: what it said on standard error.
    #[track_caller]
    pub(crate) fn end_and_log(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        log
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is at `path`.
pub(crate) fn wait_for(path: &Path) {
    let given_up = Instant::now() + HANG;
    while !path.exists() {
        assert!(Instant::now() < given_up, "there is no {}", path.display());
        std::thread::yield_now();
    }
}
