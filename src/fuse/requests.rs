//! The requests of the kernel, one by one: decode, ask the [`Tree`] or the [`Files`], encode.

use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::attributes::Owner;
use super::buffers::{lend, prefer_huge_requests};
use super::errno::Refusal;
use super::files::{Files, Opening, REQUEST_BYTES, is_synced};
use super::gate::Gate;
use super::handles::{Handles, Line, WriteAnswer};
use super::names::Node;
use super::session::Options;
use super::tree::{NAME_BYTES_MAX, Tree};
use super::{Errno, Export};

/// How long the kernel may believe what it was told. Not at all: a volume may be made, renamed, resized or deleted now.
const NO_TIME: Duration = Duration::ZERO;
/// The folders stay.
const LONG_TIME: Duration = Duration::from_secs(3600);
/// Inode numbers name the same node for the life of a mount.
const GENERATION: Generation = Generation(0);

/// Bytes of a write that takes so little time that its answer may wait for others'.
const SMALL_WRITE: usize = 64 << 10;

/// The file system of one mount.
pub(super) struct Requests {
    export: Arc<dyn Export>,
    tree: Tree,
    files: Arc<Files>,
    handles: Arc<Handles>,
    gate: Arc<Gate>,
    max_background: u16,
}

impl Requests {
    pub(super) fn new(export: Arc<dyn Export>, options: &Options) -> Self {
        let owner =
            Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        let handles = Arc::new(Handles::new());
        let files = Arc::new(Files::new(export.clone(), handles.clone(), owner, options));
        Self {
            tree: Tree::new(export.clone(), files.clone(), owner),
            export,
            files,
            handles,
            gate: Arc::new(Gate::new()),
            max_background: options.max_background,
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

    fn open_disk(
        &self,
        request: &Request,
        inode: INodeNo,
        flags: OpenFlags,
    ) -> Result<(u64, FopenFlags), Errno> {
        let (shelf, id) = self.tree.disk(inode)?;
        if !self.gate.admits_opens() {
            return Err(Refusal::Ending.into());
        }
        let created = self.tree.shown(inode, shelf, &id)?.created;
        self.files.open(Opening { request, inode: inode.0, shelf, id, created, flags })
    }

    /// From the start, a folder is listed anew; from elsewhere, as it was then, so that entries which come and go neither
    /// repeat nor hide others.
    fn lines(&self, inode: INodeNo, handle: FileHandle, offset: u64) -> Result<Arc<Vec<Line>>, Errno> {
        let kept = if offset == 0 { None } else { self.handles.lines(handle.0) };
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let lines = Arc::new(self.tree.lines_of(self.tree.folder(inode)?)?);
        self.handles.keep_lines(handle.0, Arc::clone(&lines));
        Ok(lines)
    }
}

/// Answers, or refuses; a panic on the way is EIO and ends nothing else.
fn caught<T>(what: &'static str, deed: impl FnOnce() -> Result<T, Errno>) -> Result<T, fuser::Errno> {
    let done = catch_unwind(AssertUnwindSafe(deed)).unwrap_or_else(|_| {
        tracing::error!("a {what} request panicked; it was answered with an I/O error");
        Err(Refusal::Panicked.into())
    });
    done.map_err(fuser::Errno::from_i32)
}

impl Filesystem for Requests {
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
                self.files.closed(&file);
                Ok(())
            });
        }
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.answer("lookup", || {
            let (node, mut attr) = self.tree.find(parent, name)?;
            let time = if matches!(node, Node::Folder(_)) { LONG_TIME } else { NO_TIME };
            attr.ino = INodeNo(self.tree.names.remember(node));
            Ok((time, attr))
        });
        match found {
            Ok((time, attr)) => reply.entry(&time, &attr, GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _request: &Request, inode: INodeNo, lookups: u64) {
        self.tree.names.forget(inode.0, lookups);
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.answer("getattr", || self.tree.attributes(inode)) {
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
        match self.answer("setattr", || self.tree.set_attributes(inode, mode, uid, gid, size)) {
            Ok(attr) => reply.attr(&NO_TIME, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        let target = self.answer("readlink", || self.tree.target(inode));
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
        lend(size as usize, |buffer| {
            match self.answer("read", || self.files.read(handle, offset, size, buffer)) {
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
        prefer_huge_requests(data);
        let files = self.handles.files();
        let Some(file) = files.get(handle.0) else {
            let refusal = self.answer("write", || Err(Refusal::UnknownHandle.into()));
            return answer_write((reply, refusal));
        };
        let write = || self.answer("write", || self.files.write(file, offset, data, flags));
        if data.len() > SMALL_WRITE || is_synced(flags) {
            return answer_write((reply, write()));
        }
        let under_way = file.answers.begin();
        let written = write();
        file.answers.end((reply, written), under_way).into_iter().flatten().for_each(answer_write);
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
            self.files.close(handle);
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
        answer_empty(self.answer("fsync", || self.files.flush(handle)), reply);
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
        let lines = self.answer("readdir", || self.lines(inode, handle, offset));
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
        answer_empty(self.answer("access", || self.tree.may_access(inode, mask)), reply);
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
        answer_empty(self.answer("fallocate", || self.files.allocate(handle, offset, length, mode)), reply);
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
        match self.answer("lseek", || self.files.seek(handle, offset, whence)) {
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

fn answer_write((reply, written): WriteAnswer) {
    match written {
        Ok(bytes) => reply.written(bytes),
        Err(errno) => reply.error(errno),
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
