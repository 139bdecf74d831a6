//! Guards against a host that makes more of one failure than it was: a seal its catalog could not be told of, a layer that was
//! latched while somebody reads it.

mod fs_support;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use fs_support::common::Random;
use fs_support::world::{Content, Failure, REGIONS, SIZES, World, name, new_regions, order_of_snapshots};
use fs_support::{Failing, FsDisk, FsFault, FsMount, FsState};
use terrane::catalog::DiskKind;
use terrane::fuse::{Export, Shelf, Shelves};
use terrane::ids::{SnapshotId, VolumeId};
use terrane::volume::{Host, LiveVolume, Order, VolumeSpec, create_volume};

const NORTH: &str = REGIONS[0];

#[test]
#[ignore = "the process that serves the file system of the others"]
fn serve_a_file_system() {
    fs_support::serve_if_asked();
}

/// A region with a volume, on a disk of its own.
struct Volume<'m> {
    disk: FsDisk<'m>,
    host: Arc<Host>,
    id: VolumeId,
    content: Content,
}

impl<'m> Volume<'m> {
    fn new(mount: &'m FsMount, regions: &FsState) -> Self {
        let disk = mount.disk(regions);
        let host = World::of(&disk).owner(NORTH).unwrap();
        let region = host.region();
        let (account, key) = {
            let mut catalog = region.catalog().unwrap();
            (
                catalog.read(|tx| tx.default_account()).unwrap().id,
                catalog.read(|tx| tx.default_key()).unwrap().id,
            )
        };
        let spec = VolumeSpec {
            account,
            name: Some(name("web")),
            size_bytes: SIZES[0],
            kind: DiskKind::Data,
            snapshot: None,
            key: Some(key),
        };
        let id = create_volume(region, &spec).unwrap();
        Self { disk, host, id, content: Content::empty(SIZES[0]) }
    }

    fn live(&self) -> Arc<terrane::volume::OpenVolume> {
        self.host.find_live(self.id).expect("it was opened")
    }

    fn write(&mut self, seed: u64) {
        let mut random = Random::new(seed);
        for (place, part) in self.content.parts(0..self.content.bytes.len()) {
            random.fill(&mut self.content.bytes[part.clone()]);
            self.live().disk.write(place, &self.content.bytes[part]).unwrap();
        }
    }

    fn snapshot(&self, called: &str) -> Result<SnapshotId, Failure> {
        let id = SnapshotId::random();
        self.host.execute(&order_of_snapshots(&self.host, &[(self.id, id, called.into())])?, false)?;
        Ok(id)
    }
}

fn holds(volume: &LiveVolume, content: &Content) -> bool {
    Content::of_volume(volume) == *content
}

fn failing(at: u64, for_ever: bool) -> Option<FsFault> {
    Some(FsFault { failing: Failing::Changes, at, for_ever, errno: libc::EIO })
}

/// A volume whose latched layer somebody else reads opens anew with that layer as it is: to open it again and again, until it
/// is not latched any more, would never end.
#[test]
fn a_volume_over_a_latched_layer_that_is_read_opens() {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let mut volume = Volume::new(&mount, &regions);
    volume.host.open_volume(volume.id, false).unwrap();
    volume.write(1);
    let snapshot = volume.snapshot("first").unwrap();
    let read = volume.host.open_snapshot_file(snapshot, std::process::id()).unwrap();
    // The seal can't be finished.
    volume.disk.set_fault(failing(0, true));
    volume.host.close().expect_err("the layer can't be sealed");
    volume.disk.set_fault(None);
    assert!(read.stack.chain.layers()[0].is_latched());
    let shelves = Arc::new(Shelves::new(volume.host.clone(), true));
    let open = {
        let (shelves, id) = (shelves.clone(), volume.id.to_string());
        let (answer, answered) = mpsc::channel();
        std::thread::spawn(move || answer.send(shelves.open(Shelf::Volumes, &id, true, std::process::id())));
        let opened = answered.recv_timeout(Duration::from_secs(30)).expect("the opening ends");
        opened.expect("what the layer holds is there")
    };
    assert!(holds(&volume.live().disk, &volume.content));
    volume.write(2);
    open.flush().unwrap();
    drop((read, open));
    shelves.close(Shelf::Volumes, &volume.id.to_string(), std::process::id());
    // Nobody has it open now: it starts anew, and the seal is finished.
    shelves.open(Shelf::Volumes, &volume.id.to_string(), true, std::process::id()).unwrap();
    assert!(holds(&volume.live().disk, &volume.content) && !volume.live().is_latched());
    shelves.close(Shelf::Volumes, &volume.id.to_string(), std::process::id());
    volume.host.close().unwrap();
    assert!(Content::of(&volume.host.open_snapshot(snapshot).unwrap()) != volume.content);
    drop((shelves, volume.host));
    World::of(&volume.disk).check(NORTH);
}

/// Another process's hold on a region's catalog: writers wait.
fn hold(disk: &FsDisk) -> rusqlite::Connection {
    let catalog = rusqlite::Connection::open(disk.path().join(NORTH).join("catalog.db")).unwrap();
    catalog.execute_batch("BEGIN IMMEDIATE").unwrap();
    catalog
}

fn within_a_while(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what} did not come about");
}

/// A snapshot whose commit fails while the keeper waits for its turn: the seal is told to the catalog before a next layer is
/// made, else the row would name as the next one another than took the writes.
#[test]
fn a_seal_that_was_not_committed_is_settled_before_a_next_layer_is_made() {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let mut volume = Volume::new(&mount, &regions);
    let open = volume.host.open_volume(volume.id, true).unwrap();
    volume.write(1);
    volume.snapshot("first").unwrap();
    volume.write(2);
    within_a_while("a next layer", || open.next.lock().is_some());
    // Its name is taken by another process after it was asked for: the commit is refused.
    let catalog = hold(&volume.disk);
    catalog
        .execute_batch(
            "CREATE TEMP TABLE t AS SELECT * FROM snapshots;
             UPDATE t SET id = 'snap-0123456789abcdef0', name = 'second', mac = NULL;
             INSERT INTO snapshots SELECT * FROM t;",
        )
        .unwrap();
    let before = open.disk.active().id();
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| volume.snapshot("second").map_err(|e| e.to_string()));
        within_a_while("the seal", || open.disk.active().id() != before);
        // The keeper waits for who holds the layers; where it is late, nothing is tried here.
        open.wake();
        std::thread::sleep(Duration::from_millis(300));
        catalog.execute_batch("COMMIT").unwrap();
        taking.join().unwrap().expect_err("its name is taken");
        catalog.execute_batch("DELETE FROM snapshots WHERE name = 'second'").unwrap();
    });
    within_a_while("a next layer", || open.uncommitted.lock().is_none() && open.next.lock().is_some());
    volume.write(3);
    // The next seal is cut before its commit: *end* makes the layer active that the row names.
    let catalog = hold(&volume.disk);
    let before = open.disk.active().id();
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| volume.snapshot("third").map_err(|e| e.to_string()));
        within_a_while("the seal", || open.disk.active().id() != before);
        open.disk.flush().unwrap();
        let killed = mount.disk(&volume.disk.state());
        catalog.execute_batch("COMMIT").unwrap();
        taking.join().unwrap().unwrap();
        let host = World::of(&killed).owner(NORTH).unwrap();
        let reopened = host.open_volume(volume.id, false).expect("a killed volume opens");
        assert!(holds(&reopened.disk, &volume.content));
    });
    volume.host.close().unwrap();
}

/// The closing of a rollback may commit a resize that could not be: the new layer is made after it.
#[test]
fn a_rollback_after_a_resize_that_was_not_committed_has_its_size() {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let mut volume = Volume::new(&mount, &regions);
    volume.host.open_volume(volume.id, false).unwrap();
    volume.write(1);
    let (wanted, snapshot) = (volume.content.clone(), volume.snapshot("first").unwrap());
    volume.write(2);
    volume.host.close().unwrap();
    let start = volume.disk.state();
    let resize = Order::Resize { volume: volume.id.to_string(), size_bytes: SIZES[1] };
    let resized = |at: Option<u64>| {
        let disk = mount.disk(&start);
        let host = World::of(&disk).owner(NORTH).unwrap();
        let open = host.open_volume(volume.id, false).unwrap();
        disk.set_fault(at.and_then(|at| failing(at, false)));
        let done = host.execute(&resize, false);
        let operations = disk.counted(Failing::Changes);
        disk.set_fault(None);
        assert!(done.is_ok() || at.is_some(), "{done:?}");
        (disk, host, open, operations)
    };
    let (.., operations) = resized(None);
    let uncommitted = (0..operations).rev().map(|at| resized(Some(at)));
    let found = uncommitted.take(60).find(|(_, _, open, _)| open.uncommitted.lock().is_some());
    let (disk, host, open, _) = found.expect("a commit that fails");
    drop(open);
    let order = Order::Rollback { volume: volume.id.to_string(), snapshot: snapshot.to_string() };
    host.execute(&order, false).unwrap();
    let open = host.open_volume(volume.id, false).expect("row and layer have the same size");
    let content = Content::of_volume(&open.disk);
    assert_eq!(content, Content { size_bytes: SIZES[1], bytes: wanted.bytes });
    host.close().unwrap();
    drop((open, host));
    World::of(&disk).check(NORTH);
}

/// A volume at rest has no keeper awake; that it was put back to how it was opened must be noticed all the same.
#[test]
fn how_far_a_volume_at_rest_has_come_is_written_down() {
    let mount = FsMount::new();
    let regions = new_regions(&mount);
    let mut volume = Volume::new(&mount, &regions);
    let open = volume.host.open_volume(volume.id, true).unwrap();
    let written = || volume.host.region().volume_anchor(volume.id).unwrap().map(|a| a.confirmed_seq);
    within_a_while("the anchor of the opening", || written().is_some());
    let before = written().unwrap();
    volume.write(1);
    open.disk.flush().unwrap();
    let confirmed = open.disk.active().anchor().confirmed;
    assert!(confirmed > before);
    // What is due each minute is due at the start.
    volume.host.start_folding().unwrap();
    let written = || volume.host.region().volume_anchor(volume.id).unwrap().map(|a| a.confirmed_seq);
    within_a_while("its anchor", || written() >= Some(confirmed));
    volume.host.close().unwrap();
}
