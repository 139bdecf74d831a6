//! Guarded here: a copy under a new key that ships again what the target has, stands on layers of the old key, or differs from its
//! source because its base did.

mod copy_support;

use std::sync::atomic::{AtomicBool, Ordering};

use copy_support::{Disk, Random, World, flip, name};
use terrane::catalog::DiskKind;
use terrane::copy::{self, Begun, Copy, CopyError, KeyChoice, Watch};
use terrane::ids::{KeyId, SnapshotId};
use terrane::kms::set_key_enabled;
use terrane::layer::slot_offset;
use terrane::units::SectorNo;
use terrane::volume::Order;

const MIB: usize = 1 << 20;

fn named(alias: &str) -> KeyChoice {
    KeyChoice::Named(alias.into())
}

/// Regions north and south; in south a key `new`, and a copy of `first` under the default key; a second snapshot in north: 20
/// sectors of it were written, 40 discarded.
struct Rekeyed {
    world: World,
    disk: Disk,
    new: KeyId,
    base: SnapshotId,
    second: SnapshotId,
}

const WRITTEN: u64 = 20 * 4096;
const DISCARDED: u64 = 40 * 4096;

fn rekeyed() -> Rekeyed {
    let world = World::new(&["north", "south"]);
    let new = world.key("south", "new");
    let mut random = Random::new(1);
    let mut disk = Disk::new(&world, "north", 24 * MIB, Some(world.default_key("north")), DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.random(&mut random, MIB, 12 * MIB));
    let base = world.copy(("north", first), "south", "first", KeyChoice::AsSource);
    let second = disk.change(&world, "second", |c| {
        c.random(&mut random, 2 * MIB, 10 * 4096);
        c.random(&mut random, 20 * MIB, 10 * 4096);
        c.discard(5 * MIB, 40 * 4096);
    });
    Rekeyed { world, disk, new, base, second }
}

impl Rekeyed {
    fn stored(&self) -> u64 {
        let is_data = |s: &&[u8]| s.iter().any(|b| *b != 0);
        self.disk.model.chunks(4096).filter(is_data).count() as u64 * 4096
    }

    /// Copies the second snapshot under the new key; the bytes that crossed.
    #[track_caller]
    fn copy(&self, called: &str) -> u64 {
        let id = self.world.copy(("north", self.second), "south", called, named("new"));
        self.world.equal("south", id, &self.disk.model);
        self.world.snapshot("south", id).shipped_bytes
    }
}

// X1
#[test]
fn a_copy_under_a_new_key_ships_only_the_difference() {
    let mut case = rekeyed();
    let plan = case.world.plan(("north", case.second), "south", "second", named("new")).unwrap();
    assert_eq!(plan.base.as_ref().map(|b| (b.snapshot, b.is_reencrypted)), Some((case.base, true)));
    assert_eq!((plan.ship_bytes, plan.changed_bytes), (WRITTEN, WRITTEN + DISCARDED));
    assert_eq!(plan.reencrypt_bytes, case.stored() - WRITTEN);
    drop(plan);
    assert_eq!(case.copy("second"), WRITTEN);
    let region = case.world.region("south");
    let (row, chain, task) = region
        .catalog()
        .unwrap()
        .read(|tx| {
            let row = tx.resolve_snapshot("second")?;
            let chain = tx.layer_chain(row.layer.unwrap())?;
            Ok::<_, terrane::catalog::CatalogError>((row, chain, tx.tasks()?.pop().unwrap()))
        })
        .unwrap();
    assert_eq!((row.key, row.changed_bytes), (Some(case.new), WRITTEN + DISCARDED));
    assert_eq!((task.bytes_done, task.bytes_total), (case.stored(), case.stored()));
    assert_eq!((chain.len(), chain[0].parent, chain[0].key), (1, None, Some(case.new)));
    // The old key's loss does not touch it, and what follows is put on it.
    case.world.delete("south", case.base);
    set_key_enabled(&region, case.world.default_key("south"), false).unwrap();
    case.world.equal("south", row.id, &case.disk.model);
    let third = case.disk.change(&case.world, "third", |c| c.write(0, &[9; 4096]));
    let plan = case.world.plan(("north", third), "south", "third", named("new")).unwrap();
    assert_eq!(plan.base.as_ref().map(|b| (b.snapshot, b.is_reencrypted)), Some((row.id, false)));
    assert_eq!((plan.ship_bytes, plan.reencrypt_bytes), (4096, 0));
}

// S12: within a region nothing crosses at all.
#[test]
fn a_key_is_changed_within_a_region() {
    let world = World::new(&["here"]);
    let key = world.key("here", "new");
    let mut disk = Disk::new(&world, "here", 8 * MIB, Some(world.default_key("here")), DiskKind::Data);
    let id = disk.change(&world, "first", |c| c.random(&mut Random::new(2), MIB, 3 * MIB));
    let copied = world.copy(("here", id), "here", "again", named("new"));
    world.equal("here", copied, &disk.model);
    let row = world.snapshot("here", copied);
    assert_eq!((row.key, row.shipped_bytes), (Some(key), 0));
    set_key_enabled(&world.region("here"), world.default_key("here"), false).unwrap();
    world.equal("here", copied, &disk.model);
}

/// What a base has lost the source still has: it is shipped.
#[test]
fn a_damaged_base_costs_what_is_damaged() {
    let case = rekeyed();
    let layer_dir =
        case.world.region("south").layer_dir(case.world.snapshot("south", case.base).layer.unwrap());
    let sector = SectorNo(7 << 8);
    let stack = case.world.reader("south").open_snapshot(case.base).unwrap();
    let slot = stack.chain.layers()[0].entry(sector).unwrap().slot().unwrap();
    drop(stack);
    flip(&layer_dir.join("data"), slot_offset(slot) + 5);
    let shipped = case.copy("spoiled-sector");
    assert!(shipped > WRITTEN && shipped <= WRITTEN + (2 << 20), "{shipped}");
    case.world.delete(
        "south",
        case.world
            .region("south")
            .catalog()
            .unwrap()
            .read(|tx| tx.resolve_snapshot("spoiled-sector"))
            .unwrap()
            .id,
    );
    // Both copies of a page of its map: it is no base.
    for page in [0, 8 << 10] {
        flip(&layer_dir.join("map"), (65_664 + 3) * (16 << 10) + page + 40);
    }
    assert_eq!(case.copy("spoiled-map"), case.stored());
}

/// A base that can't be opened, or must not be, is none.
#[test]
fn a_base_needs_its_key() {
    let case = rekeyed();
    let (world, south) = (&case.world, case.world.region("south"));
    let base_of = |from: SnapshotId, key: KeyChoice| {
        world.plan(("north", from), "south", "planned", key).unwrap().base.map(|b| b.snapshot)
    };
    set_key_enabled(&south, world.default_key("south"), false).unwrap();
    assert_eq!(base_of(case.second, named("new")), None);
    set_key_enabled(&south, world.default_key("south"), true).unwrap();
    assert_eq!(base_of(case.second, named("new")), Some(case.base));
    // Nothing encrypted is made plain, not even what was plain once; the other way round it is a base.
    let mut plain = Disk::new(world, "north", MIB, None, DiskKind::Data);
    let id = plain.change(world, "plain", |c| c.write(0, &[5; 4096]));
    world.copy(("north", id), "south", "encrypted", KeyChoice::Default);
    assert_eq!(base_of(id, KeyChoice::Plain), None);
    let there = world.copy(("north", id), "south", "plain", KeyChoice::Plain);
    assert_eq!(base_of(id, named("new")), Some(there), "the newest of that moment");
}

#[test]
fn a_base_being_read_stays() {
    let case = rekeyed();
    let plan = case.world.plan(("north", case.second), "south", "second", named("new")).unwrap();
    let order = Order::DeleteSnapshot { snapshot: case.base.to_string() };
    let delete = || case.world.owner("south").execute(&order, false);
    assert!(delete().is_err_and(|e| e.to_string().contains("in use")));
    drop(plan);
    delete().unwrap();
}

// X4: also where the base has gone meanwhile, and what is left has to be shipped.
#[test]
fn an_interrupted_copy_goes_on_with_or_without_its_base() {
    for keeps_base in [true, false] {
        let case = rekeyed();
        let (source, target) = (case.world.reader("north"), case.world.reader("south"));
        let plan = copy::plan(&source, case.second, &target, &name("second"), &named("new")).unwrap();
        let total = plan.write_bytes();
        assert_eq!(total, case.stored());
        let cancel = AtomicBool::new(false);
        let mut progress = |_, _| cancel.store(true, Ordering::Relaxed);
        let copy = Copy::new(&source, &target, plan, case.world.details("south", "second"));
        match copy.run(Watch::new(&cancel, &mut progress)) {
            Err(CopyError::Interrupted) => {}
            done => panic!("{done:?}"),
        }
        let row =
            case.world.region("south").catalog().unwrap().read(|tx| tx.resolve_snapshot("second")).unwrap();
        if !keeps_base {
            case.world.delete("south", case.base);
        }
        let begun = Begun::take_up(&target, &row).unwrap();
        let there = begun.bytes_done();
        let rest = Copy::rest(&source, &target, begun).unwrap();
        assert_eq!(rest.total_bytes(), total);
        let (cancel, mut progress) = (AtomicBool::new(false), |_, _| {});
        let watch = Watch::new(&cancel, &mut progress);
        assert_eq!(rest.run(watch).unwrap(), row.id);
        case.world.equal("south", row.id, &case.disk.model);
        let whole = case.world.snapshot("south", row.id);
        assert_eq!(whole.changed_bytes, WRITTEN + DISCARDED, "as it was begun");
        let shipped = whole.shipped_bytes;
        match keeps_base {
            true => assert_eq!(shipped, WRITTEN),
            false => assert_eq!(shipped, total, "{there} were there"),
        }
    }
}
