//! What can go wrong with a schedule.

use crate::catalog::CatalogError;
use crate::copy::CopyError;
use crate::kms::KmsError;
use crate::region::RegionError;
use crate::volume::HostError;

/// Why a schedule was not made, or not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// Of a region, its catalog, keys or layers.
    #[error(transparent)]
    Host(HostError),
    /// Of a copy that it asks for.
    #[error(transparent)]
    Copy(#[from] CopyError),
}

/// A result of the room.
pub type Result<T, E = ScheduleError> = std::result::Result<T, E>;

macro_rules! of_host {
    ($($error:ty),+) => {
        $(impl From<$error> for ScheduleError {
            fn from(error: $error) -> Self {
                Self::Host(error.into())
            }
        })+
    };
}
of_host!(HostError, RegionError, CatalogError, KmsError);

impl ScheduleError {
    /// A refusal by a rule.
    pub(super) fn refused(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Host(HostError::refused(message, hint))
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Host(error) => error.hint(),
            Self::Copy(error) => error.hint(),
        }
    }
}
