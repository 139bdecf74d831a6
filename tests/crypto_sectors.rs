//! Guards: ciphertext that another program can't read. Each path is held against OpenSSL and the `xts-mode` crate.

use aes::Aes256;
use aes::cipher::KeyInit;
use openssl::symm::{Cipher as OpenSsl, Crypter, Mode};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use terrane::crypto::{Kernel, Secret, SectorCipher};
use terrane::units::{SECTOR_LEN, SectorNo};
use xts_mode::{Xts128, get_tweak_default};

fn openssl_encrypt(key: &[u8; 64], first: u64, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(plain.len());
    for (i, sector) in plain.chunks(SECTOR_LEN).enumerate() {
        let tweak = u128::from(first + i as u64).to_le_bytes();
        let mut crypter = Crypter::new(OpenSsl::aes_256_xts(), Mode::Encrypt, key, Some(&tweak)).unwrap();
        let mut block = vec![0; SECTOR_LEN + 16];
        let written = crypter.update(sector, &mut block).unwrap();
        assert_eq!((written, crypter.finalize(&mut block[written..]).unwrap()), (SECTOR_LEN, 0));
        out.extend_from_slice(&block[..SECTOR_LEN]);
    }
    out
}

fn xts_mode_encrypt(key: &[u8; 64], first: u64, plain: &[u8]) -> Vec<u8> {
    let (data_key, tweak_key) = key.split_at(32);
    let [data, tweak] = [data_key, tweak_key].map(|half| Aes256::new_from_slice(half).unwrap());
    let mut out = plain.to_vec();
    Xts128::new(data, tweak).encrypt_area(&mut out, SECTOR_LEN, u128::from(first), get_tweak_default);
    out
}

#[test]
fn sectors_are_what_openssl_and_xts_mode_make() {
    let mut rng = StdRng::seed_from_u64(0x1619);
    let key: [u8; 64] = rng.random();
    let ciphers = [Kernel::Fastest, Kernel::Vectors256, Kernel::Portable]
        .map(|path| SectorCipher::on(path, &Secret::new(key)).unwrap());
    let mut plain = vec![0; 256 * SECTOR_LEN];
    rng.fill(&mut plain[..]);
    for count in 1..=256 {
        let plain = &plain[..count * SECTOR_LEN];
        // Of 64 TiB, of any number, and the very last.
        let first = match count % 4 {
            0 => rng.random_range(0..1 << 34),
            1 => rng.random::<u64>() >> 1,
            2 => 0,
            _ => u64::MAX - count as u64,
        };
        let expected = openssl_encrypt(&key, first, plain);
        assert!(xts_mode_encrypt(&key, first, plain) == expected, "the oracles differ");
        for cipher in &ciphers {
            let mut out = vec![0; plain.len()];
            cipher.encrypt(SectorNo(first), plain, &mut out);
            assert!(out == expected, "encrypt {count} from {first}");
            cipher.decrypt(SectorNo(first), &expected, &mut out);
            assert!(out == plain, "decrypt {count} from {first}");
            out.copy_from_slice(&expected);
            cipher.decrypt_in_place(SectorNo(first), &mut out);
            assert!(out == plain, "decrypt in place {count} from {first}");
        }
    }
}

#[test]
fn buffers_may_begin_anywhere() {
    let mut rng = StdRng::seed_from_u64(3);
    let key: [u8; 64] = rng.random();
    let mut room = vec![0; 2 * SECTOR_LEN + 64];
    rng.fill(&mut room[..]);
    for path in [Kernel::Fastest, Kernel::Vectors256, Kernel::Portable] {
        let cipher = SectorCipher::on(path, &Secret::new(key)).unwrap();
        for shift in 0..64 {
            let plain = &room[shift..shift + 2 * SECTOR_LEN];
            let mut out = vec![0xee; 2 * SECTOR_LEN + 64];
            let at = 63 - shift;
            cipher.encrypt(SectorNo(9), plain, &mut out[at..at + 2 * SECTOR_LEN]);
            assert!(out[at..at + 2 * SECTOR_LEN] == openssl_encrypt(&key, 9, plain), "shift {shift}");
            assert!(out[..at].iter().chain(&out[at + 2 * SECTOR_LEN..]).all(|&byte| byte == 0xee));
        }
    }
}
