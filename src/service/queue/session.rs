//! The way back to one asker: a task of its own, so that one that does not read delays nobody else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

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
    outgoing: mpsc::Sender<Outgoing>,
    /// What follows when all else has gone out, and nothing after it.
    last: Arc<Mutex<Vec<Outgoing>>>,
    waiting_bytes: Arc<AtomicUsize>,
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

impl Session {
    pub(super) fn start(all: &Waiting) -> Self {
        let (outgoing, mut waiting) = mpsc::channel::<Outgoing>(WAITING_MAX);
        let session = Self {
            outgoing,
            last: Arc::default(),
            waiting_bytes: Arc::default(),
            all: all.clone(),
        };
        let (bytes, all) = (Arc::clone(&session.waiting_bytes), session.all.clone());
        let last = Arc::clone(&session.last);
        tokio::spawn(async move {
            while let Some(outgoing) = waiting.recv().await {
                bytes.fetch_sub(outgoing.bytes.len(), Ordering::Relaxed);
                all.0.fetch_sub(outgoing.bytes.len(), Ordering::Relaxed);
                outgoing.send_or_not().await;
            }
            let last = last.lock().map(|mut last| std::mem::take(&mut *last));
            for outgoing in last.unwrap_or_default() {
                outgoing.send_or_not().await;
            }
        });
        session
    }

    /// Sends a body without waiting; gives it back if there is no room.
    pub(super) fn offer(&self, outgoing: Outgoing) -> Option<Outgoing> {
        let length = outgoing.bytes.len();
        let waiting = self.waiting_bytes.load(Ordering::Relaxed);
        if waiting > WAITING_BYTES_MAX || waiting > FAIR_BYTES && self.all.is_full() {
            return Some(outgoing);
        }
        self.waiting_bytes.fetch_add(length, Ordering::Relaxed);
        self.all.0.fetch_add(length, Ordering::Relaxed);
        let unsent = self.outgoing.try_send(outgoing).err()?;
        self.waiting_bytes.fetch_sub(length, Ordering::Relaxed);
        self.all.0.fetch_sub(length, Ordering::Relaxed);
        Some(unsent.into_inner())
    }

    /// Has these follow when all else has gone out, and nothing after them.
    pub(super) fn end(self, last: Vec<Outgoing>) {
        if let Ok(mut place) = self.last.lock() {
            *place = last;
        }
    }

    /// Whether much waits for it.
    pub(super) fn is_behind(&self) -> bool {
        self.waiting_bytes.load(Ordering::Relaxed) > BEHIND_BYTES
    }
}

impl Outgoing {
    async fn send_or_not(self) {
        if let Err(error) = self.send().await {
            tracing::debug!(%error, "an asker is gone");
        }
    }

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
