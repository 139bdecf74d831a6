//! Bytes that zero themselves, print nothing and are never copied by accident.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

use super::CryptoError;

/// `N` secret bytes on the heap: moving one leaves no copy behind, dropping it zeroes them.
///
/// Neither `Clone`, `Copy` nor serialisable; [`Secret::expose`] is the one way to the bytes.
pub struct Secret<const N: usize> {
    bytes: Box<Zeroizing<[u8; N]>>,
}

impl<const N: usize> Secret<N> {
    /// Takes these bytes and zeroes the argument. An array is `Copy`: a caller that still holds the original
    /// zeroes it itself.
    pub fn new(mut bytes: [u8; N]) -> Self {
        let secret = Self::filled(|target| target.copy_from_slice(&bytes));
        bytes.zeroize();
        secret
    }

    /// Fresh bytes from the kernel's random source.
    pub fn random() -> Self {
        Self::filled(|target| getrandom::fill(target).expect("the kernel's random source answers"))
    }

    /// A copy of a slice, which must have exactly `N` bytes.
    pub fn try_from_slice(bytes: &[u8]) -> Result<Self, CryptoError> {
        if bytes.len() != N {
            return Err(CryptoError::WrongLength { expected: N, found: bytes.len() });
        }
        Ok(Self::filled(|target| target.copy_from_slice(bytes)))
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8; N] {
        &self.bytes
    }

    /// Bytes written in place by `fill`, so that they never lie elsewhere.
    pub(super) fn filled(fill: impl FnOnce(&mut [u8; N])) -> Self {
        let mut bytes = Box::new(Zeroizing::new([0; N]));
        fill(&mut bytes);
        Self { bytes }
    }
}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret<{N}>(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_prints_nothing_of_the_content() {
        let secret = Secret::new([0xab; 32]);
        for text in [format!("{secret:?}"), format!("{secret:#?}"), format!("{:?}", Some(&secret))] {
            assert!(text.contains("Secret<32>(..)"), "{text}");
            assert!(!text.contains("ab") && !text.contains("171"), "{text}");
        }
    }

    #[test]
    fn a_slice_of_another_length_is_refused() {
        assert_eq!(Secret::<32>::try_from_slice(&[7; 32]).unwrap().expose(), &[7; 32]);
        for len in [0, 31, 33, 64] {
            let refused = Secret::<32>::try_from_slice(&vec![7; len]);
            assert!(matches!(refused, Err(CryptoError::WrongLength { expected: 32, found }) if found == len));
        }
    }

    #[test]
    fn random_secrets_differ() {
        assert_ne!(Secret::<32>::random().expose(), Secret::<32>::random().expose());
    }
}
