//! The requests of the kernel, one by one: decode, ask the [`Export`], encode.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;

use super::attributes::{self, Owner};
use super::errno::Refusal;
use super::gate::Gate;
use super::handles::{Handles, Line, OpenFile};
use super::names::{Folder, Names, Node, shelf_name};
use super::session::{Cache, Options};
use super::{Entry, Errno, Export, Shelf};

/// A request carries at most this many bytes: what the kernel allows without a changed `fs.fuse.max_pages_limit`.
const REQUEST_BYTES: u32 = 1 << 20;
/// How long the kernel may believe what it was told. Not at all: a volume may be made, renamed, resized or deleted now.
const NO_TIME: Duration = Duration::ZERO;
/// The folders stay.
const LONG_TIME: Duration = Duration::from_secs(3600);
/// Inode numbers name the same node for the life of a mount.
const GENERATION: Generation = Generation(0);
const NAME_BYTES_MAX: usize = 255;

/// The file system of one mount.
pub(super) struct Tree {
    export: Arc<dyn Export>,
    names: Names,
    handles: Handles,
    owner: Owner,
    mounted: SystemTime,
    /// When each volume written to through this mount was last seen changed.
    changed: Mutex<HashMap<String, SystemTime>>,
    cache: Cache,
    read_only: bool,
    allow_other: bool,
    max_background: u16,
    gate: Arc<Gate>,
}

/// What the attributes of a disk are made of.
struct Shown {
    size_bytes: u64,
    created: SystemTime,
}

impl Tree {
    pub(super) fn new(export: Arc<dyn Export>, options: &Options) -> Self {
        Self {
            export,
            names: Names::default(),
            handles: Handles::new(),
            owner: Owner {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            },
            mounted: SystemTime::now(),
            changed: Mutex::default(),
            cache: options.cache,
            read_only: options.read_only,
            allow_other: options.allow_other,
            max_background: options.max_background,
            gate: Arc::new(Gate::new()),
        }
    }

    /// What every request goes through; who ends the mount shuts it.
    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Answers, or refuses, unless the mount is ending.
    fn answer<T>(
        &self,
        what: &'static str,
        deed: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, fuser::Errno> {
        match self.gate.enter() {
            Some(_pass) => caught(what, deed),
            None => Err(refused(Refusal::Ending)),
        }
    }

    fn node(&self, inode: INodeNo) -> Result<Node, Errno> {
        self.names.node(inode.0).ok_or_else(|| Refusal::NoSuchName.into())
    }

    fn folder(&self, inode: INodeNo) -> Result<Folder, Errno> {
        match self.node(inode)? {
            Node::Folder(folder) => Ok(folder),
            _ => Err(Refusal::NotAFolder.into()),
        }
    }

    /// A name in a folder: the node and its attributes, still without a number where it is a disk or link.
    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<(Node, FileAttr), Errno> {
        let folder = self.folder(parent)?;
        let name = name.to_str().ok_or(Refusal::NoSuchName)?;
        if let Some((_, below)) = folder.folders().iter().find(|(known, _)| *known == name) {
            return Ok((Node::Folder(*below), attributes::of_folder(*below, self.owner, self.mounted)));
        }
        match folder {
            Folder::Disks(shelf) => {
                let entry = self.export.find(shelf, name)?.ok_or(Refusal::NoSuchName)?;
                let node = Node::Disk(shelf, name.to_owned());
                let attr = self.disk_attr(node.wanted_inode(), shelf, name, &Shown::from(&entry));
                Ok((node, attr))
            }
            Folder::Links(shelf) => {
                let entry = self.export.find_by_name(shelf, name)?.ok_or(Refusal::NoSuchName)?;
                Ok((Node::Link(shelf, name.to_owned()), self.link_attr(0, shelf, &entry)))
            }
            Folder::Root | Folder::ByName => Err(Refusal::NoSuchName.into()),
        }
    }

    fn attributes(&self, inode: INodeNo) -> Result<FileAttr, Errno> {
        match self.node(inode)? {
            Node::Folder(folder) => Ok(attributes::of_folder(folder, self.owner, self.mounted)),
            Node::Disk(shelf, id) => Ok(self.disk_attr(inode.0, shelf, &id, &self.shown(inode, shelf, &id)?)),
            Node::Link(shelf, name) => {
                let entry = self.export.find_by_name(shelf, &name)?.ok_or(Refusal::NoSuchName)?;
                Ok(self.link_attr(inode.0, shelf, &entry))
            }
        }
    }

    /// Size and age of a disk; an open one is asked itself, the catalog only for the others.
    fn shown(&self, inode: INodeNo, shelf: Shelf, id: &str) -> Result<Shown, Errno> {
        if let Some(file) = self.handles.files().of_inode(inode.0).next() {
            return Ok(Shown { size_bytes: file.disk.size_bytes(), created: file.created });
        }
        let entry = self.export.find(shelf, id)?.ok_or(Refusal::NoSuchName)?;
        Ok(Shown::from(&entry))
    }

    fn disk_attr(&self, inode: u64, shelf: Shelf, id: &str, shown: &Shown) -> FileAttr {
        let changed = match shelf {
            Shelf::Snapshots => shown.created,
            Shelf::Volumes => self.time_of_change(inode, id).max(shown.created),
        };
        attributes::of_disk(inode, shelf, shown.size_bytes, shown.created, changed, self.owner)
    }

    /// When a volume was last changed, to the next stat after it. Volumes not written to since mounting show the time of
    /// mounting, since what happened before is not known, and a backup program must rather read too much.
    fn time_of_change(&self, inode: u64, id: &str) -> SystemTime {
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

    fn link_attr(&self, inode: u64, shelf: Shelf, entry: &Entry) -> FileAttr {
        let created = attributes::time_of_seconds(entry.created_at);
        attributes::of_link(inode, link_target(shelf, &entry.id).len(), self.owner, created)
    }

    fn lines_of(&self, folder: Folder) -> Result<Vec<Line>, Errno> {
        let line = |node: Node, kind, name: &str| Line {
            inode: node.wanted_inode(),
            kind,
            name: OsString::from(name),
        };
        let mut lines = vec![
            line(Node::Folder(folder), FileType::Directory, "."),
            line(Node::Folder(folder.parent()), FileType::Directory, ".."),
        ];
        lines.extend(
            folder
                .folders()
                .iter()
                .map(|(name, below)| line(Node::Folder(*below), FileType::Directory, name)),
        );
        if let Folder::Disks(shelf) = folder {
            let entries = self.export.list(shelf)?;
            let showable = entries.iter().filter(|entry| is_showable(&entry.id));
            lines.extend(
                showable.map(|e| line(Node::Disk(shelf, e.id.clone()), FileType::RegularFile, &e.id)),
            );
        }
        if let Folder::Links(shelf) = folder {
            let entries = self.export.list(shelf)?;
            let names =
                entries.iter().filter_map(|entry| entry.name.as_deref()).filter(|name| is_showable(name));
            lines.extend(names.map(|name| line(Node::Link(shelf, name.to_owned()), FileType::Symlink, name)));
        }
        Ok(lines)
    }

    fn open_disk(
        &self,
        request: &Request,
        inode: INodeNo,
        flags: OpenFlags,
    ) -> Result<(u64, FopenFlags), Errno> {
        let (shelf, id) = match self.node(inode)? {
            Node::Disk(shelf, id) => (shelf, id),
            Node::Folder(_) => return Err(Refusal::IsAFolder.into()),
            Node::Link(..) => return Err(Refusal::Senseless.into()),
        };
        if !self.gate.admits_opens() {
            return Err(Refusal::Ending.into());
        }
        // The file's mode says the same to the kernel; a mount with allow_other is checked twice.
        if self.allow_other && request.uid() != self.owner.uid && request.uid() != 0 {
            return Err(Refusal::OtherUser.into());
        }
        let write = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
        debug_assert!(write || flags.acc_mode() == OpenAccMode::O_RDONLY);
        if write && (shelf == Shelf::Snapshots || self.read_only) {
            return Err(Refusal::Snapshot.into());
        }
        let created = self.shown(inode, shelf, &id)?.created;
        let disk = self.export.open(shelf, &id, write, request.pid())?;
        let handle = self.handles.open_file(OpenFile {
            inode: inode.0,
            shelf,
            id,
            disk,
            write,
            opener: request.pid(),
            created,
            touched: AtomicBool::new(false),
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

    fn close_disk(&self, file: &OpenFile) {
        if file.touched.load(Ordering::Relaxed) {
            self.changed.lock().insert(file.id.clone(), SystemTime::now());
        }
        self.export.close(file.shelf, &file.id, file.opener);
    }

    fn read_disk<'b>(
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

    fn write_disk(&self, handle: FileHandle, at: u64, data: &[u8], flags: OpenFlags) -> Result<u32, Errno> {
        let files = self.handles.files();
        let file = files.get(handle.0).ok_or(Refusal::UnknownHandle)?;
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
        // The kernel sends no fsync after a direct write; it tells us instead, for O_SYNC, O_DSYNC and RWF_DSYNC alike.
        if flags.0 & libc::O_DSYNC != 0 {
            file.disk.flush()?;
        }
        Ok(fits.len() as u32)
    }

    fn flush_disk(&self, handle: FileHandle) -> Result<(), Errno> {
        let files = self.handles.files();
        let file = files.get(handle.0).ok_or(Refusal::UnknownHandle)?;
        match file.shelf {
            Shelf::Volumes => file.disk.flush(),
            Shelf::Snapshots => Ok(()),
        }
    }

    fn allocate(&self, handle: FileHandle, at: u64, len: u64, mode: i32) -> Result<(), Errno> {
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

    fn seek_disk(&self, handle: FileHandle, at: i64, whence: i32) -> Result<i64, Errno> {
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

    /// Setting the size succeeds and changes nothing, so that `dd of=FILE` and `cp` work as on a block device. Times are
    /// accepted and not kept. Setting mode or owner to what they are is no change.
    fn set_attributes(
        &self,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
    ) -> Result<FileAttr, Errno> {
        let attr = self.attributes(inode)?;
        if mode.is_some_and(|mode| mode & 0o7777 != u32::from(attr.perm))
            || uid.is_some_and(|uid| uid != attr.uid)
            || gid.is_some_and(|gid| gid != attr.gid)
        {
            return Err(Refusal::FixedOwner.into());
        }
        match (size, self.node(inode)?) {
            (Some(_), Node::Folder(_)) => Err(Refusal::IsAFolder.into()),
            (Some(_), Node::Disk(Shelf::Snapshots, _)) => Err(Refusal::Snapshot.into()),
            _ => Ok(attr),
        }
    }

    fn may_access(&self, inode: INodeNo, mask: AccessFlags) -> Result<(), Errno> {
        match self.node(inode)? {
            Node::Disk(..) if mask.contains(AccessFlags::X_OK) => Err(Refusal::NotAProgram.into()),
            Node::Disk(Shelf::Snapshots, _) if mask.contains(AccessFlags::W_OK) => {
                Err(Refusal::Snapshot.into())
            }
            Node::Folder(_) if mask.contains(AccessFlags::W_OK) => Err(Refusal::FixedTree.into()),
            _ => Ok(()),
        }
    }
}

impl From<&Entry> for Shown {
    fn from(entry: &Entry) -> Self {
        Self { size_bytes: entry.size_bytes, created: attributes::time_of_seconds(entry.created_at) }
    }
}

/// Where a link points, from its folder.
fn link_target(shelf: Shelf, id: &str) -> String {
    format!("../../{}/{id}", shelf_name(shelf))
}

/// One bad name would make the kernel fail the whole folder.
fn is_showable(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name != "."
        && name != ".."
        && !name.contains(['/', '\0'])
}

/// Answers, or refuses; a panic on the way is EIO and ends nothing else.
fn caught<T>(what: &'static str, deed: impl FnOnce() -> Result<T, Errno>) -> Result<T, fuser::Errno> {
    let done = catch_unwind(AssertUnwindSafe(deed)).unwrap_or_else(|_| {
        tracing::error!("a {what} request panicked; it was answered with an I/O error");
        Err(Refusal::Panicked.into())
    });
    done.map_err(fuser::Errno::from_i32)
}

/// The memory of one reader thread for answers to reads; page-aligned, so that direct I/O below may read into it.
struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    const ALIGNMENT: usize = 4096;

    fn first(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() < len + Self::ALIGNMENT {
            // Zeroed memory comes unmapped: only what requests use becomes resident.
            self.bytes = vec![0; len.max(REQUEST_BYTES as usize) + Self::ALIGNMENT];
        }
        let start = self.bytes.as_ptr().align_offset(Self::ALIGNMENT);
        &mut self.bytes[start..start + len]
    }
}

thread_local! {
    static BUFFER: RefCell<Buffer> = const { RefCell::new(Buffer { bytes: Vec::new() }) };
}

impl Filesystem for Tree {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each only where the kernel has it; without any of them the mount works, slower or without mmap. Over io_uring
        // is left out: with this library the mount would hang.
        for wish in
            [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP]
        {
            let _ = config.add_capabilities(wish);
        }
        // Values out of range are refused with the nearest that is not; ours are within.
        let _ = config.set_max_write(REQUEST_BYTES);
        let _ = config.set_max_background(self.max_background);
        let _ = config.set_congestion_threshold(self.max_background);
        Ok(())
    }

    fn destroy(&mut self) {
        // At an unmount the kernel drops the releases still on their way.
        for file in self.handles.close_all() {
            let _ = caught("close", || {
                self.close_disk(&file);
                Ok(())
            });
        }
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.answer("lookup", || {
            let (node, mut attr) = self.find(parent, name)?;
            let time = if matches!(node, Node::Folder(_)) { LONG_TIME } else { NO_TIME };
            attr.ino = INodeNo(self.names.remember(node));
            Ok((time, attr))
        });
        match found {
            Ok((time, attr)) => reply.entry(&time, &attr, GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _request: &Request, inode: INodeNo, lookups: u64) {
        self.names.forget(inode.0, lookups);
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.answer("getattr", || self.attributes(inode)) {
            Ok(attr) => reply.attr(&NO_TIME, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.answer("setattr", || self.set_attributes(inode, mode, uid, gid, size)) {
            Ok(attr) => reply.attr(&NO_TIME, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        let target = self.answer("readlink", || match self.node(inode)? {
            Node::Link(shelf, name) => {
                let entry = self.export.find_by_name(shelf, &name)?.ok_or(Refusal::NoSuchName)?;
                Ok(link_target(shelf, &entry.id))
            }
            _ => Err(Refusal::Senseless.into()),
        });
        match target {
            Ok(target) => reply.data(target.as_bytes()),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.answer("open", || self.open_disk(request, inode, flags)) {
            Ok((handle, how)) => reply.opened(FileHandle(handle), how),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            match self.answer("read", || self.read_disk(handle, offset, size, buffer)) {
                Ok(bytes) => reply.data(bytes),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.answer("write", || self.write_disk(handle, offset, data, flags)) {
            Ok(written) => reply.written(written),
            Err(errno) => reply.error(errno),
        }
    }

    /// At each close(2). Closing promises nothing about durability; fsync does.
    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let closed = self.answer("close", || {
            if let Some(file) = self.handles.close_file(handle.0) {
                self.close_disk(&file);
            }
            Ok(())
        });
        answer_empty(closed, reply);
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        answer_empty(self.answer("fsync", || self.flush_disk(handle)), reply);
    }

    fn opendir(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(self.handles.open_folder()), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        // From the start, the folder is listed anew; from elsewhere, as it was then, so that entries which come and go
        // neither repeat nor hide others.
        let lines = self.answer("readdir", || {
            let kept = if offset == 0 { None } else { self.handles.lines(handle.0) };
            if let Some(kept) = kept {
                return Ok(kept);
            }
            let lines = Arc::new(self.lines_of(self.folder(inode)?)?);
            self.handles.keep_lines(handle.0, Arc::clone(&lines));
            Ok(lines)
        });
        match lines {
            Ok(lines) => {
                for (index, line) in
                    lines.iter().enumerate().skip(usize::try_from(offset).unwrap_or(usize::MAX))
                {
                    if reply.add(INodeNo(line.inode), index as u64 + 1, line.kind, &line.name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.handles.close_folder(handle.0);
        reply.ok();
    }

    /// A folder is rows of the catalog, durable before they are seen.
    fn fsyncdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _data: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u64 = 4096;
        match self.answer("statfs", || self.export.space()) {
            Ok((total, available)) => {
                let free = available / BLOCK;
                reply.statfs(
                    total / BLOCK,
                    free,
                    free,
                    0,
                    0,
                    BLOCK as u32,
                    NAME_BYTES_MAX as u32,
                    BLOCK as u32,
                );
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn access(&self, _request: &Request, inode: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        answer_empty(self.answer("access", || self.may_access(inode, mask)), reply);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        answer_empty(self.answer("fallocate", || self.allocate(handle, offset, length, mode)), reply);
    }

    fn lseek(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.answer("lseek", || self.seek_disk(handle, offset, whence)) {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }

    // Refused, each with the errno a person expects.

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(refused(Refusal::FixedTree));
    }

    fn mkdir(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(refused(Refusal::FixedTree));
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(refused(Refusal::FixedTree));
    }

    fn rmdir(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(refused(Refusal::FixedTree));
    }

    fn symlink(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(refused(Refusal::FixedTree));
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(refused(Refusal::FixedTree));
    }

    fn link(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(refused(Refusal::FixedTree));
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(refused(Refusal::FixedTree));
    }

    fn ioctl(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(refused(Refusal::NotADevice));
    }

    // Left to the kernel: it asks once, and from then on does without or by itself.

    fn setxattr(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(refused(Refusal::NotOurs));
    }

    fn getxattr(&self, _request: &Request, _inode: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(refused(Refusal::NotOurs));
    }

    fn listxattr(&self, _request: &Request, _inode: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(refused(Refusal::NotOurs));
    }

    fn removexattr(&self, _request: &Request, _inode: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(refused(Refusal::NotOurs));
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        reply.error(refused(Refusal::NotOurs));
    }

    fn getlk(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        _start: u64,
        _end: u64,
        _kind: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        reply.error(refused(Refusal::NotOurs));
    }

    fn setlk(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        _start: u64,
        _end: u64,
        _kind: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(refused(Refusal::NotOurs));
    }

    fn bmap(&self, _request: &Request, _inode: INodeNo, _block_bytes: u32, _block: u64, reply: ReplyBmap) {
        reply.error(refused(Refusal::NotOurs));
    }

    fn poll(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(refused(Refusal::NotOurs));
    }

    fn copy_file_range(
        &self,
        _request: &Request,
        _from: INodeNo,
        _from_handle: FileHandle,
        _from_offset: u64,
        _to: INodeNo,
        _to_handle: FileHandle,
        _to_offset: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(refused(Refusal::NotOurs));
    }
}

fn answer_empty(done: Result<(), fuser::Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn refused(refusal: Refusal) -> fuser::Errno {
    fuser::Errno::from_i32(refusal.into())
}
