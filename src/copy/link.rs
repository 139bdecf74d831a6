//! The one way by which a copy's bytes reach its target, so narrow that a target may lie elsewhere than in a directory.
//!
//! All that crosses is counted here, where it does.

use std::sync::atomic::{AtomicU64, Ordering};

use super::difference::{Carried, Chunk, Difference};
use super::error::{CopyError, Result};
use super::words::Words;
use crate::catalog::Layer as LayerRow;
use crate::ids::Point;
use crate::layer::{Layer, LayerError, SealedMark, State};
use crate::region::Region;
use crate::units::{
    CHUNK_SECTORS, ChunkNo, REQUEST_BYTES_MAX, SECTOR_BYTES, SECTOR_LEN, SectorNo, VOLUME_BYTES_MAX,
};
use crate::volume::{VolumeError, folder, recorded};

/// A set of a chunk's sectors.
pub type Sectors = [bool; CHUNK_SECTORS as usize];

/// A target's layer, as it is filled.
pub trait Link: Sync {
    /// Whether all of it is there, from an earlier process.
    fn has_layer(&self) -> bool;

    /// Which of the sectors that a chunk is to carry are there, from an earlier process, and read well; none: nothing of the
    /// chunk is. `crossing`: which of them would cross, and so have.
    fn has_sectors(&self, chunk: ChunkNo, wanted: &Chunk, crossing: &Sectors) -> Result<Option<Sectors>>;

    /// Puts what a chunk carries: zeros, and data from its place in `plain`. So many sectors of it crossed.
    fn put_chunk(&self, chunk: ChunkNo, carried: &Chunk, plain: &[u8], crossing: u64) -> Result<()>;

    /// Asked several times a second while chunks are put: nothing of them is durable before the end, but much of the work may
    /// be done by then.
    fn tend(&self);

    /// All was put: it is durable, and never changes. `points`: its own moment, then those below.
    fn commit(&self, points: &[Point]) -> Result<SealedMark>;
}

/// Bytes of the source that crossed to the target, in all processes that made a copy: what an earlier one lost is counted twice, as
/// far as it said how far it was.
#[derive(Default)]
pub struct Crossed {
    /// As the row said when this process took it up.
    before: u64,
    /// Found at the target from before.
    found: AtomicU64,
    /// In this process.
    now: AtomicU64,
}

impl Crossed {
    /// Of a copy that is taken up, whose row says so much of it: more than any disk has is not believed.
    pub fn since(before: u64) -> Self {
        Self { before: before.min(VOLUME_BYTES_MAX), ..Self::default() }
    }

    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.now.load(Ordering::Relaxed) + self.found.load(Ordering::Relaxed).max(self.before)
    }

    /// More of it, in this process.
    pub fn add(&self, bytes: u64) {
        self.now.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The layer was whole already: nothing is left to cross.
    pub fn all_was_there(&self, bytes: u64) {
        self.found.store(bytes, Ordering::Relaxed);
    }
}

/// A layer in the directory of a region of this machine.
pub struct Directory<'a> {
    /// The region.
    pub region: &'a Region,
    /// The layer's row.
    pub row: &'a LayerRow,
    /// The layer.
    pub layer: &'a Layer,
    /// What is carried, and over what.
    pub difference: &'a Difference,
    /// Counts what crosses.
    pub crossed: &'a Crossed,
    /// What was read, which is durable before what was made of it is.
    pub words: &'a Words<'a>,
}

impl Link for Directory<'_> {
    fn has_layer(&self) -> bool {
        self.layer.is_ended()
    }

    fn has_sectors(&self, chunk: ChunkNo, wanted: &Chunk, crossing: &Sectors) -> Result<Option<Sectors>> {
        let Some(there) = recorded(self.layer, chunk)? else { return Ok(None) };
        let mut cipher = [0; SECTOR_LEN];
        let has: Sectors = std::array::from_fn(|i| {
            let sector = SectorNo(chunk.first_sector().0 + i as u64);
            match (wanted[i], there[i].state()) {
                (Carried::Nothing, _) => false,
                (Carried::Zero, state) => state == State::Zero,
                // It may have waited for long.
                (Carried::Data { .. }, State::Data(slot)) => {
                    self.layer.read_cipher(sector, slot, &[there[i].tag()], &mut cipher).is_ok()
                }
                (Carried::Data { .. }, _) => false,
            }
        });
        let found = has.iter().zip(crossing).filter(|(has, crossing)| **has && **crossing).count();
        self.crossed.found.fetch_add(found as u64 * SECTOR_BYTES, Ordering::Relaxed);
        Ok(Some(has))
    }

    fn put_chunk(&self, chunk: ChunkNo, carried: &Chunk, plain: &[u8], crossing: u64) -> Result<()> {
        let put = || -> Result<(), LayerError> {
            self.write(chunk, carried, plain)?;
            self.crossed.add(crossing * SECTOR_BYTES);
            // Both log halves full would stop every worker; this way only one of them is busy with the map.
            if self.layer.needs_checkpoint() {
                self.words.sync();
                self.layer.checkpoint_closed()?;
            }
            Ok(())
        };
        put().map_err(|e| CopyError::of_target(e, self.region.name()))
    }

    fn tend(&self) {
        // The disk works from the first moment on, so that the flush at the end finds little to do.
        self.layer.begin_write_back();
    }

    /// What was written, durable, then in the map, durable; then the header says so.
    fn commit(&self, points: &[Point]) -> Result<SealedMark> {
        let commit = || -> Result<SealedMark> {
            if !self.layer.is_ended() {
                self.words.sync();
                self.layer.flush()?;
                self.layer.lock_for_seal()?.end()?;
            }
            let mark = self.layer.finish_seal()?;
            folder::change_header(self.region, self.row.id, self.layer.keys(), |header| {
                header.points = points.to_vec();
                header.sealed = Some(mark);
            })?;
            Ok(mark)
        };
        commit().map_err(|e| CopyError::of_target(e, self.region.name()))
    }
}

impl Directory<'_> {
    /// Encrypts and writes what a chunk carries: neighbouring sectors by one request, of at most 1 MiB.
    fn write(&self, chunk: ChunkNo, carried: &Chunk, plain: &[u8]) -> Result<(), LayerError> {
        let hides = |chunk: ChunkNo| {
            self.difference.hides(chunk).map_err(|e| match e {
                VolumeError::Layer(e) => e,
                other => LayerError::corrupted("the base's map", "entries", other.to_string()),
            })
        };
        let mut at = 0;
        for run in carried.chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b)) {
            let index = at;
            at += run.len();
            let first = chunk.first_sector().0 + index as u64;
            match run[0] {
                Carried::Nothing => {}
                Carried::Zero => self.layer.discard(SectorNo(first), run.len() as u64, &hides)?,
                Carried::Data { .. } => {
                    let bytes = &plain[index * SECTOR_LEN..][..run.len() * SECTOR_LEN];
                    for (i, piece) in bytes.chunks(REQUEST_BYTES_MAX as usize).enumerate() {
                        let sector = first + i as u64 * (REQUEST_BYTES_MAX / SECTOR_BYTES);
                        self.layer.write(SectorNo(sector), piece, &[], &hides)?;
                    }
                }
            }
        }
        Ok(())
    }
}
