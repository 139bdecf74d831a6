//! Guards against a fold, or an exchange of the catalogs, that was cut between two of its steps: each step of it is cut, and not a
//! sample of them. What is there then reads as before, also where the catalog is lost or damaged on top of it; and once all is
//! brought to its end no header says any more that a fold writes to a layer, or has taken one.

mod fs_support;

use std::fs;
use std::sync::Arc;

use fs_support::common::image::Cut;
use fs_support::common::{Random, seeds};
use fs_support::history::{Found, History};
use fs_support::script::{Script, Step};
use fs_support::sweep::Sweep;
use fs_support::world::{Content, REGIONS, World, new_regions, order_of_snapshots};
use fs_support::{FsDisk, FsMount, FsState, FsTrace};
use terrane::ids::SnapshotId;
use terrane::region::{Config, Rebuilding, unknown_folders};
use terrane::volume::{Host, recover_rows};

const NORTH: &str = REGIONS[0];

#[test]
#[ignore = "the process that serves the file system of the others"]
fn serve_a_file_system() {
    fs_support::serve_if_asked();
}

/// What is written between the snapshots of a disk, of which the first is deleted.
fn script(pieces: &[usize]) -> Vec<Step> {
    let mut steps = vec![Step::Create];
    for (n, len) in pieces.iter().enumerate() {
        if n > 0 {
            steps.push(Step::Snapshot { of: 0 });
        }
        steps.push(Step::Write { of: 0, at: n * 4096, len: len * 4096, fill: n as u64 + 1 });
    }
    steps.extend([Step::Flush { of: 0 }, Step::Reopen { clean: true }]);
    steps.extend([Step::DeleteSnapshot { of: 0, region: 0 }, Step::Reopen { clean: true }]);
    steps
}

/// A header takes five operations to be written, a transaction as many.
const STRIDE: usize = 5;

/// Both sealed, a small child: down. Both sealed, a larger child: up. A child that takes a volume's writes: up.
const FOLDS: [(&str, &[usize]); 3] = [("down", &[20, 3, 2, 1]), ("up", &[3, 20, 2]), ("up, live", &[3, 20])];

/// A fold that was run to its end on a disk of its own.
struct Folded<'m> {
    trace: FsTrace<'m>,
    history: History,
    /// Where in the trace it began and ended.
    began: usize,
    ended: usize,
}

impl<'m> Folded<'m> {
    fn new(mount: &'m FsMount, regions: &FsState, pieces: &[usize]) -> Self {
        let mut script = Script::new(mount, regions);
        for step in &self::script(pieces) {
            script.step(step).unwrap();
        }
        let began = script.disk.traced();
        script.step(&Step::Fold { region: 0, chunks: u64::MAX }).unwrap();
        let ended = script.disk.traced();
        // Discarded where only the layer that went may have had something.
        script.step(&Step::Discard { of: 0, at: 0, len: 3 * 4096 }).unwrap();
        script.step(&Step::Flush { of: 0 }).unwrap();
        script.close(true).unwrap();
        let trace = script.disk.take_trace();
        println!("{began}..{ended} of {}", trace.len);
        Self { trace, history: script.history, began, ended }
    }

    /// Places between two of its operations: all with `TERRANE_CRASH_SEEDS`, else so many that none of its steps is missed, each
    /// of which takes more operations, or has several of the kind. `TERRANE_CRASH_FIRST` says how they are cut.
    fn places(&self, stride: usize) -> impl Iterator<Item = usize> {
        let is_all = seeds(1).1;
        let places = (self.began..=self.ended).filter(move |n| is_all || n % stride == 0);
        places.chain([self.trace.len])
    }
}

fn seed() -> u64 {
    seeds(1).0.start
}

fn config(world: &World) -> Config {
    Config::at(&world.dir().join("config")).unwrap()
}

fn rebuild(world: &World) {
    rebuild_and_mark(world, || 0);
}

/// Where the exchange of the catalogs began and ended, by `mark`.
fn rebuild_and_mark(world: &World, mark: impl Fn() -> usize) -> [usize; 2] {
    let text = world.dir().join(NORTH).display().to_string();
    let rebuilding = Rebuilding::begin(Some(&text), &config(world)).unwrap();
    let recovered = recover_rows(rebuilding.region(), rebuilding.old()).unwrap();
    assert_eq!(recovered.unusable, Vec::<String>::new());
    recovered.adopt(rebuilding.region()).unwrap();
    let began = mark();
    rebuilding.commit().unwrap();
    let ended = mark();
    // What was being removed, which begins with the header.
    for folder in unknown_folders(&world.region(NORTH).unwrap()).unwrap() {
        assert!(!folder.join("header.toml").exists());
        fs::remove_dir_all(folder).unwrap();
    }
    [began, ended]
}

fn lose_catalog(world: &World) {
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(world.dir().join(NORTH).join(name));
    }
}

#[test]
fn a_fold_cut_at_each_step_goes_on() {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let sweep = Sweep::new(&mount);
    let mut random = Random::new(seed());
    for (what, pieces) in FOLDS {
        let folded = Folded::new(&mount, &regions, pieces);
        for n in folded.places(STRIDE) {
            let cut = if random.one_in(3) { Cut::any(&mut random) } else { Cut::All };
            let disk = sweep.disk(&folded.trace.after(n, cut, random.next()));
            let why = format!("{what}, cut after {n} of {}..{}, {cut:?}", folded.began, folded.trace.len);
            println!("{why}");
            match n / STRIDE % 2 {
                0 => drop(sweep.recover(&disk, &folded.history, n)),
                _ => seal_first(&disk, &folded.history, n, &why),
            }
        }
    }
    println!("{} disks after a cut of a fold", sweep.states());
}

/// The volume's active layer is sealed before anybody looks how far the fold was.
fn seal_first(disk: &FsDisk, history: &History, n: usize, why: &str) {
    let world = World::of(disk);
    world.a_minute_later(NORTH);
    let host = world.owner(NORTH).unwrap();
    history.check_snapshots(&host, NORTH, n);
    let before = contents(&host);
    let volume = host.region().catalog().unwrap().read(|tx| tx.volumes()).unwrap().remove(0).id;
    let snapshot = SnapshotId::random();
    let order = order_of_snapshots(&host, &[(volume, snapshot, "amid".into())]).unwrap();
    host.execute(&order, false).unwrap();
    host.fold(false, &mut |_| true).unwrap();
    let after = contents(&host);
    assert!(before.iter().all(|held| after.contains(held)), "{why}: {before:?}, {after:?}");
    host.close().unwrap();
    drop(host);
    world.check(NORTH);
}

/// What all volumes and snapshots hold.
fn contents(host: &Arc<Host>) -> Vec<Content> {
    let (volumes, snapshots) = {
        let mut catalog = host.region().catalog().unwrap();
        (catalog.read(|tx| tx.volumes()).unwrap(), catalog.read(|tx| tx.snapshots()).unwrap())
    };
    let volumes = volumes.iter().map(|v| Content::of_volume(&host.open_volume(v.id, false).unwrap().disk));
    let mut found: Vec<_> = volumes.collect();
    found.extend(snapshots.iter().map(|s| Content::of(&host.open_snapshot(s.id).unwrap())));
    found
}

/// A catalog that is damaged, but of which all rows read, and one that is lost.
#[test]
fn a_catalog_lost_at_each_step_of_a_fold_is_rebuilt() {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let sweep = Sweep::new(&mount);
    let mut regions_cut = 0;
    for (what, pieces) in FOLDS {
        let folded = Folded::new(&mount, &regions, pieces);
        for (turn, n) in folded.places(2 * STRIDE).enumerate() {
            regions_cut += 1;
            println!("{what}, killed after {n} of {}..{}", folded.began, folded.trace.len);
            let left = folded.trace.after(n, Cut::All, 0);
            let disk = sweep.disk(&left);
            let world = World::of(&disk);
            if (turn as u64 + seed()) % 2 == 1 {
                rebuild(&world);
                sweep.recover(&disk, &folded.history, n);
                continue;
            }
            let other = sweep.disk(&left);
            let before = contents(&World::of(&other).owner(NORTH).unwrap());
            drop(other);
            lose_catalog(&world);
            rebuild(&world);
            let host = world.owner(NORTH).unwrap();
            let rebuilt = contents(&host);
            assert!(before.iter().all(|held| rebuilt.contains(held)), "{what}, {n}: {before:?}, {rebuilt:?}");
            host.fold(false, &mut |_| true).unwrap();
            let after = contents(&host);
            assert!(after == rebuilt, "{what}, {n}: a fold changed a disk: {rebuilt:?}, {after:?}");
            host.close().unwrap();
            drop(host);
            world.check(NORTH);
        }
    }
    println!("{regions_cut} disks after a cut of a fold, without a catalog");
}

/// A rebuilding that is cut between any two of its steps, and given again: every name is there.
#[test]
fn a_rebuilding_cut_at_each_step_keeps_the_names() {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let mut script = Script::new(&mount, &regions);
    self::script(&[20, 3, 2]).iter().for_each(|step| script.step(step).unwrap());
    let n = script.disk.traced();
    let Script { history, disk, .. } = script;
    disk.take_trace();
    disk.start_trace();
    let [began, ended] = rebuild_and_mark(&World::of(&disk), || disk.traced());
    let trace = disk.take_trace();
    let sweep = Sweep::new(&mount);
    let mut random = Random::new(seed());
    // The new catalog is filled before.
    for at in (0..began).step_by(60).chain(began..=ended) {
        for cut in [Cut::All, Cut::any(&mut random)] {
            println!("cut after {at} of {}, {cut:?}", trace.len);
            let disk = sweep.disk(&trace.after(at, cut, random.next()));
            let world = World::of(&disk);
            if world.region(NORTH).is_err() {
                rebuild(&world);
            }
            let found = sweep.recover(&disk, &history, n);
            assert_ne!(found, Found::new(), "a volume under its name");
        }
    }
    println!("{} disks after a cut of a rebuilding", sweep.states());
}
