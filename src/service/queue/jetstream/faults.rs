//! What errors of the cluster are for who asked.

use std::error::Error as _;

use async_nats::jetstream::context::{
    CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind, PublishError,
    PublishErrorKind,
};
use async_nats::jetstream::{self, ErrorCode};

use super::super::machine::Refusal;
use crate::wire::errno;

/// Why something did not get through to a queue.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// Nobody answers for the queue. It is gone, or has no leader for a while: only who looks for it can
    /// tell.
    Nobody,
    Refused(Refusal),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Failure {
    /// As it is to be told when the queue is known to be there.
    pub(super) fn refusal(self) -> Refusal {
        match self {
            Self::Nobody => away("the queue has no leader now"),
            Self::Refused(refusal) => refusal,
        }
    }
}

/// The cluster does not do what it is asked for, and perhaps has.
pub(super) fn away(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(errno::EHOSTUNREACH, format!("the NATS cluster: {error}"))
}

/// What an error of JetStream is here.
pub(super) fn refusal(name: &str, error: &jetstream::Error) -> Refusal {
    let said = error.to_string();
    match error.error_code() {
        ErrorCode::STREAM_NOT_FOUND => Refusal::missing(name),
        ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => {
            Refusal::new(errno::ENOSPC, format!("the NATS cluster: {said}"))
        }
        ErrorCode::MAXIMUM_STREAMS_LIMIT => {
            Refusal::new(errno::EMFILE, "the cluster has as many streams as it may")
        }
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => {
            Refusal::new(errno::EMSGSIZE, "the message is longer than the cluster takes")
        }
        _ if said.contains("maximum messages exceeded")
            || said.contains("maximum bytes exceeded") =>
        {
            Refusal::new(errno::ENOBUFS, format!("the queue {name:?} is full"))
        }
        code if error.code() == 503 || passes(code) => away(said),
        _ => Refusal::new(errno::EIO, format!("the NATS cluster: {said}")),
    }
}

/// Whether it is said for want of servers that may come back, though not with 503.
fn passes(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::CLUSTER_NO_PEERS
            | ErrorCode::CLUSTER_NOT_ACTIVE
            | ErrorCode::CLUSTER_NOT_ASSIGNED
            | ErrorCode::CLUSTER_NOT_LEADER
            | ErrorCode::STREAM_OFFLINE
            | ErrorCode::CONSUMER_OFFLINE
    )
}

/// Why a stream was not found.
pub(super) fn unseen(name: &str, error: &GetStreamError) -> Refusal {
    match error.kind() {
        GetStreamErrorKind::JetStream(error) => refusal(name, &error),
        _ => away(error),
    }
}

/// Why a stream was not made.
pub(super) fn unmade(name: &str, error: &CreateStreamError) -> Refusal {
    match error.kind() {
        CreateStreamErrorKind::JetStream(error) => refusal(name, &error),
        _ => away(error),
    }
}

/// Why a message was not sent.
pub(super) fn unsent(name: &str, error: &PublishError) -> Failure {
    Failure::Refused(match error.kind() {
        PublishErrorKind::StreamNotFound => return Failure::Nobody,
        PublishErrorKind::MaxPayloadExceeded => {
            let text = "the message is longer than the cluster's max_payload";
            Refusal::new(errno::EMSGSIZE, text)
        }
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => {
            away("no answer: whether it has the message is not known")
        }
        _ => match error.source().and_then(|error| error.downcast_ref::<jetstream::Error>()) {
            Some(error) => refusal(name, error),
            None => away(error),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_apart_from_what_is_full_or_wrong() {
        for (code, number, said, expected) in [
            (404, 10_059, "stream not found", errno::ENOENT),
            (503, 10_008, "JetStream system temporarily unavailable", errno::EHOSTUNREACH),
            (503, 10_077, "no quorum", errno::EHOSTUNREACH),
            (503, 10_077, "maximum messages exceeded", errno::ENOBUFS),
            (503, 10_023, "insufficient resources", errno::ENOSPC),
            (400, 10_005, "no suitable peers for placement", errno::EHOSTUNREACH),
            (500, 10_118, "stream is offline", errno::EHOSTUNREACH),
            (500, 10_074, "replicas > 1 not supported in non-clustered mode", errno::EIO),
            (400, 10_003, "bad request", errno::EIO),
        ] {
            let text =
                format!("{{\"code\":{code},\"err_code\":{number},\"description\":\"{said}\"}}");
            let error: jetstream::Error = serde_json::from_str(&text).unwrap();
            assert_eq!(refusal("q", &error).errno, expected, "{said}");
        }
    }
}
