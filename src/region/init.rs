//! Making a region, and getting to know one that exists.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use super::anchor::Anchors;
use super::clock::Clock;
use super::lock::OpenLock;
use super::open::{CATALOG_FILE, FOLDERS, HEADER_FILE, find_dir, read_header};
use super::root_key::{by_passphrase, check, keep_root_key, read_root_key_file};
use super::{
    Config, Header, KeySource, KnownRegion, NewPassphrase, Region, RegionError, RootKeyPlace, files,
    read_passphrase_file,
};
use crate::catalog::{LastTime, Pool};
use crate::crypto::Secret;
use crate::ids::Name;
use crate::kms;
use crate::sys::crashsafe;

/// What a new region is to be.
#[derive(Debug)]
pub struct InitRequest {
    /// Where: a directory that is not there yet, or is empty.
    pub dir: PathBuf,
    /// Its name.
    pub name: Name,
    /// Use the root key of this file, and not a fresh one.
    pub root_key_file: Option<PathBuf>,
    /// Keep the root key in `region.toml`, wrapped by a passphrase, and not in a file.
    pub passphrase: Option<NewPassphrase>,
}

/// Makes a region and its entry in the configuration; everything is durable when it returns.
pub fn init(request: &InitRequest, config: &Config) -> Result<Region, RegionError> {
    // What may ask on the terminal comes before the lock, which would hold up other processes.
    let passphrase = request.passphrase.as_ref().map(NewPassphrase::read).transpose()?;
    let lock = config.lock()?;
    if let Some(known) = config.known()?.into_iter().find(|known| known.name == request.name) {
        return Err(RegionError::Exists {
            what: format!("a region named {} (in {})", request.name, known.directory.display()),
            hint: Some("choose another name, or `terrane region forget` that one".into()),
        });
    }
    let root_key = match &request.root_key_file {
        Some(path) => read_root_key_file(path)?,
        None => Secret::random(),
    };
    let replacement = Clock::replacement();
    let last = Arc::new(LastTime::default());
    let clock = Clock::new(replacement.as_deref(), last.clone(), config)?;
    let mut header = Header::new(request.name.clone(), clock.now(), replacement.is_some(), &root_key);

    let root_key_path = config.root_key_path(header.id);
    let (dir, made, _alone) = prepare_dir(&request.dir, config)?;
    let build = || -> Result<Region, RegionError> {
        // 1. The root key, before anything is wrapped by it. (Else: a region nobody can open.)
        let source = match &request.passphrase {
            Some(new) => {
                header.set_passphrase(&root_key, &passphrase.expect("it was read above"))?;
                new.source()?
            }
            None => KeySource::RootKeyFile(keep_root_key(config, &header, &root_key)?),
        };
        // 2. Folders and catalog, with the first account, instance and key.
        for name in FOLDERS {
            let path = dir.join(name);
            crashsafe::create_dir(&path, 0o700).map_err(RegionError::io("making it", path))?;
        }
        let open_lock = OpenLock::shared(&dir.join("run").join("open.lock"), header.name.as_str())?;
        let pool = Pool::new(dir.join(CATALOG_FILE), header.name.as_str(), last);
        pool.create()?;
        let entry =
            KnownRegion { id: header.id, name: header.name.clone(), directory: dir.clone(), key: source };
        let place = RootKeyPlace::find(&header, Some(&entry), config);
        let anchors = Anchors::new(config, header.id, true);
        let region = Region::assemble(dir.clone(), header, place, pool, clock, anchors, open_lock);
        region.set_root_key(root_key);
        kms::initialise(&region)?;
        crashsafe::sync_dir(&dir).map_err(RegionError::io("syncing it", &dir))?;
        // 3. The header: with it the directory is a region. (Earlier: a cut leaves half a region that looks whole.)
        let path = dir.join(HEADER_FILE);
        crashsafe::create_file(&path, region.header().to_toml().as_bytes(), 0o600)
            .map_err(RegionError::io("writing it", path))?;
        // 4. The entry. (A cut before it: `region add` finds the root key where step 1 put it.)
        lock.put(&entry)?;
        Ok(region)
    };
    build().inspect_err(|_| {
        clear(&dir, made);
        // Of a region that never was.
        let _ = fs::remove_file(&root_key_path);
    })
}

/// Adds an existing region to the configuration, with the place of its root key; returns the entry.
pub fn add(
    dir: &Path,
    root_key_file: Option<&Path>,
    passphrase_file: Option<&Path>,
    config: &Config,
) -> Result<KnownRegion, RegionError> {
    let dir = find_dir(dir)?;
    let header = read_header(&dir)?;
    files::check_file_system(&dir)?;
    // 1. The root key first, which may be asked for on the terminal: the lock below would hold up other processes.
    let place = RootKeyPlace::find(&header, None, config);
    let (root_key, key) = match (root_key_file, passphrase_file) {
        (Some(path), _) => {
            let root_key = check(&header, read_root_key_file(path)?, &path.display().to_string())?;
            (Some(root_key), KeySource::RootKeyFile(config.root_key_path(header.id)))
        }
        (None, Some(path)) => {
            by_passphrase(&header, &read_passphrase_file(path)?, format!(" of {}", path.display()))?;
            (None, NewPassphrase::File(path.to_owned()).source()?)
        }
        (None, None) => {
            place.load(&header)?;
            match place {
                RootKeyPlace::File(path) => (None, KeySource::RootKeyFile(path)),
                _ => (None, KeySource::Terminal),
            }
        }
    };
    // 2. The entry. The same region elsewhere is a copy of it, unless it was moved.
    let lock = config.lock()?;
    if let Some(known) = config.entry(header.id)? {
        let still_there = known.directory != dir
            && find_dir(&known.directory)
                .and_then(|dir| read_header(&dir))
                .is_ok_and(|found| found.id == header.id);
        if still_there {
            return Err(RegionError::Exists {
                what: format!("region {} with the same id in {}", known.name, known.directory.display()),
                hint: Some(format!("`terrane region forget {}` first", known.id)),
            });
        }
    }
    if let Some(root_key) = root_key {
        // A file there that is empty or damaged is put right.
        let path = config.root_key_path(header.id);
        crashsafe::write_file(&path, root_key.expose(), 0o600)
            .map_err(RegionError::io("writing the root key", &path))?;
    }
    let entry = KnownRegion { id: header.id, name: header.name, directory: dir, key };
    lock.put(&entry)?;
    Ok(entry)
}

/// Takes a region out of the configuration: the region and its root key file stay. Returns the entry.
pub fn forget(text: &str, config: &Config) -> Result<KnownRegion, RegionError> {
    let lock = config.lock()?;
    let entry = if text.contains('/') {
        let dir = fs::canonicalize(text).unwrap_or_else(|_| PathBuf::from(text));
        let known = config.known()?;
        known.into_iter().find(|known| known.directory == dir).ok_or_else(|| RegionError::UnknownName {
            name: text.into(),
            config: config.dir().to_owned(),
            known: Vec::new(),
        })?
    } else {
        config.find(Some(text))?
    };
    lock.remove(entry.id)?;
    Ok(entry)
}

/// A directory that is this user's, empty, of mode 0700 and on a file system of this machine; and whether it was made.
/// Held with a lock: of two that make a region in one directory, the second must not clear away what the first made.
fn prepare_dir(dir: &Path, config: &Config) -> Result<(PathBuf, bool, File), RegionError> {
    let made = match crashsafe::create_dir(dir, 0o700) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(error) => return Err(RegionError::io("making it", dir)(error)),
    };
    let path = fs::canonicalize(dir).map_err(RegionError::io("finding it", dir))?;
    let prepare = || {
        files::check_dir(&path)?;
        files::check_file_system(&path)?;
        if path.to_str().is_none() {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8");
            return Err(RegionError::Io {
                doing: "naming it in the configuration",
                path: path.clone(),
                source,
            });
        }
        let config_dir =
            fs::canonicalize(config.dir()).map_err(RegionError::io("finding it", config.dir()))?;
        if config_dir.starts_with(&path) {
            return Err(RegionError::Refused(format!(
                "the configuration {} would lie inside the region, and the root key with it",
                config_dir.display()
            )));
        }
        let lock = File::open(&path).map_err(RegionError::io("opening it", &path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(taken(format!("a region in the making in {}", path.display())));
        }
        if fs::symlink_metadata(path.join(HEADER_FILE)).is_ok() {
            return Err(taken(format!("a region in {}", path.display())));
        }
        for found in fs::read_dir(&path).map_err(RegionError::io("listing it", &path))? {
            let name = found.map_err(RegionError::io("listing it", &path))?.file_name();
            if name != "lost+found" {
                return Err(taken(format!("{} in {}", name.display(), path.display())));
            }
        }
        let mode = Permissions::from_mode(0o700);
        fs::set_permissions(&path, mode).map_err(RegionError::io("closing it to others", &path))?;
        Ok(lock)
    };
    match prepare() {
        Ok(lock) => Ok((path, made, lock)),
        Err(error) => {
            if made {
                let _ = fs::remove_dir(&path);
            }
            Err(error)
        }
    }
}

fn taken(what: String) -> RegionError {
    RegionError::Exists { what, hint: Some("give a directory that is not there yet, or is empty".into()) }
}

/// Takes away what an init that failed has made in the directory.
fn clear(dir: &Path, made: bool) {
    for name in FOLDERS {
        let _ = fs::remove_dir_all(dir.join(name));
    }
    for name in [CATALOG_FILE, "catalog.db-wal", "catalog.db-shm", HEADER_FILE] {
        let _ = fs::remove_file(dir.join(name));
    }
    if made {
        let _ = fs::remove_dir(dir);
    }
}

/// A region in a new folder, for unit tests.
#[cfg(test)]
pub(crate) fn scratch() -> (tempfile::TempDir, Region) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::at(&dir.path().join("config")).unwrap();
    let name = "here".parse().unwrap();
    let request = InitRequest { dir: dir.path().join("r"), name, root_key_file: None, passphrase: None };
    let region = init(&request, &config).unwrap();
    (dir, region)
}
