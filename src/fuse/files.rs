//! The open files of a mount: what is asked of a disk, cut to its size.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use fuser::{FileHandle, FopenFlags, OpenAccMode, OpenFlags, Request};
use parking_lot::Mutex;

use super::answers::Answers;
use super::attributes::{Owner, Shown};
use super::buffers::{Buffer, give_back_buffers, wipe_buffers};
use super::errno::Refusal;
use super::handles::{Handles, OpenFile};
use super::session::{Cache, Options};
use super::{Errno, Export, Shelf};

/// A request carries at most this many bytes: what the kernel allows without a changed `fs.fuse.max_pages_limit`.
pub(super) const REQUEST_BYTES: u32 = 1 << 20;

/// Opens, serves and closes.
pub(super) struct Files {
    export: Arc<dyn Export>,
    handles: Arc<Handles>,
    owner: Owner,
    mounted: SystemTime,
    /// When each volume written to through this mount was last seen changed.
    changed: Mutex<HashMap<String, SystemTime>>,
    cache: Cache,
    read_only: bool,
    allow_other: bool,
}

/// Who opens what, and how.
pub(super) struct Opening<'r> {
    pub(super) request: &'r Request,
    pub(super) inode: u64,
    pub(super) shelf: Shelf,
    pub(super) id: String,
    pub(super) created: SystemTime,
    pub(super) flags: OpenFlags,
}

/// Whether a write is to be durable when it is answered. The kernel sends no fsync after a direct write; it tells us instead, for
/// O_SYNC, O_DSYNC and RWF_DSYNC alike.
pub(super) fn is_synced(flags: OpenFlags) -> bool {
    flags.0 & libc::O_DSYNC != 0
}

impl Files {
    pub(super) fn new(
        export: Arc<dyn Export>,
        handles: Arc<Handles>,
        owner: Owner,
        options: &Options,
    ) -> Self {
        Self {
            export,
            handles,
            owner,
            mounted: SystemTime::now(),
            changed: Mutex::default(),
            cache: options.cache,
            read_only: options.read_only,
            allow_other: options.allow_other,
        }
    }

    /// A handle for an open disk, and how the kernel is to treat it.
    pub(super) fn open(&self, opening: Opening<'_>) -> Result<(u64, FopenFlags), Errno> {
        let Opening { request, inode, shelf, id, created, flags } = opening;
        // The file's mode says the same to the kernel; a mount with allow_other is checked twice.
        if self.allow_other && request.uid() != self.owner.uid && request.uid() != 0 {
            return Err(Refusal::OtherUser.into());
        }
        let write = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
        debug_assert!(write || flags.acc_mode() == OpenAccMode::O_RDONLY);
        if write && (shelf == Shelf::Snapshots || self.read_only) {
            return Err(Refusal::Snapshot.into());
        }
        let disk = self.export.open(shelf, &id, write, request.pid())?;
        let handle = self.handles.open_file(OpenFile {
            inode,
            shelf,
            id,
            disk,
            write,
            opener: request.pid(),
            created,
            touched: AtomicBool::new(false),
            answers: Answers::new(),
        });
        let how = match (self.cache, shelf) {
            // Both together: with the second alone the kernel still runs writes one at a time.
            (Cache::None, _) => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
            // What a snapshot holds never changes; a volume may be rolled back between two opens.
            (Cache::Kernel, Shelf::Snapshots) => FopenFlags::FOPEN_KEEP_CACHE,
            (Cache::Kernel, Shelf::Volumes) => FopenFlags::empty(),
        };
        Ok((handle, how))
    }

    /// Closes a file for good.
    pub(super) fn close(&self, handle: FileHandle) {
        if let Some(file) = self.handles.close_file(handle.0) {
            self.closed(&file);
        }
    }

    /// What is due when a file has been taken off the table.
    pub(super) fn closed(&self, file: &OpenFile) {
        if file.touched.load(Ordering::Relaxed) {
            self.changed.lock().insert(file.id.clone(), SystemTime::now());
        }
        // Its key may be closed from here on.
        wipe_buffers();
        if self.handles.files().is_empty() {
            give_back_buffers();
        }
        self.export.close(file.shelf, &file.id, file.opener);
    }

    /// What an open disk says of itself.
    pub(super) fn shown(&self, inode: u64) -> Option<Shown> {
        let files = self.handles.files();
        let file = files.of_inode(inode).next()?;
        Some(Shown { size_bytes: file.disk.size_bytes(), created: file.created })
    }

    /// When a volume was last changed, to the next stat after it. Volumes not written to since mounting show the time of
    /// mounting, since what happened before is not known, and a backup program must rather read too much.
    pub(super) fn time_of_change(&self, inode: u64, id: &str) -> SystemTime {
        let mut touched = false;
        for file in self.handles.files().of_inode(inode) {
            touched |= file.touched.swap(false, Ordering::Relaxed);
        }
        let mut changed = self.changed.lock();
        if touched {
            changed.insert(id.to_owned(), SystemTime::now());
        }
        changed.get(id).copied().unwrap_or(self.mounted)
    }

    pub(super) fn read<'b>(
        &self,
        handle: FileHandle,
        at: u64,
        len: u32,
        buffer: &'b mut Buffer,
    ) -> Result<&'b [u8], Errno> {
        let files = self.handles.files();
        let file = files.get(handle.0).ok_or(Refusal::UnknownHandle)?;
        let len = u64::from(len).min(file.disk.size_bytes().saturating_sub(at));
        let into = buffer.first(len as usize);
        if !into.is_empty() {
            file.disk.read(at, into)?;
        }
        Ok(into)
    }

    pub(super) fn write(
        &self,
        file: &OpenFile,
        at: u64,
        data: &[u8],
        flags: OpenFlags,
    ) -> Result<u32, Errno> {
        if !file.write {
            return Err(Refusal::NotOpenForWriting.into());
        }
        if data.is_empty() {
            return Ok(0);
        }
        let room = file.disk.size_bytes().saturating_sub(at);
        if room == 0 {
            return Err(Refusal::PastTheEnd.into());
        }
        // The part that fits is written, and the writer's next call meets the end: as with a block device.
        let fits = &data[..data.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        file.disk.write(at, fits)?;
        if !file.touched.load(Ordering::Relaxed) {
            file.touched.store(true, Ordering::Relaxed);
        }
        if is_synced(flags) {
            file.disk.flush()?;
        }
        Ok(fits.len() as u32)
    }

    pub(super) fn flush(&self, handle: FileHandle) -> Result<(), Errno> {
        let files = self.handles.files();
        let file = files.get(handle.0).ok_or(Refusal::UnknownHandle)?;
        match file.shelf {
            Shelf::Volumes => file.disk.flush(),
            Shelf::Snapshots => Ok(()),
        }
    }

    pub(super) fn allocate(&self, handle: FileHandle, at: u64, len: u64, mode: i32) -> Result<(), Errno> {
        const KNOWN: i32 =
            libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        let files = self.handles.files();
        let file = files.get(handle.0).ok_or(Refusal::UnknownHandle)?;
        if !file.write {
            return Err(Refusal::NotOpenForWriting.into());
        }
        if mode & !KNOWN != 0 {
            return Err(Refusal::Unsupported.into());
        }
        let size = file.disk.size_bytes();
        let end = at.checked_add(len).ok_or(Refusal::Senseless)?;
        let punches = mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
        let zeroes = mode & libc::FALLOC_FL_ZERO_RANGE != 0;
        // A hole past the end is there already; anything else past the end asks for a longer disk.
        let keeps_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        if end > size && !(punches || zeroes && keeps_size) {
            return Err(Refusal::PastTheEnd.into());
        }
        if (punches || zeroes) && at < size {
            file.disk.discard(at, end.min(size) - at)?;
            file.touched.store(true, Ordering::Relaxed);
        }
        // Reserving space within the disk: nothing to do, space is taken as sectors are written.
        Ok(())
    }

    pub(super) fn seek(&self, handle: FileHandle, at: i64, whence: i32) -> Result<i64, Errno> {
        let files = self.handles.files();
        let file = files.get(handle.0).ok_or(Refusal::UnknownHandle)?;
        let size = file.disk.size_bytes();
        let at = u64::try_from(at).map_err(|_| Refusal::NoMoreData)?;
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return Err(Refusal::Senseless.into()),
        };
        if at >= size {
            return Err(Refusal::NoMoreData.into());
        }
        let found = match (file.disk.seek(at, hole)?, hole) {
            (Some(found), _) if found < size => found.max(at),
            // There is always a hole at the end.
            (_, true) => size,
            (_, false) => return Err(Refusal::NoMoreData.into()),
        };
        i64::try_from(found).map_err(|_| Refusal::Senseless.into())
    }
}
