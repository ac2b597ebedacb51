//! The frame: a netlink header, two addresses, attributes.

use super::attribute::{Attributes, CDATA, GROUP, GROUP_BYTES_MAX, NLA_HEADER_LEN, PAYLOAD_MAX};
use super::deframe::FRAME_MAX;
use super::fault::{Fault, Malformed, TooBig};
use super::header::Header;
use super::{ENVELOPE_LEN, PAYLOAD_OFFSET, align4};

/// The type of every frame's outer header.
pub const TRANSPORT_TYPE: u16 = 15;

/// The type of the inner message of a control frame, and of a socket operation to a kernel subsystem.
pub const CONTROL_TYPE: u16 = 14;

/// The bits of an envelope's `flags`.
pub mod flag {
    /// The payload is a control message for the broker that receives it.
    pub const CONTROL: u16 = 0x1;
    /// The frame answers another.
    pub const RESPONSE: u16 = 0x4;
    /// The frame says that another could not be delivered or handled.
    pub const EXCEPTION: u16 = 0x10;
    /// The sender waits for an answer: what cannot be delivered comes back as an EXCEPTION.
    pub const ASK: u16 = 0x20;
    /// The last frame of an answer to an ASK.
    pub const LAST: u16 = 0x40;
    /// The high byte counts the hops between brokers.
    pub const HOPS_MASK: u16 = 0xff00;
    /// The most hops between brokers that a frame makes.
    pub const HOPS_MAX: u16 = 8;
}

/// Where a frame can go: the ranges that `dst` and `src` are read by.
pub mod address {
    /// As `dst`, whoever subscribed; as `src`, a sender without ports.
    pub const SUBSCRIBERS: u32 = 0;
    /// As `src` of a broadcast, a subsystem of another broker that has no address here.
    pub const FOREIGN: u32 = 1;
    /// The first subsystem that a broker provides. The original's clients send here without asking.
    pub const SUBSYSTEM_FIRST: u32 = 0x0001_0003;
    /// The last address that a subsystem can have.
    pub const SUBSYSTEM_LAST: u32 = 0x0001_ffff;
    /// Return addresses lie between this one and [`BROADCAST`], the latter left out.
    pub const RETURN_FIRST: u32 = 0x8000_0000;
    /// As `dst`, whoever subscribed.
    pub const BROADCAST: u32 = u32::MAX;
}

/// The fixed part of a frame, without its length: what routing reads and an answer echoes.
///
/// | offset | field |
/// |---|---|
/// | 0 | length u32 (derived) |
/// | 4 | type u16 = 15 |
/// | 6 | `flags` u16 |
/// | 8 | `sequence` u32 |
/// | 12 | `pid` u32 |
/// | 16 | `dst` u32 |
/// | 20 | `src` u32 |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EnvelopeHead {
    /// Bits of [`flag`].
    pub flags: u16,
    /// The sender's number for this frame; brokers never touch it.
    pub sequence: u32,
    /// The sender's process id; brokers never touch it.
    pub pid: u32,
    /// Where the frame goes.
    pub dst: u32,
    /// Where an answer goes.
    pub src: u32,
}

impl EnvelopeHead {
    /// Reads the fixed part of a whole frame, as [`Frames`](super::Frames) yields it. Neither the type
    /// nor the attributes are judged; `None` if there are fewer than 24 bytes.
    #[inline(always)]
    pub fn read(frame: &[u8]) -> Option<(u16, Self)> {
        let bytes = frame.first_chunk::<ENVELOPE_LEN>()?;
        let (header, head) = split_head(bytes);
        Some((header.kind, head))
    }

    /// Overwrites both addresses of a frame in place. Frames shorter than 24 bytes stay as they are.
    #[inline(always)]
    pub fn rewrite(frame: &mut [u8], dst: u32, src: u32) {
        if let Some(bytes) = frame.first_chunk_mut::<ENVELOPE_LEN>() {
            bytes[16..20].copy_from_slice(&dst.to_le_bytes());
            bytes[20..24].copy_from_slice(&src.to_le_bytes());
        }
    }

    /// Overwrites the fixed part of a whole frame, but for its length. Frames shorter than 24 bytes stay
    /// as they are.
    #[inline]
    pub fn write_over(&self, frame: &mut [u8]) {
        let length = frame.len();
        if let Some(bytes) = frame.first_chunk_mut::<ENVELOPE_LEN>() {
            bytes.copy_from_slice(self.fixed(length).map(u32::to_le_bytes).as_flattened());
        }
    }

    /// The 28 bytes that stand before a payload of `length` bytes. The payload is to be followed by
    /// `align4(length) - length` zero bytes.
    ///
    /// # Errors
    /// [`TooBig`] above [`PAYLOAD_MAX`].
    #[inline(always)]
    pub fn before_payload(&self, length: usize) -> Result<[u8; PAYLOAD_OFFSET], TooBig> {
        if length > PAYLOAD_MAX {
            return Err(TooBig { length, max: PAYLOAD_MAX });
        }
        let mut bytes = [0; PAYLOAD_OFFSET];
        bytes.copy_from_slice(self.words(length).as_flattened());
        Ok(bytes)
    }

    /// Appends a whole frame with `payload` as its CDATA.
    ///
    /// # Errors
    /// [`TooBig`] above [`PAYLOAD_MAX`]; `out` is then untouched.
    #[inline]
    pub fn emit(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), TooBig> {
        if payload.len() > PAYLOAD_MAX {
            return Err(TooBig { length: payload.len(), max: PAYLOAD_MAX });
        }
        let pad = align4(payload.len()) - payload.len();
        out.reserve(PAYLOAD_OFFSET + payload.len() + pad);
        out.extend_from_slice(self.words(payload.len()).as_flattened());
        out.extend_from_slice(payload);
        if pad != 0 {
            out.extend_from_slice(&[0; 3][..pad]);
        }
        Ok(())
    }

    /// As [`emit`](Self::emit), for the members of `group`: its name follows the CDATA as [`GROUP`].
    ///
    /// # Errors
    /// [`TooBig`] if the name is longer than [`GROUP_BYTES_MAX`], or the frame than [`FRAME_MAX`]; `out`
    /// is then untouched.
    pub fn emit_to_group(
        &self,
        group: &str,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), TooBig> {
        if group.len() > GROUP_BYTES_MAX {
            return Err(TooBig { length: group.len(), max: GROUP_BYTES_MAX });
        }
        let length = NLA_HEADER_LEN + group.len() + 1;
        let max = FRAME_MAX - PAYLOAD_OFFSET - align4(length);
        if payload.len() > max {
            return Err(TooBig { length: payload.len(), max });
        }
        let start = out.len();
        self.emit(payload, out)?;
        out.extend_from_slice(&pair(length as u16, GROUP).to_le_bytes());
        out.extend_from_slice(group.as_bytes());
        out.extend_from_slice(&[0; 4][..align4(length) - length + 1]);
        let frame = (out.len() - start) as u32;
        out[start..start + 4].copy_from_slice(&frame.to_le_bytes());
        Ok(())
    }

    /// The words before a payload of `length` bytes. Whole words, because bytes that are put together
    /// field by field are shifted into place one by one.
    #[inline(always)]
    fn words(&self, length: usize) -> [[u8; 4]; PAYLOAD_OFFSET / 4] {
        let [frame, kind, sequence, pid, dst, src] = self.fixed(align4(PAYLOAD_OFFSET + length));
        let attribute = pair((NLA_HEADER_LEN + length) as u16, CDATA);
        [frame, kind, sequence, pid, dst, src, attribute].map(u32::to_le_bytes)
    }

    #[inline(always)]
    fn fixed(&self, frame_length: usize) -> [u32; ENVELOPE_LEN / 4] {
        let kind = pair(TRANSPORT_TYPE, self.flags);
        [frame_length as u32, kind, self.sequence, self.pid, self.dst, self.src]
    }
}

#[inline(always)]
fn pair(low: u16, high: u16) -> u32 {
    u32::from(low) | u32::from(high) << 16
}

/// A checked view of one whole frame.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// The fixed part.
    pub head: EnvelopeHead,
    attributes: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Looks at `frame`, which is one whole frame. Attributes are judged when they are walked.
    ///
    /// # Errors
    /// [`Fault::HeaderCut`] below 24 bytes, [`Fault::LengthMismatch`] if the length field is not
    /// `frame.len()`, [`Fault::NotTransport`] for another type.
    #[inline(always)]
    pub fn parse(frame: &'a [u8]) -> Result<Self, Malformed> {
        let Some((bytes, attributes)) = frame.split_first_chunk::<ENVELOPE_LEN>() else {
            return Err(Malformed::new(Fault::HeaderCut, frame.len()));
        };
        let (header, head) = split_head(bytes);
        if header.length as usize != frame.len() {
            return Err(Malformed::new(Fault::LengthMismatch, 0));
        }
        if header.kind != TRANSPORT_TYPE {
            return Err(Malformed::new(Fault::NotTransport, 4));
        }
        Ok(Self { head, attributes })
    }

    /// Walks the attributes; offsets count from the start of the frame.
    #[inline(always)]
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.attributes, ENVELOPE_LEN)
    }

    /// The first CDATA. Other attributes are skipped, but every one is checked.
    ///
    /// # Errors
    /// The first fault of the attributes, or [`Fault::NoPayload`].
    #[inline]
    pub fn payload(&self) -> Result<&'a [u8], Malformed> {
        let mut payload = None;
        for attribute in self.attributes() {
            let attribute = attribute?;
            if attribute.kind == CDATA && payload.is_none() {
                payload = Some(attribute.payload);
            }
        }
        payload.ok_or(Malformed::new(Fault::NoPayload, ENVELOPE_LEN))
    }

    /// The first CDATA and the first GROUP. Other attributes are skipped, but every one is checked.
    ///
    /// # Errors
    /// As [`payload`](Self::payload).
    pub fn broadcast(&self) -> Result<Broadcast<'a>, Malformed> {
        let (mut payload, mut group) = (None, None);
        for attribute in self.attributes() {
            let attribute = attribute?;
            match attribute.kind {
                CDATA => payload = payload.or(Some(attribute.payload)),
                GROUP => group = group.or(Some(attribute.payload)),
                _ => {}
            }
        }
        let payload = payload.ok_or(Malformed::new(Fault::NoPayload, ENVELOPE_LEN))?;
        let group = group.map(|name| name.strip_suffix(&[0]).unwrap_or(name));
        Ok(Broadcast { payload, group })
    }
}

/// What subscriptions choose by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broadcast<'a> {
    /// The first CDATA.
    pub payload: &'a [u8],
    /// The first [`GROUP`], without the NUL at its end. Not checked to be text.
    pub group: Option<&'a [u8]>,
}

#[inline(always)]
fn split_head(bytes: &[u8; ENVELOPE_LEN]) -> (Header, EnvelopeHead) {
    let [header @ .., d0, d1, d2, d3, s0, s1, s2, s3] = bytes;
    let header = Header::from_bytes(header);
    let head = EnvelopeHead {
        flags: header.flags,
        sequence: header.sequence,
        pid: header.pid,
        dst: u32::from_le_bytes([*d0, *d1, *d2, *d3]),
        src: u32::from_le_bytes([*s0, *s1, *s2, *s3]),
    };
    (header, head)
}
