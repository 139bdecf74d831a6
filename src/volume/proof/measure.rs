//! The leaves of a disk from all that can be read of it.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::{Leaves, each_chunk};
use crate::crypto::ProofKey;
use crate::units::{CHUNK_BYTES, ChunkNo};
use crate::volume::host_error::{HostError, Result};
use crate::volume::{Stack, chunks_of_bytes};

/// Reads a whole disk through its chain. `watch` is told, several times a second, the bytes of the disk that were passed, and
/// ends it by an error.
pub fn measure<E: From<HostError> + Send>(
    disk: &Stack,
    key: &ProofKey,
    mut watch: impl FnMut(u64) -> Result<(), E>,
) -> Result<Leaves, E> {
    let size = disk.size_bytes();
    let leaves = Mutex::new(Leaves::of_zeros(size));
    let passed = AtomicU64::new(0);
    let next = |at| {
        let found = disk.next_present(at..chunks_of_bytes(size)).map_err(HostError::from)?;
        passed.fetch_max(found.unwrap_or(at) * CHUNK_BYTES, Ordering::Relaxed);
        Ok(found.map(ChunkNo))
    };
    let work = |buffer: &mut Zeroizing<Vec<u8>>, chunk: ChunkNo| {
        let len = (size - chunk.first_sector().byte()).min(CHUNK_BYTES);
        let bytes = &mut buffer[..len as usize];
        disk.read_sectors(chunk.first_sector(), bytes).map_err(HostError::from)?;
        let words = key.words(chunk.first_sector(), bytes);
        leaves.lock().change(chunk, words);
        Ok(())
    };
    let make = || Zeroizing::new(vec![0; CHUNK_BYTES as usize]);
    each_chunk(next, make, work, || watch(passed.load(Ordering::Relaxed).min(size)))?;
    Ok(leaves.into_inner())
}
