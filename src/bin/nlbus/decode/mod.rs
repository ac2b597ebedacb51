//! `nlbus decode`: explains frames and netlink messages, byte by byte.
//!
//! `input` turns text or binary into bytes, `walk` reads them with `nlbus::wire` and says what it finds
//! as a sequence of nodes, `report` writes each node at once as text or as JSON, `name` holds the words.
//! Nothing is kept from one node to the next, so memory is bounded by the input alone.

mod input;
mod name;
mod report;
mod walk;

use anyhow::Context as _;
use clap::ValueEnum;
use report::Report;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// The most that is read, in bytes of text or of binary.
pub(crate) const INPUT_BYTES_MAX: u64 = 64 << 20;

/// Explain frames: header, envelope, attributes and inner messages, and where they stop making sense
///
/// The input is binary, or hex: plain digits with any white space, `0x34, 0x00`, `\x34\x00`, or the
/// output of `xxd`, `hexdump -C` and `tcpdump -x`. Frames (outer type 15) and bare netlink messages may
/// stand in it one after another.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  echo 1c0000000f00000001000000000000000300010000000000 04000000 | nlbus decode
  nlbus decode -j capture.bin | jq '.. | select(.what? == \"message\") | .type_name'

Exit code: 0 if all of it made sense, 1 if not; what did make sense is printed in both cases.
A payload that does not start with a netlink header is opaque, which is not an error.")]
pub(crate) struct Args {
    /// Where to read from; `-` is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,

    /// How the bytes are written down; `auto` takes printable text for hex
    #[arg(long, value_enum, default_value_t)]
    format: Format,

    /// What inner messages of type 16 and above are; nothing in a frame says so
    #[arg(long, value_enum, default_value_t)]
    protocol: Protocol,

    /// Print JSON: an array of nodes, each with `what`, `offset` and its `contents`
    #[arg(short, long)]
    json: bool,

    /// Print SECRET attributes, and what else of a control frame may be part of one
    #[arg(long)]
    secrets: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Auto,
    Hex,
    Raw,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// NETLINK_ROUTE: RTM_* types, a fixed header, attributes
    #[default]
    Route,
    /// NETLINK_GENERIC: a command, a version, attributes
    Generic,
    /// Anything else: the body is shown as bytes
    Opaque,
}

/// What became of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it decides the exit code"]
pub(crate) enum Outcome {
    /// All of them made sense.
    Sound,
    /// Some did not; the output says where and why.
    Malformed,
}

/// Reads what `args` name and explains it on `out`. A reader of `out` that goes away ends the work
/// without an error.
///
/// # Errors
/// An input that cannot be read, is longer than [`INPUT_BYTES_MAX`], or is not hex where hex was asked
/// for; an output that cannot be written.
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<Outcome> {
    let read = read_input(&args.file)?;
    let bytes = match args.format {
        Format::Raw => read,
        Format::Auto if !input::is_text(&read) => read,
        Format::Auto | Format::Hex => input::from_hex(&read).context("the input is not hex")?,
    };
    let mut out = BufWriter::new(out);
    let report = if args.json { Report::json(&mut out) } else { Report::text(&mut out) };
    let options = walk::Options { protocol: args.protocol, secrets: args.secrets };
    let mut faults = 0;
    let written = walk::walk(&bytes, options, report, &mut faults).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write")
        }
        _ if faults > 0 => Ok(Outcome::Malformed),
        _ => Ok(Outcome::Sound),
    }
}

fn read_input(file: &Path) -> anyhow::Result<Vec<u8>> {
    let (name, bytes) = if file == Path::new("-") {
        ("standard input".into(), read_limited(io::stdin().lock()))
    } else {
        (file.display().to_string(), File::open(file).and_then(read_limited))
    };
    let bytes = bytes.with_context(|| format!("cannot read {name}"))?;
    anyhow::ensure!(
        bytes.len() as u64 <= INPUT_BYTES_MAX,
        "{name} is longer than {INPUT_BYTES_MAX} bytes, the most that decode reads"
    );
    Ok(bytes)
}

/// Reads to the end, or one byte past the limit.
fn read_limited(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_stops_one_byte_past_the_limit() {
        let bytes = read_limited(io::repeat(b'0')).unwrap();
        assert_eq!(bytes.len() as u64, INPUT_BYTES_MAX + 1);
    }
}
