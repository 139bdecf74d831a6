//! Making a volume. It changes no existing layer.

use std::sync::Arc;

use super::folder::{self, LayerSpec};
use super::host_error::{HostError, Result};
use super::restore::refuse_in_bin;
use super::{footing, vouch};
use crate::catalog::{DiskKind, Kind, Layer, LayerState, ReadTx, SnapshotState, Tag, Volume};
use crate::crypto::Cipher;
use crate::ids::{AccountId, KeyId, LayerId, Name, SnapshotId, VolumeId};
use crate::layer::PageCache;
use crate::region::Region;

/// What a new volume is made of.
#[derive(Clone, Debug)]
pub struct VolumeSpec {
    /// Its owner.
    pub account: AccountId,
    /// Its name.
    pub name: Option<Name>,
    /// Its size; for one made from a snapshot, at least the snapshot's.
    pub size_bytes: u64,
    /// What it is for; for one made from a snapshot, the snapshot's.
    pub kind: DiskKind,
    /// The snapshot it starts as.
    pub snapshot: Option<SnapshotId>,
    /// Its key; none: plain.
    pub key: Option<KeyId>,
}

/// Makes a volume without tags: [`create_tagged_volume`].
pub fn create_volume(region: &Region, spec: &VolumeSpec) -> Result<VolumeId> {
    create_tagged_volume(region, spec, &[])
}

/// Makes a volume; usable at once, whatever its size (X13).
pub fn create_tagged_volume(region: &Region, spec: &VolumeSpec, tags: &[Tag]) -> Result<VolumeId> {
    let found = |id| region.catalog()?.read(|tx| -> Result<_> { find_source(tx, id) });
    loop {
        let before = spec.snapshot.map(found).transpose()?;
        let made = make(region, spec, tags);
        // The owner of the layers may be folding: then what was read of the snapshot, and of its layer, is of two moments.
        if made.is_err() && spec.snapshot.map(found).transpose()? != before {
            continue;
        }
        return made;
    }
}

/// Where a snapshot is: its row's layer, and the row of that.
fn find_source(tx: &ReadTx, id: SnapshotId) -> Result<(LayerId, Option<Layer>)> {
    let layer = tx.layer_of_snapshot(id)?;
    Ok((layer, tx.find_layer(layer)?))
}

fn make(region: &Region, spec: &VolumeSpec, tags: &[Tag]) -> Result<VolumeId> {
    let id = VolumeId::random();
    if let Some(name) = &spec.name {
        region.catalog()?.read(|tx| tx.refuse_taken_name(Kind::Volume, name))?;
    }
    let (parent, points) = match spec.snapshot {
        None => (None, Vec::new()),
        Some(snapshot) => {
            let snapshot = region.catalog()?.read(|tx| tx.snapshot(snapshot))?;
            refuse_in_bin(&snapshot)?;
            if snapshot.state != SnapshotState::Success {
                let message = format!("snapshot {} is not complete", snapshot.name);
                return Err(HostError::refused(message, "wait until its state is success"));
            }
            if snapshot.key != spec.key {
                let message =
                    format!("snapshot {} is under another key, and so are its volumes", snapshot.name);
                let hint = format!(
                    "copy it first: terrane snapshot copy {} --to {} --key KEY --name NAME",
                    snapshot.name,
                    region.name()
                );
                return Err(HostError::refused(message, hint));
            }
            if spec.size_bytes < snapshot.size_bytes {
                let message = format!(
                    "snapshot {} has {} bytes: a volume from it can't be smaller",
                    snapshot.name, snapshot.size_bytes
                );
                return Err(HostError::refused(message, "leave --size out, or give more"));
            }
            let points = vouch::header_of_snapshot(region, &snapshot)?.points;
            (points.first().copied().zip(snapshot.layer).map(|(point, layer)| (layer, point)), points)
        }
    };
    let cipher = if spec.key.is_some() { Cipher::XtsAes256 } else { Cipher::Plain };
    let layer_spec = LayerSpec {
        account: spec.account,
        volume: id,
        parent,
        size_bytes: spec.size_bytes,
        cipher,
        key: spec.key,
        kind: spec.kind,
        points,
        turn: 0,
        proof_key: None,
    };
    let cache = Arc::new(PageCache::new(1));
    let (row, layer) = folder::make_layer(region, &cache, &layer_spec)?;
    let committed = footing::commit_made(region, row.id, |tx| -> Result<_> {
        // Before the row of its layer was there the snapshot may have gone, and a fold put something else into its layer.
        if let Some(snapshot) = spec.snapshot {
            let snapshot = tx.snapshot(snapshot)?;
            refuse_in_bin(&snapshot)?;
            if tx.layer(row.id)?.parent != snapshot.layer {
                return Err(HostError::refused("the snapshot was changed meanwhile", "try it again"));
            }
        }
        tx.set_layer_state(row.id, LayerState::Active)?;
        tx.set_tags(&id.to_string(), tags)?;
        Ok(tx.insert_volume(&Volume {
            id,
            account: spec.account,
            name: spec.name.clone(),
            size_bytes: spec.size_bytes,
            kind: spec.kind,
            cipher,
            key: spec.key,
            active: row.id,
            next: None,
            source_snapshot: spec.snapshot,
            deleting: false,
            created_at: region.now(),
        })?)
    });
    drop(layer);
    if committed.is_err() {
        folder::remove_unneeded(region, row.id)?;
    }
    committed.map(|()| id)
}
