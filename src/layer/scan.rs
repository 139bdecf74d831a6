//! Walking all that a layer records, for checks: they go on past damage, where a reader gives up.

use std::ops::Range;

use super::bytes::{Entry, slot_offset};
use super::engine::Layer;
use super::error::{LayerError, Result};
use super::recover::newest_superblock;
use super::tree::Step;
use crate::units::{CHUNK_SECTORS, ChunkNo, SectorNo, SlotNo};

/// What [`Layer::walk`] comes by.
pub enum Walked<'a> {
    /// A chunk of which something is recorded, and its entries.
    Chunk(ChunkNo, &'a [Entry; CHUNK_SECTORS as usize]),
    /// Chunks whose entries can't be known: a map page is damaged or can't be read.
    Lost(Range<u64>, LayerError),
}

impl Layer {
    /// Forgets what is cached of its files, here and in the kernel, so that what is read next is what the device holds; an error too
    /// where that holds neither the superblock it was opened by nor a newer one. Beside who writes to it nothing is lost: the kernel
    /// keeps what it has not written back, and in memory (tmpfs) all.
    pub fn forget_cached(&self) -> Result<()> {
        self.tree.forget();
        for store in [&self.data, &self.map] {
            store.drop_cache().map_err(LayerError::io("reading a layer"))?;
        }
        let opened_by = self.superblock.lock().0.generation;
        let (found, _) = newest_superblock(self.id, &*self.data, &self.keys)?;
        if found.generation >= opened_by {
            return Ok(());
        }
        Err(LayerError::corrupted(
            format!("the superblock of layer {}", self.id),
            format!("generation {opened_by} or newer"),
            format!("generation {}", found.generation),
        ))
    }

    /// Shows every chunk that may have sectors in slots, in order, and every damaged page; until `visit` says no.
    pub fn walk(&self, visit: &mut dyn FnMut(Walked) -> bool) -> Result<()> {
        let end = self.sectors().div_ceil(CHUNK_SECTORS);
        let mut at = 0;
        while at < end {
            let (step, until) = self.step(ChunkNo(at))?;
            let until = until.min(end);
            let here = match step {
                Step::Entries => Some(at),
                Step::Same => self.overlay.first_in(at..until),
                Step::Lost(e) => {
                    if !visit(Walked::Lost(at..until, e)) {
                        return Ok(());
                    }
                    None
                }
            };
            let Some(chunk) = here else {
                at = until;
                continue;
            };
            let mut entries = [Entry::ABSENT; CHUNK_SECTORS as usize];
            let walked = match self.entries(ChunkNo(chunk), 0, &mut entries) {
                Ok(()) => Walked::Chunk(ChunkNo(chunk), &entries),
                Err(e) => Walked::Lost(chunk..chunk + 1, e),
            };
            if !visit(walked) {
                return Ok(());
            }
            at = chunk + 1;
        }
        Ok(())
    }

    /// A page that was written over by a fold since its superblock was read is looked for below the newer one.
    fn step(&self, chunk: ChunkNo) -> Result<(Step, u64)> {
        loop {
            match self.tree.step(chunk) {
                (Step::Lost(e), _) if e.is_corruption() && self.takes_newer_superblock()? => {}
                found => return Ok(found),
            }
        }
    }

    /// A sector's entry by the newest superblock there is.
    pub fn newest_entry(&self, sector: SectorNo) -> Result<Entry> {
        self.takes_newer_superblock()?;
        self.entry(sector)
    }

    /// Reads consecutive slots as they are: nothing is checked.
    pub fn read_unchecked(&self, slot: SlotNo, into: &mut [u8]) -> Result<()> {
        self.data.read_at(into, slot_offset(slot)).map_err(LayerError::io("reading sectors"))
    }

    /// Whether one sector's bytes are those of its tag.
    pub fn fits(&self, sector: SectorNo, bytes: &[u8], tag: u64) -> bool {
        self.keys.check_sectors(sector, bytes, &[tag]).is_ok()
    }
}
