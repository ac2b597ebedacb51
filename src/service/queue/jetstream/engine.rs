//! The engine: who of this broker takes what, and what they hold. What has to be asked of the cluster is
//! asked by tasks, which say how it went.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot, watch};

use super::super::engine::Engine;
use super::super::machine::{
    Answer, CREDIT_MAX, Command, Counters, Effect, MachineOptions, NAME_BYTES_MAX,
    RECEIVE_QUEUES_MAX, Receive, Refusal, Send, Subscribe, Trace, WAITING_PER_SESSION_MAX, What,
};
use super::super::options::Kind;
use super::cluster::Cluster;
use super::event::{Event, Grant, Under};
use super::held::Held;
use super::keeper::{Finding, Keeper, Order, Sending};
use super::pull::Pulled;
use super::receive::Receiving;
use super::recent::Recent;
use super::subscription::Subscription;
use crate::store::Time;
use crate::wire::errno;

/// Commands that are under way; past it no further request is taken in.
const COMMANDS_MAX: usize = 4_096;

/// Orders that wait for the task of one queue.
const ORDERS_MAX: usize = 8_192;

/// What tasks have told and the engine has not taken in.
const EVENTS_MAX: usize = 4_096;

/// Queues that have a task in this broker. Of further ones the tasks of some that nobody uses end.
const KEEPERS_MAX: usize = 8_192;

/// RECEIVEs and subscriptions of this broker.
const TAKERS_MAX: usize = 16_384;

/// Events that are taken in at once.
const TURN_MAX: usize = 1_024;

pub(super) struct Front {
    pub(super) cluster: Arc<Cluster>,
    pub(super) started: Time,
    events: mpsc::Receiver<Event>,
    pub(super) report: mpsc::Sender<Event>,
    under: Arc<AtomicUsize>,
    pub(super) queues: HashMap<Arc<str>, Here>,
    pub(super) sessions: HashMap<u32, Session>,
    pub(super) takers: HashMap<u32, Taker>,
    last_taker: u32,
    /// When something is to be done about a held message.
    pub(super) timers: BTreeSet<(Time, Arc<str>, u64)>,
    pub(super) recent: Recent,
    pub(super) trace: Trace,
    pub(super) tails: Vec<Tail>,
    pub(super) effects: Vec<Effect>,
    made_up: u64,
    /// As long as it is here, this broker says that it is.
    _there: oneshot::Sender<()>,
}

/// What this broker has of a queue.
pub(super) struct Here {
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) held: BTreeMap<u64, Held>,
    pub(super) counters: Counters,
    pub(super) last_taken: Option<Time>,
    pub(super) takers: u32,
    /// It is transient, and belongs to this session.
    pub(super) owner: Option<u32>,
}

#[derive(Default)]
pub(super) struct Session {
    queues: BTreeSet<Arc<str>>,
    pub(super) takers: BTreeSet<u32>,
    /// Queues of which it holds messages.
    pub(super) holding: BTreeSet<Arc<str>>,
    parking: BTreeSet<Arc<str>>,
}

/// Whoever takes messages.
pub(super) struct Taker {
    pub(super) token: u64,
    pub(super) session: u32,
    pub(super) queues: Vec<Arc<str>>,
    pub(super) lease_ms: Option<u64>,
    pub(super) how: How,
}

pub(super) enum How {
    Subscribed(Subscribed),
    /// Its task ends when this is dropped. `auto_ack`: it does not hold what it gets.
    Receives {
        _over: oneshot::Sender<()>,
        auto_ack: bool,
    },
}

pub(super) struct Subscribed {
    grants: watch::Sender<Grant>,
    credit: (u64, u64),
    came: (u64, u64),
    pub(super) held: (u64, u64),
}

impl Subscribed {
    /// Lets it take as much as it has room for.
    pub(super) fn grant(&self) {
        let room =
            (self.credit.0.saturating_sub(self.held.0), self.credit.1.saturating_sub(self.held.1));
        self.grants.send_replace(Grant {
            messages: self.came.0 + room.0,
            bytes: self.came.1 + room.1,
            came: self.came.0,
            idle: self.held.0 == 0,
        });
    }
}

/// A TRACE that waits.
pub(super) struct Tail {
    pub(super) token: u64,
    pub(super) session: u32,
    pub(super) from: u64,
    pub(super) deadline: Time,
    pub(super) prefix: String,
}

impl Front {
    pub(super) fn new(
        cluster: Arc<Cluster>,
        there: oneshot::Sender<()>,
        options: MachineOptions,
        now: Time,
    ) -> Self {
        let (report, events) = mpsc::channel(EVENTS_MAX);
        Self {
            cluster,
            started: now,
            events,
            report,
            under: Arc::default(),
            queues: HashMap::new(),
            sessions: HashMap::new(),
            takers: HashMap::new(),
            last_taker: 0,
            timers: BTreeSet::new(),
            recent: Recent::default(),
            trace: Trace::new(options.trace_events_max),
            tails: Vec::new(),
            effects: Vec::new(),
            made_up: 0,
            _there: there,
        }
    }

    pub(super) fn answer(&mut self, token: u64, answer: Answer) {
        self.effects.push(Effect::Answer { token, answer });
    }

    pub(super) fn under_way(&self) -> Option<Under> {
        Some(Under::way(&self.under))
    }

    /// What this broker has of a queue, of which it need not be known whether there is such a one.
    pub(super) fn here(&mut self, name: &str) -> Result<(Arc<str>, &mut Here), Refusal> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            let text =
                format!("a name has 1 to {NAME_BYTES_MAX} bytes, none of them a control character");
            return Err(Refusal::new(errno::EINVAL, text));
        }
        let known = self.queues.get_key_value(name).map(|(name, _)| Arc::clone(name));
        let name = match known {
            Some(name) => name,
            None => {
                self.make_place()?;
                let name: Arc<str> = name.into();
                let (orders, receiver) = mpsc::channel(ORDERS_MAX);
                let keeper = Keeper::new(&self.cluster, &name, &self.report);
                tokio::spawn(keeper.run(receiver));
                let here = Here {
                    orders,
                    held: BTreeMap::new(),
                    counters: Counters::default(),
                    last_taken: None,
                    takers: 0,
                    owner: None,
                };
                self.queues.insert(Arc::clone(&name), here);
                name
            }
        };
        let here = self.queues.get_mut(&name).ok_or_else(|| Refusal::missing(&name))?;
        Ok((name, here))
    }

    fn make_place(&mut self) -> Result<(), Refusal> {
        if self.queues.len() >= KEEPERS_MAX {
            self.queues.retain(|_, here| {
                !here.held.is_empty()
                    || here.takers > 0
                    || here.owner.is_some()
                    || here.orders.capacity() < here.orders.max_capacity()
            });
        }
        if self.queues.len() >= KEEPERS_MAX {
            return Err(Refusal::new(errno::EMFILE, "too many queues are used at once"));
        }
        Ok(())
    }

    /// Has a queue's task do something.
    pub(super) fn order(&mut self, name: &str, order: Order) -> Result<Arc<str>, Refusal> {
        let (name, here) = self.here(name)?;
        let busy = || Refusal::new(errno::EBUSY, "too much is asked of the queue at once");
        here.orders.try_send(order).map_err(|_| busy())?;
        Ok(name)
    }

    /// Has a queue looked for, after all that was ordered before.
    pub(super) fn find(&mut self, name: &str) -> Result<oneshot::Receiver<Finding>, Refusal> {
        let (found, finding) = oneshot::channel();
        self.order(name, Order::Find { found })?;
        Ok(finding)
    }

    /// Has something done that takes its time.
    pub(super) fn spawn(&self, task: impl Future<Output = Event> + std::marker::Send + 'static) {
        let report = self.report.clone();
        tokio::spawn(async move {
            let _ = report.send(task.await).await;
        });
    }

    fn create(
        &mut self,
        session: u32,
        token: u64,
        mut create: super::super::machine::Create,
    ) -> Result<(), Refusal> {
        let name = match create.queue.take() {
            Some(name) => name,
            None if create.kind == Kind::Transient => {
                self.made_up += 1;
                format!("tmp-{:016x}-{session:08x}-{}", self.cluster.instance, self.made_up)
            }
            None => return Err(Refusal::new(errno::EINVAL, "a persistent queue needs a name")),
        };
        if let Some(options) = &create.options
            && (options.dead_letter.as_deref() == Some(name.as_str()) || options.attempts_max == 0)
        {
            let text = "a dead-letter queue is another queue, after at least one attempt";
            return Err(Refusal::new(errno::EINVAL, text));
        }
        let under = self.under_way();
        self.order(&name, Order::Create { create, session, token, under }).map(drop)
    }

    fn send(&mut self, session: u32, token: u64, send: Send) -> Result<(), Refusal> {
        let under = self.under_way();
        let name = send.queue.clone();
        let sending = Sending { send, session, token, under, again: false };
        self.order(&name, Order::Send(sending)).map(drop)
    }

    fn receive(
        &mut self,
        now: Time,
        session: u32,
        token: u64,
        mut receive: Receive,
    ) -> Result<(), Refusal> {
        let queues = std::mem::take(&mut receive.queues);
        if queues.is_empty() || queues.len() > RECEIVE_QUEUES_MAX || receive.messages_max == 0 {
            let text = format!("1 to {RECEIVE_QUEUES_MAX} queues and at least 1 message, please");
            return Err(Refusal::new(errno::EINVAL, text));
        }
        let taker = self.new_taker(session)?;
        let (mut names, mut found, mut orders) = (Vec::new(), Vec::new(), Vec::new());
        for name in &queues {
            if names.iter().any(|known: &Arc<str>| **known == **name) {
                continue;
            }
            found.push(self.find(name)?);
            let (name, here) = self.here(name)?;
            orders.push(here.orders.clone());
            names.push(name);
        }
        for name in &names {
            if let Some(here) = self.queues.get_mut(name) {
                here.takers += 1;
                here.last_taken = Some(now);
            }
        }
        let (over, ended) = oneshot::channel();
        let how = How::Receives { _over: over, auto_ack: receive.auto_ack };
        let lease_ms = receive.lease_ms;
        self.takers.insert(taker, Taker { token, session, queues: names, lease_ms, how });
        self.sessions.entry(session).or_default().takers.insert(taker);
        let receiving = Receiving {
            cluster: Arc::clone(&self.cluster),
            taker,
            session,
            receive,
            orders,
            events: self.report.clone(),
        };
        tokio::spawn(receiving.run(found, ended));
        Ok(())
    }

    fn subscribe(
        &mut self,
        now: Time,
        session: u32,
        token: u64,
        subscribe: &Subscribe,
    ) -> Result<(), Refusal> {
        if subscribe.credit == 0 {
            return Err(Refusal::new(errno::EINVAL, "a credit of 0 gets nothing"));
        }
        let taker = self.new_taker(session)?;
        let found = self.find(&subscribe.queue)?;
        let (name, here) = self.here(&subscribe.queue)?;
        here.takers += 1;
        here.last_taken = Some(now);
        let orders = here.orders.clone();
        let credit =
            (subscribe.credit.min(CREDIT_MAX.0).into(), subscribe.credit_bytes.min(CREDIT_MAX.1));
        let (grants, granted) = watch::channel(Grant::default());
        let subscribed = Subscribed { grants, credit, came: (0, 0), held: (0, 0) };
        subscribed.grant();
        let how = How::Subscribed(subscribed);
        let lease_ms = subscribe.lease_ms;
        self.takers.insert(taker, Taker { token, session, queues: vec![name], lease_ms, how });
        self.sessions.entry(session).or_default().takers.insert(taker);
        let subscription = Subscription {
            cluster: Arc::clone(&self.cluster),
            taker,
            session,
            orders,
            events: self.report.clone(),
            grants: granted,
            passed: (0, 0),
        };
        tokio::spawn(subscription.run(found));
        Ok(())
    }

    fn new_taker(&mut self, session: u32) -> Result<u32, Refusal> {
        let of_session = self.sessions.get(&session).map_or(0, |session| session.takers.len());
        if of_session >= WAITING_PER_SESSION_MAX || self.takers.len() >= TAKERS_MAX {
            return Err(Refusal::new(errno::EMFILE, "too many requests wait for messages"));
        }
        loop {
            self.last_taker = self.last_taker.wrapping_add(1);
            if self.last_taker != 0 && !self.takers.contains_key(&self.last_taker) {
                return Ok(self.last_taker);
            }
        }
    }

    /// Takes a taker away. What it holds is not touched.
    pub(super) fn end_taker(&mut self, number: u32, now: Time) -> Option<Taker> {
        let taker = self.takers.remove(&number)?;
        if let Some(session) = self.sessions.get_mut(&taker.session) {
            session.takers.remove(&number);
        }
        for name in &taker.queues {
            if let Some(here) = self.queues.get_mut(name) {
                here.takers = here.takers.saturating_sub(1);
                here.last_taken = Some(now);
            }
        }
        Some(taker)
    }

    fn unsubscribe(&mut self, now: Time, session: u32, consumer: u32) -> Result<Answer, Refusal> {
        let taker = self
            .takers
            .get(&consumer)
            .filter(|taker| taker.session == session && matches!(taker.how, How::Subscribed(_)));
        let missing = || Refusal::new(errno::ENOENT, "there is no such subscription");
        let token = taker.ok_or_else(missing)?.token;
        self.end_taker(consumer, now);
        self.give_back_all(now, session, |held| held.taker == Some(consumer));
        self.effects.push(Effect::End { token, refusal: None });
        Ok(Answer::Done)
    }

    fn take_in(&mut self, now: Time, event: Event) {
        match event {
            Event::Answered { token, answer, .. } => self.answer(token, answer),
            Event::Over { .. } => {}
            Event::Created { token, session, opened, new, .. } => {
                let queue = Arc::clone(&opened.name);
                if new && opened.about.owner.is_some() {
                    match self.sessions.contains_key(&session) {
                        true => self.own(session, &queue),
                        false => self.disown(&queue),
                    }
                }
                self.answer(token, Answer::Created { queue, new });
            }
            Event::Destroyed { token, queue, .. } => self.destroyed(now, token, &queue),
            Event::Sent { token, session, send_id, place, .. } => {
                let about = (now, &place.record);
                if !place.again {
                    self.count(&place.queue, |counters| counters.sent += 1);
                    let at = (place.id, session);
                    self.trace.push(now, What::Sent, &place.queue, at, about);
                }
                if let Some(send_id) = send_id {
                    self.recent.insert(send_id, &place.queue, place.id);
                }
                self.answer(token, Answer::Sent { id: Some(place.id), again: place.again });
            }
            Event::NotSent { token, session, queue, record, refusal, .. } => {
                self.count(&queue, |counters| counters.refused += 1);
                self.trace.push(now, What::Refused, &queue, (0, session), (now, &record));
                self.answer(token, Answer::Refused(refusal));
            }
            Event::Parked { token, session, queue } => {
                if let Some(session) = self.sessions.get_mut(&session) {
                    session.parking.insert(queue);
                }
                self.effects.push(Effect::Parked { token });
            }
            Event::Subscribed { taker: consumer } => {
                if let Some(taker) = self.takers.get(&consumer) {
                    let token = taker.token;
                    self.answer(token, Answer::Subscribed { consumer });
                }
            }
            Event::Unsubscribed { taker, refusal } => {
                if let Some(taker) = self.end_taker(taker, now) {
                    self.effects.push(Effect::End { token: taker.token, refusal: Some(refusal) });
                }
            }
            Event::Came { taker, message } => self.came(now, taker, message),
            Event::Received { taker, outcome } => self.received(now, taker, outcome),
            Event::Expired { message } => self.dropped(now, What::Expired, &message),
            Event::Buried { message } => self.dropped(now, What::Dead, &message),
            Event::Settled { token, queue, settled, refusal, .. } => {
                self.settled(now, &queue, settled);
                self.answer(token, refusal.map_or(Answer::Done, Answer::Refused));
            }
        }
    }

    fn own(&mut self, session: u32, queue: &Arc<str>) {
        self.sessions.entry(session).or_default().queues.insert(Arc::clone(queue));
        if let Some(here) = self.queues.get_mut(queue) {
            here.owner = Some(session);
        }
    }

    /// Has a transient queue removed whose owner is gone.
    fn disown(&mut self, queue: &str) {
        let under = self.under_way();
        let order = Order::Destroy { if_empty: false, token: None, under };
        if self.order(queue, order).is_err() {
            tracing::warn!(queue, "a transient queue stays until the broker ends");
        }
    }

    fn destroyed(&mut self, now: Time, token: Option<u64>, queue: &Arc<str>) {
        let gone = Refusal::missing(queue);
        let takers: Vec<u32> = self
            .takers
            .iter_mut()
            .filter_map(|(number, taker)| {
                taker.queues.retain(|name| name != queue);
                taker.queues.is_empty().then_some(*number)
            })
            .collect();
        for number in takers {
            let Some(taker) = self.end_taker(number, now) else { continue };
            let (token, gone) = (taker.token, gone.clone());
            match taker.how {
                How::Subscribed(_) => {
                    self.effects.push(Effect::End { token, refusal: Some(gone) });
                }
                How::Receives { .. } => self.answer(token, Answer::Refused(gone)),
            }
        }
        if let Some(here) = self.queues.remove(queue) {
            for id in here.held.keys() {
                if let Some(held) = here.held.get(id) {
                    self.timers.remove(&(held.due, Arc::clone(queue), *id));
                }
            }
            if let Some(session) = here.owner.and_then(|owner| self.sessions.get_mut(&owner)) {
                session.queues.remove(queue);
            }
        }
        if let Some(token) = token {
            self.answer(token, Answer::Done);
        }
    }

    fn came(&mut self, now: Time, number: u32, message: Arc<Pulled>) {
        let Some(taker) = self.takers.get_mut(&number) else {
            return self.give_back(vec![message]);
        };
        let (token, session, lease_ms) = (taker.token, taker.session, taker.lease_ms);
        if let How::Subscribed(subscribed) = &mut taker.how {
            let length = message.record.len() as u64;
            subscribed.came = (subscribed.came.0 + 1, subscribed.came.1 + length);
            subscribed.held = (subscribed.held.0 + 1, subscribed.held.1 + length);
            subscribed.grant();
        }
        self.hold(now, (session, Some(number)), lease_ms, Arc::clone(&message));
        self.deliver(now, token, session, &message);
    }

    fn received(&mut self, now: Time, number: u32, outcome: Result<Vec<Arc<Pulled>>, Refusal>) {
        let Some(taker) = self.end_taker(number, now) else {
            return self.give_back(outcome.unwrap_or_default());
        };
        let answer = match outcome {
            Err(refusal) => Answer::Refused(refusal),
            Ok(messages) => {
                for message in messages {
                    if matches!(taker.how, How::Receives { auto_ack: true, .. }) {
                        self.count(&message.opened.name, |counters| counters.acked += 1);
                    } else {
                        let holder = (taker.session, None);
                        self.hold(now, holder, taker.lease_ms, Arc::clone(&message));
                    }
                    self.deliver(now, taker.token, taker.session, &message);
                }
                Answer::Done
            }
        };
        self.answer(taker.token, answer);
    }

    fn deliver(&mut self, now: Time, token: u64, session: u32, message: &Pulled) {
        let queue = &message.opened.name;
        if let Some(here) = self.queues.get_mut(queue) {
            here.counters.delivered += 1;
            here.last_taken = Some(now);
        }
        let about = (message.arrived, &message.record);
        self.trace.push(now, What::Delivered, queue, (message.id, session), about);
        let message = super::super::machine::Delivery {
            queue: Arc::clone(queue),
            id: message.id,
            attempt: message.attempt,
            arrived: message.arrived,
            record: message.record.clone(),
        };
        self.effects.push(Effect::Deliver { token, message });
    }

    pub(super) fn count(&mut self, queue: &str, add: impl FnOnce(&mut Counters)) {
        if let Some(here) = self.queues.get_mut(queue) {
            add(&mut here.counters);
        }
    }

    fn dropped(&mut self, now: Time, what: What, message: &Pulled) {
        let queue = &message.opened.name;
        self.count(queue, |counters| match what {
            What::Expired => counters.expired += 1,
            _ => counters.dead += 1,
        });
        let about = (message.arrived, &message.record);
        self.trace.push(now, what, queue, (message.id, 0), about);
    }

    fn answer_tails(&mut self, now: Time) {
        let (trace, effects) = (&self.trace, &mut self.effects);
        self.tails.retain_mut(|tail| {
            let (next, events) = match tail.from < trace.next() {
                true => trace.read(tail.from, &tail.prefix),
                false => (tail.from.min(trace.next()), Vec::new()),
            };
            if events.is_empty() && tail.deadline > now {
                tail.from = next;
                return true;
            }
            let answer = Answer::Trace { next, events };
            effects.push(Effect::Answer { token: tail.token, answer });
            false
        });
    }

    fn tail(&mut self, tail: Tail) -> Result<(), Refusal> {
        let tails = self.tails.iter().filter(|other| other.session == tail.session).count();
        if tails >= WAITING_PER_SESSION_MAX {
            return Err(Refusal::new(errno::EMFILE, "too many requests wait for events"));
        }
        self.tails.push(tail);
        Ok(())
    }
}

impl Engine for Front {
    type Completion = Option<Event>;

    fn handle(&mut self, now: Time, session: u32, token: u64, command: Command) {
        self.sessions.entry(session).or_default();
        let taken = match command {
            Command::Send(send) => self.send(session, token, send),
            Command::Create(create) => self.create(session, token, create),
            Command::Destroy { queue, if_empty } => {
                let under = self.under_way();
                self.order(&queue, Order::Destroy { if_empty, token: Some(token), under }).map(drop)
            }
            Command::Receive(receive) => self.receive(now, session, token, receive),
            Command::Subscribe(subscribe) => self.subscribe(now, session, token, &subscribe),
            Command::Unsubscribe { consumer } => {
                self.unsubscribe(now, session, consumer).map(|answer| self.answer(token, answer))
            }
            Command::Ack { queue, ids, force: false } => self.ack(session, token, &queue, ids),
            Command::Ack { queue, ids, force: true } => self.remove(token, &queue, ids),
            Command::Nack { queue, ids } => self.nack(now, session, token, &queue, ids),
            Command::Extend { queue, ids, lease_ms } => {
                self.extend(now, session, token, &queue, ids, lease_ms)
            }
            Command::Purge { queue } => self.purge(token, &queue),
            Command::Withdraw { queue, send_id } => self.withdraw(token, &queue, send_id),
            Command::List { prefix, alive } => {
                self.list(token, prefix, alive);
                Ok(())
            }
            Command::Diagnostics { prefix, entries_max, payload_max } => {
                self.diagnostics(now, token, prefix, entries_max, payload_max);
                Ok(())
            }
            Command::Trace { from, timeout_ms, prefix } => {
                let deadline = now.after_ms(timeout_ms);
                self.tail(Tail { token, session, from, deadline, prefix })
            }
        };
        if let Err(refusal) = taken {
            self.answer(token, Answer::Refused(refusal));
        }
    }

    fn handle_gone(&mut self, now: Time, number: u32) {
        let Some(session) = self.sessions.get(&number) else { return };
        let takers: Vec<u32> = session.takers.iter().copied().collect();
        for taker in takers {
            self.end_taker(taker, now);
        }
        self.give_back_all(now, number, |_| true);
        let Some(session) = self.sessions.remove(&number) else { return };
        for queue in session.parking {
            let _ = self.order(&queue, Order::Forget { session: number });
        }
        for queue in session.queues {
            self.disown(&queue);
        }
        self.tails.retain(|tail| tail.session != number);
    }

    fn has_room(&self) -> bool {
        self.under.load(Ordering::Relaxed) < COMMANDS_MAX
    }

    async fn completed(&mut self) -> Self::Completion {
        self.events.recv().await
    }

    fn handle_completed(&mut self, now: Time, completion: Self::Completion) {
        if let Some(event) = completion {
            self.take_in(now, event);
        }
    }

    fn poll_effects(&mut self, now: Time, effects: &mut Vec<Effect>) {
        for _ in 0..TURN_MAX {
            let Ok(event) = self.events.try_recv() else { break };
            self.take_in(now, event);
        }
        self.see_to_leases(now);
        self.answer_tails(now);
        effects.append(&mut self.effects);
    }

    fn begin(&mut self, _now: Time) {}

    fn is_busy(&self) -> bool {
        self.under.load(Ordering::Relaxed) > 0
    }

    fn poll_time(&self) -> Option<Time> {
        let timer = self.timers.first().map(|(time, ..)| *time);
        let tails = self.tails.iter().map(|tail| tail.deadline).min();
        timer.into_iter().chain(tails).min()
    }

    fn handle_end(&mut self, now: Time) {
        let sessions: Vec<u32> = self.sessions.keys().copied().collect();
        for session in sessions {
            self.handle_gone(now, session);
        }
    }
}
