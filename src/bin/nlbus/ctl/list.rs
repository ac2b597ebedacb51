//! What a broker has, as a table or as JSON.

use std::io::{self, Write};

use nlbus::endpoint::{Endpoint, LinkEntry, SubscriptionEntry, SubsystemEntry, UplinkEntry};
use serde_json::{Map, Value, json};

/// What a list is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// Links that are up.
    Links,
    /// Names, their addresses, and how many provide each.
    Subsystems,
    /// URLs that the broker listens at.
    Listeners,
    /// Links to other brokers that the broker keeps up.
    Uplinks,
    /// What is subscribed to.
    Subscriptions,
}

const ALL: [Kind; 5] =
    [Kind::Listeners, Kind::Subsystems, Kind::Uplinks, Kind::Links, Kind::Subscriptions];

pub(super) async fn print(
    endpoint: &Endpoint,
    kinds: &[Kind],
    as_json: bool,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let kinds = if kinds.is_empty() { &ALL[..] } else { kinds };
    let mut object = Map::new();
    for kind in kinds {
        let (name, rows) = rows(endpoint, *kind).await?;
        if as_json {
            object.insert(name.to_owned(), rows.into());
        } else {
            for row in rows {
                writeln!(out, "{}", line(name, &row))?;
            }
        }
    }
    if as_json {
        writeln!(out, "{}", Value::Object(object))?;
    }
    Ok(())
}

pub(super) fn print_stats(
    stats: &[(String, u64)],
    as_json: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    if as_json {
        let object: Map<_, _> =
            stats.iter().map(|(name, value)| (name.clone(), Value::from(*value))).collect();
        return writeln!(out, "{}", Value::Object(object));
    }
    let width = stats.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in stats {
        writeln!(out, "{name:width$}  {value}")?;
    }
    Ok(())
}

/// The kind's name, and an object for each of that kind.
async fn rows(endpoint: &Endpoint, kind: Kind) -> anyhow::Result<(&'static str, Vec<Value>)> {
    Ok(match kind {
        Kind::Links => ("links", endpoint.links().await?.iter().map(link).collect()),
        Kind::Subsystems => {
            ("subsystems", endpoint.subsystems().await?.iter().map(subsystem).collect())
        }
        Kind::Listeners => {
            let urls = endpoint.listeners().await?;
            ("listeners", urls.into_iter().map(|url| json!({ "url": url })).collect())
        }
        Kind::Uplinks => ("uplinks", endpoint.uplinks().await?.iter().map(uplink).collect()),
        Kind::Subscriptions => {
            let all = endpoint.subscriptions().await?;
            ("subscriptions", all.iter().map(subscription).collect())
        }
    })
}

fn link(link: &LinkEntry) -> Value {
    json!({
        "link": link.slot,
        "peer": link.peer,
        "rights": link.right_names(),
        "broker": link.broker,
        "ports": link.ports,
    })
}

fn subsystem(subsystem: &SubsystemEntry) -> Value {
    let SubsystemEntry { name, address, providers, .. } = subsystem;
    json!({ "name": name, "address": address, "providers": providers })
}

fn uplink(uplink: &UplinkEntry) -> Value {
    let UplinkEntry { name, url, address, link, .. } = uplink;
    json!({ "name": name, "url": url, "address": address, "link": link })
}

fn subscription(subscription: &SubscriptionEntry) -> Value {
    let SubscriptionEntry { link, cid, subsystem, group, keys, hops, .. } = subscription;
    let keys: Vec<_> = keys
        .iter()
        .map(|key| json!({ "offset": key.offset, "key": key.key, "mask": key.mask }))
        .collect();
    json!({
        "link": link, "cid": cid, "subsystem": subsystem, "group": group, "keys": keys, "hops": hops,
    })
}

/// `kind key value key value …`, without what is not there.
fn line(kind: &str, row: &Value) -> String {
    let mut line = kind.strip_suffix('s').unwrap_or(kind).to_owned();
    for (key, value) in row.as_object().into_iter().flatten() {
        let text = match (key.as_str(), value) {
            (_, Value::Null | Value::Bool(false)) => continue,
            (_, Value::Array(all)) if all.is_empty() => continue,
            ("address" | "subsystem", Value::Number(number)) => {
                format!("{:#010x}", number.as_u64().unwrap_or(0))
            }
            (_, Value::String(text)) => crate::show::visible(text),
            ("rights", Value::Array(all)) => {
                all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
            }
            (_, other) => other.to_string(),
        };
        // what a link is, is the first thing that is said
        if *key == kind.strip_suffix('s').unwrap_or(kind) {
            line.push_str(&format!(" {text}"));
        } else {
            line.push_str(&format!(" {key} {text}"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_there_is_and_leaves_out_what_is_not() {
        let row = json!({ "name": "hub", "url": "tls://a", "address": 65_545, "link": null });
        assert_eq!(line("uplinks", &row), "uplink name hub url tls://a address 0x00010009");
        let row = json!({ "link": 3, "peer": "1.2.3.4:5", "rights": ["use", "control"],
                          "broker": false, "ports": 2 });
        assert_eq!(line("links", &row), "link 3 peer 1.2.3.4:5 rights use,control ports 2");
    }

    #[test]
    fn what_a_stranger_is_called_cannot_move_the_cursor() {
        let row = json!({ "name": "\u{1b}[2J" });
        assert!(!line("subsystems", &row).contains('\u{1b}'));
    }
}
