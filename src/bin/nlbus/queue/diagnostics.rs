//! `nlbus queue diagnostics`: what waits, who for, and whether anybody serves it.

use std::io::{self, Write};
use std::time::Duration;

use nlbus::service::queue::Kind;
use nlbus::service::queue::machine::{BrokerInfo, EntryInfo, QueueInfo};
use nlbus::service::queue::protocol::Record;
use serde_json::json;
use tokio::time::timeout;

use super::{client, show};
use crate::connect::Connect;
use crate::exit::Exit;

/// Messages of each queue that are shown.
const ENTRIES_MAX: u32 = 100;

/// Tell what waits in the queues, since when, who waits for it, and whether anybody serves them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  nlbus queue diagnostics --payloads -u unix:///run/nlbus.sock")]
pub(crate) struct Args {
    /// Only queues whose names begin with this.
    #[arg(short, long, value_name = "PREFIX", default_value = "")]
    prefix: String,
    /// Show the beginning of payloads, too, of messages of up to 60 KiB.
    #[arg(long)]
    payloads: bool,
    /// Print an object.
    #[arg(short, long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let client = client(&args.connect, Duration::ZERO).await?;
    let asked = client.diagnostics(&args.prefix, ENTRIES_MAX, 60 << 10);
    let (broker, queues) = timeout(args.connect.timeout(), asked).await??;
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", object(&broker, &queues, args.payloads))?;
    } else {
        text(&broker, &queues, args.payloads, &mut out)?;
    }
    Ok(Exit::Ok)
}

fn object(broker: &BrokerInfo, queues: &[QueueInfo], payloads: bool) -> serde_json::Value {
    let queues: Vec<_> = queues
        .iter()
        .map(|queue| {
            let mut object = show::queue(queue);
            let entries = queue.entries.iter().map(|entry| {
                let mut entry = show::entry(entry);
                if !payloads && let Some(entry) = entry.as_object_mut() {
                    entry.remove("payload");
                }
                entry
            });
            object["entries"] = entries.collect();
            object
        })
        .collect();
    let aside: Vec<_> =
        broker.quarantined.iter().map(|(name, id)| json!({"queue": name, "id": id})).collect();
    json!({
        "started_us": broker.started.0,
        "now_us": broker.now.0,
        "durable": broker.durable,
        "bytes": broker.bytes,
        "damaged": aside,
        "queues": queues,
    })
}

fn text(
    broker: &BrokerInfo,
    queues: &[QueueInfo],
    payloads: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    let age = show::ago(broker.now.ms_since(broker.started));
    let place = if broker.durable { "on disk" } else { "in memory" };
    let BrokerInfo { queues: count, bytes, .. } = broker;
    writeln!(out, "broker up for {age}: {count} queues {place}, {bytes} bytes of messages")?;
    for (name, id) in &broker.quarantined {
        writeln!(out, "damaged, put aside: message {id} of {name}")?;
    }
    for queue in queues {
        let QueueInfo { name, consumers, ready, leased, .. } = queue;
        let kind = if queue.kind == Kind::Transient { "transient " } else { "" };
        let service = show::service(queue.service);
        let since = match queue.last_taken {
            Some(time) if *consumers == 0 => {
                format!(", last {} ago", show::ago(broker.now.ms_since(time)))
            }
            _ => String::new(),
        };
        writeln!(
            out,
            "\n{kind}queue {name}: {service}{since}; {consumers} consumers, {ready} waiting, {leased} held"
        )?;
        for entry in &queue.entries {
            writeln!(out, "  {}", line(broker, entry, payloads))?;
        }
        let more = queue.messages.saturating_sub(queue.entries.len() as u64);
        if more > 0 && !queue.entries.is_empty() {
            writeln!(out, "  … {more} more")?;
        }
    }
    Ok(())
}

fn line(broker: &BrokerInfo, entry: &EntryInfo, payloads: bool) -> String {
    let record = Record::read(&entry.record);
    let mut line = format!("{}: {} old", entry.id, show::ago(broker.now.ms_since(entry.arrived)));
    if entry.holder.is_some() {
        line += ", held";
    }
    if entry.attempts > 0 {
        line += &format!(", delivered {} times", entry.attempts);
    }
    if let Some(expires) = entry.expires {
        line += &format!(", of use for {}", show::ago(expires.ms_since(broker.now)));
    }
    if let (Some(alive), Some(name)) = (entry.reply_alive, &record.reply_to) {
        let name = show::line(name.as_bytes(), 255);
        line += &match alive {
            true => format!(", {name} waits for an answer"),
            false => format!(", {name} does not wait for an answer any more"),
        };
    }
    if payloads {
        line += &format!(": {}", show::line(&record.payload, 70));
    }
    line
}
