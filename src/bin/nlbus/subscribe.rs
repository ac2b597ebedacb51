//! `nlbus subscribe`: prints what is broadcast.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::num::ParseIntError;
use std::str::FromStr;

use nlbus::endpoint::{Event, Filter};
use nlbus::wire::{Key, Message, Messages, nlm};
use serde_json::{Map, Value, json};

use crate::connect::Connect;
use crate::exit::{Exit, UsageError};
use crate::until::{self, Next, Until};

/// Print what is broadcast on the bus: what programs publish, and what subsystems tell.
#[derive(Debug, clap::Args)]
#[command(after_help = help())]
// with certificates, --key names a file too: it is one option for both
#[command(mut_arg("key", |key| key.value_name("OFFSET:KEY:MASK|FILE").help(KEY_HELP).long_help(None)))]
pub(crate) struct Args {
    /// Only what this subsystem tells.
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
    /// Only what is published to this group.
    #[arg(long, value_name = "NAME", value_parser = group)]
    group: Option<String>,
    #[command(flatten)]
    until: Until,
    /// How to print an event.
    #[arg(long, value_enum, default_value = "json")]
    format: Format,
    #[command(flatten)]
    connect: Connect,
}

const KEY_HELP: &str = "\
Only events with these bits: the little-endian u32 at OFFSET of the payload, masked, equals KEY, masked. All must match. \
Numbers are decimal, or hexadecimal after 0x. What has no colon, or begins with a slash or a dot, is the file of the \
private key";

fn help() -> String {
    format!(
        "A loss is told in the JSON, in the other formats on standard error.\n{}\n\nExample:\n  \
         nlbus subscribe --group alerts -C 1 -W 60\n  \
         nlbus subscribe --from route --key 4:16:0xfffc --format hex\n  \
         nlbus ctl subscribe --group alerts    # the same command",
        until::HELP
    )
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// The bytes of the payloads, with nothing between them.
    Raw,
    /// A line of hexadecimal digits for each event, as `nlbus decode` reads them.
    Hex,
    /// A line with a JSON object for each event. A message has "text" if it is of type 16 (DATA) and holds text, else
    /// "body" in hexadecimal; what is no message is "rest". A loss is {"event":"lost","count":N}.
    Json,
}

/// The name of a group as the command line gives it.
pub(crate) fn group(name: &str) -> Result<String, String> {
    match name.len() {
        1..=nlbus::wire::GROUP_BYTES_MAX => Ok(name.to_owned()),
        length => Err(format!(
            "the name has {length} bytes; it has to have 1 to {}",
            nlbus::wire::GROUP_BYTES_MAX
        )),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KeyArg(Key);

impl FromStr for KeyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let [offset, key, mask] = parts.as_slice() else {
            let count = parts.len();
            return Err(format!("{text:?} has {count} of the three parts OFFSET:KEY:MASK"));
        };
        let number = |part: &str, text: &str| {
            number(text)
                .map_err(|error| format!("{part} {text:?} is no number of 32 bits: {error}"))
        };
        Ok(Self(Key {
            offset: number("OFFSET", offset)?,
            key: number("KEY", key)?,
            mask: number("MASK", mask)?,
        }))
    }
}

fn number(text: &str) -> Result<u32, ParseIntError> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // from_str_radix would take a sign here
        Some(digits) if !digits.starts_with('+') => u32::from_str_radix(digits, 16),
        _ => text.parse(),
    }
}

pub(crate) async fn run(mut args: Args) -> anyhow::Result<Exit> {
    let mut filter = Filter::all();
    for condition in args.connect.take_conditions()? {
        let key: KeyArg =
            condition.parse().map_err(|error| UsageError(format!("--key {error}")))?;
        filter = filter.key(key.0);
    }
    if let Some(from) = args.from {
        filter = filter.from(from);
    }
    if let Some(group) = args.group {
        filter = filter.group_name(group);
    }
    let endpoint = args.connect.endpoint().await?;
    let mut events = args.until.start(endpoint.subscribe(filter).await?)?;
    let mut out = io::stdout().lock();
    loop {
        match events.next().await? {
            Next::End(exit) => return Ok(exit),
            Next::Event(event) => {
                print(&event, args.format, &mut out)?;
                if !matches!(event, Event::Lost(_)) {
                    events.printed();
                }
            }
        }
    }
}

fn print(event: &Event, format: Format, out: &mut impl Write) -> io::Result<()> {
    match (event, format) {
        (Event::Message { from, group, payload }, Format::Json) => {
            writeln!(out, "{}", object(*from, group.as_deref(), payload))?;
        }
        (Event::Message { payload, .. }, Format::Raw) => out.write_all(payload)?,
        (Event::Message { payload, .. }, Format::Hex) => writeln!(out, "{}", hex(payload))?,
        (Event::Lost(count), Format::Json) => {
            writeln!(out, "{}", json!({ "event": "lost", "count": count }))?;
        }
        (Event::Lost(count), Format::Raw | Format::Hex) => {
            // who reads the events has to learn it even if nobody reads this
            let _ = writeln!(io::stderr(), "nlbus: lost {count} events");
        }
    }
    out.flush()
}

fn object(from: u32, group: Option<&str>, payload: &[u8]) -> Value {
    let mut object = Map::new();
    object.insert("from".to_owned(), json!(from));
    if let Some(group) = group {
        object.insert("group".to_owned(), json!(group));
    }
    object.insert("length".to_owned(), json!(payload.len()));
    let mut messages = Messages::new(payload);
    let mut sound = Vec::new();
    let rest = loop {
        let at = messages.offset();
        match messages.next() {
            Some(Ok(message)) => sound.push(message_object(&message)),
            Some(Err(_)) => break payload.get(at..),
            None => break None,
        }
    };
    object.insert("messages".to_owned(), Value::Array(sound));
    if let Some(rest) = rest {
        object.insert("rest".to_owned(), json!(hex(rest)));
    }
    Value::Object(object)
}

fn message_object(message: &Message<'_>) -> Value {
    let header = &message.header;
    let (key, body) = match text(message) {
        Some(text) => ("text", text.to_owned()),
        None => ("body", hex(message.body())),
    };
    json!({
        "type": header.kind,
        "flags": header.flags,
        "sequence": header.sequence,
        "pid": header.pid,
        key: body,
    })
}

/// The body, if it is text: the number of DATA means something else to a netlink family.
fn text<'a>(message: &Message<'a>) -> Option<&'a str> {
    let printable = |text: &&str| text.chars().all(|c| !c.is_control() || "\t\r\n".contains(c));
    let text = str::from_utf8(message.body()).ok().filter(printable);
    text.filter(|_| message.header.kind == nlm::DATA)
}

fn hex(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // a String takes everything
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

#[cfg(test)]
mod tests {
    use nlbus::wire::MessageBuilder;

    use super::*;

    #[test]
    fn a_key_is_three_numbers_decimal_or_hexadecimal() {
        let key: KeyArg = "4:0x10:0xFFFC".parse().unwrap();
        assert_eq!(key, KeyArg(Key { offset: 4, key: 16, mask: 0xfffc }));
        let all: KeyArg = "0:0:4294967295".parse().unwrap();
        assert_eq!(all, KeyArg(Key { offset: 0, key: 0, mask: u32::MAX }));
    }

    #[test]
    fn a_wrong_key_names_its_wrong_part() {
        for (text, part) in [
            ("", "1 of the three"),
            ("4:16", "2 of the three"),
            ("4:16:1:1", "4 of the three"),
            ("x:16:1", "OFFSET \"x\""),
            ("4::1", "KEY \"\""),
            ("4:-1:1", "KEY \"-1\""),
            ("4:0x+1:1", "KEY \"0x+1\""),
            ("4:16:0x100000000", "MASK \"0x100000000\""),
        ] {
            let error = text.parse::<KeyArg>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_payload_is_shown_as_its_messages_and_what_is_none() {
        let text = MessageBuilder::new(nlm::DATA, 0).sequence(7).pid(9).body("grün".as_bytes());
        let mut payload = text.finish();
        payload.resize(24, 0);
        payload.extend(MessageBuilder::new(nlm::DATA, 2).body(&[0, 1]).finish());
        payload.resize(44, 0);
        payload.extend([1, 2, 3]);
        let expected = json!({ "from": 5, "group": "a", "length": 47, "messages": [
            { "type": 16, "flags": 0, "sequence": 7, "pid": 9, "text": "grün" },
            { "type": 16, "flags": 2, "sequence": 0, "pid": 0, "body": "0001" },
        ], "rest": "010203" });
        assert_eq!(object(5, Some("a"), &payload), expected);
        assert_eq!(object(0, None, b""), json!({ "from": 0, "length": 0, "messages": [] }));
    }

    #[test]
    fn each_format_prints_the_payload_and_nothing_that_is_not_said() {
        let payload = MessageBuilder::new(0x300, 0).finish();
        let event = Event::Message { from: 0, group: None, payload: payload.clone().into() };
        let printed = |format| {
            let mut out = Vec::new();
            print(&event, format, &mut out).unwrap();
            out
        };
        assert_eq!(printed(Format::Raw), payload);
        assert_eq!(printed(Format::Hex), b"10000000000300000000000000000000\n");
        assert!(printed(Format::Json).ends_with(b"}\n"));
        let mut out = Vec::new();
        print(&Event::Lost(3), Format::Json, &mut out).unwrap();
        assert_eq!(out, b"{\"event\":\"lost\",\"count\":3}\n");
        out.clear();
        print(&Event::Lost(3), Format::Raw, &mut out).unwrap();
        assert_eq!(out, b"", "it would be taken for a payload");
    }
}
