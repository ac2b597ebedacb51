//! A body under construction: messages of this protocol behind each other.

use super::{QUEUE_TYPE, QUEUE_VERSION};
use crate::wire::{ErrorMessage, HEADER_LEN, Header, NLA_HEADER_LEN, PAYLOAD_MAX, align4};

/// A payload is cut into attributes of this length: the most that leaves the next one aligned.
const PART_MAX: usize = PAYLOAD_MAX & !3;

/// Messages behind each other.
#[derive(Clone, Debug, Default)]
pub struct Body {
    bytes: Vec<u8>,
    /// Where the last message begins.
    start: usize,
}

impl Body {
    /// With `before` bytes of room for headers.
    pub(in crate::service::queue) fn after(before: usize) -> Self {
        Self { bytes: vec![0; before], start: before }
    }

    /// Begins a message; [`end`](Self::end) ends it.
    pub(super) fn begin(&mut self, command: u8, sequence: u32) -> &mut Self {
        self.start = self.bytes.len();
        let header = Header { kind: QUEUE_TYPE, sequence, ..Header::default() };
        self.bytes.extend_from_slice(&header.to_bytes());
        self.bytes.extend_from_slice(&[command, QUEUE_VERSION, 0, 0]);
        self
    }

    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        debug_assert!(value.len() <= PAYLOAD_MAX, "whoever emits knows the limits");
        let value = &value[..value.len().min(PAYLOAD_MAX)];
        let length = (NLA_HEADER_LEN + value.len()) as u16;
        let word = u32::from(length) | u32::from(kind) << 16;
        self.bytes.reserve(NLA_HEADER_LEN + value.len() + 3);
        self.bytes.extend_from_slice(&word.to_le_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self
    }

    /// Bytes of any length, as many attributes as that takes.
    pub(super) fn long(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        if value.len() <= PAYLOAD_MAX {
            return self.bytes(kind, value);
        }
        for part in value.chunks(PART_MAX) {
            self.bytes(kind, part);
        }
        self
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.bytes(kind, value.as_bytes())
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_le_bytes())
    }

    pub(super) fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_le_bytes())
    }

    pub(super) fn maybe(&mut self, kind: u16, value: Option<u64>) -> &mut Self {
        if let Some(value) = value {
            self.u64(kind, value);
        }
        self
    }

    pub(super) fn flags(&mut self, flags: u32) -> &mut Self {
        if flags != 0 {
            self.u32(super::attr::FLAGS, flags);
        }
        self
    }

    /// Attributes as they are.
    pub(super) fn attributes(&mut self, region: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(region);
        self.pad();
        self
    }

    pub(super) fn end(&mut self) {
        let length = (self.bytes.len() - self.start) as u32;
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// An acknowledgement, or with `errno` above 0 an error.
    pub(super) fn error(&mut self, sequence: u32, errno: i32, text: &str) {
        let request = Header { kind: QUEUE_TYPE, sequence, ..Header::default() };
        let message = ErrorMessage::emit(errno.saturating_neg(), &request, text);
        self.bytes.extend_from_slice(&message);
        self.pad();
    }

    /// What was written so far, room before it included.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All of it.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// All of it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How long a message with a record of `length` bytes can be, other than its record.
    pub(in crate::service::queue) const fn message_overhead() -> usize {
        HEADER_LEN + 4 + 5 * 12 + super::super::machine::NAME_BYTES_MAX + 8
    }

    fn pad(&mut self) {
        let length = self.bytes.len();
        if length & 3 != 0 {
            self.bytes.resize(align4(length), 0);
        }
    }
}
