//! Bytes ↔ values: what is on the wire, and nothing else. No I/O, no clock, no allocation on parse.
//!
//! ```text
//! nlhdr      u32 length  u16 type = 15  u16 flags  u32 sequence  u32 pid     16 bytes  [`Header`]
//! envmsghdr  u32 dst     u32 src                                              8 bytes  [`EnvelopeHead`]
//! nla_hdr    u16 length  u16 kind = 0 (CDATA)                                 4 bytes  [`Attribute`]
//! payload    the encapsulated messages, padded to 4                                    [`Message`]
//! ```
//!
//! All integers are little-endian. A view ([`Envelope`], [`Message`], [`Control`]) borrows the bytes it
//! was parsed from; an encoder appends to the caller's buffer. Every parser here is total: any bytes
//! give a value or a [`Malformed`] that says what is wrong and at which offset. Stream framing, which
//! waits for more bytes, is kept apart in [`Frames`]; inside a frame nothing waits, so a cut attribute is
//! an error and not a reason to read on.
//!
//! The normative text is `proto-spec/envelope.md` and `proto-spec/control.md`.

mod attribute;
mod control;
mod control_builder;
mod deframe;
mod envelope;
pub mod errno;
mod fault;
mod header;
mod message;

pub use attribute::{
    Attribute, Attributes, CDATA, GROUP, GROUP_BYTES_MAX, NLA_HEADER_LEN, PAYLOAD_MAX,
};
pub use control::{
    CID_CHOSEN_FIRST, CID_FIRST, CONTROL_VERSION, Command, Control, ControlAttribute, Key, Keys,
    PROTOCOL_VERSION, ValueType, kind, mode, right,
};
pub use control_builder::ControlBuilder;
pub use deframe::{FRAME_MAX, FRAME_MIN, Frames, LEGACY_FRAME_MAX, frame_length};
pub use envelope::{
    Broadcast, CONTROL_TYPE, Envelope, EnvelopeHead, TRANSPORT_TYPE, address, flag,
};
pub use fault::{Fault, Malformed, TooBig};
pub use header::{HEADER_LEN, Header};
pub use message::{ErrorMessage, Message, MessageBuilder, Messages, nlm};

/// Length of the fixed part of a frame: `nlhdr` and `envmsghdr`.
pub const ENVELOPE_LEN: usize = 24;

/// What stands before the payload in a frame with one attribute: the fixed part and the CDATA header.
pub const PAYLOAD_OFFSET: usize = ENVELOPE_LEN + NLA_HEADER_LEN;

/// `length` rounded up to the next multiple of 4, as every netlink structure is.
#[inline(always)]
pub const fn align4(length: usize) -> usize {
    (length + 3) & !3
}
