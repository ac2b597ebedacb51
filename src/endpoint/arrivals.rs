//! The frames that answer one request, until it is over or out of time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::error::RequestError;
use super::link::{Frame, Handle};
use super::request::RequestOptions;
use super::{Destination, Endpoint};
use crate::wire::{EnvelopeHead, ErrorMessage, TooBig, flag};

/// How many frames of an answer wait to be taken. Past that the link is not read, until the answer is
/// taken, dropped or out of time. At 16 KiB each this is 1 MiB.
const REPLY_FRAMES_MAX: usize = 64;

pub(super) struct Arrivals {
    handle: Arc<Handle>,
    sequence: u32,
    frames: mpsc::Receiver<Frame>,
    after: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    over: bool,
}

impl Arrivals {
    /// Sends the frames that `write` makes of the head it is given, and waits for those that answer.
    pub(super) async fn ask(
        endpoint: &Endpoint,
        to: Destination,
        options: RequestOptions,
        write: impl FnOnce(EnvelopeHead) -> Result<Vec<u8>, TooBig>,
    ) -> Result<Self, RequestError> {
        let link = &endpoint.handle.0;
        let deadline = options.deadline.map(|after| Instant::now() + after);
        let (sequence, frames) = link.expect_replies(REPLY_FRAMES_MAX, deadline)?;
        let arrivals = Self {
            handle: Arc::clone(&endpoint.handle),
            sequence,
            frames,
            after: options.deadline.unwrap_or_default(),
            timer: deadline.map(|at| Box::pin(sleep_until(at))),
            over: false,
        };
        let send = async {
            let dst = endpoint.resolve(to, options.deadline).await?;
            let mut run = write(link.head(flag::ASK, sequence, dst, endpoint.port))?;
            link.send(&mut run).await
        };
        match deadline {
            None => send.await?,
            Some(deadline) => match timeout_at(deadline, send).await {
                Ok(sent) => sent?,
                Err(_) => return Err(RequestError::Timeout { after: arrivals.after }),
            },
        }
        Ok(arrivals)
    }

    /// The next frame.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Frame, RequestError>> {
        match self.frames.poll_recv(context) {
            Poll::Ready(Some(frame)) => Poll::Ready(Ok(frame)),
            Poll::Ready(None) => Poll::Ready(Err(self.handle.0.lost())),
            Poll::Pending => match self.timer.as_mut().map(|timer| timer.as_mut().poll(context)) {
                Some(Poll::Ready(())) => {
                    Poll::Ready(Err(RequestError::Timeout { after: self.after }))
                }
                _ => Poll::Pending,
            },
        }
    }

    /// What the code of an NLMSG_ERROR or NLMSG_DONE means.
    pub(super) fn judge(
        &self,
        head: &EnvelopeHead,
        error: ErrorMessage<'_>,
    ) -> Result<(), RequestError> {
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

    /// Nothing more is wanted.
    pub(super) fn end(&mut self) {
        if !self.over {
            self.over = true;
            self.handle.0.forget(self.sequence);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.end();
    }
}
