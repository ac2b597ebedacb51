//! What the machine is told and what it says.

use std::sync::Arc;

use bytes::Bytes;

use super::super::options::{Kind, Mode, QueueOptions};
use crate::store::{SendId, Time};
use crate::wire::errno;

/// What a session asks for. Each command gets one [`Effect::Answer`], sooner or later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Make a queue, or see that it is there.
    Create(Create),
    /// Remove a queue and what is in it.
    Destroy {
        /// Its name.
        queue: String,
        /// Only if nothing is in it: else `EBUSY`.
        if_empty: bool,
    },
    /// Name queues.
    List {
        /// What their names begin with.
        prefix: String,
        /// Only those that somebody takes messages from now.
        alive: bool,
    },
    /// Append a message.
    Send(Send),
    /// Take messages, now or when some come.
    Receive(Receive),
    /// Say that messages are done with.
    Ack {
        /// Their queue.
        queue: String,
        /// Their ids.
        ids: Vec<u64>,
        /// Also those that this session does not hold.
        force: bool,
    },
    /// Give messages back: they are delivered again.
    Nack {
        /// Their queue.
        queue: String,
        /// Their ids.
        ids: Vec<u64>,
    },
    /// Hold messages for longer.
    Extend {
        /// Their queue.
        queue: String,
        /// Their ids.
        ids: Vec<u64>,
        /// For how long from now, in milliseconds.
        lease_ms: u64,
    },
    /// Take messages as they come, until the session ends.
    Subscribe(Subscribe),
    /// End a subscription of this session.
    Unsubscribe {
        /// Its number.
        consumer: u32,
    },
    /// Tell how queues are.
    Diagnostics {
        /// What their names begin with.
        prefix: String,
        /// How many messages of each to show.
        entries_max: u32,
        /// How much of each message to show, in bytes.
        payload_max: u32,
    },
    /// Tell what happened, or wait until something does.
    Trace {
        /// The first event to tell.
        from: u64,
        /// How long to wait for one, in milliseconds.
        timeout_ms: u64,
        /// What names of queues begin with.
        prefix: String,
    },
    /// Drop what is in a queue and nobody holds.
    Purge {
        /// Its name.
        queue: String,
    },
    /// Take back a message that nobody holds: else `EBUSY`, or `ENOENT`.
    Withdraw {
        /// Its queue.
        queue: String,
        /// As which it was sent.
        send_id: SendId,
    },
}

/// See [`Command::Create`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// Its name; `None`, for a transient one, has one made up.
    pub queue: Option<String>,
    /// How long it lives.
    pub kind: Kind,
    /// What it is to be like; `None` takes one as it is, and makes one with the defaults.
    pub options: Option<QueueOptions>,
    /// It must not be there yet: else `EEXIST`.
    pub exclusive: bool,
}

/// See [`Command::Send`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// To which queue.
    pub queue: String,
    /// Make the queue if it is not there.
    pub create: bool,
    /// As what it is known if it is sent again.
    pub send_id: Option<SendId>,
    /// How long it is of use, in milliseconds.
    pub ttl_ms: Option<u64>,
    /// Where its answer is to go; also in `record`.
    pub reply_to: Option<String>,
    /// What is delivered; opaque.
    pub record: Bytes,
}

/// See [`Command::Receive`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receive {
    /// From which queues; the first that has something.
    pub queues: Vec<String>,
    /// How many at most.
    pub messages_max: u32,
    /// How long to wait for the first, in milliseconds.
    pub timeout_ms: u64,
    /// How long to hold them, in milliseconds, if not as long as the queue says.
    pub lease_ms: Option<u64>,
    /// They are done with before they are delivered, on disk too.
    pub auto_ack: bool,
}

/// See [`Command::Subscribe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// To which queue.
    pub queue: String,
    /// How many messages may be held at once.
    pub credit: u32,
    /// The same in bytes; one message is always let through.
    pub credit_bytes: u64,
    /// How long each may be held, in milliseconds, if not as long as the queue says.
    pub lease_ms: Option<u64>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Answer a command.
    Answer {
        /// Of the command.
        token: u64,
        /// What to say.
        answer: Answer,
    },
    /// Hand over a message.
    Deliver {
        /// Of the RECEIVE, which ends with [`Answer::Done`], or of the SUBSCRIBE, which is answered
        /// first.
        token: u64,
        /// The message.
        message: Delivery,
    },
    /// A message waits for room; its answer may take long.
    Parked {
        /// Of the SEND.
        token: u64,
    },
    /// A subscription is over.
    End {
        /// Of the SUBSCRIBE.
        token: u64,
        /// Why.
        refusal: Option<Refusal>,
    },
}

/// A message on its way to a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The queue.
    pub queue: Arc<str>,
    /// Its id there.
    pub id: u64,
    /// 1 for the first delivery.
    pub attempt: u32,
    /// When it arrived.
    pub arrived: Time,
    /// What was sent.
    pub record: Bytes,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// The queue is there.
    Created {
        /// Its name.
        queue: Arc<str>,
        /// It was not there before.
        new: bool,
    },
    /// The message is in the queue, and on disk if it is that sort of queue.
    Sent {
        /// Its id, if it is still known: a message that is sent again long after may have lost it.
        id: Option<u64>,
        /// It had been sent before.
        again: bool,
    },
    /// Messages follow.
    Subscribed {
        /// For [`Command::Unsubscribe`].
        consumer: u32,
    },
    /// How many were dropped.
    Purged {
        /// Messages.
        messages: u64,
    },
    /// Names, ascending.
    Queues(Vec<QueueInfo>),
    /// How the broker is, and its queues, by name.
    Diagnostics(BrokerInfo, Vec<QueueInfo>),
    /// What happened.
    Trace {
        /// The `from` of the next command.
        next: u64,
        /// Events, by id.
        events: Vec<Event>,
    },
    /// It was not done.
    Refused(Refusal),
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// An error number, positive.
    pub errno: i32,
    /// In words.
    pub text: String,
}

impl Refusal {
    pub(in crate::service::queue) fn new(errno: i32, text: impl Into<String>) -> Self {
        Self { errno, text: text.into() }
    }

    pub(in crate::service::queue) fn missing(queue: &str) -> Self {
        Self::new(errno::ENOENT, format!("there is no queue {queue:?}"))
    }
}

/// What a broker of queues has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerInfo {
    /// When it started.
    pub started: Time,
    /// Its time.
    pub now: Time,
    /// Whether it keeps messages on disk.
    pub durable: bool,
    /// Damaged messages that were put aside: the names of their queues and ids.
    pub quarantined: Vec<(String, u64)>,
    /// Queues.
    pub queues: u64,
    /// Bytes of messages in all queues.
    pub bytes: u64,
}

/// How a queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueInfo {
    /// Its name.
    pub name: Arc<str>,
    /// How long it lives.
    pub kind: Kind,
    /// Who gets its messages.
    pub mode: Mode,
    /// Whether somebody takes its messages.
    pub service: Service,
    /// When somebody last did.
    pub last_taken: Option<Time>,
    /// The session that owns it.
    pub owner: Option<u32>,
    /// Those that subscribed, and those that wait in a RECEIVE.
    pub consumers: u32,
    /// Messages that wait.
    pub ready: u64,
    /// Messages that consumers hold.
    pub leased: u64,
    /// Messages in all, also those that are still being stored.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest arrived.
    pub oldest: Option<Time>,
    /// What happened so far.
    pub counters: Counters,
    /// Messages, if that was asked for.
    pub entries: Vec<EntryInfo>,
}

/// Whether somebody takes a queue's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Somebody does.
    Running,
    /// Nobody has since the broker started.
    NeverStarted,
    /// Nobody does any more.
    SeemsDead,
}

/// What happened in a queue since the broker started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages that were taken in.
    pub sent: u64,
    /// Deliveries.
    pub delivered: u64,
    /// Messages that were done with.
    pub acked: u64,
    /// Deliveries that came back.
    pub returned: u64,
    /// Messages that were not delivered in time.
    pub expired: u64,
    /// Messages that were dropped for newer ones.
    pub dropped: u64,
    /// Messages that went to the dead-letter queue.
    pub dead: u64,
    /// Messages that were not taken in.
    pub refused: u64,
    /// Deliveries of what had been delivered before.
    pub redelivered: u64,
    /// How long messages waited for their first delivery, in microseconds, all together.
    pub waited_us: u64,
    /// The same from their arrival until they were done with.
    pub done_us: u64,
}

impl Counters {
    /// First deliveries: over how many `waited_us` was added up.
    pub fn first_deliveries(&self) -> u64 {
        self.delivered.saturating_sub(self.redelivered)
    }

    /// All of it, in the order of the fields.
    pub(in super::super) fn to_array(self) -> [u64; 11] {
        let Self { sent, delivered, acked, returned, expired, dropped, dead, refused, .. } = self;
        let Self { redelivered, waited_us, done_us, .. } = self;
        [
            sent,
            delivered,
            acked,
            returned,
            expired,
            dropped,
            dead,
            refused,
            redelivered,
            waited_us,
            done_us,
        ]
    }

    pub(in super::super) fn from_array(numbers: [u64; 11]) -> Self {
        let [sent, delivered, acked, returned, expired, dropped, dead, refused, rest @ ..] =
            numbers;
        let [redelivered, waited_us, done_us] = rest;
        Self {
            sent,
            delivered,
            acked,
            returned,
            expired,
            dropped,
            dead,
            refused,
            redelivered,
            waited_us,
            done_us,
        }
    }
}

/// A message, for a person to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryInfo {
    /// Its id.
    pub id: u64,
    /// When it arrived.
    pub arrived: Time,
    /// When it is of no use any more.
    pub expires: Option<Time>,
    /// How often it was delivered.
    pub attempts: u32,
    /// The session that holds it.
    pub holder: Option<u32>,
    /// Bytes of the record.
    pub length: u64,
    /// Whether the queue for its answer is there, if it has one.
    pub reply_alive: Option<bool>,
    /// The record if it is not longer than was asked for.
    pub record: Bytes,
}

/// Something that happened to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Counts up from 1.
    pub number: u64,
    /// When.
    pub time: Time,
    /// What.
    pub what: What,
    /// In which queue.
    pub queue: Arc<str>,
    /// The message's id; 0 if it has none.
    pub id: u64,
    /// Who did it; 0 if it is the broker.
    pub session: u32,
    /// How long the message has been there, in microseconds.
    pub age_us: u64,
    /// The beginning of the record.
    pub record: Bytes,
}

/// What can happen to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It was taken in.
    Sent,
    /// It was delivered.
    Delivered,
    /// It is done with.
    Acked,
    /// It came back.
    Returned,
    /// It was not delivered in time.
    Expired,
    /// It was dropped for a newer one, purged or withdrawn.
    Dropped,
    /// It went to the dead-letter queue.
    Dead,
    /// It was not taken in.
    Refused,
}
