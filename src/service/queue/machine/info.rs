//! How queues are, for people and programs that look.

use std::ops::Bound;

use bytes::Bytes;

use super::command::{Answer, BrokerInfo, EntryInfo, QueueInfo, Service};
use super::queue::{Entry, Queue};
use super::{LIST_MAX, Machine};
use crate::store::Time;
use crate::wire::PAYLOAD_MAX;

/// Messages that one DIAGNOSTICS shows of all queues.
const ENTRIES_MAX: usize = 4_096;

/// Bytes of records that one DIAGNOSTICS shows; of further messages only how long they are.
const RECORDS_BYTES_MAX: usize = 4 << 20;

/// Damaged messages that one DIAGNOSTICS names.
const QUARANTINED_MAX: usize = 256;

impl Machine {
    /// Whether there is a queue of this name.
    pub fn has(&self, queue: &str) -> bool {
        self.names.contains_key(queue)
    }

    /// The session that owns a queue, if it is a transient one.
    pub fn owner_of(&self, queue: &str) -> Option<u32> {
        self.names.get(queue).and_then(|number| self.queues.get(number))?.owner
    }

    pub(super) fn list(&self, prefix: &str, alive: bool) -> Answer {
        let queues =
            self.with_prefix(prefix).filter(|queue| !alive || queue.is_alive()).take(LIST_MAX);
        Answer::Queues(queues.map(Queue::info).collect())
    }

    pub(super) fn diagnostics(
        &self,
        now: Time,
        prefix: &str,
        entries_max: u32,
        payload_max: u32,
    ) -> Answer {
        let broker = BrokerInfo {
            started: self.started,
            now,
            durable: self.durable,
            quarantined: self.quarantined.iter().take(QUARANTINED_MAX).cloned().collect(),
            queues: self.queues.len() as u64,
            bytes: self.shared.bytes,
        };
        let mut left = ENTRIES_MAX;
        let mut bytes_left = RECORDS_BYTES_MAX;
        let queues = self.with_prefix(prefix).take(LIST_MAX).map(|queue| {
            let mut info = queue.info();
            let entries = queue.entries.iter().take(left.min(entries_max as usize));
            info.entries = entries
                .map(|(id, entry)| {
                    let shown = bytes_left.min(payload_max as usize);
                    let info = self.entry_info(queue, *id, entry, shown);
                    bytes_left -= info.record.len();
                    info
                })
                .collect();
            left -= info.entries.len();
            info
        });
        Answer::Diagnostics(broker, queues.collect())
    }

    fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = &Queue> {
        let names = self.names.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let names = names.take_while(move |(name, _)| name.starts_with(prefix));
        names.filter_map(|(_, number)| self.queues.get(number))
    }

    fn entry_info(&self, queue: &Queue, id: u64, entry: &Entry, shown_max: usize) -> EntryInfo {
        let lanes =
            || std::iter::once(&queue.common).chain(queue.consumers.values().map(|c| &c.lane));
        let lease = lanes().find_map(|lane| lane.leases.get(&id));
        let waiting = lanes().find_map(|lane| lane.ready.get(&id));
        let attempts =
            lease.map(|lease| lease.attempts).or(waiting.map(|waiting| waiting.attempts));
        let reply_alive = entry.reply_to.as_deref().map(|name| self.names.contains_key(name));
        let shown = entry.record.len() <= shown_max.min(PAYLOAD_MAX);
        EntryInfo {
            id,
            arrived: entry.arrived,
            expires: entry.expires,
            attempts: attempts.unwrap_or_default(),
            holder: lease.map(|lease| lease.session),
            length: entry.record.len() as u64,
            reply_alive,
            record: if shown { entry.record.clone() } else { Bytes::new() },
        }
    }
}

impl Queue {
    fn info(&self) -> QueueInfo {
        let lanes = std::iter::once(&self.common).chain(self.consumers.values().map(|c| &c.lane));
        let (ready, leased) = lanes.fold((0, 0), |(ready, leased), lane| {
            (ready + lane.ready.len() as u64, leased + lane.leases.len() as u64)
        });
        let service = match self.last_taken {
            _ if self.is_alive() => Service::Running,
            None => Service::NeverStarted,
            Some(_) => Service::SeemsDead,
        };
        QueueInfo {
            name: std::sync::Arc::clone(&self.name),
            kind: self.kind,
            mode: self.options.mode,
            service,
            last_taken: self.last_taken,
            owner: self.owner,
            consumers: self.consumers.len() as u32 + self.receiving,
            ready,
            leased,
            messages: self.entries.len() as u64,
            bytes: self.bytes,
            oldest: self.entries.first_key_value().map(|(_, entry)| entry.arrived),
            counters: self.counters,
            entries: Vec::new(),
        }
    }
}
