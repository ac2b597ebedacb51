//! `nla_hdr` and its payload: the length-prefixed attributes of netlink.

use super::fault::{Fault, Malformed, Parsed, fault_of};

/// Length of an attribute's header in bytes.
pub const NLA_HEADER_LEN: usize = 4;

/// The most that one attribute can carry: its 16-bit length counts the header too.
pub const PAYLOAD_MAX: usize = u16::MAX as usize - NLA_HEADER_LEN;

/// The attribute of an envelope that holds the encapsulated messages.
pub const CDATA: u16 = 0;

/// The attribute of an envelope that names the group that a broadcast is for.
pub const GROUP: u16 = 1;

/// The longest name of a group in bytes, without its NUL.
pub const GROUP_BYTES_MAX: usize = 255;

/// One attribute (`struct nlattr`, netlink(7)).
///
/// | offset | field | |
/// |---|---|---|
/// | 0 | length u16 | header and payload, without padding |
/// | 2 | `kind` u16 | with the NLA_F_ bits, if any |
/// | 4 | `payload` | padded to 4; the last one of a container may go unpadded |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// The attribute's type as it stands on the wire.
    pub kind: u16,
    /// Its bytes, without header and padding.
    pub payload: &'a [u8],
}

/// Walks the attributes of a container; ends after the last one or after the first fault.
///
/// The walk keeps a position, not the rest of the region: adding to it needs no branch at the end, where the
/// padding of the last attribute may be missing.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    region: &'a [u8],
    /// Of the next attribute; up to 3 beyond the end once an unpadded last one is read.
    at: usize,
    base: usize,
}

impl<'a> Attributes<'a> {
    /// Walks `region`, which stands `base` bytes after the start of what errors should count from.
    #[inline(always)]
    pub fn new(region: &'a [u8], base: usize) -> Self {
        Self { region, at: 0, base }
    }

    /// Offset of the attribute that [`next`](Iterator::next) looks at.
    #[inline]
    pub fn offset(&self) -> usize {
        self.base + self.at.min(self.region.len())
    }

    #[cold]
    fn fail(&mut self, fault: Fault) -> Malformed {
        let offset = self.offset();
        self.at = self.region.len();
        Malformed::new(fault, offset)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.region.len() {
            return None;
        }
        match attribute(&self.region[self.at..]) {
            Ok((_, attribute)) => {
                self.at += super::align4(NLA_HEADER_LEN + attribute.payload.len());
                Some(Ok(attribute))
            }
            Err(error) => Some(Err(self.fail(fault_of(error)))),
        }
    }
}

/// `attribute = length:u16 kind:u16 payload:(length - 4)`; padding is the walk's.
#[inline(always)]
fn attribute(input: &[u8]) -> Parsed<'_, Attribute<'_>> {
    let Some((&[l0, l1, k0, k1], body)) = input.split_first_chunk::<NLA_HEADER_LEN>() else {
        return Err(nom::Err::Error(Fault::TrailingBytes));
    };
    let length = usize::from(u16::from_le_bytes([l0, l1]));
    // Below 4 this wraps, and no body is that long: one comparison finds both faults.
    let payload_len = length.wrapping_sub(NLA_HEADER_LEN);
    if payload_len > body.len() {
        return Err(nom::Err::Error(misfit(length)));
    }
    let (payload, rest) = body.split_at(payload_len);
    Ok((rest, Attribute { kind: u16::from_le_bytes([k0, k1]), payload }))
}

#[cold]
fn misfit(length: usize) -> Fault {
    if length < NLA_HEADER_LEN { Fault::AttributeTooShort } else { Fault::AttributeCut }
}
