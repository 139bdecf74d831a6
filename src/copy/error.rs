//! What can go wrong with a copy.

use crate::catalog::CatalogError;
use crate::ids::LayerId;
use crate::kms::KmsError;
use crate::layer::LayerError;
use crate::region::RegionError;
use crate::units::SectorNo;
use crate::volume::{HostError, VolumeError};

/// Why a copy was not made.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Of a region, its catalog, keys or layers.
    #[error(transparent)]
    Host(HostError),
    /// Against a rule.
    #[error("{message}")]
    Refused {
        /// What, and which thing.
        message: String,
        /// What to do.
        hint: String,
    },
    /// A sector of the source failed its tag.
    #[error("sector {} of snapshot {snapshot} in region {region} is damaged (in layer {layer}): its bytes do not match its tag", sector.0)]
    Damaged {
        /// Which.
        sector: SectorNo,
        /// The layer that holds it.
        layer: LayerId,
        /// The snapshot that was read.
        snapshot: String,
        /// The source region's name.
        region: String,
    },
    /// The file system below the target is full.
    #[error("no space is left below region {region}")]
    NoSpace {
        /// The target region's name.
        region: String,
    },
    /// What the copy stands on was deleted as it began.
    #[error("{what} was deleted or moved while the copy began")]
    Overtaken {
        /// Which thing.
        what: String,
    },
    /// Its process was told to end; what was done is kept.
    #[error("the copy was interrupted")]
    Interrupted,
    /// Somebody called it off.
    #[error("the copy was cancelled")]
    Cancelled,
}

/// A result of the room.
pub type Result<T, E = CopyError> = std::result::Result<T, E>;

macro_rules! of_host {
    ($($error:ty),+) => {
        $(impl From<$error> for CopyError {
            fn from(error: $error) -> Self {
                Self::Host(error.into())
            }
        })+
    };
}
of_host!(HostError, RegionError, CatalogError, KmsError, VolumeError, LayerError);

impl CopyError {
    /// A refusal by a rule.
    pub(super) fn refused(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { message: message.into(), hint: hint.into() }
    }

    /// An error of the target, with a full file system told apart.
    pub(super) fn of_target(error: impl Into<Self>, region: &str) -> Self {
        match error.into() {
            Self::Host(HostError::Volume(VolumeError::Layer(LayerError::NoSpace))) => {
                Self::NoSpace { region: region.to_owned() }
            }
            Self::Host(HostError::Io { source, .. }) if crate::layer::is_no_space(&source) => {
                Self::NoSpace { region: region.to_owned() }
            }
            other => other,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Host(error) => return error.hint(),
            Self::Refused { hint, .. } => hint.clone(),
            Self::Damaged { snapshot, .. } => {
                format!(
                    "copy another snapshot than {snapshot}; its other sectors can be read through a mount"
                )
            }
            Self::NoSpace { .. } => "nothing of the copy was kept; make room and copy again".into(),
            Self::Overtaken { .. } => "copy again: it is planned anew".into(),
            Self::Interrupted => {
                "the same command goes on where it was; `terrane snapshot delete` takes away what is there"
                    .into()
            }
            Self::Cancelled => return None,
        })
    }
}
