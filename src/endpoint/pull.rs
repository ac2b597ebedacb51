//! PUSH/PULL: bodies one way, none lost between two ends that stay.

use bytes::Bytes;

use super::data::{Numbers, frames, whole_max};
use super::error::RequestError;
use super::provide::{Incoming, ProvideOptions, Provider};
use super::{Destination, Endpoint};
use crate::wire::{TooBig, address, mode};

/// What was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The bytes, joined if they came in parts.
    pub body: Bytes,
    /// The return address of who pushed.
    pub from: u32,
}

/// Takes what is pushed to a name.
///
/// While [`ProvideOptions::waiting_max`] messages wait here, the link is not read, which holds back those
/// who push, and everything else that comes over this link: a program that pulls slowly and also asks or
/// subscribes should use a connection of its own for each.
pub struct Puller {
    provider: Provider,
}

impl Endpoint {
    /// Pushes `body` to a subsystem. Nobody answers. Waits while the puller has no room. What one
    /// endpoint pushes arrives in its order. A body that does not fit one frame is cut into parts.
    ///
    /// Over a socket this returns when the link has taken the body, not when anybody has received it;
    /// [`flush`](Self::flush) waits for the broker. Address 0 stands for whoever subscribed, who may lose
    /// it.
    ///
    /// # Errors
    /// [`RequestError::Undeliverable`] if nobody provides the name, [`RequestError::TooBig`] if a body for
    /// subscribers does not fit one frame, [`RequestError::Lost`].
    ///
    /// Cancel-safe over a socket: pushed or not. Inside the process a long body may be cut short, and is
    /// then passed over by the puller.
    pub async fn push(&self, to: impl Into<Destination>, body: &[u8]) -> Result<(), RequestError> {
        let link = &self.handle.0;
        let dst = self.resolve(to.into(), None).await?;
        let frame_max = link.frame_max();
        let max = whole_max(frame_max);
        if matches!(dst, address::SUBSCRIBERS | address::BROADCAST) && body.len() > max {
            return Err(TooBig { length: body.len(), max }.into());
        }
        let head = link.head(0, link.new_sequence(), dst, self.port);
        let numbers = Numbers { sequence: head.sequence, pid: head.pid };
        let mut run = frames(head, numbers, body, frame_max);
        link.send(&mut run).await
    }

    /// Takes what is pushed to `name`. If there are several pullers, they share it.
    ///
    /// # Errors
    /// As [`provide`](Self::provide). Not cancel-safe likewise.
    pub async fn pull(&self, name: &str) -> Result<Puller, RequestError> {
        self.pull_with(name, ProvideOptions::default()).await
    }

    /// As [`pull`](Self::pull), with options.
    ///
    /// # Errors
    /// As [`provide`](Self::provide). Not cancel-safe likewise.
    pub async fn pull_with(
        &self,
        name: &str,
        options: ProvideOptions,
    ) -> Result<Puller, RequestError> {
        let options = ProvideOptions { mode: options.mode | mode::PULL, ..options };
        Ok(Puller { provider: self.provide_with(name, options).await? })
    }
}

impl Puller {
    /// The address that the broker gave to the name.
    pub fn address(&self) -> u32 {
        self.provider.address()
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.provider.name()
    }

    /// The next message; `None` when the link has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            if let Incoming::Request(request) = self.provider.next().await? {
                return Some(Message { body: request.body(), from: request.asker() });
            }
        }
    }
}
