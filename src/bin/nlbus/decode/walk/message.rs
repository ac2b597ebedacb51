//! Inner messages: netlink's own, and what a subsystem gives a meaning to.

use super::{GENL_HEADER_LEN, Inside, NESTING_MAX, NLA_TYPE_MASK, Part, Walk, errno_name};
use crate::decode::Protocol;
use crate::decode::name;
use crate::decode::report::Node;
use nlbus::wire::{
    Attribute, Attributes, CONTROL_TYPE, ErrorMessage, HEADER_LEN, Header, Message, NLA_HEADER_LEN,
    align4, nlm,
};
use std::io;

const ERROR_CODE_LEN: usize = 4;
pub(super) const NLA_F_NESTED: u16 = 0x8000;
const NLA_F_NET_BYTEORDER: u16 = 0x4000;

impl Walk<'_, '_> {
    /// One inner message; `part` is all of it that there is.
    pub(super) fn message(
        &mut self,
        header: Header,
        part: Part<'_>,
        inside: Inside,
    ) -> io::Result<()> {
        self.report.open(&self.header("message", part.at, &header))?;
        let body = part.after(HEADER_LEN);
        match header.kind {
            _ if inside == Inside::Control => self.control(body, true)?,
            CONTROL_TYPE if inside == Inside::Bare => {
                self.control(body, true)?;
                self.judge_control(part)?;
            }
            CONTROL_TYPE => self.control(body, false)?,
            nlm::ERROR | nlm::DONE => self.error(part)?,
            nlm::OVERRUN => self.overrun(body)?,
            kind if kind < nlm::MIN_TYPE => self.bytes("body", body, self.cut)?,
            kind => self.body(kind, body)?,
        }
        self.report.close()
    }

    /// The header of an inner message.
    fn header<'a>(&self, what: &'static str, at: usize, header: &Header) -> Node<'a> {
        let route = self.options.protocol == Protocol::Route;
        let meaning = match name::shared_type(header.kind) {
            Some(name) => name.to_owned(),
            None if route => name::rtnetlink_type(header.kind).unwrap_or_default(),
            None => String::new(),
        };
        let flags = name::message_flags(header.kind, header.flags, route);
        Node::new(what, at)
            .number("length", header.length)
            .named("type", header.kind, meaning)
            .hex("flags", header.flags.into(), flags)
            .number("sequence", header.sequence)
            .number("pid", header.pid)
    }

    /// NLMSG_OVERRUN, in which the bus counts what was lost; the kernel and 0 do not say how much.
    fn overrun(&mut self, body: Part<'_>) -> io::Result<()> {
        match <[u8; 4]>::try_from(body.bytes).map(u32::from_le_bytes) {
            Ok(lost) => self.report.leaf(&Node::new("lost", body.at).number("frames", lost)),
            Err(_) => self.bytes("body", body, self.cut),
        }
    }

    /// NLMSG_ERROR and NLMSG_DONE: code, words, and the request that the code is about.
    fn error(&mut self, part: Part<'_>) -> io::Result<()> {
        let body = part.after(HEADER_LEN);
        let parsed = Message::parse(part.bytes).and_then(|m| Ok((m, ErrorMessage::parse(&m)?)));
        let (message, error) = match parsed {
            Ok(parsed) => parsed,
            Err(malformed) => {
                self.bytes("body", body, true)?;
                return self.malformed(malformed.within(part.at), part.end());
            }
        };
        if body.bytes.is_empty() {
            return Ok(());
        }
        let code = i64::from(error.code);
        let mut node = Node::new("code", body.at).named("value", code, errno_name(-code));
        if let Some(text) = error.text {
            node = node.string("text", text);
        }
        if let Some(offset) = error.offset {
            node = node.number("request_offset", offset);
        }
        self.report.leaf(&node)?;
        let mut after = body.after(ERROR_CODE_LEN);
        if message.header.kind == nlm::ERROR {
            let capped = message.header.flags & nlm::CAPPED != 0;
            let echoed = if capped { HEADER_LEN } else { error.request.length as usize };
            let echo = after.first(echoed.max(HEADER_LEN));
            self.echo(&error.request, echo)?;
            after = after.after(align4(echo.bytes.len()));
        }
        if message.header.flags & nlm::ACK_TLVS != 0 {
            return self.attributes(after, None, &mut Vec::new());
        }
        self.bytes("rest", after, error.request.kind == CONTROL_TYPE)
    }

    /// The request that an NLMSG_ERROR repeats, as far as it does.
    fn echo(&mut self, request: &Header, echo: Part<'_>) -> io::Result<()> {
        let node = self.header("request", echo.at, request);
        let body = echo.after(HEADER_LEN);
        let node = match body.bytes {
            [] => node,
            _ => self.opaque(node, body, request.kind == CONTROL_TYPE),
        };
        self.report.leaf(&node)
    }

    /// The body of a message that the subsystem gives a meaning to.
    fn body(&mut self, kind: u16, body: Part<'_>) -> io::Result<()> {
        let (fixed, fixed_name, object) = match self.options.protocol {
            Protocol::Opaque => return self.bytes("body", body, self.cut),
            Protocol::Generic => (GENL_HEADER_LEN, "genlmsghdr", None),
            Protocol::Route => match name::rtnetlink(kind) {
                Some((object, _)) => (object.fixed_bytes, object.fixed_name, Some(object)),
                None => return self.bytes("body", body, self.cut),
            },
        };
        let head = body.first(fixed);
        if !head.bytes.is_empty() {
            let node = Node::new("fixed", body.at).words("struct", fixed_name);
            let node = self.opaque(node, head, false);
            self.report.leaf(&node)?;
        }
        self.attributes(body.after(fixed), object, &mut Vec::new())
    }

    /// The attributes of a container and what is nested in them; `path` holds the kinds around it.
    fn attributes(
        &mut self,
        region: Part<'_>,
        object: Option<&name::Object>,
        path: &mut Vec<u16>,
    ) -> io::Result<()> {
        let mut attributes = Attributes::new(region.bytes, region.at);
        loop {
            let rest = region.after(attributes.offset() - region.at);
            match attributes.next() {
                None => return Ok(()),
                Some(Ok(attribute)) => self.attribute(attribute, rest, object, path)?,
                Some(Err(malformed)) => return self.malformed(malformed, region.end()),
            }
        }
    }

    fn attribute(
        &mut self,
        attribute: Attribute<'_>,
        rest: Part<'_>,
        object: Option<&name::Object>,
        path: &mut Vec<u16>,
    ) -> io::Result<()> {
        let payload = rest.payload_of(attribute);
        let kind = attribute.kind & NLA_TYPE_MASK;
        let marked = attribute.kind & NLA_F_NESTED != 0;
        let mut node = Node::new("attribute", rest.at)
            .number("length", (NLA_HEADER_LEN + payload.bytes.len()) as i64)
            .number("kind", kind);
        if attribute.kind & NLA_F_NET_BYTEORDER != 0 {
            node = node.words("flag", "NET_BYTEORDER");
        }
        path.push(kind);
        let known = object.is_some_and(|object| name::is_nested(object, path));
        // The table is older or younger than some kernel: what it calls nested may not be.
        let nested = marked || (known && Attributes::new(payload.bytes, 0).all(|a| a.is_ok()));
        let written = if nested && path.len() < NESTING_MAX {
            self.report
                .open(&node.words("nested", if marked { "marked" } else { "known" }))
                .and_then(|()| self.attributes(payload, object, path))
                .and_then(|()| self.report.close())
        } else {
            if nested {
                node = node.words("note", format!("nested deeper than {NESTING_MAX}"));
            }
            let node = self.opaque(node, payload, false);
            self.report.leaf(&node)
        };
        path.pop();
        written
    }
}
