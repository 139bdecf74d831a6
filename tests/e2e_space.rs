//! Guards against disks that keep what nobody needs: trims through every layer of a real stack, long overwriting, and what
//! `volume show` says of it.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use world::{MIB, OnDisk, SECTOR, World, is_root, must, pattern, read_at, within, writable, write_at};

/// Both halves of the log, prepared, and what is zero-written ahead.
const LOG: u64 = 35 * MIB;
/// A page of the map in both its places, and the file system's own rounding.
const CHUNK: u64 = 32 << 10;

fn shown(world: &World, volume: &str, what: &str) -> u64 {
    world.json(&["volume", "show", volume])[what].as_u64().unwrap()
}

/// Waits until a volume has given back all but what it may keep.
#[track_caller]
fn stores_at_most(world: &World, volume: &str, bound: u64, what: &str) {
    let fits = within(90, || shown(world, volume, "stored_bytes") <= bound);
    assert!(fits, "{what}: {} stored, {bound} at most", shown(world, volume, "stored_bytes"));
}

/// Of a volume with so many sectors of data, at rest (engine rule 16).
fn bound(live_bytes: u64, size: u64) -> u64 {
    live_bytes + live_bytes / 10 + size.div_ceil(2 * MIB) * CHUNK + LOG
}

/// The bytes all files below a folder take.
fn taken(folder: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).unwrap() {
        use std::os::unix::fs::MetadataExt;
        bytes += entry.unwrap().metadata().unwrap().blocks() * 512;
    }
    bytes
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Ten times the disk is written, in pieces of all sizes, and trimmed between.
#[test]
fn long_overwriting_and_trimming_stays_within_the_bound() {
    const SIZE: u64 = 96 * MIB;
    const SECTORS: u64 = SIZE / SECTOR as u64;
    let world = World::new();
    world.volume("web", "96M");
    world.mount();
    let file = writable(&world.file("web")).unwrap();
    let mut model = vec![0u8; SIZE as usize];
    let mut random = Random(11);
    let mut written = 0;
    for turn in 0u64.. {
        let len = match random.below(10) {
            0 => 1 + random.below(1024),
            1..4 => 1 + random.below(64),
            _ => 1,
        };
        let first = random.below(SECTORS - len + 1);
        let range = first as usize * SECTOR..(first + len) as usize * SECTOR;
        // As much is trimmed as written, in larger pieces and fewer.
        if random.below(12) == 0 {
            let keep = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, keep, range.start as u64, range.len() as u64).unwrap();
            model[range].fill(0);
        } else {
            model[range.clone()].copy_from_slice(&pattern(range.len(), turn));
            file.write_all_at(&model[range.clone()], range.start as u64).unwrap();
            written += range.len() as u64;
        }
        if turn % 4000 == 3999 {
            let live = model.chunks(SECTOR).filter(|sector| sector.iter().any(|b| *b != 0)).count();
            stores_at_most(&world, "web", bound((live * SECTOR) as u64, SIZE), &format!("turn {turn}"));
        }
        if written > 10 * SIZE {
            break;
        }
    }
    drop(file);
    assert!(read_at(&world.file("web"), 0, SIZE as usize).unwrap() == model);
    world.unmount();
    world.mount();
    assert!(read_at(&world.file("web"), 0, SIZE as usize).unwrap() == model);
}

/// fstrim and blkdiscard, through a file system and a loop device.
#[test]
fn what_a_file_system_trims_is_given_back() {
    if !is_root() {
        return;
    }
    const SIZE: u64 = 256 * MIB;
    let world = World::new();
    world.volume("web", "256M");
    world.mount();
    let device = world.ok(&["attach", "web"]);
    must("mkfs.ext4", &["-q", "-F", &device]);
    let disk = OnDisk::new(&device, world.path("fs"));
    must("sync", &["-f", &world.at("fs")]);
    let before = shown(&world, "web", "stored_bytes");
    fs::write(world.path("fs/large"), pattern(100 << 20, 1)).unwrap();
    must("sync", &["-f", &world.at("fs")]);
    assert!(shown(&world, "web", "stored_bytes") >= before + 100 * MIB, "the file is not there");
    fs::remove_file(world.path("fs/large")).unwrap();
    must("sync", &["-f", &world.at("fs")]);
    must("fstrim", &[&world.at("fs")]);
    stores_at_most(&world, "web", bound(20 * MIB, SIZE), "fstrim");
    drop(disk);

    must(
        "dd",
        &["if=/dev/urandom", &format!("of={device}"), "bs=1M", "count=200", "conv=fsync", "status=none"],
    );
    assert!(shown(&world, "web", "stored_bytes") >= 200 * MIB);
    must("blkdiscard", &[&device]);
    stores_at_most(&world, "web", bound(0, SIZE), "blkdiscard");
    // Zeros that are written take no more than zeros that are not.
    must("dd", &["if=/dev/zero", &format!("of={device}"), "bs=1M", "count=200", "conv=fsync", "status=none"]);
    stores_at_most(&world, "web", bound(0, SIZE), "zeros");
    must("blkdiscard", &["--zeroout", &device]);
    stores_at_most(&world, "web", bound(0, SIZE), "zeros by command");
    world.ok(&["detach", "web"]);
    assert!(read_at(&world.file("web"), 0, SIZE as usize).unwrap().iter().all(|b| *b == 0));
}

/// What is stored is what the files take; shared is what others hold too.
#[test]
fn stored_and_shared_are_what_they_say() {
    let world = World::new();
    world.volume("web", "64M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(16 << 20, 1)).unwrap();
    writable(&world.file("web")).unwrap().sync_all().unwrap();
    let own = shown(&world, "web", "stored_bytes");
    assert_eq!(shown(&world, "web", "shared_bytes"), 0);
    assert_eq!(own, taken(&world.active_layer("web")));
    assert!(own >= 16 * MIB, "{own}");

    world.snapshot("web", "base");
    write_at(&world.file("web"), 0, &pattern(4 << 20, 2)).unwrap();
    writable(&world.file("web")).unwrap().sync_all().unwrap();
    let sealed = || taken(&world.snapshot_layer("base"));
    assert!(within(30, || shown(&world, "web", "shared_bytes") == sealed()));
    // The seal goes on a while, and gives space back.
    let parts = || sealed() + taken(&world.active_layer("web"));
    assert!(within(30, || shown(&world, "web", "stored_bytes") == parts()), "{} in files", parts());
    let told = || world.json(&["snapshot", "show", "base"])["stored_bytes"].as_u64().unwrap();
    assert!(within(30, || told() == sealed()), "{} and not {}", told(), sealed());
    assert!(sealed() >= 16 * MIB && sealed() < 24 * MIB, "{}", sealed());

    // A second volume on it shares it all.
    world.ok(&["volume", "create", "--name", "again", "--snapshot", "base"]);
    assert_eq!(shown(&world, "again", "shared_bytes"), sealed());
    assert!(shown(&world, "again", "stored_bytes") < sealed() + MIB);
    world.ok(&["volume", "delete", "again"]);

    // Without its name it is the volume's alone, and is joined with what was written since: 16 MiB, of which 4 are newer.
    world.ok(&["snapshot", "delete", "base"]);
    assert!(
        within(60, || shown(&world, "web", "shared_bytes") == 0),
        "{}",
        shown(&world, "web", "shared_bytes")
    );
    let stored = || world.sectors_stored();
    assert!(within(60, || stored() <= 18 * MIB), "after the fold: {} stored", stored());
}
