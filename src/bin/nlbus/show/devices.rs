//! The devices of a link dump, for the names of the indices in other messages.

use std::collections::BTreeMap;

use super::{layer, link};

/// `IFF_UP`
const UP: u32 = 1;

/// The length of the longest name, `ALTIFNAMSIZ` less the NUL. A device of a longer one is left
/// unknown: any number of routes may repeat the name.
const NAME_BYTES_MAX: usize = 127;

pub(super) struct Devices(BTreeMap<u32, Device>);

struct Device {
    name: String,
    alternative_names: Vec<String>,
    up: bool,
    layer: u16,
}

impl Device {
    fn new(link: &link::Message<'_>) -> Option<Self> {
        let name = link.attributes.text(link::IFNAME)?;
        (name.len() <= NAME_BYTES_MAX).then(|| Self {
            name,
            alternative_names: link::alternative_names(&link.attributes),
            up: link.header.flags & UP != 0,
            layer: link.header.layer,
        })
    }
}

impl Devices {
    pub(super) fn new(links: &[link::Message<'_>]) -> Self {
        let device = |link: &link::Message<'_>| Some((link.header.index, Device::new(link)?));
        Self(links.iter().filter_map(device).collect())
    }

    /// Takes a device in, or what is new about it. One whose name is no name is forgotten.
    pub(super) fn insert(&mut self, link: &link::Message<'_>) {
        match Device::new(link) {
            Some(device) => drop(self.0.insert(link.header.index, device)),
            None => self.remove(link.header.index),
        }
    }

    pub(super) fn remove(&mut self, index: u32) {
        self.0.remove(&index);
    }

    /// The name, or `if` and the number for a device that is not in the dump.
    pub(super) fn name(&self, index: u32) -> String {
        match self.0.get(&index) {
            Some(device) => device.name.clone(),
            None if index == 0 => "*".to_owned(),
            None => format!("if{index}"),
        }
    }

    pub(super) fn index(&self, name: &str) -> Option<u32> {
        let bears = |device: &Device| {
            device.name == name || device.alternative_names.iter().any(|other| other == name)
        };
        self.0.iter().find_map(|(index, device)| bears(device).then_some(*index))
    }

    /// Whether the device is known to be down.
    pub(super) fn is_down(&self, index: u32) -> bool {
        self.0.get(&index).is_some_and(|device| !device.up)
    }

    /// A link-layer address of the device.
    pub(super) fn address(&self, index: u32, bytes: &[u8]) -> String {
        let layer = self.0.get(&index).map_or(u16::MAX, |device| device.layer);
        layer::address(layer, bytes)
    }
}
