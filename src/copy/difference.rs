//! What a copy has to carry, from maps alone: for each chunk, the newest version of each sector recorded since the base.

use std::sync::Arc;

use parking_lot::Mutex;

use super::ahead::Ahead;
use super::error::Result;
use crate::layer::{ChunkBits, Layer, SectorSet, State};
use crate::units::{CHUNK_SECTORS, ChunkNo, SlotNo};
use crate::volume::{Chain, Source, Stack, recorded};

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

/// What the layers' resolution to a disk says of what a chunk carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// It is all, and right.
    Same,
    /// A layer above the base says otherwise.
    Otherwise,
    /// The sector of this number in the chunk is data at the base and zero now, or zero and data, and is not carried so.
    Unsaid(usize),
}

/// All sectors of a chunk.
pub type Chunk = [Carried; CHUNK_SECTORS as usize];

/// How a copy makes use of its base, whose disk this is.
#[derive(Clone)]
pub enum Standing {
    /// There is none.
    Alone,
    /// The copy's layer is put on it.
    Above(Chain),
    /// The copy's layer is put on nothing: it is under another key, and what it has of the base is encrypted anew (X1).
    Beside(Chain),
}

/// What is known of the source between the base's moment and the layers above that.
#[derive(Clone)]
pub enum Gap {
    /// The lowest layer begins at the base's moment.
    None,
    /// The moment lies within the layer below them, and only these sectors changed there since.
    Changed(Arc<SectorSet>),
    /// The moment lies within the lowest: source and base are compared as well. A sector that was zero below and above it, and data at
    /// it, is recorded nowhere in the source.
    Unknown,
}

/// The layers of the source above a base, and what is needed to see what they leave unsaid.
pub struct Difference {
    /// Oldest first; before those of the source, those of a base that is encrypted anew.
    layers: Vec<Arc<Layer>>,
    /// How many of them are the base's.
    of_base: usize,
    /// The disk's.
    sectors: u64,
    chunks: u64,
    standing: Standing,
    /// Those of the source alone.
    above: Chain,
    /// The source's disk.
    source: Stack,
    gap: Gap,
    ahead: Mutex<Ahead>,
}

/// Sectors of each sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// To be shipped.
    pub data: u64,
    /// To be encrypted anew at the target.
    pub of_base: u64,
    /// That became zero since the base.
    pub zero: u64,
}

impl Difference {
    /// What `layers` of the disk `source`, oldest first, record over a base, and what the gap between them and the base holds.
    pub fn new(
        mut layers: Vec<Arc<Layer>>,
        size_bytes: u64,
        source: Chain,
        standing: Standing,
        gap: Gap,
    ) -> Self {
        let above = Chain::new(layers.clone());
        let mut of_base = 0;
        if let Standing::Beside(base) = &standing {
            of_base = base.layers().len();
            layers.splice(0..0, base.layers().iter().cloned());
        }
        let source = Stack { active: None, chain: source };
        let chunks = crate::volume::chunks_of_bytes(size_bytes);
        let sectors = crate::units::sectors_of_bytes(size_bytes);
        Self { layers, of_base, sectors, chunks, standing, above, source, gap, ahead: Mutex::default() }
    }

    /// A layer that [`Carried::Data`] names: after those above the base, those of all the source's disk.
    pub fn layer(&self, number: u32) -> &Arc<Layer> {
        let number = number as usize;
        self.layers.get(number).unwrap_or_else(|| &self.source.chain.layers()[number - self.layers.len()])
    }

    /// Whether that layer is of the base, and not of the source.
    pub fn is_of_base(&self, number: u32) -> bool {
        (number as usize) < self.of_base
    }

    /// The source's disk.
    pub fn source(&self) -> &Stack {
        &self.source
    }

    fn base(&self) -> Option<&Chain> {
        match &self.standing {
            Standing::Alone => None,
            Standing::Above(base) | Standing::Beside(base) => Some(base),
        }
    }

    /// The layer of the source of whose bookmarks alone it is known what changed, which no map bears out.
    pub fn marked(&self) -> Option<&Arc<Layer>> {
        match self.gap {
            Gap::Changed(_) => {
                let above = self.above.layers().len();
                self.source.chain.layers().iter().rev().nth(above)
            }
            Gap::None | Gap::Unknown => None,
        }
    }

    /// What the copy's layer is put on.
    pub fn below(&self) -> Chain {
        match &self.standing {
            Standing::Above(base) => base.clone(),
            Standing::Alone | Standing::Beside(_) => Chain::new(Vec::new()),
        }
    }

    /// The first chunk from `at` on that may carry something.
    pub fn next(&self, at: u64) -> Result<Option<ChunkNo>> {
        // Of the base too, where it is compared.
        let base = self.base().filter(|_| matches!(self.gap, Gap::Unknown));
        let layers = self.layers.iter().chain(base.into_iter().flat_map(|base| base.layers()));
        let mut first = self.ahead.lock().first(layers, at, self.chunks)?;
        if let Gap::Changed(sectors) = &self.gap {
            let next = sectors.next(at).filter(|chunk| *chunk < self.chunks);
            first = first.into_iter().chain(next).min();
        }
        Ok(first.map(ChunkNo))
    }

    /// What a chunk carries; whether anything.
    pub fn chunk(&self, chunk: ChunkNo, out: &mut Chunk) -> Result<bool> {
        self.changes(chunk, out)?;
        if !matches!(self.standing, Standing::Above(_)) {
            // Nothing lies below: zero is what is not said.
            out.iter_mut().filter(|c| **c == Carried::Zero).for_each(|c| *c = Carried::Nothing);
        }
        Ok(out.iter().any(|c| *c != Carried::Nothing))
    }

    /// What the layers record of a chunk, the zeros that need not be said among them.
    fn changes(&self, chunk: ChunkNo, out: &mut Chunk) -> Result<()> {
        out.fill(Carried::Nothing);
        for (number, layer) in self.layers.iter().enumerate() {
            let Some(entries) = recorded(layer, chunk)? else { continue };
            for (carried, entry) in out.iter_mut().zip(&entries) {
                match entry.state() {
                    State::Absent => {}
                    // What was zero at the base has not become so.
                    State::Zero if number < self.of_base => *carried = Carried::Nothing,
                    State::Zero => *carried = Carried::Zero,
                    State::Data(slot) => {
                        *carried = Carried::Data { layer: number as u32, slot, tag: entry.tag() };
                    }
                }
            }
        }
        match (&self.gap, self.base()) {
            (Gap::Unknown, Some(base)) => self.say_unsaid(base, chunk, out),
            (Gap::Changed(sectors), _) => self.say_changed(sectors.bits(chunk.0), chunk, out),
            _ => Ok(()),
        }
    }

    /// What the disk holds now of sectors that changed in the gap; of those that a layer above records that is the same.
    fn say_changed(&self, changed: ChunkBits, chunk: ChunkNo, out: &mut Chunk) -> Result<()> {
        if changed.is_empty() {
            return Ok(());
        }
        let mut now = [Source::Zero; CHUNK_SECTORS as usize];
        self.source.sources(chunk, 0, &mut now)?;
        // A bookmark may name what is past the end.
        let within = self.sectors.saturating_sub(chunk.first_sector().0).min(CHUNK_SECTORS) as usize;
        let sectors = out.iter_mut().zip(&now).take(within).enumerate();
        let sectors = sectors.filter(|(index, _)| changed.contains(*index));
        for (_, (carried, now)) in sectors {
            *carried = match *now {
                Source::Zero => Carried::Zero,
                Source::Slot { layer, slot, tag } => {
                    Carried::Data { layer: self.layers.len() as u32 + layer, slot, tag }
                }
            };
        }
        Ok(())
    }

    fn say_unsaid(&self, base: &Chain, chunk: ChunkNo, out: &mut Chunk) -> Result<()> {
        let mut below = [Source::Zero; CHUNK_SECTORS as usize];
        base.sources(chunk, 0, &mut below)?;
        if below.iter().all(|s| *s == Source::Zero) {
            return Ok(());
        }
        let mut now = [Source::Zero; CHUNK_SECTORS as usize];
        self.source.sources(chunk, 0, &mut now)?;
        for ((carried, now), below) in out.iter_mut().zip(&now).zip(&below) {
            if *now == Source::Zero && *below != Source::Zero {
                *carried = Carried::Zero;
            }
        }
        Ok(())
    }

    /// The same, by what the source's maps say now, and not by what is remembered of them.
    pub fn afresh(&self) -> Self {
        let afresh = |chain: &Chain| Chain::new(chain.layers().to_vec());
        Self {
            layers: self.layers.clone(),
            standing: self.standing.clone(),
            above: afresh(&self.above),
            source: Stack { active: None, chain: afresh(&self.source.chain) },
            gap: self.gap.clone(),
            ahead: Mutex::default(),
            ..*self
        }
    }

    /// Whether a chunk carries what it has to: by how the layers resolve to a disk, not by how they were read one by one.
    pub fn resolved(&self, chunk: ChunkNo, carried: &Chunk) -> Result<Resolved> {
        let mut newest = [Source::Zero; CHUNK_SECTORS as usize];
        self.above.sources(chunk, 0, &mut newest)?;
        let is_newest = |carried: &Carried, newest: &Source| match (*newest, *carried) {
            (Source::Zero, _) => true,
            (Source::Slot { layer, slot, tag }, Carried::Data { layer: from, slot: read, tag: by }) => {
                let is_same = self.layer(from).id() == self.above.layers()[layer as usize].id();
                is_same && (slot, tag) == (read, by)
            }
            (Source::Slot { .. }, _) => false,
        };
        if !carried.iter().zip(&newest).all(|(carried, newest)| is_newest(carried, newest)) {
            return Ok(Resolved::Otherwise);
        }
        let Standing::Above(base) = &self.standing else { return Ok(Resolved::Same) };
        // A slot never holds zeros.
        let (mut below, mut now) = (newest, newest);
        base.sources(chunk, 0, &mut below)?;
        self.source.chain.sources(chunk, 0, &mut now)?;
        let fits = |carried: &Carried, below: &Source, now: &Source| match (*below, *now) {
            (Source::Slot { .. }, Source::Zero) => *carried == Carried::Zero,
            (Source::Zero, Source::Slot { .. }) => matches!(carried, Carried::Data { .. }),
            _ => true,
        };
        let mut sectors = carried.iter().zip(below.iter().zip(&now));
        let unsaid = sectors.position(|(carried, (below, now))| !fits(carried, below, now));
        Ok(unsaid.map_or(Resolved::Same, Resolved::Unsaid))
    }

    /// Whether what the copy is put on has data in a chunk, so that zeros there must be recorded.
    pub fn hides(&self, chunk: ChunkNo) -> Result<bool, crate::volume::VolumeError> {
        match &self.standing {
            Standing::Above(base) => base.has_data(chunk),
            Standing::Alone | Standing::Beside(_) => Ok(false),
        }
    }

    /// The sum over all chunks.
    pub fn count(&self) -> Result<Counts> {
        let mut counts = Counts::default();
        let mut chunk = [Carried::Nothing; CHUNK_SECTORS as usize];
        let mut at = 0;
        while let Some(next) = self.next(at)? {
            self.changes(next, &mut chunk)?;
            for carried in &chunk {
                match carried {
                    Carried::Nothing => {}
                    // With nothing below it was never anything else.
                    Carried::Zero => counts.zero += u64::from(self.base().is_some()),
                    Carried::Data { layer, .. } if self.is_of_base(*layer) => counts.of_base += 1,
                    Carried::Data { .. } => counts.data += 1,
                }
            }
            at = next.0 + 1;
        }
        Ok(counts)
    }
}
