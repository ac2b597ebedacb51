//! The kernel's own message format as a message bus.

pub mod broker;
pub mod endpoint;
pub mod node;
pub mod service;
pub mod transport;
pub mod url;
pub mod wire;
