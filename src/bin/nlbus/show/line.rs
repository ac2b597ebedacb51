//! A record in one line, with the words and in the order of `ip monitor`.
//!
//! Left out is what its records leave out, and the settings of a link that `ip monitor` does not print
//! either. What `ip` breaks into several lines is one here, so that a line is an event.

use serde_json::Value;

use super::{
    Object, link,
    message::Record,
    rule,
    table::{cell, join, objects, phrase},
};

pub(super) fn of(object: Object, record: &Record) -> String {
    let words = match object {
        Object::Link => link_words(record),
        Object::Addr => addr_words(record),
        Object::Route => route_words(record),
        Object::Neigh => neigh_words(record),
        Object::Rule => rule_words(record),
    };
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// `word value` for each key that the record has.
fn phrases<'a>(
    record: &'a Record,
    keys: &'a [(&str, &str)],
) -> impl Iterator<Item = String> + use<'a> {
    keys.iter().filter_map(|(key, word)| phrase(record, key, word))
}

fn link_words(record: &Record) -> Vec<String> {
    let mut words = vec![
        format!("{}:", cell(record, "ifindex")),
        format!("{}:", link::name(record)),
        format!("<{}>", join(record, "flags", ",")),
    ];
    words.extend(phrases(
        record,
        &[
            ("mtu", "mtu"),
            ("qdisc", "qdisc"),
            ("master", "master"),
            ("operstate", "state"),
            ("operstate_index", "state"),
            ("group", "group"),
        ],
    ));
    words.push(format!("link/{}", cell(record, "link_type")));
    let broadcast = if record.contains_key("link_pointtopoint") { "peer" } else { "brd" };
    words.push(cell(record, "address"));
    words.extend(phrase(record, "broadcast", broadcast));
    words.extend(phrases(record, &[("permaddr", "permaddr"), ("link_netnsid", "link-netnsid")]));
    if record.contains_key("proto_down") {
        words.push("protodown on".to_owned());
    }
    if record.contains_key("proto_down_reason") {
        words.push(format!("protodown_reason <{}>", join(record, "proto_down_reason", ",")));
    }
    let names = record.get("altnames").and_then(Value::as_array).into_iter().flatten();
    words.extend(names.filter_map(Value::as_str).map(|name| format!("altname {name}")));
    words
}

fn addr_words(record: &Record) -> Vec<String> {
    let family = match record.get("family") {
        Some(_) => cell(record, "family"),
        None => format!("family {}", cell(record, "family_index")),
    };
    let mut words = vec![format!("{}:", cell(record, "index")), cell(record, "dev"), family];
    let length = format!("/{}", cell(record, "prefixlen"));
    if record.contains_key("local") {
        words.push(match record.get("address") {
            Some(_) => {
                format!("{} peer {}{length}", cell(record, "local"), cell(record, "address"))
            }
            None => format!("{}{length}", cell(record, "local")),
        });
    }
    let keys = [("metric", "metric"), ("broadcast", "brd"), ("anycast", "any"), ("scope", "scope")];
    words.extend(phrases(record, &keys));
    let flags = record.iter().filter(|(_, value)| **value == Value::Bool(true));
    words.extend(flags.map(|(flag, _)| flag.clone()));
    words.extend(phrases(record, &[("ifa_flags", "flags"), ("label", "")]));
    for (key, word) in [("valid_life_time", "valid_lft"), ("preferred_life_time", "preferred_lft")]
    {
        words.extend(record.get(key).map(|seconds| match seconds.as_u64() {
            Some(forever) if forever == u64::from(u32::MAX) => format!("{word} forever"),
            _ => format!("{word} {seconds}sec"),
        }));
    }
    words
}

fn route_words(record: &Record) -> Vec<String> {
    let mut words: Vec<String> = phrases(
        record,
        &[
            ("type", ""),
            ("dst", ""),
            ("from", "from"),
            ("nhid", "nhid"),
            ("to", "as to"),
            ("encap", "encap"),
            ("tos", "tos"),
        ],
    )
    .collect();
    words.extend(gateway(record));
    words.extend(phrases(
        record,
        &[
            ("dev", "dev"),
            ("table", "table"),
            ("protocol", "proto"),
            ("scope", "scope"),
            ("prefsrc", "src"),
            ("metric", "metric"),
        ],
    ));
    words.push(join(record, "flags", " "));
    words.extend(phrase(record, "mark", "mark"));
    words.extend(realms(record));
    words.extend(phrase(record, "uid", "uid"));
    words.extend(record.get("expires").map(|seconds| format!("expires {seconds}sec")));
    words.extend(phrase(record, "error", "error"));
    for metrics in objects(record, "metrics") {
        words.extend(metrics.keys().filter_map(|key| phrase(metrics, key, key)));
    }
    words.extend(phrases(record, &[("iif", "iif"), ("pref", "pref")]));
    words.extend(record.get("ttl-propogate").map(|on| match on.as_bool() {
        Some(true) => "ttl-propagate enabled".to_owned(),
        _ => "ttl-propagate disabled".to_owned(),
    }));
    for hop in objects(record, "nexthops") {
        words.push("nexthop".to_owned());
        words.extend(gateway(hop));
        words.extend(realms(hop));
        words.extend(phrases(hop, &[("dev", "dev"), ("weight", "weight")]));
        words.push(join(hop, "flags", " "));
    }
    words
}

fn gateway(record: &Record) -> Option<String> {
    match record.get("via").and_then(Value::as_object) {
        Some(via) => Some(format!("via {} {}", cell(via, "family"), cell(via, "host"))),
        None => phrase(record, "gateway", "via"),
    }
}

fn realms(record: &Record) -> Option<String> {
    let flow = record.get("flow")?.as_object()?;
    Some(match flow.get("from") {
        Some(_) => format!("realms {}/{}", cell(flow, "from"), cell(flow, "to")),
        None => format!("realm {}", cell(flow, "to")),
    })
}

fn neigh_words(record: &Record) -> Vec<String> {
    let mut words: Vec<String> =
        phrases(record, &[("dst", ""), ("dev", "dev"), ("lladdr", "lladdr")]).collect();
    let flags = record.iter().filter(|(_, value)| value.is_null());
    words.extend(flags.map(|(flag, _)| flag.clone()));
    words.push(join(record, "state", " "));
    words.extend(phrase(record, "protocol", "proto"));
    words
}

fn rule_words(record: &Record) -> Vec<String> {
    let mut words = vec![format!("{}:", cell(record, "priority"))];
    words.extend(phrase(record, "not", "not"));
    words.push(format!("from {}", rule::prefix(record, "src")));
    if record.contains_key("dst") {
        words.push(format!("to {}", rule::prefix(record, "dst")));
    }
    words.extend(phrase(record, "tos", "tos"));
    words.extend(phrase(record, "fwmark", "fwmark").map(|mark| match record.get("fwmask") {
        Some(_) => format!("{mark}/{}", cell(record, "fwmask")),
        None => mark,
    }));
    let devices = [
        ("iif", "iif"),
        ("iif_detached", "[detached]"),
        ("oif", "oif"),
        ("oif_detached", "[detached]"),
        ("l3mdev", "lookup [l3mdev-table]"),
    ];
    words.extend(phrases(record, &devices));
    words.extend(range(record, "uid", "uidrange"));
    words.extend(phrases(record, &[("ipproto", "ipproto"), ("sport", "sport")]));
    words.extend(range(record, "sport", "sport"));
    words.extend(phrase(record, "dport", "dport"));
    words.extend(range(record, "dport", "dport"));
    let table = [
        ("tun_id", "tun_id"),
        ("table", "lookup"),
        ("suppress_prefixlen", "suppress_prefixlength"),
        ("suppress_ifgroup", "suppress_ifgroup"),
    ];
    words.extend(phrases(record, &table));
    if record.contains_key("flow_to") {
        let from = phrase(record, "flow_from", "").map(|from| format!("{from}/"));
        words.push(format!("realms {}{}", from.unwrap_or_default(), cell(record, "flow_to")));
    }
    let action = [("nop", "nop"), ("goto", "goto"), ("unresolved", "[unresolved]"), ("action", "")];
    words.extend(phrases(record, &action));
    words.extend(phrase(record, "protocol", "proto"));
    words
}

fn range(record: &Record, key: &str, word: &str) -> Option<String> {
    let [start, end] = ["start", "end"].map(|end| record.get(&format!("{key}_{end}")));
    Some(format!("{word} {}-{}", start?, end?))
}
