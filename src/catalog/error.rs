use std::fmt;
use std::path::PathBuf;

use rusqlite::ffi::ErrorCode;

use crate::sys::open_files;

/// The kinds of things a catalog names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An account.
    Account,
    /// A KMS instance.
    Instance,
    /// A customer master key.
    Key,
    /// A key's alias.
    Alias,
    /// A layer.
    Layer,
    /// A volume.
    Volume,
    /// A snapshot.
    Snapshot,
    /// A background task.
    Task,
    /// A rule of the bin.
    BinRule,
    /// A schedule.
    Schedule,
}

impl Kind {
    /// The word for it, as in `volume`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Instance => "KMS instance",
            Self::Key => "key",
            Self::Alias => "alias",
            Self::Layer => "layer",
            Self::Volume => "volume",
            Self::Snapshot => "snapshot",
            Self::Task => "task",
            Self::BinRule => "bin rule",
            Self::Schedule => "schedule",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why the catalog did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No such thing in this region.
    #[error("region {region} has no {kind} {text:?}")]
    NotFound {
        /// What was looked for.
        kind: Kind,
        /// As it was named.
        text: String,
        /// The region's name.
        region: String,
    },
    /// A text that more than one thing answers to.
    #[error("{text:?} could be any of these in region {region}: {}", matches.join(", "))]
    Ambiguous {
        /// What was looked for.
        kind: Kind,
        /// As it was named.
        text: String,
        /// The region's name.
        region: String,
        /// Ids of what it could be.
        matches: Vec<String>,
    },
    /// The name or id is taken.
    #[error("region {region} already has {} {kind} {name:?}", if *.kind == Kind::Alias || *.kind == Kind::Account { "an" } else { "a" })]
    Exists {
        /// What it is.
        kind: Kind,
        /// The name that is taken.
        name: String,
        /// The region's name.
        region: String,
    },
    /// Something else still refers to it.
    #[error("{what} is still needed in region {region}, or names something that is not there")]
    Needed {
        /// What was to be changed.
        what: String,
        /// The region's name.
        region: String,
    },
    /// A value no row may have.
    #[error("{what}")]
    Refused {
        /// The sentence.
        what: String,
    },
    /// The file holds what no version of this program writes.
    #[error("the catalog of region {region} is damaged: {what} should be {expected}, and is {found}")]
    Corrupted {
        /// The region's name.
        region: String,
        /// Which field or page.
        what: String,
        /// What it should hold.
        expected: String,
        /// What it holds, shortened.
        found: String,
    },
    /// Made by a newer version.
    #[error("the catalog of region {region} has format {found}; this version reads up to {known}")]
    NewerSchema {
        /// The region's name.
        region: String,
        /// Its version.
        found: u32,
        /// The newest known here.
        known: u32,
    },
    /// Made by an older version, and not yet migrated.
    #[error("the catalog of region {region} has format {found} and must be migrated to {known} first")]
    OlderSchema {
        /// The region's name.
        region: String,
        /// Its version.
        found: u32,
        /// The newest known here.
        known: u32,
    },
    /// The other processes did not let this one in for a whole minute.
    #[error("the catalog of region {region} was locked by other processes for {seconds} s")]
    Busy {
        /// The region's name.
        region: String,
        /// How long it was tried.
        seconds: u64,
    },
    /// The disk below is full.
    #[error("no space is left for the catalog of region {region}")]
    NoSpace {
        /// The region's name.
        region: String,
    },
    /// No more files can be open.
    #[error("the catalog of region {region}: {}", open_files::words(source))]
    OpenFiles {
        /// The region's name.
        region: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A file could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Anything else SQLite says.
    #[error("the catalog of region {region}: {source}")]
    Sql {
        /// The region's name.
        region: String,
        /// SQLite's words.
        source: rusqlite::Error,
    },
}

impl CatalogError {
    /// Whether no more files could be open, which says nothing of what was to be opened.
    pub fn is_of_open_files(&self) -> bool {
        match self {
            Self::OpenFiles { .. } => true,
            Self::Io { source, .. } => open_files::is_exhausted(source),
            _ => false,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotFound { kind, .. } => match kind {
                Kind::Account => "`terrane account list` shows the accounts there are".into(),
                Kind::Key | Kind::Alias => "`terrane key list` shows the keys there are".into(),
                Kind::Volume => "`terrane volume list` shows the volumes there are".into(),
                Kind::Snapshot => {
                    "`terrane snapshot list` shows the snapshots there are, with --deleted those in the bin".into()
                },
                Kind::Task => "`terrane task list` shows the tasks there are".into(),
                Kind::BinRule => "`terrane bin list` shows the rules there are".into(),
                Kind::Schedule => "`terrane schedule list` shows the schedules there are".into(),
                Kind::Layer | Kind::Instance => return None,
            },
            Self::Ambiguous { .. } => "give more digits, or the whole id".into(),
            Self::Exists { kind: Kind::BinRule, .. } => "it says the same: `terrane bin list` shows it".into(),
            Self::Exists { .. } => "choose another name, or use the one that exists".into(),
            Self::Needed { .. } | Self::Refused { .. } => return None,
            Self::Corrupted { .. } => {
                "`terrane region check --repair` builds a new one from keys/ and layers/, and says first what that can't bring back"
                    .into()
            }
            Self::NewerSchema { .. } => "use the newer version of terrane that wrote it".into(),
            Self::OlderSchema { .. } => "end the other processes that have it open, then run the command again".into(),
            Self::Busy { .. } => "try again; if it stays so, a stopped process holds it: see `terrane status`".into(),
            Self::NoSpace { .. } => "free some space on its file system, then run the command again".into(),
            Self::OpenFiles { source, .. } | Self::Io { source, .. } => return open_files::hint(source),
            Self::Sql { .. } => return None,
        })
    }
}

/// What SQLite said, in this room's words.
pub(super) fn from_sqlite(region: &str, source: rusqlite::Error) -> CatalogError {
    let region = region.to_owned();
    let damaged = |found: String| CatalogError::Corrupted {
        region: region.clone(),
        what: "catalog.db".into(),
        expected: "a whole SQLite database of terrane".into(),
        found,
    };
    match &source {
        rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed => {
                CatalogError::Busy { region, seconds: super::connection::BUSY_SECONDS }
            }
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::TooBig => {
                damaged(source.to_string())
            }
            ErrorCode::DiskFull => CatalogError::NoSpace { region },
            // SQLITE_IOERR_SHMSIZE: the file beside the log can't be made as large as it must be.
            ErrorCode::SystemIoFailure if failure.extended_code == 4874 => CatalogError::NoSpace { region },
            // SQLITE_CONSTRAINT_FOREIGNKEY
            ErrorCode::ConstraintViolation if failure.extended_code == 787 => {
                CatalogError::Needed { what: "this".into(), region }
            }
            ErrorCode::CannotOpen => match open_files::are_exhausted() {
                Some(source) => CatalogError::OpenFiles { region, source },
                None => CatalogError::Sql { region, source },
            },
            _ => CatalogError::Sql { region, source },
        },
        rusqlite::Error::SqlInputError { .. }
        | rusqlite::Error::InvalidColumnName(_)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::Utf8Error(..) => damaged(source.to_string()),
        _ => CatalogError::Sql { region, source },
    }
}

/// Whether a unique index or primary key refused a row.
pub(super) fn is_duplicate(error: &rusqlite::Error) -> bool {
    // SQLITE_CONSTRAINT_UNIQUE, SQLITE_CONSTRAINT_PRIMARYKEY
    matches!(error, rusqlite::Error::SqliteFailure(failure, _) if matches!(failure.extended_code, 2067 | 1555))
}
