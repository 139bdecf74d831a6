//! Guards against a disk that shows a state it never had since parts of a region, as they were before a fold, were put back by
//! somebody who has no key: folders of layers, rows of them, headers and data by themselves.
//!
//! Always, of each snapshot and volume: its own bytes, or a refusal in words; and where something is refused, a check of the
//! region says so. Nothing that this machine has seen helps: its anchors are forgotten each time.

mod copy_support;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use copy_support::{Disk, World, copy_files};
use terrane::catalog::{CatalogError, DiskKind, FoldWay};
use terrane::copy::KeyChoice;
use terrane::ids::{LayerId, SnapshotId, VolumeId};
use terrane::volume::{CheckWatch, Host, HostError, Order, check_region};

const SECTOR: usize = 4096;
const MIB: usize = 1 << 20;
const ALL: &[&str] = &["header.toml", "data", "map"];

/// A region before and after a fold.
struct Scene {
    world: World,
    region: &'static str,
    snapshots: Vec<(SnapshotId, Vec<u8>)>,
    volume: Option<(VolumeId, Vec<u8>)>,
    /// What the volume held before, which is as good where it is put back as a whole.
    older: Option<Vec<u8>>,
}

fn fold(host: &Arc<Host>) {
    host.fold(false, &mut |_| true).unwrap();
    assert_eq!(host.region().catalog().unwrap().read(|tx| tx.folds()).unwrap(), []);
}

impl Scene {
    fn path(&self, part: &str) -> PathBuf {
        self.world.path(&format!("{}/{part}", self.region))
    }

    fn keep(&self, called: &str) {
        copy_files(&self.world.path(self.region), &self.world.path(called));
    }

    /// The layer that a snapshot is in.
    fn layer(&self, snapshot: SnapshotId) -> LayerId {
        self.world.snapshot(self.region, snapshot).layer.unwrap()
    }

    /// Deletes a snapshot, folds, and does what else there is to do, all by one process; which way the fold went.
    fn fold_away(&self, snapshot: SnapshotId, then: impl FnOnce(&Arc<Host>)) -> FoldWay {
        let parent = self.layer(snapshot);
        let host = self.world.owner(self.region);
        host.execute(&Order::DeleteSnapshot { snapshot: snapshot.to_string() }, false).unwrap();
        fold(&host);
        then(&host);
        host.close().unwrap();
        let stays = host.region().catalog().unwrap().read(|tx| tx.find_layer(parent)).unwrap().is_some();
        if stays { FoldWay::Down } else { FoldWay::Up }
    }

    /// The region as the fold left it, and nothing that this machine remembers of it.
    fn restore(&self) {
        fs::remove_dir_all(self.world.path(self.region)).unwrap();
        copy_files(&self.world.path("after"), &self.world.path(self.region));
        let _ = fs::remove_dir_all(self.world.path("config/anchors"));
    }

    fn put_files_back(&self, layer: LayerId, files: &[&str]) {
        let folder = self.path(&format!("layers/{layer}"));
        if !folder.exists() {
            fs::create_dir(&folder).unwrap();
            fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        }
        for file in files {
            let _ = fs::remove_file(folder.join(file));
            copy_files(&self.world.path(&format!("before/layers/{layer}/{file}")), &folder.join(file));
        }
    }

    /// Changes rows; those from before are in `before`.
    fn sql(&self, statements: &str) {
        let catalog = rusqlite::Connection::open(self.path("catalog.db")).unwrap();
        let before = self.world.path("before/catalog.db");
        catalog
            .execute_batch(&format!(
                "PRAGMA foreign_keys = OFF; ATTACH '{}' AS before; {statements}",
                before.display()
            ))
            .unwrap();
    }

    fn put_row_back(&self, layer: LayerId) {
        self.sql(&format!("INSERT OR REPLACE INTO layers SELECT * FROM before.layers WHERE id = '{layer}'"));
        self.sql(&format!("DELETE FROM layer_points WHERE layer = '{layer}'"));
        self.sql(&format!(
            "INSERT INTO layer_points SELECT * FROM before.layer_points WHERE layer = '{layer}'"
        ));
    }

    fn set_parent(&self, layer: LayerId, parent: LayerId) {
        self.sql(&format!("UPDATE layers SET parent = '{parent}' WHERE id = '{layer}'"));
    }

    /// Opens everything; what was refused. Wrong bytes fail here.
    fn look(&self, what: &str) -> Vec<String> {
        let region = self.world.region(self.region);
        let reader = Host::new(region, None);
        let cancel = AtomicBool::new(false);
        let mut watch = CheckWatch { cancel: &cancel, max_rate: None, progress: &mut |_, _| {} };
        let report = check_region(&reader, &mut watch).unwrap();
        drop(reader);
        let host = self.world.owner(self.region);
        let mut refused = Vec::new();
        let mut note = |of: &str, opened: Result<Vec<u8>, HostError>, right: &[&[u8]]| match opened {
            Ok(bytes) => assert!(right.iter().any(|r| *r == bytes), "{what}: {of} holds other bytes"),
            Err(error) => {
                assert_eq!(error.errno(), libc::EIO, "{what}: {of}: {error}");
                refused.push(format!("{of}: {error}"));
            }
        };
        for (id, model) in &self.snapshots {
            let is_there = host.region().catalog().unwrap().read(|tx| tx.find_snapshot(*id)).unwrap();
            if is_there.is_some() {
                let opened = host.open_snapshot(*id).and_then(|disk| {
                    let mut bytes = vec![0xaa; disk.size_bytes() as usize];
                    disk.read(0, &mut bytes)?;
                    Ok(bytes)
                });
                note(&format!("snapshot {id}"), opened, &[model]);
            }
        }
        if let Some((id, model)) = &self.volume {
            let opened = host.open_volume(*id, false).and_then(|open| {
                let mut bytes = vec![0xaa; open.disk.size_bytes() as usize];
                open.disk.read(0, &mut bytes)?;
                Ok(bytes)
            });
            let older = self.older.as_deref().unwrap_or(model);
            note("the volume", opened, &[model, older]);
        }
        let _ = host.close();
        let found = report.findings.count + report.left.len() as u64;
        assert!(refused.is_empty() || found > 0, "{what}: refused, and the check found nothing: {refused:?}");
        refused
    }

    /// After what was done, what is read through `what` is refused, for such a reason.
    fn refuses(&self, what: &str, reason: &str) {
        let refused = self.look(what);
        assert!(refused.iter().any(|r| r.contains(reason)), "{what}: {refused:?}");
        self.restore();
    }

    /// Whatever is refused: nothing is wrong.
    fn is_right(&self, what: &str) -> Vec<String> {
        let refused = self.look(what);
        self.restore();
        refused
    }
}

const MISFIT: &str = "does not fit the one below it";

/// A disk of three snapshots, the second of which takes, or is taken by, the first's layer; in a volume or as copies.
fn sealed(way: FoldWay, as_copies: bool) -> (Scene, [LayerId; 3]) {
    let world = World::new(&["north", "south"]);
    let key = Some(world.default_key("north"));
    let mut disk = Disk::new(&world, "north", 8 * MIB, key, DiskKind::Data);
    let (large, small) = if way == FoldWay::Down { (MIB, 3 * SECTOR) } else { (3 * SECTOR, MIB) };
    let mut taken = Vec::new();
    for (n, (at, len)) in [(0, large), (MIB / 2, small), (4 * MIB, SECTOR)].into_iter().enumerate() {
        let id = disk.change(&world, &format!("s{n}"), |c| c.write(at, &vec![n as u8 + 1; len]));
        taken.push((id, disk.model.clone()));
    }
    let mut scene = Scene { world, region: "north", snapshots: taken, volume: None, older: None };
    if as_copies {
        for (n, (id, _)) in scene.snapshots.iter_mut().enumerate() {
            *id = scene.world.copy(("north", *id), "south", &format!("s{n}"), KeyChoice::AsSource);
        }
        scene.region = "south";
    } else {
        scene.volume = Some((disk.id, disk.model.clone()));
    }
    let layers = std::array::from_fn(|n| scene.layer(scene.snapshots[n].0));
    scene.keep("before");
    assert_eq!(scene.fold_away(scene.snapshots[0].0, |_| ()), way);
    scene.keep("after");
    assert_eq!(scene.look("untouched"), Vec::<String>::new());
    scene.restore();
    (scene, layers)
}

/// A layer that took its child's sectors, as it was before: what stands on it lacks them.
fn taken_down(as_copies: bool) {
    let (scene, [parent, child, top]) = sealed(FoldWay::Down, as_copies);
    let second = scene.snapshots[1].0;
    let put_back = |files: &[&str]| {
        scene.put_files_back(parent, files);
        scene.put_row_back(parent);
        // Only this one would be refused for its own moment.
        scene.sql(&format!("DELETE FROM snapshots WHERE id = '{second}'"));
    };
    put_back(ALL);
    scene.refuses("the parent's folder and row", MISFIT);
    put_back(ALL);
    scene.sql("INSERT INTO snapshots SELECT * FROM before.snapshots WHERE name = 's0'");
    scene.refuses("and the snapshot's row that named it", MISFIT);
    for state in ["filling", "absorbing"] {
        put_back(ALL);
        scene.sql(&format!("UPDATE layers SET state = '{state}' WHERE id = '{parent}'"));
        scene.refuses(state, MISFIT);
        // Its data as it became is not what the first snapshot held.
        put_back(&["header.toml"]);
        scene.sql(&format!("UPDATE layers SET state = '{state}' WHERE id = '{parent}'"));
        scene.sql("INSERT INTO snapshots SELECT * FROM before.snapshots WHERE name = 's0'");
        scene.refuses("with an older header", "layer");
    }
    put_back(&["header.toml"]);
    scene.sql("UPDATE layers SET sealed_generation = NULL, sealed_mac = NULL");
    scene.sql("INSERT INTO snapshots SELECT * FROM before.snapshots WHERE name = 's0'");
    scene.refuses("its header, and a seal that no row says to be finished", "layer");
    put_back(&["data", "map"]);
    scene.refuses("its data and map", "layer");
    scene.put_files_back(parent, &["data", "map"]);
    scene
        .sql(&format!("UPDATE layers SET sealed_generation = NULL, sealed_mac = NULL WHERE id = '{parent}'"));
    scene.refuses("its data and map, and a seal that no row says to be finished", "layer");
    put_back(ALL);
    scene.put_files_back(top, &["header.toml"]);
    scene.refuses("and the header of what stands on it", "layer");
    // All that there was before, at once, reads as it does now.
    put_back(ALL);
    scene.put_files_back(child, ALL);
    scene.put_row_back(child);
    scene.put_files_back(top, &["header.toml"]);
    scene.put_row_back(top);
    let refused = scene.is_right("all of it");
    assert_eq!(refused, Vec::<String>::new());
}

#[test]
fn a_layer_from_before_it_took_its_child() {
    taken_down(false);
}

#[test]
fn a_copys_base_from_before_it_took_a_copy() {
    taken_down(true);
}

#[test]
fn a_layer_from_before_a_sealed_child_took_it() {
    let (scene, [parent, child, _]) = sealed(FoldWay::Up, false);
    let put_back = || {
        scene.put_files_back(parent, ALL);
        scene.put_row_back(parent);
        scene.set_parent(child, parent);
    };
    put_back();
    scene.refuses("the parent's folder and row", "layer");
    put_back();
    scene.put_files_back(child, &["header.toml"]);
    scene.refuses("and the child's header", "layer");
    // Without what it took, as if it had never lain on anything.
    scene.put_files_back(child, ALL);
    scene.put_row_back(child);
    scene.sql(&format!("UPDATE layers SET parent = NULL WHERE id = '{child}'"));
    scene.refuses("the child alone", "layer");
    put_back();
    scene.put_files_back(child, ALL);
    scene.put_row_back(child);
    assert_eq!(scene.is_right("all of it"), Vec::<String>::new());
}

/// What a volume took from below and has discarded since must not come back.
#[test]
fn a_layer_from_before_a_volume_took_it() {
    let world = World::new(&["north"]);
    let key = Some(world.default_key("north"));
    let mut disk = Disk::new(&world, "north", 8 * MIB, key, DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; 4 * SECTOR]));
    let host = world.owner("north");
    host.open_volume(disk.id, false).unwrap().disk.write(2 * MIB as u64, &[2; SECTOR]).unwrap();
    disk.model[2 * MIB..][..SECTOR].fill(2);
    host.close().unwrap();
    drop(host);
    let older = disk.model.clone();
    let mut scene = Scene { world, region: "north", snapshots: vec![], volume: None, older: None };
    let region = scene.world.region("north");
    let (parent, volume, active) = region
        .catalog()
        .unwrap()
        .read(|tx| {
            let volume = tx.volumes()?.remove(0);
            Ok::<_, CatalogError>((tx.layer_of_snapshot(first)?, volume.id, volume.active))
        })
        .unwrap();
    drop(region);
    scene.keep("before");
    let discard = |host: &Arc<Host>| {
        host.open_volume(volume, false).unwrap().disk.discard(0, 2 * SECTOR as u64).unwrap();
    };
    assert_eq!(scene.fold_away(first, discard), FoldWay::Up);
    disk.model[..2 * SECTOR].fill(0);
    scene.volume = Some((volume, disk.model));
    scene.keep("after");
    assert_eq!(scene.look("untouched"), Vec::<String>::new());
    scene.restore();
    let put_back = |files: &[&str]| {
        scene.put_files_back(parent, ALL);
        scene.put_row_back(parent);
        scene.set_parent(active, parent);
        scene.put_files_back(active, files);
    };
    put_back(&[]);
    scene.refuses("the parent's folder and row", "layer");
    put_back(&["header.toml"]);
    scene.refuses("and the volume's header", "edition");
    for files in [&[][..], &["header.toml"]] {
        put_back(files);
        scene.sql(&format!(
            "INSERT INTO folds (parent, child, way, next_chunk, mac, moved_bytes, is_moved)
             VALUES ('{parent}', '{active}', 'up', 0, NULL, 0, 0)"
        ));
        scene.refuses("and a fold's row", "layer");
    }
    // Its data from before has not what it took.
    scene.put_files_back(active, &["data", "map"]);
    scene.refuses("the volume's data and map", "as its header says");
    scene.put_files_back(active, ALL);
    scene.refuses("the volume's folder without its parent", "layer");
    scene.older = Some(older);
    scene.put_files_back(parent, ALL);
    scene.put_row_back(parent);
    scene.put_files_back(active, ALL);
    scene.put_row_back(active);
    assert_eq!(scene.is_right("all of it"), Vec::<String>::new());
}
