//! Guards against a snapshot that is deleted under somebody who reads it, through whichever mount, and against one that
//! can't be deleted any more.

#[path = "common/world.rs"]
mod world;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use world::{World, is_root, pattern, within, write_at};

/// A mounted world with snapshots `s1`, and `s2`, between which nothing was written.
fn taken() -> World {
    let world = World::new();
    world.volume("web", "8M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(4096, 1)).unwrap();
    world.snapshot("web", "s1");
    world.snapshot("web", "s2");
    world
}

#[track_caller]
fn reads(file: &File) {
    let mut found = vec![0; 4096];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == pattern(4096, 1));
}

#[test]
fn while_its_file_is_open_it_stays() {
    let world = taken();
    assert_eq!(world.snapshot_layer("s1"), world.snapshot_layer("s2"));
    let pid = format!("process {}", std::process::id());
    let first = File::open(world.snapshot_file("s1")).unwrap();
    let second = File::open(world.snapshot_file("s1")).unwrap();
    world.fails(&["snapshot", "delete", "s1"], 5, &["snapshot s1", "in use", &pid, "hint"]);
    reads(&first);
    drop(first);
    world.fails(&["snapshot", "delete", "s1"], 5, &["snapshot s1", "in use", &pid]);
    // Another name of the same layer is not meant.
    world.ok(&["snapshot", "delete", "s2"]);
    reads(&second);
    drop(second);
    world.ok(&["snapshot", "delete", "s1"]);
    assert!(!world.snapshot_file("s1").exists());
    world.fails(&["snapshot", "delete", "s1"], 3, &["s1"]);
}

#[test]
fn a_read_only_mount_keeps_it_too() {
    let world = taken();
    world.ok(&["snapshot", "delete", "s2"]);
    fs::create_dir(world.path("ro")).unwrap();
    for beside in [true, false] {
        world.ok(&["mount", &world.at("ro"), "--read-only"]);
        let file = File::open(world.path("ro/by-name/snapshots/s1")).unwrap();
        let server = world.server();
        if !beside {
            world.unmount();
        }
        let said =
            world.fails(&["snapshot", "delete", "s1"], 5, &["snapshot s1", "in use", "(terrane)", "hint"]);
        assert!(!said.contains(&format!("process {server} ")), "the wrong process: {said}");
        reads(&file);
        drop(file);
        world.ok(&["unmount", &world.at("ro")]);
    }
    world.ok(&["snapshot", "delete", "s1"]);
}

#[test]
fn an_attached_one_is_named_with_its_device() {
    if !is_root() {
        return;
    }
    let world = taken();
    fs::create_dir(world.path("ro")).unwrap();
    world.ok(&["mount", &world.at("ro"), "--read-only"]);
    for (at, name) in [("mnt", "s1"), ("ro", "s2")] {
        let device = world.ok(&["attach", &world.at(&format!("{at}/by-name/snapshots/{name}"))]);
        world.fails(&["snapshot", "delete", name], 5, &[name, "attached", &device, "terrane detach"]);
        world.ok(&["detach", &device]);
        assert!(within(20, || world.run(&["snapshot", "delete", name]).status.success()));
    }
    world.ok(&["unmount", &world.at("ro")]);
}
