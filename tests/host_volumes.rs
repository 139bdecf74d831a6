//! Guards against a volume that can't be had back after something went wrong on its way: one that is latched, one whose
//! seal or resize was cut short, one that is opened while another thread closes or replaces it. And against layers that
//! nobody names any more.

mod copy_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use copy_support::{Disk, World};
use terrane::catalog::DiskKind;
use terrane::ids::{SnapshotId, VolumeId};
use terrane::layer::LayerError;
use terrane::volume::{Host, HostError, OpenVolume, Order, SnapshotItem, VolumeError};

const MIB: usize = 1 << 20;

fn order_of_snapshots(host: &Host, volumes: &[VolumeId], called: &str) -> Order {
    let account = host.region().catalog().unwrap().read(|tx| tx.default_account()).unwrap().id;
    let item = |(n, volume): (usize, &VolumeId)| SnapshotItem {
        volume: volume.to_string(),
        snapshot: SnapshotId::random().to_string(),
        name: format!("{called}-{n}"),
    };
    Order::Snapshot {
        items: volumes.iter().enumerate().map(item).collect(),
        account: account.to_string(),
        group: None,
        description: None,
        tags: vec![],
        retention_days: None,
    }
}

/// As a failed write or sync below does.
fn latch(host: &Arc<Host>, volume: VolumeId) {
    let open = host.open_volume(volume, false).unwrap();
    open.disk.active().lock_for_seal().unwrap().latch();
    assert!(open.disk.active().is_latched());
}

#[track_caller]
fn is_latched(done: Result<(), HostError>) {
    assert!(matches!(done, Err(HostError::Volume(VolumeError::Layer(LayerError::Latched)))), "{done:?}");
}

fn first_bytes(host: &Arc<Host>, volume: VolumeId) -> u8 {
    let mut byte = [0xaa];
    host.open_volume(volume, false).unwrap().disk.read(0, &mut byte).unwrap();
    byte[0]
}

#[test]
fn a_seal_that_fails_leaves_no_layer_to_nobody() {
    let world = World::new(&["north"]);
    let mut disk = Disk::new(&world, "north", 4 * MIB, None, DiskKind::Data);
    disk.change(&world, "s1", |c| c.write(0, &[1; 4096]));
    let mut other = Disk::new(&world, "north", 4 * MIB, None, DiskKind::Data);
    other.change(&world, "s2", |c| c.write(0, &[2; 4096]));
    let before = world.holdings("north");
    let host = world.owner("north");
    for id in [disk.id, other.id] {
        host.open_volume(id, false).unwrap().disk.write(0, &[9; 4096]).unwrap();
    }
    latch(&host, disk.id);
    for n in 0..3 {
        // Of a group too: the sound one of the two is not sealed either.
        let order = order_of_snapshots(&host, &[other.id, disk.id], &format!("no{n}"));
        is_latched(host.execute(&order, false));
        is_latched(host.execute(&order_of_snapshots(&host, &[disk.id], &format!("nor{n}")), false));
        let size_bytes = (8 * MIB) as u64;
        is_latched(host.execute(&Order::Resize { volume: disk.id.to_string(), size_bytes }, false));
    }
    // The next layer of each, which the catalog names.
    let now = world.holdings("north");
    assert_eq!((now.0, now.1), (before.0 + 2, before.1 + 2));
    let order = order_of_snapshots(&host, &[other.id], "yes");
    host.execute(&order, false).unwrap();
    assert!(host.forget_latched(disk.id));
    assert_eq!(first_bytes(&host, disk.id), 9, "what was answered, the file system below still has");
    host.execute(&order_of_snapshots(&host, &[disk.id], "now"), false).unwrap();
    host.close().unwrap();
    drop(host);
    assert_eq!(world.holdings("north"), (before.0 + 2, before.1 + 2, before.2 + 2));
}

#[test]
fn a_latched_volume_can_be_rolled_back_or_deleted() {
    let world = World::new(&["north"]);
    let mut disk = Disk::new(&world, "north", 4 * MIB, None, DiskKind::Data);
    let empty = world.holdings("north");
    let snapshot = disk.change(&world, "s1", |c| c.write(0, &[1; 4096]));
    let before = world.holdings("north");
    let (volume, snapshot) = (disk.id.to_string(), snapshot.to_string());
    let host = world.owner("north");
    let open = host.open_volume(disk.id, false).unwrap();
    open.disk.write(0, &[9; 4096]).unwrap();
    drop(open);
    latch(&host, disk.id);
    host.execute(&Order::Rollback { volume: volume.clone(), snapshot: snapshot.clone() }, false).unwrap();
    assert_eq!(world.holdings("north"), before);
    assert_eq!(first_bytes(&host, disk.id), 1);
    // Its seal is not finished when it is latched: the snapshot needs that.
    host.open_volume(disk.id, false).unwrap().disk.write(0, &[2; 4096]).unwrap();
    host.execute(&order_of_snapshots(&host, &[disk.id], "s2"), false).unwrap();
    latch(&host, disk.id);
    host.execute(&Order::DeleteVolume { volume }, false).unwrap();
    let name = "s2-0".to_owned();
    let second = host.region().catalog().unwrap().read(|tx| tx.resolve_snapshot(&name)).unwrap().id;
    let mut byte = [0];
    world.reader("north").open_snapshot(second).unwrap().read(0, &mut byte).unwrap();
    assert_eq!(byte, [2]);
    for snapshot in [snapshot, second.to_string()] {
        host.execute(&Order::DeleteSnapshot { snapshot }, false).unwrap();
    }
    drop(host);
    assert_eq!(world.holdings("north"), (empty.0 - 1, empty.1 - 1, empty.2));
}

/// A rollback throws the volume's content away: not for a snapshot that can't be read.
#[test]
fn a_rollback_to_a_damaged_snapshot_changes_nothing() {
    let world = World::new(&["north"]);
    let mut disk = Disk::new(&world, "north", 4 * MIB, None, DiskKind::Data);
    let snapshot = disk.change(&world, "s1", |c| c.write(0, &[1; 4096]));
    let layer = world.snapshot("north", snapshot).layer.unwrap();
    let data = world.region("north").layer_dir(layer).join("data");
    (0..2).for_each(|n| copy_support::flip(&data, n * 4096 + 100));
    let before = world.holdings("north");
    let host = world.owner("north");
    let order = Order::Rollback { volume: disk.id.to_string(), snapshot: snapshot.to_string() };
    let refused = host.execute(&order, false).unwrap_err();
    assert!(refused.to_string().contains("damaged"), "{refused}");
    assert_eq!(world.holdings("north"), before);
}

/// A kill between a change of the catalog and what follows it in the folders.
#[test]
fn layers_that_nobody_names_are_removed_at_the_next_start() {
    let world = World::new(&["north"]);
    let mut disk = Disk::new(&world, "north", 4 * MIB, None, DiskKind::Data);
    let (snapshot, host) = disk.change_and_die(&world, "s1", |c| c.write(0, &[1; 4096]));
    host.execute(&order_of_snapshots(&host, &[disk.id], "same"), false).unwrap();
    drop(host);
    let before = world.holdings("north");
    // The next layer, the active one and a sealed one: as a cut in an opening, a rollback and a deletion leaves them.
    let host = world.owner("north");
    host.open_volume(disk.id, false).unwrap().disk.write(0, &[2; 4096]).unwrap();
    latch(&host, disk.id);
    is_latched(host.execute(&order_of_snapshots(&host, &[disk.id], "no"), false));
    drop(host);
    world.region("north").catalog().unwrap().write(|tx| tx.set_volume_next(disk.id, None)).unwrap();
    drop(world.owner("north"));
    assert_eq!(world.holdings("north"), before);
    let region = world.region("north");
    region
        .catalog()
        .unwrap()
        .write(|tx| {
            tx.delete_volume(disk.id)?;
            tx.delete_snapshot(snapshot)?;
            tx.delete_snapshot(tx.resolve_snapshot("same-0")?.id)
        })
        .unwrap();
    drop(world.owner("north"));
    assert_eq!(world.holdings("north"), (0, 0, 0));
}

/// Opens a volume as the mount does: the one it gets is not being replaced.
fn enter(host: &Arc<Host>, volume: VolumeId, opener: u32) -> Arc<OpenVolume> {
    loop {
        let open = host.open_volume(volume, true).unwrap();
        if open.enter(opener) {
            return open;
        }
        std::thread::yield_now();
    }
}

#[test]
fn who_opens_a_volume_that_is_being_replaced_gets_the_new_one() {
    let world = World::new(&["north"]);
    let mut disk = Disk::new(&world, "north", 4 * MIB, None, DiskKind::Data);
    let snapshot = disk.change(&world, "s1", |c| c.write(0, &[1; 4096])).to_string();
    let before = world.holdings("north");
    let host = world.owner("north");
    let order = Order::Rollback { volume: disk.id.to_string(), snapshot };
    let stop = AtomicBool::new(false);
    let rolled_back = std::thread::scope(|scope| {
        let (stop, host) = (&stop, &host);
        for writer in 1..3u64 {
            scope.spawn(move || {
                let opener = rustix::thread::gettid().as_raw_nonzero().get() as u32;
                for n in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let open = enter(host, disk.id, opener);
                    let mut found = [0xaa];
                    open.disk.read(0, &mut found).unwrap();
                    assert_eq!(found, [1]);
                    let written = (n * 2 + writer).to_le_bytes();
                    open.disk.write(writer * 512, &written).unwrap();
                    open.wrote(8);
                    let mut found = [0; 8];
                    open.disk.read(writer * 512, &mut found).unwrap();
                    assert_eq!(found, written);
                    let live = host.find_live(disk.id).expect("while it is open it is live");
                    assert!(Arc::ptr_eq(&live, &open), "what is open was replaced");
                    open.leave(opener);
                    std::thread::yield_now();
                }
            });
        }
        let rolled_back = (0..60).filter(|_| match host.execute(&order, true) {
            Ok(()) => true,
            Err(HostError::InUse { .. }) => false,
            Err(e) => {
                stop.store(true, Ordering::Relaxed);
                panic!("{e}");
            }
        });
        let count = rolled_back.count();
        stop.store(true, Ordering::Relaxed);
        count
    });
    assert!(rolled_back > 0, "the file was never free");
    host.close().unwrap();
    drop(host);
    let after = world.holdings("north");
    assert!(after.0 <= before.0 + 1 && after.0 == after.1, "{before:?} {after:?}: a next layer at most");
}

#[test]
fn who_opens_a_volume_that_is_being_closed_waits_for_that() {
    let world = World::new(&["north"]);
    let mut disk = Disk::new(&world, "north", 4 * MIB, None, DiskKind::Data);
    disk.change(&world, "s1", |c| c.write(0, &[1; 4096]));
    let host = world.owner("north");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (stop, host) = (&stop, &host);
        let openers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        assert_eq!(first_bytes(host, disk.id), 1);
                    }
                })
            })
            .collect();
        let closed: Vec<_> = (0..60).map(|_| host.close()).collect();
        stop.store(true, Ordering::Relaxed);
        openers.into_iter().for_each(|opener| opener.join().expect("every opening is answered"));
        closed.into_iter().for_each(|closed| closed.unwrap());
    });
    host.close().unwrap();
    assert!(host.live().is_empty());
}
