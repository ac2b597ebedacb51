//! Reading rtnetlink messages without trusting a byte of them, and writing the dump requests.
//!
//! The request, most fixed headers and the attribute walk are those of the netlink-packet crates.
//! Attribute values are read here, because those crates refuse a whole message for one attribute of
//! a length that they do not expect, and the bytes come from a kernel of any version.

use std::net::{Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NlasIterator,
};
use netlink_packet_route::{
    RouteNetlinkMessage, address::AddressHeader, neighbour::NeighbourHeader, route::RouteHeader,
    rule::RuleHeader,
};
use serde_json::{Map, Value};

use super::RenderError;

pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;

/// One JSON object of the answer, its keys in the order of `ip -j`.
pub(super) type Record = Map<String, Value>;

/// Adds keys to a [`Record`].
pub(super) trait Put {
    fn put(&mut self, key: &str, value: impl Into<Value>);

    /// Adds the key only if there is a value: an attribute that is absent, or too short to read.
    fn put_some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }
}

impl Put for Record {
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.insert(key.to_owned(), value.into());
    }
}

/// The fixed part of a message that answers a dump.
pub(super) trait Header: Sized {
    /// The message type of the answer, `RTM_NEW…`.
    const KIND: u16;
    const LEN: usize;

    fn parse_header(payload: &[u8]) -> Result<Self, DecodeError>;
}

macro_rules! header {
    ($($header:ty: $kind:literal, $len:literal;)*) => {$(
        impl Header for $header {
            const KIND: u16 = $kind;
            const LEN: usize = $len;

            fn parse_header(payload: &[u8]) -> Result<Self, DecodeError> {
                Self::parse(payload)
            }
        }
    )*};
}

header! {
    AddressHeader: 20, 8;
    RouteHeader: 24, 12;
    NeighbourHeader: 28, 12;
    RuleHeader: 32, 12;
}

/// A decoded message.
pub(super) struct Message<'a, H> {
    pub(super) header: H,
    pub(super) attributes: Attributes<'a>,
}

/// Decodes the messages of dump number `dump`, all of which must be answers of `H`'s kind.
pub(super) fn decode<H: Header>(
    dump: usize,
    messages: &[Bytes],
) -> Result<Vec<Message<'_, H>>, RenderError> {
    let messages = messages.iter().enumerate();
    let decoded = messages.map(|(message, bytes)| match decode_message(bytes) {
        Ok(Ok(decoded)) => Ok(decoded),
        Ok(Err(kind)) => Err(RenderError::UnexpectedKind { dump, message, kind }),
        Err(source) => Err(RenderError::Malformed { dump, message, source }),
    });
    decoded.collect()
}

/// The message, or its type if that is not the one of `H`.
fn decode_message<H: Header>(bytes: &[u8]) -> Result<Result<Message<'_, H>, u16>, DecodeError> {
    let buffer = NetlinkBuffer::new_checked(bytes)?;
    let payload = buffer.payload();
    if buffer.message_type() != H::KIND {
        return Ok(Err(buffer.message_type()));
    }
    decode_body(payload).map(Ok)
}

/// What follows the netlink header: of a message of `H`'s kind, or of one that says that such an object
/// is gone, which looks the same.
pub(super) fn decode_body<H: Header>(body: &[u8]) -> Result<Message<'_, H>, DecodeError> {
    let header = H::parse_header(body)?;
    let attributes = Attributes::parse(body.get(H::LEN..).unwrap_or_default())?;
    Ok(Message { header, attributes })
}

/// The attributes of a message or of a nest. Of attributes that repeat the first counts, as in
/// `ip`.
///
/// A getter answers `None` for an attribute that is absent or shorter than the value asked for.
#[derive(Default)]
pub(super) struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let split = |attribute: Result<netlink_packet_core::NlaBuffer<&'a [u8]>, _>| {
            let attribute = attribute?;
            let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
            Ok((kind, attribute.into_inner().get(4..end).unwrap_or_default()))
        };
        NlasIterator::new(bytes).map(split).collect::<Result<_, _>>().map(Self)
    }

    /// The nest in attribute `kind`; empty if there is none or it is malformed.
    pub(super) fn nest(&self, kind: u16) -> Self {
        self.bytes(kind).and_then(|bytes| Self::parse(bytes).ok()).unwrap_or_default()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, &'a [u8])> {
        self.0.iter().copied()
    }

    pub(super) fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find_map(|(found, bytes)| (found == kind).then_some(bytes))
    }

    fn array<const N: usize>(&self, kind: u16) -> Option<[u8; N]> {
        self.bytes(kind)?.first_chunk().copied()
    }

    pub(super) fn u8(&self, kind: u16) -> Option<u8> {
        self.array(kind).map(u8::from_ne_bytes)
    }

    pub(super) fn u32(&self, kind: u16) -> Option<u32> {
        self.array(kind).map(u32::from_ne_bytes)
    }

    pub(super) fn i32(&self, kind: u16) -> Option<i32> {
        self.array(kind).map(i32::from_ne_bytes)
    }

    pub(super) fn u64_be(&self, kind: u16) -> Option<u64> {
        self.array(kind).map(u64::from_be_bytes)
    }

    /// The `N`th `u32` of an attribute that is a struct of them.
    pub(super) fn u32_at(&self, kind: u16, position: usize) -> Option<u32> {
        let word = self.bytes(kind)?.get(position * 4..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*word))
    }

    /// The two ends of an attribute that is a range of `u16`.
    pub(super) fn u16_range(&self, kind: u16) -> Option<(u16, u16)> {
        let [a, b, c, d] = self.array(kind)?;
        Some((u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])))
    }

    pub(super) fn text(&self, kind: u16) -> Option<String> {
        self.bytes(kind).map(text)
    }

    pub(super) fn address(&self, kind: u16, family: u8) -> Option<String> {
        self.bytes(kind).and_then(|bytes| address(family, bytes))
    }
}

/// A C string: what precedes the first NUL. Bytes that are not UTF-8 are replaced.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// An IP address as `inet_ntop` writes it.
pub(super) fn address(family: u8, bytes: &[u8]) -> Option<String> {
    match family {
        AF_INET => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).to_string()),
        AF_INET6 => Some(inet6(Ipv6Addr::from(*bytes.first_chunk::<16>()?))),
        _ => None,
    }
}

/// The C library still writes the deprecated IPv4-compatible form, which [`Ipv6Addr`] no longer
/// does.
fn inet6(address: Ipv6Addr) -> String {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, high, _] if high != 0 => {
            format!("::{}", Ipv4Addr::from(address.to_bits() as u32))
        }
        _ => address.to_string(),
    }
}

/// The bytes of a dump request.
pub(super) fn request(message: RouteNetlinkMessage) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}
