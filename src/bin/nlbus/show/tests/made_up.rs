//! Cases made by hand: options, errors, the table, and what no kernel at hand would send.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{OBJECTS, Object, Options, Table, render_json, render_table, table};
use crate::show::RenderError;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;

fn message(kind: u16, header: &[u8], attributes: &[(u16, &[u8])]) -> Bytes {
    let mut body = header.to_vec();
    for (kind, value) in attributes {
        body.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut bytes = u32::try_from(body.len() + 16).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.resize(16, 0);
    bytes.extend(body);
    bytes.into()
}

fn link(layer: u16, index: u32, flags: u32, attributes: &[(u16, &[u8])]) -> Bytes {
    let mut header = vec![0, 0];
    header.extend(layer.to_ne_bytes());
    header.extend([index, flags, 0].map(u32::to_ne_bytes).as_flattened());
    message(RTM_NEWLINK, &header, attributes)
}

/// The JSON of `ip link` for one link.
fn shown(link: Bytes) -> Value {
    let links = render_json(Object::Link, &Options::default(), &[vec![link]]).unwrap();
    links[0].clone()
}

fn error(object: Object, options: &Options, dumps: &[Vec<Bytes>]) -> RenderError {
    let error = render_json(object, options, dumps).unwrap_err();
    let same = render_table(object, options, dumps, &mut std::io::sink()).unwrap_err();
    assert_eq!(error.to_string(), same.to_string());
    error
}

#[test]
fn requests_are_dumps_with_neither_sequence_nor_port() {
    for request in OBJECTS.iter().flat_map(|object| object.requests(&Options::default())) {
        assert_eq!(request[..4], u32::try_from(request.len()).unwrap().to_ne_bytes());
        assert_eq!(request[6..8], 0x301_u16.to_ne_bytes());
        assert_eq!(request[8..16], [0; 8]);
    }
}

#[test]
fn a_routing_table_is_all_of_them_or_a_name_or_a_number() {
    let table = |word: &str| word.parse::<Table>().ok();
    assert_eq!(table("main"), Some(Table::Id(254)));
    assert_eq!(table("77"), Some(Table::Id(77)));
    assert_eq!(table("0x4d"), Some(Table::Id(77)));
    assert_eq!(table("all"), Some(Table::All));
    assert_eq!(table("0"), Some(Table::All));
    assert_eq!(table("no such table"), None);
}

#[test]
fn options_of_other_objects_are_refused() {
    let table = Options { table: Some(Table::All), ..Options::default() };
    let proxy = Options { proxy: true, ..Options::default() };
    for object in OBJECTS {
        let takes_table = matches!(object, Object::Route | Object::Rule);
        assert_eq!(table.check(object).is_ok(), takes_table, "{object:?}");
        assert_eq!(proxy.check(object).is_ok(), object == Object::Neigh, "{object:?}");
    }
}

#[test]
fn an_error_names_the_message_at_fault() {
    let none = Options::default();
    let good = link(1, 1, 0, &[]);
    let cut = good.slice(..20);
    let found = error(Object::Link, &none, &[vec![good.clone(), cut]]);
    assert!(matches!(found, RenderError::Malformed { dump: 0, message: 1, .. }), "{found}");
    let address = message(RTM_NEWADDR, &[0; 8], &[]);
    let found = error(Object::Addr, &none, &[vec![address.clone()], vec![address]]);
    let expected = RenderError::UnexpectedKind { dump: 0, message: 0, kind: RTM_NEWADDR };
    assert_eq!(found.to_string(), expected.to_string());
    let found = error(Object::Addr, &none, &[vec![good.clone()]]);
    assert!(matches!(found, RenderError::DumpCount { expected: 2, found: 1 }), "{found}");
    let options = Options { dev: Some("gone".to_owned()), ..none };
    let found = error(Object::Link, &options, &[vec![good]]);
    assert!(matches!(found, RenderError::NoSuchDevice(name) if name == "gone"));
}

#[test]
fn a_link_tells_its_peer_and_its_permanent_address() {
    let (address, permanent) = ([10, 0, 0, 1], [2, 0, 0, 0, 0, 9]);
    let attributes: [(u16, &[u8]); 4] =
        [(3, b"gre0\0"), (1, &address), (2, &[10, 0, 0, 2]), (54, &permanent)];
    let expected = json!({
        "ifindex": 7, "ifname": "gre0", "flags": ["NO-CARRIER", "POINTOPOINT", "UP", "80000000"],
        "link_type": "gre", "address": "10.0.0.1", "link_pointtopoint": true,
        "broadcast": "10.0.0.2", "permaddr": "02:00:00:00:00:09",
    });
    assert_eq!(shown(link(778, 7, 0x8000_0011, &attributes)), expected);
}

#[test]
fn values_without_a_name_are_numbers() {
    let none = 0_u32.to_ne_bytes();
    let attributes: [(u16, &[u8]); 3] = [(5, &none), (16, &[9]), (17, &[8])];
    let expected = json!({
        "ifindex": 7, "link": null, "flags": [], "operstate_index": 9, "linkmode_index": 8,
        "link_type": "[9999]",
    });
    assert_eq!(shown(link(9999, 7, 0, &attributes)), expected);
}

#[test]
fn an_attribute_too_short_to_read_is_left_out() {
    let attributes: [(u16, &[u8]); 3] = [(4, &[1, 2, 3]), (27, &[]), (16, &[])];
    let expected = json!({ "ifindex": 7, "flags": [], "link_type": "ether" });
    assert_eq!(shown(link(1, 7, 0, &attributes)), expected);
}

#[test]
fn the_table_lists_the_addresses_below_their_link() {
    let links = vec![
        link(772, 1, 0x1_0049, &[(3, b"lo\0"), (16, &[0])]),
        link(1, 2, 0, &[(3, b"eth0\0"), (16, &[2]), (1, &[2, 0, 0, 0, 0, 1])]),
    ];
    let header = [2, 8, 0x80, 254, 1, 0, 0, 0];
    let addresses = vec![message(RTM_NEWADDR, &header, &[(2, &[127, 0, 0, 1])])];
    let expected = "\
INDEX  LINK  STATE    ADDRESS            SCOPE
1      lo    UNKNOWN
                      127.0.0.1/8        host
2      eth0  DOWN     02:00:00:00:00:01
";
    assert_eq!(table(Object::Addr, &Options::default(), &[links, addresses]), expected);
}

#[test]
fn the_table_escapes_what_moves_the_cursor() {
    let text =
        table(Object::Link, &Options::default(), &[vec![link(1, 1, 0, &[(3, b"\x1b[2J\n")])]]);
    assert!(text.contains("\\u{1b}[2J\\n"), "{text}");
    assert_eq!(text.lines().count(), 2);
}

#[test]
fn an_endless_name_neither_widens_every_line_nor_is_repeated_for_every_route() {
    let endless = vec![b'x'; 60_000];
    let links = vec![link(1, 1, 0, &[(3, &endless)]), link(1, 2, 0, &[(3, b"short")])];
    let text = table(Object::Link, &Options::default(), std::slice::from_ref(&links));
    assert!(text.lines().all(|line| line.contains("xxx") || line.len() < 200));
    let route =
        message(RTM_NEWROUTE, &[2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0], &[(4, &[1, 0, 0, 0])]);
    let routes = render_json(Object::Route, &Options::default(), &[links, vec![route]]).unwrap();
    assert_eq!(routes, json!([{ "dst": "default", "dev": "if1", "flags": [] }]));
}
