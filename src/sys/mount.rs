//! FUSE mounts by hand: as root with `mount(2)`, else through the setuid helper `fusermount3`.
//!
//! fuser can mount too, but its teardown unmounts a mount point a second time after an outside `umount`, and an EBUSY
//! consumes its handle. Here a mount is only a file descriptor and a path; who unmounts, and when, is the caller's.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};
use thiserror::Error;

/// The file system type a mount shows in `/proc/self/mountinfo` is `fuse.` and this.
pub const SUBTYPE: &str = "terrane";
const HELPER: &str = "fusermount3";

/// Why a mount or unmount failed.
#[derive(Debug, Error)]
pub enum MountError {
    /// The mount helper is not installed, and only root can do without.
    #[error("{HELPER} is not installed, which only root can do without: install the package fuse3")]
    NoHelper,
    /// The kernel has no FUSE, or this machine does not let us use it.
    #[error("cannot open /dev/fuse: {0}; load it with `modprobe fuse`, or have it let into this container")]
    NoDevice(io::Error),
    /// The device is for root alone, which it is not where udev runs.
    #[error("/dev/fuse is closed to users; as root: chmod 666 /dev/fuse")]
    ClosedDevice,
    /// `allow_other` was asked for by a user, and the machine's owner has not allowed it.
    #[error("--allow-other needs the line user_allow_other in /etc/fuse.conf")]
    AllowOtherForbidden,
    /// Something below the mount point is still in use.
    #[error("{} is in use", .0.display())]
    Busy(PathBuf),
    /// Nothing is mounted there.
    #[error("{} is not mounted", .0.display())]
    NotMounted(PathBuf),
    /// The helper said why.
    #[error("{HELPER}: {0}")]
    Helper(String),
    /// The system call failed.
    #[error("{}: {source}", path.display())]
    System {
        /// The mount point.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountRequest<'a> {
    /// Shown as the source in the list of mounts.
    pub source: &'a str,
    /// Other users may enter; the kernel then checks the file modes.
    pub allow_other: bool,
    /// Refuse writes in the kernel already.
    pub read_only: bool,
}

/// Mounts a FUSE file system at `at`, an absolute path without symlinks. The answer is the channel to the kernel.
pub fn mount(at: &Path, request: &MountRequest<'_>) -> Result<OwnedFd, MountError> {
    if rustix::process::geteuid().is_root() {
        mount_as_root(at, request)
    } else {
        mount_by_helper(at, request)
    }
}

/// Unmounts `at`. With `lazily` the path is free at once, and what is open below it ends when it is closed.
pub fn unmount(at: &Path, lazily: bool) -> Result<(), MountError> {
    if rustix::process::geteuid().is_root() {
        let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        return match rustix::mount::unmount(at, flags | UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::BUSY) => Err(MountError::Busy(at.into())),
            Err(Errno::INVAL | Errno::NOENT) => Err(MountError::NotMounted(at.into())),
            Err(error) => Err(MountError::System { path: at.into(), source: error.into() }),
        };
    }
    let mut command = Command::new(HELPER);
    command.arg("-u").args(lazily.then_some("-z")).arg("--").arg(at);
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(helper_missing)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("busy") {
        Err(MountError::Busy(at.into()))
    } else if said.contains("not found in") || said.contains("not mounted") {
        Err(MountError::NotMounted(at.into()))
    } else {
        Err(MountError::Helper(one_line(&said)))
    }
}

fn mount_as_root(at: &Path, request: &MountRequest<'_>) -> Result<OwnedFd, MountError> {
    let device =
        fs::File::options().read(true).write(true).open("/dev/fuse").map_err(MountError::NoDevice)?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw()
    );
    if request.allow_other {
        data.push_str(",default_permissions,allow_other");
    }
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    flags.set(MountFlags::RDONLY, request.read_only);
    let data = CString::new(data).expect("the options hold no NUL");
    rustix::mount::mount(request.source, at, format!("fuse.{SUBTYPE}"), flags, data.as_c_str())
        .map_err(|error| MountError::System { path: at.into(), source: error.into() })?;
    Ok(device.into())
}

/// The helper opens the device, mounts, and sends the descriptor back over the socket it was given as standard input.
fn mount_by_helper(at: &Path, request: &MountRequest<'_>) -> Result<OwnedFd, MountError> {
    let mut options =
        format!("nosuid,nodev,noexec,subtype={SUBTYPE},fsname={}", escape_option(request.source));
    if request.read_only {
        options.push_str(",ro");
    }
    if request.allow_other {
        options.push_str(",default_permissions,allow_other");
    }
    let (ours, theirs) =
        UnixStream::pair().map_err(|source| MountError::System { path: at.into(), source })?;
    let child = Command::new(HELPER)
        .arg("-o")
        .arg(options)
        .arg("--")
        .arg(at)
        .env("_FUSE_COMMFD", "0")
        .env("LC_ALL", "C")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(helper_missing)?;
    let device = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(|source| MountError::System { path: at.into(), source })?;
    let said = String::from_utf8_lossy(&output.stderr);
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        _ if said.contains("user_allow_other") => Err(MountError::AllowOtherForbidden),
        _ if said.contains("/dev/fuse: Permission denied") => Err(MountError::ClosedDevice),
        Err(source) => Err(MountError::System { path: at.into(), source }),
        Ok(_) => Err(MountError::Helper(one_line(&said))),
    }
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut into = [io::IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => continue,
            other => break other?,
        }
    };
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Ok(None);
    }
    Ok(ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

fn helper_missing(error: io::Error) -> MountError {
    match error.kind() {
        io::ErrorKind::NotFound => MountError::NoHelper,
        _ => MountError::Helper(error.to_string()),
    }
}

/// A comma ends an option; the helper takes `\,` for one inside.
fn escape_option(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

fn one_line(said: &str) -> String {
    let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("failed without a word");
    line.trim().trim_start_matches("fusermount3: ").to_owned()
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedAt {
    /// Where.
    pub path: PathBuf,
    /// `major:minor` of its device number, as sysfs names it.
    pub device: (u32, u32),
    /// Type with subtype, such as `fuse.terrane`.
    pub kind: String,
    /// What `mount` named as the source.
    pub source: OsString,
    /// Of a FUSE mount, who mounted it, by the kernel's word.
    pub user: Option<u32>,
}

impl MountedAt {
    /// Whether it is one of ours.
    pub fn is_ours(&self) -> bool {
        self.kind.strip_prefix("fuse.") == Some(SUBTYPE)
    }
}

/// All mounts this process sees, later ones covering earlier ones at the same path.
pub fn mounts() -> io::Result<Vec<MountedAt>> {
    Ok(fs::read("/proc/self/mountinfo")?.split(|byte| *byte == b'\n').filter_map(parse_mountinfo).collect())
}

/// What is mounted exactly at `path`, if anything. Asks no file system.
pub fn mounted_at(path: &Path) -> io::Result<Option<MountedAt>> {
    Ok(mounts()?.into_iter().rev().find(|mount| mount.path == path))
}

fn parse_mountinfo(line: &[u8]) -> Option<MountedAt> {
    // 36 35 98:0 /root /mount/point options optional-fields… - type source super-options
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let device = std::str::from_utf8(fields.get(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    Some(MountedAt {
        path: unescape_octal(fields.get(4)?).into(),
        device: (major.parse().ok()?, minor.parse().ok()?),
        kind: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
        source: unescape_octal(fields.get(dash + 2)?),
        user: fields.get(dash + 3).and_then(|options| {
            let options = std::str::from_utf8(options).ok()?;
            options.split(',').find_map(|option| option.strip_prefix("user_id="))?.parse().ok()
        }),
    })
}

/// Blank, tab, newline and backslash are written as `\040` and so on, by the kernel and in `/sys/block` alike.
fn unescape_octal(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let code = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// A path made absolute and free of symlinks without asking what is mounted at its end, which may be dead.
pub fn resolve_mount_point(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Ok(path) => Ok(path),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Err(error),
        Err(error) => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(error) };
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(fs::canonicalize(parent)?.join(name))
        }
    }
}

/// Raises the read-ahead of a mounted file system, which only root may. The kernel caps what FUSE asks for at 128 KiB.
pub fn raise_read_ahead(device: (u32, u32), kib: u32) -> io::Result<()> {
    fs::write(format!("/sys/class/bdi/{}:{}/read_ahead_kb", device.0, device.1), kib.to_string())
}

/// Whether two file names are the same bytes; a mount point in `/proc` and one typed by a person.
pub fn is_below(path: &Path, mount_point: &Path) -> bool {
    let (path, above): (&OsStr, &OsStr) = (path.as_os_str(), mount_point.as_os_str());
    let (path, above) = (path.as_bytes(), above.as_bytes());
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let line = br"36 35 0:98 / /mnt/two\040words rw,noatime master:1 - fuse.terrane cn-hangzhou rw,errors=continue";
        let mount = parse_mountinfo(line).unwrap();
        assert_eq!(mount.path, Path::new("/mnt/two words"));
        assert_eq!(mount.device, (0, 98));
        assert!(mount.is_ours());
        assert_eq!((mount.source.to_str(), mount.user), (Some("cn-hangzhou"), None));
        let line = br"36 35 0:98 / /mnt rw - fuse.terrane a,user_id=7 rw,user_id=1000,group_id=0";
        assert_eq!(parse_mountinfo(line).unwrap().user, Some(1000));
        assert_eq!(parse_mountinfo(b"nonsense"), None);
    }

    #[test]
    fn octal_escapes_end_where_they_should() {
        assert_eq!(unescape_octal(br"a\134b\04"), OsString::from_vec(br"a\b\04".to_vec()));
        assert_eq!(unescape_octal(b""), OsString::new());
    }

    #[test]
    fn below_means_below() {
        assert!(is_below(Path::new("/mnt/a/b"), Path::new("/mnt/a")));
        assert!(is_below(Path::new("/mnt/a"), Path::new("/mnt/a")));
        assert!(!is_below(Path::new("/mnt/ab"), Path::new("/mnt/a")));
    }
}
