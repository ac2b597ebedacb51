//! Named queues as a subsystem.
//!
//! [`machine`] is all of its behaviour without I/O, [`protocol`] what is said on the bus.

mod client;
pub mod machine;
mod options;
pub mod protocol;
mod service;
mod session;

pub use client::{
    CallError, Client, ClientOptions, Consumer, Message, OutMessage, QueueError, ReceiveOptions,
    Sent, Server, SubscribeOptions,
};
pub use options::{Kind, Mode, Policy, QueueOptions};
pub use service::{ServeOptions, Served, serve};
