//! `nlbus show`: asks the served kernel, and prints.

use std::io::{self, BufWriter, Write as _};

use bytes::Bytes;
use nlbus::endpoint::{Endpoint, RequestError, RequestOptions};
use nlbus::wire::nlm;

use super::{Family, Object, Options, Table, render_json, render_table};
use crate::connect::Connect;
use crate::exit::{Exit, UsageError};

/// How often a dump is read again because the kernel changed meanwhile.
const READS_MAX: usize = 5;

/// The most that is taken of one dump: about eight million routes.
const DUMP_BYTES_MAX: usize = 1 << 30;

/// Ask the served kernel for its links, addresses, routes, neighbours or rules.
///
/// Prints a table, or with -j the JSON that `ip -j` prints.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// What to show.
    #[arg(value_enum)]
    object: Object,
    /// Print JSON with the field names of `ip -j`.
    #[arg(short, long)]
    json: bool,
    /// Only IPv4.
    #[arg(short = '4', conflicts_with = "inet6")]
    inet: bool,
    /// Only IPv6.
    #[arg(short = '6')]
    inet6: bool,
    /// Only what belongs to this device.
    #[arg(long, value_name = "NAME")]
    dev: Option<String>,
    /// Routes of this table, or rules that look it up: `all`, a name, or a number.
    #[arg(long, value_name = "TABLE")]
    table: Option<Table>,
    /// The proxy entries among the neighbours.
    #[arg(long)]
    proxy: bool,
    /// The subsystem that is the kernel's NETLINK_ROUTE.
    #[arg(long, value_name = "NAME", default_value = "route")]
    subsystem: String,
    #[command(flatten)]
    connect: Connect,
}

const EXAMPLE: &str = "\
Example:
  nlbus show addr
  nlbus show route -6 --table all -j -u unix:///run/nlbus.sock";

impl Args {
    fn options(&self) -> Options {
        let family = match (self.inet, self.inet6) {
            (true, _) => Some(Family::Inet),
            (_, true) => Some(Family::Inet6),
            _ => None,
        };
        Options { family, dev: self.dev.clone(), table: self.table, proxy: self.proxy }
    }
}

pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    let options = args.options();
    options.check(args.object).map_err(|error| UsageError(error.to_string()))?;
    let endpoint = args.connect.endpoint().await?;
    let dumps =
        fetch(&endpoint, &args.subsystem, args.object, &options, args.connect.request_options())
            .await?;
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        serde_json::to_writer(&mut out, &render_json(args.object, &options, &dumps)?)?;
        writeln!(out)?;
    } else {
        render_table(args.object, &options, &dumps, &mut out)?;
    }
    out.flush()?;
    Ok(Exit::Ok)
}

/// Fetches the dumps that `object` needs.
pub(crate) async fn fetch(
    endpoint: &Endpoint,
    subsystem: &str,
    object: Object,
    options: &Options,
    request: RequestOptions,
) -> anyhow::Result<Vec<Vec<Bytes>>> {
    let mut dumps = Vec::new();
    for message in object.requests(options) {
        dumps.push(consistent(endpoint, subsystem, &message, request).await?);
    }
    Ok(dumps)
}

/// Reads a dump until the kernel says that nothing changed while it was read.
async fn consistent(
    endpoint: &Endpoint,
    subsystem: &str,
    message: &[u8],
    request: RequestOptions,
) -> anyhow::Result<Vec<Bytes>> {
    let mut dump = Vec::new();
    for _ in 0..READS_MAX {
        dump.clear();
        let mut whole = true;
        let mut length = 0;
        let mut replies = endpoint.request_with(subsystem, message, request).await?;
        while let Some(reply) = replies.next().await {
            let reply = match reply {
                Ok(reply) => reply,
                Err(RequestError::Overrun) => {
                    whole = false;
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            whole &= reply.header().flags & nlm::DUMP_INTR == 0;
            length += reply.bytes().len();
            anyhow::ensure!(
                length <= DUMP_BYTES_MAX,
                "the dump is longer than {DUMP_BYTES_MAX} bytes"
            );
            dump.push(reply.bytes().clone());
        }
        if whole {
            return Ok(dump);
        }
    }
    anyhow::ensure!(!dump.is_empty(), "the kernel lost parts of the dump {READS_MAX} times");
    tracing::warn!(
        "the table changed while it was read, {READS_MAX} times; it may be inconsistent"
    );
    Ok(dump)
}
