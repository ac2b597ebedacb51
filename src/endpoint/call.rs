//! REQ/REP between programs: a body out, bodies back.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;

use super::arrivals::Arrivals;
use super::data::{Joiner, Numbers, Shape, Unjoined, frames, shape};
use super::error::RequestError;
use super::link::Frame;
use super::request::RequestOptions;
use super::{Destination, Endpoint};
use crate::wire::{Envelope, EnvelopeHead, ErrorMessage, Message, Messages, flag, nlm};

impl Endpoint {
    /// Asks a program: sends `body` to the subsystem, and returns the body that it answers with, with the
    /// default deadline of 5 s. Both may be longer than a frame. If there are several bodies, this is the
    /// first; see [`ask`](Self::ask).
    ///
    /// # Errors
    /// [`RequestError::Undeliverable`] if nobody provides the name, [`RequestError::Refused`] with what
    /// the provider says, [`RequestError::TooLong`], [`RequestError::NoBody`], [`RequestError::Lost`],
    /// [`RequestError::Timeout`].
    ///
    /// Cancel-safe over a socket: dropped before it returns, the request is sent or not, and its answer is
    /// dropped. Inside the process a long request may be cut short, and is then passed over.
    pub async fn call(
        &self,
        to: impl Into<Destination>,
        body: &[u8],
    ) -> Result<Bytes, RequestError> {
        self.call_with(to, body, RequestOptions::default()).await
    }

    /// As [`call`](Self::call), with options.
    ///
    /// # Errors
    /// As [`call`](Self::call). Cancel-safe likewise.
    pub async fn call_with(
        &self,
        to: impl Into<Destination>,
        body: &[u8],
        options: RequestOptions,
    ) -> Result<Bytes, RequestError> {
        let mut answers = self.ask_with(to, body, options).await?;
        answers.next().await.unwrap_or(Err(RequestError::NoBody))
    }

    /// As [`call`](Self::call), for an answer of any number of bodies. Returns when the request is sent.
    ///
    /// # Errors
    /// As [`call`](Self::call). Cancel-safe likewise.
    pub async fn ask(
        &self,
        to: impl Into<Destination>,
        body: &[u8],
    ) -> Result<Answers, RequestError> {
        self.ask_with(to, body, RequestOptions::default()).await
    }

    /// As [`ask`](Self::ask), with options.
    ///
    /// # Errors
    /// As [`call`](Self::call). Cancel-safe likewise.
    pub async fn ask_with(
        &self,
        to: impl Into<Destination>,
        body: &[u8],
        options: RequestOptions,
    ) -> Result<Answers, RequestError> {
        let frame_max = self.handle.0.frame_max();
        let write = |head: EnvelopeHead| {
            let numbers = Numbers { sequence: head.sequence, pid: head.pid };
            Ok(frames(head, numbers, body, frame_max))
        };
        let arrivals = Arrivals::ask(self, to.into(), options, write).await?;
        Ok(Answers {
            arrivals,
            joiner: Joiner::default(),
            max: options.message_bytes_max,
            ready: VecDeque::new(),
            failed: None,
        })
    }

    /// Waits until the broker has dealt with everything that was sent over this link so far; inside the
    /// process that is so when the sending returns.
    ///
    /// # Errors
    /// [`RequestError::Timeout`] if it takes longer than `deadline`, [`RequestError::Lost`].
    ///
    /// Cancel-safe.
    pub async fn flush(&self, deadline: Duration) -> Result<(), RequestError> {
        // a broker answers in the order of what it was sent
        if self.handle.0.is_local() { Ok(()) } else { self.greet(deadline).await }
    }
}

/// The bodies of an answer, as they come in. An error ends them, and is yielded last.
///
/// Dropping it withdraws the interest in the answer, not the request.
pub struct Answers {
    arrivals: Arrivals,
    joiner: Joiner,
    /// The longest body that is joined.
    max: usize,
    ready: VecDeque<Bytes>,
    /// Yielded after `ready`.
    failed: Option<RequestError>,
}

impl Answers {
    /// The next body; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Bytes, RequestError>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, RequestError>>> {
        loop {
            if let Some(body) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(body)));
            }
            if self.arrivals.is_over() {
                return Poll::Ready(self.failed.take().map(Err));
            }
            let read = match self.arrivals.poll(context) {
                Poll::Ready(frame) => frame.and_then(|frame| self.read(&frame)),
                Poll::Pending => return Poll::Pending,
            };
            if let Err(error) = read {
                self.joiner = Joiner::default();
                self.arrivals.end();
                self.failed = Some(error);
            }
        }
    }

    /// Takes the bodies out of a frame.
    fn read(&mut self, frame: &Frame) -> Result<(), RequestError> {
        let envelope = Envelope::parse(&frame.bytes)?;
        let payload = envelope.payload()?;
        if shape(payload).0 == Shape::Opaque {
            self.ready.push_back(frame.bytes.slice_ref(payload));
        } else {
            for message in Messages::new(payload) {
                self.take(frame, &envelope.head, &message?)?;
            }
        }
        if envelope.head.flags & flag::LAST != 0 {
            self.arrivals.end();
        }
        Ok(())
    }

    fn take(
        &mut self,
        frame: &Frame,
        head: &EnvelopeHead,
        message: &Message<'_>,
    ) -> Result<(), RequestError> {
        match message.header.kind {
            nlm::DATA if message.header.flags & nlm::MULTI != 0 => {
                self.joiner.part(message, self.max).map_err(|why| self.unjoined(why))
            }
            nlm::ERROR => self.arrivals.judge(head, ErrorMessage::parse(message)?),
            nlm::DONE => {
                self.arrivals.judge(head, ErrorMessage::parse(message)?)?;
                if !self.joiner.is_idle() {
                    let body = self.joiner.done(message).map_err(|why| self.unjoined(why))?;
                    self.ready.push_back(body.into());
                }
                Ok(())
            }
            nlm::OVERRUN => Err(RequestError::Overrun),
            nlm::NOOP => Ok(()),
            _ => {
                self.ready.push_back(frame.bytes.slice_ref(message.body()));
                Ok(())
            }
        }
    }

    fn unjoined(&self, why: Unjoined) -> RequestError {
        match why {
            Unjoined::TooLong => RequestError::TooLong { max: self.max },
            Unjoined::Missing => RequestError::Overrun,
        }
    }
}

impl Stream for Answers {
    type Item = Result<Bytes, RequestError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll(context)
    }
}
