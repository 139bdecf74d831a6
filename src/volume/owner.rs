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

/// A path is at most 4096 bytes; the rest of a longer file is not read.
const TEXT_MAX: u64 = 8192;

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
        let us = Owner { pid: std::process::id(), mount_point: mount_point.map(Path::to_owned) };
        let write = |file: &mut File| -> std::io::Result<()> {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(us.to_text().as_bytes())
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

impl Owner {
    /// What the file says: one line of the process, one of its mount point. Process 0: it says nothing.
    pub(crate) fn parse(text: &str) -> Self {
        let mut lines = text.split('\n');
        let pid = lines.next().and_then(|line| line.parse().ok()).unwrap_or(0);
        let mount_point = lines.next().filter(|line| !line.is_empty()).map(PathBuf::from);
        Self { pid, mount_point }
    }

    /// For [`Owner::parse`].
    pub(crate) fn to_text(&self) -> String {
        let place = self.mount_point.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        format!("{}\n{place}\n", self.pid)
    }
}

/// Who the file says; a process that has ended (killed, it could not clear its line) is not it.
fn read_owner(file: &File) -> Owner {
    let mut text = String::new();
    let _ = file.take(TEXT_MAX).read_to_string(&mut text);
    let owner = Owner::parse(&text);
    Owner { mount_point: owner.mount_point.filter(|_| is_running(owner.pid)), ..owner }
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
