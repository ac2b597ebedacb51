//! Messages that sessions of this broker hold, and what becomes of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::super::machine::{Answer, Refusal, What};
use super::cluster::{CALL_MAX, Cluster, Opened, bounded};
use super::engine::Front;
use super::event::{Event, Settled};
use super::faults::{away, refusal};
use super::keeper::{Finding, Order};
use super::pull::Pulled;
use super::taker::{How, Pulling};
use crate::store::{SendId, Time};
use crate::wire::errno;

/// Messages whose leases have ended that are still known of a queue: who held one may yet be done with it.
const LATE_MAX: usize = 1_024;

/// What is enough for a word to reach the cluster before it acts by itself.
const SPARE_MAX: Duration = Duration::from_secs(1);

/// A message that a session holds, or held.
pub(super) struct Held {
    pub(super) message: Arc<Pulled>,
    pub(super) session: u32,
    /// The subscription; none if it was taken by a RECEIVE.
    pub(super) taker: Option<u32>,
    until: Time,
    /// When the cluster gives it to somebody else if it hears nothing.
    cluster_until: Time,
    /// When something is to be done about it.
    pub(super) due: Time,
    /// Its lease is over.
    late: bool,
}

/// The queue, messages, and an id that is not among them.
type Sorted = (Arc<str>, Vec<Arc<Pulled>>, Option<u64>);

impl Pulled {
    /// How much earlier than the cluster's a lease has to end for this broker to end it.
    fn spare_us(&self) -> u64 {
        (self.opened.lease() / 4).min(SPARE_MAX).as_micros() as u64
    }
}

impl Held {
    /// What it counts for.
    pub(super) fn bytes(&self) -> u64 {
        if self.late { 0 } else { self.message.record.len() as u64 }
    }

    /// From now on the cluster leaves it here for as long as it does.
    fn reckon(&mut self, now: Time) {
        let lease_ms = self.message.opened.lease().as_millis() as u64;
        self.cluster_until = now.after_ms(lease_ms);
        // what goes to the dead letters next is taken back before the cluster gives it to somebody else
        let spare_us = if self.message.is_spent(0) { self.message.spare_us() } else { 0 };
        let in_time = self.until.0.saturating_add(spare_us) <= self.cluster_until.0;
        // early enough to be heard in time if one is lost
        let third = now.after_ms(lease_ms / 3);
        self.due = if in_time { self.until } else { third.min(self.until) };
    }
}

impl Front {
    pub(super) fn hold(
        &mut self,
        now: Time,
        (session, taker): (u32, Option<u32>),
        lease_ms: Option<u64>,
        message: Arc<Pulled>,
    ) {
        let queue = Arc::clone(&message.opened.name);
        let id = message.id;
        // it was held here before, and the cluster has taken it back
        self.let_go(&queue, id);
        let until = now.after_ms(lease_ms.unwrap_or(message.opened.about.options.lease_ms));
        let mut held =
            Held { message, session, taker, until, cluster_until: now, due: until, late: false };
        held.reckon(now);
        self.timers.insert((held.due, Arc::clone(&queue), id));
        self.sessions.entry(session).or_default().holding.insert(Arc::clone(&queue));
        if let Some(here) = self.queues.get_mut(&queue) {
            self.held_bytes += held.bytes();
            here.held.insert(id, held);
            self.weigh();
        }
    }

    /// Forgets that a message is held, and lets its subscription have another.
    fn let_go(&mut self, queue: &Arc<str>, id: u64) -> Option<Held> {
        let held = self.queues.get_mut(queue)?.held.remove(&id)?;
        self.timers.remove(&(held.due, Arc::clone(queue), id));
        if !held.late {
            self.release(held.taker, held.bytes());
        }
        Some(held)
    }

    /// Lets a subscription have another message for one of this length that it does not hold any more.
    fn release(&mut self, taker: Option<u32>, length: u64) {
        self.held_bytes -= length;
        self.weigh();
        let full = self.is_full;
        if let Some(taker) = taker.and_then(|taker| self.takers.get_mut(&taker))
            && let How::Subscribed(subscribed) = &mut taker.how
        {
            subscribed.held.0 = subscribed.held.0.saturating_sub(1);
            subscribed.held.1 = subscribed.held.1.saturating_sub(length);
            subscribed.grant(full);
        }
    }

    /// Gives messages back that nobody here takes.
    pub(super) fn hand_back(&self, messages: Vec<Arc<Pulled>>) {
        if messages.is_empty() {
            return;
        }
        let cluster = Arc::clone(&self.cluster);
        let ending = self.ending.clone();
        let _under = self.under_way();
        self.spawn(async move {
            closed(ending).await;
            cluster.hand_back(messages).await;
            Event::Over { _under }
        });
    }

    /// Gives messages back that clients have had, once these takers pull no more: one of them could get them
    /// again just as it ends, and they would be lost until their lease is over.
    pub(super) fn give_back(&self, messages: Vec<Arc<Pulled>>, takers: Vec<Pulling>) {
        if messages.is_empty() {
            return;
        }
        let (cluster, report) = (Arc::clone(&self.cluster), self.report.clone());
        let _under = self.under_way();
        self.spawn(async move {
            closed(takers).await;
            cluster.give_back(messages, &report).await;
            Event::Over { _under }
        });
    }

    /// Takes back what a session holds and `which` says.
    pub(super) fn take_back(
        &mut self,
        now: Time,
        number: u32,
        which: impl Fn(&Held) -> bool,
    ) -> Vec<Arc<Pulled>> {
        let mut messages = Vec::new();
        let Some(session) = self.sessions.get_mut(&number) else { return messages };
        for queue in std::mem::take(&mut session.holding) {
            let Some(here) = self.queues.get(&queue) else { continue };
            let mine = here.held.iter().filter(|(_, held)| held.session == number);
            let (ids, others): (Vec<_>, Vec<_>) = mine.partition(|(_, held)| which(held));
            let stays = !others.is_empty();
            let ids: Vec<u64> = ids.into_iter().map(|(id, _)| *id).collect();
            for id in ids {
                messages.extend(self.returned(now, &queue, id));
            }
            if stays && let Some(session) = self.sessions.get_mut(&number) {
                session.holding.insert(queue);
            }
        }
        messages
    }

    fn returned(&mut self, now: Time, queue: &Arc<str>, id: u64) -> Option<Arc<Pulled>> {
        let held = self.let_go(queue, id)?;
        if held.late {
            return None;
        }
        self.count(queue, |counters| counters.returned += 1);
        let about = (held.message.arrived, &held.message.record);
        self.trace.push(now, What::Returned, queue, (id, held.session), about);
        Some(held.message)
    }

    /// Ends leases, and tells the cluster of those that last longer than it knows.
    pub(super) fn see_to_leases(&mut self, now: Time) {
        let mut back = Vec::new();
        while let Some((due, ..)) = self.timers.first()
            && *due <= now
            && let Some((_, queue, id)) = self.timers.pop_first()
        {
            let Some(here) = self.queues.get_mut(&queue) else { continue };
            let Some(held) = here.held.get_mut(&id) else { continue };
            if held.until > now {
                held.reckon(now);
                self.timers.insert((held.due, Arc::clone(&queue), id));
                let (cluster, message) = (Arc::clone(&self.cluster), Arc::clone(&held.message));
                tokio::spawn(async move { cluster.hold_on(vec![message]).await });
                continue;
            }
            let length = held.bytes();
            held.late = true;
            let message = Arc::clone(&held.message);
            let (session, taker) = (held.session, held.taker);
            let spare = Time(now.0.saturating_add(message.spare_us()));
            // if its lease in the cluster ends now too, somebody else may have it already, and would lose it
            if held.cluster_until > spare || message.is_spent(0) {
                back.push(Arc::clone(&message));
            }
            here.counters.returned += 1;
            if here.held.len() > LATE_MAX
                && let Some(oldest) = here.held.iter().find(|(_, held)| held.late)
            {
                let oldest = *oldest.0;
                here.held.remove(&oldest);
            }
            let about = (message.arrived, &message.record);
            self.trace.push(now, What::Returned, &queue, (id, session), about);
            self.release(taker, length);
        }
        self.give_back(back, Vec::new());
    }

    /// Those of `ids` that the session holds, or held and nobody here does now; and the first other one.
    fn sort(
        &mut self,
        session: u32,
        queue: &str,
        ids: &[u64],
        late: bool,
    ) -> Result<Sorted, Refusal> {
        let (name, here) = self.here(queue)?;
        let mut other = None;
        let mine = |id: &u64| {
            let held = here.held.get(id);
            let held = held.filter(|held| held.session == session && (late || !held.late));
            if held.is_none() {
                other.get_or_insert(*id);
            }
            held.map(|held| Arc::clone(&held.message))
        };
        let mine = ids.iter().filter_map(mine).collect();
        Ok((name, mine, other))
    }

    /// What to say of a message that the session does not hold.
    fn say_why(
        &mut self,
        queue: &str,
        other: Option<u64>,
    ) -> Result<impl Future<Output = Option<Refusal>> + Send + 'static, Refusal> {
        let finding = other.map(|id| self.find(queue).map(|finding| (id, finding))).transpose()?;
        let cluster = Arc::clone(&self.cluster);
        Ok(async move {
            let (id, finding) = finding?;
            let gone = |_| away("the queue's task has ended");
            let opened = match finding.await.map_err(gone).and_then(|found| found) {
                Ok(opened) => opened,
                Err(refusal) => return Some(refusal),
            };
            Some(match cluster.has(&opened, id).await {
                Ok(true) => {
                    let text = format!("message {id} in {:?} is not held here", opened.name);
                    Refusal::new(errno::EPERM, text)
                }
                Ok(false) => missing(&opened, id),
                Err(refusal) => refusal,
            })
        })
    }

    pub(super) fn ack(
        &mut self,
        session: u32,
        token: u64,
        queue: &str,
        ids: Vec<u64>,
    ) -> Result<(), Refusal> {
        let (queue, mine, other) = self.sort(session, queue, &ids, true)?;
        let why = self.say_why(&queue, other)?;
        let cluster = Arc::clone(&self.cluster);
        let _under = self.under_way();
        self.spawn(async move {
            let (acked, refusal) = cluster.ack_all(mine).await;
            let acked = acked.into_iter().collect();
            let refusal = match refusal {
                Some(refusal) => Some(refusal),
                None => why.await,
            };
            Event::Settled { token, queue, settled: Settled::Acked(acked), refusal, _under }
        });
        Ok(())
    }

    pub(super) fn nack(
        &mut self,
        now: Time,
        session: u32,
        token: u64,
        queue: &str,
        ids: Vec<u64>,
    ) -> Result<(), Refusal> {
        let (queue, mine, other) = self.sort(session, queue, &ids, false)?;
        let why = self.say_why(&queue, other)?;
        for message in &mine {
            self.returned(now, &queue, message.id);
        }
        let (cluster, report) = (Arc::clone(&self.cluster), self.report.clone());
        let _under = self.under_way();
        self.spawn(async move {
            let refusal = match cluster.give_back(mine, &report).await {
                Some(refusal) => Some(refusal),
                None => why.await,
            };
            Event::Settled { token, queue, settled: Settled::Other, refusal, _under }
        });
        Ok(())
    }

    pub(super) fn extend(
        &mut self,
        now: Time,
        session: u32,
        token: u64,
        queue: &str,
        ids: Vec<u64>,
        lease_ms: u64,
    ) -> Result<(), Refusal> {
        let (queue, mine, other) = self.sort(session, queue, &ids, false)?;
        let why = self.say_why(&queue, other)?;
        if let Some(here) = self.queues.get_mut(&queue) {
            for message in &mine {
                let Some(held) = here.held.get_mut(&message.id) else { continue };
                self.timers.remove(&(held.due, Arc::clone(&queue), message.id));
                held.until = now.after_ms(lease_ms);
                held.reckon(now);
                self.timers.insert((held.due, Arc::clone(&queue), message.id));
            }
        }
        let cluster = Arc::clone(&self.cluster);
        let _under = self.under_way();
        self.spawn(async move {
            let refusal = cluster.hold_on(mine).await;
            let refusal = match refusal {
                Some(refusal) => Some(refusal),
                None => why.await,
            };
            Event::Settled { token, queue, settled: Settled::Other, refusal, _under }
        });
        Ok(())
    }

    /// Removes messages, whoever holds them.
    pub(super) fn remove(&mut self, token: u64, queue: &str, ids: Vec<u64>) -> Result<(), Refusal> {
        let finding = self.find(queue)?;
        let (name, _) = self.here(queue)?;
        let cluster = Arc::clone(&self.cluster);
        let _under = self.under_way();
        self.spawn(async move {
            let (mut removed, mut refusal) = (Vec::new(), None);
            match found(finding).await {
                Err(why) => refusal = Some(why),
                Ok(opened) => {
                    for id in ids {
                        match cluster.delete(&opened, id).await {
                            Ok(()) => removed.push(id),
                            Err(why) => refusal = refusal.or(Some(why)),
                        }
                    }
                }
            }
            let settled = Settled::Removed(removed);
            Event::Settled { token, queue: name, settled, refusal, _under }
        });
        Ok(())
    }

    pub(super) fn settled(&mut self, now: Time, queue: &Arc<str>, settled: Settled) {
        let (Settled::Acked(ids) | Settled::Removed(ids)) = settled else { return };
        for id in ids {
            let held = self.let_go(queue, id);
            self.count(queue, |counters| counters.acked += 1);
            let session = held.as_ref().map_or(0, |held| held.session);
            let message = held.map(|held| held.message);
            let about = message.as_ref().map(|message| (message.arrived, message.record.clone()));
            let (arrived, record) = about.unwrap_or((now, bytes::Bytes::new()));
            self.trace.push(now, What::Acked, queue, (id, session), (arrived, &record));
        }
        if let Some(here) = self.queues.get(queue) {
            // one that is busy finds out by itself
            let _ = here.orders.try_send(Order::Room);
        }
    }

    pub(super) fn purge(&mut self, token: u64, queue: &str) -> Result<(), Refusal> {
        let finding = self.find(queue)?;
        let cluster = Arc::clone(&self.cluster);
        let _under = self.under_way();
        self.spawn(async move {
            let purged = async { cluster.purge(&*found(finding).await?).await };
            let answer = match purged.await {
                Ok(messages) => Answer::Purged { messages },
                Err(refusal) => Answer::Refused(refusal),
            };
            Event::Answered { token, answer, _under }
        });
        Ok(())
    }

    /// Takes back a message that nobody holds.
    pub(super) fn withdraw(
        &mut self,
        token: u64,
        queue: &str,
        send_id: SendId,
    ) -> Result<(), Refusal> {
        let gone = || Refusal::new(errno::ENOENT, "there is no such message any more");
        let id = self.recent.find(send_id, queue).ok_or_else(gone)?;
        let finding = self.find(queue)?;
        let cluster = Arc::clone(&self.cluster);
        let _under = self.under_way();
        self.spawn(async move {
            let withdrawn = async {
                let opened = found(finding).await?;
                if cluster.was_delivered(&opened, id).await? && cluster.has(&opened, id).await? {
                    return Err(Refusal::new(errno::EBUSY, "a consumer holds the message"));
                }
                cluster.delete(&opened, id).await
            };
            let answer = withdrawn.await.map_or_else(Answer::Refused, |()| Answer::Done);
            Event::Answered { token, answer, _under }
        });
        Ok(())
    }
}

/// Until none of them pulls any more, or at least should.
async fn closed(takers: Vec<Pulling>) {
    let closing = async {
        for taker in takers {
            taker.closed().await;
        }
    };
    let _ = timeout(2 * CALL_MAX, closing).await;
}

async fn found(finding: tokio::sync::oneshot::Receiver<Finding>) -> Finding {
    finding.await.map_err(|_| away("the queue's task has ended"))?
}

fn missing(opened: &Opened, id: u64) -> Refusal {
    Refusal::new(errno::ENOENT, format!("there is no message {id} in {:?}", opened.name))
}

/// Whether it is said of a message that is not there; the server has several ways to.
fn is_missing(error: &async_nats::jetstream::Error) -> bool {
    use async_nats::jetstream::ErrorCode as Code;

    match error.error_code() {
        Code::NO_MESSAGE_FOUND | Code::SEQUENCE_NOT_FOUND => true,
        Code::STREAM_MESSAGE_DELETE_FAILED => {
            let said = error.to_string();
            ["no message found", "deleted message", "EOF"].iter().any(|text| said.contains(text))
        }
        _ => false,
    }
}

impl Cluster {
    /// Whether a message is in its queue.
    async fn has(&self, opened: &Opened, id: u64) -> Result<bool, Refusal> {
        use async_nats::jetstream::stream::LastRawMessageErrorKind as Kind;

        let Some(sequence) = opened.sequence(id) else { return Ok(false) };
        let stream = self.stream(opened).await?;
        match bounded(stream.get_raw_message(sequence)).await? {
            Ok(_) => Ok(true),
            Err(error) => match error.kind() {
                Kind::NoMessageFound => Ok(false),
                Kind::JetStream(error) => Err(refusal(&opened.name, &error)),
                _ => Err(away(error)),
            },
        }
    }

    async fn delete(&self, opened: &Opened, id: u64) -> Result<(), Refusal> {
        use async_nats::jetstream::stream::DeleteMessageErrorKind as Kind;

        let sequence = opened.sequence(id).ok_or_else(|| missing(opened, id))?;
        let stream = self.stream(opened).await?;
        match bounded(stream.delete_message(sequence)).await? {
            Ok(true) => Ok(()),
            Ok(false) => Err(missing(opened, id)),
            Err(error) => Err(match error.kind() {
                Kind::JetStream(error) if is_missing(&error) => missing(opened, id),
                Kind::JetStream(error) => refusal(&opened.name, &error),
                _ => away(error),
            }),
        }
    }

    /// Drops everything: how many messages that were.
    async fn purge(&self, opened: &Opened) -> Result<u64, Refusal> {
        let stream = self.stream(opened).await?;
        let purged = bounded(stream.purge().into_future()).await?;
        purged.map(|purged| purged.purged).map_err(away)
    }

    /// Whether a message was given to somebody, who may hold it.
    async fn was_delivered(&self, opened: &Opened, id: u64) -> Result<bool, Refusal> {
        let stream = self.stream(opened).await?;
        let info = bounded(stream.consumer_info(&opened.consumer)).await?.map_err(away)?;
        Ok(opened.sequence(id).is_some_and(|at| at <= info.delivered.stream_sequence))
    }

    async fn stream(
        &self,
        opened: &Opened,
    ) -> Result<async_nats::jetstream::stream::Stream<()>, Refusal> {
        self.check()?;
        self.context.get_stream_no_info(&opened.stream).await.map_err(away)
    }
}
