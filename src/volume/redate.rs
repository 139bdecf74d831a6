//! What was made while the clock was ahead of what it shows now: dated anew once the clock is put back, so that it neither stays for ever
//! nor goes before its days are over. They count from then.

use jiff::Timestamp;

use super::host_error::Result;
use super::vouch;
use crate::catalog::{BinEntry, ReadTx, Snapshot, WriteTx, before};
use crate::ids::SnapshotId;
use crate::region::Region;

/// Snapshots dated later than a moment, and places in the bin.
#[derive(Debug, Default)]
pub struct Later {
    /// The oldest first.
    snapshots: Vec<Snapshot>,
    bin: Vec<(SnapshotId, BinEntry)>,
}

impl Later {
    /// What is dated later than this moment.
    pub fn than(moment: Timestamp, tx: &ReadTx) -> Result<Self> {
        let mut later = Self::default();
        for row in tx.snapshots()? {
            let entry = tx.bin_entry(row.id)?.filter(|entry| entry.deleted_at > moment);
            later.bin.extend(entry.map(|entry| (row.id, entry)));
            if row.created_at > moment {
                later.snapshots.push(row);
            }
        }
        later.snapshots.sort_by_key(|row| (row.created_at, row.id));
        Ok(later)
    }

    /// How many snapshots, and how many places in the bin.
    pub fn counts(&self) -> (usize, usize) {
        (self.snapshots.len(), self.bin.len())
    }

    /// Dates it by this moment. What nothing vouched for nothing vouches for then either.
    pub fn redate(&self, region: &Region, tx: &WriteTx, moment: Timestamp) -> Result<()> {
        for (row, time) in self.snapshots.iter().zip(before(moment, self.snapshots.len())) {
            let redated = Snapshot { created_at: time, ..row.clone() };
            let mac = tx.retention_mac(row.id)?;
            if mac.is_some() && mac == vouch::retention_mac(region, row)? {
                tx.set_retention_mac(row.id, vouch::retention_mac(region, &redated)?)?;
            }
            tx.set_snapshot_time(row.id, time)?;
        }
        for (id, entry) in &self.bin {
            let days = entry.purge_at.duration_since(entry.deleted_at);
            let purge_at = moment.checked_add(days).unwrap_or(Timestamp::MAX);
            let redated = BinEntry { deleted_at: moment, purge_at, mac: None };
            let redated = match vouch::is_bin_entry_vouched(region, *id, entry)? {
                true => vouch::sign_bin_entry(region, *id, redated)?,
                false => redated,
            };
            tx.set_bin_entry(*id, &redated)?;
        }
        Ok(())
    }
}
