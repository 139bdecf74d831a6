//! Background tasks: what is to be done, how far it is, how it ended.

use jiff::Timestamp;
use rusqlite::params;

use super::row::{Fields, stored, worded};
use super::{CatalogError, Kind, ReadTx, WriteTx};
use crate::ids::{AccountId, TaskId};

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
    /// Where it stands.
    pub state: TaskState,
    /// Bytes done so far.
    pub bytes_done: u64,
    /// Bytes to do.
    pub bytes_total: u64,
    /// Why it failed.
    pub error: Option<String>,
    /// When it was asked for: the queue's order.
    pub created_at: Timestamp,
    /// When it last moved.
    pub updated_at: Timestamp,
}

const TASK: &str =
    "SELECT id, account, kind, resource, detail, state, bytes_done, bytes_total, error, created_at,
    updated_at FROM tasks";

fn task(f: &Fields) -> Result<Task, CatalogError> {
    Ok(Task {
        id: f.parsed("id", "a task's id")?,
        account: f.parsed("account", "an account's id")?,
        kind: f.text("kind")?.to_owned(),
        resource: f.opt_text("resource")?.map(str::to_owned),
        detail: f.text("detail")?.to_owned(),
        state: f.parsed("state", "a task's state")?,
        bytes_done: f.unsigned("bytes_done")?,
        bytes_total: f.unsigned("bytes_total")?,
        error: f.opt_text("error")?.map(str::to_owned),
        created_at: f.time("created_at")?,
        updated_at: f.time("updated_at")?,
    })
}

impl ReadTx<'_> {
    /// All tasks, in the order they were asked for.
    pub fn tasks(&self) -> Result<Vec<Task>, CatalogError> {
        self.list(&format!("{TASK} ORDER BY created_at, id"), [], task)
    }

    /// The task that works on a resource.
    pub fn running_task_of(&self, resource: &str) -> Result<Option<Task>, CatalogError> {
        self.first(
            &format!("{TASK} WHERE resource = ?1 AND state = 'running' ORDER BY created_at DESC"),
            [resource],
            task,
        )
    }

    /// The task of this id.
    pub fn find_task(&self, id: TaskId) -> Result<Option<Task>, CatalogError> {
        self.first(&format!("{TASK} WHERE id = ?1"), [id.to_string()], task)
    }
}

impl WriteTx<'_> {
    /// Adds a task.
    pub fn insert_task(&self, row: &Task) -> Result<(), CatalogError> {
        self.insert(
            Kind::Task,
            &row.id.to_string(),
            "INSERT INTO tasks (id, account, kind, resource, detail, state, bytes_done, bytes_total, error, created_at,
             updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                row.id.to_string(),
                row.account.to_string(),
                row.kind,
                row.resource,
                row.detail,
                row.state.as_str(),
                stored(row.bytes_done)?,
                stored(row.bytes_total)?,
                row.error,
                row.created_at.as_microsecond(),
                row.updated_at.as_microsecond()
            ],
        )
    }

    /// Moves a task from one state to another; whether it was in the first.
    pub fn move_task(
        &self,
        id: TaskId,
        from: TaskState,
        to: TaskState,
        error: Option<&str>,
        now: Timestamp,
    ) -> Result<bool, CatalogError> {
        let changed = self.execute(
            "UPDATE tasks SET state = ?3, error = ?4, updated_at = ?5 WHERE id = ?1 AND state = ?2",
            params![id.to_string(), from.as_str(), to.as_str(), error, now.as_microsecond()],
        )?;
        Ok(changed == 1)
    }

    /// Ends the tasks that run on a resource, with a reason.
    pub fn end_tasks_of(
        &self,
        resource: &str,
        end: TaskState,
        error: Option<&str>,
        now: Timestamp,
    ) -> Result<(), CatalogError> {
        self.execute(
            "UPDATE tasks SET state = ?2, error = ?3, updated_at = ?4 WHERE resource = ?1 AND state = 'running'",
            params![resource, end.as_str(), error, now.as_microsecond()],
        )
        .map(drop)
    }

    /// Records a running task's progress; whether it still runs (else it was cancelled, and nothing is changed).
    pub fn set_task_progress(
        &self,
        id: TaskId,
        done: u64,
        total: u64,
        now: Timestamp,
    ) -> Result<bool, CatalogError> {
        let changed = self.execute(
            "UPDATE tasks SET bytes_done = ?2, bytes_total = ?3, updated_at = ?4 WHERE id = ?1 AND state = 'running'",
            params![id.to_string(), stored(done)?, stored(total)?, now.as_microsecond()],
        )?;
        Ok(changed == 1)
    }
}
