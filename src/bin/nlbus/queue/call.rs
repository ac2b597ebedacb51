//! `nlbus queue call`: a request through a queue, and its answer.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;

use super::{PATIENCE, client};
use crate::body;
use crate::connect::Connect;
use crate::exit::Exit;

/// Send a request to a queue, wait until somebody serves it, and print the answer.
///
/// Waits for ever, unless --timeout is given; then the request is taken back.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  nlbus queue call foo --body hello\n  nlbus queue call foo --file request.bin --timeout 10"
)]
pub(crate) struct Args {
    queue: String,
    /// The request; `-`, and nothing at all, read it from standard input.
    #[arg(long, value_name = "BODY|-", default_value = "-")]
    body: OsString,
    /// Read the request from a file.
    #[arg(long, value_name = "FILE", conflicts_with = "body")]
    file: Option<PathBuf>,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let request = match &args.file {
        Some(file) => std::fs::read(file)?,
        None => body::read(&args.body)?,
    };
    let client = client(&args.connect, PATIENCE).await?;
    let answer = client.call(&args.queue, request, args.connect.timeout_given()).await?;
    let mut out = io::stdout();
    out.write_all(&answer)?;
    if !answer.ends_with(b"\n") {
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(Exit::Ok)
}
