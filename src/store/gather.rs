//! Which batches are committed together, and whether it pays to wait for more.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::Op;

/// Changes that one commit takes, give or take a batch.
const GROUP_MAX: usize = 256;

/// How long a group waits for others at most.
const GATHER_MAX: Duration = Duration::from_millis(2);

/// Of the groups that do not wait one in this many does, to see whether that pays by now.
const PROBE_EVERY: u32 = 64;

/// Puts groups together.
///
/// Those who had their answers with the last group usually come again soon. As long as a sync takes longer
/// than they do, a group waits for them, and one sync does for all. One alone waits for nobody.
pub(super) struct Gatherer {
    batches: Receiver<Vec<Op>>,
    /// Taken, and in no group yet. At most as many as may be under way.
    backlog: VecDeque<Vec<Op>>,
    /// Changes in it.
    length: usize,
    /// Changes in the last group.
    last_group: usize,
    /// When that was written.
    written: Instant,
    /// How long a sync takes, lately.
    sync: Duration,
    /// How long it takes until all who had their answers have come again, lately.
    turnaround: Duration,
    unprobed: u32,
}

impl Gatherer {
    pub(super) fn new(batches: Receiver<Vec<Op>>) -> Self {
        Self {
            batches,
            backlog: VecDeque::new(),
            length: 0,
            last_group: 1,
            written: Instant::now(),
            sync: Duration::ZERO,
            turnaround: Duration::ZERO,
            unprobed: 0,
        }
    }

    /// The next group. `wait`: how long to wait for its first batch.
    ///
    /// # Errors
    /// Nothing came, or nobody is left who could hand in anything.
    pub(super) fn next(&mut self, wait: Duration) -> Result<Vec<Vec<Op>>, RecvTimeoutError> {
        self.take_ready();
        // what had been handed in before the last group was written is of others than those of that group
        let mut under_way = self.length + self.last_group;
        if self.backlog.is_empty() {
            let first = self.batches.recv_timeout(wait)?;
            self.take(first);
            self.take_ready();
            under_way = self.last_group;
        }
        let wanted = under_way.min(GROUP_MAX);
        if self.length < wanted && self.pays() {
            self.gather(wanted);
        }
        Ok(self.cut())
    }

    /// The group is on disk; the sync took so long.
    pub(super) fn written(&mut self, sync: Duration) {
        self.written = Instant::now();
        self.sync = (self.sync * 3 + sync) / 4;
    }

    /// Whether to wait for those of the last group.
    fn pays(&mut self) -> bool {
        self.unprobed += 1;
        let pays = self.sync > self.turnaround || self.unprobed >= PROBE_EVERY;
        if pays {
            self.unprobed = 0;
        }
        pays
    }

    /// Waits until there are so many changes, but not longer than one more sync would take.
    fn gather(&mut self, wanted: usize) {
        let deadline = Instant::now() + self.sync.min(GATHER_MAX);
        while self.length < wanted {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.batches.recv_timeout(left) {
                Ok(batch) => self.take(batch),
                Err(_) => break,
            }
        }
        let turnaround = self.written.elapsed().min(GATHER_MAX);
        self.turnaround = (self.turnaround * 3 + turnaround) / 4;
    }

    /// The first batches of the backlog, as many as one commit takes.
    fn cut(&mut self) -> Vec<Vec<Op>> {
        let mut group = Vec::new();
        self.last_group = 0;
        while self.last_group < GROUP_MAX
            && let Some(batch) = self.backlog.pop_front()
        {
            self.last_group += batch.len();
            group.push(batch);
        }
        self.length -= self.last_group;
        group
    }

    fn take_ready(&mut self) {
        while let Ok(batch) = self.batches.try_recv() {
            self.take(batch);
        }
    }

    fn take(&mut self, batch: Vec<Op>) {
        self.length += batch.len();
        self.backlog.push_back(batch);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{SyncSender, sync_channel};

    use super::*;

    fn gatherer() -> (SyncSender<Vec<Op>>, Gatherer) {
        let (batches, receiver) = sync_channel(256);
        (batches, Gatherer::new(receiver))
    }

    /// A batch of so many changes, the first with this key.
    fn batch(first: u64, length: u64) -> Vec<Op> {
        (first..first + length).map(|key| Op::Delete { key }).collect()
    }

    fn keys(group: &[Vec<Op>]) -> Vec<u64> {
        let key = |op: &Op| match op {
            Op::Delete { key } => *key,
            other => panic!("{other:?}"),
        };
        group.iter().flatten().map(key).collect()
    }

    #[test]
    fn what_is_there_is_one_group_up_to_its_limit_and_the_rest_the_next_in_order() {
        let (batches, mut gatherer) = gatherer();
        for n in 0..40 {
            batches.send(batch(n * 10, 10)).unwrap();
        }
        let first = gatherer.next(Duration::ZERO).unwrap();
        // no batch is cut
        assert_eq!(keys(&first), (0..260).collect::<Vec<u64>>());
        gatherer.written(Duration::ZERO);
        let second = gatherer.next(Duration::ZERO).unwrap();
        assert_eq!(keys(&second), (260..400).collect::<Vec<u64>>());
    }

    #[test]
    fn a_group_waits_for_those_of_the_last_one_while_a_sync_takes_longer() {
        let (batches, mut gatherer) = gatherer();
        gatherer.last_group = 2;
        gatherer.sync = Duration::from_secs(60);
        batches.send(batch(1, 1)).unwrap();
        let late = std::thread::spawn(move || batches.send(batch(2, 1)).map(|()| batches));
        let mut seen = keys(&gatherer.next(Duration::MAX).unwrap());
        let batches = late.join().unwrap().unwrap();
        if seen.len() < 2 {
            // where this machine was slower than a group waits at most
            seen.extend(keys(&gatherer.next(Duration::MAX).unwrap()));
        }
        assert_eq!(seen, [1, 2]);
        // one that sends alone again is not waited for: nobody else had an answer
        gatherer.last_group = 1;
        batches.send(batch(3, 1)).unwrap();
        assert_eq!(keys(&gatherer.next(Duration::MAX).unwrap()), [3]);
    }

    #[test]
    fn where_a_sync_is_quick_only_one_group_in_many_waits() {
        let (batches, mut gatherer) = gatherer();
        gatherer.turnaround = Duration::from_secs(1);
        let waited = (0..2 * PROBE_EVERY).filter(|_| gatherer.pays()).count();
        assert_eq!(waited, 2);
        drop(batches);
    }

    #[test]
    fn it_ends_when_nobody_is_left_and_all_is_taken() {
        let (batches, mut gatherer) = gatherer();
        assert_eq!(gatherer.next(Duration::ZERO), Err(RecvTimeoutError::Timeout));
        batches.send(batch(1, 1)).unwrap();
        drop(batches);
        assert_eq!(keys(&gatherer.next(Duration::MAX).unwrap()), [1]);
        assert_eq!(gatherer.next(Duration::MAX), Err(RecvTimeoutError::Disconnected));
    }
}
