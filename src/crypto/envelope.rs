//! A secret wrapped under a key: AES-256-GCM, readable by any program that knows the layout.
//!
//! ```text
//! 0 format u8 = 1 · 1 nonce[12] · 13 ciphertext[n] · 13 + n tag[16]
//! ```
//! Nonces are random; NIST SP 800-38D allows 2³² of them under one key, and a key here wraps far fewer secrets.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use zeroize::Zeroizing;

use super::{CryptoError, Secret};

const FORMAT: u8 = 1;
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
const HEAD_LEN: usize = 1 + NONCE_LEN;

/// Wraps `secret` under `kek`, bound to `aad`: it opens only with both.
pub fn wrap(kek: &Secret<32>, aad: &[u8], secret: &[u8]) -> Vec<u8> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).expect("the kernel's random source answers");
    seal(kek, &nonce, aad, secret)
}

/// [`wrap`] with this nonce, which no other secret has had under the key.
pub(super) fn seal(kek: &Secret<32>, nonce: &[u8; NONCE_LEN], aad: &[u8], secret: &[u8]) -> Vec<u8> {
    // The whole length at once: a growing vector would leave the plaintext behind.
    let mut wrapped = Vec::with_capacity(HEAD_LEN + secret.len() + TAG_LEN);
    wrapped.push(FORMAT);
    wrapped.extend_from_slice(nonce);
    wrapped.extend_from_slice(secret);
    let tag = with_cipher(kek, |cipher| {
        cipher
            .encrypt_inout_detached(&(*nonce).into(), aad, (&mut wrapped[HEAD_LEN..]).into())
            .expect("a secret is shorter than 64 GiB")
    });
    wrapped.extend_from_slice(&tag);
    wrapped
}

/// Opens what [`wrap`] made; [`CryptoError::NotAuthentic`] for another key, another `aad`, or any changed bit.
pub fn unwrap(kek: &Secret<32>, aad: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let malformed = |what| CryptoError::MalformedEnvelope { what };
    let (format, sealed) = wrapped.split_first().ok_or_else(|| malformed("it is empty"))?;
    if *format != FORMAT {
        return Err(malformed("its format is unknown"));
    }
    let (nonce, sealed) =
        sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(|| malformed("it is too short"))?;
    let (body, tag) = sealed.split_last_chunk::<TAG_LEN>().ok_or_else(|| malformed("it is too short"))?;
    let mut secret = Zeroizing::new(body.to_vec());
    with_cipher(kek, |cipher| {
        cipher.decrypt_inout_detached(&(*nonce).into(), aad, secret.as_mut_slice().into(), &(*tag).into())
    })
    .map_err(|_| CryptoError::NotAuthentic)?;
    Ok(secret)
}

/// What the crates leave of the key on the stack (moved schedules, round keys spread over wide vectors) goes: the thread may do
/// nothing else so deep for as long as it lives.
fn with_cipher<T>(kek: &Secret<32>, work: impl FnOnce(&Aes256Gcm) -> T) -> T {
    let done = below(kek, work);
    wipe_stack();
    done
}

/// In frames below its caller's, which are those that [`wipe_stack`] wipes.
#[inline(never)]
fn below<T>(kek: &Secret<32>, work: impl FnOnce(&Aes256Gcm) -> T) -> T {
    work(&Aes256Gcm::new(kek.expose().into()))
}

#[inline(never)]
fn wipe_stack() {
    std::hint::black_box(&mut [0u8; STACK_USED]);
}

/// More than the frames of AES-GCM, built without optimisation too.
const STACK_USED: usize = 32 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_secret_opens_only_untouched() {
        let kek = Secret::random();
        for len in [0, 1, 32, 64, 1000] {
            let secret: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let wrapped = wrap(&kek, b"layer 1", &secret);
            assert_eq!(wrapped.len(), 29 + len);
            assert_eq!(*unwrap(&kek, b"layer 1", &wrapped).unwrap(), secret);
            for at in 0..wrapped.len() {
                for bit in 0..8 {
                    let mut changed = wrapped.clone();
                    changed[at] ^= 1 << bit;
                    assert!(unwrap(&kek, b"layer 1", &changed).is_err(), "byte {at}, bit {bit}");
                }
            }
            for cut in 0..wrapped.len() {
                assert!(unwrap(&kek, b"layer 1", &wrapped[..cut]).is_err(), "cut to {cut}");
            }
            let longer = [wrapped.as_slice(), &[0]].concat();
            assert!(matches!(unwrap(&kek, b"layer 1", &longer), Err(CryptoError::NotAuthentic)));
        }
    }

    #[test]
    fn another_key_or_aad_does_not_open_it() {
        let kek = Secret::random();
        let wrapped = wrap(&kek, b"layer 1", &[5; 64]);
        for aad in [&b""[..], b"layer 2", b"layer 1\0", b"layer "] {
            assert!(matches!(unwrap(&kek, aad, &wrapped), Err(CryptoError::NotAuthentic)));
        }
        assert!(matches!(unwrap(&Secret::random(), b"layer 1", &wrapped), Err(CryptoError::NotAuthentic)));
    }

    #[test]
    fn two_wraps_of_one_secret_differ() {
        let kek = Secret::random();
        assert_ne!(wrap(&kek, b"", &[5; 64]), wrap(&kek, b"", &[5; 64]));
    }

    /// The layout is a promise: OpenSSL opens it.
    #[test]
    fn openssl_opens_it() {
        use openssl::symm::{Cipher, decrypt_aead};
        let kek = Secret::random();
        let wrapped = wrap(&kek, b"aad", &[9; 64]);
        let (body, tag) = wrapped[13..].split_at(64);
        let opened =
            decrypt_aead(Cipher::aes_256_gcm(), kek.expose(), Some(&wrapped[1..13]), b"aad", body, tag);
        assert_eq!((wrapped[0], opened.unwrap()), (1, vec![9; 64]));
    }
}
