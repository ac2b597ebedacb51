//! Drives load through a broker and counts what comes back.
//!
//! One thread, one epoll, plain sockets: what this costs is a part of every figure, so it does as little as
//! it can. Messages are written in batches and numbered, and each one that comes back is looked at.
//!
//! It imports nothing of the command around it: `tools/bench-peers` builds the same files, and drives other
//! brokers through a [`Dialect`] of their own.

mod fanout;
pub(crate) mod frames;

mod process;
mod pump;
mod pushpull;
mod reqrep;
pub(crate) mod tally;

pub(crate) use fanout::fanout;
pub(crate) use frames::Nlbus;
pub(crate) use process::{Process, Usage, pin};
pub(crate) use pump::Stream;
pub(crate) use pushpull::pushpull;
pub(crate) use reqrep::reqrep;
pub(crate) use tally::Counts;

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;

/// How long nothing may come while something is under way before it counts as lost.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The longest time that is told from longer ones.
const LATENCY_MAX: Duration = Duration::from_secs(60);

/// How often progress is told and the clock is looked at while nothing comes.
const TICK: Duration = Duration::from_millis(50);

/// Of a push or a broadcast, one in this many is timed.
const TIMED_EVERY: u64 = 16;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nothing; it only stays.
    Idles,
    /// Asks, and takes the answers; which of the askers it is.
    Asks(usize),
    /// Answers each request with its own payload.
    Answers,
    /// Sends to the pullers; which of the pushers it is.
    Pushes(usize),
    /// Takes what is pushed.
    Pulls,
    /// Sends to the subscribers.
    Publishes,
    /// Takes what is published.
    Subscribes,
}

/// What a broker speaks.
pub(crate) trait Dialect {
    /// One connection's reader and writer of messages.
    type Port: Port;

    /// Connects, and takes a role: when this returns, the broker knows of it. Blocks. Who receives is opened
    /// before who sends.
    fn open(&self, role: Role) -> anyhow::Result<(Box<dyn Stream>, Self::Port)>;

    /// What tells the messages of this run from those of others.
    fn run(&self) -> u32;
}

/// Writes messages, and finds them in what is read.
pub(crate) trait Port {
    /// Appends a message.
    fn emit(&mut self, payload: &[u8], out: &mut Vec<u8>) -> anyhow::Result<()>;

    /// What `bytes` begin with; `None` if it is not whole yet.
    fn cut(&mut self, bytes: &[u8]) -> anyhow::Result<Option<Cut>>;

    /// Appends the answer to a request: what [`cut`](Self::cut) found.
    fn answer(&mut self, item: &[u8], cut: &Cut, out: &mut Vec<u8>) -> anyhow::Result<()>;

    /// Appends what the broker has to be told at the start and after each read.
    fn follow_up(&mut self, _out: &mut Vec<u8>) {}
}

/// One whole thing in a stream of bytes.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    /// How many bytes it takes.
    pub(crate) length: usize,
    /// Where in them a message's payload is; `None` for what is no message.
    pub(crate) payload: Option<Range<usize>>,
}

/// What is to be driven.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Length of each payload in bytes, at least [`tally::STAMP_BYTES`].
    pub(crate) size: usize,
    /// Who sends: askers, pushers. Of a fan-out, the subscribers.
    pub(crate) clients: usize,
    /// Who pulls.
    pub(crate) pullers: usize,
    /// How many messages may be under way: of all askers or pushers together; of a fan-out, to the subscriber
    /// that is furthest behind.
    pub(crate) outstanding: usize,
    /// What is not measured yet.
    pub(crate) warm_up: Duration,
    /// What is.
    pub(crate) measured: Duration,
}

/// Is told how far a run has come.
pub(crate) trait Watch {
    /// The measured time begins.
    fn begin(&mut self) {}
    /// This part of the run is over, of 1.
    fn progress(&mut self, _part: f64) {}
    /// The measured time ends.
    fn end(&mut self) {}
}

/// Nobody is told.
impl Watch for () {}

/// What came of a run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Answers, pushes or deliveries that arrived in the measured time.
    pub(crate) messages: u64,
    /// The measured time.
    pub(crate) seconds: f64,
    /// Nanoseconds from a message's writing to its arrival, or its answer's.
    pub(crate) latency: Histogram<u64>,
    /// Of the whole run.
    pub(crate) counts: Counts,
}

impl Outcome {
    /// Messages in a second.
    pub(crate) fn rate(&self) -> f64 {
        self.messages as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// For times in nanoseconds, in steps of a thousandth; what takes longer counts as [`LATENCY_MAX`].
pub(crate) fn histogram() -> anyhow::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3)
        .context("cannot make a histogram")
}

/// Where in its time a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    WarmUp,
    Measured,
    Over,
}

/// Leads a run through its time, and gathers what is measured.
struct Course<'w> {
    watch: &'w mut dyn Watch,
    plan: Plan,
    start: Instant,
    /// When the measured time began.
    began: Instant,
    told: Instant,
    phase: Phase,
    messages: u64,
    seconds: f64,
    latency: Histogram<u64>,
    /// All has come; what comes now comes twice.
    settled: bool,
}

impl<'w> Course<'w> {
    fn start(plan: &Plan, watch: &'w mut dyn Watch) -> anyhow::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            watch,
            plan: *plan,
            start: now,
            began: now,
            told: now,
            phase: Phase::WarmUp,
            messages: 0,
            seconds: 0.0,
            latency: histogram()?,
            settled: false,
        })
    }

    /// Looks at the clock.
    fn at(&mut self, now: Instant) -> Phase {
        let passed = now - self.start;
        if self.phase == Phase::WarmUp && passed >= self.plan.warm_up {
            self.phase = Phase::Measured;
            self.watch.begin();
            self.began = Instant::now();
        }
        if self.phase == Phase::Measured && now - self.began.min(now) >= self.plan.measured {
            self.phase = Phase::Over;
            self.seconds = self.began.elapsed().as_secs_f64();
            self.watch.end();
        }
        if now - self.told >= TICK {
            self.told = now;
            let all = self.plan.warm_up + self.plan.measured;
            self.watch.progress((passed.as_secs_f64() / all.as_secs_f64()).min(1.0));
        }
        self.phase
    }

    /// Counts a message, and how long it took if that is known.
    #[inline]
    fn arrived(&mut self, took: Option<Duration>) {
        if self.phase == Phase::Measured {
            self.messages += 1;
            if let Some(took) = took {
                self.latency.saturating_record(took.as_nanos() as u64);
            }
        }
    }

    /// Whether the run has its end. When all has come, it waits for one tick more, in which nothing should.
    fn is_done(&mut self, now: Instant, arrival: Instant, counts: &Counts) -> anyhow::Result<bool> {
        if now - arrival.min(now) > SILENCE_MAX {
            if self.phase < Phase::Over {
                bail!("nothing came for {SILENCE_MAX:?}; {} messages are missing", counts.lost());
            }
            return Ok(true);
        }
        let all = self.phase == Phase::Over && counts.lost() == 0;
        Ok(all && std::mem::replace(&mut self.settled, true))
    }

    fn finish(self, counts: Counts) -> Outcome {
        let Self { messages, seconds, latency, .. } = self;
        Outcome { messages, seconds, latency, counts }
    }
}
