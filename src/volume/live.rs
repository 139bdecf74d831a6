//! A volume that takes writes: its stack, and the swap of the active layer at a seal.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::chain::Chain;
use super::edges::with_room;
use super::error::{Result, VolumeError};
use super::read::Stack;
use crate::ids::VolumeId;
use crate::layer::{Guard, Layer, LayerError};
use crate::units::{
    CHUNK_BYTES, CHUNK_SECTORS, ChunkNo, REQUEST_BYTES_MAX, SECTOR_LEN, SectorNo, Span, whole_sectors_within,
};

/// A discard's records cover at most this much (rule 18).
const DISCARD_SECTORS_MAX: u64 = (1 << 30) / SECTOR_LEN as u64;

/// A volume, open for reading and writing.
pub struct LiveVolume {
    id: VolumeId,
    stack: ArcSwap<Stack>,
    /// Sealed layers whose last records may not be durable yet: a flush syncs them before the active one, so that the
    /// volume as a whole is a prefix of its writes.
    unsynced: Mutex<Vec<Arc<Layer>>>,
}

impl LiveVolume {
    /// A volume over its active layer and the chain below it.
    pub fn new(id: VolumeId, stack: Stack) -> Self {
        assert!(stack.active.is_some(), "a live volume has an active layer");
        Self { id, stack: ArcSwap::from_pointee(stack), unsynced: Mutex::default() }
    }

    /// Its id.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// What it is made of now.
    pub fn stack(&self) -> Arc<Stack> {
        self.stack.load_full()
    }

    /// The layer that takes writes now.
    pub fn active(&self) -> Arc<Layer> {
        self.stack.load().active.clone().expect("a live volume has an active layer")
    }

    /// Size of the disk.
    pub fn size_bytes(&self) -> u64 {
        self.stack.load().size_bytes()
    }

    /// Reads any bytes within the disk.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        for piece in into.chunks_mut(REQUEST_BYTES_MAX as usize).enumerate() {
            let (i, bytes) = piece;
            self.stack.load().read(offset + i as u64 * REQUEST_BYTES_MAX, bytes)?;
        }
        Ok(())
    }

    /// Writes any bytes within the disk. A request of up to 1 MiB is whole or absent after a cut.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        for (i, piece) in from.chunks(REQUEST_BYTES_MAX as usize).enumerate() {
            self.write_request(offset + i as u64 * REQUEST_BYTES_MAX, piece)?;
        }
        Ok(())
    }

    fn write_request(&self, offset: u64, from: &[u8]) -> Result<()> {
        let Some(span) = Span::of_bytes(offset, from.len() as u64) else { return Ok(()) };
        loop {
            let stack = self.stack.load();
            let done = match span.is_whole() {
                true => write_whole(&stack, span.first, from, &[]),
                false => with_room(span.count, |whole| write_merged(&stack, span, from, whole)),
            };
            match done {
                // Sealed meanwhile: encrypt again for the next layer. Or a neighbour's write came between: merge again.
                Err(VolumeError::Layer(LayerError::Ended)) if !self.is_current(&stack) => {}
                Err(VolumeError::Layer(LayerError::Changed)) => {}
                other => return other,
            }
        }
    }

    fn is_current(&self, stack: &Arc<Stack>) -> bool {
        Arc::ptr_eq(stack, &self.stack.load())
    }

    /// What of the range lies within the disk reads as zeros from now on; whole sectors give their space back. Whole or absent after a
    /// cut: up to 1 MiB of any bytes, or each GiB of whole sectors, in their order.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.saturating_add(len).min(self.size_bytes());
        if offset >= end {
            return Ok(());
        }
        let sectors = whole_sectors_within(offset..end);
        let (first, last) = (SectorNo(sectors.start).byte(), SectorNo(sectors.end).byte());
        let is_whole = !sectors.is_empty() && (first, last) == (offset, end);
        if !is_whole && end - offset <= REQUEST_BYTES_MAX {
            return self.write_zeros(offset..end);
        }
        self.write_zeros(offset..first)?;
        self.discard_sectors(sectors)?;
        self.write_zeros(last..end)
    }

    /// At most 1 MiB, as one record: of whole sectors nothing is stored.
    fn write_zeros(&self, bytes: std::ops::Range<u64>) -> Result<()> {
        self.write(bytes.start, &vec![0; (bytes.end.saturating_sub(bytes.start)) as usize])
    }

    fn discard_sectors(&self, sectors: std::ops::Range<u64>) -> Result<()> {
        let mut at = sectors.start;
        while at < sectors.end {
            let stack = self.stack.load();
            let chunks = at / CHUNK_SECTORS..sectors.end.div_ceil(CHUNK_SECTORS);
            // Nothing is recorded of what was never written, however large.
            let Some(present) = stack.next_present(chunks)? else { return Ok(()) };
            at = at.max(present * CHUNK_SECTORS);
            if at >= sectors.end {
                return Ok(());
            }
            let count = (sectors.end - at).min(DISCARD_SECTORS_MAX);
            let active = stack.active.as_ref().expect("a live volume has an active layer");
            match active.discard(SectorNo(at), count, &|chunk| zero_hides(&stack, chunk)) {
                Err(LayerError::Ended) if !self.is_current(&stack) => continue,
                other => other?,
            }
            at += count;
        }
        Ok(())
    }

    /// Bytes answered and not known to be durable, in its active layer and in those that ended.
    pub fn undurable_bytes(&self) -> u64 {
        // A layer is among those that ended before the next is active, so that none is left out.
        let active = self.active();
        let ended = self.unsynced.lock().clone();
        let others = ended.iter().filter(|layer| !Arc::ptr_eq(layer, &active));
        active.undurable_bytes() + others.map(|layer| layer.undurable_bytes()).sum::<u64>()
    }

    /// Everything answered so far is durable when this returns.
    pub fn flush(&self) -> Result<()> {
        let active = self.active();
        let below = self.unsynced.lock().clone();
        for layer in &below {
            layer.flush()?;
        }
        self.unsynced.lock().retain(|l| !below.iter().any(|b| Arc::ptr_eq(b, l)));
        Ok(active.flush()?)
    }

    /// The layers below its active one were joined: the disk is the same through `below`. The caller keeps seals away.
    pub fn replace_chain(&self, below: Chain) {
        let active = self.stack.load().active.clone();
        self.stack.store(Arc::new(Stack { active, chain: below }));
    }

    /// The first byte at or after `offset` that is data, or that is hole.
    pub fn seek(&self, offset: u64, hole: bool) -> Result<Option<u64>> {
        self.stack.load().seek(offset, hole)
    }
}

fn zero_hides(stack: &Stack, chunk: ChunkNo) -> Result<bool, LayerError> {
    hides_zero(&stack.chain, chunk)
}

/// Whether a zero hides something of the layers below.
pub(super) fn hides_zero(below: &Chain, chunk: ChunkNo) -> Result<bool, LayerError> {
    below.has_data(chunk).map_err(|e| match e {
        VolumeError::Layer(e) => e,
        other => LayerError::Corrupted {
            what: "a chunk below".into(),
            expected: "entries".into(),
            found: other.to_string(),
        },
    })
}

fn write_whole(stack: &Stack, first: SectorNo, from: &[u8], guards: &[Guard]) -> Result<()> {
    let active = stack.active.as_ref().expect("a live volume has an active layer");
    Ok(active.write(first, from, guards, &|chunk| zero_hides(stack, chunk))?)
}

/// Reads the partial sectors at the edges, puts the bytes over them, and writes all as whole sectors that hold only
/// over the edges as they were read.
fn write_merged(stack: &Stack, span: Span, from: &[u8], whole: &mut [u8]) -> Result<()> {
    let active = stack.active.as_ref().expect("a live volume has an active layer");
    let mut guards = [Guard { sector: span.first, entry: crate::layer::Entry::ABSENT }; 2];
    let mut guarded = 0;
    let last = SectorNo(span.first.0 + span.count - 1);
    let edges = [(span.first, span.head > 0 || span.count == 1), (last, span.tail > 0 && span.count > 1)];
    for (sector, partial) in edges {
        if partial {
            guards[guarded] = Guard { sector, entry: active.entry(sector)? };
            guarded += 1;
            let at = (sector.0 - span.first.0) as usize * SECTOR_LEN;
            stack.read_sectors(sector, &mut whole[at..at + SECTOR_LEN])?;
        }
    }
    whole[span.head..][..from.len()].copy_from_slice(from);
    write_whole(stack, span.first, whole, &guards[..guarded])
}

/// One volume of a seal: the layer that takes its writes from then on.
pub struct Seal<'a> {
    /// The volume.
    pub volume: &'a LiveVolume,
    /// Its next layer, made and durable.
    pub next: Arc<Layer>,
}

/// Ends the active layers of several volumes at one moment (rule 14): a write is in the ended layers of all, or comes
/// after it in all. Returns the ended layers, in the order given. Nothing here waits for a disk.
///
/// The caller seals one set of volumes at a time.
pub fn seal_together(seals: Vec<Seal<'_>>) -> Result<Vec<Arc<Layer>>> {
    let ended: Vec<Arc<Layer>> = seals.iter().map(|s| s.volume.active()).collect();
    // In id order, so that two groups can't wait for each other.
    let mut order: Vec<usize> = (0..seals.len()).collect();
    order.sort_by_key(|i| ended[*i].id());
    let mut guards = Vec::with_capacity(seals.len());
    for i in &order {
        guards.push(ended[*i].lock_for_seal()?);
    }
    if let Err(e) = guards.iter_mut().try_for_each(|g| g.end()) {
        // Some are ended and some are not: none goes on until recovery has told them apart.
        guards.iter_mut().for_each(|g| g.latch());
        return Err(e.into());
    }
    for (seal, old) in seals.iter().zip(&ended) {
        let below = seal.volume.stack.load().chain.with(old.clone());
        seal.volume.unsynced.lock().push(old.clone());
        seal.volume.stack.store(Arc::new(Stack { active: Some(seal.next.clone()), chain: below }));
    }
    drop(guards);
    Ok(ended)
}

/// Chunks a disk of this size has.
pub fn chunks_of_bytes(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(CHUNK_BYTES)
}
