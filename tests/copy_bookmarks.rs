//! Guarded here: a copy onto a base whose source is gone, its layer folded into another, that ships more than what changed since (X2);
//! and above all one that ships less, because a bookmark is believed that is too small, of another layer, or damaged.

mod copy_support;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use copy_support::line::{DISK, Line, MIB, Moment, SECTOR, bookmarks_of, delete, delete_and_fold, layers};
use copy_support::{Disk, Random, World, copy_files, flip, take};
use terrane::catalog::{CatalogError, DiskKind, LayerState};
use terrane::copy::KeyChoice;
use terrane::volume::bookmarks::BOOKMARKS_MAX;
use terrane::volume::{CheckWatch, check_region};

/// What a check finds, in words.
fn findings(world: &World, region: &str) -> Vec<String> {
    let cancel = AtomicBool::new(false);
    let mut watch = CheckWatch { cancel: &cancel, max_rate: None, progress: &mut |_, _| {} };
    let report = check_region(&world.reader(region), &mut watch).unwrap();
    assert!(report.left.is_empty(), "{:?}", report.left);
    report.findings.listed.into_iter().map(|finding| finding.what).collect()
}

const TARGETS: [&str; 4] = ["t0", "t1", "t2", "t3"];

// X2
#[test]
fn each_ancestor_serves_in_whatever_order_the_others_go() {
    // Each layer larger than the one below, smaller, and as it comes: folds go up, down, and both ways.
    let shapes = [[3, 20, 60, 120, 240], [900, 200, 60, 20, 3], [60, 60, 60, 60, 60]];
    let orders = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1], [1, 2, 3, 0], [3, 0, 1, 2]];
    for (shape, sizes) in shapes.iter().enumerate() {
        let mut regions = vec!["north"];
        regions.extend(TARGETS);
        let world = World::new(&regions);
        let mut line = Line::new(&world, shape as u64 + 1);
        for (number, most) in sizes.iter().enumerate() {
            line.step(&world, 8, *most);
            if let Some(target) = TARGETS.get(number) {
                world.copy(("north", line.moments[number].id), target, "base", KeyChoice::AsSource);
            }
        }
        copy_files(&world.path("north"), &world.path("kept"));
        for order in orders {
            let what = format!("sizes {sizes:?}, deleted {order:?}");
            for (step, gone) in order.iter().enumerate() {
                delete_and_fold(&world, line.moments[*gone].id);
                // By the plan alone in between.
                for (base, target) in TARGETS.iter().enumerate() {
                    let newest = ("north", line.moments[4].id);
                    let plan = world.plan(newest, target, "planned", KeyChoice::AsSource).unwrap();
                    let changed = line.changed_bytes(base, 4);
                    assert!(
                        plan.ship_bytes <= changed,
                        "{what}, step {step}, base {base}: {}",
                        plan.ship_bytes
                    );
                }
            }
            assert_eq!(layers(&world, "north", line.moments[4].id).len(), 1, "all is one layer");
            for (base, target) in TARGETS.iter().enumerate() {
                line.crosses(&world, target, base, 4, &what);
            }
            assert_eq!(findings(&world, "north"), Vec::<String>::new(), "{what}");
            fs::remove_dir_all(world.path("north")).unwrap();
            copy_files(&world.path("kept"), &world.path("north"));
            terrane::region::accept_older(&world.path("north"), &world.config).unwrap();
        }
    }
}

/// A layer that loses its name while the volume goes on in the one above takes its sectors there: what was written since is told by the
/// tags; whatever is written, discarded or written again as it was, before, amid and after it; cut, and sealed amid.
// X2
#[test]
fn what_a_volume_took_from_below_has_not_changed_since() {
    for seed in 1..13 {
        let world = World::new(&["north", "t0", "t1"]);
        let mut line = Line::new(&world, seed);
        line.step(&world, 12, 60);
        world.copy(("north", line.moments[0].id), "t0", "base", KeyChoice::AsSource);
        line.step(&world, 12, 60);
        world.copy(("north", line.moments[1].id), "t1", "base", KeyChoice::AsSource);
        let host = world.owner("north");
        line.change(&host, 6, 40);
        delete(&host, line.moments[1].id);
        let mut steps = 0;
        let stops = seed % 3 == 0;
        let mut began = None;
        host.fold(false, &mut |progress| {
            began.get_or_insert(progress.kept);
            line.change(&host, 2, 40);
            steps += 1;
            !stops || steps < 2
        })
        .unwrap();
        let active = host.open_volume(line.disk.id, false).unwrap().disk.active().id();
        assert_eq!(began, Some(active), "it goes into the volume's layer");
        line.change(&host, 4, 40);
        let host = match seed % 4 {
            // Its process is gone.
            0 => {
                host.open_volume(line.disk.id, false).unwrap().disk.flush().unwrap();
                drop(host);
                world.owner("north")
            }
            // A snapshot before the fold goes on, if it does.
            1 => {
                line.snapshot(&host);
                host
            }
            _ => host,
        };
        if seed % 2 == 0 {
            // Another goes into the same layer.
            delete(&host, line.moments[0].id);
        }
        host.fold(false, &mut |_| true).unwrap();
        line.change(&host, 6, 40);
        line.snapshot(&host);
        host.close().unwrap();
        drop(host);
        let newest = line.moments.len() - 1;
        for (base, target) in TARGETS.iter().enumerate().take(2) {
            line.crosses(&world, target, base, newest, &format!("seed {seed}"));
        }
        assert_eq!(findings(&world, "north"), Vec::<String>::new(), "seed {seed}");
        // Once more, as sealed layers.
        line.step(&world, 4, 30);
        for gone in 2..=newest {
            delete_and_fold(&world, line.moments[gone].id);
        }
        for (base, target) in TARGETS.iter().enumerate().take(2) {
            line.crosses(&world, target, base, newest + 1, &format!("seed {seed}, folded again"));
        }
    }
}

/// What was data at the base, and is discarded by the layer that took it: nothing lies below that it would hide, so nothing is recorded.
#[test]
fn what_is_recorded_nowhere_any_more_is_said() {
    let world = World::new(&["north", "t0"]);
    let mut random = Random::new(3);
    let mut disk = Disk::new(&world, "north", DISK, Some(world.default_key("north")), DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.random(&mut random, 0, MIB));
    world.copy(("north", first), "t0", "base", KeyChoice::AsSource);
    let host = world.owner("north");
    let open = host.open_volume(disk.id, false).unwrap();
    // One over what the parent has, before it is taken; one taken.
    open.disk.write(0, &[7; SECTOR]).unwrap();
    delete(&host, first);
    host.fold(false, &mut |_| true).unwrap();
    open.disk.discard(0, 16 * SECTOR as u64).unwrap();
    disk.model[..16 * SECTOR].fill(0);
    let second = take(&host, disk.id, "second");
    host.close().unwrap();
    drop((open, host));
    let copied = world.copy(("north", second), "t0", "copied", KeyChoice::AsSource);
    world.equal("t0", copied, &disk.model);
    assert_eq!(world.snapshot("t0", copied).shipped_bytes, 0);
}

/// Two layers go into the volume's one after the other, and both have what was written over: only what the volume wrote has changed since
/// the newer, and what the newer wrote since the older.
#[test]
fn what_two_folds_took_is_told_apart() {
    let world = World::new(&["north", "t0", "t1"]);
    let mut random = Random::new(5);
    let mut disk = Disk::new(&world, "north", DISK, Some(world.default_key("north")), DiskKind::Data);
    let older = disk.change(&world, "older", |c| c.random(&mut random, 0, MIB));
    world.copy(("north", older), "t0", "base", KeyChoice::AsSource);
    let newer = disk.change(&world, "newer", |c| {
        c.random(&mut random, 0, 20 * SECTOR);
        c.discard(30 * SECTOR, 10 * SECTOR);
    });
    world.copy(("north", newer), "t1", "base", KeyChoice::AsSource);
    let host = world.owner("north");
    let open = host.open_volume(disk.id, false).unwrap();
    for gone in [newer, older] {
        delete(&host, gone);
        host.fold(false, &mut |_| true).unwrap();
    }
    open.disk.write(2 * MIB as u64, &[7; SECTOR]).unwrap();
    disk.model[2 * MIB..][..SECTOR].fill(7);
    open.disk.discard(50 * SECTOR as u64, SECTOR as u64).unwrap();
    disk.model[50 * SECTOR..][..SECTOR].fill(0);
    let last = take(&host, disk.id, "last");
    host.close().unwrap();
    drop((open, host));
    assert_eq!(layers(&world, "north", last).len(), 1);
    for (target, sectors) in [("t0", 21), ("t1", 1)] {
        let copied = world.copy(("north", last), target, "copied", KeyChoice::AsSource);
        world.equal(target, copied, &disk.model);
        assert_eq!(world.snapshot(target, copied).shipped_bytes, sectors * SECTOR as u64);
    }
}

/// A snapshot is taken while a fold has brought one chunk of two into the volume's layer: neither has changed. The fold begins anew then.
#[test]
fn what_a_fold_had_begun_to_take_has_not_changed() {
    let world = World::new(&["north", "t0"]);
    let mut random = Random::new(4);
    let mut disk = Disk::new(&world, "north", DISK, Some(world.default_key("north")), DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.random(&mut random, 0, 4 * MIB));
    world.copy(("north", first), "t0", "base", KeyChoice::AsSource);
    let host = world.owner("north");
    let open = host.open_volume(disk.id, false).unwrap();
    open.disk.write(MIB as u64, &[7; SECTOR]).unwrap();
    disk.model[MIB..MIB + SECTOR].fill(7);
    delete(&host, first);
    host.fold(false, &mut |_| false).unwrap();
    assert!(open.disk.active().data_sectors() > 1, "something was moved");
    let second = take(&host, disk.id, "second");
    host.close().unwrap();
    drop((open, host));
    for what in ["begun", "ended"] {
        let copied = world.copy(("north", second), "t0", "copied", KeyChoice::AsSource);
        world.equal("t0", copied, &disk.model);
        assert_eq!(world.snapshot("t0", copied).shipped_bytes, SECTOR as u64, "{what}");
        world.delete("t0", copied);
        let host = world.owner("north");
        host.fold(false, &mut |_| true).unwrap();
        host.close().unwrap();
    }
    assert_eq!(layers(&world, "north", second).len(), 1);
}

/// A fold between sealed layers that is stopped after each chunk and goes on in another process, with a copy each time.
#[test]
fn a_fold_that_goes_on_keeps_its_bookmark() {
    for (seed, sizes) in [(1, [900, 60, 30]), (2, [30, 900, 60])] {
        let world = World::new(&["north", "t0", "t1"]);
        let mut line = Line::new(&world, seed);
        for (number, most) in sizes.into_iter().enumerate() {
            line.step(&world, 10, most);
            if number < 2 {
                let id = line.moments[number].id;
                world.copy(("north", id), TARGETS[number], "base", KeyChoice::AsSource);
            }
        }
        let host = world.owner("north");
        delete(&host, line.moments[0].id);
        drop(host);
        let mut was_amid = false;
        loop {
            let host = world.owner("north");
            host.fold(false, &mut |_| false).unwrap();
            drop(host);
            for (base, target) in TARGETS.iter().enumerate().take(2) {
                line.crosses(&world, target, base, 2, &format!("sizes {sizes:?}"));
            }
            let region = world.region("north");
            let rows =
                region.catalog().unwrap().read(|tx| Ok::<_, CatalogError>((tx.folds()?, tx.layers()?)));
            let (folds, rows) = rows.unwrap();
            was_amid |= rows.iter().any(|l| [LayerState::Absorbing, LayerState::Filling].contains(&l.state));
            if folds.is_empty() {
                break;
            }
        }
        assert!(was_amid, "it was never seen amid");
        delete_and_fold(&world, line.moments[1].id);
        for (base, target) in TARGETS.iter().enumerate().take(2) {
            line.crosses(&world, target, base, 2, "at the end");
        }
    }
}

/// A copy's layer holds several moments: onto each of them a copy of it ships what changed since, under the same key or another; and
/// where its source's layers were folded before.
// X1 X2
#[test]
fn a_copy_has_bookmarks_of_the_moments_within_it() {
    let world = World::new(&["north", "south", "t0", "t1", "t2", "t3"]);
    world.key("south", "other");
    let mut line = Line::new(&world, 21);
    for target in TARGETS {
        line.step(&world, 8, 80);
        world.copy(("north", line.moments.last().unwrap().id), target, "base", KeyChoice::AsSource);
    }
    line.step(&world, 8, 80);
    world.copy(("north", line.moments[0].id), "south", "base", KeyChoice::AsSource);
    delete_and_fold(&world, line.moments[2].id);
    let newest = ("north", line.moments[4].id);
    let onto = world.copy(newest, "south", "onto", KeyChoice::AsSource);
    let alone = world.copy(newest, "south", "alone", KeyChoice::Named("other".into()));
    let again = world.copy(("south", alone), "south", "again", KeyChoice::AsSource);
    assert_eq!(layers(&world, "south", onto).len(), 2);
    assert_eq!(layers(&world, "south", alone).len(), 1);
    let host = world.owner("south");
    host.fold(false, &mut |_| true).unwrap();
    host.close().unwrap();
    drop(host);
    for (what, id) in [("onto", onto), ("alone", alone), ("again", again)] {
        for (base, target) in TARGETS.iter().enumerate() {
            let copied = world.copy(("south", id), target, "copied", KeyChoice::AsSource);
            world.equal(target, copied, &line.moments[4].bytes);
            let (shipped, changed) =
                (world.snapshot(target, copied).shipped_bytes, line.changed_bytes(base, 4));
            assert!(shipped <= changed, "{what}, {base}: {shipped}, {changed}");
            world.delete(target, copied);
        }
    }
    assert_eq!(findings(&world, "south"), Vec::<String>::new());
}

/// X1: beside a base under another key, sectors that changed come from the source and all others from the base.
#[test]
fn a_base_under_another_key_serves_too() {
    let world = World::new(&["north", "t0"]);
    world.key("t0", "other");
    let mut line = Line::new(&world, 31);
    line.step(&world, 10, 200);
    world.copy(("north", line.moments[0].id), "t0", "base", KeyChoice::AsSource);
    line.step(&world, 6, 60);
    line.step(&world, 6, 60);
    delete_and_fold(&world, line.moments[0].id);
    delete_and_fold(&world, line.moments[1].id);
    let newest = &line.moments[2];
    let copied = world.copy(("north", newest.id), "t0", "copied", KeyChoice::Named("other".into()));
    world.equal("t0", copied, &newest.bytes);
    let shipped = world.snapshot("t0", copied).shipped_bytes;
    assert!(shipped <= line.changed_bytes(0, 2), "{shipped} of {}", line.changed_bytes(0, 2));
}

/// Those of the newest moments are kept; onto an older one a copy ships more, and is right.
#[test]
fn the_newest_bookmarks_are_kept() {
    let world = World::new(&["north", "t0", "t1"]);
    let mut line = Line::new(&world, 41);
    // Some change nothing, and are no moment of their own.
    let count = BOOKMARKS_MAX + 24;
    let bases = [2, count / 2];
    for number in 0..count {
        let (times, most) = if number == 0 { (12, 300) } else { (1, 12) };
        line.step(&world, times, most);
        if let Some(target) = bases.iter().position(|base| *base == number) {
            world.copy(("north", line.moments[number].id), TARGETS[target], "base", KeyChoice::AsSource);
        }
        if number > 0 {
            delete_and_fold(&world, line.moments[number - 1].id);
        }
    }
    let newest = line.moments[count - 1].id;
    let [layer] = layers(&world, "north", newest)[..] else { panic!("all is one layer") };
    let there = fs::read_dir(world.region("north").layer_dir(layer).join("bookmarks")).unwrap().count();
    assert_eq!(there, BOOKMARKS_MAX);
    line.crosses(&world, TARGETS[1], bases[1], count - 1, "of the newest");
    let older = line.shipped(&world, TARGETS[0], count - 1);
    assert!(older > line.changed_bytes(bases[0], count - 1), "{older}: nothing tells what changed since");
}

/// What lies in such a file is no reason to leave out a sector, and none to fail.
#[test]
fn no_file_put_there_makes_a_copy_wrong() {
    let world = World::new(&["north", "t0"]);
    let mut line = Line::new(&world, 51);
    line.step(&world, 10, 300);
    world.copy(("north", line.moments[0].id), "t0", "base", KeyChoice::AsSource);
    for most in [60, 60, 40] {
        line.step(&world, 6, most);
    }
    delete_and_fold(&world, line.moments[0].id);
    let [.., kept] = layers(&world, "north", line.moments[3].id)[..] else { panic!("no layer") };
    let older = world.path("older");
    copy_files(&bookmarks_of(&world, kept).0, &older);
    delete_and_fold(&world, line.moments[1].id);
    delete_and_fold(&world, line.moments[2].id);
    assert_eq!(layers(&world, "north", line.moments[3].id), [kept]);
    // Of another volume of the region.
    let mut other = Line::new(&world, 52);
    for number in 0..3 {
        let host = world.owner("north");
        other.change(&host, 8, 20);
        let id = take(&host, other.disk.id, &format!("other{number}"));
        host.close().unwrap();
        other.moments.push(Moment { id, bytes: vec![], changed: HashSet::new() });
    }
    delete_and_fold(&world, other.moments[0].id);
    let [.., strange] = layers(&world, "north", other.moments[2].id)[..] else { panic!("no layer") };
    let strangers = bookmarks_of(&world, strange).1;
    let (folder, files) = bookmarks_of(&world, kept);
    assert!(files.len() == 3 && !strangers.is_empty());
    let right = world.path("right");
    copy_files(&folder, &right);
    let exact = line.shipped(&world, "t0", 3);
    assert!(exact <= line.changed_bytes(0, 3));
    let restore = || {
        fs::remove_dir_all(&folder).unwrap();
        copy_files(&right, &folder);
    };
    let mut spoiled = 0;
    let mut try_it = |what: &str, is_told: bool, spoil: &mut dyn FnMut()| {
        spoil();
        let shipped = line.shipped(&world, "t0", 3);
        assert!(shipped >= exact, "{what}: {shipped} of {exact}");
        spoiled += u64::from(shipped > exact);
        let told = findings(&world, "north");
        assert_eq!(!told.is_empty(), is_told, "{what}: {told:?}");
        assert!(told.iter().all(|words| words.contains("bookmarks/")), "{told:?}");
        restore();
    };
    let put = |from: &Path, to: &Path| assert!(fs::copy(from, to).unwrap() > 0);
    for (number, file) in files.iter().enumerate() {
        let len = fs::metadata(file).unwrap().len();
        for at in [0, 9, 13, 17, 25, 33, 49, 65, 81, 97, len - 17, len - 1] {
            try_it(&format!("{number}, byte {at}"), true, &mut || flip(file, at));
        }
        for len in [0, 20, 96, len - 1] {
            let cut = || fs::OpenOptions::new().write(true).open(file).unwrap().set_len(len).unwrap();
            try_it(&format!("{number}, cut to {len}"), true, &mut { cut });
        }
        let next = &files[(number + 1) % files.len()];
        try_it(&format!("{number}, another moment's"), true, &mut || put(next, file));
        try_it(&format!("{number}, another layer's"), true, &mut || put(&strangers[0], file));
        try_it(&format!("{number}, gone"), false, &mut || fs::remove_file(file).unwrap());
        try_it(&format!("{number}, a folder"), true, &mut || {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        });
    }
    // What is said of two moments stays so.
    try_it("older ones put back", false, &mut || {
        fs::remove_dir_all(&folder).unwrap();
        copy_files(&older, &folder);
    });
    try_it("a link instead of the folder", true, &mut || {
        fs::remove_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(&right, &folder).unwrap();
        // `restore` removes a folder.
        let told = findings(&world, "north");
        assert!(told.iter().any(|words| words.contains("bookmarks")), "{told:?}");
        fs::remove_file(&folder).unwrap();
        copy_files(&right, &folder);
        flip(&files[0], 20);
    });
    assert!(spoiled > 30, "{spoiled} were missed");
}
