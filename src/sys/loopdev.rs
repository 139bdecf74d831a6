//! Loop devices: a file as a block device, for file systems that want one.
//!
//! Attaching is for root. A loop device asks its file for what its users write, flushes included; with direct I/O it
//! keeps no second copy in the page cache.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode};
use thiserror::Error;

use super::mount::is_below;

// linux/loop.h
const LOOP_CLR_FD: libc::c_ulong = 0x4c01;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4c05;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4c07;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232 && size_of::<LoopConfig>() == 304);

const NO_INFO: LoopInfo = LoopInfo {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// Why a loop device could not be made or taken away.
#[derive(Debug, Error)]
pub enum LoopError {
    /// Only root may.
    #[error("attaching a loop device needs root: {0}")]
    NeedsRoot(io::Error),
    /// The kernel has no loop driver here.
    #[error("this kernel or container has no loop devices ({0}); try: modprobe loop")]
    NoDriver(io::Error),
    /// The device is mounted, or a program holds it.
    #[error("{} is in use", .0.display())]
    InUse(PathBuf),
    /// No loop device has this name, or it has no file.
    #[error("{} is not attached", .0.display())]
    NotAttached(PathBuf),
    /// Detached, yet what had not been written is lost.
    #[error("{} is detached, but its last writes failed: {source}", device.display())]
    LastWrites {
        /// The device.
        device: PathBuf,
        /// What the flush said.
        source: io::Error,
    },
    /// The system call failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl LoopError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io { path: path.into(), source }
    }
}

/// How to attach.
#[derive(Clone, Copy, Debug)]
pub struct LoopOptions {
    /// 4096, or 512 for what insists on it.
    pub sector_bytes: u32,
    /// The device refuses writes, as it must over a snapshot.
    pub read_only: bool,
}

impl Default for LoopOptions {
    fn default() -> Self {
        Self { sector_bytes: 4096, read_only: false }
    }
}

/// A loop device with its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopDevice {
    /// `/dev/loopN`.
    pub device: PathBuf,
    /// The file as the kernel names it; not always reachable by that name.
    pub file: PathBuf,
    /// It bypasses the page cache.
    pub direct: bool,
    /// It refuses writes.
    pub read_only: bool,
}

/// Attaches `file` to a free loop device, with direct I/O where the file's system allows it.
pub fn attach(file: &Path, options: &LoopOptions) -> Result<LoopDevice, LoopError> {
    let backing = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .custom_flags(libc::O_CLOEXEC)
        .open(file)
        .map_err(LoopError::io(file))?;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control").map_err(no_control)?;
    // Another program may take the free device between the two calls; then there is another free one.
    let mut flags = LO_FLAGS_DIRECT_IO | if options.read_only { LO_FLAGS_READ_ONLY } else { 0 };
    let mut tries = 0;
    loop {
        tries += 1;
        // SAFETY: LOOP_CTL_GET_FREE takes no argument.
        let number =
            checked(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) }).map_err(no_control)?;
        let device = open_device(number as u32, !options.read_only)?;
        let name = device_path(number as u32);
        let info = LoopInfo { flags, file_name: name_field(file), ..NO_INFO };
        let fd = backing.as_raw_fd() as u32;
        let config = LoopConfig { fd, block_size: options.sector_bytes, info, reserved: [0; 8] };
        // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, of which `config` has the size and layout.
        match checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) }) {
            Ok(_) => return find(&name)?.ok_or(LoopError::NotAttached(name)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && tries < 100 => {
                thread::sleep(Duration::from_millis(tries));
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && flags & LO_FLAGS_DIRECT_IO != 0 => {
                flags &= !LO_FLAGS_DIRECT_IO;
            }
            Err(source) => return Err(LoopError::Io { path: name, source }),
        }
    }
}

/// Writes out what the device holds and takes it away. Refused while it is mounted or held.
pub fn detach(device: &Path) -> Result<(), LoopError> {
    if find(device)?.is_none() {
        return Err(LoopError::NotAttached(device.into()));
    }
    // Asked to, the kernel detaches a device in use later, when it is free; exclusive opening tells us before.
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device).map_err(
            |source| match source.raw_os_error() {
                Some(libc::EBUSY) => LoopError::InUse(device.into()),
                Some(libc::EACCES | libc::EPERM) => LoopError::NeedsRoot(source),
                _ => LoopError::Io { path: device.into(), source },
            },
        )?;
    let flushed = file.sync_all();
    // SAFETY: LOOP_CLR_FD takes no argument.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), LOOP_CLR_FD) }).map_err(LoopError::io(device))?;
    drop(file);
    // udev may look at it for a moment; it goes when the last has closed it.
    let until = Instant::now() + Duration::from_secs(5);
    while find(device)?.is_some() {
        if Instant::now() > until {
            return Err(LoopError::InUse(device.into()));
        }
        thread::sleep(Duration::from_millis(5));
    }
    flushed.map_err(|source| LoopError::LastWrites { device: device.into(), source })
}

/// Writes out what the device holds, and takes it away as soon as nobody uses it: now, or when what is mounted on it is
/// unmounted. Whether it is gone.
pub fn let_go(device: &Path) -> Result<bool, LoopError> {
    let file = File::open(device).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => LoopError::NeedsRoot(source),
        _ => LoopError::Io { path: device.into(), source },
    })?;
    let flushed = file.sync_all();
    // SAFETY: LOOP_CLR_FD takes no argument. Of a device in use the kernel only notes it.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), LOOP_CLR_FD) }).map_err(LoopError::io(device))?;
    drop(file);
    flushed.map_err(|source| LoopError::LastWrites { device: device.into(), source })?;
    Ok(find(device)?.is_none())
}

/// Makes durable in its file what was written to the device. Needs the right to open it.
pub fn flush(device: &Path) -> io::Result<()> {
    File::open(device)?.sync_all()
}

/// Tells the device that its file has grown.
pub fn take_new_size(device: &Path) -> io::Result<()> {
    let file = File::open(device)?;
    // SAFETY: LOOP_SET_CAPACITY takes no argument.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), LOOP_SET_CAPACITY) }).map(drop)
}

/// All loop devices that have a file. Anyone may ask.
pub fn list() -> io::Result<Vec<LoopDevice>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok()) {
            devices.extend(read_device(number));
        }
    }
    devices.sort_by(|a, b| {
        (a.device.as_os_str().len(), &a.device).cmp(&(b.device.as_os_str().len(), &b.device))
    });
    Ok(devices)
}

/// The loop devices over one file.
pub fn backed_by(file: &Path) -> io::Result<Vec<LoopDevice>> {
    let path = fs::canonicalize(file)?;
    let meta = fs::metadata(&path)?;
    let mut devices = list()?;
    // The name is what is compared first: to ask a device for its file's inode may wait for whoever serves that file.
    devices.retain(|device| {
        device.file == path
            || device.file.file_name() == path.file_name()
                && file_of(&device.device).is_ok_and(|file| file == (meta.dev(), meta.ino()))
    });
    Ok(devices)
}

/// The loop devices over any file below a mount point.
pub fn below(mount_point: &Path) -> io::Result<Vec<LoopDevice>> {
    let mut devices = list()?;
    devices.retain(|device| is_below(&device.file, mount_point));
    Ok(devices)
}

fn find(device: &Path) -> Result<Option<LoopDevice>, LoopError> {
    let number = device.file_name().and_then(|name| name.to_str()?.strip_prefix("loop")?.parse().ok());
    number.map(read_device).ok_or_else(|| LoopError::NotAttached(device.into()))
}

fn read_device(number: u32) -> Option<LoopDevice> {
    let folder = PathBuf::from(format!("/sys/block/loop{number}"));
    let mut file = fs::read(folder.join("loop/backing_file")).ok()?;
    if file.last() == Some(&b'\n') {
        file.pop();
    }
    let is_one = |name: &str| fs::read(folder.join(name)).is_ok_and(|text| text.starts_with(b"1"));
    Some(LoopDevice {
        device: device_path(number),
        file: std::ffi::OsString::from_vec(file).into(),
        direct: is_one("loop/dio"),
        read_only: is_one("ro"),
    })
}

/// Device number and inode of a loop device's file.
fn file_of(device: &Path) -> io::Result<(u64, u64)> {
    let file = File::open(device)?;
    let mut info = NO_INFO;
    // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64`, of which `info` has the size and layout.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), LOOP_GET_STATUS64, &mut info) })?;
    Ok((info.device, info.inode))
}

fn device_path(number: u32) -> PathBuf {
    format!("/dev/loop{number}").into()
}

fn open_device(number: u32, write: bool) -> Result<File, LoopError> {
    let path = device_path(number);
    let open = || OpenOptions::new().read(true).write(write).open(&path);
    match open() {
        // In a container nobody makes the node.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_node(number, &path).map_err(LoopError::io(&path))?;
            open().map_err(LoopError::io(&path))
        }
        other => other.map_err(LoopError::io(&path)),
    }
}

fn make_node(number: u32, path: &Path) -> io::Result<()> {
    let text = fs::read_to_string(format!("/sys/block/loop{number}/dev"))?;
    let numbers = text
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let (major, minor) = numbers.ok_or(io::ErrorKind::InvalidData)?;
    match rustix::fs::mknodat(
        CWD,
        path,
        FileType::BlockDevice,
        Mode::from(0o660),
        rustix::fs::makedev(major, minor),
    ) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

fn no_control(source: io::Error) -> LoopError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => LoopError::NeedsRoot(source),
        _ => LoopError::NoDriver(source),
    }
}

/// The end of the file's name, for programs that list devices by it.
fn name_field(file: &Path) -> [u8; 64] {
    let mut field = [0; 64];
    let name = file.as_os_str().as_encoded_bytes();
    let len = name.len().min(63);
    field[..len].copy_from_slice(&name[..len]);
    field
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
