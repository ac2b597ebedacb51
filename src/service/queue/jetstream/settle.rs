//! What becomes of a message that was pulled.

use std::sync::Arc;

use async_nats::jetstream::message::PublishMessage;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::machine::Refusal;
use super::super::options::QueueOptions;
use super::super::protocol::with_dead_letter;
use super::cluster::{Cluster, away, bounded, wall};
use super::event::Event;
use super::pull::Pulled;
use crate::wire::errno;

const ACK: &str = "+ACK";
const NAK: &str = "-NAK";
const PROGRESS: &str = "+WPI";

/// Acknowledgements of one command that are under way at once.
const ACKS_MAX: usize = 256;

impl Cluster {
    /// It is done with, and will not come again.
    pub(super) async fn ack(&self, message: &Pulled) -> Result<(), Refusal> {
        self.ask(&message.ack, ACK).await
    }

    /// It comes again at once.
    pub(super) async fn nak(&self, message: &Pulled) -> Result<(), Refusal> {
        self.ask(&message.ack, NAK).await
    }

    /// Its lease begins anew.
    pub(super) async fn progress(&self, message: &Pulled) -> Result<(), Refusal> {
        self.ask(&message.ack, PROGRESS).await
    }

    /// Acknowledges messages: which it did, and why not all.
    pub(super) async fn ack_all(
        self: &Arc<Self>,
        messages: Vec<Arc<Pulled>>,
    ) -> (Vec<u64>, Option<Refusal>) {
        let mut tasks = JoinSet::new();
        let mut messages = messages.into_iter();
        let (mut acked, mut refusal) = (Vec::new(), None);
        loop {
            while tasks.len() < ACKS_MAX
                && let Some(message) = messages.next()
            {
                let cluster = Arc::clone(self);
                tasks.spawn(async move { (message.id, cluster.ack(&message).await) });
            }
            match tasks.join_next().await {
                None => return (acked, refusal),
                Some(Ok((id, Ok(())))) => acked.push(id),
                Some(Ok((_, Err(why)))) => refusal = refusal.or(Some(why)),
                Some(Err(error)) => refusal = refusal.or(Some(away(error))),
            }
        }
    }

    /// Gives messages back, to be delivered again or, if that was too often, to the dead letters.
    pub(super) async fn give_back(
        &self,
        messages: &[Arc<Pulled>],
        events: &mpsc::Sender<Event>,
    ) -> Option<Refusal> {
        let mut refusal = None;
        for message in messages {
            let QueueOptions { dead_letter, attempts_max, .. } = &message.opened.about.options;
            if dead_letter.is_some() && message.attempt >= *attempts_max {
                match self.bury(message).await {
                    Ok(()) => {
                        let _ = events.send(Event::Buried { message: Arc::clone(message) }).await;
                        continue;
                    }
                    Err(error) => tracing::debug!(text = error.text, "a dead letter stays"),
                }
            }
            if let Err(error) = self.nak(message).await {
                refusal.get_or_insert(error);
            }
        }
        refusal
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
        bounded(published).await?.map_err(away)?;
        self.ack(message).await
    }
}

/// Sorts out what is not to be delivered; what is, is returned.
pub(super) async fn judge(
    cluster: &Cluster,
    message: Pulled,
    events: &mpsc::Sender<Event>,
) -> Option<Arc<Pulled>> {
    let message = Arc::new(message);
    let QueueOptions { dead_letter, attempts_max, .. } = &message.opened.about.options;
    if message.expires.is_some_and(|expires| expires <= wall()) {
        // if that does not get through, it comes again, and then here again
        let _ = cluster.ack(&message).await;
        let _ = events.send(Event::Expired { message }).await;
        return None;
    }
    if dead_letter.is_some() && message.attempt > *attempts_max {
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
