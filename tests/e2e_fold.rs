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

/// Layers that no snapshot or volume names, and that fewer than two others stand on. One that is being made is none: if its
/// maker was killed it goes a while later.
fn foldable(world: &World) -> i64 {
    let catalog = rusqlite::Connection::open(world.path("r/catalog.db")).unwrap();
    let query =
        "SELECT count(*) FROM layers l WHERE l.state <> 'preparing' AND NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.layer = l.id)
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
                0..=2 => {
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
        assert!(within(150, || world.layers() == LEAST), "seed {seed}: {} layers are left", world.layers());
        model.compare(&world, seed);
        let live = model.disk.chunks(SECTOR).filter(|sector| sector.iter().any(|b| *b != 0)).count();
        stores_no_more_than(&world, live * SECTOR);
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

/// Folds have given back what they took from one layer or superseded in another: what is stored is what is live, pages of the map, of
/// each 2 MiB one in both its places, and what is written ahead.
#[track_caller]
fn stores_no_more_than(world: &World, live: usize) {
    let most = live as u64 + live as u64 / 100 + 2 * MIB;
    let stored = || world.sectors_stored();
    assert!(within(30, || stored() <= most), "{} bytes are stored, of {live} that are live", stored());
}

/// Bytes of each fold so far, from the mount's log.
fn folds(world: &World) -> Vec<u64> {
    let moved = |line: &str| {
        let text = line.split("moved_bytes=").nth(1)?;
        text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    world.log().lines().filter(|line| line.contains("folded")).filter_map(moved).collect()
}

/// A day of hourly snapshots over a large base: each hour the oldest goes, at the cost of an hour's changes.
#[test]
fn an_hour_that_expires_costs_an_hour() {
    const KEPT: u64 = 24;
    let mut world = World::new();
    world.log_level = Some("terrane=info");
    world.volume("web", "1T");
    world.mount();
    // The base: 96 MiB, here and there.
    for n in 0..96 {
        write_at(&world.file("web"), n * (10 << 30), &pattern(MIB as usize, n)).unwrap();
    }
    for hour in 0..KEPT + 8 {
        write_at(&world.file("web"), (hour % 96) * (10 << 30), &pattern(MIB as usize, 1000 + hour)).unwrap();
        world.snapshot("web", &format!("h{hour}"));
        if let Some(oldest) = hour.checked_sub(KEPT) {
            world.ok(&["snapshot", "delete", &format!("h{oldest}")]);
        }
    }
    assert!(within(30, || folds(&world).len() as u64 == 8), "{:?}", folds(&world));
    assert_eq!(folds(&world), [MIB; 8], "each moves what one hour changed");
    for (hour, n) in [(8, 8), (31, 31), (31, 60), (20, 25)] {
        let seed = if n <= hour { 1000 + n } else { n };
        let found = read_at(&world.snapshot_file(&format!("h{hour}")), n * (10 << 30), MIB as usize).unwrap();
        assert!(found == pattern(MIB as usize, seed), "hour {hour}, place {n}");
    }
}

#[test]
fn kills_amid_a_fold_lose_nothing() {
    let mut world = World::new();
    world.log_level = Some("terrane=info");
    world.volume("web", "512M");
    world.mount();
    let content = |seed: u64| pattern(160 << 20, seed);
    write_at(&world.file("web"), 0, &content(1)).unwrap();
    world.snapshot("web", "s1");
    write_at(&world.file("web"), 100 << 20, &content(2)).unwrap();
    world.snapshot("web", "s2");
    write_at(&world.file("web"), 200 << 20, &content(3)).unwrap();
    std::fs::File::open(world.file("web")).unwrap().sync_all().unwrap();
    let mut expected = content(1);
    expected.resize(360 << 20, 0);
    expected[100 << 20..260 << 20].copy_from_slice(&content(2));
    let s2 = expected.clone();
    expected[200 << 20..360 << 20].copy_from_slice(&content(3));
    world.ok(&["snapshot", "delete", "s1"]);
    for turn in 0..6u64 {
        std::thread::sleep(std::time::Duration::from_millis(15 * turn));
        world.kill_server();
        world.mount_again();
        assert!(read_at(&world.file("web"), 0, expected.len()).unwrap() == expected, "turn {turn}");
        if turn == 3 {
            world.ok(&["snapshot", "delete", "s2"]);
        } else if turn < 3 {
            assert!(read_at(&world.snapshot_file("s2"), 0, s2.len()).unwrap() == s2, "turn {turn}");
        }
    }
    // The base, with all that was moved, and the active layer, which holds nothing yet, and the next one.
    assert!(within(60, || world.layers() == LEAST + 1), "{} layers; {}", world.layers(), world.log());
    stores_no_more_than(&world, expected.len());
    assert!(read_at(&world.file("web"), 0, expected.len()).unwrap() == expected);
}

/// A large layer under a small active one: that is sealed and joined, at the cost of the small one.
#[test]
fn a_large_base_takes_what_was_written_since() {
    let mut world = World::new();
    world.log_level = Some("terrane=info");
    world.volume("web", "256M");
    world.mount();
    let mut expected = pattern(200 << 20, 1);
    write_at(&world.file("web"), 0, &expected).unwrap();
    world.snapshot("web", "s1");
    expected[..20 << 20].copy_from_slice(&pattern(20 << 20, 2));
    write_at(&world.file("web"), 0, &expected[..20 << 20]).unwrap();
    world.ok(&["snapshot", "delete", "s1"]);
    assert!(within(30, || folds(&world).len() == 1), "{}", world.log());
    assert_eq!(folds(&world), [20 << 20]);
    assert!(read_at(&world.file("web"), 0, expected.len()).unwrap() == expected);
    stores_no_more_than(&world, expected.len());
}

/// The same again and again: what the base had of it is given back each time.
#[test]
fn a_large_base_does_not_grow_with_each_fold() {
    let mut world = World::new();
    world.log_level = Some("terrane=info");
    world.volume("web", "256M");
    world.mount();
    let mut expected = pattern(100 << 20, 1);
    write_at(&world.file("web"), 0, &expected).unwrap();
    for round in 1..4 {
        world.snapshot("web", "s1");
        expected[..10 << 20].copy_from_slice(&pattern(10 << 20, 1 + round));
        write_at(&world.file("web"), 0, &expected[..10 << 20]).unwrap();
        world.ok(&["snapshot", "delete", "s1"]);
        assert!(within(30, || folds(&world).len() as u64 == round), "{}", world.log());
    }
    assert_eq!(folds(&world), [10 << 20; 3]);
    assert!(read_at(&world.file("web"), 0, expected.len()).unwrap() == expected);
    stores_no_more_than(&world, expected.len());
}

/// A snapshot that another process reads is not moved to another layer under it: it reads on, and its deletion is refused.
#[test]
fn what_a_read_only_mount_reads_stays_where_it_is() {
    let world = World::new();
    world.volume("web", "8M");
    world.mount();
    for n in 1..4u64 {
        write_at(&world.file("web"), n * MIB, &pattern(2 * MIB as usize, n)).unwrap();
        world.snapshot("web", &format!("s{n}"));
    }
    let expected = read_at(&world.snapshot_file("s2"), 0, 8 << 20).unwrap();
    std::fs::create_dir(world.path("ro")).unwrap();
    world.ok(&["mount", &world.at("ro"), "--read-only"]);
    let path = world.path("ro/by-name/snapshots/s2");
    let file = std::fs::File::open(&path).unwrap();
    world.ok(&["snapshot", "delete", "s1"]);
    world.ok(&["snapshot", "delete", "s3"]);
    world.fails(&["snapshot", "delete", "s2"], 5, &["snapshot s2", "in use"]);
    assert!(read_at(&path, 0, 8 << 20).unwrap() == expected);
    drop(file);
    world.ok(&["unmount", &world.at("ro")]);
    world.ok(&["snapshot", "delete", "s2"]);
    assert!(within(30, || world.layers() == LEAST), "{} layers", world.layers());
}
