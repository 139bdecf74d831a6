//! What a copy has to carry, from maps alone: for each chunk, the newest version of each sector recorded since the base.

use std::sync::Arc;

use super::error::Result;
use crate::layer::{Layer, State};
use crate::units::{CHUNK_SECTORS, ChunkNo, SlotNo};
use crate::volume::{Chain, Source, recorded};

/// What a copy says of a sector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carried {
    /// Nothing: the base has it already, or nobody does.
    #[default]
    Nothing,
    /// It is zero now.
    Zero,
    /// Its bytes lie in a slot of this layer of [`Difference::layers`], with this tag.
    Data {
        /// Which layer.
        layer: u32,
        /// Its slot.
        slot: SlotNo,
        /// Its tag.
        tag: u64,
    },
}

/// All sectors of a chunk.
pub type Chunk = [Carried; CHUNK_SECTORS as usize];

/// The layers of the source above a base, and what is needed to see what they leave unsaid.
pub struct Difference {
    /// Oldest first.
    layers: Vec<Arc<Layer>>,
    chunks: u64,
    /// The base's disk; none: there is no base, and zeros need not be said.
    base: Option<Chain>,
    /// Source and base are compared where no layer of the source ends exactly at the base's point: a sector that was
    /// zero below and above it, and data at it, is recorded nowhere in the source.
    whole: Option<Chain>,
}

/// Sectors of each sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// To be shipped.
    pub data: u64,
    /// To be said to be zero.
    pub zero: u64,
}

impl Difference {
    /// What `layers`, oldest first, record over `base`. With `whole`, the source's whole disk is compared as well.
    pub fn new(layers: Vec<Arc<Layer>>, size_bytes: u64, base: Option<Chain>, whole: Option<Chain>) -> Self {
        Self { layers, chunks: crate::volume::chunks_of_bytes(size_bytes), base, whole }
    }

    /// A layer that [`Carried::Data`] names.
    pub fn layer(&self, number: u32) -> &Arc<Layer> {
        &self.layers[number as usize]
    }

    /// The first chunk from `at` on that may carry something.
    pub fn next(&self, at: u64) -> Result<Option<ChunkNo>> {
        let mut first = None;
        for layer in &self.layers {
            let range = at..first.unwrap_or(self.chunks);
            first = layer.next_present(range)?.or(first);
        }
        if let (Some(base), Some(_)) = (&self.base, &self.whole) {
            first = base.next_present(at..first.unwrap_or(self.chunks))?.or(first);
        }
        Ok(first.map(ChunkNo))
    }

    /// What a chunk carries; whether anything.
    pub fn chunk(&self, chunk: ChunkNo, out: &mut Chunk) -> Result<bool> {
        out.fill(Carried::Nothing);
        for (number, layer) in self.layers.iter().enumerate() {
            let Some(entries) = recorded(layer, chunk)? else { continue };
            for (carried, entry) in out.iter_mut().zip(&entries) {
                match entry.state() {
                    State::Absent => {}
                    State::Zero => *carried = Carried::Zero,
                    State::Data(slot) => {
                        *carried = Carried::Data { layer: number as u32, slot, tag: entry.tag() };
                    }
                }
            }
        }
        match &self.base {
            // Nothing lies below: zero is what is not said.
            None => out.iter_mut().filter(|c| **c == Carried::Zero).for_each(|c| *c = Carried::Nothing),
            Some(base) => self.say_unsaid(base, chunk, out)?,
        }
        Ok(out.iter().any(|c| *c != Carried::Nothing))
    }

    fn say_unsaid(&self, base: &Chain, chunk: ChunkNo, out: &mut Chunk) -> Result<()> {
        let Some(whole) = &self.whole else { return Ok(()) };
        let mut below = [Source::Zero; CHUNK_SECTORS as usize];
        base.sources(chunk, 0, &mut below)?;
        if below.iter().all(|s| *s == Source::Zero) {
            return Ok(());
        }
        let mut now = [Source::Zero; CHUNK_SECTORS as usize];
        whole.sources(chunk, 0, &mut now)?;
        for ((carried, now), below) in out.iter_mut().zip(&now).zip(&below) {
            if *now == Source::Zero && *below != Source::Zero {
                *carried = Carried::Zero;
            }
        }
        Ok(())
    }

    /// Whether the base has data in a chunk, so that zeros there must be recorded.
    pub fn hides(&self, chunk: ChunkNo) -> Result<bool, crate::volume::VolumeError> {
        self.base.as_ref().map_or(Ok(false), |base| base.has_data(chunk))
    }

    /// The sum over all chunks.
    pub fn count(&self) -> Result<Counts> {
        let mut counts = Counts::default();
        let mut chunk = [Carried::Nothing; CHUNK_SECTORS as usize];
        let mut at = 0;
        while let Some(next) = self.next(at)? {
            self.chunk(next, &mut chunk)?;
            for carried in &chunk {
                match carried {
                    Carried::Nothing => {}
                    Carried::Zero => counts.zero += 1,
                    Carried::Data { .. } => counts.data += 1,
                }
            }
            at = next.0 + 1;
        }
        Ok(counts)
    }
}
