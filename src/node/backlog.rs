//! Bytes that wait, in pieces of one length, so that a long backlog is neither moved when it grows nor given
//! back to the system when it is gone.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::outbox::frame_lengths;
use super::spare::{PIECE_BYTES, Spare};

/// How many pieces one write takes.
pub(super) const SLICES_MAX: usize = 8;

/// Invariant: no piece is empty, and `at` is within the first one.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    pieces: VecDeque<Vec<u8>>,
    /// What of the first piece is gone already.
    at: usize,
    length: usize,
}

impl Backlog {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Puts bytes at the end. With `whole`, they are frames, and none is spread over two pieces.
    pub(super) fn append(&mut self, mut bytes: &[u8], whole: bool, spare: &Spare) {
        self.length += bytes.len();
        while !bytes.is_empty() {
            let room = self.pieces.back().map_or(0, |piece| piece.capacity() - piece.len());
            let mut fits = if whole { whole_within(bytes, room) } else { room.min(bytes.len()) };
            if fits == 0 {
                let mut piece = spare.take();
                if whole && whole_within(bytes, piece.capacity()) == 0 {
                    let first = frame_lengths(bytes).next().unwrap_or(bytes.len());
                    piece.reserve(first.min(bytes.len()));
                }
                let room = piece.capacity();
                fits = if whole { whole_within(bytes, room) } else { room.min(bytes.len()) };
                // bytes that are no frames go as they are
                fits = if fits == 0 { bytes.len() } else { fits };
                self.pieces.push_back(piece);
            }
            let (now, later) = bytes.split_at(fits);
            if let Some(piece) = self.pieces.back_mut() {
                piece.extend_from_slice(now);
            }
            bytes = later;
        }
    }

    /// What stands next to each other at the beginning.
    pub(super) fn front(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| &piece[self.at..])
    }

    /// The first pieces, for one write.
    pub(super) fn slices<'b>(&'b self, slices: &mut [IoSlice<'b>; SLICES_MAX]) -> usize {
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(if count == 0 { &piece[self.at..] } else { piece });
            count += 1;
        }
        count
    }

    /// Takes bytes from the beginning.
    pub(super) fn consume(&mut self, mut count: usize, spare: &Spare) {
        self.length -= count;
        while count > 0 {
            let Some(piece) = self.pieces.front() else { return };
            let rest = piece.len() - self.at;
            if count < rest {
                self.at += count;
                return;
            }
            count -= rest;
            self.at = 0;
            if let Some(piece) = self.pieces.pop_front() {
                spare.put(piece);
            }
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self, spare: &Spare) {
        while let Some(piece) = self.pieces.pop_front() {
            spare.put(piece);
        }
        *self = Self::default();
    }
}

/// How many bytes of `bytes` are whole frames that fit `room`.
fn whole_within(bytes: &[u8], room: usize) -> usize {
    if bytes.len() <= room {
        return bytes.len();
    }
    let mut end = 0;
    for length in frame_lengths(bytes) {
        if end + length > room {
            break;
        }
        end += length;
    }
    end
}

const _: () = assert!(PIECE_BYTES >= crate::wire::LEGACY_FRAME_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::EnvelopeHead;

    fn frames(lengths: &[usize]) -> Vec<u8> {
        let mut out = Vec::new();
        for length in lengths {
            EnvelopeHead::default().emit(&vec![7; *length], &mut out).unwrap();
        }
        out
    }

    fn drain(backlog: &mut Backlog, by: usize, spare: &Spare) -> Vec<u8> {
        let mut all = Vec::new();
        while !backlog.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = backlog.slices(&mut slices);
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            let taken = by.min(bytes.len());
            all.extend_from_slice(&bytes[..taken]);
            backlog.consume(taken, spare);
        }
        all
    }

    #[test]
    fn what_is_put_in_comes_out_in_whatever_steps() {
        let spare = Spare::new(4);
        let bytes: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        for by in [1_000, PIECE_BYTES, 60_001, 300_000] {
            let mut backlog = Backlog::default();
            for run in bytes.chunks(7_001) {
                backlog.append(run, false, &spare);
            }
            assert_eq!(backlog.len(), bytes.len());
            assert_eq!(drain(&mut backlog, by, &spare), bytes, "{by}");
        }
    }

    #[test]
    fn frames_that_are_to_stay_whole_do() {
        let spare = Spare::new(4);
        let mut backlog = Backlog::default();
        let run = frames(&[10_000, 12_000, 11_000, 16_000, 5, 60_000, 7]);
        backlog.append(&run, true, &spare);
        let mut left = run.as_slice();
        while !backlog.is_empty() {
            let length = frame_lengths(left).next().unwrap();
            assert_eq!(&backlog.front()[..length], &left[..length]);
            backlog.consume(length, &spare);
            left = &left[length..];
        }
        assert!(left.is_empty());
    }
}
