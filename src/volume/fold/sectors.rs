//! Moving sectors from one layer to the one it is joined with: read, checked, decrypted, encrypted for the other, written
//! as any write is. What fails its check ends the fold: nothing is ever tagged anew from what the disk holds.

use zeroize::Zeroizing;

use super::super::chain::Chain;
use super::super::error::{Result, VolumeError};
use super::super::live::hides_zero;
use super::ahead::Ahead;
use crate::catalog::FoldWay;
use crate::layer::{Entry, Guard, Layer, LayerError, State};
use crate::sys::page_buffer::PageBuffer;
use crate::units::{CHUNK_BYTES, CHUNK_SECTORS, ChunkNo, REQUEST_BYTES_MAX, SECTOR_LEN, SectorNo, SlotNo};

/// A fold of two layers.
pub struct Move<'a> {
    /// Which way.
    pub way: FoldWay,
    /// The layer that goes.
    pub from: &'a Layer,
    /// The layer that stays.
    pub into: &'a Layer,
    /// What lies below both.
    pub below: &'a Chain,
}

/// What happens to a sector of the layer that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Leave,
    /// It becomes zero.
    Zero,
    /// It takes these bytes.
    Take(SlotNo, u64),
}

type Actions = [Action; CHUNK_SECTORS as usize];
type Entries = [Entry; CHUNK_SECTORS as usize];

impl Move<'_> {
    /// Moves all chunks from `start` on; whether it came to the end. After each, `watch` is told the next chunk's number and
    /// the sectors moved, and says whether to go on. Nothing is durable before `into` is flushed. A layer that stays and is
    /// sealed meanwhile is [`LayerError::Ended`].
    pub fn run(&self, start: u64, watch: &mut dyn FnMut(u64, u64) -> bool) -> Result<bool> {
        let chunks = self.from.sectors().div_ceil(CHUNK_SECTORS);
        let mut plain = Zeroizing::new(PageBuffer::new(CHUNK_BYTES as usize));
        let mut ahead = Ahead::new(self, start, chunks);
        while let Some(chunk) = ahead.next()? {
            let moved = self.chunk(chunk, &mut plain)?;
            // Both log halves full would stop every writer.
            if self.into.needs_checkpoint() {
                self.into.checkpoint_closed()?;
            }
            if !watch(chunk.0 + 1, moved) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moves one chunk; how many sectors.
    fn chunk(&self, chunk: ChunkNo, plain: &mut [u8]) -> Result<u64> {
        loop {
            let mut there: Entries = [Entry::ABSENT; CHUNK_SECTORS as usize];
            let actions = self.actions(chunk, &mut there)?;
            self.read(chunk, &actions, plain)?;
            match self.write(chunk, &actions, &there, plain) {
                // The disk's user wrote to it meanwhile: what he wrote stays.
                Err(LayerError::Changed) => {}
                other => {
                    other?;
                    return Ok(actions.iter().filter(|a| **a != Action::Leave).count() as u64);
                }
            }
        }
    }

    fn actions(&self, chunk: ChunkNo, there: &mut Entries) -> Result<Actions> {
        let first = chunk.first_sector().0;
        let within = |layer: &Layer| layer.sectors().saturating_sub(first).min(CHUNK_SECTORS) as usize;
        let mut here: Entries = [Entry::ABSENT; CHUNK_SECTORS as usize];
        self.from.entries(chunk, 0, &mut here[..within(self.from)])?;
        self.into.entries(chunk, 0, &mut there[..within(self.into)])?;
        let zero_is_said = here.iter().any(|e| e.state() == State::Zero) && self.below.has_data(chunk)?;
        let mut actions = [Action::Leave; CHUNK_SECTORS as usize];
        for ((action, here), there) in actions.iter_mut().zip(&here).zip(&*there) {
            let covered = self.way == FoldWay::Up && !there.is_absent();
            *action = match here.state() {
                State::Absent => Action::Leave,
                _ if covered => Action::Leave,
                State::Zero if there.is_absent() && !zero_is_said => Action::Leave,
                State::Zero => Action::Zero,
                State::Data(slot) => Action::Take(slot, here.tag()),
            };
        }
        Ok(actions)
    }

    /// What of a chunk is to be moved is read soon. What fails here fails again when its turn comes.
    pub(super) fn expect(&self, chunk: ChunkNo) {
        let mut there: Entries = [Entry::ABSENT; CHUNK_SECTORS as usize];
        let Ok(actions) = self.actions(chunk, &mut there) else { return };
        for run in actions.chunk_by(is_next_slot) {
            if let Action::Take(slot, _) = run[0] {
                self.from.expect_slots(slot, run.len() as u64);
            }
        }
    }

    fn read(&self, chunk: ChunkNo, actions: &Actions, plain: &mut [u8]) -> Result<()> {
        let mut tags = Vec::with_capacity(CHUNK_SECTORS as usize);
        let mut at = 0;
        for run in actions.chunk_by(is_next_slot) {
            let index = at;
            at += run.len();
            let Action::Take(slot, _) = run[0] else { continue };
            tags.clear();
            tags.extend(
                run.iter().filter_map(|a| if let Action::Take(_, tag) = a { Some(*tag) } else { None }),
            );
            let first = SectorNo(chunk.first_sector().0 + index as u64);
            let into = &mut plain[index * SECTOR_LEN..][..run.len() * SECTOR_LEN];
            self.from.read_still_slots(first, slot, &tags, into).map_err(|e| match e {
                Err(error) => error.into(),
                Ok(bad) => VolumeError::DamagedSector {
                    sector: SectorNo(first.0 + bad as u64),
                    layer: self.from.id(),
                },
            })?;
        }
        Ok(())
    }

    fn write(
        &self,
        chunk: ChunkNo,
        actions: &Actions,
        there: &Entries,
        plain: &mut [u8],
    ) -> Result<(), LayerError> {
        let hides = |chunk: ChunkNo| hides_zero(self.below, chunk);
        let mut at = 0;
        for run in actions.chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b)) {
            let index = at;
            at += run.len();
            if run[0] == Action::Leave {
                continue;
            }
            let first = SectorNo(chunk.first_sector().0 + index as u64);
            let bytes = &mut plain[index * SECTOR_LEN..][..run.len() * SECTOR_LEN];
            if run[0] == Action::Zero {
                bytes.fill(0);
            }
            for (n, piece) in bytes.chunks(REQUEST_BYTES_MAX as usize).enumerate() {
                let skipped = n * (REQUEST_BYTES_MAX as usize / SECTOR_LEN);
                let guard = |i: usize| {
                    let i = skipped + i;
                    Guard { sector: SectorNo(first.0 + i as u64), entry: there[index + i] }
                };
                let guards: Vec<Guard> = match self.way {
                    FoldWay::Up => (0..piece.len() / SECTOR_LEN).map(guard).collect(),
                    // Nobody else writes to it.
                    FoldWay::Down => Vec::new(),
                };
                self.into.write(SectorNo(first.0 + skipped as u64), piece, &guards, &hides)?;
            }
        }
        Ok(())
    }
}

fn is_next_slot(a: &Action, b: &Action) -> bool {
    match (a, b) {
        (Action::Take(a, _), Action::Take(b, _)) => a.is_right_before(*b),
        (Action::Take(..), _) | (_, Action::Take(..)) => false,
        (a, b) => a == b,
    }
}
