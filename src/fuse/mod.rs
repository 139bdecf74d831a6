//! The mount: names, attributes, requests. It translates and decides nothing: every answer comes from an [`Export`].
//! Nothing of fuser's types leaves this room.
//!
//! What it keeps to:
//! - A request is answered on the thread that read it; data goes through one buffer; nothing is allocated for a read or write,
//!   but for the first large read, and for room around one that is both long and not of whole sectors.
//! - Names are asked for anew each time (no caching of entries or attributes), since entries come and go at any time.
//! - A panic behind the [`Export`] is EIO to the one who asked, and the mount goes on.
//! - Ranges are cut to the disk's size here, so that a [`Disk`] never sees one that leaves it.
//!
//! Callers: `cli` and `daemon` mount; `volume` implements [`Export`] and [`Disk`].

use std::sync::Arc;

mod answers; // those of small writes, a few at a time
mod attributes; // what stat shows
mod buffers; // memory for requests
mod errno; // one table of refusals
mod files; // open files
mod gate; // requests let in until the end
mod handles; // open files and folders
mod names; // inode numbers
mod requests; // decode, ask, encode
mod session; // mount, serve, unmount
mod shelves; // a host's volumes and snapshots
mod tree; // what stands under each name

pub use session::{
    Cache, Life, MountError, Mounted, Options, check_mount_point, life, mount, mounts, unmount,
};
pub use shelves::Shelves;
/// An errno as the kernel wants it (`libc::EIO`, …).
pub type Errno = i32;

/// Which folder of the mount a disk is shown in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shelf {
    /// `volumes/<id>`, read-write.
    Volumes,
    /// `snapshots/<id>`, read-only.
    Snapshots,
}

/// One file of the mount.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its file name: the id.
    pub id: String,
    /// The name people gave it: a link under `by-name/`.
    pub name: Option<String>,
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// When it was made, in seconds since the epoch.
    pub created_at: i64,
}

/// What a mount shows and asks. Called from several threads at once; entries may come and go at any time.
pub trait Export: Send + Sync {
    /// All entries of a shelf, in the order of their ids.
    fn list(&self, shelf: Shelf) -> Result<Vec<Entry>, Errno>;
    /// One entry by id.
    fn find(&self, shelf: Shelf, id: &str) -> Result<Option<Entry>, Errno>;
    /// One entry by the name people gave it.
    fn find_by_name(&self, shelf: Shelf, name: &str) -> Result<Option<Entry>, Errno>;
    /// Opens a disk. `EACCES` where its key may not be used, `EIO` where it is damaged. `opener` is the asking process.
    fn open(&self, shelf: Shelf, id: &str, write: bool, opener: u32) -> Result<Arc<dyn Disk>, Errno>;
    /// A file opened by [`Export::open`] was closed for good.
    fn close(&self, shelf: Shelf, id: &str, opener: u32);
    /// Bytes (total, available) of the file system below the region.
    fn space(&self) -> Result<(u64, u64), Errno>;
}

/// An open disk. Offsets and lengths of any alignment; ranges lie within `size_bytes`, which the caller has checked.
pub trait Disk: Send + Sync {
    /// Size in bytes; may grow while open.
    fn size_bytes(&self) -> u64;
    /// Fills `into` from `offset`.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno>;
    /// Writes `from` at `offset`; not durable until [`Disk::flush`].
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno>;
    /// Everything answered before this call is durable when it returns.
    fn flush(&self) -> Result<(), Errno>;
    /// The range reads as zeros from now on, and its space is given back.
    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno>;
    /// First offset at or after `offset` that holds data (`hole` false) or does not (`hole` true); `None` past the last.
    fn seek(&self, offset: u64, hole: bool) -> Result<Option<u64>, Errno>;
}
