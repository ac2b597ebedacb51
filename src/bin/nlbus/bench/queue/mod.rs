//! Queues: sent, received and acknowledged in memory; sent to the disk, beside SQLite alone.

mod bare;
mod durable;
mod memory;

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use nlbus::service::queue::Client;
use tokio::runtime;
use tokio::task::LocalSet;

use super::engine::Plan;
use super::report::{Report, Row};
use super::{Args, Bench, CLIENTS_MAX, Ending, Meter, UsageError, WINDOW_MESSAGES, within};

/// The queue that is made, and removed.
const QUEUE: &str = "bench";

/// Messages under way in memory, unless --outstanding says it.
const OUTSTANDING_MEMORY: usize = WINDOW_MESSAGES;
/// Sends under way to the disk: what the target is set for.
const OUTSTANDING_DURABLE: usize = 64;

/// What only `bench queue` looks at.
#[derive(Debug, clap::Args)]
pub(super) struct QueueArgs {
    /// queue: measure only this [default: both; of a broker at --url, what it is].
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,
    /// queue: a directory on the disk to be measured; what is put into it is removed again. With --url it is
    /// for SQLite alone, which is left out without it [default: the current directory].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// queue: clients that send.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = within(1, CLIENTS_MAX))]
    producers: usize,
    /// queue: clients that receive, in memory.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = within(1, CLIENTS_MAX))]
    consumers: usize,
}

/// What can be measured of queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Send, receive and acknowledge, in a queue that is kept in memory.
    Memory,
    /// Send to a queue on disk, and wait for the answer.
    Durable,
}

/// A broker in memory, one with a disk, or the one that runs.
pub(super) fn measure(args: &Args, ending: &Ending) -> anyhow::Result<Report> {
    if args.clients.is_some() {
        let text = "queue has --producers and --consumers in place of --clients";
        return Err(UsageError(text.to_owned()).into());
    }
    let parts = match (args.queue.only, &args.url) {
        (Some(part), _) => vec![part],
        (None, None) => vec![Part::Memory, Part::Durable],
        (None, Some(_)) => vec![],
    };
    if parts.is_empty() {
        let bench = Bench::new(args)?;
        let part = if is_durable(&bench)? { Part::Durable } else { Part::Memory };
        return one(&bench, part, args.queue.state.as_deref(), Vec::new());
    }
    let mut report = None;
    for part in parts {
        let rows = report.take().map(Report::into_rows).unwrap_or_default();
        report = Some(part_of(args, ending, part, rows)?);
    }
    report.context("nothing was measured")
}

/// Starts a broker for this part if none was given, and measures.
fn part_of(args: &Args, ending: &Ending, part: Part, rows: Vec<Row>) -> anyhow::Result<Report> {
    if args.url.is_some() {
        let bench = Bench::new(args)?;
        if is_durable(&bench)? != (part == Part::Durable) {
            let where_to = if part == Part::Durable { "on disk" } else { "in memory" };
            bail!("the queues of this broker are not kept {where_to}");
        }
        return one(&bench, part, args.queue.state.as_deref(), rows);
    }
    let scratch = match part {
        Part::Memory => None,
        Part::Durable => Some(Scratch::new(args.queue.state.as_deref())?),
    };
    let state = scratch.as_ref().map(|scratch| scratch.0.join("state"));
    if let Some(state) = &state {
        fs::create_dir(state)?;
    }
    let mut options = vec!["--queues".into()];
    if let Some(state) = state {
        options.extend(["--state".into(), state.into_os_string()]);
    }
    let bench = Bench::start(args, &options)?;
    if let Some(process) = &bench.process {
        ending.started(process)?;
    }
    one(&bench, part, scratch.as_ref().map(|scratch| scratch.0.as_path()), rows)
    // the broker ends before its directory goes
}

/// Measures one part, and adds its rows. `directory`: where SQLite alone may write.
fn one(
    bench: &Bench<'_>,
    part: Part,
    directory: Option<&Path>,
    mut rows: Vec<Row>,
) -> anyhow::Result<Report> {
    let plan = plan(bench.args, part);
    let runtime = runtime()?;
    let mut share = None;
    match part {
        Part::Memory => {
            let mut meter = Meter::new(bench, "memory");
            let load = memory::run(&bench.url, &plan, &mut meter);
            let outcome = LocalSet::new().block_on(&runtime, load)?;
            let usage = meter.used()?;
            rows.push(Row { name: "memory".to_owned(), plan: Some(plan), outcome, usage });
        }
        Part::Durable => {
            let mut meter = Meter::new(bench, "durable");
            let load = durable::run(&bench.url, &plan, directory, &mut meter);
            let (outcome, bare) = LocalSet::new().block_on(&runtime, load)?;
            let usage = meter.used()?;
            share = bare.as_ref().map(|bare| outcome.rate() / bare.rate());
            rows.push(Row { name: "durable".to_owned(), plan: Some(plan), outcome, usage });
            let beside = bare.map(|outcome| Row {
                name: "sqlite".to_owned(),
                plan: Some(Plan { clients: 1, pullers: 0, ..plan }),
                outcome,
                usage: None,
            });
            rows.extend(beside);
        }
    }
    let mut report = Report::of(bench, rows);
    report.durable_of_sqlite = share;
    Ok(report)
}

fn plan(args: &Args, part: Part) -> Plan {
    let QueueArgs { producers, consumers, .. } = args.queue;
    let (pullers, default) = match part {
        Part::Memory => (consumers, OUTSTANDING_MEMORY),
        Part::Durable => (0, OUTSTANDING_DURABLE),
    };
    Plan {
        size: args.size,
        clients: producers,
        pullers,
        outstanding: args.outstanding.unwrap_or(default),
        warm_up: args.seconds / 5,
        measured: args.seconds,
    }
}

/// All clients share one thread.
fn runtime() -> anyhow::Result<runtime::Runtime> {
    Ok(runtime::Builder::new_current_thread().enable_all().build()?)
}

fn is_durable(bench: &Bench<'_>) -> anyhow::Result<bool> {
    runtime()?.block_on(async {
        let client = Client::connect(&bench.url).await?;
        Ok(client.diagnostics(QUEUE, 0, 0).await?.0.durable)
    })
}

/// A directory that is removed again.
struct Scratch(PathBuf);

impl Scratch {
    fn new(directory: Option<&Path>) -> anyhow::Result<Self> {
        let directory = match directory {
            Some(directory) => directory.to_owned(),
            None => env::current_dir()?,
        };
        let path = directory.join(format!("nlbus-bench-{}", process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "a directory stays behind");
        }
    }
}
