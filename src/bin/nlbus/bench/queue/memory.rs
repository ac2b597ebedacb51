//! Sends, deliveries and acknowledgements in memory, all at once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use nlbus::service::queue::{
    Client, Consumer, Message, OutMessage, QueueError, QueueOptions, SubscribeOptions,
};
use nlbus::url::BusUrl;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::super::engine::tally::{Flow, Stamp};
use super::super::engine::{Counts, Outcome, Plan, SILENCE_MAX, Watch, histogram};
use super::QUEUE;

/// Messages of one call to send, at most.
const SENDS_MAX: usize = 256;
/// Messages that are acknowledged together, at most.
const ACKS_MAX: usize = 1_024;
/// Of the messages one in this many is timed.
const TIMED_EVERY: u64 = 16;
/// How often progress is told.
const TICK: Duration = Duration::from_millis(50);

/// What has been sent, and what has come.
struct Tally {
    run: u32,
    size: usize,
    flows: Vec<Flow>,
    /// When those messages were sent that are timed, for each flow; in its order.
    timed: Vec<VecDeque<(u64, Instant)>>,
    counts: Counts,
    counting: bool,
    measured: u64,
    latency: Histogram<u64>,
}

impl Tally {
    fn arrived(&mut self, message: &Message) -> anyhow::Result<()> {
        let Some(stamp) = Stamp::read(message.payload(), self.run, self.size) else {
            self.counts.foreign += 1;
            return Ok(());
        };
        let flow = stamp.flow as usize;
        let (Some(seen), Some(timed)) = (self.flows.get_mut(flow), self.timed.get_mut(flow)) else {
            bail!("a message of a sender that is none");
        };
        seen.note(stamp.sequence, false, &mut self.counts)?;
        self.measured += u64::from(self.counting);
        if stamp.sequence.is_multiple_of(TIMED_EVERY)
            && let Some(at) = timed.iter().position(|(sequence, _)| *sequence == stamp.sequence)
            && let Some((_, sent)) = timed.remove(at)
            && self.counting
        {
            self.latency.saturating_record(sent.elapsed().as_nanos() as u64);
        }
        Ok(())
    }
}

/// Keeps up to `plan.outstanding` messages between their sending and their acknowledgement, from
/// `plan.clients` senders to `plan.pullers` receivers.
pub(super) async fn run(
    url: &BusUrl,
    plan: &Plan,
    watch: &mut dyn Watch,
) -> anyhow::Result<Outcome> {
    let owner = Client::connect(url).await?;
    let options = QueueOptions::default().messages_max(u64::MAX >> 1).bytes_max(u64::MAX >> 1);
    if !owner.create(QUEUE, Some(options)).await? {
        bail!("there is a queue {QUEUE:?} already");
    }
    let outcome = measure(url, plan, watch).await;
    owner.destroy(QUEUE, false).await?;
    outcome
}

async fn measure(url: &BusUrl, plan: &Plan, watch: &mut dyn Watch) -> anyhow::Result<Outcome> {
    let tally = Rc::new(RefCell::new(Tally {
        run: std::process::id(),
        size: plan.size,
        flows: (0..plan.clients).map(|_| Flow::default()).collect(),
        timed: vec![VecDeque::new(); plan.clients],
        counts: Counts::default(),
        counting: false,
        measured: 0,
        latency: histogram()?,
    }));
    let window = Arc::new(Semaphore::new(plan.outstanding));
    let mut tasks = JoinSet::new();
    for _ in 0..plan.pullers {
        let client = Client::connect(url).await?;
        let credit = u32::try_from(plan.outstanding).unwrap_or(u32::MAX);
        let options = SubscribeOptions::default().credit(credit).credit_bytes(16 << 20);
        let messages = client.subscribe(QUEUE, options).await?;
        tasks.spawn_local(receive(client, messages, Rc::clone(&tally), Arc::clone(&window)));
    }
    for flow in 0..plan.clients {
        let client = Client::connect(url).await?;
        let send = send(client, flow, plan.outstanding, Rc::clone(&tally), Arc::clone(&window));
        tasks.spawn_local(send);
    }
    pass(&mut tasks, plan.warm_up, |_| {}).await?;
    tally.borrow_mut().counting = true;
    watch.begin();
    let began = Instant::now();
    pass(&mut tasks, plan.measured, |part| watch.progress(part)).await?;
    tally.borrow_mut().counting = false;
    let seconds = began.elapsed().as_secs_f64();
    watch.end();
    // no further sends; all have come when all are acknowledged
    let all = u32::try_from(plan.outstanding)?;
    let settled = timeout(SILENCE_MAX, window.acquire_many(all));
    tokio::select! {
        settled = settled => if let Ok(settled) = settled { settled?.forget() },
        ended = tasks.join_next() => return Err(end_of(ended)),
    }
    tasks.shutdown().await;
    let tally = Rc::into_inner(tally).context("somebody still counts")?.into_inner();
    let Tally { measured: messages, latency, counts, .. } = tally;
    Ok(Outcome { messages, seconds, latency, counts })
}

type Task = anyhow::Result<()>;

/// Lets so much time pass, while no task ends.
async fn pass(
    tasks: &mut JoinSet<Task>,
    time: Duration,
    mut tell: impl FnMut(f64),
) -> anyhow::Result<()> {
    let start = Instant::now();
    while let Some(left) = time.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        if let Ok(ended) = timeout(TICK.min(left), tasks.join_next()).await {
            return Err(end_of(ended));
        }
        tell(start.elapsed().as_secs_f64() / time.as_secs_f64());
    }
    Ok(())
}

fn end_of(ended: Option<Result<Task, tokio::task::JoinError>>) -> anyhow::Error {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(error)) => error.into(),
        _ => anyhow!("a task of the load ended early"),
    }
}

/// Sends until it is stopped: whenever there is room, as many as there is room for.
async fn send(
    client: Client,
    flow: usize,
    outstanding: usize,
    tally: Rc<RefCell<Tally>>,
    window: Arc<Semaphore>,
) -> Task {
    let most = SENDS_MAX.min(outstanding.div_ceil(4));
    let mut payload = vec![7; tally.borrow().size];
    let run = tally.borrow().run;
    let mut sequence = 0;
    let mut sends: JoinSet<Result<_, QueueError>> = JoinSet::new();
    loop {
        tokio::select! {
            Some(sent) = sends.join_next() => {
                sent??;
            }
            room = window.acquire_many(most as u32) => {
                room?.forget();
                let mut batch = Vec::with_capacity(most);
                let now = Instant::now();
                let mut tally = tally.borrow_mut();
                tally.counts.sent += most as u64;
                for _ in 0..most {
                    if sequence % TIMED_EVERY == 0 {
                        tally.timed[flow].push_back((sequence, now));
                    }
                    Stamp { run, flow: flow as u32, sequence }.write(&mut payload);
                    batch.push(OutMessage::new(Bytes::copy_from_slice(&payload)));
                    sequence += 1;
                }
                let client = client.clone();
                sends.spawn_local(async move { client.send_all(QUEUE, batch).await });
            }
        }
    }
}

/// Receives and acknowledges until it is stopped.
async fn receive(
    client: Client,
    mut messages: Consumer,
    tally: Rc<RefCell<Tally>>,
    window: Arc<Semaphore>,
) -> Task {
    let mut ids = Vec::with_capacity(ACKS_MAX);
    let mut acks: JoinSet<Result<(), QueueError>> = JoinSet::new();
    loop {
        let message = match ready(&mut messages).await {
            Some(message) => message,
            None => {
                acknowledge(&client, &mut ids, &window, &mut acks);
                tokio::select! {
                    message = messages.next() => message,
                    Some(acked) = acks.join_next() => {
                        acked??;
                        continue;
                    }
                }
            }
        };
        let message = message.context("the subscription ended")??;
        tally.borrow_mut().arrived(&message)?;
        ids.push(message.id);
        if ids.len() == ACKS_MAX {
            acknowledge(&client, &mut ids, &window, &mut acks);
        }
    }
}

/// Is done with messages; then others may be sent.
fn acknowledge(
    client: &Client,
    ids: &mut Vec<u64>,
    window: &Arc<Semaphore>,
    acks: &mut JoinSet<Result<(), QueueError>>,
) {
    if ids.is_empty() {
        return;
    }
    let (client, window) = (client.clone(), Arc::clone(window));
    let ids = std::mem::replace(ids, Vec::with_capacity(ACKS_MAX));
    acks.spawn_local(async move {
        client.ack_ids(QUEUE, &ids, false).await?;
        window.add_permits(ids.len());
        Ok(())
    });
}

/// What has come already.
async fn ready(messages: &mut Consumer) -> Option<Option<Result<Message, QueueError>>> {
    std::future::poll_fn(|context| match pin!(messages.next()).poll(context) {
        Poll::Ready(message) => Poll::Ready(Some(message)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
