//! Guarded here: a volume whose chain has more layers than a mount may have files open, and that takes the other volumes with it.

#[path = "common/world.rs"]
mod world;

use std::os::unix::fs::FileExt;
use std::process::Command;

use world::{World, errno, pattern, read_at, words, writable};

/// With two files a layer: more than 64.
const LAYERS: usize = 30;

fn mount_with(world: &World, files: &str) {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={files}")).arg(assert_cmd::cargo::cargo_bin!("terrane"));
    command.args(["mount", &world.mnt()]).env("TERRANE_CONFIG_DIR", world.path("config"));
    let output = command.env_remove("TERRANE_REGION").output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
}

/// Writes a sector and syncs it.
fn write(world: &World, volume: &str, sector: u64) {
    let file = writable(&world.file(volume)).unwrap();
    file.write_all_at(&pattern(4096, sector), sector * 4096).unwrap();
    file.sync_all().unwrap();
}

fn sector(world: &World, volume: &str, sector: u64) -> bool {
    read_at(&world.file(volume), sector * 4096, 4096).unwrap() == pattern(4096, sector)
}

#[test]
fn a_chain_too_long_for_a_mount_harms_no_other_volume() {
    let world = World::new();
    let long = world.volume("long", "8M");
    world.volume("short", "8M");
    // Its soft limit is none to a mount.
    mount_with(&world, "64:4096");
    for day in 0..LAYERS as u64 {
        write(&world, "long", day);
        world.snapshot("long", &format!("day-{day}"));
    }
    world.unmount();
    mount_with(&world, "64:64");
    write(&world, "short", 1);
    for _ in 0..3 {
        assert_eq!(errno(writable(&world.file("long"))), libc::ENFILE);
    }
    let told = world.log();
    assert!(told.contains("may have 64 open at once") && !told.contains("damaged"), "{told}");
    let problems = world.problems();
    assert!(problems.iter().any(|p| p.contains(&long) && p.contains("open files")), "{problems:?}");
    world.fails(&["snapshot", "create", "long", "--name", "more"], 1, &["may have 64 open", "ulimit -Hn"]);
    // The other goes on, until its own chain is as long: then it says so, and goes on all the same.
    let mut taken = 0;
    for day in 2..100 {
        write(&world, "short", day);
        let output = world.run(&["snapshot", "create", "short", "--name", &format!("short-{day}")]);
        if !output.status.success() {
            let said = words(&output);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("may have 64 open"), "{said}");
            break;
        }
        taken += 1;
    }
    assert!((3..LAYERS).contains(&taken), "{taken}");
    write(&world, "short", 200);
    // What is opened for a moment still can be: orders, snapshots whose layers are open.
    let last = format!("short-{}", taken + 1);
    assert_eq!(read_at(&world.snapshot_file(&last), 4096, 4096).unwrap(), pattern(4096, 1));
    for day in [2, 3] {
        world.ok(&["snapshot", "delete", &format!("short-{day}")]);
    }
    assert!((1..taken as u64 + 3).chain([200]).all(|at| sector(&world, "short", at)));
    world.unmount();
    world.mount();
    for day in 0..LAYERS as u64 {
        assert!(sector(&world, "long", day), "{day}");
    }
    assert!((1..taken as u64 + 3).chain([200]).all(|at| sector(&world, "short", at)));
    world.snapshot("long", "more");
    world.unmount();
    world.ok(&["region", "check"]);
}
