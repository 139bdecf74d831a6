//! `run/` and the sockets in it, reached through `/proc/self/fd`, since a socket's path may have only 107 bytes.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::geteuid;

use super::ControlError;

/// A folder of sockets that is ours.
pub(super) struct RunFolder {
    folder: OwnedFd,
}

impl RunFolder {
    /// Opens `run/`, or `None` where there is none.
    pub(super) fn open(path: &Path) -> Result<Option<Self>, ControlError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let stat = rustix::fs::fstat(&folder).map_err(io::Error::from)?;
        if stat.st_uid != geteuid().as_raw() {
            return Err(ControlError::ForeignUser(path.display().to_string()));
        }
        Ok(Some(Self { folder }))
    }

    /// Opens `run/`, making it where it is missing, and closes it to others.
    pub(super) fn make(path: &Path) -> Result<Self, ControlError> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
            _ => {}
        }
        let made = Self::open(path)?.ok_or(io::ErrorKind::NotFound).map_err(io::Error::from)?;
        rustix::fs::fchmod(&made.folder, Mode::RWXU).map_err(io::Error::from)?;
        Ok(made)
    }

    /// Where a socket lies.
    pub(super) fn address(&self, name: &str) -> io::Result<SocketAddrUnix> {
        let is_name = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        if !is_name {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is no name for a socket"),
            ));
        }
        Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", self.folder.as_raw_fd()))?)
    }

    /// A connection under way to a socket; never waits. A link to a socket elsewhere is none of ours.
    pub(super) fn connect(&self, name: &str) -> io::Result<OwnedFd> {
        let found = rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is no socket")));
        }
        let socket = new_socket()?;
        rustix::net::connect(&socket, &self.address(name)?)?;
        Ok(socket)
    }

    pub(super) fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

pub(super) fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// The pid at the other end, whose uid must be ours.
pub(super) fn check_peer(socket: impl AsFd) -> Result<u32, ControlError> {
    let peer = rustix::net::sockopt::socket_peercred(socket).map_err(io::Error::from)?;
    if peer.uid != geteuid() {
        return Err(ControlError::ForeignUser(format!("pid {}", peer.pid)));
    }
    Ok(peer.pid.as_raw_nonzero().get().unsigned_abs())
}
