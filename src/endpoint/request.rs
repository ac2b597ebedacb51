//! REQ/REP: a message out, a stream of messages back.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;

use super::arrivals::Arrivals;
use super::data::MESSAGE_BYTES_MAX;
use super::error::RequestError;
use super::link::Frame;
use super::{Destination, Endpoint};
use crate::wire::{Envelope, EnvelopeHead, ErrorMessage, Header, Message, Messages, flag, nlm};

/// How long a request may take unless it says otherwise.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// How a request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestOptions {
    /// The time for all of it, from looking up the name to the last message. `None` waits for ever.
    /// Default [`REQUEST_DEADLINE`].
    pub deadline: Option<Duration>,
    /// The longest body that is joined from the parts of an answer, in bytes: past it
    /// [`call`](Endpoint::call) and [`ask`](Endpoint::ask) fail. Default 16 MiB.
    pub message_bytes_max: usize,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self { deadline: Some(REQUEST_DEADLINE), message_bytes_max: MESSAGE_BYTES_MAX }
    }
}

impl RequestOptions {
    /// The same with another deadline; `None` waits for ever.
    #[must_use]
    pub fn deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.deadline = deadline.into();
        self
    }

    /// The same with another [`message_bytes_max`](Self::message_bytes_max).
    #[must_use]
    pub fn message_bytes_max(mut self, max: usize) -> Self {
        self.message_bytes_max = max;
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
        let write = |head: EnvelopeHead| {
            let mut frame = Vec::new();
            head.emit(message, &mut frame).map(|()| frame)
        };
        Ok(Replies {
            arrivals: Arrivals::ask(self, to.into(), options, write).await?,
            ready: VecDeque::new(),
            until: Until::of(message),
            failed: None,
        })
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
    arrivals: Arrivals,
    ready: VecDeque<Reply>,
    until: Until,
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
            if self.arrivals.is_over() {
                return Poll::Ready(self.failed.take().map(Err));
            }
            let read = match self.arrivals.poll(context) {
                Poll::Ready(frame) => frame.and_then(|frame| self.read(&frame)),
                Poll::Pending => return Poll::Pending,
            };
            if let Err(error) = read {
                self.arrivals.end();
                self.failed = Some(error);
            }
        }
    }

    /// Takes the messages out of a frame.
    fn read(&mut self, frame: &Frame) -> Result<(), RequestError> {
        let envelope = Envelope::parse(&frame.bytes)?;
        for message in Messages::new(envelope.payload()?) {
            let message = message?;
            match message.header.kind {
                nlm::DONE => {
                    let done = ErrorMessage::parse(&message)?;
                    self.arrivals.end();
                    return self.arrivals.judge(&envelope.head, done);
                }
                nlm::ERROR => {
                    let error = ErrorMessage::parse(&message)?;
                    self.arrivals.judge(&envelope.head, error)?;
                    self.arrivals.end();
                    return Ok(());
                }
                nlm::OVERRUN => return Err(RequestError::Overrun),
                nlm::NOOP => {}
                _ => self.take(frame, &message),
            }
        }
        if envelope.head.flags & flag::LAST != 0 {
            self.arrivals.end();
        }
        Ok(())
    }

    fn take(&mut self, frame: &Frame, message: &Message<'_>) {
        let bytes = frame.bytes.slice_ref(message.bytes());
        self.ready.push_back(Reply { header: message.header, bytes, _frame: frame.clone() });
        if message.header.flags & nlm::MULTI == 0 && self.until == Until::First {
            self.arrivals.end();
        }
    }
}

impl Stream for Replies {
    type Item = Result<Reply, RequestError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll(context)
    }
}
