//! What the tasks of the queues tell the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::super::machine::{Answer, Refusal};
use super::cluster::Opened;
use super::pull::Pulled;
use crate::store::SendId;

/// Counts as under way until it is dropped.
#[derive(Debug)]
pub(super) struct Under(Arc<AtomicUsize>);

impl Under {
    pub(super) fn way(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Under {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Something that has ended or come. What was under way is so until the engine has taken the event in.
#[derive(Debug)]
pub(super) enum Event {
    /// A command is through.
    Answered { token: u64, answer: Answer, _under: Option<Under> },
    /// A queue is there.
    Created { token: u64, session: u32, opened: Arc<Opened>, new: bool, _under: Option<Under> },
    /// A queue is gone, for those who took its messages when that was asked for.
    Destroyed { token: Option<u64>, queue: Arc<str>, takers: u64, _under: Option<Under> },
    /// A message is in its queue.
    Sent { token: u64, session: u32, send_id: Option<SendId>, place: Place, _under: Option<Under> },
    /// A message is not.
    NotSent {
        token: u64,
        session: u32,
        queue: Arc<str>,
        record: Bytes,
        refusal: Refusal,
        _under: Option<Under>,
    },
    /// A message waits for room.
    Parked { token: u64, session: u32, queue: Arc<str> },
    /// A subscription has begun.
    Subscribed { taker: u32 },
    /// A subscription has ended by itself.
    Unsubscribed { taker: u32, refusal: Refusal },
    /// A message for a subscription.
    Came { taker: u32, message: Arc<Pulled> },
    /// Messages for a RECEIVE, which is over.
    Received { taker: u32, outcome: Result<Vec<Arc<Pulled>>, Refusal> },
    /// A message's time was over before it was delivered.
    Expired { message: Arc<Pulled> },
    /// A message went to the dead-letter queue.
    Buried { message: Arc<Pulled> },
    /// Messages are done with, or given back, or held for longer.
    Settled {
        token: u64,
        queue: Arc<str>,
        settled: Settled,
        refusal: Option<Refusal>,
        _under: Option<Under>,
    },
    /// Something is through that nobody waits for.
    Over { _under: Option<Under> },
}

/// Where a message went.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) queue: Arc<str>,
    pub(super) id: u64,
    pub(super) again: bool,
    pub(super) record: Bytes,
}

/// What became of held messages.
#[derive(Debug)]
pub(super) enum Settled {
    Acked(Vec<u64>),
    /// The same, of messages that perhaps nobody here held.
    Removed(Vec<u64>),
    Other,
}

/// How much a subscription may take, counted from its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Grant {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    /// Messages that the engine has seen.
    pub(super) came: u64,
    /// Nothing is held.
    pub(super) idle: bool,
}
