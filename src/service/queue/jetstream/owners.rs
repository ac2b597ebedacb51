//! Transient queues whose broker is gone: each broker says that it is there when it is asked, and removes
//! what belongs to one that does not.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use futures_core::Stream as _;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use super::cluster::{Cluster, bounded};

/// How often to look for them.
const PAUSE: Duration = Duration::from_secs(10);

/// Answers those who ask whether this broker is there, and looks for queues of brokers that are not, until
/// the other end of `over` is dropped.
pub(super) async fn watch(
    cluster: Arc<Cluster>,
    mut asked: Subscriber,
    mut over: oneshot::Receiver<()>,
) {
    let mut ticks = interval(PAUSE);
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
                let cluster = Arc::clone(&cluster);
                removal.spawn(async move { remove_orphans(&cluster).await });
            }
            _ = &mut over => return,
            Some(_) = removal.join_next() => {}
        }
    }
}

async fn remove_orphans(cluster: &Cluster) {
    let Ok(streams) = cluster.streams().await else { return };
    let mut alive: HashMap<u64, Option<bool>> = HashMap::new();
    for (about, info) in streams {
        let Some((instance, _)) = about.owner.filter(|(owner, _)| *owner != cluster.instance)
        else {
            continue;
        };
        let known = alive.get(&instance).copied();
        let known = match known {
            Some(known) => known,
            None => cluster.is_alive(instance).await,
        };
        alive.insert(instance, known);
        // whose client has come back to another broker may have made it anew by now
        let stays = async || {
            let now = cluster.look(&about.name).await;
            now.is_ok_and(|(opened, _)| opened.about == about)
        };
        if known == Some(false) && stays().await {
            let queue = &about.name;
            tracing::info!(queue, "removing the transient queue of a broker that is gone");
            let _ = bounded(cluster.context.delete_stream(info.config.name)).await;
        }
    }
}
