//! Entries changed since the last checkpoint: those of the log's live half (*current*) and those of the half
//! being checkpointed (*frozen*). What is here goes before what the map's pages say.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;

use super::bytes::{Entry, Page};
use crate::units::{CHUNK_SECTORS, ChunkNo};

const SHARDS: usize = 64;
/// A chunk with more changed entries than this holds an array of all 512.
const SPARSE_MAX: usize = 64;

/// The changed entries of one chunk.
#[derive(Clone, Default)]
pub struct ChunkDelta {
    /// What all sectors of the chunk became by a discard, before the entries below.
    base: Option<Entry>,
    changed: Changed,
}

/// Small: where a disk is written all over there are tens of thousands, each of one entry.
#[derive(Clone)]
enum Changed {
    /// Sorted by index.
    Sparse(Vec<(u16, Entry)>),
    Dense(Box<Dense>),
}

#[derive(Clone)]
struct Dense {
    present: [u64; 8],
    entries: [Entry; CHUNK_SECTORS as usize],
}

impl Dense {
    fn has(&self, index: usize) -> bool {
        self.present[index / 64] >> (index % 64) & 1 != 0
    }

    fn set(&mut self, index: usize, entry: Entry) {
        self.present[index / 64] |= 1 << (index % 64);
        self.entries[index] = entry;
    }
}

impl Default for Changed {
    fn default() -> Self {
        Self::Sparse(Vec::new())
    }
}

impl ChunkDelta {
    /// The entry of a sector, if it changed.
    pub fn find(&self, index: usize) -> Option<Entry> {
        let found = match &self.changed {
            Changed::Sparse(list) => {
                list.binary_search_by_key(&(index as u16), |x| x.0).ok().map(|at| list[at].1)
            }
            Changed::Dense(dense) => dense.has(index).then(|| dense.entries[index]),
        };
        found.or(self.base)
    }

    fn set(&mut self, index: usize, entry: Entry) {
        if let Changed::Sparse(list) = &mut self.changed {
            match list.binary_search_by_key(&(index as u16), |x| x.0) {
                Ok(at) => list[at].1 = entry,
                Err(at) if list.len() < SPARSE_MAX => {
                    // Most chunks of a disk that is written all over have one.
                    list.reserve_exact(usize::from(list.is_empty()));
                    list.insert(at, (index as u16, entry));
                }
                Err(_) => self.widen(),
            }
        }
        if let Changed::Dense(dense) = &mut self.changed {
            dense.set(index, entry);
        }
    }

    fn widen(&mut self) {
        let mut dense = Box::new(Dense { present: [0; 8], entries: [Entry::ABSENT; CHUNK_SECTORS as usize] });
        if let Changed::Sparse(list) = &self.changed {
            list.iter().for_each(|(index, entry)| dense.set(usize::from(*index), *entry));
        }
        self.changed = Changed::Dense(dense);
    }

    fn set_all(&mut self, entry: Entry) {
        *self = Self { base: Some(entry), changed: Changed::default() };
    }

    /// Applies the changes to a leaf.
    pub fn apply_to(&self, leaf: &mut Page) {
        let entries = leaf.entries_mut();
        if let Some(base) = self.base {
            entries.fill(base);
        }
        match &self.changed {
            Changed::Sparse(list) => list.iter().for_each(|(i, e)| entries[*i as usize] = *e),
            Changed::Dense(dense) => {
                for (i, entry) in entries.iter_mut().enumerate().filter(|(i, _)| dense.has(*i)) {
                    *entry = dense.entries[i];
                }
            }
        }
    }

    /// Whether every sector of the chunk is decided here, so that the page need not be read.
    pub fn covers_all(&self) -> bool {
        self.base.is_some()
    }
}

#[derive(Default)]
struct Shard {
    current: HashMap<u64, ChunkDelta>,
    frozen: HashMap<u64, ChunkDelta>,
}

impl Shard {
    fn find(&self, chunk: ChunkNo, index: usize) -> Option<Entry> {
        let current = self.current.get(&chunk.0).and_then(|d| d.find(index));
        current.or_else(|| self.frozen.get(&chunk.0).and_then(|d| d.find(index)))
    }
}

/// Which entries [`Overlay::lookup`] has found.
#[derive(Default)]
pub struct Known {
    /// All that were asked for.
    pub all: bool,
    bits: [u64; 8],
}

impl Known {
    /// Whether the i-th was found.
    pub fn has(&self, i: usize) -> bool {
        self.bits[i / 64] >> (i % 64) & 1 != 0
    }
}

/// All changed entries of a layer. Changes are made under the log's lock; readers take one shard's.
pub struct Overlay {
    shards: Vec<RwLock<Shard>>,
    /// Chunks of the live half.
    current: AtomicUsize,
}

impl Overlay {
    /// Nothing changed.
    pub fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect(), current: AtomicUsize::new(0) }
    }

    fn shard(&self, chunk: ChunkNo) -> &RwLock<Shard> {
        &self.shards[chunk.0 as usize % SHARDS]
    }

    /// Fills `out` for the sectors from `index` on that are here; the others must come from the page.
    pub fn lookup(&self, chunk: ChunkNo, index: usize, out: &mut [Entry]) -> Known {
        let mut known = Known::default();
        let shard = self.shard(chunk).read();
        let (current, frozen) = (shard.current.get(&chunk.0), shard.frozen.get(&chunk.0));
        if current.is_none() && frozen.is_none() {
            return known;
        }
        known.all = true;
        for (i, entry) in out.iter_mut().enumerate() {
            let found = current.and_then(|d| d.find(index + i));
            match found.or_else(|| frozen.and_then(|d| d.find(index + i))) {
                Some(found) => {
                    *entry = found;
                    known.bits[i / 64] |= 1 << (i % 64);
                }
                None => known.all = false,
            }
        }
        known
    }

    /// One sector's entry, if it changed.
    pub fn find(&self, chunk: ChunkNo, index: usize) -> Option<Entry> {
        self.shard(chunk).read().find(chunk, index)
    }

    /// Whether anything of the chunk changed.
    pub fn touches(&self, chunk: ChunkNo) -> bool {
        let shard = self.shard(chunk).read();
        shard.current.contains_key(&chunk.0) || shard.frozen.contains_key(&chunk.0)
    }

    /// Installs entries from `index` on; tells `superseded` what each replaces, `None` where that is in the page.
    pub fn install(
        &self,
        chunk: ChunkNo,
        index: usize,
        entries: impl ExactSizeIterator<Item = Entry>,
        mut superseded: impl FnMut(usize, Option<Entry>),
    ) {
        let mut shard = self.shard(chunk).write();
        let Shard { current, frozen } = &mut *shard;
        let before = frozen.get(&chunk.0);
        let delta = current.entry(chunk.0).or_insert_with(|| {
            self.current.fetch_add(1, Ordering::Relaxed);
            ChunkDelta::default()
        });
        if entries.len() as u64 == CHUNK_SECTORS {
            let mut entries = entries.peekable();
            let first = *entries.peek().expect("512 entries");
            if first.slot().is_none() {
                let old: Vec<_> =
                    (0..CHUNK_SECTORS as usize).map(|i| delta.find(i).or_else(|| before?.find(i))).collect();
                old.into_iter().enumerate().for_each(|(i, e)| superseded(i, e));
                delta.set_all(first);
                entries.enumerate().filter(|(_, e)| *e != first).for_each(|(i, e)| delta.set(i, e));
                return;
            }
            for (i, entry) in entries.enumerate() {
                superseded(i, delta.find(i).or_else(|| before?.find(i)));
                delta.set(i, entry);
            }
            return;
        }
        for (i, entry) in entries.enumerate() {
            superseded(i, delta.find(index + i).or_else(|| before?.find(index + i)));
            delta.set(index + i, entry);
        }
    }

    /// The live half was closed: what changed becomes frozen. The frozen set must be empty.
    pub fn freeze(&self) {
        for shard in &self.shards {
            let mut shard = shard.write();
            assert!(shard.frozen.is_empty(), "what is frozen waits for its checkpoint");
            shard.frozen = std::mem::take(&mut shard.current);
        }
        self.current.store(0, Ordering::Relaxed);
    }

    /// Chunks that changed in the live half.
    pub fn current_chunks(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// The chunks that are frozen, ascending.
    pub fn frozen_chunks(&self) -> Vec<ChunkNo> {
        let mut chunks: Vec<_> = self
            .shards
            .iter()
            .flat_map(|s| s.read().frozen.keys().copied().collect::<Vec<_>>())
            .map(ChunkNo)
            .collect();
        chunks.sort_unstable();
        chunks
    }

    /// Runs `f` on a frozen chunk's changes.
    pub fn with_frozen<T>(&self, chunk: ChunkNo, f: impl FnOnce(&ChunkDelta) -> T) -> Option<T> {
        self.shard(chunk).read().frozen.get(&chunk.0).map(f)
    }

    /// The pages now say what was frozen.
    pub fn thaw(&self) {
        for shard in &self.shards {
            let old = std::mem::take(&mut shard.write().frozen);
            drop(old);
        }
    }

    /// The first chunk changed in `range`, current or frozen.
    pub fn first_in(&self, range: std::ops::Range<u64>) -> Option<u64> {
        // Whoever walks a disk asks for one chunk after the other.
        if range.start < range.end && self.touches(ChunkNo(range.start)) {
            return Some(range.start);
        }
        let first_of = |shard: &RwLock<Shard>| {
            let shard = shard.read();
            let chunks = shard.current.keys().chain(shard.frozen.keys());
            chunks.filter(|c| range.contains(c)).min().copied()
        };
        self.shards.iter().filter_map(first_of).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::SlotNo;

    fn entry(n: u64) -> Entry {
        Entry::data(SlotNo(n), n)
    }

    #[test]
    fn current_goes_before_frozen_and_both_before_the_page() {
        let overlay = Overlay::new();
        let chunk = ChunkNo(7);
        overlay.install(chunk, 5, [entry(1), entry(2)].into_iter(), |_, old| assert_eq!(old, None));
        assert_eq!(overlay.current_chunks(), 1);
        overlay.freeze();
        assert_eq!(overlay.current_chunks(), 0);
        let mut seen = Vec::new();
        overlay.install(chunk, 6, [entry(3), entry(4)].into_iter(), |i, old| seen.push((i, old)));
        assert_eq!(seen, [(0, Some(entry(2))), (1, None)]);
        let mut out = [Entry::ABSENT; 4];
        let known = overlay.lookup(chunk, 5, &mut out);
        assert_eq!((out[0], out[1], out[2]), (entry(1), entry(3), entry(4)));
        assert!(!known.all && known.has(2) && !known.has(3));
        overlay.thaw();
        assert_eq!(overlay.find(chunk, 5), None);
        assert_eq!(overlay.find(chunk, 6), Some(entry(3)));
    }

    #[test]
    fn a_whole_chunk_discard_hides_what_was_there_and_later_writes_show() {
        let overlay = Overlay::new();
        let chunk = ChunkNo(0);
        for i in 0..200 {
            overlay.install(chunk, i, [entry(i as u64)].into_iter(), |_, _| ());
        }
        let mut slots = 0;
        overlay
            .install(chunk, 0, [Entry::ZERO; 512].into_iter(), |_, old| slots += usize::from(old.is_some()));
        assert_eq!(slots, 200);
        overlay.install(chunk, 9, [entry(900)].into_iter(), |_, old| assert_eq!(old, Some(Entry::ZERO)));
        let mut leaf = Page::uniform(entry(5));
        overlay.freeze();
        overlay.with_frozen(chunk, |d| d.apply_to(&mut leaf)).unwrap();
        assert!(
            leaf.entries()
                .iter()
                .enumerate()
                .all(|(i, e)| *e == if i == 9 { entry(900) } else { Entry::ZERO })
        );
    }
}
