//! Exit codes, and which error gives which.

use std::io;
use std::process::ExitCode;

use nlbus::endpoint::{ConnectError, RequestError};
use nlbus::service::netlink::KernelError;
use nlbus::service::queue::{CallError, QueueError};
use nlbus::store::OpenError;
use nlbus::transport::{DialError, HandshakeError, ListenError};
use nlbus::wire::errno;
use tokio::time::error::Elapsed;

/// Shown at the end of `nlbus --help`.
pub(crate) const HELP: &str = "\
Exit codes: 0 ok, 1 failed, 2 usage, 3 refused, 4 timeout, 5 not found, 6 connection lost.

Example:
  nlbus serve tcp://127.0.0.1:9824 &
  nlbus show addr -u tcp://127.0.0.1:9824

  tools/certs.sh certs    # a ca, and certificates for a server and a client
  nlbus serve tls://localhost --cert certs/server.crt --key certs/server.key --ca certs/ca.crt &
  nlbus show addr -u tls://localhost --cert certs/client.crt --key certs/client.key --ca certs/ca.crt";

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It did what it was asked.
    Ok = 0,
    /// It did not, for a reason that has no code of its own.
    Failed = 1,
    /// It was called wrongly. clap ends with this code too.
    Usage = 2,
    /// The other end, or the system, said no.
    Refused = 3,
    /// No answer in time.
    Timeout = 4,
    /// What was named is not there.
    NotFound = 5,
    /// The connection ended under way.
    Lost = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A mistake in the command line that clap cannot see.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

impl Exit {
    /// The code for an error: that of the first cause that has one.
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        error.chain().find_map(Self::of_cause).unwrap_or(Self::Failed)
    }

    fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Self> {
        if cause.is::<UsageError>() {
            Some(Self::Usage)
        } else if let Some(error) = cause.downcast_ref::<RequestError>() {
            Self::of_request(error)
        } else if let Some(error) = cause.downcast_ref::<ConnectError>() {
            match error {
                ConnectError::Dial(error) => Self::of_dial(error),
                ConnectError::Refused { .. } => Some(Self::Refused),
                _ => None,
            }
        } else if let Some(error) = cause.downcast_ref::<DialError>() {
            Self::of_dial(error)
        } else if let Some(error) = cause.downcast_ref::<ListenError>() {
            Self::of_listen(error)
        } else if cause.is::<Elapsed>() {
            Some(Self::Timeout)
        } else if let Some(error) = cause.downcast_ref::<CallError>() {
            match error {
                CallError::Timeout { .. } => Some(Self::Timeout),
                CallError::Queue(error) => Self::of_queue(error),
                _ => Some(Self::Refused),
            }
        } else if let Some(error) = cause.downcast_ref::<QueueError>() {
            Self::of_queue(error)
        } else if let Some(error) = cause.downcast_ref::<OpenError>() {
            match error {
                OpenError::Missing { .. } => Some(Self::NotFound),
                OpenError::InUse { .. } => Some(Self::Refused),
                _ => None,
            }
        } else if let Some(error) = cause.downcast_ref::<KernelError>() {
            matches!(error, KernelError::NoNamespace { .. }).then_some(Self::NotFound)
        } else if let Some(exit) = Self::of_cluster(cause) {
            Some(exit)
        } else {
            let error = cause.downcast_ref::<io::Error>()?;
            Self::of_io(error.kind())
        }
    }

    #[cfg(feature = "jetstream")]
    fn of_cluster(cause: &(dyn std::error::Error + 'static)) -> Option<Self> {
        use nlbus::service::queue::JetStreamError;

        cause.downcast_ref::<JetStreamError>().map(|error| match error {
            JetStreamError::Unreachable { .. } => Self::Lost,
            _ => Self::Refused,
        })
    }

    #[cfg(not(feature = "jetstream"))]
    fn of_cluster(_: &(dyn std::error::Error + 'static)) -> Option<Self> {
        None
    }

    fn of_request(error: &RequestError) -> Option<Self> {
        match error {
            RequestError::Timeout { .. } => Some(Self::Timeout),
            RequestError::Lost(_) => Some(Self::Lost),
            RequestError::Undeliverable { errno: errno::ENOENT, .. }
            | RequestError::Refused { errno: errno::ENOENT, .. } => Some(Self::NotFound),
            RequestError::Refused { .. } | RequestError::Undeliverable { .. } => {
                Some(Self::Refused)
            }
            _ => None,
        }
    }

    fn of_queue(error: &QueueError) -> Option<Self> {
        match error {
            QueueError::Refused { errno: errno::ENOENT, .. } => Some(Self::NotFound),
            QueueError::Refused { .. } => Some(Self::Refused),
            QueueError::Connect(error) => match &**error {
                ConnectError::Dial(error) => Self::of_dial(error),
                ConnectError::Refused { .. } => Some(Self::Refused),
                _ => None,
            },
            QueueError::Request(error) => Self::of_request(error),
            QueueError::Lost => Some(Self::Lost),
            _ => None,
        }
    }

    fn of_dial(error: &DialError) -> Option<Self> {
        match error {
            DialError::Refused { .. } | DialError::PermissionDenied { .. } => Some(Self::Refused),
            DialError::Timeout { .. } => Some(Self::Timeout),
            DialError::NotFound { .. } | DialError::Resolve { .. } => Some(Self::NotFound),
            DialError::TlsMissing { .. }
            | DialError::ServerNameMissing { .. }
            | DialError::InvalidServerName { .. } => Some(Self::Usage),
            DialError::Tls { source, .. } => Self::of_handshake(source),
            _ => None,
        }
    }

    fn of_handshake(error: &HandshakeError) -> Option<Self> {
        match error {
            HandshakeError::NoCertificate { .. }
            | HandshakeError::Certificate { .. }
            | HandshakeError::RefusedByPeer { .. } => Some(Self::Refused),
            HandshakeError::Timeout { .. } => Some(Self::Timeout),
            HandshakeError::Io { .. } => Some(Self::Lost),
            _ => Some(Self::Failed),
        }
    }

    fn of_listen(error: &ListenError) -> Option<Self> {
        match error {
            ListenError::PermissionDenied { .. } => Some(Self::Refused),
            ListenError::TlsMissing { .. } => Some(Self::Usage),
            ListenError::Resolve { .. } | ListenError::NotFound { .. } => Some(Self::NotFound),
            _ => None,
        }
    }

    fn of_io(kind: io::ErrorKind) -> Option<Self> {
        match kind {
            // whoever read our output has seen enough
            io::ErrorKind::BrokenPipe => Some(Self::Ok),
            io::ErrorKind::NotFound => Some(Self::NotFound),
            io::ErrorKind::PermissionDenied => Some(Self::Refused),
            _ => None,
        }
    }
}

/// The error and its causes in one line, none said twice.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.ends_with(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line.replace('\n', " ")
}
