//! Guards against what errors of the file system below make of a real mount: wrong bytes, a flush that says yes falsely, a
//! volume that no reopening brings back, and answered writes or snapshots that are gone with the error. And against calls that did
//! a part, or were interrupted, being taken for ones that were made or failed.
//!
//! The gate takes a sample of the calls; `TERRANE_STRIDE=n` lets each n-th call of the script fail, once and from then on, and
//! `TERRANE_FILES=/map` those of the targets below that have this in their name alone.

#[path = "common/script.rs"]
mod script;
#[path = "common/tamper.rs"]
mod tamper;
#[path = "common/world.rs"]
mod world;

use std::os::unix::fs::FileExt;

use script::{Outcome, SCRIPT, SIZE, State, Step, keep, listed, put_back};
use tamper::{Rule, Tampered, can_tamper};
use world::{MIB, World, errno, pattern, read_at, within, writable, write_at};

/// An error, the first of the calls that it hits, and how many.
type Sample = (i32, u64, u64);

/// What fails: a part of the file's name, the calls, and the gate's sample of them, which has each error once and from then on. The
/// script makes as many calls, whatever comes of them.
const TARGETS: &[(&str, &str, &[Sample])] = &[
    ("/data", "pwrite64", &[(libc::ENOSPC, 3, FOR_EVER)]),
    ("/data", "fdatasync", &[(libc::EIO, 4, ONCE)]),
    ("/data", "pread64", &[(libc::EIO, 1, FOR_EVER)]),
    ("/data", "fallocate", &[(libc::ENOSPC, 1, ONCE)]),
    ("/map", "pwrite64", &[(libc::EIO, 2, FOR_EVER)]),
    ("/map", "fdatasync", &[(libc::ENOSPC, 1, ONCE)]),
    ("/map", "pread64", &[(libc::EIO, 1, ONCE)]),
    ("/layers/", "write,fsync,ftruncate", &[(libc::ENOSPC, 2, FOR_EVER)]),
    ("/catalog.db", "pwrite64,fdatasync,fsync,ftruncate", &[(libc::ENOSPC, 5, FOR_EVER)]),
    ("/catalog.db", "pread64", &[(libc::EIO, 3, ONCE)]),
    (
        "*",
        "rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat",
        // A layer that can neither be made nor taken away leaves no folder without a row.
        &[(libc::ENOSPC, 4, ONCE), (libc::EIO, 2, FOR_EVER)],
    ),
];

const ONCE: u64 = 1;
const FOR_EVER: u64 = 1 << 40;

/// What the region may hold.
struct Allowed {
    /// What it may be now: more than one where a step failed that may have been carried out all the same.
    now: Vec<State>,
    /// What it was since the last flush that said yes, the newest last: a volume opened anew may be one of these.
    past: Vec<State>,
}

impl Allowed {
    /// A step has ended so. `latched`: meanwhile something has latched, or was opened anew; else an error of the file has
    /// changed nothing.
    fn step(&mut self, number: usize, step: Step, outcome: &Outcome, latched: bool) {
        let next: Vec<_> = self.now.iter().map(|state| state.after(number, step)).collect();
        match outcome {
            Outcome::NotBegun(_) => {}
            Outcome::Failed(_) if step.is_of_the_file() && !latched => {}
            Outcome::Failed(_) => self.now.extend(next),
            Outcome::Done if step.is_durable() => {
                self.now = next;
                self.past.clear();
            }
            Outcome::Done => self.past.extend(std::mem::replace(&mut self.now, next)),
        }
        if latched {
            self.now.extend_from_slice(&self.past);
        }
        let mut kept: Vec<State> = Vec::new();
        for state in self.now.drain(..) {
            if !kept.contains(&state) {
                kept.push(state);
            }
        }
        self.now = kept;
        assert!(self.now.len() < 100, "too much is possible to tell right from wrong");
    }

    /// The catalog was read: it is durable at once.
    fn list(&mut self, names: &[&str], what: &str) {
        for states in [&mut self.now, &mut self.past] {
            states.retain(|state| state.snapshots.keys().eq(names));
        }
        assert!(!self.now.is_empty(), "{what}: the snapshots are {names:?}");
    }

    /// The volume was read.
    fn read(&mut self, disk: &[u8], what: &str) {
        let possible = self.now.len();
        self.now.retain(|state| state.disk == disk);
        assert!(!self.now.is_empty(), "{what}: wrong bytes; {possible} disks were possible");
        if let Some(at) = self.past.iter().rposition(|state| state.disk == disk) {
            // Opened anew as that: what came later is gone.
            self.past.truncate(at);
        }
    }
}

fn is_told(error: &std::io::Error, rule: &Rule) -> bool {
    let code = error.raw_os_error();
    code == Some(libc::EIO) || code == rule.act.parse().ok() && code == Some(libc::ENOSPC)
}

/// Calls that may do a part: whoever makes them goes on with the rest.
const PARTIAL: &str = "pwrite64,pwritev,write,writev,pread64";

/// Calls that may be interrupted: whoever makes them makes them again.
const INTERRUPTIBLE: &str = "pwrite64,pwritev,write,writev,pread64,fdatasync,fsync,ftruncate,fallocate";

/// The script where calls do a part or are interrupted: it must not be seen in anything. How many were.
fn is_not_seen(world: &World, rule: &Rule) -> usize {
    put_back(world);
    let mut mount = Tampered::mount(world, Some(rule));
    let mut expected = State::new();
    for (number, step) in SCRIPT.iter().enumerate() {
        let outcome = step.perform(world, number, 1);
        let what = format!("{rule:?}, step {number}, {step:?}");
        assert!(outcome.error().is_none(), "{what}: {:?}, {}", outcome.error(), mount.log());
        expected = expected.after(number, *step);
        let disk = read_at(&world.file("web"), 0, SIZE).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(disk == expected.disk, "{what}: wrong bytes");
    }
    assert!(!mount.has_ended() && !mount.log().contains("latched"), "{rule:?}: {}", mount.log());
    assert!(State::found(world) == expected, "{rule:?}: a snapshot differs");
    let unmounted = world.run(&["unmount", &world.mnt()]);
    assert!(unmounted.status.success(), "{rule:?}: {}, {}", world::words(&unmounted), mount.log());
    let hits = mount.hits();
    mount.end();
    world.ok(&["region", "check"]);
    world.mount();
    assert!(State::found(world) == expected, "{rule:?}: it differs when it is mounted again");
    world.unmount();
    hits.len()
}

/// Half of what is asked for is done, at once or each time anew; or a call is interrupted, and done when it is made again.
#[test]
fn a_call_that_did_a_part_or_was_interrupted_is_gone_on_with() {
    if !can_tamper() {
        return;
    }
    let mut world = World::new();
    world.expect_disorder();
    world.volume("web", "8M");
    keep(&world);
    for (act, path, calls) in [
        ("short", "/r/", PARTIAL),
        ("again", "/r/layers/", INTERRUPTIBLE),
        ("again", "/r/catalog.db", "pwrite64,pread64,ftruncate"),
    ] {
        let rule = |first, times| Rule { act, first, times, within: (0, u64::MAX), path, calls };
        // All of them.
        let hits = is_not_seen(&world, &rule(1, FOR_EVER));
        assert!(hits > 20, "{act} {path}: {hits}");
        println!("{hits} calls: {act} {path}");
        // Or one alone.
        let Some(stride) = tamper::stride() else { continue };
        let places = (1..).step_by(stride as usize).map(|first| is_not_seen(&world, &rule(first, ONCE)));
        println!("{} calls, each alone: {act} {path}", places.take_while(|hits| *hits > 0).count());
    }
    // SQLite takes a sync that was interrupted for one that failed: the command says so, and nothing is lost.
    let calls = "fdatasync,fsync";
    let rule =
        Rule { act: "again", first: 1, times: FOR_EVER, within: (0, u64::MAX), path: "/catalog.db", calls };
    assert!(withstands(&world, &rule));
}

/// The script under a fault: what is read is always right or EIO.
fn endure(world: &World, mount: &mut Tampered, rule: &Rule) -> Allowed {
    let mut allowed = Allowed { now: vec![State::new()], past: Vec::new() };
    let mut latches = 0;
    for (number, step) in SCRIPT.iter().enumerate() {
        let outcome = step.perform(world, number, 1);
        let what = format!("{rule:?}, step {number}, {step:?}, {:?}", outcome.error());
        assert!(outcome.error().is_none() || !mount.hits().is_empty(), "{what}, and nothing was hit");
        let before = std::mem::replace(&mut latches, mount.log().matches("latched").count());
        allowed.step(number, *step, &outcome, latches > before);
        allowed.list(&listed(world), &what);
        match read_at(&world.file("web"), 0, SIZE) {
            Ok(disk) => allowed.read(&disk, &what),
            // A latched volume can't be opened anew while there is no space for that.
            Err(e) if !mount.hits().is_empty() && is_told(&e, rule) => {}
            Err(e) => panic!("{what}, read: {e}, {:?}", mount.hits()),
        }
    }
    assert!(!mount.has_ended(), "{rule:?}: the server has ended: {}", mount.log());
    allowed
}

/// The script under a fault; and when the fault is gone everything is there and goes on, without a remount. Whether anything
/// was hit.
fn withstands(world: &World, rule: &Rule) -> bool {
    put_back(world);
    let mut mount = Tampered::mount(world, None);
    mount.arm(rule);
    let mut allowed = endure(world, &mut mount, rule);
    mount.disarm();
    let hits = mount.hits();
    let what = format!("{rule:?}, {:?}, {}", hits.first(), mount.log());
    let disk = read_at(&world.file("web"), 0, SIZE).unwrap_or_else(|e| panic!("reopened: {e}: {what}"));
    allowed.read(&disk, &what);
    assert!(allowed.now.contains(&State::found(world)), "a snapshot differs: {what}");
    // It goes on: writes, flushes, snapshots.
    let file = writable(&world.file("web")).unwrap();
    assert_eq!(errno(file.write_all_at(&pattern(12345, 77), 5 * MIB)), 0, "{what}");
    assert_eq!(errno(file.sync_all()), 0, "{what}");
    drop(file);
    let taken = world.run(&["snapshot", "create", "web", "--name", "after"]);
    assert!(taken.status.success(), "{}: {what}", world::words(&taken));
    let disk = read_at(&world.file("web"), 0, SIZE).unwrap();
    let unmounted = world.run(&["unmount", &world.mnt()]);
    assert!(unmounted.status.success(), "{}: {what}", world::words(&unmounted));
    let log = mount.log();
    mount.end();
    let checked = world.run(&["region", "check"]);
    assert!(checked.status.success(), "{}: {what} {log}", world::words(&checked));
    world.mount();
    assert!(read_at(&world.file("web"), 0, SIZE).unwrap() == disk, "{what}");
    assert!(read_at(&world.snapshot_file("after"), 0, SIZE).unwrap() == disk, "{what}");
    world.unmount();
    !hits.is_empty()
}

#[test]
fn an_error_of_any_call_gives_eio_and_never_wrong_bytes() {
    if !can_tamper() {
        return;
    }
    let mut world = World::new();
    world.expect_disorder();
    world.volume("web", "8M");
    keep(&world);
    match tamper::stride() {
        Some(stride) => println!("{} faults in all", each_call_fails(&world, stride)),
        None => a_sample_fails(&world),
    }
}

/// Each of the errors, once and from then on.
fn a_sample_fails(world: &World) {
    assert!(std::env::var_os("TERRANE_FILES").is_none(), "a part needs TERRANE_STRIDE");
    let samples =
        TARGETS.iter().flat_map(|(path, calls, samples)| samples.iter().map(move |s| (path, calls, s)));
    for (path, calls, (act, first, times)) in samples {
        let act = act.to_string();
        let rule = Rule { act: &act, first: *first, times: *times, within: (0, u64::MAX), path, calls };
        assert!(withstands(world, &rule), "{rule:?}: nothing was hit");
    }
}

fn each_call_fails(world: &World, stride: u64) -> u64 {
    let part = std::env::var("TERRANE_FILES").ok();
    let is_meant = |path: &str| part.as_ref().is_none_or(|part| path.contains(part));
    assert!(TARGETS.iter().any(|(path, ..)| is_meant(path)), "no target is of {part:?}");
    let mut faults = 0;
    for (path, calls, _) in TARGETS.iter().filter(|(path, ..)| is_meant(path)) {
        for (act, times) in
            [libc::EIO, libc::ENOSPC].into_iter().flat_map(|act| [(act, ONCE), (act, FOR_EVER)])
        {
            let act = act.to_string();
            let rule = |first| Rule { act: &act, first, times, within: (0, u64::MAX), path, calls };
            let mut places = (1..9.min(stride)).chain((9.min(stride)..).step_by(stride as usize));
            let mut hit = 0u64;
            while places.next().is_some_and(|first| withstands(world, &rule(first))) {
                hit += 1;
                if hit.is_multiple_of(50) {
                    println!("so far {hit}: {path} {calls} {act} {times}");
                }
            }
            faults += hit;
            println!("{hit} faults: {path} {calls} {act} {times}");
        }
    }
    faults
}

/// A mebibyte of a pattern at the beginning, flushed.
fn put(world: &World, volume: &str, seed: u64) -> std::io::Result<()> {
    let file = writable(&world.file(volume))?;
    file.write_all_at(&pattern(MIB as usize, seed), 0)?;
    file.sync_all()
}

fn has(path: &std::path::Path, seed: u64) -> bool {
    read_at(path, 0, MIB as usize).unwrap() == pattern(MIB as usize, seed)
}

/// Writes, flushes, reads and snapshots.
#[track_caller]
fn goes_on(world: &World, volume: &str, seed: u64, what: &str) {
    put(world, volume, seed).unwrap_or_else(|e| panic!("{what}: {volume}: {e}"));
    let name = format!("{volume}-{seed}");
    let taken = world.run(&["snapshot", "create", volume, "--name", &name]);
    assert!(taken.status.success(), "{what}: {}", world::words(&taken));
    assert!(has(&world.file(volume), seed) && has(&world.snapshot_file(&name), seed), "{what}: other bytes");
}

/// What of one volume fails latches that one, and is nothing to another of the mount.
#[test]
fn another_volume_goes_on() {
    if !can_tamper() {
        return;
    }
    const SLOTS: u64 = 64 * MIB;
    const END: u64 = u64::MAX >> 1;
    let mut world = World::new();
    world.expect_disorder();
    ["web", "other"].iter().for_each(|name| drop(world.volume(name, "8M")));
    let mount = Tampered::mount(&world, None);
    let parts = [
        ("map", "pwrite64", (0, END)),
        ("map", "fdatasync", (0, END)),
        ("data", "pwrite64", (0, 8192)), // superblocks
        ("data", "pwrite64", (SLOTS, END)),
    ];
    for (seed, (file, calls, within)) in (1..).zip(parts) {
        put(&world, "web", seed).unwrap();
        let path = format!("{}/{file}", world.active_layer("web").file_name().unwrap().to_str().unwrap());
        let rule = Rule { act: "5", first: 1, times: FOR_EVER, within, path: &path, calls };
        let what = format!("{rule:?}");
        mount.arm(&rule);
        // Its seal needs all of them, and so does what is written where slots fail. What comes of it is not asked.
        let _ = writable(&world.file("web")).unwrap().write_all_at(&pattern(MIB as usize, 99), 4 * MIB);
        let _ = world.run(&["snapshot", "create", "web", "--name", &format!("web-{seed}")]);
        let state = || world.json(&["volume", "show", "web"])["state"].clone();
        assert!(self::within(20, || state() == "latched"), "{what}: {} {}", state(), mount.log());
        assert!(mount.hits().len() as u64 >= seed, "{what}: nothing was hit");
        goes_on(&world, "other", seed, &what);
        mount.disarm();
        assert!(has(&world.file("web"), seed), "{what}: what was flushed is gone");
    }
    world.unmount();
    mount.end();
    world.ok(&["region", "check"]);
}

/// From now on the catalog takes no commit.
const NO_COMMIT: Rule = Rule {
    act: "5",
    first: 1,
    times: FOR_EVER,
    within: (0, u64::MAX >> 1),
    path: "/catalog.db-wal",
    calls: "pwrite64",
};

/// A seal whose commit fails is told to the catalog later; the volume goes on, and its next snapshot holds all of it.
#[test]
fn a_catalog_that_could_not_be_told_of_a_seal_is_told_later() {
    if !can_tamper() {
        return;
    }
    let mut world = World::new();
    world.expect_disorder();
    world.volume("web", "8M");
    let mount = Tampered::mount(&world, None);
    write_at(&world.file("web"), 0, &pattern(MIB as usize, 1)).unwrap();
    assert!(within(20, || world.layers() == 2), "the next layer is not ready");
    world.volume("other", "8M");
    mount.arm(&NO_COMMIT);
    let output = world.run(&["snapshot", "create", "web", "--name", "lost"]);
    let said = world::words(&output);
    assert!(!output.status.success() && said.contains("disk I/O error"), "{said}");
    write_at(&world.file("web"), MIB, &pattern(MIB as usize, 2)).unwrap();
    // Another one is opened, written and flushed meanwhile.
    put(&world, "other", 7).unwrap();
    mount.disarm();
    assert!(has(&world.file("other"), 7));
    world.snapshot("web", "kept");
    write_at(&world.file("web"), 2 * MIB, &pattern(MIB as usize, 3)).unwrap();
    let check = |path: &std::path::Path, parts: u64| {
        for n in 0..parts {
            let found = read_at(path, n * MIB, MIB as usize).unwrap();
            assert!(found == pattern(MIB as usize, n + 1), "part {n} of {}", path.display());
        }
    };
    check(&world.snapshot_file("kept"), 2);
    world.kill_server();
    mount.end();
    world.mount_again();
    check(&world.snapshot_file("kept"), 2);
    check(&world.file("web"), 3);
    assert_eq!(world.json(&["snapshot", "list"]).as_array().unwrap().len(), 1);
    world.unmount();
}

/// A resize is cut at any of its commits: it has not happened, or, cut between its seal and its last commit, is done at the next
/// opening. What was written after it stays.
#[test]
fn a_resize_cut_before_its_commit_is_done_at_the_next_opening() {
    if !can_tamper() {
        return;
    }
    const OLD: u64 = 4 * MIB;
    const NEW: u64 = 8 * MIB;
    let sector = |n| pattern(world::SECTOR, n);
    let mut done_later = 0;
    for first in (1..).step_by(5) {
        let mut world = World::new();
        world.expect_disorder();
        world.volume("web", "4M");
        let size_in_catalog = || world.json(&["volume", "show", "web"])["size_bytes"].as_u64().unwrap();
        let mount = Tampered::mount(&world, None);
        let file = writable(&world.file("web")).unwrap();
        file.write_all_at(&sector(1), 0).unwrap();
        world.snapshot("web", "s1");
        file.write_all_at(&sector(2), 4096).unwrap();
        // Nothing but the resize commits: the next layer is ready, and the seal is finished.
        let is_sealed = || world.json(&["snapshot", "show", "s1"])["stored_bytes"].as_u64() > Some(0);
        assert!(within(20, || world.layers() == 3 && is_sealed()), "the next layer is not ready");
        mount.arm(&Rule { first, ..NO_COMMIT });
        let output = world.run(&["volume", "resize", "web", "--size", "8M"]);
        if output.status.success() {
            break;
        }
        assert!(world::words(&output).contains("disk I/O error"), "{first}: {}", world::words(&output));
        file.write_all_at(&sector(3), OLD - 4096).unwrap();
        file.sync_all().unwrap();
        world.kill_server();
        mount.end();
        drop(file);
        world.unmount();
        assert_eq!(size_in_catalog(), OLD);

        // Cut again where the opening would commit it.
        let mount = Tampered::mount(&world, None);
        mount.arm(&NO_COMMIT);
        let opened = read_at(&world.file("web"), 0, 4096).is_ok();
        world.kill_server();
        mount.end();
        world.mount_again();
        for (at, expected) in [(0, 1), (4096, 2), (OLD - 4096, 3)] {
            assert!(read_at(&world.file("web"), at, 4096).unwrap() == sector(expected), "{first}: at {at}");
        }
        if size_in_catalog() == NEW {
            done_later += 1;
            assert!(!opened, "{first}: its commit was refused");
            assert!(read_at(&world.file("web"), NEW - 4096, 4096).unwrap() == [0; 4096]);
            write_at(&world.file("web"), NEW - 4096, &sector(4)).unwrap();
        }
        world.snapshot("web", "s2");
        world.unmount();
        world.ok(&["region", "check"]);
    }
    println!("{done_later} were done later");
    assert!(done_later > 0, "it was never cut after its seal");
}
