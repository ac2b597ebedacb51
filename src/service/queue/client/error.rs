//! What can go wrong for who uses queues.

use std::sync::Arc;

use thiserror::Error;

use crate::endpoint::{ConnectError, RequestError};

/// Why something with a queue did not work.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The broker said no, or would: what it cannot be told is not sent.
    #[error("{text}")]
    Refused {
        /// The error number, positive.
        errno: i32,
        /// What was said in words.
        text: String,
    },
    /// The broker cannot be reached.
    #[error(transparent)]
    Connect(Arc<ConnectError>),
    /// The request cannot be delivered: this broker has no queues, or may not be asked.
    #[error(transparent)]
    Request(RequestError),
    /// The connection ended before the answer, and what was asked for may have been done; or it was for a message
    /// of an earlier connection, and was not.
    #[error("the connection is lost")]
    Lost,
    /// The answer makes no sense.
    #[error("the answer makes no sense")]
    Nonsense,
}

impl QueueError {
    /// The error number that the broker gave, if it gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Request(error) => error.errno(),
            _ => None,
        }
    }
}

impl From<RequestError> for QueueError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Lost(_) => Self::Lost,
            other => Self::Request(other),
        }
    }
}
