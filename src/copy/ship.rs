//! The pipeline: ciphertext of the source is read, checked and decrypted, then put into a layer of the target, which encrypts it,
//! by as many workers as keep the processors busy, a chunk at a time.
//!
//! Plaintext lies in each worker's one buffer, which zeroes itself; what the target's writing keeps is ciphertext.

use zeroize::Zeroizing;

use super::difference::{Carried, Chunk, Difference};
use super::error::{CopyError, Result};
use super::link::{Link, Sectors};
use super::words::Words;
use crate::crypto::ProofKey;
use crate::sys::page_buffer::PageBuffer;
use crate::units::{CHUNK_BYTES, CHUNK_SECTORS, ChunkNo, SECTOR_BYTES, SECTOR_LEN, SectorNo};
use crate::volume::pace::Pace;
use crate::volume::{Stop, VolumeError, each_chunk};

/// What errors name.
pub struct Names {
    /// The source region.
    pub source_region: String,
    /// The snapshot that is read.
    pub snapshot: String,
    /// The target region.
    pub target_region: String,
}

/// How a difference is shipped.
pub struct Shipping<'a> {
    /// What is carried.
    pub difference: &'a Difference,
    /// Where to.
    pub link: &'a dyn Link,
    /// What errors name.
    pub names: &'a Names,
    /// How fast sectors of the source may cross.
    pub pace: Option<&'a Pace>,
    /// By which their content is known.
    pub proof_key: &'a ProofKey,
    /// Told what was read.
    pub words: &'a Words<'a>,
}

/// What a worker works with.
pub(super) struct Buffers {
    pub carried: Box<Chunk>,
    pub plain: Zeroizing<PageBuffer>,
    pub tags: Vec<u64>,
}

impl Buffers {
    pub fn new() -> Self {
        Self {
            carried: Box::new([Carried::Nothing; CHUNK_SECTORS as usize]),
            plain: Zeroizing::new(PageBuffer::new(CHUNK_BYTES as usize)),
            tags: Vec::with_capacity(CHUNK_SECTORS as usize),
        }
    }
}

impl Shipping<'_> {
    /// Puts into the target all that the difference carries and it lacks. `watch` is asked all the while, on this thread, and
    /// ends it by an error. Nothing is durable before the link commits.
    pub fn ship(&self, mut watch: impl FnMut() -> Result<()>) -> Result<()> {
        let next = |at| self.difference.next(at);
        let work = |buffers: &mut Buffers, chunk, stop: &Stop| self.ship_chunk(chunk, buffers, stop);
        each_chunk(next, Buffers::new, work, || {
            self.link.tend();
            watch()
        })
    }

    fn ship_chunk(&self, chunk: ChunkNo, buffers: &mut Buffers, stop: &Stop) -> Result<()> {
        let Buffers { carried, plain, tags } = buffers;
        self.difference.chunk(chunk, carried)?;
        let has = self.link.has_sectors(chunk, carried, &crossing(self.difference, carried))?;
        let is_whole = has.is_none_or(|has| !has.contains(&true));
        if let Some(has) = has {
            carried.iter_mut().zip(has).filter(|(_, has)| *has).for_each(|(c, _)| *c = Carried::Nothing);
        }
        if carried.iter().all(|c| *c == Carried::Nothing) {
            return Ok(());
        }
        let of_source = count(&crossing(self.difference, carried));
        if !self.pace.is_none_or(|pace| pace.claim(of_source * SECTOR_BYTES, || stop.is_set())) {
            return Ok(());
        }
        let instead = read_chunk(self.difference, self.names, chunk, carried, plain, tags)?;
        if is_whole {
            let read = words_of(self.proof_key, chunk, carried, plain);
            self.words.tell(chunk.0, read);
        }
        self.link.put_chunk(chunk, carried, plain, of_source + instead)
    }
}

/// Which sectors of a chunk are of the source, and cross.
pub(super) fn crossing(difference: &Difference, carried: &Chunk) -> Sectors {
    carried.map(|carried| matches!(carried, Carried::Data { layer, .. } if !difference.is_of_base(layer)))
}

/// How many a set has.
pub(super) fn count(sectors: &Sectors) -> u64 {
    sectors.iter().filter(|is_in| **is_in).count() as u64
}

/// All that a chunk carries is asked for at once: the device reads its end while its beginning is decrypted.
fn expect(difference: &Difference, carried: &Chunk) {
    for run in carried.chunk_by(is_next_slot) {
        if let Carried::Data { layer, slot, .. } = run[0] {
            difference.layer(layer).expect_slots(slot, run.len() as u64);
        }
    }
}

/// Reads, checks and decrypts what a chunk carries into its place in `plain`; runs of slots by one read each. How many sectors
/// that are damaged in the base were read from the source instead.
pub(super) fn read_chunk(
    difference: &Difference,
    names: &Names,
    chunk: ChunkNo,
    carried: &Chunk,
    plain: &mut [u8],
    tags: &mut Vec<u64>,
) -> Result<u64> {
    expect(difference, carried);
    let mut instead = 0;
    let mut at = 0;
    for run in carried.chunk_by(is_next_slot) {
        let index = at;
        at += run.len();
        let Carried::Data { layer, slot, .. } = run[0] else { continue };
        tags.clear();
        tags.extend(run.iter().map(|c| if let Carried::Data { tag, .. } = c { *tag } else { 0 }));
        let first = SectorNo(chunk.first_sector().0 + index as u64);
        let is_of_base = difference.is_of_base(layer);
        let layer = difference.layer(layer);
        let into = &mut plain[index * SECTOR_LEN..][..run.len() * SECTOR_LEN];
        let damaged = |sector, layer| CopyError::Damaged {
            sector,
            layer,
            snapshot: names.snapshot.clone(),
            region: names.source_region.clone(),
        };
        match layer.read_still_slots(first, slot, tags, into) {
            Ok(()) => {}
            // The source has all of it.
            Err(_) if is_of_base => {
                tracing::warn!(layer = %layer.id(), sector = first.0, "a base is damaged: what it lacks is shipped");
                difference.source().read_sectors(first, into).map_err(|e| match e {
                    VolumeError::DamagedSector { sector, layer } => damaged(sector, layer),
                    other => other.into(),
                })?;
                instead += run.len() as u64;
            }
            Err(Err(error)) => return Err(error.into()),
            Err(Ok(bad)) => return Err(damaged(SectorNo(first.0 + bad as u64), layer.id())),
        }
    }
    Ok(instead)
}

/// What the data that a chunk carries is known by, once it lies in its place.
pub(super) fn words_of(key: &ProofKey, chunk: ChunkNo, carried: &Chunk, plain: &[u8]) -> u128 {
    let mut at = 0;
    let mut words = 0;
    for run in carried.chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b)) {
        let index = at;
        at += run.len();
        if let Carried::Data { .. } = run[0] {
            let bytes = &plain[index * SECTOR_LEN..][..run.len() * SECTOR_LEN];
            words ^= key.words(SectorNo(chunk.first_sector().0 + index as u64), bytes);
        }
    }
    words
}

fn is_next_slot(a: &Carried, b: &Carried) -> bool {
    match (a, b) {
        (Carried::Data { layer: l, slot: s, .. }, Carried::Data { layer: m, slot: t, .. }) => {
            l == m && s.is_right_before(*t)
        }
        (a, b) => {
            std::mem::discriminant(a) == std::mem::discriminant(b) && !matches!(a, Carried::Data { .. })
        }
    }
}
