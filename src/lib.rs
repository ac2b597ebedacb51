//! The kernel's own message format as a message bus.

pub mod broker;
pub mod wire;
