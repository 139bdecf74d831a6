//! Guarded here: chains of more layers than a process may have files open. A base that can't be opened for want of them and is dropped,
//! so that all is shipped; a shortage that is called damage, or loses a copy; and a program that stays at the 1024 of old.

mod copy_support;

use std::process::Output;

use copy_support::daemon::{MIB, copy_args, named, states, tasks};
use copy_support::{Disk, Random, World, take};
use serde_json::Value;
use terrane::catalog::{DiskKind, SnapshotState, TaskState};
use terrane::copy::KeyChoice;

/// With two files a layer: more than `FEW` allows.
const LAYERS: usize = 30;
const FEW: &str = "64:64";

/// Snapshots `day-1` to `day-LAYERS` in region north, each of a layer of its own.
fn world() -> (World, Disk) {
    let world = World::new(&["north", "south"]);
    let mut disk = Disk::new(&world, "north", 8 * MIB, Some(world.default_key("north")), DiskKind::Data);
    let mut random = Random::new(41);
    disk.change(&world, "day-1", |c| c.random(&mut random, 0, 4 * MIB));
    let host = world.owner("north");
    let open = host.open_volume(disk.id, false).unwrap();
    for day in 2..=LAYERS {
        open.disk.write(day as u64 * 4096, &[day as u8; 4096]).unwrap();
        disk.model[day * 4096..][..4096].fill(day as u8);
        take(&host, disk.id, &format!("day-{day}"));
    }
    drop(open);
    host.close().unwrap();
    (world, disk)
}

fn last() -> String {
    format!("day-{LAYERS}")
}

/// Under these limits of open files, soft and hard.
fn limited(world: &World, files: &str, args: &[&str]) -> Output {
    let mut command = std::process::Command::new("prlimit");
    command.arg(format!("--nofile={files}")).arg(assert_cmd::cargo::cargo_bin!("terrane")).args(args);
    command.env("TERRANE_CONFIG_DIR", world.path("config")).env_remove("TERRANE_REGION").output().unwrap()
}

#[track_caller]
fn fails_for_files(world: &World, args: &[&str]) {
    let output = limited(world, FEW, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    for words in ["too many open files", "may have 64 open at once", "ulimit -Hn"] {
        assert!(said.contains(words) && !said.contains("damaged"), "{args:?}: {words:?}: {said}");
    }
}

/// X4, X6: what can't be opened for want of files is whole, and waits.
#[test]
fn a_chain_of_more_files_than_may_be_open_is_no_damage_and_no_loss() {
    let (world, disk) = world();
    let from = format!("north/{}", last());
    fails_for_files(&world, &["snapshot", "verify", &last(), "--region", "north"]);
    fails_for_files(&world, &["snapshot", "verify", &last(), "--region", "north", "--deep"]);
    // It was not even asked for: there is no plan.
    fails_for_files(&world, &[&copy_args(&from, "copied")[..], &["--wait"]].concat());
    assert!(named(&world, "south", "copied").is_none() && tasks(&world, "south").is_empty());
    // Asked for where there are more, it waits where there are not, and says for what.
    world.ok(&copy_args(&from, "copied"));
    let output = limited(&world, FEW, &["daemon", "--once"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("1 put off") && said.contains("may have 64 open at once"), "{said}");
    assert_eq!(states(&world, "south"), [TaskState::Queued]);
    assert!(tasks(&world, "south")[0].error.as_ref().unwrap().contains("too many open files"));
    // The soft limit is none.
    let output = limited(&world, "64:4096", &["daemon", "--once"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let copied = named(&world, "south", "copied").unwrap();
    assert_eq!(copied.state, SnapshotState::Success);
    world.equal("south", copied.id, &disk.model);
    for region in ["north", "south"] {
        world.ok(&["region", "check", "--region", region]);
    }
}

/// X1: a base that is there is a base, whoever can't open it now.
#[test]
fn a_base_is_not_dropped_for_want_of_files() {
    let (world, mut disk) = world();
    let ids = world.region("north").catalog().unwrap().read(|tx| tx.snapshots()).unwrap();
    for row in &ids {
        world.copy(("north", row.id), "south", row.name.as_str(), KeyChoice::AsSource);
    }
    // The source's chain is short, the base's is not.
    for row in &ids[..LAYERS - 1] {
        world.delete("north", row.id);
    }
    world.owner("north").fold(false, &mut |_| true).unwrap();
    disk.change(&world, "next", |c| c.write(6 * MIB, &[7; 4096]));
    assert!(world.holdings("north").1 < 6, "{:?}", world.holdings("north"));
    let plan = ["--dry-run", "--output", "json", "-q"];
    let args = [&copy_args("north/next", "next")[..], &plan].concat();
    fails_for_files(&world, &args[..args.len() - 3]);
    let output = limited(&world, "64:4096", &args);
    let planned: Value = serde_json::from_slice(&output.stdout).unwrap();
    let base = named(&world, "south", &last()).unwrap().id;
    assert_eq!(planned["base_snapshot_id"], base.to_string(), "{planned}");
    assert!(planned["ship_bytes"].as_u64().unwrap() < 1 << 20, "{planned}");
}
