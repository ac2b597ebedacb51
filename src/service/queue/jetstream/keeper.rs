//! The task for one queue: what has to happen in its order happens here, above all what is sent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::message::PublishMessage;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::super::machine::{Answer, Create, PARKED_BYTES_MAX, PARKED_MAX, Refusal, Send};
use super::super::options::{Kind, Policy, QueueOptions};
use super::cluster::{Cluster, Opened, bounded, wall};
use super::event::{Event, Place, Under};
use super::faults::{Failure, unsent};
use super::pull::EXPIRES;
use crate::wire::errno;

/// Messages of one queue that are sent and not yet in it.
pub(super) const PUBLISHING_MAX: usize = 1_024;

/// How often what waits for room is tried again: another broker may have made some.
const PARKED_PAUSE: Duration = Duration::from_millis(100);

pub(super) type Finding = Result<Arc<Opened>, Refusal>;

/// What a queue's task is to do.
pub(super) enum Order {
    Create {
        create: Create,
        session: u32,
        token: u64,
        under: Option<Under>,
    },
    Destroy {
        if_empty: bool,
        token: Option<u64>,
        /// How many have taken messages of some queue by now.
        takers: u64,
        under: Option<Under>,
    },
    Send(Sending),
    /// Look where it is now.
    Find {
        found: oneshot::Sender<Finding>,
    },
    /// Something of it is done with: there may be room.
    Room,
    /// What this session sent and waits for room is not to be sent any more.
    Forget {
        session: u32,
    },
}

/// A message to be sent.
pub(super) struct Sending {
    pub(super) send: Send,
    pub(super) session: u32,
    pub(super) token: u64,
    pub(super) under: Option<Under>,
    /// The queue was looked for anew.
    pub(super) again: bool,
}

pub(super) struct Keeper {
    pub(super) cluster: Arc<Cluster>,
    pub(super) name: Arc<str>,
    pub(super) events: mpsc::Sender<Event>,
    connections: watch::Receiver<u64>,
    opened: Option<Arc<Opened>>,
    /// A transient queue of this broker, to be made again if the cluster has lost it.
    mine: Option<(u32, QueueOptions)>,
    publishing: JoinSet<Option<Sending>>,
    parked: VecDeque<Parked>,
    parked_bytes: u64,
}

/// A message that waits for room.
struct Parked {
    send: Send,
    session: u32,
    token: u64,
}

impl Keeper {
    pub(super) fn new(
        cluster: &Arc<Cluster>,
        name: &Arc<str>,
        events: &mpsc::Sender<Event>,
    ) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            name: Arc::clone(name),
            events: events.clone(),
            connections: cluster.connections.clone(),
            opened: None,
            mine: None,
            publishing: JoinSet::new(),
            parked: VecDeque::new(),
            parked_bytes: 0,
        }
    }

    /// Until nobody can give it orders, and what was sent is answered.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut ticks = interval(PARKED_PAUSE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut next = None;
        loop {
            if let Some(order) = next.take() {
                next = self.carry_out(order, &mut orders).await;
                continue;
            }
            tokio::select! {
                order = orders.recv(), if self.publishing.len() < PUBLISHING_MAX => match order {
                    Some(order) => next = self.carry_out(order, &mut orders).await,
                    None => break,
                },
                Some(done) = self.publishing.join_next() => self.published(done.ok().flatten()).await,
                _ = ticks.tick(), if !self.parked.is_empty() => self.unpark().await,
            }
        }
        while let Some(done) = self.publishing.join_next().await {
            self.published(done.ok().flatten()).await;
        }
        for parked in std::mem::take(&mut self.parked) {
            let text = "too many queues are used at once for this one to be waited for";
            self.refuse(parked, Refusal::new(errno::EMFILE, text)).await;
        }
    }

    /// Returns the next order, if it had to be taken to know that it is another one.
    async fn carry_out(
        &mut self,
        order: Order,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Option<Order> {
        match order {
            Order::Create { create, session, token, under } => {
                let event = match self.create(create, session).await {
                    Ok((opened, new)) => {
                        Event::Created { token, session, opened, new, _under: under }
                    }
                    Err(refusal) => {
                        Event::Answered { token, answer: Answer::Refused(refusal), _under: under }
                    }
                };
                self.tell(event).await;
            }
            Order::Destroy { if_empty, token, takers, under } => {
                let event = match (self.destroy(if_empty).await, token) {
                    (Err(refusal), Some(token)) => {
                        Event::Answered { token, answer: Answer::Refused(refusal), _under: under }
                    }
                    (_, token) => {
                        let queue = Arc::clone(&self.name);
                        Event::Destroyed { token, queue, takers, _under: under }
                    }
                };
                self.tell(event).await;
            }
            Order::Send(sending) => self.send(sending).await,
            Order::Find { found } => {
                // one look is enough for all that wait for one
                let mut asking = vec![found];
                let next = loop {
                    match orders.try_recv() {
                        Ok(Order::Find { found }) => asking.push(found),
                        other => break other.ok(),
                    }
                };
                let finding = self.find().await;
                for found in asking {
                    let _ = found.send(finding.clone());
                }
                return next;
            }
            Order::Room => self.unpark().await,
            Order::Forget { session } => {
                let bytes = &mut self.parked_bytes;
                self.parked.retain(|parked| {
                    let stays = parked.session != session;
                    *bytes -= if stays { 0 } else { parked.send.record.len() as u64 };
                    stays
                });
            }
        }
        None
    }

    /// The queue as it was last seen, if that was over the same connection.
    async fn known(&mut self) -> Finding {
        if self.connections.has_changed().unwrap_or(false) {
            self.connections.mark_unchanged();
            self.opened = None;
        }
        match &self.opened {
            Some(opened) => Ok(Arc::clone(opened)),
            None => self.find().await,
        }
    }

    async fn find(&mut self) -> Finding {
        self.opened = None;
        let found = match (self.cluster.open(&self.name).await, &self.mine) {
            (Err(refusal), Some((session, options))) if refusal.errno == errno::ENOENT => {
                let owner = Some((self.cluster.instance, *session));
                self.cluster.create(&self.name, owner, options).await.map(|(opened, _)| opened)
            }
            (found, _) => found,
        }?;
        self.opened = Some(Arc::clone(&found));
        Ok(found)
    }

    async fn create(
        &mut self,
        create: Create,
        session: u32,
    ) -> Result<(Arc<Opened>, bool), Refusal> {
        let Create { kind, options, exclusive, .. } = create;
        let owner = (kind == Kind::Transient).then_some((self.cluster.instance, session));
        if let Some(dead) = options.as_ref().and_then(|options| options.dead_letter.as_deref()) {
            self.cluster.create(dead, None, &QueueOptions::default()).await?;
        }
        let reclaims = kind == Kind::Transient && !exclusive;
        let wanted = options.clone().unwrap_or_default();
        let found = match self.find().await {
            Ok(found) if reclaims && self.is_orphan(&found).await => {
                match self.cluster.destroy(&found, 0).await {
                    // somebody else was first
                    Err(refusal) if refusal.errno != errno::ENOENT => Err(refusal),
                    _ => Err(Refusal::missing(&self.name)),
                }
            }
            found => found,
        };
        let (opened, new) = match found {
            Err(refusal) if refusal.errno == errno::ENOENT => {
                self.cluster.create(&self.name, owner, &wanted).await?
            }
            found => (found?, false),
        };
        self.opened = Some(Arc::clone(&opened));
        if new {
            self.mine = owner.map(|(_, session)| (session, wanted));
            return Ok((opened, new));
        }
        let about = &opened.about;
        let other = |what| {
            let text = format!("there is a queue {:?} {what}", self.name);
            Err(Refusal::new(errno::EEXIST, text))
        };
        if exclusive {
            other("already")
        } else if about.kind() != kind {
            other("that lives differently")
        } else if about.owner != owner {
            other("of another session")
        } else if options.is_some_and(|options| options != about.options) {
            other("with other options")
        } else {
            Ok((opened, new))
        }
    }

    /// Whether it is a transient queue of a broker that does not answer. Who asks for it by its name, be it
    /// there or not, is its owner, who has come back to another broker: there is nothing to wait for.
    async fn is_orphan(&self, opened: &Opened) -> bool {
        match opened.about.owner {
            Some((instance, _)) if instance != self.cluster.instance => {
                self.cluster.is_alive(instance).await == Some(false)
            }
            _ => false,
        }
    }

    async fn destroy(&mut self, if_empty: bool) -> Result<(), Refusal> {
        self.mine = None;
        self.opened = None;
        let (opened, info) = self.cluster.look(&self.name).await?;
        if if_empty && info.state.messages > 0 {
            let text = format!("{} messages are in {:?}", info.state.messages, self.name);
            return Err(Refusal::new(errno::EBUSY, text));
        }
        self.cluster.destroy(&opened, info.state.last_sequence).await?;
        for parked in std::mem::take(&mut self.parked) {
            self.refuse(parked, Refusal::missing(&self.name)).await;
        }
        self.parked_bytes = 0;
        Ok(())
    }

    async fn refuse(&self, parked: Parked, refusal: Refusal) {
        let Parked { send, session, token } = parked;
        let sending = Sending { send, session, token, under: None, again: true };
        self.not_sent(sending, refusal).await;
    }

    async fn send(&mut self, sending: Sending) {
        let opened = match self.known().await {
            Err(refusal) if refusal.errno == errno::ENOENT && sending.send.create => {
                let options = QueueOptions::default();
                self.cluster.create(&self.name, None, &options).await.map(|(opened, _)| opened)
            }
            found => found,
        };
        let opened = match opened.and_then(|opened| check(&opened, &sending.send).map(|()| opened))
        {
            Ok(opened) => opened,
            Err(refusal) => return self.not_sent(sending, refusal).await,
        };
        self.opened = Some(Arc::clone(&opened));
        if opened.about.options.policy == Policy::Block {
            return self.send_or_park(&opened, sending).await;
        }
        match begin(&self.cluster, &opened, &sending.send).await {
            Err(failure) => self.not_sent(sending, failure.refusal()).await,
            Ok(published) => {
                let events = self.events.clone();
                self.publishing.spawn(async move {
                    match end(&opened, published).await {
                        Err(Failure::Nobody) if !sending.again => {
                            return Some(Sending { again: true, ..sending });
                        }
                        outcome => {
                            let _ = events.send(told(&opened, sending, outcome)).await;
                        }
                    }
                    None
                });
            }
        }
    }

    /// A message is through; or its queue is to be looked for anew.
    async fn published(&mut self, again: Option<Sending>) {
        if let Some(sending) = again {
            self.opened = None;
            Box::pin(self.send(sending)).await;
        }
    }

    /// What waits for room is in order, so one is sent after the other.
    async fn send_or_park(&mut self, opened: &Arc<Opened>, sending: Sending) {
        if self.parked.is_empty() {
            match publish(&self.cluster, opened, &sending.send).await {
                Err(Failure::Refused(refusal)) if refusal.errno == errno::ENOBUFS => {}
                Err(Failure::Nobody) if !sending.again => {
                    self.opened = None;
                    return Box::pin(self.send(Sending { again: true, ..sending })).await;
                }
                outcome => return self.tell(told(opened, sending, outcome)).await,
            }
        }
        let length = sending.send.record.len() as u64;
        if self.parked.len() >= PARKED_MAX || self.parked_bytes + length > PARKED_BYTES_MAX {
            let text = format!("the queue {:?} is full", self.name);
            return self.not_sent(sending, Refusal::new(errno::ENOBUFS, text)).await;
        }
        // from now on it may take as long as it likes, and holds nothing else up
        let Sending { send, session, token, .. } = sending;
        self.parked_bytes += length;
        self.tell(Event::Parked { token, session, queue: Arc::clone(&self.name) }).await;
        self.parked.push_back(Parked { send, session, token });
    }

    /// Sends what waits for room, as long as there is some.
    async fn unpark(&mut self) {
        while let Some(Parked { send, session, token }) = self.parked.pop_front() {
            self.parked_bytes -= send.record.len() as u64;
            let outcome = match self.known().await {
                Ok(opened) => {
                    publish(&self.cluster, &opened, &send).await.map(|place| (opened, place))
                }
                Err(refusal) => Err(refusal.into()),
            };
            let sending = Sending { send, session, token, under: None, again: true };
            match outcome {
                Ok((opened, place)) => self.tell(told(&opened, sending, Ok(place))).await,
                Err(Failure::Refused(refusal)) if refusal.errno == errno::ENOENT => {
                    self.not_sent(sending, refusal).await;
                }
                // full still, or the cluster is away
                Err(failure) => {
                    if matches!(failure, Failure::Nobody) {
                        self.opened = None;
                    }
                    let Sending { send, session, token, .. } = sending;
                    self.parked_bytes += send.record.len() as u64;
                    self.parked.push_front(Parked { send, session, token });
                    return;
                }
            }
        }
    }

    async fn not_sent(&self, sending: Sending, refusal: Refusal) {
        self.tell(refused(Arc::clone(&self.name), sending, refusal)).await;
    }

    async fn tell(&self, event: Event) {
        // without an engine nobody wants to know
        let _ = self.events.send(event).await;
    }
}

fn refused(queue: Arc<str>, sending: Sending, refusal: Refusal) -> Event {
    let Sending { send, session, token, under, .. } = sending;
    Event::NotSent { token, session, queue, record: send.record, refusal, _under: under }
}

fn told(opened: &Opened, sending: Sending, outcome: Result<(u64, bool), Failure>) -> Event {
    let queue = Arc::clone(&opened.name);
    match outcome {
        Err(failure) => refused(queue, sending, failure.refusal()),
        Ok((id, again)) => {
            let Sending { send, session, token, under, .. } = sending;
            let place = Place { queue, id, again, record: send.record };
            Event::Sent { token, session, send_id: send.send_id, place, _under: under }
        }
    }
}

fn check(opened: &Opened, send: &Send) -> Result<(), Refusal> {
    let QueueOptions { message_bytes_max, bytes_max, messages_max, .. } = opened.about.options;
    let (length, max) = (send.record.len() as u64, message_bytes_max.min(bytes_max));
    if length > max {
        let text = format!("the message has {length} bytes, {:?} takes {max}", opened.name);
        return Err(Refusal::new(errno::EMSGSIZE, text));
    }
    if messages_max == 0 {
        return Err(Refusal::new(errno::ENOBUFS, format!("the queue {:?} is full", opened.name)));
    }
    if send.send_id.is_some_and(|send_id| send_id.sequence == 0) {
        return Err(Refusal::new(errno::ERANGE, "a sender counts from 1"));
    }
    Ok(())
}

/// Hands a message to the connection.
async fn begin(
    cluster: &Cluster,
    opened: &Opened,
    send: &Send,
) -> Result<PublishAckFuture, Failure> {
    cluster.check()?;
    let mut publish = PublishMessage::build().payload(send.record.clone());
    if let Some(send_id) = send.send_id {
        publish = publish.message_id(format!("{:032x}-{}", send_id.sender, send_id.sequence));
    }
    let ttl_max = Some(opened.about.options.ttl_ms_max).filter(|max| *max > 0);
    if let Some(ttl) = send.ttl_ms.into_iter().chain(ttl_max).min() {
        publish = publish.header(EXPIRES, wall().after_ms(ttl).0.to_string());
    }
    let begun = cluster.context.send_publish(opened.subject.clone(), publish);
    bounded(begun).await?.map_err(|error| unsent(&opened.name, &error))
}

async fn publish(cluster: &Cluster, opened: &Opened, send: &Send) -> Result<(u64, bool), Failure> {
    end(opened, begin(cluster, opened, send).await?).await
}

/// Waits until the cluster has a message: its id, and whether it had come before.
async fn end(opened: &Opened, published: PublishAckFuture) -> Result<(u64, bool), Failure> {
    match bounded(published.into_future()).await? {
        Ok(ack) => Ok((opened.id(ack.sequence), ack.duplicate)),
        Err(error) => Err(unsent(&opened.name, &error)),
    }
}
