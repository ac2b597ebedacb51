//! `ip route`: entries of routing tables.

use netlink_packet_core::NLA_ALIGNTO;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteHeader, RouteMessage},
};
use serde_json::Value;

use super::{
    Context, Options, Table, message,
    message::{Attributes, Put, Record},
    names,
    names::Names,
    table::{cell, join, objects, phrase},
};

pub(super) type Message<'a> = message::Message<'a, RouteHeader>;

const DST: u16 = 1;
const SRC: u16 = 2;
const IIF: u16 = 3;
const OIF: u16 = 4;
const GATEWAY: u16 = 5;
const PRIORITY: u16 = 6;
const PREFSRC: u16 = 7;
const METRICS: u16 = 8;
const MULTIPATH: u16 = 9;
const FLOW: u16 = 11;
const CACHEINFO: u16 = 12;
const TABLE: u16 = 15;
const MARK: u16 = 16;
const VIA: u16 = 18;
const NEWDST: u16 = 19;
const PREF: u16 = 20;
const ENCAP_TYPE: u16 = 21;
const UID: u16 = 25;
const TTL_PROPAGATE: u16 = 26;
const NH_ID: u16 = 30;

const TYPE_UNICAST: u8 = 1;
const PROTOCOL_BOOT: u8 = 3;
const SCOPE_UNIVERSE: u8 = 0;
const CLONED: u32 = 0x200;

/// Routes of multicast forwarding come under families of their own.
const FAMILY_IPMR: u8 = 128;
const FAMILY_IP6MR: u8 = 129;

/// The kernel's USER_HZ, in which it counts the time a route has left. It is 100 wherever Linux
/// runs today.
const TICKS_PER_SECOND: i32 = 100;

/// The `RTNH_F_` and `RTM_F_` flags in the order of `ip`.
const FLAGS: &[(u32, &str)] = &[
    (0x1, "dead"),
    (0x4, "onlink"),
    (0x2, "pervasive"),
    (0x8, "offload"),
    (0x40, "trap"),
    (0x100, "notify"),
    (0x10, "linkdown"),
    (0x20, "unresolved"),
    (0x4000, "rt_offload"),
    (0x8000, "rt_trap"),
    (0x2000_0000, "rt_offload_failed"),
];

const ENCAPSULATIONS: [&str; 11] =
    ["none", "mpls", "ip", "ila", "ip6", "seg6", "bpf", "seg6local", "rpl", "ioam6", "xfrm"];

pub(super) fn request(options: &Options) -> Vec<u8> {
    let mut routes = RouteMessage::default();
    routes.header.address_family = match (options.family, options.table) {
        (None, None | Some(Table::Id(_))) => AddressFamily::Inet,
        _ => options.address_family(),
    };
    message::request(RouteNetlinkMessage::GetRoute(routes))
}

pub(super) fn records(routes: &[Message<'_>], context: &Context<'_>) -> Vec<Record> {
    routes
        .iter()
        .filter(|route| is_shown(route, context))
        .map(|route| record(route, context))
        .collect()
}

fn is_shown(route: &Message<'_>, context: &Context<'_>) -> bool {
    let Message { header, attributes } = route;
    context.options.admits_family(header.address_family)
        && !is_cloned(route)
        && context.options.table.unwrap_or(Table::MAIN).admits(table(route))
        && context.admits_device(attributes.u32(OIF).unwrap_or(0))
}

/// Whether it is an entry of the cache, which no table has.
pub(super) fn is_cloned(route: &Message<'_>) -> bool {
    route.header.flags.bits() & CLONED != 0
}

fn table(route: &Message<'_>) -> u32 {
    route.attributes.u32(TABLE).unwrap_or_else(|| route.header.table.into())
}

pub(super) fn record(route: &Message<'_>, context: &Context<'_>) -> Record {
    let Message { header, attributes } = route;
    let mut record = Record::new();
    put_destination(&mut record, route);
    record.put_some("nhid", attributes.u32(NH_ID));
    let family = family(header);
    put_gateway(&mut record, attributes, family, |record| {
        if header.tos != 0 {
            record.put("tos", context.names.dsfield(header.tos));
        }
    });
    if context.only.is_none() {
        record.put_some("dev", attributes.u32(OIF).map(|index| context.devices.name(index)));
    }
    put_origin(&mut record, route, context);
    record.put_some("prefsrc", attributes.address(PREFSRC, family));
    record.put_some("metric", attributes.u32(PRIORITY));
    record.put("flags", names::flags(header.flags.bits(), FLAGS).0);
    record.put_some("mark", attributes.u32(MARK).filter(|&mark| mark != 0));
    put_realms(&mut record, attributes, &context.names);
    record.put_some("uid", attributes.u32(UID));
    put_cache(&mut record, attributes);
    if attributes.bytes(METRICS).is_some() {
        record.put("metrics", vec![Value::Object(metrics(&attributes.nest(METRICS)))]);
    }
    record.put_some("iif", attributes.u32(IIF).map(|index| context.devices.name(index)));
    record.put_some("pref", attributes.u8(PREF).map(preference));
    // The spelling is that of `ip`.
    record.put_some("ttl-propogate", attributes.u8(TTL_PROPAGATE).map(|on| on != 0));
    if let Some(bytes) = attributes.bytes(MULTIPATH) {
        let next_hops = next_hops(bytes).map(|hop| Value::Object(hop.record(family, context)));
        record.put("nexthops", next_hops.collect::<Vec<_>>());
    }
    record
}

fn family(header: &RouteHeader) -> u8 {
    match header.address_family.into() {
        FAMILY_IPMR => message::AF_INET,
        FAMILY_IP6MR => message::AF_INET6,
        family => family,
    }
}

fn put_destination(record: &mut Record, route: &Message<'_>) {
    let Message { header, attributes } = route;
    let kind = u8::from(header.kind);
    if kind != TYPE_UNICAST {
        record.put("type", names::route_type(kind));
    }
    let family = family(header);
    let prefix = |kind, len| match attributes.address(kind, family) {
        Some(address) if Some(len) == host_prefix(family) => Some(address),
        Some(address) => Some(format!("{address}/{len}")),
        None if len != 0 => Some(format!("0/{len}")),
        None => None,
    };
    let destination = prefix(DST, header.destination_prefix_length);
    record.put("dst", destination.unwrap_or_else(|| "default".to_owned()));
    record.put_some("from", prefix(SRC, header.source_prefix_length));
}

/// The prefix length of a single address.
pub(super) fn host_prefix(family: u8) -> Option<u8> {
    match family {
        message::AF_INET => Some(32),
        message::AF_INET6 => Some(128),
        _ => None,
    }
}

/// Where the packet goes next; `between` adds what `ip` prints before the gateway.
fn put_gateway(
    record: &mut Record,
    attributes: &Attributes<'_>,
    family: u8,
    between: impl FnOnce(&mut Record),
) {
    record.put_some("to", attributes.address(NEWDST, family));
    if let Some(&[low, high]) = attributes.bytes(ENCAP_TYPE).and_then(|bytes| bytes.first_chunk()) {
        let kind = usize::from(u16::from_ne_bytes([low, high]));
        record.put("encap", ENCAPSULATIONS.get(kind).copied().unwrap_or("unknown"));
    }
    between(record);
    record.put_some("gateway", attributes.address(GATEWAY, family));
    if let Some([low, high, address @ ..]) = attributes.bytes(VIA) {
        let family = u16::from_ne_bytes([*low, *high]).try_into().unwrap_or(0);
        let mut via = Record::new();
        match family {
            message::AF_INET => via.put("family", "inet"),
            message::AF_INET6 => via.put("family", "inet6"),
            _ => via.put("family", "???"),
        }
        via.put_some("host", message::address(family, address));
        record.put("via", Value::Object(via));
    }
}

/// Who made the route, and how far it reaches.
fn put_origin(record: &mut Record, route: &Message<'_>, context: &Context<'_>) {
    let header = &route.header;
    let (table, protocol, scope) = (table(route), header.protocol.into(), header.scope.into());
    let tables_differ = context.options.table == Some(Table::All);
    if tables_differ && table != 0 && Table::Id(table) != Table::MAIN {
        record.put("table", context.names.table(table));
    }
    if protocol != PROTOCOL_BOOT {
        record.put("protocol", context.names.protocol(protocol));
    }
    if scope != SCOPE_UNIVERSE {
        record.put("scope", context.names.scope(scope));
    }
}

fn put_realms(record: &mut Record, attributes: &Attributes<'_>, names: &Names) {
    let Some(flow) = attributes.u32(FLOW) else { return };
    let [from, to] = [(flow >> 16) as u16, flow as u16];
    let mut realms = Record::new();
    realms.put_some("from", (from != 0).then(|| names.realm(from)));
    realms.put("to", names.realm(to));
    record.put("flow", Value::Object(realms));
}

fn put_cache(record: &mut Record, attributes: &Attributes<'_>) {
    let word = |position| attributes.u32_at(CACHEINFO, position).filter(|&word| word != 0);
    record.put_some("expires", word(2).map(|ticks| ticks as i32 / TICKS_PER_SECOND));
    record.put_some("error", word(3));
}

fn preference(preference: u8) -> Value {
    match preference {
        0 => "medium".into(),
        1 => "high".into(),
        3 => "low".into(),
        other => other.into(),
    }
}

/// The `RTAX_` metrics by number, from 2. The first is a set of bits for those that are locked,
/// which counts here only because a locked metric is shown even if it is 0.
const METRIC_NAMES: [&str; 16] = [
    "mtu",
    "window",
    "rtt",
    "rttvar",
    "ssthresh",
    "cwnd",
    "advmss",
    "reordering",
    "hoplimit",
    "initcwnd",
    "features",
    "rto_min",
    "initrwnd",
    "quickack",
    "congestion",
    "fastopen_no_cookie",
];
const METRIC_LOCK: u16 = 1;
const FEATURE_ECN: u32 = 1;

fn metrics(attributes: &Attributes<'_>) -> Record {
    let locked = attributes.u32(METRIC_LOCK).unwrap_or(0);
    let mut record = Record::new();
    for (kind, name) in (2..).zip(METRIC_NAMES) {
        let value = attributes.u32(kind).or_else(|| (locked >> kind & 1 != 0).then_some(0));
        match (name, value) {
            ("congestion", _) => record.put_some(name, attributes.text(kind)),
            (_, None) | ("hoplimit", Some(u32::MAX)) => (),
            ("features", Some(features)) => put_features(&mut record, features),
            ("rtt", Some(eighths)) => record.put(name, eighths / 8),
            ("rttvar", Some(quarters)) => record.put(name, quarters / 4),
            (_, Some(value)) => record.put(name, value),
        }
    }
    record
}

fn put_features(record: &mut Record, features: u32) {
    if features & FEATURE_ECN != 0 {
        record.put("ecn", Value::Null);
    }
    if features & !FEATURE_ECN != 0 {
        record.put("features", format!("{features:#x}"));
    }
}

/// One of the ways of a multipath route: `struct rtnexthop`.
struct NextHop<'a> {
    flags: u8,
    weight: u16,
    index: u32,
    attributes: Attributes<'a>,
}

impl<'a> NextHop<'a> {
    const LEN: usize = 8;

    /// Splits off the first of the next hops in `bytes`.
    fn parse(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let &[l0, l1, flags, hops, i0, i1, i2, i3] = bytes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let attributes = Attributes::parse(bytes.get(Self::LEN..len)?).unwrap_or_default();
        let index = u32::from_ne_bytes([i0, i1, i2, i3]);
        let hop = Self { flags, weight: u16::from(hops) + 1, index, attributes };
        Some((hop, bytes.get(len.next_multiple_of(NLA_ALIGNTO)..).unwrap_or_default()))
    }

    fn record(&self, family: u8, context: &Context<'_>) -> Record {
        let mut record = Record::new();
        put_gateway(&mut record, &self.attributes, family, |_| ());
        put_realms(&mut record, &self.attributes, &context.names);
        record.put("dev", context.devices.name(self.index));
        record.put("weight", self.weight);
        record.put("flags", names::flags(self.flags.into(), FLAGS).0);
        record
    }
}

/// The next hops up to the first that is cut short.
fn next_hops(mut bytes: &[u8]) -> impl Iterator<Item = NextHop<'_>> {
    std::iter::from_fn(move || {
        let (hop, rest) = NextHop::parse(bytes)?;
        bytes = rest;
        Some(hop)
    })
}

/// `VIA`, `DEV` and the weight of a multipath route list those of its next hops, `-` for one on the
/// link itself. `DETAIL` is flags, metrics and the like.
pub(super) const COLUMNS: [&str; 9] =
    ["DESTINATION", "VIA", "DEV", "TABLE", "PROTOCOL", "SCOPE", "SOURCE", "METRIC", "DETAIL"];

pub(super) fn row(record: &Record) -> Vec<String> {
    let destination = format!("{} {}", cell(record, "type"), cell(record, "dst"));
    let [via, dev] = match record.contains_key("nexthops") {
        true => [of_next_hops(record, via), of_next_hops(record, |hop| cell(hop, "dev"))],
        false => [via(record), cell(record, "dev")],
    };
    vec![
        destination.trim_start().to_owned(),
        via,
        dev,
        cell(record, "table"),
        cell(record, "protocol"),
        cell(record, "scope"),
        cell(record, "prefsrc"),
        cell(record, "metric"),
        detail(record),
    ]
}

fn of_next_hops(record: &Record, text: impl Fn(&Record) -> String) -> String {
    let texts = objects(record, "nexthops").map(text);
    let texts = texts.map(|text| if text.is_empty() { "-".to_owned() } else { text });
    texts.collect::<Vec<_>>().join(",")
}

fn via(record: &Record) -> String {
    let other_family = record.get("via").and_then(Value::as_object);
    other_family.map_or_else(|| cell(record, "gateway"), |via| cell(via, "host"))
}

fn detail(record: &Record) -> String {
    const KEYS: [&str; 12] = [
        "from",
        "nhid",
        "to",
        "encap",
        "tos",
        "mark",
        "uid",
        "expires",
        "error",
        "iif",
        "pref",
        "ttl-propogate",
    ];
    let weights = of_next_hops(record, |hop| cell(hop, "weight"));
    let weights = (!weights.is_empty()).then(|| format!("weight {weights}"));
    let flags = Some(join(record, "flags", " ")).filter(|flags| !flags.is_empty());
    let phrases = KEYS.iter().filter_map(|key| phrase(record, key, key));
    let realms = record.get("flow").and_then(Value::as_object);
    let realms = realms.map(|flow| format!("realms {}/{}", cell(flow, "from"), cell(flow, "to")));
    let metrics = objects(record, "metrics").flat_map(|metrics| {
        metrics.keys().filter_map(|key| phrase(metrics, key, key)).collect::<Vec<_>>()
    });
    let words = flags.into_iter().chain(weights).chain(phrases).chain(realms).chain(metrics);
    words.collect::<Vec<_>>().join(" ")
}
