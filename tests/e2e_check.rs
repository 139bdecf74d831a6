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

/// All of them are found, by either command.
#[test]
fn findings_are_counted_and_the_first_listed() {
    const SECTORS: usize = 300;
    let world = World::new();
    world.volume("web", "64M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(SECTORS * SECTOR, 1)).unwrap();
    world.snapshot("web", "s1");
    world.unmount();
    let layer = world.snapshot_layer("s1");
    let map = world.json(&["debug", "map", &id_of(&layer)]);
    let places = map.as_array().unwrap().iter().filter_map(|row| row["offset_bytes"].as_u64());
    let places: std::collections::BTreeSet<u64> = places.collect();
    assert_eq!(places.len(), SECTORS);
    places.iter().enumerate().for_each(|(n, at)| flip(&layer.join("data"), at + n as u64));
    let told = |args: &[&str]| -> Value {
        let output = world.run(&[args, &["--output", "json", "-q"]].concat());
        assert_eq!(output.status.code(), Some(6), "{args:?}: {}", words(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let shown = told(&["snapshot", "verify", "s1"]);
    assert_eq!(shown["damage_count"], SECTORS, "{shown}");
    let listed = shown["damage"].as_array().unwrap();
    let listed: std::collections::BTreeSet<String> = listed.iter().map(Value::to_string).collect();
    assert_eq!(listed.len(), 100, "each but once: {shown}");
    let shown = told(CHECK);
    assert_eq!(shown["problem_count"], SECTORS, "{shown}");
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

const REPAIR: &[&str] = &["region", "check", "--repair", "--yes"];

/// What `written` made, read through whatever names there are now: volumes by size, snapshots by layer.
fn all_bytes(world: &World) -> Vec<(String, Vec<u8>)> {
    let catalog = rusqlite::Connection::open(world.path("r/catalog.db")).unwrap();
    let list = |sql: &str| -> Vec<(String, String)> {
        let mut statement = catalog.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let volumes = list("select id, name from volumes");
    let snapshots = list("select layer, name from snapshots");
    drop(catalog);
    world.mount();
    let mut all = Vec::new();
    for (id, name) in volumes {
        all.push((id, fs::read(world.file(&name)).unwrap()));
    }
    for (layer, name) in snapshots {
        all.push((layer, fs::read(world.snapshot_file(&name)).unwrap()));
    }
    world.unmount();
    all.sort();
    all
}

#[test]
fn a_lost_or_damaged_catalog_is_rebuilt() {
    let world = written();
    let before = all_bytes(&world);
    assert_eq!(before.len(), 6);
    let catalog = world.path("r/catalog.db");
    let damages: [(&str, &dyn Fn()); 3] = [
        ("lost", &|| fs::remove_file(&catalog).unwrap()),
        ("cut", &|| fs::OpenOptions::new().write(true).open(&catalog).unwrap().set_len(5000).unwrap()),
        ("garbage", &|| {
            let len = fs::metadata(&catalog).unwrap().len();
            write_at(&catalog, 4096, &pattern(len as usize - 8192, 5)).unwrap();
        }),
    ];
    for (round, (what, damage)) in damages.into_iter().enumerate() {
        for name in ["catalog.db-wal", "catalog.db-shm"] {
            let _ = fs::remove_file(world.path("r").join(name));
        }
        damage();
        world.fails(CHECK, 6, &["catalog"]);
        let old = fs::read(&catalog).ok();
        // Without a yes nothing changes.
        let said = world.fails(
            &["region", "check", "--repair"],
            4,
            &["--yes", "2 volumes and 4 snapshots", "names"],
        );
        assert!(said.contains("2 keys"), "{what}: {said}");
        assert_eq!(fs::read(&catalog).ok(), old, "{what}");
        let shown = world.json(REPAIR);
        assert_eq!(shown["repaired"]["catalog_rebuilt"], true, "{what}: {shown}");
        assert_eq!(shown["problem_count"], 0, "{what}: {shown}");
        assert_eq!(shown["repaired"]["keys"].as_array().unwrap().len(), 2, "{shown}");
        world.ok(CHECK);
        assert!(all_bytes(&world) == before, "{what}: bytes differ");
        world.ok(CHECK);
        let aside = fs::read_dir(world.path("r")).unwrap().flatten();
        let aside: Vec<_> =
            aside.filter(|e| e.file_name().to_str().unwrap().starts_with("catalog.db.damaged-")).collect();
        match old {
            None => assert!(aside.is_empty(), "{aside:?}"),
            Some(old) => {
                assert!(
                    aside.iter().any(|e| fs::read(e.path()).unwrap() == old),
                    "{what}: the old one is kept"
                );
                assert_eq!(aside.len(), round, "{aside:?}");
            }
        }
        assert!(!world.path("r/catalog.db.rebuilt").exists());
    }
    // What was rebuilt serves on.
    world.mount();
    let name = world.json(&["volume", "list"])[0]["name"].as_str().unwrap().to_owned();
    write_at(&world.file(&name), 0, &pattern(LEN, 90)).unwrap();
    world.snapshot(&name, "after");
    assert!(read_at(&world.snapshot_file("after"), 0, LEN).unwrap() == pattern(LEN, 90));
    world.unmount();
    world.ok(CHECK);
}

#[test]
fn a_catalog_lost_with_the_mount_killed_is_rebuilt() {
    let world = written();
    world.mount();
    write_at(&world.file("web"), 0, &pattern(LEN, 77)).unwrap();
    world.snapshot("web", "w3");
    write_at(&world.file("web"), 0, &pattern(LEN, 78)).unwrap();
    let (w3, active) = (world.snapshot_layer("w3"), world.active_layer("web"));
    // With the mount the region is in use.
    world.fails(&["region", "check", "--repair", "--remove-unknown"], 0, &["whole"]);
    world.kill_server();
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(world.path("r").join(name));
    }
    let output = world.run(REPAIR);
    if output.status.code() != Some(0) {
        // The kill may have cut a layer's removal, the header of which goes first, or its making, where it comes last.
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(6) && said.contains("has 1 problem"), "{said}");
        assert!(said.contains("header.toml: No such file"), "{said}");
        world.ok(&[REPAIR, &["--remove-unknown"]].concat());
    }
    let named = |table: &str, column: &str, layer: &Path| -> String {
        let catalog = rusqlite::Connection::open(world.path("r/catalog.db")).unwrap();
        let sql = format!("select name from {table} where {column} = '{}'", id_of(layer));
        catalog.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    let (volume, snapshot) = (named("volumes", "active", &active), named("snapshots", "layer", &w3));
    world.mount_again();
    assert!(read_at(&world.file(&volume), 0, LEN).unwrap() == pattern(LEN, 78));
    assert!(read_at(&world.snapshot_file(&snapshot), 0, LEN).unwrap() == pattern(LEN, 77));
    world.unmount();
    world.ok(CHECK);
}

fn sql(world: &World, statements: &str) {
    let catalog = rusqlite::Connection::open(world.path("r/catalog.db")).unwrap();
    catalog.execute_batch(&format!("PRAGMA foreign_keys = OFF; {statements}")).unwrap();
}

/// Names of volumes, snapshots and keys, in order.
fn names(world: &World) -> Vec<String> {
    let mut names = Vec::new();
    for args in [["volume", "list"], ["snapshot", "list"]] {
        names.extend(
            world.json(&args).as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap().to_owned()),
        );
    }
    let keys = world.json(&["key", "list"]);
    names.extend(
        keys.as_array()
            .unwrap()
            .iter()
            .flat_map(|k| k["aliases"].as_array().unwrap().clone())
            .map(|a| a.to_string()),
    );
    names.sort();
    names
}

/// A row that is damaged, or says what no key bears out, costs itself at most: names, tags and disabled keys stay.
#[test]
fn a_bad_row_costs_itself_alone() {
    let world = written();
    world.ok(&["key", "create", "--alias", "closed"]);
    world.ok(&["volume", "create", "--name", "shut", "--size", "4M", "--key", "closed"]);
    world.ok(&["snapshot", "create", "web", "--name", "kept", "--description", "the third", "--tag", "a=b"]);
    world.ok(&["key", "disable", "closed"]);
    let before = names(&world);
    let bytes = |world: &World| -> Vec<Vec<u8>> {
        world.mount();
        let mut all: Vec<_> = ["web", "db"].iter().map(|v| fs::read(world.file(v)).unwrap()).collect();
        all.extend(["w1", "w2", "d1", "d2"].iter().map(|s| fs::read(world.snapshot_file(s)).unwrap()));
        world.unmount();
        all
    };
    let whole = bytes(&world);
    let w1 = id_of(&world.snapshot_layer("w1"));
    let changes = [
        format!("UPDATE layers SET size_bytes = -5 WHERE id = '{w1}'"),
        format!("UPDATE layers SET parent = 'nonsense' WHERE parent = '{w1}'"),
        format!("UPDATE layers SET wrapped_key = x'00' WHERE id = '{w1}'"),
        format!("DELETE FROM layers WHERE id = '{w1}'"),
        "UPDATE snapshots SET layer = (SELECT layer FROM snapshots WHERE name = 'd1') WHERE name = 'w1'".into(),
        "UPDATE snapshots SET layer = CASE name WHEN 'w1' THEN (SELECT layer FROM snapshots WHERE name = 'w2')
         ELSE (SELECT layer FROM snapshots WHERE name = 'w1') END WHERE name IN ('w1', 'w2')"
            .into(),
        "UPDATE volumes SET active = (SELECT active FROM volumes WHERE name = 'db') WHERE name = 'web'".into(),
        "UPDATE volumes SET active = (SELECT layer FROM snapshots WHERE name = 'w2') WHERE name = 'web'".into(),
        "UPDATE volumes SET active = (SELECT layer FROM snapshots WHERE name = 'w1') WHERE name = 'web'".into(),
        "UPDATE snapshots SET description = 'x' WHERE name = 'w2'; UPDATE volumes SET cipher = 'none' WHERE name = 'db'".into(),
        "UPDATE volumes SET cipher = 'none', key = NULL WHERE name = 'web'".into(),
        "UPDATE key_versions SET version = 'x' WHERE false; UPDATE tasks SET state = 'x'; DELETE FROM layer_points; \
         UPDATE volumes SET size_bytes = 4096 WHERE name = 'db'"
            .into(),
    ];
    for change in &changes {
        sql(&world, change);
        world.fails(CHECK, 6, &[]);
        let shown = world.json(REPAIR);
        assert_eq!(shown["repaired"]["catalog_rebuilt"], true, "{change}: {shown}");
        world.ok(CHECK);
        assert_eq!(names(&world), before, "{change}");
        assert!(bytes(&world) == whole, "{change}: bytes differ");
        assert_eq!(world.json(&["key", "show", "closed"])["state"], "disabled", "{change}");
        let kept = world.json(&["snapshot", "show", "kept"]);
        assert_eq!(
            (&kept["description"], &kept["tags"][0]["value"]),
            (&"the third".into(), &"b".into()),
            "{kept}"
        );
        world.ok(CHECK);
    }
    // What is named otherwise than it was loses its name, and nothing else does.
    sql(&world, "UPDATE snapshots SET name = CASE name WHEN 'w1' THEN 'd9' ELSE name END");
    world.fails(CHECK, 6, &["--repair"]);
    world.fails(&["snapshot", "verify", "d9"], 6, &["d9"]);
    let said = world.fails(&["region", "check", "--repair"], 4, &["not believed", "d9"]);
    assert!(said.contains("snapshot w2 (") && said.contains("snapshot recovered-"), "{said}");
    world.ok(REPAIR);
    let now = names(&world);
    assert_eq!(now.iter().filter(|name| !before.contains(name)).count(), 1, "{now:?}");
    // A volume's key that the catalog says to be enabled opens it again.
    world.ok(&["key", "enable", "closed"]);
    world.mount();
    assert!(read_at(&world.file("shut"), 0, LEN).unwrap().iter().all(|byte| *byte == 0));
    world.unmount();
}

#[test]
fn what_stands_on_a_damaged_header_is_left_and_named() {
    let world = written();
    let w2 = world.snapshot_layer("w2");
    flip(&w2.join("header.toml"), 100);
    fs::remove_file(world.path("r/catalog.db")).unwrap();
    let output = world.run(&[REPAIR, &["--output", "json", "-q"]].concat());
    assert_eq!(output.status.code(), Some(6), "its folder has no row: {}", words(&output));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let unusable = shown["repaired"]["unusable"].to_string();
    assert!(unusable.contains(&id_of(&w2)), "{shown}");
    assert_eq!(shown["repaired"]["volumes"].as_array().unwrap().len(), 1, "{shown}");
    assert_eq!(shown["repaired"]["snapshots"].as_array().unwrap().len(), 3, "{shown}");
    assert!(w2.join("data").exists());
}

#[test]
fn an_unknown_folder_goes_only_when_told() {
    let world = written();
    let id = "0123456789abcdef0123456789abcdef";
    let folder = world.path("r/layers").join(id);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("data"), "mine").unwrap();
    let layers = world.layers();
    world.fails(CHECK, 6, &["problem"]);
    let output = world.run(&["region", "check", "--repair", "--yes"]);
    assert!(words(&output).contains(id), "{}", words(&output));
    assert_eq!(output.status.code(), Some(6));
    world.fails(&["region", "check", "--repair", "--remove-unknown"], 4, &[id, "--yes"]);
    assert!(folder.join("data").exists());
    let shown = world.json(&[REPAIR, &["--remove-unknown"]].concat());
    assert_eq!(shown["repaired"]["removed_folders"].as_array().unwrap().len(), 1, "{shown}");
    assert!(!folder.exists());
    assert_eq!(world.layers(), layers - 1);
    world.ok(CHECK);
}

/// Two volumes' names have become one by a bit that flipped: one of them gets another.
#[test]
fn a_name_that_became_anothers_costs_itself_alone() {
    let mut turn = 0;
    loop {
        let mut world = World::new();
        world.volume("disk0", "4M");
        world.volume("disk1", "8M");
        world.expect_disorder();
        let catalog = world.path("r/catalog.db");
        rusqlite::Connection::open(&catalog)
            .unwrap()
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
        let mut bytes = fs::read(&catalog).unwrap();
        let places: Vec<_> = (0..bytes.len() - 5).filter(|at| bytes[*at..].starts_with(b"disk0")).collect();
        assert!(places.len() >= 2, "in the table and in its index");
        let Some(at) = places.get(turn) else { return };
        bytes[at + 4] ^= 1;
        fs::write(&catalog, bytes).unwrap();
        world.fails(CHECK, 6, &[]);
        world.json(REPAIR);
        world.ok(CHECK);
        let volumes = world.json(&["volume", "list"]);
        let mut sizes: Vec<_> =
            volumes.as_array().unwrap().iter().map(|v| v["size_bytes"].as_u64().unwrap()).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [4 << 20, 8 << 20], "{volumes}");
        assert_eq!(world.json(&["volume", "show", "disk1"])["name"], "disk1");
        turn += 1;
    }
}
