//! The sealed layers under a disk, resolved: for each chunk, which layer and slot hold each sector.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::error::Result;
use super::places::{Places, Source};
use crate::layer::Layer;
use crate::units::ChunkNo;

/// Chunks whose resolution is kept: 16 bytes a sector, 32 MiB, 8 GiB of disk (rule 13).
const RESOLVED_CHUNKS_MAX: usize = 4096;

/// A chunk's sectors through the lowest `depth` layers of a chain.
struct Resolved {
    depth: u32,
    /// No layer has data in it, not even data that one above hides.
    empty: bool,
    places: Places,
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
        self.resolve(chunk)?.places.fill(index, out);
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
        let from = base.as_ref().map_or(0, |b| b.depth);
        let mut places = base.as_ref().map_or(Places::ZERO, |b| b.places.clone());
        let mut empty = base.is_none_or(|b| b.empty);
        for (number, layer) in (from..depth).zip(&self.layers[from as usize..]) {
            empty &= !places.overlay(number, layer, chunk)?;
        }
        let resolved = Arc::new(Resolved { depth, empty, places });
        if self.resolved.peek(&chunk.0).is_none_or(|k| k.depth < depth) {
            self.resolved.insert(chunk.0, resolved.clone());
        }
        Ok(resolved)
    }
}
