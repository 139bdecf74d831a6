//! What can go wrong in a layer.

use std::io;

use crate::ids::LayerId;

/// An error of the layer engine.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The file system below answered with an error.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
    /// Bytes on disk are not what they must be.
    #[error("{what} is damaged: expected {expected}, found {found}")]
    Corrupted {
        /// Which bytes.
        what: String,
        /// What they should be.
        expected: String,
        /// What they are.
        found: String,
    },
    /// A map page is not what its parent vouches for: nothing is known of its sectors.
    #[error(
        "map page {page} of layer {layer}, which says where sectors {first} to {last} lie, is damaged: it is not what its parent vouches for"
    )]
    DamagedPage {
        /// The layer.
        layer: LayerId,
        /// The page's number.
        page: u64,
        /// Its first sector.
        first: u64,
        /// Its last sector.
        last: u64,
    },
    /// The file system below is full; nothing was changed.
    #[error("no space left below the region")]
    NoSpace,
    /// An earlier write or sync failed: nothing is promised until the layer is opened again.
    #[error("the layer is latched after a failed write or sync; open it again")]
    Latched,
    /// The layer was sealed; the write belongs to the next one.
    #[error("the layer is sealed")]
    Ended,
    /// An entry a partial write was merged over has changed; read and merge again.
    #[error("the sector changed meanwhile")]
    Changed,
}

/// A result of the layer engine.
pub type Result<T, E = LayerError> = std::result::Result<T, E>;

impl LayerError {
    /// Wraps an I/O error with what was being done.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// Bytes that are not what they must be.
    pub(crate) fn corrupted(
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::Corrupted { what: what.into(), expected: expected.into(), found: found.into() }
    }

    /// Whether it is damage on disk rather than a failing or full device.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::Corrupted { .. } | Self::DamagedPage { .. })
    }
}

/// The error of a write: a full file system, or an I/O error with what was being done.
pub(crate) fn no_space_or(error: io::Error, what: &'static str) -> LayerError {
    if is_no_space(&error) { LayerError::NoSpace } else { LayerError::io(what)(error) }
}

/// Whether an I/O error says that the file system below is full (rule 8).
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EFBIG | libc::EDQUOT))
}
