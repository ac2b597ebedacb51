//! What a queue is called in the cluster, and what its stream says of it.

use super::super::options::{Kind, QueueOptions};
use super::super::protocol::{options_from_bytes, options_to_bytes};

/// What names of streams begin with.
pub(super) const STREAM_PREFIX: &str = "NLBUS_";

/// What subjects of queues begin with.
const SUBJECT_PREFIX: &str = "nlbus.queue.";

/// The longest name that is written out, in bytes; a longer one ends with a digest. A server takes 255 for
/// a stream.
const TOKEN_BYTES_MAX: usize = 200;

/// What stands before a description's fields.
const MARK: &str = "nlbus queue 1; ";

/// The stream of a queue.
pub(super) fn stream_of(queue: &str) -> String {
    format!("{STREAM_PREFIX}{}", token(queue))
}

/// The subject of a queue that was made at this time. Another queue of the same name has another one, so
/// nothing for this one gets there.
pub(super) fn subject_of(queue: &str, made: u64) -> String {
    format!("{SUBJECT_PREFIX}{}.{made:x}", token(queue))
}

/// The durable consumer of a queue that was made at this time.
pub(super) fn consumer_of(made: u64) -> String {
    format!("nlbus-{made:x}")
}

/// A name as a part of a subject: letters, digits, `-` and `_` stand for themselves, every other byte for
/// `=` and two hexadecimal digits.
fn token(name: &str) -> String {
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => token.push(byte.into()),
            _ => token.push_str(&format!("={byte:02X}")),
        }
    }
    if token.len() > TOKEN_BYTES_MAX {
        token.truncate(TOKEN_BYTES_MAX - 34);
        token.push_str(&format!("=-{:032x}", digest(name.as_bytes())));
    }
    token
}

/// FNV-1a. That two names have the same is made out by the name in the description, and refused.
fn digest(bytes: &[u8]) -> u128 {
    const PRIME: u128 = 0x0100_0000_0000_0000_0000_013b;
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    bytes.iter().fold(BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

/// What the description of a stream says of its queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct About {
    /// When it was made, in microseconds.
    pub(super) made: u64,
    /// What is added to a sequence number of the stream to have an id.
    pub(super) floor: u64,
    /// The broker and the session that a transient queue belongs to.
    pub(super) owner: Option<(u64, u32)>,
    pub(super) options: QueueOptions,
    pub(super) name: String,
}

impl About {
    pub(super) fn kind(&self) -> Kind {
        if self.owner.is_some() { Kind::Transient } else { Kind::Persistent }
    }

    pub(super) fn to_text(&self) -> String {
        let Self { made, floor, owner, options, name } = self;
        let owner =
            owner.map_or("none".to_owned(), |(broker, at)| format!("{broker:016x}-{at:08x}"));
        let options: String =
            options_to_bytes(options).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{MARK}made={made:x}; floor={floor}; owner={owner}; options={options}; name={name}")
    }

    /// Reads what [`to_text`](Self::to_text) wrote; of the description of another stream, nothing.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (fields, name) = text.strip_prefix(MARK)?.split_once("; name=")?;
        let mut fields = fields.split("; ").filter_map(|field| field.split_once('='));
        let mut value = |name| fields.next().filter(|field| field.0 == name).map(|field| field.1);
        let made = u64::from_str_radix(value("made")?, 16).ok()?;
        let floor = value("floor")?.parse().ok()?;
        let owner = match value("owner")? {
            "none" => None,
            owner => {
                let (broker, session) = owner.split_once('-')?;
                let session = u32::from_str_radix(session, 16).ok()?;
                Some((u64::from_str_radix(broker, 16).ok()?, session))
            }
        };
        let options = options_from_bytes(&from_hex(value("options")?)?).ok()?;
        Some(Self { made, floor, owner, options, name: name.to_owned() })
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_legal_part_of_a_subject_and_no_other_name_is_the_same_one() {
        assert_eq!(stream_of("jobs_1-a"), "NLBUS_jobs_1-a");
        assert_eq!(stream_of("a.b>c/ü=*"), "NLBUS_a=2Eb=3Ec=2F=C3=BC=3D=2A");
        assert_ne!(stream_of("a=2E"), stream_of("a."));
        let long = "ü".repeat(127);
        let other = format!("{}x", "ü".repeat(126));
        for name in [&long, &other] {
            assert!(stream_of(name).len() <= 255 - 49, "a server takes 255");
        }
        assert_ne!(stream_of(&long), stream_of(&other));
    }

    #[test]
    fn a_description_is_read_as_it_was_written() {
        let options = QueueOptions::default().dead_letter(Some("dead; name=x".to_owned()));
        for owner in [None, Some((u64::MAX, 7))] {
            let about = About {
                made: 0x1234,
                floor: 99,
                owner,
                options: options.clone(),
                name: "a; name=b; options=".to_owned(),
            };
            assert_eq!(About::parse(&about.to_text()), Some(about.clone()));
            assert!(about.to_text().len() < 4_096, "a server takes no more");
        }
        for text in ["", "orders", "nlbus queue 1; made=x; name=", "nlbus queue 2; made=1"] {
            assert_eq!(About::parse(text), None, "{text}");
        }
    }
}
