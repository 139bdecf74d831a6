//! XTS with VAES on 512-bit vectors: four blocks a vector, sixteen a step, straight from source to target.
//!
//! A data unit's number, encrypted, is the tweak T of its block 0; block j has T·xʲ in GF(2¹²⁸) (IEEE 1619, 5.2).
//! Four vectors hold the tweaks of sixteen blocks, made at once by shifts of 0 to 15 bits; each step multiplies
//! all of them by x¹⁶, so that no tweak waits for its neighbour.

#![allow(unsafe_code)]

use core::arch::x86_64::*;

use aes::cipher::inout::InOutBuf;
use zeroize::Zeroize;

use super::aes_ni::{Schedule, encrypt, expand, invert, load};
use super::{Direction, UNIT_STEP, has_avx512};

/// Round keys of both halves; zeroed on drop.
pub(in crate::crypto) struct Xts {
    encrypt: Schedule,
    /// For the equivalent inverse cipher (FIPS 197, 5.3.5): reversed, the inner keys through InvMixColumns.
    decrypt: Schedule,
    tweak: Schedule,
}

impl Drop for Xts {
    fn drop(&mut self) {
        self.encrypt.zeroize();
        self.decrypt.zeroize();
        self.tweak.zeroize();
    }
}

/// Vectors in a step.
const VECTORS: usize = 4;
/// Bytes in a vector.
const VECTOR_LEN: usize = 64;
const _: () = assert!(VECTORS * VECTOR_LEN == UNIT_STEP);

impl Xts {
    /// Panics where the processor lacks what this path uses: to hold one of these is the proof that it has it.
    pub(super) fn new(data_key: &[u8; 32], tweak_key: &[u8; 32]) -> Box<Self> {
        assert!(has_avx512(), "this processor lacks AVX-512");
        let empty = [[0; 16]; 15];
        let mut xts = Box::new(Self { encrypt: empty, decrypt: empty, tweak: empty });
        // SAFETY: that includes AES instructions.
        unsafe {
            expand(data_key, &mut xts.encrypt);
            expand(tweak_key, &mut xts.tweak);
            let Self { encrypt, decrypt, .. } = &mut *xts;
            invert(encrypt, decrypt);
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
    #[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq,aes")]
    unsafe fn units<const ENCRYPT: bool>(
        &self,
        first: u128,
        unit_len: usize,
        count: usize,
        source: *const u8,
        target: *mut u8,
    ) {
        let keys = broadcast(if ENCRYPT { &self.encrypt } else { &self.decrypt });
        let mut number = first;
        let mut next = first_tweak(&self.tweak, number);
        for unit in 0..count {
            let tweak = next;
            number = number.wrapping_add(1);
            // Begun a unit early: its fourteen dependent rounds hide behind this unit's.
            next = first_tweak(&self.tweak, number);
            let at = unit * unit_len;
            // SAFETY: the caller's promise, for one unit of it.
            unsafe { crypt_unit::<ENCRYPT>(&keys, tweak, source.add(at), target.add(at), unit_len) };
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
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq")]
unsafe fn crypt_unit<const ENCRYPT: bool>(
    keys: &[__m512i; 15],
    tweak: __m128i,
    source: *const u8,
    target: *mut u8,
    unit_len: usize,
) {
    let mut tweaks = first_tweaks(tweak);
    for at in (0..unit_len).step_by(UNIT_STEP) {
        let mut blocks = tweaks;
        for (i, block) in blocks.iter_mut().enumerate() {
            // SAFETY: `at` + 256 ≤ `unit_len`, and this is vector i of the step's four; the load may be unaligned.
            let input = unsafe { _mm512_loadu_si512(source.add(at + i * VECTOR_LEN).cast()) };
            *block = xor3(input, *block, keys[0]);
        }
        for key in &keys[1..14] {
            for block in &mut blocks {
                *block = if ENCRYPT {
                    _mm512_aesenc_epi128(*block, *key)
                } else {
                    _mm512_aesdec_epi128(*block, *key)
                };
            }
        }
        for (i, (block, tweak)) in blocks.iter().zip(&mut tweaks).enumerate() {
            // The last round ends with an XOR of its key: the tweak's XOR rides on it.
            let last = _mm512_xor_si512(keys[14], *tweak);
            let output = if ENCRYPT {
                _mm512_aesenclast_epi128(*block, last)
            } else {
                _mm512_aesdeclast_epi128(*block, last)
            };
            *tweak = times_x16(*tweak);
            // SAFETY: as above, for the target.
            unsafe { _mm512_storeu_si512(target.add(at + i * VECTOR_LEN).cast(), output) };
        }
    }
}

/// In each 128-bit lane's low half: x⁷ + x² + x + 1, which is x¹²⁸ in XTS's field (IEEE 1619, 5.2).
#[inline]
#[target_feature(enable = "avx512f")]
fn x128() -> __m512i {
    _mm512_set_epi64(0, 0x87, 0, 0x87, 0, 0x87, 0, 0x87)
}

/// T·x⁰ … T·x¹⁵, four a vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn first_tweaks(tweak: __m128i) -> [__m512i; VECTORS] {
    let tweak = _mm512_broadcast_i32x4(tweak);
    let lanes = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0);
    core::array::from_fn(|vector| {
        let left = _mm512_add_epi64(lanes, _mm512_set1_epi64(4 * vector as i64));
        // Each half shifts on its own; what it loses at the top (a shift by 64 is zero) goes from the low half into
        // the high one, and from the high half, being a multiple of x¹²⁸, back to the bottom.
        let lost = _mm512_srlv_epi64(tweak, _mm512_sub_epi64(_mm512_set1_epi64(64), left));
        let wrapped = _mm512_clmulepi64_epi128::<0x01>(lost, x128());
        xor3(_mm512_sllv_epi64(tweak, left), _mm512_bslli_epi128::<8>(lost), wrapped)
    })
}

/// Each lane times x¹⁶: two bytes to the left, the two that fall out times x¹²⁸.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn times_x16(tweaks: __m512i) -> __m512i {
    let lost = _mm512_bsrli_epi128::<14>(tweaks);
    _mm512_xor_si512(_mm512_bslli_epi128::<2>(tweaks), _mm512_clmulepi64_epi128::<0x00>(lost, x128()))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn xor3(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    // 0x96 is the truth table of a ⊕ b ⊕ c.
    _mm512_ternarylogic_epi64::<0x96>(a, b, c)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(schedule: &Schedule) -> [__m512i; 15] {
    core::array::from_fn(|round| _mm512_broadcast_i32x4(load(&schedule[round])))
}
