//! What happened last, in a ring of bounded size.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::command::{Event, What};
use crate::store::Time;

/// What is kept of a record, in bytes.
pub const TRACE_RECORD_BYTES_MAX: usize = 256;

/// Events that one answer holds.
pub const TRACE_ANSWER_MAX: usize = 1_024;

/// The last events.
#[derive(Debug)]
pub(in crate::service::queue) struct Trace {
    events: VecDeque<Event>,
    events_max: usize,
    next: u64,
}

impl Trace {
    pub(in crate::service::queue) fn new(events_max: usize) -> Self {
        Self { events: VecDeque::new(), events_max, next: 1 }
    }

    pub(in crate::service::queue) fn push(
        &mut self,
        time: Time,
        what: What,
        queue: &Arc<str>,
        (id, session): (u64, u32),
        (arrived, record): (Time, &Bytes),
    ) {
        let number = self.next;
        self.next += 1;
        if self.events_max == 0 {
            return;
        }
        if self.events.len() >= self.events_max {
            self.events.pop_front();
        }
        // a slice would keep the whole record in memory
        let record = match record.get(..TRACE_RECORD_BYTES_MAX) {
            Some(start) => Bytes::copy_from_slice(start),
            None => record.clone(),
        };
        let age_us = time.0.saturating_sub(arrived.0);
        let queue = Arc::clone(queue);
        self.events.push_back(Event { number, time, what, queue, id, session, age_us, record });
    }

    /// The number of the next event.
    pub(in crate::service::queue) fn next(&self) -> u64 {
        self.next
    }

    /// Events from number `from` on of queues whose names begin with `prefix`, and the number to go on
    /// from.
    pub(in crate::service::queue) fn read(&self, from: u64, prefix: &str) -> (u64, Vec<Event>) {
        let first = self.events.front().map_or(self.next, |event| event.number);
        let skip = from.saturating_sub(first) as usize;
        let events = self.events.iter().skip(skip);
        let found: Vec<Event> = events
            .filter(|event| event.queue.starts_with(prefix))
            .take(TRACE_ANSWER_MAX)
            .cloned()
            .collect();
        let next = match found.last() {
            Some(last) if found.len() == TRACE_ANSWER_MAX => last.number + 1,
            _ => self.next,
        };
        (next, found)
    }
}
