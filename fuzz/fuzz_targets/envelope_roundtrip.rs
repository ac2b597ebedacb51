//! What parses is written again to the same meaning, and to the same bytes where there is one CDATA.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nlbus::wire::{CDATA, Envelope, EnvelopeHead, ErrorMessage, Messages};

fuzz_target!(|data: &[u8]| {
    parsed(data);
    made(data);
});

fn parsed(data: &[u8]) {
    let Ok(envelope) = Envelope::parse(data) else { return };
    assert_eq!(EnvelopeHead::read(data).map(|(_, head)| head), Some(envelope.head));
    let Ok(payload) = envelope.payload() else { return };
    messages(payload);
    let mut again = Vec::new();
    envelope.head.emit(payload, &mut again).expect("it came out of one attribute");
    let second = Envelope::parse(&again).expect("what was written parses");
    assert_eq!((second.head, second.payload()), (envelope.head, Ok(payload)));
    let canonical = data.len() == again.len()
        && envelope.attributes().count() == 1
        && data[28 + payload.len()..].iter().all(|&pad| pad == 0);
    assert!(!canonical || again == data);
    let attributes = envelope.attributes().map(|attribute| attribute.expect("payload checked it"));
    assert_eq!(attributes.filter(|a| a.kind == CDATA).map(|a| a.payload).next(), Some(payload));
}

/// Takes the input for values instead of a frame.
fn made(data: &[u8]) {
    let Some((values, payload)) = data.split_first_chunk::<18>() else { return };
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| values[at + i]));
    let flags = u16::from_le_bytes([values[0], values[1]]);
    let head =
        EnvelopeHead { flags, sequence: word(2), pid: word(6), dst: word(10), src: word(14) };
    let mut frame = Vec::new();
    if head.emit(payload, &mut frame).is_ok() {
        let envelope = Envelope::parse(&frame).expect("what was written parses");
        assert_eq!((envelope.head, envelope.payload()), (head, Ok(payload)));
    }
}

fn messages(payload: &[u8]) {
    let mut walk = Messages::new(payload);
    let mut before = 0;
    while let Some(message) = walk.next() {
        assert!(walk.offset() > before);
        before = walk.offset();
        if let Ok(message) = message {
            assert_eq!(message.bytes().len(), message.header.length as usize);
            let _ = ErrorMessage::parse(&message);
        }
    }
}
