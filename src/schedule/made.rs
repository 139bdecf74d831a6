//! What a schedule made: rows that keys bear out, and no others. Nor those of times that are to come, where the clock was ahead when they
//! were made and was put back here alone: they would be the newest until then, what is taken now would go for them, and no copy be asked for.

use jiff::Timestamp;

use super::error::Result;
use super::vouch::Voucher;
use crate::catalog::{Schedule, ScheduledCopy, ScheduledSnapshot, Snapshot};
use crate::ids::{ScheduleId, SnapshotId, VolumeId};
use crate::region::Region;

/// A snapshot that a schedule took, or a copy that it asked for.
#[derive(Clone, Debug)]
pub struct Made {
    /// It.
    pub id: SnapshotId,
    /// The volume it is of.
    pub volume: VolumeId,
    /// The time it is for.
    pub due: Timestamp,
    /// Its row; none: it is gone, or was not begun.
    pub row: Option<Snapshot>,
}

/// The snapshots of a schedule that are there, oldest first.
pub fn made_by(region: &Region, schedule: &Schedule) -> Result<Vec<Made>> {
    let made = snapshots(region, &Voucher::of(region)?, schedule.id)?;
    Ok(made.into_iter().map(|(_, made)| made).filter(|made| made.row.is_some()).collect())
}

/// The snapshots of a schedule, those of the oldest due time first.
pub(super) fn snapshots(
    region: &Region,
    voucher: &Voucher,
    schedule: ScheduleId,
) -> Result<Vec<(ScheduledSnapshot, Made)>> {
    let now = region.now();
    region.catalog()?.read(|tx| {
        let mut found = Vec::new();
        for record in tx.scheduled_snapshots(schedule)?.into_iter().filter(|record| record.due <= now) {
            if record.mac.is_none() || record.mac != voucher.snapshot(&record) {
                tracing::warn!(snapshot = %record.snapshot, %schedule, "its row is not believed to be the schedule's");
                continue;
            }
            let ScheduledSnapshot { snapshot: id, volume, due, .. } = record;
            let row = tx.find_snapshot(id)?;
            found.push((record, Made { id, volume, due, row }));
        }
        Ok(found)
    })
}

/// The copies in a region that a schedule asked for, those of the oldest due time first; up to now, by the clock of the schedule's own.
pub(super) fn copies(
    target: &Region,
    voucher: &Voucher,
    schedule: ScheduleId,
    now: Timestamp,
) -> Result<Vec<(ScheduledCopy, Made)>> {
    target.catalog()?.read(|tx| {
        let mut found = Vec::new();
        for record in tx.scheduled_copies(schedule)?.into_iter().filter(|record| record.due <= now) {
            if record.mac.is_none() || record.mac != voucher.copy(&record) {
                tracing::warn!(snapshot = %record.snapshot, %schedule, "its row is not believed to be the schedule's");
                continue;
            }
            let ScheduledCopy { snapshot: id, volume, due, .. } = record;
            let row = tx.find_snapshot(id)?;
            found.push((record, Made { id, volume, due, row }));
        }
        Ok(found)
    })
}
