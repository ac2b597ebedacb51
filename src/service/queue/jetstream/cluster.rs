//! The cluster, as all tasks of the queues see it: calls that take a bounded time and end with a refusal.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::connection::State;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Info, LastRawMessageErrorKind, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, RequestErrorKind};
use tokio::sync::watch;
use tokio::time::timeout;

use super::super::machine::Refusal;
use super::super::options::{Mode, Policy, QueueOptions};
use super::faults::{Failure, away, refusal, unmade, unseen, unsent};
use super::names::{About, STREAM_PREFIX, consumer_of, stream_of, subject_of};
use crate::store::Time;
use crate::wire::errno;

/// How long one call to the cluster may take: less than clients wait, so that they are told why.
pub(super) const CALL_MAX: Duration = Duration::from_secs(4);

/// How long the cluster knows the number of a message that was sent, at most.
pub(super) const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// Pulls that wait for messages of one queue.
const PULLS_MAX: i64 = 16_384;

/// The longest time that is asked of a server; its own bound is 292 years.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A server takes no shorter one for a lease, an age or a window.
const SHORTEST: Duration = Duration::from_millis(100);

/// Where the last id of queues that are gone is kept.
const FLOOR_STREAM: &str = "NLBUS-floor";
const FLOOR_SUBJECT: &str = "nlbus.floor";

/// Ids that are passed over when a queue is destroyed: its last messages may come after it was looked at.
const FLOOR_STEP: u64 = 1 << 20;

/// How often a floor is tried to be raised against others.
const FLOOR_ATTEMPTS: usize = 100;

pub(super) struct Cluster {
    pub(super) client: Client,
    pub(super) context: Context,
    /// This broker's, chosen at random.
    pub(super) instance: u64,
    pub(super) replicas: usize,
    /// Counts the connections that were made.
    pub(super) connections: watch::Receiver<u64>,
}

/// A queue that was found or made.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) name: Arc<str>,
    pub(super) stream: String,
    pub(super) subject: String,
    pub(super) consumer: String,
    pub(super) about: About,
}

impl Opened {
    fn new(about: About) -> Self {
        Self {
            name: about.name.as_str().into(),
            stream: stream_of(&about.name),
            subject: subject_of(&about.name, about.made),
            consumer: consumer_of(about.made),
            about,
        }
    }

    pub(super) fn id(&self, sequence: u64) -> u64 {
        self.about.floor.saturating_add(sequence)
    }

    pub(super) fn sequence(&self, id: u64) -> Option<u64> {
        id.checked_sub(self.about.floor).filter(|sequence| *sequence > 0)
    }

    /// How long the cluster leaves a message to who took it.
    pub(super) fn lease(&self) -> Duration {
        Duration::from_millis(self.about.options.lease_ms).clamp(SHORTEST, LONGEST)
    }
}

impl Cluster {
    /// # Errors
    /// `EHOSTUNREACH` if there is no connection.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self.client.connection_state() {
            State::Connected => Ok(()),
            _ => Err(away("there is no connection to the cluster")),
        }
    }

    /// Sends something and waits until it is answered.
    pub(super) async fn ask(&self, subject: &str, body: &'static str) -> Result<(), Failure> {
        self.check()?;
        let asked = self.client.request(subject.to_owned(), body.into());
        match bounded(asked).await? {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Err(Failure::Nobody),
            Err(error) => Err(away(error).into()),
        }
    }

    /// What to say of a queue for which nobody answers: `ENOENT` only if it is known to be gone.
    pub(super) async fn why_nobody(&self, opened: &Opened) -> Refusal {
        match self.look(&opened.name).await {
            Ok((now, _)) if now.about.made == opened.about.made => Failure::Nobody.refusal(),
            Ok(_) => Refusal::missing(&opened.name),
            Err(refusal) => refusal,
        }
    }

    /// Whether the broker with this number is there; `None` if that cannot be told.
    pub(super) async fn is_alive(&self, instance: u64) -> Option<bool> {
        let asked = self.client.request(alive_subject(instance), "".into());
        match bounded(asked).await.ok()? {
            Ok(_) => Some(true),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Some(false),
            Err(_) => None,
        }
    }

    /// Finds a queue.
    pub(super) async fn open(&self, name: &str) -> Result<Arc<Opened>, Refusal> {
        let opened = self.look(name).await?.0;
        self.make_consumer(&opened).await?;
        Ok(opened)
    }

    /// Finds a queue and tells how its stream is.
    pub(super) async fn look(&self, name: &str) -> Result<(Arc<Opened>, Info), Refusal> {
        self.check()?;
        let stream = bounded(self.context.get_stream(stream_of(name))).await?;
        let info = match stream {
            Ok(stream) => stream.cached_info().clone(),
            Err(error) => return Err(unseen(name, &error)),
        };
        match about(&info) {
            Some(about) if about.name == name => Ok((Arc::new(Opened::new(about)), info)),
            _ => Err(taken(name)),
        }
    }

    /// Makes a queue: whether it was not there before.
    pub(super) async fn create(
        &self,
        name: &str,
        owner: Option<(u64, u32)>,
        options: &QueueOptions,
    ) -> Result<(Arc<Opened>, bool), Refusal> {
        self.check()?;
        if options.mode == Mode::Fanout {
            let text = "a queue in a NATS cluster is shared: a fanout is for queues of one broker";
            return Err(Refusal::new(errno::EOPNOTSUPP, text));
        }
        let made = wall().0;
        // what is transient is made often, and its ids need not be short
        let floor = if owner.is_some() { made } else { self.floor().await?.0 };
        let about = About { made, floor, owner, options: options.clone(), name: name.to_owned() };
        let opened = Opened::new(about);
        match bounded(self.context.create_stream(self.config(&opened))).await? {
            Ok(_) => {}
            Err(error) => match error.kind() {
                CreateStreamErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::STREAM_NAME_EXIST =>
                {
                    return Ok((self.open(name).await?, false));
                }
                _ => return Err(unmade(name, &error)),
            },
        }
        self.make_consumer(&opened).await?;
        Ok((Arc::new(opened), true))
    }

    fn config(&self, opened: &Opened) -> Config {
        let About { owner, options, .. } = &opened.about;
        let bound = |max: u64| i64::try_from(max.max(1)).unwrap_or(i64::MAX);
        let max_age = match options.ttl_ms_max {
            0 => Duration::ZERO,
            ttl => Duration::from_millis(ttl).clamp(SHORTEST, LONGEST),
        };
        let window =
            if max_age.is_zero() { DUPLICATE_WINDOW } else { DUPLICATE_WINDOW.min(max_age) };
        Config {
            name: opened.stream.clone(),
            subjects: vec![opened.subject.clone()],
            description: Some(opened.about.to_text()),
            retention: RetentionPolicy::WorkQueue,
            storage: if owner.is_some() { StorageType::Memory } else { StorageType::File },
            num_replicas: if owner.is_some() { 1 } else { self.replicas },
            max_messages: bound(options.messages_max),
            // a server sets aside what a stream may have: the default for each would soon be all
            max_bytes: match options.bytes_max == QueueOptions::default().bytes_max {
                true => -1,
                false => bound(options.bytes_max),
            },
            discard: match options.policy {
                Policy::DropOldest => DiscardPolicy::Old,
                Policy::Reject | Policy::Block => DiscardPolicy::New,
            },
            max_age,
            duplicate_window: window,
            max_consumers: -1,
            max_messages_per_subject: -1,
            ..Config::default()
        }
    }

    async fn make_consumer(&self, opened: &Opened) -> Result<(), Refusal> {
        let config = pull::Config {
            durable_name: Some(opened.consumer.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: opened.lease(),
            max_deliver: -1,
            max_ack_pending: -1,
            max_waiting: PULLS_MAX,
            ..pull::Config::default()
        };
        let made = self.context.create_consumer_on_stream(config, opened.stream.clone());
        let made: Result<jetstream::consumer::Consumer<pull::Config>, _> = bounded(made).await?;
        made.map(drop).map_err(|error| match error.kind() {
            jetstream::stream::ConsumerErrorKind::JetStream(error) => refusal(&opened.name, &error),
            _ => away(error),
        })
    }

    /// Removes a queue, and sees that its ids are not given out again.
    pub(super) async fn destroy(&self, opened: &Opened, last: u64) -> Result<(), Refusal> {
        if opened.about.owner.is_none() {
            self.raise_floor(opened.id(last).saturating_add(FLOOR_STEP)).await?;
        }
        match bounded(self.context.delete_stream(&opened.stream)).await? {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                jetstream::context::DeleteStreamErrorKind::JetStream(error) => {
                    Err(refusal(&opened.name, &error))
                }
                _ => Err(away(error)),
            },
        }
    }

    /// No new queue may give out an id up to this; and the sequence number of that knowledge.
    async fn floor(&self) -> Result<(u64, u64), Refusal> {
        let stream = match bounded(self.context.get_stream(FLOOR_STREAM)).await? {
            Ok(stream) => stream,
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error)
                    if error.error_code() == ErrorCode::STREAM_NOT_FOUND =>
                {
                    return Ok((0, 0));
                }
                _ => return Err(unseen(FLOOR_STREAM, &error)),
            },
        };
        match bounded(stream.get_last_raw_message_by_subject(FLOOR_SUBJECT)).await? {
            Ok(message) => {
                let floor =
                    str::from_utf8(&message.payload).ok().and_then(|text| text.parse().ok());
                let broken =
                    || Refusal::new(errno::EIO, "the floor of ids in the cluster is broken");
                Ok((floor.ok_or_else(broken)?, message.sequence))
            }
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok((0, 0)),
                LastRawMessageErrorKind::JetStream(error) => Err(refusal(FLOOR_STREAM, &error)),
                _ => Err(away(error)),
            },
        }
    }

    async fn raise_floor(&self, to: u64) -> Result<(), Refusal> {
        let config = Config {
            name: FLOOR_STREAM.to_owned(),
            subjects: vec![FLOOR_SUBJECT.to_owned()],
            description: Some(
                "nlbus: ids up to this were given out by queues that are gone".into(),
            ),
            max_messages: 1,
            num_replicas: self.replicas,
            ..Config::default()
        };
        let made = bounded(self.context.get_or_create_stream(config)).await?;
        made.map_err(|error| unmade(FLOOR_STREAM, &error))?;
        for _ in 0..FLOOR_ATTEMPTS {
            let (floor, sequence) = self.floor().await?;
            if floor >= to {
                return Ok(());
            }
            let publish = PublishMessage::build()
                .payload(to.to_string().into())
                .expected_last_subject_sequence(sequence);
            let published =
                bounded(async { self.context.send_publish(FLOOR_SUBJECT, publish).await?.await });
            match published.await? {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => {}
                Err(error) => return Err(unsent(FLOOR_STREAM, &error).refusal()),
            }
        }
        Err(Refusal::new(errno::EBUSY, "too many queues are destroyed at once"))
    }
}

/// What a stream says of its queue, if it is one.
pub(super) fn about(info: &Info) -> Option<About> {
    if !info.config.name.starts_with(STREAM_PREFIX) {
        return None;
    }
    let about = About::parse(info.config.description.as_deref()?)?;
    (stream_of(&about.name) == info.config.name).then_some(about)
}

/// Where a broker says that it is there.
pub(super) fn alive_subject(instance: u64) -> String {
    format!("nlbus.alive.{instance:016x}")
}

/// Waits for as long as a call may take.
pub(super) async fn bounded<T>(call: impl Future<Output = T>) -> Result<T, Refusal> {
    timeout(CALL_MAX, call).await.map_err(|_| away(format!("no answer within {CALL_MAX:?}")))
}

fn taken(name: &str) -> Refusal {
    let text = format!("the cluster's stream {} is not that of {name:?}", stream_of(name));
    Refusal::new(errno::EEXIST, text)
}

/// The time of day.
pub(super) fn wall() -> Time {
    Time(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64)
}
