//! `nlbus queue tail`: what happens to messages.

use std::io::{self, Write};
use std::time::Duration;

use nlbus::service::queue::machine::{Event, What};
use nlbus::service::queue::protocol::Record;
use serde_json::json;

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

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Chart {
    Mscgen,
    Mermaid,
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let stopped = body::stopped()?;
    tokio::pin!(stopped);
    let patience = if args.follow { PATIENCE } else { Duration::ZERO };
    let client = client(&args.connect, patience).await?;
    let (mut from, events) = client.trace(0, Duration::ZERO, &args.prefix).await?;
    let mut out = io::stdout();
    if let Some(chart) = args.chart {
        self::chart(chart, &events, &mut out)?;
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
        let record = Record::read(&event.record);
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

fn chart(chart: Chart, events: &[Event], out: &mut impl Write) -> io::Result<()> {
    let arrows: Vec<(String, String, String)> = events
        .iter()
        .filter_map(|event| {
            let session = format!("{:#010x}", event.session);
            let queue = event.queue.replace(|c: char| c.is_control() || "\"\\;".contains(c), "_");
            let payload = Record::read(&event.record).payload;
            let start: String = String::from_utf8_lossy(&payload).chars().take(10).collect();
            let start = start.replace(|c: char| !c.is_alphanumeric() && c != ' ', "_");
            match event.what {
                What::Sent => Some((session, queue, start)),
                What::Delivered => Some((queue, session, start)),
                _ => None,
            }
        })
        .collect();
    let mut ends: Vec<&String> = arrows.iter().flat_map(|(from, to, _)| [from, to]).collect();
    ends.sort();
    ends.dedup();
    match chart {
        Chart::Mscgen => {
            let ends: Vec<String> = ends.iter().map(|end| format!("\"{end}\"")).collect();
            writeln!(out, "msc {{\n  {};", ends.join(", "))?;
            for (from, to, label) in &arrows {
                writeln!(out, "  \"{from}\" => \"{to}\" [label=\"{label}\"];")?;
            }
            writeln!(out, "}}")
        }
        Chart::Mermaid => {
            writeln!(out, "sequenceDiagram")?;
            for (number, end) in ends.iter().enumerate() {
                writeln!(out, "  participant p{number} as {end}")?;
            }
            let number = |end: &String| ends.iter().position(|other| *other == end).unwrap_or(0);
            for (from, to, label) in &arrows {
                writeln!(out, "  p{}->>p{}: {label}", number(from), number(to))?;
            }
            Ok(())
        }
    }
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
