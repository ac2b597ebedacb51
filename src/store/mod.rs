//! Where queues keep their messages: nowhere but in memory, or in SQLite on disk.
//!
//! What is written is a *batch* of [`Op`]s: all of it is on disk, or none of what has to be. Batches are
//! numbered by their order, and completed in it. [`Store::submit`] hands one over without waiting,
//! [`Store::completed`] says that the next one is through. There may be [`BATCHES_MAX`] on their way.
//!
//! | | memory | SQLite |
//! |---|---|---|
//! | a batch is through | at once | after a commit of what has gathered was synced |
//! | after a restart | nothing | every queue, message and id, and who had sent what |

mod gather;
mod open;
mod owed;
mod seen;
mod sqlite;
mod writer;

pub use open::{DAMAGED_TEXT, OpenError, StoreOptions};
pub use seen::{Judgement, RANGES_MAX, SENDERS_MAX, Seen};

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::mpsc::{self, error::TryRecvError};
use writer::Outcome;

/// Batches that may be under way at once.
pub const BATCHES_MAX: usize = 256;

/// A point in time: microseconds since 1970, in UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The time `millis` milliseconds later; the last one there is if that is too far.
    #[must_use]
    pub fn after_ms(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis.saturating_mul(1_000)))
    }

    /// Milliseconds from `earlier` to this; 0 if it is not earlier.
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.us_since(earlier) / 1_000
    }

    /// The same in microseconds.
    pub fn us_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Who sent a message, and its number there. A number is never used for two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SendId {
    /// Chosen at random by the sender.
    pub sender: u128,
    /// Counts up from 1.
    pub sequence: u64,
}

/// A message as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its number in the store; above that of every message before it.
    pub key: u64,
    /// The number of its queue.
    pub queue: u32,
    /// Its id in the queue.
    pub id: u64,
    /// When it arrived.
    pub arrived: Time,
    /// When it is of no use any more.
    pub expires: Option<Time>,
    /// How often it was delivered and came back.
    pub attempts: u32,
    /// Who sent it, if that was said.
    pub send_id: Option<SendId>,
    /// What it says; opaque.
    pub record: Bytes,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A new queue.
    Create {
        /// Its number; free.
        queue: u32,
        /// Its name.
        name: String,
        /// What it was made with; opaque.
        options: Bytes,
        /// The first id that it gives out.
        first_id: u64,
    },
    /// A queue is gone, and every message in it.
    Destroy {
        /// Its number, which is free again.
        queue: u32,
        /// No queue that is made from now on gives out an id below this.
        id_floor: u64,
        /// Its messages.
        keys: Vec<u64>,
    },
    /// A new message.
    Put(Stored),
    /// A message is gone.
    Delete {
        /// Its key.
        key: u64,
    },
    /// A message came back.
    Attempts {
        /// Its key.
        key: u64,
        /// How often by now.
        attempts: u32,
    },
}

impl Op {
    /// Whether it only frees room, and has to be carried out sooner or later in any case.
    pub fn frees(&self) -> bool {
        matches!(self, Self::Destroy { .. } | Self::Delete { .. } | Self::Attempts { .. })
    }

    /// Roughly what it takes on disk, in bytes, if that is much.
    fn bytes(&self) -> u64 {
        match self {
            Self::Put(message) => message.record.len() as u64,
            _ => 0,
        }
    }
}

/// Why a batch was not stored. What it [frees](Op::frees) was freed all the same, unless it says
/// otherwise.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk is full, or the state has reached its limit.
    #[error("no room left for the state")]
    Full,
    /// Writing failed for another reason, which is in the log.
    #[error("the state cannot be written")]
    Io,
    /// The state cannot be written at all: what the batch frees will be once that is possible, but may
    /// be found again if the process ends before.
    #[error("the state cannot be written: {}", if *full { "no room left" } else { "it fails" })]
    Owed {
        /// For want of room.
        full: bool,
    },
    /// The store has ended: nothing of it was done.
    #[error("the store has ended")]
    Ended,
}

impl StoreError {
    /// Whether what the batch frees was freed.
    pub fn frees(&self) -> bool {
        matches!(self, Self::Full | Self::Io)
    }
}

/// A queue that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedQueue {
    /// Its number.
    pub queue: u32,
    /// Its name.
    pub name: String,
    /// What it was made with.
    pub options: Bytes,
    /// The next id that it gives out.
    pub next_id: u64,
}

/// What a store held when it was opened.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// How often it was opened, this time included; 0 in memory.
    pub epoch: u32,
    /// No new queue may give out an id below this.
    pub id_floor: u64,
    /// Queues, by number.
    pub queues: Vec<LoadedQueue>,
    /// Messages, by key.
    pub messages: Vec<Stored>,
    /// What each sender has sent.
    pub senders: Vec<(u128, Seen)>,
    /// The last key that was ever used.
    pub last_key: u64,
    /// Messages that were damaged, now and before, and are kept aside: the names of their queues and ids.
    pub quarantined: Vec<(String, u64)>,
}

/// A place for messages.
pub struct Store {
    place: Place,
    under_way: usize,
}

enum Place {
    Memory {
        done: usize,
    },
    Sqlite {
        batches: std::sync::mpsc::SyncSender<Vec<Op>>,
        done: mpsc::Receiver<Vec<Outcome>>,
        /// What became of the batches of a group, of which some have been told.
        told: std::vec::IntoIter<Outcome>,
    },
}

impl Store {
    /// One that forgets everything when it ends.
    pub fn memory() -> Self {
        Self { place: Place::Memory { done: 0 }, under_way: 0 }
    }

    /// Whether what is stored outlives this process.
    pub fn is_durable(&self) -> bool {
        matches!(self.place, Place::Sqlite { .. })
    }

    /// Whether there is room for a further batch.
    pub fn has_room(&self) -> bool {
        self.under_way < BATCHES_MAX
    }

    /// Whether a batch is under way.
    pub fn is_busy(&self) -> bool {
        self.under_way > 0
    }

    /// Hands a batch over. Does not wait.
    ///
    /// # Errors
    /// [`StoreError::Ended`] if it has [no room](Self::has_room).
    pub fn submit(&mut self, batch: Vec<Op>) -> Result<(), StoreError> {
        if !self.has_room() {
            return Err(StoreError::Ended);
        }
        match &mut self.place {
            Place::Memory { done } => *done += 1,
            // if it has ended, that is how this batch completes, in its turn
            Place::Sqlite { batches, .. } => drop(batches.try_send(batch)),
        }
        self.under_way += 1;
        Ok(())
    }

    /// Waits until the next batch is through; for ever if there is none under way. Cancel-safe.
    pub async fn completed(&mut self) -> Result<(), StoreError> {
        if self.under_way == 0 {
            return std::future::pending().await;
        }
        let result = match &mut self.place {
            Place::Memory { done } => {
                *done -= 1;
                Ok(())
            }
            Place::Sqlite { done, told, .. } => match told.next() {
                Some(outcome) => outcome,
                None => {
                    *told = done.recv().await.unwrap_or_default().into_iter();
                    told.next().unwrap_or(Err(StoreError::Ended))
                }
            },
        };
        self.under_way -= 1;
        result
    }

    /// How the next batch ended, if it is through.
    pub fn try_completed(&mut self) -> Option<Result<(), StoreError>> {
        let result = match &mut self.place {
            Place::Memory { done: 0 } => return None,
            Place::Memory { done } => {
                *done -= 1;
                Ok(())
            }
            Place::Sqlite { done, told, .. } => match told.next() {
                Some(outcome) => outcome,
                None => match done.try_recv() {
                    Err(TryRecvError::Disconnected) if self.under_way > 0 => Err(StoreError::Ended),
                    received => {
                        *told = received.ok()?.into_iter();
                        told.next()?
                    }
                },
            },
        };
        self.under_way -= 1;
        Some(result)
    }
}
