//! Background tasks: what is to be done, how far it is, how it ended.

use jiff::Timestamp;
use rusqlite::params;

use super::row::{Fields, stored, worded};
use super::{CatalogError, Kind, ReadTx, WriteTx};
use crate::ids::{AccountId, SnapshotId, TaskId};

/// Tasks that were asked for so closely behind one another, in microseconds, are of one reading of the clock: it may be slow or stand
/// still.
const TICK: i64 = 1_000_000;

worded! {
    /// Where a task stands.
    TaskState {
        /// It waits for somebody to take it.
        Queued = "queued",
        /// Somebody works on it.
        Running = "running",
        /// It ended well.
        Succeeded = "succeeded",
        /// It could not be done.
        Failed = "failed",
        /// It was called off.
        Cancelled = "cancelled",
    }
}

/// A task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// The account that asked for it.
    pub account: AccountId,
    /// What it does, as `copy`.
    pub kind: String,
    /// The id of what it makes or changes.
    pub resource: Option<String>,
    /// What it was asked, as its kind writes it (JSON).
    pub detail: String,
    /// Vouches for what was asked.
    pub mac: Option<[u8; 16]>,
    /// Where it stands.
    pub state: TaskState,
    /// Bytes done so far.
    pub bytes_done: u64,
    /// Bytes to do; of one that has not begun, as they were when it was asked for.
    pub bytes_total: u64,
    /// How fast it went lately.
    pub bytes_per_second: u64,
    /// Why it failed, or what it waits for.
    pub error: Option<String>,
    /// The exit number of those who wait for one that failed.
    pub exit: Option<u8>,
    /// When it was asked for, behind what was asked for before at the same reading of the clock: the queue's order.
    pub created_at: Timestamp,
    /// When it last moved.
    pub updated_at: Timestamp,
}

impl Task {
    /// Whether it may still be done.
    pub fn is_open(&self) -> bool {
        matches!(self.state, TaskState::Queued | TaskState::Running)
    }

    /// The snapshot that it makes; none: its row names none.
    pub fn snapshot(&self) -> Option<SnapshotId> {
        self.resource.as_deref()?.parse().ok()
    }

    /// A task's place in the order of the queue.
    pub fn place(&self) -> (Timestamp, TaskId) {
        (self.created_at, self.id)
    }
}

/// How a task ended.
#[derive(Clone, Copy, Debug)]
pub struct TaskEnd<'a> {
    /// In which state.
    pub state: TaskState,
    /// Why.
    pub error: Option<&'a str>,
    /// The exit number of those who wait for it.
    pub exit: Option<u8>,
}

impl TaskEnd<'_> {
    /// It was called off.
    pub const CANCELLED: Self = Self { state: TaskState::Cancelled, error: None, exit: None };
}

/// A row's place in the order of the queue, whatever else it says.
#[derive(Clone, Debug)]
pub struct QueuePlace(i64, String);

fn readable(task: Result<Task, CatalogError>) -> Option<Task> {
    task.map_err(|error| tracing::warn!(%error, "a task is left out")).ok()
}

const TASK: &str =
    "SELECT id, account, kind, resource, detail, mac, state, bytes_done, bytes_total, bytes_per_second, error, exit,
    created_at, updated_at FROM tasks";

fn task(f: &Fields) -> Result<Task, CatalogError> {
    let exit = f.opt_unsigned("exit")?;
    let exit = exit
        .map(|n| u8::try_from(n).map_err(|_| f.corrupted("exit", "0 to 255", &n.to_string())))
        .transpose()?;
    Ok(Task {
        id: f.parsed("id", "a task's id")?,
        account: f.parsed("account", "an account's id")?,
        kind: f.text("kind")?.to_owned(),
        resource: f.opt_text("resource")?.map(str::to_owned),
        detail: f.text("detail")?.to_owned(),
        // Of another length it vouches for nothing.
        mac: f.opt_blob("mac", 64)?.and_then(|mac| mac.try_into().ok()),
        state: f.parsed("state", "a task's state")?,
        bytes_done: f.unsigned("bytes_done")?,
        bytes_total: f.unsigned("bytes_total")?,
        bytes_per_second: f.unsigned("bytes_per_second")?,
        error: f.opt_text("error")?.map(str::to_owned),
        exit,
        created_at: f.time("created_at")?,
        updated_at: f.time("updated_at")?,
    })
}

impl ReadTx<'_> {
    /// All tasks, in the order they were asked for. A row that does not read is left out, with a warning: the others are none the
    /// worse for it.
    pub fn tasks(&self) -> Result<Vec<Task>, CatalogError> {
        let rows = self.list(&format!("{TASK} ORDER BY created_at, id"), [], |f| Ok(task(f)))?;
        Ok(rows.into_iter().filter_map(readable).collect())
    }

    /// Tasks that are not over, in the order of the queue: of so many rows behind a place, those that read; and the last one's place,
    /// if there was one.
    pub fn open_tasks_behind(
        &self,
        place: Option<QueuePlace>,
        count_max: u32,
    ) -> Result<(Vec<Task>, Option<QueuePlace>), CatalogError> {
        let QueuePlace(time, id) = place.unwrap_or(QueuePlace(i64::MIN, String::new()));
        let rows = self.list(
            &format!(
                "{TASK} WHERE state IN ('queued', 'running') AND (created_at, id) > (?1, ?2) ORDER BY created_at, id LIMIT ?3"
            ),
            params![time, id, count_max],
            |f| Ok((task(f), QueuePlace(f.int("created_at")?, f.text("id")?.to_owned()))),
        )?;
        let last = rows.last().map(|(_, place)| place.clone());
        Ok((rows.into_iter().filter_map(|(task, _)| readable(task)).collect(), last))
    }

    /// The newest task on a resource, if it reads.
    pub fn task_of(&self, resource: &str) -> Result<Option<Task>, CatalogError> {
        let of = format!("{TASK} WHERE resource = ?1 ORDER BY created_at DESC, id LIMIT 1");
        Ok(self.first(&of, [resource], |f| Ok(task(f)))?.and_then(readable))
    }

    /// The task of this id.
    pub fn find_task(&self, id: TaskId) -> Result<Option<Task>, CatalogError> {
        self.first(&format!("{TASK} WHERE id = ?1"), [id.to_string()], task)
    }
}

impl WriteTx<'_> {
    /// Adds a task, behind all that were asked for before; the row as it is then.
    pub fn insert_task(&self, row: Task) -> Result<Task, CatalogError> {
        let row = Task { created_at: self.behind_others(row.created_at)?, ..row };
        self.insert(
            Kind::Task,
            &row.id.to_string(),
            "INSERT INTO tasks (id, account, kind, resource, detail, mac, state, bytes_done, bytes_total, bytes_per_second,
             error, exit, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            params![
                row.id.to_string(),
                row.account.to_string(),
                row.kind,
                row.resource,
                row.detail,
                row.mac.map(|mac| mac.to_vec()),
                row.state.as_str(),
                stored(row.bytes_done)?,
                stored(row.bytes_total)?,
                stored(row.bytes_per_second)?,
                row.error,
                row.exit,
                row.created_at.as_microsecond(),
                row.updated_at.as_microsecond()
            ],
        )?;
        Ok(row)
    }

    /// This time, or the first after those of tasks that were asked for in its tick. What lies further ahead, as a damaged row may, moves
    /// nothing.
    fn behind_others(&self, now: Timestamp) -> Result<Timestamp, CatalogError> {
        let now = now.as_microsecond();
        let of_tick =
            "SELECT max(created_at) AS newest FROM tasks WHERE created_at >= ?1 AND created_at < ?2";
        let newest = self.first(of_tick, [now, now.saturating_add(TICK)], |f| f.opt_int("newest"))?;
        let place = newest.flatten().map_or(now, |newest| newest + 1);
        Timestamp::from_microsecond(place)
            .map_err(|_| CatalogError::Refused { what: "the clock is at its end".into() })
    }

    /// Says that somebody works on a task; whether it may still be done.
    pub fn start_task(&self, id: TaskId, now: Timestamp) -> Result<bool, CatalogError> {
        self.change_open(
            "UPDATE tasks SET state = 'running', error = NULL, bytes_per_second = 0, updated_at = ?2 WHERE id = ?1",
            params![id.to_string(), now.as_microsecond()],
        )
    }

    /// Puts a task back into its place in the queue, with what it waits for; whether it may still be done.
    pub fn requeue_task(
        &self,
        id: TaskId,
        waits_for: Option<&str>,
        now: Timestamp,
    ) -> Result<bool, CatalogError> {
        self.change_open(
            "UPDATE tasks SET state = 'queued', error = ?2, bytes_per_second = 0, updated_at = ?3 WHERE id = ?1",
            params![id.to_string(), waits_for, now.as_microsecond()],
        )
    }

    /// Ends a task; whether it was not over.
    pub fn end_task(&self, id: TaskId, end: TaskEnd, now: Timestamp) -> Result<bool, CatalogError> {
        self.change_open(
            "UPDATE tasks SET state = ?2, error = ?3, exit = ?4, bytes_per_second = 0, updated_at = ?5 WHERE id = ?1",
            params![id.to_string(), end.state.as_str(), end.error, end.exit, now.as_microsecond()],
        )
    }

    /// Ends the tasks on a resource that are not over.
    pub fn end_tasks_of(&self, resource: &str, end: TaskEnd, now: Timestamp) -> Result<(), CatalogError> {
        self.change_open(
            "UPDATE tasks SET state = ?2, error = ?3, exit = ?4, bytes_per_second = 0, updated_at = ?5
             WHERE resource = ?1",
            params![resource, end.state.as_str(), end.error, end.exit, now.as_microsecond()],
        )
        .map(drop)
    }

    /// Records a running task's progress; whether it still runs (else it was cancelled, and nothing is changed).
    pub fn set_task_progress(
        &self,
        id: TaskId,
        (done, total): (u64, u64),
        bytes_per_second: u64,
        now: Timestamp,
    ) -> Result<bool, CatalogError> {
        let changed = self.execute(
            "UPDATE tasks SET bytes_done = ?2, bytes_total = ?3, bytes_per_second = ?4, updated_at = ?5
             WHERE id = ?1 AND state = 'running'",
            params![
                id.to_string(),
                stored(done)?,
                stored(total)?,
                stored(bytes_per_second)?,
                now.as_microsecond()
            ],
        )?;
        Ok(changed == 1)
    }

    /// Forgets a task that is over; whether it was one.
    pub fn forget_task(&self, id: TaskId) -> Result<bool, CatalogError> {
        let gone = "DELETE FROM tasks WHERE id = ?1 AND state NOT IN ('queued', 'running')";
        Ok(self.execute(gone, [id.to_string()])? == 1)
    }

    /// Forgets tasks that ended before this moment.
    pub fn forget_tasks(&self, before: Timestamp) -> Result<(), CatalogError> {
        self.execute(
            "DELETE FROM tasks WHERE state NOT IN ('queued', 'running') AND updated_at < ?1",
            [before.as_microsecond()],
        )
        .map(drop)
    }

    /// Changes what is not over of what a statement, which ends with its condition, chooses.
    fn change_open(&self, sql: &str, params: impl rusqlite::Params) -> Result<bool, CatalogError> {
        Ok(self.execute(&format!("{sql} AND state IN ('queued', 'running')"), params)? > 0)
    }
}
