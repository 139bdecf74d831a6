//! Guards against a cut amid a fold after which a bookmark says too little: a copy on a base whose source went in that fold would then
//! lack what changed. At each place of the fold, cut in any way, what goes on is copied onto that base and compared, byte by byte;
//! and it ships what changed and no more, for what a bookmark needs is durable before anything moves.
//!
//! `TERRANE_CRASH_SEEDS=n` cuts at every place, n times; `tools/crash` does.

mod fs_support;

use std::sync::Arc;

use fs_support::common::image::Cut;
use fs_support::common::{Random, seeds};
use fs_support::script::{ALL, SNAPSHOT, Script, Step, write};
use fs_support::world::{BYTES, Content, REGIONS, World, new_regions, order_of_snapshots};
use fs_support::{FsDisk, FsMount, FsState, FsTrace};
use terrane::ids::SnapshotId;
use terrane::volume::Host;

const NORTH: &str = REGIONS[0];
const SOUTH: &str = REGIONS[1];

#[test]
#[ignore = "the process that serves the file system of the others"]
fn serve_a_file_system() {
    fs_support::serve_if_asked();
}

const fn discard(first: usize, sectors: usize) -> Step {
    Step::Discard { of: 0, at: first * 4096, len: sectors * 4096 }
}

/// A fold, and the most sectors that can have changed since the base by what comes after it.
struct Fold {
    what: &'static str,
    /// Before the base is copied.
    base: Vec<Step>,
    /// Between that and the fold.
    since: Vec<Step>,
    changed: usize,
}

fn folds() -> Vec<Fold> {
    let sectors = BYTES / 4096;
    let small = [write(3, 2), discard(6, 3), write(20, 1)];
    let mut down = small.to_vec();
    down.extend([SNAPSHOT, write(9, 1)]);
    let mut up = vec![write(4, sectors - 8), discard(10, 2)];
    up.extend([SNAPSHOT, write(2, 1)]);
    vec![
        Fold { what: "down", base: vec![ALL], since: down, changed: 6 + 1 },
        Fold { what: "up", base: vec![write(0, 6)], since: up, changed: sectors - 8 + 1 },
        Fold { what: "up, live", base: vec![ALL], since: small.to_vec(), changed: 6 },
    ]
}

/// A fold that was run to its end.
struct Folded<'m> {
    trace: FsTrace<'m>,
    began: usize,
    ended: usize,
}

fn run<'m>(mount: &'m FsMount, regions: &FsState, fold: &Fold) -> Folded<'m> {
    let mut script = Script::new(mount, regions);
    let mut steps = vec![Step::Create];
    steps.extend(fold.base.iter().cloned());
    steps.extend([SNAPSHOT, Step::Copy { of: 0, from: 0, to: 1 }]);
    steps.extend(fold.since.iter().cloned());
    steps.extend([Step::Flush { of: 0 }, Step::Reopen { clean: true }]);
    steps.extend([Step::DeleteSnapshot { of: 0, region: 0 }, Step::Reopen { clean: true }]);
    steps.iter().for_each(|step| script.step(step).unwrap_or_else(|e| panic!("{step:?}: {e}")));
    let began = script.disk.traced();
    script.step(&Step::Fold { region: 0, chunks: u64::MAX }).unwrap();
    let ended = script.disk.traced();
    script.close(true).unwrap();
    Folded { trace: script.disk.take_trace(), began, ended }
}

fn snapshot(host: &Arc<Host>, called: &str) -> SnapshotId {
    let volume = host.region().catalog().unwrap().read(|tx| tx.volumes()).unwrap().remove(0).id;
    let id = SnapshotId::random();
    host.execute(&order_of_snapshots(host, &[(volume, id, called.into())]).unwrap(), false).unwrap();
    id
}

/// Brings a fold that was cut to its end, with a snapshot before it or without, and copies what there is then onto the base.
fn check(disk: &FsDisk, fold: &Fold, seal_first: bool, why: &str) {
    let world = World::of(disk);
    world.a_minute_later(NORTH);
    let host = world.owner(NORTH).unwrap();
    let mut taken = Vec::new();
    if seal_first {
        taken.push(snapshot(&host, "amid"));
    }
    host.fold(false, &mut |_| true).unwrap();
    // Where only the layer that went may have had something.
    let volume = host.region().catalog().unwrap().read(|tx| tx.volumes()).unwrap().remove(0).id;
    let open = host.open_volume(volume, false).unwrap();
    let mut content = Content::of_volume(&open.disk);
    for (at, part) in content.parts(0..3 * 4096) {
        open.disk.discard(at, part.len() as u64).unwrap();
        content.bytes[part].fill(0);
    }
    drop(open);
    taken.push(snapshot(&host, "after"));
    host.close().unwrap();
    drop(host);
    for (number, id) in taken.iter().enumerate() {
        let copied = world.copy(NORTH, *id, SOUTH, &format!("copy{number}")).unwrap();
        let [from, to] = [(NORTH, *id), (SOUTH, copied)].map(|(region, id)| {
            let host = Host::new(world.region(region).unwrap(), None);
            Content::of(&host.open_snapshot(id).unwrap())
        });
        assert!(from == to, "{why}: {from:?} became {to:?}");
        let row = world.region(SOUTH).unwrap().catalog().unwrap().read(|tx| tx.snapshot(copied)).unwrap();
        let most = (fold.changed * 4096) as u64;
        assert!(row.shipped_bytes <= most, "{why}: {} of {most} bytes shipped", row.shipped_bytes);
        if number + 1 == taken.len() {
            assert!(to == content, "{why}: {to:?}, and not {content:?}");
        }
        // The next stands on the base as well.
        let cancelled = world.owner(SOUTH).unwrap();
        let order = terrane::volume::Order::DeleteSnapshot { snapshot: copied.to_string() };
        cancelled.execute(&order, false).unwrap();
    }
    world.check(NORTH);
}

// X2
#[test]
fn a_base_serves_after_a_cut_at_each_step_of_a_fold() {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let (seeds, is_all) = seeds(1);
    let mut disks = 0;
    for seed in seeds {
        let mut random = Random::new(seed);
        for fold in folds() {
            let folded = run(&mount, &regions, &fold);
            let stride = if is_all { 1 } else { 5 };
            for n in (folded.began..=folded.ended).step_by(stride) {
                let cut = if random.one_in(3) { Cut::any(&mut random) } else { Cut::All };
                let disk = mount.disk(&folded.trace.after(n, cut, random.next()));
                let why = format!(
                    "seed {seed}, {}, cut after {n} ({}..{}), {cut:?}",
                    fold.what, folded.began, folded.ended
                );
                println!("{why}");
                check(&disk, &fold, n / stride % 2 == 1, &why);
                disks += 1;
            }
        }
    }
    println!("{disks} disks after a cut of a fold");
}
