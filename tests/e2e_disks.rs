//! Guards against file systems that lose or mix their bytes on an attached volume, snapshots that miss what was synced on
//! one, and volumes taken away under their users.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::path::Path;

use world::{OnDisk, World, is_root, must, tool, words};

/// A few hundred files of a real tree, as the source of copies.
const TREE: &str = "/usr/share/doc";

fn sums_of(tree: &Path) -> String {
    let script = "cd \"$1\" && find . -type f -print0 | sort -z | xargs -0 -r sha256sum";
    must("sh", &["-c", script, "sh", tree.to_str().unwrap()])
}

fn copy_some(to: &Path) {
    let script = "cd \"$1\" && find . -type f -size -200k | sort | head -n 400 | cpio -pdm --quiet \"$2\"";
    let fallback =
        "cd \"$1\" && find . -type f -size -200k | sort | head -n 400 | tar -cf - -T - | tar -xf - -C \"$2\"";
    let script = if tool("sh", &["-c", "command -v cpio"]).status.success() { script } else { fallback };
    must("sh", &["-c", script, "sh", TREE, to.to_str().unwrap()]);
}

/// One journey: mkfs, copy, sync, snapshot, more, fsck, check, both in the volume and in the snapshot.
fn journey(mkfs: &[&str], fsck: &[&str], size: &str, sector: &str) {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.volume("web", size);
    world.mount();
    let device = world.ok(&["attach", "web", "--sector-size", sector]);
    assert_eq!(must("blockdev", &["--getss", &device]), sector);
    assert_eq!(world.json(&["volume", "show", "web"])["state"], "open");
    must(mkfs[0], &[&mkfs[1..], &[&device]].concat());
    let disk = OnDisk::new(&device, world.path("fs"));
    fs::create_dir(world.path("fs/one")).unwrap();
    copy_some(&world.path("fs/one"));
    let sums = sums_of(&world.path("fs/one"));
    assert!(sums.lines().count() > 50, "{sums}");
    must("sync", &["-f", disk.0.to_str().unwrap()]);
    world.snapshot("web", "synced");
    fs::create_dir(world.path("fs/two")).unwrap();
    copy_some(&world.path("fs/two"));
    fs::remove_dir_all(world.path("fs/two")).unwrap();
    must("fstrim", &[&world.at("fs")]);
    assert_eq!(sums_of(&world.path("fs/one")), sums);

    // While it is in use, nobody takes it away.
    let name = device.as_str();
    world.fails(&["unmount", &world.mnt()], 5, &[name]);
    world.fails(&["volume", "delete", "web"], 5, &["web", name]);
    world.fails(&["volume", "rollback", "web", "--snapshot", "synced"], 5, &["web", name]);
    world.fails(&["attach", "web"], 5, &[name]);
    world.fails(&["detach", "web"], 5, &[name]);

    drop(disk);
    must(fsck[0], &[&fsck[1..], &[&device]].concat());
    world.fails(&["unmount", &world.mnt()], 5, &[name]);
    world.ok(&["detach", "web"]);
    world.fails(&["detach", "web"], 3, &["not attached"]);
    world.unmount();
    world.mount();
    let device = world.ok(&["attach", "web", "--sector-size", sector]);
    must(fsck[0], &[&fsck[1..], &[&device]].concat());
    let disk = OnDisk::new(&device, world.path("fs"));
    assert_eq!(sums_of(&world.path("fs/one")), sums);
    drop(disk);
    world.ok(&["detach", "web"]);
    // The snapshot holds what was synced, as a disk whose machine lost power holds it.
    world.ok(&["volume", "create", "--snapshot", "synced", "--name", "again"]);
    let device = world.ok(&["attach", "again", "--sector-size", sector]);
    let disk = OnDisk::new(&device, world.path("fs2"));
    assert_eq!(sums_of(&world.path("fs2/one")), sums);
    drop(disk);
    must(fsck[0], &[&fsck[1..], &[&device]].concat());
    world.ok(&["detach", &device]);
}

#[test]
fn ext4() {
    journey(&["mkfs.ext4", "-q", "-F"], &["e2fsck", "-f", "-n"], "96M", "4096");
}

#[test]
fn ext4_with_sectors_of_512() {
    journey(&["mkfs.ext4", "-q", "-F", "-b", "1024"], &["e2fsck", "-f", "-n"], "64M", "512");
}

#[test]
fn xfs() {
    journey(&["mkfs.xfs", "-q", "-f"], &["xfs_repair", "-n"], "320M", "4096");
}

#[test]
fn btrfs() {
    journey(&["mkfs.btrfs", "-q", "-f"], &["btrfs", "check"], "256M", "4096");
}

/// The snapshot is taken of an attached volume with nothing but the device between: its pages are flushed first.
#[test]
fn what_was_written_to_the_device_is_in_the_snapshot() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.volume("web", "16M");
    world.mount();
    let device = world.ok(&["attach", "web"]);
    for turn in 0..4u64 {
        let bytes = world::pattern(1 << 20, turn);
        world::write_at(Path::new(&device), 4096 * turn, &bytes).unwrap();
        let name = format!("s{turn}");
        world.snapshot("web", &name);
        assert!(world::read_at(&world.snapshot_file(&name), 4096 * turn, 1 << 20).unwrap() == bytes);
    }
    // A snapshot is attached read-only.
    let id = world.json(&["snapshot", "show", "s1"])["id"].as_str().unwrap().to_owned();
    let other = world.ok(&["attach", &format!("{}/snapshots/{id}", world.mnt())]);
    assert_eq!(must("blockdev", &["--getro", &other]), "1");
    world.ok(&["detach", &other]);
    // Larger under the device.
    world.ok(&["volume", "resize", "web", "--size", "32M"]);
    assert_eq!(must("blockdev", &["--getsize64", &device]), (32u64 << 20).to_string());
    world::write_at(Path::new(&device), 31 << 20, b"end").unwrap();
    must("blockdev", &["--flushbufs", &device]);
    assert_eq!(world::read_at(&world.file("web"), 31 << 20, 3).unwrap(), b"end");
    world.ok(&["detach", "web"]);
    world.fails(&["attach", "nothing"], 3, &["nothing"]);
    world.unmount();
    world.fails(&["attach", "web"], 4, &["not mounted"]);
}

#[test]
fn an_open_file_is_named_by_its_process() {
    let world = World::new();
    world.volume("web", "4M");
    world.mount();
    let file = fs::File::open(world.file("web")).unwrap();
    let user = world::Running(std::process::Command::new("sleep").arg("60").stdin(file).spawn().unwrap());
    let pid = user.0.id().to_string();
    let said = words(&world.run(&["unmount", &world.mnt()]));
    assert!(said.contains(&pid) && said.contains("sleep"), "{said}");
    world.fails(&["unmount", &world.mnt()], 5, &["in use"]);
    drop(user);
    world.unmount();
}
