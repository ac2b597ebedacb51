//! Holds the constants in the code to `proto-spec/*.yaml`, in both directions.

use nlbus::wire::{
    self, Command, ControlAttribute, ValueType, address, errno, flag, kind, mode, nlm, right,
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// The part of a YNL specification that code has an equal of.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Spec {
    name: String,
    protocol: String,
    definitions: Vec<Definition>,
    attribute_sets: Vec<AttributeSet>,
    operations: Operations,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Definition {
    name: String,
    r#type: String,
    value: Option<u64>,
    #[serde(default)]
    entries: Vec<Entry>,
    #[serde(default)]
    members: Vec<Member>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    name: String,
    value: u64,
    doc: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Member {
    name: String,
    r#type: String,
    byte_order: String,
}

#[derive(Debug, Deserialize)]
struct AttributeSet {
    name: String,
    attributes: Vec<Attribute>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Attribute {
    name: String,
    value: u64,
    r#type: String,
    byte_order: Option<String>,
    r#struct: Option<String>,
    #[serde(default)]
    multi_attr: bool,
    checks: Option<Checks>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Checks {
    exact_len: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Operations {
    enum_model: String,
    list: Vec<Operation>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Operation {
    name: String,
    value: u64,
    attribute_set: String,
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

impl Spec {
    fn read(text: &str) -> Self {
        serde_saphyr::from_str(text).expect("the specification is YAML of the expected shape")
    }

    fn definition(&self, name: &str) -> &Definition {
        self.definitions
            .iter()
            .find(|definition| definition.name == name)
            .unwrap_or_else(|| panic!("{} has no definition {name}", self.name))
    }

    fn set(&self, name: &str) -> &AttributeSet {
        self.attribute_sets
            .iter()
            .find(|set| set.name == name)
            .unwrap_or_else(|| panic!("{} has no attribute set {name}", self.name))
    }

    /// The `const` definitions.
    fn constants(&self) -> BTreeMap<String, u64> {
        self.definitions
            .iter()
            .filter_map(|definition| Some((definition.name.clone(), definition.value?)))
            .collect()
    }

    /// The entries of an enum, or of flags as their bits' numbers.
    fn entries(&self, name: &str) -> BTreeMap<String, u64> {
        self.definition(name)
            .entries
            .iter()
            .map(|entry| (entry.name.clone(), entry.value))
            .collect()
    }

    /// The entries of flags, as masks.
    fn masks(&self, name: &str) -> BTreeMap<String, u64> {
        assert_eq!(self.definition(name).r#type, "flags");
        self.entries(name).into_iter().map(|(name, bit)| (name, 1 << bit)).collect()
    }
}

fn envelope() -> Spec {
    Spec::read(include_str!("../proto-spec/envelope.yaml"))
}

fn control() -> Spec {
    Spec::read(include_str!("../proto-spec/control.yaml"))
}

fn table<const N: usize>(rows: [(&str, u64); N]) -> BTreeMap<String, u64> {
    let map: BTreeMap<_, _> = rows.into_iter().map(|(name, value)| (name.into(), value)).collect();
    assert_eq!(map.len(), N, "a name stands twice");
    map
}

fn envelope_constants() -> BTreeMap<String, u64> {
    table([
        ("data", nlm::DATA.into()),
        ("header-len", wire::HEADER_LEN as u64),
        ("envelope-len", wire::ENVELOPE_LEN as u64),
        ("nla-header-len", wire::NLA_HEADER_LEN as u64),
        ("payload-offset", wire::PAYLOAD_OFFSET as u64),
        ("payload-max", wire::PAYLOAD_MAX as u64),
        ("group-bytes-max", wire::GROUP_BYTES_MAX as u64),
        ("frame-min", wire::FRAME_MIN as u64),
        ("frame-max", wire::FRAME_MAX as u64),
        ("legacy-frame-max", wire::LEGACY_FRAME_MAX as u64),
        ("hops-mask", flag::HOPS_MASK.into()),
        ("hops-max", flag::HOPS_MAX.into()),
        ("subscribers", address::SUBSCRIBERS.into()),
        ("foreign", address::FOREIGN.into()),
        ("subsystem-first", address::SUBSYSTEM_FIRST.into()),
        ("subsystem-last", address::SUBSYSTEM_LAST.into()),
        ("return-first", address::RETURN_FIRST.into()),
        ("broadcast", address::BROADCAST.into()),
        ("dump", nlm::DUMP.into()),
    ])
}

fn control_constants() -> BTreeMap<String, u64> {
    table([
        ("control-type", wire::CONTROL_TYPE.into()),
        ("control-version", wire::CONTROL_VERSION.into()),
        ("protocol-version", wire::PROTOCOL_VERSION.into()),
        ("cid-first", wire::CID_FIRST.into()),
        ("cid-chosen-first", wire::CID_CHOSEN_FIRST.into()),
    ])
}

fn envelope_flags() -> BTreeMap<String, u64> {
    table([
        ("control", flag::CONTROL.into()),
        ("response", flag::RESPONSE.into()),
        ("exception", flag::EXCEPTION.into()),
        ("ask", flag::ASK.into()),
        ("last", flag::LAST.into()),
    ])
}

fn mode_flags() -> BTreeMap<String, u64> {
    table([
        ("pull", mode::PULL.into()),
        ("write", mode::WRITE.into()),
        ("broker", mode::BROKER.into()),
    ])
}

fn right_flags() -> BTreeMap<String, u64> {
    table([
        ("use", right::USE.into()),
        ("provide", right::PROVIDE.into()),
        ("control", right::CONTROL.into()),
    ])
}

fn kinds() -> BTreeMap<String, u64> {
    table([
        ("link", kind::LINK.into()),
        ("subsystem", kind::SUBSYSTEM.into()),
        ("listener", kind::LISTENER.into()),
        ("uplink", kind::UPLINK.into()),
        ("subscription", kind::SUBSCRIPTION.into()),
    ])
}

fn nlm_types() -> BTreeMap<String, u64> {
    table([
        ("noop", nlm::NOOP.into()),
        ("error", nlm::ERROR.into()),
        ("done", nlm::DONE.into()),
        ("overrun", nlm::OVERRUN.into()),
        ("min-type", nlm::MIN_TYPE.into()),
    ])
}

fn nlm_flags() -> BTreeMap<String, u64> {
    table([
        ("request", nlm::REQUEST.into()),
        ("multi", nlm::MULTI.into()),
        ("ack", nlm::ACK.into()),
        ("echo", nlm::ECHO.into()),
        ("dump-intr", nlm::DUMP_INTR.into()),
    ])
}

fn nlm_new_flags() -> BTreeMap<String, u64> {
    table([
        ("replace", nlm::REPLACE.into()),
        ("excl", nlm::EXCL.into()),
        ("create", nlm::CREATE.into()),
        ("append", nlm::APPEND.into()),
    ])
}

fn nlm_error_flags() -> BTreeMap<String, u64> {
    table([("capped", nlm::CAPPED.into()), ("ack-tlvs", nlm::ACK_TLVS.into())])
}

#[test]
fn sizes_limits_and_address_ranges_are_those_of_the_envelope_specification() {
    assert_eq!(envelope().constants(), envelope_constants());
}

#[test]
fn versions_and_first_numbers_are_those_of_the_control_specification() {
    assert_eq!(control().constants(), control_constants());
}

#[test]
fn envelope_flags_and_modes_are_those_of_the_specification() {
    assert_eq!(envelope().masks("envelope-flags"), envelope_flags());
    assert_eq!(control().masks("mode"), mode_flags());
    assert_eq!(control().masks("right"), right_flags());
    assert_eq!(control().entries("kind"), kinds());
}

#[test]
fn netlink_types_and_flags_are_those_of_the_specification() {
    let spec = envelope();
    assert_eq!(spec.entries("nlm-type"), nlm_types());
    assert_eq!(spec.masks("nlm-flags"), nlm_flags());
    assert_eq!(spec.masks("nlm-new-flags"), nlm_new_flags());
    assert_eq!(spec.masks("nlm-error-flags"), nlm_error_flags());
}

#[test]
fn error_numbers_symbols_and_texts_are_those_of_the_specification() {
    let spec = envelope();
    let written: Vec<_> = spec
        .definition("errno")
        .entries
        .iter()
        .map(|row| (row.value, row.name.to_uppercase(), row.doc.clone().unwrap_or_default()))
        .collect();
    let coded: Vec<_> = errno::TABLE
        .iter()
        .map(|row| (row.number as u64, row.symbol.to_owned(), row.text.to_owned()))
        .collect();
    assert_eq!(written, coded);
}

#[test]
fn the_error_table_is_in_ascending_order_and_finds_each_number_with_either_sign() {
    assert!(errno::TABLE.is_sorted_by(|a, b| a.number < b.number));
    for row in errno::TABLE {
        assert_eq!(errno::symbol(row.number), Some(row.symbol));
        assert_eq!(errno::symbol(-row.number), Some(row.symbol));
        assert_eq!(errno::text(-row.number), Some(row.text));
    }
    assert_eq!(errno::symbol(i32::MIN), None);
    assert_eq!(errno::symbol(0), None);
}

#[test]
fn the_frame_is_one_operation_with_the_transport_type_and_its_payload_is_cdata() {
    let spec = envelope();
    assert_eq!((spec.name.as_str(), spec.protocol.as_str()), ("envelope", "netlink-raw"));
    let [transport] = spec.operations.list.as_slice() else { panic!("one operation") };
    assert_eq!((transport.name.as_str(), transport.value), ("transport", 15));
    assert_eq!(u64::from(wire::TRANSPORT_TYPE), transport.value);
    let [cdata, group] = spec.set(&transport.attribute_set).attributes.as_slice() else {
        panic!("two attributes")
    };
    assert_eq!((cdata.name.as_str(), cdata.r#type.as_str()), ("cdata", "binary"));
    assert_eq!(cdata.value, u64::from(wire::CDATA));
    assert_eq!((group.name.as_str(), group.r#type.as_str()), ("group", "string"));
    assert_eq!(group.value, u64::from(wire::GROUP));
}

#[test]
fn an_error_message_carries_its_text_in_the_attribute_of_the_specification() {
    let text = envelope().set("nlmsgerr-attrs").attributes[0].value as u8;
    let bytes = wire::ErrorMessage::emit(-1, &wire::Header::default(), "no");
    assert_eq!(bytes[36..], [7, 0, text, 0, b'n', b'o', 0, 0]);
}

#[test]
fn structures_of_the_specification_have_the_sizes_and_the_byte_order_of_the_code() {
    let width = |member: &Member| match member.r#type.as_str() {
        "u16" => 2,
        "u32" => 4,
        other => panic!("unexpected member type {other}"),
    };
    let envelope = envelope();
    let control = control();
    let sizes: BTreeMap<&str, usize> = envelope
        .definitions
        .iter()
        .chain(&control.definitions)
        .filter(|definition| definition.r#type == "struct")
        .map(|definition| {
            for member in &definition.members {
                assert_eq!(member.byte_order, "little-endian", "{}", member.name);
            }
            (definition.name.as_str(), definition.members.iter().map(width).sum())
        })
        .collect();
    let coded = [
        ("nlmsghdr", wire::HEADER_LEN),
        ("envmsghdr", wire::ENVELOPE_LEN - wire::HEADER_LEN),
        ("key", 12),
    ];
    assert_eq!(sizes, BTreeMap::from(coded));
}

#[test]
fn commands_are_those_of_the_specification_in_its_order() {
    let spec = control();
    assert_eq!((spec.name.as_str(), spec.protocol.as_str()), ("control", "genetlink-legacy"));
    assert_eq!(spec.operations.enum_model, "unified");
    let written: Vec<_> =
        spec.operations.list.iter().map(|op| (op.name.clone(), op.value)).collect();
    let coded: Vec<_> = Command::ALL
        .iter()
        .map(|&command| (command.symbol().to_owned(), u64::from(command as u8)))
        .collect();
    assert_eq!(written, coded);
}

#[test]
fn every_number_names_the_command_of_the_specification_or_none() {
    let spec = control();
    for number in 0..=u8::MAX {
        let written = spec.operations.list.iter().find(|op| op.value == u64::from(number));
        let coded = Command::from_number(number).map(Command::symbol);
        assert_eq!(coded, written.map(|op| op.name.as_str()), "command {number}");
    }
}

#[test]
fn control_attributes_and_their_shapes_are_those_of_the_specification_in_its_order() {
    let spec = control();
    let written: Vec<_> =
        spec.set("control-attrs").attributes.iter().map(|a| (a.name.clone(), a.value)).collect();
    let coded: Vec<_> = ControlAttribute::ALL
        .iter()
        .map(|&kind| (kind.symbol().to_owned(), u64::from(kind as u16)))
        .collect();
    assert_eq!(written, coded);
    for (attribute, kind) in spec.set("control-attrs").attributes.iter().zip(ControlAttribute::ALL)
    {
        assert_eq!(shape(attribute), kind.value_type(), "{}", attribute.name);
        assert_eq!(attribute.multi_attr, kind.is_multi(), "{}", attribute.name);
    }
}

fn shape(attribute: &Attribute) -> ValueType {
    match (attribute.r#type.as_str(), attribute.r#struct.as_deref()) {
        ("string", None) => ValueType::String,
        ("binary", None) => ValueType::Bytes,
        ("binary", Some("key")) => {
            assert_eq!(attribute.checks.as_ref().and_then(|checks| checks.exact_len), Some(12));
            ValueType::Key
        }
        ("nest", None) => ValueType::Entry,
        ("u64", None) => {
            assert_eq!(attribute.byte_order.as_deref(), Some("little-endian"));
            ValueType::U64
        }
        ("u32", None) => {
            assert_eq!(attribute.byte_order.as_deref(), Some("little-endian"));
            ValueType::U32
        }
        other => panic!("{} has the unexpected type {other:?}", attribute.name),
    }
}

#[test]
fn every_number_names_the_control_attribute_of_the_specification_or_none() {
    let spec = control();
    for number in 0..=u16::MAX {
        let written = spec
            .set("control-attrs")
            .attributes
            .iter()
            .find(|attribute| attribute.value == u64::from(number));
        let coded = ControlAttribute::from_number(number).map(ControlAttribute::symbol);
        assert_eq!(coded, written.map(|a| a.name.as_str()), "attribute {number}");
    }
}

#[test]
fn every_attribute_that_an_operation_names_is_in_the_set() {
    let spec = control();
    let known: BTreeSet<_> =
        spec.set("control-attrs").attributes.iter().map(|a| a.name.as_str()).collect();
    for op in &spec.operations.list {
        assert_eq!(op.attribute_set, "control-attrs", "{}", op.name);
        let exchanges = op.r#do.iter().flat_map(|exchange| [&exchange.request, &exchange.reply]);
        for names in exchanges.chain(&op.event) {
            for name in &names.attributes {
                assert!(known.contains(name.as_str()), "{} names {name}", op.name);
            }
        }
    }
}

/// The tables above list constants by hand; this reads the source, so that one that was added to the
/// code and to no table is seen.
#[test]
fn every_public_constant_of_the_wire_layer_is_in_one_of_the_tables() {
    let tables = [
        envelope_constants(),
        control_constants(),
        envelope_flags(),
        mode_flags(),
        right_flags(),
        kinds(),
        nlm_types(),
        nlm_flags(),
        nlm_new_flags(),
        nlm_error_flags(),
    ];
    let mut listed: BTreeSet<String> = tables
        .iter()
        .flat_map(BTreeMap::keys)
        .map(|n| n.to_uppercase().replace('-', "_"))
        .collect();
    // Operation and attribute of the envelope, and the lists that other tests compare whole.
    listed.extend(["TRANSPORT_TYPE", "CDATA", "GROUP", "ALL", "TABLE"].map(str::to_owned));
    let sources = [
        include_str!("../src/wire/attribute.rs"),
        include_str!("../src/wire/control.rs"),
        include_str!("../src/wire/control_builder.rs"),
        include_str!("../src/wire/deframe.rs"),
        include_str!("../src/wire/envelope.rs"),
        include_str!("../src/wire/errno.rs"),
        include_str!("../src/wire/fault.rs"),
        include_str!("../src/wire/header.rs"),
        include_str!("../src/wire/message.rs"),
        include_str!("../src/wire/mod.rs"),
    ];
    let coded: BTreeSet<String> = sources
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(|line| line.trim().strip_prefix("pub const ")?.split_once(':'))
        .map(|(name, _)| name.to_owned())
        .filter(|name| !name.starts_with("fn "))
        .collect();
    assert_eq!(coded, listed);
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/wire")).unwrap();
    assert_eq!(files.count(), sources.len(), "a source file is missing from the list");
}
