//! Guards against a catalog that is lost amid a fold (engine rule 20), and a rebuilt one that shows a disk as it never was, or not at
//! all.

mod copy_support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use copy_support::{Disk, Random, World};
use terrane::catalog::DiskKind;
use terrane::ids::{SnapshotId, VolumeId};
use terrane::region::Rebuilding;
use terrane::volume::{CheckWatch, Host, Order, VolumeSpec, check_region, create_volume, recover_rows};

const MIB: usize = 1 << 20;

/// Every byte of every snapshot, and of the volume.
fn all(world: &World, volume: VolumeId) -> (Vec<Vec<u8>>, Vec<u8>) {
    let ids: Vec<SnapshotId> = {
        let region = world.region("north");
        let snapshots = region.catalog().unwrap().read(|tx| tx.snapshots()).unwrap();
        snapshots.iter().map(|s| s.id).collect()
    };
    let snapshots = ids.iter().map(|id| world.bytes("north", *id)).collect();
    let host = world.owner("north");
    let open = host.open_volume(volume, false).unwrap();
    let mut bytes = vec![0xaa; open.disk.size_bytes() as usize];
    bytes.chunks_mut(MIB).enumerate().for_each(|(i, c)| open.disk.read((i * MIB) as u64, c).unwrap());
    (snapshots, bytes)
}

fn is_well(world: &World) {
    let host = world.reader("north");
    let watch = &mut CheckWatch { cancel: &AtomicBool::new(false), max_rate: None, progress: &mut |_, _| {} };
    let checked = check_region(&host, watch).unwrap();
    assert!(checked.findings.count == 0 && checked.left.is_empty(), "{checked:?}");
}

/// Deletes a snapshot, and stops folding as if killed after `steps` chunks; whether it came so far.
fn cut_fold(host: &Arc<Host>, id: SnapshotId, steps: usize) -> bool {
    host.execute(&Order::DeleteSnapshot { snapshot: id.to_string() }, false).unwrap();
    let mut left = steps;
    host.fold(false, &mut |_| {
        left = left.saturating_sub(1);
        left > 0
    })
    .unwrap();
    left == 0
}

/// What could not be used.
fn rebuild(world: &World) -> Vec<String> {
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(world.path("north").join(name));
    }
    let text = world.path("north").display().to_string();
    let rebuilding = Rebuilding::begin(Some(&text), &world.config).unwrap();
    let recovered = recover_rows(rebuilding.region(), rebuilding.old()).unwrap();
    assert_eq!(rebuilding.commit().unwrap(), None);
    recovered.unusable
}

/// Chains whose layers hold so many MiB each; the snapshot of number `gone` is deleted.
fn lost_amid(layers: &[usize], gone: usize, steps: usize) {
    let world = World::new(&["north"]);
    let mut random = Random::new(steps as u64 + 1);
    let mut disk = Disk::new(&world, "north", 96 * MIB, None, DiskKind::Data);
    let mut ids = Vec::new();
    for (n, len) in layers.iter().enumerate() {
        let mut write = |c: &mut copy_support::Change| c.random(&mut random, n * MIB, len * MIB);
        ids.push(disk.change(&world, &format!("s{n}"), &mut write));
    }
    let host = world.owner("north");
    assert!(cut_fold(&host, ids[gone], steps), "the fold is longer");
    drop(host);
    is_well(&world);
    let (snapshots, volume) = all(&world, disk.id);
    assert!(volume == disk.model);
    assert_eq!(rebuild(&world), Vec::<String>::new());
    is_well(&world);
    let rows = world.region("north").catalog().unwrap().read(|tx| tx.layers()).unwrap();
    // An active layer takes sectors as any writes.
    let expected = usize::from(gone + 1 < layers.len());
    assert_eq!(rows.iter().filter(|row| row.state.is_folding()).count(), expected, "{rows:?}");
    let (recovered, volume) = all(&world, disk.id);
    assert!(volume == disk.model, "the volume differs");
    for (n, bytes) in snapshots.iter().enumerate() {
        assert!(recovered.contains(bytes), "snapshot {n} of {} is not there", snapshots.len());
    }
    is_well(&world);
}

#[test]
fn a_small_parent_goes_into_a_sealed_child() {
    for steps in 1..4 {
        lost_amid(&[8, 8, 8], 1, steps);
    }
}

#[test]
fn a_small_parent_goes_into_an_active_child() {
    lost_amid(&[8, 8], 1, 2);
}

#[test]
fn a_small_base_goes_into_its_child() {
    lost_amid(&[8, 8, 8], 0, 2);
}

#[test]
fn a_large_base_takes_its_child() {
    for steps in 1..3 {
        lost_amid(&[80, 6, 2], 0, steps);
    }
}

/// A folder of a deleted volume that is put back stands on a layer that has become another moment since: it costs itself alone.
#[test]
fn a_stray_folder_amid_a_fold_costs_itself_alone() {
    let world = World::new(&["north"]);
    let mut random = Random::new(9);
    let mut disk = Disk::new(&world, "north", 96 * MIB, None, DiskKind::Data);
    let ids: Vec<_> = [80, 6, 2]
        .iter()
        .enumerate()
        .map(|(n, len)| disk.change(&world, &format!("s{n}"), |c| c.random(&mut random, n * MIB, len * MIB)))
        .collect();
    let host = world.owner("north");
    let region = host.region();
    let row = region.catalog().unwrap().read(|tx| tx.volume(disk.id)).unwrap();
    let spec = VolumeSpec {
        account: row.account,
        name: None,
        size_bytes: row.size_bytes,
        kind: row.kind,
        snapshot: Some(ids[0]),
        key: row.key,
    };
    let stray = create_volume(region, &spec).unwrap();
    let layer = region.catalog().unwrap().read(|tx| tx.volume(stray)).unwrap().active;
    let (folder, kept) = (region.layer_dir(layer), world.path("stray"));
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        assert!(std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    };
    copy(&folder, &kept);
    host.execute(&Order::DeleteVolume { volume: stray.to_string() }, false).unwrap();
    assert!(cut_fold(&host, ids[0], 2), "the fold is longer");
    drop(host);
    let (snapshots, _) = all(&world, disk.id);
    copy(&kept, &folder);
    let unusable = rebuild(&world);
    assert!(unusable.len() == 1 && unusable[0].contains(&layer.to_string()), "{unusable:?}");
    let (recovered, volume) = all(&world, disk.id);
    assert!(volume == disk.model, "the volume differs");
    assert!(snapshots.iter().all(|bytes| recovered.contains(bytes)), "a snapshot is not there");
}
