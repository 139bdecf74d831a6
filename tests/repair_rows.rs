//! Guards against a repair of the catalog that takes away what only something it can't read needs, or that opens what was closed.

mod copy_support;

use std::fs;
use std::sync::Arc;

use copy_support::{Disk, World};
use terrane::catalog::{CatalogError, DiskKind, KeyState};
use terrane::ids::LayerId;
use terrane::layer::{PageCache, SLOTS_OFFSET};
use terrane::region::{Rebuilding, Region};
use terrane::volume::{HostError, folder, recover_rows};

const MIB: usize = 1 << 20;
const SECTOR: usize = 4096;

/// As `region check --repair` does; what could not be used.
fn repair(world: &World) -> Vec<String> {
    let text = world.path("north").display().to_string();
    let rebuilding = Rebuilding::begin(Some(&text), &world.config).unwrap();
    let recovered = recover_rows(rebuilding.region(), rebuilding.old()).unwrap();
    recovered.adopt(rebuilding.region()).unwrap();
    rebuilding.commit().unwrap();
    recovered.unusable
}

/// As a mount does: removes what nobody needs, and folds what has no name.
fn serve(world: &World) {
    let host = world.owner("north");
    host.fold(false, &mut |_| true).unwrap();
    host.close().unwrap();
}

/// A layer without a name, which only one with a damaged or lost header stands on, is kept: with that header put right, all is there.
/// The volume's layer has no sector, as one that is being made.
#[test]
fn what_only_a_damaged_header_needs_outlives_a_repair() {
    for (is_of_a_snapshot, is_lost) in [(true, false), (true, true), (false, false), (false, true)] {
        let world = World::new(&["north"]);
        let mut disk = Disk::new(&world, "north", 8 * MIB, None, DiskKind::Data);
        let first = disk.change(&world, "first", |c| c.write(0, &[1; MIB]));
        if is_of_a_snapshot {
            disk.change(&world, "second", |c| c.write(300 * SECTOR, &[2; SECTOR]));
        }
        // No name is left on the layer below.
        world.delete("north", first);
        let above = |tx: &terrane::catalog::ReadTx| match is_of_a_snapshot {
            true => Ok::<_, CatalogError>(tx.resolve_snapshot("second")?.layer.unwrap()),
            false => Ok(tx.volume(disk.id)?.active),
        };
        let layer = world.region("north").catalog().unwrap().read(above).unwrap();
        let header = world.path(&format!("north/layers/{layer}/header.toml"));
        let kept = fs::read(&header).unwrap();
        match is_lost {
            true => fs::remove_file(&header).unwrap(),
            false => copy_support::flip(&header, 100),
        }
        let unusable = repair(&world);
        assert!(unusable.iter().any(|why| why.contains(&layer.to_string())), "{unusable:?}");
        serve(&world);
        fs::write(&header, kept).unwrap();
        assert_eq!(repair(&world), Vec::<String>::new());
        serve(&world);
        let host = world.owner("north");
        let volumes = host.region().catalog().unwrap().read(|tx| tx.volumes()).unwrap();
        assert_eq!(volumes.len(), 1);
        let mut bytes = vec![0xaa; disk.model.len()];
        host.open_volume(volumes[0].id, false).unwrap().disk.read(0, &mut bytes).unwrap();
        assert!(bytes == disk.model, "the volume differs");
        host.close().unwrap();
        drop(host);
        let snapshots = world.region("north").catalog().unwrap().read(|tx| tx.snapshots()).unwrap();
        assert!(snapshots.iter().any(|s| world.bytes("north", s.id) == disk.model), "{}", snapshots.len());
    }
}

/// What a killed maker of a layer leaves has no header yet and no sector: it is told as that, and stays.
#[test]
fn a_layer_whose_making_was_cut_is_told_from_one_that_lost_its_header() {
    const CUT_SHORT: &str = "its making or its removal was cut short";
    let world = World::new(&["north"]);
    let mut disk = Disk::new(&world, "north", 8 * MIB, None, DiskKind::Data);
    let named = disk.change(&world, "named", |c| c.write(0, &[1; MIB]));
    let region = world.region("north");
    let next = layer_upon(&region, disk.id, named);
    let folder = world.path(&format!("north/layers/{next}"));
    fs::remove_file(folder.join("header.toml")).unwrap();
    drop(region);
    for name in ["data", "map"] {
        let unusable = repair(&world);
        assert!(unusable.len() == 1 && unusable[0].contains(CUT_SHORT), "with {name}: {unusable:?}");
        fs::remove_file(folder.join(name)).unwrap();
    }
    // As a removal that came to its last file.
    assert_eq!(repair(&world), Vec::<String>::new());
    let written = fs::File::create(folder.join("data")).unwrap();
    written.set_len(SLOTS_OFFSET + SECTOR as u64).unwrap();
    let unusable = repair(&world);
    assert!(unusable.len() == 1 && !unusable[0].contains(CUT_SHORT), "{unusable:?}");
    assert_eq!(world.bytes("north", named), disk.model);
}

/// The layer a rollback makes before it is committed.
fn layer_upon(region: &Region, volume: terrane::ids::VolumeId, to: terrane::ids::SnapshotId) -> LayerId {
    let (row, snapshot, point) = {
        let mut catalog = region.catalog().unwrap();
        let snapshot = catalog.read(|tx| tx.snapshot(to)).unwrap();
        let point =
            catalog.read(|tx| tx.layer(snapshot.layer.unwrap())).unwrap().point.expect("it is sealed");
        (catalog.read(|tx| tx.volume(volume)).unwrap(), snapshot, point)
    };
    let spec = folder::LayerSpec {
        account: row.account,
        volume,
        parent: Some((snapshot.layer.unwrap(), point)),
        size_bytes: row.size_bytes,
        cipher: row.cipher,
        key: row.key,
        kind: row.kind,
        points: Vec::new(),
        turn: 100,
        proof_key: None,
    };
    folder::make_layer(region, &Arc::new(PageCache::new(1)), &spec).unwrap().0.id
}

/// A disabled key stays so, and is no obstacle: headers are mended with it, here that of a rollback that was cut short.
#[test]
fn a_key_that_was_disabled_opens_nothing_after_a_repair() {
    let world = World::new(&["north"]);
    let key = world.key("north", "closed");
    let mut disk = Disk::new(&world, "north", 8 * MIB, Some(key), DiskKind::Data);
    let snapshot = disk.change(&world, "first", |c| c.write(0, &[1; MIB]));
    let _ = disk.change(&world, "second", |c| c.write(SECTOR, &[2; SECTOR]));
    let region = world.region("north");
    layer_upon(&region, disk.id, snapshot);
    let set = |state| region.catalog().unwrap().write(|tx| tx.set_key_state(key, state)).unwrap();
    set(KeyState::Disabled);
    drop(region);
    assert_eq!(repair(&world), Vec::<String>::new());
    let keys = world.region("north").catalog().unwrap().read(|tx| tx.keys()).unwrap();
    assert!(keys.iter().any(|k| k.id == key && k.state == KeyState::Disabled), "{keys:?}");
    let host = world.owner("north");
    let volumes = host.region().catalog().unwrap().read(|tx| tx.volumes()).unwrap();
    assert_eq!(volumes.len(), 2, "the volume, and what the rollback began");
    for volume in &volumes {
        let opened = host.open_volume(volume.id, false);
        assert!(matches!(opened, Err(HostError::Kms(_))), "a disabled key opened {}", volume.id);
    }
    host.region().catalog().unwrap().write(|tx| tx.set_key_state(key, KeyState::Enabled)).unwrap();
    let mut bytes = vec![0xaa; disk.model.len()];
    for volume in &volumes {
        host.open_volume(volume.id, false).expect("its header is mended").disk.read(0, &mut bytes).unwrap();
        assert_eq!(bytes == disk.model, volume.id == disk.id);
    }
    host.close().unwrap();
}
