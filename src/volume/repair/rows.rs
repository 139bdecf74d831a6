//! The rows of layers, volumes and snapshots that were found.

use std::collections::{HashMap, HashSet};

use super::Recovered;
use super::layers::FoundLayer;
use crate::catalog::{DiskKind, LayerState, Snapshot, SnapshotState, Volume, WriteTx};
use crate::ids::{LayerId, Name, SnapshotId, VolumeId};
use crate::region::Region;
use crate::volume::host_error::{HostError, Result};
use crate::volume::vouch;

/// Digits of an id in a name that is made from it.
const NAME_DIGITS: usize = 8;

/// Inserts all of it in one transaction.
pub(super) fn insert(region: &Region, mut layers: Vec<FoundLayer>, recovered: &mut Recovered) -> Result<()> {
    // Two active layers of one volume: a rollback was under way. Each becomes a volume.
    let mut taken = HashSet::new();
    for layer in layers.iter_mut().filter(|l| l.row.state == LayerState::Active) {
        if !taken.insert(layer.header.volume) {
            layer.row.volume = Some(VolumeId::random());
        }
    }
    let mut next_of: HashMap<LayerId, LayerId> = HashMap::new();
    layers.retain(|layer| {
        let is_next = layer.row.state == LayerState::Next;
        let Some(parent) = layer.row.parent.filter(|_| is_next) else { return true };
        let is_first = !next_of.contains_key(&parent);
        match is_first {
            true => drop(next_of.insert(parent, layer.row.id)),
            false => recovered.unusable.push(format!("layer {}: an empty layer more than one", layer.row.id)),
        }
        is_first
    });
    region.catalog()?.write(|tx| {
        for layer in &layers {
            // Nothing may be put on a layer in a fold: they get their state afterwards.
            let state = if layer.row.state.is_folding() { LayerState::Sealed } else { layer.row.state };
            tx.insert_layer(&crate::catalog::Layer { state, ..layer.row.clone() }, &layer.points)?;
        }
        let mut names = HashSet::new();
        for layer in &layers {
            match layer.row.state {
                LayerState::Active => insert_volume(tx, layer, &next_of, &mut names, recovered)?,
                LayerState::Sealed | LayerState::Filling => {
                    insert_snapshot(region, tx, layer, &mut names, recovered)?
                }
                _ => {}
            }
        }
        for layer in layers.iter().filter(|l| l.row.state.is_folding()) {
            tx.set_layer_state(layer.row.id, layer.row.state)?;
        }
        Ok(())
    })
}

fn insert_volume(
    tx: &WriteTx,
    layer: &FoundLayer,
    next_of: &HashMap<LayerId, LayerId>,
    names: &mut HashSet<String>,
    recovered: &mut Recovered,
) -> Result<()> {
    let row = &layer.row;
    let id = row.volume.unwrap_or(layer.header.volume);
    let name = name(id.to_string().trim_start_matches(VolumeId::PREFIX), "volume ", names)?;
    tx.insert_volume(&Volume {
        id,
        account: row.account,
        name: Some(name.clone()),
        size_bytes: row.size_bytes,
        kind: kind(layer),
        cipher: row.cipher,
        key: row.key,
        active: row.id,
        next: next_of.get(&row.id).copied(),
        source_snapshot: None,
        deleting: false,
        created_at: row.created_at,
    })?;
    recovered.volumes.push((id.to_string(), name.to_string()));
    Ok(())
}

fn insert_snapshot(
    region: &Region,
    tx: &WriteTx,
    layer: &FoundLayer,
    names: &mut HashSet<String>,
    recovered: &mut Recovered,
) -> Result<()> {
    let row = &layer.row;
    let id = SnapshotId::random();
    let name = name(&row.id.to_string(), "snapshot ", names)?;
    let snapshot = Snapshot {
        id,
        account: row.account,
        name: name.clone(),
        description: None,
        layer: row.id,
        volume: row.volume,
        size_bytes: row.size_bytes,
        kind: kind(layer),
        cipher: row.cipher,
        key: row.key,
        state: SnapshotState::Success,
        progress_percent: 100,
        created_by: "region check --repair".into(),
        source_snapshot: None,
        source_region: None,
        changed_bytes: layer.data_bytes,
        shipped_bytes: 0,
        stored_bytes: row.stored_bytes,
        group: None,
        retention_days: None,
        created_at: row.created_at,
        mac: None,
    };
    let point =
        row.point.ok_or_else(|| HostError::unvouched(format!("layer {}", row.id), "it has no point"))?;
    tx.insert_snapshot(&vouch::sign_snapshot(region, snapshot, point)?)?;
    recovered.snapshots.push((id.to_string(), name.to_string()));
    Ok(())
}

fn kind(layer: &FoundLayer) -> DiskKind {
    match layer.header.kind.as_str() {
        "system" => DiskKind::System,
        _ => DiskKind::Data,
    }
}

/// `recovered-` and the first digits of an id, or all where those are taken.
fn name(digits: &str, of: &str, names: &mut HashSet<String>) -> Result<Name> {
    let short = format!("recovered-{}", &digits[..NAME_DIGITS.min(digits.len())]);
    let name = match names.insert(format!("{of}{short}")) {
        true => short,
        false => format!("recovered-{digits}"),
    };
    name.parse().map_err(|e| HostError::refused(format!("{e}"), "report it: it can't happen"))
}
