//! Guards against a fold (engine rule 20) that changes what a disk or snapshot reads, that does not end, that costs the disk
//! instead of what changed, or that leaves what nobody needs.

#[path = "common/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use rustix::fs::FallocateFlags;
use world::{MIB, SECTOR, World, pattern, read_at, within, writable, write_at};

/// A pseudo-random sequence.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// What the volume and its snapshots must hold.
struct Model {
    disk: Vec<u8>,
    snapshots: BTreeMap<String, Vec<u8>>,
}

impl Model {
    #[track_caller]
    fn compare(&self, world: &World, seed: u64) {
        let compare = |what: &str, path: &std::path::Path, wanted: &[u8]| {
            let found = read_at(path, 0, wanted.len()).unwrap_or_else(|e| panic!("seed {seed}: {what}: {e}"));
            let differs = found.chunks(SECTOR).zip(wanted.chunks(SECTOR)).position(|(a, b)| a != b);
            assert_eq!(differs, None, "seed {seed}: {what} differs at this sector");
        };
        compare("the volume", &world.file("web"), &self.disk);
        for (name, content) in &self.snapshots {
            compare(name, &world.snapshot_file(name), content);
        }
    }
}

fn change(world: &World, model: &mut Model, rng: &mut Rng) {
    let sectors = model.disk.len() as u64 / SECTOR as u64;
    for _ in 0..1 + rng.below(6) {
        let first = rng.below(sectors);
        let most = if rng.below(4) == 0 { 600 } else { 20 };
        let count = (1 + rng.below(most)).min(sectors - first);
        let (at, len) = (first as usize * SECTOR, count as usize * SECTOR);
        if rng.below(4) == 0 {
            let file = writable(&world.file("web")).unwrap();
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file.as_fd(), flags, at as u64, len as u64).unwrap();
            model.disk[at..at + len].fill(0);
        } else {
            let bytes = pattern(len, rng.below(1 << 30));
            write_at(&world.file("web"), at as u64, &bytes).unwrap();
            model.disk[at..at + len].copy_from_slice(&bytes);
        }
    }
}

/// The folders of layers a region needs for one live volume: its active layer and the next one.
const LEAST: usize = 2;

/// Layers that no snapshot or volume names, and that fewer than two others stand on.
fn foldable(world: &World) -> i64 {
    let catalog = rusqlite::Connection::open(world.path("r/catalog.db")).unwrap();
    let query =
        "SELECT count(*) FROM layers l WHERE NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.layer = l.id)
        AND NOT EXISTS (SELECT 1 FROM volumes v WHERE l.id IN (v.active, v.next))
        AND (SELECT count(*) FROM layers c WHERE c.parent = l.id) < 2";
    catalog.query_row(query, [], |row| row.get(0)).unwrap()
}

#[test]
fn any_order_of_deletions_leaves_what_is_left_as_it_was() {
    for seed in 1..5 {
        let world = World::new();
        world.volume("web", "8M");
        world.mount();
        let mut rng = Rng(seed);
        let mut model = Model { disk: vec![0; 8 << 20], snapshots: BTreeMap::new() };
        for turn in 0..40 {
            change(&world, &mut model, &mut rng);
            match rng.below(8) {
                0 | 1 | 2 => {
                    let name = format!("s{turn}");
                    world.snapshot("web", &name);
                    model.snapshots.insert(name, model.disk.clone());
                }
                3 | 4 if !model.snapshots.is_empty() => {
                    let at = rng.below(model.snapshots.len() as u64) as usize;
                    let name = model.snapshots.keys().nth(at).unwrap().clone();
                    world.ok(&["snapshot", "delete", &name]);
                    model.snapshots.remove(&name);
                }
                5 if turn % 3 == 0 => {
                    world.kill_server();
                    world.mount_again();
                }
                6 if turn % 4 == 0 && !model.snapshots.is_empty() => {
                    let at = rng.below(model.snapshots.len() as u64) as usize;
                    let (name, content) = model.snapshots.iter().nth(at).unwrap();
                    world.ok(&["volume", "rollback", "web", "--snapshot", name]);
                    model.disk = content.clone();
                }
                _ => {}
            }
            model.compare(&world, seed);
        }
        assert!(
            within(30, || foldable(&world) == 0),
            "seed {seed}: {} layers are not folded",
            foldable(&world)
        );
        model.compare(&world, seed);
        while let Some((name, _)) = model.snapshots.pop_first() {
            world.ok(&["snapshot", "delete", &name]);
        }
        assert!(within(30, || world.layers() == LEAST), "seed {seed}: {} layers are left", world.layers());
        model.compare(&world, seed);
        world.unmount();
        world.mount();
        model.compare(&world, seed);
    }
}

#[test]
fn a_chain_without_a_mount_is_folded_by_the_command() {
    let world = World::new();
    world.volume("web", "8M");
    world.mount();
    let mut contents = Vec::new();
    for n in 0..4u64 {
        write_at(&world.file("web"), n * MIB, &pattern(2 * MIB as usize, n)).unwrap();
        contents.push(read_at(&world.file("web"), 0, 8 << 20).unwrap());
        world.snapshot("web", &format!("s{n}"));
    }
    world.unmount();
    for n in [0, 2, 1] {
        world.ok(&["snapshot", "delete", &format!("s{n}")]);
    }
    // s3's layer, and the volume's.
    assert!(world.layers() <= 3, "{} layers", world.layers());
    world.mount();
    assert!(read_at(&world.snapshot_file("s3"), 0, 8 << 20).unwrap() == contents[3]);
    assert!(read_at(&world.file("web"), 0, 8 << 20).unwrap() == contents[3]);
}
