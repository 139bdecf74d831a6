//! What is checked of every file and folder of a region before it is used: its kind, its owner, its size.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::RegionError;
use crate::sys::{crashsafe, owned};

/// The largest TOML file this room reads.
pub(super) const TOML_BYTES_MAX: u64 = 64 << 10;

/// The user this process acts as.
pub(super) fn euid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// How a person calls a user: `uid 1000 (ann)`.
pub fn uid_name(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    match name {
        Some(name) => format!("uid {uid} ({name})"),
        None => format!("uid {uid}"),
    }
}

/// Refuses what is not this user's.
pub(super) fn check_owner(path: &Path, owner: u32) -> Result<(), RegionError> {
    if owner == euid() {
        return Ok(());
    }
    Err(RegionError::NotOwner { path: path.to_owned(), owner: uid_name(owner) })
}

/// A directory that is there and is this user's.
pub(super) fn check_dir(path: &Path) -> Result<(), RegionError> {
    let metadata = fs::metadata(path).map_err(RegionError::io("looking at it", path))?;
    check_owner(path, metadata.uid())?;
    if !metadata.is_dir() {
        return Err(RegionError::Io {
            doing: "looking at it",
            path: path.to_owned(),
            source: io::ErrorKind::NotADirectory.into(),
        });
    }
    Ok(())
}

/// What of a region's files is not as [`owned`] wants it is damage.
pub(super) fn io_or_damage(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RegionError {
    move |source| match source.kind() {
        io::ErrorKind::InvalidData => corrupted(path, "a file of the region", source.to_string()),
        _ => RegionError::io(doing, path)(source),
    }
}

fn corrupted(path: &Path, expected: &str, found: String) -> RegionError {
    RegionError::Corrupted {
        path: path.to_owned(),
        what: "the file".into(),
        expected: expected.into(),
        found,
    }
}

/// A folder of the region: there, no link, its owner's, and closed to the writing of others.
pub(super) fn check_folder(path: &Path) -> Result<(), RegionError> {
    owned::check_folder(path).map_err(|error| RegionError::Corrupted {
        path: path.to_owned(),
        what: "it".into(),
        expected: "a folder of the region".into(),
        found: error.to_string(),
    })
}

/// Reads `region.toml`, at most 64 KiB of UTF-8.
pub(super) fn read_own_toml(path: &Path) -> Result<String, RegionError> {
    let bytes = owned::read(path, TOML_BYTES_MAX).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => corrupted(path, "a regular file of at most 64 KiB", source.to_string()),
        _ => RegionError::io("reading it", path)(source),
    })?;
    String::from_utf8(bytes).map_err(|_| corrupted(path, "UTF-8", "something else".into()))
}

/// Reads a TOML file of this user's configuration, at most 64 KiB of UTF-8.
pub(super) fn read_toml(path: &Path) -> Result<String, RegionError> {
    let corrupted = |expected: &str, found: String| corrupted(path, expected, found);
    let read = || -> io::Result<(File, Vec<u8>)> {
        let file = crashsafe::open_regular(path)?;
        let bytes = crashsafe::read_open(&file, TOML_BYTES_MAX)?;
        Ok((file, bytes))
    };
    let (file, bytes) = read().map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => corrupted("a regular file of at most 64 KiB", source.to_string()),
        _ => RegionError::Io { doing: "reading it", path: path.to_owned(), source },
    })?;
    check_owner(path, file.metadata().map_err(RegionError::io("looking at it", path))?.uid())?;
    String::from_utf8(bytes).map_err(|_| corrupted("UTF-8", "something else".into()))
}

/// Refuses file systems of other machines: their locks and syncs promise less.
pub(super) fn check_file_system(dir: &Path) -> Result<(), RegionError> {
    let found =
        rustix::fs::statfs(dir).map_err(io::Error::from).map_err(RegionError::io("looking at it", dir))?;
    match network_kind(found.f_type as u32) {
        Some(kind) => Err(RegionError::NetworkFileSystem { dir: dir.to_owned(), kind }),
        None => Ok(()),
    }
}

/// The magics of `statfs(2)`.
fn network_kind(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "NFS",
        0x517b => "SMB",
        0xff53_4d42 | 0xfe53_4d42 => "CIFS",
        0x0102_1997 => "9p",
        0x00c3_6400 => "Ceph",
        0x5346_414f => "AFS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_magic() {
        assert_eq!(network_kind(0x6969), Some("NFS"));
        assert_eq!(network_kind(0xff53_4d42), Some("CIFS"));
        assert_eq!(network_kind(0xef53), None, "ext4");
        check_file_system(&std::env::temp_dir()).unwrap();
    }

    #[test]
    fn users_are_named() {
        assert_eq!(uid_name(0), "uid 0 (root)");
        assert_eq!(uid_name(4_000_000_000), "uid 4000000000");
    }
}
