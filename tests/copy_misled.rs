//! Guards against a bookmark, with a right MAC, that does not name all that changed, and against a base that was made by one: a copy that
//! lacks what changed, and says success.

mod copy_support;

use std::collections::HashSet;
use std::fs;
use std::ops::Range;
use std::path::Path;

use copy_support::line::{DISK, Line, MIB, SECTOR, bookmarks_of, delete_and_fold, layers};
use copy_support::{Disk, Random, World, flip, take};
use terrane::catalog::DiskKind;
use terrane::copy::{CopyError, KeyChoice};
use terrane::ids::{SnapshotId, VolumeId};
use terrane::layer::{Bookmark, ChunkBits, SectorSet, slot_offset};
use terrane::units::ChunkNo;
use terrane::volume::proof::{self, Rests};
use terrane::volume::{Source, VolumeSpec, bookmarks, create_volume, folder};

const CHUNK: usize = 512;

/// The bookmark in a file, without this sector, under the key of the layer that it lies with.
fn leave_out(world: &World, snapshot: SnapshotId, file: &Path, sector: usize) {
    let (chunk, index) = ((sector / CHUNK) as u64, sector % CHUNK);
    let stack = world.reader("north").open_snapshot(snapshot).unwrap();
    let layer = stack.chain.layers().last().unwrap();
    let prf = layer.keys().header();
    let mut mark = Bookmark::parse(&fs::read(file).unwrap(), layer.id(), prf).unwrap();
    assert!(mark.changed.bits(chunk).contains(index), "it names sector {sector}");
    let mut changed = SectorSet::default();
    let mut at = 0;
    while let Some(next) = mark.changed.next(at) {
        let named = mark.changed.bits(next);
        let mut bits = ChunkBits::NONE;
        let is_left = |at: &usize| named.contains(*at) && (next, *at) != (chunk, index);
        (0..CHUNK).filter(is_left).for_each(|at| bits.insert(at));
        changed.push(next, bits);
        at = next + 1;
    }
    mark.changed = changed;
    fs::write(file, mark.to_bytes(layer.id(), prf)).unwrap();
}

/// A bookmark with a right MAC that does not name a sector which holds something else now: what was written anew, written where
/// nothing was, or discarded; by a fold up and down; for a copy on its base and for one beside it. It is not believed, nothing of the
/// copy is kept, and the next one is right.
// X3
#[test]
fn a_bookmark_that_names_too_few_sectors_is_seen() {
    let mut tried = HashSet::new();
    for sizes in [[900, 60], [30, 300]] {
        let world = World::new(&["north", "t0"]);
        world.key("t0", "other");
        let mut line = Line::new(&world, 61);
        for most in sizes {
            line.step(&world, 10, most);
        }
        let [base, newest] = &line.moments[..] else { panic!("two moments") };
        world.copy(("north", base.id), "t0", "base", KeyChoice::AsSource);
        delete_and_fold(&world, base.id);
        let [layer] = layers(&world, "north", newest.id)[..] else { panic!("all is one layer") };
        let (folder, files) = bookmarks_of(&world, layer);
        let [file] = &files[..] else { panic!("one bookmark") };
        let right = fs::read(file).unwrap();
        let of = |bytes: &[u8], sector: usize| bytes[sector * SECTOR..][..SECTOR].to_vec();
        let sort = |sector: &usize| {
            let is_zero = |bytes: &[u8]| of(bytes, *sector).iter().all(|b| *b == 0);
            let differs = of(&base.bytes, *sector) != of(&newest.bytes, *sector);
            differs.then(|| (is_zero(&base.bytes), is_zero(&newest.bytes)))
        };
        for wanted in [(true, false), (false, true), (false, false)] {
            let Some(sector) = (0..DISK / SECTOR).find(|sector| sort(sector) == Some(wanted)) else {
                continue;
            };
            for key in [KeyChoice::AsSource, KeyChoice::Named("other".into())] {
                let what = format!("{sizes:?}, zero before and now: {wanted:?}, {key:?}");
                fs::write(file, &right).unwrap();
                leave_out(&world, newest.id, file, sector);
                let error = world.try_copy(("north", newest.id), "t0", "wrong", key.clone()).unwrap_err();
                let at = (sector * SECTOR) as u64;
                assert!(
                    matches!(&error, CopyError::Misled { offset, layer: of, are_gone: true, .. } if *offset == at && *of == layer),
                    "{what}: {error}"
                );
                assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{what}: it serves no more");
                let there = world.region("t0").catalog().unwrap().read(|tx| tx.snapshots()).unwrap();
                assert_eq!(there.len(), 1, "{what}: only the base");
                let copied = world.copy(("north", newest.id), "t0", "copied", key);
                world.equal("t0", copied, &newest.bytes);
                world.delete("t0", copied);
                // Of one that read all of the source the proof would see it too.
                fs::remove_dir_all(world.region("north").dir().join("proofs")).unwrap();
                tried.insert(wanted);
            }
        }
    }
    assert_eq!(tried.len(), 3, "{tried:?}");
}

/// What is damaged in the source where nothing changed is the source's: the copy has it from its base, and is no proof of the source.
// X3
#[test]
fn damage_where_a_bookmark_says_nothing_is_the_sources_alone() {
    let world = World::new(&["north", "t0", "t1"]);
    let mut random = Random::new(6);
    let mut disk = Disk::new(&world, "north", DISK, Some(world.default_key("north")), DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.random(&mut random, 0, 4 * MIB));
    for target in ["t0", "t1"] {
        world.copy(("north", first), target, "base", KeyChoice::AsSource);
    }
    let second = disk.change(&world, "second", |c| c.random(&mut random, 2 * MIB, SECTOR));
    delete_and_fold(&world, first);
    let proof = world.region("north").dir().join("proofs").join(second.to_string());
    let copy_to = |target: &str| {
        let copied = world.copy(("north", second), target, "copied", KeyChoice::AsSource);
        world.equal(target, copied, &disk.model);
        assert_eq!(world.snapshot(target, copied).shipped_bytes, SECTOR as u64, "by its bookmark");
    };
    let [layer] = layers(&world, "north", second)[..] else { panic!("all is one layer") };
    let data = world.region("north").layer_dir(layer).join("data");
    let mut sources = [Source::Zero];
    world.reader("north").open_snapshot(second).unwrap().sources(ChunkNo(0), 7, &mut sources).unwrap();
    let Source::Slot { slot, .. } = sources[0] else { panic!("it is data") };
    let at = slot_offset(slot);
    flip(&data, at);
    copy_to("t0");
    assert!(!proof.exists(), "not all of the source was read");
    flip(&data, at);
    copy_to("t1");
    assert!(proof.exists(), "all of it was");
}

/// Which proof a snapshot has.
fn rests(world: &World, region: &str, id: SnapshotId) -> Option<Rests> {
    let host = world.reader(region);
    let (_, moments) = host.open_snapshot_with_moments(id).unwrap();
    proof::find_head(host.region(), &world.snapshot(region, id), moments.all[0]).map(|head| head.rests)
}

/// A disk of so many chunks, each of which has a sector.
struct Wide {
    id: VolumeId,
}

impl Wide {
    /// Writes a sector of each of these chunks, and takes a snapshot.
    fn step(&self, world: &World, name: &str, chunks: Range<u64>, byte: u8) -> SnapshotId {
        let host = world.owner("north");
        let open = host.open_volume(self.id, false).unwrap();
        let at = |chunk: u64| chunk * (CHUNK * SECTOR) as u64;
        chunks.for_each(|chunk| open.disk.write(at(chunk), &[byte; SECTOR]).unwrap());
        let id = take(&host, self.id, name);
        host.close().unwrap();
        id
    }
}

/// More chunks than are read: some are drawn. That proves nothing of the source, and not the copy: whoever stands on it is tried again.
/// A copy that lacks something comes by only as long as its chunk is not drawn.
// X3
#[test]
fn what_was_not_wholly_tried_is_tried_again() {
    const CHUNKS: u64 = 4200;
    const TRIES: usize = 60;
    let world = World::new(&["north", "t0"]);
    let region = world.region("north");
    let account = region.catalog().unwrap().read(|tx| tx.default_account()).unwrap().id;
    let (key, size_bytes) = (Some(world.default_key("north")), CHUNKS * (CHUNK * SECTOR) as u64);
    let spec = VolumeSpec { account, name: None, size_bytes, kind: DiskKind::Data, snapshot: None, key };
    let disk = Wide { id: create_volume(&region, &spec).unwrap() };
    let first = disk.step(&world, "first", 0..CHUNKS, 1);
    world.copy(("north", first), "t0", "base", KeyChoice::AsSource);
    let second = disk.step(&world, "second", 7..9, 2);
    delete_and_fold(&world, first);
    let copy = |name: &str, id| world.try_copy(("north", id), "t0", name, KeyChoice::AsSource);
    let right = copy("right", second).unwrap();
    assert_eq!(world.snapshot("t0", right).shipped_bytes, 2 * SECTOR as u64, "by its bookmark");
    assert_eq!((rests(&world, "t0", right), rests(&world, "north", second)), (Some(Rests::Bookmark), None));
    world.delete("t0", right);
    // One that lacks a sector: seen in about half of all copies.
    let [layer] = layers(&world, "north", second)[..] else { panic!("all is one layer") };
    let file = bookmarks_of(&world, layer).1[0].clone();
    leave_out(&world, second, &file, 8 * CHUNK);
    let wrong = fs::read(&file).unwrap();
    let mut tries = 0..TRIES;
    let lacks = tries.find_map(|_| {
        fs::write(&file, &wrong).unwrap();
        match copy("lacks", second) {
            Err(CopyError::Misled { .. }) => None,
            copied => Some(copied.unwrap()),
        }
    });
    let lacks = lacks.expect("once its chunk is not drawn");
    assert_eq!((rests(&world, "t0", lacks), rests(&world, "north", second)), (Some(Rests::Bookmark), None));
    // What is copied onto it lacks the same: the maps say all that changed since, and do not make it right.
    let third = disk.step(&world, "third", 100..101, 3);
    let seen = tries.find_map(|_| match copy("onto", third) {
        Err(error @ CopyError::WrongBase { .. }) => Some(error),
        copied => {
            let copied = copied.unwrap();
            let found = (rests(&world, "t0", copied), rests(&world, "north", third));
            assert_eq!(found, (Some(Rests::Bookmark), None));
            world.delete("t0", copied);
            None
        }
    });
    let seen = seen.expect("once its chunk is drawn");
    assert!(seen.hint().is_some_and(|hint| hint.contains(&lacks.to_string())), "{seen}");
    // Without that base, and by the bookmark as it was not: all that is recorded crosses.
    world.delete("t0", lacks);
    bookmarks::distrust(&region, layer);
    copy("third", third).unwrap();
}

/// A base on the word of a bookmark is as good as any once all of the source was read.
// X3
#[test]
fn a_base_on_the_word_of_a_bookmark_is_tried_by_all_bytes() {
    let world = World::new(&["north", "t0"]);
    let mut line = Line::new(&world, 71);
    for most in [200, 60, 60] {
        line.step(&world, 8, most);
    }
    let [first, second, third] = [0, 1, 2].map(|number| line.moments[number].id);
    world.copy(("north", first), "t0", "base", KeyChoice::AsSource);
    delete_and_fold(&world, first);
    let base = world.copy(("north", second), "t0", "second", KeyChoice::AsSource);
    assert_eq!(
        (rests(&world, "t0", base), rests(&world, "north", second)),
        (Some(Rests::Maps), Some(Rests::Bytes))
    );
    // As one is that was made from a large disk.
    let host = world.reader("t0");
    let (moments, row) = (host.open_snapshot_with_moments(base).unwrap().1, world.snapshot("t0", base));
    let (layer, region) = (host.open_snapshot(base).unwrap(), host.region());
    let top = layer.chain.layers().last().unwrap();
    let key = folder::proof_key(region, top.id(), top.keys()).unwrap();
    let leaves = proof::read(region, &row, moments.all[0]).unwrap().unwrap().leaves(&key).unwrap();
    proof::write(region, &row, moments.all[0], &leaves, &key, Rests::Bookmark).unwrap();
    let copied = world.copy(("north", third), "t0", "third", KeyChoice::AsSource);
    world.equal("t0", copied, &line.moments[2].bytes);
    assert_eq!(
        (rests(&world, "t0", copied), rests(&world, "north", third)),
        (Some(Rests::Maps), Some(Rests::Bytes))
    );
    // Leaves of another disk are seen.
    world.delete("t0", copied);
    fs::remove_dir_all(world.region("north").dir().join("proofs")).unwrap();
    let mut others = leaves.clone();
    others.change(ChunkNo(3), 1);
    proof::write(region, &row, moments.all[0], &others, &key, Rests::Bookmark).unwrap();
    let error = world.try_copy(("north", third), "t0", "third", KeyChoice::AsSource).unwrap_err();
    assert!(
        matches!(&error, CopyError::WrongBase { base: named, .. } if *named == base.to_string()),
        "{error}"
    );
    assert_eq!(rests(&world, "north", third), None);
}

/// The last chunk of a disk need not be whole: what a bookmark names past the end is nothing.
#[test]
fn a_bookmark_that_names_what_is_past_the_end_names_nothing() {
    let world = World::new(&["north", "t0"]);
    let size = DISK + 5 * SECTOR;
    let mut disk = Disk::new(&world, "north", size, Some(world.default_key("north")), DiskKind::Data);
    let mut random = Random::new(8);
    let first = disk.change(&world, "first", |c| c.random(&mut random, DISK - MIB, MIB + 5 * SECTOR));
    world.copy(("north", first), "t0", "base", KeyChoice::AsSource);
    let second = disk.change(&world, "second", |c| c.random(&mut random, DISK, SECTOR));
    delete_and_fold(&world, first);
    let [layer] = layers(&world, "north", second)[..] else { panic!("all is one layer") };
    let file = bookmarks_of(&world, layer).1[0].clone();
    let stack = world.reader("north").open_snapshot(second).unwrap();
    let prf = stack.chain.layers()[0].keys().header();
    let mut mark = Bookmark::parse(&fs::read(&file).unwrap(), layer, prf).unwrap();
    let mut bits = mark.changed.bits((DISK / SECTOR / CHUNK) as u64);
    [5, 6, 511].into_iter().for_each(|index| bits.insert(index));
    let mut changed = SectorSet::default();
    changed.push((DISK / SECTOR / CHUNK) as u64, bits);
    changed.push((DISK / SECTOR / CHUNK) as u64 + 9, bits);
    mark.changed = changed;
    fs::write(&file, mark.to_bytes(layer, prf)).unwrap();
    let copied = world.copy(("north", second), "t0", "copied", KeyChoice::AsSource);
    world.equal("t0", copied, &disk.model);
    assert_eq!(world.snapshot("t0", copied).shipped_bytes, SECTOR as u64);
}
