//! All the keys of one layer, from its data key.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;

use super::kernel::Kernel;
use super::{Cipher, CryptoError, Prf, ProofKey, Secret, SectorCipher, envelope};
use crate::units::{SECTOR_LEN, SectorNo};

/// The state word of a stored sector's tag: 1 is data.
const STATE_DATA: u64 = 1;
/// What a wrapped proof key is bound to, beside the layer's own key.
const PROOF_KEY: &[u8] = b"terrane proof key";

/// A layer's sector cipher, its five PRFs, and what wraps its proof key; derived once when the layer opens.
pub struct LayerKeys {
    /// None for a layer whose sectors are stored as they are; their tags and MACs are keyed all the same.
    sectors: Option<SectorCipher>,
    tag: Prf,
    log: Prf,
    page: Prf,
    superblock: Prf,
    header: Prf,
    proof_wrap: Secret<32>,
}

impl LayerKeys {
    /// The keys of a layer. The data key itself is the XTS key (so that other programs can read the sectors);
    /// the PRFs' subkeys come from it by HKDF-SHA-256 (RFC 5869) without salt, one info text each.
    pub fn derive(cipher: Cipher, data_key: &Secret<64>) -> Result<Self, CryptoError> {
        Self::derive_on(Kernel::Fastest, cipher, data_key)
    }

    /// As [`LayerKeys::derive`], on kernels of the caller's choice.
    pub fn derive_on(kernel: Kernel, cipher: Cipher, data_key: &Secret<64>) -> Result<Self, CryptoError> {
        let hkdf = Hkdf::<Sha256>::new(None, data_key.expose());
        let prf = |info: &str| {
            let subkey = Secret::filled(|out: &mut [u8; 48]| {
                hkdf.expand(info.as_bytes(), out).expect("48 bytes are fewer than HKDF's 8160");
            });
            Prf::on(kernel, &subkey)
        };
        Ok(Self {
            sectors: match cipher {
                Cipher::Plain => None,
                Cipher::XtsAes256 => Some(SectorCipher::on(kernel, data_key)?),
            },
            tag: prf("terrane tag"),
            log: prf("terrane log"),
            page: prf("terrane page"),
            superblock: prf("terrane super"),
            header: prf("terrane header"),
            proof_wrap: Secret::filled(|out: &mut [u8; 32]| {
                hkdf.expand(b"terrane proof wrap", out).expect("32 bytes are fewer than HKDF's 8160");
            }),
        })
    }

    /// The PRF of sectors' tags.
    pub fn tag(&self) -> &Prf {
        &self.tag
    }

    /// The PRF of log records.
    pub fn log(&self) -> &Prf {
        &self.log
    }

    /// The PRF of map pages.
    pub fn page(&self) -> &Prf {
        &self.page
    }

    /// The PRF of superblocks.
    pub fn superblock(&self) -> &Prf {
        &self.superblock
    }

    /// The PRF of the header file.
    pub fn header(&self) -> &Prf {
        &self.header
    }

    /// A proof key as the layer's header holds it.
    pub fn wrap_proof_key(&self, key: &ProofKey) -> Vec<u8> {
        envelope::wrap(&self.proof_wrap, PROOF_KEY, key.secret().expose())
    }

    /// The proof key that [`LayerKeys::wrap_proof_key`] wrapped.
    pub fn unwrap_proof_key(&self, wrapped: &[u8]) -> Result<ProofKey, CryptoError> {
        let bytes = envelope::unwrap(&self.proof_wrap, PROOF_KEY, wrapped)?;
        Ok(ProofKey::new(Secret::try_from_slice(&bytes)?))
    }

    /// Makes what is stored of consecutive sectors: ciphertext (a copy, for a plain layer) into `out`, and a tag of
    /// each. Sector by sector, so that a tag finds its ciphertext in the nearest cache. Lengths that don't match panic.
    pub fn seal_sectors(&self, first: SectorNo, plain: &[u8], out: &mut [u8], tags: &mut [u64]) {
        assert_eq!(plain.len(), out.len(), "source and target differ in length");
        assert_whole(out.len(), tags.len());
        let (targets, _) = out.as_chunks_mut::<SECTOR_LEN>();
        let (sources, _) = plain.as_chunks::<SECTOR_LEN>();
        for (i, ((source, target), tag)) in sources.iter().zip(targets).zip(tags).enumerate() {
            let sector = SectorNo(first.0.wrapping_add(i as u64));
            match &self.sectors {
                Some(cipher) => cipher.encrypt(sector, source, target),
                None => target.copy_from_slice(source),
            }
            *tag = self.tag.tag(target, sector, STATE_DATA);
        }
    }

    /// Checks and decrypts consecutive sectors in place. `Err` is the index of the first whose tag does not fit: what
    /// lies before it is plaintext, what lies from it on is not.
    pub fn open_sectors(&self, first: SectorNo, buf: &mut [u8], tags: &[u64]) -> Result<(), usize> {
        assert_whole(buf.len(), tags.len());
        for (i, (data, tag)) in buf.as_chunks_mut::<SECTOR_LEN>().0.iter_mut().zip(tags).enumerate() {
            let sector = SectorNo(first.0.wrapping_add(i as u64));
            self.check(sector, data, *tag).ok_or(i)?;
            if let Some(cipher) = &self.sectors {
                cipher.decrypt_in_place(sector, data);
            }
        }
        Ok(())
    }

    /// Checks consecutive sectors and changes nothing. `Err` is the index of the first whose tag does not fit.
    pub fn check_sectors(&self, first: SectorNo, buf: &[u8], tags: &[u64]) -> Result<(), usize> {
        assert_whole(buf.len(), tags.len());
        for (i, (data, tag)) in buf.as_chunks::<SECTOR_LEN>().0.iter().zip(tags).enumerate() {
            self.check(SectorNo(first.0.wrapping_add(i as u64)), data, *tag).ok_or(i)?;
        }
        Ok(())
    }

    /// Compares 64-bit tags in one instruction: its time tells nothing of where they differ.
    #[inline]
    fn check(&self, sector: SectorNo, data: &[u8; SECTOR_LEN], tag: u64) -> Option<()> {
        (self.tag.tag(data, sector, STATE_DATA) == tag).then_some(())
    }
}

impl fmt::Debug for LayerKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LayerKeys(..)")
    }
}

fn assert_whole(bytes: usize, tags: usize) {
    assert!(bytes == tags * SECTOR_LEN, "{bytes} bytes are not {tags} sectors");
}
