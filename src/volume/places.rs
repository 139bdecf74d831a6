//! Where the sectors of one chunk are: what sealed layers record of it, one over the other.

use std::sync::Arc;

use super::error::Result;
use crate::layer::{Entry, Layer, Leaf, State};
use crate::units::{CHUNK_SECTORS, ChunkNo, SlotNo};

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

/// Where a chunk's sectors are.
#[derive(Clone)]
pub enum Places {
    /// Where the pages of this one layer say, since no other has recorded anything of them: nothing is copied.
    One {
        /// 0 is the oldest.
        layer: u32,
        /// All zero where it has no slots.
        leaf: Leaf,
    },
    /// Here and there.
    Each(Arc<[Packed; CHUNK_SECTORS as usize]>),
}

/// 16 bytes: tag, slot and layer. Layer 0xff_ffff: zero.
#[derive(Clone, Copy)]
pub struct Packed {
    tag: u64,
    place: u64,
}

const SLOT_BITS: u32 = 40;
const NO_LAYER: u64 = u64::MAX >> SLOT_BITS;

impl Packed {
    const ZERO: Self = Self { tag: 0, place: NO_LAYER << SLOT_BITS };

    /// What a layer's entry says; `None`: nothing.
    fn of(entry: Entry, layer: u32) -> Option<Self> {
        match entry.state() {
            State::Absent => None,
            State::Zero => Some(Self::ZERO),
            State::Data(slot) => {
                Some(Self { tag: entry.tag(), place: u64::from(layer) << SLOT_BITS | slot.0 })
            }
        }
    }

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

impl Places {
    /// Nowhere: all are zero.
    pub const ZERO: Self = Self::One { layer: 0, leaf: Leaf::Uniform(Entry::ABSENT) };

    /// Those from `index` on.
    pub fn fill(&self, index: usize, out: &mut [Source]) {
        match self {
            Self::One { layer, leaf } => {
                let entry = |i| Packed::of(leaf.entry(i), *layer).unwrap_or(Packed::ZERO);
                out.iter_mut().zip(index..).for_each(|(o, i)| *o = entry(i).source());
            }
            Self::Each(each) => out.iter_mut().zip(&each[index..]).for_each(|(o, p)| *o = p.source()),
        }
    }

    /// Puts what a layer says of a chunk over what those below it say; whether it has data there.
    pub fn overlay(&mut self, number: u32, layer: &Layer, chunk: ChunkNo) -> Result<bool> {
        if !records(layer, chunk)? {
            return Ok(false);
        }
        let is_within = (chunk.0 + 1) * CHUNK_SECTORS <= layer.sectors();
        if matches!(self, Self::One { leaf: Leaf::Uniform(_), .. })
            && is_within
            && let Some(leaf) = layer.settled_leaf(chunk)?
        {
            let any = leaf.has_data();
            *self = Self::One { layer: number, leaf };
            return Ok(any);
        }
        let Some(entries) = recorded(layer, chunk)? else { return Ok(false) };
        let each = self.each();
        for (place, entry) in each.iter_mut().zip(&entries) {
            *place = Packed::of(*entry, number).unwrap_or(*place);
        }
        Ok(entries.iter().any(|entry| entry.slot().is_some()))
    }

    /// Each sector's place, to change.
    fn each(&mut self) -> &mut [Packed; CHUNK_SECTORS as usize] {
        if let Self::One { layer, leaf } = self {
            let of = |i| Packed::of(leaf.entry(i), *layer).unwrap_or(Packed::ZERO);
            *self = Self::Each(Arc::new(std::array::from_fn(of)));
        }
        let Self::Each(each) = self else { unreachable!("just made so") };
        Arc::make_mut(each)
    }
}

/// Whether a layer records anything of a chunk; past its end, where a layer above may be larger, nothing.
pub fn records(layer: &Layer, chunk: ChunkNo) -> Result<bool> {
    Ok(chunk.first_sector().0 < layer.sectors() && layer.records(chunk)?)
}

/// What it records, if anything.
pub fn recorded(layer: &Layer, chunk: ChunkNo) -> Result<Option<[Entry; CHUNK_SECTORS as usize]>> {
    if !records(layer, chunk)? {
        return Ok(None);
    }
    let within = (layer.sectors() - chunk.first_sector().0).min(CHUNK_SECTORS) as usize;
    let mut entries = [Entry::ABSENT; CHUNK_SECTORS as usize];
    layer.entries(chunk, 0, &mut entries[..within])?;
    Ok(Some(entries))
}
