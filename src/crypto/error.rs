use super::Cipher;

/// What this room refuses. None of its texts holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum CryptoError {
    /// IEEE 1619 (and FIPS 140) ask for two different keys.
    #[error("the two halves of an XTS key are equal")]
    EqualKeys,
    /// A key or secret of the wrong length.
    #[error("a secret has {found} bytes, {expected} were expected")]
    WrongLength {
        /// Bytes it should have.
        expected: usize,
        /// Bytes it has.
        found: usize,
    },
    /// A cipher's name this version does not know.
    #[error("unknown cipher {text:?}; known are {} and {}", Cipher::Plain, Cipher::XtsAes256)]
    UnknownCipher {
        /// The name as given, shortened.
        text: String,
    },
    /// A wrapped secret too short to be one, or of a format this version does not know.
    #[error("a wrapped secret is malformed: {what}")]
    MalformedEnvelope {
        /// What is wrong with it.
        what: &'static str,
    },
    /// A wrapped secret was changed, or is another's, or this is not its key.
    #[error("a wrapped secret does not authenticate: wrong key, or changed since it was wrapped")]
    NotAuthentic,
    /// A parameter of a passphrase's derivation outside the accepted bounds.
    #[error("passphrase parameter {what} is {found}; accepted are {least} to {most}")]
    KdfBounds {
        /// The parameter's name.
        what: &'static str,
        /// The least value accepted.
        least: u32,
        /// The greatest value accepted.
        most: u32,
        /// The value given.
        found: u32,
    },
    /// The memory a passphrase's derivation needs can't be had.
    #[error("a passphrase needs {memory_kib} KiB of memory, which can't be had")]
    KdfMemory {
        /// KiB asked for.
        memory_kib: u32,
    },
    /// Argon2 refused its input (a passphrase of more than 4 GiB).
    #[error("the passphrase can't be used: {reason}")]
    Kdf {
        /// The derivation's own words.
        reason: argon2::Error,
    },
}
