//! What the core decides and the node carries out, because it takes sockets, files or time.

use crate::url::BusUrl;
use crate::wire::{ControlAttribute, Key};

/// A command of somebody who has the right to it. The answer comes with
/// [`Broker::answer`](super::Broker::answer).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// Stop the broker.
    Stop,
    /// Read certificates and configuration again.
    Reload,
    /// Connect to another broker.
    Connect {
        /// Where it is.
        url: BusUrl,
        /// What it shall be called, if that was said.
        name: Option<String>,
        /// Paths on this machine.
        files: OrderFiles,
    },
    /// Undo a `Connect`.
    Disconnect {
        /// The address that it was answered with.
        address: u32,
    },
    /// Listen.
    Serve {
        /// Where.
        url: BusUrl,
        /// Paths on this machine.
        files: OrderFiles,
    },
    /// Undo a `Serve`.
    Shutdown {
        /// Where it listens.
        url: BusUrl,
    },
    /// Say where this broker listens, from the `from`th URL on.
    Listeners {
        /// How many to leave out.
        from: u64,
    },
    /// Say what has been counted.
    Stats,
    /// Log this.
    LogLevel {
        /// Directives, as in `nlbus::node=debug`.
        directives: String,
    },
}

/// Paths of PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrderFiles {
    /// The private key.
    pub key: Option<String>,
    /// The certificate.
    pub cert: Option<String>,
    /// The certificates to trust.
    pub ca: Option<String>,
}

/// What an ACK says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Numbers, in their order.
    pub(super) words: Vec<(ControlAttribute, u32)>,
    /// Entries of a list.
    pub(super) entries: Vec<Entry>,
    /// Where the list goes on.
    pub(super) next: Option<u64>,
}

impl Answer {
    /// That it is done.
    pub fn done() -> Self {
        Self::default()
    }

    /// An address.
    pub fn address(address: u32) -> Self {
        Self::word(ControlAttribute::Addr, address)
    }

    /// A list; as many entries of it as fit a frame.
    pub fn list(entries: Vec<Entry>, next: Option<u64>) -> Self {
        Self { entries, next, ..Self::default() }
    }

    pub(super) fn word(attribute: ControlAttribute, value: u32) -> Self {
        Self { words: vec![(attribute, value)], ..Self::default() }
    }
}

/// One of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// A URL, a name, or where a peer is.
    pub host: Option<String>,
    /// What more there is to say in words.
    pub text: Option<String>,
    /// A count.
    pub value: Option<u64>,
    pub(super) addr: Option<u32>,
    pub(super) link: Option<u32>,
    pub(super) rights: Option<u32>,
    pub(super) mode: Option<u32>,
    pub(super) cid: Option<u32>,
    pub(super) group: Option<String>,
    pub(super) hops: Option<u32>,
    pub(super) keys: Vec<Key>,
}

impl Entry {
    /// Something with a name, or a URL.
    pub fn named(host: impl Into<String>) -> Self {
        Self { host: Some(host.into()), ..Self::default() }
    }

    /// Something counted.
    pub fn counted(text: impl Into<String>, value: u64) -> Self {
        Self { text: Some(text.into()), value: Some(value), ..Self::default() }
    }
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error number, positive.
    pub errno: i32,
    /// Why, in one line without anything internal.
    pub text: String,
}

pub(super) fn refuse<T>(errno: i32, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { errno, text: text.into() })
}
