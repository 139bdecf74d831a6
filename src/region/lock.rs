//! `run/open.lock`: held shared by every process that has the region open, alone by a migration of its format.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::{RegionError, files};
use crate::sys::owned;

/// A migration is short; whoever opens the region meanwhile waits so long for it.
const WAIT: Duration = Duration::from_secs(30);
/// How long a process may take to end once it was killed.
const DYING: Duration = Duration::from_millis(500);

/// The lock, held until dropped.
#[derive(Debug)]
pub(super) struct OpenLock {
    file: File,
}

impl OpenLock {
    /// Takes it shared.
    pub fn shared(path: &Path, region: &str) -> Result<Self, RegionError> {
        Self::take(path, region, FlockOperation::NonBlockingLockShared, WAIT)
    }

    /// Takes it alone, or not at all: then the others are named. A process that was killed holds it a moment longer.
    pub fn alone(path: &Path, region: &str) -> Result<Self, RegionError> {
        Self::take(path, region, FlockOperation::NonBlockingLockExclusive, DYING)
    }

    fn take(
        path: &Path,
        region: &str,
        operation: FlockOperation,
        patience: Duration,
    ) -> Result<Self, RegionError> {
        let lock = Self::open(path)?;
        let since = Instant::now();
        while !lock.try_flock(path, operation)? {
            if since.elapsed() > patience {
                return Err(lock.in_use(region));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(lock)
    }

    fn open(path: &Path) -> Result<Self, RegionError> {
        let file = owned::open_or_create(path).map_err(files::io_or_damage("opening the lock", path))?;
        Ok(Self { file })
    }

    fn try_flock(&self, path: &Path, operation: FlockOperation) -> Result<bool, RegionError> {
        loop {
            match flock(&self.file, operation) {
                Ok(()) => return Ok(true),
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(RegionError::io("locking it", path)(error.into())),
            }
        }
    }

    fn in_use(&self, region: &str) -> RegionError {
        RegionError::InUse { region: region.to_owned(), pids: holders(&self.file).unwrap_or_default() }
    }
}

/// Other processes that hold a flock on this file, from `/proc/locks`.
fn holders(file: &File) -> io::Result<Vec<u32>> {
    let inode = file.metadata()?.ino();
    let locks = fs::read_to_string("/proc/locks")?;
    let mut pids: Vec<u32> = locks.lines().filter_map(|line| holder_of(line, inode)).collect();
    pids.retain(|pid| *pid != std::process::id());
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// `1: FLOCK  ADVISORY  READ  1234 fe:00:56789 0 EOF`. The device is left out: btrfs and overlay show another one
/// there than `stat` does, and a wrong pid of an equal inode number is only a wrong word in a sentence.
fn holder_of(line: &str, inode: u64) -> Option<u32> {
    let mut words = line.split_whitespace().skip(1);
    (words.next()? == "FLOCK").then_some(())?;
    let pid = words.nth(2)?.parse().ok()?;
    let found: u64 = words.next()?.rsplit(':').next()?.parse().ok()?;
    (found == inode).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_or_many_shared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open.lock");
        let first = OpenLock::shared(&path, "here").unwrap();
        let second = OpenLock::shared(&path, "here").unwrap();
        assert!(matches!(OpenLock::alone(&path, "here"), Err(RegionError::InUse { .. })));
        drop((first, second));
        let _alone = OpenLock::alone(&path, "here").unwrap();
    }

    #[test]
    fn who_holds_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open.lock");
        drop(OpenLock::shared(&path, "here").unwrap());
        let mut holder = std::process::Command::new("flock")
            .args(["--shared", "--no-fork"])
            .arg(&path)
            .args(["sleep", "60"])
            .spawn()
            .unwrap();
        let since = Instant::now();
        let pids = loop {
            match OpenLock::alone(&path, "here") {
                Err(RegionError::InUse { pids, .. }) => break pids,
                _ if since.elapsed() > WAIT => panic!("the lock was never held"),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(pids, [holder.id()]);
    }

    #[test]
    fn lines_of_proc_locks_are_understood() {
        assert_eq!(holder_of("3: FLOCK  ADVISORY  READ 1234 fe:00:56789 0 EOF", 56789), Some(1234));
        assert_eq!(holder_of("3: FLOCK  ADVISORY  READ 1234 fe:00:56789 0 EOF", 5678), None);
        assert_eq!(holder_of("3: POSIX  ADVISORY  READ 1234 fe:00:56789 0 EOF", 56789), None);
        assert_eq!(holder_of("3: -> FLOCK  ADVISORY  WRITE 1 fe:00:56789 0 EOF", 56789), None);
        assert_eq!(holder_of("", 1), None);
    }
}
