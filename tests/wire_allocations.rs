//! Reading allocates nothing, whatever is read.

mod support_allocations;

use nlbus::wire::{
    Attributes, Command, Control, ControlAttribute, ControlBuilder, Envelope, EnvelopeHead,
    ErrorMessage, FRAME_MAX, Frames, Header, Key, Message, MessageBuilder, Messages, nlm,
};
use std::hint::black_box;

use support_allocations::OWN;

/// How many allocations `work` makes.
fn allocations(work: impl FnOnce()) -> usize {
    let before = OWN.get();
    work();
    OWN.get() - before
}

fn vectors() -> Vec<Vec<u8>> {
    let text = include_str!("../proto-spec/vectors/original.json");
    let all: Vec<serde_json::Value> = serde_json::from_str(text).expect("the vectors are JSON");
    all.iter()
        .map(|vector| {
            let hex = vector["hex"].as_str().expect("every vector has bytes");
            let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex digits");
            (0..hex.len()).step_by(2).map(byte).collect()
        })
        .collect()
}

/// Reads `bytes` as each thing that they could be.
fn read_everything(bytes: &mut [u8]) {
    black_box(Header::parse(bytes).ok());
    black_box(EnvelopeHead::read(bytes));
    black_box(Control::parse(bytes).ok());
    for attribute in Attributes::new(bytes, 0) {
        black_box(attribute.ok());
    }
    read_messages(bytes);
    if let Ok(envelope) = Envelope::parse(bytes) {
        for attribute in envelope.attributes() {
            black_box(attribute.ok());
        }
        if let Ok(payload) = envelope.payload() {
            read_messages(payload);
            if let Ok(control) = Control::parse(payload) {
                assert!(
                    control.keys().filter(|key| key.matches(payload)).count() <= payload.len() / 16
                );
                black_box((control.command(), control.host, control.secret));
            }
        }
    }
    let mut frames = Frames::new(bytes, FRAME_MAX);
    while let Some((_, frame)) = frames.next_frame() {
        EnvelopeHead::rewrite(frame, 1, 2);
    }
    black_box(frames.fault());
}

fn read_messages(payload: &[u8]) {
    for message in Messages::new(payload).map_while(Result::ok) {
        black_box(ErrorMessage::parse(&message).ok());
        black_box(message.body());
    }
}

#[test]
fn the_counter_sees_an_allocation() {
    assert_eq!(allocations(|| drop(black_box(Box::new(1)))), 1);
    assert_eq!(allocations(|| drop(black_box(vec![0u8; 64]))), 1);
}

#[test]
fn reading_every_vector_as_everything_allocates_nothing() {
    let mut vectors = vectors();
    let made = allocations(|| vectors.iter_mut().for_each(|bytes| read_everything(bytes)));
    assert_eq!(made, 0);
}

#[test]
fn refusing_every_beginning_of_every_short_vector_allocates_nothing() {
    let mut vectors = vectors();
    vectors.retain(|bytes| bytes.len() < 200);
    let made = allocations(|| {
        for bytes in &mut vectors {
            for end in 0..bytes.len() {
                read_everything(&mut bytes[..end]);
            }
        }
    });
    assert_eq!(made, 0);
}

#[test]
fn reading_a_control_message_with_every_attribute_allocates_nothing() {
    let mut frame = Vec::new();
    let mut builder = ControlBuilder::new(&mut frame, EnvelopeHead::default(), Command::Connect)
        .bytes(ControlAttribute::Secret, b"secret")
        .unwrap();
    for kind in [ControlAttribute::Host, ControlAttribute::SslKey, ControlAttribute::Error] {
        builder = builder.string(kind, "tcp://localhost:9824").unwrap();
    }
    for kind in [ControlAttribute::Addr, ControlAttribute::Cid, ControlAttribute::Port] {
        builder = builder.u32(kind, 7).unwrap();
    }
    builder.key(Key::default()).unwrap().finish();
    assert_eq!(allocations(|| read_everything(&mut frame)), 0);
}

#[test]
fn reading_an_error_message_with_text_and_offset_allocates_nothing() {
    let mut bytes = MessageBuilder::new(nlm::ERROR, nlm::CAPPED | nlm::ACK_TLVS)
        .body(&[0; 20])
        .attribute(1, b"no such device\0")
        .and_then(|builder| builder.attribute(2, &[4, 0, 0, 0]))
        .unwrap()
        .finish();
    let error = ErrorMessage::parse(&Message::parse(&bytes).unwrap()).unwrap();
    assert_eq!((error.text, error.offset), (Some("no such device"), Some(4)));
    assert_eq!(allocations(|| read_everything(&mut bytes)), 0);
}

#[test]
fn writing_into_a_buffer_with_room_allocates_nothing() {
    let head = EnvelopeHead::default();
    let mut out = Vec::with_capacity(4096);
    let made = allocations(|| {
        head.emit(&[0; 128], &mut out).unwrap();
        ControlBuilder::new(&mut out, head, Command::Subscribe)
            .key(Key::default())
            .and_then(|builder| builder.string(ControlAttribute::Host, "route"))
            .and_then(|builder| builder.u32(ControlAttribute::Port, 1))
            .unwrap()
            .finish();
    });
    assert_eq!(made, 0);
}
