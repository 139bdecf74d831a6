//! AES-256 (FIPS 197) on one block, with the processor's instructions: what begins a tweak and ends a tag.
//!
//! The `aes` crate, built for wide vectors, spreads its fifteen round keys over them for each call: as long as the block itself
//! takes.

#![allow(unsafe_code)]

use core::arch::x86_64::*;

use zeroize::Zeroize;

use super::{Block, has_aes};

/// AES-256 has fourteen rounds and a whitening key (FIPS 197).
pub(super) type Schedule = [Block; 15];

/// A key's schedule; zeroed on drop.
pub(in crate::crypto) struct Aes {
    schedule: Schedule,
}

impl Drop for Aes {
    fn drop(&mut self) {
        self.schedule.zeroize();
    }
}

impl Aes {
    /// Panics where the processor lacks those instructions: to hold one of these is the proof that it has them.
    pub(super) fn new(key: &[u8; 32]) -> Box<Self> {
        assert!(has_aes(), "this processor lacks AES instructions");
        let mut aes = Box::new(Self { schedule: [[0; 16]; 15] });
        // SAFETY: it has them.
        unsafe { expand(key, &mut aes.schedule) };
        aes
    }

    #[inline]
    pub(super) fn encrypt(&self, block: Block) -> Block {
        // SAFETY: an `Aes` exists only where the processor has the instructions.
        unsafe { self.encrypt_with_instructions(block) }
    }

    #[inline]
    #[target_feature(enable = "aes")]
    fn encrypt_with_instructions(&self, block: Block) -> Block {
        let mut out = [0; 16];
        store(&mut out, encrypt(&self.schedule, load(&block)));
        out
    }
}

/// One block under a schedule.
#[inline]
#[target_feature(enable = "aes")]
pub(super) fn encrypt(schedule: &Schedule, block: __m128i) -> __m128i {
    let mut block = _mm_xor_si128(block, load(&schedule[0]));
    for key in &schedule[1..14] {
        block = _mm_aesenc_si128(block, load(key));
    }
    _mm_aesenclast_si128(block, load(&schedule[14]))
}

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load(block: &Block) -> __m128i {
    // SAFETY: sixteen readable bytes; the load may be unaligned.
    unsafe { _mm_loadu_si128(block.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn store(block: &mut Block, value: __m128i) {
    // SAFETY: sixteen writable bytes; the store may be unaligned.
    unsafe { _mm_storeu_si128(block.as_mut_ptr().cast(), value) };
}

/// AES-256's key expansion (FIPS 197, 5.2).
#[target_feature(enable = "aes")]
pub(super) fn expand(key: &[u8; 32], schedule: &mut Schedule) {
    let (halves, _) = key.as_chunks::<16>();
    schedule[0] = halves[0];
    schedule[1] = halves[1];
    // The round constants are the powers of x in GF(2⁸).
    expand_pair::<0x01>(schedule, 2);
    expand_pair::<0x02>(schedule, 4);
    expand_pair::<0x04>(schedule, 6);
    expand_pair::<0x08>(schedule, 8);
    expand_pair::<0x10>(schedule, 10);
    expand_pair::<0x20>(schedule, 12);
    expand_pair::<0x40>(schedule, 14);
}

/// Round keys `at` and, but for the last, `at` + 1.
#[inline]
#[target_feature(enable = "aes")]
fn expand_pair<const ROUND_CONSTANT: i32>(schedule: &mut Schedule, at: usize) {
    // AESKEYGENASSIST's word 3 is RotWord(SubWord(w)) ⊕ constant, its word 2 SubWord(w), of the key's last word.
    let turned = _mm_aeskeygenassist_si128::<ROUND_CONSTANT>(load(&schedule[at - 1]));
    let even = chain(load(&schedule[at - 2]), _mm_shuffle_epi32::<0xff>(turned));
    store(&mut schedule[at], even);
    if at + 1 < schedule.len() {
        let plain = _mm_aeskeygenassist_si128::<0>(even);
        let odd = chain(load(&schedule[at - 1]), _mm_shuffle_epi32::<0xaa>(plain));
        store(&mut schedule[at + 1], odd);
    }
}

/// Each word of a round key: the XOR of `mixed` and the words up to it, of the key two before.
#[inline]
#[target_feature(enable = "sse2")]
fn chain(before: __m128i, mixed: __m128i) -> __m128i {
    let pairs = _mm_xor_si128(before, _mm_slli_si128::<4>(before));
    let sums = _mm_xor_si128(pairs, _mm_slli_si128::<8>(pairs));
    _mm_xor_si128(sums, mixed)
}

/// The schedule of the equivalent inverse cipher (FIPS 197, 5.3.5): reversed, the inner keys through InvMixColumns.
#[target_feature(enable = "aes")]
pub(super) fn invert(encrypt: &Schedule, decrypt: &mut Schedule) {
    decrypt[0] = encrypt[14];
    for round in 1..14 {
        store(&mut decrypt[round], _mm_aesimc_si128(load(&encrypt[14 - round])));
    }
    decrypt[14] = encrypt[0];
}
