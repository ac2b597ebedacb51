//! One operation, many times, to be counted under callgrind: `instructions OPERATION COUNT`.
//!
//! `tools/instructions.sh` runs each operation with two counts; the difference of the two totals, divided
//! by the difference of the counts, is the price of one operation without the program's start and end.
//! The program prints how many allocations the operations made, after a first one that fills buffers.

#![allow(unsafe_code)] // a global allocator cannot be written without
#![allow(clippy::print_stdout)] // the script reads it

mod readers;
mod world;

use nlbus::wire::{Control, Envelope, FRAME_MAX, Frames, Key};
use readers::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use world::{BATCH, World};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every method hands its arguments to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`; `block` came from `System`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work` once and then `count` times, and prints the allocations of the latter. The black boxes
/// keep the optimiser from knowing the input, and from leaving out or merging what gives the same output.
fn repeat<T>(count: usize, mut work: impl FnMut() -> T) {
    black_box(work());
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..count {
        black_box(work());
    }
    println!("{}", ALLOCATIONS.load(Ordering::Relaxed) - before);
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let operation = arguments.next().unwrap_or_default();
    let Some(count) = arguments.next().and_then(|count| count.parse().ok()) else {
        // `cargo bench` comes here: there is nothing to time.
        println!("usage: instructions OPERATION COUNT (see tools/instructions.sh)");
        return;
    };
    let frame = |count| frame_of(black_box(count));
    let mut out = Vec::with_capacity(1024);
    match operation.as_str() {
        "nothing" => repeat(count, || black_box(DUMP).len()),
        "parse-1" => attributes(count, attributes_ours, &frame(1)),
        "parse-6" => attributes(count, attributes_ours, &frame(6)),
        "parse-30" => attributes(count, attributes_ours, &frame(30)),
        "by-hand-1" => attributes(count, attributes_by_hand, &frame(1)),
        "by-hand-6" => attributes(count, attributes_by_hand, &frame(6)),
        "by-hand-30" => attributes(count, attributes_by_hand, &frame(30)),
        "dump" => attributes(count, dump_ours, DUMP),
        "dump-by-hand" => attributes(count, dump_by_hand, DUMP),
        "dump-lengths" => attributes(count, dump_lengths, DUMP),
        "dump-packet-core-messages" => attributes(count, dump_packet_core_messages, DUMP),
        "dump-packet-core-views" => attributes(count, dump_packet_core, DUMP),
        "route" => {
            let mut buffer = frame(1);
            repeat(count, || route(black_box(&mut buffer), black_box(0x8000_0001), black_box(3)));
        }
        "emit-128" => {
            let payload = [0xa5; 128];
            repeat(count, || emit(black_box(&HEAD), black_box(&payload[..]), black_box(&mut out)));
        }
        "emit-control" => {
            repeat(count, || {
                emit_control(
                    black_box(&HEAD),
                    black_box("tcp://127.0.0.1:9824"),
                    black_box(&mut out),
                )
            });
        }
        "parse-control" => {
            emit_control(&HEAD, "tcp://127.0.0.1:9824", &mut out);
            let message = Envelope::parse(&out).and_then(|envelope| envelope.payload());
            let message = message.expect("what was written parses");
            repeat(count, || Control::parse(black_box(message)).expect("it is sound").port);
        }
        "deframe-64" => {
            let mut batch = frame(1).repeat(BATCH);
            repeat(count, || deframe(black_box(&mut batch)));
        }
        "filter" => {
            let key = Key { offset: 4, key: 0xa5a5, mask: 0xffff };
            repeat(count, || black_box(key).matches(black_box(&[0xa5; 128])));
        }
        "core-push" => pass(count, World::new(10), World::push),
        "core-push-64" => pass(count, World::new(10), World::push_batch),
        "core-ask-answer" => pass(count, World::new(10), World::ask),
        "core-answer-10" => pass(count, World::new(10), World::answer),
        "core-answer-10000" => pass(count, World::new(10_000), World::answer),
        "core-answer-1000000" => pass(count, World::new(1_000_000), World::answer),
        "core-fanout-1" => pass(count, World::new(10).with_subscribers(1), World::broadcast),
        "core-fanout-64" => pass(count, World::new(10).with_subscribers(64), World::broadcast),
        "core-fanout-1000" => pass(count, World::new(10).with_subscribers(1_000), World::broadcast),
        "core-one-of-10" => pass(count, World::new(10).with_conditions(9), World::broadcast),
        "core-one-of-10000" => {
            pass(count, World::new(10).with_conditions(9_999), World::broadcast);
        }
        _ => {
            eprintln!("unknown operation {operation}");
            std::process::exit(2);
        }
    }
}

/// Repeats what passes frames through the core, having made sure that they go somewhere.
fn pass(count: usize, mut world: World, work: fn(&mut World) -> usize) {
    assert!(work(&mut world) > 0, "the frames go somewhere");
    repeat(count, || work(black_box(&mut world)));
}

/// Finds the frames of a batch.
#[inline(never)]
fn deframe(batch: &mut [u8]) -> usize {
    let mut frames = Frames::new(batch, FRAME_MAX);
    while let Some(found) = frames.next_frame() {
        black_box(found);
    }
    frames.consumed()
}

/// Repeats a reader, having made sure that it reads something.
fn attributes(count: usize, reader: fn(&[u8]) -> Option<u64>, bytes: &[u8]) {
    assert!(reader(bytes).is_some(), "the input is sound");
    repeat(count, || reader(black_box(bytes)));
}
