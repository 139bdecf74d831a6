//! Guards against a check that calls whole what only the kernel's cache still holds whole.

#[path = "common/world.rs"]
mod world;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use world::{OnDisk, SECTOR, World, flip, is_root, must, pattern, words, write_at};

const SLOTS: u64 = 64 << 20;
/// The first leaf: chunk 0's page.
const LEAF: u64 = 65_664 * (16 << 10);

/// Where the device has the block of a file at `at`.
fn place_on_device(image: &Path, file: &Path, at: u64) -> u64 {
    let mut block = [0; SECTOR];
    File::open(file).unwrap().read_exact_at(&mut block, at).unwrap();
    let image = fs::read(image).unwrap();
    let mut found = image.chunks(SECTOR).enumerate().filter(|(_, bytes)| *bytes == block);
    let (number, _) = found.next().expect("the device has the block");
    assert!(found.next().is_none(), "the device has the block of {file:?} at {at} twice");
    (number * SECTOR) as u64
}

/// The layer of snapshot `s1`, in a region on a file system over `image`, which is the device.
struct Scrubbed<'a> {
    world: &'a World,
    layer: &'a Path,
}

const COMMANDS: [&[&str]; 2] = [&["snapshot", "verify", "s1"], &["region", "check"]];

impl Scrubbed<'_> {
    /// One bit of the layer's file changes on the device, below a cache that has all of it whole: which of the commands then say these
    /// words and exit 6. The others exit 0.
    fn found_by(&self, name: &str, at: u64, expected: &[&str]) -> Vec<bool> {
        let (image, file) = (self.world.path("image"), self.layer.join(name));
        let place = place_on_device(&image, &file, at) + 77;
        let found = COMMANDS.iter().map(|args| {
            // What is cached now is whole.
            self.world.ok(args);
            flip(&image, place);
            let output = self.world.run(args);
            let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), words(&output));
            flip(&image, place);
            fadvise(File::open(&file).unwrap(), 0, None, Advice::DontNeed).unwrap();
            if output.status.success() {
                return false;
            }
            assert_eq!(output.status.code(), Some(6), "{args:?}, {name} at {at}: {said}");
            for word in expected {
                assert!(said.contains(word), "{args:?}, {name} at {at}: {word:?} is missing in: {said}");
            }
            true
        });
        found.collect()
    }
}

#[test]
fn rot_below_the_cache_is_found() {
    if !is_root() {
        return;
    }
    let world = World::bare(None);
    let image = world.at("image");
    File::create(&image).unwrap().set_len(256 << 20).unwrap();
    must("mkfs.ext4", &["-q", "-F", "-b", "4096", &image]);
    let device = must("losetup", &["-f", "--show", &image]);
    let disk = OnDisk::new(&device, world.path("r"));
    world.ok(&["region", "init", &world.at("r"), "--name", "here", "-q"]);
    world.volume("web", "8M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(64 * SECTOR, 1)).unwrap();
    world.snapshot("web", "s1");
    world.unmount();
    must("sync", &["-f", &world.at("r")]);

    let layer = world.snapshot_layer("s1");
    let id = layer.file_name().unwrap().to_str().unwrap();
    let scrubbed = Scrubbed { world: &world, layer: &layer };
    let sector = scrubbed.found_by("data", SLOTS + 5 * SECTOR as u64, &["sector 5 ", id, "snapshot s1"]);
    assert_eq!(sector, [true, true], "a sector");
    let page = scrubbed.found_by("map", LEAF, &["map page 65664", id, "snapshot s1"]);
    assert_eq!(page, [true, true], "a map page");
    // A snapshot is read by the newer one; a region check looks at both.
    let superblocks = [0, 4096].map(|at| scrubbed.found_by("data", at, &["superblock", id]));
    assert!(superblocks.iter().all(|found| found[1]), "superblocks: {superblocks:?}");
    assert!(superblocks[0][0] != superblocks[1][0], "superblocks: {superblocks:?}");

    COMMANDS.iter().for_each(|args| drop(world.ok(args)));
    drop(disk);
    must("losetup", &["-d", &device]);
}
