//! `proofs/<snapshot id>`: a snapshot's leaves, encrypted under the snapshot's key.
//!
//! ```text
//!   0 magic "TRNPROOF" · 8 version u32 = 2 · 12 features u32 = 0 · 16 version of the key u32 · 20 zero u32
//!  24 a file key wrapped by the snapshot's key[93] · 117 head[69] · 186 leaves[29 + 8 + 24 × count]
//! head, opened:   root[16] · count u64 · bytes of the disk u64 · rests u64
//! leaves, opened: bytes of the disk u64 · (chunk u64 · leaf u128) × count, chunks ascending, no leaf zero
//! ```
//! Little-endian. Both are AES-256-GCM envelopes under the file key's first 32 bytes; what they are bound to says region, snapshot and
//! point, and for the leaves the root: equal leaves are not seen by who has no key, and none is another snapshot's. The file
//! key is new in each file, for the proof key may be known to others: of a plain source it is.
//!
//! `rests` is 0 where all of the disk was read to make it, 1 where it was made from a base's leaves and what changed, 2 where that was said
//! by a bookmark, then or when the base was made, and not all of the source was read. Version 1 knows no 2, and is read.
//!
//! The head says how long the file is, within what a disk of the snapshot's size can have: nothing is read, and no memory taken, on the
//! word of the file's length.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Leaves, shelf};
use crate::catalog::Snapshot;
use crate::crypto::{self, ProofKey, Secret};
use crate::ids::{Point, SnapshotId};
use crate::kms::{self, KmsError};
use crate::layer::LayerError;
use crate::region::Region;
use crate::sys::{crashsafe, owned};
use crate::volume::chunks_of_bytes;
use crate::volume::host_error::{HostError, Result};

const MAGIC: &[u8; 8] = b"TRNPROOF";
const VERSION: u32 = 2;
/// Read, and written over.
const OLD_VERSION: u32 = 1;
const FIXED_LEN: usize = 24;
const WRAPPED_LEN: usize = 93;
/// What an envelope is longer than what it holds.
const ENVELOPE_LEN: usize = 29;
const HEAD_LEN: usize = ENVELOPE_LEN + 40;
/// Where the leaves begin: what is before says all but them.
const HEAD_END: usize = FIXED_LEN + WRAPPED_LEN + HEAD_LEN;

/// What a proof rests on, beyond what was read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rests {
    /// All of the disk was read for it.
    Bytes,
    /// A base's leaves, and maps that say what changed.
    Maps,
    /// A base's leaves, and a bookmark that says what changed, or said it when the base was made; not all of the source was read.
    Bookmark,
}

/// What a proof comes to.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// The root.
    pub root: [u8; 16],
    /// Chunks that are not zero.
    pub count: u64,
    /// Size of the disk.
    pub size_bytes: u64,
    /// On what it rests.
    pub rests: Rests,
}

impl Head {
    /// Whether both are of one content, however they were made.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let content = |head: &Self| (head.root, head.count, head.size_bytes);
        content(self) == content(other)
    }

    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = self.root.to_vec();
        [self.count, self.size_bytes, self.rests as u64].iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (root, rest) = bytes.split_first_chunk::<16>()?;
        let (numbers, []) = rest.as_chunks::<8>() else { return None };
        let [count, size_bytes, rests] = *numbers else { return None };
        let rests = match u64::from_le_bytes(rests) {
            0 => Rests::Bytes,
            1 => Rests::Maps,
            2 => Rests::Bookmark,
            _ => return None,
        };
        let [count, size_bytes] = [count, size_bytes].map(u64::from_le_bytes);
        Some(Self { root: *root, count, size_bytes, rests })
    }
}

/// A proof of which the head was opened.
pub struct Proof {
    /// What it comes to.
    pub head: Head,
    snapshot: SnapshotId,
    file: File,
    file_key: Secret<32>,
    bound_to: Vec<u8>,
}

impl Proof {
    /// Its leaves, read now; `key` is the disk's.
    pub fn leaves(&self, key: &ProofKey) -> Result<Leaves, LayerError> {
        let damaged = |found: &str| damaged(self.snapshot, found);
        let mut sealed = vec![0; leaves_len(self.head.count) as usize];
        read_at(&self.file, &mut sealed, HEAD_END as u64, self.snapshot)?;
        let listed = crypto::unwrap(&self.file_key, &aad_of_leaves(&self.bound_to, &self.head.root), &sealed);
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

fn leaves_len(count: u64) -> u64 {
    ENVELOPE_LEN as u64 + 8 + 24 * count
}

fn damaged(snapshot: SnapshotId, found: &str) -> LayerError {
    LayerError::corrupted(format!("the proof of snapshot {snapshot}"), "what its key wrote", found)
}

fn read_at(file: &File, into: &mut [u8], offset: u64, snapshot: SnapshotId) -> Result<(), LayerError> {
    file.read_exact_at(into, offset).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => damaged(snapshot, "a shorter file"),
        _ => LayerError::io("reading a snapshot's proof")(e),
    })
}

/// Writes a snapshot's proof, durable; one that is there is replaced, unless [`check_replaceable`] refuses.
pub fn write(
    region: &Region,
    snapshot: &Snapshot,
    point: Point,
    leaves: &Leaves,
    key: &ProofKey,
    rests: Rests,
) -> Result<()> {
    shelf::make(region)?;
    check_replaceable(region, snapshot.id)?;
    let bound_to = bound_to(region, snapshot.id, point);
    let (file_key, wrapped) = kms::new_data_key(region, snapshot.key, &bound_to)?;
    let file_key = first_half(&file_key);
    let head = Head { root: leaves.root(key), count: leaves.count(), size_bytes: leaves.size_bytes(), rests };
    let mut bytes = MAGIC.to_vec();
    [VERSION, 0, wrapped.version, 0].iter().for_each(|n| bytes.extend(n.to_le_bytes()));
    bytes.extend(wrapped.bytes);
    bytes.extend(crypto::wrap(&file_key, &bound_to, &head.to_bytes()));
    bytes.extend(crypto::wrap(&file_key, &aad_of_leaves(&bound_to, &head.root), &leaves.list()));
    let path = shelf::path_of(region, snapshot.id);
    crashsafe::write_file(&path, &bytes, 0o600).map_err(HostError::io("writing a snapshot's proof", &path))
}

/// Refuses where the proof may not be made anew: it is of another version of the program, or what stands in its place, or in that of
/// the folder, is not to be replaced by a file.
pub fn check_replaceable(region: &Region, snapshot: SnapshotId) -> Result<()> {
    let path = shelf::path_of(region, snapshot);
    let refused = |words: String| {
        HostError::io("a snapshot's proof", &path)(io::Error::new(io::ErrorKind::InvalidData, words))
    };
    if !shelf::is_there(region)? {
        return Ok(());
    }
    if path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return Err(refused(
            "a folder, where a file belongs: take it away, and the proof is made anew".into(),
        ));
    }
    // What can't be opened or is shorter is of no version.
    let mut fixed = [0; FIXED_LEN];
    let read = owned::open(&path, false).and_then(|file| file.read_exact_at(&mut fixed, 0));
    match read.map(|()| Fixed::parse(&fixed)) {
        Ok(Fixed::Newer { version, features }) => Err(refused(format!(
            "of version {version}, features {features:#x}, and this program knows version {VERSION}: one that knows it reads it; it is \
             made anew once it is taken away"
        ))),
        _ => Ok(()),
    }
}

/// What a file's first bytes say; none of it has a MAC.
enum Fixed {
    /// The file key is wrapped by this version of the snapshot's key.
    Known {
        key_version: u32,
    },
    Newer {
        version: u32,
        features: u32,
    },
    Other,
}

impl Fixed {
    fn parse(bytes: &[u8; FIXED_LEN]) -> Self {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        match (bytes.starts_with(MAGIC), number(8), number(12), number(20)) {
            (true, VERSION | OLD_VERSION, 0, 0) => Self::Known { key_version: number(16) },
            (false, ..) | (true, VERSION | OLD_VERSION, 0, _) => Self::Other,
            (true, version, features, _) => Self::Newer { version, features },
        }
    }
}

/// A snapshot's proof; none if it has none. Its leaves are not read yet.
pub fn read(region: &Region, snapshot: &Snapshot, point: Point) -> Result<Option<Proof>> {
    if !shelf::is_there(region)? {
        return Ok(None);
    }
    let path = shelf::path_of(region, snapshot.id);
    match owned::open(&path, false) {
        Ok(file) => open(region, snapshot, point, file).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(HostError::io("reading a snapshot's proof", &path)(e)),
    }
}

/// What a snapshot's proof comes to; none if it has none that can be opened.
pub fn find_head(region: &Region, snapshot: &Snapshot, point: Point) -> Option<Head> {
    try_find_head(region, snapshot, point).unwrap_or_else(|error| unreadable(snapshot, &error))
}

/// The same for who must know it if it can be known: an error says that no more files can be open.
pub fn try_find_head(region: &Region, snapshot: &Snapshot, point: Point) -> Result<Option<Head>> {
    match read(region, snapshot, point) {
        Ok(proof) => Ok(proof.map(|proof| proof.head)),
        Err(error) if error.is_of_open_files() => Err(error),
        Err(error) => Ok(unreadable(snapshot, &error)),
    }
}

fn unreadable(snapshot: &Snapshot, error: &HostError) -> Option<Head> {
    tracing::warn!(snapshot = %snapshot.id, %error, "its proof can't be read");
    None
}

fn open(region: &Region, snapshot: &Snapshot, point: Point, file: File) -> Result<Proof> {
    let damaged = |found: &str| damaged(snapshot.id, found);
    let mut bytes = [0; HEAD_END];
    read_at(&file, &mut bytes, 0, snapshot.id)?;
    let (fixed, rest) = bytes.split_first_chunk::<FIXED_LEN>().expect("it is longer");
    let key_version = match Fixed::parse(fixed) {
        Fixed::Known { key_version } => key_version,
        Fixed::Other => return Err(damaged("another kind of file").into()),
        Fixed::Newer { version, features } => {
            let found =
                format!("version {version}, features {features:#x}: this program knows version {VERSION}");
            return Err(damaged(&found).into());
        }
    };
    let (wrapped, head) = rest.split_at(WRAPPED_LEN);
    let bound_to = bound_to(region, snapshot.id, point);
    let file_key = kms::unwrap_data_key(region, snapshot.key, key_version, &bound_to, wrapped);
    let file_key = first_half(&file_key.map_err(|e| match e {
        // What the file says opens nothing; a key that is lost itself is told of where layers are opened.
        KmsError::Damaged { .. } | KmsError::NotFound { version: Some(_), .. } => {
            damaged(&e.to_string()).into()
        }
        other => HostError::from(other),
    })?);
    let head = crypto::unwrap(&file_key, &bound_to, head).map_err(|e| damaged(&e.to_string()))?;
    let head = Head::parse(&head).ok_or_else(|| damaged("a head that no version writes"))?;
    let found = file.metadata().map_err(LayerError::io("reading a snapshot's proof"))?.len();
    if head.count > chunks_of_bytes(snapshot.size_bytes) || found != HEAD_END as u64 + leaves_len(head.count)
    {
        let found = format!("{} leaves in a file of {found} bytes", head.count);
        return Err(damaged(&found).into());
    }
    Ok(Proof { head, snapshot: snapshot.id, file, file_key, bound_to })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_comes_back_and_no_other_is_taken() {
        for rests in [Rests::Bytes, Rests::Maps, Rests::Bookmark] {
            let head = Head { root: [7; 16], count: 3, size_bytes: 9 << 30, rests };
            let bytes = head.to_bytes();
            assert_eq!(bytes.len() + ENVELOPE_LEN, HEAD_LEN);
            let again = Head::parse(&bytes).unwrap();
            assert!(again.agrees_with(&head) && again.rests == rests);
            for len in 0..bytes.len() {
                assert!(Head::parse(&bytes[..len]).is_none(), "cut to {len}");
            }
            assert!(Head::parse(&[&bytes[..], &[0]].concat()).is_none());
            for (at, bit) in [(32, 4), (33, 1), (39, 0x80)] {
                let mut other = bytes.clone();
                other[at] |= bit;
                assert!(Head::parse(&other).is_none(), "byte {at}");
            }
        }
    }

    #[test]
    fn heads_of_another_content_do_not_agree() {
        let head = Head { root: [7; 16], count: 3, size_bytes: 9 << 30, rests: Rests::Bytes };
        assert!(head.agrees_with(&Head { rests: Rests::Maps, ..head }));
        for other in
            [Head { root: [8; 16], ..head }, Head { count: 4, ..head }, Head { size_bytes: 8 << 30, ..head }]
        {
            assert!(!head.agrees_with(&other));
        }
    }
}
