//! Guarded here (X8): a difference of two snapshots that leaves out a sector whose bytes differ, lists ones that nobody wrote,
//! takes long on a huge disk with little in it, or mixes two moments of a region whose layers are folded meanwhile.

mod copy_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use copy_support::{Change, Disk, Random, World, name, take};
use serde_json::{Value, json};
use terrane::catalog::DiskKind;
use terrane::copy::KeyChoice;
use terrane::ids::SnapshotId;
use terrane::volume::{ChangedRun, Changes, Holds, Host, HostError, Order, VolumeSpec, create_volume};

const MIB: usize = 1 << 20;
const SECTOR: usize = 4096;

/// A snapshot and what it should hold.
type Kept = (SnapshotId, Vec<u8>);

fn listed(host: &Host, from: SnapshotId, to: SnapshotId) -> Vec<ChangedRun> {
    let mut runs = Vec::new();
    Changes::between(host, from, to)
        .unwrap()
        .each_run(|run| {
            runs.push(run);
            Ok::<_, HostError>(())
        })
        .unwrap();
    runs
}

/// Sector by sector; none: it did not change.
fn spread(runs: &[ChangedRun], sectors: usize) -> Vec<Option<Holds>> {
    let mut all = vec![None; sectors];
    for run in runs {
        let first = run.first.0 as usize;
        let run_of = &mut all[first..first + run.count as usize];
        assert!(run_of.iter().all(Option::is_none), "{run:?} tells of a sector again");
        run_of.fill(Some(run.holds));
    }
    let joined = |a: &ChangedRun, b: &ChangedRun| a.first.0 + a.count == b.first.0 && a.holds == b.holds;
    assert!(runs.windows(2).all(|w| w[0].first < w[1].first && !joined(&w[0], &w[1])), "{runs:?}");
    all
}

/// The real differences of bytes; past a disk's end there are zeros.
fn real(from: &[u8], to: &[u8]) -> Vec<Option<Holds>> {
    let sectors = from.len().max(to.len()) / SECTOR;
    let sector = |disk: &[u8], n: usize| disk.chunks(SECTOR).nth(n).map_or(vec![0; SECTOR], <[u8]>::to_vec);
    (0..sectors)
        .map(|n| {
            let (was, is) = (sector(from, n), sector(to, n));
            let holds = if is.iter().any(|b| *b != 0) { Holds::Data } else { Holds::Zero };
            (was != is).then_some(holds)
        })
        .collect()
}

#[track_caller]
fn is_real(host: &Host, from: &Kept, to: &Kept, what: &str) {
    let wanted = real(&from.1, &to.1);
    let found = spread(&listed(host, from.0, to.0), wanted.len());
    let differs = found.iter().zip(&wanted).position(|(a, b)| a != b);
    assert_eq!(differs, None, "{what}: the first sector that is told wrongly");
}

/// Distinct random writes of any alignment, and discards.
fn scribble(random: &mut Random, change: &mut Change, size: usize) {
    for _ in 0..1 + random.below(24) {
        let at = random.below(size as u64) as usize;
        let len = (1 + random.below(20_000) as usize).min(size - at);
        match random.below(4) {
            0 => change.random(random, at, len),
            1 => change.random(random, at & !4095, SECTOR),
            2 => change.write(at & !4095, &[0; SECTOR]),
            _ => {
                let first = at & !4095;
                change.discard(first, (len & !4095).max(SECTOR).min(size - first));
            }
        }
    }
}

fn clone_of(world: &World, snapshot: &Kept, size: usize) -> Disk {
    let region = world.region("north");
    let account = region.catalog().unwrap().read(|tx| tx.default_account()).unwrap().id;
    let key = world.snapshot("north", snapshot.0).key;
    let spec = VolumeSpec {
        account,
        name: None,
        size_bytes: size as u64,
        kind: DiskKind::Data,
        snapshot: Some(snapshot.0),
        key,
    };
    let id = create_volume(&region, &spec).unwrap();
    let mut model = snapshot.1.clone();
    model.resize(size, 0);
    Disk { region: "north".into(), id, model }
}

fn every_pair(world: &World, kept: &[Kept], what: &str) {
    let host = world.reader("north");
    for (i, from) in kept.iter().enumerate() {
        for (j, to) in kept.iter().enumerate() {
            is_real(&host, from, to, &format!("{what}: {i} and {j} of {}", kept.len()));
        }
    }
}

// X8
#[test]
fn the_list_is_the_real_difference_of_any_two() {
    let (seeds, _) = copy_support::common::seeds(4);
    for seed in seeds {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let world = World::new(&["north"]);
        // Not a whole number of chunks.
        let size = 5 * MIB + 3 * SECTOR;
        let mut disk = Disk::new(&world, "north", size, Some(world.default_key("north")), DiskKind::Data);
        let mut kept: Vec<Kept> = Vec::new();
        let grow =
            |world: &World, disk: &mut Disk, random: &mut Random, kept: &mut Vec<Kept>, called: &str| {
                let size = disk.model.len();
                let id = disk.change(world, called, |c| scribble(random, c, size));
                kept.push((id, disk.model.clone()));
            };
        for n in 0..3 {
            grow(&world, &mut disk, &mut random, &mut kept, &format!("line-{n}"));
        }
        // Siblings on common ancestors, one of them larger; and one that has nothing in common.
        for (n, (of, more)) in [(0, 0), (1, 3 * MIB)].into_iter().enumerate() {
            let mut branch = clone_of(&world, &kept[of], size + more);
            for m in 0..2 {
                grow(&world, &mut branch, &mut random, &mut kept, &format!("branch-{n}-{m}"));
            }
        }
        let mut other = Disk::new(&world, "north", 3 * MIB, None, DiskKind::Data);
        grow(&world, &mut other, &mut random, &mut kept, "other");
        // It grows while it is used.
        let host = world.owner("north");
        let size_bytes = (size + 2 * MIB) as u64;
        host.execute(&Order::Resize { volume: disk.id.to_string(), size_bytes }, false).unwrap();
        host.close().unwrap();
        drop(host);
        disk.model.resize(size + 2 * MIB, 0);
        grow(&world, &mut disk, &mut random, &mut kept, "grown");
        every_pair(&world, &kept, "whole");

        // Folded, in part and wholly: what stays differs as before.
        for gone in [6, 1] {
            let (id, _) = kept.remove(gone);
            let host = world.owner("north");
            host.execute(&Order::DeleteSnapshot { snapshot: id.to_string() }, false).unwrap();
            host.fold(false, &mut |_| false).unwrap();
            every_pair(&world, &kept, "amid a fold");
            host.fold(false, &mut |_| true).unwrap();
            host.close().unwrap();
            drop(host);
            every_pair(&world, &kept, "folded");
        }
    }
}

// X8: what is written with the same bytes is listed, for nothing is read; what was never there is not.
#[test]
fn it_tells_more_than_differs_and_never_less() {
    let world = World::new(&["north"]);
    let key = Some(world.default_key("north"));
    let mut disk = Disk::new(&world, "north", 4 * MIB, key, DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.write(0, &[7; 8 * SECTOR]));
    let second = disk.change(&world, "second", |c| {
        c.write(2 * SECTOR, &[7; SECTOR]);
        c.discard(MIB, MIB);
    });
    let unchanged = disk.change(&world, "unchanged", |_| ());
    let host = world.reader("north");
    let data =
        |first, count| ChangedRun { first: terrane::units::SectorNo(first), count, holds: Holds::Data };
    assert_eq!(listed(&host, first, second), [data(2, 1)]);
    assert_eq!(listed(&host, second, first), [data(2, 1)]);
    assert_eq!(listed(&host, second, unchanged), []);
    assert_eq!(listed(&host, first, first), []);
    // A copy under another key has no layer in common with its source: all that holds data is listed.
    world.key("north", "another");
    let copied = world.copy(("north", first), "north", "copied", KeyChoice::Named("another".into()));
    assert_eq!(listed(&world.reader("north"), first, copied), [data(0, 8)]);
}

// X8: a disk of 64 TiB
#[test]
fn a_huge_disk_with_little_in_it_takes_no_time() {
    let world = World::new(&["north"]);
    let region = world.region("north");
    let account = region.catalog().unwrap().read(|tx| tx.default_account()).unwrap().id;
    let spec = VolumeSpec {
        account,
        name: Some(name("huge")),
        size_bytes: 64 << 40,
        kind: DiskKind::Data,
        snapshot: None,
        key: Some(world.default_key("north")),
    };
    let id = create_volume(&region, &spec).unwrap();
    let host = world.owner("north");
    let places = |from: u64| (0..16).map(move |n| from + (n << 42) + (n << 21));
    let write = |at: u64| host.open_volume(id, false).unwrap().disk.write(at, &[1; SECTOR]).unwrap();
    places(0).for_each(write);
    let first = take(&host, id, "first");
    places(1 << 33).for_each(write);
    // Dense, so that another layer is asked often.
    (0..64).for_each(|n| write(n << 21));
    let second = take(&host, id, "second");
    host.close().unwrap();
    drop(host);
    let reader = world.reader("north");
    for (from, to) in [(first, second), (second, first)] {
        let began = Instant::now();
        let runs = listed(&reader, from, to);
        let took = began.elapsed();
        assert_eq!(runs.len(), 16 + 64);
        assert_eq!(runs.last().unwrap().first.byte(), (1 << 33) + (15 << 42) + (15 << 21));
        println!("{took:?}");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

// X8: folds in another process, from before the first row is read to after the last map is
#[test]
fn a_fold_meanwhile_mixes_no_two_moments() {
    let world = World::new(&["north"]);
    let mut random = Random::new(5);
    let size = 4 * MIB;
    let mut disk = Disk::new(&world, "north", size, Some(world.default_key("north")), DiskKind::Data);
    let mut all: Vec<Kept> = Vec::new();
    for n in 0..24 {
        let id = disk.change(&world, &format!("s{n}"), |c| scribble(&mut random, c, size));
        all.push((id, disk.model.clone()));
    }
    let (from, to) = (all[11].clone(), all[23].clone());
    let done = AtomicBool::new(false);
    let (world, all, done) = (&world, &all, &done);
    std::thread::scope(|threads| {
        threads.spawn(move || {
            let host = world.owner("north");
            for (n, (id, _)) in all.iter().enumerate().filter(|(n, _)| ![11, 23].contains(n)) {
                host.execute(&Order::DeleteSnapshot { snapshot: id.to_string() }, false).unwrap();
                // Every other one is cut amid its work and goes on with the next.
                host.fold(false, &mut |_| n % 2 == 0).unwrap();
            }
            host.fold(false, &mut |_| true).unwrap();
            host.close().unwrap();
            done.store(true, Ordering::SeqCst);
        });
        let mut rounds = 0;
        while !done.load(Ordering::SeqCst) {
            let host = world.reader("north");
            is_real(&host, &from, &to, &format!("round {rounds}"));
            is_real(&host, &to, &from, &format!("round {rounds}, the other way round"));
            rounds += 1;
        }
        println!("{rounds} rounds");
    });
    is_real(&world.reader("north"), &from, &to, "at the end");
    let layers = world.region("north").catalog().unwrap().read(|tx| tx.layers()).unwrap();
    assert!(layers.len() <= 4, "folds did nothing: {}", layers.len());
}

// X8: the command
#[test]
fn the_command_lists_and_sums() {
    let world = World::new(&["north", "south"]);
    let mut disk = Disk::new(&world, "north", 8 * MIB, Some(world.default_key("north")), DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.write(0, &[7; 8 * SECTOR]));
    let (second, _dead) = disk.change_and_die(&world, "second", |c| {
        c.write(4 * MIB, &[1; 2 * SECTOR]);
        c.discard(SECTOR, 2 * SECTOR);
        c.write(3 * SECTOR, &[2; SECTOR]);
    });
    // The seal is left to whoever comes next.
    drop(_dead);
    let diff = |more: &[&'static str]| [&["snapshot", "diff", "--region", "north"], more].concat();
    let range = |offset: usize, length: usize, state: &str| json!({ "offset_bytes": offset * SECTOR, "length_bytes": length * SECTOR, "state": state });
    let forth = world.json(&diff(&["first", "second"]));
    assert_eq!(forth, json!([range(1, 2, "zero"), range(3, 1, "data"), range(1024, 2, "data")]));
    let back = world.json(&diff(&["second", "first"]));
    assert_eq!(back, json!([range(1, 3, "data"), range(1024, 2, "zero")]));
    let stat = world.json(&diff(&["first", "second", "--stat"]));
    let sectors = |n: usize| Value::from(n * SECTOR);
    assert_eq!(
        stat,
        json!({ "ranges": 3, "changed_bytes": sectors(5), "data_bytes": sectors(3), "zero_bytes": sectors(2) })
    );
    assert_eq!(world.json(&diff(&["first", "first"])), json!([]));
    let table = world.ok(&diff(&["first", "second"]));
    let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["OFFSET", "BYTES", "LENGTH", "BYTES", "STATE"]);
    assert_eq!(
        lines[1..],
        [["4096", "8192", "zero"], ["12288", "4096", "data"], ["4194304", "8192", "data"]]
    );
    let table = world.ok(&diff(&["first", "second", "--stat"]));
    let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines, [["ranges", "3"], ["changed", "20K"], ["data", "12K"], ["zero", "8K"]]);
    // Refusals.
    world.fails(&diff(&["first", "nothing"]), 3, &["region north has no snapshot \"nothing\""]);
    world.fails(&diff(&["first"]), 2, &["<B>"]);
    let set = |state: &str| {
        let catalog = rusqlite::Connection::open(world.path("north/catalog.db")).unwrap();
        catalog.execute("UPDATE snapshots SET state = ?1 WHERE name = 'first'", [state]).unwrap();
    };
    for state in ["processing", "failed"] {
        set(state);
        for more in [["first", "second"], ["second", "first"]] {
            let words = ["snapshot first is not complete", state];
            world.fails(&diff(&more), 4, &words);
            world.fails(&diff(&[more[0], more[1], "--stat"]), 4, &words);
        }
    }
    set("success");
    // Maps lie under the key.
    terrane::kms::set_key_enabled(&world.region("north"), world.default_key("north"), false).unwrap();
    world.fails(&diff(&["first", "second"]), 4, &["is disabled"]);
    terrane::kms::set_key_enabled(&world.region("north"), world.default_key("north"), true).unwrap();
    // Neither was changed, nor locked for ever.
    world.equal("north", second, &disk.model);
    world.delete("north", first);
}
