//! What can go wrong between a URL and an open stream, one enum per operation.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;

use super::pem::PEM_BYTES_MAX;
use crate::url::BusUrl;

/// Why [`dial`](super::dial) gave no stream. When several addresses were tried, it tells of a
/// refused one, else of the first.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DialError {
    /// The host answered that nothing listens there, or a unix socket has no listener behind it.
    #[error("{url}: connection refused; nothing listens there")]
    Refused {
        /// What was dialed.
        url: BusUrl,
        /// The error of the system.
        source: io::Error,
    },
    /// No answer within [`DialOptions::connect_timeout`](super::DialOptions::connect_timeout).
    #[error("{url}: no connection within {after:?}")]
    Timeout {
        /// What was dialed.
        url: BusUrl,
        /// How long it was tried.
        after: Duration,
    },
    /// The host name has no address, or the zone of an IPv6 address is no interface.
    #[error("{url}: cannot find the address of host {host:?}")]
    Resolve {
        /// What was dialed.
        url: BusUrl,
        /// The host as in the URL.
        host: String,
        /// The error of the resolver.
        source: io::Error,
    },
    /// There is no such unix socket file.
    #[error("{url}: there is no such socket file")]
    NotFound {
        /// What was dialed.
        url: BusUrl,
        /// The error of the system.
        source: io::Error,
    },
    /// The permissions of a unix socket or a firewall of this host forbid it.
    #[error("{url}: permission denied")]
    PermissionDenied {
        /// What was dialed.
        url: BusUrl,
        /// The error of the system.
        source: io::Error,
    },
    /// The URL is of a kind that this function does not open: udp or mem for
    /// [`dial`](super::dial), anything but udp for [`connect_udp`](super::connect_udp).
    #[error("{url}: {} is not dialed this way", url.scheme())]
    Unsupported {
        /// What was dialed.
        url: BusUrl,
    },
    /// A TLS URL was dialed without [`DialOptions::tls`](super::DialOptions::tls).
    #[error("{url}: certificate, key and ca are needed to dial it")]
    TlsMissing {
        /// What was dialed.
        url: BusUrl,
    },
    /// TLS over a unix socket needs [`DialOptions::server_name`](super::DialOptions::server_name):
    /// the URL has no host whose name could be checked.
    #[error("{url}: a server name is needed, to check the certificate at a unix socket")]
    ServerNameMissing {
        /// What was dialed.
        url: BusUrl,
    },
    /// The server name is neither a DNS name nor an IP address.
    #[error("{url}: server name {name:?} is neither a DNS name nor an IP address")]
    InvalidServerName {
        /// What was dialed.
        url: BusUrl,
        /// The name.
        name: String,
    },
    /// The connection stood, the TLS handshake failed.
    ///
    /// Under TLS 1.3 a server looks at the client's certificate after the client is done: then the
    /// refusal comes with the first read of the stream, as an alert or a reset connection.
    #[error("{url}: tls handshake failed")]
    Tls {
        /// What was dialed.
        url: BusUrl,
        /// What failed.
        source: HandshakeError,
    },
    /// Any other error of the system, such as an unreachable network.
    #[error("{url}: cannot connect")]
    Io {
        /// What was dialed.
        url: BusUrl,
        /// The error of the system.
        source: io::Error,
    },
}

impl DialError {
    pub(super) fn from_io(url: &BusUrl, after: Duration, source: io::Error) -> DialError {
        let url = url.clone();
        match source.kind() {
            io::ErrorKind::ConnectionRefused => DialError::Refused { url, source },
            io::ErrorKind::NotFound => DialError::NotFound { url, source },
            io::ErrorKind::PermissionDenied => DialError::PermissionDenied { url, source },
            io::ErrorKind::TimedOut => DialError::Timeout { url, after },
            _ => DialError::Io { url, source },
        }
    }

    pub(super) fn resolve(url: &BusUrl, source: io::Error) -> DialError {
        DialError::Resolve { url: url.clone(), host: host_text(url), source }
    }
}

/// Why [`Listener::bind`](super::Listener::bind) gave no listener.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ListenError {
    /// A process listens there already.
    #[error("{url}: in use; a process is listening there")]
    InUse {
        /// What was to be served.
        url: BusUrl,
        /// The error of the system.
        source: io::Error,
    },
    /// The file at a unix path is not a socket. It was left alone.
    #[error("{url}: {} exists and is not a socket; it was left alone", path.display())]
    NotASocket {
        /// What was to be served.
        url: BusUrl,
        /// The file.
        path: PathBuf,
    },
    /// Another process has been starting at the same unix path for two seconds.
    #[error("{url}: another process is starting there; it holds {}", lock.display())]
    Locked {
        /// What was to be served.
        url: BusUrl,
        /// The lock file.
        lock: PathBuf,
    },
    /// The directory of a unix path does not exist.
    #[error("{url}: the directory of the socket file does not exist")]
    NotFound {
        /// What was to be served.
        url: BusUrl,
        /// The error of the system.
        source: io::Error,
    },
    /// A port below 1024 without the right to it, or a directory that cannot be written.
    #[error("{url}: permission denied")]
    PermissionDenied {
        /// What was to be served.
        url: BusUrl,
        /// The error of the system.
        source: io::Error,
    },
    /// The host is not an address of this machine.
    #[error("{url}: the host is not an address of this machine")]
    NotLocal {
        /// What was to be served.
        url: BusUrl,
        /// The error of the system.
        source: io::Error,
    },
    /// The host name has no address, or the zone of an IPv6 address is no interface.
    #[error("{url}: cannot find the address of host {host:?}")]
    Resolve {
        /// What was to be served.
        url: BusUrl,
        /// The host as in the URL.
        host: String,
        /// The error of the resolver.
        source: io::Error,
    },
    /// The URL is of a kind that this function does not serve: udp or mem for
    /// [`Listener::bind`](super::Listener::bind), anything but udp for
    /// [`bind_udp`](super::bind_udp).
    #[error("{url}: {} is not served this way", url.scheme())]
    Unsupported {
        /// What was to be served.
        url: BusUrl,
    },
    /// A TLS URL was to be served without [`ListenOptions::tls`](super::ListenOptions::tls).
    #[error("{url}: certificate, key and ca are needed to serve it")]
    TlsMissing {
        /// What was to be served.
        url: BusUrl,
    },
    /// Any other error of the system.
    #[error("{url}: cannot listen")]
    Io {
        /// What was to be served.
        url: BusUrl,
        /// The error of the system.
        source: io::Error,
    },
}

impl ListenError {
    pub(super) fn from_io(url: &BusUrl, source: io::Error) -> ListenError {
        let url = url.clone();
        match source.kind() {
            io::ErrorKind::AddrInUse => ListenError::InUse { url, source },
            io::ErrorKind::NotFound => ListenError::NotFound { url, source },
            io::ErrorKind::PermissionDenied => ListenError::PermissionDenied { url, source },
            io::ErrorKind::AddrNotAvailable => ListenError::NotLocal { url, source },
            _ => ListenError::Io { url, source },
        }
    }

    pub(super) fn resolve(url: &BusUrl, source: io::Error) -> ListenError {
        ListenError::Resolve { url: url.clone(), host: host_text(url), source }
    }
}

/// Why an accepted connection did not become a stream. It concerns this connection alone.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The peer did not finish within the time.
    #[error("no handshake within {after:?}")]
    Timeout {
        /// How long it was waited for.
        after: Duration,
    },
    /// The client showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate {
        /// The error of the TLS layer.
        source: io::Error,
    },
    /// The peer's certificate is not of our authority, not for the name that was asked for, out of
    /// its time, or not for this use.
    #[error("the peer's certificate is not accepted")]
    Certificate {
        /// The error of the TLS layer.
        source: io::Error,
    },
    /// The peer ended the handshake with an alert, for example because it does not accept our
    /// certificate.
    #[error("the peer refused the handshake")]
    RefusedByPeer {
        /// The alert.
        source: io::Error,
    },
    /// The peer does not speak TLS, or has no version or cipher suite in common with us.
    #[error("the peer does not speak TLS 1.2 or 1.3 as we do")]
    Protocol {
        /// The error of the TLS layer.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection broke during the handshake")]
    Io {
        /// The error of the system.
        source: io::Error,
    },
}

/// Why the files of [`TlsFiles`](super::TlsFiles) cannot be used: which file, and what is wrong.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The file cannot be read.
    #[error("{}: cannot read it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is longer than [`PEM_BYTES_MAX`].
    #[error("{}: longer than {PEM_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file has a PEM section that is cut off or not base64.
    #[error("{}: not a whole PEM file", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Where it stops making sense.
        source: io::Error,
    },
    /// The file has no certificate.
    #[error("{}: no certificate in it; a line `-----BEGIN CERTIFICATE-----` is expected", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The file has no private key.
    #[error("{}: no private key in it; a line `-----BEGIN PRIVATE KEY-----` is expected", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The private key is protected by a passphrase, which a service cannot type.
    #[error("{}: the private key is encrypted; store it without a passphrase", path.display())]
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// A certificate in the file is not X.509.
    #[error("{}: not an X.509 certificate", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Where it stops making sense.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A certificate in the file is too old.
    #[error("{}: the certificate expired on {since}", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// Its last second, as text.
        since: String,
    },
    /// A certificate in the file is too young; often the clock of this machine is wrong.
    #[error("{}: the certificate is not valid before {until}", path.display())]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// Its first second, as text.
        until: String,
    },
    /// The key is of another certificate.
    #[error("{}: not the key of the certificate in {}", key.display(), certificate.display())]
    KeyMismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// The key is of a kind that is not supported; RSA from 2048 bits, ECDSA P-256 and P-384 and
    /// Ed25519 are.
    #[error("{}: the private key cannot be used", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What the cryptography says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A certificate cannot serve as an authority.
    #[error("{}: cannot be used as a certificate authority", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What the verifier says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Whether an error of [`Listener::accept`](super::Listener::accept) may pass by itself.
///
/// True for a connection that died in the queue and for a machine that is short of descriptors or
/// memory (accept(2)). The second kind comes back at once while the shortage lasts, so pause,
/// for example 50 ms, before the next `accept`. False means that the listener is of no use any
/// more.
pub fn is_transient(error: &io::Error) -> bool {
    const TRANSIENT: [Errno; 16] = [
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::INTR,
        Errno::AGAIN,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::PERM,
        Errno::PROTO,
        Errno::NOPROTOOPT,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::TIMEDOUT,
    ];
    Errno::from_io_error(error).is_some_and(|errno| TRANSIENT.contains(&errno))
}

/// Whether an error of the first read of a dialed TLS stream means that the peer refused this side: it
/// sent an alert, or cut the connection.
///
/// Under TLS 1.3 a server looks at the client's certificate when the client is done already, so that
/// [`dial`](super::dial) succeeds. The alert that follows can get lost in the reset of the connection.
pub fn is_refusal(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let cut = matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    );
    cut || matches!(inner, Some(rustls::Error::AlertReceived(_)))
}

fn host_text(url: &BusUrl) -> String {
    url.host().map(ToString::to_string).unwrap_or_default()
}
