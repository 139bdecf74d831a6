//! The ceiling that `tools/bench` measures a volume against: one plain file shown through fuser, with the options of our
//! own mount, and nothing between. No cipher, no map, none of our rooms.
//!
//! `bare_mount FILE MOUNTPOINT [--threads N] [--clone-fd]` shows FILE as MOUNTPOINT/disk until it is unmounted.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, WriteFlags,
};

const ROOT: INodeNo = INodeNo(1);
const DISK: INodeNo = INodeNo(2);
const REQUEST_BYTES: usize = 1 << 20;
const PAGE: usize = 4096;
const MAX_BACKGROUND: u16 = 128;
const TTL: Duration = Duration::from_secs(1);

struct Bare {
    file: File,
    size: u64,
}

thread_local! {
    /// Lent from a page's beginning: some processors copy a file's bytes five times as slowly to an address just behind it.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; REQUEST_BYTES + PAGE]);
}

impl Bare {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let now = SystemTime::now();
        let is_disk = inode == DISK;
        FileAttr {
            ino: inode,
            size: if is_disk { self.size } else { 0 },
            blocks: if is_disk { self.size / 512 } else { 0 },
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind: if is_disk { FileType::RegularFile } else { FileType::Directory },
            perm: if is_disk { 0o600 } else { 0o700 },
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn errno(error: io::Error) -> Errno {
        Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl Filesystem for Bare {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wish in
            [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP]
        {
            let _ = config.add_capabilities(wish);
        }
        let _ = config.set_max_write(REQUEST_BYTES as u32);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == ROOT && name == "disk" {
            reply.entry(&TTL, &self.attributes(DISK), Generation(0));
        } else {
            reply.error(Errno::from_i32(libc::ENOENT));
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(1), FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES);
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let start = buffer.as_ptr().align_offset(PAGE);
            let buffer = &mut buffer[start..][..size as usize];
            match self.file.read_at(buffer, offset) {
                Ok(len) => reply.data(&buffer[..len]),
                Err(error) => reply.error(Self::errno(error)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.file.write_all_at(data, offset) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(Self::errno(error)),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _data: bool,
        reply: ReplyEmpty,
    ) {
        match self.file.sync_data() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(Self::errno(error)),
        }
    }

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

    fn readdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if offset == 0 {
            let _ = reply.add(DISK, 1, FileType::RegularFile, "disk");
        }
        reply.ok();
    }

    fn getxattr(&self, _request: &Request, _inode: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::from_i32(libc::ENOSYS));
    }
}

fn main() -> ExitCode {
    let mut places = Vec::new();
    let mut threads = 8;
    let mut clone_fd = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--clone-fd" => clone_fd = true,
            "--threads" => threads = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(threads),
            _ => places.push(argument),
        }
    }
    let [file, mount_point] = places.as_slice() else {
        eprintln!("usage: bare_mount FILE MOUNTPOINT [--threads N] [--clone-fd]");
        return ExitCode::from(2);
    };
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("bare".into()), MountOption::Subtype("bare".into())];
    config.n_threads = Some(threads);
    config.clone_fd = clone_fd;
    let served = File::options().read(true).write(true).open(file).and_then(|file| {
        let size = file.metadata()?.len();
        fuser::mount(Bare { file, size }, mount_point, &config)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bare_mount: {error}");
            ExitCode::FAILURE
        }
    }
}
