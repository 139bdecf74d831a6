//! A key from a passphrase: Argon2id (RFC 9106), with bounds on what a stored parameter may ask of this machine.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroizing;

use super::{CryptoError, Secret};

/// What Argon2id is given beside the passphrase. Not secret; stored beside what the key wraps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KdfParams {
    /// Memory in KiB: 8 MiB to 256 MiB.
    pub memory_kib: u32,
    /// Passes over the memory: 1 to 6.
    pub passes: u32,
    /// Lanes: 1 to 8.
    pub lanes: u32,
    /// Random, a fresh one for each passphrase set.
    pub salt: [u8; 16],
}

/// 8 MiB: below this a graphics card guesses cheaply.
const MEMORY_KIB_MIN: u32 = 8 << 10;
/// 256 MiB, as recommended: parameters come from a file that another may have written, and ask for no more memory than ours.
const MEMORY_KIB_MAX: u32 = 256 << 10;
/// Twice what is recommended, and so twice the time at most.
const PASSES_MAX: u32 = 6;
const LANES_MAX: u32 = 8;

impl KdfParams {
    /// 256 MiB, 3 passes, one lane (each further lane only helps who computes them side by side, as a guesser
    /// would and this crate does not), and a fresh salt: between half a second and a second on a server core.
    pub fn recommended() -> Self {
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).expect("the kernel's random source answers");
        Self { memory_kib: 256 << 10, passes: 3, lanes: 1, salt }
    }

    /// The key of this passphrase. Bounds are checked before any memory is taken.
    pub fn derive(&self, passphrase: &[u8]) -> Result<Secret<32>, CryptoError> {
        bounded("memory_kib", self.memory_kib, MEMORY_KIB_MIN, MEMORY_KIB_MAX)?;
        bounded("passes", self.passes, 1, PASSES_MAX)?;
        bounded("lanes", self.lanes, 1, LANES_MAX)?;
        let refused = |reason| CryptoError::Kdf { reason };
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).map_err(refused)?;
        let mut memory = blocks(&params)?;
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut outcome = Ok(());
        let key = Secret::filled(|out| {
            outcome =
                argon.hash_password_into_with_memory(passphrase, &self.salt, out, memory.as_mut_slice());
        });
        outcome.map(|()| key).map_err(refused)
    }
}

/// Argon2's memory, zeroed on drop: it tells of the passphrase.
fn blocks(params: &Params) -> Result<Zeroizing<Vec<Block>>, CryptoError> {
    let mut memory = Vec::new();
    memory
        .try_reserve_exact(params.block_count())
        .map_err(|_| CryptoError::KdfMemory { memory_kib: params.m_cost() })?;
    memory.resize(params.block_count(), Block::new());
    Ok(Zeroizing::new(memory))
}

fn bounded(what: &'static str, found: u32, least: u32, most: u32) -> Result<(), CryptoError> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(CryptoError::KdfBounds { what, least, most, found })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: KdfParams = KdfParams { memory_kib: 8 << 10, passes: 1, lanes: 1, salt: [3; 16] };

    #[test]
    fn a_key_depends_on_everything_it_is_given() {
        let key = |params: &KdfParams, passphrase: &[u8]| *params.derive(passphrase).unwrap().expose();
        let reference = key(&SMALL, b"correct horse");
        assert_eq!(key(&SMALL.clone(), b"correct horse"), reference);
        assert_ne!(key(&SMALL, b"correct horsf"), reference);
        for other in [
            KdfParams { memory_kib: 9 << 10, ..SMALL },
            KdfParams { passes: 2, ..SMALL },
            KdfParams { lanes: 2, ..SMALL },
            KdfParams { salt: [4; 16], ..SMALL },
        ] {
            assert_ne!(key(&other, b"correct horse"), reference, "{other:?}");
        }
    }

    /// A passphrase must open next year what it locked today: values made by OpenSSL 3's ARGON2ID.
    #[test]
    fn keys_are_what_openssl_derives() {
        let key = |lanes| KdfParams { lanes, ..SMALL }.derive(b"correct horse").unwrap();
        let hex = |key: Secret<32>| key.expose().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(key(1)), "e21836ffad012f1b7c8753313aa6525ef56484437567e29be99f7c04da4fb88c");
        assert_eq!(hex(key(2)), "8132f5cef97e29c36f6621da151bcaedf0d1310a3f5c699a4f3224fdc730d6a6");
    }

    /// A stored file that asks for 64 GiB or for hours is refused before anything is allocated.
    #[test]
    fn hostile_parameters_are_refused() {
        for (params, field) in [
            (KdfParams { memory_kib: 64 << 20, ..SMALL }, "memory_kib"),
            (KdfParams { memory_kib: u32::MAX, ..SMALL }, "memory_kib"),
            (KdfParams { memory_kib: 1 << 20, ..SMALL }, "memory_kib"),
            (KdfParams { memory_kib: (256 << 10) + 1, ..SMALL }, "memory_kib"),
            (KdfParams { memory_kib: 1024, ..SMALL }, "memory_kib"),
            (KdfParams { memory_kib: 0, ..SMALL }, "memory_kib"),
            (KdfParams { passes: 0, ..SMALL }, "passes"),
            (KdfParams { passes: 7, ..SMALL }, "passes"),
            (KdfParams { lanes: 0, ..SMALL }, "lanes"),
            (KdfParams { lanes: 9, ..SMALL }, "lanes"),
            (KdfParams { lanes: u32::MAX, ..SMALL }, "lanes"),
        ] {
            match params.derive(b"x") {
                Err(CryptoError::KdfBounds { what, .. }) => assert_eq!(what, field),
                other => panic!("{params:?} gave {other:?}"),
            }
        }
        assert!(KdfParams { lanes: 8, passes: 2, ..SMALL }.derive(b"").is_ok());
    }

    /// And whatever else is accepted takes no more memory, and no more than twice the time.
    #[test]
    fn what_is_recommended_is_accepted() {
        let params = KdfParams::recommended();
        assert_eq!(MEMORY_KIB_MAX, params.memory_kib);
        assert_eq!(PASSES_MAX, 2 * params.passes);
        assert_ne!(params.salt, KdfParams::recommended().salt);
        assert!(bounded("memory_kib", params.memory_kib, MEMORY_KIB_MIN, MEMORY_KIB_MAX).is_ok());
        assert!((1..=PASSES_MAX).contains(&params.passes) && (1..=LANES_MAX).contains(&params.lanes));
    }
}
