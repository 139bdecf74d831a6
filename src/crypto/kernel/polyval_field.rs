//! The field of POLYVAL on single elements: what begins and ends the work of the vectors.

use core::arch::x86_64::*;

use super::Block;
use super::aes_ni::{load, store};

/// A 256-bit product times x⁻¹²⁸, modulo the field's polynomial (Montgomery's way: the low half is cleared by
/// adding multiples of the polynomial, 64 bits at a time, and what is left above it is the result).
#[inline]
#[target_feature(enable = "sse2,pclmulqdq")]
pub(super) fn reduce(low: __m128i, middle: __m128i, high: __m128i) -> __m128i {
    // x¹²⁸ + x¹²⁷ + x¹²⁶ + x¹²¹ + 1 without its lowest term, divided by x⁶⁴: bits 63, 62 and 57.
    let polynomial = _mm_set_epi64x(0xc200_0000_0000_0000_u64 as i64, 0);
    let mut low = _mm_xor_si128(low, _mm_slli_si128::<8>(middle));
    let high = _mm_xor_si128(high, _mm_srli_si128::<8>(middle));
    for _ in 0..2 {
        let cleared = _mm_clmulepi64_si128::<0x10>(low, polynomial);
        low = _mm_xor_si128(cleared, _mm_shuffle_epi32::<0x4e>(low));
    }
    _mm_xor_si128(high, low)
}

/// The field's product of two elements.
#[inline]
#[target_feature(enable = "sse2,pclmulqdq")]
fn product(a: __m128i, b: __m128i) -> __m128i {
    let middle = _mm_xor_si128(_mm_clmulepi64_si128::<0x01>(a, b), _mm_clmulepi64_si128::<0x10>(a, b));
    reduce(_mm_clmulepi64_si128::<0x00>(a, b), middle, _mm_clmulepi64_si128::<0x11>(a, b))
}

/// Of a key the powers down to the first, and of each both halves' sum, twice.
#[target_feature(enable = "sse2,pclmulqdq")]
pub(super) fn fill_powers(key: &Block, powers: &mut [Block], sums: &mut [Block]) {
    let key = load(key);
    let mut power = key;
    for (place, sum) in powers.iter_mut().zip(sums).rev() {
        store(place, power);
        store(sum, _mm_xor_si128(power, _mm_shuffle_epi32::<0x4e>(power)));
        power = product(power, key);
    }
}

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn block_of(value: __m128i) -> Block {
    let mut block = [0; 16];
    store(&mut block, value);
    block
}
