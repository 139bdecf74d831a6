//! Who works on which copy: by locks on files in `run/`, which death frees.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{CopyError, Result};
use crate::catalog::Task;
use crate::ids::{SnapshotId, TaskId};
use crate::region::Region;
use crate::sys::lock_file::{LockFile, try_lock};
use crate::sys::owned;
use crate::volume::HostError;

/// So many copies at once are made in a region; more wait.
pub const COPIES_MAX: u32 = 20;

/// A task that this process works on, and no other.
pub struct Held {
    pub(super) task: Task,
    _lock: TaskLock,
}

/// What came of asking for a task.
pub enum Taken {
    /// It is this process's.
    Held(Box<Held>),
    /// Another process works on it.
    Busy,
    /// It is over, or there is none.
    Over,
}

impl Held {
    /// Takes a task to work on it; its row says so from then on.
    pub fn take(region: &Region, id: TaskId) -> Result<Taken> {
        let Some(lock) = TaskLock::take(region, id)? else { return Ok(Taken::Busy) };
        let now = region.now();
        let task = region.catalog()?.write(|tx| -> Result<_> {
            Ok(if tx.start_task(id, now)? { tx.find_task(id)? } else { None })
        })?;
        Ok(task.map_or(Taken::Over, |task| Taken::Held(Box::new(Self { task, _lock: lock }))))
    }

    /// Of a task that is being made: its lock was taken before it had a row.
    pub(super) fn new(task: Task, lock: TaskLock) -> Self {
        Self { task, _lock: lock }
    }

    /// What it makes; of a row that names none, nothing that is there.
    pub fn snapshot(&self) -> SnapshotId {
        self.task.snapshot().unwrap_or_else(SnapshotId::random)
    }

    /// The task.
    pub fn task(&self) -> &Task {
        &self.task
    }
}

/// The lock of a task.
pub(super) struct TaskLock {
    _file: LockFile,
}

impl TaskLock {
    /// Takes it; none: another process has it.
    pub fn take(region: &Region, id: TaskId) -> Result<Option<Self>> {
        let path = path(region, id);
        Ok(LockFile::take(&path).map_err(io_of(&path))?.map(|file| Self { _file: file }))
    }
}

/// Whether a process works on a task.
pub fn is_held(region: &Region, id: TaskId) -> Result<bool> {
    let path = path(region, id);
    LockFile::is_held(&path).map_err(io_of(&path))
}

/// One of the places of a region at which copies are made.
pub struct Slot {
    #[allow(dead_code)]
    file: File,
}

impl Slot {
    /// A free one, if there is any.
    pub fn take(region: &Region) -> Result<Option<Self>> {
        for number in 0..COPIES_MAX {
            let path = region.run_dir().join(format!("copies-{number}.lock"));
            let file = owned::open_or_create(&path).map_err(io_of(&path))?;
            if try_lock(&file).map_err(io_of(&path))? {
                return Ok(Some(Self { file }));
            }
        }
        Ok(None)
    }
}

fn path(region: &Region, id: TaskId) -> PathBuf {
    region.run_dir().join(format!("{id}.lock"))
}

fn io_of(path: &Path) -> impl FnOnce(io::Error) -> CopyError {
    let of_host = HostError::io("locking a task by", path);
    move |source| of_host(source).into()
}
