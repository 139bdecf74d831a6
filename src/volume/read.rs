//! Reading a disk: resolve, group into runs, read, check, decrypt.

use std::cell::RefCell;
use std::sync::Arc;

use super::chain::Chain;
use super::edges::with_room;
use super::error::{Result, VolumeError};
use super::places::Source;
use crate::layer::{Entry, Layer, LayerError, State};
use crate::units::{ChunkNo, SECTOR_LEN, SectorNo, SlotNo, Span, by_chunk};

/// What a disk is made of at one moment: sealed layers, and the active one of a volume.
pub struct Stack {
    /// The layer that takes writes; `None` for a snapshot.
    pub active: Option<Arc<Layer>>,
    /// The sealed layers below.
    pub chain: Chain,
}

thread_local! {
    static SOURCES: RefCell<(Vec<Source>, Vec<u64>)> = RefCell::default();
}

/// Sectors of a small request (64 KiB).
const FEW: usize = 16;
/// A sector overtaken by writes this often in one read is taken for damaged.
const OVERTAKEN_MAX: usize = 1000;

impl Stack {
    fn layer(&self, number: u32) -> &Arc<Layer> {
        let sealed = self.chain.layers();
        sealed.get(number as usize).or(self.active.as_ref()).expect("sources name layers of this stack")
    }

    /// Where the sectors of a chunk are, from `index` on. The active layer's number is that after the chain's.
    pub fn sources(&self, chunk: ChunkNo, index: usize, out: &mut [Source]) -> Result<()> {
        let Some(active) = &self.active else { return self.chain.sources(chunk, index, out) };
        // A small request does not pay for the largest.
        let (mut few, mut many);
        let entries: &mut [Entry] = if out.len() <= FEW {
            few = [Entry::ABSENT; FEW];
            &mut few[..out.len()]
        } else {
            many = [Entry::ABSENT; crate::units::CHUNK_SECTORS as usize];
            &mut many[..out.len()]
        };
        active.entries(chunk, index, entries)?;
        if entries.iter().any(|e| e.is_absent()) {
            self.chain.sources(chunk, index, out)?;
        }
        let number = self.chain.layers().len() as u32;
        for (source, entry) in out.iter_mut().zip(entries) {
            match entry.state() {
                State::Absent => {}
                State::Zero => *source = Source::Zero,
                State::Data(slot) => *source = Source::Slot { layer: number, slot, tag: entry.tag() },
            }
        }
        Ok(())
    }

    /// Reads any bytes within the disk.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let Some(span) = Span::of_bytes(offset, into.len() as u64) else { return Ok(()) };
        if span.is_whole() {
            return self.read_sectors(span.first, into);
        }
        with_room(span.count, |whole| {
            self.read_sectors(span.first, whole)?;
            into.copy_from_slice(&whole[span.head..whole.len() - span.tail]);
            Ok(())
        })
    }

    /// Reads whole sectors.
    pub fn read_sectors(&self, first: SectorNo, into: &mut [u8]) -> Result<()> {
        let count = into.len() / SECTOR_LEN;
        let (mut sources, mut tags) = SOURCES.take();
        sources.resize(sources.len().max(count), Source::Zero);
        let done = self.read_resolved(first, &mut sources[..count], &mut tags, into);
        SOURCES.set((sources, tags));
        done
    }

    fn read_resolved(
        &self,
        first: SectorNo,
        sources: &mut [Source],
        tags: &mut Vec<u64>,
        into: &mut [u8],
    ) -> Result<()> {
        let mut at = 0;
        for (chunk, index, len) in by_chunk(first, sources.len() as u64) {
            self.sources(chunk, index, &mut sources[at..at + len])?;
            at += len;
        }
        let mut at = 0;
        for run in sources.chunk_by(follows) {
            let bytes = &mut into[at * SECTOR_LEN..][..run.len() * SECTOR_LEN];
            let sector = SectorNo(first.0 + at as u64);
            at += run.len();
            let Source::Slot { layer, slot, .. } = run[0] else {
                bytes.fill(0);
                continue;
            };
            tags.clear();
            tags.extend(run.iter().map(|s| if let Source::Slot { tag, .. } = s { *tag } else { 0 }));
            match self.layer(layer).read_slots(sector, slot, tags, bytes) {
                Ok(()) => {}
                Err(Err(e)) => return Err(e.into()),
                // A writer overtook us, or it is damage: sector by sector then.
                Err(Ok(_)) => {
                    for (i, bytes) in bytes.chunks_exact_mut(SECTOR_LEN).enumerate() {
                        self.read_sector_again(SectorNo(sector.0 + i as u64), bytes)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads a sector whose slot may be reused under us: only while its entry stays the same is a bad tag damage.
    fn read_sector_again(&self, sector: SectorNo, into: &mut [u8]) -> Result<()> {
        let resolve = || -> Result<Source> {
            let mut out = [Source::Zero];
            self.sources(sector.chunk(), sector.index_in_chunk(), &mut out)?;
            Ok(out[0])
        };
        let mut source = resolve()?;
        let mut layer_id = None;
        let mut is_of_device = false;
        for _ in 0..OVERTAKEN_MAX {
            let Source::Slot { layer, slot, tag } = source else {
                into.fill(0);
                return Ok(());
            };
            match self.layer(layer).read_slots(sector, slot, &[tag], into) {
                Ok(()) => return Ok(()),
                Err(Err(e)) => return Err(e.into()),
                Err(Ok(_)) => {}
            }
            layer_id = Some(self.layer(layer).id());
            let now = resolve()?;
            if now == source {
                if std::mem::replace(&mut is_of_device, true) {
                    break;
                }
                // What the system keeps of it may be what is wrong.
                self.layer(layer).forget_slots(slot, 1);
            }
            source = now;
        }
        into.fill(0);
        match layer_id {
            Some(layer) => Err(VolumeError::DamagedSector { sector, layer }),
            None => Err(LayerError::Latched.into()),
        }
    }

    /// Sectors the disk has.
    pub fn size_bytes(&self) -> u64 {
        let top = self.active.as_ref().or(self.chain.layers().last());
        top.map_or(0, |l| l.size_bytes())
    }

    /// The first chunk in `range` of which any layer records something.
    pub fn next_present(&self, range: std::ops::Range<u64>) -> Result<Option<u64>> {
        let below = self.chain.next_present(range.clone())?;
        let above = match &self.active {
            Some(active) => active.next_present(range)?,
            None => None,
        };
        Ok(match (above, below) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        })
    }

    /// The first byte at or after `offset` that is data, or that is hole; the end of the disk is a hole.
    pub fn seek(&self, offset: u64, hole: bool) -> Result<Option<u64>> {
        let size = self.size_bytes();
        if offset >= size {
            return Ok(None);
        }
        let chunks = size.div_ceil(crate::units::CHUNK_BYTES);
        let mut at = offset / SECTOR_LEN as u64;
        let mut sources = [Source::Zero; crate::units::CHUNK_SECTORS as usize];
        loop {
            let sector = SectorNo(at);
            if !hole || sector.index_in_chunk() == 0 {
                match self.next_present(sector.chunk().0..chunks)? {
                    Some(present) if present == sector.chunk().0 => {}
                    _ if hole => return Ok(Some(sector.byte().max(offset))),
                    Some(present) => {
                        at = ChunkNo(present).first_sector().0;
                        continue;
                    }
                    None => return Ok(None),
                }
            }
            let index = sector.index_in_chunk();
            self.sources(sector.chunk(), index, &mut sources[index..])?;
            let wanted = |s: &Source| (*s == Source::Zero) == hole;
            if let Some(i) = sources[index..].iter().position(wanted) {
                let byte = SectorNo(at + i as u64).byte().max(offset);
                return Ok((byte < size || hole).then_some(byte.min(size)));
            }
            at = sector.chunk().first_sector().0 + crate::units::CHUNK_SECTORS;
            if at * SECTOR_LEN as u64 >= size {
                return Ok(hole.then_some(size));
            }
        }
    }
}

/// Whether two neighbouring sectors can be read as one: the next slot of the same layer, or both zero.
fn follows(a: &Source, b: &Source) -> bool {
    match (a, b) {
        (Source::Zero, Source::Zero) => true,
        (Source::Slot { layer: l, slot: SlotNo(s), .. }, Source::Slot { layer: m, slot: SlotNo(t), .. }) => {
            l == m && s + 1 == *t
        }
        _ => false,
    }
}
