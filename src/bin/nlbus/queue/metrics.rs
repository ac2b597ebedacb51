//! `nlbus queue metrics`: counts and measures for Prometheus.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::timeout;

use super::client;
use crate::connect::Connect;
use crate::exit::Exit;
use crate::metrics::Exposition;
use crate::replace::replace;

/// Print counts and measures of the queues in Prometheus' text format.
///
/// Depth, bytes, age of the oldest message, arrivals, deliveries, redeliveries, what expired or went to the
/// dead letters, and how long messages waited. Queues that end with their sessions are summed up.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  nlbus queue metrics --output /var/lib/node_exporter/textfile/nlbus.prom"
)]
pub(crate) struct Args {
    /// Only queues whose names begin with this.
    #[arg(short, long, value_name = "PREFIX", default_value = "")]
    prefix: String,
    /// Write them to this file, which is replaced as a whole, as node_exporter's textfile collector likes it.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let client = client(&args.connect, Duration::ZERO).await?;
    let asked = client.diagnostics(&args.prefix, 0, 0);
    let (broker, queues) = timeout(args.connect.timeout(), asked).await??;
    let mut exposition = Exposition::default();
    exposition.queues(&broker, &queues);
    let text = exposition.into_text();
    match &args.output {
        Some(path) => replace(path, text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?,
        None => io::stdout().write_all(text.as_bytes())?,
    }
    Ok(Exit::Ok)
}
