//! Commands over the bus that take sockets, files, or the program around the node.

use std::io;
use std::path::PathBuf;

use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument as _, info_span};

use super::route::Router;
use super::uplink::{FirstLink, UplinkOptions};
use super::{Node, Shared, lock};
use crate::broker::{Answer, Entry, LinkId, Order, OrderFiles, Refusal};
use crate::transport::{
    DialError, DialOptions, ListenError, ListenOptions, TlsClient, TlsFiles, TlsServer, dial,
    is_exposed,
};
use crate::url::BusUrl;
use crate::wire::{EnvelopeHead, errno};

/// How many instructions wait for the program.
const INSTRUCTIONS_MAX: usize = 16;

/// How commands over the bus listen and connect.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ControlOptions {
    /// How SERVE listens; its certificates are used where the command names none.
    pub listen: ListenOptions,
    /// How CONNECT dials; likewise.
    pub dial: DialOptions,
    /// Whether SERVE may listen without TLS on an address that is not loopback. Default: no, `EACCES`.
    pub insecure: bool,
}

/// A command over the bus that the program around the node carries out.
#[derive(Debug)]
pub struct Instruction {
    /// What to do.
    pub wish: Wish,
    answer: Option<oneshot::Sender<Result<(), String>>>,
}

/// What an [`Instruction`] asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wish {
    /// Stop. It is answered already.
    Stop,
    /// Read certificates and configuration again.
    Reload,
    /// Log this: directives, as in `nlbus::node=debug`.
    LogLevel(String),
}

impl Instruction {
    /// Says that it is done, or in one line why not. Dropped without that, it was not done.
    pub fn answer(mut self, outcome: Result<(), String>) {
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(outcome);
        }
    }
}

impl Node {
    /// Says how commands over the bus listen and connect.
    pub fn set_control(&self, options: ControlOptions) {
        *lock(&self.shared.control) = options;
    }

    /// The commands that the program is to carry out: STOP, RELOAD and LOG_LEVEL. Until this is called, and
    /// after what it returned is dropped, they are answered with `EOPNOTSUPP`. At most 16 wait; a further
    /// one is answered with `EBUSY`.
    pub fn instructions(&self) -> mpsc::Receiver<Instruction> {
        let (sender, receiver) = mpsc::channel(INSTRUCTIONS_MAX);
        *lock(&self.shared.instructions) = Some(sender);
        receiver
    }
}

impl Shared {
    /// Carries out a command in a task of its own, and answers it.
    pub(super) fn order(&self, link: LinkId, head: EnvelopeHead, order: Order) {
        let Some(shared) = self.this.upgrade() else { return };
        let permit = std::sync::Arc::clone(&self.orders).try_acquire_owned();
        let span = info_span!("command", %link, ?order);
        let work = async move {
            let outcome = match &permit {
                Ok(_) => shared.obey(order, link, head).await,
                Err(_) => Err(busy("too many commands are under way")),
            };
            match &outcome {
                Ok(Some(_)) => tracing::info!("done"),
                Ok(None) => {}
                Err(refusal) => tracing::info!(text = refusal.text, "not done"),
            }
            // before the answer: who has it may send the next command at once
            drop(permit);
            match outcome {
                Ok(None) => {}
                Ok(Some(answer)) => shared.reply(link, head, Ok(answer)).await,
                Err(refusal) => shared.reply(link, head, Err(refusal)).await,
            }
        };
        tokio::spawn(work.instrument(span));
    }

    async fn reply(&self, link: LinkId, head: EnvelopeHead, result: Result<Answer, Refusal>) {
        let answer = |broker: &mut crate::broker::Broker, actions: &mut _| {
            broker.answer(link, head, result, actions);
        };
        Router::default().perform(self, link, answer).await;
    }

    /// Does it: the answer, or `None` if that was sent already.
    async fn obey(
        &self,
        order: Order,
        link: LinkId,
        head: EnvelopeHead,
    ) -> Result<Option<Answer>, Refusal> {
        Ok(Some(match order {
            Order::Stop => {
                let sender = self.instructed()?;
                let permit = sender.try_reserve().map_err(|_| busy("the broker is busy"))?;
                self.reply(link, head, Ok(Answer::done())).await;
                permit.send(Instruction { wish: Wish::Stop, answer: None });
                return Ok(None);
            }
            Order::Reload => self.instruct(Wish::Reload).await?,
            Order::LogLevel { directives } => self.instruct(Wish::LogLevel(directives)).await?,
            Order::Connect { url, name, files } => self.connect(&url, name, files).await?,
            Order::Disconnect { address } if self.unlink(address) => Answer::done(),
            Order::Disconnect { address } => {
                return Err(absent(format!("no link has the address {address:#010x}")));
            }
            Order::Serve { url, files } => self.serve(&url, files).await?,
            Order::Shutdown { url } => {
                if !self.node().unlisten(&url).await {
                    return Err(absent(format!("nobody listens at {url}")));
                }
                Answer::done()
            }
            Order::Listeners { from } => {
                let urls = self.node().listeners();
                Answer::piece(urls.iter().map(|url| Entry::named(url.to_string())), from)
            }
            Order::Stats => {
                let counters = self.node().counters().named();
                let entries = counters.into_iter().map(|(name, value)| Entry::counted(name, value));
                Answer::list(entries.collect(), None)
            }
        }))
    }

    fn node(&self) -> Node {
        let shared = self.this.upgrade();
        Node { shared: shared.unwrap_or_else(|| unreachable!("a task of the node holds it")) }
    }

    fn instructed(&self) -> Result<mpsc::Sender<Instruction>, Refusal> {
        let sender = lock(&self.instructions).clone();
        sender.filter(|sender| !sender.is_closed()).ok_or_else(|| Refusal {
            errno: errno::EOPNOTSUPP,
            text: "this broker takes no such command".to_owned(),
        })
    }

    async fn instruct(&self, wish: Wish) -> Result<Answer, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.instructed()?
            .try_send(Instruction { wish, answer: Some(answer) })
            .map_err(|_| busy("the broker is busy"))?;
        match answered.await {
            Ok(Ok(())) => Ok(Answer::done()),
            Ok(Err(text)) => Err(Refusal { errno: errno::EINVAL, text }),
            Err(_) => Err(busy("the broker ends")),
        }
    }

    async fn connect(
        &self,
        url: &BusUrl,
        name: Option<String>,
        files: OrderFiles,
    ) -> Result<Answer, Refusal> {
        let mut options =
            UplinkOptions { dial: lock(&self.control).dial.clone(), ..Default::default() };
        if let Some(files) = files_of(files)? {
            options.dial.tls = Some(load(move || TlsClient::load(files)).await?);
        }
        let stream = dial(url, &options.dial).await.map_err(|error| not_dialed(&error))?;
        options.name = name.unwrap_or_default();
        let address = self.uplink(url, options, Some(stream))?;
        let (errno, what) = match self.first_link(address).await {
            FirstLink::Up => return Ok(Answer::address(address)),
            FirstLink::Silent => (errno::ETIMEDOUT, "did not answer the greeting in time"),
            FirstLink::Awaited | FirstLink::Lost => {
                (errno::ECONNRESET, "ended the connection before it answered the greeting")
            }
        };
        self.unlink(address);
        Err(Refusal { errno, text: format!("{url} {what}") })
    }

    async fn serve(&self, url: &BusUrl, files: OrderFiles) -> Result<Answer, Refusal> {
        let ControlOptions { mut listen, insecure, .. } = lock(&self.control).clone();
        let exposed = is_exposed(url).await;
        if !insecure && exposed.map_err(|error| of_io(url, &error))? {
            let text = format!("{url} would let in anybody who reaches it, without TLS");
            return Err(Refusal { errno: errno::EACCES, text });
        }
        if let Some(files) = files_of(files)? {
            listen.tls = Some(load(move || TlsServer::load(files)).await?);
        }
        let bound = self.node().listen(url, &listen).await;
        bound.map(|_| Answer::done()).map_err(|error| not_bound(&error))
    }
}

fn busy(text: &str) -> Refusal {
    Refusal { errno: errno::EBUSY, text: text.to_owned() }
}

fn absent(text: String) -> Refusal {
    Refusal { errno: errno::ENOENT, text }
}

/// All three paths, or none.
fn files_of(files: OrderFiles) -> Result<Option<TlsFiles>, Refusal> {
    match files {
        OrderFiles { key: None, cert: None, ca: None } => Ok(None),
        OrderFiles { key: Some(key), cert: Some(cert), ca: Some(ca) } => Ok(Some(TlsFiles {
            key: PathBuf::from(key),
            certificate: PathBuf::from(cert),
            ca: PathBuf::from(ca),
        })),
        _ => {
            let text = "ssl-key, ssl-cert and ssl-ca are needed together".to_owned();
            Err(Refusal { errno: errno::EINVAL, text })
        }
    }
}

async fn load<T: Send + 'static>(
    load: impl FnOnce() -> Result<T, crate::transport::TlsError> + Send + 'static,
) -> Result<T, Refusal> {
    let loaded = tokio::task::spawn_blocking(load).await;
    let refused = |text: String| Refusal { errno: errno::EINVAL, text };
    loaded
        .map_err(|_| refused("cannot read the certificates".to_owned()))?
        .map_err(|error| refused(error.to_string()))
}

fn not_dialed(error: &DialError) -> Refusal {
    let errno = match error {
        DialError::Timeout { .. } => errno::ETIMEDOUT,
        DialError::Unsupported { .. } => errno::EPROTONOSUPPORT,
        DialError::TlsMissing { .. }
        | DialError::ServerNameMissing { .. }
        | DialError::InvalidServerName { .. } => errno::EINVAL,
        other => errno_of(other).unwrap_or(errno::EHOSTUNREACH),
    };
    Refusal { errno, text: error.to_string() }
}

fn not_bound(error: &ListenError) -> Refusal {
    let errno = match error {
        ListenError::InUse { .. } => errno::EADDRINUSE,
        ListenError::Unsupported { .. } => errno::EPROTONOSUPPORT,
        other => errno_of(other).unwrap_or(errno::EINVAL),
    };
    Refusal { errno, text: error.to_string() }
}

fn of_io(url: &BusUrl, error: &io::Error) -> Refusal {
    Refusal { errno: errno::EADDRNOTAVAIL, text: format!("{url}: {error}") }
}

/// The error number of the system behind `error`.
fn errno_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && let Some(number) = io.raw_os_error()
        {
            return Some(number);
        }
        next = error.source();
    }
    None
}
