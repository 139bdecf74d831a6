//! XTS and POLYVAL as fast as the machine allows, each on three paths that give the same bytes.
//!
//! Two need VAES and VPCLMULQDQ: one with AVX-512 (servers since 2019), one with AVX2 (desktops since 2021, Zen 3).
//! The portable one rests on the `aes` and `polyval` crates, which find AES instructions themselves. The choice is made once, when
//! keys are built. `unsafe` lives in `aes_ni` and the `_avx512` and `_avx2` files alone.

use aes::Aes256;
use aes::cipher::inout::InOutBuf;
use aes::cipher::{BlockCipherEncrypt, KeyInit};

#[cfg(target_arch = "x86_64")]
mod aes_ni;
#[cfg(target_arch = "x86_64")]
mod polyval_avx2;
#[cfg(target_arch = "x86_64")]
mod polyval_avx512;
#[cfg(target_arch = "x86_64")]
mod polyval_field;
mod polyval_portable;
#[cfg(target_arch = "x86_64")]
mod xts_avx2;
#[cfg(target_arch = "x86_64")]
mod xts_avx512;
mod xts_portable;

/// A block of AES and of POLYVAL.
pub(super) type Block = [u8; 16];

/// Blocks of a sector.
pub(super) const SECTOR_BLOCKS: usize = crate::units::SECTOR_LEN / 16;

/// Which kernels keys are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The widest path that the processor has.
    Fastest,
    /// No wider path than that of 256-bit vectors: for tests and benches.
    Vectors256,
    /// Always the portable path: for tests, benches and doubts about a processor.
    Portable,
}

/// What a kernel is on this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Kernel {
    fn path(self) -> Path {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Fastest if has_avx512() => Path::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Fastest | Self::Vectors256 if has_avx2() => Path::Avx2,
            _ => Path::Portable,
        }
    }
}

/// Whether this processor has all that the path of 256-bit vectors uses.
#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("vaes")
        && std::is_x86_feature_detected!("vpclmulqdq")
        && std::is_x86_feature_detected!("pclmulqdq")
        && has_aes()
}

/// The same of 512-bit vectors.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw") && has_avx2()
}

#[cfg(target_arch = "x86_64")]
fn has_aes() -> bool {
    std::is_x86_feature_detected!("aes")
}

/// Which way a sector goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Encrypt,
    Decrypt,
}

/// XTS-AES-256 under one key. Boxed, so that a move leaves no key behind.
pub(super) enum Xts {
    #[cfg(target_arch = "x86_64")]
    Avx512(Box<xts_avx512::Xts>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Box<xts_avx2::Xts>),
    Portable(Box<xts_portable::Xts>),
}

/// The data units of [`Xts::crypt`] are multiples of this: sixteen blocks, a step of the paths with vectors.
pub(super) const UNIT_STEP: usize = 256;

impl Xts {
    pub(super) fn new(kernel: Kernel, data_key: &[u8; 32], tweak_key: &[u8; 32]) -> Self {
        match kernel.path() {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => Self::Avx512(xts_avx512::Xts::new(data_key, tweak_key)),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => Self::Avx2(xts_avx2::Xts::new(data_key, tweak_key)),
            Path::Portable => Self::Portable(Box::new(xts_portable::Xts::new(data_key, tweak_key))),
        }
    }

    /// Consecutive data units of `unit_len` bytes, of numbers from `first`; a unit's number is its tweak, as 128 bits
    /// little-endian.
    pub(super) fn crypt(
        &self,
        direction: Direction,
        first: u128,
        unit_len: usize,
        data: InOutBuf<'_, '_, u8>,
    ) {
        assert!(unit_len > 0 && unit_len.is_multiple_of(UNIT_STEP), "a data unit of {unit_len} bytes");
        assert!(data.len().is_multiple_of(unit_len), "{} bytes are not whole data units", data.len());
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(xts) => xts.crypt(direction, first, unit_len, data),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(xts) => xts.crypt(direction, first, unit_len, data),
            Self::Portable(xts) => xts.crypt(direction, first, unit_len, data),
        }
    }
}

/// POLYVAL (RFC 8452, section 3) under one key. Boxed, so that a move leaves no key behind.
pub(super) enum Polyval {
    #[cfg(target_arch = "x86_64")]
    Avx512(Box<polyval_avx512::Polyval>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Box<polyval_avx2::Polyval>),
    Portable(Box<polyval_portable::Polyval>),
}

impl Polyval {
    pub(super) fn new(kernel: Kernel, key: &Block) -> Self {
        match kernel.path() {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => Self::Avx512(polyval_avx512::Polyval::new(key)),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => Self::Avx2(polyval_avx2::Polyval::new(key)),
            Path::Portable => Self::Portable(Box::new(polyval_portable::Polyval::new(key))),
        }
    }

    /// The hash of what `hash` is the hash of, and these blocks after it. The hash of nothing is zero.
    #[inline]
    pub(super) fn extend(&self, hash: Block, blocks: &[Block]) -> Block {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(polyval) => polyval.extend(hash, blocks),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(polyval) => polyval.extend(hash, blocks),
            Self::Portable(polyval) => polyval.extend(hash, blocks),
        }
    }

    /// The hash of a sector and of two blocks after it.
    #[inline]
    pub(super) fn sector(&self, sector: &[Block; SECTOR_BLOCKS], end: &[Block; 2]) -> Block {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(polyval) => polyval.sector(sector, end),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(polyval) => polyval.sector(sector, end),
            Self::Portable(polyval) => polyval.sector(sector, end),
        }
    }
}

/// AES-256 on single blocks. Boxed, so that a move leaves no key behind.
pub(super) enum Aes {
    #[cfg(target_arch = "x86_64")]
    Instructions(Box<aes_ni::Aes>),
    /// Zeroed on drop by the crate.
    Portable(Box<Aes256>),
}

impl Aes {
    pub(super) fn new(kernel: Kernel, key: &[u8; 32]) -> Self {
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Fastest | Kernel::Vectors256 if has_aes() => Self::Instructions(aes_ni::Aes::new(key)),
            _ => Self::Portable(Box::new(Aes256::new(key.into()))),
        }
    }

    #[inline]
    pub(super) fn encrypt(&self, block: Block) -> Block {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Instructions(aes) => aes.encrypt(block),
            Self::Portable(aes) => {
                let mut block = block.into();
                aes.encrypt_block(&mut block);
                block.into()
            }
        }
    }
}

#[cfg(test)]
mod tests;
