//! The root of dm-verity's hash tree over a disk's bytes, as `veritysetup format` gives it: any other program can check that a
//! disk is what was proven.
//!
//! Version 1 of the format (Linux, Documentation/admin-guide/device-mapper/verity.rst): SHA-256 of salt ‖ block, blocks of 4096
//! bytes for data and hashes, 128 digests in a block of hashes, the last one of a level filled with zeros.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::units::{CHUNK_SECTORS, ChunkNo, SECTOR_BYTES, SECTOR_LEN};

/// Bytes of a salt.
pub const SALT_LEN: usize = 32;
/// Digests in a block of hashes.
const PER_BLOCK: usize = SECTOR_LEN / 32;
/// Blocks of hashes over a chunk.
const OVER_CHUNK: usize = CHUNK_SECTORS as usize / PER_BLOCK;

type Hash = [u8; 32];

/// A tree that is being made, from a disk's chunks in any order. Chunks that are not told of are zeros.
pub struct Verity {
    salt: [u8; SALT_LEN],
    /// Of each chunk that was told of, the digests of its blocks of hashes: 128 bytes.
    over_chunks: Mutex<BTreeMap<u64, [Hash; OVER_CHUNK]>>,
}

impl Verity {
    /// A tree with this salt.
    pub fn new(salt: [u8; SALT_LEN]) -> Self {
        Self { salt, over_chunks: Mutex::default() }
    }

    /// A chunk's bytes; of the last, those within the disk.
    pub fn chunk(&self, chunk: ChunkNo, bytes: &[u8]) {
        let over = self.over(bytes);
        self.over_chunks.lock().insert(chunk.0, over);
    }

    fn over(&self, bytes: &[u8]) -> [Hash; OVER_CHUNK] {
        let mut over = [[0; 32]; OVER_CHUNK];
        for (over, blocks) in over.iter_mut().zip(bytes.chunks(PER_BLOCK * SECTOR_LEN)) {
            let hashes: Vec<Hash> = blocks.chunks(SECTOR_LEN).map(|block| self.hash(block)).collect();
            *over = self.hash_block(&hashes);
        }
        over
    }

    fn hash(&self, block: &[u8]) -> Hash {
        Sha256::new().chain_update(self.salt).chain_update(block).finalize().into()
    }

    fn hash_block(&self, hashes: &[Hash]) -> Hash {
        let mut block = [0; SECTOR_LEN];
        block.as_chunks_mut::<32>().0.iter_mut().zip(hashes).for_each(|(to, hash)| *to = *hash);
        self.hash(&block)
    }

    /// The root of a disk of this size, of which all that is not zero was told.
    pub fn root(self, size_bytes: u64) -> Hash {
        let blocks = size_bytes.div_ceil(SECTOR_BYTES);
        let over_chunks = self.over_chunks.lock();
        // Under a single block of data there is no tree.
        if blocks <= 1 {
            return self.hash(&[0; SECTOR_LEN]);
        }
        let of_zeros = self.over(&[0; crate::units::CHUNK_BYTES as usize]);
        let mut level = Vec::with_capacity(blocks.div_ceil(PER_BLOCK as u64) as usize);
        let mut left = blocks;
        for chunk in 0..blocks.div_ceil(CHUNK_SECTORS) {
            let within = left.min(CHUNK_SECTORS);
            let over = match over_chunks.get(&chunk) {
                Some(over) => *over,
                None if within == CHUNK_SECTORS => of_zeros,
                None => self.over(&vec![0; (within * SECTOR_BYTES) as usize]),
            };
            level.extend(&over[..within.div_ceil(PER_BLOCK as u64) as usize]);
            left -= within;
        }
        while level.len() > 1 {
            level = level.chunks(PER_BLOCK).map(|hashes| self.hash_block(hashes)).collect();
        }
        level[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::CHUNK_BYTES;

    /// By the definition: all data at once, level by level.
    fn plain_root(salt: &[u8], data: &[u8]) -> Hash {
        let hash =
            |block: &[u8]| -> Hash { Sha256::new().chain_update(salt).chain_update(block).finalize().into() };
        let mut level: Vec<Hash> = data.chunks(4096).map(hash).collect();
        while level.len() > 1 {
            let of_block = |hashes: &[Hash]| {
                let mut block = hashes.concat();
                block.resize(4096, 0);
                hash(&block)
            };
            level = level.chunks(128).map(of_block).collect();
        }
        level[0]
    }

    #[test]
    fn the_root_is_that_of_the_whole_tree() {
        let chunk = CHUNK_BYTES as usize;
        for len in [8192, 128 * 4096, 129 * 4096, chunk, chunk + 4096, 33 * chunk, 33 * chunk + 130 * 4096] {
            let mut data = vec![0; len];
            // The first chunk, the last, and one in the middle; the others are zeros that nobody tells of.
            for at in [5, len / 2, len - 1] {
                data[at] = 7;
            }
            let verity = Verity::new([9; SALT_LEN]);
            for (number, bytes) in data.chunks(chunk).enumerate().filter(|(_, c)| c.iter().any(|b| *b != 0)) {
                verity.chunk(ChunkNo(number as u64), bytes);
            }
            assert_eq!(verity.root(len as u64), plain_root(&[9; SALT_LEN], &data), "{len} bytes");
        }
    }
}
