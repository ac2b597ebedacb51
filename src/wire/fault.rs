//! What can be wrong with bytes.

use thiserror::Error;

/// The reason why bytes make no sense. One byte wide, so that a parser's error costs nothing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)]
pub enum Fault {
    /// The bytes end inside a fixed header.
    #[error("the bytes end inside a header")]
    HeaderCut,
    /// A frame announces fewer than [`FRAME_MIN`](super::FRAME_MIN) bytes.
    #[error("the frame's length is below 28")]
    FrameTooShort,
    /// A frame announces more than the link's limit.
    #[error("the frame's length is above the limit")]
    FrameTooLong,
    /// A frame's length is not a multiple of 4.
    #[error("the frame's length is not a multiple of 4")]
    FrameUnaligned,
    /// The announced length differs from the bytes at hand.
    #[error("the length field differs from the bytes at hand")]
    LengthMismatch,
    /// The outer header's type is not TRANSPORT (15).
    #[error("the frame's type is not TRANSPORT (15)")]
    NotTransport,
    /// An attribute's length is below its own header's 4 bytes.
    #[error("the attribute's length is below 4")]
    AttributeTooShort,
    /// An attribute reaches past the end of its container.
    #[error("the attribute reaches past the end")]
    AttributeCut,
    /// One to three bytes follow the last attribute.
    #[error("bytes follow the last attribute")]
    TrailingBytes,
    /// An inner message announces fewer than 16 bytes.
    #[error("the message's length is below 16")]
    MessageTooShort,
    /// An inner message reaches past the end of the payload.
    #[error("the message reaches past the end of the payload")]
    MessageCut,
    /// There is no CDATA attribute where one is needed.
    #[error("there is no CDATA attribute")]
    NoPayload,
    /// The inner message of a control frame is not of type CONTROL (14).
    #[error("the control message's type is not CONTROL (14)")]
    NotControl,
    /// The control header's version is not one that is spoken here.
    #[error("the control version is unknown")]
    VersionUnknown,
    /// The control header's reserved field is not 0.
    #[error("the reserved field is not 0")]
    ReservedNotZero,
    /// A control attribute is not in the specification.
    #[error("the attribute is unknown")]
    AttributeUnknown,
    /// A control attribute carries NLA_F_NESTED or NLA_F_NET_BYTEORDER.
    #[error("the attribute carries a nested or byte-order flag")]
    AttributeFlags,
    /// A control attribute stands twice; only KEY may.
    #[error("the attribute stands twice")]
    AttributeTwice,
    /// A control attribute's payload has not the length that its type asks for.
    #[error("the attribute's payload has a wrong length")]
    ValueLength,
    /// A string holds a NUL before its end.
    #[error("the string holds a NUL before its end")]
    StringNul,
    /// A string is not UTF-8.
    #[error("the string is not UTF-8")]
    StringUtf8,
}

/// A [`Fault`] and the offset, in bytes from the start of what was parsed, where it was met.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("at byte {offset}: {fault}")]
pub struct Malformed {
    /// What is wrong.
    pub fault: Fault,
    /// Where, in bytes from the start of the parsed slice.
    pub offset: usize,
}

impl Malformed {
    /// Says that `fault` was met at `offset`.
    #[inline]
    pub const fn new(fault: Fault, offset: usize) -> Self {
        Self { fault, offset }
    }

    /// The same fault, seen from a container that starts `base` bytes earlier.
    #[inline]
    pub const fn within(self, base: usize) -> Self {
        Self { fault: self.fault, offset: self.offset + base }
    }
}

impl nom::error::ParseError<&[u8]> for Fault {
    fn from_error_kind(_: &[u8], _: nom::error::ErrorKind) -> Self {
        Self::HeaderCut
    }

    fn append(_: &[u8], _: nom::error::ErrorKind, first: Self) -> Self {
        first
    }
}

/// What nom's parsers here return; the type stays inside this layer.
pub(super) type Parsed<'a, T> = nom::IResult<&'a [u8], T, Fault>;

/// The fault that a nom parser stopped at. These parsers are *complete*: they never ask for more.
#[inline]
pub(super) fn fault_of(error: nom::Err<Fault>) -> Fault {
    match error {
        nom::Err::Error(fault) | nom::Err::Failure(fault) => fault,
        nom::Err::Incomplete(_) => Fault::HeaderCut,
    }
}

/// A payload that does not fit the 16-bit length of one attribute.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a payload of {length} bytes does not fit one attribute of at most {max}")]
pub struct TooBig {
    /// The length that was asked for, in bytes.
    pub length: usize,
    /// The most that fits, in bytes.
    pub max: usize,
}
