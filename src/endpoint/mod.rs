//! What users hold: an [`Endpoint`] on the bus, to ask, to be asked, to broadcast and to listen.

mod answer;
mod arrivals;
mod call;
mod control;
mod data;
mod error;
mod filter;
mod intake;
mod link;
mod provide;
mod pull;
mod request;
mod subscribe;
mod udp;

pub use answer::{Request, Responder};
pub use call::Answers;
pub use control::{LinkEntry, SubscriptionEntry, SubsystemEntry, UplinkEntry};
pub use data::{MESSAGE_BYTES_MAX, body_of};
pub use error::{ConnectError, RequestError};
pub use filter::{Filter, KernelGroup, UnknownGroup};
pub use provide::{Incoming, ProvideOptions, Provider, Publisher};
pub use pull::{Message, Puller};
pub use request::{REQUEST_DEADLINE, Replies, Reply, RequestOptions};
pub use subscribe::{EVENTS_BYTES_MAX, EVENTS_MAX, Event, Subscription};
pub use udp::UdpPusher;

use std::sync::Arc;
use std::time::Duration;

use link::{Handle, Link, Receiver, Sender};

use crate::node::{Node, framed};
use crate::transport::{DialOptions, dial};
use crate::url::BusUrl;
use crate::wire::{Command, ControlAttribute, FRAME_MAX, LEGACY_FRAME_MAX};

/// The version of the protocol that an endpoint speaks.
const VERSION: u32 = 1;

/// What may wait to be sent over one link, in bytes; past that senders wait.
const OUTBOX_BYTES_MAX: usize = 1 << 20;

/// A place on the bus with an address of its own.
///
/// Clones are the same endpoint. [`open`](Self::open) makes another one on the same link, which the far
/// side tells apart: a kernel subsystem gives each endpoint a netlink socket of its own. The link closes
/// when the last endpoint, subscription and answer on it is dropped.
#[derive(Clone)]
pub struct Endpoint {
    handle: Arc<Handle>,
    port: u32,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("port", &self.port).finish_non_exhaustive()
    }
}

/// Whom a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The subsystem with this name.
    Name(String),
    /// The subsystem with this address.
    Address(u32),
}

impl From<&str> for Destination {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl From<String> for Destination {
    fn from(name: String) -> Self {
        Self::Name(name)
    }
}

impl From<u32> for Destination {
    fn from(address: u32) -> Self {
        Self::Address(address)
    }
}

/// How a link is made.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// How the URL is reached.
    pub dial: DialOptions,
    /// How long the broker may take to answer the greeting, and each command after it. Default: 5 s, and 15 s
    /// where it has to connect or listen.
    pub command_max: Option<Duration>,
}

impl Endpoint {
    /// Connects to a broker by URL, such as `tcp://127.0.0.1:9824` or `unix:///run/nlbus.sock`.
    ///
    /// # Errors
    /// [`ConnectError::Dial`] if nobody is there, [`ConnectError::Refused`] if the broker does not take this
    /// side's certificate, [`ConnectError::Greeting`] if it is no broker.
    ///
    /// Cancel-safe: dropped before it returns, nothing stays open.
    pub async fn connect(url: &BusUrl) -> Result<Self, ConnectError> {
        Self::connect_with(url, &ConnectOptions::default()).await
    }

    /// As [`connect`](Self::connect), with options.
    ///
    /// # Errors
    /// As [`connect`](Self::connect). Cancel-safe likewise.
    pub async fn connect_with(
        url: &BusUrl,
        options: &ConnectOptions,
    ) -> Result<Self, ConnectError> {
        let stream = dial(url, &options.dial).await?;
        let (reader, writer) = framed(stream, OUTBOX_BYTES_MAX, FRAME_MAX);
        let (sender, receiver) = (Sender::Socket(writer), Receiver::Socket(reader));
        let endpoint = Self::start(sender, receiver, options.command_max);
        match endpoint.greet(endpoint.handle.0.command_max(REQUEST_DEADLINE)).await {
            Ok(()) => Ok(endpoint),
            Err(source) => Err(ConnectError::of_greeting(url, source)),
        }
    }

    /// Attaches to a broker in this process, with all rights.
    ///
    /// # Errors
    /// [`ConnectError::Full`]. Call it within a tokio runtime.
    pub fn attach(node: &Node) -> Result<Self, ConnectError> {
        let (link, receiver) = node.attach().ok_or(ConnectError::Full)?;
        Ok(Self::start(Sender::Local(link), Receiver::Local(receiver), None))
    }

    /// Another endpoint on the same link.
    #[must_use]
    pub fn open(&self) -> Self {
        let port = self.handle.0.new_port();
        Self { handle: Arc::clone(&self.handle), port }
    }

    /// The address of the subsystem with this name.
    ///
    /// # Errors
    /// [`RequestError::Undeliverable`] if nobody provides it; else as [`request`](Self::request).
    ///
    /// Cancel-safe.
    pub async fn discover(&self, name: &str) -> Result<u32, RequestError> {
        let link = &self.handle.0;
        link.discover(self.port, name, link.command_max(REQUEST_DEADLINE)).await
    }

    /// Has `hook` told whether anybody subscribes to broadcasts: now, before a first subscription is
    /// acknowledged, and after the last is gone. It may be told the same twice, and must not block.
    /// Only on a link inside the broker's process; elsewhere it is told once that somebody may.
    pub fn on_events_wanted(&self, hook: impl Fn(bool) + Send + Sync + 'static) {
        match &self.handle.0.sender {
            Sender::Local(link) => link.on_events_wanted(hook),
            Sender::Socket(_) => hook(true),
        }
    }

    fn start(sender: Sender, receiver: Receiver, command_max: Option<Duration>) -> Self {
        let handle = Link::start(sender, receiver, command_max);
        let port = handle.0.new_port();
        Self { handle, port }
    }

    /// Says HELLO. A server of the original refuses the command, and is spoken to all the same.
    async fn greet(&self, deadline: Duration) -> Result<(), RequestError> {
        let hello = self.handle.0.control(self.port, Command::Hello, deadline, |control| {
            control
                .u32(ControlAttribute::Version, VERSION)?
                .u32(ControlAttribute::FrameMax, FRAME_MAX as u32)
        });
        match hello.await {
            Ok(answer) => {
                tracing::debug!(frame_max = answer.frame_max, "greeted");
                let frame_max = answer.frame_max.map_or(LEGACY_FRAME_MAX, |max| max as usize);
                self.handle.0.set_frame_max(frame_max);
                Ok(())
            }
            Err(RequestError::Refused { .. }) => {
                self.handle.0.set_frame_max(LEGACY_FRAME_MAX);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn resolve(
        &self,
        destination: Destination,
        deadline: Option<Duration>,
    ) -> Result<u32, RequestError> {
        match destination {
            Destination::Address(address) => Ok(address),
            Destination::Name(name) => {
                let link = &self.handle.0;
                let deadline = deadline.unwrap_or_else(|| link.command_max(REQUEST_DEADLINE));
                link.discover(self.port, &name, deadline).await
            }
        }
    }
}
