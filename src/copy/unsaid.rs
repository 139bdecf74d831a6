//! What a bookmark leaves unsaid is looked for in the source's bytes.
//!
//! Which sectors changed is otherwise said by the very maps that the source is read by. Of a bookmark no map bears out that it names
//! all of them, and the rest of the proof looks only where the plan or the copy says something. So the source is read, where it
//! lies, and each chunk must have the leaf that the copy has; nothing crosses for it. All chunks are read where they are few, or
//! few beside what was carried, else some of them, by lot.
//!
//! Those that the bookmark's layer records come first, and those that the source records nowhere: a sector that is missed is
//! most likely there, since a fold changes no other layer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::difference::Difference;
use super::error::Result;
use crate::crypto::ProofKey;
use crate::layer::Layer;
use crate::units::{CHUNK_BYTES, ChunkNo};
use crate::volume::proof::Leaves;
use crate::volume::{Chain, Stack, Stop, VolumeError, each_chunk};

/// What says that a copy's leaves are those of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// The maps that the source is read by say what changed since the base.
    Maps,
    /// Each chunk of the source was read.
    Bytes,
    /// A bookmark says what changed, and of the source some chunks were read.
    Bookmark,
}

/// So many chunks are read in any case (4 GiB),
const CHUNKS_ALWAYS: u64 = (4 << 30) / CHUNK_BYTES;
/// or so many times as many bytes as a copy carried.
const TIMES_CARRIED: u64 = 4;

/// How many chunks are read for a copy that carried so many bytes.
pub fn chunks_for(carried_bytes: u64) -> u64 {
    CHUNKS_ALWAYS.max((carried_bytes / CHUNK_BYTES).saturating_mul(TIMES_CARRIED))
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// The chunks that were read are those of the copy.
    Equal(Basis),
    /// In this chunk something changed that nobody named.
    Differs(ChunkNo),
}

/// Reads the source of a difference that rests on the bookmarks of `marked`, up to about `most` chunks, and compares it with
/// the leaves of the copy. `watch` is told the bytes that were read, and ends it by an error.
pub fn look(
    difference: &Difference,
    marked: &Layer,
    key: &ProofKey,
    leaves: &Leaves,
    most: u64,
    mut watch: impl FnMut(u64) -> Result<()>,
) -> Result<Found> {
    let source = difference.source();
    let candidates = Candidates { source, marked, leaves };
    let (chosen, are_all) = candidates.choose(most)?;
    let (read, is_unreadable) = (AtomicU64::new(0), AtomicBool::new(false));
    let differs = Mutex::new(None::<ChunkNo>);
    let next = |at| Ok(chosen.get(chosen.partition_point(|chunk| *chunk < at)).copied().map(ChunkNo));
    let work = |buffer: &mut Zeroizing<Vec<u8>>, chunk: ChunkNo, _: &Stop| {
        if differs.lock().is_some() {
            return Ok(());
        }
        let len = (leaves.size_bytes() - chunk.first_sector().byte()).min(CHUNK_BYTES) as usize;
        match is_leaf(source, key, chunk, &mut buffer[..len], leaves.leaf(chunk)) {
            Ok(true) => drop(read.fetch_add(len as u64, Ordering::Relaxed)),
            Ok(false) => drop(differs.lock().get_or_insert(chunk)),
            // The copy has these bytes from its base; whether they are the source's nobody can say.
            Err(error) if !is_unreadable.swap(true, Ordering::Relaxed) => {
                tracing::warn!(%error, "the source can't be read where a copy carries nothing of it");
            }
            Err(_) => {}
        }
        Ok(())
    };
    let make = || Zeroizing::new(vec![0; CHUNK_BYTES as usize]);
    each_chunk(next, make, work, || watch(read.load(Ordering::Relaxed)))?;
    Ok(match differs.into_inner() {
        Some(chunk) => Found::Differs(chunk),
        None if are_all && !is_unreadable.into_inner() => Found::Equal(Basis::Bytes),
        None => Found::Equal(Basis::Bookmark),
    })
}

/// Whether a chunk of a disk has this leaf.
fn is_leaf(
    disk: &Stack,
    key: &ProofKey,
    chunk: ChunkNo,
    buffer: &mut [u8],
    leaf: u128,
) -> Result<bool, VolumeError> {
    let first = chunk.first_sector();
    disk.read_sectors(first, buffer)?;
    if key.words(first, buffer) == leaf {
        return Ok(true);
    }
    // By what the maps say now, and not by what is remembered of them: a fold may have come between.
    let anew = Stack { active: None, chain: Chain::new(disk.chain.layers().to_vec()) };
    anew.read_sectors(first, buffer)?;
    Ok(key.words(first, buffer) == leaf)
}

/// The chunks of which the source records anything, or the copy has a leaf.
struct Candidates<'a> {
    source: &'a Stack,
    marked: &'a Layer,
    leaves: &'a Leaves,
}

impl Candidates<'_> {
    /// At most about so many of them, in order, and whether they are all.
    fn choose(&self, most: u64) -> Result<(Vec<u64>, bool)> {
        let (mut likely, mut others) = (0, 0);
        self.each(|_, is_likely| *if is_likely { &mut likely } else { &mut others } += 1)?;
        let mut of_likely = ByLot::new(likely, most);
        let mut of_others = ByLot::new(others, most.saturating_sub(likely));
        let mut chosen = Vec::new();
        self.each(|chunk, is_likely| {
            let lot = if is_likely { &mut of_likely } else { &mut of_others };
            if lot.draws() {
                chosen.push(chunk);
            }
        })?;
        let are_all = chosen.len() as u64 == likely + others;
        Ok((chosen, are_all))
    }

    fn each(&self, mut tell: impl FnMut(u64, bool)) -> Result<()> {
        let end = self.leaves.size_bytes().div_ceil(CHUNK_BYTES);
        let (mut at, mut marked) = (0, None);
        while at < end {
            let recorded = self.source.next_present(at..end)?;
            let Some(chunk) = recorded.into_iter().chain(self.leaves.next(at)).min() else { break };
            if marked.is_none_or(|marked| marked < chunk) {
                marked = Some(self.marked.next_present(chunk..end)?.unwrap_or(u64::MAX));
            }
            tell(chunk, marked == Some(chunk) || recorded != Some(chunk));
            at = chunk + 1;
        }
        Ok(())
    }
}

/// Draws about so many of those that come, one of each few by lot; or none at all, or all.
struct ByLot {
    /// One of so many; 0: none.
    of: u64,
    /// Which of them.
    lot: u64,
    at: u64,
}

impl ByLot {
    fn new(count: u64, most: u64) -> Self {
        let of = if most == 0 { 0 } else { count.div_ceil(most).max(1) };
        let mut new = Self { of, lot: 0, at: 0 };
        new.draw_lot();
        new
    }

    fn draw_lot(&mut self) {
        if self.of > 1 {
            self.lot = getrandom::u64().expect("the kernel's random source answers") % self.of;
        }
    }

    fn draws(&mut self) -> bool {
        if self.of == 0 {
            return false;
        }
        let is_drawn = self.at == self.lot;
        self.at += 1;
        if self.at == self.of {
            self.at = 0;
            self.draw_lot();
        }
        is_drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(count: u64, most: u64) -> Vec<u64> {
        let mut lot = ByLot::new(count, most);
        (0..count).filter(|_| lot.draws()).collect()
    }

    #[test]
    fn all_are_drawn_where_they_are_few_enough() {
        for count in [0, 1, 7, 100] {
            assert_eq!(drawn(count, count).len() as u64, count);
            assert_eq!(drawn(count, count + 5).len() as u64, count);
            assert!(drawn(count, 0).is_empty());
        }
    }

    #[test]
    fn each_is_drawn_in_time_and_never_more_than_wanted() {
        let mut seen = [0; 100];
        for _ in 0..400 {
            let drawn = drawn(100, 9);
            assert!((8..=9).contains(&drawn.len()), "{drawn:?}");
            drawn.iter().for_each(|at| seen[*at as usize] += 1);
        }
        // One in twelve each time: (11 / 12) ^ 400 is 8e-16.
        assert!(seen.iter().all(|times| *times > 0), "{seen:?}");
    }

    #[test]
    fn what_is_read_grows_with_what_was_carried() {
        assert_eq!(chunks_for(0), 2048);
        assert_eq!(chunks_for(1 << 30), 2048);
        assert_eq!(chunks_for(1 << 40), 4 << 19);
        assert_eq!(chunks_for(u64::MAX), u64::MAX / CHUNK_BYTES * 4);
    }
}
