//! A program as a subsystem: requests in, answers out.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::Endpoint;
use super::answer::{Request, send_in_place};
use super::data::MESSAGE_BYTES_MAX;
use super::error::RequestError;
use super::intake::{Intake, Queued};
use super::link::{Handle, Link};
use super::request::REQUEST_DEADLINE;
use crate::wire::{Command, ControlAttribute, mode};

/// How a name is provided, and what may wait for its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProvideOptions {
    /// The longest body that is joined from parts, in bytes; a longer request is answered with
    /// `EMSGSIZE`. Default 16 MiB. Raising it lets each sender use as much memory.
    pub message_bytes_max: usize,
    /// What may be joined at once, of all senders together, in bytes; past that a long request is
    /// answered with `EBUSY`, and a long push is dropped. Default 256 MiB, used only while as much
    /// arrives.
    pub joining_bytes_max: usize,
    /// How many requests wait to be taken. Default 1,024. Past that, over a socket, those that ask are
    /// answered with `EBUSY`, so that the answers to this program's own requests still get through;
    /// everything else is held back, and with it all that comes over the same link.
    pub waiting_max: usize,
    /// The same in bytes. Default 64 MiB; at most 4 GiB. One request always fits.
    pub waiting_bytes_max: usize,
    /// Hand out each frame as it came: nothing is joined, nothing taken out of messages. For subsystems
    /// that speak another convention than that of `proto-spec/data.md`. Default: no.
    pub raw: bool,
    /// Bits of [`mode`], which the broker is told. Default 0.
    pub mode: u32,
}

impl Default for ProvideOptions {
    fn default() -> Self {
        Self {
            message_bytes_max: MESSAGE_BYTES_MAX,
            joining_bytes_max: 16 * MESSAGE_BYTES_MAX,
            waiting_max: 1_024,
            waiting_bytes_max: 4 * MESSAGE_BYTES_MAX,
            raw: false,
            mode: 0,
        }
    }
}

impl ProvideOptions {
    /// The same with another [`message_bytes_max`](Self::message_bytes_max).
    #[must_use]
    pub fn message_bytes_max(mut self, max: usize) -> Self {
        self.message_bytes_max = max;
        self
    }

    /// The same with another [`joining_bytes_max`](Self::joining_bytes_max).
    #[must_use]
    pub fn joining_bytes_max(mut self, max: usize) -> Self {
        self.joining_bytes_max = max;
        self
    }

    /// The same with another [`waiting_max`](Self::waiting_max).
    #[must_use]
    pub fn waiting_max(mut self, max: usize) -> Self {
        self.waiting_max = max;
        self
    }

    /// The same with another [`waiting_bytes_max`](Self::waiting_bytes_max).
    #[must_use]
    pub fn waiting_bytes_max(mut self, max: usize) -> Self {
        self.waiting_bytes_max = max;
        self
    }

    /// The same, [`raw`](Self::raw).
    #[must_use]
    pub fn raw(mut self) -> Self {
        self.raw = true;
        self
    }

    /// The same, for a provider that makes changes: the broker lets only those ask it who may have
    /// changes made.
    #[must_use]
    pub fn write(mut self) -> Self {
        self.mode |= mode::WRITE;
        self
    }
}

/// What a provider receives.
#[derive(Debug)]
#[non_exhaustive]
pub enum Incoming {
    /// A request.
    Request(Request),
    /// The link of this asker has ended: nobody waits for its answers any more. Only a provider inside
    /// the broker's process is told.
    Gone {
        /// The asker, as [`Request::asker`] named it.
        asker: u32,
    },
}

/// The requests for one name.
pub struct Provider {
    handle: Arc<Handle>,
    requests: mpsc::Receiver<Queued>,
    address: u32,
    port: u32,
    name: String,
}

impl Endpoint {
    /// Makes this program a provider of `name`. If there are several, they share the requests.
    ///
    /// # Errors
    /// As [`request`](Self::request); [`RequestError::Refused`] with `EPERM` if the link has not the
    /// right to provide.
    ///
    /// Not cancel-safe: dropped half-way, the name may stay provided until the link ends.
    pub async fn provide(&self, name: &str) -> Result<Provider, RequestError> {
        self.provide_with(name, ProvideOptions::default()).await
    }

    /// As [`provide`](Self::provide), with options.
    ///
    /// # Errors
    /// As [`provide`](Self::provide). Not cancel-safe likewise.
    pub async fn provide_with(
        &self,
        name: &str,
        options: ProvideOptions,
    ) -> Result<Provider, RequestError> {
        let link = &self.handle.0;
        let port = link.new_port();
        let (intake, requests) = Intake::new(options);
        link.add_provider(port, Arc::new(intake));
        let answer = link
            .control(port, Command::Provide, link.command_max(REQUEST_DEADLINE), |control| {
                let control = control.string(ControlAttribute::Host, name)?;
                match options.mode {
                    0 => Ok(control),
                    mode => control.u32(ControlAttribute::Mode, mode),
                }
            })
            .await;
        match answer.map(|answer| answer.addr) {
            Ok(Some(address)) => Ok(Provider {
                handle: Arc::clone(&self.handle),
                requests,
                address,
                port,
                name: name.to_owned(),
            }),
            other => {
                link.remove_provider(port);
                Err(other.err().unwrap_or_else(|| link.lost()))
            }
        }
    }
}

impl Provider {
    /// The address that the broker gave to the name.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next thing that comes in; `None` when the link has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Incoming> {
        self.requests.recv().await.map(|queued| queued.incoming)
    }

    /// The next request, or push; `None` when the link has ended. Cancel-safe.
    pub async fn next_request(&mut self) -> Option<Request> {
        loop {
            if let Incoming::Request(request) = self.next().await? {
                return Some(request);
            }
        }
    }

    /// Broadcasts as this subsystem, apart from taking requests.
    pub fn publisher(&self) -> Publisher {
        Publisher { link: Arc::clone(&self.handle.0), port: self.port }
    }
}

/// Broadcasts as coming from a subsystem. Does not keep the link up.
#[derive(Clone)]
pub struct Publisher {
    link: Arc<Link>,
    port: u32,
}

impl Publisher {
    /// Broadcasts a payload of `length` bytes that stands at offset 28 of `frame`, followed by room for
    /// padding to a multiple of 4. Nothing is copied.
    ///
    /// # Errors
    /// [`RequestError::TooBig`], [`RequestError::Lost`].
    ///
    /// Not cancel-safe: dropped while it waits, the event may be lost.
    pub async fn publish_in_place(
        &self,
        frame: &mut [u8],
        length: usize,
    ) -> Result<(), RequestError> {
        let head = self.link.head(0, 0, 0, self.port);
        send_in_place(&self.link, head, frame, length).await
    }

    /// Waits until the link has ended. Cancel-safe.
    pub async fn ended(&self) {
        self.link.ended().await;
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.handle.0.remove_provider(self.port);
        self.requests.close();
        while let Ok(queued) = self.requests.try_recv() {
            if let Incoming::Request(request) = queued.incoming {
                request.give_back();
            }
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (handle, port, name) = (Arc::clone(&self.handle), self.port, self.name.clone());
        runtime.spawn(async move {
            let removed = handle.0.control(port, Command::Remove, REQUEST_DEADLINE, |control| {
                control.string(ControlAttribute::Host, &name)
            });
            if let Err(error) = removed.await {
                tracing::debug!(%error, name, "cannot withdraw the name");
            }
        });
    }
}
