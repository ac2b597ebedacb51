//! `ip rule`: rules of the routing policy.

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    rule::{RuleHeader, RuleMessage},
};
use serde_json::Value;

use super::{
    Options, Table, message,
    message::{Put, Record},
    names,
    names::Names,
    route::host_prefix,
    table::{cell, phrase},
};

pub(super) type Message<'a> = message::Message<'a, RuleHeader>;

const DST: u16 = 1;
const SRC: u16 = 2;
const IFNAME: u16 = 3;
const GOTO: u16 = 4;
const PRIORITY: u16 = 6;
const FWMARK: u16 = 10;
const FLOW: u16 = 11;
const TUN_ID: u16 = 12;
const SUPPRESS_IFGROUP: u16 = 13;
const SUPPRESS_PREFIXLEN: u16 = 14;
const TABLE: u16 = 15;
const FWMASK: u16 = 16;
const OIFNAME: u16 = 17;
const L3MDEV: u16 = 19;
const UID_RANGE: u16 = 20;
const PROTOCOL: u16 = 21;
const IP_PROTO: u16 = 22;
const SPORT_RANGE: u16 = 23;
const DPORT_RANGE: u16 = 24;

const INVERT: u32 = 0x2;
const UNRESOLVED: u32 = 0x4;
const IIF_DETACHED: u32 = 0x8;
const OIF_DETACHED: u32 = 0x10;

const ACTION_TO_TABLE: u8 = 1;
const ACTION_GOTO: u8 = 2;
const ACTION_NOP: u8 = 3;

const PROTOCOL_KERNEL: u8 = 2;

pub(super) fn request(options: &Options) -> Vec<u8> {
    let mut rules = RuleMessage::default();
    rules.header.family = options.family.map_or(AddressFamily::Inet, AddressFamily::from);
    message::request(RouteNetlinkMessage::GetRule(rules))
}

pub(super) fn records(rules: &[Message<'_>], options: &Options, names: &Names) -> Vec<Record> {
    let shown = rules.iter().filter(|rule| is_shown(rule, options));
    shown.map(|rule| record(rule, names)).collect()
}

fn is_shown(rule: &Message<'_>, options: &Options) -> bool {
    options.admits_family(rule.header.family)
        && options.table.unwrap_or(Table::All).admits(table(rule))
        && (options.dev.is_none() || options.dev == rule.attributes.text(IFNAME))
}

fn table(rule: &Message<'_>) -> u32 {
    rule.attributes.u32(TABLE).unwrap_or_else(|| rule.header.table.into())
}

pub(super) fn record(rule: &Message<'_>, names: &Names) -> Record {
    let Message { header, attributes } = rule;
    let mut record = Record::new();
    record.put("priority", attributes.u32(PRIORITY).unwrap_or(0));
    if header.flags.bits() & INVERT != 0 {
        record.put("not", Value::Null);
    }
    put_prefixes(&mut record, rule);
    if header.tos != 0 {
        record.put("tos", names.dsfield(header.tos));
    }
    put_mark(&mut record, rule);
    put_devices(&mut record, rule);
    record.put_some("uid_start", attributes.u32_at(UID_RANGE, 0));
    record.put_some("uid_end", attributes.u32_at(UID_RANGE, 1));
    record.put_some("ipproto", attributes.u8(IP_PROTO).map(|number| names.ip_protocol(number)));
    put_ports(&mut record, "sport", attributes.u16_range(SPORT_RANGE));
    put_ports(&mut record, "dport", attributes.u16_range(DPORT_RANGE));
    record.put_some("tun_id", attributes.u64_be(TUN_ID));
    put_table(&mut record, rule, names);
    if let Some(flow) = attributes.u32(FLOW) {
        let [from, to] = [(flow >> 16) as u16, flow as u16];
        record.put_some("flow_from", (from != 0).then(|| names.realm(from)));
        record.put("flow_to", names.realm(to));
    }
    put_action(&mut record, rule);
    let protocol = attributes.u8(PROTOCOL).filter(|&number| !matches!(number, 0 | PROTOCOL_KERNEL));
    record.put_some("protocol", protocol.map(|number| names.protocol(number)));
    record
}

fn put_prefixes(record: &mut Record, rule: &Message<'_>) {
    let Message { header, attributes } = rule;
    let family = header.family.into();
    let mut put = |key: &str, address: Option<String>, len: u8, absent: Option<&str>| {
        let whole = address.is_some() && host_prefix(family) == Some(len);
        let address = address.or_else(|| (len != 0).then(|| "0".to_owned()));
        let has_length = address.is_some() && !whole;
        record.put_some(key, address.or_else(|| absent.map(str::to_owned)));
        record.put_some(&format!("{key}len"), has_length.then_some(len));
    };
    put("src", attributes.address(SRC, family), header.src_len, Some("all"));
    put("dst", attributes.address(DST, family), header.dst_len, None);
}

/// The packet's mark, and the bits of it that count unless all do.
fn put_mark(record: &mut Record, rule: &Message<'_>) {
    let (mark, mask) = (rule.attributes.u32(FWMARK), rule.attributes.u32(FWMASK));
    if mark.is_some() || mask.is_some() {
        record.put("fwmark", hexadecimal(mark.unwrap_or(0)));
    }
    record.put_some("fwmask", mask.filter(|&mask| mask != u32::MAX).map(hexadecimal));
}

/// As `%#x` of C, which leaves 0 bare.
fn hexadecimal(number: u32) -> String {
    match number {
        0 => "0".to_owned(),
        number => format!("{number:#x}"),
    }
}

fn put_devices(record: &mut Record, rule: &Message<'_>) {
    let Message { header, attributes } = rule;
    let devices = [("iif", IFNAME, IIF_DETACHED), ("oif", OIFNAME, OIF_DETACHED)];
    for (key, kind, detached) in devices {
        let Some(name) = attributes.text(kind) else { continue };
        record.put(key, name);
        if header.flags.bits() & detached != 0 {
            record.put(&format!("{key}_detached"), Value::Null);
        }
    }
    if attributes.u8(L3MDEV).is_some_and(|set| set != 0) {
        record.put("l3mdev", Value::Null);
    }
}

fn put_ports(record: &mut Record, key: &str, range: Option<(u16, u16)>) {
    match range {
        None => (),
        Some((start, end)) if start == end => record.put(key, start),
        Some((start, end)) => {
            record.put(&format!("{key}_start"), start);
            record.put(&format!("{key}_end"), end);
        }
    }
}

/// The table looked up, and which of its answers do not count.
fn put_table(record: &mut Record, rule: &Message<'_>, names: &Names) {
    let table = table(rule);
    if table == 0 {
        return;
    }
    record.put("table", names.table(table));
    let length = rule.attributes.i32(SUPPRESS_PREFIXLEN);
    record.put_some("suppress_prefixlen", length.filter(|&length| length != -1));
    let group = rule.attributes.u32(SUPPRESS_IFGROUP).filter(|&group| group != u32::MAX);
    record.put_some("suppress_ifgroup", group.map(|group| names.group(group)));
}

fn put_action(record: &mut Record, rule: &Message<'_>) {
    match u8::from(rule.header.action) {
        ACTION_TO_TABLE => (),
        ACTION_NOP => record.put("nop", Value::Null),
        ACTION_GOTO => {
            let target = rule.attributes.u32(GOTO);
            record.put("goto", target.map_or_else(|| Value::from("none"), Value::from));
            if rule.header.flags.bits() & UNRESOLVED != 0 {
                record.put("unresolved", Value::Null);
            }
        }
        other => record.put("action", names::route_type(other)),
    }
}

/// `SELECTOR` is what else a packet must have, `ACTION` what becomes of it.
pub(super) const COLUMNS: [&str; 5] = ["PRIORITY", "FROM", "TO", "SELECTOR", "ACTION"];

pub(super) fn row(record: &Record) -> Vec<String> {
    vec![
        cell(record, "priority"),
        prefix(record, "src"),
        prefix(record, "dst"),
        words(record, &SELECTORS),
        words(record, &ACTIONS),
    ]
}

/// The source or the destination, with its length.
pub(super) fn prefix(record: &Record, key: &str) -> String {
    match record.get(&format!("{key}len")) {
        Some(length) => format!("{}/{length}", cell(record, key)),
        None => cell(record, key),
    }
}

/// Keys and the word to print before their value; a key that stands for itself has no value.
const SELECTORS: [(&str, &str); 18] = [
    ("not", "not"),
    ("tos", "tos"),
    ("fwmark", "fwmark"),
    ("fwmask", "mask"),
    ("iif", "iif"),
    ("iif_detached", "[detached]"),
    ("oif", "oif"),
    ("oif_detached", "[detached]"),
    ("uid_start", "uid from"),
    ("uid_end", "to"),
    ("ipproto", "ipproto"),
    ("sport", "sport"),
    ("sport_start", "sport from"),
    ("sport_end", "to"),
    ("dport", "dport"),
    ("dport_start", "dport from"),
    ("dport_end", "to"),
    ("tun_id", "tun_id"),
];

const ACTIONS: [(&str, &str); 11] = [
    ("l3mdev", "lookup [l3mdev-table]"),
    ("table", "lookup"),
    ("suppress_prefixlen", "suppress_prefixlength"),
    ("suppress_ifgroup", "suppress_ifgroup"),
    ("flow_from", "realm from"),
    ("flow_to", "realm"),
    ("nop", "nop"),
    ("goto", "goto"),
    ("unresolved", "[unresolved]"),
    ("action", ""),
    ("protocol", "proto"),
];

fn words(record: &Record, keys: &[(&str, &str)]) -> String {
    let phrases = keys.iter().filter_map(|(key, word)| phrase(record, key, word));
    phrases.collect::<Vec<_>>().join(" ")
}
