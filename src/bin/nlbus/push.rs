//! `nlbus push`: sends a body one way.

use std::ffi::OsString;

use nlbus::endpoint::{Destination, UdpPusher};
use nlbus::url::TransportKind;

use crate::body;
use crate::connect::Connect;
use crate::exit::{Exit, UsageError};

/// Push a body to whoever pulls it.
///
/// Waits while the puller has no room. Ends when the broker has taken the body; over udp, when it is
/// sent.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// What to push; `-` reads it from standard input.
    #[arg(value_name = "BODY|-")]
    body: OsString,
    /// To whom: a name, or an address such as 0x00010003. Without it the body goes to no one in
    /// particular: to `nlbus pull` without a name, and to subscribers.
    #[arg(long, value_name = "NAME", value_parser = body::destination)]
    to: Option<Destination>,
    #[command(flatten)]
    connect: Connect,
}

const EXAMPLE: &str = "\
Example:
  nlbus pull jobs -u unix:///run/nlbus.sock --format json &
  nlbus push 'build it' --to jobs -u unix:///run/nlbus.sock";

pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    let pushed = body::read(&args.body)?;
    let to = args.to.unwrap_or(Destination::Address(0));
    if args.connect.url().transport() == TransportKind::Udp {
        let Destination::Address(address) = to else {
            let text = "over udp there are no names; give an address, such as --to 0x00010003";
            return Err(UsageError(text.to_owned()).into());
        };
        UdpPusher::connect(&args.connect.url()).await?.push(address, &pushed).await?;
        return Ok(Exit::Ok);
    }
    let endpoint = args.connect.endpoint().await?;
    endpoint.push(to, &pushed).await?;
    endpoint.flush(args.connect.timeout()).await?;
    Ok(Exit::Ok)
}
