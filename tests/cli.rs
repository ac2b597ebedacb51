//! The `nlbus` command from the outside: what it prints, how it ends, what it leaves behind.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]
#![allow(clippy::print_stdout, reason = "a test that is skipped says why")]

mod support_node;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nlbus::wire::{EnvelopeHead, MessageBuilder, Messages, flag, nlm};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use support_node::fake::fake_server;
use support_node::frames::{ask, control, data, head_of, message, payload_of, split};
use tempfile::TempDir;

/// Nothing here takes this long unless it hangs.
const HANGS: Duration = Duration::from_secs(60);

fn nlbus() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nlbus"));
    // a resolver that cannot be reached must not take longer than the command waits
    command
        .env_remove("NLBUS_URL")
        .env_remove("NLBUS_LOG")
        .env("RES_OPTIONS", "attempts:1 timeout:1");
    command.stdin(Stdio::null());
    command
}

/// A process that is ended, by its own number, when the test ends.
struct Process {
    child: Child,
}

impl Process {
    fn spawn(command: &mut Command) -> Self {
        Self { child: command.spawn().unwrap() }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for the end: the exit code.
    fn end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + HANGS;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running `nlbus serve`.
struct Serve {
    process: Process,
    urls: Vec<String>,
    lines: Vec<String>,
    _stdout: BufReader<ChildStdout>,
}

impl Serve {
    fn start(arguments: &[&str]) -> Self {
        Self::start_in(Path::new("."), arguments)
    }

    fn start_in(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = nlbus();
        command.env("NLBUS_LOG", "off").current_dir(directory).arg("serve").args(arguments);
        let mut process = Process::spawn(command.stdout(Stdio::piped()));
        let mut stdout = BufReader::new(process.child.stdout.take().unwrap());
        let wanted = arguments.iter().filter(|argument| argument.contains("://")).count();
        let (mut urls, mut lines) = (Vec::new(), Vec::new());
        while urls.len() < wanted {
            let mut line = String::new();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "it ended: {lines:?}");
            urls.extend(line.trim_end().strip_prefix("listening on ").map(str::to_owned));
            lines.push(line.trim_end().to_owned());
        }
        Self { process, urls, lines, _stdout: stdout }
    }

    fn assert_serves(&self) {
        for url in &self.urls {
            let output = show(url);
            assert_eq!(output.status.code(), Some(0), "{url}: {}", stderr(&output));
            let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(!links.as_array().unwrap().is_empty());
        }
    }
}

fn show(url: &str) -> Output {
    nlbus().args(["show", "link", "-j", "-u", url]).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A command that fails says so in one line that begins with its name: that line.
fn one_line(output: &Output, code: i32) -> String {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("nlbus: ")).collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(said.ends_with(&format!("{}\n", lines[0])), "{said}");
    lines[0].to_owned()
}

fn serve_fails(arguments: &[&str], code: i32) -> String {
    let mut process = nlbus();
    process.env("NLBUS_LOG", "warn").arg("serve").args(arguments);
    let mut process = Process::spawn(process.stdout(Stdio::piped()).stderr(Stdio::piped()));
    process.end();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    process.child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    process.child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    let status = process.child.wait().unwrap();
    one_line(&Output { status, stdout, stderr }, code)
}

fn unix_url(directory: &TempDir) -> String {
    format!("unix://{}/bus.sock", directory.path().display())
}

fn files(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A name that no other run of these tests has.
fn abstract_name(what: &str) -> String {
    format!("nlbus-test-{what}-{}", std::process::id())
}

// --- serve ---

#[test]
fn serve_on_port_0_prints_the_url_and_what_it_serves() {
    let serve = Serve::start(&["tcp://127.0.0.1:0"]);
    let port = serve.urls[0].strip_prefix("tcp://127.0.0.1:").unwrap();
    assert_ne!(port.parse::<u16>().unwrap(), 0);
    assert_eq!(serve.lines[0], "serving route at 0x00010003, read-only");
    assert_eq!(serve.lines[1], "serving generic at 0x00010004, read-only");
    serve.assert_serves();
}

#[test]
fn sigterm_and_sigint_end_it_with_0_and_remove_the_socket_file() {
    for signal in [Signal::TERM, Signal::INT] {
        let directory = tempfile::tempdir().unwrap();
        let mut serve = Serve::start(&[&unix_url(&directory), "tcp://127.0.0.1:0"]);
        serve.assert_serves();
        assert_eq!(files(&directory), ["bus.sock"]);
        serve.process.signal(signal);
        assert_eq!(serve.process.end(), Some(0), "{signal:?}");
        assert_eq!(files(&directory), [""; 0]);
        assert!(TcpStream::connect(serve.urls[1].strip_prefix("tcp://").unwrap()).is_err());
    }
}

#[test]
fn several_urls_lead_to_one_broker() {
    let directory = tempfile::tempdir().unwrap();
    let name = abstract_name("several");
    let serve = Serve::start(&[
        "tcp://127.0.0.1:0",
        "tcp://localhost:0",
        &unix_url(&directory),
        &format!("unix://@{name}"),
    ]);
    assert_eq!(serve.urls.len(), 4);
    serve.assert_serves();
}

#[test]
fn unix_paths_may_be_relative_and_the_file_goes_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let mut serve = Serve::start_in(directory.path(), &["unix://relative.sock"]);
    assert_eq!(serve.urls, ["unix://relative.sock"]);
    let url = format!("unix://{}/relative.sock", directory.path().display());
    assert_eq!(show(&url).status.code(), Some(0));
    serve.process.signal(Signal::TERM);
    assert_eq!(serve.process.end(), Some(0));
    assert_eq!(files(&directory), [""; 0]);
}

#[test]
fn an_abstract_name_is_written_with_an_at_or_as_the_original_does() {
    let name = abstract_name("abstract");
    for written in [format!("unix://@{name}"), format!("unix://\\x00{name}")] {
        let serve = Serve::start(&[&written]);
        assert_eq!(serve.urls, [format!("unix://@{name}")]);
        for url in [format!("unix://@{name}"), format!("unix://\\x00{name}")] {
            assert_eq!(show(&url).status.code(), Some(0), "{url}");
        }
        let again = serve_fails(&[&written], 1);
        assert!(again.contains("in use"), "{again}");
    }
}

#[test]
fn a_stale_socket_file_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let url = unix_url(&directory);
    let mut first = Serve::start(&[&url]);
    first.process.signal(Signal::KILL);
    assert_eq!(first.process.end(), None);
    assert_eq!(files(&directory), ["bus.sock"], "it is left behind");
    let mut second = Serve::start(&[&url]);
    second.assert_serves();
    second.process.signal(Signal::TERM);
    assert_eq!(second.process.end(), Some(0));
    assert_eq!(files(&directory), [""; 0]);
}

#[test]
fn a_live_socket_is_an_error_that_says_so_and_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let url = unix_url(&directory);
    let serve = Serve::start(&[&url]);
    let line = serve_fails(&[&url], 1);
    assert!(line.contains(&url) && line.contains("in use"), "{line}");
    serve.assert_serves();

    let file = directory.path().join("file");
    fs::write(&file, "not a socket").unwrap();
    let line = serve_fails(&[&format!("unix://{}", file.display())], 1);
    assert!(line.contains("not a socket"), "{line}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "not a socket");
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", taken.local_addr().unwrap());
    let line = serve_fails(&[&url], 1);
    assert!(line.contains(&url) && line.contains("in use"), "{line}");
    // the sockets that were had before it are given back
    let directory = tempfile::tempdir().unwrap();
    serve_fails(&[&unix_url(&directory), &url], 1);
    assert_eq!(files(&directory), [""; 0]);
}

#[test]
fn a_directory_that_is_not_there_and_a_host_that_is_not_ours_are_told() {
    let line = serve_fails(&["unix:///no/such/directory/bus.sock"], 5);
    assert!(line.contains("directory"), "{line}");
    let line = serve_fails(&["tcp://[fe80::1%nosuchlink]:0", "--insecure"], 5);
    assert!(line.contains("fe80::1%nosuchlink"), "{line}");
    let line = serve_fails(&["tcp://192.0.2.1:0", "--insecure"], 1);
    assert!(line.contains("not an address of this machine"), "{line}");
}

#[test]
fn a_network_namespace_that_is_not_there_is_not_found() {
    let line = serve_fails(&["tcp://127.0.0.1:0", "--netns", "no-such-namespace"], 5);
    assert!(line.contains("no-such-namespace"), "{line}");
}

#[test]
fn a_listener_off_loopback_has_to_be_insisted_on() {
    for url in ["tcp://0.0.0.0:0", "tcp://[::]:0", "tcp://192.0.2.1:0"] {
        let line = serve_fails(&["tcp://127.0.0.1:0", url], 2);
        assert!(line.contains(url) && line.contains("--insecure"), "{line}");
    }
    let serve = Serve::start(&["tcp://0.0.0.0:0", "--insecure"]);
    let port = serve.urls[0].strip_prefix("tcp://0.0.0.0:").unwrap();
    assert_eq!(show(&format!("tcp://127.0.0.1:{port}")).status.code(), Some(0));
}

#[test]
fn further_subsystems_are_served_by_name() {
    let serve = Serve::start(&["tcp://127.0.0.1:0", "--subsystem", "again=netlink:0"]);
    assert_eq!(serve.lines[2], "serving again at 0x00010005, read-only");
    let output = nlbus()
        .args(["show", "link", "-j", "--subsystem", "again", "-u", &serve.urls[0]])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

/// Whether `frames` hold only whole answers: how many.
fn whole_answers(frames: &[Vec<u8>]) -> usize {
    let mut answers = 0;
    let mut open = None;
    for frame in frames {
        let sequence = head_of(frame).sequence;
        assert!(open.is_none_or(|open| open == sequence), "one answer after another");
        open = Some(sequence);
        for message in Messages::new(payload_of(frame)) {
            if message.unwrap().header.kind == nlm::DONE {
                answers += 1;
                open = None;
            }
        }
    }
    assert_eq!(open, None, "the last answer is cut");
    answers
}

#[test]
fn answers_in_flight_at_sigterm_arrive_whole() {
    let directory = tempfile::tempdir().unwrap();
    let mut serve = Serve::start(&[&unix_url(&directory), "tcp://127.0.0.1:0"]);
    // RTM_GETROUTE of the table `local`: there are always some
    let dump =
        MessageBuilder::new(26, nlm::REQUEST | nlm::DUMP).sequence(1).body(&[0; 12]).finish();
    let requests: Vec<u8> = (0..300).flat_map(|n| ask(0x0001_0003, 0, n, &dump)).collect();
    let mut tcp = TcpStream::connect(serve.urls[1].strip_prefix("tcp://").unwrap()).unwrap();
    let mut unix = UnixStream::connect(directory.path().join("bus.sock")).unwrap();
    tcp.set_read_timeout(Some(HANGS)).unwrap();
    unix.set_read_timeout(Some(HANGS)).unwrap();
    tcp.write_all(&requests).unwrap();
    unix.write_all(&requests).unwrap();
    let mut first = [0];
    tcp.read_exact(&mut first).unwrap();
    serve.process.signal(Signal::TERM);
    // both read at once: a peer that does not read loses its answers when the grace is over
    let other = std::thread::spawn(move || {
        let mut received = Vec::new();
        unix.read_to_end(&mut received).unwrap();
        received
    });
    let mut received = first.to_vec();
    tcp.read_to_end(&mut received).unwrap();
    assert!(whole_answers(&split(&received)) > 0);
    whole_answers(&split(&other.join().unwrap()));
    assert_eq!(serve.process.end(), Some(0));
}

#[test]
fn an_idle_client_does_not_keep_it_from_ending() {
    let mut serve = Serve::start(&["tcp://127.0.0.1:0"]);
    let mut idle = TcpStream::connect(serve.urls[0].strip_prefix("tcp://").unwrap()).unwrap();
    idle.set_read_timeout(Some(HANGS)).unwrap();
    // one that is not accepted yet is reset
    let hello = control(0, 1, nlbus::wire::Command::Hello, |control| Ok(control));
    idle.write_all(&hello).unwrap();
    assert_ne!(idle.read(&mut [0; 1_024]).unwrap(), 0);
    serve.process.signal(Signal::TERM);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    assert_eq!(serve.process.end(), Some(0));
}

// --- show ---

#[test]
fn show_takes_the_url_from_the_environment_unless_it_is_given() {
    let serve = Serve::start(&["tcp://127.0.0.1:0"]);
    for object in ["link", "addr", "route", "neigh", "rule"] {
        let output =
            nlbus().env("NLBUS_URL", &serve.urls[0]).args(["show", object]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{object}: {}", stderr(&output));
    }
    let output = nlbus()
        .env("NLBUS_URL", "unix:///no/such/socket")
        .args(["show", "link", "-u", &serve.urls[0]])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output =
        nlbus().env("NLBUS_URL", "unix:///no/such/socket").args(["show", "link"]).output().unwrap();
    assert!(one_line(&output, 5).contains("/no/such/socket"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let serve = Serve::start(&["tcp://127.0.0.1:0"]);
    for arguments in [&["show", "link", "-j"][..], &["show", "link"]] {
        let mut command = nlbus();
        command.env("NLBUS_URL", &serve.urls[0]).args(arguments);
        let mut process = Process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        drop(process.child.stdout.take());
        assert_eq!(process.end(), Some(0));
        let mut said = String::new();
        process.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "");
    }
}

#[test]
fn a_refused_connection_is_3() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let line = one_line(&show(&format!("tcp://{port}")), 3);
    assert!(line.contains("refused"), "{line}");
    let directory = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(directory.path().join("bus.sock")).unwrap());
    one_line(&show(&unix_url(&directory)), 3);
}

#[test]
fn what_is_not_there_is_5() {
    let serve = Serve::start(&["tcp://127.0.0.1:0"]);
    let output = nlbus()
        .args(["show", "link", "--subsystem", "nothing", "-u", &serve.urls[0]])
        .output()
        .unwrap();
    let line = one_line(&output, 5);
    assert!(line.contains("nothing"), "{line}");
    let line = one_line(&show("tcp://no-such-host.invalid:1"), 5);
    assert!(line.contains("no-such-host.invalid"), "{line}");
    one_line(&show("tcp://[fe80::1%nosuchlink]:1"), 5);
    one_line(&show("unix:///no/such/socket"), 5);
}

#[test]
fn no_answer_in_time_is_4() {
    // nobody says anything at all
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", silent.local_addr().unwrap());
    let show = |url: &str| nlbus().args(["show", "link", "--timeout", "0.2", "-u", url]).output();
    let line = one_line(&show(&url).unwrap(), 4);
    assert!(line.contains("200ms"), "{line}");
    // somebody greets, and then takes its time
    let (url, serving) = fake_server(|socket, _| {
        let _ = socket.read_to_end(&mut Vec::new());
    });
    let line = one_line(&show(&url.to_string()).unwrap(), 4);
    assert!(line.contains("200ms"), "{line}");
    serving.join().unwrap();
}

#[test]
fn a_connection_that_is_lost_is_6() {
    let (url, serving) = fake_server(|socket, head| {
        let answer = EnvelopeHead { flags: flag::RESPONSE, dst: head.src, src: head.dst, ..head };
        let frame = data(answer, &message(nlm::MULTI, 1, &[0; 100]));
        socket.write_all(&frame[..frame.len() - 7]).unwrap();
    });
    let line = one_line(&show(&url.to_string()), 6);
    assert!(line.contains("lost"), "{line}");
    serving.join().unwrap();
}

#[test]
fn what_is_no_bus_is_told_and_is_no_success() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(b"220 mail.example ESMTP\r\n").unwrap();
        let _ = socket.read_to_end(&mut Vec::new());
    });
    let line = one_line(&show(&url), 6);
    assert!(line.contains("does not speak the protocol"), "{line}");
    serving.join().unwrap();
}

// --- usage ---

#[test]
fn a_wrong_command_line_is_2_and_names_the_part_that_is_wrong() {
    for (arguments, part) in [
        (&["serve", "ftp://127.0.0.1"][..], "ftp"),
        (&["serve", "tcp://127.0.0.1:99999"], "99999"),
        (&["serve", "tcp://[::1"], "[::1"),
        (&["serve", "tcp://"], "host"),
        (&["serve", "unix://"], "path"),
        (&["serve", "127.0.0.1:9824"], "scheme"),
        (&["serve", "--subsystem", "audit=9"], "netlink:"),
        (&["show", "link", "-u", "tcp:/127.0.0.1"], "tcp:/127.0.0.1"),
        (&["show", "link", "-u", "tcp://127.0.0.1:port"], "port"),
        (&["show", "link", "--timeout", "0"], "seconds"),
        (&["show", "nothing"], "nothing"),
        (&["show", "link", "--table", "main"], "table"),
        (&["show"], "Usage"),
        (&["frobnicate"], "frobnicate"),
        (&[], "Usage"),
    ] {
        let output = nlbus().args(arguments).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?} does not say {part:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn the_help_of_each_command_has_an_example() {
    for arguments in [
        &["--help"][..],
        &["serve", "--help"],
        &["show", "--help"],
        &["decode", "--help"],
        &["demo", "--help"],
    ] {
        let output = nlbus().args(arguments).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0));
        let example =
            said.split("Example").nth(1).unwrap_or_else(|| panic!("{arguments:?}: {said}"));
        assert!(example.contains("nlbus "), "{example}");
    }
    let output = nlbus().arg("--version").output().unwrap();
    let version = concat!("nlbus ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), version);
}

// --- demo ---

#[test]
fn the_demo_needs_no_root_and_ends_with_a_summary() {
    // where anybody may run it
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = directory.path().join("nlbus");
    fs::copy(env!("CARGO_BIN_EXE_nlbus"), &binary).unwrap();
    let mut command = Command::new(&binary);
    command.arg("demo").current_dir("/").env_remove("NLBUS_URL").env_remove("NLBUS_LOG");
    if geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: a copy of the command cannot be run here: {error}");
            return;
        }
    };
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("nlbus demo: ok, "), "{last}");
    assert!(
        last.contains("interfaces") && last.ends_with("1 event, 1 answer and 2 pushes received"),
        "{last}"
    );
    assert!(said.contains("by hand: nlbus show link -u tcp://127.0.0.1:"), "{said}");
    for part in ["hello, bus", "answered \"HELLO\"", "pulled \"first\"\n   pulled \"second\""] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
