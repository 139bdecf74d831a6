//! Guards against a power cut while a snapshot goes to the bin, comes back, or is purged: it is there, in the bin, or gone, and never
//! between; what it holds is whole; and nothing is left over.

mod fs_support;

use std::sync::Arc;

use fs_support::common::Random;
use fs_support::common::image::Cut;
use fs_support::common::shrink::failure;
use fs_support::script::{ALL, SNAPSHOT, Script, Step, write};
use fs_support::world::{Content, REGIONS, World, name, new_regions};
use fs_support::{FsMount, FsState};
use terrane::catalog::{BinKind, BinRule, CatalogError, Snapshot, SnapshotState};
use terrane::ids::{BinRuleId, SnapshotId};
use terrane::volume::{Host, Order, restore_snapshot, vouch};

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
    let mut random = Random::new(6);
    let places = (from..=trace.len).filter(|n| !trace.is_zeros(*n));
    let count = places
        .inspect(|n| {
            let cut = Cut::any(&mut random);
            let left = trace.after(*n, cut, *n as u64);
            let allowed = allowed(Found::There("snap2"), &done, *n);
            if let Some(why) = failure(|| check(&left, &mount, id, &allowed, &content)) {
                panic!("cut after {n} of {from}..={} operations, {cut:?}: {why}", trace.len);
            }
        })
        .count();
    println!("{count} places");
    assert!(count > 50, "only {count} places");
}
