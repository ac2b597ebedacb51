//! REQ/REP: a message out, a stream of messages back.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::error::RequestError;
use super::link::{Frame, Handle};
use super::{Destination, Endpoint};
use crate::wire::{Envelope, EnvelopeHead, ErrorMessage, Header, Message, Messages, flag, nlm};

/// How long a request may take unless it says otherwise.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// How many frames of an answer wait to be taken. Past that the link is not read, until the answer is
/// taken, dropped or out of time. At 16 KiB each this is 1 MiB.
const REPLY_FRAMES_MAX: usize = 64;

/// How a request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestOptions {
    /// The time for all of it, from looking up the name to the last message. `None` waits for ever.
    /// Default [`REQUEST_DEADLINE`].
    pub deadline: Option<Duration>,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self { deadline: Some(REQUEST_DEADLINE) }
    }
}

impl RequestOptions {
    /// The same with another deadline; `None` waits for ever.
    #[must_use]
    pub fn deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.deadline = deadline.into();
        self
    }
}

impl Endpoint {
    /// Sends `message`, a whole netlink message with its header, to a subsystem, and returns the stream
    /// of its answer, with the default deadline of 5 s.
    ///
    /// The message's own sequence number and port id come back in the answer as they are; they need not
    /// be unique. Any number of requests may be under way at once.
    ///
    /// # Errors
    /// [`RequestError::Undeliverable`] if nobody provides the name, [`RequestError::TooBig`] above 65,531
    /// bytes, [`RequestError::Lost`], [`RequestError::Timeout`].
    ///
    /// Cancel-safe: dropped before it returns, the request is sent or not, and its answer is dropped.
    pub async fn request(
        &self,
        to: impl Into<Destination>,
        message: &[u8],
    ) -> Result<Replies, RequestError> {
        self.request_with(to, message, RequestOptions::default()).await
    }

    /// As [`request`](Self::request), with options.
    ///
    /// # Errors
    /// As [`request`](Self::request). Cancel-safe likewise.
    pub async fn request_with(
        &self,
        to: impl Into<Destination>,
        message: &[u8],
        options: RequestOptions,
    ) -> Result<Replies, RequestError> {
        let link = &self.handle.0;
        let deadline = options.deadline.map(|after| Instant::now() + after);
        let (sequence, frames) = link.expect_replies(REPLY_FRAMES_MAX, deadline)?;
        let replies = Replies {
            handle: Arc::clone(&self.handle),
            sequence,
            frames,
            after: options.deadline.unwrap_or_default(),
            timer: deadline.map(|at| Box::pin(sleep_until(at))),
            ready: VecDeque::new(),
            until: Until::of(message),
            over: false,
            failed: None,
        };
        let send = async {
            let dst = self.resolve(to.into(), options.deadline).await?;
            let mut frame = Vec::new();
            link.head(flag::ASK, sequence, dst, self.port).emit(message, &mut frame)?;
            link.send(&mut frame).await
        };
        match deadline {
            None => send.await?,
            Some(deadline) => match timeout_at(deadline, send).await {
                Ok(sent) => sent?,
                Err(_) => return Err(RequestError::Timeout { after: replies.after }),
            },
        }
        Ok(replies)
    }
}

/// One message of an answer.
#[derive(Clone)]
pub struct Reply {
    header: Header,
    bytes: Bytes,
    _frame: Frame,
}

impl Reply {
    /// The message's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What follows the header.
    pub fn body(&self) -> &[u8] {
        &self.bytes[crate::wire::HEADER_LEN..]
    }

    /// Header and body.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("header", &self.header).finish_non_exhaustive()
    }
}

/// What ends an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// The first message that is not part of a multipart answer, NLMSG_DONE, or an error.
    First,
    /// The acknowledgement that was asked for, NLMSG_DONE, or an error.
    Ack,
}

impl Until {
    fn of(message: &[u8]) -> Self {
        match Header::parse(message) {
            Ok(header) if header.flags & nlm::ACK != 0 => Self::Ack,
            _ => Self::First,
        }
    }
}

/// The answer to one request, as it comes in.
///
/// Ends after the messages of a multipart answer (at NLMSG_DONE, which is not yielded), after a single
/// message, or, if the request had NLM_F_ACK, at the acknowledgement. An error ends it too, and is yielded
/// last. Dropping it withdraws the interest in the answer, not the request.
pub struct Replies {
    handle: Arc<Handle>,
    sequence: u32,
    frames: mpsc::Receiver<Frame>,
    after: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    ready: VecDeque<Reply>,
    until: Until,
    over: bool,
    /// Yielded after `ready`.
    failed: Option<RequestError>,
}

impl Replies {
    /// The next message; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Reply, RequestError>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    /// The whole answer.
    ///
    /// # Errors
    /// The error that ended it; what came before is dropped. Not cancel-safe: what came is lost.
    pub async fn collect(mut self) -> Result<Vec<Reply>, RequestError> {
        let mut all = Vec::new();
        while let Some(reply) = self.next().await {
            all.push(reply?);
        }
        Ok(all)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Reply, RequestError>>> {
        loop {
            if let Some(reply) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(reply)));
            }
            if self.over {
                return Poll::Ready(self.failed.take().map(Err));
            }
            let read = match self.frames.poll_recv(context) {
                Poll::Ready(Some(frame)) => self.read(&frame),
                Poll::Ready(None) => Err(self.handle.0.lost()),
                Poll::Pending => {
                    match self.timer.as_mut().map(|timer| timer.as_mut().poll(context)) {
                        Some(Poll::Ready(())) => Err(RequestError::Timeout { after: self.after }),
                        _ => return Poll::Pending,
                    }
                }
            };
            if let Err(error) = read {
                self.end();
                self.failed = Some(error);
            }
        }
    }

    fn end(&mut self) {
        self.over = true;
        self.handle.0.forget(self.sequence);
    }

    /// Takes the messages out of a frame.
    fn read(&mut self, frame: &Frame) -> Result<(), RequestError> {
        let envelope = Envelope::parse(&frame.bytes)?;
        for message in Messages::new(envelope.payload()?) {
            let message = message?;
            match message.header.kind {
                nlm::DONE => {
                    let done = ErrorMessage::parse(&message)?;
                    self.end();
                    return self.judge(&envelope.head, done);
                }
                nlm::ERROR => {
                    let error = ErrorMessage::parse(&message)?;
                    self.judge(&envelope.head, error)?;
                    self.end();
                    return Ok(());
                }
                nlm::OVERRUN => return Err(RequestError::Overrun),
                nlm::NOOP => {}
                _ => self.take(frame, &message),
            }
        }
        Ok(())
    }

    fn take(&mut self, frame: &Frame, message: &Message<'_>) {
        let bytes = frame.bytes.slice_ref(message.bytes());
        self.ready.push_back(Reply { header: message.header, bytes, _frame: frame.clone() });
        if message.header.flags & nlm::MULTI == 0 && self.until == Until::First {
            self.end();
        }
    }

    fn judge(&self, head: &EnvelopeHead, error: ErrorMessage<'_>) -> Result<(), RequestError> {
        if error.code == 0 {
            return Ok(());
        }
        let errno = error.code.saturating_neg();
        let text = error.text.map(str::to_owned);
        if head.flags & flag::EXCEPTION != 0 {
            self.handle.0.forget_names();
            return Err(RequestError::Undeliverable { errno, text });
        }
        Err(RequestError::Refused { errno, text })
    }
}

impl Stream for Replies {
    type Item = Result<Reply, RequestError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll(context)
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        if !self.over {
            self.handle.0.forget(self.sequence);
        }
    }
}
