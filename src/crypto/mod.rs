//! Sector cipher, tags, key wrapping, keys from passphrases. No I/O.
//!
//! Owns every use of a key's bytes: all that is encrypted, authenticated or derived is so here, by calls that take
//! and give bytes. Never reads or writes a file, never decides which key is whose (`kms` does), never retries.
//!
//! What holds throughout:
//! - Keys lie in types that zero themselves on drop, print nothing, and are not copied by accident.
//! - Bytes from outside (a wrapped key, a tag, a parameter) give an error, never a panic; a length that a caller got
//!   wrong panics.
//! - What is compared with a secret is compared in constant time.
//! - The bytes are standards': XTS-AES-256 (IEEE 1619), POLYVAL (RFC 8452), HKDF (RFC 5869), AES-GCM
//!   (SP 800-38D), Argon2id (RFC 9106). Both paths of the kernels, wide and portable, give the same.
//!
//! Callers: `layer` (sectors, tags, MACs), `kms` and `region` (envelopes, passphrases), `copy` (through `layer`).

mod envelope;
mod error;
mod kernel;
mod layer_keys;
mod passphrase;
mod prf;
mod proof;
#[cfg(test)]
mod published;
mod secret;
mod sector;

pub use envelope::{unwrap, wrap};
pub use error::CryptoError;
pub use kernel::Kernel;
pub use layer_keys::LayerKeys;
pub use passphrase::KdfParams;
pub use prf::Prf;
pub use proof::ProofKey;
pub use secret::Secret;
pub use sector::{Cipher, SectorCipher};
