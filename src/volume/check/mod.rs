//! Reading everything, to find what is damaged before somebody needs it.
//!
//! Owns the walk over layers' pages and sectors, and what is said of damage. Changes nothing on disk: it runs beside a
//! mount and other commands, and what they change under it is looked at again before it is called damage. Layers that take
//! writes are read only where this process knows that nobody writes to them.
//!
//! Called by `cli`.

mod region;
mod sectors;
mod snapshot;

use std::sync::atomic::AtomicBool;

pub use region::{RegionCheck, check_region, unvouched_rows};
pub use snapshot::{SnapshotCheck, verify_snapshot};

use super::host_error::HostError;
use crate::ids::LayerId;
use crate::kms::KmsError;

/// Findings that are listed; further ones are only counted.
const LISTED_MAX: usize = 100;

/// How a check is watched and held back.
pub struct CheckWatch<'a> {
    /// Set: the check ends early.
    pub cancel: &'a AtomicBool,
    /// Bytes a second to read at most.
    pub max_rate: Option<u64>,
    /// Told the bytes that were read, and of how many.
    pub progress: &'a mut dyn FnMut(u64, u64),
}

/// One thing that is wrong with a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The layer.
    pub layer: LayerId,
    /// The sector of the disk; none: a file of the layer or a map page.
    pub sector: Option<u64>,
    /// What is wrong.
    pub what: String,
}

/// What was found: all of it counted, the first of it listed.
#[derive(Debug, Default)]
pub struct Findings {
    /// The first of them.
    pub listed: Vec<Finding>,
    /// How many there are.
    pub count: u64,
}

impl Findings {
    fn add(&mut self, finding: Finding) {
        self.count += 1;
        if self.listed.len() < LISTED_MAX {
            self.listed.push(finding);
        }
    }

    fn append(&mut self, other: Self) {
        self.count += other.count;
        let room = LISTED_MAX - self.listed.len();
        self.listed.extend(other.listed.into_iter().take(room));
    }
}

/// Whether a layer that can't be opened is damaged, and not only closed to us or in somebody's hands.
fn is_damage(error: &HostError) -> bool {
    match error {
        HostError::Volume(_)
        | HostError::Io { .. }
        | HostError::Crypto(_)
        | HostError::Misfit { .. }
        | HostError::Unvouched { .. } => true,
        HostError::Kms(e) => matches!(e, KmsError::Damaged { .. } | KmsError::NotFound { .. }),
        _ => false,
    }
}
