//! `nla_hdr` and its payload: the length-prefixed attributes of netlink.

use super::fault::{Fault, Malformed, Parsed, fault_of};

/// Length of an attribute's header in bytes.
pub const NLA_HEADER_LEN: usize = 4;

/// The most that one attribute can carry: its 16-bit length counts the header too.
pub const PAYLOAD_MAX: usize = u16::MAX as usize - NLA_HEADER_LEN;

/// The attribute of an envelope that holds the encapsulated messages.
pub const CDATA: u16 = 0;

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
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
    /// `end - rest.len()` is the offset of the next attribute.
    end: usize,
}

impl<'a> Attributes<'a> {
    /// Walks `region`, which stands `base` bytes after the start of what errors should count from.
    #[inline(always)]
    pub fn new(region: &'a [u8], base: usize) -> Self {
        Self { rest: region, end: base + region.len() }
    }

    /// Offset of the attribute that [`next`](Iterator::next) looks at.
    #[inline]
    pub fn offset(&self) -> usize {
        self.end - self.rest.len()
    }

    #[cold]
    fn fail(&mut self, fault: Fault) -> Malformed {
        let offset = self.offset();
        self.rest = &[];
        Malformed::new(fault, offset)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match attribute(self.rest) {
            Ok((rest, attribute)) => {
                self.rest = rest;
                Some(Ok(attribute))
            }
            Err(error) => Some(Err(self.fail(fault_of(error)))),
        }
    }
}

/// `attribute = length:u16 kind:u16 payload:(length - 4) [pad to 4]`
#[inline(always)]
pub(super) fn attribute(input: &[u8]) -> Parsed<'_, Attribute<'_>> {
    let Some(&[l0, l1, k0, k1]) = input.first_chunk::<NLA_HEADER_LEN>() else {
        return Err(nom::Err::Error(Fault::TrailingBytes));
    };
    let length = usize::from(u16::from_le_bytes([l0, l1]));
    let Some(payload) = input.get(NLA_HEADER_LEN..length) else {
        return Err(nom::Err::Error(misfit(length)));
    };
    let rest = input.get(super::align4(length)..).unwrap_or_default();
    Ok((rest, Attribute { kind: u16::from_le_bytes([k0, k1]), payload }))
}

#[cold]
fn misfit(length: usize) -> Fault {
    if length < NLA_HEADER_LEN { Fault::AttributeTooShort } else { Fault::AttributeCut }
}
