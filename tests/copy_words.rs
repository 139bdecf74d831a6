//! Guarded here: what a copy reads is written down in its layer's folder while it is made. One that stays there for ever; one in whose
//! place a stranger put something else, and that makes a copy wrong, takes memory or time without bound, or leads out of the region.

mod copy_support;
#[path = "common/hostile.rs"]
mod hostile;

use std::fs::{self, hard_link};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use copy_support::daemon::{Daemon, MIB, copy_args, named, tasks, wait_until};
use copy_support::{Disk, Random, World};
use hostile::{MEMORY_KIB_MAX, Trap, chmod, make_pipe};
use terrane::catalog::{DiskKind, SnapshotState};
use terrane::ids::SnapshotId;

fn world(mib: usize) -> (World, Disk, SnapshotId) {
    let world = World::new(&["north", "south"]);
    let mut random = Random::new(51);
    let mut disk = Disk::new(&world, "north", 16 * MIB, Some(world.default_key("north")), DiskKind::Data);
    let one = disk.change(&world, "one", |c| c.random(&mut random, 0, mib * MIB));
    (world, disk, one)
}

/// Where the words of a snapshot of region south lie, or would.
fn words_of(world: &World, called: &str) -> PathBuf {
    let (south, copy) = (world.region("south"), named(world, "south", called).unwrap());
    let layer = south.catalog().unwrap().read(|tx| tx.layer_of_snapshot(copy.id)).unwrap();
    south.layer_dir(layer).join("words")
}

/// Begins a copy of 12 MiB, and ends its process amid it.
fn begun(world: &World, called: &str) -> PathBuf {
    world.ok(&copy_args("north/one", called));
    let daemon = Daemon::new(world, &["--max-rate", "6M"]);
    let is_begun = || tasks(world, "south").iter().any(|task| task.is_open() && task.bytes_done >= 4 << 20);
    wait_until("some is there", is_begun);
    assert_eq!(daemon.end().0, 0);
    let words = words_of(world, called);
    assert!(fs::metadata(&words).unwrap().len() >= 40, "{called}: there are some");
    words
}

/// A process that was killed between a copy's last row and this file's removal.
#[test]
fn what_a_whole_copy_no_longer_needs_is_swept() {
    let (world, disk, one) = world(2);
    world.copy(("north", one), "south", "whole", terrane::copy::KeyChoice::AsSource);
    let (left, outside) = (words_of(&world, "whole"), world.path("outside"));
    assert!(!left.exists(), "it takes it away itself");
    fs::write(&left, [1; 80]).unwrap();
    // A folder of another layer that leads out.
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("words"), "nobody's business").unwrap();
    world.ok(&["volume", "create", "--size", "8M", "--name", "made", "--region", "south"]);
    world.ok(&["snapshot", "create", "made", "--name", "other", "--region", "south"]);
    world.ok(&["snapshot", "create", "made", "--name", "more", "--region", "south"]);
    assert!(!left.exists(), "swept by who owns the layers");
    world.equal("south", named(&world, "south", "whole").unwrap().id, &disk.model);
    // What is not a file, or lies behind a link, stays.
    fs::create_dir(&left).unwrap();
    let other = words_of(&world, "other").parent().unwrap().to_owned();
    fs::rename(&other, world.path("kept")).unwrap();
    symlink(&outside, &other).unwrap();
    drop(world.owner("south"));
    assert!(left.is_dir() && outside.join("words").exists());
    fs::remove_file(&other).unwrap();
    fs::rename(world.path("kept"), &other).unwrap();
    fs::remove_dir(&left).unwrap();
    world.ok(&["region", "check", "--region", "south"]);
}

/// What a copy that waits is gone on with is not swept.
#[test]
fn what_a_copy_is_gone_on_with_stays() {
    let (world, disk, _) = world(12);
    let words = begun(&world, "copied");
    drop(world.owner("south"));
    assert!(words.exists());
    world.ok(&["daemon", "--once"]);
    assert!(!words.exists());
    world.equal("south", named(&world, "south", "copied").unwrap().id, &disk.model);
}

type Harm = (&'static str, fn(&Path, &Path));

/// X6, X7: what lies there is nobody's word but the layer's own.
#[test]
fn strange_words_make_no_copy_wrong_and_lead_nowhere() {
    let (world, disk, _) = world(12);
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    for name in ["victim", "second"] {
        fs::write(outside.join(name), "nobody's business").unwrap();
        chmod(&outside.join(name), 0o600);
    }
    let harms: [Harm; 9] = [
        ("a link", |words, outside| symlink(outside.join("victim"), words).unwrap()),
        ("a link to nothing", |words, outside| symlink(outside.join("new"), words).unwrap()),
        ("a second name", |words, outside| hard_link(outside.join("second"), words).unwrap()),
        ("a pipe", |words, _| make_pipe(words)),
        ("a folder", |words, _| {
            fs::create_dir(words).unwrap();
            fs::write(words.join("file"), "x").unwrap();
        }),
        ("a gigabyte", |words, _| fs::File::create(words).unwrap().set_len(1 << 30).unwrap()),
        ("garbage", |words, _| fs::write(words, [0xa5; 40 * 100 + 7]).unwrap()),
        ("open to others", |words, _| {
            fs::write(words, [0; 40]).unwrap();
            chmod(words, 0o666);
        }),
        ("another layer's", |words, outside| {
            fs::copy(outside.with_file_name("anothers"), words).map(drop).unwrap();
        }),
    ];
    fs::copy(begun(&world, "first"), world.path("anothers")).unwrap();
    world.ok(&["task", "cancel", "first", "--region", "south"]);
    for (what, harm) in harms {
        let words = begun(&world, "copied");
        fs::remove_file(&words).unwrap();
        harm(&words, &outside);
        let trap = Trap::set(&outside);
        let ended = hostile::run(world.command(&["daemon", "--once"]));
        trap.check(what, &outside);
        assert!(ended.exit == Some(0) && ended.stderr.contains("1 done"), "{what}: {ended:?}");
        assert!(
            !ended.stderr.contains("panicked") && ended.memory_kib <= MEMORY_KIB_MAX,
            "{what}: {ended:?}"
        );
        let copied = named(&world, "south", "copied").unwrap();
        assert_eq!(copied.state, SnapshotState::Success, "{what}");
        world.equal("south", copied.id, &disk.model);
        world.ok(&["region", "check", "--region", "south"]);
        world.ok(&["snapshot", "delete", "copied", "--region", "south"]);
        assert_eq!(world.holdings("south"), (0, 0, 0), "{what}");
    }
}
