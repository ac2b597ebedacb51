//! Which broadcasts have been here before (proto-spec/envelope.md, "Between brokers").
//!
//! Every broker numbers the broadcasts that begin with it. Where brokers form a ring, one comes by several
//! ways, and by each of them the subsystem behind it may have another name here, or none. Who has been given
//! one copy gets no other; but who asked for a name gets the first that has it.

use std::collections::HashMap;

/// How many brokers and names are remembered. When another one turns up, the one that was silent for longest
/// is forgotten.
const ORIGINS_MAX: usize = 4_096;

/// Stands among the addresses of subsystems for a copy of whatever name.
const ANY: u32 = 0;

/// Stands among the addresses of subsystems for a copy that has some name.
const NAMED: u32 = 1;

/// How a broadcast comes to a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copy {
    /// For the first time.
    First,
    /// Again, and for the first time by this name.
    Named {
        /// None before it had a name.
        first: bool,
    },
    /// Again.
    Again,
}

/// How many numbers of one broker are told apart; what is that far behind the newest counts as seen.
const WINDOW: u32 = 4_096;

#[derive(Debug, Default)]
pub(super) struct Origins {
    /// By broker and the address of the subsystem that has broadcast.
    windows: HashMap<(u32, u32), Window>,
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
    /// How often broadcast `number` of broker `origin` was here; notes that it was, from the subsystem `src`
    /// if that is not 0.
    pub(super) fn copy(&mut self, origin: u32, number: u32, src: u32) -> Copy {
        let first = self.first_time((origin, ANY), number);
        let (named, this) = match src {
            0 => (false, false),
            _ => {
                let named = self.first_time((origin, NAMED), number);
                (named, self.first_time((origin, src), number))
            }
        };
        match (first, this) {
            (true, _) => Copy::First,
            (false, true) => Copy::Named { first: named },
            (false, false) => Copy::Again,
        }
    }

    fn first_time(&mut self, origin: (u32, u32), number: u32) -> bool {
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

    fn first_time(origins: &mut Origins, origin: u32, number: u32) -> bool {
        origins.copy(origin, number, 0) == Copy::First
    }

    #[test]
    fn a_copy_with_another_name_is_told_from_one_that_was_here() {
        let mut origins = Origins::default();
        let mut copies = |number, names: &[u32]| {
            names.iter().map(|src| origins.copy(7, number, *src)).collect::<Vec<_>>()
        };
        let (a, b) = (0x1_0003, 0x1_0004);
        let named = |first| Copy::Named { first };
        assert_eq!(copies(1, &[a, 0, a]), [Copy::First, Copy::Again, Copy::Again]);
        assert_eq!(copies(2, &[0, a, a]), [Copy::First, named(true), Copy::Again]);
        assert_eq!(copies(3, &[0, a, b, 0]), [Copy::First, named(true), named(false), Copy::Again]);
        assert_eq!(copies(4, &[a, b, b]), [Copy::First, named(false), Copy::Again]);
    }

    #[test]
    fn each_number_of_each_broker_passes_once_in_any_order() {
        let mut origins = Origins::default();
        for number in [5, 7, 6, 4_000, 8, u32::MAX, 0, 4_095] {
            for origin in [1, 2] {
                assert!(first_time(&mut origins, origin, number), "{origin} {number}");
                assert!(!first_time(&mut origins, origin, number), "{origin} {number} again");
            }
        }
    }

    #[test]
    fn numbers_wrap_around() {
        let mut origins = Origins::default();
        for number in [u32::MAX - 1, u32::MAX, 0, 1] {
            assert!(first_time(&mut origins, 9, number), "{number}");
        }
        assert!(!first_time(&mut origins, 9, u32::MAX));
        assert!(!first_time(&mut origins, 9, 1));
    }

    #[test]
    fn what_is_too_far_behind_counts_as_seen_and_a_leap_forgets_nothing_it_should_not() {
        let mut origins = Origins::default();
        assert!(first_time(&mut origins, 1, 10));
        assert!(first_time(&mut origins, 1, 10 + WINDOW), "one window ahead");
        assert!(!first_time(&mut origins, 1, 10), "a window behind");
        assert!(first_time(&mut origins, 1, 11), "the oldest that is told apart");
        assert!(!first_time(&mut origins, 1, 11));
        assert!(first_time(&mut origins, 1, 1_000_000));
        assert!(first_time(&mut origins, 1, 999_999));
        assert!(!first_time(&mut origins, 1, 999_999));
    }

    #[test]
    fn only_so_many_brokers_are_remembered_and_the_silent_one_goes_first() {
        let mut origins = Origins::default();
        for origin in 0..ORIGINS_MAX as u32 {
            assert!(first_time(&mut origins, origin, 1));
        }
        assert!(!first_time(&mut origins, 0, 1), "0 is heard again");
        assert!(first_time(&mut origins, 9_999, 1), "1 makes room");
        assert_eq!(origins.windows.len(), ORIGINS_MAX);
        assert!(!first_time(&mut origins, 0, 1));
        assert!(first_time(&mut origins, 1, 1));
    }
}
