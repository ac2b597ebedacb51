//! The way back to one asker: a task of its own, so that one that does not read delays nobody else.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tokio::sync::mpsc;

use crate::endpoint::{Request, RequestError, Responder};
use crate::wire::{FRAME_MAX, HEADER_LEN, Header, PAYLOAD_MAX, PAYLOAD_OFFSET, align4, nlm};

/// Frames that wait for one asker. It has credit for fewer requests than that, and for fewer deliveries
/// unless it asked for more than it reads; past it, it is taken to be gone.
const WAITING_MAX: usize = 4_096;

/// Bytes that wait for one asker, past which it may not look.
const BEHIND_BYTES: usize = 8 << 20;

/// Bytes that wait for one asker; past it, it is taken to be gone.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// Bytes that wait for all askers. Past it nobody may look, and who has more than [`FAIR_BYTES`] waiting and
/// gets more is taken to be gone.
const ALL_BYTES_MAX: usize = 1 << 30;

/// See [`ALL_BYTES_MAX`].
const FAIR_BYTES: usize = 4 << 20;

/// What stands before the messages in a frame.
pub(super) const BEFORE: usize = PAYLOAD_OFFSET + HEADER_LEN;

/// The longest body in one frame, in bytes.
pub(super) const WHOLE_MAX: usize = {
    let payload = (FRAME_MAX & !3) - PAYLOAD_OFFSET;
    (if payload < PAYLOAD_MAX { payload } else { PAYLOAD_MAX }) - HEADER_LEN
};

/// A body on its way to an asker.
pub(super) struct Outgoing {
    pub(super) responder: Responder,
    /// The header of the request.
    pub(super) request: Header,
    /// [`BEFORE`] bytes of room, then messages.
    pub(super) bytes: Vec<u8>,
    /// Counts against the asker's credit until it is answered.
    pub(super) held: Option<Request>,
}

/// The asker, as long as it has not gone.
pub(super) struct Session {
    /// None once it was ended.
    outgoing: Option<mpsc::Sender<Queued>>,
    /// What follows when all else has gone out, and nothing after it. None once all else has.
    last: Arc<Mutex<Option<Vec<Outgoing>>>>,
    /// What is on its way through the task.
    waits: Arc<Waits>,
    all: Waiting,
}

/// Bytes that wait for all askers.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    /// Whether that is as much as may be.
    pub(super) fn is_full(&self) -> bool {
        self.0.load(Ordering::Relaxed) > ALL_BYTES_MAX
    }
}

#[derive(Default)]
struct Waits {
    frames: AtomicUsize,
    bytes: AtomicUsize,
}

struct Queued {
    length: usize,
    send: Sending,
}

/// A body that is being sent, or will be.
type Sending = Pin<Box<dyn Future<Output = Result<(), RequestError>> + Send>>;

impl Session {
    pub(super) fn start(all: &Waiting) -> Self {
        let (outgoing, mut queued) = mpsc::channel::<Queued>(WAITING_MAX);
        let session = Self {
            outgoing: Some(outgoing),
            last: Arc::new(Mutex::new(Some(Vec::new()))),
            waits: Arc::default(),
            all: all.clone(),
        };
        let (waits, all) = (Arc::clone(&session.waits), session.all.clone());
        let last = Arc::clone(&session.last);
        tokio::spawn(async move {
            while let Some(Queued { length, send }) = queued.recv().await {
                sent(send.await);
                all.0.fetch_sub(length, Ordering::Relaxed);
                waits.bytes.fetch_sub(length, Ordering::Release);
                waits.frames.fetch_sub(1, Ordering::Release);
            }
            let last = last.lock().ok().and_then(|mut last| last.take());
            for outgoing in last.unwrap_or_default() {
                sent(outgoing.send().await);
            }
        });
        session
    }

    /// Sends a body without waiting; gives it back if there is no room. What a link takes at once goes out
    /// from here, without a switch to another task.
    pub(super) fn offer(&self, outgoing: Outgoing) -> Option<Outgoing> {
        let length = outgoing.bytes.len();
        let waiting = self.waits.bytes.load(Ordering::Relaxed);
        if waiting > WAITING_BYTES_MAX || waiting > FAIR_BYTES && self.all.is_full() {
            return Some(outgoing);
        }
        let place = self.outgoing.as_ref().and_then(|outgoing| outgoing.try_reserve().ok());
        let Some(place) = place else { return Some(outgoing) };
        let mut send: Sending = Box::pin(outgoing.send());
        // nothing is overtaken: who sends is the only one, and the task is done with all it had
        if self.waits.frames.load(Ordering::Acquire) == 0
            && let Poll::Ready(result) = send.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        {
            sent(result);
            return None;
        }
        self.waits.frames.fetch_add(1, Ordering::Relaxed);
        self.waits.bytes.fetch_add(length, Ordering::Relaxed);
        self.all.0.fetch_add(length, Ordering::Relaxed);
        place.send(Queued { length, send });
        None
    }

    /// Has these follow when all else has gone out, and nothing after them.
    pub(super) fn end(&mut self, last: Vec<Outgoing>) {
        self.outgoing = None;
        for outgoing in last {
            self.refuse(outgoing, true);
        }
    }

    /// Whether it was ended.
    pub(super) fn is_ended(&self) -> bool {
        self.outgoing.is_none()
    }

    /// One more that follows, if it is asked for, when all else of an ended session has gone out; gives it back
    /// if it has.
    pub(super) fn refuse(&self, outgoing: Outgoing, asked_for: bool) -> Option<Outgoing> {
        match self.last.lock().as_deref_mut() {
            Ok(Some(last)) => {
                if asked_for {
                    last.push(outgoing);
                }
                None
            }
            _ => Some(outgoing),
        }
    }

    /// Whether much waits for it.
    pub(super) fn is_behind(&self) -> bool {
        self.waits.bytes.load(Ordering::Relaxed) > BEHIND_BYTES
    }
}

fn sent(result: Result<(), RequestError>) {
    if let Err(error) = result {
        tracing::debug!(%error, "an asker is gone");
    }
}

impl Outgoing {
    /// As `proto-spec/data.md` says: whole, or in parts and an end.
    async fn send(self) -> Result<(), RequestError> {
        let Self { responder, request, mut bytes, held } = self;
        let length = bytes.len() - BEFORE;
        let sent = if length <= WHOLE_MAX {
            let header = header_of(&request, nlm::DATA, 0, length);
            bytes[PAYLOAD_OFFSET..BEFORE].copy_from_slice(&header.to_bytes());
            bytes.resize(align4(bytes.len()), 0);
            responder.send_in_place(&mut bytes, HEADER_LEN + length).await
        } else {
            send_parts(&responder, &request, &bytes[BEFORE..]).await
        };
        drop(held);
        sent
    }
}

async fn send_parts(
    responder: &Responder,
    request: &Header,
    body: &[u8],
) -> Result<(), RequestError> {
    let before = responder.not_last();
    for part in body.chunks(WHOLE_MAX & !3) {
        let mut message = header_of(request, nlm::DATA, nlm::MULTI, part.len()).to_bytes().to_vec();
        message.extend_from_slice(part);
        before.send(&message).await?;
    }
    let mut done = header_of(request, nlm::DONE, nlm::MULTI, 8).to_bytes().to_vec();
    done.extend_from_slice(&0_u32.to_le_bytes());
    done.extend_from_slice(&(body.len() as u32).to_le_bytes());
    responder.send(&done).await
}

fn header_of(request: &Header, kind: u16, flags: u16, length: usize) -> Header {
    let &Header { sequence, pid, .. } = request;
    Header { length: (HEADER_LEN + length) as u32, kind, flags, sequence, pid }
}
