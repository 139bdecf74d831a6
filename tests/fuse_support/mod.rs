//! A region in memory, mounted for a test, and gone after it whether it passed or not.
#![allow(dead_code)] // each test file uses a part

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use terrane::fuse::{Disk, Entry, Errno, Export, Mounted, Options, Shelf};

pub const VOLUME: &str = "vol-00000000000000001";
pub const SNAPSHOT: &str = "snap-00000000000000001";
pub const SIZE: u64 = 4 << 20;
pub const SECTOR: usize = 4096;

/// A disk in memory that knows which sectors hold data.
pub struct MemoryDisk {
    size: AtomicU64,
    state: RwLock<(Vec<u8>, Vec<bool>)>,
    pub flushes: AtomicUsize,
    pub writes: AtomicUsize,
    /// Offset whose read or write panics.
    pub trap: AtomicU64,
    /// Writes fail with this errno, if any.
    pub fault: Mutex<Option<Errno>>,
}

impl MemoryDisk {
    pub fn new(size: u64) -> Self {
        let sectors = size.div_ceil(SECTOR as u64) as usize;
        Self {
            size: AtomicU64::new(size),
            state: RwLock::new((vec![0; size as usize], vec![false; sectors])),
            flushes: AtomicUsize::new(0),
            writes: AtomicUsize::new(0),
            trap: AtomicU64::new(u64::MAX),
            fault: Mutex::new(None),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.state.read().0.clone()
    }

    pub fn grow(&self, size: u64) {
        let mut state = self.state.write();
        state.0.resize(size as usize, 0);
        state.1.resize(size.div_ceil(SECTOR as u64) as usize, false);
        self.size.store(size, Ordering::SeqCst);
    }

    fn check(&self, offset: u64, len: usize) {
        assert!(offset + len as u64 <= self.size_bytes(), "{offset} + {len} leaves the disk");
        assert!(offset != self.trap.load(Ordering::SeqCst), "the trap");
    }
}

impl Disk for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.check(offset, into.len());
        let offset = offset as usize;
        into.copy_from_slice(&self.state.read().0[offset..offset + into.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.check(offset, from.len());
        if let Some(errno) = *self.fault.lock() {
            return Err(errno);
        }
        let offset = offset as usize;
        let mut state = self.state.write();
        state.0[offset..offset + from.len()].copy_from_slice(from);
        state.1[offset / SECTOR..(offset + from.len()).div_ceil(SECTOR)].fill(true);
        self.writes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.check(offset, len as usize);
        let (start, end) = (offset as usize, (offset + len) as usize);
        let mut state = self.state.write();
        state.0[start..end].fill(0);
        for sector in start.div_ceil(SECTOR)..end / SECTOR {
            state.1[sector] = false;
        }
        Ok(())
    }

    fn seek(&self, offset: u64, hole: bool) -> Result<Option<u64>, Errno> {
        let present = &self.state.read().1;
        let first = offset as usize / SECTOR;
        let found = (first..present.len()).find(|sector| present[*sector] != hole);
        Ok(found.map(|sector| ((sector * SECTOR) as u64).max(offset)))
    }
}

#[derive(Clone)]
pub struct Shown {
    pub entry: Entry,
    pub disk: Arc<MemoryDisk>,
    pub open_errno: Option<Errno>,
}

/// A region in memory.
#[derive(Default)]
pub struct MemoryExport {
    pub volumes: Mutex<BTreeMap<String, Shown>>,
    pub snapshots: Mutex<BTreeMap<String, Shown>>,
    pub opens: AtomicUsize,
    pub closes: AtomicUsize,
    pub panics: AtomicBool,
}

impl MemoryExport {
    pub fn shelf(&self, shelf: Shelf) -> &Mutex<BTreeMap<String, Shown>> {
        assert!(!self.panics.load(Ordering::SeqCst), "the catalog's trap");
        match shelf {
            Shelf::Volumes => &self.volumes,
            Shelf::Snapshots => &self.snapshots,
        }
    }

    pub fn add(&self, shelf: Shelf, id: &str, name: Option<&str>, size_bytes: u64) -> Arc<MemoryDisk> {
        let disk = Arc::new(MemoryDisk::new(size_bytes));
        let entry =
            Entry { id: id.into(), name: name.map(Into::into), size_bytes, created_at: 1_700_000_000 };
        let shown = Shown { entry, disk: Arc::clone(&disk), open_errno: None };
        self.shelf(shelf).lock().insert(id.into(), shown);
        disk
    }
}

impl Export for MemoryExport {
    fn list(&self, shelf: Shelf) -> Result<Vec<Entry>, Errno> {
        Ok(self.shelf(shelf).lock().values().map(|shown| shown.entry.clone()).collect())
    }

    fn find(&self, shelf: Shelf, id: &str) -> Result<Option<Entry>, Errno> {
        Ok(self.shelf(shelf).lock().get(id).map(|shown| shown.entry.clone()))
    }

    fn find_by_name(&self, shelf: Shelf, name: &str) -> Result<Option<Entry>, Errno> {
        let entries = self.list(shelf)?;
        Ok(entries.into_iter().find(|entry| entry.name.as_deref() == Some(name)))
    }

    fn open(&self, shelf: Shelf, id: &str, write: bool, opener: u32) -> Result<Arc<dyn Disk>, Errno> {
        assert!(opener != 0 || !write, "a person's open has a pid");
        let shown = self.shelf(shelf).lock().get(id).cloned().ok_or(libc::ENOENT)?;
        if let Some(errno) = shown.open_errno {
            return Err(errno);
        }
        self.opens.fetch_add(1, Ordering::SeqCst);
        Ok(shown.disk)
    }

    fn close(&self, _shelf: Shelf, _id: &str, _opener: u32) {
        self.closes.fetch_add(1, Ordering::SeqCst);
    }

    fn space(&self) -> Result<(u64, u64), Errno> {
        Ok((100 << 30, 42 << 30))
    }
}

/// A mounted region with one volume and one snapshot; unmounted when dropped.
pub struct TestMount {
    // Before the folder, so that it is unmounted before the folder is removed.
    pub mounted: Mounted,
    pub export: Arc<MemoryExport>,
    pub disk: Arc<MemoryDisk>,
    pub snapshot: Arc<MemoryDisk>,
    pub folder: tempfile::TempDir,
}

impl TestMount {
    pub fn new() -> Self {
        Self::with(&Options::default())
    }

    pub fn with(options: &Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let export = Arc::new(MemoryExport::default());
        let disk = export.add(Shelf::Volumes, VOLUME, Some("web"), SIZE);
        let snapshot = export.add(Shelf::Snapshots, SNAPSHOT, Some("web-monday"), SIZE);
        let mounted = terrane::fuse::mount(export.clone(), folder.path(), options).unwrap();
        Self { mounted, export, disk, snapshot, folder }
    }

    pub fn path(&self) -> &Path {
        self.mounted.path()
    }

    pub fn volume(&self) -> PathBuf {
        self.path().join("volumes").join(VOLUME)
    }

    pub fn snapshot(&self) -> PathBuf {
        self.path().join("snapshots").join(SNAPSHOT)
    }
}

/// Runs a program to its end.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Output {
    Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Runs a program that must succeed.
pub fn must<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    let output = run(program, arguments);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {words}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The errno of a failed call, 0 if it succeeded.
pub fn errno<T>(result: io::Result<T>) -> i32 {
    result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0)
}

pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Bytes that differ everywhere.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        bytes.extend_from_slice(&(state >> 16).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
