//! One connection after another to the same broker.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tracing::{debug, info};

use super::super::protocol::SUBSYSTEM;
use super::error::QueueError;
use crate::endpoint::{ConnectOptions, Endpoint};
use crate::url::BusUrl;

/// The first and the longest pause between two attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How a client reaches its broker.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientOptions {
    /// How a connection is made.
    pub connect: ConnectOptions,
    /// How long to try to make a connection again, and the first one. Default 30 s.
    pub reconnect_max: Duration,
    /// The name of the subsystem. Default `queue`.
    pub name: String,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect: ConnectOptions::default(),
            reconnect_max: Duration::from_secs(30),
            name: SUBSYSTEM.to_owned(),
        }
    }
}

impl ClientOptions {
    /// The same with another [`connect`](Self::connect).
    #[must_use]
    pub fn connect(mut self, options: ConnectOptions) -> Self {
        self.connect = options;
        self
    }

    /// The same with another [`reconnect_max`](Self::reconnect_max).
    #[must_use]
    pub fn reconnect_max(mut self, max: Duration) -> Self {
        self.reconnect_max = max;
        self
    }

    /// The same with another [`name`](Self::name).
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
}

/// A connection that was made.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) endpoint: Endpoint,
    pub(super) generation: u64,
}

#[derive(Clone)]
enum State {
    Up(Connection),
    Down,
    Failed(QueueError),
}

/// The connections of a client, of which one is up at a time. Dropping it ends them.
pub(super) struct Connections {
    pub(super) name: String,
    inner: Arc<Inner>,
}

struct Inner {
    state: watch::Sender<State>,
    /// The connection is lost, or nobody wants one any more.
    news: Notify,
    /// There is no further one.
    fixed: bool,
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.inner.state.send_replace(State::Failed(QueueError::Lost));
        self.inner.news.notify_one();
    }
}

impl Connections {
    /// Connects, and again whenever the connection is lost.
    pub(super) fn dial(url: BusUrl, options: ClientOptions) -> Arc<Self> {
        let inner = Arc::new(Inner {
            state: watch::Sender::new(State::Down),
            news: Notify::new(),
            fixed: false,
        });
        let name = options.name.clone();
        tokio::spawn(keep_up(url, options, Arc::clone(&inner)));
        Arc::new(Self { name, inner })
    }

    pub(super) fn fixed(endpoint: Endpoint, name: String) -> Arc<Self> {
        let up = State::Up(Connection { endpoint, generation: 1 });
        let inner = Inner { state: watch::Sender::new(up), news: Notify::new(), fixed: true };
        Arc::new(Self { name, inner: Arc::new(inner) })
    }

    /// A connection later than `generation`. Cancel-safe.
    pub(super) async fn after(&self, generation: u64) -> Result<Connection, QueueError> {
        let mut states = self.inner.state.subscribe();
        let state = states.wait_for(|state| match state {
            State::Up(connection) => connection.generation > generation,
            State::Failed(_) => true,
            State::Down => false,
        });
        match state.await.map(|state| state.clone()) {
            Ok(State::Up(connection)) => Ok(connection),
            Ok(State::Failed(error)) => Err(error),
            _ => Err(QueueError::Lost),
        }
    }

    /// A connection has ended.
    pub(super) fn lost(&self, generation: u64) {
        let news = self.inner.state.send_if_modified(|state| {
            let current =
                matches!(state, State::Up(connection) if connection.generation == generation);
            if current {
                *state = match self.inner.fixed {
                    true => State::Failed(QueueError::Lost),
                    false => State::Down,
                };
            }
            current
        });
        if news {
            self.inner.news.notify_one();
        }
    }
}

async fn keep_up(url: BusUrl, options: ClientOptions, inner: Arc<Inner>) {
    let mut generation = 0;
    loop {
        let outcome = tokio::select! {
            outcome = connect(&url, &options) => outcome,
            () = inner.news.notified() => return,
        };
        generation += 1;
        let next = outcome.map(|endpoint| Connection { endpoint, generation });
        let up = inner.state.send_if_modified(|state| match (&*state, next) {
            (State::Down, Ok(connection)) => {
                *state = State::Up(connection);
                true
            }
            (State::Down, Err(error)) => {
                *state = State::Failed(error);
                true
            }
            _ => false,
        });
        if !up {
            return;
        }
        info!(%url, generation, "connected");
        inner.news.notified().await;
        if matches!(*inner.state.borrow(), State::Failed(_)) {
            return;
        }
    }
}

async fn connect(url: &BusUrl, options: &ClientOptions) -> Result<Endpoint, QueueError> {
    let deadline = Instant::now() + options.reconnect_max;
    let (mut pause, longest) = PAUSES;
    loop {
        match Endpoint::connect_with(url, &options.connect).await {
            Ok(endpoint) => return Ok(endpoint),
            Err(error) if Instant::now() + pause > deadline => {
                return Err(QueueError::Connect(Arc::new(error)));
            }
            Err(error) => debug!(%url, %error, "not connected"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}
