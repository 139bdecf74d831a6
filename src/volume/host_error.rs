//! What can go wrong with a region's volumes and snapshots.

use std::io;
use std::path::{Path, PathBuf};

use super::error::VolumeError;
use crate::catalog::{CatalogError, Kind};
use crate::control::ControlError;
use crate::crypto::CryptoError;
use crate::ids::LayerId;
use crate::kms::KmsError;
use crate::layer::LayerError;
use crate::region::RegionError;
use crate::sys::open_files;

/// An error of an operation on volumes or snapshots.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Of the region.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// Of the catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Of a key.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// Of a data key.
    #[error(transparent)]
    Crypto(CryptoError),
    /// Of a disk.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Of the file system below.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// No more files can be open: nothing is wrong with this one.
    #[error("{what} {}: {}", path.display(), open_files::words(source))]
    OpenFiles {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// What the catalog says of it no key bears out.
    #[error("{what}: {why}")]
    Unvouched {
        /// Which thing.
        what: String,
        /// Why it is not believed.
        why: String,
    },
    /// A layer stands on another, or on another moment of it, than it was put on.
    #[error(
        "layer {upper} does not fit the one below it, layer {lower}: its files or rows, or those of layer {upper}, are of another \
         moment, as after a backup that was put back in part"
    )]
    Misfit {
        /// The layer.
        upper: LayerId,
        /// What is below it.
        lower: LayerId,
    },
    /// Against a rule.
    #[error("{message}")]
    Refused {
        /// What, and which thing.
        message: String,
        /// What to do.
        hint: String,
    },
    /// Somebody uses it.
    #[error("{what} is in use by {by}")]
    InUse {
        /// Which thing.
        what: String,
        /// Who.
        by: String,
    },
    /// The process that owns the region's layers could not be asked.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The process that owns the region's layers refused.
    #[error("{message}")]
    Answered {
        /// The exit number it gave.
        exit: i32,
        /// Its sentence.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

/// A result of an operation on volumes or snapshots.
pub type Result<T, E = HostError> = std::result::Result<T, E>;

impl From<LayerError> for HostError {
    fn from(error: LayerError) -> Self {
        Self::Volume(error.into())
    }
}

impl HostError {
    /// The same, said of a layer: what is damaged is a file or a key of it.
    pub fn of_layer(self, layer: LayerId) -> Self {
        let named = |what: String| {
            if what.contains(&layer.to_string()) { what } else { format!("{what} of layer {layer}") }
        };
        match self {
            Self::Volume(VolumeError::Layer(LayerError::Corrupted { what, expected, found })) => {
                LayerError::Corrupted { what: named(what), expected, found }.into()
            }
            Self::Kms(KmsError::Damaged { what, region }) => {
                KmsError::Damaged { what: named(what), region }.into()
            }
            other => other,
        }
    }

    /// An error of the file system below, at a path.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| match open_files::is_exhausted(&source) {
            true => Self::OpenFiles { what, path, source },
            false => Self::Io { what, path, source },
        }
    }

    /// Whether no more files could be open, which says nothing of what was to be opened.
    pub fn is_of_open_files(&self) -> bool {
        match self {
            Self::OpenFiles { .. } => true,
            Self::Region(error) => error.is_of_open_files(),
            Self::Catalog(error) => error.is_of_open_files(),
            Self::Kms(error) => error.is_of_open_files(),
            _ => false,
        }
    }

    /// Whether a layer was not there, or not steady enough to be built on.
    pub fn is_missing_layer(&self) -> bool {
        matches!(
            self,
            Self::Catalog(CatalogError::NotFound { kind: Kind::Layer, .. } | CatalogError::Needed { .. })
        )
    }

    /// A refusal by a rule.
    pub fn refused(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { message: message.into(), hint: hint.into() }
    }

    /// Of a thing that a row speaks of, which keys do not bear out.
    pub fn unvouched(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unvouched { what: what.into(), why: why.into() }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Region(e) => e.hint(),
            Self::Catalog(e) => e.hint(),
            Self::Kms(e) => e.hint(),
            Self::Refused { hint, .. } => Some(hint.clone()),
            Self::Unvouched { .. } => Some(
                "`terrane region check --repair` writes such rows anew, from what layers say of themselves; where an older state \
                 was put back on purpose: `terrane region check --accept-older`"
                    .into(),
            ),
            Self::Misfit { .. } => Some(
                "put back all of the region from one moment, and run `terrane region check --accept-older`; else take what stands on \
                 it from a copy in another region"
                    .into(),
            ),
            Self::Answered { hint, .. } => hint.clone(),
            Self::Volume(e) if e.is_corruption() => {
                Some("the other sectors can be read; restore the volume from a snapshot, or from a copy in another region".into())
            }
            Self::OpenFiles { source, .. } => open_files::hint(source),
            Self::InUse { .. } => Some("let it finish or end it, then run the command again".into()),
            Self::Volume(_) | Self::Crypto(_) | Self::Control(_) | Self::Io { .. } => None,
        }
    }

    /// What the kernel is told when a disk can't be opened.
    pub fn errno(&self) -> i32 {
        match self {
            // Disabled or pending deletion: the bytes are whole, but may not be read now.
            Self::Kms(KmsError::Disabled { .. } | KmsError::PendingDeletion { .. }) => libc::EACCES,
            Self::Catalog(CatalogError::NotFound { .. }) => libc::ENOENT,
            Self::Volume(e) => e.errno(),
            Self::InUse { .. } => libc::EBUSY,
            // EMFILE would say that the caller has too many.
            other if other.is_of_open_files() => libc::ENFILE,
            Self::Refused { .. } | Self::Answered { .. } => libc::EPERM,
            Self::Io { source, .. } => match source.raw_os_error() {
                Some(e @ (libc::ENOSPC | libc::EDQUOT)) => e,
                _ => libc::EIO,
            },
            Self::Unvouched { .. }
            | Self::Misfit { .. }
            | Self::Region(_)
            | Self::Catalog(_)
            | Self::Kms(_)
            | Self::Control(_)
            | Self::OpenFiles { .. }
            | Self::Crypto(_) => libc::EIO,
        }
    }
}
