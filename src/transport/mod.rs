//! Sockets only: dial and listen by [`BusUrl`], with TLS where the URL says so.
//!
//! [`dial`] gives a [`Stream`]; a [`Listener`] gives [`Accepted`] connections, each of which
//! becomes a [`Stream`] by its own [`Accepted::handshake`], so that a peer that dawdles delays
//! nobody else. What the bytes mean is not this module's matter.
//!
//! ```
//! use nlbus::transport::{DialOptions, ListenOptions, Listener, dial};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let listener = Listener::bind(&"tcp://127.0.0.1:0".parse()?, &ListenOptions::default()).await?;
//! let mut client = dial(listener.local_url(), &DialOptions::default()).await?;
//! let mut server = listener.accept().await?.handshake().await?;
//!
//! client.writer.write_all(b"ping").await?;
//! let mut bytes = [0; 4];
//! server.reader.read_exact(&mut bytes).await?;
//! assert_eq!(&bytes, b"ping");
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

use crate::url::{BusUrl, TransportKind};

mod certificate;
mod error;
mod exposure;
mod options;
mod pem;
mod record;
mod resolve;
mod tcp;
mod tls;
mod udp;
mod unix;

pub use error::{DialError, HandshakeError, ListenError, TlsError, is_refusal, is_transient};
pub use exposure::is_exposed;
pub use options::{
    BACKLOG, CONNECT_TIMEOUT, DialOptions, HANDSHAKE_TIMEOUT, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL,
    KEEPALIVE_RETRIES, Keepalive, ListenOptions, SocketOptions,
};
pub use pem::PEM_BYTES_MAX;
pub use tls::{TlsClient, TlsFiles, TlsServer};
pub use udp::{UDP_DATAGRAM_BYTES_MAX, bind_udp, connect_udp};

/// A whole connection: bytes in order, both ways.
///
/// Dropping the writer ends the peer's reading, except under TLS, where the socket closes when
/// both halves are dropped. `shutdown` of the writer works for all, and under TLS is what says
/// goodbye: a peer that goes without makes the last read fail with `UnexpectedEof`.
pub struct Stream {
    /// What the peer sends. Reads are cancel-safe.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What the peer will receive. Under TLS each write, vectored ones too, of up to 16 KiB is one
    /// record, and what the socket did not take at once rests in a buffer until `flush` or the next
    /// write.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// Who the peer is.
    pub peer: Peer,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// What the system and the TLS certificate say of the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Where it is, for logs: `127.0.0.1:4242`, `unix:/run/x.sock` of a dialed socket, `unix:pid 7`
    /// of an accepted one.
    pub address: String,
    /// Whether it is on this host for certain: a unix socket or a loopback address.
    pub local: bool,
    /// The user that opened the unix socket at the other end (`SO_PEERCRED`, unix(7)).
    pub uid: Option<u32>,
    /// The name in the verified certificate: its first DNS name (subject alternative name), else
    /// its first URI there, else the common name of its subject. `None` without TLS, and for a
    /// certificate without such a name of 1 to 255 bytes without control characters.
    pub name: Option<String>,
    /// Whether there is a verified certificate, with a name or without.
    pub certified: bool,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)?;
        match (&self.name, self.uid) {
            (Some(name), _) => write!(f, ", {name}"),
            (None, Some(uid)) => write!(f, ", user {uid}"),
            (None, None) => Ok(()),
        }
    }
}

impl Peer {
    fn of_tcp(address: SocketAddr) -> Peer {
        let local = match address.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.is_loopback(),
        };
        Peer { address: address.to_string(), local, uid: None, name: None, certified: false }
    }

    /// `place` is the path that was dialed; the dialing end has none.
    fn of_unix(stream: &UnixStream, place: Option<String>) -> Peer {
        let credentials = stream.peer_cred().ok();
        let pid = credentials.as_ref().and_then(|credentials| credentials.pid());
        let address = match (place, pid) {
            (Some(place), _) => format!("unix:{place}"),
            (None, Some(pid)) => format!("unix:pid {pid}"),
            (None, None) => "unix:".to_owned(),
        };
        let uid = credentials.map(|credentials| credentials.uid());
        Peer { address, local: true, uid, name: None, certified: false }
    }
}

/// Connects to a tcp, tls, ssl, unix, unix+tls or unix+ssl URL.
///
/// A name is looked up and all its addresses are tried, each 250 ms after the one before (or as
/// soon as that one fails) until one answers; at most 16. On a unix socket it waits while the
/// backlog of the listener is full.
///
/// # Errors
/// See [`DialError`]. [`DialOptions::connect_timeout`] bounds the whole.
///
/// # Cancel safety
/// Cancel-safe: dropping the future closes what it opened.
pub async fn dial(url: &BusUrl, options: &DialOptions) -> Result<Stream, DialError> {
    let started = Instant::now();
    let after = options.connect_timeout;
    match timeout(after, dial_untimed(url, options, started)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(DialError::Timeout { url: url.clone(), after }),
    }
}

async fn dial_untimed(
    url: &BusUrl,
    options: &DialOptions,
    started: Instant,
) -> Result<Stream, DialError> {
    let failed = |error| DialError::from_io(url, started.elapsed(), error);
    let dialer = match url.is_tls() {
        true => Some(tls::Dialer::new(url, options)?),
        false => None,
    };
    tls::warn_of_ssl(url);
    let (socket, peer) = match (url.transport(), url.unix_address()) {
        (TransportKind::Unix, Some(address)) => {
            let socket = unix::connect(address, &options.socket).await.map_err(failed)?;
            let peer = Peer::of_unix(&socket, Some(address.to_string()));
            (Socket::Unix(socket), peer)
        }
        (TransportKind::Tcp, _) => {
            let addresses =
                resolve::resolve(url).await.map_err(|error| DialError::resolve(url, error))?;
            let socket = tcp::connect(&addresses, &options.socket).await.map_err(failed)?;
            let peer = Peer::of_tcp(socket.peer_addr().map_err(failed)?);
            (Socket::Tcp(socket), peer)
        }
        _ => return Err(DialError::Unsupported { url: url.clone() }),
    };
    let secured = match (dialer, socket) {
        (None, socket) => return Ok(socket.into_stream(peer)),
        (Some(dialer), Socket::Tcp(socket)) => dialer.connect(socket, peer).await,
        (Some(dialer), Socket::Unix(socket)) => dialer.connect(socket, peer).await,
    };
    secured.map_err(|source| DialError::Tls { url: url.clone(), source })
}

/// A socket, or several for a name with several addresses, on which connections arrive.
///
/// Dropping it stops listening, and removes the file of a unix socket if it is still the one that
/// was bound. Accepted connections live on.
#[derive(Debug)]
pub struct Listener {
    sockets: Sockets,
    local_url: BusUrl,
    options: Arc<ListenOptions>,
    /// Which of several sockets is asked first, so that a busy one cannot starve the others.
    turn: AtomicUsize,
}

#[derive(Debug)]
enum Sockets {
    /// At least one.
    Tcp(Vec<TcpListener>),
    Unix(unix::UnixAcceptor),
}

impl Listener {
    /// Listens at a tcp, tls, ssl, unix, unix+tls or unix+ssl URL.
    ///
    /// - A name that has several addresses is served on all of them, on one port; an address that
    ///   this machine does not have is left out unless it is the only one. `[::]` takes IPv6 alone:
    ///   serve `0.0.0.0` beside it for both.
    /// - A unix socket file that no process listens on any more is replaced. A live one is
    ///   [`ListenError::InUse`], a file that is not a socket [`ListenError::NotASocket`]; neither
    ///   is touched. While it binds, a lock file `PATH.lock` stands beside the socket. Looking
    ///   whether a process listens opens and closes a connection to it.
    ///
    /// # Errors
    /// See [`ListenError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: dropping the future leaves neither socket nor file.
    pub async fn bind(url: &BusUrl, options: &ListenOptions) -> Result<Listener, ListenError> {
        let failed = |error| ListenError::from_io(url, error);
        if url.is_tls() && options.tls.is_none() {
            return Err(ListenError::TlsMissing { url: url.clone() });
        }
        tls::warn_of_ssl(url);
        let (sockets, local_url) = match (url.transport(), url.unix_address()) {
            (TransportKind::Unix, Some(address)) => {
                let acceptor = unix::UnixAcceptor::bind(url, address, options).await?;
                (Sockets::Unix(acceptor), url.clone())
            }
            (TransportKind::Tcp, _) => {
                let addresses = resolve::resolve(url)
                    .await
                    .map_err(|error| ListenError::resolve(url, error))?;
                let listeners = tcp::bind(&addresses, options).map_err(failed)?;
                let port = listeners[0].local_addr().map_err(failed)?.port();
                (Sockets::Tcp(listeners), url.with_port(port))
            }
            _ => return Err(ListenError::Unsupported { url: url.clone() }),
        };
        // A plain URL must stay plain whatever the options, which several listeners may share.
        let tls = options.tls.clone().filter(|_| url.is_tls());
        let options = Arc::new(ListenOptions { tls, ..options.clone() });
        Ok(Listener { sockets, local_url, options, turn: AtomicUsize::new(0) })
    }

    /// The URL that was asked for, with the real port when that was 0.
    pub fn local_url(&self) -> &BusUrl {
        &self.local_url
    }

    /// The addresses that are listened on; empty for a unix socket.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        match &self.sockets {
            Sockets::Tcp(listeners) => {
                listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
            }
            Sockets::Unix(_) => Vec::new(),
        }
    }

    /// Waits for the next connection. Reads nothing from it, so no peer can hold it up.
    ///
    /// # Errors
    /// Those of accept(2). After one for which [`is_transient`] holds, pause and call again.
    ///
    /// # Cancel safety
    /// Cancel-safe: no connection is lost when the future is dropped. Several tasks may wait.
    pub async fn accept(&self) -> io::Result<Accepted> {
        let (socket, peer) = match &self.sockets {
            Sockets::Unix(acceptor) => {
                let socket = acceptor.accept().await?;
                let peer = Peer::of_unix(&socket, None);
                (Socket::Unix(socket), peer)
            }
            Sockets::Tcp(listeners) => {
                let (socket, address) = match listeners.as_slice() {
                    [listener] => listener.accept().await?,
                    listeners => self.accept_any(listeners).await?,
                };
                (Socket::Tcp(socket), Peer::of_tcp(address))
            }
        };
        Ok(Accepted { socket, peer, options: self.options.clone() })
    }

    async fn accept_any(&self, listeners: &[TcpListener]) -> io::Result<(TcpStream, SocketAddr)> {
        let first = self.turn.fetch_add(1, Ordering::Relaxed) % listeners.len();
        let (before, from) = listeners.split_at(first);
        // TcpListener::poll_accept would wake only one of several waiting tasks.
        let mut accepts: Vec<Pin<Box<dyn Future<Output = _> + Send + '_>>> = Vec::new();
        for listener in from.iter().chain(before) {
            accepts.push(Box::pin(listener.accept()));
        }
        std::future::poll_fn(|context| {
            for accept in &mut accepts {
                if let Poll::Ready(outcome) = accept.as_mut().poll(context) {
                    return Poll::Ready(outcome);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// A connection that has said nothing yet. Dropping it closes it.
#[derive(Debug)]
pub struct Accepted {
    socket: Socket,
    peer: Peer,
    options: Arc<ListenOptions>,
}

impl Accepted {
    /// Who the peer is, as far as the system knows; its `name` is not known yet.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Makes it a stream: at once for tcp and unix, after the handshake for TLS.
    ///
    /// Run it in a task of its own: it lasts as long as the peer likes, up to
    /// [`ListenOptions::handshake_timeout`].
    ///
    /// # Errors
    /// See [`HandshakeError`]. The peer was told and the connection is closed.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn handshake(self) -> Result<Stream, HandshakeError> {
        let Accepted { socket, peer, options } = self;
        if let Socket::Tcp(socket) = &socket {
            tcp::tune(socket, &options.socket).map_err(|source| HandshakeError::Io { source })?;
        }
        let Some(server) = &options.tls else {
            return Ok(socket.into_stream(peer));
        };
        let after = options.handshake_timeout;
        let handshake = async {
            match socket {
                Socket::Tcp(socket) => server.accept(socket, peer).await,
                Socket::Unix(socket) => server.accept(socket, peer).await,
            }
        };
        timeout(after, handshake).await.unwrap_or(Err(HandshakeError::Timeout { after }))
    }
}

/// A connected socket below TLS.
#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn into_stream(self, peer: Peer) -> Stream {
        match self {
            Socket::Tcp(socket) => {
                let (reader, writer) = socket.into_split();
                Stream { reader: Box::new(reader), writer: Box::new(writer), peer }
            }
            Socket::Unix(socket) => {
                let (reader, writer) = socket.into_split();
                Stream { reader: Box::new(reader), writer: Box::new(writer), peer }
            }
        }
    }
}
