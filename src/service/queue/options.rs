//! What a queue is made with.

/// How long a queue lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Until it is destroyed; if the broker has a state directory, on disk.
    #[default]
    Persistent,
    /// As long as the session that made it.
    Transient,
}

/// Who gets a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// One of the consumers.
    #[default]
    Share,
    /// Each of those that are subscribed when it arrives; if none is, the next one to subscribe.
    Fanout,
}

/// What becomes of a message for which a queue has no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Its sender gets `ENOBUFS`.
    #[default]
    Reject,
    /// The oldest that no consumer holds are dropped for it.
    DropOldest,
    /// Its sender gets no answer until there is room.
    Block,
}

/// The limits and ways of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueOptions {
    /// Who gets a message. Default [`Mode::Share`].
    pub mode: Mode,
    /// What becomes of a message that there is no room for. Default [`Policy::Reject`].
    pub policy: Policy,
    /// Messages that it holds. Default 1,000,000.
    pub messages_max: u64,
    /// Bytes of messages that it holds, in memory too. Default 256 MiB.
    pub bytes_max: u64,
    /// The longest message, headers included. Default 15 MiB; more than 16 MiB less some hundred bytes
    /// does not reach the queue.
    pub message_bytes_max: u64,
    /// How long a message is of use, in milliseconds; the message's own time to live can only be
    /// shorter. Default 0: no limit.
    pub ttl_ms_max: u64,
    /// How long a consumer may take for a message, in milliseconds. Default 30 s.
    pub lease_ms: u64,
    /// How often a message is delivered before it goes to [`dead_letter`](Self::dead_letter). Default 5;
    /// without a dead-letter queue it is not looked at.
    pub attempts_max: u32,
    /// The queue for what was delivered too often; made, with the defaults, when it is needed. Default:
    /// none, and messages are delivered again without end.
    pub dead_letter: Option<String>,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            policy: Policy::default(),
            messages_max: 1_000_000,
            bytes_max: 256 << 20,
            message_bytes_max: 15 << 20,
            ttl_ms_max: 0,
            lease_ms: 30_000,
            attempts_max: 5,
            dead_letter: None,
        }
    }
}

macro_rules! setters {
    ($($field:ident: $type:ty)*) => {
        impl QueueOptions {
            $(
                #[doc = concat!("The same with another [`", stringify!($field), "`](Self::", stringify!($field), ").")]
                #[must_use]
                pub fn $field(mut self, value: $type) -> Self {
                    self.$field = value;
                    self
                }
            )*
        }
    };
}

setters! {
    mode: Mode
    policy: Policy
    messages_max: u64
    bytes_max: u64
    message_bytes_max: u64
    ttl_ms_max: u64
    lease_ms: u64
    attempts_max: u32
    dead_letter: Option<String>
}
