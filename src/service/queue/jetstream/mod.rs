//! Queues in a NATS JetStream cluster, shared by all brokers that use it.
//!
//! | here | in the cluster |
//! |---|---|
//! | a queue | a work-queue stream `NLBUS_<name>`, in files, or in memory if it is transient |
//! | its options | in the description of the stream |
//! | a message | the payload; its record as it is |
//! | its id | the sequence number, above those of earlier queues of the name |
//! | who sent it | `Nats-Msg-Id`, by which the cluster knows what it has |
//! | its consumers | one durable pull consumer, from which each broker pulls what its own have credit for |
//! | acknowledged, given back, extended | `+ACK`, `-NAK`, `+WPI`, each answered |
//!
//! ```text
//! service ── commands ──► Front ── orders ──► Keeper, one for each queue ──┐
//!    ▲                    │  ▲                Subscription, one for each ──┼──► the cluster
//!    └───── effects ──────┘  └──── events ─── Receiving, one for each ─────┘
//! ```
//!
//! What may become of a message when the cluster or a broker fails is in `docs/queues.md`.

mod cluster;
mod engine;
mod event;
mod faults;
mod held;
mod keeper;
mod look;
mod names;
mod owners;
mod pause;
mod pull;
mod receive;
mod recent;
mod settle;
mod subscription;
mod taker;
mod url;

pub use url::{ClusterUrl, ClusterUrlError};

use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::ContextBuilder;
use async_nats::{ConnectErrorKind, ConnectOptions, Event};
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::service::{ServeOptions, Served, serve_with};
use crate::endpoint::{Endpoint, RequestError};
use cluster::{CALL_MAX, Cluster, alive_subject};
use engine::Front;

/// How long to try to reach a cluster, in all.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// The longest pause between two attempts to reach it again.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How often a server has to say that it is there; without two of these answers it is taken to be gone.
const PING_PAUSE: Duration = Duration::from_secs(2);

/// What was asked of the connection and has not gone out.
const OUTGOING_MAX: usize = 4_096;

/// Why a cluster cannot be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum JetStreamError {
    /// Nobody answers there.
    #[error("cannot reach the NATS cluster at {url}: {why}")]
    Unreachable {
        /// Where.
        url: ClusterUrl,
        /// What went wrong.
        why: String,
    },
    /// The server does not know the user, or not with this password.
    #[error("the NATS cluster at {url} refuses the user, the password or the token")]
    Denied {
        /// Where.
        url: ClusterUrl,
    },
    /// It is a NATS server without JetStream, or this user may not use it.
    #[error("the NATS cluster at {url} has no JetStream for this user: {why}; a server needs -js")]
    NoJetStream {
        /// Where.
        url: ClusterUrl,
        /// What it said.
        why: String,
    },
}

/// A connection to a cluster that keeps queues. It is made again when it is lost.
pub struct JetStream {
    cluster: Arc<Cluster>,
    url: ClusterUrl,
    look_pause: Duration,
}

impl JetStream {
    /// Connects and sees that there is JetStream, within 10 s.
    ///
    /// # Errors
    /// [`JetStreamError`]. Cancel-safe.
    pub async fn connect(url: &ClusterUrl) -> Result<Self, JetStreamError> {
        let unreachable = |why: String| JetStreamError::Unreachable { url: url.clone(), why };
        let connecting = timeout(CONNECT_MAX, Self::connect_at(url));
        connecting
            .await
            .unwrap_or_else(|_| Err(unreachable(format!("no answer in {CONNECT_MAX:?}"))))
    }

    async fn connect_at(url: &ClusterUrl) -> Result<Self, JetStreamError> {
        let (connected, connections) = watch::channel(0);
        let connected = Arc::new(connected);
        let shown = url.to_string();
        let mut options = ConnectOptions::new()
            .name("nlbus")
            .client_capacity(OUTGOING_MAX)
            .ping_interval(PING_PAUSE)
            .connection_timeout(CALL_MAX)
            .request_timeout(Some(CALL_MAX))
            .reconnect_delay_callback(|attempts| {
                PAUSE_MAX.min(Duration::from_millis(50) * attempts.min(20) as u32)
            })
            .event_callback(move |event| {
                match &event {
                    Event::Connected => {
                        connected.send_modify(|count| *count += 1);
                        tracing::info!(cluster = shown, "connected");
                    }
                    Event::Disconnected => tracing::warn!(cluster = shown, "the cluster is away"),
                    event => tracing::debug!(cluster = shown, %event, "of the cluster"),
                }
                async {}
            });
        options = match &url.user {
            None => options,
            Some((token, None)) => options.token(token.clone()),
            Some((user, Some(password))) => {
                options.user_and_password(user.clone(), password.clone())
            }
        };
        let client = options.require_tls(url.tls).connect(url.servers()).await.map_err(
            |error| match error.kind() {
                ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                    JetStreamError::Denied { url: url.clone() }
                }
                _ => JetStreamError::Unreachable { url: url.clone(), why: error.to_string() },
            },
        )?;
        let context = ContextBuilder::new()
            .timeout(CALL_MAX)
            .max_ack_inflight(OUTGOING_MAX)
            .build(client.clone());
        // what an older server says of an account is not what the client expects: its words will do
        let why = match client.request("$JS.API.INFO", "".into()).await {
            Err(error) => Some(error.to_string()),
            Ok(message) => {
                let said = String::from_utf8_lossy(&message.payload).into_owned();
                let error = said.split_once("\"error\":").map(|(_, error)| error);
                error.map(|error| match error.split_once("\"description\":\"") {
                    Some((_, text)) => text.split('"').next().unwrap_or_default().to_owned(),
                    None => error.chars().take(200).collect(),
                })
            }
        };
        if let Some(why) = why {
            return Err(JetStreamError::NoJetStream { url: url.clone(), why });
        }
        let cluster =
            Cluster { client, context, instance: random(), replicas: url.replicas, connections };
        Ok(Self { cluster: Arc::new(cluster), url: url.clone(), look_pause: owners::PAUSE })
    }

    /// The same, but it looks so often for transient queues of brokers that are gone: those that were
    /// silent six times in a row. Default 10 s; each look asks every broker of the cluster that has some.
    #[must_use]
    pub fn look_pause(mut self, pause: Duration) -> Self {
        self.look_pause = pause;
        self
    }
}

/// Provides the queues of a cluster, until the link of `endpoint` ends. As [`serve`](super::serve), and
/// with the same clients.
///
/// # Errors
/// As [`Endpoint::provide`]. Not cancel-safe likewise.
pub async fn serve_jetstream(
    endpoint: &Endpoint,
    jetstream: JetStream,
    options: ServeOptions,
) -> Result<Served, RequestError> {
    let JetStream { cluster, url, look_pause } = jetstream;
    let asked = cluster.client.subscribe(alive_subject(cluster.instance)).await;
    let (there, over) = oneshot::channel();
    match asked {
        Ok(asked) => {
            tokio::spawn(owners::watch(Arc::clone(&cluster), asked, over, look_pause));
        }
        Err(error) => tracing::warn!(%error, %url, "others may take this broker to be gone"),
    }
    serve_with(endpoint, &options, |now| Front::new(cluster, there, options.machine, now)).await
}

/// A number that no other broker has.
fn random() -> u64 {
    // its keys are random
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}
