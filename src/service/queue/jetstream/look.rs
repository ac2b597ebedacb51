//! What the cluster has: queues of all brokers, with what this one knows of them.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use async_nats::jetstream::stream::Info;
use bytes::Bytes;
use futures_core::Stream;
use tokio::task::JoinSet;

use super::super::machine::{
    Answer, BrokerInfo, Counters, EntryInfo, LIST_MAX, QueueInfo, Refusal, Service,
};
use super::super::options::Mode;
use super::super::protocol::reply_to_of;
use super::cluster::{CALL_MAX, Cluster, about, bounded};
use super::engine::Front;
use super::event::Event;
use super::faults::away;
use super::names::About;
use super::pull::EXPIRES;
use crate::store::Time;

/// Calls of one command to look that are under way at once.
const LOOKS_MAX: usize = 32;

/// Messages that one DIAGNOSTICS shows of all queues; each is a call of its own.
const ENTRIES_MAX: usize = 256;

/// Streams of a cluster that are looked through.
const STREAMS_MAX: usize = 65_536;

/// What this broker knows of a queue.
#[derive(Clone, Default)]
struct Known {
    counters: Counters,
    last_taken: Option<Time>,
    takers: u32,
    /// Who holds which messages, and how often they were delivered.
    held: HashMap<u64, (u32, u32)>,
}

impl Front {
    fn known(&self, prefix: &str) -> HashMap<Arc<str>, Known> {
        let queues = self.queues.iter().filter(|(name, _)| name.starts_with(prefix));
        let known = queues.map(|(name, here)| {
            let held = here.held.iter();
            let held = held.map(|(id, held)| (*id, (held.session, held.message.attempt)));
            let known = Known {
                counters: here.counters,
                last_taken: here.last_taken,
                takers: here.takers,
                held: held.collect(),
            };
            (Arc::clone(name), known)
        });
        known.collect()
    }

    pub(super) fn list(&mut self, token: u64, prefix: String, alive: bool) {
        let known = self.known(&prefix);
        let cluster = Arc::clone(&self.cluster);
        let _under = self.under_way();
        self.spawn(async move {
            let answer = match queues(&cluster, &prefix, known, (0, 0)).await {
                Ok(queues) => Answer::Queues(
                    queues
                        .into_iter()
                        .filter(|queue| !alive || queue.service == Service::Running)
                        .take(LIST_MAX)
                        .collect(),
                ),
                Err(refusal) => Answer::Refused(refusal),
            };
            Event::Answered { token, answer, _under }
        });
    }

    pub(super) fn diagnostics(
        &mut self,
        now: Time,
        token: u64,
        prefix: String,
        entries_max: u32,
        payload_max: u32,
    ) {
        let known = self.known(&prefix);
        let cluster = Arc::clone(&self.cluster);
        let started = self.started;
        let _under = self.under_way();
        self.spawn(async move {
            let answer = match queues(&cluster, &prefix, known, (entries_max, payload_max)).await {
                Ok(queues) => {
                    let broker = BrokerInfo {
                        started,
                        now,
                        durable: true,
                        quarantined: Vec::new(),
                        queues: queues.len() as u64,
                        bytes: queues.iter().map(|queue| queue.bytes).sum(),
                    };
                    Answer::Diagnostics(broker, queues.into_iter().take(LIST_MAX).collect())
                }
                Err(refusal) => Answer::Refused(refusal),
            };
            Event::Answered { token, answer, _under }
        });
    }
}

/// Queues by name, with up to `entries_max` messages each of which those are shown that are not longer
/// than `payload_max`.
async fn queues(
    cluster: &Arc<Cluster>,
    prefix: &str,
    mut known: HashMap<Arc<str>, Known>,
    (entries_max, payload_max): (u32, u32),
) -> Result<Vec<QueueInfo>, Refusal> {
    let mut streams = cluster.streams().await?;
    streams.retain(|(about, _)| about.name.starts_with(prefix));
    streams.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
    streams.truncate(LIST_MAX);
    let mut entries_left = ENTRIES_MAX;
    let mut found = Vec::new();
    let mut looks = JoinSet::new();
    for (about, info) in streams {
        if looks.len() >= LOOKS_MAX {
            found.extend(looks.join_next().await.and_then(Result::ok));
        }
        let known = known.remove(about.name.as_str()).unwrap_or_default();
        let entries = entries_left.min(entries_max as usize).min(info.state.messages as usize);
        entries_left -= entries;
        let cluster = Arc::clone(cluster);
        looks.spawn(async move {
            let mut queue = cluster.queue_info(&about, &info, &known).await;
            queue.entries =
                cluster.entries(&about, &info, &known, entries, payload_max as usize).await;
            queue
        });
    }
    while let Some(queue) = looks.join_next().await {
        found.extend(queue.ok());
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

impl Cluster {
    /// All streams that are queues.
    pub(super) async fn streams(&self) -> Result<Vec<(About, Info)>, Refusal> {
        self.check()?;
        let mut listed = self.context.streams();
        let mut found = Vec::new();
        for _ in 0..STREAMS_MAX {
            match bounded(next(&mut listed)).await? {
                None => break,
                Some(info) => {
                    let info = info.map_err(away)?;
                    found.extend(about(&info).map(|about| (about, info)));
                }
            }
        }
        Ok(found)
    }

    async fn queue_info(&self, about: &About, info: &Info, known: &Known) -> QueueInfo {
        let consumer = super::names::consumer_of(about.made);
        let stream = self.context.get_stream_no_info(&info.config.name).await;
        let consumer = match stream {
            Ok(stream) => {
                match tokio::time::timeout(CALL_MAX, stream.consumer_info(consumer)).await {
                    Ok(Ok(consumer)) => Some(consumer),
                    _ => None,
                }
            }
            Err(_) => None,
        };
        let (leased, waiting, taken) = consumer.map_or((0, 0, 0), |info| {
            (info.num_ack_pending as u64, info.num_waiting as u32, info.delivered.consumer_sequence)
        });
        let state = &info.state;
        let consumers = waiting.max(known.takers);
        QueueInfo {
            name: about.name.as_str().into(),
            kind: about.kind(),
            mode: Mode::Share,
            service: match () {
                () if consumers > 0 => Service::Running,
                () if taken == 0 && known.last_taken.is_none() => Service::NeverStarted,
                () => Service::SeemsDead,
            },
            last_taken: known.last_taken,
            owner: about.owner.map(|(_, session)| session),
            consumers,
            ready: state.messages.saturating_sub(leased),
            leased,
            messages: state.messages,
            bytes: state.bytes,
            oldest: (state.messages > 0)
                .then(|| time(state.first_timestamp.unix_timestamp_nanos())),
            counters: known.counters,
            entries: Vec::new(),
        }
    }

    async fn entries(
        &self,
        about: &About,
        info: &Info,
        known: &Known,
        entries_max: usize,
        payload_max: usize,
    ) -> Vec<EntryInfo> {
        let mut entries = Vec::new();
        let Ok(stream) = self.context.get_stream_no_info(&info.config.name).await else {
            return entries;
        };
        let subject = super::names::subject_of(&about.name, about.made);
        let mut sequence = info.state.first_sequence;
        while entries.len() < entries_max {
            let next =
                stream.raw_message_builder().next_by_subject(&subject).sequence(sequence).send();
            let Ok(Ok(message)) = tokio::time::timeout(CALL_MAX, next).await else { break };
            sequence = message.sequence + 1;
            let id = about.floor + message.sequence;
            let record: Bytes = message.payload;
            let expires = message.headers.get(EXPIRES).and_then(|at| at.as_str().parse().ok());
            let (holder, attempts) = match known.held.get(&id) {
                Some((session, attempts)) => (Some(*session), *attempts),
                None => (None, 0),
            };
            let reply_alive = match reply_to_of(&record) {
                Some(name) => Some(self.look(&name).await.is_ok()),
                None => None,
            };
            entries.push(EntryInfo {
                id,
                arrived: time(message.time.unix_timestamp_nanos()),
                expires: expires.map(Time),
                attempts,
                holder,
                length: record.len() as u64,
                reply_alive,
                record: if record.len() <= payload_max { record } else { Bytes::new() },
            });
        }
        entries
    }
}

fn time(nanoseconds: i128) -> Time {
    Time(u64::try_from(nanoseconds / 1_000).unwrap_or_default())
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await
}
