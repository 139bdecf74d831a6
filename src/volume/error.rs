//! What can go wrong with a disk, and the errno of each.

use crate::ids::LayerId;
use crate::layer::LayerError;
use crate::units::SectorNo;

/// An error of a disk.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A layer could not do it.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A sector failed its tag.
    #[error("sector {} is damaged (in layer {layer}): its bytes do not match its tag", sector.0)]
    DamagedSector {
        /// Which.
        sector: SectorNo,
        /// Where it lies.
        layer: LayerId,
    },
    /// The disk is a snapshot.
    #[error("the disk is read-only")]
    ReadOnly,
}

/// A result of the room.
pub type Result<T, E = VolumeError> = std::result::Result<T, E>;

impl VolumeError {
    /// What the kernel is told.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Layer(LayerError::NoSpace) => libc::ENOSPC,
            // A latched or damaged layer: nothing better is known to block layers than EIO.
            Self::Layer(
                LayerError::Io { .. }
                | LayerError::Corrupted { .. }
                | LayerError::DamagedPage { .. }
                | LayerError::Latched,
            ) => libc::EIO,
            // Handled inside the room; EIO if one should ever come out.
            Self::Layer(LayerError::Ended | LayerError::Changed) | Self::DamagedSector { .. } => libc::EIO,
            Self::ReadOnly => libc::EROFS,
        }
    }

    /// The damaged sector, or the first of a damaged map page's, and the layer: what need not be told twice.
    pub fn damaged_place(&self) -> Option<(LayerId, SectorNo)> {
        match self {
            Self::DamagedSector { sector, layer } => Some((*layer, *sector)),
            Self::Layer(LayerError::DamagedPage { layer, first, .. }) => Some((*layer, SectorNo(*first))),
            _ => None,
        }
    }

    /// Whether it is damage on disk.
    pub fn is_corruption(&self) -> bool {
        match self {
            Self::Layer(e) => e.is_corruption(),
            Self::DamagedSector { .. } => true,
            Self::ReadOnly => false,
        }
    }
}
