//! Guards against memory that grows with what is written and not flushed.

#[path = "common/mod.rs"]
mod common;
#[path = "common/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::FileExt;

use common::Random;
use world::{MIB, OnDisk, SECTOR, World, errno, is_root, must, pattern, with_flags, within, writable};

const VOLUMES: [&str; 3] = ["web", "db", "logs"];
const CHUNKS: u64 = (1 << 40) / (2 << 20);
const WRITES_EACH: u64 = 20_000;
/// What a mount may take under load (`docs/performance.md`). If the sectors written stayed in memory they would take 234 MiB more, their
/// map's pages 937.
const MOST_KIB: u64 = 64 << 10;

/// The most memory that the server ever had resident, KiB.
fn most_resident(world: &World) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", world.server())).unwrap();
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    most.split_whitespace().next().unwrap().parse().unwrap()
}

/// One writer for each of these volumes writes so many sectors all over it and flushes nothing; how many were answered by ENOSPC.
fn scatter(world: &World, volumes: [&str; 3], writes_each: u64) -> u64 {
    let write = |(seed, volume): (u64, &str)| {
        let file = writable(&world.file(volume)).unwrap();
        let mut random = Random::new(seed);
        let bytes = pattern(SECTOR, seed);
        let codes = (0..writes_each).map(|_| {
            // Mostly in a chunk of its own, with 16 KiB of map.
            let sector = random.below(CHUNKS) * 512 + random.below(512);
            errno(file.write_all_at(&bytes, sector * SECTOR as u64))
        });
        codes.filter(|code| *code != 0).inspect(|code| assert_eq!(*code, libc::ENOSPC)).count() as u64
    };
    std::thread::scope(|scope| {
        let writers = (1..).zip(volumes).map(|of| scope.spawn(move || write(of)));
        writers.collect::<Vec<_>>().into_iter().map(|writer| writer.join().unwrap()).sum()
    })
}

#[track_caller]
fn stays_within(world: &World, when: &str) {
    let most = most_resident(world);
    println!("{when}: {} MiB", most >> 10);
    assert!(most <= MOST_KIB, "{when}: the server took {most} KiB, {MOST_KIB} at most");
}

fn sealed_layers(world: &World) -> i64 {
    let catalog = rusqlite::Connection::open(world.path("r/catalog.db")).unwrap();
    let sql = "select count(*) from layers where sealed_mac is not null";
    catalog.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn mounted(world: &World) {
    VOLUMES.iter().for_each(|volume| drop(world.volume(volume, "1T")));
    world.mount();
}

#[test]
fn unflushed_writes_all_over_large_disks_take_no_more_memory() {
    let world = World::bare(None);
    let on_tmpfs = is_root().then(|| OnDisk::of_kind("tmpfs", "none", world.path("r")));
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    mounted(&world);
    assert_eq!(scatter(&world, VOLUMES, WRITES_EACH), 0);
    stays_within(&world, "written");
    VOLUMES.iter().for_each(|volume| drop(world.snapshot(volume, &format!("of-{volume}"))));
    // A seal goes on a while after its answer: it brings all that was written into the map.
    assert!(within(60, || sealed_layers(&world) == VOLUMES.len() as i64), "the seals are not finished");
    stays_within(&world, "in the map");
    world.unmount();
    drop(on_tmpfs);
}

/// Pages of the map that come and go between small blocks leave no holes that nothing fits in: after some checkpoints it grows no more.
#[test]
fn memory_that_checkpoints_give_back_is_used_again() {
    let world = World::bare(None);
    let on_tmpfs = is_root().then(|| OnDisk::of_kind("tmpfs", "none", world.path("r")));
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    world.volume("web", "1T");
    world.mount();
    assert_eq!(scatter(&world, ["web"; 3], 3 * WRITES_EACH), 0);
    stays_within(&world, "one volume");
    world.unmount();
    drop(on_tmpfs);
}

/// Large requests, of which each thread has one, have their buffers beside all that small ones need.
#[test]
fn large_requests_beside_writes_all_over_take_no_more_memory() {
    let world = World::bare(None);
    let on_tmpfs = is_root().then(|| OnDisk::of_kind("tmpfs", "none", world.path("r")));
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    world.volume("web", "1T");
    world.mount();
    let each_mib = |of: &(dyn Fn(&fs::File, u64) + Sync)| {
        let path = world.file("web");
        let one = |thread: u64| {
            let file = with_flags(&path, libc::O_DIRECT).unwrap();
            (0..32).for_each(|n| of(&file, (thread * 32 + n) * MIB));
        };
        std::thread::scope(|scope| (0..8).for_each(|thread| drop(scope.spawn(move || one(thread)))));
    };
    // A page of its own, as direct I/O asks.
    each_mib(&|file, at| {
        let mut bytes = memmap2::MmapMut::map_anon(1 << 20).unwrap();
        bytes.copy_from_slice(&pattern(1 << 20, at));
        file.write_all_at(&bytes, at).unwrap();
    });
    assert_eq!(scatter(&world, ["web"; 3], 2 * WRITES_EACH), 0);
    each_mib(&|file, at| {
        let mut bytes = memmap2::MmapMut::map_anon(1 << 20).unwrap();
        file.read_exact_at(&mut bytes, at).unwrap();
    });
    stays_within(&world, "large and small ones");
    world.unmount();
    drop(on_tmpfs);
}

#[test]
fn writes_to_a_full_file_system_take_no_more_memory() {
    if !is_root() {
        return;
    }
    let world = World::bare(None);
    let disk = OnDisk::of_kind("tmpfs", "none", world.path("r"));
    let resize = |size: &str| must("mount", &["-o", &format!("remount,size={size}"), &world.at("r")]);
    resize("128M");
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    mounted(&world);
    let refused = scatter(&world, VOLUMES, WRITES_EACH);
    assert!((5_000..50_000).contains(&refused), "{refused} writes were refused");
    stays_within(&world, "full");
    // Unmounting needs space for the map.
    resize("4G");
    world.unmount();
    drop(disk);
}
