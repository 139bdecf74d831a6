//! Who works on which copy: by locks on files in `run/`, which death frees.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::error::{CopyError, Result};
use crate::catalog::Task;
use crate::ids::{SnapshotId, TaskId};
use crate::region::Region;
use crate::sys::owned;
use crate::volume::HostError;

/// So many copies at once are made in a region; more wait.
pub const COPIES_MAX: u32 = 20;
/// Who asks whether a task is held holds it for a moment.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(2);

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
        let id = self.task.resource.as_deref().and_then(|id| id.parse().ok());
        id.unwrap_or_else(SnapshotId::random)
    }

    /// The task.
    pub fn task(&self) -> &Task {
        &self.task
    }
}

/// The lock of a task. Its file goes with it.
pub(super) struct TaskLock {
    file: File,
    path: PathBuf,
}

impl TaskLock {
    /// Takes it; none: another process has it.
    pub fn take(region: &Region, id: TaskId) -> Result<Option<Self>> {
        let path = path(region, id);
        for _ in 0..LOOKS {
            let file = owned::open_or_create(&path).map_err(io_of(&path))?;
            match try_lock(&file).map_err(io_of(&path))? {
                // Else its file went with the one who had it.
                true if is_at(&file, &path) => return Ok(Some(Self { file, path })),
                true => {}
                false => std::thread::sleep(LOOK),
            }
        }
        Ok(None)
    }
}

impl Drop for TaskLock {
    fn drop(&mut self) {
        // While it is locked: who opens it afterwards makes another. One that stays is of no worth.
        let _ = fs::remove_file(&self.path);
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Whether a process works on a task.
pub fn is_held(region: &Region, id: TaskId) -> Result<bool> {
    let path = path(region, id);
    match owned::open(&path, true) {
        // Shared: two who ask at once don't take each other for the holder.
        Ok(file) => Ok(flock(&file, FlockOperation::NonBlockingLockShared).is_err()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io_of(&path)(e)),
    }
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

fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Whether this open file is the one of this name.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

fn io_of(path: &Path) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.to_owned();
    move |source| HostError::Io { what: "locking a task by", path, source }.into()
}
