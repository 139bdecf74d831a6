//! Guarded here: a region that was copied whole, both going on, or put back to an earlier day, whose later moments are taken for
//! those of the other: a copy would then lack what differs, and say success.

mod copy_support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use copy_support::{Disk, Random, World, name, take};
use terrane::catalog::DiskKind;
use terrane::copy::{self, Copy, KeyChoice, Watch};
use terrane::ids::{SnapshotId, VolumeId};
use terrane::region::{Config, Region};
use terrane::volume::{Host, LayersLock, remove_litter};

const MIB: usize = 1 << 20;

fn copy_whole(from: &Path, to: &Path) {
    copy_support::copy_files(from, to);
}

/// The region in this directory, with a configuration of its own, as on another machine.
struct Twin {
    dir: std::path::PathBuf,
    config: Config,
}

impl Twin {
    fn new(world: &World, of: &str, called: &str) -> Self {
        let dir = world.path(called);
        copy_whole(&world.path(of), &dir);
        copy_whole(&world.path("config/keys"), &world.path(&format!("{called}-keys")));
        let place = world.path(&format!("{called}-config"));
        std::fs::create_dir(&place).unwrap();
        std::fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::rename(world.path(&format!("{called}-keys")), place.join("keys")).unwrap();
        Self { dir, config: Config::at(&place).unwrap() }
    }

    fn reader(&self) -> Arc<Host> {
        Host::new(Region::open(&self.dir, &self.config).unwrap(), None)
    }

    /// Writes a byte over some sectors, then takes a snapshot.
    fn change(&self, volume: VolumeId, called: &str, at: usize, bytes: &[u8]) -> SnapshotId {
        let region = Region::open(&self.dir, &self.config).unwrap();
        let Ok(lock) = LayersLock::take(&region, None).unwrap() else { panic!("somebody owns the layers") };
        remove_litter(&region).unwrap();
        let host = Host::new(region, Some(lock));
        host.open_volume(volume, false).unwrap().disk.write(at as u64, bytes).unwrap();
        let id = take(&host, volume, called);
        host.close().unwrap();
        id
    }
}

fn copy_to_south(world: &World, source: &Arc<Host>, id: SnapshotId, called: &str) -> SnapshotId {
    let target = world.reader("south");
    let plan = copy::plan(source, id, &target, &name(called), &KeyChoice::AsSource).unwrap();
    let (cancel, mut progress) = (AtomicBool::new(false), |_, _| {});
    let watch = Watch::new(&cancel, &mut progress);
    Copy::new(source, &target, plan, world.details("south", called)).run(watch).unwrap()
}

fn world() -> (World, Disk) {
    let world = World::new(&["north", "south"]);
    let mut random = Random::new(31);
    let mut disk = Disk::new(&world, "north", 8 * MIB, Some(world.default_key("north")), DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.random(&mut random, 0, MIB));
    copy_to_south(&world, &world.reader("north"), first, "first");
    (world, disk)
}

#[test]
fn twins_that_both_go_on_are_never_taken_for_each_other() {
    let (world, mut disk) = world();
    let twin = Twin::new(&world, "north", "twin");
    let mut other = disk.model.clone();
    for round in 0..3u8 {
        let called = format!("ours-{round}");
        let ours =
            disk.change(&world, &called, |c| c.write(4096 * usize::from(round), &[0xa0 + round; 4096]));
        let copied = copy_to_south(&world, &world.reader("north"), ours, &called);
        world.equal("south", copied, &disk.model);
        let called = format!("theirs-{round}");
        let at = 4096 * (8 + usize::from(round));
        let theirs = twin.change(disk.id, &called, at, &[0xb0 + round; 4096]);
        other[at..at + 4096].fill(0xb0 + round);
        let copied = copy_to_south(&world, &twin.reader(), theirs, &called);
        world.equal("south", copied, &other);
        // What both had before is a base for either: the first, and each one's own.
        assert_eq!(world.snapshot("south", copied).shipped_bytes, 4096, "of round {round}");
    }
}

/// As by a snapshot of the file system below, beside a process that has the volume open.
#[test]
fn a_twin_of_a_region_in_use_is_another() {
    let (world, disk) = world();
    let host = world.owner("north");
    let open = host.open_volume(disk.id, false).unwrap();
    open.disk.write(0, &[1; 4096]).unwrap();
    open.disk.flush().unwrap();
    let twin = Twin::new(&world, "north", "twin");
    open.disk.write(4096, &[2; 4096]).unwrap();
    let ours = take(&host, disk.id, "ours");
    drop(open);
    host.close().unwrap();
    drop(host);
    let mut model = disk.model.clone();
    model[..4096].fill(1);
    let mut other = model.clone();
    model[4096..8192].fill(2);
    let theirs = twin.change(disk.id, "theirs", 8192, &[3; 4096]);
    other[8192..12288].fill(3);
    let ours = copy_to_south(&world, &world.reader("north"), ours, "ours");
    let theirs = copy_to_south(&world, &twin.reader(), theirs, "theirs");
    world.equal("south", ours, &model);
    world.equal("south", theirs, &other);
}

/// After a disaster yesterday's region is put back; what was copied since is of another disk than what follows.
#[test]
fn a_region_put_back_goes_on_as_another() {
    let (world, mut disk) = world();
    let backup = world.path("backup");
    copy_whole(&world.path("north"), &backup);
    let yesterday = disk.model.clone();
    let lost = disk.change(&world, "lost", |c| c.write(0, &[7; 4096]));
    let lost_model = disk.model.clone();
    let lost = copy_to_south(&world, &world.reader("north"), lost, "lost");
    std::fs::remove_dir_all(world.path("north")).unwrap();
    copy_whole(&backup, &world.path("north"));
    world.ok(&["region", "check", "--accept-older", "--region", "north"]);
    disk.model = yesterday;
    let after = disk.change(&world, "after", |c| c.write(4096, &[8; 4096]));
    let after = copy_to_south(&world, &world.reader("north"), after, "after");
    world.equal("south", after, &disk.model);
    world.equal("south", lost, &lost_model);
}

/// A layer had ended, and the catalog was not told before the process was killed: the one that follows it takes writes in either copy.
#[test]
fn twins_of_a_seal_that_was_cut_are_two() {
    let (world, mut disk) = world();
    let (cut, host) = disk.change_and_die(&world, "cut", |c| c.write(0, &[5; 4096]));
    drop(host);
    let sql = |statement: &str| {
        let catalog = rusqlite::Connection::open(world.path("north/catalog.db")).unwrap();
        assert_eq!(catalog.execute(statement, []).unwrap(), 1, "{statement}");
    };
    let region = world.region("north");
    let ended = world.snapshot("north", cut).layer.unwrap();
    let next = region.catalog().unwrap().read(|tx| tx.volume(disk.id)).unwrap().active;
    drop(region);
    // The rows as they were before the commit.
    sql(&format!("DELETE FROM snapshots WHERE id = '{cut}'"));
    sql(&format!("UPDATE volumes SET active = '{ended}', next = '{next}'"));
    sql(&format!("UPDATE layers SET state = 'active', point = NULL WHERE id = '{ended}'"));
    sql(&format!(
        "DELETE FROM layer_points WHERE place = (SELECT min(place) FROM layer_points WHERE layer = '{ended}') AND layer = '{ended}'"
    ));
    sql(&format!("UPDATE layers SET state = 'next' WHERE id = '{next}'"));
    let twin = Twin::new(&world, "north", "twin");
    let mut other = disk.model.clone();
    let ours = disk.change(&world, "ours", |c| c.write(4096, &[1; 4096]));
    let theirs = twin.change(disk.id, "theirs", 4096, &[2; 4096]);
    other[4096..8192].fill(2);
    let ours = copy_to_south(&world, &world.reader("north"), ours, "ours");
    let theirs = copy_to_south(&world, &twin.reader(), theirs, "theirs");
    world.equal("south", ours, &disk.model);
    world.equal("south", theirs, &other);
}
