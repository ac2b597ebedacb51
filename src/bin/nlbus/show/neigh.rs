//! `ip neigh`: the neighbour caches.

use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourFlags, NeighbourHeader, NeighbourMessage},
};
use serde_json::Value;

use super::{
    Context, Options, message,
    message::{Put, Record},
    names,
    table::{cell, join, phrase},
};

pub(super) type Message<'a> = message::Message<'a, NeighbourHeader>;

const DST: u16 = 1;
const LLADDR: u16 = 2;
const PROTOCOL: u16 = 12;
const FLAGS_EXT: u16 = 15;

const AF_BRIDGE: u8 = 7;
const PROXY: u8 = 0x8;
const EXT_LEARNED: u8 = 0x10;
const EXT_MANAGED: u32 = 0x1;

/// The `NUD_` states in the order of `ip`.
const STATES: &[(u32, &str)] = &[
    (0x1, "INCOMPLETE"),
    (0x2, "REACHABLE"),
    (0x4, "STALE"),
    (0x8, "DELAY"),
    (0x10, "PROBE"),
    (0x20, "FAILED"),
    (NOARP, "NOARP"),
    (0x80, "PERMANENT"),
];
const NOARP: u32 = 0x40;

pub(super) fn request(options: &Options) -> Vec<u8> {
    let mut neighbours = NeighbourMessage::default();
    neighbours.header.family = options.address_family();
    if options.proxy {
        neighbours.header.flags = NeighbourFlags::Proxy;
    }
    message::request(RouteNetlinkMessage::GetNeighbour(neighbours))
}

pub(super) fn records(neighbours: &[Message<'_>], context: &Context<'_>) -> Vec<Record> {
    let shown = neighbours.iter().filter(|neighbour| is_shown(neighbour, context));
    shown.map(|neighbour| record(neighbour, context)).collect()
}

/// Of the learned entries, those that resolution has to do with: not the multicast and broadcast
/// ones, which need none.
fn is_shown(neighbour: &Message<'_>, context: &Context<'_>) -> bool {
    let header = &neighbour.header;
    let resolved = state(header) & 0xff & !NOARP != 0;
    context.options.admits_family(header.family)
        && context.admits_device(header.ifindex)
        && (resolved || header.flags.bits() & (PROXY | EXT_LEARNED) != 0)
}

fn state(header: &NeighbourHeader) -> u32 {
    u16::from(header.state).into()
}

pub(super) fn record(neighbour: &Message<'_>, context: &Context<'_>) -> Record {
    let Message { header, attributes } = neighbour;
    let mut record = Record::new();
    record.put_some("dst", destination(neighbour));
    if context.only.is_none() && header.ifindex != 0 {
        record.put("dev", context.devices.name(header.ifindex));
    }
    let address = |bytes| context.devices.address(header.ifindex, bytes);
    record.put_some("lladdr", attributes.bytes(LLADDR).map(address));
    let extended = attributes.u32(FLAGS_EXT).unwrap_or(0);
    let flags = header.flags.bits();
    let flags = [
        ("router", flags & 0x80 != 0),
        ("proxy", flags & PROXY != 0),
        ("managed", extended & EXT_MANAGED != 0),
        ("extern_learn", flags & EXT_LEARNED != 0),
        ("offload", flags & 0x20 != 0),
    ];
    for (name, _) in flags.iter().filter(|(_, set)| *set) {
        record.put(name, Value::Null);
    }
    if state(header) != 0 {
        record.put("state", names::flags(state(header), STATES).0);
    }
    let protocol = attributes.u8(PROTOCOL).filter(|&protocol| protocol != 0);
    record.put_some("protocol", protocol.map(|protocol| context.names.protocol(protocol)));
    record
}

/// The address. A bridge's entry does not say its family.
fn destination(neighbour: &Message<'_>) -> Option<String> {
    let bytes = neighbour.attributes.bytes(DST)?;
    let family = match neighbour.header.family.into() {
        AF_BRIDGE if bytes.len() == 16 => message::AF_INET6,
        AF_BRIDGE => message::AF_INET,
        family => family,
    };
    message::address(family, bytes)
}

/// `FLAGS` also holds the protocol that made the entry.
pub(super) const COLUMNS: [&str; 5] = ["ADDRESS", "DEV", "LLADDR", "STATE", "FLAGS"];

pub(super) fn row(record: &Record) -> Vec<String> {
    let flags = record.iter().filter(|(_, value)| value.is_null()).map(|(name, _)| name.clone());
    let words = flags.chain(phrase(record, "protocol", "proto"));
    vec![
        cell(record, "dst"),
        cell(record, "dev"),
        cell(record, "lladdr"),
        join(record, "state", ","),
        words.collect::<Vec<_>>().join(" "),
    ]
}
