//! A broker with queues, and clients of it.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

use std::path::Path;
use std::time::Duration;

use nlbus::endpoint::Endpoint;
use nlbus::node::{Node, NodeOptions};
use nlbus::service::queue::{
    Client, ClientOptions, Consumer, Message, ServeOptions, Served, serve,
};
use nlbus::store::{Loaded, OpenError, Store, StoreOptions};
use nlbus::transport::ListenOptions;
use nlbus::url::BusUrl;
use tokio::time::timeout;

/// When a test gives up. Nothing passes or fails by being faster or slower than it.
pub(crate) const HANG: Duration = Duration::from_secs(60);

/// A broker in this process that listens on a free port of loopback.
pub(crate) struct Broker {
    pub(crate) node: Node,
    pub(crate) url: BusUrl,
    pub(crate) served: Served,
}

impl Broker {
    /// Keeps messages in memory, or in the directory `state`.
    pub(crate) async fn start(state: Option<&Path>) -> Self {
        Self::start_at(state, &"tcp://127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(state: Option<&Path>, url: &BusUrl) -> Self {
        Self::start_with(state, url, NodeOptions::default()).await
    }

    pub(crate) async fn start_with(state: Option<&Path>, url: &BusUrl, node: NodeOptions) -> Self {
        let (store, loaded) = match state {
            None => (Store::memory(), Loaded::default()),
            Some(path) => open(path),
        };
        let node = Node::new(node);
        let endpoint = Endpoint::attach(&node).unwrap();
        let options = ServeOptions::default().allow_shutdown(true);
        let served = serve(&endpoint, store, loaded, options).await.unwrap();
        let url = node.listen(url, &ListenOptions::default()).await.unwrap();
        Self { node, url, served }
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.url).await.unwrap()
    }

    /// A client inside the process, as long as the broker is there.
    pub(crate) fn inside(&self) -> Client {
        Client::over(Endpoint::attach(&self.node).unwrap(), &ClientOptions::default())
    }

    pub(crate) async fn end(mut self) {
        self.node.shutdown(HANG).await;
        in_time(self.served.ended()).await;
    }
}

/// Opens a directory that another store may just be letting go.
pub(crate) fn open(path: &Path) -> (Store, Loaded) {
    for _ in 0..10_000_000 {
        match Store::open(path, StoreOptions::default()) {
            Err(OpenError::InUse { .. }) => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
    panic!("the directory stays locked");
}

/// Not later than a test gives up.
pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(HANG, future).await.expect("it takes too long")
}

/// The next message.
pub(crate) async fn next(consumer: &mut Consumer) -> Message {
    in_time(consumer.next()).await.expect("the subscription ended").unwrap()
}
