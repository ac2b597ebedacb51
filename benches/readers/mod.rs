//! The same work done by several readers on the same bytes, and the bytes.
//!
//! Each reader looks at every header and every attribute and folds what it found into one number, so that
//! no part of the reading can be left out and they can be held against each other.

use netlink_packet_core::{
    DecodeError, DefaultNla, NLA_TYPE_MASK, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, Nla, NlasIterator, Parseable,
};
use nlbus::wire::{Attributes, Command, ControlAttribute, ControlBuilder};
use nlbus::wire::{Envelope, EnvelopeHead, FRAME_MAX, Frames, Key, Messages};

/// A captured dump of RTM_NEWLINK; `capture.py` beside it made it.
pub(crate) const DUMP: &[u8] = include_bytes!("../data/newlink.bin");

/// struct ifinfomsg, which stands between the header and the attributes of an RTM_NEWLINK.
const IFINFOMSG_LEN: usize = 16;

/// The head of the frames that are written and read.
pub(crate) const HEAD: EnvelopeHead =
    EnvelopeHead { flags: 0x20, sequence: 7, pid: 4711, dst: 0x0001_0003, src: 1 };

/// A frame with `count` attributes, their lengths those of common rtnetlink attributes.
pub(crate) fn frame_of(count: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    HEAD.emit(&[], &mut frame).expect("an empty payload fits");
    frame.truncate(24);
    for (kind, length) in [4usize, 6, 4, 1, 16, 4].into_iter().cycle().take(count).enumerate() {
        frame.extend_from_slice(&(4 + length as u16).to_le_bytes());
        frame.extend_from_slice(&(kind as u16).to_le_bytes());
        frame.resize(frame.len() + length.next_multiple_of(4), 0xa5);
    }
    let length = frame.len() as u32;
    frame[0..4].copy_from_slice(&length.to_le_bytes());
    frame
}

/// A frame whose CDATA holds `length` bytes.
#[allow(dead_code)] // each bench uses some of this module
pub(crate) fn frame_with(length: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    HEAD.emit(&vec![0xa5; length], &mut frame).expect("the payload fits");
    frame
}

fn fold(sum: u64, kind: u16, payload: &[u8]) -> u64 {
    sum.wrapping_add(u64::from(kind))
        .wrapping_add(payload.len() as u64)
        .wrapping_add(payload.as_ptr() as u64)
}

fn fold_head(head: &EnvelopeHead) -> u64 {
    let EnvelopeHead { flags, sequence, pid, dst, src } = *head;
    u64::from(sequence ^ pid ^ dst ^ src) + u64::from(flags)
}

/// Every attribute of a frame: ours.
#[inline(never)]
pub(crate) fn attributes_ours(frame: &[u8]) -> Option<u64> {
    let envelope = Envelope::parse(frame).ok()?;
    let mut sum = fold_head(&envelope.head);
    for attribute in envelope.attributes() {
        let attribute = attribute.ok()?;
        sum = fold(sum, attribute.kind, attribute.payload);
    }
    Some(sum)
}

/// Every attribute of a frame: what one writes by hand, with every check and without unsafe.
#[inline(never)]
pub(crate) fn attributes_by_hand(frame: &[u8]) -> Option<u64> {
    let bytes: &[u8; 24] = frame.first_chunk()?;
    let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let u32_at =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if u32_at(0) as usize != frame.len() || u16_at(4) != 15 {
        return None;
    }
    let mut sum = fold_head(&EnvelopeHead {
        flags: u16_at(6),
        sequence: u32_at(8),
        pid: u32_at(12),
        dst: u32_at(16),
        src: u32_at(20),
    });
    by_hand(&frame[24..], u16::MAX, &mut sum)?;
    Some(sum)
}

#[inline(always)]
fn by_hand(mut rest: &[u8], mask: u16, sum: &mut u64) -> Option<()> {
    while !rest.is_empty() {
        if rest.len() < 4 {
            return None;
        }
        let length = usize::from(u16::from_le_bytes([rest[0], rest[1]]));
        let kind = u16::from_le_bytes([rest[2], rest[3]]);
        if length < 4 || length > rest.len() {
            return None;
        }
        *sum = fold(*sum, kind & mask, &rest[4..length]);
        let step = length.next_multiple_of(4);
        rest = if step < rest.len() { &rest[step..] } else { &[] };
    }
    Some(())
}

/// Every attribute of every message of a dump: ours.
#[inline(never)]
pub(crate) fn dump_ours(dump: &[u8]) -> Option<u64> {
    let mut sum = 0;
    for message in Messages::new(dump) {
        let message = message.ok()?;
        sum += u64::from(message.header.kind) + u64::from(message.header.sequence);
        let attributes = message.body().get(IFINFOMSG_LEN..)?;
        for attribute in Attributes::new(attributes, 0) {
            let attribute = attribute.ok()?;
            sum = fold(sum, attribute.kind & NLA_TYPE_MASK, attribute.payload);
        }
    }
    Some(sum)
}

/// Every attribute of every message of a dump, by hand.
#[inline(never)]
pub(crate) fn dump_by_hand(dump: &[u8]) -> Option<u64> {
    let mut sum = 0;
    let mut rest = dump;
    while !rest.is_empty() {
        let header: &[u8; 16] = rest.first_chunk()?;
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        if length < 16 || length > rest.len() {
            return None;
        }
        sum += u64::from(u16::from_le_bytes([header[4], header[5]]));
        sum += u64::from(u32::from_le_bytes([header[8], header[9], header[10], header[11]]));
        by_hand(rest[16..length].get(IFINFOMSG_LEN..)?, NLA_TYPE_MASK, &mut sum)?;
        let step = length.next_multiple_of(4);
        rest = if step < rest.len() { &rest[step..] } else { &[] };
    }
    Some(sum)
}

/// The next message and attribute of a dump by their lengths alone: what no reader can do without.
#[inline(never)]
pub(crate) fn dump_lengths(dump: &[u8]) -> Option<u64> {
    let (mut message, mut sum) = (0, 0);
    while message < dump.len() {
        let length = u32::from_le_bytes(*dump.get(message..)?.first_chunk()?) as usize;
        let (mut at, end) = (message + 16 + IFINFOMSG_LEN, message + length);
        while at < end {
            let length = usize::from(u16::from_le_bytes(*dump.get(at..)?.first_chunk()?));
            at += length.max(4).next_multiple_of(4);
            sum += 1;
        }
        message = end.max(message + 16).next_multiple_of(4);
    }
    Some(sum)
}

/// Every attribute of every message of a dump: netlink-packet-core's borrowing views.
#[inline(never)]
pub(crate) fn dump_packet_core(dump: &[u8]) -> Option<u64> {
    let mut sum = 0;
    let mut at = 0;
    while at < dump.len() {
        let message = NetlinkBuffer::new_checked(&dump[at..]).ok()?;
        sum += u64::from(message.message_type()) + u64::from(message.sequence_number());
        for attribute in NlasIterator::new(message.payload().get(IFINFOMSG_LEN..)?) {
            let attribute = attribute.ok()?;
            sum = fold(sum, attribute.kind(), attribute.value());
        }
        at += (message.length() as usize).next_multiple_of(4);
    }
    Some(sum)
}

/// Every attribute of every message of a dump: netlink-packet-core's messages, which is what programs get from
/// that crate and what those built on it are made of. The attributes are its `DefaultNla`.
#[inline(never)]
pub(crate) fn dump_packet_core_messages(dump: &[u8]) -> Option<u64> {
    let mut sum = 0;
    let mut at = 0;
    while at < dump.len() {
        let message = NetlinkMessage::<Link>::deserialize(&dump[at..]).ok()?;
        sum += u64::from(message.header.message_type) + u64::from(message.header.sequence_number);
        let NetlinkPayload::InnerMessage(link) = &message.payload else { return None };
        for attribute in &link.attributes {
            sum += u64::from(attribute.kind()) + attribute.value_len() as u64;
        }
        at += (message.header.length as usize).next_multiple_of(4);
    }
    Some(sum)
}

/// An RTM_NEWLINK as a program of netlink-packet-core holds it, its attributes not yet told apart.
struct Link {
    attributes: Vec<DefaultNla>,
}

impl NetlinkDeserializable for Link {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let attributes = payload.get(IFINFOMSG_LEN..).unwrap_or_default();
        // Of `&&[u8]`, so that the iterator of `&[u8]` has one caller and is inlined there: its best case.
        let attributes = NlasIterator::new(&attributes)
            .map(|attribute| DefaultNla::parse(&attribute?))
            .collect::<Result<_, _>>()?;
        Ok(Self { attributes })
    }
}

/// What a broker does with a frame: find its end, read where it goes, write where it came from.
#[inline(never)]
pub(crate) fn route(buffer: &mut [u8], dst: u32, src: u32) -> Option<u32> {
    let mut frames = Frames::new(buffer, FRAME_MAX);
    let (_, frame) = frames.next_frame()?;
    let (kind, head) = EnvelopeHead::read(frame)?;
    EnvelopeHead::rewrite(frame, dst, src);
    Some(head.dst ^ head.src ^ u32::from(kind) ^ u32::from(head.flags))
}

/// One envelope into a buffer that has room.
#[inline(never)]
pub(crate) fn emit(head: &EnvelopeHead, payload: &[u8], out: &mut Vec<u8>) -> usize {
    out.clear();
    head.emit(payload, out).map_or(0, |()| out.len())
}

/// A control message with six attributes into a buffer that has room.
#[inline(never)]
pub(crate) fn emit_control(head: &EnvelopeHead, host: &str, out: &mut Vec<u8>) -> usize {
    out.clear();
    let result = ControlBuilder::new(out, *head, Command::Subscribe)
        .string(ControlAttribute::Host, host)
        .and_then(|builder| builder.key(Key { offset: 4, key: 16, mask: u32::MAX }))
        .and_then(|builder| builder.key(Key { offset: 16, key: 2, mask: 0xff }))
        .and_then(|builder| builder.u32(ControlAttribute::Port, 3))
        .and_then(|builder| builder.u32(ControlAttribute::Version, 1))
        .and_then(|builder| builder.u32(ControlAttribute::FrameMax, 65_560))
        .map(ControlBuilder::finish);
    result.map_or(0, |()| out.len())
}
