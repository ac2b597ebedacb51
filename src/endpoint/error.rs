//! What can go wrong for who holds an endpoint.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::node::ReadError;
use crate::transport::{DialError, is_refusal};
use crate::url::BusUrl;
use crate::wire::{Malformed, TooBig, errno};

/// Why a link could not be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL could not be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The peer was reached, and does not speak this protocol.
    #[error("{url} does not speak the protocol of the bus")]
    Greeting {
        /// What was asked for.
        url: String,
        /// What it said or did instead.
        source: RequestError,
    },
    /// The TLS handshake passed here, and then the broker ended the connection: under TLS 1.3 that is how it
    /// refuses this side's certificate.
    #[error("{url} refused this side after the TLS handshake, most likely for its certificate")]
    Refused {
        /// What was asked for.
        url: String,
        /// How the connection ended: by an alert that says why, or just cut.
        source: RequestError,
    },
    /// The node inside this process takes no further link.
    #[error("the broker takes no further link")]
    Full,
}

impl ConnectError {
    /// For a greeting over `url` that failed.
    pub(super) fn of_greeting(url: &BusUrl, source: RequestError) -> Self {
        let url_text = url.to_string();
        let refused = url.is_tls()
            && matches!(&source, RequestError::Lost(Some(why))
                if matches!(&**why, ReadError::Io(error) if is_refusal(error)));
        match refused {
            true => Self::Refused { url: url_text, source },
            false => Self::Greeting { url: url_text, source },
        }
    }
}

/// Why a request got no answer, or an answer that says no.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The subsystem, or the broker, said no.
    #[error("{}", refusal(*errno, text.as_deref()))]
    Refused {
        /// The error number, positive.
        errno: i32,
        /// What was said in words.
        text: Option<String>,
    },
    /// The request could not be delivered.
    #[error("not delivered: {}", refusal(*errno, text.as_deref()))]
    Undeliverable {
        /// The error number, positive: ENOENT if nobody has the name or address.
        errno: i32,
        /// What the broker said in words.
        text: Option<String>,
    },
    /// No answer, or not the whole of it, came in time. The request may have been carried out.
    #[error("no complete answer within {after:?}")]
    Timeout {
        /// The request's deadline.
        after: Duration,
    },
    /// The link ended. The request may have been carried out.
    #[error("the connection is lost")]
    Lost(#[source] Option<Arc<ReadError>>),
    /// The answerer lost messages: it was read too slowly. Ask again.
    #[error("the answer has a gap: the other end ran out of room")]
    Overrun,
    /// The answer is longer than the asker takes.
    #[error("the answer is longer than {max} bytes")]
    TooLong {
        /// [`RequestOptions::message_bytes_max`](super::RequestOptions::message_bytes_max).
        max: usize,
    },
    /// The answer ended without a body.
    #[error("the answer is empty")]
    NoBody,
    /// What was to be sent does not fit one frame.
    #[error(transparent)]
    TooBig(#[from] TooBig),
    /// The answer makes no sense.
    #[error("the answer makes no sense: {0}")]
    Malformed(#[from] Malformed),
}

impl RequestError {
    /// The error number that the other end gave, if it gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } | Self::Undeliverable { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

fn refusal(number: i32, text: Option<&str>) -> String {
    let symbol = errno::symbol(number).map_or_else(|| number.to_string(), str::to_owned);
    let words = text.filter(|text| !text.is_empty()).or_else(|| errno::text(number));
    match words {
        Some(words) => format!("{words} ({symbol})"),
        None => format!("error {symbol}"),
    }
}
