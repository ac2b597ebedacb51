//! `ip addr`: network devices and their addresses.

use std::collections::BTreeMap;

use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressHeader, AddressMessage},
};
use serde_json::Value;

use super::{
    Context, Family, Options, link, message,
    message::{Put, Record},
    names,
    table::{cell, objects, phrase},
};

pub(super) type Message<'a> = message::Message<'a, AddressHeader>;

const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const LABEL: u16 = 3;
const BROADCAST: u16 = 4;
const ANYCAST: u16 = 5;
const CACHEINFO: u16 = 6;
const FLAGS: u16 = 8;
const RT_PRIORITY: u16 = 9;

const SECONDARY: u32 = 0x1;
const DEPRECATED: u32 = 0x20;
const PERMANENT: u32 = 0x80;

/// The `IFA_F_` flags in the order of `ip`, but for the one that shows by its absence.
const FLAGS_BEFORE_DYNAMIC: &[(u32, &str)] = &[
    (SECONDARY, "secondary"),
    (0x2, "nodad"),
    (0x4, "optimistic"),
    (0x8, "dadfailed"),
    (0x10, "home"),
    (DEPRECATED, "deprecated"),
    (0x40, "tentative"),
];
const FLAGS_AFTER_DYNAMIC: &[(u32, &str)] = &[
    (0x100, "mngtmpaddr"),
    (0x200, "noprefixroute"),
    (0x400, "autojoin"),
    (0x800, "stable-privacy"),
];

/// What the kernel's IPv6 link dump tells, which `ip -6 addr` reads unless a device is named.
const INET6_LINK_KEYS: [&str; 8] =
    ["ifindex", "link", "link_index", "ifname", "flags", "mtu", "operstate", "txqlen"];

pub(super) fn request(options: &Options) -> Vec<u8> {
    let mut addresses = AddressMessage::default();
    addresses.header.family = options.address_family();
    message::request(RouteNetlinkMessage::GetAddress(addresses))
}

/// With a family, links that have no address of it are left out.
pub(super) fn records(
    links: &[link::Message<'_>],
    addresses: &[Message<'_>],
    context: &Context<'_>,
) -> Vec<Record> {
    let mut of_device: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for address in
        addresses.iter().filter(|address| context.options.admits_family(address.header.family))
    {
        of_device.entry(address.header.index).or_default().push(address_record(address, context));
    }
    let admitted = links.iter().filter(|link| context.admits_device(link.header.index));
    let records = admitted.filter_map(|link| match of_device.remove(&link.header.index) {
        Some(addresses) => Some(record(link, addresses, context)),
        None if context.options.family.is_some() => None,
        None => Some(record(link, Vec::new(), context)),
    });
    records.collect()
}

fn record(link: &link::Message<'_>, addresses: Vec<Record>, context: &Context<'_>) -> Record {
    let mut record = link::record(link, context);
    if context.options.family == Some(Family::Inet6) && context.only.is_none() {
        record.retain(|key, _| INET6_LINK_KEYS.contains(&key.as_str()));
    }
    record.put("addr_info", addresses.into_iter().map(Value::Object).collect::<Vec<_>>());
    record
}

/// The record of one address, an element of `addr_info`.
pub(super) fn address_record(message: &Message<'_>, context: &Context<'_>) -> Record {
    let Message { header, attributes } = message;
    let family = u8::from(header.family);
    let mut record = Record::new();
    match family {
        message::AF_INET => record.put("family", "inet"),
        message::AF_INET6 => record.put("family", "inet6"),
        other => record.put("family_index", other),
    }
    let peer = attributes.address(ADDRESS, family);
    let local = attributes.address(LOCAL, family).or_else(|| peer.clone());
    if let Some(local) = local {
        let peer = peer.filter(|peer| *peer != local);
        record.put("local", local);
        record.put_some("address", peer);
        record.put("prefixlen", header.prefix_len);
        record.put_some("metric", attributes.u32(RT_PRIORITY));
    }
    record.put_some("broadcast", attributes.address(BROADCAST, family));
    record.put_some("anycast", attributes.address(ANYCAST, family));
    record.put("scope", context.names.scope(header.scope.into()));
    let flags = attributes.u32(FLAGS).unwrap_or_else(|| header.flags.bits().into());
    put_flags(&mut record, flags, family);
    record.put_some("label", attributes.text(LABEL));
    put_lifetimes(&mut record, message, flags);
    record
}

fn put_flags(record: &mut Record, flags: u32, family: u8) {
    let (before, rest) = names::flags(flags, FLAGS_BEFORE_DYNAMIC);
    let (after, rest) = names::flags(rest & !PERMANENT, FLAGS_AFTER_DYNAMIC);
    let dynamic = (flags & PERMANENT == 0).then(|| "dynamic".into());
    for name in before.into_iter().chain(dynamic).chain(after) {
        match name.as_str() {
            Some("secondary") if family == message::AF_INET6 => record.put("temporary", true),
            Some(name) => record.put(name, true),
            None => (),
        }
    }
    if rest != 0 {
        record.put("ifa_flags", format!("{rest:02x}"));
    }
}

/// Seconds; `u32::MAX` is for ever. A deprecated address counts below zero.
fn put_lifetimes(record: &mut Record, message: &Message<'_>, flags: u32) {
    let word = |position| message.attributes.u32_at(CACHEINFO, position);
    record.put_some("valid_life_time", word(1));
    match word(0) {
        Some(preferred) if flags & DEPRECATED != 0 && preferred != u32::MAX => {
            record.put("preferred_life_time", preferred as i32);
        }
        preferred => record.put_some("preferred_life_time", preferred),
    }
}

/// A link's line has its link-layer address, the lines that follow it the others. `DETAIL` is what
/// else there is to say: the peer, the flags, the label, and lifetimes that end.
pub(super) const COLUMNS: [&str; 6] = ["INDEX", "LINK", "STATE", "ADDRESS", "SCOPE", "DETAIL"];

pub(super) fn rows(record: &Record) -> Vec<Vec<String>> {
    let link = vec![
        cell(record, "ifindex"),
        link::name(record),
        cell(record, "operstate"),
        cell(record, "address"),
        String::new(),
        String::new(),
    ];
    let address = |address: &Record| {
        vec![
            String::new(),
            String::new(),
            String::new(),
            format!("{}/{}", cell(address, "local"), cell(address, "prefixlen")),
            cell(address, "scope"),
            detail(address, record.get("ifname")),
        ]
    };
    std::iter::once(link).chain(objects(record, "addr_info").map(address)).collect()
}

/// The label only if it is not just the name of the link.
fn detail(address: &Record, link: Option<&Value>) -> String {
    let label = phrase(address, "label", "label").filter(|_| address.get("label") != link);
    let phrases = [phrase(address, "address", "peer"), label, phrase(address, "metric", "metric")];
    let flags = address.iter().filter(|(_, value)| **value == Value::Bool(true));
    let flags = flags.map(|(flag, _)| flag.clone());
    let lifetimes = ["valid", "preferred"].into_iter().filter_map(|word| {
        let seconds = address.get(&format!("{word}_life_time"))?;
        (seconds.as_u64() != Some(u32::MAX.into())).then(|| format!("{word} {seconds}s"))
    });
    phrases.into_iter().flatten().chain(flags).chain(lifetimes).collect::<Vec<_>>().join(" ")
}
