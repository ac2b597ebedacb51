//! Named queues as a subsystem, and a client of them.
//!
//! [`machine`] is all of its behaviour without I/O, [`protocol`] what is said on the bus
//! (`proto-spec/queue.md`), [`serve`] puts them behind an address, [`Client`] is what programs hold.
//!
//! ```
//! use nlbus::endpoint::Endpoint;
//! use nlbus::node::{Node, NodeOptions};
//! use nlbus::service::queue::{Client, ClientOptions, ReceiveOptions, ServeOptions, serve};
//! use nlbus::store::{Loaded, Store};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // a broker that keeps queues in memory; `Store::open` keeps them in a directory
//! let node = Node::new(NodeOptions::default());
//! let endpoint = Endpoint::attach(&node)?;
//! serve(&endpoint, Store::memory(), Loaded::default(), ServeOptions::default()).await?;
//!
//! // a client inside the process; `Client::connect` takes a URL
//! let client = Client::over(Endpoint::attach(&node)?, &ClientOptions::default());
//! client.create("jobs", None).await?;
//! client.send("jobs", "build it").await?;
//! for job in client.receive(&["jobs"], ReceiveOptions::default()).await? {
//!     assert_eq!(job.payload(), "build it");
//!     client.ack(&job).await?;
//! }
//! # Ok(()) }
//! ```

mod client;
mod engine;
mod hash;
#[cfg(feature = "jetstream")]
mod jetstream;
pub mod machine;
mod options;
pub mod protocol;
mod rights;
mod service;
mod session;

pub use client::{
    CallError, Client, ClientOptions, Consumer, Message, OutMessage, QueueError, ReceiveOptions,
    Sent, Server, SubscribeOptions,
};
#[cfg(feature = "jetstream")]
pub use jetstream::{ClusterUrl, ClusterUrlError, JetStream, JetStreamError, serve_jetstream};
pub use options::{Kind, Mode, Policy, QueueOptions};
pub use service::{ServeOptions, Served, serve};
