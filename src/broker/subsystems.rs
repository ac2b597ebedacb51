//! Subsystems: names, their addresses, and who provides them.

use std::collections::HashMap;

use super::limits::Limits;
use super::link::LinkId;

/// The first subsystem's address; clients of the original send there without asking.
pub const SUBSYSTEM_BASE: u32 = 0x0001_0003;
/// The last one's.
pub const SUBSYSTEM_LAST: u32 = 0x0001_ffff;

/// Why a name could not be provided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProvideError {
    Name,
    Full,
}

#[derive(Debug)]
struct Subsystem {
    name: String,
    /// The links and ports that provide it, and the one whose turn is next.
    providers: Vec<(LinkId, u32)>,
    turn: usize,
}

/// A name keeps its address for as long as the broker runs, so that a provider may come and go.
#[derive(Debug, Default)]
pub(super) struct Subsystems {
    table: Vec<Subsystem>,
    names: HashMap<String, u32>,
}

impl Subsystems {
    pub(super) fn provide(
        &mut self,
        name: &str,
        link: LinkId,
        port: u32,
        limits: &Limits,
    ) -> Result<u32, ProvideError> {
        let printable = name.chars().all(|c| !c.is_control() && !c.is_whitespace());
        if name.is_empty() || name.len() > limits.name_bytes_max || !printable {
            return Err(ProvideError::Name);
        }
        let address = match self.names.get(name) {
            Some(address) => *address,
            None => self.add(name, limits)?,
        };
        let subsystem = self.at_mut(address).ok_or(ProvideError::Full)?;
        if subsystem.providers.len() >= limits.providers_per_subsystem_max {
            return Err(ProvideError::Full);
        }
        subsystem.providers.push((link, port));
        Ok(address)
    }

    fn add(&mut self, name: &str, limits: &Limits) -> Result<u32, ProvideError> {
        let ceiling = (SUBSYSTEM_LAST - SUBSYSTEM_BASE + 1) as usize;
        if self.table.len() >= limits.subsystems_max.min(ceiling) {
            return Err(ProvideError::Full);
        }
        let address = SUBSYSTEM_BASE + self.table.len() as u32;
        self.names.insert(name.to_owned(), address);
        self.table.push(Subsystem { name: name.to_owned(), providers: Vec::new(), turn: 0 });
        Ok(address)
    }

    /// Takes `link`'s ports out of the providers of `address`, or only `port`.
    pub(super) fn remove(&mut self, address: u32, link: LinkId, port: Option<u32>) {
        if let Some(subsystem) = self.at_mut(address) {
            let gone = |&(l, p): &(LinkId, u32)| l == link && port.is_none_or(|port| port == p);
            subsystem.providers.retain(|provider| !gone(provider));
        }
    }

    /// The address of a name that somebody provides.
    pub(super) fn discover(&self, name: &str) -> Option<u32> {
        let address = *self.names.get(name)?;
        let subsystem = self.table.get((address - SUBSYSTEM_BASE) as usize)?;
        (!subsystem.providers.is_empty()).then_some(address)
    }

    /// The address of a name, provided or not.
    pub(super) fn address(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }

    /// Whose turn it is to take a frame for `address`.
    #[inline]
    pub(super) fn next_provider(&mut self, address: u32) -> Option<(LinkId, u32)> {
        let subsystem = self.at_mut(address)?;
        match subsystem.providers.as_slice() {
            [] => None,
            [only] => Some(*only),
            many => {
                let provider = many[subsystem.turn % many.len()];
                subsystem.turn = (subsystem.turn + 1) % many.len();
                Some(provider)
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u32, usize)> {
        self.table.iter().zip(SUBSYSTEM_BASE..).map(|(subsystem, address)| {
            (subsystem.name.as_str(), address, subsystem.providers.len())
        })
    }

    fn at_mut(&mut self, address: u32) -> Option<&mut Subsystem> {
        let index = address.checked_sub(SUBSYSTEM_BASE)?;
        self.table.get_mut(index as usize)
    }
}
