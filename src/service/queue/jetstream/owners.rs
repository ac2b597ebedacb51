//! Transient queues whose broker is gone: each broker says that it is there when it is asked, and removes
//! what belongs to one that does not.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use futures_core::Stream as _;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use super::cluster::{Cluster, bounded};
use super::names::About;

/// How often to look for them.
pub(super) const PAUSE: Duration = Duration::from_secs(10);

/// How often in a row a broker has to be silent until it is taken to be gone. One that loses its connection
/// for a while loses nothing.
const SILENT_MAX: u32 = 6;

/// Answers those who ask whether this broker is there, and looks for queues of brokers that are not, until
/// the other end of `over` is dropped.
pub(super) async fn watch(
    cluster: Arc<Cluster>,
    mut asked: Subscriber,
    mut over: oneshot::Receiver<()>,
    pause: Duration,
) {
    let mut silent = Silent::default();
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut removal = tokio::task::JoinSet::new();
    loop {
        let next = std::future::poll_fn(|context| Pin::new(&mut asked).poll_next(context));
        tokio::select! {
            question = next => match question {
                None => return,
                Some(question) => {
                    if let Some(reply) = question.reply {
                        let _ = bounded(cluster.client.publish(reply, "".into())).await;
                    }
                }
            },
            _ = ticks.tick(), if removal.is_empty() => {
                let (cluster, mut silent) = (Arc::clone(&cluster), std::mem::take(&mut silent));
                removal.spawn(async move {
                    remove_orphans(&cluster, &mut silent).await;
                    silent
                });
            }
            _ = &mut over => return,
            Some(looked) = removal.join_next() => silent = looked.unwrap_or_default(),
        }
    }
}

/// Brokers that did not answer, and how often in a row.
#[derive(Default)]
struct Silent(HashMap<u64, u32>);

impl Silent {
    /// Takes in who answered when each was asked, if that can be told, and returns those that are gone.
    fn hear(&mut self, answers: &HashMap<u64, Option<bool>>) -> HashSet<u64> {
        let silent = answers.iter().filter(|(_, answered)| **answered == Some(false));
        let counted = silent.map(|(broker, _)| (*broker, self.0.get(broker).unwrap_or(&0) + 1));
        self.0 = counted.collect();
        self.0
            .iter()
            .filter(|(_, times)| **times >= SILENT_MAX)
            .map(|(broker, _)| *broker)
            .collect()
    }
}

async fn remove_orphans(cluster: &Cluster, silent: &mut Silent) {
    let streams = cluster.streams().await.unwrap_or_default();
    let owner = |about: &About| Some(about.owner?.0).filter(|owner| *owner != cluster.instance);
    let mut answers = HashMap::new();
    for (about, _) in &streams {
        if let Some(owner) = owner(about)
            && let Entry::Vacant(answer) = answers.entry(owner)
        {
            answer.insert(cluster.is_alive(owner).await);
        }
    }
    let gone = silent.hear(&answers);
    for (about, info) in streams {
        if !owner(&about).is_some_and(|owner| gone.contains(&owner)) {
            continue;
        }
        // whose client has come back to another broker may have made it anew by now
        if cluster.look(&about.name).await.is_ok_and(|(opened, _)| opened.about == about) {
            let queue = &about.name;
            tracing::info!(queue, "removing the transient queue of a broker that is gone");
            let _ = bounded(cluster.context.delete_stream(info.config.name)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_gone_only_when_it_was_silent_several_times_in_a_row() {
        let mut silent = Silent::default();
        let mut hear = |answers: [Option<bool>; 2]| {
            let answers = HashMap::from([(1, answers[0]), (2, answers[1])]);
            silent.hear(&answers)
        };
        for interruption in [Some(true), None] {
            for _ in 1..SILENT_MAX {
                assert!(hear([Some(false), Some(true)]).is_empty());
            }
            assert!(hear([interruption, Some(true)]).is_empty());
        }
        for _ in 1..SILENT_MAX {
            assert!(hear([Some(false), Some(true)]).is_empty());
        }
        assert_eq!(hear([Some(false), Some(true)]), HashSet::from([1]));
        assert!(silent.hear(&HashMap::new()).is_empty(), "the cluster was away");
        assert!(silent.0.is_empty());
    }
}
