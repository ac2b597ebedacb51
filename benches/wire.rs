//! Reading and writing envelopes and dumps, in time. `benches/README.md` holds figures.

mod readers;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nlbus::wire::Envelope;
use readers::*;
use std::hint::black_box;

/// The payloads' lengths in bytes.
const SIZES: [usize; 4] = [16, 128, 1024, 60 * 1024];

fn envelopes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("envelope");
    for size in SIZES {
        let frame = frame_with(size);
        let payload = vec![0xa5; size];
        let mut out = Vec::with_capacity(1 << 17);
        group.throughput(Throughput::Bytes(frame.len() as u64));
        group.bench_function(BenchmarkId::new("parse", size), |bencher| {
            bencher.iter(|| Envelope::parse(black_box(&frame)).and_then(|e| e.payload()).is_ok());
        });
        group.bench_function(BenchmarkId::new("emit", size), |bencher| {
            bencher.iter(|| emit(black_box(&HEAD), black_box(&payload), black_box(&mut out)));
        });
        let mut buffer = frame.clone();
        group.bench_function(BenchmarkId::new("route", size), |bencher| {
            bencher.iter(|| route(black_box(&mut buffer), black_box(0x8000_0001), black_box(3)));
        });
    }
    group.finish();
}

fn attributes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attributes");
    for count in [1, 6, 30] {
        let frame = frame_of(count);
        assert_eq!(attributes_ours(&frame), attributes_by_hand(&frame), "the readers differ");
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("nlbus", count), |bencher| {
            bencher.iter(|| attributes_ours(black_box(&frame)));
        });
        group.bench_function(BenchmarkId::new("by hand", count), |bencher| {
            bencher.iter(|| attributes_by_hand(black_box(&frame)));
        });
    }
    group.finish();
}

fn dump(criterion: &mut Criterion) {
    assert_eq!(dump_ours(DUMP), dump_by_hand(DUMP), "the readers differ");
    assert_eq!(dump_ours(DUMP), dump_packet_core(DUMP), "the readers differ");
    assert_eq!(dump_lengths(DUMP), Some(401), "the dump is another one");
    assert!(dump_packet_core_messages(DUMP).is_some(), "the dump is not read");
    let mut group = criterion.benchmark_group("newlink dump");
    group.throughput(Throughput::Bytes(DUMP.len() as u64));
    group.bench_function("nlbus", |b| b.iter(|| dump_ours(black_box(DUMP))));
    group.bench_function("by hand", |b| b.iter(|| dump_by_hand(black_box(DUMP))));
    group.bench_function("netlink-packet-core, views", |bencher| {
        bencher.iter(|| dump_packet_core(black_box(DUMP)));
    });
    group.bench_function("netlink-packet-core, messages", |bencher| {
        bencher.iter(|| dump_packet_core_messages(black_box(DUMP)));
    });
    group.finish();
}

fn control(criterion: &mut Criterion) {
    let mut out = Vec::with_capacity(1024);
    criterion.bench_function("control/emit 6 attributes", |bencher| {
        bencher.iter(|| {
            emit_control(black_box(&HEAD), black_box("tcp://127.0.0.1:9824"), black_box(&mut out))
        });
    });
}

criterion_group!(benches, envelopes, attributes, dump, control);
criterion_main!(benches);
