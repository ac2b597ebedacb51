//! A million pushes to each of nine pullers that read, and to a tenth that does not.
//!
//! Alone in its file: it looks at the memory of its process.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, fail by panicking.

mod support_node;

use std::io::{Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nlbus::node::{Node, NodeOptions};
use nlbus::transport::ListenOptions;
use nlbus::wire::{Command, ControlAttribute, EnvelopeHead, FRAME_MAX, MessageBuilder, mode, nlm};
use socket2::SockRef;
use support_node::frames::{Said, control, data};
use support_node::peer::until;

const HEALTHY: usize = 9;

/// How many messages are pushed to each.
const MESSAGES: u64 = 1_000_000;

const FRAME_BYTES: usize = 52;

/// Frames in one write.
const RUN: u64 = 1_024;

/// What may wait for a link at the broker, and what is read at once.
const OUTBOX_BYTES_MAX: usize = 256 * 1024;
const READ_BYTES: usize = 128 * 1024;

/// What ten outboxes may grow to, each a vector for what waits and one for what is being written, up to twice
/// as long as what is in them; and 8 MiB for read buffers and the like. What is pushed to the stalled one is
/// three times as much.
const MEMORY_BYTES_MAX: usize = 10 * 2 * (OUTBOX_BYTES_MAX + READ_BYTES) + (8 << 20);
const _: () = assert!(MESSAGES as usize * FRAME_BYTES > 3 * MEMORY_BYTES_MAX);

/// Nothing here takes this long unless it hangs.
const HANGS: Duration = Duration::from_secs(120);

fn connect(name: &str) -> UnixStream {
    let name = SocketAddr::from_abstract_name(name).unwrap();
    let stream = UnixStream::connect_addr(&name).unwrap();
    stream.set_read_timeout(Some(HANGS)).unwrap();
    stream.set_write_timeout(Some(HANGS)).unwrap();
    stream
}

fn said(stream: &mut UnixStream, request: &[u8]) -> Said {
    stream.write_all(request).unwrap();
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).unwrap();
    frame.resize(u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize, 0);
    stream.read_exact(&mut frame[4..]).unwrap();
    let said = Said::of(&frame);
    assert!(said.is_ack(), "{said:?}");
    said
}

/// Greets and pulls; and the address of what it pulls.
fn puller(bus: &str, name: &str) -> (UnixStream, u32) {
    let mut stream = connect(bus);
    let hello = control(0, 1, Command::Hello, |control| {
        let control = control.u32(ControlAttribute::Version, 1)?;
        control.u32(ControlAttribute::FrameMax, FRAME_MAX as u32)
    });
    said(&mut stream, &hello);
    let provide = control(0, 2, Command::Provide, |control| {
        control.string(ControlAttribute::Host, name)?.u32(ControlAttribute::Mode, mode::PULL)
    });
    let address = said(&mut stream, &provide).addr.unwrap();
    (stream, address)
}

/// Pushes numbers from 0 on, and adds up the bytes that the socket has taken.
fn push(mut stream: UnixStream, to: u32, count: u64, taken: &AtomicU64) {
    let message = MessageBuilder::new(nlm::DATA, 0).body(&[0; 8]).finish();
    let frame = data(EnvelopeHead { dst: to, ..EnvelopeHead::default() }, &message);
    assert_eq!(frame.len(), FRAME_BYTES);
    let mut run = frame.repeat(RUN as usize);
    let mut next = 0;
    while next < count {
        let frames = RUN.min(count - next);
        for (number, frame) in (next..next + frames).zip(run.chunks_exact_mut(FRAME_BYTES)) {
            frame[FRAME_BYTES - 8..].copy_from_slice(&number.to_le_bytes());
        }
        next += frames;
        let mut rest = &run[..frames as usize * FRAME_BYTES];
        while !rest.is_empty() {
            let written = stream.write(rest).unwrap();
            taken.fetch_add(written as u64, Ordering::Relaxed);
            rest = &rest[written..];
        }
    }
    // the broker closes its end when it has read all of it
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

/// Reads numbers from 0 on, none missing and none twice.
fn pull(stream: &mut UnixStream, count: u64) {
    let mut buffer = vec![0; 256 * 1024];
    let (mut filled, mut next) = (0, 0);
    while next < count {
        let read = stream.read(&mut buffer[filled..]).unwrap();
        assert_ne!(read, 0, "the link has ended at {next}");
        filled += read;
        for frame in buffer[..filled].chunks_exact(FRAME_BYTES) {
            assert_eq!(frame[..4], (FRAME_BYTES as u32).to_le_bytes());
            assert_eq!(u64::from_le_bytes(*frame.last_chunk().unwrap()), next);
            next += 1;
        }
        let left = filled % FRAME_BYTES;
        buffer.copy_within(filled - left..filled, 0);
        filled = left;
    }
    assert_eq!((filled, next), (0, count));
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1_024
}

#[test]
fn a_stalled_puller_holds_back_its_own_pusher_and_nine_others_get_a_million_each() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut options = NodeOptions::default();
    options.outbox_bytes_max = OUTBOX_BYTES_MAX;
    let bus = format!("nlbus-push-slow-{}", std::process::id());
    let node = runtime.block_on(async {
        let node = Node::new(options);
        let url = format!("unix://@{bus}").parse().unwrap();
        node.listen(&url, &ListenOptions::default()).await.unwrap();
        node
    });
    let (mut stalled, to_stalled) = puller(&bus, "stalled");
    let mut healthy: Vec<_> = (0..HEALTHY).map(|n| puller(&bus, &format!("healthy-{n}"))).collect();
    let held_back = connect(&bus);
    // both ends of both of its connections, which are made alike
    let sockets = SockRef::from(&held_back).send_buffer_size().unwrap() * 2;
    let on_its_way_max = OUTBOX_BYTES_MAX + 2 * READ_BYTES + sockets;
    let taken = AtomicU64::new(0);
    let so_far = || taken.load(Ordering::Relaxed) as usize;

    thread::scope(|scope| {
        let before = resident();
        let pushing = scope.spawn(|| push(held_back, to_stalled, MESSAGES, &taken));
        runtime.block_on(until(|| node.counters().held > 0 || so_far() > on_its_way_max));
        let mut at_work = Vec::new();
        for (stream, address) in &mut healthy {
            let (pusher, address) = (connect(&bus), *address);
            at_work.push(scope.spawn(move || push(pusher, address, MESSAGES, &AtomicU64::new(0))));
            at_work.push(scope.spawn(move || pull(stream, MESSAGES)));
        }
        let mut most = 0;
        for done in at_work {
            done.join().unwrap();
            most = resident().max(most);
            assert!(so_far() <= on_its_way_max, "{} of at most {on_its_way_max}", so_far());
        }
        let grown = most.saturating_sub(before);
        println!("{} bytes on their way to who does not read, {grown} more in memory", so_far());
        assert!(grown < MEMORY_BYTES_MAX, "{grown} bytes more; {MEMORY_BYTES_MAX} were promised");
        assert!(!pushing.is_finished(), "nobody has read what it pushed");

        // and when it reads, it has lost nothing
        pull(&mut stalled, MESSAGES);
        pushing.join().unwrap();
    });
    let counters = node.counters();
    assert_eq!(counters.core.requests, (1 + HEALTHY as u64) * MESSAGES);
    assert_eq!((counters.core.dropped, counters.shed, counters.stalled), (0, 0, 0));
    runtime.shutdown_background();
}
