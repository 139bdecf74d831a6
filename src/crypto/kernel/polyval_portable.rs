//! POLYVAL by the `polyval` crate (PCLMULQDQ or PMULL where the processor has it).

use polyval::universal_hash::{KeyInit, UniversalHash};

use super::{Block, SECTOR_BLOCKS};

/// The crate's expanded key, in its initial state; zeroed on drop by the crate.
pub(in crate::crypto) struct Polyval {
    fresh: polyval::Polyval,
}

impl Polyval {
    pub(super) fn new(key: &Block) -> Self {
        Self { fresh: <polyval::Polyval as KeyInit>::new(&(*key).into()) }
    }

    pub(super) fn extend(&self, hash: Block, blocks: &[Block]) -> Block {
        let Some((first, rest)) = blocks.split_first() else { return hash };
        // The crate can't begin at a given hash; XORed into the first block it is the same.
        let first = u128::from_ne_bytes(*first) ^ u128::from_ne_bytes(hash);
        let mut running = self.fresh.clone();
        running.update(&[first.to_ne_bytes().into()]);
        running.update(aes::cipher::Array::cast_slice_from_core(rest));
        running.finalize().into()
    }

    /// The hash of a sector and of two blocks more.
    pub(super) fn sector(&self, sector: &[Block; SECTOR_BLOCKS], end: &[Block; 2]) -> Block {
        let mut running = self.fresh.clone();
        running.update(aes::cipher::Array::cast_slice_from_core(sector));
        running.update(aes::cipher::Array::cast_slice_from_core(end));
        running.finalize().into()
    }
}
