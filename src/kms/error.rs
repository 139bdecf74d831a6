use std::path::PathBuf;

use crate::catalog::{CatalogError, KeyState};
use crate::ids::KeyId;
use crate::region::RegionError;
use crate::sys::open_files;

/// Why the KMS did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum KmsError {
    /// The key is disabled.
    #[error("key {key} of region {region} is disabled")]
    Disabled {
        /// The key.
        key: KeyId,
        /// The region's name.
        region: String,
    },
    /// The key waits for its deletion.
    #[error("key {key} of region {region} is pending deletion")]
    PendingDeletion {
        /// The key.
        key: KeyId,
        /// The region's name.
        region: String,
    },
    /// No such key, or no such version of it.
    #[error("region {region} has no key {key}{}", version.map(|v| format!(" of version {v}")).unwrap_or_default())]
    NotFound {
        /// The key.
        key: KeyId,
        /// The version that is missing.
        version: Option<u32>,
        /// The region's name.
        region: String,
    },
    /// A wrapped key was changed, or is another's.
    #[error("{what} of region {region} is damaged or does not belong to it")]
    Damaged {
        /// Which wrapped key.
        what: String,
        /// The region's name.
        region: String,
    },
    /// A key file could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The root key is missing or wrong, or the region fails otherwise.
    #[error(transparent)]
    Region(Box<RegionError>),
    /// The catalog's own error.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl From<RegionError> for KmsError {
    fn from(error: RegionError) -> Self {
        match error {
            RegionError::Catalog(error) => Self::Catalog(error),
            RegionError::Kms(error) => *error,
            other => Self::Region(Box::new(other)),
        }
    }
}

impl KmsError {
    /// Whether the key is whole, and may not be used now.
    pub fn is_of_state(&self) -> bool {
        matches!(self, Self::Disabled { .. } | Self::PendingDeletion { .. })
    }

    /// Whether no more files could be open, which says nothing of what was to be opened.
    pub fn is_of_open_files(&self) -> bool {
        match self {
            Self::Io { source, .. } => open_files::is_exhausted(source),
            Self::Region(error) => error.is_of_open_files(),
            Self::Catalog(error) => error.is_of_open_files(),
            _ => false,
        }
    }

    /// What a key in this state answers to a use; `None` for an enabled one.
    pub(super) fn of_state(state: KeyState, key: KeyId, region: &str) -> Option<Self> {
        let region = region.to_owned();
        match state {
            KeyState::Enabled => None,
            KeyState::Disabled => Some(Self::Disabled { key, region }),
            KeyState::PendingDeletion => Some(Self::PendingDeletion { key, region }),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Disabled { key, .. } => format!("`terrane key enable {key}` allows its use again"),
            Self::PendingDeletion { key, .. } => format!("`terrane key cancel-deletion {key}` keeps it"),
            Self::NotFound { .. } => "`terrane key list` shows the keys there are".into(),
            Self::Damaged { .. } => "restore the region's catalog.db and keys/ from a backup".into(),
            Self::Io { source, .. } => return open_files::hint(source),
            Self::Region(error) => return error.hint(),
            Self::Catalog(error) => return error.hint(),
        })
    }
}
