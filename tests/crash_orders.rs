//! Guards against orders of writes that random scripts seldom catch: one step of a person is cut at every place, and the region
//! must be whole there, also where its catalog is lost on top of it.

mod fs_support;

use std::fs;

use fs_support::common::image::Cut;
use fs_support::common::shrink::failure;
use fs_support::history::History;
use fs_support::script::{ALL, SNAPSHOT, Script, Step, write};
use fs_support::sweep::Sweep;
use fs_support::world::{Content, REGIONS, World, new_regions};
use fs_support::{FsDisk, FsMount, FsState, FsTrace};
use terrane::region::{Config, Rebuilding};
use terrane::volume::recover_rows;

const NORTH: &str = REGIONS[0];

#[test]
#[ignore = "the process that serves the file system of the others"]
fn serve_a_file_system() {
    fs_support::serve_if_asked();
}

/// A fold takes layers whose seal is finished.
const REOPEN: Step = Step::Reopen { clean: true };
/// The oldest.
const DELETE: Step = Step::DeleteSnapshot { of: 0, region: 0 };

const fn fold(chunks: u64) -> Step {
    Step::Fold { region: 0, chunks }
}

/// What was done in the last steps, and before.
struct Last<'m> {
    trace: FsTrace<'m>,
    history: History,
    /// Where the last steps begin.
    from: usize,
    /// The chunk each fold goes on with after them.
    folds: Vec<u64>,
}

impl<'m> Last<'m> {
    fn run(mount: &'m FsMount, regions: &FsState, before: &[Step], last: &[Step]) -> Self {
        Self::run_in_steps(mount, regions, before, last, None)
    }

    /// A fold flushes once it has moved so many bytes.
    fn run_in_steps(
        mount: &'m FsMount,
        regions: &FsState,
        before: &[Step],
        last: &[Step],
        fold_step: Option<u64>,
    ) -> Self {
        let mut script = Script::new(mount, regions);
        script.fold_step = fold_step;
        let mut steps = |steps: &[Step]| {
            steps.iter().for_each(|s| script.step(s).unwrap_or_else(|e| panic!("{s:?}: {e}")));
            script.disk.traced()
        };
        let from = steps(before);
        steps(last);
        script.close(false).unwrap();
        let folds = script.world.region(NORTH).unwrap().catalog().unwrap().read(|tx| tx.folds()).unwrap();
        let folds = folds.iter().map(|fold| fold.next_chunk).collect();
        Self { trace: script.disk.take_trace(), history: script.history, from, folds }
    }

    /// Does it with the disk after a cut at each `nth` place where something may be told; how many places.
    fn at_each(&self, nth: usize, cut: Cut, check: impl Fn(&FsState, usize)) -> usize {
        let places = (self.from..=self.trace.len).filter(|n| !self.trace.is_zeros(*n)).step_by(nth);
        places
            .inspect(|n| {
                let left = self.trace.after(*n, cut, *n as u64);
                if let Some(why) = failure(|| check(&left, *n)) {
                    panic!("cut after {n} of {}..={} operations, {cut:?}: {why}", self.from, self.trace.len);
                }
            })
            .count()
    }
}

/// Makes a new catalog from headers and keys, and from what reads of the old one; what could not be used.
fn rebuild(disk: &FsDisk) -> Vec<String> {
    let config = Config::at(&disk.path().join("config")).unwrap();
    let text = disk.path().join(NORTH).display().to_string();
    let rebuilding = Rebuilding::begin(Some(&text), &config).unwrap();
    let recovered = recover_rows(rebuilding.region(), rebuilding.old()).unwrap();
    recovered.adopt(rebuilding.region()).unwrap();
    rebuilding.commit().unwrap();
    recovered.unusable
}

/// Volumes and snapshots, by their names.
fn contents(world: &World) -> [Vec<(String, Content)>; 2] {
    let host = world.owner(NORTH).unwrap();
    let (volumes, snapshots) = {
        let mut catalog = host.region().catalog().unwrap();
        (catalog.read(|tx| tx.volumes()).unwrap(), catalog.read(|tx| tx.snapshots()).unwrap())
    };
    let volume = |v: &terrane::catalog::Volume| {
        let open = host.open_volume(v.id, false).expect("a volume opens");
        (v.name.clone().expect("all have names").to_string(), Content::of_volume(&open.disk))
    };
    let snapshot = |s: &terrane::catalog::Snapshot| {
        (s.name.to_string(), Content::of(&host.open_snapshot(s.id).expect("a snapshot opens")))
    };
    [volumes.iter().map(volume).collect(), snapshots.iter().map(snapshot).collect()]
}

/// What is cut amid a fold of two chunks, after so many of them; how many places.
fn cut_folds(chunks: u64, step: Option<u64>) -> usize {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let sweep = Sweep::new(&mount);
    let mut places = 0;
    // Into the parent, into a sealed child, and into the one that takes writes.
    for before in [
        vec![Step::Create, ALL, SNAPSHOT, write(8, 12), SNAPSHOT, REOPEN, DELETE],
        vec![Step::Create, write(8, 12), SNAPSHOT, ALL, write(0, 2), SNAPSHOT, REOPEN, DELETE],
        vec![Step::Create, ALL, SNAPSHOT, write(2, 2), REOPEN, DELETE],
    ] {
        let fold = Last::run_in_steps(&mount, &regions, &before, &[fold(chunks)], step);
        assert_eq!(fold.folds, [chunks]);
        places +=
            fold.at_each(1, Cut::None, |left, n| drop(sweep.recover(&sweep.disk(left), &fold.history, n)));
    }
    places
}

/// Rule 20: how far a fold is is written down once what it moved is durable.
#[test]
fn no_cut_amid_a_fold_loses_what_is_said_to_be_moved() {
    println!("{} places", cut_folds(1, None));
}

/// Rule 20: the same of a step that is flushed and told of while the next one moves.
#[test]
fn no_cut_amid_the_steps_of_a_fold_loses_what_they_say_is_moved() {
    println!("{} places", cut_folds(2, Some(1)));
}

/// Rule 20: headers that name the layer that goes are mended before its folder goes, so that a catalog lost at any place can
/// be made anew from what lies there.
#[test]
fn a_catalog_lost_at_the_end_of_a_fold_is_rebuilt() {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let before = [
        Step::Create,
        ALL,
        SNAPSHOT,
        write(8, 4),
        SNAPSHOT,
        write(20, 4),
        SNAPSHOT,
        write(5, 2),
        REOPEN,
        DELETE,
    ];
    let (begun, fold) = (
        Last::run(&mount, &regions, &before, &[fold(1)]),
        Last::run(&mount, &regions, &before, &[fold(1 << 20)]),
    );
    assert_eq!((begun.folds, &*fold.folds), (vec![1], &[][..]), "it comes to its end");
    let wanted: Vec<_> =
        fold.history.present(NORTH).iter().map(|s| fold.history.snapshots[*s].content.clone()).collect();
    let volume = fold.history.volumes[0].now().unwrap();
    let places = fold.at_each(1, Cut::None, |left, _| {
        let disk = mount.disk(left);
        ["", "-wal", "-shm"].iter().for_each(|suffix| {
            let _ = fs::remove_file(disk.path().join(NORTH).join(format!("catalog.db{suffix}")));
        });
        assert_eq!(rebuild(&disk), Vec::<String>::new());
        let [volumes, snapshots] = contents(&World::of(&disk));
        assert!(volumes.len() == 1 && volumes[0].1 == **volume, "the volume differs");
        for (n, wanted) in wanted.iter().enumerate() {
            assert!(snapshots.iter().any(|(_, found)| *found == **wanted), "snapshot {n} is not there");
        }
    });
    println!("{places} places");
}

/// A copy is listed once it is durable, whole and sealed.
#[test]
fn no_cut_amid_a_copy_shows_half_of_it() {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let sweep = Sweep::new(&mount);
    let before = [Step::Create, ALL, SNAPSHOT];
    let copy = Last::run(&mount, &regions, &before, &[Step::Copy { of: 0, from: 0, to: 1 }]);
    let places =
        copy.at_each(4, Cut::None, |left, n| drop(sweep.recover(&sweep.disk(left), &copy.history, n)));
    println!("{places} places");
}

/// A rollback cut before it was committed, and then a repair: the volume is what it is without the repair.
#[test]
fn a_repair_after_a_cut_rollback_shows_the_volume_as_it_was() {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let before = [Step::Create, ALL, SNAPSHOT, write(8, 12), SNAPSHOT, write(1, 3)];
    let rollback = Last::run(&mount, &regions, &before, &[Step::Rollback { of: 0 }]);
    let places = rollback.at_each(2, Cut::All, |left, _| {
        let (as_it_is, repaired) = (mount.disk(left), mount.disk(left));
        let [volumes, snapshots] = contents(&World::of(&as_it_is));
        // A layer's folder that is not whole yet.
        let unusable = rebuild(&repaired);
        let found = contents(&World::of(&repaired));
        assert!(volumes.iter().all(|v| found[0].contains(v)), "the volume differs; unusable: {unusable:?}");
        assert!(snapshots.iter().all(|s| found[1].contains(s)), "snapshots differ; unusable: {unusable:?}");
    });
    println!("{places} places");
}
