//! The kernel's requests: decode, change or ask the tree, encode.

use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};

use super::Failing;
use super::common::image::{Op, PAGE};
use super::server::{Tree, Trees};
use super::state::{Change, Event, FsState, Ino, ROOT};

/// All changes come through the kernel, which may keep what it knows.
const LONG: Duration = Duration::from_secs(36_000);
const GENERATION: Generation = Generation(0);
type Answer<T> = Result<T, Errno>;

pub(super) struct Requests {
    pub trees: Trees,
}

fn attributes(disk: u64, ino: Ino, state: &FsState) -> Answer<FileAttr> {
    let node = state.node(ino).ok_or(Errno::ENOENT)?;
    // Of this run: what has long been written is swept.
    static BEGAN: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);
    let time = *BEGAN;
    let kind = if node.is_folder { FileType::Directory } else { FileType::RegularFile };
    Ok(FileAttr {
        ino: INodeNo(join(disk, ino)),
        size: node.image.len,
        blocks: node.image.pages.count() * PAGE / 512,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: node.mode as u16 & 0o7777,
        nlink: if node.is_folder { 2 } else { 1 },
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: PAGE as u32,
        flags: 0,
    })
}

/// The number of a file's disk, and the file's number there.
fn split(ino: u64) -> (u64, Ino) {
    (ino >> 32, ino & u64::from(u32::MAX))
}

fn join(disk: u64, ino: Ino) -> u64 {
    disk << 32 | ino
}

/// What holds the disks' folders.
fn top() -> FileAttr {
    let mut top = attributes(0, ROOT, &FsState::new()).expect("a new state has its root");
    top.ino = INodeNo(ROOT);
    top
}

impl Requests {
    fn with<T>(&self, ino: INodeNo, f: impl FnOnce(&mut Tree, u64, Ino) -> Answer<T>) -> Answer<T> {
        let (disk, ino) = split(ino.0);
        let mut trees = self.trees.lock();
        f(trees.get_mut(&disk).ok_or(Errno::ENOENT)?, disk, ino)
    }

    /// Makes a file or folder.
    fn make(&self, parent: INodeNo, name: &OsStr, is_folder: bool, mode: u32) -> Answer<FileAttr> {
        self.with(parent, |tree, disk, parent| {
            if folder(&tree.state, parent)?.names.contains_key(name) {
                return Err(Errno::EEXIST);
            }
            tree.count(Failing::Changes).map_err(Errno::from_i32)?;
            let ino = tree.state.next;
            tree.change(Event::Make(ino, is_folder, mode & 0o7777));
            tree.change(Event::Change(Arc::new(Change::Name(parent, name.to_owned(), Some(ino)))));
            attributes(disk, ino, &tree.state)
        })
    }

    fn remove(&self, parent: INodeNo, name: &OsStr, is_folder: bool) -> Answer<()> {
        if parent.0 == ROOT {
            // A disk's own folder goes when nobody has it any more.
            return Err(Errno::EBUSY);
        }
        self.with(parent, |tree, _, parent| {
            let ino = child(&tree.state, parent, name)?;
            let node = tree.state.node(ino).ok_or(Errno::ENOENT)?;
            match (is_folder, node.is_folder) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                _ if !node.names.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
            tree.count(Failing::Changes).map_err(Errno::from_i32)?;
            tree.change(Event::Change(Arc::new(Change::Name(parent, name.to_owned(), None))));
            Ok(())
        })
    }

    fn change_bytes(&self, ino: INodeNo, op: Op) -> Answer<()> {
        self.with(ino, |tree, _, ino| {
            if !is_shared_memory(&tree.state, ino) {
                tree.count(Failing::Changes).map_err(Errno::from_i32)?;
            }
            tree.change(Event::Change(Arc::new(Change::Bytes(ino, op))));
            Ok(())
        })
    }

    fn sync(&self, ino: INodeNo) -> Answer<()> {
        self.with(ino, |tree, _, ino| {
            tree.count(Failing::Changes).map_err(Errno::from_i32)?;
            tree.change(Event::Sync(ino));
            Ok(())
        })
    }
}

fn folder(state: &FsState, ino: Ino) -> Answer<&super::state::Node> {
    state.node(ino).filter(|node| node.is_folder).ok_or(Errno::ENOENT)
}

fn child(state: &FsState, parent: Ino, name: &OsStr) -> Answer<Ino> {
    folder(state, parent)?.names.get(name).copied().ok_or(Errno::ENOENT)
}

/// SQLite's index of its log, which is never synced and made anew when it is first opened.
fn is_shared_memory(state: &FsState, ino: Ino) -> bool {
    let region = |name: &&str| state.node(ROOT).and_then(|root| root.names.get(OsStr::new(name)));
    ["north", "south"].iter().filter_map(region).any(|folder| {
        state.node(*folder).is_some_and(|folder| folder.names.get(OsStr::new("catalog.db-shm")) == Some(&ino))
    })
}

macro_rules! reply {
    ($result:expr, $reply:ident, |$value:pat_param| $ok:expr) => {
        match $result {
            Ok($value) => $ok,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Requests {
    fn init(&mut self, _: &Request, _: &mut KernelConfig) -> io::Result<()> {
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = if parent.0 == ROOT {
            let disk = name.to_str().and_then(|name| name.parse().ok()).unwrap_or(0);
            self.with(INodeNo(join(disk, ROOT)), |tree, disk, ino| attributes(disk, ino, &tree.state))
        } else {
            self.with(parent, |tree, disk, parent| {
                attributes(disk, child(&tree.state, parent, name)?, &tree.state)
            })
        };
        reply!(found, reply, |found| reply.entry(&LONG, &found, GENERATION));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if ino.0 == ROOT {
            return reply.attr(&LONG, &top());
        }
        let found = self.with(ino, |tree, disk, ino| attributes(disk, ino, &tree.state));
        reply!(found, reply, |found| reply.attr(&LONG, &found));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let resized = size.map_or(Ok(()), |size| self.change_bytes(ino, Op::SetLen(size)));
        let found = resized.and_then(|()| {
            self.with(ino, |tree, disk, ino| {
                if let Some(mode) = mode {
                    tree.change(Event::Mode(ino, mode & 0o7777));
                }
                attributes(disk, ino, &tree.state)
            })
        });
        reply!(found, reply, |found| reply.attr(&LONG, &found));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = self.make(parent, name, true, mode & !umask);
        reply!(made, reply, |made| reply.entry(&LONG, &made, GENERATION));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let made = self.make(parent, name, false, mode & !umask);
        reply!(made, reply, |made| reply.created(
            &LONG,
            &made,
            GENERATION,
            FileHandle(0),
            FopenFlags::FOPEN_KEEP_CACHE
        ));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply!(self.remove(parent, name, false), reply, |()| reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply!(self.remove(parent, name, true), reply, |()| reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (disk, new_parent) = split(new_parent.0);
        let done = self.with(parent, |tree, own, parent| {
            if own != disk {
                return Err(Errno::EXDEV);
            }
            let ino = child(&tree.state, parent, name)?;
            let taken = folder(&tree.state, new_parent)?.names.contains_key(new_name);
            if taken && flags.contains(RenameFlags::RENAME_NOREPLACE) {
                return Err(Errno::EEXIST);
            }
            tree.count(Failing::Changes).map_err(Errno::from_i32)?;
            let names = [(parent, name.to_owned()), (new_parent, new_name.to_owned())];
            tree.change(Event::Change(Arc::new(Change::Move(names, ino))));
            Ok(())
        });
        reply!(done, reply, |()| reply.ok());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.with(ino, |tree, _, ino| {
            if !is_shared_memory(&tree.state, ino) {
                tree.count(Failing::Reads).map_err(Errno::from_i32)?;
            }
            let image = &tree.state.node(ino).ok_or(Errno::ENOENT)?.image;
            let mut bytes = vec![0; image.len.saturating_sub(offset).min(u64::from(size)) as usize];
            image.read(&mut bytes, offset);
            Ok(bytes)
        });
        reply!(read, reply, |bytes| reply.data(&bytes));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.change_bytes(ino, Op::write(offset, data));
        reply!(written, reply, |()| reply.written(data.len() as u32));
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply!(self.sync(ino), reply, |()| reply.ok());
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply!(self.sync(ino), reply, |()| reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.with(ino, |tree, disk, ino| {
            let names = folder(&tree.state, ino)?.names.iter().map(|(name, ino)| {
                let is_folder = tree.state.node(*ino).is_some_and(|node| node.is_folder);
                (
                    join(disk, *ino),
                    if is_folder { FileType::Directory } else { FileType::RegularFile },
                    name.clone(),
                )
            });
            Ok(names.collect::<Vec<_>>())
        });
        reply!(listed, reply, |listed| {
            for (i, (ino, kind, name)) in listed.into_iter().enumerate().skip(offset as usize) {
                if reply.add(INodeNo(ino), i as u64 + 1, kind, name) {
                    break;
                }
            }
            reply.ok()
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = 1 << 28;
        reply.statfs(blocks, blocks, blocks, 1 << 20, 1 << 20, PAGE as u32, 255, PAGE as u32);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let done = match mode {
            m if m == punch => self.change_bytes(ino, Op::Punch(offset, length)),
            _ => Err(Errno::EOPNOTSUPP),
        };
        reply!(done, reply, |()| reply.ok());
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = self.with(ino, |tree, _, ino| {
            let image = &tree.state.node(ino).ok_or(Errno::ENOENT)?.image;
            image.seek(offset as u64, whence == libc::SEEK_HOLE).ok_or(Errno::ENXIO)
        });
        reply!(found, reply, |at| reply.offset(at as i64));
    }
}
