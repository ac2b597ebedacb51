//! `nlbus queue call`: a request through a queue, and its answer.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;

use serde_json::json;

use super::{PATIENCE, client, show};
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
    /// How the answer is printed.
    #[arg(long, value_enum, default_value_t = Format::Line)]
    format: Format,
    #[command(flatten)]
    connect: Connect,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Format {
    /// As it is, and a line end if it has none.
    Line,
    /// As it is.
    Raw,
    /// A line of hexadecimal digits.
    Hex,
    /// An object with `bytes`, and `payload`: text, or for what is not UTF-8 an object with `hex`.
    Json,
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let request = match &args.file {
        Some(file) => std::fs::read(file)?,
        None => body::read(&args.body)?,
    };
    let client = client(&args.connect, PATIENCE).await?;
    let answer = client.call(&args.queue, request, args.connect.timeout_given()).await?;
    let mut out = io::stdout();
    match args.format {
        Format::Raw => out.write_all(&answer)?,
        Format::Line => {
            out.write_all(&answer)?;
            if !answer.ends_with(b"\n") {
                out.write_all(b"\n")?;
            }
        }
        Format::Hex => writeln!(out, "{}", show::hex(&answer))?,
        Format::Json => {
            writeln!(out, "{}", json!({"bytes": answer.len(), "payload": show::text(&answer)}))?;
        }
    }
    out.flush()?;
    Ok(Exit::Ok)
}
