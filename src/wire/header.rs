//! `nlhdr`: the 16 bytes that start a frame and every message inside it.

use super::fault::{Fault, Malformed, Parsed, fault_of};

/// Length of a netlink header in bytes.
pub const HEADER_LEN: usize = 16;

/// A netlink message header (`struct nlmsghdr`, netlink(7)).
///
/// | offset | field | |
/// |---|---|---|
/// | 0 | `length` u32 | of the whole message, this header included |
/// | 4 | `kind` u16 | message type |
/// | 6 | `flags` u16 | |
/// | 8 | `sequence` u32 | chosen by the asker, echoed by the answer |
/// | 12 | `pid` u32 | port id |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Length of the message in bytes, this header included.
    pub length: u32,
    /// Message type.
    pub kind: u16,
    /// Flags; their meaning depends on the type.
    pub flags: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Port id.
    pub pid: u32,
}

impl Header {
    /// Reads the header that `bytes` start with. The length field is not judged.
    ///
    /// # Errors
    /// [`Fault::HeaderCut`] if there are fewer than 16 bytes.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        match header(bytes) {
            Ok((_, header)) => Ok(header),
            Err(error) => Err(Malformed::new(fault_of(error), bytes.len())),
        }
    }

    /// The header's 16 bytes.
    #[inline(always)]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let kind_and_flags = u32::from(self.kind) | u32::from(self.flags) << 16;
        let words = [self.length, kind_and_flags, self.sequence, self.pid].map(u32::to_le_bytes);
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(words.as_flattened());
        bytes
    }

    #[inline(always)]
    pub(super) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *bytes;
        Self {
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            kind: u16::from_le_bytes([k0, k1]),
            flags: u16::from_le_bytes([f0, f1]),
            sequence: u32::from_le_bytes([s0, s1, s2, s3]),
            pid: u32::from_le_bytes([p0, p1, p2, p3]),
        }
    }
}

/// `header = length:u32 kind:u16 flags:u16 sequence:u32 pid:u32`
#[inline(always)]
pub(super) fn header(input: &[u8]) -> Parsed<'_, Header> {
    match input.split_first_chunk::<HEADER_LEN>() {
        Some((bytes, rest)) => Ok((rest, Header::from_bytes(bytes))),
        None => Err(nom::Err::Error(Fault::HeaderCut)),
    }
}
