//! Subsystems: what is reached over the bus, made from endpoints.

pub mod netlink;
pub mod queue;
