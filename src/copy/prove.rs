//! A copy is proven before it counts: what reads through its own chain is what was read of the source.
//!
//! Of each chunk that the copy, or the plan, says anything of, the sectors are read back from the target's files. The words of what
//! was there (through the base) and of what is there now make the copy's leaves out of the base's; the words of what was
//! read of the source must make the same. A sector that was lost, misplaced, or written though nobody carried it gives
//! another leaf.
//!
//! The leaves are the copy's proof. Where the source has one, from another copy or from reading it whole, they must be
//! equal; where it has none it is given these, best effort: no row says so, and nothing depends on it. Where a bookmark says what
//! changed, or said it when the base was made, a sector that it left out would be in no leaf: the source's bytes are asked
//! ([`super::unsaid`]), and it is given a proof only if all of them were.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::difference::{Carried, Difference, Resolved};
use super::error::{CopyError, Result};
use super::link::{Crossed, Sectors};
use super::plan::{Base, Plan};
use super::ship::{Buffers, Names, count, crossing, read_chunk, words_of};
use super::unsaid::{self, Found, Look};
use super::words::Words;
use crate::catalog::Snapshot;
use crate::crypto::ProofKey;
use crate::ids::{Point, SnapshotId};
use crate::layer::Layer;
use crate::units::{CHUNK_BYTES, CHUNK_SECTORS, ChunkNo, SECTOR_BYTES, SECTOR_LEN, SectorNo};
use crate::volume::pace::Pace;
use crate::volume::proof::{self, Leaves, Reading, Rests, measure};
use crate::volume::{
    Chain, Host, HostError, Source, Stack, Stop, VolumeError, bookmarks, each_chunk, recorded,
};

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
    /// Its leaves, if they are those of what was read, and what it rests on that they are the source's. `watch` is told the bytes that
    /// were read back, and ends it by an error.
    pub fn prove(&self, mut watch: impl FnMut(u64) -> Result<()>) -> Result<(Leaves, Rests)> {
        let difference = &self.plan.difference;
        let below = Stack { active: None, chain: difference.below() };
        let layers = [below.chain.layers(), std::slice::from_ref(&self.top)].concat();
        let disk = Stack { active: None, chain: Chain::new(layers) };
        let size_bytes = self.plan.source.size_bytes;
        let is_borne_out = self.is_borne_out()?;
        let of_base = match self.plan.parent() {
            Some(base) => self.leaves_of_base(base, &below, is_borne_out, || watch(0))?.resized(size_bytes),
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
        if is_borne_out && difference.marked().is_none() {
            return Ok((leaves, Rests::Maps));
        }
        let rests = self.ask_source(&disks.whole, &leaves, |read| watch(read_back + read))?;
        Ok((leaves, rests))
    }

    /// Whether the base's own proof says that it is what its source was, and not on the word of a bookmark. With no base nothing is
    /// taken from one.
    fn is_borne_out(&self) -> Result<bool> {
        let Some(base) = &self.plan.base else { return Ok(true) };
        let row = self.row_of_base(base)?;
        let head = row.and_then(|row| proof::find_head(self.target.region(), &row, base.point));
        Ok(head.is_some_and(|head| head.rests != Rests::Bookmark))
    }

    fn row_of_base(&self, base: &Base) -> Result<Option<Snapshot>> {
        let row = self.target.region().catalog()?.read(|tx| tx.find_snapshot(base.snapshot))?;
        Ok(row.filter(|row| row.state.is_whole() && row.id != self.copy))
    }

    /// Whether the source's bytes say too that what is not carried is as it was.
    fn ask_source(
        &self,
        copy: &Stack,
        leaves: &Leaves,
        watch: impl FnMut(u64) -> Result<()>,
    ) -> Result<Rests> {
        let (difference, key) = (&self.plan.difference, &*self.plan.proof_key);
        let (source, marked) = (difference.source(), difference.marked());
        let most = unsaid::chunks_for(self.plan.write_bytes());
        match (Look { source, copy, marked, key, leaves }).take(most, watch)? {
            Found::Equal { all: true } => Ok(Rests::Bytes),
            Found::Equal { all: false } => Ok(Rests::Bookmark),
            Found::Differs(sector) => Err(self.at_fault(sector)?),
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
        let mut difference = &self.plan.difference;
        let mut fresh;
        let mut looks = 0;
        loop {
            difference.chunk(chunk, &mut buffers.carried)?;
            let resolved = difference.resolved(chunk, &buffers.carried)?;
            if resolved == Resolved::Same {
                break;
            }
            looks += 1;
            if looks > LOOKS_MAX {
                return Err(match resolved {
                    Resolved::Unsaid(index) => {
                        self.at_fault(SectorNo(chunk.first_sector().0 + index as u64))?
                    }
                    _ => {
                        CopyError::Overtaken { what: format!("a layer of snapshot {}", self.names.snapshot) }
                    }
                });
            }
            std::thread::sleep(LOOK_AGAIN);
            // A fold of the source may have come between the two looks.
            fresh = self.plan.difference.afresh();
            difference = &fresh;
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
        is_borne_out: bool,
        mut watch: impl FnMut() -> Result<()>,
    ) -> Result<Leaves> {
        let (region, key) = (self.target.region(), &*self.plan.proof_key);
        let row = self.row_of_base(base)?;
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
        // Its bytes say what it is, and not that its source was that.
        let rests = if is_borne_out { Rests::Bytes } else { Rests::Bookmark };
        if let Some(row) = row
            && let Err(error) = proof::write(region, &row, base.point, &leaves, key, rests)
        {
            tracing::warn!(snapshot = %row.id, %error, "a base's proof could not be written");
        }
        Ok(leaves)
    }

    /// Gives the copy its proof, durable; refuses one that is not that of the source, where that has one.
    pub fn write(&self, point: Point, leaves: &Leaves, rests: Rests) -> Result<()> {
        let (plan, key) = (self.plan, &*self.plan.proof_key);
        let said = proof::read(self.source.region(), &plan.source, point).and_then(|proof| {
            // One that was made from a base's says no more than a copy for which all of the source was read.
            let is_all_read = plan.base.is_none() || rests == Rests::Bytes;
            let overrules = |proof: &proof::Proof| proof.head.rests == Rests::Bytes || !is_all_read;
            let differs = |proof: &proof::Proof| overrules(proof) && proof.head.root != leaves.root(key);
            Ok(proof.filter(differs).map(|proof| proof.leaves(key)).transpose()?)
        });
        match said {
            Ok(Some(said)) => {
                let first = said.differing(leaves).first().map_or(0, |run| run.start);
                return Err(self.unproven(first));
            }
            Ok(None) => {}
            Err(error) if error.is_of_open_files() => return Err(error.into()),
            Err(error) => {
                tracing::warn!(snapshot = %plan.source.id, %error, "the source's proof is made anew")
            }
        }
        let region = self.target.region();
        let row = region.catalog()?.read(|tx| tx.find_snapshot(self.copy))?.ok_or(CopyError::Cancelled)?;
        // Of the copy itself what it has of its base was not read back.
        let rests = match rests {
            Rests::Bookmark => Rests::Bookmark,
            _ if plan.parent().is_some() => Rests::Maps,
            _ => Rests::Bytes,
        };
        let written = proof::write(region, &row, point, leaves, key, rests);
        written.map_err(|e| CopyError::of_target(e, region.name()))
    }

    /// Whose fault it is that a sector that was not carried is another in the source: the bookmark's, where its layer records it, or
    /// nobody does any more; a layer below holds what the base's source held too.
    fn at_fault(&self, sector: SectorNo) -> Result<CopyError> {
        let (chunk, index) = (sector.chunk(), sector.index_in_chunk());
        let difference = &self.plan.difference;
        let (offset, snapshot) = (sector.byte(), self.names.snapshot.clone());
        let source_region = self.names.source_region.clone();
        let mut now = [Source::Zero];
        difference.source().sources(chunk, index, &mut now)?;
        if let Some(marked) = difference.marked() {
            let is_recorded = recorded(marked, chunk)?.is_some_and(|entries| !entries[index].is_absent());
            if is_recorded || now[0] == Source::Zero {
                let are_gone = bookmarks::distrust(self.source.region(), marked.id());
                return Ok(CopyError::Misled {
                    offset,
                    snapshot,
                    source_region,
                    layer: marked.id(),
                    are_gone,
                });
            }
        }
        let base = self.plan.base.as_ref().map_or_else(String::new, |base| base.snapshot.to_string());
        let target = self.names.target_region.clone();
        Ok(CopyError::WrongBase { offset, base, target, snapshot, source_region })
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
pub fn leave_with_source(source: &Host, plan: &Plan, point: Point, leaves: &Leaves, rests: Rests) {
    let region = source.region();
    let rests = match rests {
        Rests::Maps if plan.base.is_none() => Rests::Bytes,
        // What a bookmark left out would be said to be equal.
        Rests::Bookmark => return,
        other => other,
    };
    let is_better = |head: proof::Head| rests == Rests::Bytes && head.rests != Rests::Bytes;
    if proof::find_head(region, &plan.source, point).is_some_and(|head| !is_better(head)) {
        return;
    }
    if let Err(error) = proof::write(region, &plan.source, point, leaves, &plan.proof_key, rests) {
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
