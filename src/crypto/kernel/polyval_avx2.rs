//! POLYVAL with VPCLMULQDQ on 256-bit vectors: as `polyval_avx512` does it, with two blocks a vector.

#![allow(unsafe_code)]

use core::arch::x86_64::*;

use zeroize::Zeroize;

use super::aes_ni::load;
use super::polyval_field::{block_of, fill_powers, reduce};
use super::{Block, SECTOR_BLOCKS, has_avx2};

/// Blocks in a step, but for the last of a sector.
const STEP: usize = 64;
/// Blocks in a vector.
const LANES: usize = 2;
/// Powers kept: a sector's last step has two vectors more, with what ends its hash.
const POWERS: usize = STEP + 2 * LANES;

/// The key's powers; zeroed on drop.
#[repr(align(64))]
pub(in crate::crypto) struct Polyval {
    /// H^68, H^67, … H: in the order of the blocks they meet.
    powers: [Block; POWERS],
    /// Of each power both halves' sum, twice.
    sums: [Block; POWERS],
}

impl Drop for Polyval {
    fn drop(&mut self) {
        self.powers.zeroize();
        self.sums.zeroize();
    }
}

impl Polyval {
    /// Panics where the processor lacks what this path uses: to hold one of these is the proof that it has it.
    pub(super) fn new(key: &Block) -> Box<Self> {
        assert!(has_avx2(), "this processor lacks VPCLMULQDQ");
        let empty = [[0; 16]; POWERS];
        let mut polyval = Box::new(Self { powers: empty, sums: empty });
        let Self { powers, sums } = &mut *polyval;
        // SAFETY: that includes PCLMULQDQ.
        unsafe { fill_powers(key, powers, sums) };
        polyval
    }

    #[inline]
    pub(super) fn extend(&self, hash: Block, blocks: &[Block]) -> Block {
        // SAFETY: a `Polyval` exists only where the processor has the features.
        unsafe { self.extend_wide(hash, blocks) }
    }

    /// The powers of the key that the last `vectors` vectors of a step meet, and the sums of their halves.
    #[inline]
    fn powers(&self, vectors: usize) -> impl Iterator<Item = Power<'_>> {
        let from = POWERS - vectors * LANES;
        let (powers, sums) = (self.powers[from..].as_chunks().0, self.sums[from..].as_chunks().0);
        powers.iter().zip(sums).map(|(power, sum)| Power { power, sum })
    }

    #[target_feature(enable = "avx2,vpclmulqdq,pclmulqdq")]
    fn extend_wide(&self, hash: Block, blocks: &[Block]) -> Block {
        let mut sum = load(&hash);
        let (steps, tail) = blocks.as_chunks::<STEP>();
        for step in steps {
            sum = self.step(sum, step);
        }
        if !tail.is_empty() {
            sum = self.step(sum, tail);
        }
        block_of(sum)
    }

    /// The hash of a sector and of two blocks more. Four steps, the first two blocks short and the last with four more, where the
    /// plain way would have a fifth for the two.
    #[inline]
    pub(super) fn sector(&self, sector: &[Block; SECTOR_BLOCKS], end: &[Block; 2]) -> Block {
        // SAFETY: a `Polyval` exists only where the processor has the features.
        unsafe { self.sector_wide(sector, end) }
    }

    #[target_feature(enable = "avx2,vpclmulqdq,pclmulqdq")]
    fn sector_wide(&self, sector: &[Block; SECTOR_BLOCKS], end: &[Block; 2]) -> Block {
        let (first, rest) = sector.split_at(STEP - 2);
        let (steps, tail) = rest.as_chunks::<STEP>();
        let mut sum = self.step(_mm_setzero_si128(), first);
        for step in &steps[..2] {
            sum = self.step(sum, step);
        }
        let (vectors, _) = steps[2].as_chunks::<LANES>();
        let (tail, _) = tail.as_chunks::<LANES>();
        let mut powers = self.powers(POWERS / LANES);
        let first_power = powers.next();
        let mut products = Products::none();
        for (blocks, power) in vectors[1..].iter().chain([&tail[0], end]).zip(powers) {
            products.add(load_two(blocks), power);
        }
        if let Some(power) = first_power {
            products.add(_mm256_xor_si256(load_two(&vectors[0]), _mm256_zextsi128_si256(sum)), power);
        }
        block_of(products.reduced())
    }

    /// `sum` and 1 to [`STEP`] blocks after it.
    #[inline]
    #[target_feature(enable = "avx2,vpclmulqdq,pclmulqdq")]
    fn step(&self, sum: __m128i, blocks: &[Block]) -> __m128i {
        let vectors = blocks.len().div_ceil(LANES);
        let (head, rest) = blocks.split_at(blocks.len() - (vectors - 1) * LANES);
        // A block that doesn't fill a vector lies in its last lane, zeros before it.
        let first = match head {
            [one] => _mm256_set_m128i(_mm_xor_si128(load(one), sum), _mm_setzero_si128()),
            [one, two] => _mm256_set_m128i(load(two), _mm_xor_si128(load(one), sum)),
            _ => unreachable!("a vector has one or two blocks"),
        };
        let mut powers = self.powers(vectors);
        let first_power = powers.next();
        let mut products = Products::none();
        for (blocks, power) in rest.as_chunks::<LANES>().0.iter().zip(powers) {
            products.add(load_two(blocks), power);
        }
        // Last, though it stands first: meanwhile the reduction that `sum` comes from has ended.
        if let Some(power) = first_power {
            products.add(first, power);
        }
        products.reduced()
    }
}

/// Two powers of the key, and the sum of each one's halves.
#[derive(Clone, Copy)]
struct Power<'a> {
    power: &'a [Block; LANES],
    sum: &'a [Block; LANES],
}

/// Sums of 256-bit products, lane by lane, by Karatsuba's rule (three multiplications where the plain way has four): of the low
/// halves, of the high halves, and of the halves' sums. The products of low with high are what the third has more than the
/// first two.
struct Products {
    low: __m256i,
    high: __m256i,
    sums: __m256i,
}

impl Products {
    #[inline]
    #[target_feature(enable = "avx2,vpclmulqdq")]
    fn none() -> Self {
        let zero = _mm256_setzero_si256();
        Self { low: zero, high: zero, sums: zero }
    }

    #[inline]
    #[target_feature(enable = "avx2,vpclmulqdq")]
    fn add(&mut self, a: __m256i, power: Power<'_>) {
        let (b, b_sum) = (load_two(power.power), load_two(power.sum));
        let a_sum = _mm256_xor_si256(a, _mm256_shuffle_epi32::<0x4e>(a));
        self.low = _mm256_xor_si256(self.low, _mm256_clmulepi64_epi128::<0x00>(a, b));
        self.high = _mm256_xor_si256(self.high, _mm256_clmulepi64_epi128::<0x11>(a, b));
        self.sums = _mm256_xor_si256(self.sums, _mm256_clmulepi64_epi128::<0x00>(a_sum, b_sum));
    }

    #[inline]
    #[target_feature(enable = "avx2,pclmulqdq")]
    fn reduced(self) -> __m128i {
        let middle = _mm256_xor_si256(_mm256_xor_si256(self.low, self.high), self.sums);
        reduce(sum_of_lanes(self.low), sum_of_lanes(middle), sum_of_lanes(self.high))
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum_of_lanes(vector: __m256i) -> __m128i {
    _mm_xor_si128(_mm256_castsi256_si128(vector), _mm256_extracti128_si256::<1>(vector))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_two(blocks: &[Block; LANES]) -> __m256i {
    // SAFETY: 32 readable bytes; the load may be unaligned.
    unsafe { _mm256_loadu_si256(blocks.as_ptr().cast()) }
}
