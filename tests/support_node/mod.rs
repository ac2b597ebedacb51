//! What the tests of the core, of the node and of the command line share.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

pub(crate) mod bus;
pub(crate) mod chain;
pub(crate) mod fake;
pub(crate) mod frames;
pub(crate) mod peer;
