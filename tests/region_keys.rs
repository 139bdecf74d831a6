//! Guards against a key that is lost, though its row in the catalog or its file in `keys/` still has it; and against a check that
//! does not see that only one of them is left.

#[path = "common/world.rs"]
mod world;

use std::fs;
use std::path::PathBuf;

use rusqlite::types::Value;
use world::{SECTOR, World, pattern, read_at, write_at};

const LEN: usize = 16 * SECTOR;
const CHECK: &[&str] = &["region", "check"];
const REPAIR: &[&str] = &["region", "check", "--repair", "--yes"];

/// A region with a volume `web` under a key of two versions; the key's id. The volume's layer is under the second, its snapshot's under the first.
fn written() -> (World, String) {
    let world = World::new();
    let key = world.ok(&["key", "create", "--alias", "project"]);
    world.ok(&["volume", "create", "--name", "web", "--size", "8M", "--key", "project"]);
    world.mount();
    write_at(&world.file("web"), 0, &pattern(LEN, 0)).unwrap();
    world.ok(&["key", "rotate", "project"]);
    // The layer that follows the first was made before it was needed.
    for n in 1..4 {
        write_at(&world.file("web"), 0, &pattern(LEN, n)).unwrap();
        world.snapshot("web", &format!("s{n}"));
    }
    world.unmount();
    (world, key)
}

#[derive(PartialEq)]
struct Keys {
    rows: Vec<Vec<Value>>,
    files: Vec<(PathBuf, Vec<u8>)>,
}

fn keys(world: &World) -> Keys {
    let catalog = rusqlite::Connection::open(world.path("r/catalog.db")).unwrap();
    let mut rows = Vec::new();
    for table in ["keys", "key_versions"] {
        let mut statement = catalog.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let count = statement.column_count();
        let found = statement.query_map([], |row| (0..count).map(|n| row.get(n)).collect()).unwrap();
        rows.extend(found.map(Result::unwrap));
    }
    let files = fs::read_dir(world.path("r/keys")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.map(|path| (path.clone(), fs::read(path).unwrap_or_default())).collect();
    files.sort();
    Keys { rows, files }
}

fn sql(world: &World, statement: &str) {
    let catalog = rusqlite::Connection::open(world.path("r/catalog.db")).unwrap();
    assert_eq!(catalog.execute(statement, []).unwrap(), 1, "{statement}");
}

/// Rewrites a file's line of that name.
fn line(path: &PathBuf, name: &str, value: &str) {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| match line.split_once(" = ") {
        Some((of, _)) if of == name => format!("{name} = {value}\n"),
        _ => format!("{line}\n"),
    });
    let changed: String = lines.collect();
    assert_ne!(changed, text);
    fs::write(path, changed).unwrap();
}

#[test]
fn what_is_lost_at_one_place_is_written_anew_from_the_other() {
    let (world, key) = written();
    let before = keys(&world);
    let file = |version: u32| world.path(&format!("r/keys/{key}.{version}"));
    let row = |version: u32| format!("WHERE key = '{key}' AND version = {version}");
    type Harm<'a> = Box<dyn Fn() + 'a>;
    let harms: [(&str, u32, Harm); 10] = [
        ("no file", 1, Box::new(|| fs::remove_file(file(1)).unwrap())),
        ("a file of nothing", 2, Box::new(|| fs::write(file(2), "").unwrap())),
        ("another's key", 1, Box::new(|| assert!(fs::copy(file(2), file(1)).unwrap() > 0))),
        ("another region's", 1, Box::new(|| line(&file(1), "region", &format!("\"{}\"", "0".repeat(32))))),
        ("another version's", 2, Box::new(|| line(&file(2), "key_version", "1"))),
        ("no time", 1, Box::new(|| line(&file(1), "created_at", "\"yesterday\""))),
        ("another time", 1, Box::new(|| line(&file(1), "created_at", "\"2026-05-01T00:00:00Z\""))),
        (
            "a row of zeros",
            1,
            Box::new(|| sql(&world, &format!("UPDATE key_versions SET wrapped = zeroblob(61) {}", row(1)))),
        ),
        ("no old row", 1, Box::new(|| sql(&world, &format!("DELETE FROM key_versions {}", row(1))))),
        ("no current row", 2, Box::new(|| sql(&world, &format!("DELETE FROM key_versions {}", row(2))))),
    ];
    for (what, version, harm) in harms {
        harm();
        let said = world.run(CHECK);
        let shown = String::from_utf8(said.stdout).unwrap();
        assert_eq!(said.status.code(), Some(6), "{what}: {shown}");
        let named = format!("key {key} version {version}: its ");
        assert!(shown.contains(&named) && shown.contains("--repair"), "{what}: {shown}");
        let shown = world.json(REPAIR);
        assert_eq!(shown["problem_count"], 0, "{what}: {shown}");
        let mended = shown["repaired"]["mended_keys"].as_array().unwrap();
        assert!(mended.len() == 1 && mended[0].as_str().unwrap().starts_with(&named), "{what}: {shown}");
        assert_eq!(shown["repaired"]["catalog_rebuilt"], false, "{what}: {shown}");
        world.ok(CHECK);
        assert!(keys(&world) == before, "{what}: not as it was");
    }
    // At both places: nothing can be done, and nothing is.
    let kept = fs::read(file(1)).unwrap();
    line(&file(1), "wrapped_key", "\"00\"");
    sql(&world, &format!("UPDATE key_versions SET wrapped = x'00' {}", row(1)));
    let harmed = keys(&world);
    for args in [CHECK, REPAIR] {
        let output = world.run(args);
        let shown = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(6), "{shown}");
        assert!(shown.contains(&format!("key {key} version 1: neither")), "{shown}");
        assert!(keys(&world) == harmed);
    }
    fs::write(file(1), kept).unwrap();
    world.ok(REPAIR);
    assert!(keys(&world) == before, "not as it was");
}

/// A check and a repair end with 6 and these words, and leave the file as it is.
fn told_and_left(world: &World, file: &PathBuf, words: &str) {
    let before = fs::read(file).unwrap();
    for args in [CHECK, REPAIR] {
        let output = world.run(args);
        assert_eq!(output.status.code(), Some(6));
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(words), "{said}");
        assert!(fs::read(file).unwrap() == before, "it is written over");
    }
}

/// What all snapshots hold, and that they are those that were taken.
fn assert_all_there(world: &World) {
    world.mount();
    let snapshots = world.json(&["snapshot", "list"]);
    let names = snapshots.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned());
    let mut found: Vec<_> = names.map(|name| read_at(&world.snapshot_file(&name), 0, LEN).unwrap()).collect();
    let mut written: Vec<_> = (1..4).map(|n| pattern(LEN, n)).collect();
    found.sort();
    written.sort();
    assert!(found == written, "{snapshots}");
    world.unmount();
}

fn lose_the_catalog(world: &World) {
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let _ = fs::remove_file(world.path("r").join(name));
    }
}

/// Whose a file is says its name, and that it opens: not what else it says, nor how.
#[test]
fn a_lost_catalog_takes_no_key_whose_file_says_wrong_things() {
    let (world, key) = written();
    let [first, second] = [1, 2].map(|version| world.path(&format!("r/keys/{key}.{version}")));
    line(&first, "region", "\"nowhere\"");
    line(&first, "key_id", "\"nobody\"");
    line(&first, "key_version", "7");
    line(&first, "created_at", "\"yesterday\"");
    let text = fs::read_to_string(&second).unwrap();
    fs::write(
        &second,
        text.replace("wrapped_key", "vrapped_key").replace("key_version = 2", "key_version ="),
    )
    .unwrap();
    lose_the_catalog(&world);
    let shown = world.json(REPAIR);
    assert_eq!(shown["problem_count"], 0, "{shown}");
    assert_eq!(shown["repaired"]["keys"].as_array().unwrap().len(), 2, "{shown}");
    assert_eq!(shown["repaired"]["mended_keys"].as_array().unwrap().len(), 2, "{shown}");
    world.ok(CHECK);
    assert_all_there(&world);
}

/// A catalog that is rebuilt for another row's sake takes no key with it, whose file is lost.
#[test]
fn a_rebuilt_catalog_has_the_keys_that_only_the_old_one_had() {
    let (world, key) = written();
    let file = world.path(&format!("r/keys/{key}.1"));
    let before = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    sql(&world, "UPDATE snapshots SET mac = zeroblob(16) WHERE name = 's1'");
    let shown = world.json(REPAIR);
    assert_eq!(shown["problem_count"], 0, "{shown}");
    assert_eq!(shown["repaired"]["catalog_rebuilt"], true, "{shown}");
    assert_eq!(shown["repaired"]["unusable"], serde_json::json!([]), "{shown}");
    assert!(fs::read(&file).unwrap() == before);
    world.ok(CHECK);
    assert_all_there(&world);
}

/// What can't be written keeps nothing else from being mended; of a place that is harmed twice over all is mended at once.
#[test]
fn what_cannot_be_mended_is_left_and_told() {
    let (world, key) = written();
    let before = keys(&world);
    let [first, second] = [1, 2].map(|version| world.path(&format!("r/keys/{key}.{version}")));
    fs::remove_file(&first).unwrap();
    fs::create_dir(&first).unwrap();
    line(&second, "region", "\"nowhere\"");
    sql(&world, &format!("DELETE FROM key_versions WHERE key = '{key}' AND version = 2"));
    let output = world.run(REPAIR);
    assert_eq!(output.status.code(), Some(6), "{}", world::words(&output));
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    for words in [
        "version 2: its row is written anew",
        "version 2: its file in keys/ is written anew",
        "version 1: its file in keys/ can't be read",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    fs::remove_dir(&first).unwrap();
    let shown = world.json(REPAIR);
    assert_eq!(shown["problem_count"], 0, "{shown}");
    assert!(keys(&world) == before, "not as it was");

    // One of a format to come is left to who knows it.
    line(&first, "format_version", "2");
    told_and_left(&world, &first, "version 1: its file in keys/ is of a newer format");
}

/// A rotation takes away no file that is, or may be, a key.
#[test]
fn a_rotation_beside_lost_rows_keeps_every_key() {
    let (world, key) = written();
    let file = |version: u32| world.path(&format!("r/keys/{key}.{version}"));
    let second = fs::read(file(2)).unwrap();
    sql(&world, &format!("DELETE FROM key_versions WHERE key = '{key}' AND version = 2"));
    // What is left of one has its number.
    fs::write(file(3), "a key, once").unwrap();
    let shown = world.json(&["key", "rotate", "project"]);
    assert_eq!(shown["current_version"], 4, "{shown}");
    assert!(fs::read(file(2)).unwrap() == second && fs::read(file(3)).unwrap() == b"a key, once");
    let shown: serde_json::Value =
        serde_json::from_slice(&world.run(&[REPAIR, &["--output", "json"]].concat()).stdout).unwrap();
    assert_eq!(shown["problem_count"], 1, "{shown}");
    let told = shown["problems"][0]["what"].as_str().unwrap();
    assert!(told.contains("version 3") && told.contains("nothing else is known of it"), "{shown}");
    fs::remove_file(file(3)).unwrap();
    world.ok(CHECK);
    assert_all_there(&world);

    // The catalog of before a rotation, put back: the version that was made then is the next one. Two of a number are told apart.
    let catalog = fs::read(world.path("r/catalog.db")).unwrap();
    let put_back = || {
        fs::write(world.path("r/catalog.db"), &catalog).unwrap();
        world.ok(&["region", "check", "--accept-older"]);
    };
    world.ok(&["key", "rotate", "project"]);
    let fifth = fs::read(file(5)).unwrap();
    put_back();
    let said = world::words(&world.run(&["key", "rotate", "project"]));
    assert!(said.contains("has version 5, which keys/ already had"), "{said}");
    assert!(fs::read(file(5)).unwrap() == fifth, "another version 5");
    world.ok(CHECK);
    fs::remove_file(file(5)).unwrap();
    put_back();
    world.ok(&["key", "rotate", "project"]);
    fs::write(file(5), &fifth).unwrap();
    told_and_left(&world, &file(5), "version 5: its row and its file in keys/ hold different keys");
    // What the row's has wrapped is read after a rebuilding, too. A file that is not read is not written over.
    world.mount();
    write_at(&world.file("web"), 0, &pattern(LEN, 1)).unwrap();
    world.snapshot("web", "s4");
    write_at(&world.file("web"), 0, &pattern(LEN, 9)).unwrap();
    world.snapshot("web", "s5");
    world.unmount();
    sql(&world, "UPDATE snapshots SET mac = zeroblob(16) WHERE name = 's1'");
    let output = world.run(REPAIR);
    assert!(world::words(&output).contains("the catalog is rebuilt"), "{}", world::words(&output));
    fs::set_permissions(file(5), std::os::unix::fs::PermissionsExt::from_mode(0o664)).unwrap();
    let output = world.run(REPAIR);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("version 5: its file in keys/ can't be read"), "{said}");
    assert!(fs::read(file(5)).unwrap() == fifth);
    fs::remove_file(file(5)).unwrap();
    let shown = world.json(REPAIR);
    assert_eq!(shown["problem_count"], 0, "{shown}");
    world.mount();
    assert!(
        read_at(&world.snapshot_file("s5"), 0, LEN).unwrap() == pattern(LEN, 9),
        "under the row's version 5"
    );
    world.unmount();
}

/// Rebuilt once more, the catalog has all.
fn assert_rebuilt_whole(world: &World) {
    fs::rename(world.path("r/catalog.db"), world.path("aside")).unwrap();
    lose_the_catalog(world);
    let shown = world.json(REPAIR);
    assert_eq!(shown["problem_count"], 0, "{shown}");
    assert_all_there(world);
}

/// A key's file that was put back by hand serves the next rebuilding.
#[test]
fn a_key_that_is_put_back_brings_back_what_is_under_it() {
    let (world, key) = written();
    let file = world.path(&format!("r/keys/{key}.1"));
    let before = fs::read(&file).unwrap();
    fs::write(&file, "").unwrap();
    lose_the_catalog(&world);
    let output = world.run(REPAIR);
    assert!(world::words(&output).contains(&format!("{key}.1")), "{}", world::words(&output));
    assert!(world.json(&["snapshot", "list"]).as_array().unwrap().len() < 3);
    // What is under it is not to be removed unawares.
    let said = world.fails(&["region", "check", "--repair", "--remove-unknown"], 4, &["--yes"]);
    assert!(said.contains("a layer whose key is lost here"), "{said}");
    fs::write(&file, before).unwrap();
    assert_rebuilt_whole(&world);
}

/// Nothing is left of a version but layers under it: its number stays its own, so that its file can come back.
#[test]
fn a_rotation_gives_no_number_that_a_layer_names() {
    let (world, key) = written();
    let file = world.path(&format!("r/keys/{key}.2"));
    let before = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    lose_the_catalog(&world);
    world.run(REPAIR);
    assert!(world.json(&["snapshot", "list"]).as_array().unwrap().len() < 3);
    let shown = world.json(&["key", "rotate", &key]);
    assert_eq!(shown["current_version"], 3, "{shown}");
    fs::write(&file, before).unwrap();
    assert_rebuilt_whole(&world);
}

/// Rows alone tell of it, too.
#[test]
fn a_rotation_gives_no_number_that_a_row_names() {
    let (world, key) = written();
    sql(&world, &format!("DELETE FROM key_versions WHERE key = '{key}' AND version = 2"));
    sql(&world, &format!("UPDATE keys SET current_version = 1 WHERE id = '{key}'"));
    fs::remove_file(world.path(&format!("r/keys/{key}.2"))).unwrap();
    for entry in fs::read_dir(world.path("r/layers")).unwrap() {
        fs::write(entry.unwrap().path().join("header.toml"), "").unwrap();
    }
    let shown = world.json(&["key", "rotate", "project"]);
    assert_eq!(shown["current_version"], 3, "{shown}");
}
