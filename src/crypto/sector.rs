//! Sectors under XTS-AES-256 (IEEE 1619): the bytes that dm-crypt's `aes-xts-plain64` with `sector_size:4096`
//! and `iv_large_sectors` reads and writes.

use std::fmt;
use std::str::FromStr;

use aes::cipher::inout::InOutBuf;
use subtle::ConstantTimeEq;

use super::kernel::{Direction, Kernel, Xts};
use super::{CryptoError, Secret};
use crate::units::{SECTOR_LEN, SectorNo};

/// How a layer's sectors are stored. Its text is what headers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// As they are: `none`.
    Plain,
    /// XTS-AES-256, the tweak being the sector's number: `aes-xts-plain64`.
    XtsAes256,
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Plain => "none",
            Self::XtsAes256 => "aes-xts-plain64",
        })
    }
}

impl FromStr for Cipher {
    type Err = CryptoError;

    fn from_str(text: &str) -> Result<Self, CryptoError> {
        match text {
            "none" => Ok(Self::Plain),
            "aes-xts-plain64" => Ok(Self::XtsAes256),
            _ => Err(CryptoError::UnknownCipher { text: text.chars().take(64).collect() }),
        }
    }
}

/// XTS-AES-256 of 4096-byte sectors. A sector's tweak is its number in the disk, 128-bit little-endian.
///
/// Buffers hold whole consecutive sectors, from `first` on; other lengths panic.
pub struct SectorCipher {
    xts: Xts,
}

impl SectorCipher {
    /// The cipher of a key: Key1 (data) is its first half, Key2 (tweaks) its second. Equal halves are refused.
    pub fn new(key: &Secret<64>) -> Result<Self, CryptoError> {
        Self::on(Kernel::Fastest, key)
    }

    /// As [`SectorCipher::new`], on kernels of the caller's choice.
    pub fn on(kernel: Kernel, key: &Secret<64>) -> Result<Self, CryptoError> {
        let (halves, _) = key.expose().as_chunks::<32>();
        if halves[0].ct_eq(&halves[1]).into() {
            return Err(CryptoError::EqualKeys);
        }
        Ok(Self { xts: Xts::new(kernel, &halves[0], &halves[1]) })
    }

    /// Encrypts `plain` into `out`, of the same length.
    pub fn encrypt(&self, first: SectorNo, plain: &[u8], out: &mut [u8]) {
        self.crypt(Direction::Encrypt, first, pair(plain, out));
    }

    /// Decrypts `cipher` into `out`, of the same length.
    pub fn decrypt(&self, first: SectorNo, cipher: &[u8], out: &mut [u8]) {
        self.crypt(Direction::Decrypt, first, pair(cipher, out));
    }

    /// Decrypts where the ciphertext lies.
    pub fn decrypt_in_place(&self, first: SectorNo, buf: &mut [u8]) {
        self.crypt(Direction::Decrypt, first, buf.into());
    }

    #[inline]
    fn crypt(&self, direction: Direction, first: SectorNo, data: InOutBuf<'_, '_, u8>) {
        self.xts.crypt(direction, first.0.into(), SECTOR_LEN, data);
    }
}

impl fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SectorCipher(..)")
    }
}

fn pair<'a, 'b>(source: &'a [u8], target: &'b mut [u8]) -> InOutBuf<'a, 'b, u8> {
    assert_eq!(source.len(), target.len(), "source and target differ in length");
    InOutBuf::new(source, target).expect("their lengths are equal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ciphers_print_and_parse_back() {
        for cipher in [Cipher::Plain, Cipher::XtsAes256] {
            assert_eq!(cipher.to_string().parse::<Cipher>().unwrap(), cipher);
        }
        for bad in ["", "None", "aes-xts-plain", "aes-xts-plain64 ", &"x".repeat(1000)] {
            let error = bad.parse::<Cipher>().unwrap_err().to_string();
            assert!(error.len() < 200 && error.contains("aes-xts-plain64"), "{error}");
        }
    }

    #[test]
    fn equal_halves_are_refused() {
        assert!(matches!(SectorCipher::new(&Secret::new([7; 64])), Err(CryptoError::EqualKeys)));
        for at in 0..64 {
            let mut key = [7; 64];
            key[at] ^= 0x80;
            assert!(SectorCipher::new(&Secret::new(key)).is_ok());
        }
    }

    #[test]
    fn debug_prints_no_key() {
        let cipher = SectorCipher::new(&Secret::random()).unwrap();
        assert_eq!(format!("{cipher:#?}"), "SectorCipher(..)");
    }

    #[test]
    #[should_panic(expected = "not whole data units")]
    fn a_partial_sector_panics() {
        let cipher = SectorCipher::new(&Secret::random()).unwrap();
        cipher.decrypt_in_place(SectorNo(0), &mut [0; 4095]);
    }

    #[test]
    #[should_panic(expected = "differ in length")]
    fn unequal_buffers_panic() {
        let cipher = SectorCipher::new(&Secret::random()).unwrap();
        cipher.encrypt(SectorNo(0), &[0; 8192], &mut [0; 4096]);
    }
}
