//! What becomes of a message that was pulled.

use std::collections::HashSet;
use std::sync::Arc;

use async_nats::jetstream::message::PublishMessage;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::machine::Refusal;
use super::super::options::QueueOptions;
use super::super::protocol::with_dead_letter;
use super::cluster::{Cluster, bounded, wall};
use super::event::Event;
use super::faults::{Failure, away, unsent};
use super::pull::Pulled;
use crate::wire::errno;

const ACK: &str = "+ACK";
const NAK: &str = "-NAK";
const PROGRESS: &str = "+WPI";

/// What is said of the messages of one command is under way for so many at once.
const SAYING_MAX: usize = 256;

/// How often more than it may a message is delivered. The cluster also counts deliveries that no client saw,
/// and those to brokers that were killed.
const UNSEEN_MAX: u32 = 16;

/// Which messages something was done with, and why not with all.
type Outcome = (HashSet<u64>, Option<Refusal>);

impl Pulled {
    /// Whether it was delivered as often as it may be before it goes to the dead letters, and so many times
    /// more.
    pub(super) fn is_spent(&self, more: u32) -> bool {
        let QueueOptions { dead_letter, attempts_max, .. } = &self.opened.about.options;
        dead_letter.is_some() && self.attempt >= attempts_max.saturating_add(more)
    }
}

impl Cluster {
    /// It is done with, and will not come again.
    pub(super) async fn ack(&self, message: &Pulled) -> Result<(), Failure> {
        self.ask(&message.ack, ACK).await
    }

    /// The same of several.
    pub(super) async fn ack_all(self: &Arc<Self>, messages: Vec<Arc<Pulled>>) -> Outcome {
        self.say(messages, ACK).await
    }

    /// Leases begin anew.
    pub(super) async fn hold_on(self: &Arc<Self>, messages: Vec<Arc<Pulled>>) -> Option<Refusal> {
        self.say(messages, PROGRESS).await.1
    }

    /// Gives messages back that no client has had.
    pub(super) async fn hand_back(self: &Arc<Self>, messages: Vec<Arc<Pulled>>) {
        // what does not get through comes again when its lease is over
        let _ = self.say(messages, NAK).await;
    }

    /// Gives messages back that clients have had, to be delivered again or, if that was too often, to the
    /// dead letters.
    pub(super) async fn give_back(
        self: &Arc<Self>,
        messages: Vec<Arc<Pulled>>,
        events: &mpsc::Sender<Event>,
    ) -> Option<Refusal> {
        let (dead, mut back): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(|message| message.is_spent(0));
        for message in dead {
            match self.bury(&message).await {
                Ok(()) => drop(events.send(Event::Buried { message }).await),
                Err(error) => {
                    tracing::debug!(text = error.text, "a dead letter stays");
                    back.push(message);
                }
            }
        }
        self.say(back, NAK).await.1
    }

    /// Tells the cluster what becomes of messages, and waits until it knows.
    async fn say(self: &Arc<Self>, messages: Vec<Arc<Pulled>>, what: &'static str) -> Outcome {
        let mut tasks = JoinSet::new();
        let mut messages = messages.into_iter();
        let (mut done, mut refusal, mut unheard) = (HashSet::new(), None, None);
        loop {
            while tasks.len() < SAYING_MAX
                && let Some(message) = messages.next()
            {
                let cluster = Arc::clone(self);
                tasks.spawn(async move {
                    let asked = cluster.ask(&message.ack, what).await;
                    (message, asked)
                });
            }
            match tasks.join_next().await {
                None => break,
                Some(Ok((message, Ok(())))) => drop(done.insert(message.id)),
                Some(Ok((message, Err(Failure::Nobody)))) => unheard = Some(message),
                Some(Ok((_, Err(Failure::Refused(why))))) => refusal = refusal.or(Some(why)),
                Some(Err(error)) => refusal = refusal.or(Some(away(error))),
            }
        }
        if refusal.is_none()
            && let Some(message) = unheard
        {
            refusal = Some(self.why_nobody(&message.opened).await);
        }
        (done, refusal)
    }

    /// Sends a message to the dead letters of its queue, once, and is done with it.
    async fn bury(&self, message: &Pulled) -> Result<(), Refusal> {
        let from = &message.opened;
        let Some(dead) = &from.about.options.dead_letter else {
            return Err(Refusal::new(errno::ENOENT, "there is no dead-letter queue"));
        };
        let to = match self.open(dead).await {
            Err(refusal) if refusal.errno == errno::ENOENT => {
                self.create(dead, None, &QueueOptions::default()).await?.0
            }
            opened => opened?,
        };
        let record = with_dead_letter(&message.record, &from.name, message.id, message.attempt);
        // who else buries it at the same time gets the same place
        let number = format!("dead-{:x}-{}", from.about.made, message.id);
        let publish = PublishMessage::build().payload(record.into()).message_id(number);
        let published =
            async { self.context.send_publish(to.subject.clone(), publish).await?.await };
        let published = bounded(published).await?;
        published.map_err(|error| unsent(dead, &error).refusal())?;
        self.ack(message).await.map_err(Failure::refusal)
    }
}

/// Sorts out what is not to be delivered; what is, is returned.
pub(super) async fn judge(
    cluster: &Cluster,
    message: Pulled,
    events: &mpsc::Sender<Event>,
) -> Option<Arc<Pulled>> {
    let message = Arc::new(message);
    if message.expires.is_some_and(|expires| expires <= wall()) {
        // if that does not get through, it comes again, and then here again
        let _ = cluster.ack(&message).await;
        let _ = events.send(Event::Expired { message }).await;
        return None;
    }
    if message.is_spent(UNSEEN_MAX) {
        match cluster.bury(&message).await {
            Ok(()) => {
                let _ = events.send(Event::Buried { message }).await;
                return None;
            }
            Err(error) => tracing::debug!(text = error.text, "a dead letter stays"),
        }
    }
    Some(message)
}
