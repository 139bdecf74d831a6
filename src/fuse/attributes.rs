//! What `stat` shows.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};

use super::names::Folder;
use super::{Entry, Shelf};

/// Whose everything is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// What the attributes of a disk are made of.
pub(super) struct Shown {
    pub(super) size_bytes: u64,
    pub(super) created: SystemTime,
}

impl From<&Entry> for Shown {
    fn from(entry: &Entry) -> Self {
        Self { size_bytes: entry.size_bytes, created: time_of_seconds(entry.created_at) }
    }
}

pub(super) const VOLUME_MODE: u16 = 0o600;
pub(super) const SNAPSHOT_MODE: u16 = 0o400;
/// What `stat` suggests as the size of a request, which `cmp`, `cp` and `cat` follow.
const PREFERRED_BYTES: u32 = 128 << 10;
/// Nobody makes names here, and nobody but the owner and root has business here, also under `allow_other`.
const FOLDER_MODE: u16 = 0o500;

pub(super) fn mode_of(shelf: Shelf) -> u16 {
    match shelf {
        Shelf::Volumes => VOLUME_MODE,
        Shelf::Snapshots => SNAPSHOT_MODE,
    }
}

pub(super) fn of_folder(folder: Folder, owner: Owner, when: SystemTime) -> FileAttr {
    let mut attr = blank(folder.inode(), owner, when);
    attr.kind = FileType::Directory;
    attr.perm = FOLDER_MODE;
    attr.nlink = 2 + folder.folders().len() as u32;
    attr
}

pub(super) fn of_link(inode: u64, target_bytes: usize, owner: Owner, when: SystemTime) -> FileAttr {
    let mut attr = blank(inode, owner, when);
    attr.kind = FileType::Symlink;
    attr.perm = 0o777;
    attr.size = target_bytes as u64;
    attr
}

pub(super) fn of_disk(
    inode: u64,
    shelf: Shelf,
    size_bytes: u64,
    created: SystemTime,
    changed: SystemTime,
    owner: Owner,
) -> FileAttr {
    let mut attr = blank(inode, owner, changed);
    attr.perm = mode_of(shelf);
    attr.size = size_bytes;
    // What is stored is not known here. cp looks for holes only in a file with fewer blocks than its size, tar takes one
    // without blocks for a single hole: so one sector less than all.
    attr.blocks = size_bytes.saturating_sub(4096).max(size_bytes.min(4096)) / 512;
    attr.crtime = created;
    attr
}

/// A time of the catalog, which may predate the epoch or be nonsense.
pub(super) fn time_of_seconds(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn blank(inode: u64, owner: Owner, when: SystemTime) -> FileAttr {
    FileAttr {
        ino: INodeNo(inode),
        size: 0,
        blocks: 0,
        atime: when,
        mtime: when,
        ctime: when,
        crtime: when,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 1,
        uid: owner.uid,
        gid: owner.gid,
        rdev: 0,
        blksize: PREFERRED_BYTES,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_never_none_and_never_all() {
        let owner = Owner { uid: 0, gid: 0 };
        let now = SystemTime::UNIX_EPOCH;
        for (size, blocks) in [(0, 0), (4096, 8), (8192, 8), (1 << 30, (1 << 21) - 8)] {
            assert_eq!(of_disk(9, Shelf::Volumes, size, now, now, owner).blocks, blocks);
        }
    }

    #[test]
    fn any_number_of_seconds_is_a_time() {
        for seconds in [i64::MIN, -1, 0, 1, i64::MAX] {
            time_of_seconds(seconds);
        }
    }
}
