//! Taking away what killed processes left: what they had half-made, and what they had parted from the row that named it.

use super::folder;
use super::host_error::Result;
use crate::catalog::{CatalogError, LayerState, SnapshotState, TaskState};
use crate::ids::{LayerId, SnapshotId};
use crate::region::Region;

/// What the task of a copy says whose process was killed.
const ABANDONED: &str = "the process that made the copy ended before the copy did";

/// Takes away what killed processes left half-made, and layers that nobody needs. Called by the owner of the layers, before it
/// has any open.
pub fn remove_litter(region: &Region) -> Result<()> {
    remove_abandoned(region)?;
    for row in region.catalog()?.read(|tx| tx.unneeded_layers())? {
        tracing::warn!(layer = %row.id, state = row.state.as_str(), "a layer that nobody needs is removed");
        // Such as a header under a disabled key: it is tried again.
        if let Err(error) = super::fold::finish(region, row.id) {
            tracing::warn!(layer = %row.id, %error, "what is left of a layer could not be removed");
        }
    }
    Ok(())
}

/// Takes away copies and layers whose maker was killed; also beside a mount.
pub(super) fn remove_abandoned(region: &Region) -> Result<()> {
    remove_abandoned_copies(region)?;
    let preparing = region.catalog()?.read(|tx| tx.layers_in_state(LayerState::Preparing))?;
    for row in preparing.iter().filter(|row| folder::is_abandoned(region, row)) {
        tracing::warn!(layer = %row.id, "a layer whose maker was killed is removed");
        folder::remove_unneeded(region, row.id)?;
    }
    Ok(())
}

/// Takes away copies into this region whose process ended before they did, and their layers, so that a killed copy can be
/// made again under its name. Copies that run are left alone: their layer's data file is locked.
pub fn remove_abandoned_copies(region: &Region) -> Result<Vec<SnapshotId>> {
    let unfinished = region.catalog()?.read(|tx| -> Result<_, CatalogError> {
        let snapshots = tx.snapshots()?.into_iter().filter(|s| s.state == SnapshotState::Processing);
        snapshots.map(|s| Ok((tx.layer(s.layer)?, s))).collect::<Result<Vec<_>, _>>()
    })?;
    let mut removed = Vec::new();
    for (layer, snapshot) in unfinished {
        if folder::is_abandoned(region, &layer) {
            tracing::warn!(snapshot = %snapshot.id, name = %snapshot.name, "a copy whose process ended before it did is removed");
            remove_copy(region, snapshot.id, layer.id, TaskState::Failed, Some(ABANDONED))?;
            removed.push(snapshot.id);
        }
    }
    Ok(removed)
}

/// Takes away a copy that is not whole: its snapshot, then its layer. Its task ends in a state, with a reason.
pub fn remove_copy(
    region: &Region,
    id: SnapshotId,
    layer: LayerId,
    end: TaskState,
    why: Option<&str>,
) -> Result<()> {
    let now = region.now();
    region.catalog()?.write(|tx| {
        if tx.find_snapshot(id)?.is_some_and(|s| s.state != SnapshotState::Success) {
            tx.delete_snapshot(id)?;
        }
        tx.end_tasks_of(&id.to_string(), end, why, now)
    })?;
    folder::remove_unneeded(region, layer)
}
