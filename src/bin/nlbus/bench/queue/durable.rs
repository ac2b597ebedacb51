//! Sends to the disk: each of so many is sent once the one before has its answer.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use nlbus::service::queue::{Client, QueueOptions};
use nlbus::url::BusUrl;
use tokio::task::JoinSet;

use super::super::engine::{Counts, Outcome, Plan, Watch, histogram};
use super::QUEUE;
use super::bare::Bare;

/// How often sends and SQLite alone take turns: what a shared disk does meanwhile happens to both.
const ROUNDS: u32 = 10;

/// What has been answered.
struct Tally {
    latency: Histogram<u64>,
    answered: u64,
    measured: u64,
}

/// Keeps `plan.outstanding` sends under way, shared out among `plan.clients` clients; what SQLite alone does
/// in `directory`, if there is one.
pub(super) async fn run(
    url: &BusUrl,
    plan: &Plan,
    directory: Option<&Path>,
    watch: &mut dyn Watch,
) -> anyhow::Result<(Outcome, Option<Outcome>)> {
    let mut clients = Vec::new();
    for _ in 0..plan.clients {
        clients.push(Client::connect(url).await?);
    }
    let first = clients.first().context("nobody sends")?.clone();
    let options = QueueOptions::default().messages_max(u64::MAX >> 1).bytes_max(u64::MAX >> 1);
    if !first.create(QUEUE, Some(options)).await? {
        bail!("there is a queue {QUEUE:?} already");
    }
    let measured = measure(&clients, plan, directory, watch).await;
    let (_, queues) = first.diagnostics(QUEUE, 0, 0).await?;
    let kept = queues.iter().find(|queue| &*queue.name == QUEUE).map_or(0, |queue| queue.messages);
    first.destroy(QUEUE, false).await?;
    let (tally, seconds, bare) = measured?;
    let counts = Counts { sent: tally.answered, received: kept, ..Counts::default() };
    let outcome = Outcome { messages: tally.measured, seconds, latency: tally.latency, counts };
    Ok((outcome, bare))
}

async fn measure(
    clients: &[Client],
    plan: &Plan,
    directory: Option<&Path>,
    watch: &mut dyn Watch,
) -> anyhow::Result<(Tally, f64, Option<Outcome>)> {
    let bare = directory.map(|directory| Bare::open(directory, plan.size, plan.outstanding));
    let mut bare = bare.transpose()?;
    let tally = Tally { latency: histogram()?, answered: 0, measured: 0 };
    let tally = Rc::new(RefCell::new(tally));
    let payload = Bytes::from(vec![7; plan.size]);
    round(clients, plan, &payload, &tally, plan.warm_up, false).await?;
    if let Some(bare) = &mut bare {
        bare.run(plan.warm_up, false)?;
    }
    watch.begin();
    let mut seconds = 0.0;
    for done in 1..=ROUNDS {
        let time = plan.measured / ROUNDS;
        seconds += round(clients, plan, &payload, &tally, time, true).await?;
        if let Some(bare) = &mut bare {
            bare.run(time, true)?;
        }
        watch.progress(f64::from(done) / f64::from(ROUNDS));
    }
    watch.end();
    let tally = Rc::into_inner(tally).context("a send is still under way")?.into_inner();
    Ok((tally, seconds, bare.map(|bare| bare.outcome())))
}

/// Sends for so long, and waits for all answers: how long that took.
async fn round(
    clients: &[Client],
    plan: &Plan,
    payload: &Bytes,
    tally: &Rc<RefCell<Tally>>,
    time: Duration,
    counts: bool,
) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut senders = JoinSet::new();
    for client in clients.iter().cycle().take(plan.outstanding) {
        let (client, payload, tally) = (client.clone(), payload.clone(), Rc::clone(tally));
        senders.spawn_local(async move {
            let mut began = Instant::now();
            while began - start < time {
                let sent = client.send(QUEUE, payload.clone()).await?;
                if sent.again {
                    bail!("a message had been sent before");
                }
                let now = Instant::now();
                let tally = &mut *tally.borrow_mut();
                tally.answered += 1;
                if counts {
                    tally.measured += 1;
                    tally.latency.saturating_record((now - began).as_nanos() as u64);
                }
                began = now;
            }
            Ok(())
        });
    }
    while let Some(sender) = senders.join_next().await {
        sender??;
    }
    Ok(start.elapsed().as_secs_f64())
}
