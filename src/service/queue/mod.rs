//! Named queues as a subsystem.
//!
//! [`machine`] is all of its behaviour without I/O, [`protocol`] what is said on the bus.

pub mod machine;
mod options;
pub mod protocol;

pub use options::{Kind, Mode, Policy, QueueOptions};
