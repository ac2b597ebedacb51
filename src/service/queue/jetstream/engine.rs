//! The engine: who of this broker takes what, and what they hold. What has to be asked of the cluster is
//! asked by tasks, which say how it went.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot};

use super::super::engine::Engine;
use super::super::machine::{
    Answer, Command, Counters, Create, Effect, MachineOptions, NAME_BYTES_MAX, Refusal, Send,
    TAILS_MAX, Trace, WAITING_PER_SESSION_MAX, What,
};
use super::super::options::Kind;
use super::cluster::Cluster;
use super::event::{Event, Under};
use super::held::Held;
use super::keeper::{Finding, Keeper, Order, Sending};
use super::pull::Pulled;
use super::recent::Recent;
use super::taker::{How, Pulling, Taker};
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

/// Events that are taken in at once.
const TURN_MAX: usize = 1_024;

pub(super) struct Front {
    pub(super) cluster: Arc<Cluster>,
    pub(super) started: Time,
    events: mpsc::Receiver<Event>,
    pub(super) report: mpsc::Sender<Event>,
    under: Arc<AtomicUsize>,
    /// Tasks that take messages, and may have some that nobody has yet.
    taking: Arc<AtomicUsize>,
    pub(super) queues: HashMap<Arc<str>, Here>,
    pub(super) sessions: HashMap<u32, Session>,
    pub(super) takers: HashMap<u32, Taker>,
    pub(super) last_taker: u32,
    pub(super) takers_made: u64,
    /// Of messages that sessions hold.
    pub(super) held_bytes: u64,
    /// That is as much as it may be.
    pub(super) is_full: bool,
    /// When something is to be done about a held message.
    pub(super) timers: BTreeSet<(Time, Arc<str>, u64)>,
    pub(super) recent: Recent,
    pub(super) trace: Trace,
    pub(super) tails: Vec<Tail>,
    pub(super) effects: Vec<Effect>,
    /// All that took messages when the broker ended.
    pub(super) ending: Vec<Pulling>,
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
            taking: Arc::default(),
            queues: HashMap::new(),
            sessions: HashMap::new(),
            takers: HashMap::new(),
            last_taker: 0,
            takers_made: 0,
            held_bytes: 0,
            is_full: false,
            timers: BTreeSet::new(),
            recent: Recent::default(),
            trace: Trace::new(options.trace_events_max),
            tails: Vec::new(),
            effects: Vec::new(),
            ending: Vec::new(),
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

    pub(super) fn taking(&self) -> Under {
        Under::way(&self.taking)
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

    fn create(&mut self, session: u32, token: u64, mut create: Create) -> Result<(), Refusal> {
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
            Event::Destroyed { token, queue, takers, .. } => {
                self.destroyed(now, token, &queue, takers);
            }
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
                match self.sessions.get_mut(&session) {
                    Some(session) => drop(session.parking.insert(queue)),
                    // it went before
                    None => drop(self.order(&queue, Order::Forget { session })),
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

    /// Ends all that a session takes with.
    fn end_takers(&mut self, now: Time, session: u32) -> Vec<Pulling> {
        let takers = self.sessions.get(&session).map(|session| session.takers.clone());
        let ended = takers.into_iter().flatten().filter_map(|taker| self.end_taker(taker, now));
        ended.map(|taker| taker.pulling).collect()
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
        let takers = self.takers_made;
        let order = Order::Destroy { if_empty: false, token: None, takers, under };
        if self.order(queue, order).is_err() {
            tracing::warn!(queue, "a transient queue stays until the broker ends");
        }
    }

    fn destroyed(&mut self, now: Time, token: Option<u64>, queue: &Arc<str>, takers: u64) {
        let gone = Refusal::missing(queue);
        let ended: Vec<u32> = self
            .takers
            .iter_mut()
            .filter(|(_, taker)| taker.made <= takers)
            .filter_map(|(number, taker)| {
                taker.queues.retain(|name| name != queue);
                taker.queues.is_empty().then_some(*number)
            })
            .collect();
        for number in ended {
            let Some(taker) = self.end_taker(number, now) else { continue };
            let (token, gone) = (taker.token, gone.clone());
            match taker.how {
                How::Subscribed(_) => {
                    self.effects.push(Effect::End { token, refusal: Some(gone) });
                }
                How::Receives { .. } => self.answer(token, Answer::Refused(gone)),
            }
        }
        if let Some(here) = self.queues.get_mut(queue) {
            for (id, held) in std::mem::take(&mut here.held) {
                self.timers.remove(&(held.due, Arc::clone(queue), id));
                self.held_bytes -= held.bytes();
            }
            here.counters = Counters::default();
            here.last_taken = None;
            here.takers = self.takers.values().filter(|t| t.queues.contains(queue)).count() as u32;
            let owner = here.owner.take().and_then(|owner| self.sessions.get_mut(&owner));
            if let Some(session) = owner {
                session.queues.remove(queue);
            }
        }
        self.weigh();
        if let Some(token) = token {
            self.answer(token, Answer::Done);
        }
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
        if tails >= WAITING_PER_SESSION_MAX || self.tails.len() >= TAILS_MAX {
            return Err(Refusal::new(errno::EMFILE, "too many requests wait for events"));
        }
        self.tails.push(tail);
        Ok(())
    }
}

impl Engine for Front {
    type Completion = Option<Event>;

    fn has(&self, _: &str) -> Option<bool> {
        // only the cluster knows
        None
    }

    fn owner_of(&self, queue: &str) -> Option<u32> {
        self.queues.get(queue)?.owner
    }

    fn handle(&mut self, now: Time, session: u32, token: u64, command: Command) {
        self.sessions.entry(session).or_default();
        let taken = match command {
            Command::Send(send) => self.send(session, token, send),
            Command::Create(create) => self.create(session, token, create),
            Command::Destroy { queue, if_empty } => {
                let under = self.under_way();
                let (token, takers) = (Some(token), self.takers_made);
                self.order(&queue, Order::Destroy { if_empty, token, takers, under }).map(drop)
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
        let takers = self.end_takers(now, number);
        let messages = self.take_back(now, number, |_| true);
        self.give_back(messages, [takers, self.ending.clone()].concat());
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
        self.under.load(Ordering::Relaxed) > 0 || self.taking.load(Ordering::Relaxed) > 0
    }

    fn poll_time(&self) -> Option<Time> {
        let timer = self.timers.first().map(|(time, ..)| *time);
        let tails = self.tails.iter().map(|tail| tail.deadline).min();
        timer.into_iter().chain(tails).min()
    }

    fn handle_end(&mut self, now: Time) {
        let sessions: Vec<u32> = self.sessions.keys().copied().collect();
        self.ending = sessions.iter().flat_map(|session| self.end_takers(now, *session)).collect();
        for session in sessions {
            self.handle_gone(now, session);
        }
    }
}
