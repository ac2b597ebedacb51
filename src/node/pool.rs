//! Read buffers that links share: a link holds one only while it has bytes to look at.

use std::sync::Mutex;

use super::lock;

/// Length of a read buffer in bytes: a frame of the longest kind and as much again.
pub(crate) const BUFFER_BYTES: usize = 128 * 1024;

/// Keeps at most `spare_max` buffers that nobody uses.
#[derive(Debug)]
pub(crate) struct BufferPool {
    spare: Mutex<Vec<Box<[u8]>>>,
    spare_max: usize,
}

impl BufferPool {
    pub(crate) fn new(spare_max: usize) -> Self {
        Self { spare: Mutex::default(), spare_max }
    }

    pub(crate) fn take(&self) -> Box<[u8]> {
        lock(&self.spare).pop().unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
    }

    pub(crate) fn put(&self, buffer: Box<[u8]>) {
        let mut spare = lock(&self.spare);
        if spare.len() < self.spare_max {
            spare.push(buffer);
        }
    }
}
