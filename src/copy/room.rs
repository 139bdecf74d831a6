//! Space on the file system below: copies leave the last of it to volumes, whose writes nobody can put off.

use super::error::{CopyError, Result};
use super::hold::is_held;
use crate::catalog::Task;
use crate::ids::TaskId;
use crate::region::Region;
use crate::volume::HostError;

/// A fiftieth of the file system is left to volumes,
const LEFT_PART: u64 = 50;
/// but no more than this.
const LEFT_MAX: u64 = 1 << 30;

/// What is free below a region, in bytes.
pub(super) struct Room {
    free: u64,
    total: u64,
}

impl Room {
    pub fn of(region: &Region) -> Result<Self> {
        let dir = region.dir();
        let io = HostError::io("asking for the space of", dir);
        let space = rustix::fs::statvfs(dir).map_err(|e| io(e.into()))?;
        let [free, total] = [space.f_bavail, space.f_blocks].map(|n| n.saturating_mul(space.f_frsize));
        Ok(Self { free, total })
    }

    /// Without what other copies that have begun will still take.
    pub fn beside_others(region: &Region, task: TaskId) -> Result<Self> {
        let begun = region.catalog()?.read(|tx| -> Result<u64> {
            let mut bytes = 0u64;
            for copy in tx.processing_snapshots()?.iter().filter(|copy| copy.layer.is_some()) {
                let other = tx.task_of(&copy.id.to_string())?.filter(|other| other.id != task);
                // One that waits for something may wait for long.
                let goes_on = |other: &Task| {
                    other.is_open() && (other.error.is_none() || is_held(region, other.id).unwrap_or(false))
                };
                let other = other.filter(goes_on);
                let left = other.map_or(0, |other| other.bytes_total.saturating_sub(other.bytes_done));
                bytes = bytes.saturating_add(left);
            }
            Ok(bytes)
        })?;
        let Self { free, total } = Self::of(region)?;
        Ok(Self { free: free.saturating_sub(begun), total })
    }

    /// What copies may take.
    fn for_copies(&self) -> u64 {
        self.free.saturating_sub((self.total / LEFT_PART).min(LEFT_MAX))
    }

    /// Refuses a copy of so many bytes more.
    pub fn refuse_more(&self, bytes: u64, region: &Region) -> Result<()> {
        let there = self.for_copies();
        // Some file systems don't say.
        if self.total == 0 || there > bytes || bytes == 0 && there > 0 {
            return Ok(());
        }
        let details = match bytes {
            0 => String::new(),
            _ => format!(": it needs {} MiB, and {} MiB are free for it", bytes >> 20, there >> 20),
        };
        Err(CopyError::NoSpace { region: region.name().to_owned(), details })
    }
}
