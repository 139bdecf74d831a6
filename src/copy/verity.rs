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
const PER_BLOCK: u64 = SECTOR_BYTES / 32;
/// Blocks of hashes over a chunk.
const OVER_CHUNK: u64 = CHUNK_SECTORS / PER_BLOCK;

type Hash = [u8; 32];

/// A tree that is being made, from a disk's chunks in any order. Chunks that are not told of are zeros, and take no memory: in each
/// level only the hashes are kept that are not those over nothing but zeros.
pub struct Verity {
    salt: [u8; SALT_LEN],
    blocks: u64,
    /// Of each chunk that was told of, the digests of its blocks of hashes: 128 bytes.
    over_chunks: Mutex<BTreeMap<u64, [Hash; OVER_CHUNK as usize]>>,
}

impl Verity {
    /// A tree with this salt, over a disk of this size.
    pub fn new(salt: [u8; SALT_LEN], size_bytes: u64) -> Self {
        Self { salt, blocks: size_bytes.div_ceil(SECTOR_BYTES), over_chunks: Mutex::default() }
    }

    /// A chunk's bytes; of the last, those within the disk.
    pub fn chunk(&self, chunk: ChunkNo, bytes: &[u8]) {
        let over = self.over(bytes);
        self.over_chunks.lock().insert(chunk.0, over);
    }

    fn over(&self, bytes: &[u8]) -> [Hash; OVER_CHUNK as usize] {
        let mut over = [[0; 32]; OVER_CHUNK as usize];
        for (over, blocks) in over.iter_mut().zip(bytes.chunks(PER_BLOCK as usize * SECTOR_LEN)) {
            let hashes: Vec<Hash> = blocks.chunks(SECTOR_LEN).map(|block| self.hash(block)).collect();
            // Over a single block of data there are no hashes: its own is the root.
            *over = if self.blocks == 1 { hashes[0] } else { self.hash_block(&hashes) };
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

    /// The root, once all was told that is not zero.
    pub fn root(self) -> Hash {
        let mut over_chunks = std::mem::take(&mut *self.over_chunks.lock());
        // The last chunk has fewer blocks, and so other hashes, zeros or not.
        let (last, within) = (self.blocks / CHUNK_SECTORS, self.blocks % CHUNK_SECTORS);
        if within != 0 {
            let zeros = || self.over(&vec![0; (within * SECTOR_BYTES) as usize]);
            over_chunks.entry(last).or_insert_with(zeros);
        }
        let mut nodes = self.blocks.div_ceil(PER_BLOCK);
        let mut of_zeros = self.hash_block(&[self.hash(&[0; SECTOR_LEN]); PER_BLOCK as usize]);
        let first = over_chunks.into_iter().flat_map(|(chunk, over)| (chunk * OVER_CHUNK..).zip(over));
        let mut others: Box<dyn Iterator<Item = (u64, Hash)>> =
            Box::new(first.take_while(move |(node, _)| *node < nodes));
        while nodes > 1 {
            others = Box::new(self.above(nodes, of_zeros, others).into_iter());
            of_zeros = self.hash_block(&[of_zeros; PER_BLOCK as usize]);
            nodes = nodes.div_ceil(PER_BLOCK);
        }
        others.next().map_or(of_zeros, |(_, root)| root)
    }

    /// Of the level above one of so many nodes, those that are not over `of_zeros` alone. `others`: the same of this one, in order.
    fn above(
        &self,
        nodes: u64,
        of_zeros: Hash,
        others: impl Iterator<Item = (u64, Hash)>,
    ) -> Vec<(u64, Hash)> {
        let mut others = others.peekable();
        let mut above: Vec<(u64, Hash)> = Vec::new();
        // A block that is not full is over something else than the full ones, zeros or not.
        let last = Some(nodes / PER_BLOCK).filter(|_| !nodes.is_multiple_of(PER_BLOCK));
        loop {
            let done = above.last().map(|(node, _)| *node);
            let next = others.peek().map(|(node, _)| node / PER_BLOCK);
            let Some(node) = next.or(last.filter(|last| done != Some(*last))) else { return above };
            let mut hashes = [of_zeros; PER_BLOCK as usize];
            while let Some((of, hash)) = others.next_if(|(of, _)| of / PER_BLOCK == node) {
                hashes[(of % PER_BLOCK) as usize] = hash;
            }
            let count = (nodes - node * PER_BLOCK).min(PER_BLOCK);
            above.push((node, self.hash_block(&hashes[..count as usize])));
        }
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
        for len in
            [4096, 8192, 128 * 4096, 129 * 4096, chunk, chunk + 4096, 33 * chunk, 33 * chunk + 130 * 4096]
        {
            let mut data = vec![0; len];
            // The first chunk, the last, and one in the middle; the others are zeros that nobody tells of.
            for at in [5, len / 2, len - 1] {
                data[at] = 7;
            }
            let verity = Verity::new([9; SALT_LEN], len as u64);
            for (number, bytes) in data.chunks(chunk).enumerate().filter(|(_, c)| c.iter().any(|b| *b != 0)) {
                verity.chunk(ChunkNo(number as u64), bytes);
            }
            assert_eq!(verity.root(), plain_root(&[9; SALT_LEN], &data), "{len} bytes");
            let of_zeros = Verity::new([9; SALT_LEN], len as u64).root();
            assert_eq!(of_zeros, plain_root(&[9; SALT_LEN], &vec![0; len]), "{len} bytes of zeros");
        }
    }

    /// Level by level from what is known of zeros: the largest disk has 2³⁴ blocks.
    #[test]
    fn an_empty_disk_of_any_size_takes_no_memory() {
        let verity = Verity::new([9; SALT_LEN], crate::units::VOLUME_BYTES_MAX);
        let mut level = verity.hash(&[0; SECTOR_LEN]);
        // 128⁴ = 2²⁸ blocks under a node of the fourth level, 64 of which make the root.
        for _ in 0..4 {
            level = verity.hash_block(&[level; PER_BLOCK as usize]);
        }
        let root = verity.hash_block(&[level; 64]);
        assert_eq!(verity.root(), root);
    }
}
