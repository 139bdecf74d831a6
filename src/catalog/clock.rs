//! A region's clock, put back to what it shows, and what was dated later than that while it was wrong.
//!
//! What keys vouch for the rooms above date anew; here is the rest.

use jiff::Timestamp;
use rusqlite::params;

use super::{CatalogError, Kind, ReadTx, WriteTx};
use crate::ids::{ScheduleId, SnapshotId};

/// Rows whose dates say nothing but when something was; and those that say for what time to come something was made.
const DATES: [&str; 6] = [
    "UPDATE layers SET created_at = ?1 WHERE created_at > ?1",
    "UPDATE tasks SET updated_at = ?1 WHERE updated_at > ?1",
    "UPDATE schedules SET last_due = ?1 WHERE last_due > ?1",
    // Nobody's: else they would be the newest once that time comes, what is taken now would go for them, and that run be left out.
    "DELETE FROM schedule_snapshots WHERE due > ?1",
    "DELETE FROM schedule_copies WHERE due > ?1",
    "UPDATE schedules SET last_run_at = min(last_run_at, ?1), error_at = min(error_at, ?1) \
     WHERE last_run_at > ?1 OR error_at > ?1",
];

impl ReadTx<'_> {
    /// Whether the region has seen a moment later than this one.
    pub fn is_clock_after(&self, moment: Timestamp) -> Result<bool, CatalogError> {
        let sql = "SELECT 1 FROM state WHERE k = 'last_time' AND v > ?1";
        Ok(self.first(sql, [moment.as_microsecond()], |_| Ok(()))?.is_some())
    }

    /// Whether a task, a layer or a due time that is over is dated later than a moment.
    pub fn is_work_after(&self, moment: Timestamp) -> Result<bool, CatalogError> {
        let sql = "SELECT 1 FROM layers WHERE created_at > ?1
            UNION ALL SELECT 1 FROM tasks WHERE max(created_at, updated_at) > ?1
            UNION ALL SELECT 1 FROM schedule_snapshots WHERE due > ?1 UNION ALL SELECT 1 FROM schedule_copies WHERE due > ?1
            UNION ALL SELECT 1 FROM schedules WHERE last_due > ?1 OR last_run_at > ?1 OR error_at > ?1 LIMIT 1";
        Ok(self.first(sql, [moment.as_microsecond()], |_| Ok(()))?.is_some())
    }
}

impl WriteTx<'_> {
    /// Puts the region's clock back to a moment, and all that is dated later and that nothing vouches for. The order of the queue stays.
    pub fn put_clock_back_to(&self, moment: Timestamp) -> Result<(), CatalogError> {
        let micros = moment.as_microsecond();
        for sql in DATES {
            self.execute(sql, [micros])?;
        }
        let later = "SELECT id FROM tasks WHERE created_at > ?1 ORDER BY created_at, id";
        let later = self.list(later, [micros], |f| f.text("id").map(str::to_owned))?;
        for (id, time) in later.iter().zip(before(moment, later.len())) {
            let sql = "UPDATE tasks SET created_at = ?2 WHERE id = ?1";
            self.execute(sql, params![id, time.as_microsecond()])?;
        }
        self.put_clock_back(micros)
    }

    /// Says when a snapshot was taken. What vouches for its retention says so too.
    pub fn set_snapshot_time(&self, id: SnapshotId, time: Timestamp) -> Result<(), CatalogError> {
        let sql = "UPDATE snapshots SET created_at = ?2 WHERE id = ?1";
        self.update(Kind::Snapshot, id, sql, params![id.to_string(), time.as_microsecond()])
    }

    /// Says since when a schedule is carried out, with what vouches for that.
    pub fn set_schedule_since(
        &self,
        id: ScheduleId,
        since: Timestamp,
        mac: Option<[u8; 16]>,
    ) -> Result<(), CatalogError> {
        self.update(
            Kind::Schedule,
            id,
            "UPDATE schedules SET created_at = ?2, mac = ?3 WHERE id = ?1",
            params![id.to_string(), since.as_microsecond(), mac.map(|mac| mac.to_vec())],
        )
    }
}

/// So many moments up to one, in order, a microsecond apart.
pub fn before(moment: Timestamp, count: usize) -> impl Iterator<Item = Timestamp> {
    let last = moment.as_microsecond();
    (0..count as i64)
        .rev()
        .map(move |n| Timestamp::from_microsecond(last.saturating_sub(n)).unwrap_or(moment))
}
