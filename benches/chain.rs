//! What a read through 1, 64 and 1000 sealed layers costs, in time: a chunk that is resolved, and one that is met first.
//!
//! *Dense*: each layer holds a sector of every chunk of a 64 MiB disk, so that no layer can be passed over. *Sparse*: of one chunk
//! in 32, as of a disk that is written here and there between its snapshots. To resolve begins with a fresh chain, not with a fresh
//! cache of pages, which has not room for all of a thousand layers.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use support::{Shelf, bytes, scattered, seal, write};
use terrane::layer::Layer;
use terrane::sys::open_files::raise_limit;
use terrane::units::{CHUNK_SECTORS, ChunkNo, SECTOR_BYTES, SECTOR_LEN, SectorNo};
use terrane::volume::{Chain, Source, Stack};

mod support;

const DISK_BYTES: u64 = 64 << 20;
const LENGTHS: [u64; 3] = [1, 64, 1000];
const KINDS: [(&str, u64); 2] = [("dense", 1), ("sparse", 32)];

/// The whole disk in the oldest layer, then in each a sector of one chunk in `every`.
fn sealed_layers(shelf: &Shelf, length: u64, every: u64) -> Vec<Arc<Layer>> {
    let (one, request) = (bytes(1), bytes(256));
    let sectors = DISK_BYTES / SECTOR_BYTES;
    let mut layers = Vec::new();
    for number in 0..length {
        let layer = shelf.layer(DISK_BYTES);
        match number {
            0 => (0..sectors).step_by(256).for_each(|first| write(&layer, SectorNo(first), &request)),
            _ => (0..sectors)
                .step_by(CHUNK_SECTORS as usize)
                .filter(|chunk| (chunk / CHUNK_SECTORS + number).is_multiple_of(every))
                .for_each(|chunk| write(&layer, SectorNo(chunk + number % CHUNK_SECTORS), &one)),
        }
        seal(&layer);
        layers.push(Arc::new(layer));
    }
    layers
}

fn chains(criterion: &mut Criterion) {
    // A layer has two files open.
    let open_files = raise_limit();
    let mut group = criterion.benchmark_group("chain");
    let shelf = Shelf::new();
    for (length, (name, every)) in LENGTHS.into_iter().flat_map(|length| KINDS.map(|kind| (length, kind))) {
        if 2 * length + 64 > open_files {
            eprintln!(
                "a chain of {length} is left out: only {open_files} files may be open here (ulimit -Hn)"
            );
            continue;
        }
        let layers = sealed_layers(&shelf, length, every);
        let stack = Stack { active: None, chain: Chain::new(layers.clone()) };
        let mut out = bytes(1);
        let mut place = scattered(DISK_BYTES / SECTOR_BYTES);
        for first in (0..DISK_BYTES / SECTOR_BYTES).step_by(CHUNK_SECTORS as usize) {
            stack.read_sectors(SectorNo(first), &mut out).expect("a read, which resolves its chunk");
        }
        group.throughput(Throughput::Bytes(SECTOR_LEN as u64));
        group.bench_function(format!("{length} {name}/read 4 KiB"), |b| {
            b.iter(|| stack.read_sectors(SectorNo(place()), black_box(&mut out)).expect("a read"));
        });
        let mut sources = vec![Source::Zero; CHUNK_SECTORS as usize];
        let mut chunk = scattered(DISK_BYTES / SECTOR_BYTES / CHUNK_SECTORS);
        group.throughput(Throughput::Bytes(CHUNK_SECTORS * SECTOR_BYTES));
        group.bench_function(format!("{length} {name}/resolve a chunk"), |b| {
            b.iter_batched(
                || Chain::new(layers.clone()),
                |fresh| fresh.sources(ChunkNo(chunk()), 0, black_box(&mut sources)).expect("it resolves"),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, chains);
criterion_main!(benches);
