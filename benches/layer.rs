//! What one layer costs, in time: a write, a read, and its seal. No mount, no disk: files in memory.
//!
//! Writes go over a disk of 256 MiB again and again, with the flushes and checkpoints that fall due.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use support::{Shelf, bytes, scattered, seal, write};
use terrane::units::{SECTOR_BYTES, SECTOR_LEN, SectorNo};
use terrane::volume::{Chain, Stack};

mod support;

const DISK_BYTES: u64 = 256 << 20;
/// Sectors of a request: 4 KiB and 1 MiB.
const REQUESTS: [(&str, usize); 2] = [("4 KiB", 1), ("1 MiB", 256)];
/// Sectors written before a seal, one by one: 16 MiB.
const SEALED_WRITES: u64 = 4096;

fn writes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("layer write");
    for (name, sectors) in REQUESTS {
        let shelf = Shelf::new();
        let layer = shelf.layer(DISK_BYTES);
        let plain = bytes(sectors);
        let mut place = scattered(DISK_BYTES / SECTOR_BYTES / sectors as u64);
        group.throughput(Throughput::Bytes((sectors * SECTOR_LEN) as u64));
        group.bench_function(name, |b| {
            b.iter(|| write(&layer, SectorNo(place() * sectors as u64), black_box(&plain)));
        });
    }
    group.finish();
}

fn reads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("layer read");
    let shelf = Shelf::new();
    let layer = shelf.layer(DISK_BYTES);
    let request = bytes(256);
    for first in (0..DISK_BYTES / SECTOR_BYTES).step_by(256) {
        write(&layer, SectorNo(first), &request);
    }
    let stack = Stack { active: Some(Arc::new(layer)), chain: Chain::new(Vec::new()) };
    for (name, sectors) in REQUESTS {
        let mut out = bytes(sectors);
        let mut place = scattered(DISK_BYTES / SECTOR_BYTES / sectors as u64);
        group.throughput(Throughput::Bytes(out.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let first = SectorNo(place() * sectors as u64);
                stack.read_sectors(first, black_box(&mut out)).expect("a read");
            });
        });
    }
    group.finish();
}

fn seals(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("layer seal");
    group.sample_size(20);
    let shelf = Shelf::new();
    let plain = bytes(1);
    let mut place = scattered(DISK_BYTES / SECTOR_BYTES);
    let mut written = || {
        let layer = shelf.layer(DISK_BYTES);
        (0..SEALED_WRITES).for_each(|_| write(&layer, SectorNo(place()), &plain));
        layer
    };
    // What writers wait for: the log's lock and an *end*.
    group.bench_function("end", |b| {
        b.iter_custom(|count| {
            let mut spent = std::time::Duration::ZERO;
            for _ in 0..count {
                let layer = written();
                layer.flush().expect("a flush");
                let begin = std::time::Instant::now();
                layer.lock_for_seal().and_then(|mut guard| guard.end()).expect("an end");
                spent += begin.elapsed();
                shelf.remove(layer);
            }
            spent
        });
    });
    group.bench_function("whole, 16 MiB of scattered sectors", |b| {
        b.iter_custom(|count| {
            let mut spent = std::time::Duration::ZERO;
            for _ in 0..count {
                let layer = written();
                let begin = std::time::Instant::now();
                seal(&layer);
                spent += begin.elapsed();
                assert_eq!(layer.data_sectors(), SEALED_WRITES, "each place was written once");
                shelf.remove(layer);
            }
            spent
        });
    });
    group.bench_function("new layer", |b| {
        b.iter_batched(|| (), |()| shelf.remove(black_box(shelf.layer(DISK_BYTES))), BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, writes, reads, seals);
criterion_main!(benches);
