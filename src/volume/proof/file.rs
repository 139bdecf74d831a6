//! `proofs/<snapshot id>`: a snapshot's leaves, encrypted under the snapshot's key.
//!
//! ```text
//!   0 magic "TRNPROOF" · 8 version u32 = 1 · 12 features u32 = 0 · 16 version of the key u32 · 20 zero u32
//!  24 a file key wrapped by the snapshot's key[93] · 117 head[69] · 186 leaves[29 + 8 + 24 × count]
//! head, opened:   root[16] · count u64 · bytes of the disk u64 · zero u64
//! leaves, opened: bytes of the disk u64 · (chunk u64 · leaf u128) × count, chunks ascending, no leaf zero
//! ```
//! Little-endian. Both are AES-256-GCM envelopes under the file key's first 32 bytes; what they are bound to says region, snapshot and
//! point, and for the leaves the root: equal leaves are not seen by who has no key, and none is another snapshot's. The file
//! key is new in each file, for the proof key may be known to others: of a plain source it is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Leaves;
use crate::catalog::Snapshot;
use crate::crypto::{self, ProofKey, Secret};
use crate::ids::{Point, SnapshotId};
use crate::kms::{self, KmsError};
use crate::layer::LayerError;
use crate::region::Region;
use crate::sys::{crashsafe, owned};
use crate::units::{CHUNK_BYTES, VOLUME_BYTES_MAX};
use crate::volume::host_error::{HostError, Result};
use crate::volume::vouch;

const MAGIC: &[u8; 8] = b"TRNPROOF";
const VERSION: u32 = 1;
const FIXED_LEN: usize = 24;
const WRAPPED_LEN: usize = 93;
const HEAD_LEN: usize = 29 + 40;
/// A file longer than this is not read: a leaf for each chunk of the largest disk, and what is before.
const LEN_MAX: u64 = VOLUME_BYTES_MAX / CHUNK_BYTES * 24 + 4096;

/// The part of a proof that two of one content have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The root.
    pub root: [u8; 16],
    /// Chunks that are not zero.
    pub count: u64,
    /// Size of the disk.
    pub size_bytes: u64,
}

/// A proof that was opened.
pub struct Proof {
    /// What it comes to.
    pub head: Head,
    file_key: Secret<32>,
    bound_to: Vec<u8>,
    leaves: Vec<u8>,
}

impl Proof {
    /// Its leaves; `key` is the disk's.
    pub fn leaves(&self, key: &ProofKey) -> Result<Leaves, LayerError> {
        let listed =
            crypto::unwrap(&self.file_key, &aad_of_leaves(&self.bound_to, &self.head.root), &self.leaves);
        let listed = listed.map_err(|e| damaged(&e.to_string()))?;
        if key.root(&listed) != self.head.root {
            return Err(damaged("leaves of another root, or of another proof key"));
        }
        let leaves = Leaves::parse(&listed).ok_or_else(|| damaged("no list of leaves"))?;
        match (leaves.count(), leaves.size_bytes()) == (self.head.count, self.head.size_bytes) {
            true => Ok(leaves),
            false => Err(damaged("leaves of another disk")),
        }
    }
}

fn damaged(found: &str) -> LayerError {
    LayerError::corrupted("a snapshot's proof", "what its key wrote", found)
}

fn folder(region: &Region) -> PathBuf {
    region.dir().join("proofs")
}

fn path_of(region: &Region, snapshot: SnapshotId) -> PathBuf {
    folder(region).join(snapshot.to_string())
}

/// Makes the folder where there is none: regions had none before.
fn make_folder(region: &Region) -> Result<()> {
    let path = folder(region);
    match crashsafe::create_dir(&path, 0o700) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            owned::check_folder(&path).map_err(HostError::io("opening the proofs' folder", &path))
        }
        made => made.map_err(HostError::io("making the proofs' folder", &path)),
    }
}

/// Writes a snapshot's proof, durable; one that is there is replaced.
pub fn write(
    region: &Region,
    snapshot: &Snapshot,
    point: Point,
    leaves: &Leaves,
    key: &ProofKey,
) -> Result<()> {
    make_folder(region)?;
    let bound_to = bound_to(region, snapshot.id, point);
    let (file_key, wrapped) = kms::new_data_key(region, snapshot.key, &bound_to)?;
    let file_key = first_half(&file_key);
    let root = leaves.root(key);
    let mut bytes = MAGIC.to_vec();
    [VERSION, 0, wrapped.version, 0].iter().for_each(|n| bytes.extend(n.to_le_bytes()));
    bytes.extend(wrapped.bytes);
    let mut head = root.to_vec();
    [leaves.count(), leaves.size_bytes(), 0].iter().for_each(|n| head.extend(n.to_le_bytes()));
    bytes.extend(crypto::wrap(&file_key, &bound_to, &head));
    bytes.extend(crypto::wrap(&file_key, &aad_of_leaves(&bound_to, &root), &leaves.list()));
    let path = path_of(region, snapshot.id);
    crashsafe::write_file(&path, &bytes, 0o600).map_err(HostError::io("writing a snapshot's proof", &path))
}

/// A snapshot's proof; none if it has none.
pub fn read(region: &Region, snapshot: &Snapshot, point: Point) -> Result<Option<Proof>> {
    let path = path_of(region, snapshot.id);
    match owned::read(&path, LEN_MAX) {
        Ok(bytes) => open(region, snapshot, point, &bytes).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(HostError::io("reading a snapshot's proof", &path)(e)),
    }
}

/// What a snapshot's proof comes to; none if it has none that can be opened.
pub fn find_head(region: &Region, snapshot: &Snapshot, point: Point) -> Option<Head> {
    match read(region, snapshot, point) {
        Ok(proof) => proof.map(|proof| proof.head),
        Err(error) => {
            tracing::warn!(snapshot = %snapshot.id, %error, "its proof can't be read");
            None
        }
    }
}

fn open(region: &Region, snapshot: &Snapshot, point: Point, bytes: &[u8]) -> Result<Proof> {
    let short = || damaged("a shorter file");
    let (fixed, rest) = bytes.split_at_checked(FIXED_LEN).ok_or_else(short)?;
    let (wrapped, rest) = rest.split_at_checked(WRAPPED_LEN).ok_or_else(short)?;
    let (head, leaves) = rest.split_at_checked(HEAD_LEN).ok_or_else(short)?;
    let number = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("4 bytes"));
    if !fixed.starts_with(MAGIC) {
        return Err(damaged("another kind of file").into());
    }
    if (number(8), number(12)) != (VERSION, 0) {
        let found = format!(
            "version {}, features {:#x}: this program knows version {VERSION}",
            number(8),
            number(12)
        );
        return Err(damaged(&found).into());
    }
    let bound_to = bound_to(region, snapshot.id, point);
    let file_key = kms::unwrap_data_key(region, snapshot.key, number(16), &bound_to, wrapped)?;
    let file_key = first_half(&file_key);
    let head = crypto::unwrap(&file_key, &bound_to, head).map_err(|e| damaged(&e.to_string()))?;
    let (root, rest) = head.split_first_chunk::<16>().ok_or_else(short)?;
    let long = |at: usize| u64::from_le_bytes(rest[at..at + 8].try_into().expect("8 bytes"));
    let head = Head { root: *root, count: long(0), size_bytes: long(8) };
    Ok(Proof { head, file_key, bound_to, leaves: leaves.to_vec() })
}

fn first_half(key: &Secret<64>) -> Secret<32> {
    Secret::try_from_slice(&key.expose()[..32]).expect("half of 64 bytes")
}

fn bound_to(region: &Region, snapshot: SnapshotId, point: Point) -> Vec<u8> {
    format!("terrane proof\0{}\0{snapshot}\0{point}", region.id()).into_bytes()
}

fn aad_of_leaves(bound_to: &[u8], root: &[u8; 16]) -> Vec<u8> {
    [bound_to, b"\0leaves\0", root].concat()
}

/// Takes away the proof of a snapshot that is gone. Best effort: one that stays is swept later, and is of no worth to anybody.
pub fn forget(region: &Region, snapshot: SnapshotId) {
    let _ = fs::remove_file(path_of(region, snapshot));
}

/// Takes away what no snapshot has, and what killed processes were writing. Called by the owner of the layers.
pub(in crate::volume) fn forget_unnamed(region: &Region) -> Result<()> {
    for path in files(region)? {
        let id = path.file_name().and_then(|name| name.to_str()?.parse::<SnapshotId>().ok());
        let is_of_worth = match id {
            Some(id) => region.catalog()?.read(|tx| tx.find_snapshot(id))?.is_some(),
            None => is_being_written(&path),
        };
        if !is_of_worth {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

/// A file without a snapshot's name is one that is being written; not for an hour.
fn is_being_written(path: &Path) -> bool {
    let written = fs::symlink_metadata(path).and_then(|found| found.modified());
    written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < Duration::from_secs(3600)))
}

/// What is wrong with proofs, in sentences. Of those whose key is closed nothing is said.
pub fn problems(region: &Region) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for row in region.catalog()?.read(|tx| tx.snapshots())? {
        let header = row.layer.and_then(|_| vouch::header_of_snapshot(region, &row).ok());
        let Some(point) = header.and_then(|header| header.points.first().copied()) else { continue };
        match read(region, &row, point) {
            Ok(_) | Err(HostError::Kms(KmsError::Disabled { .. })) => {}
            Err(error) => problems.push(format!(
                "snapshot {} ({}): its proof can't be read: {error}; `terrane snapshot verify {} --deep` makes it anew",
                row.name, row.id, row.name
            )),
        }
    }
    Ok(problems)
}

fn files(region: &Region) -> Result<Vec<PathBuf>> {
    let path = folder(region);
    let io = |e: io::Error| HostError::io("listing the proofs in", &path)(e);
    match fs::read_dir(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(io)?.map(|entry| Ok(entry.map_err(io)?.path())).collect(),
    }
}
