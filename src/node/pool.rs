//! Desks that links share: a link has one only while it has bytes to look at.

use std::sync::Mutex;

use super::lock;
use super::route::Router;

/// Length of a read buffer in bytes: a frame of the longest kind and as much again.
pub(crate) const BUFFER_BYTES: usize = 128 * 1024;

/// What it takes to read and route.
pub(super) struct Desk {
    pub(super) buffer: Box<[u8]>,
    pub(super) router: Router,
}

/// Keeps at most `spare_max` desks that nobody uses.
pub(super) struct DeskPool {
    #[allow(clippy::vec_box, reason = "a desk changes hands with every read")]
    spare: Mutex<Vec<Box<Desk>>>,
    spare_max: usize,
}

impl DeskPool {
    pub(super) fn new(spare_max: usize) -> Self {
        Self { spare: Mutex::default(), spare_max }
    }

    pub(super) fn take(&self) -> Box<Desk> {
        let spare = lock(&self.spare).pop();
        spare.unwrap_or_else(|| {
            let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
            Box::new(Desk { buffer, router: Router::default() })
        })
    }

    pub(super) fn put(&self, mut desk: Box<Desk>) {
        desk.router.clear();
        let mut spare = lock(&self.spare);
        if spare.len() < self.spare_max {
            spare.push(desk);
        }
    }
}
