//! What queues say on the wire: `proto-spec/queue.md`.

mod answer;
mod body;
mod record;
mod request;

pub use answer::{Said, read_answers};
pub use body::Body;
pub use record::{Record, options_from_bytes, options_to_bytes, reply_to_of, with_dead_letter};
pub(super) use request::emit_shutdown;
pub use request::{Asked, HEADERS_MAX, emit_command, parse_request};

/// The name of the subsystem, unless another was chosen.
pub const SUBSYSTEM: &str = "queue";

/// The type in the header of each message.
pub const QUEUE_TYPE: u16 = 0x20;

/// The version in each message's second header.
pub const QUEUE_VERSION: u8 = 1;

macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident: $type:ty { $($(#[$item_doc:meta])* $item:ident = $value:literal,)* }) => {
        $(#[$doc])*
        pub mod $name {
            $($(#[$item_doc])* pub const $item: $type = $value;)*

            /// Each of them by its name.
            pub const TABLE: &[(&str, $type)] = &[$((stringify!($item), $value),)*];
        }
    };
}

numbers! {
    /// What a message is: requests, and from 32 on what answers them.
    cmd: u8 {
        /// Make a queue.
        CREATE = 1,
        /// Remove a queue.
        DESTROY = 2,
        /// Name queues.
        LIST = 3,
        /// Append a message.
        SEND = 4,
        /// Take messages.
        RECEIVE = 5,
        /// Be done with messages.
        ACK = 6,
        /// Give messages back.
        NACK = 7,
        /// Hold messages for longer.
        EXTEND = 8,
        /// Take messages as they come.
        SUBSCRIBE = 9,
        /// End that.
        UNSUBSCRIBE = 10,
        /// Tell how queues are.
        DIAGNOSTICS = 11,
        /// Tell what happened.
        TRACE = 12,
        /// Drop what waits.
        PURGE = 13,
        /// Take a message back.
        WITHDRAW = 14,
        /// End the broker.
        SHUTDOWN = 15,
        /// A queue is there.
        CREATED = 32,
        /// A message is in its queue.
        SENT = 33,
        /// A message.
        MESSAGE = 34,
        /// A subscription has begun.
        SUBSCRIBED = 35,
        /// So many were dropped.
        PURGED = 36,
        /// How a queue is.
        QUEUE = 37,
        /// How the broker is.
        BROKER = 38,
        /// A message, for a person to look at.
        ENTRY = 39,
        /// Something that happened.
        EVENT = 40,
        /// Where to go on.
        NEXT = 41,
    }
}

numbers! {
    /// Attributes.
    attr: u16 {
        /// A name.
        QUEUE = 1,
        /// One id of a message or several, 8 bytes each.
        ID = 2,
        /// Who sends: 16 bytes.
        SENDER = 3,
        /// The sender's number.
        SEQUENCE = 4,
        /// Milliseconds.
        TTL = 5,
        /// What an answer repeats.
        CORRELATION = 6,
        /// The queue for an answer.
        REPLY_TO = 7,
        /// A name, a NUL, a value.
        HEADER = 8,
        /// The payload, or a part of it.
        PAYLOAD = 9,
        /// 1 for the first delivery.
        ATTEMPT = 10,
        /// A time.
        ARRIVED = 11,
        /// See `kind`.
        KIND = 12,
        /// See `mode`.
        MODE = 13,
        /// See `policy`.
        POLICY = 14,
        /// A limit.
        MESSAGES_MAX = 15,
        /// A limit.
        BYTES_MAX = 16,
        /// A limit.
        MESSAGE_BYTES_MAX = 17,
        /// A limit, in milliseconds.
        TTL_MAX = 18,
        /// Milliseconds.
        LEASE = 19,
        /// A limit.
        ATTEMPTS_MAX = 20,
        /// A name.
        DEAD_LETTER = 21,
        /// See `flags`.
        FLAGS = 22,
        /// How many.
        COUNT = 23,
        /// How many bytes may be held.
        CREDIT_BYTES = 24,
        /// Milliseconds.
        TIMEOUT = 25,
        /// The number of a subscription.
        CONSUMER = 26,
        /// What names begin with.
        PREFIX = 27,
        /// How much of a message to show.
        PAYLOAD_MAX = 28,
        /// The number of an event.
        FROM = 29,
        /// A time.
        STARTED = 30,
        /// A time.
        NOW = 31,
        /// Whether messages are kept on disk.
        DURABLE = 32,
        /// An id of 8 bytes, and the name of its queue.
        QUARANTINED = 33,
        /// How many.
        QUEUES = 34,
        /// See `service`.
        SERVICE = 35,
        /// A time.
        LAST_TAKEN = 36,
        /// A session.
        OWNER = 37,
        /// How many.
        CONSUMERS = 38,
        /// How many.
        READY = 39,
        /// How many.
        LEASED = 40,
        /// How many.
        MESSAGES = 41,
        /// How many.
        BYTES = 42,
        /// A time.
        OLDEST = 43,
        /// Numbers of 8 bytes, see `proto-spec/queue.md` section 6.
        COUNTERS = 44,
        /// A time.
        EXPIRES = 45,
        /// A session.
        HOLDER = 46,
        /// How many bytes.
        LENGTH = 47,
        /// Whether the queue for an answer is there.
        REPLY_ALIVE = 48,
        /// See `what`.
        WHAT = 49,
        /// A time.
        TIME = 50,
        /// A session.
        SESSION = 51,
        /// Microseconds.
        AGE = 52,
        /// The attributes of a message, perhaps cut.
        RECORD = 53,
        /// Of an answer that says no: an error number.
        ERRNO = 54,
        /// Of an answer that says no: in words.
        TEXT = 55,
    }
}

numbers! {
    /// Bits of FLAGS.
    flag: u32 {
        /// Make the queue if it is not there.
        CREATE = 1,
        /// It must not be there yet.
        EXCLUSIVE = 2,
        /// Also what others hold.
        FORCE = 4,
        /// Done with before it is delivered.
        AUTO_ACK = 8,
        /// Only if nothing is in it.
        IF_EMPTY = 16,
        /// Only those that somebody takes messages from.
        ALIVE = 32,
        /// It had been sent before.
        AGAIN = 64,
        /// It was not there before.
        NEW = 128,
    }
}
