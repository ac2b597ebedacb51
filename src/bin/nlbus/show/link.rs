//! `ip link`: network devices.

use netlink_packet_core::DecodeError;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
};
use serde_json::Value;

use super::{
    Context, Object, layer, message,
    message::{Attributes, Put, Record},
    names,
    table::{cell, join},
};

pub(super) type Message<'a> = message::Message<'a, Header>;

/// `struct ifinfomsg`. Not that of netlink-packet-route, to which a link type that it has no name
/// for is `VOID`.
pub(super) struct Header {
    /// `AF_UNSPEC` for a device, else for what a protocol family has to say about it.
    pub(super) family: u8,
    pub(super) layer: u16,
    pub(super) index: u32,
    pub(super) flags: u32,
}

impl message::Header for Header {
    const KIND: u16 = 16;
    const LEN: usize = 16;

    fn parse_header(payload: &[u8]) -> Result<Self, DecodeError> {
        let &[family, _, l0, l1, i0, i1, i2, i3, f0, f1, f2, f3] = payload
            .first_chunk()
            .ok_or_else(|| DecodeError::buffer_too_small(payload.len(), Self::LEN))?;
        Ok(Self {
            family,
            layer: u16::from_ne_bytes([l0, l1]),
            index: u32::from_ne_bytes([i0, i1, i2, i3]),
            flags: u32::from_ne_bytes([f0, f1, f2, f3]),
        })
    }
}

const ADDRESS: u16 = 1;
const BROADCAST: u16 = 2;
pub(super) const IFNAME: u16 = 3;
const MTU: u16 = 4;
const LINK: u16 = 5;
const QDISC: u16 = 6;
const MASTER: u16 = 10;
const TXQLEN: u16 = 13;
const OPERSTATE: u16 = 16;
const LINKMODE: u16 = 17;
const IFALIAS: u16 = 20;
const GROUP: u16 = 27;
const LINK_NETNSID: u16 = 37;
const PROTO_DOWN: u16 = 39;
const PROP_LIST: u16 = 52;
const ALT_IFNAME: u16 = 53;
const PERM_ADDRESS: u16 = 54;
const PROTO_DOWN_REASON: u16 = 55;
const PROTO_DOWN_REASON_VALUE: u16 = 2;

const UP: u32 = 1;
const POINTOPOINT: u32 = 0x10;
const RUNNING: u32 = 0x40;

/// The `IFF_` flags in the order of `ip`. `RUNNING` shows by its absence, as `NO-CARRIER`.
const FLAGS: &[(u32, &str)] = &[
    (0x8, "LOOPBACK"),
    (0x2, "BROADCAST"),
    (POINTOPOINT, "POINTOPOINT"),
    (0x1000, "MULTICAST"),
    (0x80, "NOARP"),
    (0x200, "ALLMULTI"),
    (0x100, "PROMISC"),
    (0x400, "MASTER"),
    (0x800, "SLAVE"),
    (0x4, "DEBUG"),
    (0x8000, "DYNAMIC"),
    (0x4000, "AUTOMEDIA"),
    (0x2000, "PORTSEL"),
    (0x20, "NOTRAILERS"),
    (UP, "UP"),
    (0x1_0000, "LOWER_UP"),
    (0x2_0000, "DORMANT"),
    (0x4_0000, "ECHO"),
];

const OPERATIONAL_STATES: [&str; 7] =
    ["UNKNOWN", "NOTPRESENT", "DOWN", "LOWERLAYERDOWN", "TESTING", "DORMANT", "UP"];

const LINK_MODES: [&str; 2] = ["DEFAULT", "DORMANT"];

pub(super) fn request() -> Vec<u8> {
    let mut links = LinkMessage::default();
    links.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    message::request(RouteNetlinkMessage::GetLink(links))
}

pub(super) fn records(links: &[Message<'_>], context: &Context<'_>) -> Vec<Record> {
    let admitted = links.iter().filter(|link| context.admits_device(link.header.index));
    admitted.map(|link| record(link, context)).collect()
}

/// The record of a link, also within `ip addr`, which knows fewer keys.
pub(super) fn record(link: &Message<'_>, context: &Context<'_>) -> Record {
    let Message { header, attributes } = link;
    let is_link = context.object == Object::Link;
    let mut record = Record::new();
    record.put("ifindex", header.index);
    let lower_is_down = put_lower(&mut record, attributes, context);
    record.put_some("ifname", attributes.text(IFNAME));
    record.put("flags", flags(header.flags, lower_is_down));
    record.put_some("mtu", attributes.u32(MTU));
    record.put_some("qdisc", attributes.text(QDISC));
    record.put_some("master", attributes.u32(MASTER).map(|index| context.devices.name(index)));
    put_indexed(&mut record, "operstate", attributes.u8(OPERSTATE), &OPERATIONAL_STATES);
    if is_link {
        put_indexed(&mut record, "linkmode", attributes.u8(LINKMODE), &LINK_MODES);
    }
    record.put_some("group", attributes.u32(GROUP).map(|group| context.names.group(group)));
    record.put_some("txqlen", attributes.u32(TXQLEN).filter(|&length| length != 0));
    if is_link || context.options.family.is_none() {
        put_link_layer(&mut record, header, attributes);
    }
    record.put_some("link_netnsid", attributes.i32(LINK_NETNSID));
    put_protodown(&mut record, attributes, context);
    if is_link {
        record.put_some("ifalias", attributes.text(IFALIAS));
    }
    if attributes.bytes(PROP_LIST).is_some() {
        record.put("altnames", alternative_names(attributes));
    }
    record
}

pub(super) fn alternative_names(attributes: &Attributes<'_>) -> Vec<String> {
    let properties = attributes.nest(PROP_LIST);
    let names = properties.iter().filter(|(kind, _)| *kind == ALT_IFNAME);
    names.map(|(_, bytes)| message::text(bytes)).collect()
}

/// The device beneath, by its index if it is in another namespace. Tells whether it is down.
fn put_lower(record: &mut Record, attributes: &Attributes<'_>, context: &Context<'_>) -> bool {
    match attributes.u32(LINK) {
        None => false,
        Some(0) => {
            record.put("link", Value::Null);
            false
        }
        Some(index) if attributes.i32(LINK_NETNSID).is_some() => {
            record.put("link_index", index);
            false
        }
        Some(index) => {
            record.put("link", context.devices.name(index));
            context.devices.is_down(index)
        }
    }
}

fn flags(bits: u32, lower_is_down: bool) -> Value {
    let (mut names, rest) = names::flags(bits & !RUNNING, FLAGS);
    if bits & UP != 0 && bits & RUNNING == 0 {
        names.insert(0, "NO-CARRIER".into());
    }
    if rest != 0 {
        names.push(format!("{rest:x}").into());
    }
    if lower_is_down {
        names.push("M-DOWN".into());
    }
    names.into()
}

/// The name of the value, or the value itself under another key.
fn put_indexed(record: &mut Record, key: &str, value: Option<u8>, names: &[&str]) {
    match value.map(|value| (value, names.get(usize::from(value)))) {
        Some((_, Some(name))) => record.put(key, *name),
        Some((value, None)) => record.put(&format!("{key}_index"), value),
        None => (),
    }
}

fn put_link_layer(record: &mut Record, header: &Header, attributes: &Attributes<'_>) {
    let address =
        |attribute| attributes.bytes(attribute).map(|bytes| layer::address(header.layer, bytes));
    record.put("link_type", layer::name(header.layer));
    record.put_some("address", address(ADDRESS));
    if let Some(broadcast) = address(BROADCAST) {
        if header.flags & POINTOPOINT != 0 {
            record.put("link_pointtopoint", true);
        }
        record.put("broadcast", broadcast);
    }
    if attributes.bytes(PERM_ADDRESS) != attributes.bytes(ADDRESS) {
        record.put_some("permaddr", address(PERM_ADDRESS));
    }
}

fn put_protodown(record: &mut Record, attributes: &Attributes<'_>, context: &Context<'_>) {
    if attributes.u8(PROTO_DOWN).is_some_and(|down| down != 0) {
        record.put("proto_down", true);
    }
    if let Some(reasons) = attributes.nest(PROTO_DOWN_REASON).u32(PROTO_DOWN_REASON_VALUE) {
        let bits = (0..32).filter(|bit| reasons >> bit & 1 != 0);
        let reasons: Vec<_> = bits.map(|bit| context.names.protodown_reason(bit)).collect();
        record.put("proto_down_reason", reasons);
    }
}

/// `LINK` is the name, with `@` and the device beneath; `FLAGS` those of the kernel.
pub(super) const COLUMNS: [&str; 8] =
    ["INDEX", "LINK", "STATE", "MTU", "MASTER", "TYPE", "ADDRESS", "FLAGS"];

pub(super) fn row(record: &Record) -> Vec<String> {
    vec![
        cell(record, "ifindex"),
        name(record),
        cell(record, "operstate"),
        cell(record, "mtu"),
        cell(record, "master"),
        cell(record, "link_type"),
        cell(record, "address"),
        join(record, "flags", ","),
    ]
}

/// The name as `ip` prints it outside JSON.
pub(super) fn name(record: &Record) -> String {
    let name = cell(record, "ifname");
    match (record.get("link"), record.get("link_index")) {
        (Some(Value::Null), _) => format!("{name}@NONE"),
        (Some(_), _) => format!("{name}@{}", cell(record, "link")),
        (None, Some(index)) => format!("{name}@if{index}"),
        (None, None) => name,
    }
}
