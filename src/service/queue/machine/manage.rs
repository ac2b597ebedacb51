//! Queues come and go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::command::{Answer, Counters, Create, Effect, Refusal};
use super::consumer::Taker;
use super::lane::Lane;
use super::queue::{Parked, Queue};
use super::shared::Waiter;
use super::{Kind, Machine, NAME_BYTES_MAX};
use crate::service::queue::options::QueueOptions;
use crate::service::queue::protocol::options_to_bytes;
use crate::store::{Op, Time};
use crate::wire::errno;

impl Queue {
    pub(super) fn new(number: u32, name: Arc<str>, kind: Kind, options: QueueOptions) -> Self {
        Self {
            number,
            name,
            kind,
            owner: None,
            durable: false,
            creating: false,
            awaited: Vec::new(),
            options,
            next_id: 1,
            entries: BTreeMap::new(),
            bytes: 0,
            memory: 0,
            common: Lane::default(),
            consumers: BTreeMap::new(),
            turn: VecDeque::new(),
            receiving: 0,
            parked: VecDeque::new(),
            parked_bytes: 0,
            expiring: BTreeSet::new(),
            scheduled: None,
            dirty: false,
            last_taken: None,
            counters: Counters::default(),
            since_repeat: 0,
        }
    }
}

impl Machine {
    pub(super) fn create(
        &mut self,
        session: u32,
        token: u64,
        create: Create,
    ) -> Result<Option<Answer>, Refusal> {
        let Create { queue, kind, options, exclusive } = create;
        let name = match queue {
            Some(name) => name,
            None if kind == Kind::Transient => self.make_up_name(session),
            None => return Err(Refusal::new(errno::EINVAL, "a persistent queue needs a name")),
        };
        if let Some(number) = self.names.get(name.as_str()) {
            let found = self.queues.get_mut(number).ok_or_else(|| Refusal::missing(&name))?;
            let other = |what| {
                Err(Refusal::new(errno::EEXIST, format!("there is a queue {name:?} {what}")))
            };
            if exclusive {
                return other("already");
            } else if found.kind != kind {
                return other("that lives differently");
            } else if found.owner.is_some_and(|owner| owner != session) {
                return other("of another session");
            } else if options.is_some_and(|options| options != found.options) {
                return other("with other options");
            }
            if found.creating {
                found.awaited.push(token);
                return Ok(None);
            }
            return Ok(Some(Answer::Created { queue: Arc::clone(&found.name), new: false }));
        }
        let owner = (kind == Kind::Transient).then_some(session);
        let options = options.unwrap_or_default();
        let dead = options.dead_letter.clone();
        let dead = dead.filter(|dead| !self.names.contains_key(dead.as_str()));
        // both or neither
        self.check_new(&name, &options, 1 + usize::from(dead.is_some()))?;
        if let Some(dead) = dead {
            self.add_queue(&dead, Kind::Persistent, None, QueueOptions::default())?;
        }
        let number = self.add_queue(&name, kind, owner, options)?;
        let queue = &self.queues[&number];
        let answer = Answer::Created { queue: Arc::clone(&queue.name), new: true };
        if !queue.durable {
            return Ok(Some(answer));
        }
        // the change was the last to be added
        if let Some((_, waiter)) = self.shared.ops.back_mut() {
            *waiter = Some(Waiter::Created { queue: number, answer: Some((token, answer)) });
        }
        Ok(None)
    }

    /// Makes a queue, without an answer to anybody.
    pub(super) fn add_queue(
        &mut self,
        name: &str,
        kind: Kind,
        owner: Option<u32>,
        options: QueueOptions,
    ) -> Result<u32, Refusal> {
        self.check_new(name, &options, 1)?;
        self.last_queue = self.last_queue.wrapping_add(1);
        while self.queues.contains_key(&self.last_queue) {
            self.last_queue = self.last_queue.wrapping_add(1);
        }
        let number = self.last_queue;
        let mut queue = Queue::new(number, name.into(), kind, options);
        queue.owner = owner;
        queue.durable = self.durable && kind == Kind::Persistent;
        queue.creating = queue.durable;
        queue.next_id = self.id_floors[usize::from(kind == Kind::Transient)];
        if queue.durable {
            let op = Op::Create {
                queue: number,
                name: name.to_owned(),
                options: options_to_bytes(&queue.options).into(),
                first_id: queue.next_id,
            };
            let waiter = Waiter::Created { queue: number, answer: None };
            self.shared.ops.push_back((op, Some(waiter)));
        }
        self.names.insert(Arc::clone(&queue.name), number);
        self.queues.insert(number, queue);
        if let Some(owner) = owner {
            self.sessions.entry(owner).or_default().queues.insert(number);
        }
        Ok(number)
    }

    /// Whether a queue can be made, the last of `count`.
    fn check_new(&self, name: &str, options: &QueueOptions, count: usize) -> Result<(), Refusal> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            let text =
                format!("a name has 1 to {NAME_BYTES_MAX} bytes, none of them a control character");
            return Err(Refusal::new(errno::EINVAL, text));
        }
        if self.queues.len() + count > self.options.queues_max {
            return Err(Refusal::new(errno::EMFILE, "there are too many queues"));
        }
        if options.dead_letter.as_deref() == Some(name) || options.attempts_max == 0 {
            let text = "a dead-letter queue is another queue, after at least one attempt";
            return Err(Refusal::new(errno::EINVAL, text));
        }
        Ok(())
    }

    pub(super) fn destroy_named(
        &mut self,
        now: Time,
        token: u64,
        name: &str,
        if_empty: bool,
    ) -> Result<Option<Answer>, Refusal> {
        let (queue, _) = self.queue(name)?;
        if if_empty && !queue.entries.is_empty() {
            let text = format!("{} messages are in {name:?}", queue.entries.len());
            return Err(Refusal::new(errno::EBUSY, text));
        }
        let (number, durable) = (queue.number, queue.durable);
        self.destroy(now, number);
        Ok(self.answer_when_stored(token, Answer::Done, durable))
    }

    pub(super) fn destroy(&mut self, now: Time, number: u32) {
        if let Some(queue) = self.queues.get(&number) {
            let gone = Refusal::missing(&queue.name);
            self.forget_queue(now, number, &gone);
        }
    }

    /// As [`destroy`](Self::destroy); those who wait for it get `gone`.
    pub(super) fn forget_queue(&mut self, now: Time, number: u32, gone: &Refusal) {
        let Some(mut queue) = self.queues.remove(&number) else { return };
        self.names.remove(&queue.name);
        self.shared.bytes -= queue.bytes;
        self.shared.memory -= queue.memory;
        if let Some(scheduled) = queue.scheduled {
            self.shared.wake.remove(&(scheduled, number));
        }
        // with a store they are far apart
        for (at, floor) in self.id_floors.iter_mut().enumerate() {
            if !self.durable || at == usize::from(queue.kind == Kind::Transient) {
                *floor = (*floor).max(queue.next_id);
            }
        }
        if queue.durable {
            let keys = queue.entries.values().map(|entry| entry.key).collect();
            let op = Op::Destroy { queue: number, id_floor: queue.next_id, keys };
            self.shared.ops.push_back((op, None));
        }
        if let Some(session) = queue.owner.and_then(|owner| self.sessions.get_mut(&owner)) {
            session.queues.remove(&number);
        }
        for (consumer, held) in std::mem::take(&mut queue.consumers) {
            if let Some(session) = self.sessions.get_mut(&held.session) {
                session.consumers.remove(&consumer);
            }
            let refusal = Some(gone.clone());
            self.shared.effects.push(Effect::End { token: held.token, refusal });
        }
        for token in std::mem::take(&mut queue.awaited) {
            self.shared.answer(token, Answer::Refused(gone.clone()));
        }
        for parked in std::mem::take(&mut queue.parked) {
            self.refuse_send(now, parked.token, parked.send.send_id, gone.clone());
        }
        for taker in queue.turn {
            let Taker::Receive(receive) = taker else { continue };
            let Some(waits) = self.shared.receives.get_mut(&receive) else { continue };
            waits.queues.retain(|other| *other != number);
            if waits.queues.is_empty() {
                self.end_receive(receive, Answer::Refused(gone.clone()));
            }
        }
    }

    /// Drops what nobody holds.
    pub(super) fn purge(
        &mut self,
        now: Time,
        token: u64,
        name: &str,
    ) -> Result<Option<Answer>, Refusal> {
        let (queue, shared) = self.queue(name)?;
        let ids: Vec<u64> = queue.free_ids(usize::MAX).collect();
        for id in &ids {
            queue.drop_entry(*id, now, shared);
        }
        let durable = queue.durable && !ids.is_empty();
        let answer = Answer::Purged { messages: ids.len() as u64 };
        Ok(self.answer_when_stored(token, answer, durable))
    }

    /// The answer, or nothing if it has to wait for the change that was added last.
    pub(super) fn answer_when_stored(
        &mut self,
        token: u64,
        answer: Answer,
        durable: bool,
    ) -> Option<Answer> {
        match self.shared.ops.back_mut() {
            Some((_, waiter @ None)) if durable => {
                *waiter = Some(Waiter::Answer { token, answer });
                None
            }
            _ => Some(answer),
        }
    }

    /// The end of a session: its link is gone.
    pub fn handle_gone(&mut self, now: Time, number: u32) {
        let Some(session) = self.sessions.remove(&number) else { return };
        for receive in session.receives {
            self.end_receive(receive, Answer::Done);
        }
        for (consumer, queue) in session.consumers {
            self.end_consumer(now, queue, consumer);
        }
        for queue in session.leasing {
            let Some(queue) = self.queues.get_mut(&queue) else { continue };
            let leases = queue.common.leases.iter();
            let held: Vec<u64> =
                leases.filter(|(_, lease)| lease.session == number).map(|(id, _)| *id).collect();
            for id in held {
                queue.give_back(id, None, false, now, &mut self.shared);
            }
        }
        for number_of_queue in session.parking {
            let Some(queue) = self.queues.get_mut(&number_of_queue) else { continue };
            let parked = std::mem::take(&mut queue.parked);
            for mut parked in parked {
                if parked.session != number {
                    self.keep_parked(number_of_queue, parked);
                    continue;
                }
                let send_id = parked.send.send_id;
                // its sender may be back already, over another link
                let is_there = |session| self.sessions.contains_key(&session);
                if let Some(next) = send_id.and_then(|id| self.senders.take_over(id, is_there)) {
                    (parked.token, parked.session) = (next.token, next.session);
                    let session = self.sessions.entry(next.session).or_default();
                    session.parking.insert(number_of_queue);
                    self.keep_parked(number_of_queue, parked);
                    continue;
                }
                let refusal = Refusal::new(errno::EPIPE, "the sender is gone");
                self.drop_parked(now, number_of_queue, parked, refusal);
            }
        }
        for queue in session.queues {
            self.destroy(now, queue);
        }
        let (gone, stay): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.tails).into_iter().partition(|tail| tail.session == number);
        self.tails = stay;
        for tail in gone {
            let refusal = Refusal::new(errno::EPIPE, "the asker is gone");
            self.shared.answer(tail.token, Answer::Refused(refusal));
        }
    }

    fn keep_parked(&mut self, queue: u32, parked: Parked) {
        if let Some(queue) = self.queues.get_mut(&queue) {
            queue.parked.push_back(parked);
        }
    }

    fn make_up_name(&mut self, session: u32) -> String {
        loop {
            self.made_up += 1;
            let name = format!("tmp-{session:08x}-{}", self.made_up);
            if !self.names.contains_key(name.as_str()) {
                return name;
            }
        }
    }
}
