//! A region with disks whose every byte is known, to be tampered with.
#![allow(dead_code)] // each test file uses a part

#[path = "../copy_support/mod.rs"]
pub mod copy_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use copy_support::{Change, Disk, Random, World, copy_files as copy};
use terrane::catalog::DiskKind;
use terrane::ids::{SnapshotId, VolumeId};
use terrane::region::Region;
use terrane::volume::{CheckWatch, Host, HostError, LayersLock, RegionCheck, check_region, remove_litter};

pub const SIZE: usize = 1 << 20;
pub const PIECE: usize = 64 << 10;

/// Two volumes of one size under one key, two snapshots of the first and one of the other, and all that they hold; a third
/// under another key.
pub struct Scene {
    pub world: World,
    pub snapshots: BTreeMap<SnapshotId, Vec<u8>>,
    pub names: BTreeMap<String, SnapshotId>,
    pub volumes: BTreeMap<VolumeId, Vec<u8>>,
    /// A copy of the region as it should be.
    pub pristine: PathBuf,
    /// Older bytes that are as good, where nothing could tell that they are older.
    pub older: BTreeMap<VolumeId, Vec<u8>>,
}

impl Scene {
    pub fn new() -> Self {
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

    pub fn region(&self) -> PathBuf {
        self.world.path("north")
    }

    /// By a host that closes in order.
    pub fn write(&self, disk: &mut Disk, random: &mut Random, at: usize) {
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
    pub fn sql(&self, statements: &str) -> rusqlite::Result<()> {
        rusqlite::Connection::open(self.region().join("catalog.db"))?.execute_batch(statements)
    }

    /// The region as it should be, and nothing that this machine would remember of it.
    pub fn restore(&self) {
        fs::remove_dir_all(self.region()).unwrap();
        copy(&self.pristine, &self.region());
        let _ = fs::remove_dir_all(self.world.path("config/anchors"));
    }

    /// Opens everything; what was refused, in words. Wrong bytes fail here.
    pub fn look(&self, what: &str) -> Vec<String> {
        let region = match Region::open(&self.region(), &self.world.config) {
            Ok(region) => region,
            Err(error) => return vec![error.to_string()],
        };
        let mut refused = Vec::new();
        let mut note = |of: String, error: String| refused.push(format!("{of}: {error}"));
        let lock = LayersLock::take(&region, None).unwrap().unwrap_or_else(|_| panic!("nobody else has it"));
        if let Err(error) = remove_litter(&region) {
            note("litter".into(), error.to_string());
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
            note("closing".into(), error.to_string());
        }
        refused
    }

    pub fn compare(
        &self,
        what: &str,
        bytes: Result<Option<Vec<u8>>, HostError>,
        model: &[u8],
        note: &mut impl FnMut(String, String),
    ) {
        match bytes {
            Ok(Some(bytes)) => assert!(bytes == *model, "{what}: other bytes"),
            Ok(None) => note(what.to_owned(), "a sector says that it is damaged".into()),
            Err(error) => {
                let said = error.to_string();
                assert!(said.len() < 2000 && names_something(&said), "{what}: {said}");
                note(what.to_owned(), said);
            }
        }
    }

    /// What a check finds before anything is opened for writing: problems, and layers left out.
    pub fn check(&self) -> Result<(u64, RegionCheck), String> {
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
    pub fn try_it(&self, what: &str) -> bool {
        self.try_after(what, false)
    }

    /// The same. `removed`: a row was, which is like what was deleted.
    pub fn try_after(&self, what: &str, removed: bool) -> bool {
        let checked = self.check();
        let refused = self.look(what);
        let found = checked.as_ref().map_or(1, |(count, report)| count + report.left.len() as u64);
        let is_unseen = |said: &&String| {
            !removed || !said.contains(" has no snapshot ") && !said.contains(" has no volume ")
        };
        let unseen: Vec<_> = refused.iter().filter(is_unseen).collect();
        assert!(unseen.is_empty() || found > 0, "{what}: refused, and the check found nothing: {unseen:?}");
        refused.is_empty() && found == 0
    }
}

/// Whether words say of which thing they are: the catalog, or a key, layer, volume or snapshot by its id.
fn names_something(said: &str) -> bool {
    let is_id = |word: &str| {
        let (prefix, digits) = word.split_once('-').unwrap_or(("", word));
        let is_named = ["vol", "snap", "key"].contains(&prefix) && digits.len() == 17;
        (is_named || prefix.is_empty() && digits.len() == 32) && digits.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let mut words = said.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    said.contains("catalog") || words.any(is_id)
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

pub fn swap(table: &str, column: &str, row: &str, other: &str) -> String {
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

pub fn folders(scene: &Scene) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        fs::read_dir(scene.region().join("layers")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

pub fn exchange(a: &Path, b: &Path) {
    let third = a.with_extension("third");
    fs::rename(a, &third).unwrap();
    fs::rename(b, a).unwrap();
    fs::rename(&third, b).unwrap();
}

/// A condition for each row of a table.
pub fn rows_of(catalog: &rusqlite::Connection, table: &str) -> Vec<String> {
    let key = format!("SELECT name FROM pragma_table_info('{table}') WHERE pk > 0 ORDER BY pk");
    let mut key = catalog.prepare(&key).unwrap();
    let key: Vec<String> = key.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let terms: Vec<_> = key.iter().map(|column| format!("'{column} = ' || quote({column})")).collect();
    let mut rows =
        catalog.prepare(&format!("SELECT {} FROM {table}", terms.join(" || ' AND ' || "))).unwrap();
    let rows = rows.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}
