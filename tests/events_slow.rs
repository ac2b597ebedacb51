//! A million broadcasts to nine subscribers that read and one that does not.
//!
//! Alone in its file: it looks at the memory of its process.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

mod support_node;

use std::io::{Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::{Condvar, Mutex};
use std::thread;

use nlbus::broker::EVERYBODY;
use nlbus::node::{Node, NodeOptions};
use nlbus::transport::ListenOptions;
use nlbus::wire::{Command, ControlAttribute, EnvelopeHead, FRAME_MAX, MessageBuilder, nlm};
use support_node::frames::{Said, control, data};

const MESSAGES: u64 = 1_000_000;
const HEALTHY: usize = 9;

const MESSAGE_TYPE: u16 = 0x20;
const FRAME_BYTES: usize = 52;
const OVERRUN_FRAME_BYTES: usize = 48;

/// What may wait for a link at the broker.
const OUTBOX_BYTES_MAX: usize = 256 * 1024;

/// How far the publisher runs ahead of the slowest of the healthy: what is under way to one of them always
/// fits its outbox, whatever the machine is busy with, so that nothing is ever dropped for it. Twice: whoever
/// writes to the socket may be held up before it notes what the socket has taken, and that counts until then.
const WINDOW: u64 = 2_048;
const RUN: u64 = 1_024;
const _: () = assert!(2 * WINDOW as usize * FRAME_BYTES < OUTBOX_BYTES_MAX);

/// What ten outboxes may grow to, each a vector for what waits and one for what is being written, up to twice
/// as long as what is in them; and 8 MiB for read buffers and the like. The messages that the stalled one does
/// not read are six times as much.
const MEMORY_BYTES_MAX: usize = 10 * 2 * (OUTBOX_BYTES_MAX + 128 * 1024) + (8 << 20);

/// How many messages each of the healthy has read.
struct Progress {
    read: Mutex<[u64; HEALTHY]>,
    more: Condvar,
}

impl Progress {
    fn note(&self, reader: usize, count: u64) {
        self.read.lock().unwrap()[reader] = count;
        self.more.notify_all();
    }

    /// Waits until every reader has read `count`.
    fn wait_for(&self, count: u64) {
        let behind = |read: &mut [u64; HEALTHY]| read.iter().any(|read| *read < count);
        drop(self.more.wait_while(self.read.lock().unwrap(), behind).unwrap());
    }
}

/// A reader that has ended, well or not: nobody is to wait for it.
struct Done<'p> {
    progress: &'p Progress,
    reader: usize,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.progress.note(self.reader, u64::MAX);
    }
}

fn connect(name: &str) -> UnixStream {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
}

fn read_frame(stream: &mut UnixStream) -> Vec<u8> {
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).unwrap();
    frame.resize(u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize, 0);
    stream.read_exact(&mut frame[4..]).unwrap();
    frame
}

/// Greets and subscribes to everything.
fn subscriber(name: &str) -> UnixStream {
    let mut stream = connect(name);
    let hello = control(0, 1, Command::Hello, |control| {
        let control = control.u32(ControlAttribute::Version, 1)?;
        control.u32(ControlAttribute::FrameMax, FRAME_MAX as u32)
    });
    for request in [hello, control(0, 2, Command::Subscribe, |c| Ok(c))] {
        stream.write_all(&request).unwrap();
        assert!(Said::of(&read_frame(&mut stream)).is_ack());
    }
    stream
}

/// What a subscriber has heard so far.
#[derive(Default)]
struct Heard {
    /// Messages that came or were said to be lost.
    next: u64,
    lost: u64,
    buffer: Vec<u8>,
    filled: usize,
}

impl Heard {
    /// Reads what there is: numbered messages in their order, and marks of exactly the gaps between them.
    fn read(&mut self, stream: &mut UnixStream) {
        self.buffer.resize(256 * 1024, 0);
        let read = stream.read(&mut self.buffer[self.filled..]).unwrap();
        assert_ne!(read, 0, "the link has ended");
        self.filled += read;
        let mut rest = &self.buffer[..self.filled];
        while let Some(length) = rest.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)) {
            let Some((frame, after)) = rest.split_at_checked(length as usize) else { break };
            match frame.len() {
                FRAME_BYTES => {
                    let number = u64::from_le_bytes(*frame.last_chunk().unwrap());
                    assert_eq!(number, self.next);
                    self.next += 1;
                }
                OVERRUN_FRAME_BYTES => {
                    assert_eq!(frame[32..34], nlm::OVERRUN.to_le_bytes());
                    let lost = u64::from(u32::from_le_bytes(*frame.last_chunk().unwrap()));
                    assert_ne!(lost, 0);
                    self.next += lost;
                    self.lost += lost;
                }
                other => panic!("a frame of {other} bytes"),
            }
            rest = after;
        }
        let left = rest.len();
        self.buffer.copy_within(self.filled - left..self.filled, 0);
        self.filled = left;
    }
}

/// Frames with the numbers from `first` on.
fn run_of_frames(first: u64, count: u64) -> Vec<u8> {
    let mut run = Vec::new();
    for number in first..first + count {
        let message = MessageBuilder::new(MESSAGE_TYPE, 0).body(&number.to_le_bytes()).finish();
        run.extend(data(EnvelopeHead { dst: EVERYBODY, ..EnvelopeHead::default() }, &message));
    }
    assert_eq!(run.len(), count as usize * FRAME_BYTES);
    run
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1_024
}

#[test]
fn a_stalled_subscriber_loses_exactly_what_it_is_told_and_nine_others_lose_nothing() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut options = NodeOptions::default();
    options.outbox_bytes_max = OUTBOX_BYTES_MAX;
    let name = format!("nlbus-events-slow-{}", std::process::id());
    let node = runtime.block_on(async {
        let node = Node::new(options);
        let url = format!("unix://@{name}").parse().unwrap();
        node.listen(&url, &ListenOptions::default()).await.unwrap();
        node
    });
    let mut stalled = subscriber(&name);
    let mut streams: Vec<_> = (0..HEALTHY).map(|_| subscriber(&name)).collect();
    let mut publisher = connect(&name);
    let progress = Progress { read: Mutex::default(), more: Condvar::new() };

    let grown = thread::scope(|scope| {
        for (reader, stream) in streams.iter_mut().enumerate() {
            let progress = &progress;
            scope.spawn(move || {
                let mut heard = Heard::default();
                let _done = Done { progress, reader };
                while heard.next < MESSAGES {
                    heard.read(stream);
                    assert_eq!(heard.lost, 0, "reader {reader}");
                    progress.note(reader, heard.next);
                }
            });
        }
        let before = resident();
        let mut most = 0;
        let mut published = 0;
        while published < MESSAGES {
            let count = RUN.min(MESSAGES - published);
            let run = run_of_frames(published, count);
            progress.wait_for((published + count).saturating_sub(WINDOW));
            publisher.write_all(&run).unwrap();
            published += count;
            most = resident().max(most);
        }
        most.saturating_sub(before)
    });
    println!("{grown} bytes more at most");
    assert!(grown < MEMORY_BYTES_MAX, "{grown} bytes more; {MEMORY_BYTES_MAX} were promised");

    let mut heard = Heard::default();
    while heard.next < MESSAGES {
        heard.read(&mut stalled);
    }
    assert_eq!(heard.next, MESSAGES);
    assert!(heard.lost > MESSAGES / 2, "it did not read, and {} were lost", heard.lost);
    assert!(node.counters().shed > 0);
    assert_eq!(node.counters().core.broadcasts, MESSAGES);
    runtime.shutdown_background();
}
