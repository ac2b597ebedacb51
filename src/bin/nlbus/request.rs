//! `nlbus request`: asks a program on the bus.

use std::ffi::OsString;
use std::io::{self, Write as _};

use nlbus::endpoint::{Destination, MESSAGE_BYTES_MAX};

use crate::body;
use crate::connect::Connect;
use crate::exit::Exit;

/// Ask a program on the bus, and print its answer.
///
/// If the answer has several bodies, they are printed one behind the other.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// Whom to ask: a name, or an address such as 0x00010003.
    #[arg(value_name = "NAME", value_parser = body::destination)]
    to: Destination,
    /// What to send; `-` reads it from standard input.
    #[arg(value_name = "BODY|-", default_value = "")]
    body: OsString,
    /// Send BODY as it stands, as whole netlink messages, and print the messages of the answer with
    /// their headers, each padded to 4.
    #[arg(long)]
    raw: bool,
    /// The longest body that is taken, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = MESSAGE_BYTES_MAX)]
    limit: usize,
    #[command(flatten)]
    connect: Connect,
}

const EXAMPLE: &str = "\
Example:
  nlbus reply upper -u unix:///run/nlbus.sock -- tr a-z A-Z &
  nlbus request upper hello -u unix:///run/nlbus.sock";

pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    let request = body::read(&args.body)?;
    let endpoint = args.connect.endpoint().await?;
    let options = args.connect.request_options().message_bytes_max(args.limit);
    let mut out = io::stdout();
    if args.raw {
        let mut replies = endpoint.request_with(args.to, &request, options).await?;
        while let Some(reply) = replies.next().await {
            let reply = reply?;
            out.write_all(reply.bytes())?;
            out.write_all(&[0; 3][..reply.bytes().len().wrapping_neg() & 3])?;
        }
    } else {
        let mut answers = endpoint.ask_with(args.to, &request, options).await?;
        while let Some(answer) = answers.next().await {
            out.write_all(&answer?)?;
        }
    }
    out.flush()?;
    Ok(Exit::Ok)
}
