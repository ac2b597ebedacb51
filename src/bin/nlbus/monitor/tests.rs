use nlbus::wire::MessageBuilder;

use super::*;

const AF_UNSPEC: u8 = 0;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;

fn printer(json: bool, label: bool) -> Printer {
    let objects = KINDS.iter().map(|(_, object, _)| *object).collect();
    Printer { json, timestamp: false, label, objects }
}

fn link(kind: u16, family: u8, index: u8, name: &[u8]) -> Vec<u8> {
    let header = [family, 0, 1, 0, index, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    MessageBuilder::new(kind, 0).body(&header).attribute(3, name).unwrap().finish()
}

/// 10.0.0.0/8 over the device with this index, in the main table.
fn route(kind: u16, index: u8, flags: u16) -> Vec<u8> {
    let [low, high] = flags.to_le_bytes();
    let header = [2, 8, 0, 0, 254, 3, 0, 1, low, high, 0, 0];
    let message = MessageBuilder::new(kind, 0).body(&header);
    let message = message.attribute(1, &[10, 0, 0, 0]).unwrap();
    message.attribute(4, &[index, 0, 0, 0]).unwrap().finish()
}

fn print(printer: &Printer, decoder: &mut Decoder, payload: &[u8]) -> String {
    let mut out = Vec::new();
    for event in printer.decode(decoder, payload) {
        printer.event(&event, &mut out).unwrap();
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn devices_are_known_by_the_name_that_they_have_at_the_time() {
    let mut decoder = Decoder::new(&[link(16, AF_UNSPEC, 7, b"eth0\0").into()]).unwrap();
    let mut print = |payload: &[u8]| print(&printer(false, false), &mut decoder, payload);
    assert_eq!(print(&route(24, 7, 0)), "10.0.0.0/8 dev eth0\n");
    assert!(print(&link(16, AF_UNSPEC, 7, b"wan\0")).starts_with("7: wan: <NO-CARRIER,UP>"));
    assert_eq!(print(&route(25, 7, 0)), "Deleted 10.0.0.0/8 dev wan\n");
    assert!(print(&link(17, AF_UNSPEC, 7, b"wan\0")).starts_with("Deleted 7: wan:"));
    assert_eq!(print(&route(24, 7, 0)), "10.0.0.0/8 dev if7\n");
}

#[test]
fn what_a_bridge_or_ipv6_says_about_a_device_is_no_event_of_the_device() {
    let mut decoder = Decoder::new(&[link(16, AF_UNSPEC, 7, b"eth0\0").into()]).unwrap();
    for family in [AF_BRIDGE, AF_INET6] {
        for kind in [16, 17] {
            let payload = link(kind, family, 7, b"other\0");
            assert_eq!(print(&printer(false, true), &mut decoder, &payload), "");
        }
    }
    let line = print(&printer(false, true), &mut decoder, &route(24, 7, 0));
    assert_eq!(line, "[ROUTE]10.0.0.0/8 dev eth0\n", "the name is as it was");
}

#[test]
fn each_message_of_a_payload_is_an_event_and_what_is_not_asked_for_is_left_out() {
    let mut decoder = Decoder::new(&[]).unwrap();
    let cloned = route(24, 1, 0x200);
    let other = MessageBuilder::new(52, 0).body(&[0; 12]).finish();
    let cut = MessageBuilder::new(24, 0).body(&[2; 8]).finish();
    let payload =
        [route(24, 1, 0), cloned, other, cut, link(16, AF_UNSPEC, 1, b"a\0"), route(25, 1, 0)]
            .concat();
    let only_routes = Printer { objects: vec![Object::Route], ..printer(true, true) };
    let lines = print(&only_routes, &mut decoder, &payload);
    let lines: Vec<Value> = lines.lines().map(|line| line.parse().unwrap()).collect();
    let expected = [("new", "if1"), ("deleted", "a")].map(|(event, dev)| {
        json!({ "event": event, "object": "route", "dst": "10.0.0.0/8", "dev": dev, "flags": [] })
    });
    assert_eq!(lines, expected);
}

#[test]
fn a_name_cannot_end_the_line_or_move_the_cursor() {
    let mut decoder = Decoder::new(&[]).unwrap();
    let payload = link(16, AF_UNSPEC, 1, b"a\nb\x1b[2J\0");
    let line = print(&printer(false, false), &mut decoder, &payload);
    assert_eq!(line.lines().count(), 1);
    assert!(line.contains("a\\nb\\u{1b}[2J"), "{line}");
}

#[test]
fn a_loss_is_told_in_words_and_in_json() {
    for (json, count, expected) in [
        (false, 1, "lost 1 event; tables may have changed\n"),
        (false, 7, "lost 7 events; tables may have changed\n"),
        (true, 7, "{\"event\":\"lost\",\"count\":7}\n"),
    ] {
        let mut out = Vec::new();
        printer(json, true).lost(count, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

#[test]
fn a_timestamp_stands_in_front() {
    let stamped = |json| Printer { timestamp: true, ..printer(json, true) };
    let mut out = Vec::new();
    stamped(false).lost(2, &mut out).unwrap();
    stamped(true).lost(2, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let (line, object) = text.split_once('\n').unwrap();
    let time =
        line.strip_prefix('[').unwrap().strip_suffix("] lost 2 events; tables may have changed");
    assert_eq!(time.unwrap().len(), "2024-01-01T00:00:00.000000Z".len());
    assert!(object.starts_with("{\"timestamp\":\"2"), "{object}");
}
