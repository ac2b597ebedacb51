//! The kernel's own message format as a message bus.

pub mod transport;
pub mod url;
pub mod wire;
