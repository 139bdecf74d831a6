//! One table of refusals, so that the same deed gets the same errno everywhere.

use super::Errno;

/// What was asked and won't be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A name that is not there.
    NoSuchName,
    /// Making or removing anything in the mount: volumes are made and deleted by commands.
    FixedTree,
    /// Changing mode or owner.
    FixedOwner,
    /// Changing a snapshot, or anything in a read-only mount.
    Snapshot,
    /// A user other than the owner and root.
    OtherUser,
    /// Executing a disk.
    NotAProgram,
    /// Writing past the last byte.
    PastTheEnd,
    /// Seeking past the last byte, or to data where none follows.
    NoMoreData,
    /// A handle we never gave.
    UnknownHandle,
    /// Writing through a handle opened for reading.
    NotOpenForWriting,
    /// A folder opened or read as a file.
    IsAFolder,
    /// A file treated as a folder.
    NotAFolder,
    /// A flag of fallocate or lseek that a disk has no meaning for.
    Unsupported,
    /// An argument without sense.
    Senseless,
    /// An ioctl: a file of the mount behaves like a disk, but is none.
    NotADevice,
    /// Something the kernel is to do by itself, or not at all; it asks once and remembers.
    NotOurs,
    /// Anything in a mount that has ended, and opening a file in one that is about to.
    Ending,
    /// The code behind panicked.
    Panicked,
}

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Errno {
        match refusal {
            Refusal::NoSuchName => libc::ENOENT,
            // EPERM, "the file system does not support it" of creat(2), mkdir(2) and unlink(2), and not EROFS: volumes are writable.
            Refusal::FixedTree => libc::EPERM,
            Refusal::FixedOwner => libc::EPERM,
            // EROFS says why, also to root, to whom EACCES would be a riddle.
            Refusal::Snapshot => libc::EROFS,
            Refusal::OtherUser => libc::EACCES,
            Refusal::NotAProgram => libc::EACCES,
            // As a block device answers; a file would grow.
            Refusal::PastTheEnd => libc::ENOSPC,
            Refusal::NoMoreData => libc::ENXIO,
            Refusal::UnknownHandle => libc::EBADF,
            Refusal::NotOpenForWriting => libc::EBADF,
            Refusal::IsAFolder => libc::EISDIR,
            Refusal::NotAFolder => libc::ENOTDIR,
            Refusal::Unsupported => libc::EOPNOTSUPP,
            Refusal::Senseless => libc::EINVAL,
            Refusal::NotADevice => libc::ENOTTY,
            // For extended attributes the kernel turns it into EOPNOTSUPP, which cp and tar take as "none here".
            Refusal::NotOurs => libc::ENOSYS,
            // What the kernel says of a mount without a server.
            Refusal::Ending => libc::ENOTCONN,
            Refusal::Panicked => libc::EIO,
        }
    }
}
