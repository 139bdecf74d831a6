//! Guards against a power cut anywhere in what a person and his programs do to whole regions: volumes made, written,
//! resized, rolled back and deleted; snapshots of one or several; copies under other keys; folds. After it a volume is a
//! prefix of its writes, a snapshot or copy is whole or not there, of a group all are there or none, and nothing is left over.
//!
//! The real code runs, SQLite, folders, renames and mapped logs with it, on a file system that is kept in memory
//! (`fs_support`). Places of the trace and kinds of cut are drawn by seed; a failure prints the shortest script that shows it.
//!
//! `TERRANE_CRASH_SEEDS=n` runs n seeds at many places of each; `tools/crash` does.

mod fs_support;

use std::sync::atomic::{AtomicU64, Ordering};

use fs_support::common::image::Cut;
use fs_support::common::shrink::{failure, run_or_shrink};
use fs_support::common::{Random, seeds};
use fs_support::script::{Script, Step};
use fs_support::sweep::Sweep;
use fs_support::world::{REGIONS, World, new_regions};
use fs_support::{Failing, FsFault, FsMount, FsState, FsTrace};

const STEPS: usize = 40;

/// Runs a script and cuts it at `places` places; how many disks were opened.
fn run(mount: &FsMount, regions: &FsState, steps: &[Step], seed: u64, places: usize) -> u64 {
    let mut script = Script::new(mount, regions);
    for step in steps {
        script.step(step).unwrap_or_else(|e| panic!("{step:?} failed without a fault: {e}"));
    }
    script.close(seed.is_multiple_of(2)).unwrap();
    let trace = script.disk.take_trace();
    let Script { history, disk, .. } = script;
    drop(disk);
    let sweep = Sweep::new(mount);
    let mut random = Random::new(seed ^ 0x5eed);
    let mut chosen: Vec<_> = (0..places).map(|_| place(&trace, &mut random)).collect();
    chosen.push(trace.len);
    chosen.sort_unstable();
    for n in chosen {
        let cut = Cut::any(&mut random);
        let left = trace.after(n, cut, random.next());
        if let Some(why) = failure(|| sweep.check(&left, &history, n, &mut random)) {
            panic!("cut after {n} of {} operations, {cut:?}: {why}", trace.len);
        }
    }
    sweep.states()
}

/// A place where a cut may tell something: rarely within the zeros that a new layer's log begins with.
fn place(trace: &FsTrace, random: &mut Random) -> usize {
    loop {
        let n = random.below(trace.len as u64 + 1) as usize;
        if !trace.is_zeros(n) || random.one_in(50) {
            return n;
        }
    }
}

#[test]
#[ignore = "the process that serves the file system of the others"]
fn serve_a_file_system() {
    fs_support::serve_if_asked();
}

/// Runs a script in which something fails, until a step says so; what was answered holds, and the rest is as after a cut.
fn run_failing(mount: &FsMount, regions: &FsState, steps: &[Step], seed: u64, faults: usize) -> u64 {
    let mut random = Random::new(seed ^ 0xfa17);
    let sweep = Sweep::new(mount);
    let mut whole = Script::new(mount, regions);
    whole.disk.set_fault(None);
    let done = steps.iter().try_for_each(|step| whole.step(step)).and_then(|()| whole.close(true));
    done.expect("nothing fails without a fault");
    let counts = [Failing::Changes, Failing::Reads].map(|failing| whole.disk.counted(failing));
    drop(whole);
    for _ in 0..faults {
        let fault = any_fault(counts, &mut random);
        if let Some(why) = failure(|| run_with_fault(mount, regions, steps, fault, &sweep, &mut random)) {
            panic!("{fault:?}: {why}");
        }
    }
    sweep.states()
}

fn any_fault([changes, reads]: [u64; 2], random: &mut Random) -> FsFault {
    let (failing, count) =
        if random.one_in(3) { (Failing::Reads, reads) } else { (Failing::Changes, changes) };
    let full = failing == Failing::Changes && random.one_in(3);
    FsFault {
        failing,
        at: random.below(count),
        for_ever: random.one_in(2),
        errno: if full { libc::ENOSPC } else { libc::EIO },
    }
}

fn run_with_fault(
    mount: &FsMount,
    regions: &FsState,
    steps: &[Step],
    fault: FsFault,
    sweep: &Sweep,
    random: &mut Random,
) {
    let mut script = Script::new(mount, regions);
    script.disk.set_fault(Some(fault));
    // What was best effort may fail unseen.
    let _ = steps.iter().try_for_each(|step| script.step(step)).and_then(|()| script.close(true));
    script.close(false).expect("to be killed can't fail");
    script.disk.set_fault(None);
    let trace = script.disk.take_trace();
    let cut = Cut::any(random);
    let left = trace.after(trace.len, cut, random.next());
    // A second fault, as the region is opened again: that may fail, and does no harm.
    let disk = sweep.disk(&left);
    let changes = 1 + random.below(300);
    disk.set_fault(Some(any_fault([changes, 1 + changes / 4], random)));
    disk.start_trace();
    try_to_open(&World::of(&disk));
    disk.set_fault(None);
    let recovery = disk.take_trace();
    let n = random.below(recovery.len as u64 + 1) as usize;
    let left = recovery.after(n, Cut::any(random), random.next());
    // What the kernel has not told yet of writes that failed it tells the next who opens the file.
    try_to_open(&World::of(&disk));
    for (what, disk) in [("as it is", disk), ("after a cut", sweep.disk(&left))] {
        if let Some(why) = failure(|| drop(sweep.recover(&disk, &script.history, trace.len))) {
            panic!("{cut:?}, and a second fault in recovery, {what}: {why}");
        }
    }
}

/// As a mount begins and ends; it may fail.
fn try_to_open(world: &World) {
    for region in REGIONS {
        let Ok(host) = world.owner(region) else { continue };
        let volumes = host.region().catalog().map(|mut c| c.read(|tx| tx.volumes()));
        for volume in volumes.into_iter().flatten().flatten() {
            let _ = host.open_volume(volume.id, false);
        }
        let _ = host.fold(false, &mut |_| true);
        let _ = host.close();
    }
}

/// Runs the scripts of some seeds, on as many threads as there are processors; how many disks were opened.
fn each_seed(
    seeds: std::ops::Range<u64>,
    run: impl Fn(&FsMount, &FsState, &[Step], u64) -> u64 + Sync,
) -> u64 {
    let (next, states) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                let mount = FsMount::new();
                let regions = new_regions(&mount);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    run_or_shrink(&format!("seed {seed}"), &Step::script(seed, STEPS), |steps| {
                        states.fetch_add(run(&mount, &regions, steps, seed), Ordering::Relaxed);
                    });
                }
            });
        }
    });
    states.into_inner()
}

#[test]
fn a_cut_anywhere_leaves_whole_regions() {
    let (seeds, full) = seeds(6);
    let places = if full { 150 } else { 16 };
    let states = each_seed(seeds, |mount, regions, steps, seed| run(mount, regions, steps, seed, places));
    println!("{states} disks after a cut of whole regions");
}

#[test]
fn a_fault_anywhere_leaves_whole_regions() {
    let (seeds, full) = seeds(4);
    let faults = if full { 60 } else { 8 };
    let failing =
        each_seed(seeds, |mount, regions, steps, seed| run_failing(mount, regions, steps, seed, faults));
    println!("{failing} disks after a cut and faults of whole regions");
}

/// Rule 9: the kernel tells of a failed writeback once to each open file. Who has it open from the beginning is told even
/// where another was told before, as `sync` in a shell may be.
#[test]
fn a_writeback_that_failed_is_told_to_the_layer_too() {
    use std::os::unix::fs::FileExt;
    use terrane::layer::{FileStore, Store};
    let mount = FsMount::new();
    let disk = mount.empty_disk();
    let path = disk.path().join("data");
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let store = FileStore::new(file);
    store.set_len(64 << 20).unwrap();
    store.prepare_log(1 << 20, 256 << 10).unwrap();
    store.sync().unwrap();
    store.append(&[7; 512], 1 << 20).unwrap();
    let another = std::fs::File::open(&path).unwrap();
    let fault = FsFault { failing: Failing::Changes, at: 0, for_ever: false, errno: libc::EIO };
    disk.set_fault(Some(fault));
    another.sync_data().expect_err("the mapped page can't be written");
    assert!(disk.fault_fired());
    store.sync().expect_err("what was appended is not durable");
    let mut bytes = [0; 512];
    another.read_exact_at(&mut bytes, 1 << 20).unwrap();
    assert_eq!(bytes, [7; 512], "the page cache has it still, and the next sync would say yes");
    store.sync().unwrap();
}
