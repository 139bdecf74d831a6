//! The configuration: which regions are known here, where they lie, and where their root keys are.
//!
//! ```text
//! regions/<region id>.toml       name, directory, root-key file or passphrase file
//! keys/<region id>.root-key      32 bytes, mode 0600
//! lock                           held by whoever changes an entry
//! clock                          when this machine's clock was believed last, see `machine_clock`
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{RegionError, files};
use crate::ids::{Name, RegionId};
use crate::sys::crashsafe;

/// Where a region's root key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A file of 32 bytes.
    RootKeyFile(PathBuf),
    /// A file that holds the passphrase.
    PassphraseFile(PathBuf),
    /// The passphrase is asked for on the terminal.
    Terminal,
}

/// An entry of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRegion {
    /// The region's id.
    pub id: RegionId,
    /// The region's name.
    pub name: Name,
    /// Its directory.
    pub directory: PathBuf,
    /// Where its root key comes from.
    pub key: KeySource,
}

/// The configuration's directory. Reading needs no lock: every file is replaced whole.
#[derive(Clone, Debug)]
pub struct Config {
    dir: PathBuf,
}

/// The right to change entries, held until dropped.
#[derive(Debug)]
pub struct ConfigLock<'c> {
    config: &'c Config,
    _file: File,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    name: String,
    directory: String,
    root_key_file: Option<String>,
    passphrase_file: Option<String>,
}

impl Config {
    /// `TERRANE_CONFIG_DIR`, else `/etc/terrane` for root, else `$XDG_CONFIG_HOME/terrane`, else `~/.config/terrane`.
    pub fn from_env() -> Result<Self, RegionError> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = if let Some(dir) = set("TERRANE_CONFIG_DIR") {
            dir
        } else if files::euid() == 0 {
            "/etc/terrane".into()
        } else if let Some(dir) = set("XDG_CONFIG_HOME").filter(|dir| dir.is_absolute()) {
            dir.join("terrane")
        } else if let Some(home) = set("HOME") {
            home.join(".config/terrane")
        } else {
            return Err(RegionError::NoConfigDir);
        };
        Self::at(&dir)
    }

    /// The configuration in this directory, which need not be there yet.
    pub fn at(dir: &Path) -> Result<Self, RegionError> {
        let dir = std::path::absolute(dir).map_err(RegionError::io("finding it", dir))?;
        Ok(Self { dir })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file a region's root key has in the configuration.
    pub fn root_key_path(&self, id: RegionId) -> PathBuf {
        self.dir.join("keys").join(format!("{id}.root-key"))
    }

    /// All entries, by name. A damaged one is left out with a warning: the others serve.
    pub fn known(&self) -> Result<Vec<KnownRegion>, RegionError> {
        let dir = self.dir.join("regions");
        let listed = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|error| self.denied(error, &dir))?,
        };
        files::check_dir(&self.dir)?;
        let mut known = Vec::new();
        for found in listed {
            let name = found.map_err(RegionError::io("listing it", &dir))?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".toml")).and_then(|id| id.parse().ok());
            if let Some(id) = id {
                match self.entry(id) {
                    // None: forgotten by another process meanwhile.
                    Ok(entry) => known.extend(entry),
                    Err(error @ RegionError::Corrupted { .. }) => {
                        tracing::warn!("{error}; `terrane region add` its directory again");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        known.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(known)
    }

    /// One entry.
    pub fn entry(&self, id: RegionId) -> Result<Option<KnownRegion>, RegionError> {
        let path = self.entry_path(id);
        let text = match files::read_toml(&path) {
            Err(RegionError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(RegionError::Io { source, .. }) => return Err(self.denied(source, &path)),
            other => other?,
        };
        let corrupted = |what: &str, expected: &str, found: &str| RegionError::Corrupted {
            path: path.clone(),
            what: what.into(),
            expected: expected.into(),
            found: found.chars().take(80).collect(),
        };
        let fields: Fields = toml::from_str(&text).map_err(|error: toml::de::Error| {
            corrupted("the file", "an entry of a region", error.message())
        })?;
        let key = match (fields.root_key_file, fields.passphrase_file) {
            (Some(file), None) => KeySource::RootKeyFile(file.into()),
            (None, Some(file)) => KeySource::PassphraseFile(file.into()),
            (None, None) => KeySource::Terminal,
            (Some(_), Some(_)) => {
                return Err(corrupted("the file", "a root_key_file or a passphrase_file", "both"));
            }
        };
        let name = fields.name.parse().map_err(|_| corrupted("name", "a name", &fields.name))?;
        let directory = PathBuf::from(&fields.directory);
        if !directory.is_absolute() {
            return Err(corrupted("directory", "an absolute path", &fields.directory));
        }
        Ok(Some(KnownRegion { id, name, directory, key }))
    }

    /// The known region of this name or id; with no text, the only one there is.
    pub fn find(&self, text: Option<&str>) -> Result<KnownRegion, RegionError> {
        let mut known = self.known()?;
        let names = |known: &[KnownRegion]| known.iter().map(|region| region.name.to_string()).collect();
        let Some(text) = text else {
            return match known.len() {
                1 => Ok(known.remove(0)),
                _ => Err(RegionError::NotChosen { known: names(&known) }),
            };
        };
        let all = names(&known);
        known.retain(|region| region.name.as_str() == text || region.id.to_string() == text);
        match known.len() {
            0 => Err(RegionError::UnknownName { name: text.into(), config: self.dir.clone(), known: all }),
            1 => Ok(known.remove(0)),
            _ => Err(RegionError::AmbiguousName {
                name: text.into(),
                dirs: known.iter().map(|region| region.directory.display().to_string()).collect(),
            }),
        }
    }

    /// The right to change entries; makes the directory, mode 0700, if it is not there. Waits for other processes.
    pub fn lock(&self) -> Result<ConfigLock<'_>, RegionError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|error| self.denied(error, &self.dir))?;
        files::check_dir(&self.dir)?;
        if let Some(parent) = self.dir.parent() {
            // Best effort: a parent that is another's (/etc, a home) may not be readable.
            let _ = crashsafe::sync_dir(parent);
        }
        for name in ["regions", "keys"] {
            let dir = self.dir.join(name);
            match crashsafe::create_dir(&dir, 0o700) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(RegionError::io("making it", &dir))?,
            }
        }
        let path = self.dir.join("lock");
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags)
            .open(&path)
            .map_err(RegionError::io("opening it", &path))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                other => {
                    break other.map_err(io::Error::from).map_err(RegionError::io("locking it", &path))?;
                }
            }
        }
        Ok(ConfigLock { config: self, _file: file })
    }

    fn entry_path(&self, id: RegionId) -> PathBuf {
        self.dir.join("regions").join(format!("{id}.toml"))
    }

    /// Says whose the configuration is, if it may not be read.
    fn denied(&self, source: io::Error, path: &Path) -> RegionError {
        if source.kind() == io::ErrorKind::PermissionDenied
            && let Err(error) = files::check_dir(&self.dir)
        {
            return error;
        }
        RegionError::Io { doing: "reading the configuration", path: path.to_owned(), source }
    }
}

impl ConfigLock<'_> {
    /// Adds or replaces an entry; durable when it returns.
    pub fn put(&self, known: &KnownRegion) -> Result<(), RegionError> {
        let text = |path: &Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| RegionError::Io {
                doing: "naming it in the configuration",
                path: path.to_owned(),
                source: io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8"),
            })
        };
        let (root_key_file, passphrase_file) = match &known.key {
            KeySource::RootKeyFile(path) => (Some(text(path)?), None),
            KeySource::PassphraseFile(path) => (None, Some(text(path)?)),
            KeySource::Terminal => (None, None),
        };
        let fields = Fields {
            name: known.name.to_string(),
            directory: text(&known.directory)?,
            root_key_file,
            passphrase_file,
        };
        let path = self.config.entry_path(known.id);
        let toml = toml::to_string(&fields).expect("plain fields are always TOML");
        crashsafe::write_file(&path, toml.as_bytes(), 0o600).map_err(RegionError::io("writing it", path))
    }

    /// Takes an entry away; its root key file stays.
    pub fn remove(&self, id: RegionId) -> Result<(), RegionError> {
        let path = self.config.entry_path(id);
        crashsafe::remove_file(&path).map_err(RegionError::io("removing it", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str, directory: &str) -> KnownRegion {
        KnownRegion {
            id: RegionId::random(),
            name: name.parse().unwrap(),
            directory: directory.into(),
            key: KeySource::RootKeyFile("/k".into()),
        }
    }

    #[test]
    fn entries_are_kept_found_and_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::at(&dir.path().join("config")).unwrap();
        assert!(config.known().unwrap().is_empty());
        assert!(matches!(config.find(None), Err(RegionError::NotChosen { .. })));
        let one = known("one", "/r/1");
        let lock = config.lock().unwrap();
        lock.put(&one).unwrap();
        assert_eq!(config.find(None).unwrap(), one);
        let two = KnownRegion { key: KeySource::Terminal, ..known("two", "/r/2") };
        lock.put(&two).unwrap();
        assert!(matches!(config.find(None), Err(RegionError::NotChosen { .. })));
        assert_eq!(config.find(Some("two")).unwrap(), two);
        assert_eq!(config.find(Some(&two.id.to_string())).unwrap(), two);
        assert!(matches!(config.find(Some("three")), Err(RegionError::UnknownName { .. })));
        lock.put(&known("two", "/r/3")).unwrap();
        assert!(matches!(config.find(Some("two")), Err(RegionError::AmbiguousName { .. })));
        lock.remove(one.id).unwrap();
        assert_eq!(config.entry(one.id).unwrap(), None);
    }

    #[test]
    fn damaged_entries_stop_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::at(dir.path()).unwrap();
        let one = known("one", "/r/1");
        config.lock().unwrap().put(&one).unwrap();
        let path = config.entry_path(one.id);
        for text in [&b"\xff\xfe"[..], b"name = 7", b"name = 'one'\ndirectory = 'relative'", &[b'#'; 70_000]]
        {
            fs::write(&path, text).unwrap();
            assert!(matches!(config.entry(one.id), Err(RegionError::Corrupted { .. })));
            assert!(config.known().unwrap().is_empty());
        }
    }
}
