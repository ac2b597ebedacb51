//! Holds the numbers of queues in the code to `proto-spec/queue.yaml`, in both directions.

use std::collections::{BTreeMap, BTreeSet};

use nlbus::service::queue::machine::{self, What};
use nlbus::service::queue::protocol::{HEADERS_MAX, QUEUE_TYPE, QUEUE_VERSION, attr, cmd, flag};
use nlbus::store::RANGES_MAX;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Spec {
    definitions: Vec<Named>,
    attribute_sets: Vec<Set>,
    operations: Operations,
}

#[derive(Debug, Deserialize)]
struct Set {
    attributes: Vec<Named>,
}

#[derive(Debug, Deserialize)]
struct Operations {
    list: Vec<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
    value: Option<u64>,
    r#type: Option<String>,
    #[serde(default)]
    entries: Vec<Named>,
    r#do: Option<Do>,
    event: Option<Names>,
}

#[derive(Debug, Deserialize)]
struct Do {
    request: Names,
    reply: Names,
}

#[derive(Debug, Deserialize)]
struct Names {
    attributes: Vec<String>,
}

fn spec() -> Spec {
    serde_saphyr::from_str(include_str!("../proto-spec/queue.yaml"))
        .expect("the specification is YAML of the expected shape")
}

fn values(named: &[Named]) -> BTreeMap<String, u64> {
    named.iter().filter_map(|named| Some((named.name.clone(), named.value?))).collect()
}

fn code<T: Copy + Into<u64>>(table: &[(&str, T)]) -> BTreeMap<String, u64> {
    let name = |name: &str| name.to_lowercase().replace('_', "-");
    let map: BTreeMap<_, _> =
        table.iter().map(|(symbol, value)| (name(symbol), (*value).into())).collect();
    assert_eq!(map.len(), table.len(), "a name stands twice");
    let different: BTreeSet<_> = map.values().collect();
    assert_eq!(different.len(), table.len(), "a number stands twice");
    map
}

#[test]
fn commands_and_attributes_have_the_numbers_of_the_specification() {
    let spec = spec();
    assert_eq!(values(&spec.operations.list), code(cmd::TABLE));
    assert_eq!(values(&spec.attribute_sets[0].attributes), code(attr::TABLE));
}

#[test]
fn limits_flags_and_events_are_those_of_the_specification() {
    let spec = spec();
    let constants = spec.definitions.iter().filter(|d| d.r#type.as_deref() == Some("const"));
    let constants: BTreeMap<_, _> =
        constants.filter_map(|named| Some((named.name.as_str(), named.value?))).collect();
    let expected: BTreeMap<_, _> = [
        ("queue-type", u64::from(QUEUE_TYPE)),
        ("queue-version", QUEUE_VERSION.into()),
        ("name-bytes-max", machine::NAME_BYTES_MAX as u64),
        ("receive-queues-max", machine::RECEIVE_QUEUES_MAX as u64),
        ("headers-max", HEADERS_MAX as u64),
        ("parked-max", machine::PARKED_MAX as u64),
        ("parked-bytes-max", machine::PARKED_BYTES_MAX),
        ("waiting-per-session-max", machine::WAITING_PER_SESSION_MAX as u64),
        ("trace-record-bytes-max", machine::TRACE_RECORD_BYTES_MAX as u64),
        ("trace-answer-max", machine::TRACE_ANSWER_MAX as u64),
        ("senders-max", machine::SENDERS_MAX as u64),
        ("recent-max", machine::RECENT_MAX as u64),
        ("ranges-max", RANGES_MAX as u64),
    ]
    .into();
    assert_eq!(constants, expected);
    let find = |name: &str| spec.definitions.iter().find(|d| d.name == name).expect("defined");
    let masks: BTreeMap<_, _> =
        values(&find("flags").entries).into_iter().map(|(name, bit)| (name, 1 << bit)).collect();
    assert_eq!(masks, code(flag::TABLE));
    let events: BTreeMap<_, _> = [
        What::Sent,
        What::Delivered,
        What::Acked,
        What::Returned,
        What::Expired,
        What::Dropped,
        What::Dead,
        What::Refused,
    ]
    .into_iter()
    .map(|what| (format!("{what:?}").to_lowercase(), what as u64))
    .collect();
    assert_eq!(values(&find("what").entries), events);
}

#[test]
fn operations_name_attributes_that_there_are() {
    let spec = spec();
    let known = values(&spec.attribute_sets[0].attributes);
    for operation in &spec.operations.list {
        let lists = operation.r#do.iter().flat_map(|both| [&both.request, &both.reply]);
        for name in lists.chain(&operation.event).flat_map(|names| &names.attributes) {
            assert!(known.contains_key(name), "{} of {}", name, operation.name);
        }
    }
}
