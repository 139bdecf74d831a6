//! Guarded here: rows of a catalog that somebody changed, and a copy that believes them: it says `success`, and lacks what changed or
//! can't be opened. Rows have no MAC; the moment of a layer stands in its header, under the layer's own key.

mod copy_support;

use copy_support::{Disk, Random, World};
use terrane::catalog::DiskKind;
use terrane::copy::KeyChoice;
use terrane::ids::SnapshotId;

const MIB: usize = 1 << 20;

/// Two snapshots in north, the first copied to south; south has a second key.
struct Scene {
    world: World,
    models: [Vec<u8>; 2],
    /// In north.
    snapshots: [SnapshotId; 2],
    copied: SnapshotId,
}

impl Scene {
    fn new() -> Self {
        let world = World::new(&["north", "south"]);
        world.key("south", "new");
        let mut random = Random::new(1);
        let mut disk = Disk::new(&world, "north", 8 * MIB, Some(world.default_key("north")), DiskKind::Data);
        let first = disk.change(&world, "first", |c| c.random(&mut random, 0, 2 * MIB));
        let before = disk.model.clone();
        let second = disk.change(&world, "second", |c| c.random(&mut random, MIB, 2 * MIB));
        let copied = world.copy(("north", first), "south", "first", KeyChoice::AsSource);
        Self { world, models: [before, disk.model], snapshots: [first, second], copied }
    }

    fn sql(&self, region: &str, statement: &str) {
        let catalog = rusqlite::Connection::open(self.world.path(region).join("catalog.db")).unwrap();
        assert_eq!(catalog.execute(statement, []).unwrap(), 1, "{statement}");
    }

    fn layer(&self, region: &str, id: SnapshotId) -> terrane::catalog::Layer {
        let layer = self.world.snapshot(region, id).layer.unwrap();
        self.world.region(region).catalog().unwrap().read(|tx| tx.layer(layer)).unwrap()
    }

    /// Copies the second snapshot with a row changed: refused, or its bytes.
    fn copy_with(&self, (region, layer): (&str, &terrane::catalog::Layer), state: &str, point: &str) -> bool {
        let set = |state: &str, point: &str| {
            self.sql(
                region,
                &format!("UPDATE layers SET state = '{state}', point = {point} WHERE id = '{}'", layer.id),
            );
        };
        let right = format!("'{}'", layer.point.unwrap());
        let mut is_copied = false;
        for key in [KeyChoice::AsSource, KeyChoice::Named("new".into())] {
            set(state, point);
            let copied = self.world.try_copy(("north", self.snapshots[1]), "south", "second", key.clone());
            set("sealed", &right);
            let Ok(id) = copied else { continue };
            is_copied = true;
            let found = std::panic::catch_unwind(|| self.world.bytes("south", id));
            let found =
                found.unwrap_or_else(|_| panic!("{region} {state} {point} {key:?}: it does not read"));
            assert!(found == self.models[1], "{region} {state} {point} {key:?}: it differs");
            self.world.delete("south", id);
        }
        is_copied
    }
}

#[test]
fn a_sources_rows_hide_no_change() {
    let scene = Scene::new();
    let layers = scene.snapshots.map(|id| scene.layer("north", id));
    let points = layers.clone().map(|layer| format!("'{}'", layer.point.unwrap()));
    let mut copied = 0;
    for layer in &layers {
        for state in ["sealed", "absorbing", "filling", "preparing"] {
            for point in [&points[0], &points[1], "NULL", "'00000000000000000000000000000000'"] {
                copied += u64::from(scene.copy_with(("north", layer), state, point));
            }
        }
    }
    // The rows as they are among them.
    assert!(copied >= 2, "{copied}");
}

#[test]
fn a_targets_rows_make_no_base() {
    let scene = Scene::new();
    let layer = scene.layer("south", scene.copied);
    let second = scene.layer("north", scene.snapshots[1]).point.unwrap();
    let first = layer.point.unwrap();
    let mut copied = 0;
    for state in ["sealed", "absorbing", "filling", "preparing"] {
        for point in [&format!("'{first}'"), &format!("'{second}'"), "NULL"] {
            copied += u64::from(scene.copy_with(("south", &layer), state, point));
        }
    }
    assert!(copied >= 1, "{copied}");
    scene.world.equal("south", scene.copied, &scene.models[0]);
}

/// A row that says of the layer which takes a volume's writes that it has ended: who only reads writes nothing there.
#[test]
fn a_reader_ends_no_layer_on_the_word_of_a_row() {
    let world = World::new(&["north"]);
    let mut disk = Disk::new(&world, "north", 4 << 20, Some(world.default_key("north")), DiskKind::Data);
    let first = disk.change(&world, "first", |c| c.write(0, &[1; 4096]));
    let active = world.region("north").catalog().unwrap().read(|tx| tx.volume(disk.id)).unwrap().active;
    let files = || {
        let dir = world.region("north").layer_dir(active);
        ["header.toml", "data", "map"].map(|name| std::fs::read(dir.join(name)).unwrap())
    };
    let before = files();
    let catalog = rusqlite::Connection::open(world.path("north/catalog.db")).unwrap();
    for lie in [
        format!("UPDATE layers SET state = 'sealed' WHERE id = '{active}'"),
        format!("UPDATE snapshots SET layer = '{active}' WHERE id = '{first}'"),
    ] {
        assert_eq!(catalog.execute(&lie, []).unwrap(), 1);
    }
    drop(catalog);
    let Err(refused) = world.reader("north").open_snapshot(first) else { panic!("a lie was believed") };
    assert!(refused.to_string().contains("it has not"), "{refused}");
    assert!(files() == before, "a reader wrote to it");
}
