use std::path::PathBuf;

use crate::catalog::CatalogError;
use crate::crypto::CryptoError;
use crate::ids::IdError;
use crate::kms::KmsError;
use crate::sys::open_files;

/// Why a region could not be made, opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The directory is not there, or holds no region.
    #[error("{} is not a region: {why}", dir.display())]
    NotARegion {
        /// The directory.
        dir: PathBuf,
        /// What is missing.
        why: String,
    },
    /// No region of this name in the configuration.
    #[error("no region named {name:?} is known in {}{}", config.display(), known_names(known))]
    UnknownName {
        /// The name.
        name: String,
        /// The configuration's directory.
        config: PathBuf,
        /// Names that are known.
        known: Vec<String>,
    },
    /// The configuration knows no region, or several, and none was chosen.
    #[error("no region was chosen{}", if known.is_empty() { ", and none is known here".to_owned() } else { known_names(known) })]
    NotChosen {
        /// Names that are known.
        known: Vec<String>,
    },
    /// Several known regions have this name.
    #[error("several regions are named {name:?}: {}", dirs.join(", "))]
    AmbiguousName {
        /// The name.
        name: String,
        /// Their directories.
        dirs: Vec<String>,
    },
    /// It belongs to somebody else.
    #[error("{} belongs to {owner}, and only its owner opens it", path.display())]
    NotOwner {
        /// The directory or file.
        path: PathBuf,
        /// Whom to be.
        owner: String,
    },
    /// Locks and cuts mean something else there.
    #[error("{} lies on {kind}, where locks and syncs do not hold what terrane needs", dir.display())]
    NetworkFileSystem {
        /// The directory.
        dir: PathBuf,
        /// The file system.
        kind: &'static str,
    },
    /// Written by a newer version.
    #[error("{} has {what} {found}; this version knows {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// `format` or `feature`.
        what: &'static str,
        /// What it has.
        found: String,
        /// What is known.
        known: String,
    },
    /// A file holds what no version writes.
    #[error("{} is damaged: {what} should be {expected}, and is {found}", path.display())]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// Which field.
        what: String,
        /// What it should hold.
        expected: String,
        /// What it holds, shortened.
        found: String,
    },
    /// The directory's region is not the one the configuration says.
    #[error("{} holds region {found}, not {expected} as the configuration says", dir.display())]
    AnotherRegion {
        /// The directory.
        dir: PathBuf,
        /// The id expected.
        expected: String,
        /// The id found.
        found: String,
    },
    /// An older state was put back.
    #[error(
        "{what} of region {region} is older than this machine has seen it: generation {found}, was {expected}"
    )]
    Older {
        /// What is older.
        what: String,
        /// The region's name.
        region: String,
        /// Its generation.
        found: u64,
        /// The generation seen before.
        expected: u64,
    },
    /// Nothing here says where the root key is.
    #[error("the root key of region {region} is not known here: {why}")]
    RootKeyUnknown {
        /// The region's name.
        region: String,
        /// What was looked for.
        why: String,
    },
    /// A root key file that is none, or is not kept as one.
    #[error("the root key file {} is refused: {why}", path.display())]
    RootKeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The root key is another region's.
    #[error("{from} does not hold the root key of region {region}: it is another region's, or was changed")]
    WrongRootKey {
        /// The region's name.
        region: String,
        /// Where the key came from.
        from: String,
    },
    /// A passphrase that does not open the region.
    #[error("the passphrase{from} does not open region {region}")]
    WrongPassphrase {
        /// The region's name.
        region: String,
        /// ` of FILE`, or nothing.
        from: String,
    },
    /// A passphrase that can't be used.
    #[error("the passphrase is refused: {why}")]
    Passphrase {
        /// Why.
        why: String,
    },
    /// The name, directory or file is taken.
    #[error("{what} exists already")]
    Exists {
        /// What is there.
        what: String,
        /// What to do.
        hint: Option<String>,
    },
    /// Other processes have it open.
    #[error("region {region} is in use by {}", holders(pids))]
    InUse {
        /// The region's name.
        region: String,
        /// Those that have it open, as far as they can be seen.
        pids: Vec<u32>,
    },
    /// Against a rule; the sentence says which.
    #[error("{0}")]
    Refused(String),
    /// The clock that was asked for can't be read.
    #[error("TERRANE_CLOCK: {0}")]
    Clock(String),
    /// Not a name.
    #[error(transparent)]
    Name(#[from] IdError),
    /// A file or directory could not be used.
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        /// What was done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// No configuration directory can be found.
    #[error(
        "no directory for the configuration: neither TERRANE_CONFIG_DIR, XDG_CONFIG_HOME nor HOME is set"
    )]
    NoConfigDir,
    /// The catalog's own error.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The KMS's own error, while a region is made.
    #[error(transparent)]
    Kms(Box<KmsError>),
    /// A key or passphrase could not be worked with.
    #[error("region {region}: {source}")]
    Crypto {
        /// The region's name.
        region: String,
        /// Why.
        source: CryptoError,
    },
}

impl From<KmsError> for RegionError {
    fn from(error: KmsError) -> Self {
        match error {
            KmsError::Region(error) => *error,
            KmsError::Catalog(error) => Self::Catalog(error),
            other => Self::Kms(Box::new(other)),
        }
    }
}

impl RegionError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotARegion { dir, .. } => format!(
                "see that its file system is mounted; `terrane region init {} --name NAME` makes a new one",
                dir.display()
            ),
            Self::UnknownName { .. } => {
                "`terrane region list` shows the known ones; `terrane region add DIR` adds one; a directory is named with a `/`"
                    .into()
            }
            Self::NotChosen { known } if known.is_empty() => {
                "`terrane region init DIR --name NAME` makes one, `terrane region add DIR` adds one, or give --region DIR"
                    .into()
            }
            Self::NotChosen { .. } => "give --region NAME, or set TERRANE_REGION".into(),
            Self::AmbiguousName { .. } => "give --region DIR, with a `/` in it".into(),
            Self::NotOwner { owner, .. } => format!("run the command as {owner}"),
            Self::NetworkFileSystem { .. } => "use a directory on a local file system".into(),
            Self::Newer { .. } => "use the newer version of terrane that wrote it".into(),
            Self::Corrupted { .. } => "restore the file from a backup".into(),
            Self::AnotherRegion { .. } => "`terrane region forget` the old one, then `terrane region add DIR`".into(),
            Self::Older { .. } => {
                "put the newer state back, or take it as it is with `terrane region check --accept-older`".into()
            }
            Self::RootKeyUnknown { .. } => {
                "`terrane region add DIR --root-key-file F` (or --passphrase-file F) tells where it is".into()
            }
            Self::RootKeyFile { hint, .. } | Self::Exists { hint, .. } => return hint.clone(),
            Self::WrongRootKey { .. } => {
                "find the file that `region init` or `region export-root-key` wrote for this region".into()
            }
            Self::WrongPassphrase { .. } => "give the passphrase the region has now".into(),
            Self::InUse { .. } => "end them (a mount with `terrane unmount`), then run the command again".into(),
            Self::Clock(_) => "give an RFC 3339 time, or @FILE holding one".into(),
            Self::NoConfigDir => "set TERRANE_CONFIG_DIR".into(),
            Self::Catalog(error) => return error.hint(),
            Self::Kms(error) => return error.hint(),
            Self::Io { source, .. } => return open_files::hint(source),
            Self::Passphrase { .. } | Self::Refused(_) | Self::Name(_) | Self::Crypto { .. } => return None,
        })
    }

    /// Whether no more files could be open, which says nothing of what was to be opened.
    pub fn is_of_open_files(&self) -> bool {
        match self {
            Self::Io { source, .. } => open_files::is_exhausted(source),
            Self::Catalog(error) => error.is_of_open_files(),
            Self::Kms(error) => error.is_of_open_files(),
            _ => false,
        }
    }

    /// An I/O error at a path.
    pub(super) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}

fn known_names(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!("; known are {}", known.join(", ")) }
}

fn holders(pids: &[u32]) -> String {
    match pids {
        [] => "another process".into(),
        [pid] => format!("process {pid}"),
        _ => format!("processes {}", pids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")),
    }
}
