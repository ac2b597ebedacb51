//! Each of the three models over each transport that carries it, on real sockets: who asks, pushes or
//! publishes and who answers, pulls or subscribes are on connections of their own.

#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

#[path = "../transport/authority.rs"]
#[allow(dead_code, reason = "the tests of the transport use the rest")]
mod authority;
mod carriers;
mod datagrams;
mod push_pull;
mod req_rep;
mod subscribe;
#[path = "../support_node/mod.rs"]
mod support_node;

/// A body of this length that is not the same anywhere.
fn numbered(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 + n / 251) as u8).collect()
}
