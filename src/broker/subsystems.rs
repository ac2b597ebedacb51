//! Subsystems: names, their addresses, and who provides them.

use std::collections::HashMap;

use super::limits::Limits;
use super::link::{LinkId, Links};

/// The first subsystem's address; clients of the original send there without asking.
pub const SUBSYSTEM_BASE: u32 = 0x0001_0003;
/// The last one's.
pub const SUBSYSTEM_LAST: u32 = 0x0001_ffff;

/// Who provides a name, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Provider {
    pub(super) link: LinkId,
    pub(super) port: u32,
    /// Takes what is pushed; such a provider is reached by datagrams too.
    pub(super) pulls: bool,
    /// Makes changes; reached only by who may have them made.
    pub(super) writes: bool,
}

/// Which providers a frame may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Those that make no changes.
    Reading,
    /// Those that make changes if there are any, else the others.
    Writing,
    /// Those that take what is pushed.
    Pulling,
}

/// Why a name could not be provided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProvideError {
    Name,
    Full,
}

#[derive(Debug)]
struct Subsystem {
    name: String,
    providers: Vec<Provider>,
    /// How many of them make changes.
    writers: usize,
    /// The one whose turn is next.
    turn: usize,
}

impl Subsystem {
    fn retain(&mut self, keep: impl Fn(&Provider) -> bool) {
        self.providers.retain(keep);
        self.writers = self.providers.iter().filter(|provider| provider.writes).count();
    }
}

/// A name keeps its address for as long as the broker runs, so that a provider may come and go.
#[derive(Debug, Default)]
pub(super) struct Subsystems {
    table: Vec<Subsystem>,
    names: HashMap<String, u32>,
    /// Changes with the providers of anything.
    version: u64,
}

impl Subsystems {
    pub(super) fn provide(
        &mut self,
        name: &str,
        provider: Provider,
        limits: &Limits,
    ) -> Result<u32, ProvideError> {
        let address = self.reserve(name, limits)?;
        let subsystem = self.at_mut(address).ok_or(ProvideError::Full)?;
        if subsystem.providers.len() >= limits.providers_per_subsystem_max {
            return Err(ProvideError::Full);
        }
        subsystem.writers += usize::from(provider.writes);
        subsystem.providers.push(provider);
        self.version += 1;
        Ok(address)
    }

    /// The address of a name, which is given one if it has none.
    pub(super) fn reserve(&mut self, name: &str, limits: &Limits) -> Result<u32, ProvideError> {
        let printable = name.chars().all(|c| !c.is_control() && !c.is_whitespace());
        if name.is_empty() || name.len() > limits.name_bytes_max || !printable {
            return Err(ProvideError::Name);
        }
        match self.names.get(name) {
            Some(address) => Ok(*address),
            None => self.add(name, limits),
        }
    }

    fn add(&mut self, name: &str, limits: &Limits) -> Result<u32, ProvideError> {
        let ceiling = (SUBSYSTEM_LAST - SUBSYSTEM_BASE + 1) as usize;
        if self.table.len() >= limits.subsystems_max.min(ceiling) {
            return Err(ProvideError::Full);
        }
        let address = SUBSYSTEM_BASE + self.table.len() as u32;
        self.names.insert(name.to_owned(), address);
        self.table.push(Subsystem {
            name: name.to_owned(),
            providers: Vec::new(),
            writers: 0,
            turn: 0,
        });
        Ok(address)
    }

    /// Another number whenever the providers of anything have changed.
    #[inline]
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Takes `link`'s ports out of the providers of `address`, or only `port`.
    pub(super) fn remove(&mut self, address: u32, link: LinkId, port: Option<u32>) {
        self.version += 1;
        if let Some(subsystem) = self.at_mut(address) {
            subsystem.retain(|p| p.link != link || port.is_some_and(|port| port != p.port));
        }
    }

    /// Takes `link` out of the providers of everything.
    pub(super) fn remove_link(&mut self, link: LinkId) {
        self.version += 1;
        for subsystem in &mut self.table {
            subsystem.retain(|provider| provider.link != link);
        }
    }

    /// The port at which `link` provides `address`.
    pub(super) fn port_at(&self, address: u32, link: LinkId) -> Option<u32> {
        let subsystem = self.table.get(address.checked_sub(SUBSYSTEM_BASE)? as usize)?;
        let provider = subsystem.providers.iter().find(|provider| provider.link == link)?;
        Some(provider.port)
    }

    /// What stands before `suffix` in the names that have more than that.
    pub(super) fn names_ending_in(&self, suffix: &str) -> Vec<String> {
        let names = self.table.iter().filter_map(|subsystem| subsystem.name.strip_suffix(suffix));
        names.filter(|inner| !inner.is_empty()).map(str::to_owned).collect()
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

    /// The name of a subsystem.
    pub(super) fn name(&self, address: u32) -> Option<&str> {
        let index = address.checked_sub(SUBSYSTEM_BASE)?;
        self.table.get(index as usize).map(|subsystem| subsystem.name.as_str())
    }

    /// Whose turn it is to take a frame for `address`, of those that `wanted` allows. One that is slow is
    /// passed over while there is another.
    #[inline]
    pub(super) fn next_provider(
        &mut self,
        address: u32,
        wanted: Wanted,
        links: &Links,
    ) -> Option<Provider> {
        self.next_other(address, wanted, links, |_| true)
    }

    /// The same of those whose link `takes` it.
    #[inline]
    pub(super) fn next_other(
        &mut self,
        address: u32,
        wanted: Wanted,
        links: &Links,
        takes: impl Fn(LinkId) -> bool,
    ) -> Option<Provider> {
        let subsystem = self.at_mut(address)?;
        let writers = subsystem.writers;
        let fits = |provider: &Provider| match wanted {
            Wanted::Pulling => provider.pulls,
            Wanted::Writing if writers > 0 => provider.writes,
            Wanted::Writing | Wanted::Reading => !provider.writes,
        };
        let count = subsystem.providers.len();
        let mut slow = None;
        let mut at = subsystem.turn;
        for _ in 0..count {
            if at >= count {
                at = 0;
            }
            let provider = subsystem.providers[at];
            at += 1;
            if !fits(&provider) || !takes(provider.link) {
                continue;
            }
            if count == 1 || !links.get(provider.link).is_some_and(|link| link.slow) {
                subsystem.turn = at;
                return Some(provider);
            }
            slow = slow.or(Some((provider, at)));
        }
        let (provider, at) = slow?;
        subsystem.turn = at;
        Some(provider)
    }

    /// How many provide `address`.
    #[inline]
    pub(super) fn providers_len(&self, address: u32) -> usize {
        let index = address.checked_sub(SUBSYSTEM_BASE).map(|index| index as usize);
        index.and_then(|index| self.table.get(index)).map_or(0, |s| s.providers.len())
    }

    /// Whether `provider` still provides `address`.
    pub(super) fn provides(&self, address: u32, provider: &Provider) -> bool {
        let index = address.checked_sub(SUBSYSTEM_BASE).map(|index| index as usize);
        let subsystem = index.and_then(|index| self.table.get(index));
        subsystem.is_some_and(|subsystem| subsystem.providers.contains(provider))
    }

    /// Whether anybody provides `address`, in whatever way.
    pub(super) fn is_provided(&self, address: u32) -> bool {
        let index = address.checked_sub(SUBSYSTEM_BASE).map(|index| index as usize);
        index.and_then(|index| self.table.get(index)).is_some_and(|s| !s.providers.is_empty())
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
