//! Guards against sectors that a later version, or another processor's kernel, encrypts otherwise: a thousand units of 4096
//! bytes that OpenSSL encrypted once, kept as digests.
//!
//! Unit n has the key SHA-512("key n"), the sector number SHA-512("sector n") (its first 8 bytes, little-endian, shifted right
//! by n mod 64) and the plaintext SHA-512("plain n 0") … SHA-512("plain n 63"). A line of the file is n and the SHA-256 of the
//! ciphertext.

use std::fmt::Write;

use openssl::symm::{Cipher as OpenSsl, Crypter, Mode};
use sha2::{Digest, Sha256, Sha512};
use terrane::crypto::{Kernel, Secret, SectorCipher};
use terrane::units::{SECTOR_LEN, SectorNo};

const KEPT: &str = include_str!("vectors/xts-aes-256-4096.txt");
const UNITS: u64 = 1000;

struct Unit {
    key: [u8; 64],
    sector: u64,
    plain: Vec<u8>,
}

fn unit(n: u64) -> Unit {
    let hash = |text: String| <[u8; 64]>::from(Sha512::digest(text));
    let sector = u64::from_le_bytes(hash(format!("sector {n}"))[..8].try_into().unwrap()) >> (n % 64);
    let plain = (0..64).flat_map(|i| hash(format!("plain {n} {i}"))).collect();
    Unit { key: hash(format!("key {n}")), sector, plain }
}

fn line(n: u64, cipher: &[u8]) -> String {
    let hex = Sha256::digest(cipher).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    });
    format!("{n} {hex}")
}

#[test]
fn a_thousand_kept_units_are_encrypted_as_ever() {
    assert_eq!(KEPT.lines().count() as u64, UNITS);
    let mut out = vec![0; SECTOR_LEN];
    for (n, kept) in (0..).zip(KEPT.lines()) {
        let unit = unit(n);
        for path in [Kernel::Fastest, Kernel::Vectors256, Kernel::Portable] {
            let cipher = SectorCipher::on(path, &Secret::new(unit.key)).unwrap();
            cipher.encrypt(SectorNo(unit.sector), &unit.plain, &mut out);
            assert_eq!(line(n, &out), kept, "{path:?}");
            cipher.decrypt_in_place(SectorNo(unit.sector), &mut out);
            assert!(out == unit.plain, "unit {n}, {path:?}");
        }
    }
}

#[test]
fn openssl_makes_the_kept_units() {
    for (n, kept) in (0..).zip(KEPT.lines()) {
        assert_eq!(line(n, &openssl(&unit(n))), kept);
    }
}

fn openssl(unit: &Unit) -> Vec<u8> {
    let tweak = u128::from(unit.sector).to_le_bytes();
    let mut crypter = Crypter::new(OpenSsl::aes_256_xts(), Mode::Encrypt, &unit.key, Some(&tweak)).unwrap();
    let mut out = vec![0; SECTOR_LEN + 16];
    let written = crypter.update(&unit.plain, &mut out).unwrap();
    out.truncate(written);
    out
}
