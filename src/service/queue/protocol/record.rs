//! What a message says, apart from where it is: attributes that the broker keeps and hands on as they are.

use bytes::Bytes;

use super::super::options::{Mode, Policy, QueueOptions};
use super::{Body, attr};
use crate::wire::{Attribute, Attributes, Malformed, NLA_HEADER_LEN, PAYLOAD_MAX};

/// A view of what a message says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// What an answer repeats.
    pub correlation: Bytes,
    /// The queue for an answer.
    pub reply_to: Option<String>,
    /// Names and values, in their order.
    pub headers: Vec<(String, Bytes)>,
    /// Of an answer that says no: an error number and words.
    pub error: Option<(i32, String)>,
    /// The payload.
    pub payload: Bytes,
}

impl Record {
    /// Reads the attributes of a message. Those that are none of a record are passed over, and so is what
    /// comes behind a cut.
    pub fn read(region: &Bytes) -> Self {
        Self::read_attributes(region, Attributes::new(region, 0).map_while(Result::ok))
    }

    /// As [`read`](Self::read), for the beginning of a record, of whose payload there is what there is.
    pub fn read_cut(region: &Bytes) -> Self {
        let mut record = Self::read(region);
        let end =
            Attributes::new(region, 0).find_map(Result::err).map(|malformed| malformed.offset);
        let cut = end.and_then(|end| region.get(end..)?.split_first_chunk::<NLA_HEADER_LEN>());
        if let Some(([_, _, k0, k1], rest)) = cut
            && u16::from_le_bytes([*k0, *k1]) == attr::PAYLOAD
            && record.payload.is_empty()
        {
            record.payload = region.slice_ref(rest);
        }
        record
    }

    fn read_attributes<'a>(
        region: &'a Bytes,
        attributes: impl Iterator<Item = Attribute<'a>>,
    ) -> Self {
        let mut record = Self::default();
        let mut parts: Vec<u8> = Vec::new();
        let mut error = (0, String::new());
        for attribute in attributes {
            let value = attribute.payload;
            match attribute.kind {
                attr::CORRELATION => record.correlation = region.slice_ref(value),
                attr::REPLY_TO => record.reply_to = Some(text(value)),
                attr::HEADER => {
                    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
                    let rest = value.get(end + 1..).unwrap_or_default();
                    record.headers.push((text(&value[..end]), region.slice_ref(rest)));
                }
                attr::ERRNO => error.0 = number(value) as i32,
                attr::TEXT => error.1 = text(value),
                attr::PAYLOAD if record.payload.is_empty() => {
                    record.payload = region.slice_ref(value);
                }
                attr::PAYLOAD => {
                    if parts.is_empty() {
                        parts.extend_from_slice(&record.payload);
                    }
                    parts.extend_from_slice(value);
                }
                _ => {}
            }
        }
        if !parts.is_empty() {
            record.payload = parts.into();
        }
        record.error = (error.0 != 0).then_some(error);
        record
    }

    /// What of it is longer than an attribute can be, in words; the payload may be.
    pub fn too_long(&self) -> Option<String> {
        let over = |length: usize| length > PAYLOAD_MAX;
        let header = self.headers.iter().find(|(name, value)| over(name.len() + 1 + value.len()));
        let what = match self {
            Self { correlation, .. } if over(correlation.len()) => "the correlation id".to_owned(),
            Self { reply_to: Some(queue), .. } if over(queue.len()) => {
                "the name for the answer".to_owned()
            }
            _ => format!("the header {:?}", header?.0.chars().take(64).collect::<String>()),
        };
        Some(format!("{what} is longer than {PAYLOAD_MAX} bytes"))
    }

    /// Its attributes; see [`too_long`](Self::too_long).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut body = Body::default();
        if !self.correlation.is_empty() {
            body.bytes(attr::CORRELATION, &self.correlation);
        }
        if let Some(reply_to) = &self.reply_to {
            body.text(attr::REPLY_TO, reply_to);
        }
        for (name, value) in &self.headers {
            body.bytes(attr::HEADER, &[name.as_bytes(), &[0], value].concat());
        }
        if let Some((errno, text)) = &self.error {
            body.u32(attr::ERRNO, *errno as u32).text(attr::TEXT, text);
        }
        body.long(attr::PAYLOAD, &self.payload);
        body.into_bytes()
    }
}

/// The queue for an answer, in a record.
pub fn reply_to_of(record: &[u8]) -> Option<String> {
    let mut attributes = Attributes::new(record, 0).map_while(Result::ok);
    let found = attributes.find(|attribute| attribute.kind == attr::REPLY_TO)?;
    Some(text(found.payload))
}

/// Headers of a dead letter.
const DEAD: [&[u8]; 3] = [b"dead-queue", b"dead-id", b"dead-attempts"];

/// A record with headers that say where it was delivered too often.
pub fn with_dead_letter(record: &[u8], queue: &str, id: u64, attempts: u32) -> Vec<u8> {
    let mut body = Body::default();
    for (name, value) in [
        ("dead-queue", queue.to_owned()),
        ("dead-id", id.to_string()),
        ("dead-attempts", attempts.to_string()),
    ] {
        body.bytes(attr::HEADER, format!("{name}\0{value}").as_bytes());
    }
    // of several ways to the dead letters the last one is told
    let mut attributes = Attributes::new(record, 0);
    let mut rest = 0;
    while let Some(Ok(attribute)) = attributes.next()
        && attribute.kind == attr::HEADER
        && DEAD.iter().any(|name| attribute.payload.split(|byte| *byte == 0).next() == Some(name))
    {
        rest = attributes.offset();
    }
    body.attributes(record.get(rest..).unwrap_or_default());
    body.into_bytes()
}

/// The attributes that a queue is made with.
pub fn options_to_bytes(options: &QueueOptions) -> Vec<u8> {
    let mut body = Body::default();
    let mode = match options.mode {
        Mode::Share => 0,
        Mode::Fanout => 1,
    };
    let policy = match options.policy {
        Policy::Reject => 0,
        Policy::DropOldest => 1,
        Policy::Block => 2,
    };
    body.u32(attr::MODE, mode)
        .u32(attr::POLICY, policy)
        .u64(attr::MESSAGES_MAX, options.messages_max)
        .u64(attr::BYTES_MAX, options.bytes_max)
        .u64(attr::MESSAGE_BYTES_MAX, options.message_bytes_max)
        .u64(attr::TTL_MAX, options.ttl_ms_max)
        .u64(attr::LEASE, options.lease_ms)
        .u32(attr::ATTEMPTS_MAX, options.attempts_max);
    if let Some(name) = &options.dead_letter {
        body.text(attr::DEAD_LETTER, name);
    }
    body.into_bytes()
}

/// Reads what [`options_to_bytes`] wrote. What is not there has its default; attributes of another kind
/// are passed over.
///
/// # Errors
/// Where the attributes make no sense.
pub fn options_from_bytes(region: &[u8]) -> Result<QueueOptions, Malformed> {
    let mut options = QueueOptions::default();
    for attribute in Attributes::new(region, 0) {
        let attribute = attribute?;
        set_option(&mut options, attribute.kind, attribute.payload);
    }
    Ok(options)
}

/// Whether the attribute is one of those that a queue is made with.
pub(super) fn set_option(options: &mut QueueOptions, kind: u16, value: &[u8]) -> bool {
    match kind {
        attr::MODE => options.mode = if number(value) == 1 { Mode::Fanout } else { Mode::Share },
        attr::POLICY => {
            options.policy = match number(value) {
                1 => Policy::DropOldest,
                2 => Policy::Block,
                _ => Policy::Reject,
            }
        }
        attr::MESSAGES_MAX => options.messages_max = number(value),
        attr::BYTES_MAX => options.bytes_max = number(value),
        attr::MESSAGE_BYTES_MAX => options.message_bytes_max = number(value),
        attr::TTL_MAX => options.ttl_ms_max = number(value),
        attr::LEASE => options.lease_ms = number(value),
        attr::ATTEMPTS_MAX => options.attempts_max = number(value) as u32,
        attr::DEAD_LETTER => options.dead_letter = Some(text(value)),
        _ => return false,
    }
    true
}

/// A number of up to 8 bytes, little-endian.
pub(super) fn number(value: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let length = value.len().min(8);
    bytes[..length].copy_from_slice(&value[..length]);
    u64::from_le_bytes(bytes)
}

/// Text as it was sent, with or without a NUL at its end.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// Whether an attribute belongs to a record.
pub(super) fn is_of_record(kind: u16) -> bool {
    matches!(
        kind,
        attr::CORRELATION
            | attr::REPLY_TO
            | attr::HEADER
            | attr::PAYLOAD
            | attr::ERRNO
            | attr::TEXT
    )
}

/// Bytes that an attribute with a value of `length` takes.
pub(super) fn attribute_len(length: usize) -> usize {
    crate::wire::align4(NLA_HEADER_LEN + length)
}
