//! Room for what waits at sockets, which outboxes share: an idle one has none.

use std::sync::Mutex;

use super::lock;

/// The longest piece of room that is kept, in bytes.
const SPARE_BYTES_MAX: usize = 256 * 1024;

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
        lock(&self.pieces).pop().unwrap_or_default()
    }

    pub(super) fn put(&self, mut piece: Vec<u8>) {
        if piece.capacity() == 0 || piece.capacity() > SPARE_BYTES_MAX {
            return;
        }
        piece.clear();
        let mut pieces = lock(&self.pieces);
        if pieces.len() < self.spare_max {
            pieces.push(piece);
        }
    }
}
