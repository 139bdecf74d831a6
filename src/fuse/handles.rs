//! Open files and folders. A request finds its file without a lock: the table is replaced whole when a file is opened or closed.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};
use fuser::{FileType, ReplyWrite};
use parking_lot::Mutex;

use super::answers::Answers;
use super::{Disk, Shelf};

/// An open disk.
pub(super) struct OpenFile {
    pub(super) inode: u64,
    pub(super) shelf: Shelf,
    pub(super) id: String,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) write: bool,
    pub(super) opener: u32,
    pub(super) created: SystemTime,
    /// Written to since somebody last asked for its time of change.
    pub(super) touched: AtomicBool,
    /// Those to its small writes.
    pub(super) answers: Answers<WriteAnswer>,
}

/// The answer to a write: to what, and the bytes written.
pub(super) type WriteAnswer = (ReplyWrite, Result<u32, fuser::Errno>);

/// One line of a folder, as it was when the folder was opened or rewound.
pub(super) struct Line {
    pub(super) inode: u64,
    pub(super) kind: FileType,
    pub(super) name: OsString,
}

type Files = HashMap<u64, Arc<OpenFile>>;

/// All that is open. A number is given once.
pub(super) struct Handles {
    next: AtomicU64,
    files: ArcSwap<Files>,
    folders: Mutex<HashMap<u64, Arc<Vec<Line>>>>,
}

/// The files open at one moment; cheap to take, and to hold for a request.
pub(super) struct FilesNow(Guard<Arc<Files>>);

impl FilesNow {
    pub(super) fn get(&self, handle: u64) -> Option<&OpenFile> {
        self.0.get(&handle).map(Arc::as_ref)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The open files of an inode.
    pub(super) fn of_inode(&self, inode: u64) -> impl Iterator<Item = &OpenFile> {
        self.0.values().filter(move |file| file.inode == inode).map(Arc::as_ref)
    }
}

impl Handles {
    pub(super) fn new() -> Self {
        Self { next: AtomicU64::new(1), files: ArcSwap::default(), folders: Mutex::default() }
    }

    pub(super) fn files(&self) -> FilesNow {
        FilesNow(self.files.load())
    }

    pub(super) fn open_file(&self, file: OpenFile) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        let file = Arc::new(file);
        self.files.rcu(|files| {
            let mut files = Files::clone(files);
            files.insert(handle, Arc::clone(&file));
            files
        });
        handle
    }

    pub(super) fn close_file(&self, handle: u64) -> Option<Arc<OpenFile>> {
        let before = self.files.rcu(|files| {
            let mut files = Files::clone(files);
            files.remove(&handle);
            files
        });
        before.get(&handle).cloned()
    }

    /// Takes all files away, at the end of a mount.
    pub(super) fn close_all(&self) -> Vec<Arc<OpenFile>> {
        self.files.swap(Arc::default()).values().cloned().collect()
    }

    pub(super) fn open_folder(&self) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.folders.lock().insert(handle, Arc::default());
        handle
    }

    /// Keeps what a folder held, for the reads that follow. Without the folder open, nothing is kept.
    pub(super) fn keep_lines(&self, handle: u64, lines: Arc<Vec<Line>>) {
        if let Some(kept) = self.folders.lock().get_mut(&handle) {
            *kept = lines;
        }
    }

    pub(super) fn lines(&self, handle: u64) -> Option<Arc<Vec<Line>>> {
        self.folders.lock().get(&handle).cloned()
    }

    pub(super) fn close_folder(&self, handle: u64) {
        self.folders.lock().remove(&handle);
    }
}
