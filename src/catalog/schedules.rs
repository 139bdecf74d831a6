//! Schedules, the snapshots that those of this region took, and the copies that those of any region asked for here.

use jiff::Timestamp;
use rusqlite::params;

use super::row::Fields;
use super::{CatalogError, Kind, ReadTx, WriteTx};
use crate::ids::{AccountId, Name, ScheduleId, SnapshotId, VolumeId};

/// No error of a schedule is kept longer.
const ERROR_CHARS_MAX: usize = 2000;

/// A schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Its id.
    pub id: ScheduleId,
    /// The account that owns it, and what it makes.
    pub account: AccountId,
    /// Its name, unique in the region.
    pub name: Name,
    /// What it was asked (JSON).
    pub detail: String,
    /// Vouches for all of the above, and for when it was made.
    pub mac: Option<[u8; 16]>,
    /// When it was made: nothing is due up to then.
    pub created_at: Timestamp,
    /// The last due time that is over.
    pub last_due: Option<Timestamp>,
    /// When that was.
    pub last_run_at: Option<Timestamp>,
    /// What stands in its way.
    pub error: Option<String>,
    /// Since when.
    pub error_at: Option<Timestamp>,
}

/// A snapshot that a schedule took, or is about to take: written down before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledSnapshot {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The schedule.
    pub schedule: ScheduleId,
    /// The volume.
    pub volume: VolumeId,
    /// For which time.
    pub due: Timestamp,
    /// The name it is to have.
    pub name: Name,
    /// Vouches for all of the above.
    pub mac: Option<[u8; 16]>,
    /// It was there.
    pub is_taken: bool,
}

/// A copy that a schedule asked for, in the catalog of the region it is made in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledCopy {
    /// The copy.
    pub snapshot: SnapshotId,
    /// The schedule, of its own region's catalog.
    pub schedule: ScheduleId,
    /// What it is a copy of.
    pub source: SnapshotId,
    /// The volume that was taken of.
    pub volume: VolumeId,
    /// For which time.
    pub due: Timestamp,
    /// Vouches for all of it.
    pub mac: Option<[u8; 16]>,
}

const SCHEDULE: &str = "SELECT id, account, name, detail, mac, created_at, last_due, last_run_at, error, error_at FROM schedules";

fn schedule(f: &Fields) -> Result<Schedule, CatalogError> {
    Ok(Schedule {
        id: f.parsed("id", "a schedule's id")?,
        account: f.parsed("account", "an account's id")?,
        name: f.parsed("name", "a name")?,
        detail: f.text("detail")?.to_owned(),
        mac: mac(f)?,
        created_at: f.time("created_at")?,
        last_due: f.opt_time("last_due")?,
        last_run_at: f.opt_time("last_run_at")?,
        error: f.opt_text("error")?.map(str::to_owned),
        error_at: f.opt_time("error_at")?,
    })
}

/// Of another length it vouches for nothing.
fn mac(f: &Fields) -> Result<Option<[u8; 16]>, CatalogError> {
    Ok(f.opt_blob("mac", 64)?.and_then(|mac| mac.try_into().ok()))
}

fn scheduled_snapshot(f: &Fields) -> Result<ScheduledSnapshot, CatalogError> {
    Ok(ScheduledSnapshot {
        snapshot: f.parsed("id", "a snapshot's id")?,
        schedule: f.parsed("schedule", "a schedule's id")?,
        volume: f.parsed("volume", "a volume's id")?,
        due: f.time("due")?,
        name: f.parsed("name", "a name")?,
        mac: mac(f)?,
        is_taken: f.flag("is_taken")?,
    })
}

fn scheduled_copy(f: &Fields) -> Result<ScheduledCopy, CatalogError> {
    Ok(ScheduledCopy {
        snapshot: f.parsed("id", "a snapshot's id")?,
        schedule: f.parsed("schedule", "a schedule's id")?,
        source: f.parsed("source", "a snapshot's id")?,
        volume: f.parsed("volume", "a volume's id")?,
        due: f.time("due")?,
        mac: mac(f)?,
    })
}

/// A row that does not read is left out: nothing of it is believed, and the others are none the worse for it.
fn readable<T>(rows: Vec<Result<T, CatalogError>>) -> Vec<T> {
    let tell = |error: &CatalogError| tracing::debug!(%error, "a row of a schedule is left out");
    rows.into_iter().filter_map(|row| row.inspect_err(tell).ok()).collect()
}

impl ReadTx<'_> {
    /// All schedules, by name.
    pub fn schedules(&self) -> Result<Vec<Schedule>, CatalogError> {
        Ok(readable(self.list(&format!("{SCHEDULE} ORDER BY name, id"), [], |f| Ok(schedule(f)))?))
    }

    /// Of schedules whose rows do not read, in sentences.
    pub fn schedule_problems(&self) -> Result<Vec<String>, CatalogError> {
        let rows = self.list(&format!("{SCHEDULE} ORDER BY name, id"), [], |f| Ok(schedule(f)))?;
        let words = |error| {
            format!(
                "a schedule can't be read, and is not carried out: {error}; \
                 `terrane schedule delete` takes it away by its name or id"
            )
        };
        Ok(rows.into_iter().filter_map(Result::err).map(words).collect())
    }

    /// The schedule of this id.
    pub fn find_schedule(&self, id: ScheduleId) -> Result<Option<Schedule>, CatalogError> {
        self.first(&format!("{SCHEDULE} WHERE id = ?1"), [id.to_string()], schedule)
    }

    /// The id of the schedule of this name, whether the rest of its row reads or not.
    pub(super) fn schedule_of_name(&self, name: &str) -> Result<Option<String>, CatalogError> {
        self.first("SELECT id FROM schedules WHERE name = ?1", [name], |f| f.text("id").map(str::to_owned))
    }

    /// The snapshots of a schedule, those of the oldest due time first.
    pub fn scheduled_snapshots(&self, of: ScheduleId) -> Result<Vec<ScheduledSnapshot>, CatalogError> {
        let rows = self.list(
            "SELECT snapshot AS id, schedule, volume, due, name, mac, is_taken FROM schedule_snapshots WHERE schedule = ?1
             ORDER BY due, volume",
            [of.to_string()],
            |f| Ok(scheduled_snapshot(f)),
        )?;
        Ok(readable(rows))
    }

    /// The copies in this region that a schedule asked for, those of the oldest due time first.
    pub fn scheduled_copies(&self, of: ScheduleId) -> Result<Vec<ScheduledCopy>, CatalogError> {
        let rows = self.list(
            "SELECT snapshot AS id, schedule, source, volume, due, mac FROM schedule_copies WHERE schedule = ?1
             ORDER BY due, volume",
            [of.to_string()],
            |f| Ok(scheduled_copy(f)),
        )?;
        Ok(readable(rows))
    }
}

impl WriteTx<'_> {
    /// Adds a schedule.
    pub fn insert_schedule(&self, row: &Schedule) -> Result<(), CatalogError> {
        self.refuse_id_as_name(&row.name)?;
        self.insert(
            Kind::Schedule,
            row.name.as_str(),
            "INSERT INTO schedules (id, account, name, detail, mac, created_at, last_due, last_run_at, error, error_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                row.id.to_string(),
                row.account.to_string(),
                row.name.as_str(),
                row.detail,
                row.mac.map(|mac| mac.to_vec()),
                row.created_at.as_microsecond(),
                row.last_due.map(Timestamp::as_microsecond),
                row.last_run_at.map(Timestamp::as_microsecond),
                row.error,
                row.error_at.map(Timestamp::as_microsecond),
            ],
        )
    }

    /// Says that a due time is over.
    pub fn end_due(&self, id: ScheduleId, due: Timestamp, now: Timestamp) -> Result<(), CatalogError> {
        self.update(
            Kind::Schedule,
            id,
            "UPDATE schedules SET last_due = ?2, last_run_at = ?3 WHERE id = ?1",
            params![id.to_string(), due.as_microsecond(), now.as_microsecond()],
        )
    }

    /// Says what stands in a schedule's way, and since when, or that nothing does. One that is gone is none.
    pub fn set_schedule_error(
        &self,
        id: ScheduleId,
        error: Option<(&str, Timestamp)>,
    ) -> Result<(), CatalogError> {
        let words = error.map(|(words, _)| words.chars().take(ERROR_CHARS_MAX).collect::<String>());
        self.execute(
            "UPDATE schedules SET error = ?2, error_at = ?3 WHERE id = ?1",
            params![id.to_string(), words, error.map(|(_, at)| at.as_microsecond())],
        )
        .map(drop)
    }

    /// Takes a schedule away, and what is known of its snapshots, which stay.
    pub fn delete_schedule(&self, id: ScheduleId) -> Result<(), CatalogError> {
        self.execute("DELETE FROM schedule_snapshots WHERE schedule = ?1", [id.to_string()])?;
        self.update(Kind::Schedule, id, "DELETE FROM schedules WHERE id = ?1", [id.to_string()])
    }

    /// Writes down a snapshot that is about to be taken. What another row says of that volume and time is forgotten.
    pub fn insert_scheduled_snapshot(&self, row: &ScheduledSnapshot) -> Result<(), CatalogError> {
        let (schedule, volume, due) =
            (row.schedule.to_string(), row.volume.to_string(), row.due.as_microsecond());
        self.execute(
            "DELETE FROM schedule_snapshots WHERE schedule = ?1 AND volume = ?2 AND due = ?3",
            params![schedule, volume, due],
        )?;
        self.insert(
            Kind::Snapshot,
            row.name.as_str(),
            "INSERT INTO schedule_snapshots (snapshot, schedule, volume, due, name, mac, is_taken)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                row.snapshot.to_string(),
                schedule,
                volume,
                due,
                row.name.as_str(),
                row.mac.map(|mac| mac.to_vec()),
                row.is_taken,
            ],
        )
    }

    /// Says that a snapshot was there.
    pub fn set_scheduled_taken(&self, id: SnapshotId) -> Result<(), CatalogError> {
        self.execute("UPDATE schedule_snapshots SET is_taken = 1 WHERE snapshot = ?1", [id.to_string()])
            .map(drop)
    }

    /// Forgets that a schedule took a snapshot.
    pub fn forget_scheduled_snapshot(&self, id: SnapshotId) -> Result<(), CatalogError> {
        self.execute("DELETE FROM schedule_snapshots WHERE snapshot = ?1", [id.to_string()]).map(drop)
    }

    /// Writes down a copy that is asked for.
    pub fn insert_scheduled_copy(&self, row: &ScheduledCopy) -> Result<(), CatalogError> {
        self.insert(
            Kind::Snapshot,
            &row.snapshot.to_string(),
            "INSERT INTO schedule_copies (snapshot, schedule, source, volume, due, mac) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                row.snapshot.to_string(),
                row.schedule.to_string(),
                row.source.to_string(),
                row.volume.to_string(),
                row.due.as_microsecond(),
                row.mac.map(|mac| mac.to_vec())
            ],
        )
    }

    /// Forgets that a schedule asked for a copy.
    pub fn forget_scheduled_copy(&self, id: SnapshotId) -> Result<(), CatalogError> {
        self.execute("DELETE FROM schedule_copies WHERE snapshot = ?1", [id.to_string()]).map(drop)
    }

    /// Forgets all copies that a schedule asked for here.
    pub fn forget_scheduled_copies(&self, of: ScheduleId) -> Result<(), CatalogError> {
        self.execute("DELETE FROM schedule_copies WHERE schedule = ?1", [of.to_string()]).map(drop)
    }
}
