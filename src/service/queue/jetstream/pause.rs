//! How long to wait before something that was lost is tried again.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// The first pause, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// Each pause is twice as long as the one before; after something that lasted there is none.
pub(super) struct Pauses {
    last: Duration,
    since: Instant,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { last: Duration::ZERO, since: Instant::now() }
    }
}

impl Pauses {
    fn next(&mut self, lasted: Duration) -> Duration {
        let (first, longest) = PAUSES;
        self.last = match lasted > longest {
            true => Duration::ZERO,
            false => (self.last * 2).clamp(first, longest),
        };
        self.last
    }

    /// Waits, not longer than until there is a new connection to the cluster.
    pub(super) async fn wait(&mut self, connections: &mut watch::Receiver<u64>) {
        let pause = self.next(self.since.elapsed());
        let _ = timeout(pause, connections.changed()).await;
        self.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_begin_anew_after_something_that_lasted() {
        let mut pauses = Pauses::default();
        let quick: Vec<u128> = (0..6).map(|_| pauses.next(Duration::ZERO).as_millis()).collect();
        assert_eq!(quick, [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(pauses.next(Duration::from_secs(2)), Duration::ZERO);
        assert_eq!(pauses.next(Duration::ZERO), PAUSES.0);
    }
}
