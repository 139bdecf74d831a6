//! Guards against snapshots that hold another moment than the one they were taken at, that are lost, or that cost the
//! volume its own content.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use world::{MIB, Running, SECTOR, World, errno, must, pattern, read_at, within, write_at};

#[track_caller]
fn holds(world: &World, snapshot: &str, seed: u64) {
    let found = read_at(&world.snapshot_file(snapshot), 0, MIB as usize).unwrap();
    assert!(found == pattern(MIB as usize, seed), "snapshot {snapshot} does not hold what it was taken of");
}

#[test]
fn several_in_a_row_mounted_and_unmounted() {
    let world = World::new();
    world.volume("web", "8M");
    for turn in 0..12 {
        match turn % 4 {
            1 => world.mount(),
            3 => world.unmount(),
            _ => {}
        }
        if turn % 4 == 1 || turn % 4 == 2 {
            write_at(&world.file("web"), 0, &pattern(MIB as usize, turn)).unwrap();
        }
        world.snapshot("web", &format!("s{turn}"));
    }
    world.mount();
    for turn in 0..12 {
        let last = (0..=turn).rev().find(|t| t % 4 == 1 || t % 4 == 2);
        match last {
            Some(last) => holds(&world, &format!("s{turn}"), last),
            None => assert!(read_at(&world.snapshot_file("s0"), 0, 8 << 20).unwrap().iter().all(|b| *b == 0)),
        }
    }
    // In the middle, and the first, and the last.
    for gone in ["s5", "s0", "s11"] {
        world.ok(&["snapshot", "delete", gone]);
        assert!(!world.snapshot_file(gone).exists());
    }
    holds(&world, "s4", 2);
    holds(&world, "s6", 6);
    world.unmount();
    world.mount();
    holds(&world, "s6", 6);
    holds(&world, "s10", 10);
    assert!(read_at(&world.file("web"), 0, MIB as usize).unwrap() == pattern(MIB as usize, 10));
}

#[test]
fn an_idle_volume_gains_no_layers() {
    let world = World::new();
    world.volume("web", "8M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(SECTOR, 1)).unwrap();
    world.snapshot("web", "s0");
    std::thread::sleep(std::time::Duration::from_millis(200));
    let before = world.layers();
    for n in 1..6 {
        world.snapshot("web", &format!("s{n}"));
    }
    assert_eq!(world.layers(), before);
    assert_eq!(world.json(&["snapshot", "show", "s5"])["changed_bytes"], 0);
    world.unmount();
    world.snapshot("web", "s6");
    world.mount();
    assert!(world.layers() <= before, "a chain of {}", world.layers());
    assert!(read_at(&world.snapshot_file("s6"), 0, SECTOR).unwrap() == pattern(SECTOR, 1));
}

/// Of three snapshots each.
const ROUNDS: u64 = 100;

/// X5: ordered writes across volumes are never seen out of order.
#[test]
fn a_group_is_one_moment() {
    let world = World::new();
    let volumes = ["va", "vb", "vc"];
    volumes.iter().for_each(|name| drop(world.volume(name, "4M")));
    world.mount();
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (stop, written, world) = (&stop, &written, &world);
        scope.spawn(move || {
            let files: Vec<_> =
                volumes.iter().map(|name| world::writable(&world.file(name)).unwrap()).collect();
            let mut count = 0u64;
            while !stop.load(Ordering::Relaxed) {
                count += 1;
                for file in &files {
                    std::os::unix::fs::FileExt::write_all_at(file, &count.to_le_bytes(), 512).unwrap();
                }
                written.store(count, Ordering::Release);
            }
        });
        for n in 0..ROUNDS {
            // One count may be under way: the second is of after the last group.
            let before = written.load(Ordering::Acquire);
            assert!(within(20, || written.load(Ordering::Acquire) >= before + 2), "the writer stands still");
            let ids = world.ok(&["snapshot", "create", "va", "vb", "vc", "--name", &format!("g{n}")]);
            assert_eq!(ids.lines().count(), 3);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let mut last = 0;
    for n in 0..ROUNDS {
        let value = |name| {
            let bytes = read_at(&world.snapshot_file(&format!("g{n}-{name}")), 512, 8).unwrap();
            u64::from_le_bytes(bytes.try_into().unwrap())
        };
        let (a, b, c) = (value("va"), value("vb"), value("vc"));
        assert!(a >= b && b >= c && a - c <= 1, "group {n}: {a} {b} {c}");
        assert!(c > last, "group {n}: {c} is not later than {last}, of the group before");
        last = a;
        let group = world.json(&["snapshot", "show", &format!("g{n}-va")])["group_id"].clone();
        assert!(group.as_str().unwrap().starts_with("grp-"));
        assert_eq!(group, world.json(&["snapshot", "show", &format!("g{n}-vc")])["group_id"]);
    }
    world.fails(&["snapshot", "create", "va", "vb", "--name", "g0"], 5, &["g0-va"]);
    world.fails(&["snapshot", "create", "va", "va", "--name", "x1"], 2, &["twice"]);
}

#[test]
fn while_fio_writes() {
    let world = World::new();
    world.volume("web", "64M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(MIB as usize, 1)).unwrap();
    let file = format!("--filename={}", world.file("web").display());
    let options = [
        "--name=w",
        &file,
        "--offset=1M",
        "--size=60M",
        "--rw=randwrite",
        "--bsrange=512-64k",
        "--bs_unaligned=1",
    ];
    let more = ["--runtime=20", "--time_based", "--allow_file_create=0", "--numjobs=2", "--thread"];
    let mut fio = std::process::Command::new("fio");
    fio.args(options).args(more).stdin(Stdio::null()).stdout(Stdio::null());
    let mut fio = Running(fio.spawn().unwrap());
    for n in 0..20 {
        world.snapshot("web", &format!("s{n}"));
        holds(&world, &format!("s{n}"), 1);
    }
    let first = must("sha256sum", &[world.snapshot_file("s3")]);
    world.ok(&["snapshot", "delete", "s2"]);
    world.ok(&["snapshot", "delete", "s4"]);
    assert!(fio.0.try_wait().unwrap().is_none(), "fio ended early");
    drop(fio);
    assert_eq!(must("sha256sum", &[world.snapshot_file("s3")]), first);
    world.unmount();
    world.mount();
    assert_eq!(must("sha256sum", &[world.snapshot_file("s3")]), first);
    holds(&world, "s19", 1);
}

#[test]
fn a_volume_of_a_snapshot_and_rollback() {
    let world = World::new();
    let id = world.volume("web", "8M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(MIB as usize, 1)).unwrap();
    let snapshot = world.snapshot("web", "s1");
    write_at(&world.file("web"), 0, &pattern(MIB as usize, 2)).unwrap();
    world.snapshot("web", "s2");
    // X13
    world.ok(&["volume", "create", "--snapshot", "s1", "--name", "clone"]);
    let clone = world.file("clone");
    assert!(read_at(&clone, 0, MIB as usize).unwrap() == pattern(MIB as usize, 1));
    write_at(&clone, 0, &pattern(SECTOR, 7)).unwrap();
    assert_eq!(world.json(&["volume", "show", "clone"])["source_snapshot_id"], *snapshot);
    world.fails(&["volume", "create", "--snapshot", "s1", "--size", "4M"], 4, &["can't be smaller"]);
    world.fails(&["volume", "rollback", "clone", "--snapshot", "s1"], 4, &["volume create --snapshot"]);
    holds(&world, "s1", 1);

    let open = world::writable(&world.file("web")).unwrap();
    let pid = std::process::id().to_string();
    world.fails(&["volume", "rollback", "web", "--snapshot", "s1"], 5, &["web", &pid]);
    world.fails(&["volume", "delete", "web"], 5, &["web", &pid]);
    drop(open);
    world.ok(&["volume", "rollback", "web", "--snapshot", "s1"]);
    assert!(read_at(&world.file("web"), 0, MIB as usize).unwrap() == pattern(MIB as usize, 1));
    write_at(&world.file("web"), 0, &pattern(MIB as usize, 3)).unwrap();
    // Forward again, and unmounted.
    world.unmount();
    world.ok(&["volume", "rollback", &id, "--snapshot", "s2"]);
    world.mount();
    assert!(read_at(&world.file("web"), 0, MIB as usize).unwrap() == pattern(MIB as usize, 2));
    assert!(read_at(&clone, 0, SECTOR).unwrap() == pattern(SECTOR, 7));
    // The source and its snapshots go; what was made of them stays.
    world.ok(&["volume", "delete", "web"]);
    world.ok(&["snapshot", "delete", "s2"]);
    world.ok(&["snapshot", "delete", "s1"]);
    world.unmount();
    world.mount();
    assert!(read_at(&clone, SECTOR as u64, SECTOR).unwrap() == pattern(MIB as usize, 1)[SECTOR..2 * SECTOR]);
    world.ok(&["volume", "delete", "clone"]);
    assert_eq!(world.layers(), 0, "nothing needs a layer any more");
    assert!(!clone.exists());
}

#[test]
fn a_larger_volume_keeps_its_content_and_its_snapshots_their_size() {
    let world = World::new();
    world.volume("web", "8M");
    world.mount();
    let file = world.file("web");
    write_at(&file, 0, &pattern(MIB as usize, 1)).unwrap();
    world.snapshot("web", "s1");
    let open = world::writable(&file).unwrap();
    world.ok(&["volume", "resize", "web", "--size", "16M"]);
    assert_eq!(open.metadata().unwrap().len(), 16 << 20);
    write_at(&file, 15 << 20, &pattern(MIB as usize, 2)).unwrap();
    world.fails(&["volume", "resize", "web", "--size", "8M"], 4, &["can't shrink"]);
    world.ok(&["volume", "resize", "web", "--size", "16M"]);
    assert_eq!(errno(write_at(&file, 16 << 20, b"x")), libc::ENOSPC);
    assert_eq!(fs::metadata(world.snapshot_file("s1")).unwrap().len(), 8 << 20);
    drop(open);
    world.unmount();
    world.ok(&["volume", "resize", "web", "--size", "32M"]);
    world.mount();
    assert_eq!(fs::metadata(&file).unwrap().len(), 32 << 20);
    assert!(read_at(&file, 15 << 20, MIB as usize).unwrap() == pattern(MIB as usize, 2));
    // Rolled back it keeps its size; past the snapshot's end it is zero.
    world.ok(&["volume", "rollback", "web", "--snapshot", "s1"]);
    assert_eq!(fs::metadata(&file).unwrap().len(), 32 << 20);
    assert!(read_at(&file, 15 << 20, MIB as usize).unwrap().iter().all(|b| *b == 0));
    holds(&world, "s1", 1);
}

#[test]
fn commands_at_once_do_not_disturb_each_other() {
    for mounted in [true, false] {
        let world = World::new();
        world.volume("web", "8M");
        world.volume("shop", "8M");
        if mounted {
            world.mount();
            write_at(&world.file("web"), 0, &pattern(MIB as usize, 1)).unwrap();
        }
        std::thread::scope(|scope| {
            for taker in 0..3 {
                let world = &world;
                scope.spawn(move || {
                    for n in 0..5 {
                        world.snapshot(["web", "shop"][n % 2], &format!("t{taker}-{n}"));
                        world.ok(&["volume", "list"]);
                        assert_eq!(world.problems(), Vec::<String>::new());
                    }
                });
            }
        });
        // A name is taken by one of many.
        let taken: Vec<_> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| world.run(&["snapshot", "create", "web", "--name", "one"])))
                .collect();
            takers.into_iter().map(|t| t.join().unwrap().status.code()).collect()
        });
        assert_eq!(taken.iter().filter(|c| **c == Some(0)).count(), 1, "{taken:?}");
        assert_eq!(taken.iter().filter(|c| **c == Some(5)).count(), 3, "{taken:?}");
        assert_eq!(world.json(&["snapshot", "list"]).as_array().unwrap().len(), 16);
    }
}
