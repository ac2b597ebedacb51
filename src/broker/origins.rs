//! Which broadcasts have been here before (proto-spec/envelope.md, "Between brokers").
//!
//! Every broker numbers the broadcasts that begin with it. Where brokers form a ring, one comes by several
//! ways, and all but the first are dropped.

use std::collections::HashMap;

/// How many brokers are remembered. When another one turns up, the one that was silent for longest is
/// forgotten.
const ORIGINS_MAX: usize = 1_024;

/// How many numbers of one broker are told apart; what is that far behind the newest counts as seen.
const WINDOW: u32 = 4_096;

#[derive(Debug, Default)]
pub(super) struct Origins {
    windows: HashMap<u32, Window>,
    /// Counts looks, to know who was silent for longest.
    now: u64,
}

/// Bit `n % WINDOW` says whether number `n` was seen, for the `WINDOW` numbers up to `newest`.
#[derive(Debug)]
struct Window {
    newest: u32,
    seen: Box<[u64; WINDOW as usize / 64]>,
    used: u64,
}

impl Origins {
    /// Whether broadcast `number` of broker `origin` is here for the first time; notes that it was here.
    pub(super) fn first_time(&mut self, origin: u32, number: u32) -> bool {
        self.now += 1;
        let now = self.now;
        if let Some(window) = self.windows.get_mut(&origin) {
            window.used = now;
            return window.first_time(number);
        }
        if self.windows.len() >= ORIGINS_MAX {
            let oldest = self.windows.iter().min_by_key(|(_, window)| window.used);
            if let Some(oldest) = oldest.map(|(origin, _)| *origin) {
                self.windows.remove(&oldest);
            }
        }
        let mut window = Window { newest: number, seen: Box::new([0; 64]), used: now };
        window.set(number);
        self.windows.insert(origin, window);
        true
    }
}

impl Window {
    fn first_time(&mut self, number: u32) -> bool {
        // serial numbers wrap around: RFC 1982
        let ahead = number.wrapping_sub(self.newest) as i32;
        if ahead > 0 {
            if ahead as u32 >= WINDOW {
                self.seen.fill(0);
            } else {
                for skipped in 1..=ahead as u32 {
                    self.clear(self.newest.wrapping_add(skipped));
                }
            }
            self.newest = number;
        } else if ahead.unsigned_abs() >= WINDOW || self.is_set(number) {
            return false;
        }
        self.set(number);
        true
    }

    fn set(&mut self, number: u32) {
        let (word, bit) = place(number);
        self.seen[word] |= bit;
    }

    fn clear(&mut self, number: u32) {
        let (word, bit) = place(number);
        self.seen[word] &= !bit;
    }

    fn is_set(&self, number: u32) -> bool {
        let (word, bit) = place(number);
        self.seen[word] & bit != 0
    }
}

fn place(number: u32) -> (usize, u64) {
    let at = number % WINDOW;
    (at as usize / 64, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_of_each_broker_passes_once_in_any_order() {
        let mut origins = Origins::default();
        for number in [5, 7, 6, 4_000, 8, u32::MAX, 0, 4_095] {
            for origin in [1, 2] {
                assert!(origins.first_time(origin, number), "{origin} {number}");
                assert!(!origins.first_time(origin, number), "{origin} {number} again");
            }
        }
    }

    #[test]
    fn numbers_wrap_around() {
        let mut origins = Origins::default();
        for number in [u32::MAX - 1, u32::MAX, 0, 1] {
            assert!(origins.first_time(9, number), "{number}");
        }
        assert!(!origins.first_time(9, u32::MAX));
        assert!(!origins.first_time(9, 1));
    }

    #[test]
    fn what_is_too_far_behind_counts_as_seen_and_a_leap_forgets_nothing_it_should_not() {
        let mut origins = Origins::default();
        assert!(origins.first_time(1, 10));
        assert!(origins.first_time(1, 10 + WINDOW), "one window ahead");
        assert!(!origins.first_time(1, 10), "a window behind");
        assert!(origins.first_time(1, 11), "the oldest that is told apart");
        assert!(!origins.first_time(1, 11));
        assert!(origins.first_time(1, 1_000_000));
        assert!(origins.first_time(1, 999_999));
        assert!(!origins.first_time(1, 999_999));
    }

    #[test]
    fn only_so_many_brokers_are_remembered_and_the_silent_one_goes_first() {
        let mut origins = Origins::default();
        for origin in 0..ORIGINS_MAX as u32 {
            assert!(origins.first_time(origin, 1));
        }
        assert!(!origins.first_time(0, 1), "0 is heard again");
        assert!(origins.first_time(9_999, 1), "1 makes room");
        assert_eq!(origins.windows.len(), ORIGINS_MAX);
        assert!(!origins.first_time(0, 1));
        assert!(origins.first_time(1, 1));
    }
}
