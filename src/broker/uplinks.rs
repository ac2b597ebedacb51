//! Links to other brokers that this one makes: their names, and what they make reachable.

use std::collections::BTreeMap;

use super::link::LinkId;

/// Ends the name of a subsystem of another broker, before that broker's name: `route@hub`.
pub(super) const AT: char = '@';

/// A name of this broker's that is provided at another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Its name here.
    pub name: String,
    /// Its name there.
    pub alias: String,
    /// Bits of [`mode`](crate::wire::mode).
    pub mode: u32,
}

/// What the core has to know of an uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UplinkKind {
    /// What the other broker is called here; if empty, the first free one of `uplink`, `uplink2`, ….
    pub name: String,
    /// Where it is, for listings.
    pub url: String,
    /// What is provided there while the link is up.
    pub exports: Vec<Export>,
    /// What is behind it is for those only who may have it changed: the other broker lets this one make
    /// changes, and cannot know for whom.
    pub writes: bool,
}

/// An uplink that this broker is to keep up.
#[derive(Debug)]
pub(super) struct Uplink {
    pub(super) kind: UplinkKind,
    /// The link, while it is up.
    pub(super) link: Option<LinkId>,
}

/// By the address that stands for the other broker's first subsystem.
#[derive(Debug, Default)]
pub(super) struct Uplinks(BTreeMap<u32, Uplink>);

impl Uplinks {
    pub(super) fn insert(&mut self, address: u32, kind: UplinkKind) {
        self.0.insert(address, Uplink { kind, link: None });
    }

    pub(super) fn remove(&mut self, address: u32) -> Option<Uplink> {
        self.0.remove(&address)
    }

    pub(super) fn get(&self, address: u32) -> Option<&Uplink> {
        self.0.get(&address)
    }

    pub(super) fn get_mut(&mut self, address: u32) -> Option<&mut Uplink> {
        self.0.get_mut(&address)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        self.0.values().any(|uplink| uplink.kind.name == name)
    }

    /// Splits `inner@uplink`: the inner name, and the uplink's address. The last part counts.
    pub(super) fn split<'n>(&self, name: &'n str) -> Option<(&'n str, u32)> {
        let (inner, last) = name.rsplit_once(AT)?;
        let (address, _) = self.0.iter().find(|(_, uplink)| uplink.kind.name == last)?;
        (!inner.is_empty()).then_some((inner, *address))
    }

    pub(super) fn iter_from(&self, from: u32) -> impl Iterator<Item = (u32, &Uplink)> {
        self.0.range(from..).map(|(address, uplink)| (*address, uplink))
    }

    /// The links that are up and over which `name` is exported, and how.
    pub(super) fn exporting(&self, name: &str) -> Vec<(LinkId, Export)> {
        let links = self.0.values().filter_map(|uplink| Some((uplink.link?, &uplink.kind)));
        links
            .flat_map(|(link, kind)| kind.exports.iter().map(move |export| (link, export)))
            .filter(|(_, export)| export.name == name)
            .map(|(link, export)| (link, export.clone()))
            .collect()
    }
}
