//! One event of the kernel: which object it is about, what became of it, and its record.

use bytes::Bytes;
use netlink_packet_core::DecodeError;
use nlbus::wire::Message;

use super::{
    Context, Object, Options, RenderError, Table, addr, line, link,
    message::{Put, Record, decode, decode_body},
    names::Names,
    neigh, route, rule,
    table::visible,
};

/// What the decoders of the dumps are told: nothing is left out.
static EVERYTHING: Options =
    Options { family: None, dev: None, table: Some(Table::All), proxy: false };

/// What happened to an object.
#[derive(Clone, Debug)]
pub(crate) struct KernelEvent {
    pub(crate) object: Object,
    /// It is gone; else it is new, or something about it is.
    pub(crate) deleted: bool,
    /// The fields of `ip -j`.
    pub(crate) record: Record,
}

impl KernelEvent {
    /// One line that reads as that of `ip monitor`, without its label.
    pub(crate) fn line(&self) -> String {
        let deleted = if self.deleted { "Deleted " } else { "" };
        visible(&format!("{deleted}{}", line::of(self.object, &self.record)))
    }
}

/// Turns messages into events. Keeps the table of devices, for the names of the numbers in messages.
pub(crate) struct Decoder {
    context: Context<'static>,
}

impl Decoder {
    /// `links` is the answer to the request of [`Object::Link`].
    ///
    /// # Errors
    /// [`RenderError`] if it is no such answer.
    pub(crate) fn new(links: &[Bytes]) -> Result<Self, RenderError> {
        let links = decode(0, links)?;
        let context = Context::new(Object::Link, &EVERYTHING, Names::load(), &links)?;
        Ok(Self { context })
    }

    /// What `message` says; `None` if it is about none of the objects, or no event of theirs.
    ///
    /// What IPv6 and bridges say about a device of theirs is none: a port that leaves its bridge would
    /// read as a device that is gone.
    ///
    /// # Errors
    /// [`DecodeError`] if it is malformed.
    pub(crate) fn decode(
        &mut self,
        message: &Message<'_>,
    ) -> Result<Option<KernelEvent>, DecodeError> {
        let (object, deleted) = match message.header.kind {
            kind @ (16 | 17) => (Object::Link, kind == 17),
            kind @ (20 | 21) => (Object::Addr, kind == 21),
            kind @ (24 | 25) => (Object::Route, kind == 25),
            kind @ (28 | 29) => (Object::Neigh, kind == 29),
            kind @ (32 | 33) => (Object::Rule, kind == 33),
            _ => return Ok(None),
        };
        let body = message.body();
        let context = &self.context;
        let record = match object {
            Object::Link => self.link(&decode_body(body)?, deleted),
            Object::Addr => Some(address(&decode_body(body)?, context)),
            Object::Route => {
                let route = decode_body(body)?;
                (!route::is_cloned(&route)).then(|| route::record(&route, context))
            }
            Object::Neigh => Some(neigh::record(&decode_body(body)?, context)),
            Object::Rule => Some(rule::record(&decode_body(body)?, &context.names)),
        };
        Ok(record.map(|record| KernelEvent { object, deleted, record }))
    }

    fn link(&mut self, link: &link::Message<'_>, deleted: bool) -> Option<Record> {
        if link.header.family != 0 {
            return None;
        }
        if !deleted {
            self.context.devices.insert(link);
        }
        let record = link::record(link, &self.context);
        if deleted {
            self.context.devices.remove(link.header.index);
        }
        Some(record)
    }
}

/// `ip` names the device first, as it does where an address stands outside of its device.
fn address(address: &addr::Message<'_>, context: &Context<'_>) -> Record {
    let mut record = Record::new();
    record.put("index", address.header.index);
    record.put("dev", context.devices.name(address.header.index));
    record.append(&mut addr::address_record(address, context));
    record
}
