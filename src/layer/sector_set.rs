//! Sets of a disk's sectors: for each chunk that has any, 512 bits; neighbouring chunks of the same bits are one piece, so that what
//! was written or discarded in long runs costs nothing.

use crate::units::{CHUNK_BYTES, CHUNK_SECTORS, VOLUME_BYTES_MAX};

/// Chunks of the largest disk.
pub(super) const CHUNKS_MAX: u64 = VOLUME_BYTES_MAX / CHUNK_BYTES;

const WORDS: usize = CHUNK_SECTORS as usize / 64;

/// Which sectors of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkBits(pub(super) [u64; WORDS]);

impl ChunkBits {
    /// No sector.
    pub const NONE: Self = Self([0; WORDS]);

    /// Whether none is in it.
    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    /// Adds the sector of this index.
    pub fn insert(&mut self, index: usize) {
        self.0[index / 64] |= 1 << (index % 64);
    }

    /// Whether the sector of this index is in it.
    pub fn contains(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Those of either.
    pub fn union(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] | other.0[i]))
    }
}

/// Chunks of the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub first: u64,
    /// At least one.
    pub chunks: u64,
    /// Not empty.
    pub bits: ChunkBits,
}

impl Piece {
    pub fn end(&self) -> u64 {
        self.first + self.chunks
    }
}

/// Sectors of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SectorSet {
    /// In order, none over another.
    pieces: Vec<Piece>,
}

impl SectorSet {
    /// Adds sectors of a chunk after all that are in it.
    pub fn push(&mut self, chunk: u64, bits: ChunkBits) {
        self.push_piece(Piece { first: chunk, chunks: 1, bits });
    }

    pub(super) fn push_piece(&mut self, piece: Piece) {
        assert!(self.pieces.last().is_none_or(|last| last.end() <= piece.first), "chunks come in order");
        if piece.bits.is_empty() {
            return;
        }
        match self.pieces.last_mut() {
            Some(last) if last.end() == piece.first && last.bits == piece.bits => last.chunks += piece.chunks,
            _ => self.pieces.push(piece),
        }
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// How many pieces it takes: of one or more chunks of the same bits.
    pub fn pieces_count(&self) -> usize {
        self.pieces.len()
    }

    /// Its sectors of a chunk.
    pub fn bits(&self, chunk: u64) -> ChunkBits {
        let at = self.pieces.partition_point(|piece| piece.end() <= chunk);
        match self.pieces.get(at) {
            Some(piece) if piece.first <= chunk => piece.bits,
            _ => ChunkBits::NONE,
        }
    }

    /// The first chunk from `at` on of which it has sectors.
    pub fn next(&self, at: u64) -> Option<u64> {
        let piece = self.pieces.get(self.pieces.partition_point(|piece| piece.end() <= at))?;
        Some(piece.first.max(at))
    }

    /// The sectors of either.
    pub fn union(&self, other: &Self) -> Self {
        let mut all = Self::default();
        let (mut mine, mut others, mut at) = (0, 0, 0);
        loop {
            let (a, a_end) = alike_from(&self.pieces, &mut mine, at);
            let (b, b_end) = alike_from(&other.pieces, &mut others, at);
            let end = a_end.min(b_end);
            if end == u64::MAX {
                return all;
            }
            all.push_piece(Piece { first: at, chunks: end - at, bits: a.union(b) });
            at = end;
        }
    }
}

/// The bits of a chunk, and the first chunk after it that may have others; `number` is of a piece not after it.
fn alike_from(pieces: &[Piece], number: &mut usize, chunk: u64) -> (ChunkBits, u64) {
    while pieces.get(*number).is_some_and(|piece| piece.end() <= chunk) {
        *number += 1;
    }
    match pieces.get(*number) {
        None => (ChunkBits::NONE, u64::MAX),
        Some(piece) if piece.first > chunk => (ChunkBits::NONE, piece.first),
        Some(piece) => (piece.bits, piece.end()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn set(of: &BTreeSet<u64>) -> SectorSet {
        let mut set = SectorSet::default();
        for chunk in 0..20 {
            let mut bits = ChunkBits::NONE;
            of.range(chunk * 512..(chunk + 1) * 512).for_each(|sector| bits.insert((sector % 512) as usize));
            set.push(chunk, bits);
        }
        set
    }

    #[test]
    fn sets_hold_what_was_put_in_and_their_unions_both() {
        let mut seed = 1u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let mut any = || {
                let mut sectors = BTreeSet::new();
                for _ in 0..next(5) {
                    let (first, count) = (next(8000), 1 + next(2200));
                    sectors.extend(first..first + count);
                }
                sectors
            };
            let (a, b) = (any(), any());
            let both: BTreeSet<u64> = a.union(&b).copied().collect();
            let union = set(&a).union(&set(&b));
            assert_eq!(union, set(&both));
            for sector in 0..20 * 512 {
                let bits = union.bits(sector / 512);
                assert_eq!(bits.contains((sector % 512) as usize), both.contains(&sector), "{sector}");
            }
            for chunk in 0..21 {
                let first = both.range(chunk * 512..).next().map(|sector| sector / 512);
                assert_eq!(union.next(chunk), first);
            }
        }
    }

    #[test]
    fn long_runs_are_one_piece() {
        let whole: BTreeSet<u64> = (512..512 * 15).collect();
        assert_eq!(set(&whole).pieces().len(), 1);
    }
}
