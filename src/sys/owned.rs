//! Files and folders of a region: what a stranger may have put there must not lead out of it, and not make anybody wait.
//!
//! A path is opened only if no part of it is a symbolic link (a region's own directory is free of them once it was found), without
//! waiting on pipes; and what it leads to must be a regular file of this user, with one name, that nobody else may write.
//! Anything else is `InvalidData`, in words that say what it is.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::crashsafe::read_open;

/// Opens a file to read, or to read and write.
pub fn open(path: &Path, write: bool) -> io::Result<File> {
    checked(open_with(path, if write { OFlags::RDWR } else { OFlags::RDONLY })?)
}

/// Opens a file to read; as root also another user's, whose mount root may end.
pub fn open_any(path: &Path) -> io::Result<File> {
    if !rustix::process::geteuid().is_root() {
        return open(path, false);
    }
    let is_plain = |found: &Metadata| match found.is_file() && found.nlink() == 1 {
        true => Ok(()),
        false => {
            Err(invalid(format!("{} of {} names, not a regular file of one", kind(found), found.nlink())))
        }
    };
    is_plain(&path.symlink_metadata()?)?;
    let file = open_flags(path, OFlags::RDONLY)?;
    is_plain(&file.metadata()?)?;
    Ok(file)
}

/// Opens a file to read and write; makes it, mode 0600, where there is none.
pub fn open_or_create(path: &Path) -> io::Result<File> {
    checked(open_with(path, OFlags::RDWR | OFlags::CREATE)?)
}

/// Opens a file to write at its end; makes it, mode 0600, where there is none.
pub fn open_to_append(path: &Path) -> io::Result<File> {
    checked(open_with(path, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE)?)
}

/// Reads all of a file of at most `bytes_max`.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_open(&open(path, false)?, bytes_max)
}

/// A file that may be missing must be one that could be opened; nothing is opened.
pub fn check_if_there(path: &Path) -> io::Result<()> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        found => refuse(&found?),
    }
}

/// A file that must be there and could be opened; nothing is opened.
pub fn check(path: &Path) -> io::Result<()> {
    refuse(&path.symlink_metadata()?)
}

/// A folder: no link, this user's, and nobody else may write it.
pub fn check_folder(path: &Path) -> io::Result<()> {
    let found = path.symlink_metadata()?;
    match found.is_dir() {
        true => refuse_others(&found, "700"),
        false => Err(invalid(format!("{}, not a folder", kind(&found)))),
    }
}

fn open_with(path: &Path, flags: OFlags) -> io::Result<File> {
    // What is refused is not even opened; what is opened is looked at again, should it have been exchanged in between.
    if let Ok(found) = path.symlink_metadata() {
        refuse(&found)?;
    }
    open_flags(path, flags)
}

fn open_flags(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
    loop {
        match rustix::fs::openat2(CWD, path, flags, mode, ResolveFlags::NO_SYMLINKS) {
            Ok(file) => return Ok(file.into()),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::LOOP) => {
                return Err(invalid("a symbolic link, or behind one".into()));
            }
            // A pipe that nobody reads, a socket.
            Err(rustix::io::Errno::NXIO) => {
                return Err(invalid("a pipe or a socket, not a regular file".into()));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn checked(file: File) -> io::Result<File> {
    refuse(&file.metadata()?)?;
    Ok(file)
}

fn refuse(found: &Metadata) -> io::Result<()> {
    if !found.is_file() {
        return Err(invalid(format!("{}, not a regular file", kind(found))));
    }
    if found.nlink() > 1 {
        return Err(invalid(format!(
            "a file of {} names (hard links), one of which may lie elsewhere: put a copy in its place",
            found.nlink()
        )));
    }
    refuse_others(found, "600")
}

fn refuse_others(found: &Metadata, mode: &str) -> io::Result<()> {
    let user = rustix::process::geteuid();
    if found.uid() != user.as_raw() {
        return Err(invalid(format!("another user's (uid {})", found.uid())));
    }
    if found.mode() & 0o022 != 0 {
        return Err(invalid(format!(
            "open to the writing of others (mode {:04o}): chmod {mode} closes it",
            found.mode() & 0o7777
        )));
    }
    Ok(())
}

fn kind(found: &Metadata) -> &'static str {
    use rustix::fs::FileType as T;
    match T::from_raw_mode(found.mode()) {
        T::RegularFile => "a regular file",
        T::Directory => "a folder",
        T::Symlink => "a symbolic link",
        T::Fifo => "a pipe",
        T::Socket => "a socket",
        _ => "a device",
    }
}

fn invalid(words: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;

    fn refused(path: &Path, words: &str) {
        for opened in [open(path, false), open(path, true), open_or_create(path), open_to_append(path)] {
            let error = opened.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{path:?}: {error}");
            assert!(error.to_string().contains(words), "{path:?}: {error}");
        }
    }

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        (dir, path)
    }

    #[test]
    fn plain_files_of_ours_are_opened_and_made() {
        let (_dir, dir) = scratch();
        let path = dir.join("f");
        check_if_there(&path).unwrap();
        assert_eq!(open(&path, false).unwrap_err().kind(), io::ErrorKind::NotFound);
        open_or_create(&path).unwrap();
        io::Write::write_all(&mut open_to_append(&path).unwrap(), b"abc").unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"abc");
        assert_eq!(read(&path, 2).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        check_if_there(&path).unwrap();
    }

    #[test]
    fn what_leads_elsewhere_or_waits_or_is_open_to_others_is_refused() {
        let (_dir, dir) = scratch();
        let plain = dir.join("plain");
        fs::write(&plain, "x").unwrap();
        symlink(&plain, dir.join("link")).unwrap();
        refused(&dir.join("link"), "symbolic link");
        symlink("nowhere", dir.join("dangling")).unwrap();
        refused(&dir.join("dangling"), "symbolic link");
        fs::create_dir(dir.join("folder")).unwrap();
        fs::write(dir.join("folder/f"), "x").unwrap();
        symlink("folder", dir.join("way")).unwrap();
        refused(&dir.join("way/f"), "symbolic link");
        refused(&dir.join("folder"), "folder");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, dir.join("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        refused(&dir.join("pipe"), "regular file");
        let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
        refused(&dir.join("socket"), "regular file");
        fs::set_permissions(&plain, Permissions::from_mode(0o620)).unwrap();
        refused(&plain, "chmod 600");
        fs::set_permissions(&plain, Permissions::from_mode(0o600)).unwrap();
        fs::hard_link(&plain, dir.join("second")).unwrap();
        refused(&plain, "of 2 names");
        for name in ["link", "dangling", "folder", "pipe", "socket", "plain"] {
            assert!(check_if_there(&dir.join(name)).is_err(), "{name}");
        }
        assert_eq!(fs::read(&plain).unwrap(), b"x");
    }

    #[test]
    fn folders_are_ours_and_no_links() {
        let (_dir, dir) = scratch();
        let folder = dir.join("folder");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        check_folder(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        assert!(check_folder(&folder).unwrap_err().to_string().contains("chmod 700"));
        symlink(&folder, dir.join("link")).unwrap();
        assert!(check_folder(&dir.join("link")).unwrap_err().to_string().contains("a symbolic link"));
    }
}
