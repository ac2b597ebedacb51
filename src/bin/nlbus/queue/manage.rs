//! What is done to queues and to single messages.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use nlbus::service::queue::machine::{Create, Service};
use nlbus::service::queue::{Kind, Mode, OutMessage, Policy, QueueOptions, ReceiveOptions};
use tokio::time::timeout;

use super::{client, show};
use crate::body;
use crate::connect::{Connect, seconds};
use crate::exit::Exit;

/// Name the queues that somebody takes messages from, or all of them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  nlbus queue list --all --long -u unix:///run/nlbus.sock")]
pub(crate) struct ListArgs {
    /// Also those that nobody takes messages from.
    #[arg(short, long)]
    all: bool,
    /// Only those whose names begin with this.
    #[arg(short, long, value_name = "PREFIX", default_value = "")]
    prefix: String,
    /// Tell how they are, too.
    #[arg(short, long)]
    long: bool,
    /// Print an array of objects.
    #[arg(short, long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn list(args: ListArgs) -> anyhow::Result<Exit> {
    let client = client(&args.connect, Duration::ZERO).await?;
    if args.long && !args.json {
        // the ages are by the broker's clock
        let asked = client.diagnostics(&args.prefix, 0, 0);
        let (broker, mut queues) = timeout(args.connect.timeout(), asked).await??;
        queues.retain(|queue| args.all || queue.service == Service::Running);
        show::table(&broker, &queues, &mut io::stdout().lock())?;
        return Ok(Exit::Ok);
    }
    let queues = timeout(args.connect.timeout(), client.list(&args.prefix, !args.all)).await??;
    let mut out = io::stdout().lock();
    if args.json {
        let queues: Vec<_> = queues.iter().map(show::queue).collect();
        writeln!(out, "{}", serde_json::Value::Array(queues))?;
    } else {
        for queue in queues {
            writeln!(out, "{}", queue.name)?;
        }
    }
    Ok(Exit::Ok)
}

/// Make a queue, or see that it is there.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  nlbus queue create jobs --messages-max 1000 --policy block --dead-letter jobs.dead"
)]
pub(crate) struct CreateArgs {
    queue: String,
    /// Fail if it is there already.
    #[arg(long)]
    exclusive: bool,
    /// Every consumer gets every message.
    #[arg(long)]
    fanout: bool,
    /// What becomes of a message that there is no room for.
    #[arg(long, value_enum, value_name = "POLICY")]
    policy: Option<PolicyName>,
    /// Messages that it holds [default: 1000000].
    #[arg(long, value_name = "N")]
    messages_max: Option<u64>,
    /// Bytes of messages that it holds [default: 256 MiB].
    #[arg(long, value_name = "BYTES")]
    bytes_max: Option<u64>,
    /// The longest message, headers included [default: 15 MiB].
    #[arg(long, value_name = "BYTES")]
    message_max: Option<u64>,
    /// How long a message is of use [default: for ever].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    ttl_max: Option<Duration>,
    /// How long a consumer may hold a message [default: 30].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    lease: Option<Duration>,
    /// The queue for messages that were delivered too often.
    #[arg(long, value_name = "QUEUE")]
    dead_letter: Option<String>,
    /// How often that is [default: 5].
    #[arg(long, value_name = "N", requires = "dead_letter", value_parser = clap::value_parser!(u32).range(1..))]
    attempts_max: Option<u32>,
    #[command(flatten)]
    connect: Connect,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum PolicyName {
    /// Its sender is refused.
    Reject,
    /// The oldest are dropped.
    DropOldest,
    /// Its sender waits.
    Block,
}

impl CreateArgs {
    fn options(&self) -> Option<QueueOptions> {
        let before = QueueOptions::default();
        let millis = |time: Duration| time.as_millis() as u64;
        let policy = match self.policy {
            None | Some(PolicyName::Reject) => Policy::Reject,
            Some(PolicyName::DropOldest) => Policy::DropOldest,
            Some(PolicyName::Block) => Policy::Block,
        };
        let options = before
            .clone()
            .mode(if self.fanout { Mode::Fanout } else { Mode::Share })
            .policy(policy)
            .messages_max(self.messages_max.unwrap_or(before.messages_max))
            .bytes_max(self.bytes_max.unwrap_or(before.bytes_max))
            .message_bytes_max(self.message_max.unwrap_or(before.message_bytes_max))
            .ttl_ms_max(self.ttl_max.map_or(before.ttl_ms_max, millis))
            .lease_ms(self.lease.map_or(before.lease_ms, millis))
            .attempts_max(self.attempts_max.unwrap_or(before.attempts_max))
            .dead_letter(self.dead_letter.clone());
        // whoever asks for nothing takes a queue as it is
        (options != before).then_some(options)
    }
}

pub(super) async fn create(args: CreateArgs) -> anyhow::Result<Exit> {
    let client = client(&args.connect, Duration::ZERO).await?;
    let create = Create {
        options: args.options(),
        queue: Some(args.queue),
        kind: Kind::Persistent,
        exclusive: args.exclusive,
    };
    timeout(args.connect.timeout(), client.create_with(create)).await??;
    Ok(Exit::Ok)
}

/// Remove a queue and what is in it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  nlbus queue destroy jobs --if-empty")]
pub(crate) struct DestroyArgs {
    queue: String,
    /// Only if nothing is in it.
    #[arg(long)]
    if_empty: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn destroy(args: DestroyArgs) -> anyhow::Result<Exit> {
    let client = client(&args.connect, Duration::ZERO).await?;
    timeout(args.connect.timeout(), client.destroy(&args.queue, args.if_empty)).await??;
    Ok(Exit::Ok)
}

/// Drop the messages in a queue that no consumer holds, and print how many they were.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  nlbus queue purge jobs.dead")]
pub(crate) struct PurgeArgs {
    queue: String,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn purge(args: PurgeArgs) -> anyhow::Result<Exit> {
    let client = client(&args.connect, Duration::ZERO).await?;
    let purged = timeout(args.connect.timeout(), client.purge(&args.queue)).await??;
    writeln!(io::stdout(), "{purged}")?;
    Ok(Exit::Ok)
}

/// Append a message, and print its id once it is stored.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  nlbus queue send jobs 'build it' --header priority=high --ttl 60"
)]
pub(crate) struct SendArgs {
    queue: String,
    /// The payload; `-` reads it from standard input.
    #[arg(value_name = "BODY|-", required_unless_present = "file")]
    body: Option<OsString>,
    /// Read the payload from a file.
    #[arg(long, value_name = "FILE", conflicts_with = "body")]
    file: Option<PathBuf>,
    /// Make the queue if it is not there.
    #[arg(long)]
    create: bool,
    /// Drop it if nobody has taken it by then.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    ttl: Option<Duration>,
    /// A header; may be given again.
    #[arg(long = "header", value_name = "NAME=VALUE")]
    headers: Vec<String>,
    /// The queue for an answer.
    #[arg(long, value_name = "QUEUE")]
    reply_to: Option<String>,
    /// What an answer repeats.
    #[arg(long, value_name = "TEXT")]
    correlation: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn send(args: SendArgs) -> anyhow::Result<Exit> {
    let payload = match (&args.file, &args.body) {
        (Some(file), _) => std::fs::read(file)?,
        (None, body) => body::read(&body.clone().unwrap_or_default())?,
    };
    let mut message = OutMessage::new(payload);
    for header in args.headers {
        let (name, value) = header.split_once('=').unwrap_or((&header, ""));
        message = message.header(name, value.as_bytes().to_vec());
    }
    if let Some(ttl) = args.ttl {
        message = message.ttl(ttl);
    }
    if let Some(reply_to) = args.reply_to {
        message = message.reply_to(reply_to);
    }
    if let Some(correlation) = args.correlation {
        message = message.correlation(correlation.into_bytes());
    }
    if args.create {
        message = message.create();
    }
    let client = client(&args.connect, Duration::ZERO).await?;
    let sent = timeout(args.connect.timeout(), client.send(&args.queue, message)).await??;
    writeln!(io::stdout(), "{}", sent.id.unwrap_or_default())?;
    Ok(Exit::Ok)
}

/// Take messages from queues, print them, and be done with them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  nlbus queue recv jobs --wait 10 --json")]
pub(crate) struct RecvArgs {
    #[arg(required = true, value_name = "QUEUE")]
    queues: Vec<String>,
    /// How many at most.
    #[arg(short = 'C', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// How long to wait for the first, in seconds [default: not at all].
    #[arg(short = 'W', long, value_name = "SECONDS", value_parser = seconds)]
    wait: Option<Duration>,
    /// Leave them in the queue.
    #[arg(long)]
    no_ack: bool,
    /// Print an object for each, instead of payloads behind each other.
    #[arg(short, long)]
    json: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn receive(args: RecvArgs) -> anyhow::Result<Exit> {
    let client = client(&args.connect, Duration::ZERO).await?;
    let names: Vec<&str> = args.queues.iter().map(String::as_str).collect();
    let wait = args.wait.unwrap_or_default();
    let options = ReceiveOptions::default().messages_max(args.count).wait(wait);
    let messages = client.receive(&names, options);
    let messages = timeout(wait + args.connect.timeout(), messages).await??;
    let mut out = io::stdout();
    for message in &messages {
        if args.json {
            writeln!(out, "{}", show::message(message))?;
        } else {
            out.write_all(message.payload())?;
        }
    }
    out.flush()?;
    for message in &messages {
        // printed first: what is lost on the way is lost to nobody
        let settle = async {
            if args.no_ack { client.nack(message).await } else { client.ack(message).await }
        };
        timeout(args.connect.timeout(), settle).await??;
    }
    Ok(if messages.is_empty() { Exit::Timeout } else { Exit::Ok })
}

/// Remove messages by their ids, whoever holds them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  nlbus queue ack jobs 17 18")]
pub(crate) struct AckArgs {
    queue: String,
    #[arg(required = true, value_name = "ID")]
    ids: Vec<u64>,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn ack(args: AckArgs) -> anyhow::Result<Exit> {
    let client = client(&args.connect, Duration::ZERO).await?;
    timeout(args.connect.timeout(), client.ack_ids(&args.queue, &args.ids, true)).await??;
    Ok(Exit::Ok)
}

/// End the broker, if it was started with --allow-shutdown.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  nlbus queue shutdown -u unix:///run/nlbus.sock")]
pub(crate) struct ShutdownArgs {
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn shutdown(args: ShutdownArgs) -> anyhow::Result<Exit> {
    let client = client(&args.connect, Duration::ZERO).await?;
    timeout(args.connect.timeout(), client.shutdown()).await??;
    Ok(Exit::Ok)
}
