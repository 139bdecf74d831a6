//! The room's one MAC: POLYVAL, then one AES block. At AES speed, 128 bits.
//!
//! `PRF_k(x) = AES-256(POLYVAL(x padded with zeros to 16 bytes, then x's length in bytes as a block))`, the POLYVAL key
//! being the subkey's first 16 bytes, the AES key its other 32. Hash-then-encrypt is a PRF while inputs' hashes don't
//! collide; two different inputs of up to n blocks collide with a chance of n / 2¹²⁸, and what is hashed here is short.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::Secret;
use super::kernel::{Aes, Kernel, Polyval};
use crate::units::{SECTOR_LEN, SectorNo};

/// A PRF under one subkey.
pub struct Prf {
    polyval: Polyval,
    aes: Aes,
}

impl Prf {
    /// The PRF of a subkey: 16 bytes for POLYVAL, 32 for AES.
    pub fn new(subkey: &Secret<48>) -> Self {
        Self::on(Kernel::Fastest, subkey)
    }

    /// The PRF of a subkey that comes from `key` by HKDF-SHA-256 without salt, for the use that `info` names.
    pub fn derive(key: &Secret<32>, info: &str) -> Self {
        let hkdf = Hkdf::<Sha256>::new(None, key.expose());
        Self::new(&Secret::filled(|out: &mut [u8; 48]| {
            hkdf.expand(info.as_bytes(), out).expect("48 bytes are fewer than HKDF's 8160");
        }))
    }

    /// As [`Prf::new`], on kernels of the caller's choice.
    pub fn on(kernel: Kernel, subkey: &Secret<48>) -> Self {
        let (hash_key, block_key) = subkey.expose().split_at(16);
        let hash_key = hash_key.try_into().expect("48 bytes begin with 16");
        let block_key = block_key.try_into().expect("48 bytes end with 32");
        Self { polyval: Polyval::new(kernel, hash_key), aes: Aes::new(kernel, block_key) }
    }

    /// The MAC of the parts' concatenation. How it is cut into parts does not matter.
    pub fn mac(&self, parts: &[&[u8]]) -> [u8; 16] {
        let mut hash = [0; 16];
        let mut partial = [0; 16]; // bytes past the last whole block
        let mut held = 0;
        let mut len = 0u128;
        for part in parts {
            len += part.len() as u128;
            let mut rest = *part;
            if held > 0 {
                let taken = rest.len().min(16 - held);
                partial[held..held + taken].copy_from_slice(&rest[..taken]);
                held += taken;
                rest = &rest[taken..];
                if held < 16 {
                    continue;
                }
                hash = self.polyval.extend(hash, &[partial]);
            }
            let (blocks, tail) = rest.as_chunks::<16>();
            hash = self.polyval.extend(hash, blocks);
            partial[..tail.len()].copy_from_slice(tail);
            held = tail.len();
        }
        partial[held..].fill(0);
        let end = [partial, len.to_le_bytes()];
        hash = self.polyval.extend(hash, if held > 0 { &end } else { &end[1..] });
        self.aes.encrypt(hash)
    }

    /// Whether `mac` is the parts' MAC, in a time that does not tell where they differ.
    pub fn verify(&self, parts: &[&[u8]], mac: &[u8; 16]) -> bool {
        self.mac(parts).ct_eq(mac).into()
    }

    /// A sector's tag: the first 8 bytes, little-endian, of the MAC of ciphertext ‖ sector u64 ‖ state u64.
    #[inline]
    pub fn tag(&self, ciphertext: &[u8; SECTOR_LEN], sector: SectorNo, state: u64) -> u64 {
        self.of_sector(ciphertext, sector, state) as u64
    }

    /// What a sector's content is known by: the MAC of plaintext ‖ sector u64 ‖ 2 u64.
    #[inline]
    pub(super) fn content(&self, plain: &[u8; SECTOR_LEN], sector: SectorNo) -> u128 {
        const CONTENT: u64 = 2;
        self.of_sector(plain, sector, CONTENT)
    }

    #[inline]
    fn of_sector(&self, bytes: &[u8; SECTOR_LEN], sector: SectorNo, what: u64) -> u128 {
        const LEN: u128 = SECTOR_LEN as u128 + 16;
        let place = u128::from(sector.0) | u128::from(what) << 64;
        let (blocks, _) = bytes.as_chunks::<16>();
        let blocks = blocks.try_into().expect("a sector is 256 blocks");
        let hash = self.polyval.sector(blocks, &[place.to_le_bytes(), LEN.to_le_bytes()]);
        u128::from_le_bytes(self.aes.encrypt(hash))
    }
}

impl fmt::Debug for Prf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prf(..)")
    }
}
