//! Answers: values ↔ bytes.

use std::sync::Arc;

use bytes::Bytes;

use super::super::machine::{
    Answer, BrokerInfo, Counters, Delivery, EntryInfo, Event, QueueInfo, Refusal, Service, What,
};
use super::super::options::{Kind, Mode};
use super::record::{number, text};
use super::{Body, QUEUE_TYPE, attr, cmd, flag};
use crate::store::Time;
use crate::wire::{Attributes, ErrorMessage, Malformed, Message, Messages, nlm};

/// One message of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It was done, or that was all.
    Done,
    /// It was not done.
    Refused(Refusal),
    /// The queue is there.
    Created(Arc<str>, bool),
    /// The message is in the queue: its id, and whether it had been sent before.
    Sent(Option<u64>, bool),
    /// A message.
    Message(Delivery),
    /// The subscription has begun: its number.
    Subscribed(u32),
    /// So many were dropped.
    Purged(u64),
    /// How the broker is.
    Broker(BrokerInfo),
    /// How a queue is. Its entries follow by themselves.
    Queue(Box<QueueInfo>),
    /// A message in the queue before.
    Entry(EntryInfo),
    /// Something that happened.
    Event(Event),
    /// Where to go on.
    Next(u64),
}

impl Body {
    /// Appends an answer to the message with this sequence number.
    pub fn answer(&mut self, sequence: u32, answer: &Answer) {
        match answer {
            Answer::Done => self.error(sequence, 0, ""),
            Answer::Refused(Refusal { errno, text }) => self.error(sequence, *errno, text),
            Answer::Created { queue, new } => {
                self.begin(cmd::CREATED, sequence).text(attr::QUEUE, queue);
                self.flags(if *new { flag::NEW } else { 0 }).end();
            }
            Answer::Sent { id, again } => {
                self.begin(cmd::SENT, sequence).maybe(attr::ID, *id);
                self.flags(if *again { flag::AGAIN } else { 0 }).end();
            }
            Answer::Subscribed { consumer } => {
                self.begin(cmd::SUBSCRIBED, sequence).u32(attr::CONSUMER, *consumer).end();
            }
            Answer::Purged { messages } => {
                self.begin(cmd::PURGED, sequence).u64(attr::MESSAGES, *messages).end();
            }
            Answer::Queues(queues) => {
                self.queues(sequence, queues);
                self.error(sequence, 0, "");
            }
            Answer::Diagnostics(broker, queues) => {
                self.broker(sequence, broker);
                self.queues(sequence, queues);
                self.error(sequence, 0, "");
            }
            Answer::Trace { next, events } => {
                for event in events {
                    self.event(sequence, event);
                }
                self.begin(cmd::NEXT, sequence).u64(attr::FROM, *next).end();
                self.error(sequence, 0, "");
            }
        }
    }

    /// Appends a message on its way to a consumer.
    pub fn message(&mut self, sequence: u32, message: &Delivery) {
        self.begin(cmd::MESSAGE, sequence)
            .text(attr::QUEUE, &message.queue)
            .u64(attr::ID, message.id)
            .u32(attr::ATTEMPT, message.attempt)
            .u64(attr::ARRIVED, message.arrived.0)
            .attributes(&message.record)
            .end();
    }

    fn queues(&mut self, sequence: u32, queues: &[QueueInfo]) {
        for queue in queues {
            self.queue(sequence, queue);
            for entry in &queue.entries {
                self.entry(sequence, entry);
            }
        }
    }

    fn broker(&mut self, sequence: u32, broker: &BrokerInfo) {
        self.begin(cmd::BROKER, sequence)
            .u64(attr::STARTED, broker.started.0)
            .u64(attr::NOW, broker.now.0)
            .u32(attr::DURABLE, broker.durable.into())
            .u64(attr::QUEUES, broker.queues)
            .u64(attr::BYTES, broker.bytes);
        for (name, id) in broker.quarantined.iter().take(256) {
            self.bytes(attr::QUARANTINED, &[&id.to_le_bytes(), name.as_bytes()].concat());
        }
        self.end();
    }

    fn queue(&mut self, sequence: u32, queue: &QueueInfo) {
        let counters = queue.counters.to_array();
        let service = match queue.service {
            Service::Running => 0,
            Service::NeverStarted => 1,
            Service::SeemsDead => 2,
        };
        self.begin(cmd::QUEUE, sequence)
            .text(attr::QUEUE, &queue.name)
            .u32(attr::KIND, (queue.kind == Kind::Transient).into())
            .u32(attr::MODE, (queue.mode == Mode::Fanout).into())
            .u32(attr::SERVICE, service)
            .maybe(attr::LAST_TAKEN, queue.last_taken.map(|time| time.0))
            .maybe(attr::OLDEST, queue.oldest.map(|time| time.0))
            .u32(attr::CONSUMERS, queue.consumers)
            .u64(attr::READY, queue.ready)
            .u64(attr::LEASED, queue.leased)
            .u64(attr::MESSAGES, queue.messages)
            .u64(attr::BYTES, queue.bytes)
            .bytes(attr::COUNTERS, counters.map(u64::to_le_bytes).as_flattened());
        if let Some(owner) = queue.owner {
            self.u32(attr::OWNER, owner);
        }
        self.end();
    }

    fn entry(&mut self, sequence: u32, entry: &EntryInfo) {
        self.begin(cmd::ENTRY, sequence)
            .u64(attr::ID, entry.id)
            .u64(attr::ARRIVED, entry.arrived.0)
            .maybe(attr::EXPIRES, entry.expires.map(|time| time.0))
            .u32(attr::ATTEMPT, entry.attempts)
            .u64(attr::LENGTH, entry.length);
        if let Some(holder) = entry.holder {
            self.u32(attr::HOLDER, holder);
        }
        if let Some(alive) = entry.reply_alive {
            self.u32(attr::REPLY_ALIVE, alive.into());
        }
        if !entry.record.is_empty() && entry.record.len() <= crate::wire::PAYLOAD_MAX {
            self.bytes(attr::RECORD, &entry.record);
        }
        self.end();
    }

    fn event(&mut self, sequence: u32, event: &Event) {
        self.begin(cmd::EVENT, sequence)
            .u64(attr::FROM, event.number)
            .u64(attr::TIME, event.time.0)
            .u32(attr::WHAT, event.what as u32)
            .text(attr::QUEUE, &event.queue)
            .u64(attr::ID, event.id)
            .u32(attr::SESSION, event.session)
            .u64(attr::AGE, event.age_us)
            .bytes(attr::RECORD, &event.record)
            .end();
    }
}

/// Reads the messages of an answer: the sequence numbers of their requests, and what is said.
///
/// # Errors
/// Where the bytes make no sense, to `said` for what stands before.
pub fn read_answers(body: &Bytes, mut said: impl FnMut(u32, Said)) -> Result<(), Malformed> {
    // messages of one queue usually follow each other
    let mut last: Arc<str> = "".into();
    for message in Messages::new(body) {
        let message = message?;
        match message.header.kind {
            nlm::ERROR => {
                let error = ErrorMessage::parse(&message)?;
                let answer = match error.code {
                    0 => Said::Done,
                    code => Said::Refused(Refusal {
                        errno: code.saturating_neg(),
                        text: error.text.unwrap_or_default().to_owned(),
                    }),
                };
                said(error.request.sequence, answer);
            }
            QUEUE_TYPE => {
                if let Some(answer) = read(body, &message, &mut last)? {
                    said(message.header.sequence, answer);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// What is not known is passed over: a later version may say more.
fn read(
    body: &Bytes,
    message: &Message<'_>,
    last: &mut Arc<str>,
) -> Result<Option<Said>, Malformed> {
    let Some((&[command, ..], region)) = message.body().split_first_chunk::<4>() else {
        return Ok(None);
    };
    match command {
        cmd::MESSAGE => {
            return read_message(body, region, last).map(|message| Some(Said::Message(message)));
        }
        cmd::SENT => return read_sent(region).map(Some),
        _ => {}
    }
    let mut found = Found::default();
    for attribute in Attributes::new(region, 0) {
        let attribute = attribute?;
        found.0.push((attribute.kind, attribute.payload));
    }
    Ok(Some(match command {
        cmd::CREATED => Said::Created(found.name(), found.has(flag::NEW)),
        cmd::SUBSCRIBED => Said::Subscribed(found.u32(attr::CONSUMER)),
        cmd::PURGED => Said::Purged(found.u64(attr::MESSAGES)),
        cmd::BROKER => Said::Broker(found.broker()),
        cmd::QUEUE => Said::Queue(Box::new(found.queue())),
        cmd::ENTRY => Said::Entry(found.entry(body)),
        cmd::EVENT => Said::Event(found.event(body)),
        cmd::NEXT => Said::Next(found.u64(attr::FROM)),
        _ => return Ok(None),
    }))
}

fn read_sent(region: &[u8]) -> Result<Said, Malformed> {
    let (mut id, mut flags) = (None, 0);
    for attribute in Attributes::new(region, 0) {
        let attribute = attribute?;
        match attribute.kind {
            attr::ID => id = id.or(Some(number(attribute.payload))),
            attr::FLAGS => flags |= number(attribute.payload) as u32,
            _ => {}
        }
    }
    Ok(Said::Sent(id, flags & flag::AGAIN != 0))
}

fn read_message(body: &Bytes, region: &[u8], last: &mut Arc<str>) -> Result<Delivery, Malformed> {
    let mut delivery = Delivery {
        queue: Arc::clone(last),
        id: 0,
        attempt: 0,
        arrived: Time(0),
        record: body.slice_ref(region),
    };
    let mut attributes = Attributes::new(region, 0);
    let mut record_at = region.len();
    loop {
        let at = attributes.offset();
        let Some(attribute) = attributes.next() else { break };
        let attribute = attribute?;
        match attribute.kind {
            attr::QUEUE => {
                if last.as_bytes() != attribute.payload {
                    *last = text(attribute.payload).into();
                }
                delivery.queue = Arc::clone(last);
            }
            attr::ID => delivery.id = number(attribute.payload),
            attr::ATTEMPT => delivery.attempt = number(attribute.payload) as u32,
            attr::ARRIVED => delivery.arrived = Time(number(attribute.payload)),
            // the record is what the rest is
            _ => {
                record_at = at;
                break;
            }
        }
    }
    delivery.record = delivery.record.slice(record_at.min(region.len())..);
    Ok(delivery)
}

#[derive(Default)]
struct Found<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Found<'a> {
    fn bytes(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.iter().find(|(found, _)| *found == kind).map(|(_, value)| *value)
    }

    fn get(&self, kind: u16) -> Option<u64> {
        self.bytes(kind).map(number)
    }

    fn u64(&self, kind: u16) -> u64 {
        self.get(kind).unwrap_or_default()
    }

    fn u32(&self, kind: u16) -> u32 {
        self.u64(kind) as u32
    }

    fn time(&self, kind: u16) -> Option<Time> {
        self.get(kind).map(Time)
    }

    fn name(&self) -> Arc<str> {
        self.bytes(attr::QUEUE).map(text).unwrap_or_default().into()
    }

    fn has(&self, flag: u32) -> bool {
        self.u32(attr::FLAGS) & flag != 0
    }

    fn record(&self, body: &Bytes) -> Bytes {
        self.bytes(attr::RECORD).map(|record| body.slice_ref(record)).unwrap_or_default()
    }

    fn broker(&self) -> BrokerInfo {
        let aside = self.0.iter().filter(|(kind, _)| *kind == attr::QUARANTINED);
        let aside = aside.filter_map(|(_, value)| value.split_first_chunk::<8>());
        BrokerInfo {
            started: self.time(attr::STARTED).unwrap_or_default(),
            now: self.time(attr::NOW).unwrap_or_default(),
            durable: self.u32(attr::DURABLE) != 0,
            quarantined: aside.map(|(id, name)| (text(name), u64::from_le_bytes(*id))).collect(),
            queues: self.u64(attr::QUEUES),
            bytes: self.u64(attr::BYTES),
        }
    }

    fn queue(&self) -> QueueInfo {
        let (counters, _) = self.bytes(attr::COUNTERS).unwrap_or_default().as_chunks::<8>();
        let counter =
            |at: usize| counters.get(at).map_or(0, |counter| u64::from_le_bytes(*counter));
        QueueInfo {
            name: self.name(),
            kind: if self.u32(attr::KIND) == 1 { Kind::Transient } else { Kind::Persistent },
            mode: if self.u32(attr::MODE) == 1 { Mode::Fanout } else { Mode::Share },
            service: match self.u32(attr::SERVICE) {
                0 => Service::Running,
                1 => Service::NeverStarted,
                _ => Service::SeemsDead,
            },
            last_taken: self.time(attr::LAST_TAKEN),
            owner: self.get(attr::OWNER).map(|owner| owner as u32),
            consumers: self.u32(attr::CONSUMERS),
            ready: self.u64(attr::READY),
            leased: self.u64(attr::LEASED),
            messages: self.u64(attr::MESSAGES),
            bytes: self.u64(attr::BYTES),
            oldest: self.time(attr::OLDEST),
            counters: Counters::from_array(std::array::from_fn(counter)),
            entries: Vec::new(),
        }
    }

    fn entry(&self, body: &Bytes) -> EntryInfo {
        EntryInfo {
            id: self.u64(attr::ID),
            arrived: self.time(attr::ARRIVED).unwrap_or_default(),
            expires: self.time(attr::EXPIRES),
            attempts: self.u32(attr::ATTEMPT),
            holder: self.get(attr::HOLDER).map(|holder| holder as u32),
            length: self.u64(attr::LENGTH),
            reply_alive: self.get(attr::REPLY_ALIVE).map(|alive| alive != 0),
            record: self.record(body),
        }
    }

    fn event(&self, body: &Bytes) -> Event {
        let what = [
            What::Sent,
            What::Delivered,
            What::Acked,
            What::Returned,
            What::Expired,
            What::Dropped,
            What::Dead,
            What::Refused,
        ];
        Event {
            number: self.u64(attr::FROM),
            time: self.time(attr::TIME).unwrap_or_default(),
            what: what.get(self.u32(attr::WHAT) as usize).copied().unwrap_or(What::Refused),
            queue: self.name(),
            id: self.u64(attr::ID),
            session: self.u32(attr::SESSION),
            age_us: self.u64(attr::AGE),
            record: self.record(body),
        }
    }
}
