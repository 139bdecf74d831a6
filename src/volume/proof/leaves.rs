//! The leaves of a disk, and how they are listed.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::crypto::ProofKey;
use crate::units::{CHUNK_BYTES, ChunkNo, VOLUME_BYTES_MAX};

/// Bytes of a leaf as it is listed: chunk u64, leaf u128.
const LISTED: usize = 24;

/// A disk's size, and the leaves of its chunks that are not zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaves {
    size_bytes: u64,
    of_chunks: BTreeMap<u64, u128>,
}

impl Leaves {
    /// Those of a disk of this size that is all zeros.
    pub fn of_zeros(size_bytes: u64) -> Self {
        Self { size_bytes, of_chunks: BTreeMap::new() }
    }

    /// Those of a disk that was made larger, or, where only its first bytes are looked at, smaller.
    pub fn resized(mut self, size_bytes: u64) -> Self {
        self.of_chunks.split_off(&size_bytes.div_ceil(CHUNK_BYTES));
        Self { size_bytes, ..self }
    }

    /// Size of the disk.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// How many chunks are not zero.
    pub fn count(&self) -> u64 {
        self.of_chunks.len() as u64
    }

    /// A chunk's leaf.
    pub fn leaf(&self, chunk: ChunkNo) -> u128 {
        self.of_chunks.get(&chunk.0).copied().unwrap_or(0)
    }

    /// The first chunk from `at` on that is not zero.
    pub fn next(&self, at: u64) -> Option<u64> {
        self.of_chunks.range(at..).next().map(|(chunk, _)| *chunk)
    }

    /// Sectors of a chunk went, and others came: the XOR of the words of both.
    pub fn change(&mut self, chunk: ChunkNo, words: u128) {
        let leaf = self.leaf(chunk) ^ words;
        match leaf {
            0 => drop(self.of_chunks.remove(&chunk.0)),
            _ => drop(self.of_chunks.insert(chunk.0, leaf)),
        }
    }

    /// Runs of chunks that differ, in order; where one disk is larger, its further chunks are compared with zeros.
    pub fn differing(&self, other: &Self) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let chunks: std::collections::BTreeSet<_> =
            self.of_chunks.keys().chain(other.of_chunks.keys()).copied().collect();
        for chunk in chunks {
            if self.leaf(ChunkNo(chunk)) == other.leaf(ChunkNo(chunk)) {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end == chunk => run.end += 1,
                _ => runs.push(chunk..chunk + 1),
            }
        }
        runs
    }

    /// Size and leaves as bytes: what a root is over, and a file holds.
    pub fn list(&self) -> Vec<u8> {
        let mut listed = Vec::with_capacity(8 + LISTED * self.of_chunks.len());
        listed.extend(self.size_bytes.to_le_bytes());
        for (chunk, leaf) in &self.of_chunks {
            listed.extend(chunk.to_le_bytes());
            listed.extend(leaf.to_le_bytes());
        }
        listed
    }

    /// What [`Leaves::list`] gave; none for any other bytes.
    pub fn parse(listed: &[u8]) -> Option<Self> {
        let (size, listed) = listed.split_first_chunk::<8>()?;
        let size_bytes = u64::from_le_bytes(*size);
        let (entries, rest) = listed.as_chunks::<LISTED>();
        if size_bytes > VOLUME_BYTES_MAX || !rest.is_empty() {
            return None;
        }
        let mut of_chunks = BTreeMap::new();
        let mut next = 0;
        for entry in entries {
            let (chunk, leaf) = entry.split_first_chunk::<8>()?;
            let chunk = u64::from_le_bytes(*chunk);
            let leaf = u128::from_le_bytes(leaf.try_into().ok()?);
            if chunk < next || chunk >= size_bytes.div_ceil(CHUNK_BYTES) || leaf == 0 {
                return None;
            }
            next = chunk + 1;
            of_chunks.insert(chunk, leaf);
        }
        Some(Self { size_bytes, of_chunks })
    }

    /// The root.
    pub fn root(&self, key: &ProofKey) -> [u8; 16] {
        key.root(&self.list())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Leaves {
        let mut leaves = Leaves::of_zeros(10 * CHUNK_BYTES);
        for chunk in [0, 3, 4, 9] {
            leaves.change(ChunkNo(chunk), u128::from(chunk + 1) << 100);
        }
        leaves
    }

    #[test]
    fn leaves_are_listed_and_parsed_back_and_nothing_else_is() {
        let leaves = some();
        assert_eq!(Leaves::parse(&leaves.list()), Some(leaves.clone()));
        assert_eq!(leaves.count(), 4);
        let listed = leaves.list();
        for len in (0..listed.len()).filter(|len| len % LISTED != 8) {
            assert_eq!(Leaves::parse(&listed[..len]), None, "cut to {len}");
        }
        let changed = |at: usize, byte: u8| {
            let mut listed = listed.clone();
            listed[at] = byte;
            Leaves::parse(&listed)
        };
        assert_eq!(changed(8, 200), None, "a chunk past the end");
        assert_eq!(changed(8, 3), None, "out of order");
        assert_eq!(changed(7, 0xff), None, "a size that no disk has");
        let mut zero = listed.clone();
        zero[16..32].fill(0);
        assert_eq!(Leaves::parse(&zero), None, "a leaf that is not listed");
    }

    #[test]
    fn what_differs_is_named_in_runs() {
        let (a, mut b) = (some(), some());
        assert_eq!(a.differing(&b), []);
        b.change(ChunkNo(3), 1);
        b.change(ChunkNo(4), a.leaf(ChunkNo(4)));
        b.change(ChunkNo(7), 5);
        assert_eq!((b.count(), b.leaf(ChunkNo(4))), (4, 0), "back to zeros");
        assert_eq!(a.differing(&b), [3..5, 7..8]);
        assert_eq!(b.differing(&a), [3..5, 7..8]);
        assert_eq!(a.clone().resized(4 * CHUNK_BYTES).differing(&a), [4..5, 9..10]);
        let key = ProofKey::random();
        assert_ne!(a.root(&key), b.root(&key));
        assert_ne!(a.root(&key), a.clone().resized(11 * CHUNK_BYTES).root(&key), "a larger disk is another");
    }
}
