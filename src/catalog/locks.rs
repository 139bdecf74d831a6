//! Locks of snapshots, in their rows: until when nobody may delete them, and who may lift that.

use jiff::Timestamp;
use rusqlite::params;

use super::row::{Fields, worded};
use super::{CatalogError, Kind, ReadTx, WriteTx};
use crate::ids::SnapshotId;

worded! {
    /// What a lock's owner may do with it.
    LockMode {
        /// Anything: lift, shorten, extend, make it `compliance`.
        Governance = "governance",
        /// Extend it.
        Compliance = "compliance",
    }
}

/// A lock. What it forbids the room `volume` decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotLock {
    /// When it ends.
    pub until: Timestamp,
    /// What its owner may do with it.
    pub mode: LockMode,
}

impl SnapshotLock {
    /// Whether it is one still: what has expired is none.
    pub fn holds(&self, now: Timestamp) -> bool {
        self.until > now
    }
}

pub(super) const LOCK: &str = "SELECT id, locked_until, lock_mode FROM snapshots";

/// Half a lock is damage, and not none.
pub(super) fn lock(f: &Fields) -> Result<Option<SnapshotLock>, CatalogError> {
    let mode = f.opt_parsed("lock_mode", "governance or compliance")?;
    match (f.opt_time("locked_until")?, mode) {
        (None, None) => Ok(None),
        (Some(until), Some(mode)) => Ok(Some(SnapshotLock { until, mode })),
        (None, Some(_)) => Err(f.corrupted("locked_until", "a time", "nothing")),
        (Some(_), None) => Err(f.corrupted("lock_mode", "governance or compliance", "nothing")),
    }
}

impl ReadTx<'_> {
    /// The lock of a snapshot, expired or not.
    pub fn snapshot_lock(&self, id: SnapshotId) -> Result<Option<SnapshotLock>, CatalogError> {
        Ok(self.first(&format!("{LOCK} WHERE id = ?1"), [id.to_string()], lock)?.flatten())
    }
}

impl WriteTx<'_> {
    /// Gives a snapshot a lock, or takes it away. The caller has looked whether that may be.
    pub fn set_snapshot_lock(&self, id: SnapshotId, lock: Option<SnapshotLock>) -> Result<(), CatalogError> {
        self.update(
            Kind::Snapshot,
            id,
            "UPDATE snapshots SET locked_until = ?2, lock_mode = ?3 WHERE id = ?1",
            params![
                id.to_string(),
                lock.map(|lock| lock.until.as_microsecond()),
                lock.map(|lock| lock.mode.as_str())
            ],
        )
    }
}
