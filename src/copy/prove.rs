//! A copy is proven before it counts: what reads through its own chain is what was read of the source.
//!
//! Of each chunk that the copy, or the plan, says anything of, the sectors are read back from the target's files. The words of what
//! was there (through the base) and of what is there now make the copy's leaves out of the base's; the words of what was
//! read of the source must make the same. A sector that was lost, misplaced, or written though nobody carried it gives
//! another leaf.
//!
//! The leaves are the copy's proof. Where the source has one, from another copy or from reading it whole, they must be
//! equal; where it has none it is given these, best effort: no row says so, and nothing depends on it. Where a bookmark says what
//! changed, a sector that it left out would be in no leaf: the source's bytes are asked ([`super::unsaid`]), and it is given a proof
//! only if all of them were.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::difference::{Carried, Difference, Resolved};
use super::error::{CopyError, Result};
use super::link::{Crossed, Sectors};
use super::pace::Pace;
use super::plan::{Base, Plan};
use super::ship::{Buffers, Names, count, crossing, read_chunk, words_of};
use super::unsaid::{self, Basis, Found};
use super::words::Words;
use crate::crypto::ProofKey;
use crate::ids::{Point, SnapshotId};
use crate::layer::Layer;
use crate::units::{CHUNK_BYTES, CHUNK_SECTORS, ChunkNo, SECTOR_BYTES, SECTOR_LEN, SectorNo};
use crate::volume::proof::{self, Leaves, Reading, measure};
use crate::volume::{Chain, Host, HostError, Stack, Stop, VolumeError, bookmarks, each_chunk, recorded};

/// A copy whose layer is sealed, and what is known of it.
pub struct Made<'a> {
    /// Of what it is a copy.
    pub source: &'a Host,
    /// Where it is.
    pub target: &'a Host,
    /// Its id.
    pub copy: SnapshotId,
    /// Its layer, opened anew from its files.
    pub top: Arc<Layer>,
    /// By which it was made.
    pub plan: &'a Plan,
    /// What errors name.
    pub names: &'a Names,
    /// What was read of the source.
    pub words: &'a Words<'a>,
    /// How fast sectors of the source may cross.
    pub pace: Option<&'a Pace>,
    /// Counts what crosses.
    pub crossed: &'a Crossed,
}

/// What a copy is put on, and that with the copy.
struct Disks {
    below: Stack,
    whole: Stack,
}

/// So often the source's layers are looked at where two looks differ.
const LOOKS_MAX: u32 = 4;
/// In between.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Made<'_> {
    /// Its leaves, if they are those of what was read, and what says that they are the source's. `watch` is told the bytes that
    /// were read back, and ends it by an error.
    pub fn prove(&self, mut watch: impl FnMut(u64) -> Result<()>) -> Result<(Leaves, Basis)> {
        let difference = &self.plan.difference;
        let below = Stack { active: None, chain: difference.below() };
        let layers = [below.chain.layers(), std::slice::from_ref(&self.top)].concat();
        let disk = Stack { active: None, chain: Chain::new(layers) };
        let size_bytes = self.plan.source.size_bytes;
        let of_base = match self.plan.parent() {
            Some(base) => self.leaves_of_base(base, &below, || watch(0))?.resized(size_bytes),
            None => Leaves::of_zeros(size_bytes),
        };
        let leaves = Mutex::new(of_base);
        let read_back = AtomicU64::new(0);
        let next = |at| self.next(difference, at);
        let disks = Disks { below, whole: disk };
        let work = |buffers: &mut Buffers, chunk, stop: &Stop| {
            let touched = self.prove_chunk(&disks, chunk, buffers, stop, &leaves)?;
            read_back.fetch_add(count(&touched) * SECTOR_BYTES, Ordering::Relaxed);
            Ok(())
        };
        each_chunk(next, Buffers::new, work, || watch(read_back.load(Ordering::Relaxed)))?;
        let leaves = leaves.into_inner();
        let read_back = read_back.into_inner();
        let basis = self.ask_source(&leaves, |read| watch(read_back + read))?;
        Ok((leaves, basis))
    }

    /// Where a bookmark says what changed: whether the source's bytes say so too.
    fn ask_source(&self, leaves: &Leaves, watch: impl FnMut(u64) -> Result<()>) -> Result<Basis> {
        let difference = &self.plan.difference;
        let Some(marked) = difference.marked() else { return Ok(Basis::Maps) };
        let most = unsaid::chunks_for(self.plan.write_bytes());
        match unsaid::look(difference, marked, &self.plan.proof_key, leaves, most, watch)? {
            Found::Equal(basis) => Ok(basis),
            Found::Differs(chunk) => Err(self.misled(marked, chunk)),
        }
    }

    /// Changes a chunk's leaf from the base's into the copy's; which sectors were read.
    fn prove_chunk(
        &self,
        disks: &Disks,
        chunk: ChunkNo,
        buffers: &mut Buffers,
        stop: &Stop,
        leaves: &Mutex<Leaves>,
    ) -> Result<Sectors> {
        let key = &*self.plan.proof_key;
        // What is known from the shipping may be of a chunk that a fold of the source has made another since.
        for known in [self.words.get(chunk.0), None] {
            let (carried, touched) = self.sectors_of(chunk, buffers)?;
            let read = match known {
                Some(known) => known,
                None => self.read_again(key, chunk, buffers, stop)?,
            };
            let plain = &mut buffers.plain;
            let after = through(&disks.whole, key, chunk, &touched, plain)?;
            let change = match self.before(disks, chunk, (&carried, &touched), plain) {
                Ok((before, said)) => (before ^ after == said ^ read).then_some(before ^ after),
                // What was damaged in the base is hidden by the copy: its leaf is made of all of the chunk.
                Err(error) if carried == touched && is_damage(&error) => match after == read {
                    true => {
                        let all = through(&disks.whole, key, chunk, &[true; CHUNK_SECTORS as usize], plain);
                        Some(all.map_err(|e| self.of_base(e))? ^ leaves.lock().leaf(chunk))
                    }
                    false => None,
                },
                Err(error) => return Err(self.of_base(error)),
            };
            if let Some(change) = change {
                leaves.lock().change(chunk, change);
                return Ok(touched);
            }
        }
        Err(self.unproven(chunk.0))
    }

    /// The words of what the base has at the sectors that plan or copy speak of, and at those that the plan does.
    fn before(
        &self,
        disks: &Disks,
        chunk: ChunkNo,
        (carried, touched): (&Sectors, &Sectors),
        plain: &mut [u8],
    ) -> Result<(u128, u128)> {
        let key = &*self.plan.proof_key;
        let before = through(&disks.below, key, chunk, touched, plain)?;
        let said =
            if carried == touched { before } else { through(&disks.below, key, chunk, carried, plain)? };
        Ok((before, said))
    }

    /// Damage below the copy is said to be the base's.
    fn of_base(&self, error: CopyError) -> CopyError {
        match (self.plan.parent(), error) {
            (
                Some(base),
                CopyError::Host(HostError::Volume(VolumeError::DamagedSector { sector, layer })),
            ) => {
                let (snapshot, region) = (base.snapshot.to_string(), self.names.target_region.clone());
                CopyError::DamagedBase { sector, layer, snapshot, region }
            }
            (_, other) => other,
        }
    }

    /// The first chunk from `at` on of which the plan or the copy says something.
    fn next(&self, difference: &Difference, at: u64) -> Result<Option<ChunkNo>> {
        let planned = difference.next(at)?;
        let end =
            planned.map_or_else(|| crate::volume::chunks_of_bytes(self.top.size_bytes()), |chunk| chunk.0);
        Ok(self.top.next_present(at..end.max(at))?.map(ChunkNo).or(planned))
    }

    /// Which sectors of a chunk the plan says something of, and which the plan or the copy. Of the plan it is seen first that it says
    /// what the source's layers come to.
    fn sectors_of(&self, chunk: ChunkNo, buffers: &mut Buffers) -> Result<(Sectors, Sectors)> {
        let difference = &self.plan.difference;
        let mut looks = 0;
        loop {
            difference.chunk(chunk, &mut buffers.carried)?;
            let resolved = difference.resolved(chunk, &buffers.carried, looks > 0)?;
            if resolved == Resolved::Same {
                break;
            }
            // A fold of the source may have come between the two looks.
            looks += 1;
            if looks > LOOKS_MAX {
                return Err(match difference.marked() {
                    Some(marked) if resolved == Resolved::Unsaid => self.misled(marked, chunk),
                    _ => {
                        CopyError::Overtaken { what: format!("a layer of snapshot {}", self.names.snapshot) }
                    }
                });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        let carried = std::array::from_fn(|i| buffers.carried[i] != Carried::Nothing);
        let mut touched = carried;
        if let Some(entries) = recorded(&self.top, chunk)? {
            touched.iter_mut().zip(&entries).for_each(|(t, entry)| *t |= !entry.is_absent());
        }
        Ok((carried, touched))
    }

    /// The words of what a chunk carries, read of the source again: it crosses again, and counts.
    fn read_again(&self, key: &ProofKey, chunk: ChunkNo, buffers: &mut Buffers, stop: &Stop) -> Result<u128> {
        let Buffers { carried, plain, tags } = buffers;
        let bytes = count(&crossing(&self.plan.difference, carried)) * SECTOR_BYTES;
        if !self.pace.is_none_or(|pace| pace.claim(bytes, || stop.is_set())) {
            return Err(CopyError::Interrupted);
        }
        let instead = read_chunk(&self.plan.difference, self.names, chunk, carried, plain, tags)?;
        self.crossed.add(bytes + instead * SECTOR_BYTES);
        Ok(words_of(key, chunk, carried, plain))
    }

    /// The leaves of what the copy stands on: of its snapshot, or where that is gone or has none by reading it whole.
    fn leaves_of_base(
        &self,
        base: &Base,
        below: &Stack,
        mut watch: impl FnMut() -> Result<()>,
    ) -> Result<Leaves> {
        let (region, key) = (self.target.region(), &*self.plan.proof_key);
        let row = region.catalog()?.read(|tx| tx.find_snapshot(base.snapshot))?;
        let row = row.filter(|row| row.state.is_whole() && row.id != self.copy);
        if let Some(row) = &row {
            let read = proof::read(region, row, base.point)
                .and_then(|proof| proof.map(|proof| proof.leaves(key).map_err(HostError::from)).transpose());
            match read {
                Ok(Some(leaves)) => return Ok(leaves),
                Ok(None) => {}
                Err(error) => tracing::warn!(snapshot = %row.id, %error, "a base's proof is made anew"),
            }
        }
        let leaves = measure(below, key, &Reading::PLAIN, |_| watch()).map_err(|e| self.of_base(e))?;
        if let Some(row) = row
            && let Err(error) = proof::write(region, &row, base.point, &leaves, key, false)
        {
            tracing::warn!(snapshot = %row.id, %error, "a base's proof could not be written");
        }
        Ok(leaves)
    }

    /// Gives the copy its proof, durable; refuses one that is not that of the source, where that has one.
    pub fn write(&self, point: Point, leaves: &Leaves) -> Result<()> {
        let (plan, key) = (self.plan, &*self.plan.proof_key);
        let said = proof::read(self.source.region(), &plan.source, point).and_then(|proof| {
            // One that was made from a base's says no more than a copy that carried all of the source.
            let overrules = |proof: &proof::Proof| !proof.head.derived || plan.base.is_some();
            let differs = |proof: &proof::Proof| overrules(proof) && proof.head.root != leaves.root(key);
            Ok(proof.filter(differs).map(|proof| proof.leaves(key)).transpose()?)
        });
        match said {
            Ok(Some(said)) => {
                let first = said.differing(leaves).first().map_or(0, |run| run.start);
                return Err(self.unproven(first));
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(snapshot = %plan.source.id, %error, "the source's proof is made anew")
            }
        }
        let region = self.target.region();
        let row = region.catalog()?.read(|tx| tx.find_snapshot(self.copy))?.ok_or(CopyError::Cancelled)?;
        let written = proof::write(region, &row, point, leaves, key, plan.parent().is_some());
        written.map_err(|e| CopyError::of_target(e, region.name()))
    }

    /// The bookmarks of this layer are not used again.
    fn misled(&self, marked: &Layer, chunk: ChunkNo) -> CopyError {
        bookmarks::distrust(self.source.region(), marked.id());
        CopyError::Misled {
            offset: chunk.first_sector().byte(),
            snapshot: self.names.snapshot.clone(),
            source_region: self.names.source_region.clone(),
            layer: marked.id(),
        }
    }

    fn unproven(&self, chunk: u64) -> CopyError {
        CopyError::Unproven {
            offset: chunk.saturating_mul(CHUNK_BYTES),
            snapshot: self.names.snapshot.clone(),
            source_region: self.names.source_region.clone(),
            target: self.names.target_region.clone(),
        }
    }
}

/// The source is given the copy's leaves where it has no proof, or one that was made from a base's and all of it was read.
pub fn leave_with_source(source: &Host, plan: &Plan, point: Point, leaves: &Leaves, basis: Basis) {
    let region = source.region();
    let derived = match basis {
        Basis::Maps => plan.base.is_some(),
        Basis::Bytes => false,
        // What a bookmark left out would be said to be equal.
        Basis::Bookmark => return,
    };
    if proof::find_head(region, &plan.source, point).is_some_and(|head| derived || !head.derived) {
        return;
    }
    if let Err(error) = proof::write(region, &plan.source, point, leaves, &plan.proof_key, derived) {
        tracing::info!(snapshot = %plan.source.id, %error, "the source was not given its proof");
    }
}

fn is_damage(error: &CopyError) -> bool {
    matches!(error, CopyError::Host(HostError::Volume(VolumeError::DamagedSector { .. })))
}

/// The words of these sectors of a chunk, as they are read through a disk.
fn through(
    disk: &Stack,
    key: &ProofKey,
    chunk: ChunkNo,
    sectors: &Sectors,
    buffer: &mut [u8],
) -> Result<u128> {
    let within = (disk.size_bytes() / SECTOR_BYTES).saturating_sub(chunk.first_sector().0).min(CHUNK_SECTORS);
    let mut at = 0;
    let mut words = 0;
    for run in sectors[..within as usize].chunk_by(|a, b| a == b) {
        let first = SectorNo(chunk.first_sector().0 + at as u64);
        at += run.len();
        if run[0] {
            let bytes = &mut buffer[..run.len() * SECTOR_LEN];
            disk.read_sectors(first, bytes).map_err(HostError::from)?;
            words ^= key.words(first, bytes);
        }
    }
    Ok(words)
}
