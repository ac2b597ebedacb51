//! Writing control messages.

use super::attribute::{NLA_HEADER_LEN, PAYLOAD_MAX};
use super::control::{ATTRIBUTES_AT, CONTROL_VERSION, Command, ControlAttribute, Key};
use super::envelope::{CONTROL_TYPE, EnvelopeHead, flag};
use super::fault::TooBig;
use super::header::{HEADER_LEN, Header};
use super::{PAYLOAD_OFFSET, align4};

/// Appends one control frame, envelope and all, to a buffer.
///
/// ```
/// use nlbus::wire::{Command, ControlAttribute, ControlBuilder, EnvelopeHead};
///
/// # fn main() -> Result<(), nlbus::wire::TooBig> {
/// let mut frame = Vec::new();
/// ControlBuilder::new(&mut frame, EnvelopeHead { sequence: 1, ..Default::default() }, Command::Discover)
///     .string(ControlAttribute::Host, "route")?
///     .finish();
/// assert_eq!(frame.len(), 60);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "the lengths are filled in by `finish`"]
pub struct ControlBuilder<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    head: EnvelopeHead,
}

impl<'o> ControlBuilder<'o> {
    /// Begins a control frame at the end of `out`. The CONTROL flag is added to `head`; the inner header
    /// repeats its sequence number and has port id 0.
    pub fn new(out: &'o mut Vec<u8>, mut head: EnvelopeHead, command: Command) -> Self {
        head.flags |= flag::CONTROL;
        let start = out.len();
        let mut fixed = [0; PAYLOAD_OFFSET + ATTRIBUTES_AT];
        fixed[PAYLOAD_OFFSET + HEADER_LEN] = command as u8;
        fixed[PAYLOAD_OFFSET + HEADER_LEN + 1] = CONTROL_VERSION;
        out.extend_from_slice(&fixed);
        Self { out, start, head }
    }

    /// Appends `value` and a NUL.
    ///
    /// # Errors
    /// [`TooBig`] if the message would outgrow one CDATA; nothing of the frame is left in the buffer.
    pub fn string(self, kind: ControlAttribute, value: &str) -> Result<Self, TooBig> {
        self.bytes(kind, value.as_bytes())
    }

    /// Appends `value` and a NUL; for [`ControlAttribute::Secret`], which need not be text.
    ///
    /// # Errors
    /// As [`string`](Self::string).
    pub fn bytes(mut self, kind: ControlAttribute, value: &[u8]) -> Result<Self, TooBig> {
        self.check(value.len() + 1)?;
        self.out.extend_from_slice(&nla_header(kind, value.len() + 1));
        self.out.extend_from_slice(value);
        let pad = 1 + align4(value.len() + 1) - (value.len() + 1);
        self.out.extend_from_slice(&[0; 4][..pad]);
        Ok(self)
    }

    /// Appends a number.
    ///
    /// # Errors
    /// As [`string`](Self::string).
    pub fn u32(mut self, kind: ControlAttribute, value: u32) -> Result<Self, TooBig> {
        self.check(4)?;
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&nla_header(kind, 4));
        bytes[4..].copy_from_slice(&value.to_le_bytes());
        self.out.extend_from_slice(&bytes);
        Ok(self)
    }

    /// Appends a long number.
    ///
    /// # Errors
    /// As [`string`](Self::string).
    pub fn u64(mut self, kind: ControlAttribute, value: u64) -> Result<Self, TooBig> {
        self.check(8)?;
        self.out.extend_from_slice(&nla_header(kind, 8));
        self.out.extend_from_slice(&value.to_le_bytes());
        Ok(self)
    }

    /// Appends an entry of a list, made of what `fill` appends.
    ///
    /// # Errors
    /// As [`string`](Self::string).
    pub fn entry(
        mut self,
        fill: impl FnOnce(Self) -> Result<Self, TooBig>,
    ) -> Result<Self, TooBig> {
        self.check(0)?;
        let at = self.out.len();
        self.out.extend_from_slice(&nla_header(ControlAttribute::Entry, 0));
        let filled = fill(self)?;
        let length = filled.out.len() - at;
        filled.out[at..at + 2].copy_from_slice(&(length as u16).to_le_bytes());
        Ok(filled)
    }

    /// How many bytes its message has so far, of [`PAYLOAD_MAX`].
    pub fn length(&self) -> usize {
        self.out.len() - self.start - PAYLOAD_OFFSET
    }

    /// Appends a condition of a SUBSCRIBE.
    ///
    /// # Errors
    /// As [`string`](Self::string).
    pub fn key(mut self, value: Key) -> Result<Self, TooBig> {
        self.check(12)?;
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&nla_header(ControlAttribute::Key, 12));
        bytes[4..].copy_from_slice(&value.to_bytes());
        self.out.extend_from_slice(&bytes);
        Ok(self)
    }

    /// Fills in the lengths. The frame then ends the buffer.
    pub fn finish(self) {
        let length = self.out.len() - self.start - PAYLOAD_OFFSET;
        let frame = &mut self.out[self.start..];
        if let Ok(before) = self.head.before_payload(length) {
            frame[..PAYLOAD_OFFSET].copy_from_slice(&before);
        }
        let inner = Header {
            length: length as u32,
            kind: CONTROL_TYPE,
            flags: 0,
            sequence: self.head.sequence,
            pid: 0,
        };
        frame[PAYLOAD_OFFSET..PAYLOAD_OFFSET + HEADER_LEN].copy_from_slice(&inner.to_bytes());
    }

    #[inline(always)]
    fn check(&mut self, payload: usize) -> Result<(), TooBig> {
        let length =
            self.out.len() - self.start - PAYLOAD_OFFSET + align4(NLA_HEADER_LEN + payload);
        if length > PAYLOAD_MAX {
            self.out.truncate(self.start);
            return Err(TooBig { length, max: PAYLOAD_MAX });
        }
        Ok(())
    }
}

#[inline(always)]
fn nla_header(kind: ControlAttribute, length: usize) -> [u8; NLA_HEADER_LEN] {
    let [l0, l1] = ((NLA_HEADER_LEN + length) as u16).to_le_bytes();
    let [k0, k1] = (kind as u16).to_le_bytes();
    [l0, l1, k0, k1]
}
