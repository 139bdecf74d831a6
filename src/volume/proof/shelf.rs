//! The folder `proofs/`: made where there is none, and swept.
//!
//! What lies in a region is not trusted: nothing is read, written or removed where the folder is a link, another user's, or open to others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::ids::SnapshotId;
use crate::region::Region;
use crate::sys::{crashsafe, owned};
use crate::volume::host_error::{HostError, Result};

/// A file that is being written is finished or given up within this.
const WRITING_MAX: Duration = Duration::from_secs(3600);

fn folder(region: &Region) -> PathBuf {
    region.dir().join("proofs")
}

pub(super) fn path_of(region: &Region, snapshot: SnapshotId) -> PathBuf {
    folder(region).join(snapshot.to_string())
}

/// Whether the folder is there; refuses anything else in its place.
pub(super) fn is_there(region: &Region) -> Result<bool> {
    let path = folder(region);
    match owned::check_folder(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        found => found.map(|()| true).map_err(HostError::io("opening the proofs' folder", &path)),
    }
}

/// Makes the folder where there is none: regions had none before.
pub fn make(region: &Region) -> Result<()> {
    let path = folder(region);
    match crashsafe::create_dir(&path, 0o700) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => is_there(region).map(drop),
        made => made.map_err(HostError::io("making the proofs' folder", &path)),
    }
}

/// Takes away the proof of a snapshot that is gone. Best effort: one that stays is swept later, and is of no worth to anybody.
pub fn forget(region: &Region, snapshot: SnapshotId) {
    if is_there(region).is_ok_and(|there| there) {
        let _ = fs::remove_file(path_of(region, snapshot));
    }
}

/// Takes away what no snapshot has, and what killed processes were writing; what has another kind of name, or is no file, is somebody
/// else's and stays. Called by the owner of the layers.
pub(in crate::volume) fn forget_unnamed(region: &Region) -> Result<()> {
    if !is_there(region)? {
        return Ok(());
    }
    let path = folder(region);
    let io = |e: io::Error| HostError::io("listing the proofs in", &path)(e);
    for entry in fs::read_dir(&path).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|_| entry.file_type().is_ok_and(|kind| kind.is_file())) else {
            continue;
        };
        let is_left = match (snapshot_of(name), snapshot_of_temporary(name)) {
            (Some(id), _) => region.catalog()?.read(|tx| tx.find_snapshot(id))?.is_none(),
            (None, Some(_)) => !is_being_written(&entry.path()),
            (None, None) => false,
        };
        if is_left {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Of a name that is a snapshot's id, letter by letter.
fn snapshot_of(name: &str) -> Option<SnapshotId> {
    name.parse::<SnapshotId>().ok().filter(|id| id.to_string() == name)
}

/// Of a name that [`crashsafe`] gives a file until it is whole: `.snap-….0123456789abcdef.tmp`.
fn snapshot_of_temporary(name: &str) -> Option<SnapshotId> {
    let (id, random) = name.strip_prefix('.')?.strip_suffix(".tmp")?.split_once('.')?;
    let is_hex = random.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    snapshot_of(id).filter(|_| random.len() == 16 && is_hex)
}

/// One from the future is as one from now: clocks go back.
fn is_being_written(path: &Path) -> bool {
    let Ok(written) = fs::symlink_metadata(path).and_then(|found| found.modified()) else { return true };
    SystemTime::now().duration_since(written).map_or(true, |age| age < WRITING_MAX)
}
