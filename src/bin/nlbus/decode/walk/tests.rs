//! The walk, on frames that were built, cut and changed.

use super::message::NLA_F_NESTED;
use super::*;
use crate::decode::input;
use nlbus::wire::{
    Command, ControlAttribute, ControlBuilder, ErrorMessage, Key, MessageBuilder, nlm,
};

fn explain(bytes: &[u8], protocol: Protocol, secrets: bool) -> (String, usize) {
    let (mut out, mut faults) = (Vec::new(), 0);
    let report = Report::text(&mut out);
    walk(bytes, Options { protocol, secrets }, report, &mut faults).unwrap();
    (String::from_utf8(out).unwrap(), faults)
}

fn is_json(bytes: &[u8]) {
    let (mut out, mut faults) = (Vec::new(), 0);
    let options = Options { protocol: Protocol::Route, secrets: false };
    walk(bytes, options, Report::json(&mut out), &mut faults).unwrap();
    serde_json::from_slice::<serde_json::Value>(&out).unwrap();
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    EnvelopeHead { dst: 0x10003, ..Default::default() }.emit(payload, &mut frame).unwrap();
    frame
}

/// A link message with attributes inside attributes, `depth` of them.
fn nested(depth: usize) -> Vec<u8> {
    let (mut kind, mut payload) = (1, vec![0xaa; 4]);
    for _ in 1..depth {
        let length = (payload.len() + NLA_HEADER_LEN) as u16;
        let mut outer = length.to_le_bytes().to_vec();
        outer.extend_from_slice(&u16::to_le_bytes(kind));
        outer.append(&mut payload);
        (kind, payload) = (NLA_F_NESTED | 1, outer);
    }
    MessageBuilder::new(16, 0).body(&[0; 16]).attribute(kind, &payload).unwrap().finish()
}

fn shows_secret(text: &str) -> bool {
    text.contains("34 35 36 37") || text.contains("4567")
}

fn samples() -> Vec<Vec<u8>> {
    let mut control = Vec::new();
    ControlBuilder::new(&mut control, EnvelopeHead::default(), Command::Register)
        .string(ControlAttribute::Host, "tcp://[::1]:9824")
        .and_then(|control| control.bytes(ControlAttribute::Secret, b"0123456789abcdef"))
        .and_then(|control| control.u32(ControlAttribute::Addr, 0x10003))
        .and_then(|control| control.u32(ControlAttribute::Errno, 2))
        .and_then(|control| control.key(Key::default()))
        .unwrap()
        .finish();
    let request = Header { length: 32, kind: 18, flags: 0x301, sequence: 7, pid: 0 };
    let error = framed(&ErrorMessage::emit(-1, &request, "not while read-only"));
    let link = framed(&nested(5));
    let stream = [control.clone(), error.clone(), link.clone()].concat();
    vec![control, error, link, nested(20), stream]
}

#[test]
fn no_cut_and_no_changed_byte_stops_the_walk_from_ending_in_valid_output() {
    for sample in samples() {
        for length in 0..sample.len() {
            is_json(&sample[..length]);
        }
        for at in 0..sample.len() {
            for change in [0x01, 0x04, 0x80, 0xff] {
                let mut bytes = sample.clone();
                bytes[at] ^= change;
                is_json(&bytes);
                let _ = explain(&bytes, Protocol::Generic, true);
            }
        }
    }
}

#[test]
fn a_secret_is_not_shown_whatever_is_wrong_around_it() {
    let control = &samples()[0];
    let (shown, _) = explain(control, Protocol::Route, true);
    assert!(shown.contains("|0123456789abcdef|"), "{shown}");
    let secret_at = control.windows(4).position(|bytes| bytes == b"0123").unwrap();
    // Another type makes it no frame, another kind no SECRET; it is not known then what the bytes are.
    let kind_at = secret_at - 2;
    for at in (0..control.len()).filter(|at| ![4, 5, kind_at, kind_at + 1].contains(at)) {
        for change in [0x01, 0x02, 0x04, 0x08, 0x10, 0x40, 0x80, 0xff] {
            let mut bytes = control.clone();
            bytes[at] ^= change;
            let (text, _) = explain(&bytes, Protocol::Route, false);
            assert!(!shows_secret(&text), "byte {at} ^ {change:#x}\n{text}");
        }
    }
    for length in 0..control.len() {
        let (text, _) = explain(&control[..length], Protocol::Route, false);
        assert!(!shows_secret(&text), "cut at {length}\n{text}");
    }
}

#[test]
fn nesting_is_followed_to_the_limit_and_not_past_it() {
    let (at_limit, faults) = explain(&nested(NESTING_MAX), Protocol::Route, false);
    assert_eq!(faults, 0, "{at_limit}");
    assert!(!at_limit.contains("nested deeper"), "{at_limit}");
    let (past, faults) = explain(&nested(NESTING_MAX + 1), Protocol::Route, false);
    assert_eq!(faults, 0, "{past}");
    assert!(past.contains("note nested deeper than 16"), "{past}");
}

#[test]
fn a_payload_that_is_no_netlink_message_is_opaque_and_no_fault() {
    let (text, faults) = explain(&framed(b"add@/devices/virtual\0"), Protocol::Route, false);
    assert_eq!(faults, 0, "{text}");
    assert!(text.contains("opaque length 21, note no netlink message"), "{text}");
    assert!(text.contains("|add@/devices/vir|"), "{text}");
}

#[test]
fn what_follows_the_last_whole_message_is_a_fault() {
    let mut payload = MessageBuilder::new(nlm::NOOP, 0).finish();
    payload.extend_from_slice(&[1, 2, 3, 4]);
    let (text, faults) = explain(&framed(&payload), Protocol::Route, false);
    assert_eq!(faults, 1, "{text}");
    assert!(text.contains("0x0030     fault reason the bytes end inside a header"), "{text}");
}

#[test]
fn a_fault_in_one_frame_does_not_hide_the_next() {
    let mut bytes = framed(&nested(2));
    bytes[0x3c] = 3;
    bytes.extend(framed(&MessageBuilder::new(nlm::DONE, 2).finish()));
    let (text, faults) = explain(&bytes, Protocol::Route, false);
    assert_eq!(faults, 1, "{text}");
    assert!(text.contains("fault reason the attribute's length is below 4"), "{text}");
    assert!(text.contains("NLMSG_DONE"), "{text}");
}

#[test]
fn whole_messages_before_a_cut_are_shown_and_the_cut_is_said_once() {
    let one = MessageBuilder::new(20, 2).body(&[2; 8]).attribute(1, &[9; 4]).unwrap().finish();
    let frame = framed(&[one.clone(), one].concat());
    let (text, faults) = explain(&frame[..frame.len() - 3], Protocol::Route, false);
    assert_eq!(faults, 1, "{text}");
    assert_eq!(text.matches("RTM_NEWADDR").count(), 2, "{text}");
    assert_eq!(text.matches("09 09 09 09").count(), 1, "{text}");
    assert!(text.contains("the input ends inside a frame of 92 bytes: 3 missing"), "{text}");
}

#[test]
fn an_overrun_tells_how_many_frames_were_lost() {
    let message = MessageBuilder::new(nlm::OVERRUN, 0).body(&7_u32.to_le_bytes()).finish();
    let (text, faults) = explain(&framed(&message), Protocol::Route, false);
    assert_eq!(faults, 0, "{text}");
    assert!(text.contains("0x002c       lost frames 7\n"), "{text}");
}

#[test]
fn generic_netlink_has_its_own_fixed_header() {
    let message = MessageBuilder::new(16, 0x301).body(&[3, 1, 0, 0]);
    let message = message.attribute(2, b"nlctrl\0").unwrap().finish();
    let (text, faults) = explain(&message, Protocol::Generic, false);
    assert_eq!(faults, 0, "{text}");
    assert!(text.contains("struct genlmsghdr  03 01 00 00"), "{text}");
    assert!(text.contains("kind 2  6e 6c 63 74 72 6c 00  |nlctrl.|"), "{text}");
    let (text, _) = explain(&message, Protocol::Opaque, false);
    assert!(text.contains("body  03 01 00 00 0b 00 02 00"), "{text}");
}

#[test]
fn the_example_in_the_help_is_a_sound_frame() {
    let bytes = input::from_hex(b"1c0000000f00000001000000000000000300010000000000 04000000");
    let (text, faults) = explain(&bytes.unwrap(), Protocol::Route, false);
    assert_eq!(faults, 0, "{text}");
}
