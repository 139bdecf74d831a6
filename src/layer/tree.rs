//! The map's pages: three levels under the superblock's 128 roots, each page vouched for by its parent's reference.
//!
//! The cache is keyed by tree, number and reference, so a page read through an old root can never be taken for its successor;
//! which chunks of a GiB are present, by the number of the roots that was learnt through.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use quick_cache::sync::Cache;

use super::bytes::{Entry, PAGE_LEN, Page, PageRef};
use super::error::{LayerError, Result, no_space_or};
use super::overlay::Overlay;
use super::store::Store;
use crate::crypto::LayerKeys;
use crate::ids::LayerId;
use crate::units::{CHUNK_SECTORS, ChunkNo};

/// What is kept of the maps of all layers of a process, bounded.
pub struct PageCache {
    /// By tree, number and reference.
    pages: Cache<(u64, u64, PageRef), Arc<Page>>,
    /// By roots and GiB. A chain may have a thousand layers, most of which have nothing of a chunk: to learn that from two pages
    /// each would push all other pages out.
    presence: Cache<(u64, u64), Presence>,
}

/// For each page kept the presence of so many GiB, each of which takes a hundredth of its room.
const PRESENCE_A_PAGE: usize = 8;

impl PageCache {
    /// One of at most so many pages.
    pub fn new(pages_max: usize) -> Self {
        Self { pages: Cache::new(pages_max), presence: Cache::new(pages_max * PRESENCE_A_PAGE) }
    }

    /// Pages it holds now.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }
}

/// A bit for each chunk of a GiB: whether anything may be recorded of it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Presence([u64; 8]);

impl Presence {
    const NONE: Self = Self([0; 8]);
    const ALL: Self = Self([u64::MAX; 8]);

    /// Where there is no page.
    fn of_all(page_ref: PageRef) -> Self {
        if page_ref == PageRef::ABSENT { Self::NONE } else { Self::ALL }
    }

    /// Of the chunks below these references.
    fn of(page: &Page) -> Self {
        let mut bits = [0; 8];
        for chunk in (0..512).filter(|chunk| page.page_ref(*chunk) != PageRef::ABSENT) {
            bits[chunk / 64] |= 1 << (chunk % 64);
        }
        Self(bits)
    }

    fn has(&self, chunk: usize) -> bool {
        self.0[chunk / 64] >> (chunk % 64) & 1 != 0
    }

    /// The first that is present, from `at` on.
    fn next(&self, at: usize) -> Option<usize> {
        let first = self.0[at / 64] & u64::MAX << (at % 64);
        if first != 0 {
            return Some(at / 64 * 64 + first.trailing_zeros() as usize);
        }
        let word = (at / 64 + 1..8).find(|word| self.0[*word] != 0)?;
        Some(word * 64 + self.0[word].trailing_zeros() as usize)
    }
}

/// The roots, 512 GiB each.
pub type Top = [PageRef; 128];

/// Roots, with a number that no others of the process have.
struct Roots {
    top: Top,
    number: u64,
}

impl Roots {
    fn new(top: Top) -> Self {
        Self { top, number: unique_number() }
    }
}

/// One that nothing else in this process has.
fn unique_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Bytes between two pages: each has two places.
const PAGE_STRIDE: u64 = 2 * PAGE_LEN as u64;
/// First number of the pages that cover 1 GiB.
const GIB_PAGES: u64 = 128;
/// First number of the leaves.
const LEAVES: u64 = GIB_PAGES + (1 << 16);
/// How often a page that fails its check is looked for again from the roots, which a checkpoint may have moved.
const TRIES: usize = 4;

/// A chunk's entries as the pages have them.
#[derive(Clone)]
pub enum Leaf {
    /// All the same.
    Uniform(Entry),
    /// A page of them.
    Page(Arc<Page>),
}

impl Leaf {
    /// One sector's entry.
    pub fn entry(&self, index: usize) -> Entry {
        match self {
            Self::Uniform(entry) => *entry,
            Self::Page(page) => page.entries()[index],
        }
    }

    /// Whether any sector is in a slot.
    pub fn has_data(&self) -> bool {
        match self {
            Self::Uniform(entry) => entry.slot().is_some(),
            Self::Page(page) => page.entries().iter().any(|entry| entry.slot().is_some()),
        }
    }
}

/// What [`Tree::step`] finds.
pub enum Step {
    /// All sectors are the same, and none is in a slot.
    Same,
    /// There is a page of entries.
    Entries,
    /// A page on the way can't be read, or is not what its parent vouches for.
    Lost(LayerError),
}

/// New roots, and the pages below the old ones that are not below these.
pub struct Written {
    /// The roots.
    pub top: Top,
    replaced: Vec<(u64, PageRef)>,
}

/// The pages of one layer.
pub struct Tree {
    layer: LayerId,
    /// Of the disk.
    sectors: u64,
    map: Arc<dyn Store>,
    keys: Arc<LayerKeys>,
    cache: Arc<PageCache>,
    /// Its number in the cache, and whether the cache may have any of its pages.
    number: u64,
    is_cached: AtomicBool,
    roots: ArcSwap<Roots>,
}

/// What nobody will ask for again makes room at once: most layers of a long-lived process go with a fold.
impl Drop for Tree {
    fn drop(&mut self) {
        self.forget();
    }
}

fn page_offset(n: u64, place: u8) -> u64 {
    n * PAGE_STRIDE + u64::from(place) * PAGE_LEN as u64
}

/// The chunks of which a page says something.
fn covered_by(n: u64) -> Range<u64> {
    let (at, shift) = match n {
        0..GIB_PAGES => (n, 18),
        GIB_PAGES..LEAVES => (n - GIB_PAGES, 9),
        _ => (n - LEAVES, 0),
    };
    at << shift..(at + 1) << shift
}

/// The indices that lead to a chunk: root, in its page, in the 1 GiB page.
fn path(chunk: ChunkNo) -> (usize, usize, usize) {
    ((chunk.0 >> 18) as usize, (chunk.0 >> 9 & 511) as usize, (chunk.0 & 511) as usize)
}

impl Tree {
    /// The tree of a layer below these roots.
    pub fn new(
        (layer, sectors): (LayerId, u64),
        map: Arc<dyn Store>,
        keys: Arc<LayerKeys>,
        cache: Arc<PageCache>,
        top: Top,
    ) -> Self {
        let (number, is_cached) = (unique_number(), AtomicBool::new(false));
        Self {
            layer,
            sectors,
            map,
            keys,
            cache,
            number,
            is_cached,
            roots: ArcSwap::from_pointee(Roots::new(top)),
        }
    }

    /// New roots, once what they refer to is durable.
    pub fn publish(&self, top: Top) {
        self.roots.store(Arc::new(Roots::new(top)));
    }

    /// Drops its pages from the cache.
    pub fn forget(&self) {
        if self.is_cached.load(Ordering::Relaxed) {
            self.cache.pages.retain(|(tree, ..), _| *tree != self.number);
        }
    }

    /// To follow the publishing of new roots: what nobody will ask for again, but who took the old ones just before, makes room.
    pub fn forget_replaced(&self, written: &Written) {
        for (n, old) in &written.replaced {
            self.cache.pages.remove(&(self.number, *n, *old));
        }
    }

    /// A chunk's page is likely asked for soon.
    pub fn expect(&self, chunk: ChunkNo) {
        self.map.expect(page_offset(LEAVES + chunk.0, 0), PAGE_STRIDE);
    }

    fn load(&self, n: u64, page_ref: PageRef) -> Result<Arc<Page>> {
        if let Some(page) = self.cache.pages.get(&(self.number, n, page_ref)) {
            return Ok(page);
        }
        let mut page = Page::boxed();
        let offset = page_offset(n, page_ref.place());
        let mut read = || {
            self.map.read_at(page.bytes_mut(), offset).map_err(LayerError::io("reading the map"))?;
            Ok::<_, LayerError>(
                page_ref.vouches(&self.keys, &page, n) && (n < LEAVES || page.is_valid_leaf()),
            )
        };
        let mut is_right = read()?;
        if !is_right {
            // What the system keeps of it may be what is wrong: the device is asked before a page is damaged, or lost.
            let _ = self.map.drop_cached(offset, PAGE_LEN as u64);
            is_right = read()?;
        }
        if !is_right {
            let chunks = covered_by(n);
            let (first, end) = (chunks.start * CHUNK_SECTORS, chunks.end * CHUNK_SECTORS);
            let last = end.min(self.sectors).saturating_sub(1);
            return Err(LayerError::DamagedPage { layer: self.layer, page: n, first, last });
        }
        let page: Arc<Page> = Arc::from(page);
        self.keep(n, page_ref, page.clone());
        Ok(page)
    }

    fn keep(&self, n: u64, page_ref: PageRef, page: Arc<Page>) {
        self.cache.pages.insert((self.number, n, page_ref), page);
        if !self.is_cached.load(Ordering::Relaxed) {
            self.is_cached.store(true, Ordering::Relaxed);
        }
    }

    fn leaf_below(&self, top: &Top, chunk: ChunkNo) -> Result<Leaf> {
        let (root, mid, low) = path(chunk);
        let mut page_ref = top[root];
        for (n, index) in [(root as u64, mid), (GIB_PAGES + (chunk.0 >> 9), low)] {
            if !page_ref.exists() {
                return Ok(Leaf::Uniform(page_ref.uniform()));
            }
            page_ref = self.load(n, page_ref)?.page_ref(index);
        }
        if !page_ref.exists() {
            return Ok(Leaf::Uniform(page_ref.uniform()));
        }
        Ok(Leaf::Page(self.load(LEAVES + chunk.0, page_ref)?))
    }

    /// A chunk's entries.
    pub fn leaf(&self, chunk: ChunkNo) -> Result<Leaf> {
        self.retry(|roots| self.leaf_below(&roots.top, chunk))
    }

    /// Whether anything may be recorded of a chunk: false only where it is uniformly absent.
    pub fn may_have(&self, chunk: ChunkNo) -> Result<bool> {
        self.retry(|roots| Ok(self.presence(roots, chunk.0 >> 9, true)?.has((chunk.0 & 511) as usize)))
    }

    /// Of a GiB; from its page only where that is not known yet. `keep_none`: also that it has nothing is kept.
    fn presence(&self, roots: &Roots, gib: u64, keep_none: bool) -> Result<Presence> {
        let root = roots.top[(gib >> 9) as usize];
        if !root.exists() {
            return Ok(Presence::of_all(root));
        }
        if let Some(known) = self.cache.presence.get(&(roots.number, gib)) {
            return Ok(known);
        }
        let presence = self.presence_by_pages(&roots.top, gib)?;
        if keep_none || presence != Presence::NONE {
            self.cache.presence.insert((roots.number, gib), presence);
        }
        Ok(presence)
    }

    fn presence_by_pages(&self, top: &Top, gib: u64) -> Result<Presence> {
        let (root, mid) = ((gib >> 9) as usize, (gib & 511) as usize);
        let page_ref = self.load(root as u64, top[root])?.page_ref(mid);
        match page_ref.exists() {
            true => Ok(Presence::of(self.load(GIB_PAGES + gib, page_ref)?.as_ref())),
            false => Ok(Presence::of_all(page_ref)),
        }
    }

    /// A page that fails its check is looked for again from the roots, since two checkpoints may have passed since they
    /// were read; only what fails every time is damage.
    fn retry<T>(&self, ask: impl Fn(&Roots) -> Result<T>) -> Result<T> {
        let mut last = ask(&self.roots.load());
        for _ in 1..TRIES {
            match &last {
                Err(e) if e.is_corruption() => last = ask(&self.roots.load()),
                _ => break,
            }
        }
        last
    }

    /// The first chunk in `range` whose entries are not uniformly absent, by the pages.
    pub fn next_present(&self, range: Range<u64>) -> Result<Option<u64>> {
        self.retry(|roots| self.next_present_below(roots, range.clone()))
    }

    fn next_present_below(&self, roots: &Roots, range: Range<u64>) -> Result<Option<u64>> {
        let mut at = range.start;
        while at < range.end {
            if roots.top[(at >> 18) as usize] == PageRef::ABSENT {
                at = (at | ((1 << 18) - 1)) + 1;
                continue;
            }
            // A walk over a large disk would fill the cache with what is not there.
            match self.presence(roots, at >> 9, false)?.next((at & 511) as usize) {
                Some(found) => return Ok(Some(at & !511 | found as u64).filter(|found| *found < range.end)),
                None => at = (at | 511) + 1,
            }
        }
        Ok(None)
    }

    /// What the pages say of a chunk, and before which chunk that ends; for checks, which go on past damage.
    pub fn step(&self, chunk: ChunkNo) -> (Step, u64) {
        let (root, mid, low) = path(chunk);
        let mut page_ref = self.roots.load().top[root];
        let inner = [(root as u64, mid, (1u64 << 18) - 1), (GIB_PAGES + (chunk.0 >> 9), low, 511)];
        for (n, index, within) in inner {
            if !page_ref.exists() {
                return (Step::Same, (chunk.0 | within) + 1);
            }
            match self.load(n, page_ref) {
                Ok(page) => page_ref = page.page_ref(index),
                Err(e) => return (Step::Lost(e), (chunk.0 | within) + 1),
            }
        }
        let step = match page_ref.exists().then(|| self.load(LEAVES + chunk.0, page_ref)) {
            None => Step::Same,
            Some(Ok(_)) => Step::Entries,
            Some(Err(e)) => Step::Lost(e),
        };
        (step, chunk.0 + 1)
    }

    /// Writes `page` as number `n` to the place `old` does not use.
    fn write_page(&self, n: u64, old: PageRef, page: Box<Page>) -> Result<PageRef> {
        let place = if old.exists() { 1 - old.place() } else { 0 };
        let page_ref = PageRef::new(&self.keys, &page, n, place);
        // Nothing refers to what was written so far: after a full disk the checkpoint can be begun again.
        let written = self.map.write_at(page_bytes(&page), page_offset(n, place));
        written.map_err(|e| no_space_or(e, "writing the map"))?;
        self.keep(n, page_ref, Arc::from(page));
        Ok(page_ref)
    }

    /// An inner page to change; `None` where it is lost.
    fn inner(&self, n: u64, page_ref: PageRef, lose: bool) -> Result<Option<Box<Page>>> {
        match page_ref.exists() {
            true => unless_lost(self.load(n, page_ref), lose),
            false => Ok(Some(Page::uniform_refs(page_ref))),
        }
    }

    /// Writes the pages that the frozen changes touch, leaves first, each to its other place; the new roots.
    /// Nothing refers to them until a superblock does. A page that is damaged is an error; where recovery meets it (`lose`)
    /// its span is [lost](PageRef::LOST): it is unreadable already, and the rest of the disk goes on.
    pub fn write_frozen(&self, overlay: &Overlay, lose: bool) -> Result<Written> {
        let mut top = self.roots.load().top;
        let mut replaced = Vec::new();
        let mut replace = |n, old: PageRef| {
            if old.exists() {
                replaced.push((n, old));
            }
        };
        let chunks = overlay.frozen_chunks();
        for of_root in chunks.chunk_by(|a, b| a.0 >> 18 == b.0 >> 18) {
            let root = (of_root[0].0 >> 18) as usize;
            let Some(mut mid_page) = self.inner(root as u64, top[root], lose)? else {
                top[root] = PageRef::LOST;
                continue;
            };
            for of_gib in of_root.chunk_by(|a, b| a.0 >> 9 == b.0 >> 9) {
                let (_, mid, _) = path(of_gib[0]);
                let n = GIB_PAGES + (of_gib[0].0 >> 9);
                let old = mid_page.page_ref(mid);
                let Some(mut low_page) = self.inner(n, old, lose)? else {
                    mid_page.set_page_ref(mid, PageRef::LOST);
                    continue;
                };
                for chunk in of_gib {
                    let low = path(*chunk).2;
                    let old = low_page.page_ref(low);
                    low_page.set_page_ref(low, self.write_leaf(overlay, *chunk, old, lose)?);
                    replace(LEAVES + chunk.0, old);
                }
                let new = match low_page.uniform_page_ref() {
                    Some(uniform) => uniform,
                    None => self.write_page(n, old, low_page)?,
                };
                mid_page.set_page_ref(mid, new);
                replace(n, old);
            }
            replace(root as u64, top[root]);
            top[root] = match mid_page.uniform_page_ref() {
                Some(uniform) => uniform,
                None => self.write_page(root as u64, top[root], mid_page)?,
            };
        }
        Ok(Written { top, replaced })
    }

    fn write_leaf(&self, overlay: &Overlay, chunk: ChunkNo, old: PageRef, lose: bool) -> Result<PageRef> {
        let n = LEAVES + chunk.0;
        let covered = overlay.with_frozen(chunk, |d| d.covers_all()).unwrap_or(false);
        let mut leaf = match old.exists() && !covered {
            true => match unless_lost(self.load(n, old), lose)? {
                Some(page) => page,
                None => return Ok(PageRef::LOST),
            },
            false => Page::uniform(old.uniform()),
        };
        overlay.with_frozen(chunk, |d| d.apply_to(&mut leaf));
        match leaf.uniform_entry() {
            Some(uniform) => Ok(uniform),
            None => self.write_page(n, old, leaf),
        }
    }
}

/// A copy of a page to change, or `None` with a line in the log where it is damaged and may be lost.
fn unless_lost(loaded: Result<Arc<Page>>, lose: bool) -> Result<Option<Box<Page>>> {
    match loaded {
        Ok(page) => Ok(Some(Box::new(page.as_ref().clone()))),
        Err(error) if lose && error.is_corruption() => {
            tracing::error!(%error, "entries below a damaged page are lost");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn page_bytes(page: &Page) -> &[u8] {
    zerocopy::IntoBytes::as_bytes(page)
}
