//! Guards against another disk's bytes: whatever a row of the catalog is changed to, whichever files of layers, keys or of the whole
//! region are swapped or put back.
//!
//! Always, of each snapshot and volume: its own bytes, or a refusal in words; and where something is refused, a check of the
//! region says so. What is put back consistently is refused where this machine saw newer, until it is accepted.

mod copy_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use copy_support::{Change, Disk, Random, World, copy_files as copy};
use rusqlite::types::Value;
use terrane::catalog::DiskKind;
use terrane::ids::{SnapshotId, VolumeId};
use terrane::region::{Region, accept_older};
use terrane::volume::{CheckWatch, Host, HostError, LayersLock, RegionCheck, check_region, remove_litter};

const SIZE: usize = 1 << 20;
const PIECE: usize = 64 << 10;

/// Two volumes of one size under one key, two snapshots of the first and one of the other, and all that they hold; a third
/// under another key.
struct Scene {
    world: World,
    snapshots: BTreeMap<SnapshotId, Vec<u8>>,
    names: BTreeMap<String, SnapshotId>,
    volumes: BTreeMap<VolumeId, Vec<u8>>,
    /// A copy of the region as it should be.
    pristine: PathBuf,
    /// Older bytes that are as good, where nothing could tell that they are older.
    older: BTreeMap<VolumeId, Vec<u8>>,
}

impl Scene {
    fn new() -> Self {
        let world = World::new(&["north"]);
        let key = Some(world.default_key("north"));
        let other = Some(world.key("north", "other"));
        let mut random = Random::new(8);
        let mut scene = Self {
            snapshots: BTreeMap::new(),
            names: BTreeMap::new(),
            volumes: BTreeMap::new(),
            pristine: world.path("pristine"),
            older: BTreeMap::new(),
            world,
        };
        for (number, (key, snapshots)) in [(key, 2), (key, 1), (other, 1)].into_iter().enumerate() {
            let mut disk = Disk::new(&scene.world, "north", SIZE, key, DiskKind::Data);
            for n in 0..snapshots {
                let name = format!("s{number}{n}");
                let mut write = |c: &mut Change| c.random(&mut random, n * PIECE, 3 * PIECE);
                let id = disk.change(&scene.world, &name, &mut write);
                scene.snapshots.insert(id, disk.model.clone());
                scene.names.insert(name, id);
            }
            scene.write(&mut disk, &mut random, 6 * PIECE);
            scene.volumes.insert(disk.id, disk.model);
        }
        copy(&scene.region(), &scene.pristine);
        scene
    }

    fn region(&self) -> PathBuf {
        self.world.path("north")
    }

    /// By a host that closes in order.
    fn write(&self, disk: &mut Disk, random: &mut Random, at: usize) {
        let host = self.world.owner("north");
        let open = host.open_volume(disk.id, false).unwrap();
        let mut bytes = vec![0; PIECE];
        random.fill(&mut bytes);
        open.disk.write(at as u64, &bytes).unwrap();
        disk.model[at..at + PIECE].copy_from_slice(&bytes);
        drop(open);
        host.close().unwrap();
    }

    /// Changes rows behind everybody's back.
    fn sql(&self, statements: &str) -> rusqlite::Result<()> {
        rusqlite::Connection::open(self.region().join("catalog.db"))?.execute_batch(statements)
    }

    /// The region as it should be, and nothing that this machine would remember of it.
    fn restore(&self) {
        fs::remove_dir_all(self.region()).unwrap();
        copy(&self.pristine, &self.region());
        let _ = fs::remove_dir_all(self.world.path("config/anchors"));
    }

    /// Opens everything; what was refused, in words. Wrong bytes fail here.
    fn look(&self, what: &str) -> Vec<String> {
        let region = match Region::open(&self.region(), &self.world.config) {
            Ok(region) => region,
            Err(error) => return vec![error.to_string()],
        };
        let mut refused = Vec::new();
        let mut note = |of: String, error: HostError| refused.push(format!("{of}: {error}"));
        let lock = LayersLock::take(&region, None).unwrap().unwrap_or_else(|_| panic!("nobody else has it"));
        if let Err(error) = remove_litter(&region) {
            note("litter".into(), error);
        }
        let host = Host::new(region, Some(lock));
        for (id, model) in &self.snapshots {
            let bytes =
                host.open_snapshot(*id).map(|disk| read(disk.size_bytes(), |at, into| disk.read(at, into)));
            self.compare(&format!("{what}: snapshot {id}"), bytes, model, &mut note);
        }
        for (name, id) in &self.names {
            let found = host.region().catalog().unwrap().read(|tx| tx.find_snapshot_by_name(name));
            if let Ok(Some(row)) = found {
                let disk = host.open_snapshot(row.id);
                let bytes = disk.map(|disk| read(disk.size_bytes(), |at, into| disk.read(at, into)));
                self.compare(&format!("{what}: snapshot {name}"), bytes, &self.snapshots[id], &mut note);
            }
        }
        for (id, model) in &self.volumes {
            let opened = host.open_volume(*id, false);
            let bytes = opened.map(|open| read(open.disk.size_bytes(), |at, into| open.disk.read(at, into)));
            let is_older = matches!(&bytes, Ok(Some(bytes)) if self.older.get(id) == Some(bytes));
            if !is_older {
                self.compare(&format!("{what}: volume {id}"), bytes, model, &mut note);
            }
        }
        if let Err(error) = host.close() {
            note("closing".into(), error);
        }
        refused
    }

    fn compare(
        &self,
        what: &str,
        bytes: Result<Option<Vec<u8>>, HostError>,
        model: &[u8],
        note: &mut impl FnMut(String, HostError),
    ) {
        match bytes {
            Ok(Some(bytes)) => assert!(bytes == *model, "{what}: other bytes"),
            // A sector that says that it is damaged.
            Ok(None) => {}
            Err(error) => {
                assert!(error.to_string().len() < 2000, "{what}: {error}");
                note(what.to_owned(), error);
            }
        }
    }

    /// What a check finds before anything is opened for writing: problems, and layers left out.
    fn check(&self) -> Result<(u64, RegionCheck), String> {
        let region = Region::open(&self.region(), &self.world.config).map_err(|e| e.to_string())?;
        let problems = terrane::region::check(&region).map_err(|e| e.to_string())?.len() as u64;
        let folders = terrane::region::unknown_folders(&region).map_err(|e| e.to_string())?.len() as u64;
        let host = Host::new(region, None);
        let cancel = AtomicBool::new(false);
        let mut watch = CheckWatch { cancel: &cancel, max_rate: None, progress: &mut |_, _| {} };
        let report = check_region(&host, &mut watch).map_err(|e| e.to_string())?;
        Ok((problems + folders + report.findings.count, report))
    }

    /// Whether everything was opened, and the check saw nothing. Where something was refused it must have.
    fn try_it(&self, what: &str) -> bool {
        let checked = self.check();
        let refused = self.look(what);
        let found = checked.as_ref().map_or(1, |(count, report)| count + report.left.len() as u64);
        assert!(refused.is_empty() || found > 0, "{what}: refused, and the check found nothing: {refused:?}");
        if let (Ok((count, _)), false) = (&checked, refused.is_empty()) {
            assert!(*count > 0 || found > 0, "{what}");
        }
        refused.is_empty() && found == 0
    }
}

fn read(
    size: u64,
    read: impl Fn(u64, &mut [u8]) -> Result<(), terrane::volume::VolumeError>,
) -> Option<Vec<u8>> {
    let mut bytes = vec![0xaa; size as usize];
    for (n, piece) in bytes.chunks_mut(1 << 20).enumerate() {
        if let Err(error) = read((n as u64) << 20, piece) {
            assert!(error.is_corruption(), "{error}");
            return None;
        }
    }
    Some(bytes)
}

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
        let rows = rows(&scene, table);
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

fn swap(table: &str, column: &str, row: &str, other: &str) -> String {
    format!(
        "CREATE TEMP TABLE one AS SELECT * FROM {table} WHERE {row};
         CREATE TEMP TABLE two AS SELECT * FROM {table} WHERE {other};
         CREATE TEMP TABLE kept AS SELECT {column} FROM one;
         DELETE FROM {table} WHERE {row} OR {other};
         UPDATE one SET {column} = (SELECT {column} FROM two);
         UPDATE two SET {column} = (SELECT {column} FROM kept);
         INSERT INTO {table} SELECT * FROM one;
         INSERT INTO {table} SELECT * FROM two;
         DROP TABLE one; DROP TABLE two; DROP TABLE kept"
    )
}

/// A condition for each row of a table.
fn rows(scene: &Scene, table: &str) -> Vec<String> {
    let catalog = rusqlite::Connection::open(scene.region().join("catalog.db")).unwrap();
    let condition = match table {
        "layer_points" => "'layer = ''' || layer || ''' AND place = ' || place",
        _ => "'id = ''' || id || ''''",
    };
    let mut statement = catalog.prepare(&format!("SELECT {condition} FROM {table}")).unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

fn folders(scene: &Scene) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        fs::read_dir(scene.region().join("layers")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn exchange(a: &Path, b: &Path) {
    let third = a.with_extension("third");
    fs::rename(a, &third).unwrap();
    fs::rename(b, a).unwrap();
    fs::rename(&third, b).unwrap();
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
    terrane::kms::rotate_key(&scene.world.region("north"), key).unwrap();
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
