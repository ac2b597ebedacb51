//! Which numbers of one sender have been stored: ranges, for they mostly come without gaps.

/// Ranges that are kept for one sender. Past that the lowest is given up, and what is below its end is too
/// old to be told.
pub const RANGES_MAX: usize = 1_024;

/// Senders that are remembered; past that who has not sent for the longest time is forgotten.
pub const SENDERS_MAX: usize = 16_384;

/// The numbers of one sender that were stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Numbers up to this one are too old.
    floor: u64,
    /// First and last of each range, ascending, never touching, above `floor`.
    ranges: Vec<(u64, u64)>,
}

/// What is known of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It was not stored.
    New,
    /// It was stored.
    Seen,
    /// It may have been stored.
    TooOld,
}

impl Seen {
    /// What is known of `number`.
    pub fn judge(&self, number: u64) -> Judgement {
        if number <= self.floor {
            return Judgement::TooOld;
        }
        match self.ranges.get(self.after(number).wrapping_sub(1)) {
            Some((_, last)) if number <= *last => Judgement::Seen,
            _ => Judgement::New,
        }
    }

    /// Adds a number; one that is there, or is too old, changes nothing.
    pub fn insert(&mut self, number: u64) {
        if self.judge(number) != Judgement::New {
            return;
        }
        let at = self.after(number);
        let joins_next = self.ranges.get(at).is_some_and(|(first, _)| *first - 1 == number);
        let before = at.checked_sub(1).map(|before| &mut self.ranges[before]);
        match before {
            Some((_, last)) if last.checked_add(1) == Some(number) => {
                *last = number;
                if joins_next {
                    let (_, end) = self.ranges.remove(at);
                    self.ranges[at - 1].1 = end;
                }
            }
            _ if joins_next => self.ranges[at].0 = number,
            _ => self.ranges.insert(at, (number, number)),
        }
        if self.ranges.len() > RANGES_MAX {
            self.floor = self.ranges.remove(0).1;
        }
    }

    /// How many ranges there are.
    pub fn ranges_len(&self) -> usize {
        self.ranges.len()
    }

    /// Its bytes: the floor, then first and last of each range, 8 bytes each, little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let ends = self.ranges.iter().flat_map(|(first, last)| [*first, *last]);
        std::iter::once(self.floor).chain(ends).flat_map(u64::to_le_bytes).collect()
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote; `None` if it is nothing of the kind.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let floor = words.next().filter(|_| rest.is_empty())?;
        let mut seen = Self { floor, ranges: Vec::new() };
        let mut end = floor;
        while let Some(first) = words.next() {
            let last = words.next()?;
            let apart = first > end && (first - 1 > end || end == floor);
            if !apart || last < first || seen.ranges.len() == RANGES_MAX {
                return None;
            }
            seen.ranges.push((first, last));
            end = last;
        }
        Some(seen)
    }

    /// The index of the first range that begins after `number`.
    fn after(&self, number: u64) -> usize {
        self.ranges.partition_point(|(first, _)| *first <= number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_knows_what_a_set_knows_and_survives_its_bytes(numbers in prop::collection::vec(1..200_u64, 0..200)) {
            let (mut seen, mut set) = (Seen::default(), BTreeSet::new());
            for number in numbers {
                seen.insert(number);
                set.insert(number);
            }
            let again = Seen::from_bytes(&seen.to_bytes()).unwrap();
            prop_assert_eq!(&again, &seen);
            for number in 1..=200 {
                let expected = if set.contains(&number) { Judgement::Seen } else { Judgement::New };
                prop_assert_eq!(again.judge(number), expected);
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Some(seen) = Seen::from_bytes(&bytes) {
                prop_assert_eq!(seen.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn one_range_too_many_makes_the_lowest_too_old() {
        let mut seen = Seen::default();
        for number in 1..=RANGES_MAX as u64 {
            seen.insert(number * 2);
        }
        assert_eq!((seen.judge(1), seen.judge(2)), (Judgement::New, Judgement::Seen));
        seen.insert(9_999);
        assert_eq!((seen.judge(1), seen.judge(2)), (Judgement::TooOld, Judgement::TooOld));
        assert_eq!((seen.judge(3), seen.judge(4)), (Judgement::New, Judgement::Seen));
        assert_eq!(seen.ranges_len(), RANGES_MAX);
    }
}
