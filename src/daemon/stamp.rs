//! What tells that a catalog changed, without opening it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Of its file and its log. An empty log is as good as none: who only reads makes one, and takes it away, and two who look would
/// give each other reason to look again for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp([Option<(u64, u64, i64, i64)>; 2]);

impl Stamp {
    /// Of the region in this directory.
    pub fn of(dir: &Path) -> Self {
        let of = |name: &str| {
            let found = fs::symlink_metadata(dir.join(name)).ok()?;
            (found.size() > 0).then(|| (found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
        };
        Self(["catalog.db", "catalog.db-wal"].map(of))
    }
}
