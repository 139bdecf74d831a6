//! Words to the system of what is read soon. A mount's requests say themselves what they want; whoever goes through a whole
//! layer knows what comes next, and would else wait for the device at each piece, behind all that is being written.

use super::bytes::{Entry, State, slot_offset};
use super::engine::Layer;
use super::error::Result;
use crate::units::{CHUNK_SECTORS, ChunkNo, SECTOR_BYTES, SlotNo};

impl Layer {
    /// A chunk's entries are read soon.
    pub fn expect_entries(&self, chunk: ChunkNo) {
        self.tree.expect(chunk);
    }

    /// A chunk's sectors are read soon, all that the layer has.
    pub fn expect_sectors(&self, chunk: ChunkNo) -> Result<()> {
        let mut entries = [Entry::ABSENT; CHUNK_SECTORS as usize];
        let within = self.sectors().saturating_sub(chunk.first_sector().0).min(CHUNK_SECTORS);
        self.entries(chunk, 0, &mut entries[..within as usize])?;
        let slots = entries.iter().filter_map(|entry| match entry.state() {
            State::Data(slot) => Some(slot.0),
            _ => None,
        });
        let mut run = 0..0;
        for slot in slots {
            if slot != run.end {
                self.expect_slots(SlotNo(run.start), run.end - run.start);
                run.start = slot;
            }
            run.end = slot + 1;
        }
        self.expect_slots(SlotNo(run.start), run.end - run.start);
        Ok(())
    }

    /// These slots are read soon.
    pub fn expect_slots(&self, first: SlotNo, count: u64) {
        if count > 0 {
            self.data.expect(slot_offset(first), count * SECTOR_BYTES);
        }
    }
}
