//! Control commands: every attribute with its type, and no secret.

use super::{GENL_HEADER_LEN, NLA_TYPE_MASK, Part, Walk, errno_name};
use crate::decode::name;
use crate::decode::report::Node;
use nlbus::wire::{
    Attribute, Attributes, Command, Control, ControlAttribute, Key, NLA_HEADER_LEN, ValueType,
};
use std::io;

impl Walk<'_, '_> {
    /// Says why a broker would refuse `message`, all of it, if it would.
    pub(super) fn judge_control(&mut self, message: Part<'_>) -> io::Result<()> {
        match Control::parse(message.bytes) {
            Ok(_) => Ok(()),
            Err(malformed) => self.malformed(malformed.within(message.at), message.end()),
        }
    }

    /// A control command; its attributes have types only where `typed` says so, since other commands of
    /// this shape (socket operations of a subsystem) number theirs anew. A value of the kind that SECRET
    /// has is not shown in either case.
    pub(super) fn control(&mut self, body: Part<'_>, typed: bool) -> io::Result<()> {
        let Some(&[number, version, r0, r1]) = body.bytes.first_chunk::<GENL_HEADER_LEN>() else {
            return self.bytes("body", body, true);
        };
        let command = Command::from_number(number).filter(|_| typed);
        let mut node = Node::new("command", body.at)
            .named("number", number, command.map(Command::symbol).unwrap_or_default())
            .number("version", version);
        if [r0, r1] != [0, 0] {
            node = node.hex("reserved", u16::from_le_bytes([r0, r1]).into(), "");
        }
        self.report.leaf(&node)?;
        let region = body.after(GENL_HEADER_LEN);
        let mut attributes = Attributes::new(region.bytes, region.at);
        loop {
            let rest = region.after(attributes.offset() - region.at);
            match attributes.next() {
                None => return Ok(()),
                Some(Ok(attribute)) => self.control_attribute(attribute, rest, typed)?,
                // In a control frame the whole message is judged once, by its caller.
                Some(Err(_)) if typed => return Ok(()),
                Some(Err(malformed)) => return self.malformed(malformed, region.end()),
            }
        }
    }

    fn control_attribute(
        &mut self,
        attribute: Attribute<'_>,
        rest: Part<'_>,
        typed: bool,
    ) -> io::Result<()> {
        let payload = rest.payload_of(attribute);
        let known = ControlAttribute::from_number(attribute.kind & NLA_TYPE_MASK);
        let symbol = known.filter(|_| typed).map(ControlAttribute::symbol).unwrap_or_default();
        let node = Node::new("attribute", rest.at)
            .number("length", (NLA_HEADER_LEN + payload.bytes.len()) as i64)
            .named("kind", attribute.kind, symbol);
        let node = match known {
            Some(ControlAttribute::Secret) => {
                let secret = payload.bytes.strip_suffix(&[0]).unwrap_or(payload.bytes);
                self.opaque(node, Part { bytes: secret, ..payload }, true)
            }
            Some(known) if typed => self.control_value(node, known, payload),
            _ => self.opaque(node, payload, typed),
        };
        self.report.leaf(&node)
    }

    /// A value of the shape that its kind has. One of another shape may be where a border that is wrong
    /// has let a secret in.
    fn control_value<'a>(
        &self,
        node: Node<'a>,
        known: ControlAttribute,
        payload: Part<'a>,
    ) -> Node<'a> {
        let bytes = payload.bytes;
        let word = <[u8; 4]>::try_from(bytes).map(u32::from_le_bytes);
        match (known.value_type(), word) {
            (ValueType::String, _) => {
                match str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)) {
                    Ok(string) if !string.contains('\0') => node.string("value", string),
                    _ => self.opaque(node, payload, true),
                }
            }
            (ValueType::U32, Ok(word)) => match known {
                ControlAttribute::Addr => node.address("value", word, name::address(word, true)),
                ControlAttribute::Errno => node.named("value", word, errno_name(i64::from(word))),
                _ => node.number("value", word),
            },
            (ValueType::U64, _) => match bytes.try_into().map(u64::from_le_bytes) {
                Ok(long) => node.string("value", &long.to_string()),
                Err(_) => self.opaque(node, payload, true),
            },
            (ValueType::Key, _) => match key_of(bytes) {
                Some(Key { offset, key, mask }) => node
                    .number("at", offset)
                    .hex("key", key, "")
                    .hex("mask", mask, if mask == 0 { "matches everything" } else { "" }),
                None => self.opaque(node, payload, true),
            },
            _ => self.opaque(node, payload, true),
        }
    }
}

fn key_of(bytes: &[u8]) -> Option<Key> {
    let words: &[u8; 12] = bytes.try_into().ok()?;
    let word =
        |at: usize| u32::from_le_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
    Some(Key { offset: word(0), key: word(4), mask: word(8) })
}
