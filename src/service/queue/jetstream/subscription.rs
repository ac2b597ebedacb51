//! The task for one subscription: it pulls as much as there is credit for.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::super::machine::Refusal;
use super::cluster::{Cluster, Opened};
use super::event::{Event, Grant, Under};
use super::keeper::{Finding, Order};
use super::pause::Pauses;
use super::pull::{Came, End, Inbox, PULL_EXPIRES, PULL_MAX, Pulled};
use super::settle::judge;
use crate::wire::errno;

pub(super) struct Subscription {
    pub(super) cluster: Arc<Cluster>,
    pub(super) taker: u32,
    pub(super) session: u32,
    /// Where to look for the queue again.
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) events: mpsc::Sender<Event>,
    /// How much may be taken; when there is no sender any more it is over.
    pub(super) grants: watch::Receiver<Grant>,
    /// How much was passed on.
    pub(super) passed: (u64, u64),
    /// Says, by being there, that it may pull.
    pub(super) _pulls: watch::Receiver<()>,
}

/// What interrupts the pulling.
enum Interruption {
    /// Nobody takes messages any more.
    Over,
    /// The queue is to be looked for anew.
    Lost,
}

impl Subscription {
    /// A broker does not end before this has, and nothing is left with it.
    pub(super) async fn run(mut self, found: oneshot::Receiver<Finding>, under: Under) {
        if let Some(refusal) = self.take(found).await {
            self.tell(Event::Unsubscribed { taker: self.taker, refusal }).await;
        }
        let events = self.events.clone();
        drop(self);
        let _ = events.send(Event::Over { _under: Some(under) }).await;
    }

    /// Takes messages until nobody wants any more, or it cannot go on.
    async fn take(&mut self, found: oneshot::Receiver<Finding>) -> Option<Refusal> {
        let mut opened = match self.permitted(found).await? {
            Ok(opened) => opened,
            Err(refusal) => return Some(refusal),
        };
        self.tell(Event::Subscribed { taker: self.taker }).await;
        let mut connections = self.cluster.connections.clone();
        let mut pauses = Pauses::default();
        loop {
            connections.mark_unchanged();
            let interruption = match Inbox::open(&self.cluster, &opened).await {
                Ok(inbox) => self.pull(inbox, &mut connections).await,
                Err(_) => Interruption::Lost,
            };
            if matches!(interruption, Interruption::Over) {
                return None;
            }
            opened = loop {
                tokio::select! {
                    () = pauses.wait(&mut connections) => {}
                    () = over(&mut self.grants) => return None,
                }
                let (found, finding) = oneshot::channel();
                self.orders.send(Order::Find { found }).await.ok()?;
                match self.permitted(finding).await? {
                    Ok(opened) => break opened,
                    // it goes on when the cluster is there again
                    Err(refusal) if refusal.errno == errno::EHOSTUNREACH => {}
                    Err(refusal) => return Some(refusal),
                }
            };
        }
    }

    /// The queue, unless nobody wants anything of it any more.
    async fn permitted(&mut self, found: oneshot::Receiver<Finding>) -> Option<Finding> {
        tokio::select! {
            found = permitted(&self.cluster, self.session, found) => Some(found),
            () = over(&mut self.grants) => None,
        }
    }

    async fn pull(
        &mut self,
        mut inbox: Inbox,
        connections: &mut watch::Receiver<u64>,
    ) -> Interruption {
        let mut too_long = false;
        let interruption = loop {
            let grant = *self.grants.borrow_and_update();
            let messages = grant.messages.saturating_sub(self.passed.0).min(PULL_MAX.into()) as u32;
            let bytes = grant.bytes.saturating_sub(self.passed.1);
            if !inbox.is_asking() && messages > 0 {
                let idle = grant.idle && grant.came == self.passed.0;
                let asked = match (too_long, idle) {
                    // one message is always let through
                    (true, true) => inbox.ask(1, None, Some(PULL_EXPIRES)).await,
                    (false, _) if bytes > 0 => {
                        inbox.ask(messages, Some(bytes), Some(PULL_EXPIRES)).await
                    }
                    _ => Ok(()),
                };
                if asked.is_err() {
                    break Interruption::Lost;
                }
            }
            tokio::select! {
                changed = self.grants.changed() => match changed {
                    Ok(()) => {}
                    Err(_) => break Interruption::Over,
                },
                came = inbox.next(), if inbox.is_asking() => match came {
                    Came::Message(message) => {
                        too_long = false;
                        self.pass(message).await;
                    }
                    Came::Ended(End::Empty) => {}
                    Came::Ended(End::TooLong) => too_long = true,
                    Came::Ended(End::Lost) => break Interruption::Lost,
                },
                _ = connections.changed() => break Interruption::Lost,
            }
        };
        // the engine gives back what nobody takes any more
        for message in inbox.close().await {
            self.pass(message).await;
        }
        interruption
    }

    async fn pass(&mut self, message: Pulled) {
        if let Some(message) = judge(&self.cluster, message, &self.events).await {
            self.passed.0 += 1;
            self.passed.1 += message.record.len() as u64;
            let came = self.events.send(Event::Came { taker: self.taker, message }).await;
            // an engine that is gone gives nothing back
            if let Err(mpsc::error::SendError(Event::Came { message, .. })) = came {
                self.cluster.hand_back(vec![message]).await;
            }
        }
    }

    async fn tell(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}

/// Until nobody takes messages any more.
async fn over(grants: &mut watch::Receiver<Grant>) {
    // how much is granted is read anew before each pull
    while grants.changed().await.is_ok() {}
}

/// A queue that was found, if this session may take its messages.
pub(super) async fn permitted(
    cluster: &Cluster,
    session: u32,
    found: oneshot::Receiver<Finding>,
) -> Finding {
    let gone = || Refusal::new(errno::EBUSY, "too much is asked of the queue at once");
    let opened: Arc<Opened> = found.await.map_err(|_| gone())??;
    if opened.about.owner.is_some_and(|owner| owner != (cluster.instance, session)) {
        let text = format!("{:?} is for its owner", opened.name);
        return Err(Refusal::new(errno::EPERM, text));
    }
    Ok(opened)
}
