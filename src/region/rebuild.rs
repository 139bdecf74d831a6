//! A new catalog in the place of one that is lost or damaged. Nothing is destroyed: the old one is moved aside.
//!
//! The order, so that a cut at any place leaves the old catalog, none (which is rebuilt again), or the new one:
//! 1. The new catalog is filled as `catalog.db.rebuilt`, and closed, so that all of it is in that one file.
//! 2. The catalog's anchor goes. (Later: the new catalog, which counts its writes anew, would be refused as older.)
//! 3. It is named `catalog.db.ready`, and the folder synced: from here on it holds all that the old one said.
//! 4. The old files are renamed to `catalog.db.damaged-<time>`, with `-wal` and `-shm` behind it, as SQLite finds them; the
//!    folder is synced after each. (Not after the first: the old catalog without its WAL, which looks whole. Not after the last:
//!    the new catalog beside the old one's WAL, which SQLite would take for its own.)
//! 5. The new one gets its name, and the folder is synced.
//!
//! Where this was cut after the old catalog had lost its name the next rebuilding does 4 and 5 first, and then takes the names
//! from that catalog. An older one of those that were moved aside is not asked: it lacks what was made since.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::anchor::Anchors;
use super::clock::Clock;
use super::lock::OpenLock;
use super::open::{CATALOG_FILE, FOLDERS, find_dir, read_header};
use super::{Config, Region, RegionError, RootKeyPlace, files};
use crate::catalog::{LastTime, Pool, Salvaged};
use crate::sys::{crashsafe, open_files, owned};

const REBUILT: &str = "catalog.db.rebuilt";
/// The same once it is whole.
const READY: &str = "catalog.db.ready";
/// The old one's copy, in `run/`.
const OLD: &str = "catalog.db.old";
/// Of a larger one nothing is taken over.
const OLD_BYTES_MAX: u64 = 1 << 30;
const LOCK: &str = "rebuild.lock";
/// What SQLite keeps beside a database, or would take for its own.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// A region without a usable catalog, held alone, with an empty one to fill. Dropped before [`Rebuilding::commit`], it leaves
/// everything as it was.
pub struct Rebuilding {
    /// None while it is being dropped.
    region: Option<Region>,
    dir: PathBuf,
    anchors: Anchors,
    old: Salvaged,
    _alone: OpenLock,
}

impl Rebuilding {
    /// Takes the region alone, and makes an empty catalog beside the place of the old one.
    pub fn begin(text: Option<&str>, config: &Config) -> Result<Self, RegionError> {
        let dir = match text.filter(|text| text.contains('/')) {
            Some(dir) => PathBuf::from(dir),
            None => config.find(text)?.directory,
        };
        let dir = find_dir(&dir)?;
        let header = read_header(&dir)?;
        files::check_file_system(&dir)?;
        FOLDERS.iter().try_for_each(|name| files::check_folder(&dir.join(name)))?;
        let alone = OpenLock::alone(&dir.join("run").join("open.lock"), header.name.as_str())?;
        finish_exchange(&dir)?;
        remove_rebuilt(&dir);
        let last = Arc::new(LastTime::default());
        let pool = Pool::new(dir.join(REBUILT), header.name.as_str(), last.clone());
        pool.create()?;
        let entry = config.entry(header.id)?;
        let replaced = header.replaced_clock.then(Clock::replacement).flatten();
        let clock = Clock::new(replaced.as_deref(), last, config)?;
        let place = RootKeyPlace::find(&header, entry.as_ref(), config);
        let anchors = Anchors::new(config, header.id, entry.is_some());
        let unkept = Anchors::new(config, header.id, false);
        let lock = OpenLock::shared(&dir.join("run").join(LOCK), header.name.as_str())?;
        let old = read_old(&dir, header.name.as_str())?;
        let region = Region::assemble(dir.clone(), header, place, pool, clock, unkept, lock);
        Ok(Self { region: Some(region), dir, anchors, old, _alone: alone })
    }

    /// The region, with the catalog that is being filled.
    pub fn region(&self) -> &Region {
        self.region.as_ref().expect("it is there until it is dropped")
    }

    /// What can be read of the old catalog.
    pub fn old(&self) -> &Salvaged {
        &self.old
    }

    /// Puts the new catalog into its place; where the old one is now, if there was one.
    pub fn commit(mut self) -> Result<Option<PathBuf>, RegionError> {
        let time = self.region().now().strftime("%Y%m%dT%H%M%SZ").to_string();
        // Its last connection writes all into the one file.
        self.region = None;
        let rebuilt = self.dir.join(REBUILT);
        if with_suffix(&rebuilt, "-wal").exists() {
            return Err(RegionError::Refused(
                "the new catalog is still in use; run the command again".into(),
            ));
        }
        self.anchors.clear_catalog()?;
        rename(&self.dir, &rebuilt, &self.dir.join(READY))?;
        exchange(&self.dir, &time)
    }
}

/// Steps 4 and 5; where the old catalog is now, if there was one.
fn exchange(dir: &Path, time: &str) -> Result<Option<PathBuf>, RegionError> {
    let catalog = dir.join(CATALOG_FILE);
    let aside = free_name(dir, time);
    let mut moved = None;
    for suffix in [""].iter().chain(BESIDE.iter()) {
        let (from, to) = (with_suffix(&catalog, suffix), with_suffix(&aside, suffix));
        match fs::rename(&from, &to) {
            Ok(()) => {
                moved = Some(aside.clone());
                crashsafe::sync_dir(dir).map_err(RegionError::io("syncing it", dir))?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(RegionError::io("moving it aside", from)(e)),
        }
    }
    rename(dir, &dir.join(READY), &catalog)?;
    Ok(moved)
}

fn rename(dir: &Path, from: &Path, to: &Path) -> Result<(), RegionError> {
    fs::rename(from, to).map_err(RegionError::io("naming the new catalog", to))?;
    crashsafe::sync_dir(dir).map_err(RegionError::io("syncing it", dir))
}

/// An exchange of the catalogs that was cut goes on, if the old one has lost its name. Its time is not known any more.
fn finish_exchange(dir: &Path) -> Result<(), RegionError> {
    let is_there = |name: &str| fs::symlink_metadata(dir.join(name)).is_ok();
    match is_there(READY) && !is_there(CATALOG_FILE) {
        true => exchange(dir, "cut").map(drop),
        false => Ok(()),
    }
}

/// From a copy: the old files stay as they are, byte for byte.
fn read_old(dir: &Path, name: &str) -> Result<Salvaged, RegionError> {
    let copy = dir.join("run").join(OLD);
    let remove = || BESIDE.iter().chain(&[""]).for_each(|s| drop(fs::remove_file(with_suffix(&copy, s))));
    remove();
    let take = |suffix: &str| -> io::Result<()> {
        let bytes = owned::read(&with_suffix(&dir.join(CATALOG_FILE), suffix), OLD_BYTES_MAX)?;
        crashsafe::create_file(&with_suffix(&copy, suffix), &bytes, 0o600)
    };
    // Without its WAL it is what was checkpointed last.
    let taken = take("").and_then(|()| match take("-wal") {
        Err(e) if open_files::is_exhausted(&e) => Err(e),
        _ => Ok(()),
    });
    let old = match taken {
        Ok(()) => Ok(Salvaged::read(&copy, name)),
        // It is there, and another time it can be read.
        Err(e) if open_files::is_exhausted(&e) => Err(RegionError::io("copying the old catalog", dir)(e)),
        Err(_) => Ok(Salvaged::nothing()),
    };
    remove();
    old
}

impl Drop for Rebuilding {
    fn drop(&mut self) {
        self.region = None;
        remove_rebuilt(&self.dir);
    }
}

/// What an earlier try left: it is of no worth.
fn remove_rebuilt(dir: &Path) {
    let rebuilt = dir.join(REBUILT);
    for suffix in BESIDE.iter().chain(&[""]) {
        let _ = fs::remove_file(with_suffix(&rebuilt, suffix));
    }
    // Where the old one has lost its name already, this is the catalog.
    if fs::symlink_metadata(dir.join(CATALOG_FILE)).is_ok() {
        let _ = fs::remove_file(dir.join(READY));
    }
    let _ = fs::remove_file(dir.join("run").join(LOCK));
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// A name that nothing has: what was moved aside before stays.
fn free_name(dir: &Path, time: &str) -> PathBuf {
    let name = |n: u32| {
        dir.join(match n {
            0 => format!("{CATALOG_FILE}.damaged-{time}"),
            n => format!("{CATALOG_FILE}.damaged-{time}.{n}"),
        })
    };
    let is_free = |path: &PathBuf| {
        BESIDE.iter().chain(&[""]).all(|s| fs::symlink_metadata(with_suffix(path, s)).is_err())
    };
    (0..u32::MAX).map(name).find(is_free).expect("fewer files than numbers")
}
