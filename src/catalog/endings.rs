//! When snapshots end by the clock: those in the bin, and those whose retention is over. What a row says of that only makes it
//! a candidate: the room `volume` asks whether the dates are vouched for.

use jiff::Timestamp;
use rusqlite::params;

use super::row::Fields;
use super::{CatalogError, ReadTx, WriteTx};
use crate::ids::SnapshotId;

/// Of each snapshot when it ends, at the earliest when its lock does; NULL: never by itself. Numbers that no command wrote may be
/// too large: they become a real, and are cut.
const ENDS: &str = "SELECT id, CAST(min(9e18, max(ends, coalesce(locked_until, ends))) AS INTEGER) AS ends FROM (
    SELECT id, locked_until, CASE state
      WHEN 'deleted' THEN (SELECT purge_at FROM bin WHERE bin.snapshot = snapshots.id)
      WHEN 'success' THEN created_at + retention_days * 86400000000 END AS ends FROM snapshots) WHERE ends IS NOT NULL";

/// What ends by the clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endings {
    /// Whose time is over, the longest first.
    pub over: Vec<SnapshotId>,
    /// When that of the next one is.
    pub next: Option<Timestamp>,
}

impl ReadTx<'_> {
    /// What ends by the clock, now and next.
    pub fn endings(&self, now: Timestamp) -> Result<Endings, CatalogError> {
        let now = now.as_microsecond();
        let over = format!("SELECT id FROM ({ENDS}) WHERE ends <= ?1 ORDER BY ends, id");
        let next = format!("SELECT min(ends) AS ends FROM ({ENDS}) WHERE ends > ?1");
        let next = self.first(&next, [now], |f| f.opt_int("ends"))?.flatten();
        Ok(Endings {
            over: self.list(&over, [now], |f: &Fields| f.parsed("id", "a snapshot's id"))?,
            // Past what a clock can say: never.
            next: next.and_then(|micros| Timestamp::from_microsecond(micros).ok()),
        })
    }

    /// What vouches for a snapshot's retention; none: nothing does.
    pub fn retention_mac(&self, id: SnapshotId) -> Result<Option<[u8; 16]>, CatalogError> {
        let found = self.first(
            "SELECT snapshot AS id, mac FROM retentions WHERE snapshot = ?1",
            [id.to_string()],
            // Of another length it vouches for nothing.
            |f| Ok(f.opt_blob("mac", 64)?.and_then(|mac| mac.try_into().ok())),
        );
        Ok(found?.flatten())
    }
}

impl WriteTx<'_> {
    /// Says what vouches for a snapshot's retention, or that nothing does.
    pub fn set_retention_mac(&self, id: SnapshotId, mac: Option<[u8; 16]>) -> Result<(), CatalogError> {
        let id = id.to_string();
        match mac {
            None => self.execute("DELETE FROM retentions WHERE snapshot = ?1", [id]),
            Some(mac) => self.execute(
                "INSERT OR REPLACE INTO retentions (snapshot, mac) VALUES (?1, ?2)",
                params![id, mac.to_vec()],
            ),
        }
        .map(drop)
    }
}
