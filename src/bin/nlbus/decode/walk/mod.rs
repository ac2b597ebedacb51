//! Reading bytes from the outside in: frames, messages, attributes.
//!
//! A fault ends the container in which it stands; the walk goes on behind it wherever the length of the
//! container still says where that is.

mod control;
mod message;
#[cfg(test)]
mod tests;

use super::Protocol;
use super::name;
use super::report::{Node, Report};
use nlbus::wire::{
    Attribute, Attributes, CDATA, ENVELOPE_LEN, EnvelopeHead, FRAME_MAX, FRAME_MIN, Fault,
    HEADER_LEN, Header, Malformed, Messages, NLA_HEADER_LEN, TRANSPORT_TYPE, align4, errno, flag,
    frame_length,
};
use std::fmt::Display;
use std::io;

/// How deep attributes are followed into attributes.
pub(crate) const NESTING_MAX: usize = 16;

const GENL_HEADER_LEN: usize = 4;
const NLA_TYPE_MASK: u16 = 0x3fff;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) protocol: Protocol,
    pub(crate) secrets: bool,
}

/// Explains `input` to `report` and adds to `faults` one for each place that made no sense. `faults` is
/// right even if writing fails.
pub(crate) fn walk(
    input: &[u8],
    options: Options,
    report: Report<'_>,
    faults: &mut usize,
) -> io::Result<()> {
    let mut walk = Walk { report, options, faults, cut: false };
    walk.report.begin()?;
    let mut at = 0;
    while at < input.len() {
        match walk.outermost(Part { bytes: &input[at..], at })? {
            Some(length) => at += length,
            None => break,
        }
    }
    walk.report.end()
}

/// A piece of the input that knows where it stands.
#[derive(Clone, Copy)]
struct Part<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Part<'a> {
    /// What follows the first `count` bytes; nothing if there are fewer.
    fn after(self, count: usize) -> Self {
        let count = count.min(self.bytes.len());
        Self { bytes: &self.bytes[count..], at: self.at + count }
    }

    fn first(self, count: usize) -> Self {
        Self { bytes: &self.bytes[..count.min(self.bytes.len())], at: self.at }
    }

    fn end(self) -> usize {
        self.at + self.bytes.len()
    }

    /// The payload of an attribute that starts where this part does.
    fn payload_of(self, attribute: Attribute<'a>) -> Self {
        Self { bytes: attribute.payload, at: self.at + NLA_HEADER_LEN }
    }
}

/// What a message stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// The payload of a frame for a subsystem or for subscribers.
    Data,
    /// The payload of a control frame; a broker refuses all of it for one fault.
    Control,
    /// Nothing: there is no envelope.
    Bare,
}

struct Walk<'r, 'o> {
    report: Report<'o>,
    options: Options,
    faults: &'r mut usize,
    /// The input ends inside what is being read; that is said once, at the end of it.
    cut: bool,
}

impl Walk<'_, '_> {
    /// Explains the frame or message that `rest` starts with, and returns how far it reaches, or `None`
    /// if nobody can know.
    fn outermost(&mut self, rest: Part<'_>) -> io::Result<Option<usize>> {
        match Header::parse(rest.bytes) {
            Ok(header) if header.kind == TRANSPORT_TYPE => self.frame(header, rest),
            Ok(header) => self.bare(header, rest),
            Err(malformed) => {
                self.fault(malformed.offset + rest.at, malformed.fault, rest.end())?;
                Ok(None)
            }
        }
    }

    fn bare(&mut self, header: Header, rest: Part<'_>) -> io::Result<Option<usize>> {
        let length = header.length as usize;
        self.cut = length > rest.bytes.len();
        self.message(header, rest.first(length.max(HEADER_LEN)), Inside::Bare)?;
        if length < HEADER_LEN {
            self.fault(rest.at, Fault::MessageTooShort, rest.end())?;
        } else if self.cut {
            self.cut_short("message", length, rest)?;
        } else {
            return Ok(Some(align4(length)));
        }
        Ok(None)
    }

    fn frame(&mut self, header: Header, rest: Part<'_>) -> io::Result<Option<usize>> {
        let length = header.length as usize;
        let judged = frame_length(rest.bytes, FRAME_MAX);
        self.cut = judged.is_ok() && length > rest.bytes.len();
        self.report.open(
            &Node::new("frame", rest.at)
                .number("length", header.length)
                .named("type", header.kind, name::shared_type(header.kind).unwrap_or_default())
                .hex(
                    "flags",
                    (header.flags & !flag::HOPS_MASK).into(),
                    name::envelope_flags(header.flags),
                )
                .number("hops", header.flags >> 8)
                .number("sequence", header.sequence)
                .number("pid", header.pid),
        )?;
        let frame = if judged == Err(Fault::FrameTooLong) {
            rest.first(ENVELOPE_LEN)
        } else {
            rest.first(length)
        };
        self.envelope(frame)?;
        match judged {
            Err(fault) => self.fault(rest.at, fault, rest.end())?,
            Ok(_) if self.cut => self.cut_short("frame", length, rest)?,
            Ok(_) => {}
        }
        self.report.close()?;
        Ok((judged.is_ok() && !self.cut).then_some(length))
    }

    fn envelope(&mut self, frame: Part<'_>) -> io::Result<()> {
        let Some((_, head)) = EnvelopeHead::read(frame.bytes) else { return Ok(()) };
        self.report.leaf(
            &Node::new("envelope", frame.at + HEADER_LEN)
                .address("dst", head.dst, name::address(head.dst, true))
                .address("src", head.src, name::address(head.src, false)),
        )?;
        let inside = match head.flags & flag::CONTROL {
            0 => Inside::Data,
            _ => Inside::Control,
        };
        let mut payload_seen = false;
        let region = frame.after(ENVELOPE_LEN);
        let mut attributes = Attributes::new(region.bytes, region.at);
        loop {
            let rest = region.after(attributes.offset() - region.at);
            match attributes.next() {
                None if payload_seen || self.cut || frame.bytes.len() < FRAME_MIN => return Ok(()),
                None => return self.fault(region.at, Fault::NoPayload, region.end()),
                Some(Ok(attribute)) => {
                    let length = NLA_HEADER_LEN + attribute.payload.len();
                    let payload = rest.payload_of(attribute);
                    self.outer_attribute(attribute.kind, length, payload, inside, payload_seen)?;
                    payload_seen |= attribute.kind == CDATA;
                }
                Some(Err(malformed)) => {
                    // A frame that was cut off may still hold whole messages in its cut CDATA.
                    if let (true, Fault::AttributeCut, &[l0, l1, 0, 0, ..]) =
                        (self.cut, malformed.fault, rest.bytes)
                    {
                        let length = usize::from(u16::from_le_bytes([l0, l1]));
                        let payload = rest.after(NLA_HEADER_LEN);
                        self.outer_attribute(CDATA, length, payload, inside, payload_seen)?;
                    }
                    return self.malformed(malformed, region.end());
                }
            }
        }
    }

    fn outer_attribute(
        &mut self,
        kind: u16,
        length: usize,
        payload: Part<'_>,
        inside: Inside,
        payload_seen: bool,
    ) -> io::Result<()> {
        let meaning = match (kind, payload_seen) {
            (CDATA, false) => "CDATA",
            (CDATA, true) => "CDATA, not the first: ignored",
            _ => "ignored",
        };
        let node = Node::new("attribute", payload.at - NLA_HEADER_LEN)
            .number("length", length as i64)
            .named("kind", kind, meaning);
        if kind != CDATA || payload_seen {
            let node = self.opaque(node, payload, inside == Inside::Control);
            return self.report.leaf(&node);
        }
        self.report.open(&node)?;
        self.messages(payload, inside)?;
        self.report.close()
    }

    /// The messages of a payload. One that does not start with a message is opaque.
    fn messages(&mut self, payload: Part<'_>, inside: Inside) -> io::Result<()> {
        let mut messages = Messages::new(payload.bytes);
        loop {
            let rest = payload.after(messages.offset());
            match messages.next() {
                None => break,
                Some(Ok(message)) => {
                    self.message(message.header, rest.first(message.bytes().len()), inside)?;
                }
                Some(Err(malformed)) => {
                    self.no_message(
                        rest,
                        malformed.within(payload.at),
                        inside,
                        rest.at == payload.at,
                    )?;
                    break;
                }
            }
        }
        if inside == Inside::Control { self.judge_control(payload) } else { Ok(()) }
    }

    fn no_message(
        &mut self,
        rest: Part<'_>,
        malformed: Malformed,
        inside: Inside,
        first: bool,
    ) -> io::Result<()> {
        match Header::parse(rest.bytes) {
            Ok(header) if self.cut && malformed.fault == Fault::MessageCut => {
                return self.message(header, rest, inside);
            }
            _ if inside == Inside::Control || (first && rest.bytes.is_empty()) => return Ok(()),
            _ => {}
        }
        if first && !self.cut {
            let node = Node::new("opaque", rest.at)
                .number("length", rest.bytes.len() as i64)
                .words("note", format!("no netlink message: {}", malformed.fault));
            let node = self.opaque(node, rest, false);
            return self.report.leaf(&node);
        }
        self.malformed(malformed, rest.end())
    }

    /// A leaf that is nothing but bytes; none if there are none.
    fn bytes(&mut self, what: &'static str, part: Part<'_>, hidden: bool) -> io::Result<()> {
        if part.bytes.is_empty() {
            return Ok(());
        }
        let node = self.opaque(Node::new(what, part.at), part, hidden);
        self.report.leaf(&node)
    }

    /// Adds bytes to `node`: as they are, or, if they are or may hold a secret, their number. What a cut
    /// leaves of an unknown body may be the middle of anything.
    fn opaque<'a>(&self, node: Node<'a>, part: Part<'a>, hidden: bool) -> Node<'a> {
        if hidden && !self.options.secrets {
            return node.words("value", format!("<{} bytes>", part.bytes.len()));
        }
        node.bytes(part.at, part.bytes)
    }

    fn malformed(&mut self, malformed: Malformed, end: usize) -> io::Result<()> {
        let by_the_cut = matches!(
            malformed.fault,
            Fault::HeaderCut
                | Fault::MessageCut
                | Fault::AttributeCut
                | Fault::TrailingBytes
                | Fault::LengthMismatch
        );
        if self.cut && by_the_cut {
            return Ok(());
        }
        self.fault(malformed.offset, malformed.fault, end)
    }

    fn cut_short(&mut self, what: &str, length: usize, rest: Part<'_>) -> io::Result<()> {
        let missing = length - rest.bytes.len();
        let reason = format!("the input ends inside a {what} of {length} bytes: {missing} missing");
        self.fault(rest.end(), reason, rest.end())
    }

    /// Says that nothing from `offset` to `end` was understood, and why.
    fn fault(&mut self, offset: usize, reason: impl Display, end: usize) -> io::Result<()> {
        *self.faults += 1;
        let mut node = Node::new("fault", offset).words("reason", reason.to_string());
        if end > offset {
            node = node.number("bytes_to_the_end", (end - offset) as i64);
        }
        self.report.leaf(&node)
    }
}

fn errno_name(number: i64) -> &'static str {
    i32::try_from(number).ok().filter(|number| *number > 0).and_then(errno::symbol).unwrap_or("")
}
