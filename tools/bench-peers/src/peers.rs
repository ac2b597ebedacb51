//! The brokers: how each is started, and how a load is driven through it.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::engine::frames::{FramePort, new_run};
use crate::engine::{self, Dialect, Nlbus, Outcome, Plan, Process, Role, Stream, Usage, Watch};
use crate::nats::Nats;
use crate::redis::Redis;
use crate::relay::EVERYBODY;
use crate::secure::Papers;
use crate::zmtp::{self, Zmtp};

/// How long a server may take to listen.
const START_MAX: Duration = Duration::from_secs(20);

/// Who passes messages on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    Relay,
    Nlbus,
    Nats,
    Zmq,
    Redis,
}

impl Peer {
    pub(crate) const ALL: [Self; 5] =
        [Self::Relay, Self::Nlbus, Self::Nats, Self::Zmq, Self::Redis];
    /// What others use.
    pub(crate) const OTHERS: [Self; 3] = [Self::Nats, Self::Zmq, Self::Redis];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Nlbus => "nlbus",
            Self::Nats => "NATS",
            Self::Zmq => "libzmq",
            Self::Redis => "Redis",
        }
    }

    /// The Debian package that it comes in.
    pub(crate) fn package(self) -> Option<&'static str> {
        match self {
            Self::Relay | Self::Nlbus => None,
            Self::Nats => Some("nats-server"),
            Self::Zmq => Some("libzmq5"),
            Self::Redis => Some("redis-server"),
        }
    }

    /// Its version, if it is there.
    pub(crate) fn version(self, nlbus: &Path) -> Option<String> {
        match self {
            Self::Relay => Some(env!("CARGO_PKG_VERSION").to_owned()),
            Self::Nlbus => last_word(&said(Command::new(nlbus).arg("--version"))?),
            Self::Nats => last_word(&said(Command::new("nats-server").arg("--version"))?),
            Self::Zmq => zmtp::version(),
            Self::Redis => {
                let line = said(Command::new("redis-server").arg("--version"))?;
                line.split(' ').find_map(|word| word.strip_prefix("v=")).map(str::to_owned)
            }
        }
    }
}

fn last_word(line: &str) -> Option<String> {
    Some(line.rsplit(' ').next()?.trim_start_matches('v').to_owned())
}

fn said(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// What is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    Reqrep,
    Push,
    Fanout,
    /// As `Push`, over TLS.
    TlsPush,
}

/// Starts brokers.
pub(crate) struct Starter {
    pub(crate) nlbus: PathBuf,
    pub(crate) papers: Papers,
    pub(crate) directory: PathBuf,
}

/// What one broker did under one load.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) outcome: Outcome,
    /// Of the broker's process, in the measured time.
    pub(crate) usage: Usage,
}

impl Starter {
    /// Starts the broker, drives the load, ends the broker.
    pub(crate) fn measure(&self, peer: Peer, load: Load, plan: &Plan) -> anyhow::Result<Measured> {
        match peer {
            Peer::Relay => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("relay");
                let input = if load == Load::TlsPush {
                    command.arg("--tls");
                    self.papers.together()
                } else {
                    String::new()
                };
                let mut process = Process::start(command, &input)?;
                let at = process.wait_for("listening on tcp://")?;
                let dial = self.dial(at, load == Load::TlsPush);
                drive(&Relay::new(dial), &process, load, plan)
            }
            Peer::Nlbus => {
                let tls = load == Load::TlsPush;
                let (process, at) = self.start_nlbus(tls)?;
                drive(&Nlbus::over(self.dial(at, tls)), &process, load, plan)
            }
            Peer::Nats => {
                let port = free_port()?;
                let mut command = Command::new("nats-server");
                command.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
                let process = start_quietly(command, port)?;
                drive(&Nats { port }, &process, load, plan)
            }
            Peer::Redis => {
                let port = free_port()?;
                let mut command = Command::new("redis-server");
                command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
                command.args(["--save", "", "--appendonly", "no", "--loglevel", "warning"]);
                command.args(["--client-output-buffer-limit", "pubsub 0 0 0"]);
                let process = start_quietly(command, port)?;
                drive(&Redis { port }, &process, load, plan)
            }
            Peer::Zmq => {
                let kind = match load {
                    Load::Reqrep => "reqrep",
                    Load::Push | Load::TlsPush => "push",
                    Load::Fanout => "fanout",
                };
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["zmq-proxy", kind]);
                let mut process = Process::start(command, "")?;
                let said = process.wait_for("listening on ")?;
                drive(&Zmtp::new(&said)?, &process, load, plan)
            }
        }
    }

    fn start_nlbus(&self, tls: bool) -> anyhow::Result<(Process, String)> {
        let mut command = Command::new(&self.nlbus);
        let scheme = if tls { "tls" } else { "tcp" };
        command.args(["serve", &format!("{scheme}://127.0.0.1:0"), "--config", "/dev/stdin"]);
        if tls {
            for (flag, file) in
                [("--cert", "server.crt"), ("--key", "server.key"), ("--ca", "ca.crt")]
            {
                command.arg(flag).arg(self.directory.join(file));
            }
        }
        command.env("NLBUS_LOG", "warn");
        let who = if tls { "certified" } else { "anonymous" };
        let access = format!("[access.{who}]\nrights = [\"use\", \"provide\"]\n");
        let mut process = Process::start(command, &access)?;
        let at = process.wait_for(&format!("listening on {scheme}://"))?;
        Ok((process, at))
    }

    fn dial(&self, at: String, tls: bool) -> Dial {
        let papers = tls.then(|| self.papers.clone());
        Box::new(move || {
            let stream = TcpStream::connect(&at).with_context(|| format!("cannot reach {at}"))?;
            stream.set_nodelay(true)?;
            Ok(match &papers {
                None => Box::new(stream),
                Some(papers) => Box::new(papers.connect(stream)?),
            })
        })
    }
}

type Dial = Box<dyn Fn() -> anyhow::Result<Box<dyn Stream>>>;

fn drive<D: Dialect>(
    dialect: &D,
    process: &Process,
    load: Load,
    plan: &Plan,
) -> anyhow::Result<Measured> {
    let mut meter = Meter { process, began: None, ended: None };
    let outcome = match load {
        Load::Reqrep => engine::reqrep(dialect, plan, &mut meter)?,
        Load::Push | Load::TlsPush => engine::pushpull(dialect, plan, &mut meter)?,
        Load::Fanout => engine::fanout(dialect, plan, &mut meter)?,
    };
    if !outcome.counts.are_sound() {
        bail!("messages were lost, doubled or overtaken: {:?}", outcome.counts);
    }
    let (began, ended) = meter.began.zip(meter.ended).context("its use of the CPU is not known")?;
    let usage = Usage { cpu_seconds: ended.cpu_seconds - began.cpu_seconds, ..ended };
    Ok(Measured { outcome, usage })
}

struct Meter<'p> {
    process: &'p Process,
    began: Option<Usage>,
    ended: Option<Usage>,
}

impl Watch for Meter<'_> {
    fn begin(&mut self) {
        self.began = self.process.usage().ok();
    }

    fn end(&mut self) {
        self.ended = self.process.usage().ok();
    }
}

/// A port that nobody has at the moment.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn start_quietly(mut command: Command, port: u16) -> anyhow::Result<Process> {
    command.stderr(Stdio::null());
    let process = Process::start(command, "")?;
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if start.elapsed() > START_MAX {
            bail!("nothing listens on port {port}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(process)
}

/// The bare relay's side of the load: our frames, whose `dst` is the number of a connection.
struct Relay {
    dial: Dial,
    run: u32,
    opened: std::cell::Cell<u32>,
    /// How many of those opened take what is sent.
    takers: std::cell::Cell<u32>,
}

impl Relay {
    fn new(dial: Dial) -> Self {
        let none = || std::cell::Cell::new(0);
        Self { dial, run: new_run(), opened: none(), takers: none() }
    }
}

impl Dialect for Relay {
    type Port = FramePort;

    fn open(&self, role: Role) -> anyhow::Result<(Box<dyn Stream>, FramePort)> {
        let stream = (self.dial)()?;
        let number = self.opened.replace(self.opened.get() + 1);
        let mut head = nlbus::wire::EnvelopeHead { src: number, ..Default::default() };
        match role {
            Role::Answers | Role::Pulls | Role::Subscribes => self.takers.set(number + 1),
            // who answers was opened first
            Role::Asks(_) | Role::Idles => {}
            Role::Pushes(pusher) => head.dst = pusher as u32 % self.takers.get().max(1),
            Role::Publishes => head.dst = EVERYBODY,
        }
        Ok((stream, FramePort { head }))
    }

    fn run(&self) -> u32 {
        self.run
    }
}
