//! What a disk's content is known by, whatever keys its sectors are under: a PRF over plaintext.
//!
//! A sector's word is `PRF_leaf(plaintext ‖ sector u64 ‖ 2 u64)`, 128 bits, and 0 for a sector of zeros, so that it does not matter
//! whether those are stored. A chunk's leaf is the XOR of its sectors' words: a sector's change is made by its old and its new word
//! alone. Every sector's number is in its word, and is in a chunk once: without the key nobody finds other content of the same
//! leaf. The root is `PRF_root(bytes of the disk u64 ‖ (chunk u64 ‖ leaf) of each chunk that is not zero)`.
//!
//! Both subkeys come from the proof key by HKDF-SHA-256. It is made with a volume, and goes with all that is made from it, in every
//! region.

use std::fmt;

use super::{Prf, Secret};
use crate::units::{SECTOR_LEN, SectorNo};

/// A disk's proof key and its subkeys.
pub struct ProofKey {
    secret: Secret<32>,
    leaf: Prf,
    root: Prf,
}

impl ProofKey {
    /// A fresh one.
    pub fn random() -> Self {
        Self::new(Secret::random())
    }

    /// The one of these bytes.
    pub fn new(secret: Secret<32>) -> Self {
        let [leaf, root] =
            ["terrane proof leaf", "terrane proof root"].map(|use_| Prf::derive(&secret, use_));
        Self { secret, leaf, root }
    }

    /// Its bytes, to be wrapped.
    pub(super) fn secret(&self) -> &Secret<32> {
        &self.secret
    }

    /// Whether both are one.
    pub fn is(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq;
        self.secret.expose().ct_eq(other.secret.expose()).into()
    }

    /// The XOR of the words of consecutive sectors. A length that is not whole sectors panics.
    pub fn words(&self, first: SectorNo, plain: &[u8]) -> u128 {
        let (sectors, rest) = plain.as_chunks::<SECTOR_LEN>();
        assert!(rest.is_empty(), "{} bytes are not whole sectors", plain.len());
        let numbered = (first.0..).zip(sectors);
        numbered.fold(0, |all, (number, sector)| all ^ self.word(SectorNo(number), sector))
    }

    fn word(&self, sector: SectorNo, plain: &[u8; SECTOR_LEN]) -> u128 {
        match plain == &[0; SECTOR_LEN] {
            true => 0,
            false => self.leaf.content(plain, sector),
        }
    }

    /// The root over the bytes that list size and leaves.
    pub fn root(&self, listed: &[u8]) -> [u8; 16] {
        self.root.mac(&[listed])
    }
}

impl fmt::Debug for ProofKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProofKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ProofKey {
        ProofKey::new(Secret::new(std::array::from_fn(|i| i as u8)))
    }

    #[test]
    fn zeros_have_no_word_and_each_change_another() {
        let key = key();
        assert_eq!(key.words(SectorNo(7), &[0; 3 * SECTOR_LEN]), 0);
        let mut plain = vec![0; 2 * SECTOR_LEN];
        plain[SECTOR_LEN] = 1;
        let one = key.words(SectorNo(7), &plain);
        assert_eq!(one, key.words(SectorNo(8), &plain[SECTOR_LEN..]), "the sum of sectors, in any pieces");
        assert_ne!(one, key.words(SectorNo(8), &plain), "another place");
        for at in [0, 1, SECTOR_LEN - 1, 2 * SECTOR_LEN - 1] {
            let mut other = plain.clone();
            other[at] ^= 0x80;
            assert_ne!(key.words(SectorNo(7), &other), one, "byte {at}");
        }
        assert_ne!(ProofKey::random().words(SectorNo(7), &plain), one, "another key");
    }

    /// The definition above, by the plain MAC.
    #[test]
    fn a_word_is_the_mac_of_content_and_place() {
        let key = key();
        let plain: [u8; SECTOR_LEN] = std::array::from_fn(|i| (i % 251) as u8);
        let place = [9u64.to_le_bytes(), 2u64.to_le_bytes()].concat();
        let mac = key.leaf.mac(&[&plain, &place]);
        assert_eq!(key.words(SectorNo(9), &plain), u128::from_le_bytes(mac));
    }

    #[test]
    fn debug_prints_no_key() {
        assert_eq!(format!("{:#?}", key()), "ProofKey(..)");
    }
}
