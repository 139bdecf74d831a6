//! `run/layers.lock`: held by the one process that may change a region's existing layers. It says who that is.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::host_error::{HostError, Result};
use crate::region::Region;
use crate::sys::owned;

/// The lock, held until dropped.
pub struct LayersLock {
    file: File,
}

impl Drop for LayersLock {
    /// Whoever takes it next is not mistaken for us in the moment before it has written who it is. Unlocked by a call of its own:
    /// a child that another thread has just forked, and that has not begun its program yet, has the file open too.
    fn drop(&mut self) {
        let _ = self.file.set_len(0);
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// Who owns a region's layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The process.
    pub pid: u32,
    /// Where it is mounted; none for a command, which lets go soon.
    pub mount_point: Option<PathBuf>,
}

impl LayersLock {
    /// Takes the lock, or says who holds it.
    pub fn take(region: &Region, mount_point: Option<&Path>) -> Result<Result<Self, Owner>> {
        let path = region.run_dir().join("layers.lock");
        let io = |what| HostError::io(what, &path);
        let mut file = owned::open_or_create(&path).map_err(io("opening"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Err(read_owner(&file))),
            Err(e) => return Err(io("locking")(e.into())),
        }
        let place = mount_point.map(|p| p.display().to_string()).unwrap_or_default();
        let write = |file: &mut File| -> std::io::Result<()> {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            write!(file, "{}\n{place}\n", std::process::id())
        };
        write(&mut file).map_err(io("writing"))?;
        Ok(Ok(Self { file }))
    }

    /// Takes the lock, waiting for commands, which hold it briefly; a mount that holds it is told at once.
    pub fn take_or_mount(region: &Region, patience: Duration) -> Result<Result<Self, Owner>> {
        let since = Instant::now();
        loop {
            match Self::take(region, None)? {
                Ok(lock) => return Ok(Ok(lock)),
                Err(owner) if owner.mount_point.is_some() => return Ok(Err(owner)),
                Err(owner) if since.elapsed() > patience => {
                    return Err(HostError::InUse {
                        what: format!("region {}", region.name()),
                        by: format!("process {}", owner.pid),
                    });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// Who the file says; a process that has ended (killed, it could not clear its line) is not it.
fn read_owner(file: &File) -> Owner {
    let mut text = String::new();
    let _ = file.take(8192).read_to_string(&mut text);
    let mut lines = text.lines();
    let pid = lines.next().and_then(|l| l.parse().ok()).unwrap_or(0);
    let mount_point = lines.next().filter(|l| !l.is_empty() && is_running(pid)).map(PathBuf::from);
    Owner { pid, mount_point }
}

/// Not one whose threads are still ending after a kill, which hold the lock a moment longer.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // PID (PROGRAM) STATE …
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The processes that have a file open, in words: the kernel itself opens it for a loop device.
pub(super) fn words_of_openers(openers: &[u32]) -> String {
    let mut pids: Vec<u32> = openers.to_vec();
    pids.sort_unstable();
    pids.dedup();
    let words: Vec<String> = pids.iter().map(|pid| format!("process {pid}")).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::scratch;

    #[test]
    fn a_child_about_to_begin_is_no_owner() {
        let (_dir, region) = scratch();
        let lock = LayersLock::take(&region, None).unwrap().unwrap();
        let inherited = lock.file.try_clone().unwrap();
        assert!(LayersLock::take(&region, None).unwrap().is_err());
        drop(lock);
        assert!(LayersLock::take(&region, None).unwrap().is_ok());
        drop(inherited);
    }
}
