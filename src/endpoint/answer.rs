//! A request as its provider holds it, and the ways to answer it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::data::{Numbers, end_frame, frames};
use super::error::RequestError;
use super::link::{Frame, Link};
use crate::wire::{
    Envelope, EnvelopeHead, ErrorMessage, Header, LEGACY_FRAME_MAX, Malformed, PAYLOAD_OFFSET,
    TooBig, align4, errno, flag,
};

/// What was sent.
pub(super) enum Content {
    /// A frame, and the body in it.
    Frame(Frame, Bytes),
    /// A body that came in parts.
    Joined(Bytes),
}

impl Content {
    /// `body` is a part of the frame's bytes, or empty.
    pub(super) fn frame(frame: Frame, body: &[u8]) -> Self {
        let body = frame.bytes.slice_ref(body);
        Self::Frame(frame, body)
    }
}

/// One request or push.
///
/// Answer it with [`reply`](Self::reply), with several [`part`](Self::part)s and
/// [`finish`](Self::finish), or with [`fail`](Self::fail). One that asks and is dropped unanswered is
/// answered with `EIO`, if there is room to send that. What is sent to who did not ask is passed over by
/// endpoints of this crate; a client of the original takes it for its answer.
///
/// While it lives, it counts against its sender's credit (inside the process, unless it came in parts).
pub struct Request {
    link: Arc<Link>,
    head: EnvelopeHead,
    /// Of its first message.
    header: Header,
    content: Content,
    /// Nobody else is to answer.
    open: AtomicBool,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("head", &self.head).finish_non_exhaustive()
    }
}

impl Request {
    pub(super) fn new(
        link: Arc<Link>,
        head: EnvelopeHead,
        header: Header,
        content: Content,
    ) -> Self {
        Self { link, head, header, content, open: AtomicBool::new(true) }
    }

    /// Who asks: the return address, one for each endpoint of each link.
    pub fn asker(&self) -> u32 {
        self.head.src
    }

    /// Whether the asker waits for an answer. A client of the original does not say.
    pub fn asks(&self) -> bool {
        self.head.flags & flag::ASK != 0
    }

    /// The header of the first message that was sent, zero if there was none: its sequence number and
    /// port id are those of the answer's messages.
    pub fn header(&self) -> Header {
        self.header
    }

    /// The bytes that the other program sent. What is not of type DATA (proto-spec/data.md) is given as
    /// it stands, and to a [raw](super::ProvideOptions::raw) provider everything is.
    pub fn body(&self) -> Bytes {
        match &self.content {
            Content::Frame(_, body) | Content::Joined(body) => body.clone(),
        }
    }

    /// The payload of the frame, with the headers of its messages; of a request that came in parts, its
    /// body.
    ///
    /// # Errors
    /// [`Malformed`] if the frame has no proper payload, which only a raw provider gets to see.
    pub fn payload(&self) -> Result<Bytes, Malformed> {
        match &self.content {
            Content::Frame(frame, _) => {
                let payload = Envelope::parse(&frame.bytes)?.payload()?;
                Ok(frame.bytes.slice_ref(payload))
            }
            Content::Joined(body) => Ok(body.clone()),
        }
    }

    /// Answers with one body.
    ///
    /// # Errors
    /// [`RequestError::Lost`].
    ///
    /// Not cancel-safe: dropped while it waits for room, the answer may be lost or, inside the process,
    /// be cut short; the asker is then told that there is none.
    pub async fn reply(self, body: &[u8]) -> Result<(), RequestError> {
        let sent = self.send(self.last_head(), body).await;
        self.close();
        sent
    }

    /// Sends one of several bodies. [`finish`](Self::finish) when there are no more.
    ///
    /// # Errors
    /// As [`reply`](Self::reply). Not cancel-safe likewise.
    pub async fn part(&mut self, body: &[u8]) -> Result<(), RequestError> {
        self.send(self.answer_head(), body).await
    }

    /// Says that there are no further bodies.
    ///
    /// # Errors
    /// As [`reply`](Self::reply). Not cancel-safe likewise.
    pub async fn finish(self) -> Result<(), RequestError> {
        let mut frame = end_frame(self.last_head(), Numbers::of(&self.header));
        let sent = self.link.send(&mut frame).await;
        self.close();
        sent
    }

    /// Answers with an error, also after some parts: `errno` is positive, `text` is for people and is cut
    /// after 1,024 bytes.
    ///
    /// # Errors
    /// As [`reply`](Self::reply). Not cancel-safe likewise.
    pub async fn fail(self, errno: i32, text: &str) -> Result<(), RequestError> {
        let sent = self.link.send(&mut self.error_frame(errno, text)).await;
        self.close();
        sent
    }

    /// The way to answer with frames of one's own making, apart from the request itself, which may be
    /// dropped: that whoever takes it answers is then not seen to any more.
    pub fn responder(&self) -> Responder {
        self.close();
        Responder { link: Arc::clone(&self.link), head: self.answer_head() }
    }

    /// Bytes that it takes.
    pub(super) fn length(&self) -> usize {
        match &self.content {
            Content::Frame(frame, _) => frame.bytes.len(),
            Content::Joined(body) => body.len(),
        }
    }

    /// Answers with an error if that is waited for, without waiting.
    pub(super) fn refuse(mut self, errno: i32, text: &str) {
        self.close();
        self.offer_error(errno, text);
    }

    /// Says that nobody is here any more, as the broker would have said; without waiting.
    pub(super) fn give_back(self) {
        self.close();
        if self.asks() {
            self.link.offer(nobody(&self.head), None);
        }
    }

    async fn send(&self, head: EnvelopeHead, body: &[u8]) -> Result<(), RequestError> {
        let frame_max = if self.asks() { self.link.frame_max() } else { LEGACY_FRAME_MAX };
        self.link.send(&mut frames(head, Numbers::of(&self.header), body, frame_max)).await
    }

    fn close(&self) {
        self.open.store(false, Ordering::Relaxed);
    }

    fn answer_head(&self) -> EnvelopeHead {
        answer_head(&self.head, 0)
    }

    fn last_head(&self) -> EnvelopeHead {
        answer_head(&self.head, flag::LAST)
    }

    fn error_frame(&self, errno: i32, text: &str) -> Vec<u8> {
        error_frame(self.last_head(), &self.header, errno, text)
    }

    fn offer_error(&mut self, errno: i32, text: &str) {
        if self.asks() {
            let frame = self.error_frame(errno, text);
            let content = std::mem::replace(&mut self.content, Content::Joined(Bytes::new()));
            // until it is sent the request counts against its sender's credit: a bound on how many wait
            let held = match content {
                Content::Frame(frame, _) => frame.held,
                Content::Joined(_) => None,
            };
            self.link.offer(frame, held);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if *self.open.get_mut() {
            self.offer_error(errno::EIO, "the provider gave no answer");
        }
    }
}

/// The head of an answer to `request`; of `flags` nothing if it did not ask.
fn answer_head(request: &EnvelopeHead, flags: u16) -> EnvelopeHead {
    let asks = request.flags & flag::ASK != 0;
    let flags = if asks { flag::RESPONSE | flags } else { 0 };
    EnvelopeHead { flags, dst: request.src, src: request.dst, ..*request }
}

fn error_frame(head: EnvelopeHead, request: &Header, errno: i32, text: &str) -> Vec<u8> {
    let error = ErrorMessage::emit(-errno, request, text);
    let mut frame = Vec::new();
    head.emit(&error, &mut frame).unwrap_or_else(|too_big| {
        unreachable!("an error message is far below {}", too_big.max);
    });
    frame
}

/// The frame that says to who asks that nobody provides at its `dst` any more.
pub(super) fn nobody(head: &EnvelopeHead) -> Vec<u8> {
    let text = "nobody provides this any more";
    let head = answer_head(head, flag::EXCEPTION | flag::LAST);
    error_frame(head, &Header::default(), errno::ENOENT, text)
}

/// Sends frames of an answer.
#[derive(Clone)]
pub struct Responder {
    link: Arc<Link>,
    head: EnvelopeHead,
}

impl Responder {
    /// The same, for the last frame of an answer: sets LAST if the asker waits for an answer.
    #[must_use]
    pub fn last(&self) -> Self {
        let mut last = self.clone();
        if last.head.flags & flag::RESPONSE != 0 {
            last.head.flags |= flag::LAST;
        }
        last
    }

    /// The same, for a frame that others of the same answer follow.
    #[must_use]
    pub fn not_last(&self) -> Self {
        let mut before = self.clone();
        before.head.flags &= !flag::LAST;
        before
    }

    /// Sends `payload` as one frame.
    ///
    /// # Errors
    /// [`RequestError::TooBig`] above 65,531 bytes, [`RequestError::Lost`].
    ///
    /// Not cancel-safe: dropped while it waits for room, the frame may be lost.
    pub async fn send(&self, payload: &[u8]) -> Result<(), RequestError> {
        let mut frame = Vec::new();
        self.head.emit(payload, &mut frame)?;
        self.link.send(&mut frame).await
    }

    /// Answers with NLMSG_ERROR: `errno` is positive, `request` the header of the message that failed.
    ///
    /// # Errors
    /// As [`send`](Self::send). Not cancel-safe likewise.
    pub async fn send_error(
        &self,
        errno: i32,
        request: &Header,
        text: &str,
    ) -> Result<(), RequestError> {
        self.send(&ErrorMessage::emit(-errno, request, text)).await
    }

    /// As [`send`](Self::send), for a payload of `length` bytes that stands at offset 28 of `frame`,
    /// followed by room for padding to a multiple of 4. Nothing is copied.
    ///
    /// # Errors
    /// As [`send`](Self::send). Not cancel-safe likewise.
    pub async fn send_in_place(&self, frame: &mut [u8], length: usize) -> Result<(), RequestError> {
        send_in_place(&self.link, self.head, frame, length).await
    }
}

pub(super) async fn send_in_place(
    link: &Link,
    head: EnvelopeHead,
    frame: &mut [u8],
    length: usize,
) -> Result<(), RequestError> {
    let before = head.before_payload(length)?;
    let too_big = TooBig { length, max: frame.len().saturating_sub(PAYLOAD_OFFSET) };
    let frame = frame.get_mut(..align4(PAYLOAD_OFFSET + length)).ok_or(too_big)?;
    frame[..PAYLOAD_OFFSET].copy_from_slice(&before);
    frame[PAYLOAD_OFFSET + length..].fill(0);
    link.send(frame).await
}
