//! What comes in for one provider: joined, bounded, queued.
//!
//! The link's reader takes each frame in. It waits here only where that holds back a sender who is to be
//! held back: pushes, and whatever comes over a link inside the process, where senders have credits. A
//! request that asks over a socket is refused instead, so that the answers to this program's own
//! requests, which come over the same link, still get through.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::answer::{Content, Request};
use super::data::{Joiner, Unjoined, whole};
use super::link::{Frame, Link};
use super::provide::{Incoming, ProvideOptions};
use crate::node::lock;
use crate::wire::{
    Envelope, EnvelopeHead, Header, Malformed, Message, Messages, errno, flag, mode, nlm,
};

/// Bodies of one provider that are being joined at once; a further one is refused.
const JOINS_MAX: usize = 1_024;

/// How long a body may go without a further part once there is no room for others.
const JOIN_IDLE_MAX: Duration = Duration::from_secs(30);

/// The receiving side of a provider, as the link's reader holds it.
pub(super) struct Intake {
    queue: mpsc::Sender<Queued>,
    /// A permit for each byte that may wait.
    room: Arc<Semaphore>,
    options: ProvideOptions,
    joins: Mutex<Joins>,
}

/// What waits to be taken, and its share of the room.
pub(super) struct Queued {
    pub(super) incoming: Incoming,
    _room: Option<OwnedSemaphorePermit>,
}

/// Why a request is not taken.
enum Refusal {
    Malformed(Malformed),
    Unjoined(Unjoined),
    /// Too much is being joined.
    Joining,
    /// Too much is waiting.
    Waiting,
    /// The provider takes pushes only.
    Asks,
}

impl Intake {
    pub(super) fn new(options: ProvideOptions) -> (Self, mpsc::Receiver<Queued>) {
        let (queue, queued) = mpsc::channel(options.waiting_max.max(1));
        let bytes = options.waiting_bytes_max.clamp(1, u32::MAX as usize);
        let options = ProvideOptions { waiting_bytes_max: bytes, ..options };
        let room = Arc::new(Semaphore::new(bytes));
        (Self { queue, room, options, joins: Mutex::default() }, queued)
    }

    /// Takes in a frame that is for this provider.
    pub(super) async fn take(&self, link: &Arc<Link>, head: EnvelopeHead, frame: Frame) {
        if head.flags & (flag::RESPONSE | flag::EXCEPTION) != 0 {
            return debug!(flags = head.flags, "an answer to what a provider did not ask");
        }
        let (request, refusal) = match self.admit(link, head, frame) {
            Some(Ok(request)) if request.asks() && self.options.mode & mode::PULL != 0 => {
                (request, Refusal::Asks)
            }
            Some(Ok(request)) => match self.enqueue(link, request).await {
                Some(request) => (request, Refusal::Waiting),
                None => return,
            },
            Some(Err((request, refusal))) => (request, refusal),
            None => return,
        };
        let (number, text) = self.words(&refusal);
        if !request.asks() {
            warn!(asker = request.asker(), text, "dropped what came in for a provider");
        }
        request.refuse(number, &text);
    }

    /// An asker's link has ended.
    pub(super) async fn gone(&self, asker: u32) {
        lock(&self.joins).forget(asker);
        let queued = Queued { incoming: Incoming::Gone { asker }, _room: None };
        let _ = self.queue.send(queued).await;
    }

    /// Makes a request of a frame; `None` if it is a part of one that further parts belong to.
    fn admit(
        &self,
        link: &Arc<Link>,
        head: EnvelopeHead,
        frame: Frame,
    ) -> Option<Result<Request, (Request, Refusal)>> {
        let request = |header, content| Request::new(Arc::clone(link), head, header, content);
        let bytes = frame.bytes.clone();
        let payload = match Envelope::parse(&bytes).and_then(|envelope| envelope.payload()) {
            Ok(payload) => payload,
            Err(_) if self.options.raw => {
                return Some(Ok(request(Header::default(), Content::frame(frame, &[]))));
            }
            Err(malformed) => {
                let refused = request(Header::default(), Content::frame(frame, &[]));
                return Some(Err((refused, Refusal::Malformed(malformed))));
            }
        };
        let first = Message::parse(payload).ok().map(|message| message.header);
        let header = first.unwrap_or_default();
        let part =
            header.kind == nlm::DONE || header.kind == nlm::DATA && header.flags & nlm::MULTI != 0;
        if self.options.raw || !part {
            let (start, end) = if self.options.raw { (0, payload.len()) } else { whole(payload) };
            return Some(Ok(request(header, Content::frame(frame, &payload[start..end]))));
        }
        match lock(&self.joins).take(&head, payload, &self.options)? {
            Ok((header, body)) => Some(Ok(request(header, Content::Joined(body)))),
            Err((header, refusal)) => {
                Some(Err((request(header, Content::Joined(Bytes::new())), refusal)))
            }
        }
    }

    /// Puts a request at the end of the queue, or gives it back to be refused.
    async fn enqueue(&self, link: &Link, request: Request) -> Option<Request> {
        let cost = request.length().clamp(1, self.options.waiting_bytes_max) as u32;
        let room = Arc::clone(&self.room).try_acquire_many_owned(cost);
        let (place, room) = match (self.queue.try_reserve(), room) {
            (Ok(place), Ok(room)) => (place, room),
            (Err(mpsc::error::TrySendError::Closed(())), _) => return None,
            _ if request.asks() && !link.is_local() => return Some(request),
            (place, room) => {
                drop((place, room));
                // an order for all: who holds the room also gets the place
                let room = Arc::clone(&self.room).acquire_many_owned(cost).await.ok()?;
                (self.queue.reserve().await.ok()?, room)
            }
        };
        place.send(Queued { incoming: Incoming::Request(request), _room: Some(room) });
        None
    }

    fn words(&self, refusal: &Refusal) -> (i32, String) {
        match refusal {
            Refusal::Malformed(malformed) => (errno::EINVAL, malformed.to_string()),
            Refusal::Unjoined(Unjoined::TooLong) => {
                let max = self.options.message_bytes_max;
                (errno::EMSGSIZE, format!("the request is longer than {max} bytes"))
            }
            Refusal::Unjoined(Unjoined::Missing) => {
                (errno::EIO, "parts of the request are missing".to_owned())
            }
            Refusal::Joining => (errno::EBUSY, "too many long requests are arriving".to_owned()),
            Refusal::Waiting => (errno::EBUSY, "too many requests are waiting".to_owned()),
            Refusal::Asks => (errno::EOPNOTSUPP, "only pushes are taken here".to_owned()),
        }
    }
}

/// Bodies that are being joined, by the sender's address and its envelope's sequence number.
#[derive(Default)]
struct Joins {
    joins: HashMap<(u32, u32), Join>,
    /// Of all of them together.
    bytes: usize,
}

struct Join {
    joiner: Joiner,
    /// Of the first part.
    header: Header,
    /// Said at the end; until then parts are passed over.
    refused: Option<Refusal>,
    touched: Instant,
}

type Joined = Result<(Header, Bytes), (Header, Refusal)>;

impl Joins {
    /// Takes the messages of a payload; the body if they complete one.
    fn take(
        &mut self,
        head: &EnvelopeHead,
        payload: &[u8],
        options: &ProvideOptions,
    ) -> Option<Joined> {
        let key = (head.src, head.sequence);
        for message in Messages::new(payload) {
            match message {
                Ok(message) if message.header.kind == nlm::DONE => {
                    return Some(self.done(key, &message));
                }
                Ok(message) if message.header.kind == nlm::DATA => {
                    self.part(key, &message, options)
                }
                Ok(_) => {}
                Err(malformed) => {
                    self.bytes -= self.joins.get(&key).map_or(0, |join| join.joiner.len());
                    if let Some(join) = self.joins.get_mut(&key) {
                        join.joiner = Joiner::default();
                        join.refused = Some(Refusal::Malformed(malformed));
                    }
                }
            }
        }
        None
    }

    fn part(&mut self, key: (u32, u32), part: &Message<'_>, options: &ProvideOptions) {
        if self.joins.len() >= JOINS_MAX && !self.joins.contains_key(&key) {
            self.forget_idle();
            if self.joins.len() >= JOINS_MAX {
                // at the end of the body its beginning is missing
                return;
            }
        }
        let join = self.joins.entry(key).or_insert_with(|| Join {
            joiner: Joiner::default(),
            header: part.header,
            refused: None,
            touched: Instant::now(),
        });
        join.touched = Instant::now();
        if join.refused.is_some() {
            return;
        }
        let before = join.joiner.len();
        if let Err(unjoined) = join.joiner.part(part, options.message_bytes_max) {
            join.refused = Some(Refusal::Unjoined(unjoined));
        }
        self.bytes = self.bytes + join.joiner.len() - before;
        if self.bytes > options.joining_bytes_max {
            self.forget_idle();
        }
        if self.bytes > options.joining_bytes_max
            && let Some(join) = self.joins.get_mut(&key)
        {
            self.bytes -= join.joiner.len();
            join.joiner = Joiner::default();
            join.refused = Some(Refusal::Joining);
        }
    }

    fn done(&mut self, key: (u32, u32), done: &Message<'_>) -> Joined {
        let Some(mut join) = self.joins.remove(&key) else {
            return Err((done.header, Refusal::Unjoined(Unjoined::Missing)));
        };
        self.bytes -= join.joiner.len();
        let body = match join.refused {
            Some(refusal) => Err(refusal),
            None => join.joiner.done(done).map_err(Refusal::Unjoined),
        };
        match body {
            Ok(body) => Ok((join.header, body.into())),
            Err(refusal) => Err((join.header, refusal)),
        }
    }

    fn forget(&mut self, asker: u32) {
        self.retain(|(src, _), _| *src != asker);
    }

    /// Forgets bodies whose sender has stopped in the middle.
    fn forget_idle(&mut self) {
        self.retain(|_, join| join.touched.elapsed() < JOIN_IDLE_MAX);
    }

    fn retain(&mut self, keep: impl Fn(&(u32, u32), &Join) -> bool) {
        self.joins.retain(|key, join| keep(key, join));
        self.bytes = self.joins.values().map(|join| join.joiner.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::data::{Numbers, frames};
    use crate::wire::{FRAME_MAX, Frames};

    const NUMBERS: Numbers = Numbers { sequence: 1, pid: 2 };

    fn options(message: usize, joining: usize) -> ProvideOptions {
        ProvideOptions::default().message_bytes_max(message).joining_bytes_max(joining)
    }

    /// The payloads of a body's frames.
    fn payloads(length: usize) -> Vec<Vec<u8>> {
        let mut run = frames(EnvelopeHead::default(), NUMBERS, &vec![7; length], FRAME_MAX);
        let mut frames = Frames::new(&mut run, FRAME_MAX);
        let mut all = Vec::new();
        while let Some((_, frame)) = frames.next_frame() {
            all.push(Envelope::parse(frame).unwrap().payload().unwrap().to_vec());
        }
        all
    }

    fn head(src: u32) -> EnvelopeHead {
        EnvelopeHead { src, sequence: 9, ..EnvelopeHead::default() }
    }

    fn joined(joins: &mut Joins, src: u32, parts: &[Vec<u8>], options: &ProvideOptions) -> Joined {
        let (end, parts) = parts.split_last().unwrap();
        for part in parts {
            assert!(joins.take(&head(src), part, options).is_none());
        }
        joins.take(&head(src), end, options).unwrap()
    }

    #[test]
    fn parts_of_two_senders_are_told_apart() {
        let (mut joins, options) = (Joins::default(), options(1 << 20, 1 << 20));
        let [one, two] = [payloads(200_000), payloads(300_000)];
        for part in &one[..3] {
            assert!(joins.take(&head(1), part, &options).is_none());
        }
        let body = joined(&mut joins, 2, &two, &options).ok().unwrap().1;
        assert_eq!(body.len(), 300_000);
        let body = joined(&mut joins, 1, &one[3..], &options).ok().unwrap().1;
        assert_eq!((body.len(), joins.bytes, joins.joins.len()), (200_000, 0, 0));
    }

    #[test]
    fn one_byte_past_the_limit_is_refused_at_the_end_and_frees_at_once() {
        let (mut joins, options) = (Joins::default(), options(200_000, 1 << 20));
        assert!(joined(&mut joins, 1, &payloads(200_000), &options).is_ok());
        let parts = payloads(200_001);
        for part in &parts[..parts.len() - 1] {
            assert!(joins.take(&head(1), part, &options).is_none());
        }
        assert_eq!((joins.bytes, joins.joins.len()), (0, 1));
        let refused = joins.take(&head(1), &parts[parts.len() - 1], &options).unwrap();
        assert!(matches!(refused, Err((_, Refusal::Unjoined(Unjoined::TooLong)))));
        assert!(joins.joins.is_empty());
    }

    #[test]
    fn all_bodies_together_are_bounded_and_those_under_way_still_complete() {
        let (mut joins, options) = (Joins::default(), options(1 << 20, 300_000));
        let parts = payloads(200_000);
        for part in &parts[..parts.len() - 1] {
            assert!(joins.take(&head(1), part, &options).is_none());
        }
        let refused = joined(&mut joins, 2, &parts, &options);
        assert!(matches!(refused, Err((_, Refusal::Joining))));
        assert_eq!(joins.bytes, 200_000);
        assert!(joins.take(&head(1), &parts[parts.len() - 1], &options).unwrap().is_ok());
    }

    #[test]
    fn a_body_whose_beginning_found_no_place_is_refused_and_never_cut() {
        let (mut joins, options) = (Joins::default(), options(1 << 20, 1 << 30));
        let parts = payloads(70_000);
        for src in 0..JOINS_MAX as u32 {
            joins.take(&head(src), &parts[0], &options);
        }
        assert!(joins.take(&head(5_000), &parts[0], &options).is_none());
        joins.forget(3);
        let refused = joined(&mut joins, 5_000, &parts[1..], &options);
        assert!(matches!(refused, Err((_, Refusal::Unjoined(Unjoined::Missing)))));
    }
}
