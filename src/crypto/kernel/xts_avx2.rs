//! XTS with VAES on 256-bit vectors: as `xts_avx512` does it, with two blocks a vector and eight vectors a step.
//!
//! Eight, since an instruction of AES takes four cycles and two begin in each. Tweaks and blocks are sixteen vectors, all that there are:
//! the tweaks lie on the stack meanwhile.

#![allow(unsafe_code)]

use core::arch::x86_64::*;

use aes::cipher::inout::InOutBuf;
use zeroize::{Zeroize, Zeroizing};

use super::aes_ni::{Schedule, encrypt, expand, invert, load};
use super::{Block, Direction, UNIT_STEP, has_avx2};

/// Round keys of both halves; zeroed on drop.
#[repr(align(32))]
pub(in crate::crypto) struct Xts {
    encrypt: Doubled,
    /// For the equivalent inverse cipher (FIPS 197, 5.3.5): reversed, the inner keys through InvMixColumns.
    decrypt: Doubled,
    tweak: Schedule,
}

/// Each round key twice, as a vector takes it: read from here by each step, so that no copy of them stays on a stack.
type Doubled = [[Block; 2]; 15];

impl Drop for Xts {
    fn drop(&mut self) {
        self.encrypt.zeroize();
        self.decrypt.zeroize();
        self.tweak.zeroize();
    }
}

/// Vectors in a step.
const VECTORS: usize = 8;
/// Bytes in a vector.
const VECTOR_LEN: usize = 32;
const _: () = assert!(VECTORS * VECTOR_LEN == UNIT_STEP);

impl Xts {
    /// Panics where the processor lacks what this path uses: to hold one of these is the proof that it has it.
    pub(super) fn new(data_key: &[u8; 32], tweak_key: &[u8; 32]) -> Box<Self> {
        assert!(has_avx2(), "this processor lacks VAES");
        let empty = [[[0; 16]; 2]; 15];
        let mut xts = Box::new(Self { encrypt: empty, decrypt: empty, tweak: [[0; 16]; 15] });
        let (mut one_way, mut other_way) = (Zeroizing::new([[0; 16]; 15]), Zeroizing::new([[0; 16]; 15]));
        // SAFETY: that includes AES instructions.
        unsafe {
            expand(data_key, &mut one_way);
            invert(&one_way, &mut other_way);
            expand(tweak_key, &mut xts.tweak);
        }
        for round in 0..15 {
            xts.encrypt[round] = [one_way[round]; 2];
            xts.decrypt[round] = [other_way[round]; 2];
        }
        xts
    }

    #[inline]
    pub(super) fn crypt(
        &self,
        direction: Direction,
        first: u128,
        unit_len: usize,
        data: InOutBuf<'_, '_, u8>,
    ) {
        let count = data.len() / unit_len;
        let (source, target) = data.into_raw();
        // SAFETY: an `Xts` exists only where the processor has the features. The buffers are `count` units long,
        // and either the same or disjoint: that is what an InOutBuf is.
        unsafe {
            match direction {
                Direction::Encrypt => self.units::<true>(first, unit_len, count, source, target),
                Direction::Decrypt => self.units::<false>(first, unit_len, count, source, target),
            }
        }
    }

    /// # Safety
    /// `source` is readable and `target` writable for `count` × `unit_len` bytes, a multiple of 256 each; they are
    /// the same or do not overlap.
    #[target_feature(enable = "avx2,vaes,vpclmulqdq,aes")]
    unsafe fn units<const ENCRYPT: bool>(
        &self,
        first: u128,
        unit_len: usize,
        count: usize,
        source: *const u8,
        target: *mut u8,
    ) {
        let keys = if ENCRYPT { &self.encrypt } else { &self.decrypt };
        let mut number = first;
        let mut next = first_tweak(&self.tweak, number);
        for unit in 0..count {
            let tweak = next;
            number = number.wrapping_add(1);
            // Begun a unit early: its fourteen dependent rounds hide behind this unit's.
            next = first_tweak(&self.tweak, number);
            let at = unit * unit_len;
            // SAFETY: the caller's promise, for one unit of it.
            unsafe { crypt_unit::<ENCRYPT>(keys, tweak, source.add(at), target.add(at), unit_len) };
        }
    }
}

/// A data unit's number as 128 bits little-endian, encrypted with the second key.
#[inline]
#[target_feature(enable = "aes")]
fn first_tweak(key: &Schedule, number: u128) -> __m128i {
    encrypt(key, load(&number.to_le_bytes()))
}

/// # Safety
/// As [`Xts::units`], for one unit.
#[inline]
#[target_feature(enable = "avx2,vaes,vpclmulqdq")]
unsafe fn crypt_unit<const ENCRYPT: bool>(
    keys: &Doubled,
    tweak: __m128i,
    source: *const u8,
    target: *mut u8,
    unit_len: usize,
) {
    let mut tweaks = first_tweaks(tweak);
    for at in (0..unit_len).step_by(UNIT_STEP) {
        // Read anew by each step: kept in registers they leave too few for eight vectors, and the compiler does three of them one by one.
        let keys = std::hint::black_box(keys);
        let mut blocks = tweaks;
        for (i, block) in blocks.iter_mut().enumerate() {
            // SAFETY: `at` + 256 ≤ `unit_len`, and this is vector i of the step's eight; the load may be unaligned.
            let input = unsafe { _mm256_loadu_si256(source.add(at + i * VECTOR_LEN).cast()) };
            *block = xor3(input, *block, load_two(&keys[0]));
        }
        for key in &keys[1..14] {
            let key = load_two(key);
            for block in &mut blocks {
                *block = if ENCRYPT {
                    _mm256_aesenc_epi128(*block, key)
                } else {
                    _mm256_aesdec_epi128(*block, key)
                };
            }
        }
        for (i, (block, tweak)) in blocks.iter().zip(&mut tweaks).enumerate() {
            // The last round ends with an XOR of its key: the tweak's XOR rides on it.
            let last = _mm256_xor_si256(load_two(&keys[14]), *tweak);
            let output = if ENCRYPT {
                _mm256_aesenclast_epi128(*block, last)
            } else {
                _mm256_aesdeclast_epi128(*block, last)
            };
            *tweak = times_x16(*tweak);
            // SAFETY: as above, for the target.
            unsafe { _mm256_storeu_si256(target.add(at + i * VECTOR_LEN).cast(), output) };
        }
    }
}

/// In each 128-bit lane's low half: x⁷ + x² + x + 1, which is x¹²⁸ in XTS's field (IEEE 1619, 5.2).
#[inline]
#[target_feature(enable = "avx2")]
fn x128() -> __m256i {
    _mm256_set_epi64x(0, 0x87, 0, 0x87)
}

/// T·x⁰ … T·x¹⁵, two a vector.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn first_tweaks(tweak: __m128i) -> [__m256i; VECTORS] {
    let tweak = _mm256_broadcastsi128_si256(tweak);
    let lanes = _mm256_set_epi64x(1, 1, 0, 0);
    core::array::from_fn(|vector| {
        let left = _mm256_add_epi64(lanes, _mm256_set1_epi64x(2 * vector as i64));
        // Each half shifts on its own; what it loses at the top (a shift by 64 is zero) goes from the low half into
        // the high one, and from the high half, being a multiple of x¹²⁸, back to the bottom.
        let lost = _mm256_srlv_epi64(tweak, _mm256_sub_epi64(_mm256_set1_epi64x(64), left));
        let wrapped = _mm256_clmulepi64_epi128::<0x01>(lost, x128());
        xor3(_mm256_sllv_epi64(tweak, left), _mm256_bslli_epi128::<8>(lost), wrapped)
    })
}

/// Each lane times x¹⁶: two bytes to the left, the two that fall out times x¹²⁸.
#[inline]
#[target_feature(enable = "avx2,vpclmulqdq")]
fn times_x16(tweaks: __m256i) -> __m256i {
    let lost = _mm256_bsrli_epi128::<14>(tweaks);
    _mm256_xor_si256(_mm256_bslli_epi128::<2>(tweaks), _mm256_clmulepi64_epi128::<0x00>(lost, x128()))
}

#[inline]
#[target_feature(enable = "avx2")]
fn xor3(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
    _mm256_xor_si256(_mm256_xor_si256(a, b), c)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_two(blocks: &[Block; 2]) -> __m256i {
    // SAFETY: 32 readable bytes; the load may be unaligned.
    unsafe { _mm256_loadu_si256(blocks.as_ptr().cast()) }
}
