//! A disk at "north" and its moments, which go one after the other, and what a layer keeps of those.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use terrane::catalog::DiskKind;
use terrane::copy::KeyChoice;
use terrane::ids::{LayerId, SnapshotId};
use terrane::volume::{Host, Order};

use super::{Disk, Random, World, take};

pub const SECTOR: usize = 4096;
pub const MIB: usize = 1 << 20;
pub const DISK: usize = 8 * MIB;

/// A moment: its snapshot, what the disk held, and which sectors were written or discarded since the one before.
pub struct Moment {
    pub id: SnapshotId,
    pub bytes: Vec<u8>,
    pub changed: HashSet<usize>,
}

/// A disk at "north" and its moments.
pub struct Line {
    pub disk: Disk,
    pub moments: Vec<Moment>,
    pub changed: HashSet<usize>,
    pub random: Random,
}

impl Line {
    pub fn new(world: &World, seed: u64) -> Self {
        let key = Some(world.default_key("north"));
        let disk = Disk::new(world, "north", DISK, key, DiskKind::Data);
        Self { disk, moments: vec![], changed: HashSet::new(), random: Random::new(seed) }
    }

    /// Writes, discards and zeros, so many sectors at most each time; also over what was there, and the same again.
    pub fn change(&mut self, host: &Arc<Host>, times: usize, most: usize) {
        let open = host.open_volume(self.disk.id, false).unwrap();
        for _ in 0..times {
            let count = 1 + self.random.below(most as u64) as usize;
            let first = self.random.below((DISK / SECTOR - count) as u64) as usize;
            let (at, len) = (first * SECTOR, count * SECTOR);
            let mut bytes = self.disk.model[at..at + len].to_vec();
            match self.random.below(8) {
                0 | 1 => bytes.fill(0),
                2 => {}
                _ => self.random.fill(&mut bytes),
            }
            match self.random.below(8) {
                0 | 1 => {
                    bytes.fill(0);
                    open.disk.discard(at as u64, len as u64).unwrap();
                }
                _ => open.disk.write(at as u64, &bytes).unwrap(),
            }
            self.disk.model[at..at + len].copy_from_slice(&bytes);
            self.changed.extend(first..first + count);
        }
    }

    pub fn snapshot(&mut self, host: &Arc<Host>) {
        let id = take(host, self.disk.id, &format!("s{}", self.moments.len()));
        let (bytes, changed) = (self.disk.model.clone(), std::mem::take(&mut self.changed));
        self.moments.push(Moment { id, bytes, changed });
    }

    /// A change and a snapshot by a process of its own.
    pub fn step(&mut self, world: &World, times: usize, most: usize) {
        let host = world.owner("north");
        self.change(&host, times, most);
        self.snapshot(&host);
        host.close().unwrap();
    }

    /// Bytes written or discarded from one moment to another.
    pub fn changed_bytes(&self, from: usize, to: usize) -> u64 {
        let all: HashSet<_> = self.moments[from + 1..=to].iter().flat_map(|m| m.changed.iter()).collect();
        (all.len() * SECTOR) as u64
    }

    /// A copy of moment `to` onto that of moment `from`, the only one at `region`, is its source and ships what changed.
    pub fn crosses(&self, world: &World, region: &str, from: usize, to: usize, what: &str) {
        let shipped = self.shipped(world, region, to);
        let changed = self.changed_bytes(from, to);
        assert!(shipped <= changed, "{what}: from {from} to {to} {shipped} shipped, {changed} changed");
    }

    /// Bytes shipped of a copy of moment `to`, which is its source and is deleted afterwards.
    pub fn shipped(&self, world: &World, region: &str, to: usize) -> u64 {
        let Moment { id, bytes, .. } = &self.moments[to];
        let copied = world.copy(("north", *id), region, "copied", KeyChoice::AsSource);
        world.equal(region, copied, bytes);
        let shipped = world.snapshot(region, copied).shipped_bytes;
        world.delete(region, copied);
        shipped
    }
}

pub fn delete(host: &Arc<Host>, id: SnapshotId) {
    host.execute(&Order::DeleteSnapshot { snapshot: id.to_string() }, false).unwrap();
}

pub fn delete_and_fold(world: &World, id: SnapshotId) {
    let host = world.owner("north");
    delete(&host, id);
    host.fold(false, &mut |_| true).unwrap();
    assert_eq!(host.region().catalog().unwrap().read(|tx| tx.folds()).unwrap(), []);
    host.close().unwrap();
}

pub fn layers(world: &World, region: &str, id: SnapshotId) -> Vec<LayerId> {
    let opened = world.region(region);
    let chain = opened.catalog().unwrap().read(|tx| tx.layer_chain(tx.layer_of_snapshot(id)?));
    chain.unwrap().iter().map(|layer| layer.id).collect()
}

/// The folder of a layer's bookmarks, and the files in it, the newest last.
pub fn bookmarks_of(world: &World, layer: LayerId) -> (PathBuf, Vec<PathBuf>) {
    let folder = world.region("north").layer_dir(layer).join("bookmarks");
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    (folder, files)
}
