//! Guards against what the simulated disk can't show: power cuts of real file systems, and kills between any two system calls
//! of real commands.
//!
//! `TERRANE_CUTS=n` makes n cuts of each file system and kills at every call, where the gate takes samples.

#[path = "common/tamper.rs"]
mod tamper;
#[path = "common/world.rs"]
mod world;

use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tamper::{Rule, can_tamper};
use world::{MIB, OnDisk, SECTOR, World, is_gone, is_root, must, pattern, read_at, within, write_at};

fn cuts() -> Option<u64> {
    std::env::var("TERRANE_CUTS").ok().map(|n| n.parse().expect("a number of cuts"))
}

/// Sectors that are written again and again; each says which write it is of.
const SECTORS: u64 = 64;

fn sector(write: u64) -> Vec<u8> {
    let mut bytes = pattern(SECTOR, write);
    bytes[..8].copy_from_slice(&write.to_le_bytes());
    bytes
}

/// Which write a sector holds; 0: none.
fn write_of(bytes: &[u8]) -> u64 {
    let write = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let whole = if write == 0 { bytes.iter().all(|b| *b == 0) } else { bytes == sector(write) };
    assert!(whole, "a sector is of no one write");
    write
}

/// What a writer did before the cut: the sector of each write (from 1), the last one answered, the last one synced.
#[derive(Default)]
struct Written {
    places: Vec<u64>,
    answered: u64,
    synced: u64,
}

/// How far the writer is, seen from beside it.
#[derive(Default)]
struct Progress {
    /// The last write given, and the last answered.
    given: AtomicU64,
    answered: AtomicU64,
    cutting: AtomicBool,
    stop: AtomicBool,
}

/// A snapshot that was answered: of the disk after some write in this range.
struct Taken {
    name: String,
    writes: RangeInclusive<u64>,
}

fn snapshot_beside(world: &World, progress: &Progress, name: String) -> Taken {
    let least = progress.answered.load(Ordering::SeqCst);
    world.snapshot("web", &name);
    Taken { name, writes: least..=progress.given.load(Ordering::SeqCst) }
}

/// Writes until `stop`. A sync counts as answered until `cutting`: one that a forced shutdown of ext4 overtakes is told that all is well,
/// of a plain file too, though the blocks that the file had grown by are lost with the journal (Linux 6.18: one cut in forty).
fn write_until(progress: &Progress, file: &fs::File, seed: u64, first: u64) -> Written {
    let mut done = Written { answered: first - 1, synced: first - 1, ..Written::default() };
    let mut random = seed;
    while !progress.stop.load(Ordering::Acquire) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = (random >> 33) % SECTORS;
        let write = first + done.places.len() as u64;
        done.places.push(place);
        progress.given.store(write, Ordering::SeqCst);
        if file.write_all_at(&sector(write), place * SECTOR as u64).is_err() {
            break;
        }
        done.answered = write;
        progress.answered.store(write, Ordering::SeqCst);
        if (random >> 20).is_multiple_of(7) {
            if file.sync_data().is_err() {
                break;
            }
            if !progress.cutting.load(Ordering::SeqCst) {
                done.synced = write;
            }
        }
    }
    done
}

fn newest_of(held: &[u64]) -> u64 {
    held.iter().copied().max().unwrap_or(0)
}

/// Everything up to write `least` is there, and the disk is that after some write.
#[track_caller]
fn check_prefix(disk: &[u8], before: &[u64], done: &Written, first: u64, least: u64, what: &str) -> Vec<u64> {
    let held: Vec<u64> = disk.chunks(SECTOR).map(write_of).collect();
    let newest = newest_of(&held).max(least);
    let mut expected = before.to_vec();
    for (i, place) in done.places.iter().enumerate().take_while(|(i, _)| first + *i as u64 <= newest) {
        expected[*place as usize] = first + i as u64;
    }
    assert_eq!(held, expected, "{what}: not the disk after write {newest}; expected: {least} or later");
    held
}

/// A file system over an image, and a region on it with a volume `web`.
fn region_on_image(world: &World, mkfs: &[&str]) -> (String, OnDisk) {
    let image = world.at("image");
    fs::File::create(&image).unwrap().set_len(700 << 20).unwrap();
    must(mkfs[0], &[&mkfs[1..], &[image.as_str()]].concat());
    let device = must("losetup", &["-f", "--show", &image]);
    let disk = OnDisk::new(&device, world.path("r"));
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    world.volume("web", "64M");
    must("sync", &["-f", &world.at("r")]);
    (device, disk)
}

/// The file system is cut, as by a loss of power.
fn cut(world: &World) {
    must("xfs_io", &["-x", "-c", "shutdown", &world.at("r")]);
}

/// Kills who served a region whose file system was cut; that is mounted anew.
fn after_cut(world: &World, server: i32, disk: OnDisk, device: &str) -> OnDisk {
    let pid = rustix::process::Pid::from_raw(server).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert!(within(20, || is_gone(server)), "the killed server stays");
    must("umount", &["-l", &world.mnt()]);
    drop(disk);
    OnDisk::new(device, world.path("r"))
}

/// A region on a file system of its own, which is cut.
fn cut_a_file_system(kind: &str, mkfs: &[&str]) {
    if !is_root() {
        return;
    }
    let times = cuts().unwrap_or(3);
    let mut world = World::bare(None);
    world.expect_disorder();
    let (device, mut disk) = region_on_image(&world, mkfs);
    let (mut held, mut first, mut snapshots) = (vec![0; SECTORS as usize], 1, 0);
    for turn in 0..times {
        world.mount();
        let file = world::writable(&world.file("web")).unwrap();
        let server = world.server();
        let progress = Progress::default();
        progress.answered.store(first - 1, Ordering::SeqCst);
        let (done, taken) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_until(&progress, &file, turn * 977 + 5, first));
            std::thread::sleep(Duration::from_millis(30 + turn * 37 % 400));
            let taken = (turn % 3 == 1).then(|| snapshot_beside(&world, &progress, format!("s{turn}")));
            progress.cutting.store(true, Ordering::SeqCst);
            cut(&world);
            progress.stop.store(true, Ordering::Release);
            (writer.join().unwrap(), taken)
        });
        drop(file);
        disk = after_cut(&world, server, disk, &device);
        world.ok(&["region", "check"]);
        world.mount();
        let what = format!("{kind}, cut {turn}");
        let read = |file: &Path| read_at(file, 0, SECTORS as usize * SECTOR).unwrap();
        let mut least = done.synced;
        if let Some(Taken { name, writes }) = &taken {
            let what = format!("{what}, snapshot {name} of {writes:?}");
            let bytes = read(&world.snapshot_file(name));
            let newest = newest_of(&check_prefix(&bytes, &held, &done, first, *writes.start(), &what));
            assert!(newest <= *writes.end(), "{what}: it holds write {newest}");
            // What a snapshot holds is durable, and the volume's too.
            least = least.max(newest);
            snapshots += 1;
        }
        held = check_prefix(&read(&world.file("web")), &held, &done, first, least, &what);
        first += done.places.len() as u64;
        if let Some(taken) = taken {
            world.ok(&["snapshot", "delete", &taken.name]);
        }
        world.unmount();
        must("sync", &["-f", &world.at("r")]);
    }
    drop(disk);
    must("losetup", &["-d", &device]);
    println!("{times} cuts of {kind}, {snapshots} with a snapshot");
    assert!(snapshots > 0 || times < 2);
}

#[test]
fn a_cut_of_ext4_leaves_a_prefix() {
    cut_a_file_system("ext4", &["mkfs.ext4", "-q", "-F"]);
}

#[test]
fn a_cut_of_xfs_leaves_a_prefix() {
    cut_a_file_system("xfs", &["mkfs.xfs", "-q", "-f"]);
}

/// Nobody flushes, and after a while what was answered is durable all the same.
#[test]
fn what_nobody_flushes_is_durable_after_a_while() {
    if !is_root() {
        return;
    }
    let mut world = World::bare(None);
    world.expect_disorder();
    let (device, disk) = region_on_image(&world, &["mkfs.ext4", "-q", "-F"]);
    world.mount();
    let (file, server) = (world::writable(&world.file("web")).unwrap(), world.server());
    let is_flushed = || {
        let output = world.run(&["status", "--region", "here", "--output", "json"]);
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        told["regions"][0]["mount"]["live"][0]["unflushed_bytes"] == 0
    };
    file.write_all_at(&pattern(3 << 20, 0), 0).unwrap();
    assert!(within(60, is_flushed), "nothing flushes by itself");
    cut(&world);
    drop(file);
    let disk = after_cut(&world, server, disk, &device);
    world.mount();
    let found = read_at(&world.file("web"), 0, 3 << 20).unwrap();
    assert!(found == pattern(3 << 20, 0), "what was said to be flushed is gone");
    world.unmount();
    drop(disk);
    must("losetup", &["-d", &device]);
}

/// Everything by which a command changes files.
const CALLS: &str = "pwrite64,write,fdatasync,fsync,fallocate,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,\
                     ftruncate";

/// Runs a command that is killed at its `n`-th call; which one that was.
fn killed_at(world: &World, args: &[&str], n: u64) -> Option<String> {
    let rule = Rule { act: "kill", first: n, times: 1, within: (0, u64::MAX), path: "*", calls: CALLS };
    tamper::run(world, &rule, args).pop()
}

fn put_back(world: &World) {
    for name in ["r", "config"] {
        let _ = fs::remove_dir_all(world.path(name));
        must("cp", &["-a", "--sparse=always", &world.at(&format!("kept/{name}")), &world.at(name)]);
    }
}

/// A command to be killed.
struct Killed<'a> {
    args: &'a [&'a str],
    /// The snapshot that may be there or not afterwards.
    changed: &'a str,
    /// The gate kills it at each so many calls.
    stride: u64,
    /// What is done before it, and after it was killed.
    before: fn(&World),
    after: fn(&World),
}

impl<'a> Killed<'a> {
    fn new(args: &'a [&'a str], changed: &'a str) -> Self {
        Self { args, changed, stride: 12, before: |_| (), after: |_| () }
    }
}

/// The catalog becomes one of the sixth version of its schema, of which the next command makes one of today.
fn make_older(world: &World) {
    let catalog = rusqlite::Connection::open(world.path("r/catalog.db")).unwrap();
    let version = || catalog.pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0)).unwrap();
    assert!(version() > OLD_VERSION);
    catalog
        .execute_batch("DROP TABLE schedule_copies; DROP TABLE schedule_snapshots; DROP TABLE schedules")
        .unwrap();
    catalog.pragma_update(None, "user_version", OLD_VERSION).unwrap();
}

const OLD_VERSION: u32 = 6;

/// A region with a volume and two snapshots, killed at each call of each command: it is whole, every disk reads, and the
/// command can be given again.
#[test]
fn a_kill_at_any_call_of_a_command_leaves_a_whole_region() {
    if !can_tamper() {
        return;
    }
    let mut world = World::new();
    world.expect_disorder();
    world.volume("web", "8M");
    world.mount();
    let mut contents = Vec::new();
    for n in 0..3u64 {
        write_at(&world.file("web"), n * MIB, &pattern(2 * MIB as usize, n)).unwrap();
        contents.push(read_at(&world.file("web"), 0, 8 << 20).unwrap());
        if n < 2 {
            world.snapshot("web", &format!("s{n}"));
        }
    }
    world.unmount();
    fs::create_dir(world.path("kept")).unwrap();
    for name in ["r", "config"] {
        must("cp", &["-a", "--sparse=always", &world.at(name), &world.at(&format!("kept/{name}"))]);
    }
    let other_key = |world: &World| drop(world.ok(&["key", "create", "--alias", "other"]));
    let enabled_again = |world: &World| drop(world.ok(&["key", "enable", "default"]));
    let copy = &["snapshot", "copy", "--wait", "s1", "--to", "here", "--key", "other", "--name", "new"];
    let commands = [
        Killed::new(&["snapshot", "create", "web", "--name", "new"], "new"),
        Killed::new(&["snapshot", "delete", "s0"], "s0"),
        Killed::new(&["snapshot", "delete", "s1"], "s1"),
        Killed::new(&["volume", "rollback", "web", "--snapshot", "s0"], ""),
        Killed::new(&["volume", "create", "--name", "second", "--snapshot", "s1"], ""),
        Killed { before: other_key, ..Killed::new(copy, "new") },
        Killed::new(&["volume", "resize", "web", "--size", "16M"], ""),
        Killed { after: enabled_again, stride: 4, ..Killed::new(&["key", "disable", "default"], "") },
        Killed { stride: 4, ..Killed::new(&["key", "rotate", "default"], "") },
        Killed { before: make_older, stride: 3, ..Killed::new(&["volume", "list"], "") },
    ];
    let mut kills = 0;
    for (turn, Killed { args, changed, stride, before, after }) in commands.iter().enumerate() {
        let stride = if cuts().is_some() { 1 } else { *stride };
        let mut n = 1 + turn as u64 % stride;
        loop {
            put_back(&world);
            before(&world);
            let Some(call) = killed_at(&world, args, n) else { break };
            kills += 1;
            let what = format!("{args:?} killed at call {n}, {call}");
            after(&world);
            world.mount();
            for (i, content) in contents.iter().enumerate().take(2) {
                let name = format!("s{i}");
                match read_at(&world.snapshot_file(&name), 0, 8 << 20) {
                    Ok(found) => assert!(found == *content, "{what}: snapshot {name} differs"),
                    Err(e) => assert!(name == *changed, "{what}: snapshot {name}: {e}"),
                }
            }
            let found = read_at(&world.file("web"), 0, 8 << 20).unwrap();
            let rolled_back = args.contains(&"rollback") && found == contents[0];
            assert!(found == contents[2] || rolled_back, "{what}: the volume differs");
            world.unmount();
            world.ok(&["region", "check"]);
            let again = world.run(args);
            // It was done, or it is done now.
            let words = world::words(&again);
            assert!(
                again.status.success() || matches!(again.status.code(), Some(3 | 5)),
                "{what}, again: {words}"
            );
            n += stride;
        }
        assert!(n > stride, "{args:?} was never killed");
        println!("{args:?}: at most {n} calls");
    }
    assert!(kills > 20, "{kills}");
    println!("{kills} kills");
}
