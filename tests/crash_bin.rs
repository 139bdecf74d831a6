//! Guards against a power cut while a snapshot goes to the bin, comes back, or is purged: it is there, in the bin, or gone, and never
//! between; what it holds is whole; and nothing is left over. And while a region's clock is put back: all is dated anew, or nothing.

mod fs_support;

use std::sync::Arc;

use fs_support::common::image::Cut;
use fs_support::common::shrink::failure;
use fs_support::common::{Random, seeds};
use fs_support::script::{ALL, SNAPSHOT, Script, Step, write};
use fs_support::world::{Content, REGIONS, World, name, new_regions};
use fs_support::{FsMount, FsState};
use terrane::catalog::{BinEntry, BinKind, BinRule, CatalogError, Snapshot, SnapshotState};
use terrane::ids::{BinRuleId, SnapshotId};
use terrane::volume::{Host, HostError, Later, Order, restore_snapshot, vouch};

const NORTH: &str = REGIONS[0];

#[test]
#[ignore = "the process that serves the file system of the others"]
fn serve_a_file_system() {
    fs_support::serve_if_asked();
}

/// What is found of the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    There(&'static str),
    InBin(&'static str),
    Gone,
}

/// What was done, with where it began and was answered.
struct Done {
    began: usize,
    answered: usize,
    then: Found,
}

/// The snapshot's states that a cut after `n` operations may leave.
fn allowed(first: Found, done: &[Done], n: usize) -> Vec<Found> {
    let states: Vec<_> = std::iter::once(first).chain(done.iter().map(|done| done.then)).collect();
    let least = done.iter().filter(|done| done.answered <= n).count();
    let most = done.iter().filter(|done| done.began < n).count();
    states[least..=most.max(least)].to_vec()
}

fn row_of(host: &Host, id: SnapshotId) -> Option<Snapshot> {
    host.region().catalog().unwrap().read(|tx| tx.find_snapshot(id)).unwrap()
}

/// As a mount begins and ends on what was left.
fn check(left: &FsState, mount: &FsMount, id: SnapshotId, allowed: &[Found], content: &Content) {
    let disk = mount.disk(left);
    let world = World::of(&disk);
    let host = world.owner(NORTH).expect("a region opens after a cut");
    let look = |host: &Arc<Host>| {
        let row = row_of(host, id);
        let entry = host.region().catalog().unwrap().read(|tx| tx.bin_entry(id)).unwrap();
        let found = row.as_ref().map_or(Found::Gone, |row| {
            let called = ["snap2", "again"].into_iter().find(|called| row.name.as_str() == *called);
            let called = called.expect("one of its names");
            match row.state {
                SnapshotState::Success => Found::There(called),
                SnapshotState::Deleted => Found::InBin(called),
                other => panic!("it is {other}"),
            }
        });
        assert!(allowed.contains(&found), "it is {found:?}, and should be one of {allowed:?}");
        let is_vouched = entry.map(|entry| vouch::is_bin_entry_vouched(host.region(), id, &entry).unwrap());
        assert_eq!(is_vouched, matches!(found, Found::InBin(_)).then_some(true), "its place in the bin");
        if found != Found::Gone {
            let stack = host.open_snapshot(id).expect("it opens, in the bin or not");
            assert!(Content::of(&stack) == *content, "it differs");
        }
        found
    };
    let first = look(&host);
    host.fold(false, &mut |_| true).expect("folds go on after a cut");
    assert_eq!(look(&host), first);
    host.close().unwrap();
    drop(host);
    world.check(NORTH);
}

// X6
#[test]
fn no_cut_leaves_a_snapshot_between_there_in_the_bin_and_gone() {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let mut script = Script::new(&mount, &regions);
    let clean = Step::Reopen { clean: true };
    for step in [Step::Create, ALL, SNAPSHOT, write(8, 4), SNAPSHOT, write(2, 2), clean] {
        script.step(&step).unwrap();
    }
    let (world, disk) = (script.world.clone(), &script.disk);
    let (id, content) = {
        let host = world.owner(NORTH).unwrap();
        let read = host.region().catalog().unwrap().read(|tx| {
            let account = tx.default_account()?.id;
            Ok::<_, CatalogError>((tx.resolve_snapshot("snap2")?.id, account))
        });
        let (id, account) = read.unwrap();
        let (kind, created_at) = (BinKind::Snapshot, host.region().now());
        let rule = BinRule { id: BinRuleId::random(), account, kind, days: 7, created_at };
        host.region().catalog().unwrap().write(|tx| tx.insert_bin_rule(&rule, &[])).unwrap();
        let content = Content::of(&host.open_snapshot(id).unwrap());
        host.close().unwrap();
        (id, content)
    };
    let mut done = Vec::new();
    let from = disk.traced();
    let mut does = |then: Found, what: &dyn Fn(&Arc<Host>)| {
        let began = disk.traced();
        let host = world.owner(NORTH).unwrap();
        what(&host);
        done.push(Done { began, answered: disk.traced(), then });
        host.fold(false, &mut |_| true).unwrap();
        host.close().unwrap();
    };
    let snapshot = id.to_string();
    let execute = |order: Order| move |host: &Arc<Host>| host.execute(&order, false).unwrap();
    let delete = execute(Order::DeleteSnapshot { snapshot: snapshot.clone() });
    let purge = execute(Order::PurgeSnapshot { snapshot });
    let restore = |called: Option<&'static str>| {
        move |host: &Arc<Host>| {
            drop(restore_snapshot(host.region(), id, called.map(name).as_ref()).unwrap());
        }
    };
    does(Found::InBin("snap2"), &delete);
    does(Found::There("snap2"), &restore(None));
    does(Found::InBin("snap2"), &delete);
    does(Found::There("again"), &restore(Some("again")));
    does(Found::InBin("again"), &delete);
    does(Found::Gone, &purge);
    drop(world);
    let trace = script.disk.take_trace();
    let places: Vec<_> = (from..=trace.len).filter(|n| !trace.is_zeros(*n)).collect();
    assert!(places.len() > 50, "only {} places", places.len());
    let mut disks = 0;
    for seed in seeds(1).0 {
        let mut random = Random::new(seed);
        for n in places.iter().copied() {
            let cut = Cut::any(&mut random);
            let left = trace.after(n, cut, random.next());
            let allowed = allowed(Found::There("snap2"), &done, n);
            if let Some(why) = failure(|| check(&left, &mount, id, &allowed, &content)) {
                panic!("seed {seed}, cut after {n} of {from}..={} operations, {cut:?}: {why}", trace.len);
            }
            disks += 1;
        }
    }
    println!("{disks} disks after a cut of deletions, restorations and a purge");
}

/// How a region is dated: by a clock that was ahead, or by the one that is right.
fn is_dated_later(left: &FsState, mount: &FsMount, kept: SnapshotId, binned: SnapshotId) -> bool {
    let disk = mount.disk(left);
    let world = World::of(&disk);
    let host = world.owner(NORTH).expect("a region opens after a cut");
    let region = host.region();
    let limit = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let found = region.catalog().unwrap().read(|tx| {
        let row = tx.snapshot(kept)?;
        let entry = tx.bin_entry(binned)?.expect("it is in the bin");
        assert!(vouch::is_bin_entry_vouched(region, binned, &entry)?, "its place in the bin");
        assert_eq!(tx.retention_mac(kept)?, vouch::retention_mac(region, &row)?, "its retention");
        Ok::<_, HostError>([row.created_at > limit, entry.deleted_at > limit, tx.is_clock_after(limit)?])
    });
    let found = found.unwrap();
    assert!(found == [found[0]; 3], "half of it is dated anew: {found:?}");
    host.close().unwrap();
    drop(host);
    world.check(NORTH);
    found[0]
}

// X6
#[test]
fn a_cut_amid_a_clock_put_back_leaves_all_or_nothing() {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let mut script = Script::new(&mount, &regions);
    let clean = Step::Reopen { clean: true };
    for step in [Step::Create, ALL, SNAPSHOT, write(8, 4), SNAPSHOT, clean] {
        script.step(&step).unwrap();
    }
    let (world, disk) = (script.world.clone(), &script.disk);
    let host = world.owner(NORTH).unwrap();
    let region = host.region();
    let write = |what: &dyn Fn(&terrane::catalog::WriteTx) -> Result<(), HostError>| {
        region.catalog().unwrap().write(|tx| what(tx)).unwrap();
    };
    let rows = region.catalog().unwrap().read(|tx| tx.snapshots()).unwrap();
    let (kept, binned) = (rows[0].id, rows[1].id);
    let later: jiff::Timestamp = "2999-01-01T00:00:00Z".parse().unwrap();
    write(&|tx| {
        let dated = Snapshot { retention_days: Some(3), created_at: later, ..rows[0].clone() };
        tx.set_snapshot_details(kept, None, Some(3))?;
        tx.set_snapshot_time(kept, later)?;
        tx.set_retention_mac(kept, vouch::retention_mac(region, &dated)?)?;
        let entry = BinEntry { deleted_at: later, purge_at: later, mac: None };
        tx.put_in_bin(binned, &vouch::sign_bin_entry(region, binned, entry)?)?;
        // Ahead: the clock goes where it is put.
        Ok(tx.put_clock_back_to(later)?)
    });
    let from = disk.traced();
    write(&|tx| {
        let now = jiff::Timestamp::now();
        Later::than(now, tx)?.redate(region, tx, now)?;
        Ok(tx.put_clock_back_to(now)?)
    });
    let answered = disk.traced();
    host.close().unwrap();
    drop(host);
    drop(world);
    let trace = script.disk.take_trace();
    let mut found = [0; 2];
    for seed in seeds(1).0 {
        let mut random = Random::new(seed);
        for n in (from..=trace.len).filter(|n| !trace.is_zeros(*n)) {
            let cut = Cut::any(&mut random);
            let left = trace.after(n, cut, random.next());
            let why = failure(|| {
                let is_later = is_dated_later(&left, &mount, kept, binned);
                found[usize::from(is_later)] += 1;
                assert!(!is_later || n < answered, "it was answered");
                assert!(is_later || n > from, "it was not begun");
            });
            if let Some(why) = why {
                panic!("seed {seed}, cut after {n} of {from}..={} operations, {cut:?}: {why}", trace.len);
            }
        }
    }
    println!("{} disks after a cut of a clock put back: {found:?}", found[0] + found[1]);
    assert!(found[0] > 0 && found[1] > 0, "{found:?}");
}
