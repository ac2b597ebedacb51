//! Return addresses: where the answer to a frame goes (proto-spec/envelope.md, "Addresses").
//!
//! ```text
//! bit 31   30 … 21      20 … 0
//!     1    generation   slot
//! ```
//!
//! An address stands for a pair (link, port). Slots are used again in the order in which they were freed,
//! and not before [`REST`] others wait, so that an address comes back after more than a million others
//! at the earliest: an answer that comes too late reaches nobody.

use std::collections::VecDeque;

use super::link::LinkId;

/// The lowest return address.
pub const RETURN_BASE: u32 = 0x8000_0000;

const SLOT_BITS: u32 = 21;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
const GENERATION_MASK: u32 = (1 << (31 - SLOT_BITS)) - 1;
/// How many freed slots wait before one is used again.
const REST: usize = 1_024;

/// The most return addresses there can be: the address of the last slot would reach 0xffffffff, which
/// means everybody.
pub const RETURNS_CEILING: usize = SLOT_MASK as usize;

#[derive(Debug)]
struct Slot {
    generation: u32,
    /// `None` while the slot is free.
    pair: Option<(LinkId, u32)>,
}

#[derive(Debug, Default)]
pub(super) struct Returns {
    slots: Vec<Slot>,
    free: VecDeque<u32>,
}

impl Returns {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Makes the address of a pair; `None` if `max` are in use.
    pub(super) fn insert(&mut self, link: LinkId, port: u32, max: usize) -> Option<u32> {
        let max = max.min(RETURNS_CEILING);
        if self.len() >= max {
            return None;
        }
        let rested = self.free.len() > REST || self.slots.len() >= max;
        let slot = if rested { self.free.pop_front() } else { None }.unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, pair: None });
            self.slots.len() as u32 - 1
        });
        let entry = &mut self.slots[slot as usize];
        entry.pair = Some((link, port));
        Some(RETURN_BASE | entry.generation << SLOT_BITS | slot)
    }

    pub(super) fn remove(&mut self, address: u32) {
        let slot = address & SLOT_MASK;
        if self.find(address).is_some() {
            let entry = &mut self.slots[slot as usize];
            entry.pair = None;
            entry.generation = (entry.generation + 1) & GENERATION_MASK;
            self.free.push_back(slot);
        }
    }

    /// The pair that `address` stands for, unless it is stale.
    #[inline]
    pub(super) fn find(&self, address: u32) -> Option<(LinkId, u32)> {
        let slot = self.slots.get((address & SLOT_MASK) as usize)?;
        let generation = (address & !RETURN_BASE) >> SLOT_BITS;
        if slot.generation == generation { slot.pair } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: LinkId = LinkId { index: 7, generation: 1 };

    #[test]
    fn an_address_finds_its_pair_until_it_is_removed() {
        let mut returns = Returns::default();
        let address = returns.insert(LINK, 5, 10).unwrap();
        assert!(address >= RETURN_BASE);
        assert_eq!(returns.find(address), Some((LINK, 5)));
        returns.remove(address);
        assert_eq!(returns.find(address), None);
        returns.remove(address);
        assert_eq!(returns.len(), 0);
    }

    #[test]
    fn a_removed_address_does_not_come_back_for_a_million_others() {
        let mut returns = Returns::default();
        let first = returns.insert(LINK, 0, RETURNS_CEILING).unwrap();
        returns.remove(first);
        for _ in 0..1_000_000 {
            let other = returns.insert(LINK, 0, RETURNS_CEILING).unwrap();
            assert_ne!(other, first);
            returns.remove(other);
        }
        assert!(returns.slots.len() <= REST + 2, "slots are used again");
    }

    #[test]
    fn the_limit_is_exact_and_room_comes_back() {
        let mut returns = Returns::default();
        let addresses: Vec<u32> = (0..3).map(|n| returns.insert(LINK, n, 3).unwrap()).collect();
        assert_eq!(returns.insert(LINK, 3, 3), None);
        returns.remove(addresses[1]);
        let again = returns.insert(LINK, 3, 3).unwrap();
        assert_eq!(returns.find(again), Some((LINK, 3)));
        assert_eq!(returns.find(addresses[1]), None);
    }
}
