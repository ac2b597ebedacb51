//! When a command that prints events ends.

use std::future::pending;
use std::time::Duration;

use nlbus::endpoint::{Event, RequestError, Subscription};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::connect::seconds;
use crate::exit::Exit;

/// Said in the help of each such command.
pub(crate) const HELP: &str = "\
SIGINT, SIGTERM and a closed standard output end it with 0, a lost connection with 6.";

/// How long to go on.
#[derive(Debug, clap::Args)]
pub(crate) struct Until {
    /// End after this many events.
    #[arg(short = 'C', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this many seconds: with 0 if an event came, and -C was not given; else with 4.
    #[arg(short = 'W', long = "wait", value_name = "SECONDS", value_parser = seconds)]
    wait: Option<Duration>,
}

/// The events of a subscription, for as long as it was said.
pub(crate) struct Events {
    subscription: Subscription,
    signals: [Signal; 2],
    deadline: Option<Instant>,
    /// How many are still to come, if that was said.
    left: Option<u64>,
    any: bool,
}

/// What is to be done next.
pub(crate) enum Next {
    Event(Event),
    End(Exit),
}

impl Until {
    /// Time counts from now.
    pub(crate) fn start(&self, subscription: Subscription) -> anyhow::Result<Events> {
        let signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        tracing::info!("subscribed");
        Ok(Events {
            subscription,
            signals,
            deadline: self.wait.map(|wait| Instant::now() + wait),
            left: self.count,
            any: false,
        })
    }
}

impl Events {
    /// Waits for the next event, or for the end.
    ///
    /// # Errors
    /// [`RequestError::Lost`] if the connection ends.
    pub(crate) async fn next(&mut self) -> Result<Next, RequestError> {
        if self.left == Some(0) {
            return Ok(Next::End(Exit::Ok));
        }
        let [terminate, interrupt] = &mut self.signals;
        tokio::select! {
            // events may come without end
            biased;
            Some(()) = terminate.recv() => Ok(Next::End(Exit::Ok)),
            Some(()) = interrupt.recv() => Ok(Next::End(Exit::Ok)),
            () = until(self.deadline) => {
                let enough = self.any && self.left.is_none();
                Ok(Next::End(if enough { Exit::Ok } else { Exit::Timeout }))
            }
            event = self.subscription.next() => {
                event.map(Next::Event).ok_or(RequestError::Lost(None))
            }
        }
    }

    /// An event was printed. Whether a further one is wanted.
    pub(crate) fn printed(&mut self) -> bool {
        self.any = true;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        self.left != Some(0)
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use nlbus::endpoint::{Endpoint, Filter};
    use nlbus::node::{Node, NodeOptions};

    use super::*;

    /// How a command ends that was sent `sent` events and then none.
    async fn end(count: Option<u64>, wait: Option<u64>, sent: usize) -> (usize, Exit) {
        let node = Node::new(NodeOptions::default());
        let endpoint = Endpoint::attach(&node).unwrap();
        let subscription = endpoint.subscribe(Filter::all()).await.unwrap();
        let until = Until { count, wait: wait.map(Duration::from_secs) };
        let mut events = until.start(subscription).unwrap();
        for _ in 0..sent {
            endpoint.publish(b"").await.unwrap();
        }
        let mut printed = 0;
        loop {
            match events.next().await.unwrap() {
                Next::End(exit) => return (printed, exit),
                Next::Event(_) => {
                    printed += 1;
                    events.printed();
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_is_enough_if_something_came_or_as_much_as_was_asked_for() {
        for (count, wait, sent, expected) in [
            (None, Some(9), 0, (0, Exit::Timeout)),
            (None, Some(9), 1, (1, Exit::Ok)),
            (Some(2), Some(9), 1, (1, Exit::Timeout)),
            (Some(2), Some(9), 3, (2, Exit::Ok)),
            (Some(2), None, 2, (2, Exit::Ok)),
        ] {
            assert_eq!(end(count, wait, sent).await, expected, "{count:?} {wait:?} {sent}");
        }
    }
}
