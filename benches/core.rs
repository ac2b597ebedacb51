//! One frame's way through the core, in time, and how that grows. `benches/README.md` holds figures.

mod world;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nlbus::wire::{EnvelopeHead, FRAME_MAX, Frames, Key};
use std::hint::black_box;
use world::{BATCH, World};

fn route(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("core");
    let mut world = World::new(10);
    group.bench_function("push", |bencher| bencher.iter(|| world.push()));
    group.bench_function("ask and answer", |bencher| bencher.iter(|| world.ask()));
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("push, a batch of 64", |bencher| bencher.iter(|| world.push_batch()));
    group.finish();
}

fn fan_out(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fan out");
    for count in [1, 64, 1_000] {
        let mut world = World::new(10).with_subscribers(count);
        assert_eq!(world.broadcast(), count, "one run for each subscriber");
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| world.broadcast());
        });
    }
    group.finish();
}

fn growth(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("growth");
    for returns in [10, 10_000, 1_000_000] {
        let mut world = World::new(returns);
        group.bench_function(BenchmarkId::new("answer, return addresses", returns), |bencher| {
            bencher.iter(|| world.answer());
        });
        group.bench_function(BenchmarkId::new("push, return addresses", returns), |bencher| {
            bencher.iter(|| world.push());
        });
    }
    for others in [9, 9_999] {
        let mut world = World::new(10).with_conditions(others);
        assert_eq!(world.broadcast(), 1, "one condition is met");
        let name = BenchmarkId::new("broadcast, one of subscriptions", others + 1);
        group.bench_function(name, |bencher| bencher.iter(|| world.broadcast()));
    }
    group.finish();
}

fn parts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parts");
    let key = Key { offset: 4, key: 0xa5a5, mask: 0xffff };
    let payload = [0xa5; 128];
    group.bench_function("masked filter", |bencher| {
        bencher.iter(|| black_box(key).matches(black_box(&payload)));
    });
    let mut frame = Vec::new();
    EnvelopeHead::default().emit(&payload, &mut frame).expect("the payload fits");
    let mut batch = frame.repeat(BATCH);
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("deframe, a batch of 64", |bencher| {
        bencher.iter(|| {
            let mut frames = Frames::new(black_box(&mut batch), FRAME_MAX);
            while let Some(found) = frames.next_frame() {
                black_box(found);
            }
            frames.consumed()
        });
    });
    group.finish();
}

criterion_group!(benches, route, fan_out, growth, parts);
criterion_main!(benches);
