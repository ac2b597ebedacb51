//! What the wire layer does with bytes that lie: one test for each rule of `proto-spec/` on hostile input.

use nlbus::wire::{
    Attribute, Attributes, Command, Control, ControlAttribute, ControlBuilder, Envelope,
    EnvelopeHead, ErrorMessage, FRAME_MAX, FRAME_MIN, Fault, Frames, Header, Key, Malformed,
    Message, MessageBuilder, Messages, PAYLOAD_MAX, TooBig, ValueType, align4, flag, frame_length,
    nlm,
};

/// A frame with these attribute bytes behind its fixed part, its length field honest.
fn frame(attributes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    bytes[0..4].copy_from_slice(&(24 + attributes.len() as u32).to_le_bytes());
    bytes[4] = 15;
    bytes.extend_from_slice(attributes);
    bytes
}

/// A DISCOVER with these attribute bytes behind its head, its length field honest.
fn control(attributes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 20];
    bytes[0..4].copy_from_slice(&(20 + attributes.len() as u32).to_le_bytes());
    bytes[4] = 14;
    bytes[16] = Command::Discover as u8;
    bytes.extend_from_slice(attributes);
    bytes
}

/// One attribute, padded.
fn nla(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + payload.len() as u16).to_le_bytes().to_vec();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(payload);
    bytes.resize(align4(bytes.len()), 0);
    bytes
}

/// What a control message with one attribute comes to.
fn with_attribute(kind: u16, payload: &[u8]) -> Result<(), Malformed> {
    Control::parse(&control(&nla(kind, payload))).map(|_| ())
}

fn payload_fault(attributes: &[u8]) -> Malformed {
    let bytes = frame(attributes);
    let envelope = Envelope::parse(&bytes).expect("the fixed part is sound");
    envelope.payload().expect_err("the attributes are not")
}

const HOST: u16 = ControlAttribute::Host as u16;
const ADDR: u16 = ControlAttribute::Addr as u16;
const KEY: u16 = ControlAttribute::Key as u16;

#[test]
fn a_frame_length_below_28_is_refused_as_soon_as_four_bytes_are_there() {
    for length in [0u32, 1, 4, 16, 20, 24, 27] {
        let fault = frame_length(&length.to_le_bytes(), FRAME_MAX);
        assert_eq!(fault, Err(Fault::FrameTooShort), "{length}");
    }
    assert_eq!(frame_length(&28u32.to_le_bytes(), FRAME_MAX), Ok(Some(FRAME_MIN)));
}

#[test]
fn a_frame_length_above_the_limit_is_refused_and_the_limit_itself_is_not() {
    for (limit, length) in [(FRAME_MAX, 65_564), (16_384, 16_388), (28, 32)] {
        let fault = frame_length(&u32::to_le_bytes(length), limit);
        assert_eq!(fault, Err(Fault::FrameTooLong), "{length}");
        assert_eq!(frame_length(&(limit as u32).to_le_bytes(), limit), Ok(Some(limit)));
    }
}

#[test]
fn frame_lengths_from_two_to_the_power_of_31_on_are_too_long_and_not_negative() {
    for length in [0x7fff_fffc, 0x8000_0000, 0xffff_fffc, 0xffff_ffff] {
        let fault = frame_length(&u32::to_le_bytes(length), FRAME_MAX);
        assert_eq!(fault, Err(Fault::FrameTooLong), "{length}");
    }
}

#[test]
fn a_frame_length_that_is_no_multiple_of_four_is_refused_on_a_stream() {
    for length in [29u32, 30, 31, 65_559] {
        let fault = frame_length(&length.to_le_bytes(), FRAME_MAX);
        assert_eq!(fault, Err(Fault::FrameUnaligned), "{length}");
    }
}

#[test]
fn an_announced_length_with_few_bytes_behind_it_is_waited_for_and_takes_nothing() {
    let mut bytes = (FRAME_MAX as u32).to_le_bytes().to_vec();
    bytes.extend([0; 40]);
    let mut walk = Frames::new(&mut bytes, FRAME_MAX);
    assert_eq!(walk.next_frame(), None);
    assert_eq!((walk.consumed(), walk.fault()), (0, None));
}

#[test]
fn a_bad_length_behind_good_frames_ends_the_walk_at_its_own_offset() {
    let mut bytes = frame(&nla(0, b"good"));
    let good = bytes.len();
    bytes.extend([5, 0, 0, 0, 15, 0]);
    let mut walk = Frames::new(&mut bytes, FRAME_MAX);
    assert_eq!(walk.next_frame().map(|(at, frame)| (at, frame.len())), Some((0, good)));
    assert_eq!(walk.next_frame(), None);
    assert_eq!(walk.fault(), Some(Malformed::new(Fault::FrameTooShort, good)));
    assert_eq!(walk.next_frame(), None);
    assert_eq!(walk.consumed(), good);
}

#[test]
fn an_envelope_whose_length_field_differs_from_the_bytes_at_hand_is_malformed() {
    let mut bytes = frame(&nla(0, b"four"));
    for length in [0u32, 28, 31, 33, 36, 0xffff_ffff] {
        bytes[0..4].copy_from_slice(&length.to_le_bytes());
        let error = Envelope::parse(&bytes).unwrap_err();
        assert_eq!(error, Malformed::new(Fault::LengthMismatch, 0), "{length}");
    }
    assert_eq!(Envelope::parse(&bytes[..23]).unwrap_err(), Malformed::new(Fault::HeaderCut, 23));
}

#[test]
fn a_frame_of_another_type_than_transport_is_malformed() {
    for kind in [0, 1, 14, 16, 0xff0f] {
        let mut bytes = frame(&nla(0, b""));
        bytes[4..6].copy_from_slice(&u16::to_le_bytes(kind));
        let error = Envelope::parse(&bytes).unwrap_err();
        assert_eq!(error, Malformed::new(Fault::NotTransport, 4), "{kind}");
    }
}

#[test]
fn an_inner_length_below_16_is_malformed_and_ends_the_walk() {
    for length in [0u32, 1, 15] {
        let mut bytes = MessageBuilder::new(18, 0).body(b"body").finish();
        let second = bytes.len();
        bytes.extend(MessageBuilder::new(18, 0).finish());
        bytes[second..second + 4].copy_from_slice(&length.to_le_bytes());
        let mut walk = Messages::new(&bytes);
        assert!(walk.next().unwrap().is_ok());
        let error = walk.next().unwrap().unwrap_err();
        assert_eq!(error, Malformed::new(Fault::MessageTooShort, second), "{length}");
        assert!(walk.next().is_none());
    }
}

#[test]
fn an_inner_length_past_the_end_is_malformed_and_ends_the_walk_even_from_two_to_the_power_of_31() {
    for length in [17u32, 20, 0x7fff_ffff, 0x8000_0000, 0xffff_fff0, 0xffff_ffff] {
        let mut bytes = MessageBuilder::new(18, 0).finish();
        bytes[0..4].copy_from_slice(&length.to_le_bytes());
        let mut walk = Messages::new(&bytes);
        let error = walk.next().unwrap().unwrap_err();
        assert_eq!(error, Malformed::new(Fault::MessageCut, 0), "{length}");
        assert!(walk.next().is_none());
    }
}

#[test]
fn fewer_than_16_bytes_behind_the_last_message_are_malformed() {
    let mut bytes = MessageBuilder::new(18, 0).finish();
    bytes.extend([0; 15]);
    let faults: Vec<_> = Messages::new(&bytes).filter_map(Result::err).collect();
    assert_eq!(faults, [Malformed::new(Fault::HeaderCut, 31)]);
}

#[test]
fn the_last_message_may_go_unpadded_and_keeps_its_odd_length() {
    let mut bytes = MessageBuilder::new(18, 0).body(b"odd").finish();
    bytes.push(0);
    bytes.extend(MessageBuilder::new(19, 0).body(b"x").finish());
    let bodies: Vec<_> = Messages::new(&bytes).map(|message| message.unwrap().body()).collect();
    assert_eq!(bodies, [&b"odd"[..], b"x"]);
}

#[test]
fn an_attribute_length_below_4_is_malformed() {
    for length in 0..4 {
        let error = payload_fault(&[length, 0, 0, 0, 8, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(error, Malformed::new(Fault::AttributeTooShort, 24), "{length}");
        let error = Control::parse(&control(&[length, 0, 9, 0])).unwrap_err();
        assert_eq!(error, Malformed::new(Fault::AttributeTooShort, 20), "{length}");
    }
}

#[test]
fn an_attribute_that_reaches_past_the_end_is_malformed_by_one_byte_as_by_all() {
    for length in [9u16, 12, 0x8000, 0xffff] {
        let [low, high] = length.to_le_bytes();
        let error = payload_fault(&[low, high, 0, 0, 1, 2, 3, 4]);
        assert_eq!(error, Malformed::new(Fault::AttributeCut, 24), "{length}");
    }
    assert_eq!(
        Envelope::parse(&frame(&[8, 0, 0, 0, 1, 2, 3, 4])).unwrap().payload(),
        Ok(&[1, 2, 3, 4][..])
    );
}

#[test]
fn bytes_behind_the_last_attribute_are_malformed() {
    for count in 1..4 {
        let mut attributes = nla(0, b"four");
        attributes.resize(8 + count, 0);
        assert_eq!(payload_fault(&attributes), Malformed::new(Fault::TrailingBytes, 32), "{count}");
        let mut attributes = nla(ADDR, b"four");
        attributes.resize(8 + count, 0);
        let error = Control::parse(&control(&attributes)).unwrap_err();
        assert_eq!(error, Malformed::new(Fault::TrailingBytes, 28), "{count}");
    }
}

#[test]
fn a_fault_behind_the_payload_spoils_the_envelope_all_the_same() {
    let mut attributes = nla(0, b"four");
    attributes.extend([0; 4]);
    assert_eq!(payload_fault(&attributes), Malformed::new(Fault::AttributeTooShort, 32));
}

#[test]
fn the_last_attribute_may_go_unpadded_and_nothing_past_the_end_is_read() {
    for length in 1..4 {
        let mut attributes = nla(0, &[7; 3][..length]);
        attributes.truncate(4 + length);
        let bytes = frame(&attributes);
        assert_eq!(Envelope::parse(&bytes).unwrap().payload().unwrap(), &[7; 3][..length]);
        let mut attributes = nla(HOST, &b"abc"[..length]);
        attributes.truncate(4 + length);
        let bytes = control(&attributes);
        assert_eq!(Control::parse(&bytes).unwrap().host, Some(&"abc"[..length]));
    }
}

#[test]
fn a_walk_over_attributes_ends_after_its_first_fault() {
    let mut bytes = nla(1, b"good");
    bytes.extend([2, 0, 1, 0]);
    bytes.extend(nla(2, b"lost"));
    let mut walk = Attributes::new(&bytes, 100);
    assert_eq!(walk.next(), Some(Ok(Attribute { kind: 1, payload: b"good" })));
    assert_eq!(walk.next(), Some(Err(Malformed::new(Fault::AttributeTooShort, 108))));
    assert_eq!(walk.next(), None);
}

#[test]
fn a_walk_that_ended_at_an_unpadded_attribute_stands_at_the_end_and_not_past_it() {
    let mut walk = Attributes::new(&[5, 0, 1, 0, 7], 20);
    assert_eq!(walk.next(), Some(Ok(Attribute { kind: 1, payload: &[7] })));
    assert_eq!((walk.offset(), walk.next()), (25, None));
}

#[test]
fn unknown_attributes_of_an_envelope_are_skipped_and_the_first_cdata_wins() {
    let mut attributes = nla(77, b"unknown");
    attributes.extend(nla(0x8000, b"nested, so no cdata"));
    attributes.extend(nla(0, b"first"));
    attributes.extend(nla(0, b"second"));
    let bytes = frame(&attributes);
    let envelope = Envelope::parse(&bytes).unwrap();
    assert_eq!(envelope.payload(), Ok(&b"first"[..]));
    assert_eq!(envelope.attributes().count(), 4);
}

#[test]
fn an_envelope_without_cdata_has_no_payload() {
    let none = Malformed::new(Fault::NoPayload, 24);
    assert_eq!(payload_fault(&[]), none);
    assert_eq!(payload_fault(&nla(1, b"other")), none);
}

#[test]
fn unknown_attributes_in_control_are_refused_with_their_offset() {
    for kind in [0, 1, 7, 17, 63, 120, 128, 0x3fff] {
        let mut attributes = nla(ADDR, &[1, 0, 0, 0]);
        attributes.extend(nla(kind, b"?"));
        let error = Control::parse(&control(&attributes)).unwrap_err();
        assert_eq!(error, Malformed::new(Fault::AttributeUnknown, 28), "{kind}");
    }
}

#[test]
fn nested_and_byte_order_bits_in_control_are_refused() {
    for bit in [0x8000, 0x4000, 0xc000] {
        let error = with_attribute(ADDR | bit, &[0; 4]).unwrap_err();
        assert_eq!(error, Malformed::new(Fault::AttributeFlags, 20));
    }
}

#[test]
fn every_number_in_control_has_exactly_four_bytes() {
    use ControlAttribute::{Addr, Cid, Errno, FrameMax, Mode, Port, Version};
    for kind in [Addr, Cid, Errno, Version, FrameMax, Port, Mode] {
        for length in [0, 1, 3, 5, 8] {
            let error = with_attribute(kind as u16, &[0; 8][..length]).unwrap_err();
            assert_eq!(error, Malformed::new(Fault::ValueLength, 24), "{kind:?} {length}");
        }
        assert_eq!(with_attribute(kind as u16, &[0; 4]), Ok(()));
    }
}

#[test]
fn a_key_has_exactly_twelve_bytes() {
    for length in [0, 4, 11, 13, 16] {
        let error = with_attribute(KEY, &[0; 16][..length]).unwrap_err();
        assert_eq!(error, Malformed::new(Fault::ValueLength, 24), "{length}");
    }
    assert_eq!(with_attribute(KEY, &[0; 12]), Ok(()));
}

#[test]
fn a_string_may_lack_its_nul_or_be_empty() {
    let read = |payload: &[u8]| {
        Control::parse(&control(&nla(HOST, payload))).unwrap().host.map(str::to_owned)
    };
    assert_eq!(read(b"route\0").as_deref(), Some("route"));
    assert_eq!(read(b"route").as_deref(), Some("route"));
    assert_eq!(read(b"\0").as_deref(), Some(""));
    assert_eq!(read(b"").as_deref(), Some(""));
}

#[test]
fn a_nul_before_the_end_of_a_string_or_of_the_secret_is_refused() {
    use ControlAttribute::{Error, Host, Secret, SslCa, SslCert, SslKey};
    for kind in [Secret, Host, SslKey, SslCert, SslCa, Error] {
        for payload in [&b"a\0b"[..], b"a\0\0", b"\0a", b"\0\0"] {
            let error = with_attribute(kind as u16, payload).unwrap_err();
            assert_eq!(error, Malformed::new(Fault::StringNul, 24), "{kind:?} {payload:?}");
        }
    }
}

#[test]
fn a_string_that_is_not_utf_8_is_refused_but_a_secret_need_not_be_text() {
    let error = with_attribute(HOST, b"\xff\0").unwrap_err();
    assert_eq!(error, Malformed::new(Fault::StringUtf8, 24));
    assert_eq!(with_attribute(ControlAttribute::Secret as u16, b"\xff\0"), Ok(()));
}

#[test]
fn an_attribute_that_stands_twice_in_control_is_refused_and_only_key_and_entry_may() {
    for &kind in ControlAttribute::ALL {
        let value = match kind.value_type() {
            ValueType::Key => &[0; 12][..],
            ValueType::U64 => &[0; 8],
            ValueType::Entry => &[],
            _ => &[0x31; 4],
        };
        let mut attributes = nla(kind as u16, value);
        let second = 20 + attributes.len();
        attributes.extend(nla(kind as u16, value));
        let result = Control::parse(&control(&attributes))
            .map(|control| control.keys().count() + control.entries().count());
        match kind {
            ControlAttribute::Key | ControlAttribute::Entry => assert_eq!(result, Ok(2)),
            _ => assert_eq!(result, Err(Malformed::new(Fault::AttributeTwice, second)), "{kind:?}"),
        }
    }
}

#[test]
fn what_is_wrong_in_an_entry_is_found_and_an_entry_holds_no_entry() {
    let entry = ControlAttribute::Entry as u16;
    let refused = |inside: &[u8]| with_attribute(entry, inside).unwrap_err();
    for unknown in [nla(63, &[0; 4]), nla(entry, &[])] {
        assert_eq!(refused(&unknown), Malformed::new(Fault::AttributeUnknown, 24));
    }
    let short = refused(&nla(ControlAttribute::Value as u16, &[0; 4]));
    assert_eq!(short, Malformed::new(Fault::ValueLength, 28));
    assert_eq!(refused(&[8, 0, 71, 0]).offset, 24);
}

#[test]
fn keys_keep_their_order_and_other_attributes_between_them_do_not_hide_any() {
    let key = |offset: u32| Key { offset, key: 1, mask: u32::MAX };
    let mut frame = Vec::new();
    ControlBuilder::new(&mut frame, EnvelopeHead::default(), Command::Subscribe)
        .key(key(4))
        .and_then(|builder| builder.u32(ControlAttribute::Port, 9))
        .and_then(|builder| builder.key(key(8)))
        .unwrap()
        .finish();
    let control = Control::parse(Envelope::parse(&frame).unwrap().payload().unwrap()).unwrap();
    assert_eq!(control.keys().collect::<Vec<_>>(), [key(4), key(8)]);
    assert_eq!(control.port, Some(9));
}

#[test]
fn a_key_whose_offset_reaches_past_the_end_matches_nothing_unless_its_mask_is_zero() {
    let message = [1, 2, 3, 4, 5, 6, 7];
    let key = |offset, key, mask| Key { offset, key, mask };
    assert!(key(3, 0x0706_0504, u32::MAX).matches(&message));
    assert!(key(3, 0xffff_0504, 0xffff).matches(&message));
    assert!(!key(3, 0xffff_0505, 0xffff).matches(&message));
    for offset in [4, 7, 8, u32::MAX] {
        assert!(!key(offset, 0, u32::MAX).matches(&message), "{offset}");
        assert!(key(offset, 0, 0).matches(&message), "{offset}");
    }
    assert!(!key(0, 0, 1).matches(&[]));
}

#[test]
fn an_unknown_control_version_is_refused() {
    for version in [1, 2, 255] {
        let mut bytes = control(&[]);
        bytes[17] = version;
        let error = Control::parse(&bytes).unwrap_err();
        assert_eq!(error, Malformed::new(Fault::VersionUnknown, 17));
    }
}

#[test]
fn a_reserved_field_that_is_not_zero_is_refused() {
    for at in [18, 19] {
        let mut bytes = control(&[]);
        bytes[at] = 1;
        let error = Control::parse(&bytes).unwrap_err();
        assert_eq!(error, Malformed::new(Fault::ReservedNotZero, 18));
    }
}

#[test]
fn a_control_message_of_another_inner_type_is_refused() {
    for kind in [0u8, 1, 13, 15, 16] {
        let mut bytes = control(&[]);
        bytes[4] = kind;
        assert_eq!(Control::parse(&bytes).unwrap_err(), Malformed::new(Fault::NotControl, 4));
    }
}

#[test]
fn a_control_message_must_fill_its_payload_and_hold_its_head() {
    let whole = control(&nla(ADDR, &[0; 4]));
    for length in [0u32, 15, 16, 20, 27, 29, 32, u32::MAX] {
        let mut bytes = whole.clone();
        bytes[0..4].copy_from_slice(&length.to_le_bytes());
        let error = Control::parse(&bytes).unwrap_err();
        assert_eq!(error, Malformed::new(Fault::LengthMismatch, 0), "{length}");
    }
    for end in 0..20 {
        let error = Control::parse(&whole[..end]).unwrap_err();
        assert_eq!(error, Malformed::new(Fault::HeaderCut, end));
    }
}

#[test]
fn an_unknown_command_is_read_and_left_for_the_broker_to_refuse() {
    for number in [17, 31, 37, 255] {
        let mut bytes = control(&[]);
        bytes[16] = number;
        let control = Control::parse(&bytes).unwrap();
        assert_eq!((control.number, control.command()), (number, None));
    }
}

#[test]
fn a_payload_above_65531_bytes_is_too_big_and_leaves_the_buffer_untouched() {
    let head = EnvelopeHead::default();
    let mut out = b"before".to_vec();
    let too_big = TooBig { length: PAYLOAD_MAX + 1, max: PAYLOAD_MAX };
    assert_eq!(head.emit(&vec![0; PAYLOAD_MAX + 1], &mut out), Err(too_big));
    assert_eq!(out, b"before");
    assert_eq!(head.before_payload(PAYLOAD_MAX + 1), Err(too_big));
    assert_eq!(head.emit(&vec![0; PAYLOAD_MAX], &mut out), Ok(()));
    assert_eq!(out.len(), 6 + FRAME_MAX);
    let envelope = Envelope::parse(&out[6..]).unwrap();
    assert_eq!(envelope.payload().unwrap().len(), PAYLOAD_MAX);
}

#[test]
fn an_attribute_above_65531_bytes_is_too_big() {
    let builder = MessageBuilder::new(18, 0);
    let too_big = TooBig { length: PAYLOAD_MAX + 1, max: PAYLOAD_MAX };
    let result = builder.clone().attribute(1, &vec![0; PAYLOAD_MAX + 1]);
    assert_eq!(result.unwrap_err(), too_big);
    let bytes = builder.attribute(1, &vec![7; PAYLOAD_MAX]).unwrap().finish();
    let attribute = Attributes::new(&bytes[16..], 16).next().unwrap().unwrap();
    assert_eq!(attribute.payload.len(), PAYLOAD_MAX);
}

#[test]
fn a_control_message_that_outgrows_one_cdata_is_too_big_and_leaves_the_buffer_untouched() {
    // 20 bytes of head and 4 of the attribute's header leave this much, of which one byte is the NUL.
    let most = PAYLOAD_MAX - 20 - 4 - 3;
    let mut out = b"before".to_vec();
    let build = |out: &mut Vec<u8>, length: usize| {
        ControlBuilder::new(out, EnvelopeHead::default(), Command::Connect)
            .string(ControlAttribute::Host, &"h".repeat(length))
            .map(ControlBuilder::finish)
    };
    assert!(build(&mut out, most).is_err());
    assert_eq!(out, b"before");
    assert_eq!(build(&mut out, most - 1), Ok(()));
    let control = Control::parse(Envelope::parse(&out[6..]).unwrap().payload().unwrap()).unwrap();
    assert_eq!(control.host.map(str::len), Some(most - 1));
}

#[test]
fn a_key_or_a_number_that_no_longer_fits_is_too_big_and_leaves_the_buffer_untouched() {
    let full = "h".repeat(PAYLOAD_MAX - 20 - 4 - 4);
    let mut out = Vec::new();
    let result = ControlBuilder::new(&mut out, EnvelopeHead::default(), Command::Subscribe)
        .string(ControlAttribute::Host, &full)
        .unwrap()
        .key(Key::default());
    assert!(result.is_err());
    assert_eq!(out, b"");
    let result = ControlBuilder::new(&mut out, EnvelopeHead::default(), Command::Subscribe)
        .string(ControlAttribute::Host, &full)
        .unwrap()
        .u32(ControlAttribute::Port, 1);
    assert!(result.is_err());
    assert_eq!(out, b"");
}

#[test]
fn an_error_message_of_ours_echoes_the_header_of_the_request_and_never_its_body() {
    let request = Header { length: 52, kind: 14, flags: 0, sequence: 7, pid: 9 };
    let bytes = ErrorMessage::emit(-1, &request, "");
    assert_eq!(bytes.len(), 36);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.header.flags, nlm::CAPPED);
    assert_eq!((message.header.sequence, message.header.pid), (7, 9));
    let error = ErrorMessage::parse(&message).unwrap();
    assert_eq!((error.code, error.request, error.text), (-1, request, None));
}

#[test]
fn an_error_text_of_any_length_is_cut_between_characters_and_fits_one_frame() {
    for text in ["no".to_owned(), "é".repeat(70_000), format!("x{}", "é".repeat(70_000))] {
        let bytes = ErrorMessage::emit(-22, &Header::default(), &text);
        let message = Message::parse(&bytes).unwrap();
        let read = ErrorMessage::parse(&message).unwrap().text.unwrap();
        assert!(text.starts_with(read) && read.len() >= text.len().min(1023), "{}", read.len());
        assert_eq!(EnvelopeHead::default().emit(&bytes, &mut Vec::new()), Ok(()));
    }
}

#[test]
fn the_text_of_an_error_stands_behind_the_request_that_the_kernel_echoes() {
    let request = MessageBuilder::new(16, nlm::REQUEST).body(b"an echoed body").finish();
    let text = |flags| {
        let echoed = if flags & nlm::CAPPED == 0 { request.len() } else { 16 };
        let bytes = MessageBuilder::new(nlm::ERROR, flags | nlm::ACK_TLVS)
            .body(&(-19i32).to_le_bytes())
            .body(&request[..echoed])
            .attribute(1, b"no device\0")
            .and_then(|builder| builder.attribute(2, &[24, 0, 0, 0]))
            .unwrap()
            .finish();
        let error = ErrorMessage::parse(&Message::parse(&bytes).unwrap()).unwrap();
        (error.code, error.text.map(str::to_owned), error.offset)
    };
    let expected = (-19, Some("no device".to_owned()), Some(24));
    assert_eq!(text(0), expected);
    assert_eq!(text(nlm::CAPPED), expected);
}

#[test]
fn an_error_whose_echoed_length_lies_is_read_for_its_code() {
    for length in [0, 15, 17, 1000, u32::MAX] {
        let request = Header { length, ..Header::default() };
        let bytes = MessageBuilder::new(nlm::ERROR, nlm::ACK_TLVS)
            .body(&(-13i32).to_le_bytes())
            .body(&request.to_bytes())
            .attribute(1, b"text\0")
            .unwrap()
            .finish();
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(ErrorMessage::parse(&message).unwrap().code, -13, "{length}");
    }
}

#[test]
fn an_error_too_short_for_code_and_header_is_malformed_and_a_done_without_code_is_a_success() {
    for length in [0, 3, 4, 19] {
        let bytes = MessageBuilder::new(nlm::ERROR, 0).body(&[0xff; 19][..length]).finish();
        let error = ErrorMessage::parse(&Message::parse(&bytes).unwrap()).unwrap_err();
        assert_eq!(error, Malformed::new(Fault::HeaderCut, 16 + length));
    }
    let done = MessageBuilder::new(nlm::DONE, nlm::MULTI).finish();
    assert_eq!(ErrorMessage::parse(&Message::parse(&done).unwrap()).unwrap().code, 0);
    let failed = MessageBuilder::new(nlm::DONE, 0).body(&(-4i32).to_le_bytes()).finish();
    assert_eq!(ErrorMessage::parse(&Message::parse(&failed).unwrap()).unwrap().code, -4);
}

#[test]
fn reading_and_rewriting_the_route_of_fewer_than_24_bytes_does_nothing() {
    for length in 0..24 {
        let mut bytes = vec![0xaa; length];
        assert_eq!(EnvelopeHead::read(&bytes), None);
        EnvelopeHead::rewrite(&mut bytes, 1, 2);
        assert_eq!(bytes, vec![0xaa; length]);
    }
}

#[test]
fn flags_that_are_not_known_survive_reading_and_writing() {
    let head = EnvelopeHead { flags: 0xffff, sequence: 1, pid: 2, dst: 3, src: 4 };
    let mut bytes = Vec::new();
    head.emit(b"", &mut bytes).unwrap();
    assert_eq!(Envelope::parse(&bytes).unwrap().head, head);
    assert_eq!(head.flags & flag::HOPS_MASK, 0xff00);
}
