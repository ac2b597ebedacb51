//! A table by number: what each message is looked up in several times.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// A table whose keys are numbers, some of which others choose.
pub(super) type Table<K, V> = HashMap<K, V, Numbers>;

/// As large as a multiplier can be without a pattern: the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads numbers by a multiplication each and one at the end, where the default takes a dozen rounds. The key is random for
/// each table, so that nobody who chooses numbers knows which of them meet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    key: u64,
}

impl Default for Numbers {
    fn default() -> Self {
        Self { key: RandomState::new().hash_one(SPREAD) }
    }
}

impl BuildHasher for Numbers {
    type Hasher = Spread;

    fn build_hasher(&self) -> Spread {
        Spread { key: self.key, state: self.key }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Spread {
    key: u64,
    state: u64,
}

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        fold(self.state, SPREAD)
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.state = fold(self.state ^ number, self.key | 1);
    }

    fn write_u128(&mut self, number: u128) {
        self.write_u64(number as u64);
        self.write_u64((number >> 64) as u64);
    }
}

/// Both halves of the product: each bit of it depends on others of both.
fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide >> 64) as u64 ^ wide as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_a_row_and_multiples_fall_into_as_many_places_as_chance_would_have() {
        let numbers = Numbers::default();
        for step in [1, 1 << 16, 1 << 32, 0x1_0000_0001_u64] {
            let places = |shift: u32| {
                let all = (0..4_096_u64).map(|n| numbers.hash_one(n.wrapping_mul(step)) >> shift);
                all.map(|hash| hash & 0xfff).collect::<std::collections::HashSet<_>>().len()
            };
            // 4,096 into as many places: 63 % of them are met
            assert!(places(0) > 2_300, "{step}: {}", places(0));
            assert!(places(52) > 2_300, "{step}: {}", places(52));
        }
    }
}
