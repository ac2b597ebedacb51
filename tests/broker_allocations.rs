//! Routing allocates nothing in the long run: not in the core, and not between sockets either.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "in a helper of a test it is an assertion")]

mod support_allocations;
mod support_node;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use nlbus::broker::{Access, Actions, Broker, Limits, LinkId, LinkKind, RETURN_BASE, Rights};
use nlbus::node::{AccessList, Node, NodeOptions};
use nlbus::transport::ListenOptions;
use nlbus::wire::{Command, ControlAttribute, EnvelopeHead, FRAME_MAX, flag};
use support_allocations::{ALLOCATIONS, OWN, WATCHED};
use support_node::frames::{Said, ask, control, data, push};
use tokio::sync::oneshot;

/// How often each thing is done while it is watched.
const ROUNDS: u32 = 1_000;
/// How long a peer may be silent before a test gives up.
const HANG: Duration = Duration::from_secs(60);

/// How many allocations this thread makes in `work`.
fn allocations(work: impl FnOnce()) -> usize {
    let before = OWN.get();
    work();
    OWN.get() - before
}

/// A core with one provider behind a socket, and one asker.
struct Core {
    broker: Broker,
    actions: Actions,
    provider: LinkId,
    asker: LinkId,
    address: u32,
}

impl Core {
    fn new() -> Self {
        let mut broker = Broker::new(Limits::default(), std::num::NonZeroU32::MIN);
        let mut up = || broker.link_up(LinkKind::stream(Access::ALL)).unwrap();
        let (provider, asker) = (up(), up());
        let mut core = Self { broker, actions: Actions::default(), provider, asker, address: 0 };
        core.hand_over(provider, hello());
        core.hand_over(asker, hello());
        core.hand_over(provider, provide());
        core.address = core.broker.subsystems().next().unwrap().1;
        core
    }

    /// Hands over bytes, which the core writes into; the number of actions.
    fn hand_over(&mut self, from: LinkId, bytes: impl AsMut<[u8]>) -> usize {
        let mut bytes = bytes;
        self.actions.clear();
        self.broker.handle_bytes(from, bytes.as_mut(), &mut self.actions);
        self.actions.list.len()
    }
}

fn hello() -> Vec<u8> {
    control(0, 1, Command::Hello, |control| {
        control.u32(ControlAttribute::Version, 1)?.u32(ControlAttribute::FrameMax, FRAME_MAX as u32)
    })
}

fn provide() -> Vec<u8> {
    control(0, 2, Command::Provide, |control| control.string(ControlAttribute::Host, "echo"))
}

fn subscribe() -> Vec<u8> {
    control(0, 2, Command::Subscribe, |control| Ok(control))
}

/// `count` requests behind each other, with numbers from `first` on, and their answers.
fn asked_and_answered(address: u32, first: u32, count: u32) -> (Vec<u8>, Vec<u8>) {
    let requests = (first..first + count).flat_map(|n| ask(address, 0, n, &[7; 128])).collect();
    let answer = |sequence| EnvelopeHead {
        flags: flag::RESPONSE | flag::LAST,
        sequence,
        pid: 77,
        dst: RETURN_BASE,
        src: 0,
    };
    let answers = (first..first + count).flat_map(|n| data(answer(n), &[7; 128])).collect();
    (requests, answers)
}

/// Requests and answers in bursts, after as many bursts that fill the tables.
#[track_caller]
fn assert_bursts_allocate_nothing(burst: u32) {
    let mut core = Core::new();
    for watched in [false, true] {
        for round in 0..20 {
            let (mut requests, mut answers) =
                asked_and_answered(core.address, 1 + round * burst, burst);
            let mut went = (0, 0);
            let made = allocations(|| {
                went.0 = core.hand_over(core.asker, &mut requests[..]);
                went.1 = core.hand_over(core.provider, &mut answers[..]);
            });
            assert_eq!(went, (1, 1), "each burst goes on as one run");
            assert!(!watched || made == 0, "{made} allocations for a burst of {burst} requests");
        }
    }
    assert_eq!(core.broker.counters().replies, u64::from(40 * burst), "all were delivered");
}

#[test]
fn the_core_allocates_nothing_for_a_request_and_its_answer() {
    assert_bursts_allocate_nothing(1);
}

#[test]
fn the_core_allocates_nothing_for_bursts_of_requests_that_are_answered() {
    assert_bursts_allocate_nothing(200);
}

#[test]
fn the_core_allocates_nothing_for_pushes() {
    let mut core = Core::new();
    let frames: Vec<u8> = (1..=500).flat_map(|n| push(core.address, 0, n, &[7; 128])).collect();
    let mut buffer = frames.clone();
    core.hand_over(core.asker, &mut buffer[..]);
    let made = allocations(|| {
        for _ in 0..ROUNDS {
            buffer.copy_from_slice(&frames);
            core.hand_over(core.asker, &mut buffer[..]);
        }
    });
    assert_eq!(made, 0);
    assert_eq!(core.broker.counters().requests, u64::from(ROUNDS + 1) * 500);
}

#[test]
fn the_core_allocates_nothing_for_broadcasts() {
    let mut core = Core::new();
    for _ in 0..64 {
        let link = core.broker.link_up(LinkKind::stream(Access::reading(Rights::USE))).unwrap();
        core.hand_over(link, hello());
        core.hand_over(link, subscribe());
    }
    let frames: Vec<u8> = (0..10).flat_map(|_| push(0, 0, 0, &[7; 128])).collect();
    let mut buffer = frames.clone();
    core.hand_over(core.asker, &mut buffer[..]);
    let made = allocations(|| {
        for _ in 0..ROUNDS {
            buffer.copy_from_slice(&frames);
            core.hand_over(core.asker, &mut buffer[..]);
        }
    });
    assert_eq!(made, 0);
    assert_eq!(core.broker.counters().unwanted, 0);
}

/// A node on a thread of its own, whose allocations are counted.
struct Watched {
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watched {
    fn start() -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (told, port) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let node = Node::new(NodeOptions::default());
                let access = AccessList { anonymous: Access::ALL, ..AccessList::default() };
                node.set_access(access);
                let any = "tcp://127.0.0.1:0".parse().unwrap();
                let url = node.listen(&any, &ListenOptions::default()).await.unwrap();
                told.send(url.port().unwrap()).unwrap();
                WATCHED.set(true);
                let _ = stopped.await;
                WATCHED.set(false);
                node.shutdown(Duration::ZERO).await;
            });
        });
        let port = port.recv_timeout(HANG).unwrap();
        Self { port, stop: Some(stop), thread: Some(thread) }
    }

    fn link(&self) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        say(&mut stream, &hello());
        stream
    }

    /// A link that provides, one that asks, and the provider's address.
    fn provider_and_asker(&self) -> (TcpStream, TcpStream, u32) {
        let mut provider = self.link();
        let address = say(&mut provider, &provide()).addr.unwrap();
        (provider, self.link(), address)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends a control frame and takes its answer.
fn say(stream: &mut TcpStream, frame: &[u8]) -> Said {
    stream.write_all(frame).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = length.to_vec();
    answer.resize(u32::from_le_bytes(length) as usize, 0);
    stream.read_exact(&mut answer[4..]).unwrap();
    let said = Said::of(&answer);
    assert!(said.is_ack(), "{said:?}");
    said
}

/// One node at a time: their allocations are counted together.
fn alone() -> MutexGuard<'static, ()> {
    static NODE: Mutex<()> = Mutex::new(());
    NODE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many allocations the node makes in [`ROUNDS`] times `work`, after a tenth as many.
fn node_allocations(mut work: impl FnMut()) -> usize {
    (0..ROUNDS / 10).for_each(|_| work());
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    (0..ROUNDS).for_each(|_| work());
    ALLOCATIONS.load(Ordering::SeqCst) - before
}

#[test]
fn a_node_allocates_nothing_for_requests_and_answers_between_sockets() {
    let _alone = alone();
    let node = Watched::start();
    let (mut provider, mut asker, address) = node.provider_and_asker();
    let (request, answer) = asked_and_answered(address, 1, 1);
    let mut came = vec![0; request.len()];
    let made = node_allocations(|| {
        asker.write_all(&request).unwrap();
        provider.read_exact(&mut came).unwrap();
        provider.write_all(&answer).unwrap();
        asker.read_exact(&mut came).unwrap();
    });
    assert_eq!(made, 0, "in {ROUNDS} rounds of one request");
}

#[test]
fn a_node_allocates_nothing_for_batches_between_sockets() {
    let _alone = alone();
    let node = Watched::start();
    let (mut provider, mut asker, address) = node.provider_and_asker();
    let pushes: Vec<u8> = (1..=300).flat_map(|n| push(address, 0, n, &[7; 128])).collect();
    let mut came = vec![0; pushes.len()];
    let made = node_allocations(|| {
        asker.write_all(&pushes).unwrap();
        provider.read_exact(&mut came).unwrap();
    });
    assert_eq!(made, 0, "in {ROUNDS} batches of 300 pushes");
}
