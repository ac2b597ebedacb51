//! `nlbus bench`: what a broker does in a second, and how long one message takes.

mod engine;
mod idle;
mod kernel;
mod queue;
mod report;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::bail;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use nlbus::url::BusUrl;
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use crate::connect::seconds;
use crate::exit::{Exit, UsageError};
use engine::tally::STAMP_BYTES;
use engine::{Nlbus, Outcome, Plan, Process, Usage, Watch};
use report::{Report, Row};

/// What may be under way of pushes and broadcasts, in bytes of payload, unless --outstanding says it.
const WINDOW_BYTES: usize = 1 << 20;
/// The same in messages.
const WINDOW_MESSAGES: usize = 8_192;
/// The longest payload that is measured: it fits one frame.
const SIZE_MAX: usize = 61_440;
/// What may take part at once.
const CLIENTS_MAX: usize = 16_000;
const OUTSTANDING_MAX: usize = 1 << 20;

/// Measure a broker: its own, which it starts and ends, or the one at --url.
///
/// Every message is numbered and counted: one that is lost, comes twice or out of order is an error, with
/// exit code 1. The load is driven from one thread over plain sockets, and to measure, a link needs the right
/// to provide. Queues are driven from one thread by the library's client, and need a broker with queues.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// What is measured.
    #[arg(value_enum)]
    kind: Kind,
    /// URL of a broker that runs, tcp:// or unix://; without it, `bench` starts one on a free port.
    #[arg(short, long)]
    url: Option<BusUrl>,
    /// Payload of each message in bytes, 16 to 61440.
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = within(STAMP_BYTES, SIZE_MAX))]
    size: usize,
    /// reqrep: askers [default: 1]. pushpull: as many push as pull [default: 1]. fanout: subscribers
    /// [default: 64]. idle: links that do nothing [default: 10000].
    #[arg(long, value_name = "COUNT", value_parser = within(1, CLIENTS_MAX))]
    clients: Option<usize>,
    /// Messages under way at once. reqrep: of all askers [default: one each]; pushpull: of all; fanout: to the
    /// slowest subscriber [default: 1 MiB of payload, at most 8192]; queue: in memory until they are
    /// acknowledged [default: 8192], on disk until they are stored [default: 64].
    #[arg(long, value_name = "COUNT", value_parser = within(1, OUTSTANDING_MAX))]
    outstanding: Option<usize>,
    /// How long is measured, after a fifth of that as a warm-up.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    seconds: Duration,
    /// Stay on this CPU, and the broker that is started too.
    #[arg(long, value_name = "CPU")]
    cpu: Option<usize>,
    #[command(flatten)]
    queue: queue::QueueArgs,
    /// Print one JSON object; benches/README.md in the source has its keys.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Example:
  nlbus bench reqrep
  nlbus bench reqrep --clients 16 --outstanding 64 --seconds 2 --json
  nlbus bench pushpull --size 16384 -u unix:///run/nlbus.sock
  nlbus bench idle --clients 10000
  nlbus bench queue --state /var/lib --outstanding 64";

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Requests, each answered with its own payload.
    Reqrep,
    /// Pushes, shared out among pullers.
    Pushpull,
    /// Broadcasts to subscribers.
    Fanout,
    /// Memory for each idle link, and requests without and with them.
    Idle,
    /// Netlink requests through the broker, beside a netlink socket of one's own.
    Kernel,
    /// Queues: send, receive and acknowledge in memory; send to the disk, beside SQLite alone.
    Queue,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Reqrep => "reqrep",
            Self::Pushpull => "pushpull",
            Self::Fanout => "fanout",
            Self::Idle => "idle",
            Self::Kernel => "kernel",
            Self::Queue => "queue",
        }
    }
}

/// Measures on a thread of its own. A broker that was started does not outlive SIGTERM: it is ended, and the
/// load sees its end.
pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    let ending = Arc::new(Ending::default());
    if args.url.is_some() {
        return tokio::task::spawn_blocking(move || measure(&args, &ending)).await?;
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let seen = Arc::clone(&ending);
    let mut work = tokio::task::spawn_blocking(move || measure(&args, &seen));
    loop {
        tokio::select! {
            done = &mut work => return done?,
            Some(()) = terminate.recv() => ending.ask(),
        }
    }
}

/// Whether a run is to end early, and the broker that ends it by its own end. Each side first says what it
/// knows and then looks at what the other has said, so that one of them ends it.
#[derive(Default)]
struct Ending {
    asked: AtomicBool,
    broker: OnceLock<Pid>,
}

impl Ending {
    fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
        if let Some(pid) = self.broker.get() {
            // one that has ended already is what is wanted
            let _ = kill_process(*pid, Signal::TERM);
        }
    }

    fn started(&self, broker: &Process) -> anyhow::Result<()> {
        self.broker.get_or_init(|| broker.pid());
        if self.asked.load(Ordering::SeqCst) { bail!("ended by SIGTERM") } else { Ok(()) }
    }
}

fn measure(args: &Args, ending: &Ending) -> anyhow::Result<Exit> {
    if let Some(cpu) = args.cpu {
        engine::pin(cpu).map_err(|error| UsageError(format!("{error:#}")))?;
    }
    let report = match args.kind {
        Kind::Queue => queue::measure(args, ending)?,
        kind => {
            let bench = Bench::new(args)?;
            if let Some(process) = &bench.process {
                ending.started(process)?;
            }
            match kind {
                Kind::Idle => idle::measure(&bench)?,
                Kind::Kernel => kernel::measure(&bench)?,
                _ => Report::of(&bench, vec![bench.drive(kind, kind.name())?]),
            }
        }
    };
    let text = if args.json { report.json() } else { report.table() };
    writeln!(io::stdout(), "{text}")?;
    if let Some(complaint) = report.complaint() {
        writeln!(io::stderr(), "nlbus: {complaint}")?;
        return Ok(Exit::Failed);
    }
    Ok(Exit::Ok)
}

/// A broker, and what is to be done to it.
struct Bench<'a> {
    args: &'a Args,
    /// Ours, unless it was given.
    process: Option<Process>,
    url: BusUrl,
    nlbus: Nlbus,
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args) -> anyhow::Result<Self> {
        Self::start(args, &[])
    }

    /// With further `options` for a broker that is started.
    fn start(args: &'a Args, options: &[OsString]) -> anyhow::Result<Self> {
        let (process, url) = match &args.url {
            Some(url) => (None, url.clone()),
            None => {
                let (process, url) = start_broker(options)?;
                (Some(process), url)
            }
        };
        let nlbus = Nlbus::new(url.clone()).map_err(|error| UsageError(error.to_string()))?;
        Ok(Self { args, process, url, nlbus })
    }

    /// What of the broker's process is known so far.
    fn usage(&self) -> anyhow::Result<Option<Usage>> {
        self.process.as_ref().map(Process::usage).transpose()
    }

    /// How many clients there are.
    fn clients(&self) -> usize {
        let default = match self.args.kind {
            Kind::Reqrep | Kind::Pushpull | Kind::Kernel | Kind::Queue => 1,
            Kind::Fanout => 64,
            Kind::Idle => 10_000,
        };
        self.args.clients.unwrap_or(default)
    }

    fn plan(&self, kind: Kind) -> anyhow::Result<Plan> {
        let clients = if self.args.kind == Kind::Idle { 1 } else { self.clients() };
        let size = self.args.size;
        let window = (WINDOW_BYTES / size).clamp(2, WINDOW_MESSAGES);
        let default = if kind == Kind::Reqrep { clients } else { window };
        let outstanding = self.args.outstanding.unwrap_or(default);
        if kind == Kind::Reqrep && outstanding < clients {
            let text =
                format!("{clients} askers cannot share {outstanding} requests: --outstanding");
            return Err(UsageError(text).into());
        }
        let measured = self.args.seconds;
        let warm_up = measured / 5;
        Ok(Plan { size, clients, pullers: clients, outstanding, warm_up, measured })
    }

    /// Runs one load.
    fn drive(&self, kind: Kind, name: &str) -> anyhow::Result<Row> {
        let plan = self.plan(kind)?;
        let mut meter = Meter::new(self, name);
        let outcome: Outcome = match kind {
            Kind::Pushpull => engine::pushpull(&self.nlbus, &plan, &mut meter)?,
            Kind::Fanout => engine::fanout(&self.nlbus, &plan, &mut meter)?,
            _ => engine::reqrep(&self.nlbus, &plan, &mut meter)?,
        };
        let usage = meter.used()?;
        Ok(Row { name: name.to_owned(), plan: Some(plan), outcome, usage })
    }
}

/// Our own executable as a broker that lets everybody provide.
fn start_broker(options: &[OsString]) -> anyhow::Result<(Process, BusUrl)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve", "tcp://127.0.0.1:0", "--config", "/dev/stdin"]).args(options);
    for variable in ["NLBUS_CERT", "NLBUS_KEY", "NLBUS_CA"] {
        command.env_remove(variable);
    }
    // a line of log for each of ten thousand links would be measured too
    command.env("NLBUS_LOG", "warn");
    let access = "[access.anonymous]\nrights = [\"use\", \"provide\"]\n";
    let mut process = Process::start(command, access)?;
    let url = process.wait_for("listening on ")?;
    Ok((process, url.parse()?))
}

/// Shows how far a run has come, and looks at the broker's process at both ends of the measured time.
struct Meter<'b> {
    bench: &'b Bench<'b>,
    bar: ProgressBar,
    began: anyhow::Result<Option<Usage>>,
    ended: anyhow::Result<Option<Usage>>,
}

impl<'b> Meter<'b> {
    fn new(bench: &'b Bench<'b>, name: &str) -> Self {
        let bar = if io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{msg:10} {bar:40} {percent:>3} % {elapsed}");
            let bar = ProgressBar::new(1_000);
            style.map_or(bar.clone(), |style| bar.with_style(style)).with_message(name.to_owned())
        } else {
            ProgressBar::hidden()
        };
        Self { bench, bar, began: Ok(None), ended: Ok(None) }
    }

    /// What the broker used in the measured time; its memory is that at the end.
    fn used(self) -> anyhow::Result<Option<Usage>> {
        self.bar.finish_and_clear();
        let (Some(began), Some(ended)) = (self.began?, self.ended?) else { return Ok(None) };
        Ok(Some(Usage { cpu_seconds: ended.cpu_seconds - began.cpu_seconds, ..ended }))
    }
}

impl Watch for Meter<'_> {
    fn begin(&mut self) {
        self.began = self.bench.usage();
    }

    fn progress(&mut self, part: f64) {
        self.bar.set_position((part * 1_000.0) as u64);
    }

    fn end(&mut self) {
        self.ended = self.bench.usage();
    }
}

/// A number in a range, both ends included.
fn within(min: usize, max: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("{text:?} is not a number from {min} to {max}")),
    }
}
