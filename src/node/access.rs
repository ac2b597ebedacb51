//! Which link gets which rights, by who is at its other end.

use std::collections::HashMap;

use rustix::process::geteuid;

use crate::broker::{Access, Rights};
use crate::transport::Peer;

/// What a node lets its links do. The first row that fits a peer counts.
///
/// | peer | row |
/// |---|---|
/// | has a verified certificate | `names`, by the certificate's name, else `certified` |
/// | on a unix socket | `users`, by its user id; else `own` for the node's own user and root, else `others` |
/// | anybody else | `anonymous` |
#[derive(Clone, Debug)]
pub struct AccessList {
    /// By the name in the certificate: its first DNS name, else its first URI, else its common name.
    pub names: HashMap<String, Access>,
    /// A certificate whose name is in no row, or that has no usable one. Default: may use the bus.
    pub certified: Access,
    /// By user id, on unix sockets.
    pub users: HashMap<u32, Access>,
    /// The user that the node runs as, and root, on unix sockets. Default: may do everything.
    pub own: Access,
    /// Other users on unix sockets. Default: may use the bus.
    pub others: Access,
    /// Whoever comes over plain TCP or UDP. Default: may use the bus.
    pub anonymous: Access,
}

impl Default for AccessList {
    fn default() -> Self {
        let stranger = Access::reading(Rights::USE);
        Self {
            names: HashMap::new(),
            certified: stranger.clone(),
            users: HashMap::new(),
            own: Access::ALL,
            others: stranger.clone(),
            anonymous: stranger,
        }
    }
}

impl AccessList {
    /// What `peer` may do.
    pub fn of(&self, peer: &Peer) -> &Access {
        match (&peer.name, peer.uid) {
            (Some(name), _) => self.names.get(name).unwrap_or(&self.certified),
            (None, _) if peer.certified => &self.certified,
            (None, Some(uid)) => self.users.get(&uid).unwrap_or_else(|| {
                if uid == 0 || uid == geteuid().as_raw() { &self.own } else { &self.others }
            }),
            (None, None) => &self.anonymous,
        }
    }
}
