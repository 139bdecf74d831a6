//! The leaves of a disk from all that can be read of it.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::Leaves;
use crate::crypto::ProofKey;
use crate::sys::page_buffer::PageBuffer;
use crate::units::{CHUNK_BYTES, ChunkNo, SECTOR_BYTES};
use crate::volume::host_error::{HostError, Result};
use crate::volume::{Source, Stack, Stop, chunks_of_bytes, each_chunk};

/// What goes with the reading of a disk.
pub struct Reading<'a> {
    /// Waits until so many bytes may be read; false: none are to be any more.
    pub admit: &'a (dyn Fn(u64) -> bool + Sync),
    /// Told the plaintext of each chunk that is not all zeros, in any order.
    pub each: &'a (dyn Fn(ChunkNo, &[u8]) + Sync),
}

impl Reading<'_> {
    /// As fast as it can, for the leaves alone.
    pub const PLAIN: Self = Self { admit: &|_| true, each: &|_, _| {} };
}

/// Reads a whole disk through its chain. `watch` is told, several times a second, the bytes that were read, and ends it by an
/// error; it does so where `admit` said false.
pub fn measure<E: From<HostError> + Send>(
    disk: &Stack,
    key: &ProofKey,
    reading: &Reading,
    mut watch: impl FnMut(u64) -> Result<(), E>,
) -> Result<Leaves, E> {
    let size = disk.size_bytes();
    let leaves = Mutex::new(Leaves::of_zeros(size));
    let read = AtomicU64::new(0);
    let next = |at| Ok(disk.next_present(at..chunks_of_bytes(size)).map_err(HostError::from)?.map(ChunkNo));
    let work = |buffer: &mut Zeroizing<PageBuffer>, chunk: ChunkNo, _: &Stop| {
        let len = (size - chunk.first_sector().byte()).min(CHUNK_BYTES);
        let bytes = &mut buffer[..len as usize];
        let stored = stored_sectors(disk, chunk, bytes.len())? * SECTOR_BYTES;
        if !(reading.admit)(stored) {
            return Ok(());
        }
        disk.read_sectors(chunk.first_sector(), bytes).map_err(HostError::from)?;
        let words = key.words(chunk.first_sector(), bytes);
        if words != 0 {
            (reading.each)(chunk, bytes);
        }
        leaves.lock().change(chunk, words);
        read.fetch_add(stored, Ordering::Relaxed);
        Ok(())
    };
    let make = || Zeroizing::new(PageBuffer::new(CHUNK_BYTES as usize));
    each_chunk(next, make, work, || watch(read.load(Ordering::Relaxed)))?;
    // What came after it was last asked.
    watch(read.load(Ordering::Relaxed))?;
    Ok(leaves.into_inner())
}

fn stored_sectors(disk: &Stack, chunk: ChunkNo, bytes: usize) -> Result<u64> {
    let mut sources = [Source::Zero; crate::units::CHUNK_SECTORS as usize];
    let sources = &mut sources[..bytes / SECTOR_BYTES as usize];
    disk.sources(chunk, 0, sources).map_err(HostError::from)?;
    Ok(sources.iter().filter(|source| **source != Source::Zero).count() as u64)
}
