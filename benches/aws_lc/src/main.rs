//! How fast AWS-LC's `EVP` encrypts a 1 MiB request as 256 sectors under XTS-AES-256: what `benches/cipher.rs` measures of ours and
//! of OpenSSL. Its Rust binding shows no XTS, so that its functions are called as a C program would.
//!
//! `aws-lc-xts SECONDS` prints the median time of a request in nanoseconds.

use std::ffi::c_int;
use std::hint::black_box;
use std::process::ExitCode;
use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

use aws_lc_sys::{
    EVP_CIPHER_CTX, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_EncryptInit_ex, EVP_EncryptUpdate, EVP_aes_256_xts,
};

const SECTOR_LEN: usize = 4096;
const SECTORS: usize = 256;
const FIRST: u128 = 1 << 20;
/// Requests timed at once: much longer than a look at the clock.
const BATCH: u32 = 8;

/// A context under one key.
struct Xts(*mut EVP_CIPHER_CTX);

impl Xts {
    fn new(key: &[u8; 64]) -> Self {
        // SAFETY: the context is made here, the key has the cipher's 64 bytes, and no tweak is given yet.
        unsafe {
            let context = EVP_CIPHER_CTX_new();
            assert!(!context.is_null(), "AWS-LC has memory");
            let done = EVP_EncryptInit_ex(context, EVP_aes_256_xts(), null_mut(), key.as_ptr(), null());
            assert_eq!(done, 1, "the key is sound");
            Self(context)
        }
    }

    fn encrypt(&self, sector: u128, plain: &[u8; SECTOR_LEN], out: &mut [u8; SECTOR_LEN]) {
        let tweak = sector.to_le_bytes();
        let mut len: c_int = 0;
        // SAFETY: the context lives as long as `self`, a tweak is 16 bytes, and the buffers are of the length that is given.
        unsafe {
            assert_eq!(EVP_EncryptInit_ex(self.0, null(), null_mut(), null(), tweak.as_ptr()), 1, "the tweak is sound");
            let done = EVP_EncryptUpdate(self.0, out.as_mut_ptr(), &mut len, plain.as_ptr(), SECTOR_LEN as c_int);
            assert_eq!((done, len as usize), (1, SECTOR_LEN), "a sector is whole blocks");
        }
    }
}

impl Drop for Xts {
    fn drop(&mut self) {
        // SAFETY: it came from `EVP_CIPHER_CTX_new`, and goes once.
        unsafe { EVP_CIPHER_CTX_free(self.0) };
    }
}

fn main() -> ExitCode {
    let Some(seconds) = std::env::args().nth(1).and_then(|text| text.parse::<f64>().ok()) else {
        eprintln!("usage: aws-lc-xts SECONDS");
        return ExitCode::from(2);
    };
    let xts = Xts::new(&std::array::from_fn(|i| i as u8));
    let plain = vec![[0x5a; SECTOR_LEN]; SECTORS];
    let mut out = vec![[0; SECTOR_LEN]; SECTORS];
    let mut times = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs_f64(seconds) || times.is_empty() {
        let batch = Instant::now();
        for _ in 0..BATCH {
            for (i, (plain, out)) in black_box(&plain).iter().zip(&mut out).enumerate() {
                xts.encrypt(FIRST + i as u128, plain, out);
            }
            black_box(&mut out);
        }
        times.push(batch.elapsed() / BATCH);
    }
    times.sort_unstable();
    println!("{}", times[times.len() / 2].as_nanos());
    ExitCode::SUCCESS
}
