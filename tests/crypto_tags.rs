//! Guards: a changed bit that no tag notices, a MAC that others can't compute, keys derived otherwise than written.

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use openssl::md::Md;
use openssl::pkey::Id;
use openssl::pkey_ctx::PkeyCtx;
use polyval::{Polyval, universal_hash::UniversalHash};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use terrane::crypto::{Cipher, CryptoError, Kernel, LayerKeys, Prf, Secret, SectorCipher};
use terrane::units::{SECTOR_LEN, SectorNo};

const PATHS: [Kernel; 3] = [Kernel::Fastest, Kernel::Vectors256, Kernel::Portable];

/// The definition, word by word: AES-256(POLYVAL(x padded, then its length)).
fn reference(subkey: &[u8; 48], input: &[u8]) -> [u8; 16] {
    let mut polyval = Polyval::new(&<[u8; 16]>::try_from(&subkey[..16]).unwrap().into());
    polyval.update_padded(input);
    polyval.update(&[(input.len() as u128).to_le_bytes().into()]);
    let mut block = polyval.finalize();
    Aes256::new_from_slice(&subkey[16..]).unwrap().encrypt_block(&mut block);
    block.into()
}

fn hkdf(data_key: &[u8; 64], info: &str) -> [u8; 48] {
    let mut context = PkeyCtx::new_id(Id::HKDF).unwrap();
    context.derive_init().unwrap();
    context.set_hkdf_md(Md::sha256()).unwrap();
    context.set_hkdf_key(data_key).unwrap();
    context.add_hkdf_info(info.as_bytes()).unwrap();
    let mut subkey = [0; 48];
    context.derive(Some(&mut subkey)).unwrap();
    subkey
}

#[test]
fn a_mac_is_its_definition_however_it_is_cut() {
    let mut rng = StdRng::seed_from_u64(0x8452);
    let subkey: [u8; 48] = rng.random();
    let prfs = PATHS.map(|path| Prf::on(path, &Secret::new(subkey)));
    let lengths = (0..=300).chain([1023, 1024, 1025, 2032, 4080, 4112, 8200, 65_537]);
    for len in lengths {
        let mut input = vec![0; len];
        rng.fill(&mut input[..]);
        let expected = reference(&subkey, &input);
        let (front, back) = input.split_at(rng.random_range(0..=len));
        let (middle, end) = back.split_at(rng.random_range(0..=back.len()));
        let single: Vec<&[u8]> = input.chunks(1).collect();
        for prf in &prfs {
            assert_eq!(prf.mac(&[&input]), expected, "{len} bytes");
            assert_eq!(prf.mac(&[front, &[], middle, end, &[]]), expected, "{len} bytes in three parts");
            assert_eq!(prf.mac(&single), expected, "{len} bytes one by one");
            assert!(prf.verify(&[front, back], &expected));
            for bit in 0..128 {
                let mut other = expected;
                other[bit / 8] ^= 1 << (bit % 8);
                assert!(!prf.verify(&[&input], &other), "{len} bytes, bit {bit} of the MAC");
            }
        }
        // Padding is not content.
        input.push(0);
        assert_ne!(reference(&subkey, &input), expected);
        assert!(!prfs[0].verify(&[&input], &expected));
    }
    assert_eq!(prfs[0].mac(&[]), reference(&subkey, &[]));
}

#[test]
fn a_tag_is_the_head_of_its_mac() {
    let mut rng = StdRng::seed_from_u64(5);
    let subkey: [u8; 48] = rng.random();
    for prf in PATHS.map(|path| Prf::on(path, &Secret::new(subkey))) {
        for _ in 0..20 {
            let data: [u8; SECTOR_LEN] = rng.random();
            let (sector, state): (u64, u64) = (rng.random(), rng.random());
            let input = [&data[..], &sector.to_le_bytes(), &state.to_le_bytes()].concat();
            let expected = u64::from_le_bytes(*reference(&subkey, &input).first_chunk().unwrap());
            assert_eq!(prf.tag(&data, SectorNo(sector), state), expected);
        }
    }
}

#[test]
fn a_tag_changes_with_any_bit() {
    let mut rng = StdRng::seed_from_u64(6);
    for path in PATHS {
        let prf = Prf::on(path, &Secret::random());
        let mut data: [u8; SECTOR_LEN] = rng.random();
        let tag = prf.tag(&data, SectorNo(77), 1);
        for bit in 0..SECTOR_LEN * 8 {
            data[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(prf.tag(&data, SectorNo(77), 1), tag, "bit {bit} of the ciphertext");
            data[bit / 8] ^= 1 << (bit % 8);
        }
        for bit in 0..64 {
            assert_ne!(prf.tag(&data, SectorNo(77 ^ 1 << bit), 1), tag, "bit {bit} of the sector");
            assert_ne!(prf.tag(&data, SectorNo(77), 1 ^ 1 << bit), tag, "bit {bit} of the state");
        }
        assert_eq!(prf.tag(&data, SectorNo(77), 1), tag);
    }
}

#[test]
fn subkeys_are_hkdf_of_the_data_key() {
    let data_key: [u8; 64] = StdRng::seed_from_u64(7).random();
    let all = PATHS.map(|path| (path, Cipher::XtsAes256));
    for (path, cipher) in all.into_iter().chain([(PATHS[0], Cipher::Plain)]) {
        let keys = LayerKeys::derive_on(path, cipher, &Secret::new(data_key)).unwrap();
        for (prf, info) in [
            (keys.tag(), "terrane tag"),
            (keys.log(), "terrane log"),
            (keys.page(), "terrane page"),
            (keys.superblock(), "terrane super"),
            (keys.header(), "terrane header"),
        ] {
            assert_eq!(prf.mac(&[b"x"]), reference(&hkdf(&data_key, info), b"x"), "{info}");
        }
    }
}

#[test]
fn sealed_sectors_open_and_damaged_ones_are_named() {
    const COUNT: usize = 17;
    let mut rng = StdRng::seed_from_u64(8);
    let data_key: [u8; 64] = rng.random();
    let first = SectorNo(rng.random_range(0..1 << 34));
    let mut plain = vec![0; COUNT * SECTOR_LEN];
    rng.fill(&mut plain[..]);
    for cipher in [Cipher::XtsAes256, Cipher::Plain] {
        let all = PATHS.map(|path| LayerKeys::derive_on(path, cipher, &Secret::new(data_key)).unwrap());
        let mut sealed = vec![0; plain.len()];
        let mut tags = [0; COUNT];
        all[0].seal_sectors(first, &plain, &mut sealed, &mut tags);

        for keys in &all[1..] {
            let mut again = (vec![0; plain.len()], [0; COUNT]);
            keys.seal_sectors(first, &plain, &mut again.0, &mut again.1);
            assert!(again == (sealed.clone(), tags), "{cipher}: the paths differ");
        }
        let mut expected = plain.clone();
        if cipher == Cipher::XtsAes256 {
            SectorCipher::new(&Secret::new(data_key)).unwrap().encrypt(first, &plain, &mut expected);
        }
        assert!(sealed == expected, "{cipher}: not the cipher's bytes");

        for keys in &all {
            assert_eq!(keys.check_sectors(first, &sealed, &tags), Ok(()));
            let mut buf = sealed.clone();
            assert_eq!(keys.open_sectors(first, &mut buf, &tags), Ok(()));
            assert!(buf == plain);

            for bad in 0..COUNT {
                let mut damaged = sealed.clone();
                damaged[bad * SECTOR_LEN + rng.random_range(0..SECTOR_LEN)] ^= 1 << rng.random_range(0..8);
                assert_eq!(keys.check_sectors(first, &damaged, &tags), Err(bad));
                assert_eq!(keys.open_sectors(first, &mut damaged, &tags), Err(bad));
                assert!(
                    damaged[..bad * SECTOR_LEN] == plain[..bad * SECTOR_LEN],
                    "what lies before is plaintext"
                );
                assert!(
                    damaged[(bad + 1) * SECTOR_LEN..] == sealed[(bad + 1) * SECTOR_LEN..],
                    "the rest untouched"
                );

                let mut other = tags;
                other[bad] ^= 1 << rng.random_range(0..64);
                assert_eq!(keys.check_sectors(first, &sealed, &other), Err(bad));
            }
            // Right bytes in the wrong place.
            assert_eq!(keys.check_sectors(SectorNo(first.0 + 1), &sealed, &tags), Err(0));
        }
        let other = LayerKeys::derive(cipher, &Secret::random()).unwrap();
        assert_eq!(other.open_sectors(first, &mut sealed.clone(), &tags), Err(0));
        assert_eq!(all[0].open_sectors(first, &mut [], &[]), Ok(()));
    }
}

#[test]
fn equal_halves_are_refused_where_they_would_encrypt() {
    let refused = LayerKeys::derive(Cipher::XtsAes256, &Secret::new([7; 64]));
    assert!(matches!(refused, Err(CryptoError::EqualKeys)));
    assert!(LayerKeys::derive(Cipher::Plain, &Secret::new([7; 64])).is_ok());
}

#[test]
fn debug_prints_no_key() {
    let keys = LayerKeys::derive(Cipher::XtsAes256, &Secret::random()).unwrap();
    assert_eq!(format!("{keys:#?} {:#?}", keys.tag()), "LayerKeys(..) Prf(..)");
}
