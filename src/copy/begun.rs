//! A copy between its first row and its last: what its rows and its layer say, also when another process began it.
//!
//! A copy whose process was killed is taken up from what its layer holds: each sector there was checked when it was read, and is
//! vouched for by the layer's own key, so that nothing else of what was done needs to be known. All the rest is planned anew.

use super::error::{CopyError, Result};
use super::link::Crossed;
use super::plan::{Plan, copy_words};
use crate::catalog::{Layer as LayerRow, LayerState, Snapshot, SnapshotState, Task};
use crate::ids::{LayerId, Point};
use crate::layer::Layer;
use crate::layer::header::Header;
use crate::region::Region;
use crate::units::SECTOR_BYTES;
use crate::volume::folder::{self, Opening};
use crate::volume::{Host, HostError, footing, vouch};

/// A copy that has begun: its rows and its layer, which no other process has.
pub struct Begun {
    pub(super) task: Task,
    /// The row of what it will be.
    pub(super) snapshot: Snapshot,
    pub(super) row: LayerRow,
    pub(super) layer: Layer,
    /// The layer below, as it is now, and the moment that it holds.
    pub(super) stands_on: Option<(LayerId, Point)>,
    /// What crossed.
    pub(super) crossed: Crossed,
}

impl Begun {
    /// Takes up a copy that an earlier process began and did not end. One that a process works on is in use.
    pub fn take_up(target: &Host, snapshot: &Snapshot) -> Result<Self> {
        let region = target.region();
        // Others who would take it up wait; what they read afterwards is what this process has left.
        let _one = folder::lock_copies(region)?;
        let (id, words) = (snapshot.id, copy_words(snapshot));
        let (snapshot, row, task) = region.catalog()?.read(|tx| {
            let snapshot = tx.snapshot(id)?;
            let (row, task) = (tx.layer(tx.layer_of_snapshot(id)?)?, tx.task_of(&id.to_string())?);
            Ok::<_, CopyError>((snapshot, row, task))
        })?;
        let task = task.ok_or_else(|| HostError::unvouched(words, "it has no task"))?;
        if (snapshot.state, row.state) != (SnapshotState::Processing, LayerState::Preparing) {
            return Err(HostError::unvouched(
                copy_words(&snapshot),
                "its rows are not those of a copy being made",
            )
            .into());
        }
        if !folder::is_abandoned(region, &row) {
            return Err(HostError::InUse {
                what: copy_words(&snapshot),
                by: "a process that makes it".into(),
            }
            .into());
        }
        // Before anything is written: what was not made for this copy is left as it is.
        let keys = folder::layer_keys(region, &row)?;
        if folder::header_by(region, row.id, &keys)?.volume != id.as_volume() {
            return Err(stranger(&snapshot));
        }
        // A fold may have put another layer in the place of the one it was put on.
        footing::name_parent(region, &row)?;
        let layer = folder::open_layer(region, target.cache(), &row, Opening::Recover(None))?;
        let header = folder::header_by(region, row.id, layer.keys())?;
        Ok(Self {
            task,
            crossed: Crossed::since(snapshot.shipped_bytes),
            snapshot,
            stands_on: row.parent.zip(header.parent_point),
            row,
            layer,
        })
    }

    /// Bytes of sectors that it holds already.
    pub fn bytes_done(&self) -> u64 {
        self.layer.data_sectors() * SECTOR_BYTES
    }

    /// Refuses to go on with what was not begun as this plan's copy, in this layer: by the words of its layer's key, and of the root
    /// key.
    pub(super) fn check(&self, region: &Region, plan: &Plan) -> Result<()> {
        let header = folder::header_by(region, self.row.id, self.layer.keys())?;
        // A source without a moment is none that anything was begun of.
        let Some((point, below)) = plan.points.split_first() else { return Err(stranger(&self.snapshot)) };
        let is_vouched = vouch::is_vouched(region, &self.snapshot, *point)?;
        let points = if header.sealed.is_some() { &plan.points } else { below };
        match is_vouched && self.is_of(&header, points, plan) {
            true => Ok(()),
            false => Err(stranger(&self.snapshot)),
        }
    }

    fn is_of(&self, header: &Header, points: &[Point], plan: &Plan) -> bool {
        let source = &plan.source;
        header.points == points
            && (header.size_bytes, header.cipher, header.key) == (source.size_bytes, plan.cipher, plan.key)
            && (self.snapshot.cipher, self.snapshot.key) == (plan.cipher, plan.key)
            && header.kind == source.kind.as_str()
    }
}

fn stranger(snapshot: &Snapshot) -> CopyError {
    HostError::unvouched(copy_words(snapshot), "what was begun under its name is not a copy of that snapshot")
        .into()
}
