//! Guards against another disk's bytes: whatever a row of the catalog is changed to, whichever files of layers, keys or of the whole
//! region are swapped or put back.
//!
//! Always, of each snapshot and volume: its own bytes, or a refusal in words; and where something is refused, a check of the
//! region says so. What is put back consistently is refused where this machine saw newer, until it is accepted.

mod tampering_support;

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use tampering_support::copy_support::{Disk, Random, copy_files as copy};
use tampering_support::{PIECE, Scene, exchange, folders, rows_of, swap};
use terrane::ids::VolumeId;
use terrane::region::accept_older;

/// A column, and what else it could say.
type Column = (&'static str, &'static [&'static str]);

/// Columns that say what a disk is, by table.
const COLUMNS: [(&str, &[Column]); 4] = [
    (
        "snapshots",
        &[
            ("id", &[]),
            ("name", &["'s99'"]),
            ("layer", &[]),
            ("volume", &["NULL"]),
            ("account", &[]),
            ("size_bytes", &["524288", "2097152"]),
            ("kind", &["'system'"]),
            ("cipher", &["'none'"]),
            ("key", &["NULL"]),
            ("mac", &["NULL", "zeroblob(16)"]),
        ],
    ),
    (
        "volumes",
        &[
            ("id", &[]),
            ("active", &[]),
            ("next", &["(SELECT layer FROM snapshots)", "(SELECT active FROM volumes ORDER BY id DESC)"]),
            ("size_bytes", &["524288", "2097152"]),
            ("kind", &["'system'"]),
            ("cipher", &["'none'"]),
            ("key", &["NULL"]),
        ],
    ),
    (
        "layers",
        &[
            ("id", &[]),
            ("parent", &["NULL"]),
            ("volume", &[]),
            ("size_bytes", &["524288", "2097152"]),
            (
                "state",
                &["'active'", "'next'", "'sealed'", "'filling'", "'absorbing'", "'deleting'", "'preparing'"],
            ),
            ("cipher", &["'none'"]),
            ("key", &["NULL"]),
            ("key_version", &["0", "2"]),
            ("wrapped_key", &["zeroblob(93)"]),
            ("point", &["NULL"]),
            ("sealed_generation", &["NULL", "1", "99"]),
            ("sealed_mac", &["NULL"]),
        ],
    ),
    ("layer_points", &[("point", &[])]),
];

/// Each row's value given to the next row, and to it the next one's; and what else it could be. `TERRANE_TAMPER_ALL`: every pair of
/// rows, and every row.
#[test]
fn no_changed_row_gives_another_disks_bytes() {
    let scene = Scene::new();
    assert!(scene.try_it("untouched"));
    scene.restore();
    let all = std::env::var_os("TERRANE_TAMPER_ALL").is_some();
    let mut tried = Tried::default();
    for (table, columns) in COLUMNS {
        let catalog = rusqlite::Connection::open(scene.region().join("catalog.db")).unwrap();
        let rows = rows_of(&catalog, table);
        drop(catalog);
        for (column, values) in columns {
            for (n, row) in rows.iter().enumerate() {
                let others = if all { rows.len() - 1 } else { 1 };
                for other in (1..=others).map(|k| &rows[(n + k) % rows.len()]) {
                    let what = format!("{table}.{column} of {row} and {other} swapped");
                    tried.change(&scene, &what, &swap(table, column, row, other));
                }
            }
            let some = if all { rows.len() } else { 1 };
            for (row, value) in rows.iter().take(some).flat_map(|row| values.iter().map(move |v| (row, v))) {
                let change = format!("UPDATE {table} SET {column} = {value} WHERE {row}");
                tried.change(&scene, &format!("{table}.{column} of {row} made {value}"), &change);
            }
        }
    }
    eprintln!("{} cases, {} refused; harmless: {:#?}", tried.cases, tried.refused, tried.harmless);
    assert!(tried.cases > 80 && tried.refused > 60, "{} of {}", tried.refused, tried.cases);
}

#[derive(Default)]
struct Tried {
    cases: u32,
    refused: u32,
    harmless: Vec<String>,
}

impl Tried {
    /// One change of rows, and back. Nothing where it changes none, or a rule of the schema is against it.
    fn change(&mut self, scene: &Scene, what: &str, sql: &str) {
        let catalog = rusqlite::Connection::open(scene.region().join("catalog.db")).unwrap();
        let before = dump(&catalog);
        if catalog.execute_batch(&format!("PRAGMA foreign_keys = OFF; BEGIN; {sql}; COMMIT;")).is_err() {
            catalog.execute_batch("ROLLBACK").unwrap();
        }
        if dump(&catalog) == before {
            return;
        }
        drop(catalog);
        self.cases += 1;
        match scene.try_it(what) {
            true => self.harmless.push(what.to_owned()),
            false => self.refused += 1,
        }
        scene.restore();
    }
}

fn dump(catalog: &rusqlite::Connection) -> Vec<Vec<Value>> {
    let mut rows = Vec::new();
    for (table, _) in COLUMNS {
        let mut statement = catalog.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let count = statement.column_count();
        let row = |row: &rusqlite::Row| (0..count).map(|n| row.get(n)).collect();
        rows.extend(statement.query_map([], row).unwrap().map(Result::unwrap));
    }
    rows
}

#[test]
fn layers_files_swapped_are_refused() {
    let scene = Scene::new();
    let elsewhere = Scene::new();
    let folders = folders(&scene);
    let all = std::env::var_os("TERRANE_TAMPER_ALL").is_some();
    let sets = [&["header.toml", "data", "map"][..], &["header.toml"], &["data"], &["map"], &["data", "map"]];
    for n in 0..folders.len() {
        for by in 1..if all { folders.len() } else { 2 } {
            let (a, b) = (&folders[n], &folders[(n + by) % folders.len()]);
            for files in sets {
                files.iter().for_each(|file| exchange(&a.join(file), &b.join(file)));
                let what = format!("{files:?} of {a:?} and {b:?}");
                assert!(!scene.try_it(&what) || files == ["map"], "{what}");
                scene.restore();
            }
        }
        // One of another region, under this one's id.
        fs::remove_dir_all(&folders[n]).unwrap();
        copy(&self::folders(&elsewhere)[n], &folders[n]);
        assert!(!scene.try_it("another region's"));
        scene.restore();
    }
}

#[test]
fn key_files_and_rows_of_keys_swapped_or_put_back() {
    let scene = Scene::new();
    let keys = || -> Vec<PathBuf> {
        fs::read_dir(scene.region().join("keys")).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let [one, two] = &keys()[..] else { panic!("two keys") };
    // The rows serve, and the check tells of the files.
    exchange(one, two);
    assert_eq!(scene.check().unwrap().0, 2);
    assert_eq!(scene.look("files swapped"), Vec::<String>::new());
    scene.restore();
    // The files serve, and the check tells of the rows.
    let swapped = "SELECT wrapped FROM key_versions o WHERE o.key <> key_versions.key";
    for wrapped in ["zeroblob(61)", swapped] {
        scene.sql(&format!("UPDATE key_versions SET wrapped = ({wrapped})")).unwrap();
        assert!(scene.check().unwrap().0 > 0);
        assert_eq!(scene.look(wrapped), Vec::<String>::new());
        scene.restore();
        scene.sql(&format!("UPDATE key_versions SET wrapped = ({wrapped})")).unwrap();
        keys().iter().for_each(|path| fs::write(path, "no key").unwrap());
        assert!(!scene.try_it("neither"));
        scene.restore();
    }
    // Files from before a rotation lack a version, which its row has.
    let key = scene.world.default_key("north");
    terrane::kms::rotate_key(&scene.world.region("north"), key, 0).unwrap();
    fs::remove_dir_all(scene.region().join("keys")).unwrap();
    copy(&scene.pristine.join("keys"), &scene.region().join("keys"));
    assert_eq!(scene.check().unwrap().0, 1);
    assert_eq!(scene.look("older files"), Vec::<String>::new());
}

/// What the first volume was, put back: its layer's files, each and all; and rows that name the layer it had before.
#[test]
fn an_older_active_layer_put_back_is_refused_where_newer_was_seen() {
    let mut scene = Scene::new();
    let active = |scene: &Scene, id: VolumeId| {
        let region = scene.world.region("north");
        let row = region.catalog().unwrap().read(|tx| tx.volume(id)).unwrap();
        scene.region().join("layers").join(row.active.to_string())
    };
    let (id, model) = scene.volumes.iter().next().map(|(id, model)| (*id, model.clone())).unwrap();
    let folder = active(&scene, id);
    let of = |dir: &Path| dir.join("layers").join(folder.file_name().unwrap());
    let earlier = scene.world.path("earlier");
    fs::rename(&scene.pristine, &earlier).unwrap();
    let mut disk = Disk { region: "north".into(), id, model: model.clone() };
    let mut random = Random::new(77);
    for at in [0, 5 * PIECE, 6 * PIECE] {
        scene.write(&mut disk, &mut random, at);
    }
    scene.volumes.insert(id, disk.model.clone());
    copy(&scene.region(), &scene.pristine);
    let anchors = scene.world.path("anchors");
    copy(&scene.world.path("config/anchors"), &anchors);
    let remember = |scene: &Scene| {
        let _ = fs::remove_dir_all(scene.world.path("config/anchors"));
        copy(&anchors, &scene.world.path("config/anchors"));
    };
    for files in [&["header.toml", "data", "map"][..], &["data"], &["map"], &["header.toml"]] {
        let put_back = |scene: &Scene| {
            scene.restore();
            for file in files {
                fs::remove_file(folder.join(file)).unwrap();
                copy(&of(&earlier).join(file), &folder.join(file));
            }
        };
        put_back(&scene);
        remember(&scene);
        let is_well = scene.try_it(&format!("{files:?}, newer seen"));
        assert!(!is_well || !files.contains(&"data"), "{files:?}");
        // Where nothing was seen it is what it was, or damaged.
        put_back(&scene);
        scene.older.insert(id, model.clone());
        scene.look(&format!("{files:?}, nothing seen"));
        scene.older.clear();
    }
    // After a rollback the volume has a layer of its own again; the one before is put back, rows and all.
    scene.restore();
    let snapshot = *scene.names.get("s00").unwrap();
    let owned =
        scene.world.region("north").catalog().unwrap().read(|tx| tx.snapshot(snapshot)).unwrap().volume;
    let id = owned.unwrap();
    let before = active(&scene, id);
    let kept = scene.world.path("before");
    copy(&before, &kept);
    let name = before.file_name().unwrap().to_str().unwrap().to_owned();
    let catalog = rusqlite::Connection::open(scene.region().join("catalog.db")).unwrap();
    catalog
        .execute_batch(&format!(
            "ATTACH '{}' AS kept; CREATE TABLE kept.l AS SELECT * FROM layers WHERE id = '{name}'",
            scene.world.path("kept.db").display()
        ))
        .unwrap();
    drop(catalog);
    let model = scene.volumes[&id].clone();
    let host = scene.world.owner("north");
    let order = terrane::volume::Order::Rollback { volume: id.to_string(), snapshot: snapshot.to_string() };
    host.execute(&order, false).unwrap();
    host.close().unwrap();
    drop(host);
    scene.volumes.insert(id, scene.snapshots[&snapshot].clone());
    assert!(!before.exists());
    fs::rename(&kept, &before).unwrap();
    scene
        .sql(&format!(
            "ATTACH '{}' AS kept; INSERT INTO layers SELECT * FROM kept.l; UPDATE volumes SET active = '{name}' WHERE id = '{id}'",
            scene.world.path("kept.db").display()
        ))
        .unwrap();
    let found = scene.check().unwrap().1.findings.listed;
    assert!(found.iter().any(|f| f.what.contains("has seen layer")), "{found:?}");
    let refused = scene.look("the layer before the rollback");
    assert!(refused.iter().any(|r| r.contains("has seen layer")), "{refused:?}");
    // On purpose.
    accept_older(&scene.region(), &scene.world.config).unwrap();
    scene.volumes.insert(id, model);
    assert_eq!(scene.look("accepted"), Vec::<String>::new());
}

#[test]
fn a_whole_region_put_back_is_refused_until_it_is_accepted() {
    let mut scene = Scene::new();
    let (id, model) = scene.volumes.iter().next().map(|(id, model)| (*id, model.clone())).unwrap();
    let mut disk = Disk { region: "north".into(), id, model: model.clone() };
    disk.change(&scene.world, "later", |c| c.write(0, &[9; PIECE]));
    // The catalog's anchor goes on once a minute: as if that had passed.
    let anchor = scene.world.path("config/anchors");
    let anchor = anchor.join(scene.world.region("north").id().to_string()).join("catalog");
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(600);
    fs::File::options().write(true).open(anchor).unwrap().set_modified(long_ago).unwrap();
    scene.world.region("north").catalog().unwrap().write(|tx| tx.set_volume_name(id, None)).unwrap();
    drop(scene.world.region("north"));
    fs::remove_dir_all(scene.region()).unwrap();
    copy(&scene.pristine, &scene.region());
    let refused = scene.look("put back");
    assert!(refused.len() == 1 && refused[0].contains("older"), "{refused:?}");
    accept_older(&scene.region(), &scene.world.config).unwrap();
    scene.older.insert(id, model);
    assert!(scene.try_it("accepted"));
}
