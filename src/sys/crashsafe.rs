//! Files and folders that are whole or absent after any cut: write a temporary file, sync it, rename it, sync the folder.
//!
//! Which syncs happen: the file's data and size before its name appears, then the folder that holds the name. Which are
//! left out: the parents of that folder (whoever made the folder synced those, see [`create_dir`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

/// Replaces `path` by a file of these bytes and mode; after a cut it is the old one or the new one, whole.
pub fn write_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_temporary(path, bytes, mode)?;
    publish(&temporary, path, || fs::rename(&temporary, path))
}

/// Makes `path` with these bytes and mode; `AlreadyExists` if anything has that name, which is then unchanged.
pub fn create_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_temporary(path, bytes, mode)?;
    publish(&temporary, path, || {
        match rustix::fs::renameat_with(CWD, &temporary, CWD, path, RenameFlags::NOREPLACE) {
            // File systems without RENAME_NOREPLACE (overlay on some hosts, vfat) have link or at least an exclusive create.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                fs::hard_link(&temporary, path).and_then(|()| fs::remove_file(&temporary))
            }
            other => other.map_err(io::Error::from),
        }
    })
}

/// Makes one folder and syncs its parent, so that the name outlives a cut; `AlreadyExists` if the name is taken.
pub fn create_dir(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().mode(mode).create(path)?;
    sync_dir(path)?;
    sync_dir(parent_of(path))
}

/// Removes a file and syncs its folder.
pub fn remove_file(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    sync_dir(parent_of(path))
}

/// Makes the names in a folder durable.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Reads a regular file of at most `bytes_max`, following no link in its last part and never waiting on a pipe.
/// `InvalidData` says that it is larger or no regular file.
pub fn read_file(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path)?;
    read_open(&file, bytes_max)
}

/// Opens a regular file for reading, following no link in its last part and never waiting on a pipe.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    Ok(file)
}

/// Reads all of an open file of at most `bytes_max`.
pub fn read_open(mut file: &File, bytes_max: u64) -> io::Result<Vec<u8>> {
    // Room for all of it at once: a vector that grows would leave pieces of a secret behind.
    let mut bytes = Vec::with_capacity(file.metadata()?.len().min(bytes_max) as usize + 64);
    Read::take(&mut file, bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {bytes_max} bytes")));
    }
    Ok(bytes)
}

fn write_temporary(path: &Path, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no file name"))?;
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{:016x}.tmp", u64::from_le_bytes(random)));
    let temporary = parent_of(path).join(temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    if let Err(error) = file.write_all(bytes).and_then(|()| file.sync_all()) {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(temporary)
}

fn publish(temporary: &Path, path: &Path, step: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if let Err(error) = step() {
        let _ = fs::remove_file(temporary);
        return Err(error);
    }
    sync_dir(parent_of(path))
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_file(&path, b"one", 0o600).unwrap();
        write_file(&path, b"two", 0o600).unwrap();
        assert_eq!(read_file(&path, 3).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(create_file(&path, b"three", 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read_file(&path, 3).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn hostile_files_are_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_file(&path, &[0; 100], 0o600).unwrap();
        assert_eq!(read_file(&path, 99).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let link = dir.path().join("l");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read_file(&link, 1000).is_err());
        assert_eq!(read_file(dir.path(), 10).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let pipe = dir.path().join("p");
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::from(0o600), 0)
            .unwrap();
        assert_eq!(read_file(&pipe, 10).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
