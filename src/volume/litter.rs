//! Taking away what killed processes left: what they had half-made, and what they had parted from the row that named it.

use std::fs;

use super::host_error::Result;
use super::{folder, proof};
use crate::catalog::{LayerState, Snapshot, SnapshotState, TaskEnd, TaskState};
use crate::ids::{LayerId, SnapshotId};
use crate::region::Region;
use crate::sys::owned;

/// Takes away what killed processes left half-made, and layers that nobody needs. Called by the owner of the layers, before it
/// has any open.
pub fn remove_litter(region: &Region) -> Result<()> {
    remove_abandoned(region)?;
    // Nothing depends on proofs: whatever is wrong with them, the region can be used.
    if let Err(error) = proof::forget_unnamed(region) {
        tracing::warn!(%error, "proofs that no snapshot has could not be swept");
    }
    // Nor on these.
    if let Err(error) = remove_words(region) {
        tracing::warn!(%error, "what copies had read could not be swept");
    }
    for row in region.catalog()?.read(|tx| tx.unneeded_layers())? {
        tracing::warn!(layer = %row.id, state = row.state.as_str(), "a layer that nobody needs is removed");
        // Such as a header under a disabled key: it is tried again.
        if let Err(error) = super::fold::finish(region, row.id) {
            tracing::warn!(layer = %row.id, %error, "what is left of a layer could not be removed");
        }
    }
    Ok(())
}

/// Takes away what copies read, where they are whole: their processes were killed between the one and the other.
fn remove_words(region: &Region) -> Result<()> {
    for row in region.catalog()?.read(|tx| tx.layers())?.iter().filter(|row| row.state.is_sealed()) {
        let path = folder::words_path(region, row.id);
        // In a folder that is no link: what that leads to is not ours to remove.
        let is_left = || owned::check_folder(&region.layer_dir(row.id)).is_ok();
        if fs::symlink_metadata(&path).is_ok() && is_left() {
            let _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

/// Takes away layers whose maker was killed; also beside a mount. A copy's stays: it has a name, and can be gone on with.
pub(super) fn remove_abandoned(region: &Region) -> Result<()> {
    let preparing = region.catalog()?.read(|tx| tx.layers_in_state(LayerState::Preparing))?;
    for row in preparing.iter().filter(|row| folder::is_abandoned(region, row)) {
        let copies = region.catalog()?.read(|tx| tx.snapshots_of_layer(row.id))?;
        if copies.is_empty() {
            tracing::warn!(layer = %row.id, "a layer whose maker was killed is removed");
            folder::remove_unneeded(region, row.id)?;
        }
        // Its removal was begun, and cut.
        for copy in copies.iter().filter(|_| folder::has_lost_header(region, row.id)) {
            tracing::warn!(snapshot = %copy.id, name = %copy.name, "what is left of a copy that failed is removed");
            let why = Some("it could not be carried out");
            let end = TaskEnd { state: TaskState::Failed, error: why, exit: Some(1) };
            remove_copy(region, copy.id, Some(row.id), end)?;
        }
    }
    Ok(())
}

/// Whether a copy that has begun is not whole and nobody works on it. While one does, its layer's data file is locked.
pub fn is_interrupted(region: &Region, snapshot: &Snapshot) -> Result<bool> {
    let (SnapshotState::Processing, Some(layer)) = (snapshot.state, snapshot.layer) else {
        return Ok(false);
    };
    let layer = region.catalog()?.read(|tx| tx.find_layer(layer))?;
    Ok(layer.is_none_or(|row| folder::is_abandoned(region, &row)))
}

/// Calls off a copy that is not whole, whether somebody works on it, who learns of it by the row that is gone (S34), or nobody. Whether
/// it was one; one that has just become whole stays.
pub fn cancel_copy(region: &Region, id: SnapshotId) -> Result<bool> {
    let now = region.now();
    let cancelled = region.catalog()?.write(|tx| -> Result<_> {
        let Some(row) = tx.find_snapshot(id)?.filter(|row| !row.state.is_whole()) else {
            return Ok(None);
        };
        tx.delete_snapshot(id)?;
        tx.end_tasks_of(&id.to_string(), TaskEnd::CANCELLED, now)?;
        Ok(Some(row.layer))
    })?;
    let Some(layer) = cancelled else { return Ok(false) };
    proof::forget(region, id);
    layer.map_or(Ok(()), |layer| folder::remove_unneeded(region, layer))?;
    Ok(true)
}

/// Takes away a copy that is not whole: its snapshot, then its layer. Its task ends.
pub fn remove_copy(region: &Region, id: SnapshotId, layer: Option<LayerId>, end: TaskEnd) -> Result<()> {
    let now = region.now();
    region.catalog()?.write(|tx| {
        if tx.find_snapshot(id)?.is_some_and(|s| !s.state.is_whole()) {
            tx.delete_snapshot(id)?;
        }
        tx.end_tasks_of(&id.to_string(), end, now)
    })?;
    // Where another process made it whole, it is not gone.
    if region.catalog()?.read(|tx| tx.find_snapshot(id))?.is_none() {
        proof::forget(region, id);
    }
    layer.map_or(Ok(()), |layer| folder::remove_unneeded(region, layer))
}
