//! Which sectors two snapshots of a region hold differently, from maps alone.
//!
//! In this room, for it is a question about how layers make two disks. `copy` asks another: what has to be carried over a
//! moment that both sides have, where zeros may go unsaid; siblings, and a disk that is older than the other, are nothing to it.
//!
//! Layers are a tree, so two chains have their oldest layers in common and nothing above. A sector of which no layer above
//! the common ones says anything is the same in both; one that is zero in both is too. Any other counts as changed: a layer
//! holds no plain bytes to compare, so the same bytes written twice are two contents.

use std::ops::Range;
use std::sync::Arc;

use super::chain::Chain;
use super::folder::{self, ReadLock};
use super::host::Host;
use super::host_error::{HostError, Result};
use super::live::chunks_of_bytes;
use super::places::{Source, recorded};
use crate::ids::SnapshotId;
use crate::layer::{Layer, State};
use crate::units::{CHUNK_SECTORS, ChunkNo, SectorNo};

/// What a changed sector is in the second snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Bytes.
    Data,
    /// Zeros, or it lies past the disk's end.
    Zero,
}

/// Neighbouring changed sectors that hold alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedRun {
    /// The first.
    pub first: SectorNo,
    /// How many; at least one.
    pub count: u64,
    /// What they are in the second snapshot.
    pub holds: Holds,
}

/// What layers above the common ones say of a sector.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    Nothing,
    Zero,
    Data,
}

/// A value for each sector of a chunk.
type Each<T> = [T; CHUNK_SECTORS as usize];

/// Two snapshots' disks, open and held against deletion.
pub struct Changes {
    /// The layers of both.
    common: Chain,
    /// Those of the first above them, oldest first.
    from: Vec<Arc<Layer>>,
    /// Those of the second.
    to: Vec<Arc<Layer>>,
    /// Of the larger.
    chunks: u64,
    _locks: [ReadLock; 2],
}

impl Changes {
    /// Opens two snapshots of a region, whichever is older, related or not; refuses one that is not whole. Reads no sector.
    pub fn between(host: &Host, from: SnapshotId, to: SnapshotId) -> Result<Self> {
        let locks =
            [folder::lock_for_reading(host.region(), from)?, folder::lock_for_reading(host.region(), to)?];
        let rows = [host.whole_snapshot(from)?, host.whole_snapshot(to)?];
        let [from, to] = loop {
            let stacks = [host.open_snapshot(from)?, host.open_snapshot(to)?];
            // A fold that ended between the two openings leaves the first with a layer that the second has no more. Ids only
            // ever go from a chain: where neither has lost one, both chains are of one moment.
            if host.is_of_now(from, &stacks[0])? && host.is_of_now(to, &stacks[1])? {
                break stacks.map(|stack| stack.chain.layers().to_vec());
            }
        };
        let common = from.iter().zip(&to).take_while(|(a, b)| a.id() == b.id()).count();
        Ok(Self {
            common: Chain::new(from[..common].to_vec()),
            from: from[common..].to_vec(),
            to: to[common..].to_vec(),
            chunks: chunks_of_bytes(rows.iter().map(|row| row.size_bytes).max().unwrap_or(0)),
            _locks: locks,
        })
    }

    /// Tells of each run of changed sectors, in order. One chunk is in memory at a time; what neither disk records above the
    /// common layers costs nothing.
    pub fn each_run<E: From<HostError>>(
        &self,
        mut tell: impl FnMut(ChangedRun) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut run: Option<ChangedRun> = None;
        let mut walk = Walk { layers: self.from.iter().chain(&self.to).map(|l| (l, Some(0))).collect() };
        let mut at = 0;
        while let Some(chunk) = walk.next(at..self.chunks)? {
            let changed = self.chunk(chunk)?;
            for (sector, holds) in (chunk.first_sector().0..).zip(changed) {
                let Some(holds) = holds else { continue };
                match &mut run {
                    Some(run) if run.first.0 + run.count == sector && run.holds == holds => run.count += 1,
                    _ => {
                        let next = ChangedRun { first: SectorNo(sector), count: 1, holds };
                        run.replace(next).map_or(Ok(()), &mut tell)?;
                    }
                }
            }
            at = chunk.0 + 1;
        }
        run.map_or(Ok(()), tell)
    }

    /// Which sectors of a chunk changed, and what they are now.
    fn chunk(&self, chunk: ChunkNo) -> Result<Each<Option<Holds>>> {
        let (from, to) = (said(&self.from, chunk)?, said(&self.to, chunk)?);
        let mut below = [Source::Zero; CHUNK_SECTORS as usize];
        self.common.sources(chunk, 0, &mut below)?;
        let mut changed = [None; CHUNK_SECTORS as usize];
        for (i, changed) in changed.iter_mut().enumerate() {
            let is_data = |said: Said| match said {
                Said::Nothing => below[i] != Source::Zero,
                other => other == Said::Data,
            };
            let is_told = (from[i], to[i]) != (Said::Nothing, Said::Nothing);
            *changed = match (is_data(from[i]), is_data(to[i])) {
                (_, true) if is_told => Some(Holds::Data),
                (true, false) => Some(Holds::Zero),
                _ => None,
            };
        }
        Ok(changed)
    }
}

/// Layers, and for each a chunk before which it records nothing that is not passed. Each is walked once: to ask a sparse one anew
/// for every chunk of a dense one takes for ever.
struct Walk<'l> {
    layers: Vec<(&'l Arc<Layer>, Option<u64>)>,
}

impl Walk<'_> {
    /// The first chunk in `range` of which any layer records something. Ranges only ever begin later.
    fn next(&mut self, range: Range<u64>) -> Result<Option<ChunkNo>> {
        for (layer, next) in &mut self.layers {
            if next.is_some_and(|next| next <= range.start) {
                *next = layer.next_present(range.clone())?;
            }
        }
        Ok(self.layers.iter().filter_map(|(_, next)| *next).min().map(ChunkNo))
    }
}

/// What layers, oldest first, say of a chunk; where one ends before it, nothing.
fn said(layers: &[Arc<Layer>], chunk: ChunkNo) -> Result<Each<Said>> {
    let mut said = [Said::Nothing; CHUNK_SECTORS as usize];
    for layer in layers {
        let Some(entries) = recorded(layer, chunk)? else { continue };
        for (said, entry) in said.iter_mut().zip(&entries) {
            match entry.state() {
                State::Absent => {}
                State::Zero => *said = Said::Zero,
                State::Data(_) => *said = Said::Data,
            }
        }
    }
    Ok(said)
}
