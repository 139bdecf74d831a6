//! What a bookmark leaves unsaid is looked for in the source's bytes; so is what a base lacks that was made so and not wholly tried.
//!
//! Which sectors changed is otherwise said by the very maps that the source is read by. Of a bookmark no map bears out that it names
//! all of them, and the rest of the proof looks only where the plan or the copy says something. So the source is read, where it
//! lies, and each chunk must have the leaf that the copy has; of a chunk that has not, the bytes are compared. All chunks are read where they are few, or
//! few beside what was carried, else so many of them, by lot.
//!
//! Those that the bookmark's layer records come first, and those that the source records nowhere: a sector that is missed is
//! most likely there, since a fold changes no other layer.
//!
//! A chunk of another leaf, or with damage in the source, is compared sector by sector: damage excuses itself alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::ahead::Ahead;
use super::error::Result;
use crate::crypto::ProofKey;
use crate::layer::Layer;
use crate::sys::page_buffer::PageBuffer;
use crate::units::{CHUNK_BYTES, ChunkNo, SECTOR_LEN, SectorNo};
use crate::volume::proof::Leaves;
use crate::volume::{Chain, HostError, Stack, Stop, VolumeError, each_chunk};

/// So many chunks are read in any case (4 GiB),
const CHUNKS_ALWAYS: u64 = (4 << 30) / CHUNK_BYTES;
/// or so many times as many bytes as a copy carried.
const TIMES_CARRIED: u64 = 4;
/// So many candidates are looked at before the caller is asked whether to go on.
const ASK_EACH: u64 = 1 << 14;

/// How many chunks are read for a copy that carried so many bytes.
pub fn chunks_for(carried_bytes: u64) -> u64 {
    CHUNKS_ALWAYS.max((carried_bytes / CHUNK_BYTES).saturating_mul(TIMES_CARRIED))
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// What was read is the same; all of it, or not.
    Equal {
        /// All of the source was read.
        all: bool,
    },
    /// This sector is another in the copy.
    Differs(SectorNo),
}

/// A source, and a copy of it.
pub struct Look<'a> {
    /// The source's disk.
    pub source: &'a Stack,
    /// The copy's.
    pub copy: &'a Stack,
    /// The layer of the source of whose bookmarks it is known what changed.
    pub marked: Option<&'a Arc<Layer>>,
    /// What the content of both is known by.
    pub key: &'a ProofKey,
    /// The copy's leaves.
    pub leaves: &'a Leaves,
}

impl Look<'_> {
    /// Reads the source, up to `most` chunks, and compares. `watch` is told the bytes that were read, and ends it by an error.
    pub fn take(&self, most: u64, mut watch: impl FnMut(u64) -> Result<()>) -> Result<Found> {
        let (chosen, are_all) = self.choose(most, || watch(0))?;
        let (read, is_damaged) = (AtomicU64::new(0), AtomicBool::new(false));
        let differs = Mutex::new(None::<SectorNo>);
        let next = |at| Ok(chosen.get(chosen.partition_point(|chunk| *chunk < at)).copied().map(ChunkNo));
        let work = |buffer: &mut Zeroizing<PageBuffer>, chunk: ChunkNo, _: &Stop| {
            if differs.lock().is_some() {
                return Ok(());
            }
            let len = (self.leaves.size_bytes() - chunk.first_sector().byte()).min(CHUNK_BYTES) as usize;
            match self.compare(chunk, &mut buffer[..len])? {
                Found::Equal { all } => {
                    read.fetch_add(len as u64, Ordering::Relaxed);
                    is_damaged.fetch_or(!all, Ordering::Relaxed);
                }
                Found::Differs(sector) => drop(differs.lock().get_or_insert(sector)),
            }
            Ok(())
        };
        let make = || Zeroizing::new(PageBuffer::new(CHUNK_BYTES as usize));
        each_chunk(next, make, work, || watch(read.load(Ordering::Relaxed)))?;
        Ok(match differs.into_inner() {
            Some(sector) => Found::Differs(sector),
            None => Found::Equal { all: are_all && !is_damaged.into_inner() },
        })
    }

    fn compare(&self, chunk: ChunkNo, buffer: &mut [u8]) -> Result<Found> {
        let first = chunk.first_sector();
        let words = match self.source.read_sectors(first, buffer) {
            Ok(()) => Some(self.key.words(first, buffer)),
            Err(error) if error.is_corruption() => None,
            Err(error) => return Err(error.into()),
        };
        if words == Some(self.leaves.leaf(chunk)) {
            return Ok(Found::Equal { all: true });
        }
        // By what the maps say now, and not by what is remembered of them: a fold may have come between.
        let anew = Stack { active: None, chain: Chain::new(self.source.chain.layers().to_vec()) };
        let mut all = true;
        for number in 0..(buffer.len() / SECTOR_LEN) as u64 {
            let sector = SectorNo(first.0 + number);
            match self.is_same(&anew, sector) {
                Ok(true) => {}
                Ok(false) => return Ok(Found::Differs(sector)),
                Err(error) if error.is_corruption() => {
                    // Whether what the copy has of its base is the source's nobody can say.
                    if std::mem::take(&mut all) {
                        tracing::warn!(%error, "source and copy can't be compared where the copy carries nothing of it");
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        // Of the same bytes it is the leaf that is another: the base's was.
        let is_of_others = all && words.is_some_and(|words| words != self.leaves.leaf(chunk));
        Ok(if is_of_others { Found::Differs(first) } else { Found::Equal { all } })
    }

    fn is_same(&self, source: &Stack, sector: SectorNo) -> Result<bool, VolumeError> {
        let mut bytes = [Zeroizing::new([0; SECTOR_LEN]), Zeroizing::new([0; SECTOR_LEN])];
        source.read_sectors(sector, &mut *bytes[0])?;
        self.copy.read_sectors(sector, &mut *bytes[1])?;
        Ok(bytes[0] == bytes[1])
    }

    /// So many chunks of which the source records anything, or the copy has a leaf, in order, and whether they are all.
    fn choose(&self, most: u64, mut watch: impl FnMut() -> Result<()>) -> Result<(Vec<u64>, bool)> {
        let (mut likely, mut others) = (0, 0);
        self.each(&mut watch, |_, is_likely| *if is_likely { &mut likely } else { &mut others } += 1)?;
        let mut of_likely = Lots::new(likely, most);
        let mut of_others = Lots::new(others, most.saturating_sub(likely));
        let mut chosen = Vec::new();
        let all_are_known = self.each(&mut watch, |chunk, is_likely| {
            let lots = if is_likely { &mut of_likely } else { &mut of_others };
            if lots.draw() {
                chosen.push(chunk);
            }
        })?;
        let are_all = all_are_known && chosen.len() as u64 == likely + others;
        Ok((chosen, are_all))
    }

    /// Each such chunk, and whether it is a likely one; false where damaged maps don't say which there are.
    fn each(&self, watch: &mut impl FnMut() -> Result<()>, mut tell: impl FnMut(u64, bool)) -> Result<bool> {
        let end = self.leaves.size_bytes().div_ceil(CHUNK_BYTES);
        let (mut source, mut marked) = (Ahead::default(), Ahead::default());
        let (mut at, mut told, mut are_known) = (0, 0, true);
        while at < end {
            let recorded = source.first(self.source.chain.layers().iter(), at, end);
            let recorded = or_none(recorded, &mut are_known)?;
            let Some(chunk) = recorded.into_iter().chain(self.leaves.next(at)).min() else { break };
            let in_marked = match self.marked {
                Some(layer) => or_none(marked.first(std::iter::once(layer), chunk, end), &mut are_known)?,
                None => None,
            };
            tell(chunk, in_marked == Some(chunk) || recorded != Some(chunk));
            at = chunk + 1;
            told += 1;
            if told % ASK_EACH == 0 {
                watch()?;
            }
        }
        Ok(are_known)
    }
}

/// What a map says; nothing where it is damaged.
fn or_none(found: Result<Option<u64>>, is_known: &mut bool) -> Result<Option<u64>> {
    match found {
        Err(super::CopyError::Host(HostError::Volume(error))) if error.is_corruption() => {
            *is_known = false;
            Ok(None)
        }
        found => found,
    }
}

/// Draws so many of those that come, each as likely as any other.
struct Lots {
    left: u64,
    wanted: u64,
    random: Vec<u64>,
}

impl Lots {
    fn new(count: u64, wanted: u64) -> Self {
        Self { left: count, wanted: wanted.min(count), random: Vec::new() }
    }

    /// Whether the next one is drawn. (Selection sampling: as likely as those that are wanted are among those that come.)
    fn draw(&mut self) -> bool {
        if self.wanted == 0 || self.left == 0 {
            return false;
        }
        let is_drawn = self.wanted == self.left || self.below(self.left) < self.wanted;
        self.left -= 1;
        self.wanted -= u64::from(is_drawn);
        is_drawn
    }

    fn below(&mut self, count: u64) -> u64 {
        if self.random.is_empty() {
            let mut bytes = [0; 4096];
            getrandom::fill(&mut bytes).expect("the kernel's random source answers");
            self.random.extend(bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)));
        }
        // Its bias is less than one in 2^32 for any disk.
        self.random.pop().expect("it was filled") % count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(count: u64, most: u64) -> Vec<u64> {
        let mut lots = Lots::new(count, most);
        (0..count).filter(|_| lots.draw()).collect()
    }

    #[test]
    fn as_many_are_drawn_as_there_are_or_are_wanted() {
        for (count, most) in [(0, 5), (7, 0), (7, 7), (7, 8), (2049, 2048), (5000, 2048), (100, 1)] {
            assert_eq!(drawn(count, most).len() as u64, count.min(most), "{most} of {count}");
        }
    }

    #[test]
    fn each_is_drawn_in_time() {
        let mut seen = [0; 100];
        for _ in 0..400 {
            drawn(100, 9).iter().for_each(|at| seen[*at as usize] += 1);
        }
        // (91 / 100) ^ 400 is 4e-17; 9 in 100 are 36.
        assert!(seen.iter().all(|times| (1..200).contains(times)), "{seen:?}");
    }

    #[test]
    fn what_is_read_grows_with_what_was_carried() {
        assert_eq!(chunks_for(0), 2048);
        assert_eq!(chunks_for(1 << 30), 2048);
        assert_eq!(chunks_for(1 << 40), 4 << 19);
        assert_eq!(chunks_for(u64::MAX), u64::MAX / CHUNK_BYTES * 4);
    }
}
