//! `nlbus queue tail`: what happens to messages.

use std::io::{self, Write};
use std::time::Duration;

use nlbus::service::queue::machine::{Event, What};
use nlbus::service::queue::protocol::Record;
use serde_json::json;

use super::chart::{self, Chart};
use super::{PATIENCE, client, show};
use crate::body;
use crate::connect::Connect;
use crate::exit::Exit;

/// How long one request waits for something to happen.
const WAIT: Duration = Duration::from_secs(10);

/// Print what happened to messages: time, queue, id, what, how old the message was then, and how it
/// begins.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  nlbus queue tail -f --prefix jobs")]
pub(crate) struct Args {
    /// Go on with what happens from now on. Events are lost if more than 1,024 happen between two looks;
    /// that is told.
    #[arg(short, long)]
    follow: bool,
    /// Only queues whose names begin with this.
    #[arg(short, long, value_name = "PREFIX", default_value = "")]
    prefix: String,
    /// Print an object for each.
    #[arg(short, long)]
    json: bool,
    /// Print a chart of who sends to which queue and who takes from it, for mscgen or for Mermaid.
    #[arg(long, value_name = "FORMAT", conflicts_with_all = ["json", "follow"])]
    chart: Option<Chart>,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let stopped = body::stopped()?;
    tokio::pin!(stopped);
    let patience = if args.follow { PATIENCE } else { Duration::ZERO };
    let client = client(&args.connect, patience).await?;
    let (mut from, events) = client.trace(0, Duration::ZERO, &args.prefix).await?;
    let mut out = io::stdout();
    if let Some(chart) = args.chart {
        chart::print(chart, &events, &mut out)?;
        return Ok(Exit::Ok);
    }
    print(&args, &events, &mut out)?;
    if !args.follow {
        return Ok(Exit::Ok);
    }
    loop {
        let asked = client.trace(from, WAIT, &args.prefix);
        let (next, events) = tokio::select! {
            answer = asked => answer?,
            () = &mut stopped => return Ok(Exit::Ok),
        };
        if args.prefix.is_empty()
            && let Some(first) = events.first()
            && first.number > from
        {
            writeln!(io::stderr(), "nlbus: {} events were missed", first.number - from)?;
        }
        print(&args, &events, &mut out)?;
        from = next;
    }
}

fn print(args: &Args, events: &[Event], out: &mut impl Write) -> io::Result<()> {
    for event in events {
        let record = Record::read_cut(&event.record);
        if args.json {
            let mut object = show::record(&record);
            object["event"] = json!(event.number);
            object["time_us"] = json!(event.time.0);
            object["what"] = json!(what(event.what));
            object["queue"] = json!(&*event.queue);
            object["id"] = json!(event.id);
            object["session"] = json!(event.session);
            object["age_us"] = json!(event.age_us);
            writeln!(out, "{object}")?;
            continue;
        }
        let time = event.time.0 / 1_000;
        writeln!(
            out,
            "{}.{:03} {:<20} {:>6} {:<9} {:>6} ms {}",
            time / 1_000,
            time % 1_000,
            show::line(event.queue.as_bytes(), 255),
            event.id,
            what(event.what),
            event.age_us / 1_000,
            show::line(&record.payload, 70),
        )?;
    }
    out.flush()
}

fn what(what: What) -> &'static str {
    match what {
        What::Sent => "sent",
        What::Delivered => "delivered",
        What::Acked => "acked",
        What::Returned => "returned",
        What::Expired => "expired",
        What::Dropped => "dropped",
        What::Dead => "dead",
        What::Refused => "refused",
    }
}
