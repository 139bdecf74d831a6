//! Locks that have a name: a file that is there while somebody holds it, and which his death frees.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::owned;

/// Who asks whether a lock is held holds it for a moment.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(2);

/// A lock that this process holds until it is dropped. Its file goes with it.
pub struct LockFile {
    file: File,
    path: PathBuf,
}

impl LockFile {
    /// Takes the lock of this name; none: another process has it.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        for _ in 0..LOOKS {
            let file = owned::open_or_create(path)?;
            match try_lock(&file)? {
                // Else its file went with the one who had it.
                true if is_at(&file, path) => return Ok(Some(Self { file, path: path.to_owned() })),
                true => {}
                false => std::thread::sleep(LOOK),
            }
        }
        Ok(None)
    }

    /// Whether a process holds the lock of this name.
    pub fn is_held(path: &Path) -> io::Result<bool> {
        match owned::open(path, true) {
            // Shared: two who ask at once don't take each other for the holder.
            Ok(file) => Ok(flock(&file, FlockOperation::NonBlockingLockShared).is_err()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // While it is locked: who opens it afterwards makes another. One that stays is of no worth.
        let _ = fs::remove_file(&self.path);
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Locks an open file for this process alone; whether nobody else had it locked.
pub fn try_lock(file: &File) -> io::Result<bool> {
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
