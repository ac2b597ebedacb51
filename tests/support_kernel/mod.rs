//! What the tests of the kernel as a subsystem share: network namespaces, netlink without the bus, a
//! served kernel, and a client that is scripted byte by byte.

#![allow(dead_code)] // each file of tests uses its part
#![allow(clippy::unwrap_used)] // helpers fail as the tests do that call them

pub(crate) mod message;
pub(crate) mod netns;
pub(crate) mod original;
pub(crate) mod raw;
pub(crate) mod served;

use std::time::{Duration, Instant};

/// How long anything may take before a test counts as hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `condition` until it holds.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}
