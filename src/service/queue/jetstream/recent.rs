//! Where the last messages went that came through this broker, so that they can be taken back.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::store::SendId;

/// Messages that are remembered.
const RECENT_MAX: usize = 65_536;

#[derive(Default)]
pub(super) struct Recent {
    places: HashMap<SendId, (Arc<str>, u64)>,
    order: VecDeque<SendId>,
}

impl Recent {
    pub(super) fn insert(&mut self, send_id: SendId, queue: &Arc<str>, id: u64) {
        if self.places.insert(send_id, (Arc::clone(queue), id)).is_some() {
            return;
        }
        self.order.push_back(send_id);
        if self.order.len() > RECENT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.places.remove(&oldest);
        }
    }

    /// Its id, if it went to this queue.
    pub(super) fn find(&self, send_id: SendId, queue: &str) -> Option<u64> {
        self.places.get(&send_id).filter(|(name, _)| **name == *queue).map(|(_, id)| *id)
    }
}
