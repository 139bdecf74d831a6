//! Setting, changing and removing a region's passphrase. The root key itself stays as it is, and so does all below it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use zeroize::Zeroizing;

use super::open::{HEADER_FILE, read_header};
use super::root_key::{ask, keep_root_key, read_passphrase_file};
use super::{Config, Header, KeySource, KnownRegion, Region, RegionError};
use crate::sys::crashsafe;

/// A passphrase to be set.
#[derive(Debug)]
pub enum NewPassphrase {
    /// The content of this file, which the configuration then names.
    File(PathBuf),
    /// Asked for twice on the terminal.
    Terminal,
}

impl NewPassphrase {
    /// The passphrase itself.
    pub(super) fn read(&self) -> Result<Zeroizing<Vec<u8>>, RegionError> {
        match self {
            Self::File(path) => read_passphrase_file(path),
            Self::Terminal => {
                let again = "it has to be typed twice, and there is no terminal to ask on";
                let asked =
                    |prompt: &str| ask(prompt)?.ok_or_else(|| RegionError::Passphrase { why: again.into() });
                let first = asked("New passphrase: ")?;
                let second = asked("The same again: ")?;
                if first.is_empty() || *first != *second {
                    let why = if first.is_empty() { "it is empty" } else { "the two differ" };
                    return Err(RegionError::Passphrase { why: why.into() });
                }
                Ok(Zeroizing::new(first.as_bytes().to_vec()))
            }
        }
    }

    /// What the configuration says of it from now on. A pipe is read once and not named.
    pub(super) fn source(&self) -> Result<KeySource, RegionError> {
        match self {
            Self::File(path) if path.is_file() => Ok(KeySource::PassphraseFile(
                std::path::absolute(path).map_err(RegionError::io("finding it", path))?,
            )),
            Self::File(_) | Self::Terminal => Ok(KeySource::Terminal),
        }
    }
}

/// Sets or changes the passphrase; the old one, or the root key file, opens the region first.
pub fn set_passphrase(region: &Region, config: &Config, new: &NewPassphrase) -> Result<(), RegionError> {
    let root_key = region.root_key()?;
    let passphrase = new.read()?;
    let lock = config.lock()?;
    rewrite(region.dir(), |header| header.set_passphrase(root_key, &passphrase))?;
    lock.put(&entry(region, new.source()?))
}

/// Removes the passphrase: the root key moves to a file of the configuration. Returns the file.
pub fn remove_passphrase(region: &Region, config: &Config) -> Result<PathBuf, RegionError> {
    let root_key = region.root_key()?;
    if !region.header().has_passphrase() {
        return Err(RegionError::Passphrase { why: format!("region {} has none", region.name()) });
    }
    let lock = config.lock()?;
    // 1. The file, 2. the entry that names it, 3. the header: a cut between them leaves two ways in, never none.
    let path = keep_root_key(config, region.header(), root_key)?;
    lock.put(&entry(region, KeySource::RootKeyFile(path.clone())))?;
    rewrite(region.dir(), |header| {
        header.passphrase = None;
        Ok(())
    })?;
    Ok(path)
}

fn entry(region: &Region, key: KeySource) -> KnownRegion {
    KnownRegion {
        id: region.id(),
        name: region.header().name.clone(),
        directory: region.dir().to_owned(),
        key,
    }
}

/// Changes `region.toml` as it is now, alone among those who do.
fn rewrite(
    dir: &Path,
    change: impl FnOnce(&mut Header) -> Result<(), RegionError>,
) -> Result<(), RegionError> {
    let lock = File::open(dir).map_err(RegionError::io("opening it", dir))?;
    flock(&lock, FlockOperation::LockExclusive)
        .map_err(io::Error::from)
        .map_err(RegionError::io("locking it", dir))?;
    let mut header = read_header(dir)?;
    change(&mut header)?;
    let path = dir.join(HEADER_FILE);
    crashsafe::write_file(&path, header.to_toml().as_bytes(), 0o600)
        .map_err(RegionError::io("writing it", path))
}
