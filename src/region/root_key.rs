//! From a configuration's entry to the root key: a file, a passphrase, or a question on the terminal.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::{Config, Header, KeySource, KnownRegion, Region, RegionError, files};
use crate::crypto::Secret;
use crate::sys::{crashsafe, open_files};

/// Bytes of a root key and of its file.
const ROOT_KEY_BYTES: u64 = 32;
const PASSPHRASE_BYTES_MAX: u64 = 4096;

/// Where a region's root key lies, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootKeyPlace {
    /// In this file.
    File(PathBuf),
    /// In `region.toml`, wrapped by the passphrase in this file.
    PassphraseFile(PathBuf),
    /// In `region.toml`, wrapped by a passphrase that is asked for.
    Terminal,
    /// Not known here.
    Unknown,
}

impl RootKeyPlace {
    /// Where a command would look for it.
    pub(super) fn find(header: &Header, entry: Option<&KnownRegion>, config: &Config) -> Self {
        match entry.map(|entry| &entry.key) {
            Some(KeySource::RootKeyFile(path)) => return Self::File(path.clone()),
            Some(KeySource::PassphraseFile(path)) => return Self::PassphraseFile(path.clone()),
            Some(KeySource::Terminal) if header.has_passphrase() => return Self::Terminal,
            Some(KeySource::Terminal) | None => {}
        }
        let own = config.root_key_path(header.id);
        match (own.exists(), header.has_passphrase()) {
            (true, _) => Self::File(own),
            (false, true) => Self::Terminal,
            (false, false) => Self::Unknown,
        }
    }

    /// Reads or asks for the root key, and checks that it is this region's.
    pub(super) fn load(&self, header: &Header) -> Result<Secret<32>, RegionError> {
        match self {
            Self::File(path) => {
                let key = read_root_key_file(path)?;
                check(header, key, &path.display().to_string())
            }
            Self::PassphraseFile(path) => {
                by_passphrase(header, &read_passphrase_file(path)?, format!(" of {}", path.display()))
            }
            Self::Terminal => {
                let passphrase = ask(&format!("Passphrase of region {}: ", header.name))?.ok_or_else(|| {
                    RegionError::RootKeyUnknown {
                        region: header.name.to_string(),
                        why: "it lies in region.toml under a passphrase, and there is no terminal to ask for it".into(),
                    }
                })?;
                by_passphrase(header, passphrase.as_bytes(), String::new())
            }
            Self::Unknown => Err(RegionError::RootKeyUnknown {
                region: header.name.to_string(),
                why: "the configuration has no root key file of it, and it has no passphrase".into(),
            }),
        }
    }
}

/// Writes a copy of the region's root key, mode 0600; refuses to replace anything.
pub fn export_root_key(region: &Region, path: &Path) -> Result<(), RegionError> {
    write_root_key_file(path, region.root_key()?)
}

/// A passphrase from a file: all of it but one line end.
pub fn read_passphrase_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, RegionError> {
    // Not only regular files: a pipe (`<(pass show region)`) is a good place for a passphrase.
    let file = File::open(path).map_err(RegionError::io("reading the passphrase", path))?;
    let metadata = file.metadata().map_err(RegionError::io("looking at it", path))?;
    if metadata.is_file() && metadata.mode() & 0o077 != 0 {
        tracing::warn!(
            "others can read the passphrase file {} (mode {:04o})",
            path.display(),
            metadata.mode() & 0o7777
        );
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(PASSPHRASE_BYTES_MAX as usize + 1));
    file.take(PASSPHRASE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(RegionError::io("reading the passphrase", path))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    let refused = |why: &str| RegionError::Passphrase { why: format!("{}: {why}", path.display()) };
    if bytes.is_empty() {
        return Err(refused("it is empty"));
    }
    if bytes.len() as u64 > PASSPHRASE_BYTES_MAX {
        return Err(refused("it has more than 4096 bytes"));
    }
    Ok(bytes)
}

/// Asks on the terminal without showing what is typed; `None` without a terminal.
pub(super) fn ask(prompt: &str) -> Result<Option<Zeroizing<String>>, RegionError> {
    if !io::stdin().is_terminal() {
        return Ok(None);
    }
    match rpassword::prompt_password(prompt) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        // A terminal, but of another session: nothing can be asked on it.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(RegionError::io("asking for the passphrase", "/dev/tty")(error)),
    }
}

/// Reads 32 bytes from a file that is this user's, a regular one, and closed to others.
pub(super) fn read_root_key_file(path: &Path) -> Result<Secret<32>, RegionError> {
    let refused =
        |why: String, hint: Option<String>| RegionError::RootKeyFile { path: path.to_owned(), why, hint };
    let file = crashsafe::open_regular(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => refused(
            "it is not there".into(),
            Some("put a copy of it back, or `terrane region add DIR --root-key-file F`".into()),
        ),
        _ if open_files::is_exhausted(&error) => RegionError::io("reading the root key", path)(error),
        _ => refused(error.to_string(), None),
    })?;
    let metadata = file.metadata().map_err(RegionError::io("looking at it", path))?;
    if metadata.uid() != files::euid() {
        return Err(refused(format!("it belongs to {}", files::uid_name(metadata.uid())), None));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(refused(
            format!("its mode is {:04o}, so that others may read or change it", metadata.mode() & 0o7777),
            Some(format!("chmod 600 {}", path.display())),
        ));
    }
    let bytes = Zeroizing::new(crashsafe::read_open(&file, ROOT_KEY_BYTES + 1).map_err(|_| {
        refused(format!("it has {} bytes, and a root key has {ROOT_KEY_BYTES}", metadata.len()), None)
    })?);
    if bytes.is_empty() {
        return Err(refused("it is empty".into(), None));
    }
    Secret::try_from_slice(&bytes).map_err(|_| {
        refused(format!("it has {} bytes, and a root key has {ROOT_KEY_BYTES}", bytes.len()), None)
    })
}

pub(super) fn write_root_key_file(path: &Path, root_key: &Secret<32>) -> Result<(), RegionError> {
    crashsafe::create_file(path, root_key.expose(), 0o600).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => RegionError::Exists {
            what: path.display().to_string(),
            hint: Some("give another file; a root key never replaces one".into()),
        },
        _ => RegionError::io("writing the root key", path)(error),
    })
}

/// Puts the root key in the configuration's own file, unless it is there already.
pub(super) fn keep_root_key(
    config: &Config,
    header: &Header,
    root_key: &Secret<32>,
) -> Result<PathBuf, RegionError> {
    let path = config.root_key_path(header.id);
    if path.exists() {
        check(header, read_root_key_file(&path)?, &path.display().to_string())?;
    } else {
        write_root_key_file(&path, root_key)?;
    }
    Ok(path)
}

pub(super) fn check(header: &Header, key: Secret<32>, from: &str) -> Result<Secret<32>, RegionError> {
    if header.accepts(&key) {
        return Ok(key);
    }
    Err(RegionError::WrongRootKey { region: header.name.to_string(), from: from.to_owned() })
}

pub(super) fn by_passphrase(
    header: &Header,
    passphrase: &[u8],
    from: String,
) -> Result<Secret<32>, RegionError> {
    if !header.has_passphrase() {
        return Err(RegionError::Passphrase { why: format!("region {} has none", header.name) });
    }
    header
        .root_key_by_passphrase(passphrase)?
        .ok_or_else(|| RegionError::WrongPassphrase { region: header.name.to_string(), from })
}
