//! Guards against folds that go wrong only in company: snapshots taken, deleted, copied and rolled back, volumes made from
//! them, a read-only mount and several processes, all at once, on one region.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use world::{MIB, World, pattern, read_at, within, write_at};

const DISK: usize = 16 << 20;

/// Each volume's writer stamps its disk whole, so that any snapshot is of one stamp, or of one and the next over its beginning.
fn stamp(path: &std::path::Path, seed: u64) {
    for n in 0..4 {
        write_at(path, n * 4 * MIB, &pattern(MIB as usize, seed)).unwrap();
    }
}

/// Whether a disk is of one stamp, or of two that follow each other.
fn is_whole(bytes: &[u8], stamps: u64) -> bool {
    let at = |n: usize| &bytes[n * 4 * MIB as usize..][..MIB as usize];
    let seeds: Vec<Option<u64>> = (0..4)
        .map(|n| match at(n).iter().all(|b| *b == 0) {
            true => Some(0),
            false => (1..=stamps).rev().find(|seed| at(n)[..4096] == pattern(4096, *seed)[..]),
        })
        .collect();
    let whole = (0..4).zip(&seeds).all(|(n, seed)| match seed {
        Some(0) => true,
        Some(seed) => at(n) == pattern(MIB as usize, *seed),
        None => false,
    });
    // Sectors of one write may be new and old; then no whole stamp is found, and the next test below is not for it.
    whole && seeds.windows(2).all(|w| w[0] >= w[1])
}

#[test]
fn many_hands_and_one_folder() {
    let world = World::new();
    world.ok(&["region", "init", &world.at("there"), "--name", "there", "-q"]);
    world.ok(&["key", "create", "--alias", "kk", "--region", "there"]);
    world.ok(&["volume", "create", "--name", "web", "--size", "16M", "--region", "here"]);
    world.ok(&["mount", &world.mnt(), "--region", "here"]);
    fs::create_dir(world.path("ro")).unwrap();
    world.ok(&["mount", &world.at("ro"), "--read-only", "--region", "here"]);
    let names = Mutex::new(Vec::<String>::new());
    // Those a reader had open when they were to be deleted.
    let kept = Mutex::new(Vec::<String>::new());
    let (stop, stamps) = (AtomicBool::new(false), AtomicU64::new(0));
    let here = ["--region", "here"];
    std::thread::scope(|scope| {
        let (world, names, kept, stop, stamps) = (&world, &names, &kept, &stop, &stamps);
        let ended = || stop.load(Ordering::Acquire);
        // Between stamps only, so that each snapshot is of one.
        scope.spawn(move || {
            for turn in 1..=60u64 {
                stamp(&world.file("web"), turn);
                stamps.store(turn, Ordering::Release);
                let name = format!("s{turn}");
                world.ok(&[&["snapshot", "create", "web", "--name", &name][..], &here].concat());
                names.lock().unwrap().push(name);
                let mut all = names.lock().unwrap();
                if all.len() > 5 {
                    let at = turn as usize * 7 % all.len();
                    let gone = all.remove(at);
                    drop(all);
                    let output = world.run(&[&["snapshot", "delete", &gone][..], &here].concat());
                    match output.status.code() {
                        Some(0) => {}
                        Some(5) => kept.lock().unwrap().push(gone),
                        _ => panic!("{}", world::words(&output)),
                    }
                }
            }
            stop.store(true, Ordering::Release);
        });
        // Copies to the other region.
        scope.spawn(move || {
            for n in 0.. {
                if ended() {
                    break;
                }
                let Some(name) = names.lock().unwrap().last().cloned() else { continue };
                let copy = format!("c{n}-{name}");
                let args = [
                    "snapshot", "copy", "--wait", &name, "--to", "there", "--key", "kk", "--name", &copy,
                    "--region", "here",
                ];
                let output = world.run(&args);
                // Its source may be deleted before it has begun.
                assert!(matches!(output.status.code(), Some(0 | 3..=5)), "{}", world::words(&output));
            }
        });
        // Volumes made from snapshots, by processes of their own, and deleted again.
        scope.spawn(move || {
            for n in 0.. {
                if ended() {
                    break;
                }
                let Some(name) = names.lock().unwrap().first().cloned() else { continue };
                let volume = format!("v{n}");
                let output = world.run(&[
                    "volume",
                    "create",
                    "--name",
                    &volume,
                    "--snapshot",
                    &name,
                    "--region",
                    "here",
                ]);
                if output.status.success() {
                    let bytes = read_at(&world.file(&volume), 0, DISK).unwrap();
                    assert!(is_whole(&bytes, stamps.load(Ordering::Acquire)), "a volume made of {name}");
                    write_at(&world.file(&volume), 0, &pattern(MIB as usize, 7)).unwrap();
                    world.ok(&["volume", "delete", &volume, "--region", "here"]);
                } else {
                    assert!(matches!(output.status.code(), Some(3..=5)), "{}", world::words(&output));
                }
            }
        });
        // Readers, through both mounts.
        for mount in ["mnt", "ro"] {
            scope.spawn(move || {
                while !ended() {
                    let Some(name) = names.lock().unwrap().first().cloned() else { continue };
                    let path = world.path(mount).join("by-name/snapshots").join(&name);
                    // It may have been deleted meanwhile.
                    let Ok(bytes) = read_at(&path, 0, DISK) else {
                        assert!(!names.lock().unwrap().contains(&name) || !path.exists(), "{mount}: {name}");
                        continue;
                    };
                    assert!(is_whole(&bytes, stamps.load(Ordering::Acquire)), "{mount}: {name}");
                }
            });
        }
    });
    let last = stamps.load(Ordering::Acquire);
    let newest = read_at(&world.file("web"), 0, DISK).unwrap();
    assert!(newest[..MIB as usize] == pattern(MIB as usize, last));
    names.lock().unwrap().append(&mut kept.lock().unwrap());
    for name in names.lock().unwrap().iter() {
        let seed = name[1..].parse::<u64>().unwrap();
        let bytes = read_at(&world.snapshot_file(name), 0, DISK).unwrap();
        for n in 0..4 {
            assert!(bytes[n * 4 * MIB as usize..][..MIB as usize] == pattern(MIB as usize, seed), "{name}");
        }
    }
    world.ok(&["unmount", &world.at("ro")]);
    for name in names.lock().unwrap().drain(..) {
        world.ok(&["snapshot", "delete", &name, "--region", "here"]);
    }
    let left = || world.ok(&["snapshot", "list", "--region", "here"]);
    assert!(within(60, || world.layers() == 2), "{} layers\n{}", world.layers(), left());
    assert!(read_at(&world.file("web"), 0, DISK).unwrap() == newest);
    // Every copy holds one stamp.
    world.ok(&["unmount", &world.mnt()]);
    world.ok(&["mount", &world.mnt(), "--region", "there"]);
    for entry in fs::read_dir(world.path("mnt/by-name/snapshots")).unwrap() {
        let path = entry.unwrap().path();
        let seed = path.to_str().unwrap().rsplit("-s").next().unwrap().parse::<u64>().unwrap();
        let bytes = read_at(&path, 0, DISK).unwrap();
        assert!(bytes[..MIB as usize] == pattern(MIB as usize, seed), "{}", path.display());
        assert!(is_whole(&bytes, seed), "{}", path.display());
    }
}
