//! The kernel's own message format as a message bus.
//!
//! nlbus serves a *subsystem* (the Linux kernel's netlink, or a program of yours) over a URL, and lets
//! others connect by URL and ask it, through a broker that routes by destination and never looks inside.
//! The `nlbus` command does the common things; this crate does the same from Rust.
//!
//! ```
//! use nlbus::endpoint::Endpoint;
//! use nlbus::node::{Node, NodeOptions};
//! use nlbus::service::netlink::{Kernel, KernelOptions, NETLINK_ROUTE};
//! use nlbus::transport::ListenOptions;
//! use nlbus::wire::{MessageBuilder, nlm};
//!
//! const RTM_GETLINK: u16 = 18;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // one side: a broker on a free port, with this machine's kernel behind it, read-only
//! let node = Node::new(NodeOptions::default());
//! let kernel = Kernel::open(&KernelOptions::default())?;
//! kernel.serve(&Endpoint::attach(&node)?, "route", NETLINK_ROUTE).await?;
//! let url = node.listen(&"tcp://127.0.0.1:0".parse()?, &ListenOptions::default()).await?;
//!
//! // the other side, perhaps far away: connect by URL, and ask for all links
//! let endpoint = Endpoint::connect(&url).await?;
//! let all_links = MessageBuilder::new(RTM_GETLINK, nlm::REQUEST | nlm::DUMP).body(&[0; 16]).finish();
//! let mut replies = endpoint.request("route", &all_links).await?;
//! let mut count = 0;
//! while let Some(reply) = replies.next().await {
//!     let reply = reply?;
//!     println!("type {}, {} bytes", reply.header().kind, reply.body().len());
//!     count += 1;
//! }
//! assert!(count >= 1, "there is always a loopback interface");
//! # Ok(()) }
//! ```
//!
//! # The layers
//!
//! | module | what it is |
//! |---|---|
//! | [`wire`] | bytes ↔ values: frames, attributes, messages. No I/O, no clock, no allocation on parse |
//! | [`url`] | where something is: `tcp tls ssl udp unix unix+tls unix+ssl mem` |
//! | [`broker`] | the bus as a pure state machine: frames in, actions out |
//! | [`transport`] | sockets: dial and listen by URL |
//! | [`node`] | a broker with its sockets |
//! | [`endpoint`] | what most programs hold: ask, be asked, broadcast, listen |
//! | [`store`] | where queues keep their messages: memory, SQLite |
//! | [`service`] | subsystems that come with the crate: the kernel, queues |
//!
//! # The bus in six paragraphs
//!
//! **Frames.** What travels is a netlink message whose body is an envelope: two addresses, and an attribute
//! that holds one or more messages as the kernel writes them. All of it is little-endian. See
//! `proto-spec/envelope.md`.
//!
//! **Addresses.** A broker gives each subsystem an address from 0x00010003 on, and each endpoint that sends
//! something a *return address*, which it writes into `src` as the frame passes. An answer goes there. So
//! delivering an answer takes no record of its request.
//!
//! **Links.** A link is a connection, or a place in the broker's own process. Several endpoints can share
//! one. A link has rights: to use the bus, to provide subsystems, to control the broker.
//!
//! **Flow.** Everything that waits is bounded. Who asks or pushes faster than its target takes is held
//! back, and nobody else is; who subscribes and does not keep up loses the newest frames, and is told how
//! many.
//!
//! **Queues.** A broker can keep messages for who is not there yet, on disk if told to, and hand them out
//! under leases. See [`service::queue`] and `docs/queues.md`.
//!
//! **The kernel.** Each endpoint that asks the kernel gets a netlink socket of its own there. It may only
//! read, unless whoever serves says otherwise, and it is the kernel that sees to that.

pub mod broker;
pub mod endpoint;
pub mod node;
pub mod service;
pub mod store;
pub mod transport;
pub mod url;
pub mod wire;
