//! Words to the system of what is read soon. A mount's requests say themselves what they want; whoever goes through a whole
//! layer knows what comes next, and would else wait for the device at each piece, behind all that is being written.

use super::bytes::slot_offset;
use super::engine::Layer;
use crate::units::{ChunkNo, SECTOR_BYTES, SlotNo};

impl Layer {
    /// A chunk's entries are read soon.
    pub fn expect_entries(&self, chunk: ChunkNo) {
        self.tree.expect(chunk);
    }

    /// These slots are read soon.
    pub fn expect_slots(&self, first: SlotNo, count: u64) {
        self.data.expect(slot_offset(first), count * SECTOR_BYTES);
    }
}
