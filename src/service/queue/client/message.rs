//! Messages as programs see them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::super::machine::{Delivery, Refusal, Send};
use super::super::protocol::Record;
use super::error::QueueError;
use crate::store::{SendId, Time};
use crate::wire::{PAYLOAD_MAX, errno};

/// A message to be sent.
#[derive(Clone, Debug, Default)]
pub struct OutMessage {
    pub(super) record: Record,
    pub(super) ttl: Option<Duration>,
    pub(super) create: bool,
    pub(super) send_id: Option<SendId>,
}

impl OutMessage {
    /// One with this payload.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        let record = Record { payload: payload.into(), ..Record::default() };
        Self { record, ..Self::default() }
    }

    /// Sets what an answer to it repeats; at most 65,531 bytes, as everything that follows.
    #[must_use]
    pub fn correlation(mut self, correlation: impl Into<Bytes>) -> Self {
        self.record.correlation = correlation.into();
        self
    }

    /// Sets the queue for an answer.
    #[must_use]
    pub fn reply_to(mut self, queue: impl Into<String>) -> Self {
        self.record.reply_to = Some(queue.into());
        self
    }

    /// Adds a header. A name ends at its first NUL.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.record.headers.push((name.into(), value.into()));
        self
    }

    /// Sets how long it is of use: after that it is dropped, unless a consumer holds it.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Makes the queue if it is not there.
    #[must_use]
    pub fn create(mut self) -> Self {
        self.create = true;
        self
    }

    /// Sets as what it is known if it is sent again, in place of a number of the client's own. The sender
    /// is to be chosen at random, once; its numbers count up from 1.
    #[must_use]
    pub fn send_id(mut self, send_id: SendId) -> Self {
        self.send_id = Some(send_id);
        self
    }

    /// Makes it an answer that says no; of the text with what can be said of it.
    #[must_use]
    pub(super) fn error(mut self, Refusal { errno, mut text }: Refusal) -> Self {
        let mut end = text.len().min(PAYLOAD_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        self.record.error = Some((errno, text));
        self
    }

    /// # Errors
    /// `EMSGSIZE` if something of it cannot be said.
    pub(super) fn check(&self) -> Result<(), QueueError> {
        match self.record.too_long() {
            None => Ok(()),
            Some(text) => Err(QueueError::Refused { errno: errno::EMSGSIZE, text }),
        }
    }

    pub(super) fn into_send(self, queue: &str, send_id: SendId) -> Send {
        Send {
            queue: queue.to_owned(),
            create: self.create,
            send_id: Some(send_id),
            ttl_ms: self.ttl.map(super::millis),
            reply_to: self.record.reply_to.clone(),
            record: self.record.to_bytes().into(),
        }
    }
}

impl From<&[u8]> for OutMessage {
    fn from(payload: &[u8]) -> Self {
        Self::new(Bytes::copy_from_slice(payload))
    }
}

impl From<&str> for OutMessage {
    fn from(payload: &str) -> Self {
        Self::from(payload.as_bytes())
    }
}

impl From<Bytes> for OutMessage {
    fn from(payload: Bytes) -> Self {
        Self::new(payload)
    }
}

/// A message that was received, and is held until it is acknowledged, given back or the lease is over.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// Its queue.
    pub queue: Arc<str>,
    /// Its id there.
    pub id: u64,
    /// 1 for the first delivery.
    pub attempt: u32,
    /// When it arrived in the queue.
    pub arrived: Time,
    /// What it says.
    pub record: Record,
    /// Over which connection it came.
    pub(super) generation: u64,
}

impl Message {
    pub(super) fn new(delivery: Delivery, generation: u64) -> Self {
        let Delivery { queue, id, attempt, arrived, record } = delivery;
        Self { queue, id, attempt, arrived, record: Record::read(&record), generation }
    }

    /// Which connection of its client it came over, counted from 1. What came over an earlier one is not held
    /// any more.
    pub fn connection(&self) -> u64 {
        self.generation
    }

    /// Its payload.
    pub fn payload(&self) -> &Bytes {
        &self.record.payload
    }

    /// The value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.record.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value)
    }
}
