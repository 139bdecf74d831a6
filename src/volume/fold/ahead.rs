//! The chunks that a fold moves, each told of before its turn comes, so that the device has read it by then.

use std::collections::VecDeque;

use crate::layer::{Layer, Result};
use crate::units::ChunkNo;

/// Chunks whose pages of entries are asked for at one time: they lie apart on the device.
const PAGES: usize = 32;
/// Chunks whose sectors are, of a MiB each.
const SECTORS: usize = 4;

/// What is present in the layer that goes, in order.
pub(super) struct Ahead<'a> {
    from: &'a Layer,
    into: &'a Layer,
    /// Where to look on, and where the disk ends.
    at: u64,
    end: u64,
    found: VecDeque<ChunkNo>,
    /// Of how many of the found the sectors were asked for.
    expected: usize,
}

impl<'a> Ahead<'a> {
    pub fn new(from: &'a Layer, into: &'a Layer, start: u64, end: u64) -> Self {
        Self { from, into, at: start, end, found: VecDeque::with_capacity(PAGES), expected: 0 }
    }

    /// The next chunk.
    pub fn next(&mut self) -> Result<Option<ChunkNo>> {
        while self.found.len() < PAGES
            && let Some(chunk) = self.from.next_present(self.at..self.end)?
        {
            self.at = chunk + 1;
            let chunk = ChunkNo(chunk);
            self.from.expect_entries(chunk);
            self.into.expect_entries(chunk);
            self.found.push_back(chunk);
        }
        while self.expected < SECTORS.min(self.found.len()) {
            self.from.expect_sectors(self.found[self.expected])?;
            self.expected += 1;
        }
        self.expected = self.expected.saturating_sub(1);
        Ok(self.found.pop_front())
    }
}
