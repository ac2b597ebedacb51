//! Which broadcasts a subscription is for.

use std::str::FromStr;

use thiserror::Error;

use super::Destination;
use crate::wire::Key;

/// Which broadcasts a subscription is for: all, unless narrowed down. Every condition must be met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub(super) keys: Vec<Key>,
    pub(super) from: Option<Destination>,
    pub(super) group: Option<String>,
}

impl Filter {
    /// Everything that is broadcast.
    pub fn all() -> Self {
        Self::default()
    }

    /// What a kernel served as NETLINK_ROUTE tells about one kind of object. It stands for a
    /// [`key`](Self::key) on the message's type; narrow it down to the subsystem with [`from`](Self::from).
    pub fn group(group: KernelGroup) -> Self {
        Self::all().key(group.key())
    }

    /// Adds a condition on the payload. A broker takes at most 16.
    #[must_use]
    pub fn key(mut self, key: Key) -> Self {
        self.keys.push(key);
        self
    }

    /// Only what this subsystem broadcasts.
    #[must_use]
    pub fn from(mut self, subsystem: impl Into<Destination>) -> Self {
        self.from = Some(subsystem.into());
        self
    }

    /// Only what is published to the group of this name, 1 to 255 bytes. A group needs no making: it is
    /// a word on the envelope ([`publish_to_group`](super::Endpoint::publish_to_group)).
    #[must_use]
    pub fn group_name(mut self, name: impl Into<String>) -> Self {
        self.group = Some(name.into());
        self
    }
}

/// The kinds of objects that rtnetlink tells about (rtnetlink(7)), as `ip monitor` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelGroup {
    /// Network devices: RTM_NEWLINK and RTM_DELLINK.
    Link,
    /// Addresses of devices: RTM_NEWADDR and RTM_DELADDR.
    Addr,
    /// Routes: RTM_NEWROUTE and RTM_DELROUTE.
    Route,
    /// Neighbours: RTM_NEWNEIGH and RTM_DELNEIGH.
    Neigh,
    /// Rules of the routing policy: RTM_NEWRULE and RTM_DELRULE.
    Rule,
}

impl KernelGroup {
    /// Every group.
    pub const ALL: &[Self] = &[Self::Link, Self::Addr, Self::Route, Self::Neigh, Self::Rule];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Addr => "addr",
            Self::Route => "route",
            Self::Neigh => "neigh",
            Self::Rule => "rule",
        }
    }

    /// The type of the message that says that there is one. The one that says that one is gone follows.
    pub const fn new_type(self) -> u16 {
        match self {
            Self::Link => 16,
            Self::Addr => 20,
            Self::Route => 24,
            Self::Neigh => 28,
            Self::Rule => 32,
        }
    }

    /// The condition on the payload: the type in its first message, whose lowest two bits are NEW, DEL,
    /// GET and SET.
    pub const fn key(self) -> Key {
        Key { offset: 4, key: self.new_type() as u32, mask: 0xfffc }
    }
}

impl FromStr for KernelGroup {
    type Err = UnknownGroup;

    fn from_str(name: &str) -> Result<Self, UnknownGroup> {
        let found = Self::ALL.iter().find(|group| group.name() == name);
        found.copied().ok_or_else(|| UnknownGroup { name: name.to_owned() })
    }
}

/// There is no kind of object of this name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{name:?} is none of link, addr, route, neigh and rule")]
pub struct UnknownGroup {
    /// What was asked for.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_group_takes_its_own_types_and_no_others() {
        for group in KernelGroup::ALL {
            assert_eq!(group.name().parse(), Ok(*group));
            for kind in 0..=u16::MAX {
                // the flags beside the type do not matter
                let message = crate::wire::MessageBuilder::new(kind, kind ^ 0x55).finish();
                let own = (group.new_type()..group.new_type() + 4).contains(&kind);
                assert_eq!(group.key().matches(&message), own, "{group:?} {kind}");
            }
        }
    }

    #[test]
    fn an_unknown_kernel_group_is_named() {
        let error = "links".parse::<KernelGroup>().unwrap_err();
        assert!(error.to_string().starts_with("\"links\""), "{error}");
    }
}
