//! `nlbus pull`: prints what is pushed.

use std::future::pending;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use nlbus::endpoint::{
    Endpoint, Event, Filter, ProvideOptions, Puller, RequestError, Subscription, body_of,
};
use tokio::time::{Instant, sleep_until};

use crate::body::{self, Format};
use crate::connect::{Connect, seconds};
use crate::exit::Exit;

/// Print what is pushed to a name, or to no one in particular.
///
/// What is pushed to a name is shared out among those who pull it; none is lost while they stay. What is
/// pushed to no one in particular reaches everybody who pulls without a name; who is too slow loses some,
/// and is told on standard error. SIGTERM and SIGINT end with 0.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// What to pull. Without it: what reaches the broker for no one in particular.
    name: Option<String>,
    /// End after this many.
    #[arg(short = 'C', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this many seconds: with 0 if a message came, and -C was not given; else with 4.
    #[arg(short = 'W', long = "wait", value_name = "SECONDS", value_parser = seconds)]
    wait: Option<Duration>,
    /// How each is printed.
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    format: Format,
    #[command(flatten)]
    connect: Connect,
}

const EXAMPLE: &str = "\
Example:
  nlbus pull jobs -C 1 -W 60 --format json -u unix:///run/nlbus.sock &
  nlbus push 'build it' --to jobs -u unix:///run/nlbus.sock";

pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    let stopped = body::stopped()?;
    tokio::pin!(stopped);
    let endpoint = args.connect.endpoint().await?;
    let mut source = Source::open(&endpoint, &args).await?;
    tracing::info!("pulling");
    let ends = args.wait.map(|wait| Instant::now() + wait);
    let mut out = io::stdout();
    let (mut left, mut any) = (args.count, false);
    while left != Some(0) {
        let (from, body) = tokio::select! {
            biased;
            () = &mut stopped => return Ok(Exit::Ok),
            next = source.next() => next.ok_or(RequestError::Lost(None))?,
            () = reached(ends) => {
                return Ok(if any && left.is_none() { Exit::Ok } else { Exit::Timeout });
            }
        };
        args.format.print(from, &body, &mut out)?;
        any = true;
        left = left.map(|left| left - 1);
    }
    Ok(Exit::Ok)
}

enum Source {
    Name(Puller),
    NoName(Subscription),
}

impl Source {
    async fn open(endpoint: &Endpoint, args: &Args) -> Result<Self, RequestError> {
        let Some(name) = &args.name else {
            return endpoint.subscribe(Filter::all().from(0u32)).await.map(Self::NoName);
        };
        let mut options = ProvideOptions::default();
        if let Some(count) = args.count {
            // what is taken and not printed is lost
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            options = options.waiting_max(options.waiting_max.min(count));
        }
        endpoint.pull_with(name, options).await.map(Self::Name)
    }

    /// Cancel-safe.
    async fn next(&mut self) -> Option<(u32, Bytes)> {
        match self {
            Self::Name(puller) => puller.next().await.map(|message| (message.from, message.body)),
            Self::NoName(subscription) => loop {
                match subscription.next().await? {
                    Event::Message { from, payload, .. } => return Some((from, body_of(&payload))),
                    Event::Lost(count) => tracing::warn!("too slow: {count} were lost"),
                }
            },
        }
    }
}

async fn reached(ends: Option<Instant>) {
    match ends {
        Some(ends) => sleep_until(ends).await,
        None => pending().await,
    }
}
