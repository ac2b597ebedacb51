//! The kernel as a subsystem: AF_NETLINK behind an address on the bus.
//!
//! Each asker, that is each endpoint of each link, has a netlink socket of its own, so that what netlink
//! keeps per socket (port id, options, the one dump at a time, overruns) is not shared. Sequence numbers
//! and port ids are translated both ways; datagrams are passed on whole.
//!
//! **Read-only, enforced by the kernel.** Unless writing is allowed, the sockets are opened and used on a
//! thread that has no capabilities, and nothing is ever sent with a destination address. Linux asks both
//! who opened a netlink socket and who sends on it, but forgets the opener when a destination is given
//! (`NETLINK_SKB_DST`, net/netlink/af_netlink.c), so either alone would leave a gap. No list of message
//! types is kept here: what changes something is what the kernel says changes something.

mod asker;
mod confine;
mod monitor;
mod socket;
mod translate;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::mpsc;
use tracing::{Instrument, Span, debug, info_span, warn};

use crate::endpoint::{Endpoint, Incoming, ProvideOptions, Provider, Request, RequestError};
use crate::wire::{Header, errno};
use asker::Asker;
use confine::Confined;
use monitor::Monitor;

/// NETLINK_ROUTE: links, addresses, routes, neighbours, rules.
pub const NETLINK_ROUTE: u16 = 0;
/// NETLINK_GENERIC: families by name.
pub const NETLINK_GENERIC: u16 = 16;

/// How many requests of one asker wait for its socket. An asker's link has less credit than this.
const REQUESTS_MAX: usize = 1_024;

/// How a [`Kernel`] is reached.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct KernelOptions {
    /// The network namespace to open sockets in: a name under `/run/netns`, or a path. Default: this
    /// process's.
    pub netns: Option<String>,
    /// Let askers change things, as far as this process may. Default: they may only read.
    pub allow_write: bool,
    /// Sockets for askers of one subsystem at once. Default 4,096; a further asker gets `EMFILE`. One
    /// descriptor each.
    pub askers_max: Option<usize>,
}

/// The default of [`KernelOptions::askers_max`].
pub const ASKERS_MAX: usize = 4_096;

/// Why the kernel cannot be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KernelError {
    /// There is no such network namespace.
    #[error("no network namespace \"{name}\": {} cannot be opened", path.display())]
    NoNamespace {
        /// What was asked for.
        name: String,
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The namespace is there, and may not be entered.
    #[error("cannot enter the network namespace \"{name}\"")]
    Namespace {
        /// What was asked for.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The thread for netlink sockets could not be made, or not be made harmless.
    #[error("cannot prepare a thread for netlink sockets")]
    Thread(#[source] io::Error),
    /// The kernel has no such netlink protocol, or does not let this process use it.
    #[error("cannot open netlink protocol {protocol}")]
    Socket {
        /// The protocol's number.
        protocol: u16,
        /// What the system said.
        source: io::Error,
    },
    /// The broker did not take the name.
    #[error("cannot provide \"{name}\"")]
    Provide {
        /// The name.
        name: String,
        /// What the broker said.
        source: RequestError,
    },
}

/// A kernel: one network namespace, with or without the right to change it.
///
/// Holds the thread on which its netlink sockets live. Subsystems that are served end with their
/// endpoint's link, not with this.
pub struct Kernel {
    confined: Arc<Confined>,
    askers_max: usize,
}

impl Kernel {
    /// Starts the thread, in the namespace and without capabilities as `options` say. Call it within a
    /// tokio runtime.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn open(options: &KernelOptions) -> Result<Self, KernelError> {
        let confined = Confined::start(options.netns.as_deref(), options.allow_write)?;
        let askers_max = options.askers_max.unwrap_or(ASKERS_MAX);
        Ok(Self { confined: Arc::new(confined), askers_max })
    }

    /// Provides netlink protocol `protocol` as the subsystem `name` on `endpoint`'s bus, until the link
    /// ends: the subsystem's address.
    ///
    /// # Errors
    /// [`KernelError::Socket`], [`KernelError::Provide`].
    ///
    /// Not cancel-safe: dropped half-way, the name may stay provided until the link ends.
    pub async fn serve(
        &self,
        endpoint: &Endpoint,
        name: &str,
        protocol: u16,
    ) -> Result<u32, KernelError> {
        let failed = |source| KernelError::Socket { protocol, source };
        let monitor = Monitor::open(&self.confined, protocol).await.map_err(failed)?;
        let provider = endpoint
            .provide_with(name, ProvideOptions::default().raw())
            .await
            .map_err(|source| KernelError::Provide { name: name.to_owned(), source })?;
        let address = provider.address();
        let hook = monitor.switch();
        endpoint.on_events_wanted(move |wanted| hook.set(wanted));
        let span = info_span!(parent: None, "netlink", subsystem = name, protocol);
        let events = monitor.run(provider.publisher());
        self.confined.spawn(events.instrument(span.clone()));
        self.answer(provider, protocol, span);
        Ok(address)
    }

    /// Provides what [`serve`](Self::serve) of another kernel in the same namespace provides, for those
    /// links only that may have the subsystem changed. Requests alone: events are that one's.
    ///
    /// # Errors
    /// As [`serve`](Self::serve). Not cancel-safe likewise.
    pub async fn serve_writers(
        &self,
        endpoint: &Endpoint,
        name: &str,
        protocol: u16,
    ) -> Result<u32, KernelError> {
        let provider = endpoint
            .provide_with(name, ProvideOptions::default().raw().write())
            .await
            .map_err(|source| KernelError::Provide { name: name.to_owned(), source })?;
        let address = provider.address();
        let span = info_span!(parent: None, "netlink", subsystem = name, protocol, writes = true);
        self.answer(provider, protocol, span);
        Ok(address)
    }

    fn answer(&self, provider: Provider, protocol: u16, span: Span) {
        let service = Service {
            confined: Arc::clone(&self.confined),
            protocol,
            askers_max: self.askers_max,
            askers: HashMap::new(),
        };
        self.confined.spawn(service.run(provider).instrument(span));
    }
}

struct Service {
    confined: Arc<Confined>,
    protocol: u16,
    askers_max: usize,
    /// By return address.
    askers: HashMap<u32, mpsc::Sender<Request>>,
}

impl Service {
    async fn run(mut self, mut provider: Provider) {
        while let Some(incoming) = provider.next().await {
            match incoming {
                Incoming::Request(request) => self.take(request),
                Incoming::Gone { asker } => drop(self.askers.remove(&asker)),
            }
        }
        debug!("no further requests");
    }

    /// Hands a request to its asker's socket. Never waits: one asker must not delay another.
    fn take(&mut self, request: Request) {
        let asker = request.asker();
        let request = match self.askers.get(&asker) {
            Some(queue) => match queue.try_send(request) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(request)) => {
                    return self.refuse(request, errno::EBUSY, "too many requests are under way");
                }
                // its socket failed: it gets another
                Err(mpsc::error::TrySendError::Closed(request)) => request,
            },
            None if self.askers.len() >= self.askers_max => {
                return self.refuse(request, errno::EMFILE, "no netlink socket left");
            }
            None => request,
        };
        let (sender, queue) = mpsc::channel(REQUESTS_MAX);
        let (confined, protocol) = (Arc::clone(&self.confined), self.protocol);
        let span = info_span!("asker", asker = format_args!("{asker:#010x}"));
        let first = request;
        self.confined.spawn(
            async move {
                match Asker::open(&confined, protocol, first.asks()).await {
                    Ok(socket) => socket.run(first, queue).await,
                    Err(error) => {
                        warn!(%error, "cannot open a netlink socket");
                        answer_error(&first, &error).await;
                    }
                }
            }
            .instrument(span),
        );
        self.askers.insert(asker, sender);
    }

    fn refuse(&self, request: Request, number: i32, text: &'static str) {
        self.confined.spawn(async move {
            let header = header_of(&request);
            let _ = request.responder().last().send_error(number, &header, text).await;
        });
    }
}

/// Answers `request` with what the system said.
async fn answer_error(request: &Request, error: &io::Error) {
    let number = error.raw_os_error().unwrap_or(errno::EIO);
    let header = header_of(request);
    // an asker that is gone needs no answer
    let _ = request.responder().last().send_error(number, &header, &error.to_string()).await;
}

fn header_of(request: &Request) -> Header {
    request.payload().and_then(|payload| Header::parse(&payload)).unwrap_or_default()
}
