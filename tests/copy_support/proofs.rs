//! What tests of proofs share: a disk with something on it, and proofs that say otherwise.

use std::path::PathBuf;

use terrane::catalog::DiskKind;
use terrane::ids::SnapshotId;
use terrane::units::ChunkNo;
use terrane::volume::folder;
use terrane::volume::proof::{self, Rests};

use super::daemon::MIB;
use super::{Disk, Random, World};

/// Of a disk here: sixteen chunks.
pub const DISK: usize = 32 * MIB;

pub fn world() -> (World, Disk, SnapshotId) {
    let world = World::new(&["north", "south"]);
    let mut random = Random::new(61);
    let mut disk = Disk::new(&world, "north", DISK, Some(world.default_key("north")), DiskKind::Data);
    let first = disk.change(&world, "first", |c| {
        c.random(&mut random, 0, 3 * MIB);
        c.random(&mut random, 9 * MIB, MIB);
    });
    (world, disk, first)
}

pub fn proof_file(world: &World, region: &str, id: SnapshotId) -> PathBuf {
    world.path(&format!("{region}/proofs/{id}"))
}

/// Writes a proof that says other than what a snapshot holds, by the snapshot's own keys.
pub fn forge(world: &World, region: &str, id: SnapshotId) {
    forge_as(world, region, id, Rests::Bytes);
}

pub fn forge_as(world: &World, region: &str, id: SnapshotId, rests: Rests) {
    let host = world.reader(region);
    let (disk, moments) = host.open_snapshot_with_moments(id).unwrap();
    let top = disk.chain.layers().last().unwrap();
    let key = folder::proof_key(host.region(), top.id(), top.keys()).unwrap();
    let mut leaves = proof::Leaves::of_zeros(DISK as u64);
    leaves.change(ChunkNo(4), 1);
    let row = world.snapshot(region, id);
    proof::write(host.region(), &row, moments.all[0], &leaves, &key, rests).unwrap();
}

/// Exit 6, the ranges on stdout, and these words.
#[track_caller]
pub fn differs(world: &World, args: &[&str], words: &[&str]) {
    let output = world.run(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{args:?}: {said}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("OFFSET BYTES"), "{args:?}");
    words.iter().for_each(|word| assert!(said.contains(word), "{args:?}: {word:?} is missing in: {said}"));
}
