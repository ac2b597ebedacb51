//! A stream in pieces, walked in place, against a reader that copies one frame at a time.
//!
//! Input: a byte that selects the limit, a byte that is the length of the pieces, the stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nlbus::wire::{EnvelopeHead, FRAME_MAX, Frames, LEGACY_FRAME_MAX};

fuzz_target!(|data: &[u8]| {
    let [limit, piece, stream @ ..] = data else { return };
    let frame_max = [28, 64, LEGACY_FRAME_MAX, FRAME_MAX][usize::from(*limit) % 4];
    let (frames, rest) = naive(stream, frame_max);
    let mut buffer = Vec::new();
    let mut seen = 0;
    for chunk in stream.chunks(usize::from(*piece).max(1)) {
        buffer.extend_from_slice(chunk);
        let mut walk = Frames::new(&mut buffer, frame_max);
        while let Some((_, frame)) = walk.next_frame() {
            assert_eq!(frame, frames[seen]);
            assert!(EnvelopeHead::read(frame).is_some());
            EnvelopeHead::rewrite(frame, 1, 2);
            seen += 1;
        }
        let (consumed, fault) = (walk.consumed(), walk.fault());
        if let Some(fault) = fault {
            assert_eq!((fault.offset, rest), (consumed, None));
            assert_eq!(seen, frames.len());
            return;
        }
        buffer.drain(..consumed);
    }
    assert_eq!(seen, frames.len());
    assert_eq!(Some(buffer.as_slice()), rest);
});

/// The whole frames and the beginning of the next one; no beginning if the stream is lost.
fn naive(mut bytes: &[u8], frame_max: usize) -> (Vec<&[u8]>, Option<&[u8]>) {
    let mut frames = Vec::new();
    while let [a, b, c, d, ..] = *bytes {
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if !(28..=frame_max).contains(&length) || length % 4 != 0 {
            return (frames, None);
        }
        if length > bytes.len() {
            break;
        }
        let (frame, rest) = bytes.split_at(length);
        frames.push(frame);
        bytes = rest;
    }
    (frames, Some(bytes))
}
