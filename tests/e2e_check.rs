//! Guards against damage that a check does not find, names wrongly, or sees where there is none; and against a repair that loses
//! what could be kept.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use world::{SECTOR, World, flip, pattern, read_at, within, words, write_at};

const SLOTS: u64 = 64 << 20;
const LEN: usize = 64 * SECTOR;

/// A world, unmounted: volumes `web` (snapshots `w1`, `w2`) and `db` under a key of its own (snapshots `d1`, `d2`); each
/// step wrote a pattern of its own at a place of its own.
fn written() -> World {
    let mut world = World::new();
    world.ok(&["key", "create", "--alias", "project"]);
    world.volume("web", "8M");
    world.ok(&["volume", "create", "--name", "db", "--size", "16M", "--key", "project"]);
    world.mount();
    for step in 0..3 {
        for (volume, seed) in [("web", 1), ("db", 10)] {
            write_at(&world.file(volume), step * LEN as u64 / 2, &pattern(LEN, seed + step)).unwrap();
            if step < 2 {
                world.snapshot(volume, &format!("{}{}", &volume[..1], step + 1));
            }
        }
    }
    world.unmount();
    world.expect_disorder();
    world
}

/// Checks that exit 6 comes with these words, and puts the file back.
fn found_in(world: &World, path: &Path, damage: &dyn Fn(&Path), args: &[&str], expected: &[&str]) {
    let whole = fs::read(path).unwrap();
    damage(path);
    let output = world.run(args);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), words(&output));
    assert_eq!(output.status.code(), Some(6), "{path:?}: {said}");
    for word in expected {
        assert!(said.contains(word), "{path:?}: {word:?} is missing in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    fs::write(path, whole).unwrap();
    world.ok(&["region", "check"]);
}

const CHECK: &[&str] = &["region", "check"];

/// The first leaf: chunk 0's page.
const LEAF: u64 = 65_664 * (16 << 10);

fn id_of(layer: &Path) -> String {
    layer.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn what_is_whole_is_called_so_mounted_or_not() {
    let world = written();
    let shown = world.json(CHECK);
    assert_eq!(shown["problem_count"], 0, "{shown}");
    assert_eq!(shown["unchecked"], serde_json::json!([]), "{shown}");
    let all = shown["checked_bytes"].as_u64().unwrap();
    assert!(all >= 6 * LEN as u64, "{shown}");
    world.mount();
    for volume in ["web", "db"] {
        read_at(&world.file(volume), 0, LEN).unwrap();
    }
    let shown = world.json(CHECK);
    assert_eq!(shown["problem_count"], 0, "{shown}");
    assert!(shown["checked_bytes"].as_u64().unwrap() < all, "layers of the mount are left to it: {shown}");
    assert!(shown["unchecked"][0]["why"].as_str().unwrap().contains("mount"), "{shown}");
    for (snapshot, halves) in [("w1", 2), ("w2", 3), ("d2", 3)] {
        let shown = world.json(&["snapshot", "verify", snapshot]);
        assert_eq!(shown["damage_count"], 0, "{shown}");
        assert_eq!(shown["checked_bytes"], halves * LEN as u64 / 2, "each sector once: {shown}");
    }
    world.unmount();
    assert_eq!(world.json(&["region", "check", "--quick"])["checked_bytes"], 0);
}

#[test]
fn a_killed_mounts_layers_are_read_as_recovery_finds_them() {
    let world = written();
    world.mount();
    write_at(&world.file("web"), 0, &pattern(LEN, 77)).unwrap();
    world.snapshot("web", "w3");
    write_at(&world.file("web"), 0, &pattern(LEN, 78)).unwrap();
    world.kill_server();
    let shown = world.json(CHECK);
    assert_eq!(
        (&shown["problem_count"], &shown["unchecked"]),
        (&0.into(), &serde_json::json!([])),
        "{shown}"
    );
    world.mount_again();
    assert!(read_at(&world.file("web"), 0, LEN).unwrap() == pattern(LEN, 78));
    assert!(read_at(&world.snapshot_file("w3"), 0, LEN).unwrap() == pattern(LEN, 77));
    world.unmount();
}

#[test]
fn each_damage_is_named() {
    let world = written();
    let w1 = world.snapshot_layer("w1");
    let active = world.active_layer("web");
    let data = |at: u64| move |path: &Path| flip(path, at);
    let layer = id_of(&w1);
    let sector = data(SLOTS + 5 * SECTOR as u64 + 77);
    found_in(
        &world,
        &w1.join("data"),
        &sector,
        CHECK,
        &["sector 5 ", &layer, "volume web", "snapshot w1", "snapshot w2"],
    );
    let verify = &["snapshot", "verify", "w2"];
    found_in(
        &world,
        &w1.join("data"),
        &sector,
        verify,
        &["sector 5 ", &layer, "snapshot w2", "volume web (vol-"],
    );
    found_in(&world, &active.join("data"), &sector, CHECK, &["sector ", &id_of(&active), "volume web"]);
    found_in(
        &world,
        &w1.join("map"),
        &data(LEAF + 100),
        CHECK,
        &["map page 65664", &layer, "sectors 0 to 511"],
    );
    found_in(&world, &w1.join("map"), &data(LEAF + 100), verify, &["map page 65664", &layer]);
    for place in [0, 4096] {
        found_in(&world, &w1.join("data"), &data(place + 200), CHECK, &["superblock", &layer]);
    }
    found_in(&world, &w1.join("header.toml"), &data(100), CHECK, &["header", &layer]);
    found_in(&world, &w1.join("header.toml"), &data(100), verify, &["header", &layer]);
    found_in(&world, &w1.join("data"), &|path| fs::write(path, "").unwrap(), CHECK, &["superblock", &layer]);
    let key = world.ok(&["key", "list", "--output", "json"]);
    let key = serde_json::from_str::<Value>(&key).unwrap()[0]["id"].as_str().unwrap().to_owned();
    found_in(&world, &world.path(&format!("r/keys/{key}.1")), &data(300), CHECK, &[&key, "keys/"]);
}

#[test]
fn findings_are_counted_and_the_first_listed() {
    let world = World::new();
    world.volume("web", "64M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(300 * SECTOR, 1)).unwrap();
    world.snapshot("web", "s1");
    world.unmount();
    let data = world.snapshot_layer("s1").join("data");
    for n in 0..300 {
        flip(&data, SLOTS + n * SECTOR as u64);
    }
    let output = world.run(&["snapshot", "verify", "s1", "--output", "json", "-q"]);
    assert_eq!(output.status.code(), Some(6));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let count = shown["damage_count"].as_u64().unwrap();
    assert!((200..=300).contains(&count), "{count}");
    assert_eq!(shown["damage"].as_array().unwrap().len(), 100);
}

#[test]
fn a_slow_check_tells_its_progress_and_can_be_interrupted() {
    let world = World::new();
    world.volume("web", "64M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(16 << 20, 1)).unwrap();
    world.snapshot("web", "s1");
    world.unmount();
    for args in [&["snapshot", "verify", "s1"][..], &["region", "check"]] {
        let child = world
            .command(&[args, &["--max-rate", "1M", "--output", "json"]].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        std::thread::sleep(std::time::Duration::from_millis(1500));
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = words(&output);
        assert_eq!(output.status.code(), Some(7), "{said}");
        let first: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        assert!(first["bytes_total"].as_u64().unwrap() >= 16 << 20, "{said}");
        assert!(first["bytes_done"].is_u64() && first["bytes_per_second"].is_u64(), "{said}");
    }
    world.fails(&["region", "check", "--max-rate", "0"], 2, &["zero"]);
}

#[test]
fn folds_beside_a_check_are_no_damage() {
    let world = World::new();
    world.volume("web", "64M");
    world.mount();
    let file = world.file("web");
    for round in 0..6u64 {
        for n in 0..3 {
            write_at(&file, n * (4 << 20), &pattern(2 << 20, round * 7 + n)).unwrap();
            world.snapshot("web", &format!("s{round}-{n}"));
        }
        let check = world.command(CHECK).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        for n in 0..3 {
            world.ok(&["snapshot", "delete", &format!("s{round}-{n}")]);
        }
        let output = check.wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            words(&output)
        );
    }
    assert!(within(20, || world.run(CHECK).status.success()));
    world.unmount();
}
