//! The sealed layers under a disk, resolved: for each chunk, which layer and slot hold each sector.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::error::Result;
use crate::layer::{Entry, Layer, State};
use crate::units::{CHUNK_SECTORS, ChunkNo, SlotNo};

/// Chunks whose resolution is kept: 16 bytes a sector, 32 MiB, 8 GiB of disk (rule 13).
const RESOLVED_CHUNKS_MAX: usize = 4096;

/// Where a sector's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: it is zero.
    Zero,
    /// In a slot of the layer of this number in the chain, with this tag.
    Slot {
        /// 0 is the oldest layer.
        layer: u32,
        /// Its slot.
        slot: SlotNo,
        /// Its tag.
        tag: u64,
    },
}

/// A chunk's sectors through the lowest `depth` layers of a chain.
struct Resolved {
    depth: u32,
    /// No layer has data in it, not even data that one above hides.
    empty: bool,
    sources: Box<[Packed; CHUNK_SECTORS as usize]>,
}

/// 16 bytes: tag, slot and layer. Layer 0xff_ffff: zero.
#[derive(Clone, Copy)]
struct Packed {
    tag: u64,
    place: u64,
}

const SLOT_BITS: u32 = 40;
const NO_LAYER: u64 = u64::MAX >> SLOT_BITS;

impl Packed {
    const ZERO: Self = Self { tag: 0, place: NO_LAYER << SLOT_BITS };

    fn source(self) -> Source {
        match self.place >> SLOT_BITS {
            NO_LAYER => Source::Zero,
            layer => Source::Slot {
                layer: layer as u32,
                slot: SlotNo(self.place & ((1 << SLOT_BITS) - 1)),
                tag: self.tag,
            },
        }
    }
}

/// Sealed layers, oldest first.
#[derive(Clone)]
pub struct Chain {
    layers: Vec<Arc<Layer>>,
    resolved: Arc<Cache<u64, Arc<Resolved>>>,
}

impl Chain {
    /// A chain of sealed layers, oldest first; each the parent of the next.
    pub fn new(layers: Vec<Arc<Layer>>) -> Self {
        Self { layers, resolved: Arc::new(Cache::new(RESOLVED_CHUNKS_MAX)) }
    }

    /// The chain with one more layer on top; what was resolved is kept.
    pub fn with(&self, layer: Arc<Layer>) -> Self {
        let mut layers = self.layers.clone();
        layers.push(layer);
        Self { layers, resolved: self.resolved.clone() }
    }

    /// Its layers, oldest first.
    pub fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// Where the sectors of a chunk are, from `index` on.
    pub fn sources(&self, chunk: ChunkNo, index: usize, out: &mut [Source]) -> Result<()> {
        if self.layers.is_empty() {
            out.fill(Source::Zero);
            return Ok(());
        }
        let resolved = self.resolve(chunk)?;
        out.iter_mut().zip(&resolved.sources[index..]).for_each(|(o, p)| *o = p.source());
        Ok(())
    }

    /// Whether some layer has data in the chunk, be it hidden by a zero of one above: that one may be folded away, and then
    /// only what was recorded on top hides the data.
    pub fn has_data(&self, chunk: ChunkNo) -> Result<bool> {
        if self.layers.is_empty() {
            return Ok(false);
        }
        // Absence is cheap to learn, and a discard asks it of every chunk of a disk.
        for layer in &self.layers {
            if layer.records(chunk)? {
                return Ok(!self.resolve(chunk)?.empty);
            }
        }
        Ok(false)
    }

    /// The first chunk in `range` of which any layer records something.
    pub fn next_present(&self, range: std::ops::Range<u64>) -> Result<Option<u64>> {
        let mut first: Option<u64> = None;
        for layer in &self.layers {
            let found = layer.next_present(range.start..first.unwrap_or(range.end))?;
            first = found.or(first);
        }
        Ok(first)
    }

    fn resolve(&self, chunk: ChunkNo) -> Result<Arc<Resolved>> {
        let depth = self.layers.len() as u32;
        let known = self.resolved.get(&chunk.0);
        if let Some(known) = known.as_ref().filter(|k| k.depth == depth) {
            return Ok(known.clone());
        }
        // Layers are only ever put on top: what was resolved through fewer holds for those.
        let base = known.filter(|k| k.depth < depth);
        let from = base.as_ref().map_or(0, |b| b.depth as usize);
        let mut sources = match &base {
            Some(base) => base.sources.clone(),
            None => Box::new([Packed::ZERO; CHUNK_SECTORS as usize]),
        };
        let mut empty = base.is_none_or(|b| b.empty);
        for (number, layer) in self.layers.iter().enumerate().skip(from) {
            empty &= !overlay_layer(&mut sources, number as u64, layer, chunk)?;
        }
        let resolved = Arc::new(Resolved { depth, empty, sources });
        if self.resolved.peek(&chunk.0).is_none_or(|k| k.depth < depth) {
            self.resolved.insert(chunk.0, resolved.clone());
        }
        Ok(resolved)
    }
}

/// What a layer records of a chunk, if anything; past its end, where a layer above may be larger, nothing.
pub fn recorded(layer: &Layer, chunk: ChunkNo) -> Result<Option<[Entry; CHUNK_SECTORS as usize]>> {
    let first = chunk.first_sector().0;
    if first >= layer.sectors() || !layer.records(chunk)? {
        return Ok(None);
    }
    let within = (layer.sectors() - first).min(CHUNK_SECTORS) as usize;
    let mut entries = [Entry::ABSENT; CHUNK_SECTORS as usize];
    layer.entries(chunk, 0, &mut entries[..within])?;
    Ok(Some(entries))
}

/// Puts what a layer says of a chunk over what those below it say; whether it has data there.
fn overlay_layer(
    sources: &mut [Packed; CHUNK_SECTORS as usize],
    number: u64,
    layer: &Layer,
    chunk: ChunkNo,
) -> Result<bool> {
    let Some(entries) = recorded(layer, chunk)? else { return Ok(false) };
    let mut any = false;
    for (source, entry) in sources.iter_mut().zip(&entries) {
        match entry.state() {
            State::Absent => {}
            State::Zero => *source = Packed::ZERO,
            State::Data(slot) => {
                any = true;
                *source = Packed { tag: entry.tag(), place: number << SLOT_BITS | slot.0 };
            }
        }
    }
    Ok(any)
}
