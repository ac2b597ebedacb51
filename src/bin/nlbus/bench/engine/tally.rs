//! Numbers in payloads, and what they tell: that each message came once, and in which order.

use std::collections::VecDeque;

use anyhow::bail;

/// What a payload begins with: u32 run, u32 flow, u64 sequence number, all little-endian.
pub(crate) const STAMP_BYTES: usize = 16;

/// How far messages may overtake each other.
const AHEAD_MAX: u64 = 1 << 20;

/// Whose message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) run: u32,
    /// Who sent it, counted from 0.
    pub(crate) flow: u32,
    pub(crate) sequence: u64,
}

impl Stamp {
    pub(crate) fn write(self, payload: &mut [u8]) {
        payload[..4].copy_from_slice(&self.run.to_le_bytes());
        payload[4..8].copy_from_slice(&self.flow.to_le_bytes());
        payload[8..16].copy_from_slice(&self.sequence.to_le_bytes());
    }

    /// `None` for a payload that is not of this run.
    #[inline]
    pub(crate) fn read(payload: &[u8], run: u32, size: usize) -> Option<Self> {
        let [a, b, c, d, e, f, g, h, sequence @ ..] = payload.first_chunk::<STAMP_BYTES>()?;
        let own = u32::from_le_bytes([*a, *b, *c, *d]) == run && payload.len() == size;
        let flow = u32::from_le_bytes([*e, *f, *g, *h]);
        own.then_some(Self { run, flow, sequence: u64::from_le_bytes(*sequence) })
    }
}

/// What became of all messages of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Messages that should have arrived.
    pub(crate) sent: u64,
    /// Different ones that did.
    pub(crate) received: u64,
    /// Those that did again.
    pub(crate) duplicated: u64,
    /// Those that came before an earlier one where order is promised: one sender, one receiver.
    pub(crate) reordered: u64,
    /// Messages of others, which were passed over.
    pub(crate) foreign: u64,
}

impl Counts {
    /// Messages that never came.
    pub(crate) fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// Whether every message came once, and in order.
    pub(crate) fn are_sound(&self) -> bool {
        self.lost() == 0 && self.duplicated == 0 && self.reordered == 0
    }
}

/// What has come of one sender's messages at one place.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// All below it came.
    next: u64,
    /// Which of those from `next` on came; empty, or it begins with one that did not.
    ahead: VecDeque<bool>,
}

impl Flow {
    /// Notes an arrival in `counts`. `ordered`: nothing may overtake.
    #[inline]
    pub(crate) fn note(
        &mut self,
        sequence: u64,
        ordered: bool,
        counts: &mut Counts,
    ) -> anyhow::Result<()> {
        if sequence == self.next && self.ahead.is_empty() {
            self.next += 1;
            counts.received += 1;
            return Ok(());
        }
        self.note_out_of_order(sequence, ordered, counts)
    }

    fn note_out_of_order(
        &mut self,
        sequence: u64,
        ordered: bool,
        counts: &mut Counts,
    ) -> anyhow::Result<()> {
        let Some(distance) = sequence.checked_sub(self.next) else {
            counts.duplicated += 1;
            return Ok(());
        };
        if distance > AHEAD_MAX {
            bail!("message {sequence} came, and {} should be next", self.next);
        }
        let distance = distance as usize;
        if self.ahead.len() <= distance {
            self.ahead.resize(distance + 1, false);
        }
        if self.ahead[distance] {
            counts.duplicated += 1;
            return Ok(());
        }
        self.ahead[distance] = true;
        counts.received += 1;
        counts.reordered += u64::from(ordered && distance > 0);
        while self.ahead.front() == Some(&true) {
            self.ahead.pop_front();
            self.next += 1;
        }
        Ok(())
    }

    /// How many messages came without a gap.
    pub(super) fn next(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts_of(ordered: bool, arrivals: &[u64]) -> Counts {
        let mut counts = Counts::default();
        let mut flow = Flow::default();
        for sequence in arrivals {
            flow.note(*sequence, ordered, &mut counts).unwrap();
        }
        counts
    }

    #[test]
    fn messages_in_order_are_sound() {
        let counts = Counts { sent: 4, ..counts_of(true, &[0, 1, 2, 3]) };
        assert!(counts.are_sound());
        assert_eq!(counts.received, 4);
    }

    #[test]
    fn a_message_that_comes_twice_is_seen_before_and_behind_the_gap() {
        assert_eq!(counts_of(true, &[0, 1, 0]).duplicated, 1);
        assert_eq!(counts_of(false, &[0, 2, 2, 1]).duplicated, 1);
    }

    #[test]
    fn a_message_that_overtakes_is_an_error_only_where_order_is_promised() {
        assert_eq!(counts_of(true, &[1, 0, 2]).reordered, 1);
        assert_eq!(counts_of(false, &[1, 0, 2]).reordered, 0);
        assert_eq!(counts_of(false, &[1, 0, 2]).received, 3);
    }

    #[test]
    fn a_message_that_does_not_come_is_lost() {
        let counts = Counts { sent: 3, ..counts_of(true, &[0, 2]) };
        assert_eq!(counts.lost(), 1);
        assert!(!counts.are_sound());
    }

    #[test]
    fn a_stamp_of_another_run_or_length_is_not_ours() {
        let mut payload = [0; 20];
        let stamp = Stamp { run: 7, flow: 2, sequence: 9 };
        stamp.write(&mut payload);
        assert_eq!(Stamp::read(&payload, 7, 20), Some(stamp));
        assert_eq!(Stamp::read(&payload, 8, 20), None);
        assert_eq!(Stamp::read(&payload, 7, 16), None);
        assert_eq!(Stamp::read(&payload[..10], 7, 10), None);
    }
}
