//! What commands that send and receive bodies have in common.

use std::ffi::OsString;
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;

use bytes::Bytes;
use nlbus::endpoint::Destination;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::UsageError;

/// The most that is read from standard input, in bytes.
const INPUT_BYTES_MAX: u64 = 256 << 20;

/// The body that `argument` stands for: itself, or with `-` what standard input holds.
pub(crate) fn read(argument: &OsString) -> anyhow::Result<Vec<u8>> {
    if argument != "-" {
        return Ok(argument.as_bytes().to_vec());
    }
    let mut body = Vec::new();
    io::stdin().lock().take(INPUT_BYTES_MAX + 1).read_to_end(&mut body)?;
    if body.len() as u64 > INPUT_BYTES_MAX {
        let text = format!("standard input has more than {INPUT_BYTES_MAX} bytes");
        return Err(UsageError(text).into());
    }
    Ok(body)
}

/// A name, or an address such as 0x00010003.
pub(crate) fn destination(text: &str) -> Result<Destination, String> {
    match text.strip_prefix("0x") {
        None if text.is_empty() => Err("the name is empty".to_owned()),
        None => Ok(text.into()),
        Some(digits) => u32::from_str_radix(digits, 16)
            .map(Destination::from)
            .map_err(|_| format!("{text:?} is not an address of up to 8 hexadecimal digits")),
    }
}

/// How a received body is printed.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The bytes as they are, with nothing between them.
    Raw,
    /// A line of hexadecimal digits each.
    Hex,
    /// A line each: an object with `from`, `bytes`, and `text` or, for what is not UTF-8, `hex`.
    Json,
}

impl Format {
    /// Prints one body, so that whoever reads the output has it at once.
    pub(crate) fn print(self, from: u32, body: &Bytes, out: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Raw => out.write_all(body)?,
            Self::Hex => writeln!(out, "{}", hex(body))?,
            Self::Json => {
                let from = format!("{from:#010x}");
                let object = match str::from_utf8(body) {
                    Ok(text) => {
                        serde_json::json!({"from": from, "bytes": body.len(), "text": text})
                    }
                    Err(_) => {
                        serde_json::json!({"from": from, "bytes": body.len(), "hex": hex(body)})
                    }
                };
                writeln!(out, "{object}")?;
            }
        }
        out.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Waits for SIGTERM or SIGINT, which from the call on no longer end the process.
pub(crate) fn stopped() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        // `None` would mean that none can come any more: then only SIGKILL is left
        let came = tokio::select! {
            came = terminate.recv() => came,
            came = interrupt.recv() => came,
        };
        if came.is_none() {
            std::future::pending::<()>().await;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_name_or_an_address() {
        assert_eq!(destination("jobs"), Ok(Destination::Name("jobs".to_owned())));
        assert_eq!(destination("0x00010003"), Ok(Destination::Address(0x10003)));
        for wrong in ["", "0x", "0xjobs", "0x100000000"] {
            assert!(destination(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn each_format_prints_any_bytes() {
        let print = |format: Format, body: &'static [u8]| {
            let mut out = Vec::new();
            format.print(0x8000_0001, &Bytes::from_static(body), &mut out).unwrap();
            String::from_utf8_lossy(&out).into_owned()
        };
        assert_eq!(print(Format::Raw, b"a\nb"), "a\nb");
        assert_eq!(print(Format::Hex, b"\x00\xff"), "00ff\n");
        assert_eq!(
            print(Format::Json, b"a\"b"),
            "{\"from\":\"0x80000001\",\"bytes\":3,\"text\":\"a\\\"b\"}\n"
        );
        assert_eq!(
            print(Format::Json, b"\xff"),
            "{\"from\":\"0x80000001\",\"bytes\":1,\"hex\":\"ff\"}\n"
        );
    }
}
