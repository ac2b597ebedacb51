//! `nlbus publish`: broadcasts one thing.

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;

use nlbus::wire::{MessageBuilder, Messages, PAYLOAD_MAX, nlm};

use crate::connect::Connect;
use crate::exit::{Exit, UsageError};

/// Broadcast to everybody who subscribed.
///
/// Nobody answers, and nobody may be there. The body travels as one netlink message of type 16 (DATA). Ends when the
/// broker has passed it on.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub(crate) struct Args {
    /// What to say; - reads it from standard input. At most 65,515 bytes.
    #[arg(value_name = "BODY")]
    body: OsString,
    /// The body is whole netlink messages, to be sent as they are.
    #[arg(long, visible_alias = "message")]
    raw: bool,
    /// Only to who subscribed to this group, or to everything.
    #[arg(long, value_name = "NAME", value_parser = crate::subscribe::group)]
    group: Option<String>,
    #[command(flatten)]
    connect: Connect,
}

const EXAMPLE: &str = "\
Example:
  nlbus publish 'disk 3 is full' --group alerts
  printf '\\020\\0\\0\\0\\0\\003\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0' | nlbus publish - --raw";

pub(crate) async fn run(args: Args) -> anyhow::Result<Exit> {
    let body = body(&args.body)?;
    let payload = payload(body, args.raw)?;
    let endpoint = args.connect.endpoint().await?;
    match &args.group {
        Some(group) => endpoint.publish_to_group(group, &payload).await?,
        None => endpoint.publish(&payload).await?,
    }
    endpoint.flush(args.connect.timeout()).await?;
    Ok(Exit::Ok)
}

fn body(argument: &OsString) -> io::Result<Vec<u8>> {
    if argument != "-" {
        return Ok(argument.as_bytes().to_vec());
    }
    let mut body = Vec::new();
    // one byte more than fits, to see that it does not
    io::stdin().lock().take(PAYLOAD_MAX as u64 + 1).read_to_end(&mut body)?;
    Ok(body)
}

fn payload(body: Vec<u8>, raw: bool) -> Result<Vec<u8>, UsageError> {
    let payload = match raw {
        true => body,
        false => MessageBuilder::new(nlm::DATA, 0).body(&body).finish(),
    };
    if payload.len() > PAYLOAD_MAX {
        let max = if raw { PAYLOAD_MAX } else { PAYLOAD_MAX - nlbus::wire::HEADER_LEN };
        return Err(UsageError(format!(
            "the body is longer than {max} bytes, the most there can be"
        )));
    }
    if raw {
        if payload.is_empty() {
            return Err(UsageError("the body holds no netlink message".to_owned()));
        }
        for message in Messages::new(&payload) {
            message.map_err(|malformed| {
                UsageError(format!("the body is not whole netlink messages: {malformed}"))
            })?;
        }
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_becomes_a_message_and_a_message_stays_one() {
        let wrapped = payload(b"hi".to_vec(), false).unwrap();
        assert_eq!(wrapped, [&[18, 0, 0, 0, 16, 0][..], &[0; 10], b"hi"].concat());
        assert_eq!(payload(wrapped.clone(), true).unwrap(), wrapped);
    }

    #[test]
    fn a_body_at_the_bound_fits_and_one_past_it_does_not() {
        assert!(payload(vec![1; 65_515], false).is_ok());
        let error = payload(vec![1; 65_516], false).unwrap_err();
        assert!(error.to_string().contains("65515"), "{error}");
    }

    #[test]
    fn bytes_that_are_no_messages_are_refused_where_messages_are_promised() {
        for bytes in [&b""[..], b"hello", &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(payload(bytes.to_vec(), true).is_err(), "{bytes:?}");
        }
    }
}
