//! The chunks that a fold moves, each told of before its turn comes, so that the device has read it by then.

use std::collections::VecDeque;

use super::sectors::Move;
use crate::layer::Result;
use crate::units::ChunkNo;

/// Chunks whose entries are asked for at one time: their pages lie apart on the device.
const ENTRIES: usize = 32;
/// Chunks whose sectors are, of up to a MiB each.
const SECTORS: usize = 4;

/// What is present in the layer that goes, in order.
pub(super) struct Ahead<'a> {
    moving: &'a Move<'a>,
    /// Where to look on, and where the disk ends.
    at: u64,
    end: u64,
    found: VecDeque<ChunkNo>,
    /// Of how many of the found the sectors were asked for.
    expected: usize,
}

impl<'a> Ahead<'a> {
    pub fn new(moving: &'a Move<'a>, start: u64, end: u64) -> Self {
        Self { moving, at: start, end, found: VecDeque::with_capacity(ENTRIES), expected: 0 }
    }

    /// The next chunk.
    pub fn next(&mut self) -> Result<Option<ChunkNo>> {
        while self.found.len() < ENTRIES
            && let Some(chunk) = self.moving.from.next_present(self.at..self.end)?
        {
            self.at = chunk + 1;
            let chunk = ChunkNo(chunk);
            self.moving.from.expect_entries(chunk);
            self.moving.into.expect_entries(chunk);
            self.found.push_back(chunk);
        }
        while self.expected < SECTORS.min(self.found.len()) {
            self.moving.expect(self.found[self.expected]);
            self.expected += 1;
        }
        self.expected = self.expected.saturating_sub(1);
        Ok(self.found.pop_front())
    }
}
