//! The task for one RECEIVE: messages of the first of its queues that has some.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::super::machine::{RECEIVE_BYTES_MAX, Receive, Refusal};
use super::cluster::{CALL_MAX, Cluster};
use super::event::{Event, Under};
use super::keeper::{Finding, Order};
use super::pause::Pauses;
use super::pull::{Came, End, Inbox, PULL_EXPIRES, Pulled};
use super::settle::judge;
use super::subscription::permitted;
use crate::wire::errno;

pub(super) struct Receiving {
    pub(super) cluster: Arc<Cluster>,
    pub(super) taker: u32,
    pub(super) session: u32,
    pub(super) receive: Receive,
    /// Where to look for each of its queues again.
    pub(super) orders: Vec<mpsc::Sender<Order>>,
    pub(super) events: mpsc::Sender<Event>,
    /// Says, by being there, that it may pull.
    pub(super) _pulls: watch::Receiver<()>,
}

/// What was taken so far.
#[derive(Default)]
struct Taken {
    messages: Vec<Arc<Pulled>>,
    bytes: u64,
}

enum Interruption {
    Refused(Refusal),
    /// The queues are to be looked for anew.
    Lost,
}

impl From<Refusal> for Interruption {
    fn from(refusal: Refusal) -> Self {
        match refusal.errno {
            errno::EHOSTUNREACH => Self::Lost,
            _ => Self::Refused(refusal),
        }
    }
}

impl Receiving {
    /// `over` ends when nobody waits any more. A broker does not end before this has, and nothing is left
    /// with it.
    pub(super) async fn run(
        self,
        found: Vec<oneshot::Receiver<Finding>>,
        over: oneshot::Receiver<()>,
        under: Under,
    ) {
        if let Some(outcome) = self.receive(found, over).await {
            let received = Event::Received { taker: self.taker, outcome };
            // an engine that is gone gives nothing back
            if let Err(mpsc::error::SendError(Event::Received { outcome: Ok(messages), .. })) =
                self.events.send(received).await
            {
                self.cluster.hand_back(messages).await;
            }
        }
        let events = self.events.clone();
        drop(self);
        let _ = events.send(Event::Over { _under: Some(under) }).await;
    }

    /// What there is for who waits, if he still does.
    async fn receive(
        &self,
        mut found: Vec<oneshot::Receiver<Finding>>,
        mut over: oneshot::Receiver<()>,
    ) -> Option<Result<Vec<Arc<Pulled>>, Refusal>> {
        let mut connections = self.cluster.connections.clone();
        let mut pauses = Pauses::default();
        let started = Instant::now();
        let wait = Duration::from_millis(self.receive.timeout_ms);
        // one that is too long to be told is for ever
        let deadline = started.checked_add(wait);
        let mut taken = Taken::default();
        let outcome = loop {
            let mut inboxes = Vec::new();
            connections.mark_unchanged();
            let taking = async {
                for found in found {
                    let opened = permitted(&self.cluster, self.session, found).await?;
                    inboxes.push(Inbox::open(&self.cluster, &opened).await?);
                }
                self.take(&mut inboxes, &mut taken, deadline).await
            };
            let ended = tokio::select! {
                ended = taking => Some(ended),
                _ = &mut over => None,
            };
            let left = self.close(inboxes).await;
            self.cluster.hand_back(left).await;
            let in_time = deadline.is_none_or(|deadline| Instant::now() < deadline);
            match ended {
                None => {
                    self.cluster.hand_back(taken.messages).await;
                    return None;
                }
                Some(Ok(())) => break Ok(()),
                Some(Err(_)) if !taken.messages.is_empty() => break Ok(()),
                Some(Err(Interruption::Refused(refusal))) => break Err(refusal),
                Some(Err(Interruption::Lost)) if !in_time => {
                    let text = "the NATS cluster is away, or a queue has gone";
                    break Err(Refusal::new(errno::EHOSTUNREACH, text));
                }
                Some(Err(Interruption::Lost)) => {}
            }
            tokio::select! {
                () = pauses.wait(&mut connections) => {}
                _ = &mut over => return None,
            }
            found = Vec::new();
            for orders in &self.orders {
                let (sender, finding) = oneshot::channel();
                let _ = orders.send(Order::Find { found: sender }).await;
                found.push(finding);
            }
        };
        Some(match outcome {
            Ok(()) if self.receive.auto_ack => self.done_with(taken.messages).await,
            outcome => outcome.map(|()| taken.messages),
        })
    }

    /// Acknowledges what is done with as soon as it is delivered; what cannot be comes again.
    async fn done_with(&self, messages: Vec<Arc<Pulled>>) -> Result<Vec<Arc<Pulled>>, Refusal> {
        let (acked, refusal) = self.cluster.ack_all(messages.clone()).await;
        match refusal {
            Some(refusal) if acked.is_empty() => Err(refusal),
            _ => Ok(messages.into_iter().filter(|message| acked.contains(&message.id)).collect()),
        }
    }

    async fn take(
        &self,
        inboxes: &mut [Inbox],
        taken: &mut Taken,
        deadline: Option<Instant>,
    ) -> Result<(), Interruption> {
        for inbox in inboxes.iter_mut() {
            self.take_what_is_there(inbox, taken).await?;
            if !taken.messages.is_empty() {
                return Ok(());
            }
        }
        while taken.messages.is_empty() {
            let left = deadline.map_or(PULL_EXPIRES, |deadline| {
                deadline.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return Ok(());
            }
            for inbox in inboxes.iter_mut().filter(|inbox| !inbox.is_asking()) {
                inbox.ask(1, None, Some(left.min(PULL_EXPIRES))).await?;
            }
            // the server ends it in time, and if not, it has this long
            let first = timeout(left + CALL_MAX, first_of(inboxes)).await;
            match first.unwrap_or((0, Came::Ended(End::Lost))) {
                (at, Came::Message(message)) => {
                    self.keep(message, taken).await;
                    if !taken.messages.is_empty() {
                        return self.take_what_is_there(&mut inboxes[at], taken).await;
                    }
                }
                (_, Came::Ended(End::Lost)) => return Err(Interruption::Lost),
                (_, Came::Ended(_)) => {}
            }
        }
        Ok(())
    }

    /// Takes up to as much as is asked for, without waiting for more to come.
    async fn take_what_is_there(
        &self,
        inbox: &mut Inbox,
        taken: &mut Taken,
    ) -> Result<(), Interruption> {
        loop {
            let left = self.receive.messages_max.saturating_sub(taken.messages.len() as u32);
            let bytes = RECEIVE_BYTES_MAX.saturating_sub(taken.bytes);
            if left == 0 || bytes == 0 {
                return Ok(());
            }
            let mut end = self.take_some(inbox, left, Some(bytes), taken).await?;
            if end == Some(End::TooLong) && taken.messages.is_empty() {
                end = self.take_some(inbox, 1, None, taken).await?;
            }
            match end {
                // as many as one pull brings, and there may be more
                None => {}
                Some(End::Lost) => return Err(Interruption::Lost),
                Some(_) => return Ok(()),
            }
        }
    }

    async fn take_some(
        &self,
        inbox: &mut Inbox,
        messages: u32,
        bytes: Option<u64>,
        taken: &mut Taken,
    ) -> Result<Option<End>, Interruption> {
        inbox.ask(messages, bytes, None).await?;
        while inbox.is_asking() {
            match inbox.next().await {
                Came::Message(message) => self.keep(message, taken).await,
                Came::Ended(end) => return Ok(Some(end)),
            }
        }
        Ok(None)
    }

    async fn keep(&self, message: Pulled, taken: &mut Taken) {
        if let Some(message) = judge(&self.cluster, message, &self.events).await {
            taken.bytes += message.record.len() as u64;
            taken.messages.push(message);
        }
    }

    async fn close(&self, inboxes: Vec<Inbox>) -> Vec<Arc<Pulled>> {
        let mut left = Vec::new();
        for inbox in inboxes {
            left.extend(inbox.close().await.into_iter().map(Arc::new));
        }
        left
    }
}

/// What comes first, and from where.
async fn first_of(inboxes: &mut [Inbox]) -> (usize, Came) {
    std::future::poll_fn(|context| {
        for (at, inbox) in inboxes.iter_mut().enumerate() {
            if let Poll::Ready(came) = inbox.poll_next(context) {
                return Poll::Ready((at, came));
            }
        }
        Poll::Pending
    })
    .await
}
