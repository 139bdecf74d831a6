use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use parking_lot::Mutex;

use super::anchor::Anchors;
use super::clock::Clock;
use super::lock::OpenLock;
use super::{Config, Header, RegionError, RootKeyPlace, VolumeAnchor, files, root_key};
use crate::catalog::{Catalog, LastTime, Pool, SCHEMA_VERSION};
use crate::crypto::Secret;
use crate::ids::{LayerId, RegionId, VolumeId};

pub(super) const HEADER_FILE: &str = "region.toml";
pub(super) const CATALOG_FILE: &str = "catalog.db";
pub(super) const FOLDERS: [&str; 3] = ["keys", "layers", "run"];

/// An open region. It holds `run/open.lock` shared until it is dropped.
#[derive(Debug)]
pub struct Region {
    dir: PathBuf,
    header: Header,
    place: RootKeyPlace,
    pool: Arc<Pool>,
    clock: Arc<Clock>,
    anchors: Anchors,
    root_key: OnceLock<Secret<32>>,
    loading: Mutex<()>,
    _lock: OpenLock,
}

/// Reads a region's header without opening the region: for lists. The directory and file are checked as in an open.
pub fn peek(dir: &Path) -> Result<Header, RegionError> {
    read_header(&find_dir(dir)?)
}

impl Region {
    /// Opens the region in this directory. Needs no root key: [`Region::root_key`] does.
    pub fn open(dir: &Path, config: &Config) -> Result<Self, RegionError> {
        Self::open_as(dir, config, None)
    }

    /// Opens the region a person chose: a directory if the text holds a `/`, else a known name or id; with no text the
    /// only known one.
    pub fn choose(text: Option<&str>, config: &Config) -> Result<Self, RegionError> {
        if let Some(dir) = text.filter(|text| text.contains('/')) {
            return Self::open(Path::new(dir), config);
        }
        let known = config.find(text)?;
        Self::open_as(&known.directory, config, Some(known.id))
    }

    fn open_as(dir: &Path, config: &Config, expected: Option<RegionId>) -> Result<Self, RegionError> {
        // 1. Whose it is, before anything is read: another user is told whom to be.
        let dir = find_dir(dir)?;
        let header = read_header(&dir)?;
        if let Some(expected) = expected.filter(|expected| *expected != header.id) {
            return Err(RegionError::AnotherRegion {
                dir,
                expected: expected.to_string(),
                found: header.id.to_string(),
            });
        }
        files::check_file_system(&dir)?;
        // 2. The lock, before the catalog is touched: a migration has it alone.
        for name in FOLDERS {
            files::check_folder(&dir.join(name))?;
        }
        let lock_path = dir.join("run").join("open.lock");
        let name = header.name.as_str();
        let mut lock = OpenLock::shared(&lock_path, name)?;
        // 3. The catalog, migrated if it is older and nobody else has the region open.
        let last = Arc::new(LastTime::default());
        let pool = Pool::new(dir.join(CATALOG_FILE), name, last.clone());
        if pool.schema_version()? < SCHEMA_VERSION {
            drop(lock);
            let alone = OpenLock::alone(&lock_path, name)?;
            pool.migrate()?;
            drop(alone);
            lock = OpenLock::shared(&lock_path, name)?;
        }
        let generation = pool.load_state()?;
        let entry = config.entry(header.id)?;
        let anchors = Anchors::new(config, header.id, entry.is_some());
        anchors.check_catalog(name, generation)?;
        let replaced = header.replaced_clock.then(Clock::replacement).flatten();
        let clock = Clock::new(replaced.as_deref(), last, config)?;
        let place = RootKeyPlace::find(&header, entry.as_ref(), config);
        Ok(Self::assemble(dir, header, place, pool, clock, anchors, lock))
    }

    pub(super) fn assemble(
        dir: PathBuf,
        header: Header,
        place: RootKeyPlace,
        pool: Arc<Pool>,
        clock: Clock,
        anchors: Anchors,
        lock: OpenLock,
    ) -> Self {
        Self {
            dir,
            header,
            place,
            pool,
            clock: Arc::new(clock),
            anchors,
            root_key: OnceLock::new(),
            loading: Mutex::new(()),
            _lock: lock,
        }
    }

    /// Its directory, absolute and free of links.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its id.
    pub fn id(&self) -> RegionId {
        self.header.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.header.name.as_str()
    }

    /// What its `region.toml` says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where wrapped CMKs lie.
    pub fn keys_dir(&self) -> PathBuf {
        self.dir.join("keys")
    }

    /// Where layers lie.
    pub fn layers_dir(&self) -> PathBuf {
        self.dir.join("layers")
    }

    /// Where one layer lies.
    pub fn layer_dir(&self, layer: LayerId) -> PathBuf {
        self.layers_dir().join(layer.to_string())
    }

    /// Where sockets and locks lie.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// A connection to its catalog, for this thread; it goes back to the region when dropped.
    pub fn catalog(&self) -> Result<Catalog, RegionError> {
        Ok(self.pool.catalog()?)
    }

    /// Now, by its clock, which never goes back.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The latest moment that has come for sure: what ends by the clock ends by this one.
    pub fn certain(&self) -> Timestamp {
        self.clock.certain()
    }

    /// Its clock: for who has to know when a moment comes, and not to have the region open until then.
    pub fn clock(&self) -> Arc<Clock> {
        self.clock.clone()
    }

    /// Where its root key lies.
    pub fn root_key_place(&self) -> &RootKeyPlace {
        &self.place
    }

    /// Its root key, checked to be the right one: read, or asked for, the first time and then kept.
    pub fn root_key(&self) -> Result<&Secret<32>, RegionError> {
        let _one_at_a_time = self.loading.lock();
        if self.root_key.get().is_none() {
            let key = self.place.load(&self.header)?;
            let _ = self.root_key.set(key);
        }
        Ok(self.root_key.get().expect("it was set a line above"))
    }

    /// How far a volume had come when this machine last wrote it down; none: nothing to compare with.
    pub fn volume_anchor(&self, volume: VolumeId) -> Result<Option<VolumeAnchor>, RegionError> {
        self.anchors.volume(volume)
    }

    /// Writes down how far a volume has come. What the anchor names is durable before the call.
    pub fn set_volume_anchor(&self, volume: VolumeId, anchor: &VolumeAnchor) -> Result<(), RegionError> {
        self.anchors.set_volume(volume, anchor)
    }

    /// Forgets a volume's anchor: it is deleted.
    pub fn remove_volume_anchor(&self, volume: VolumeId) -> Result<(), RegionError> {
        self.anchors.remove_volume(volume)
    }

    /// Writes down how far the catalog has come, unless that was done within the last minute. Also done when the region
    /// is dropped; a process that stays calls it from a timer.
    pub fn advance_anchor(&self) -> Result<(), RegionError> {
        match self.pool.written() {
            0 => Ok(()),
            generation => self.anchors.advance_catalog(generation),
        }
    }

    /// Gives it the root key that its maker already holds.
    pub(super) fn set_root_key(&self, key: Secret<32>) {
        let _ = self.root_key.set(key);
    }

    /// Gives it a root key that another process of ours was told; checked to be the right one.
    pub fn give_root_key(&self, key: Secret<32>) -> Result<(), RegionError> {
        self.set_root_key(root_key::check(&self.header, key, "what was handed over")?);
        Ok(())
    }

    /// Whether its root key takes a passphrase that nothing but a person can give.
    pub fn asks_for_passphrase(&self) -> bool {
        self.place == RootKeyPlace::Terminal && self.root_key.get().is_none()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Err(error) = self.advance_anchor() {
            tracing::warn!("the anchor of region {}: {error}", self.name());
        }
    }
}

pub(super) fn find_dir(dir: &Path) -> Result<PathBuf, RegionError> {
    let not_one = |why: &str| RegionError::NotARegion { dir: dir.to_owned(), why: why.into() };
    let dir = fs::canonicalize(dir).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => not_one("there is no such directory"),
        io::ErrorKind::NotADirectory => not_one("it is not a directory"),
        _ => RegionError::io("finding it", dir)(error),
    })?;
    let metadata = fs::metadata(&dir).map_err(RegionError::io("looking at it", &dir))?;
    if !metadata.is_dir() {
        return Err(not_one("it is not a directory"));
    }
    // Another's directory without a region in plain sight may still be one: its owner alone can tell.
    let closed = metadata.mode() & 0o077 == 0;
    if closed || dir.join(HEADER_FILE).exists() {
        files::check_owner(&dir, metadata.uid())?;
        files::check_folder(&dir)?;
    }
    Ok(dir)
}

pub(super) fn read_header(dir: &Path) -> Result<Header, RegionError> {
    let path = dir.join(HEADER_FILE);
    let text = match files::read_own_toml(&path) {
        Err(RegionError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(RegionError::NotARegion { dir: dir.to_owned(), why: "it has no region.toml".into() });
        }
        other => other?,
    };
    Header::parse(&text, &path)
}
