//! Room for what waits at sockets, which outboxes share: an idle one has none.

use std::sync::Mutex;

use super::lock;

/// The length of a piece of room in bytes.
pub(super) const PIECE_BYTES: usize = 32 * 1024;

/// Keeps at most `spare_max` pieces that nobody uses.
#[derive(Debug)]
pub(super) struct Spare {
    pieces: Mutex<Vec<Vec<u8>>>,
    spare_max: usize,
}

impl Spare {
    pub(super) fn new(spare_max: usize) -> Self {
        Self { pieces: Mutex::default(), spare_max }
    }

    /// An empty piece.
    pub(super) fn take(&self) -> Vec<u8> {
        lock(&self.pieces).pop().unwrap_or_else(|| Vec::with_capacity(PIECE_BYTES))
    }

    pub(super) fn put(&self, mut piece: Vec<u8>) {
        if piece.capacity() != PIECE_BYTES {
            return;
        }
        piece.clear();
        let mut pieces = lock(&self.pieces);
        if pieces.len() < self.spare_max {
            pieces.push(piece);
        }
    }
}
