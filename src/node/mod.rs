//! Where the core meets I/O: links over sockets and links inside the process, their reading, their
//! outboxes, and the way out.
//!
//! One task reads each socket. It routes a whole read under one lock of the core, appends the
//! frames to the outboxes of their targets, and flushes those itself; a writer task for each socket takes
//! over only while the socket is full. See `ARCHITECTURE.md`, "One frame's way".

mod access;
mod backlog;
mod datagram;
mod framed;
mod inbox;
mod listen;
mod local;
mod options;
mod orders;
mod outbox;
mod pool;
mod pressure;
mod route;
mod socket;
mod spare;
mod uplink;

pub use access::AccessList;
pub use framed::{FrameReader, FrameWriter, ReadError, framed};
pub use local::{LocalFrame, LocalItem, LocalLink, LocalReceiver};
pub use options::NodeOptions;
pub use orders::{ControlOptions, Instruction, Wish};
pub use uplink::UplinkOptions;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout_at};

use crate::broker::{self, Action, Broker, LinkId};
use crate::transport::{TlsClient, TlsError, TlsServer};
use crate::url::BusUrl;
use pool::DeskPool;
use pressure::Pressure;
use route::Target;
use spare::Spare;
use uplink::FirstLink;

/// Takes a lock; a panic of another holder leaves nothing half-done that is worth stopping for.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A broker with its sockets. A cheap handle: clones share one node.
///
/// Links live until their peer, an error or [`shutdown`](Self::shutdown) ends them, also when every
/// handle is dropped.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

/// What a node has counted, beside what its [core](broker::Counters) has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeCounters {
    /// What the core has counted.
    pub core: broker::Counters,
    /// Links that are up.
    pub links: usize,
    /// Times that a sender waited for room at its target.
    pub held: u64,
    /// Runs of broadcasts that were dropped because a subscriber had no room.
    pub shed: u64,
    /// Links that were closed because they did not read their answers.
    pub stalled: u64,
    /// Datagrams that were not made of whole frames, in part or as a whole dropped.
    pub datagrams_malformed: u64,
    /// Links that were closed because the beginning of a frame waited too long for its end.
    pub half_frames: u64,
    /// TLS connections that were closed because their first frame did not come in time.
    pub silent: u64,
}

impl NodeCounters {
    /// All of it, by name.
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        let Self { core, links, held, shed, stalled, datagrams_malformed, half_frames, silent } =
            *self;
        let mut all = core.named();
        all.extend([
            ("links", links as u64),
            ("held", held),
            ("shed", shed),
            ("stalled", stalled),
            ("datagrams_malformed", datagrams_malformed),
            ("half_frames", half_frames),
            ("silent", silent),
        ]);
        all
    }
}

type EventsHook = Box<dyn Fn(bool) + Send + Sync>;

struct Shared {
    options: NodeOptions,
    core: Mutex<Core>,
    access: Mutex<Arc<AccessList>>,
    pool: DeskPool,
    spare: Arc<Spare>,
    counters: Counters,
    pressure: Arc<Pressure>,
    /// Called when the first subscription comes and when the last one goes.
    hooks: Mutex<Vec<(LinkId, EventsHook)>>,
    /// Where it listens.
    listeners: Mutex<Vec<Listening>>,
    /// The uplinks that are kept up, by their address.
    uplinks: Mutex<HashMap<u32, Linking>>,
    control: Mutex<ControlOptions>,
    /// Where commands for the program around the node go, if it takes any.
    instructions: Mutex<Option<mpsc::Sender<Instruction>>>,
    /// Commands that may be under way.
    orders: Arc<Semaphore>,
    /// For tasks that outlive the call that starts them.
    this: Weak<Shared>,
    stop: watch::Sender<Stop>,
    /// Tasks that keep the node from being shut down.
    busy: Gauge,
    /// Receivers inside the process, and the frames that they have given out.
    locals: Gauge,
}

/// A URL that is listened at.
struct Listening {
    /// As it was asked for.
    asked: BusUrl,
    /// With the port that was bound.
    bound: BusUrl,
    /// Where its certificates are from.
    tls: Option<TlsServer>,
    /// Sending `true` ends it.
    end: watch::Sender<bool>,
}

/// An uplink that is kept up.
struct Linking {
    /// Where its certificates are from.
    tls: Option<TlsClient>,
    /// Sending `true` ends it.
    end: watch::Sender<bool>,
    first: watch::Sender<FirstLink>,
}

struct Core {
    broker: Broker,
    /// By the index of the link.
    targets: Vec<Option<Target>>,
}

#[derive(Default)]
struct Counters {
    held: AtomicU64,
    shed: AtomicU64,
    stalled: AtomicU64,
    datagrams_malformed: AtomicU64,
    half_frames: AtomicU64,
    silent: AtomicU64,
}

/// How far the shutdown has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    /// It has not begun.
    Run,
    /// Nothing new is accepted or read; what is under way goes on.
    Drain,
    /// Everything ends.
    Close,
}

impl Node {
    /// A node without links. Its tasks run on the current tokio runtime.
    pub fn new(options: NodeOptions) -> Self {
        let broker = Broker::new(options.limits, random());
        let shared = Arc::new_cyclic(|this| Shared {
            core: Mutex::new(Core { broker, targets: Vec::new() }),
            access: Mutex::default(),
            pool: DeskPool::new(options.spare_buffers_max),
            spare: Arc::new(Spare::new(16 * options.spare_buffers_max)),
            counters: Counters::default(),
            pressure: Arc::default(),
            hooks: Mutex::default(),
            listeners: Mutex::default(),
            uplinks: Mutex::default(),
            control: Mutex::default(),
            instructions: Mutex::default(),
            orders: Arc::new(Semaphore::new(options.orders_max)),
            this: Weak::clone(this),
            stop: watch::Sender::new(Stop::Run),
            busy: Gauge::default(),
            locals: Gauge::default(),
            options,
        });
        Self { shared }
    }

    /// Lets links do what `access` says, from the next one on; those that are up keep what they have.
    pub fn set_access(&self, access: AccessList) {
        *lock(&self.shared.access) = Arc::new(access);
    }

    /// What has been counted so far.
    pub fn counters(&self) -> NodeCounters {
        let core = lock(&self.shared.core);
        let counters = &self.shared.counters;
        NodeCounters {
            core: *core.broker.counters(),
            links: core.broker.links_len(),
            held: counters.held.load(Ordering::Relaxed),
            shed: counters.shed.load(Ordering::Relaxed),
            stalled: counters.stalled.load(Ordering::Relaxed),
            datagrams_malformed: counters.datagrams_malformed.load(Ordering::Relaxed),
            half_frames: counters.half_frames.load(Ordering::Relaxed),
            silent: counters.silent.load(Ordering::Relaxed),
        }
    }

    /// Gives whoever says `secret` over the bus the right to control; with `None` nobody gets it that way.
    /// Who has it already keeps it until its link ends.
    pub fn set_secret(&self, secret: Option<&[u8]>) {
        lock(&self.shared.core).broker.set_secret(secret);
    }

    /// Reads the certificates of all listeners and uplinks again, for connections to come, and those that
    /// [`set_control`](Self::set_control) gave: an outcome for each that has some. One that cannot be used
    /// stays as it was, and keeps no other from being read. Blocks while it reads the files.
    pub fn reload_tls(&self) -> Vec<Result<(), TlsError>> {
        let control = lock(&self.shared.control).clone();
        let servers: Vec<_> = {
            let listeners = lock(&self.shared.listeners);
            listeners.iter().filter_map(|one| one.tls.clone()).chain(control.listen.tls).collect()
        };
        let clients: Vec<_> = {
            let uplinks = lock(&self.shared.uplinks);
            uplinks.values().filter_map(|one| one.tls.clone()).chain(control.dial.tls).collect()
        };
        let servers = servers.iter().map(TlsServer::reload);
        servers.chain(clients.iter().map(TlsClient::reload)).collect()
    }

    /// Every subsystem's name and address, those without a provider left out.
    pub fn subsystems(&self) -> Vec<(String, u32)> {
        let core = lock(&self.shared.core);
        core.broker
            .subsystems()
            .filter(|(_, _, providers)| *providers > 0)
            .map(|(name, address, _)| (name.to_owned(), address))
            .collect()
    }

    /// Ends in good order: listeners close, links are no longer read, services finish what they have
    /// taken, and answers go out, for at most `grace`; then everything closes.
    ///
    /// Not cancel-safe: dropped half-way, links stay open and unread. Call it again.
    pub async fn shutdown(&self, grace: Duration) {
        let shared = &self.shared;
        let deadline = Instant::now() + grace;
        shared.stop.send_if_modified(|stop| {
            let earlier = *stop < Stop::Drain;
            *stop = (*stop).max(Stop::Drain);
            earlier
        });
        let targets: Vec<Target> = lock(&shared.core).targets.iter().flatten().cloned().collect();
        for target in &targets {
            if let Target::Local(inbox) = target {
                inbox.close();
            }
        }
        let _ = timeout_at(deadline, shared.locals.empty()).await;
        for target in &targets {
            if let Target::Socket(outbox) = target {
                let _ = timeout_at(deadline, outbox.drained()).await;
            }
        }
        shared.stop.send_replace(Stop::Close);
        for target in targets {
            match target {
                Target::Socket(outbox) => outbox.close(),
                Target::Local(inbox) => inbox.close(),
            }
        }
        let _ = timeout_at(deadline.max(Instant::now() + grace), shared.busy.empty()).await;
    }
}

impl Shared {
    /// Tells the hooks whether there are subscriptions. What counts is the state now, not the change that
    /// led here: two links may come to this point in the other order.
    fn events_changed(&self) {
        let hooks = lock(&self.hooks);
        let wanted = lock(&self.core).broker.subscriptions_len() > 0;
        for (_, hook) in hooks.iter() {
            hook(wanted);
        }
    }

    /// Waits until the shutdown has come as far as `stage`.
    async fn stopped(&self, stage: Stop) {
        let mut stop = self.stop.subscribe();
        // the sender lives as long as `self`
        let _ = stop.wait_for(|now| *now >= stage).await;
    }
}

impl Core {
    fn target_of(&self, action: &Action) -> Option<Target> {
        let link = match action {
            Action::Send { to, .. } | Action::Gone { to, .. } => to,
            Action::Greeted { link } => link,
            Action::EventsChanged
            | Action::Order { .. }
            | Action::Linked { .. }
            | Action::Refused { .. } => return None,
        };
        self.targets.get(link.index()).cloned().flatten()
    }

    fn set_target(&mut self, link: LinkId, target: Target) {
        if self.targets.len() <= link.index() {
            self.targets.resize(link.index() + 1, None);
        }
        self.targets[link.index()] = Some(target);
    }
}

/// A number that no other node is likely to have.
fn random() -> NonZeroU32 {
    let random = RandomState::new().hash_one(std::process::id()) as u32;
    NonZeroU32::new(random).unwrap_or(NonZeroU32::MIN)
}

/// Counts what is alive, and says when nothing is.
#[derive(Default)]
struct Gauge {
    alive: Arc<Alive>,
}

#[derive(Default)]
struct Alive {
    count: AtomicUsize,
    none: Notify,
}

impl Gauge {
    fn hold(&self) -> Held {
        self.alive.count.fetch_add(1, Ordering::AcqRel);
        Held(Arc::clone(&self.alive))
    }

    async fn empty(&self) {
        loop {
            let notified = self.alive.none.notified();
            if self.alive.count.load(Ordering::Acquire) == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// One of what a [`Gauge`] counts.
struct Held(Arc<Alive>);

impl Drop for Held {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}
