//! What can go wrong with a copy.

use std::io;

use crate::catalog::CatalogError;
use crate::ids::{LayerId, TaskId};
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
    /// A sector of what the copy is put on failed its tag, and the copy needs it.
    #[error("sector {} of snapshot {snapshot} in region {region}, the copy's base, is damaged (in layer {layer}): its bytes do not match its tag", sector.0)]
    DamagedBase {
        /// Which.
        sector: SectorNo,
        /// The layer that holds it.
        layer: LayerId,
        /// The base.
        snapshot: String,
        /// The target region's name.
        region: String,
    },
    /// What was written does not read as what was read, or the source's own proof says otherwise.
    #[error(
        "the copy differs from snapshot {snapshot} of region {source_region}: the 2 MiB at byte {offset} read otherwise in region {target}"
    )]
    Unproven {
        /// Where the first chunk lies that does.
        offset: u64,
        /// The snapshot that was read.
        snapshot: String,
        /// The source region's name.
        source_region: String,
        /// The target region's name.
        target: String,
    },
    /// A bookmark of the source did not name all that changed since the base.
    #[error(
        "the copy would differ from snapshot {snapshot} of region {source_region} at byte {offset}: a bookmark of layer {layer} there \
         does not name all that changed"
    )]
    Misled {
        /// Where the first sector lies that was found to differ.
        offset: u64,
        /// The snapshot that was read.
        snapshot: String,
        /// The source region's name.
        source_region: String,
        /// The layer in whose folder the bookmark lay.
        layer: LayerId,
        /// It, and all others there, could be removed.
        are_gone: bool,
    },
    /// What the base holds was never in the source.
    #[error(
        "the copy would differ from snapshot {snapshot} of region {source_region} at byte {offset}: snapshot {base} in region {target}, \
         its base, holds there what that disk never did"
    )]
    WrongBase {
        /// Where the first sector lies that was found to differ.
        offset: u64,
        /// The base.
        base: String,
        /// The target region's name.
        target: String,
        /// The snapshot that was read.
        snapshot: String,
        /// The source region's name.
        source_region: String,
    },
    /// The file system below the target is full.
    #[error("no space is left for copies below region {region}{details}")]
    NoSpace {
        /// The target region's name.
        region: String,
        /// What it needs and has, if that was found out.
        details: String,
    },
    /// A region is not where it was, as on a disk that is not mounted.
    #[error("region {region} is not there: {why}")]
    Away {
        /// The region's name.
        region: String,
        /// What became of it.
        why: String,
    },
    /// Another copy is being made that is to be its base.
    #[error("it waits for copy {copy}, which will be its base")]
    Behind {
        /// That one's name.
        copy: String,
        /// And task.
        task: TaskId,
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
    /// A fault of the program itself, which would come again.
    #[error("the copy panicked: a fault of terrane, and not of a disk")]
    Panicked,
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
            Self::Host(HostError::Volume(VolumeError::Layer(LayerError::NoSpace))) => Self::no_space(region),
            Self::Host(HostError::Io { source, .. }) if crate::layer::is_no_space(&source) => {
                Self::no_space(region)
            }
            Self::Host(
                HostError::Catalog(CatalogError::NoSpace { .. })
                | HostError::Region(RegionError::Catalog(CatalogError::NoSpace { .. })),
            ) => Self::no_space(region),
            other => other,
        }
    }

    fn no_space(region: &str) -> Self {
        Self::NoSpace { region: region.to_owned(), details: String::new() }
    }

    /// Whether no more files could be open, which says nothing of what was to be opened.
    pub(super) fn is_of_open_files(&self) -> bool {
        matches!(self, Self::Host(error) if error.is_of_open_files())
    }

    /// Whether what the target holds is not what was begun or asked: it is left as it is, for a person to look at.
    pub(super) fn is_of_strangers(&self) -> bool {
        matches!(self, Self::Host(HostError::Unvouched { .. } | HostError::Misfit { .. }))
    }

    /// Whether what was done is kept and the copy waits in its region's queue: for the reason to pass, or for somebody to go on.
    pub fn is_kept(&self) -> bool {
        match self {
            Self::NoSpace { .. }
            | Self::Away { .. }
            | Self::Behind { .. }
            | Self::Overtaken { .. }
            | Self::Interrupted => true,
            Self::Refused { .. }
            | Self::Damaged { .. }
            | Self::DamagedBase { .. }
            | Self::Unproven { .. }
            | Self::Misled { .. }
            | Self::WrongBase { .. }
            | Self::Cancelled
            | Self::Panicked => false,
            Self::Host(error) => may_pass(error),
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
            Self::DamagedBase { snapshot, region, .. } => format!(
                "terrane snapshot delete {snapshot} --region {region}, and copy again: without that base all is carried anew"
            ),
            Self::Unproven { snapshot, .. } => {
                format!(
                    "nothing of it is kept; `terrane region check` of both regions and `terrane snapshot verify {snapshot} --deep` say \
                     which side is at fault"
                )
            }
            Self::Misled { are_gone: true, .. } => {
                "nothing of it is kept, and that layer's bookmarks were taken away: copy again, and more crosses".into()
            }
            Self::Misled { layer, source_region, .. } => format!(
                "nothing of it is kept; take away layers/{layer}/bookmarks in region {source_region}, which could not be done now, and copy \
                 again: more crosses"
            ),
            Self::WrongBase { base, target, .. } => format!(
                "nothing of it is kept; terrane snapshot delete {base} --region {target}, which can't be trusted, and copy again: without \
                 that base all is carried anew"
            ),
            Self::NoSpace { .. } => "make room: the copy goes on where it was".into(),
            Self::Away { .. } => "bring it back, as by mounting its disk: the copy goes on where it was".into(),
            Self::Behind { .. } => "it is made after that one".into(),
            Self::Overtaken { .. } => "copy again: it is planned anew".into(),
            Self::Interrupted => {
                "it is queued: `terrane daemon` or the same command with --wait goes on where it was; `terrane task cancel` takes \
                 it away"
                    .into()
            }
            Self::Cancelled => return None,
            Self::Panicked => "nothing of it is kept; please report what the log says of it".into(),
        })
    }
}

/// Whether a reason may pass, by itself or by somebody's hand: all but what was lost, given up, forbidden, or is not what it was.
fn may_pass(error: &HostError) -> bool {
    match error {
        HostError::Region(error) => region_may_pass(error),
        HostError::Catalog(error) => catalog_may_pass(error),
        HostError::Kms(error) => key_may_pass(error),
        HostError::Volume(error) => !error.is_corruption(),
        // A file of a layer that is not what it should be, or not there.
        HostError::Io { source, .. } => {
            !matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotFound)
        }
        HostError::InUse { .. }
        | HostError::OpenFiles { .. }
        | HostError::Control(_)
        | HostError::Answered { .. } => true,
        HostError::Crypto(_)
        | HostError::Unvouched { .. }
        | HostError::Misfit { .. }
        | HostError::Refused { .. } => false,
    }
}

fn region_may_pass(error: &RegionError) -> bool {
    match error {
        RegionError::Corrupted { .. } | RegionError::Crypto { .. } => false,
        RegionError::Catalog(error) => catalog_may_pass(error),
        RegionError::Kms(error) => key_may_pass(error),
        _ => true,
    }
}

fn catalog_may_pass(error: &CatalogError) -> bool {
    !matches!(
        error,
        CatalogError::NotFound { .. } | CatalogError::Corrupted { .. } | CatalogError::Refused { .. }
    )
}

/// One that is disabled may be enabled again; one that is to be deleted was given up.
fn key_may_pass(error: &KmsError) -> bool {
    match error {
        KmsError::PendingDeletion { .. } | KmsError::NotFound { .. } | KmsError::Damaged { .. } => false,
        KmsError::Region(error) => region_may_pass(error),
        KmsError::Catalog(error) => catalog_may_pass(error),
        KmsError::Disabled { .. } | KmsError::Io { .. } => true,
    }
}
