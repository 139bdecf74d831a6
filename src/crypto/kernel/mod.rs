//! XTS and POLYVAL as fast as the machine allows, each on two paths that give the same bytes.
//!
//! The wide path needs AVX-512 with VAES and VPCLMULQDQ (x86-64 servers since 2019); the portable one rests on the
//! `aes` and `polyval` crates, which find AES instructions themselves. The choice is made once, when keys are
//! built. `unsafe` lives in `aes_ni` and the two `_avx512` files alone.

use aes::Aes256;
use aes::cipher::inout::InOutBuf;
use aes::cipher::{BlockCipherEncrypt, KeyInit};

#[cfg(target_arch = "x86_64")]
mod aes_ni;
#[cfg(target_arch = "x86_64")]
mod polyval_avx512;
mod polyval_portable;
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
    /// The wide path where the processor has it, else the portable one.
    Fastest,
    /// Always the portable path: for tests, benches and doubts about a processor.
    Portable,
}

/// Whether this processor has all that the wide path uses.
#[cfg(any(test, target_arch = "x86_64"))]
fn has_wide() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512bw")
        && std::is_x86_feature_detected!("vaes")
        && std::is_x86_feature_detected!("vpclmulqdq")
        && std::is_x86_feature_detected!("aes")
        && std::is_x86_feature_detected!("pclmulqdq");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has
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
    Wide(Box<xts_avx512::Xts>),
    Portable(Box<xts_portable::Xts>),
}

/// The data units of [`Xts::crypt`] are multiples of this: sixteen blocks, the wide path's step.
pub(super) const UNIT_STEP: usize = 256;

impl Xts {
    pub(super) fn new(kernel: Kernel, data_key: &[u8; 32], tweak_key: &[u8; 32]) -> Self {
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Fastest if has_wide() => Self::Wide(xts_avx512::Xts::new(data_key, tweak_key)),
            _ => Self::Portable(Box::new(xts_portable::Xts::new(data_key, tweak_key))),
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
            Self::Wide(xts) => xts.crypt(direction, first, unit_len, data),
            Self::Portable(xts) => xts.crypt(direction, first, unit_len, data),
        }
    }
}

/// POLYVAL (RFC 8452, section 3) under one key. Boxed, so that a move leaves no key behind.
pub(super) enum Polyval {
    #[cfg(target_arch = "x86_64")]
    Wide(Box<polyval_avx512::Polyval>),
    Portable(Box<polyval_portable::Polyval>),
}

impl Polyval {
    pub(super) fn new(kernel: Kernel, key: &Block) -> Self {
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Fastest if has_wide() => Self::Wide(polyval_avx512::Polyval::new(key)),
            _ => Self::Portable(Box::new(polyval_portable::Polyval::new(key))),
        }
    }

    /// The hash of what `hash` is the hash of, and these blocks after it. The hash of nothing is zero.
    #[inline]
    pub(super) fn extend(&self, hash: Block, blocks: &[Block]) -> Block {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Wide(polyval) => polyval.extend(hash, blocks),
            Self::Portable(polyval) => polyval.extend(hash, blocks),
        }
    }

    /// The hash of a sector and of two blocks after it.
    #[inline]
    pub(super) fn sector(&self, sector: &[Block; SECTOR_BLOCKS], end: &[Block; 2]) -> Block {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Wide(polyval) => polyval.sector(sector, end),
            Self::Portable(polyval) => polyval.sector(sector, end),
        }
    }
}

/// AES-256 on single blocks. Boxed, so that a move leaves no key behind.
pub(super) enum Aes {
    #[cfg(target_arch = "x86_64")]
    Wide(Box<aes_ni::Aes>),
    /// Zeroed on drop by the crate.
    Portable(Box<Aes256>),
}

impl Aes {
    pub(super) fn new(kernel: Kernel, key: &[u8; 32]) -> Self {
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Fastest if has_wide() => Self::Wide(aes_ni::Aes::new(key)),
            _ => Self::Portable(Box::new(Aes256::new(key.into()))),
        }
    }

    #[inline]
    pub(super) fn encrypt(&self, block: Block) -> Block {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Wide(aes) => aes.encrypt(block),
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
