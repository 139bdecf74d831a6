//! Guarded here: a copy that differs from its source in any sector, ships more than it must, stands on a base that is no
//! ancestor or is under another key, or leaves something behind when it fails.

mod copy_support;

use std::sync::atomic::{AtomicBool, Ordering};

use copy_support::{Disk, Random, World, flip, name};
use terrane::catalog::{DiskKind, LayerState, Snapshot, SnapshotState, TaskState};
use terrane::copy::{self, Copy, CopyError, KeyChoice, Watch};
use terrane::crypto::Cipher;
use terrane::ids::SnapshotId;
use terrane::volume::{Order, cancel_copy};

const MIB: usize = 1 << 20;

fn named(alias: &str) -> KeyChoice {
    KeyChoice::Named(alias.into())
}

fn base_of(world: &World, from: (&str, SnapshotId), to: &str, key: KeyChoice) -> Option<SnapshotId> {
    world.plan(from, to, "only-planned", key).unwrap().base.map(|b| b.snapshot)
}

// S13 S14 S18 S19 S21 S22 S23 S26 S27 S35 S36 S37 S39
#[test]
fn the_first_copy_ships_all_and_later_ones_the_difference() {
    let world = World::new(&["north", "south"]);
    let key = world.key("south", "south-key");
    let mut random = Random::new(1);
    let mut disk = Disk::new(&world, "north", 64 * MIB, Some(world.default_key("north")), DiskKind::System);
    let first = disk.change(&world, "first", |c| {
        c.random(&mut random, 0, 12 * MIB);
        c.random(&mut random, 40 * MIB + 4096, 3 * MIB + 8192);
    });
    let stored = (15 * MIB + 8192) as u64;
    let copied = world.copy(("north", first), "south", "first", named("south-key"));
    world.equal("south", copied, &disk.model);
    let row = world.snapshot("south", copied);
    assert_eq!((row.shipped_bytes, row.changed_bytes), (stored, stored), "S21");
    assert_eq!(
        (row.state, row.progress_percent, row.key),
        (SnapshotState::Success, 100, Some(key)),
        "S35, S37"
    );
    assert_eq!(row.kind, DiskKind::System, "S39");
    assert_eq!(row.created_by, "snapshot copy", "S36");
    assert_eq!(row.source_snapshot, Some(first.to_string()), "S36");
    assert_eq!((row.source_region.as_deref(), row.volume), (Some("north"), None), "S36, S28");
    assert_ne!(copied, first, "S27");
    assert!(row.stored_bytes >= stored && row.stored_bytes < stored + (26 << 20), "{}", row.stored_bytes);

    let second = disk.change(&world, "second", |c| {
        for _ in 0..160 {
            let at = random.below(64 << 8) as usize * 4096;
            c.random(&mut random, at, 4096);
        }
    });
    let again = world.copy(("north", second), "south", "second", named("south-key"));
    world.equal("south", again, &disk.model);
    let row = world.snapshot("south", again);
    assert!(row.shipped_bytes <= row.changed_bytes * 105 / 100 + (64 << 10), "S22: {}", row.shipped_bytes);
    assert!(row.changed_bytes <= 160 * 4096 && row.changed_bytes > 150 * 4096, "S23: {}", row.changed_bytes);

    let region = world.region("south");
    let mut catalog = region.catalog().unwrap();
    let chain = catalog.read(|tx| tx.layer_chain(row.layer.unwrap())).unwrap();
    assert_eq!(chain.len(), 2);
    assert!(chain.iter().all(|l| l.state == LayerState::Sealed && l.sealed_mac.is_some()));
    let of = |region: &str, s: &Snapshot| {
        let points =
            world.region(region).catalog().unwrap().read(|tx| tx.layer_points(s.layer.unwrap())).unwrap();
        let own =
            world.region(region).catalog().unwrap().read(|tx| tx.layer(s.layer.unwrap())).unwrap().point;
        assert_eq!(points.first().copied(), own);
        points
    };
    assert_eq!(
        of("south", &row),
        of("north", &world.snapshot("north", second)),
        "a copy is of the same moments"
    );
    let tasks = catalog.read(|tx| tx.tasks()).unwrap();
    assert!(tasks.len() == 2 && tasks.iter().all(|t| t.kind == "copy" && t.state == TaskState::Succeeded));
    assert_eq!(tasks[0].bytes_done, stored);
}

// S1 S2 S7 S9 S10 S11 S12 S16
#[test]
fn plain_stays_plain_and_becomes_encrypted_on_request() {
    let world = World::new(&["north", "south"]);
    let key = world.key("north", "other");
    let mut random = Random::new(2);
    let mut disk = Disk::new(&world, "north", 8 * MIB, None, DiskKind::Data);
    let plain = disk.change(&world, "plain", |c| c.random(&mut random, 4096, 2 * MIB));
    let cases = [
        ("south", "stays-plain", KeyChoice::AsSource, None),
        ("south", "asked-plain", KeyChoice::Plain, None),
        ("south", "encrypted-there", KeyChoice::Default, Some(world.default_key("south"))),
        ("north", "encrypted-here", named("other"), Some(key)),
        ("north", "encrypted-default", KeyChoice::Default, Some(world.default_key("north"))),
    ];
    for (to, called, choice, key) in cases {
        let id = world.copy(("north", plain), to, called, choice);
        let row = world.snapshot(to, id);
        assert_eq!((row.key, row.cipher == Cipher::Plain), (key, key.is_none()), "{called}");
        world.equal(to, id, &disk.model);
    }
    // S12: encrypted to another key, in the region itself.
    let here =
        world.region("north").catalog().unwrap().read(|tx| tx.resolve_snapshot("encrypted-here")).unwrap().id;
    let other = world.copy(("north", here), "north", "re-keyed", KeyChoice::Default);
    world.equal("north", other, &disk.model);
}

/// Zeros over data of the base must be said, others need not; a discard of a whole chunk costs no bytes.
#[test]
fn discards_and_zeros_cross() {
    let world = World::new(&["north", "south"]);
    let mut random = Random::new(3);
    let mut disk = Disk::new(&world, "north", 16 * MIB, Some(world.default_key("north")), DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.random(&mut random, 0, 9 * MIB));
    world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    let second = disk.change(&world, "second", |c| {
        c.discard(2 * MIB, 4 * MIB);
        c.discard(100 * 4096, 3 * 4096);
        c.write(7 * MIB, &vec![0; 64 << 10]);
        c.discard(12 * MIB, 2 * MIB);
        c.random(&mut random, 3 * MIB, 4096);
    });
    let copied = world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    world.equal("south", copied, &disk.model);
    let row = world.snapshot("south", copied);
    assert_eq!(row.shipped_bytes, 4096);
    assert_eq!(row.changed_bytes, (4 * MIB + 3 * 4096 + (64 << 10)) as u64);
    assert!(row.stored_bytes < 21 << 20, "{}", row.stored_bytes);
    // Without a base nothing is said of zeros.
    let elsewhere = World::new(&["north", "south"]);
    let mut disk = Disk::new(&elsewhere, "north", 16 * MIB, None, DiskKind::Data);
    disk.change(&elsewhere, "first", |c| c.random(&mut random, 0, 9 * MIB));
    let second = disk.change(&elsewhere, "second", |c| c.discard(2 * MIB, 4 * MIB));
    let alone = elsewhere.copy(("north", second), "south", "alone", KeyChoice::AsSource);
    elsewhere.equal("south", alone, &disk.model);
    let row = elsewhere.snapshot("south", alone);
    assert_eq!((row.shipped_bytes, row.changed_bytes), (5 << 20, 5 << 20));
}

#[test]
fn the_nearest_readable_ancestor_under_the_key_is_the_base() {
    let world = World::new(&["north", "south"]);
    world.key("south", "other");
    let mut random = Random::new(4);
    let mut disk = Disk::new(&world, "north", 16 * MIB, Some(world.default_key("north")), DiskKind::Data);
    let mut ids = Vec::new();
    for i in 0..4 {
        ids.push(disk.change(&world, &format!("s{i}"), |c| c.random(&mut random, i * MIB, MIB)));
    }
    let plan = |key| base_of(&world, ("north", ids[3]), "south", key);
    assert_eq!(plan(KeyChoice::AsSource), None);
    let far = world.copy(("north", ids[0]), "south", "c0", KeyChoice::AsSource);
    assert_eq!(plan(KeyChoice::AsSource), Some(far));
    let near = world.copy(("north", ids[2]), "south", "c2", KeyChoice::AsSource);
    assert_eq!(plan(KeyChoice::AsSource), Some(near));
    assert_eq!(plan(named("other")), Some(near), "X1");
    // Another line of the same disk at the target: made from an older copy later on.
    assert_eq!(base_of(&world, ("north", ids[1]), "south", KeyChoice::AsSource), Some(far));
    // The base's name is gone: the next one serves.
    world.delete("south", near);
    assert_eq!(plan(KeyChoice::AsSource), Some(far));
    let copied = world.copy(("north", ids[3]), "south", "c3", KeyChoice::AsSource);
    world.equal("south", copied, &disk.model);
    assert_eq!(world.snapshot("south", copied).shipped_bytes, 3 << 20);
    // The base's layer stays under its child, though nobody names it.
    world.delete("south", far);
    world.equal("south", copied, &disk.model);
    // A damaged base is none.
    let layer = world.snapshot("south", copied).layer.unwrap();
    flip(&world.region("south").layer_dir(layer).join("header.toml"), 200);
    let last = disk.change(&world, "s4", |c| c.random(&mut random, 9 * MIB, 4096));
    let alone = world.copy(("north", last), "south", "c4", KeyChoice::AsSource);
    assert_eq!(world.snapshot("south", alone).shipped_bytes, (4 << 20) + 4096);
    world.equal("south", alone, &disk.model);
}

/// A disabled key opens no base, and no source.
#[test]
fn a_disabled_key_stops_what_needs_it() {
    let world = World::new(&["north", "south"]);
    let (north, south) = (world.key("north", "mine"), world.key("south", "mine"));
    let mut disk = Disk::new(&world, "north", 4 * MIB, Some(north), DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.write(0, &[7; 8192]));
    world.copy(("north", first), "south", "first", named("mine"));
    terrane::kms::set_key_enabled(&world.region("south"), south, false).unwrap();
    assert_eq!(base_of(&world, ("north", first), "south", KeyChoice::AsSource), None);
    world.copy(("north", first), "south", "again", KeyChoice::AsSource);
    terrane::kms::set_key_enabled(&world.region("north"), north, false).unwrap();
    let refused = world.try_copy(("north", first), "south", "more", KeyChoice::AsSource);
    assert!(refused.is_err_and(|e| e.to_string().contains("is disabled")));
}

/// A copy of a copy, and back: bases are found by moments, whoever made the snapshot.
#[test]
fn copies_of_copies_find_their_bases() {
    let world = World::new(&["aa", "bb", "cc"]);
    let mut random = Random::new(5);
    let mut disk = Disk::new(&world, "aa", 16 * MIB, Some(world.default_key("aa")), DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.random(&mut random, 0, 4 * MIB));
    let in_b = world.copy(("aa", first), "bb", "first", KeyChoice::AsSource);
    let in_c = world.copy(("bb", in_b), "cc", "first", KeyChoice::AsSource);
    let second = disk.change(&world, "second", |c| c.random(&mut random, MIB, 8192));
    // From a straight to c: the base there is the copy of a copy.
    assert_eq!(base_of(&world, ("aa", second), "cc", KeyChoice::AsSource), Some(in_c));
    let again = world.copy(("aa", second), "cc", "second", KeyChoice::AsSource);
    assert_eq!(world.snapshot("cc", again).shipped_bytes, 8192);
    world.equal("cc", again, &disk.model);
    // And back to a, which has it already.
    let back = world.plan(("cc", again), "aa", "back", KeyChoice::AsSource).unwrap();
    assert_eq!((back.base.as_ref().unwrap().snapshot, back.ship_bytes), (second, 0));
    drop(back);
    let back = world.copy(("cc", again), "aa", "back", KeyChoice::AsSource);
    world.equal("aa", back, &disk.model);
    // A volume goes on from the copy at b; its snapshot finds the source at a as its base.
    let region = world.region("bb");
    let row = world.snapshot("bb", in_b);
    let spec = terrane::volume::VolumeSpec {
        account: row.account,
        name: None,
        size_bytes: row.size_bytes,
        kind: row.kind,
        snapshot: Some(in_b),
        key: row.key,
    };
    let id = terrane::volume::create_volume(&region, &spec).unwrap();
    let mut there = Disk { region: "bb".into(), id, model: world.bytes("bb", in_b) };
    let third = there.change(&world, "third", |c| c.random(&mut random, 5 * MIB, 4096));
    assert_eq!(base_of(&world, ("bb", third), "aa", KeyChoice::AsSource), Some(first));
    let home = world.copy(("bb", third), "aa", "third", KeyChoice::AsSource);
    assert_eq!(world.snapshot("aa", home).shipped_bytes, 4096);
    world.equal("aa", home, &there.model);
    // S28: a copy can't roll back the disk its source came from.
    let refused = world
        .owner("aa")
        .execute(&Order::Rollback { volume: disk.id.to_string(), snapshot: home.to_string() }, false);
    assert!(refused.is_err_and(|e| e.to_string().contains("was not taken of volume")));
}

/// The copy at b spans two moments in one layer: what was zero at its base, data in between and zero again is recorded
/// nowhere in it, and must still be said to a region whose base is the moment in between.
#[test]
fn zeros_between_two_moments_are_said() {
    let world = World::new(&["aa", "bb", "cc"]);
    let mut random = Random::new(6);
    let mut disk = Disk::new(&world, "aa", 8 * MIB, Some(world.default_key("aa")), DiskKind::Data);
    let s0 = disk.change(&world, "s0", |c| c.random(&mut random, 0, MIB));
    let s1 = disk.change(&world, "s1", |c| c.random(&mut random, 5 * MIB, MIB));
    let s2 = disk.change(&world, "s2", |c| {
        c.discard(5 * MIB, MIB);
        c.random(&mut random, 0, 4096);
    });
    world.copy(("aa", s0), "bb", "s0", KeyChoice::AsSource);
    let skipping = world.copy(("aa", s2), "bb", "s2", KeyChoice::AsSource);
    let between = world.copy(("aa", s1), "cc", "s1", KeyChoice::AsSource);
    assert_eq!(base_of(&world, ("bb", skipping), "cc", KeyChoice::AsSource), Some(between));
    let end = world.copy(("bb", skipping), "cc", "s2", KeyChoice::AsSource);
    world.equal("cc", end, &disk.model);
    assert_eq!(world.snapshot("cc", end).shipped_bytes, 4096);
    // X1: under another key they are not taken from the base.
    world.delete("cc", end);
    world.key("cc", "new");
    let alone = world.copy(("bb", skipping), "cc", "rekeyed", named("new"));
    world.equal("cc", alone, &disk.model);
    assert_eq!(world.snapshot("cc", alone).shipped_bytes, 4096);
}

/// Random changes, snapshots, deletions and copies among three regions and two keys each: every copy is its source.
#[test]
fn any_copy_equals_its_source() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    println!("SEED={seed}");
    let mut random = Random::new(seed);
    let regions = ["aa", "bb", "cc"];
    let world = World::new(&regions);
    for region in regions {
        world.key(region, "other");
    }
    const DISK: usize = 6 * MIB;
    let mut disk = Disk::new(&world, "aa", DISK, Some(world.default_key("aa")), DiskKind::Data);
    let mut all: Vec<(&str, SnapshotId, Vec<u8>)> = Vec::new();
    let (mut copies, mut with_base) = (0, 0);
    for step in 0..90 {
        let called = format!("n{step}");
        if all.is_empty() || random.one_in(3) {
            let id = disk.change(&world, &called, |c| {
                for _ in 0..1 + random.below(6) {
                    let most = if random.one_in(3) { 700 } else { 6 };
                    let len = 4096 * (1 + random.below(most) as usize);
                    let at = random.below((DISK - len) as u64 / 4096) as usize * 4096;
                    match random.below(4) {
                        0 | 1 => c.random(&mut random, at, len),
                        2 => c.discard(at, len),
                        _ => c.write(at, &vec![0; len]),
                    }
                }
            });
            all.push(("aa", id, disk.model.clone()));
            continue;
        }
        let i = random.below(all.len() as u64) as usize;
        if random.one_in(6) && all.len() > 3 {
            let (region, id, _) = all.swap_remove(i);
            world.delete(region, id);
            continue;
        }
        let (from, id, model) = all[i].clone();
        let to = regions[random.below(3) as usize];
        let key = if random.one_in(3) { named("other") } else { KeyChoice::AsSource };
        match world.plan((from, id), to, &called, key.clone()) {
            Ok(plan) => with_base += usize::from(plan.base.is_some()),
            Err(CopyError::Refused { .. }) if from == to => continue,
            Err(e) => panic!("step {step}: {e}"),
        }
        let copied = world.copy((from, id), to, &called, key);
        world.equal(to, copied, &model);
        copies += 1;
        all.push((to, copied, model));
    }
    println!("{copies} copies, {with_base} on a base");
    assert!(copies > 20 && with_base > copies / 4);
    for (region, id, model) in &all {
        world.equal(region, *id, model);
    }
}

/// Also a snapshot of a larger disk than its base's.
#[test]
fn a_resized_disk_is_copied_whole() {
    let world = World::new(&["north", "south"]);
    let mut random = Random::new(8);
    let mut disk =
        Disk::new(&world, "north", 5 * MIB + 4096, Some(world.default_key("north")), DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.random(&mut random, 4 * MIB, MIB + 4096));
    world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    let order = Order::Resize { volume: disk.id.to_string(), size_bytes: 11 << 20 };
    let host = world.owner("north");
    host.execute(&order, false).unwrap();
    host.close().unwrap();
    drop(host);
    disk.model.resize(11 * MIB, 0);
    let second = disk.change(&world, "second", |c| c.random(&mut random, 10 * MIB, 8192));
    let copied = world.copy(("north", second), "south", "second", KeyChoice::AsSource);
    world.equal("south", copied, &disk.model);
    assert_eq!(world.snapshot("south", copied).size_bytes, 11 << 20);
    assert_eq!(world.snapshot("south", copied).shipped_bytes, 8192);
}

/// S34: whether it was interrupted before, or runs.
#[test]
fn a_cancelled_copy_leaves_nothing() {
    let world = World::new(&["north", "south"]);
    let mut random = Random::new(9);
    let mut disk = Disk::new(&world, "north", 96 * MIB, Some(world.default_key("north")), DiskKind::Data);
    let id = disk.change(&world, "first", |c| (0..80).for_each(|i| c.random(&mut random, i * MIB, MIB)));
    let before = world.holdings("south");
    let (source, target) = (world.reader("north"), world.reader("south"));
    let plan = || copy::plan(&source, id, &target, &name("copied"), &KeyChoice::AsSource).unwrap();
    let cancel = AtomicBool::new(false);
    let mut told = 0;
    let mut progress = |_, _| {
        told += 1;
        cancel.store(true, Ordering::Relaxed);
    };
    let copy = Copy::new(&source, &target, plan(), world.details("south", "copied"));
    let done = copy.run(Watch::new(&cancel, &mut progress));
    assert!(matches!(done, Err(CopyError::Interrupted)), "{done:?}");
    assert_eq!(world.holdings("south"), (before.0 + 1, before.1 + 1, before.2 + 1), "what was done stays");
    let row = world.region("south").catalog().unwrap().read(|tx| tx.resolve_snapshot("copied")).unwrap();
    assert!(row.shipped_bytes > 0 && cancel_copy(target.region(), row.id).unwrap());
    assert_eq!(world.holdings("south"), before);
    // Deleted by another while it runs.
    let mut deleted = false;
    let mut progress = |_, _| {
        if !std::mem::replace(&mut deleted, true) {
            let row =
                world.region("south").catalog().unwrap().read(|tx| tx.resolve_snapshot("copied")).unwrap();
            assert_eq!(
                (row.state, row.source_snapshot),
                (SnapshotState::Processing, Some(id.to_string())),
                "S33"
            );
            world.delete("south", row.id);
        }
    };
    let copy = Copy::new(&source, &target, plan(), world.details("south", "copied"));
    let done = copy.run(Watch::new(&AtomicBool::new(false), &mut progress));
    assert!(matches!(done, Err(CopyError::Cancelled)), "{done:?}");
    assert_eq!(world.holdings("south"), before);
    let tasks = world.region("south").catalog().unwrap().read(|tx| tx.tasks()).unwrap();
    assert!(tasks.len() == 2 && tasks.iter().all(|t| t.state == TaskState::Cancelled));
}

/// While it is read, the source can't be deleted.
#[test]
fn a_source_being_read_stays() {
    let world = World::new(&["north", "south"]);
    let mut disk = Disk::new(&world, "north", 4 * MIB, None, DiskKind::Data);
    let id = disk.change(&world, "first", |c| c.write(0, &[1; 4096]));
    let plan = world.plan(("north", id), "south", "copied", KeyChoice::AsSource).unwrap();
    let delete = || world.owner("north").execute(&Order::DeleteSnapshot { snapshot: id.to_string() }, false);
    assert!(delete().is_err_and(|e| e.to_string().contains("in use")));
    drop(plan);
    delete().unwrap();
}

#[test]
fn a_damaged_sector_is_named_and_nothing_is_left() {
    let world = World::new(&["north", "south"]);
    let mut random = Random::new(10);
    let mut disk = Disk::new(&world, "north", 16 * MIB, Some(world.default_key("north")), DiskKind::Data);
    let id = disk.change(&world, "first", |c| c.random(&mut random, 6 * MIB, 4 * MIB));
    let layer = world.snapshot("north", id).layer.unwrap();
    let data = world.region("north").layer_dir(layer).join("data");
    let stack = world.reader("north").open_snapshot(id).unwrap();
    let sector = (8 * MIB / 4096 + 17) as u64;
    let slot = stack.chain.layers()[0].entry(terrane::units::SectorNo(sector)).unwrap().slot().unwrap();
    flip(&data, terrane::layer::slot_offset(slot) + 99);
    let before = world.holdings("south");
    let error = world.try_copy(("north", id), "south", "copied", KeyChoice::AsSource).unwrap_err();
    let CopyError::Damaged { sector: named, .. } = &error else { panic!("{error}") };
    assert_eq!(named.0, sector);
    assert!(error.to_string().contains("snapshot first in region north"), "{error}");
    assert_eq!(world.holdings("south"), before);
    let task = world.region("south").catalog().unwrap().read(|tx| tx.tasks()).unwrap().remove(0);
    assert_eq!((task.state, task.error.as_deref()), (TaskState::Failed, Some(error.to_string().as_str())));
}
