//! `layers/<id>/words`: what the sectors that a copy read of its source are known by, kept while it is made, so that who goes on
//! with it need not read them again.
//!
//! ```text
//! 40 bytes a chunk: chunk u64 · hidden u128 = words ⊕ PRF_header( `copy words hidden`\0 chunk ) · mac[16] = PRF_header( `copy words`\0 chunk hidden )
//! ```
//! Little-endian; hidden, since who has none of the keys is not to see what is equal to what. Appended, and synced before the
//! chunks are: what is cut or not ours is not believed, and read again. The later of two records counts.
//! It is of the chunk as it was carried then; where the plan has become another, what is proven differs, and it is read again too.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use parking_lot::Mutex;

use crate::crypto::Prf;
use crate::layer::Layer;
use crate::region::Region;
use crate::sys::owned;
use crate::volume::folder;

const RECORD: usize = 40;
/// A longer file, of more than 3 TiB or of somebody who made it so, is not read into memory, and begun anew.
const BYTES_MAX: u64 = 64 << 20;

/// By chunk, the XOR of the words of all that was carried of it.
pub struct Words<'a> {
    layer: &'a Layer,
    path: PathBuf,
    known: Mutex<HashMap<u64, u128>>,
    /// None: it can't be written, and what is known ends with this process.
    file: Mutex<Option<File>>,
}

impl<'a> Words<'a> {
    /// What earlier processes wrote down of a copy's layer, and where this one does.
    pub fn open(region: &Region, layer: &'a Layer) -> Self {
        let path = folder::words_path(region, layer.id());
        let mut words = Self { layer, path, known: Mutex::default(), file: Mutex::default() };
        let read = owned::read(&words.path, BYTES_MAX).unwrap_or_default();
        let (known, whole) = parse(&read, layer.keys().header());
        words.known = Mutex::new(known);
        // Later records behind a cut one would be out of step.
        let cut = || owned::open(&words.path, true)?.set_len(whole as u64);
        if read.is_empty() || whole < read.len() && cut().is_err() {
            let _ = fs::remove_file(&words.path);
        }
        match owned::open_to_append(&words.path) {
            Ok(file) => words.file = Mutex::new(Some(file)),
            Err(error) => tracing::info!(%error, "what a copy read is not written down"),
        }
        words
    }

    /// Those of a chunk.
    pub fn get(&self, chunk: u64) -> Option<u128> {
        self.known.lock().get(&chunk).copied()
    }

    /// They are these: told before the chunk is put.
    pub fn tell(&self, chunk: u64, words: u128) {
        self.known.lock().insert(chunk, words);
        let record = to_bytes(chunk, words, self.layer.keys().header());
        let mut file = self.file.lock();
        if file.as_mut().is_some_and(|file| file.write_all(&record).is_err()) {
            *file = None;
        }
    }

    /// What was told is durable: before the chunks themselves are, or after a power cut they would cross again to be proven.
    pub fn sync(&self) {
        let mut file = self.file.lock();
        if file.as_ref().is_some_and(|file| file.sync_data().is_err()) {
            *file = None;
        }
    }

    /// The copy is whole.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Words<'_> {
    /// Who goes on with the copy finds what this process told.
    fn drop(&mut self) {
        self.sync();
    }
}

const PURPOSE: &[u8] = b"copy words\0";
const HIDING: &[u8] = b"copy words hidden\0";

/// What such a file's bytes say, of records that are ours, and how many bytes of it are whole records.
pub(crate) fn parse(bytes: &[u8], prf: &Prf) -> (HashMap<u64, u128>, usize) {
    let (records, _) = bytes.as_chunks::<RECORD>();
    (records.iter().filter_map(|record| of_record(record, prf)).collect(), records.len() * RECORD)
}

/// A chunk's record.
pub(crate) fn to_bytes(chunk: u64, words: u128, prf: &Prf) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(&chunk.to_le_bytes());
    record[8..24].copy_from_slice(&(words ^ pad(chunk, prf)).to_le_bytes());
    let mac = prf.mac(&[PURPOSE, &record[..24]]);
    record[24..].copy_from_slice(&mac);
    record
}

fn of_record(record: &[u8; RECORD], prf: &Prf) -> Option<(u64, u128)> {
    let (said, mac) = record.split_first_chunk::<24>()?;
    let (chunk, words) = said.split_first_chunk::<8>()?;
    let is_ours = prf.verify(&[PURPOSE, said], mac.try_into().ok()?);
    let chunk = u64::from_le_bytes(*chunk);
    is_ours.then_some((chunk, u128::from_le_bytes(words.try_into().ok()?) ^ pad(chunk, prf)))
}

fn pad(chunk: u64, prf: &Prf) -> u128 {
    u128::from_le_bytes(prf.mac(&[HIDING, &chunk.to_le_bytes()]))
}
