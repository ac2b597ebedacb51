//! The messages inside an envelope: netlink's own, one after another.

use super::align4;
use super::attribute::{Attributes, NLA_HEADER_LEN, PAYLOAD_MAX};
use super::fault::{Fault, Malformed, TooBig};
use super::header::{HEADER_LEN, Header};

/// Types and flags that every netlink family shares (netlink(7)).
pub mod nlm {
    /// Does nothing.
    pub const NOOP: u16 = 1;
    /// An error, or with code 0 an acknowledgement.
    pub const ERROR: u16 = 2;
    /// The end of a multipart answer.
    pub const DONE: u16 = 3;
    /// Messages were lost.
    pub const OVERRUN: u16 = 4;
    /// Types below this one belong to netlink itself.
    pub const MIN_TYPE: u16 = 0x10;
    /// Bytes of a program's own, or a part of them (proto-spec/data.md). Between programs only: a netlink
    /// family gives the number another meaning.
    pub const DATA: u16 = 0x10;

    /// The message is a request.
    pub const REQUEST: u16 = 0x1;
    /// Part of a multipart answer that ends with [`DONE`].
    pub const MULTI: u16 = 0x2;
    /// Acknowledge the request with an [`ERROR`] of code 0.
    pub const ACK: u16 = 0x4;
    /// Answer a change with the object as it is afterwards.
    pub const ECHO: u16 = 0x8;
    /// A dump was disturbed by a change; it may be inconsistent.
    pub const DUMP_INTR: u16 = 0x10;
    /// Both bits that ask a GET for the whole table.
    pub const DUMP: u16 = 0x300;
    /// On a NEW request: replace what is there.
    pub const REPLACE: u16 = 0x100;
    /// On a NEW request: fail if it is there.
    pub const EXCL: u16 = 0x200;
    /// On a NEW request: create what is not there.
    pub const CREATE: u16 = 0x400;
    /// On a NEW request: add at the end.
    pub const APPEND: u16 = 0x800;
    /// On an [`ERROR`]: the request's payload is not echoed.
    pub const CAPPED: u16 = 0x100;
    /// On an [`ERROR`] or [`DONE`]: attributes follow.
    pub const ACK_TLVS: u16 = 0x200;
}

/// NLMSGERR_ATTR_MSG: the text of an extended acknowledgement.
const ERROR_TEXT: u16 = 1;
/// NLMSGERR_ATTR_OFFS: the offset in the request that the text is about.
const ERROR_OFFSET: u16 = 2;
/// The longest text, in bytes, that [`ErrorMessage::emit`] sends: about what a person reads.
const ERROR_TEXT_MAX: usize = 1024;

/// A checked view of one inner message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its header; `length` equals `bytes().len()`.
    pub header: Header,
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// Looks at the message that `bytes` start with; what follows it is left out.
    ///
    /// # Errors
    /// [`Fault::HeaderCut`], [`Fault::MessageTooShort`] or [`Fault::MessageCut`].
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = Header::parse(bytes)?;
        let length = header.length as usize;
        if length < HEADER_LEN {
            return Err(Malformed::new(Fault::MessageTooShort, 0));
        }
        let bytes = bytes.get(..length).ok_or(Malformed::new(Fault::MessageCut, 0))?;
        Ok(Self { header, bytes })
    }

    /// Header and body, without padding.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// What follows the header.
    #[inline]
    pub fn body(&self) -> &'a [u8] {
        &self.bytes[HEADER_LEN..]
    }
}

/// Walks the messages of a payload; ends after the last one or after the first fault.
///
/// A payload need not hold netlink messages (NETLINK_KOBJECT_UEVENT carries text): then the walk fails,
/// and the payload is still there to be read as it is.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    payload: &'a [u8],
    at: usize,
}

impl<'a> Messages<'a> {
    /// Walks `payload`; offsets count from its start.
    #[inline]
    pub fn new(payload: &'a [u8]) -> Self {
        Self { payload, at: 0 }
    }

    /// Offset of the message that [`next`](Iterator::next) looks at.
    #[inline]
    pub fn offset(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.payload.get(self.at..).filter(|rest| !rest.is_empty())?;
        let found = Message::parse(rest);
        match &found {
            Ok(message) => self.at += align4(message.bytes.len()),
            Err(malformed) => {
                let malformed = malformed.within(self.at);
                self.at = self.payload.len();
                return Some(Err(malformed));
            }
        }
        Some(found)
    }
}

/// The body of NLMSG_ERROR, and of an NLMSG_DONE that failed.
///
/// `i32 code, nlmsghdr of the request [, its payload unless CAPPED] [, attributes if ACK_TLVS]`; a DONE
/// has no header in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorMessage<'a> {
    /// 0 for an acknowledgement, else a negative error number.
    pub code: i32,
    /// The header of the request; all zero in a DONE.
    pub request: Header,
    /// What the answerer says in words.
    pub text: Option<&'a str>,
    /// The offset in the request that the words are about.
    pub offset: Option<u32>,
}

impl<'a> ErrorMessage<'a> {
    /// Reads `message`, which is of type [`nlm::ERROR`] or [`nlm::DONE`]. A DONE without a code counts as
    /// code 0. Attributes that make no sense are passed over: the code is what matters.
    ///
    /// # Errors
    /// [`Fault::HeaderCut`] if an ERROR is too short for its code and header.
    pub fn parse(message: &Message<'a>) -> Result<Self, Malformed> {
        let body = message.body();
        let cut = Malformed::new(Fault::HeaderCut, message.bytes.len());
        let code = match body.first_chunk::<4>() {
            Some(code) => i32::from_le_bytes(*code),
            None if message.header.kind == nlm::DONE => 0,
            None => return Err(cut),
        };
        let mut error = Self { code, request: Header::default(), text: None, offset: None };
        let mut after = 4;
        if message.header.kind == nlm::ERROR {
            error.request = body
                .get(4..)
                .and_then(<[u8]>::first_chunk::<HEADER_LEN>)
                .map(Header::from_bytes)
                .ok_or(cut)?;
            let echoed = match message.header.flags & nlm::CAPPED {
                0 => (error.request.length as usize).max(HEADER_LEN),
                _ => HEADER_LEN,
            };
            after += align4(echoed.min(body.len()));
        }
        if message.header.flags & nlm::ACK_TLVS != 0 {
            error.read_attributes(body.get(after..).unwrap_or_default());
        }
        Ok(error)
    }

    fn read_attributes(&mut self, region: &'a [u8]) {
        for attribute in Attributes::new(region, 0).map_while(Result::ok) {
            match attribute.kind {
                ERROR_TEXT => {
                    let text = attribute.payload.strip_suffix(&[0]).unwrap_or(attribute.payload);
                    self.text = str::from_utf8(text).ok();
                }
                ERROR_OFFSET => {
                    self.offset = attribute.payload.first_chunk().map(|n| u32::from_le_bytes(*n));
                }
                _ => {}
            }
        }
    }

    /// The bytes of an NLMSG_ERROR that answers `request` with `code` (negative) and `text`. The
    /// request's payload is not echoed. A text above 1,024 bytes is cut, between two characters.
    pub fn emit(code: i32, request: &Header, text: &str) -> Vec<u8> {
        let mut message = MessageBuilder::new(nlm::ERROR, nlm::CAPPED)
            .sequence(request.sequence)
            .pid(request.pid)
            .body(&code.to_le_bytes())
            .body(&request.to_bytes());
        if !text.is_empty() {
            let end = (0..=text.len().min(ERROR_TEXT_MAX)).rfind(|&end| text.is_char_boundary(end));
            let mut words = text.as_bytes()[..end.unwrap_or(0)].to_vec();
            words.push(0);
            message = message.flag(nlm::ACK_TLVS).attribute(ERROR_TEXT, &words).unwrap_or_else(
                |TooBig { .. }| unreachable!("the text was cut to what one attribute holds"),
            );
        }
        message.finish()
    }
}

/// Builds one inner message in a buffer of its own.
///
/// ```
/// use nlbus::wire::{MessageBuilder, nlm};
///
/// // RTM_GETLINK, all links: a header and a struct ifinfomsg of 16 zero bytes
/// let request = MessageBuilder::new(18, nlm::REQUEST | nlm::DUMP).body(&[0; 16]).finish();
/// assert_eq!(request.len(), 32);
/// ```
#[derive(Clone, Debug)]
pub struct MessageBuilder {
    bytes: Vec<u8>,
    header: Header,
}

impl MessageBuilder {
    /// A message of type `kind` with sequence number and port id 0.
    pub fn new(kind: u16, flags: u16) -> Self {
        let header = Header { kind, flags, ..Header::default() };
        Self { bytes: vec![0; HEADER_LEN], header }
    }

    /// Sets the sequence number.
    #[must_use]
    pub fn sequence(mut self, sequence: u32) -> Self {
        self.header.sequence = sequence;
        self
    }

    /// Sets the port id.
    #[must_use]
    pub fn pid(mut self, pid: u32) -> Self {
        self.header.pid = pid;
        self
    }

    /// Adds bits to the flags.
    #[must_use]
    pub fn flag(mut self, flags: u16) -> Self {
        self.header.flags |= flags;
        self
    }

    /// Appends `bytes` as they are: the family's fixed header, or an opaque payload.
    #[must_use]
    pub fn body(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends an attribute, aligned to 4.
    ///
    /// # Errors
    /// [`TooBig`] if `payload` is longer than [`PAYLOAD_MAX`].
    pub fn attribute(mut self, kind: u16, payload: &[u8]) -> Result<Self, TooBig> {
        if payload.len() > PAYLOAD_MAX {
            return Err(TooBig { length: payload.len(), max: PAYLOAD_MAX });
        }
        self.bytes.resize(align4(self.bytes.len()), 0);
        self.bytes.extend_from_slice(&((NLA_HEADER_LEN + payload.len()) as u16).to_le_bytes());
        self.bytes.extend_from_slice(&kind.to_le_bytes());
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(align4(self.bytes.len()), 0);
        Ok(self)
    }

    /// The message, its length filled in.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.header.length = self.bytes.len() as u32;
        self.bytes[..HEADER_LEN].copy_from_slice(&self.header.to_bytes());
        self.bytes
    }
}
