//! The rows of layers, volumes and snapshots that were found.

use std::collections::{HashMap, HashSet};

use super::Recovered;
use super::layers::FoundLayer;
use crate::catalog::{
    BinEntry, BinRule, CatalogError, DiskKind, Fold, LayerState, Salvaged, Snapshot, SnapshotState, Tag,
    Volume, WriteTx, check_tags,
};
use crate::ids::{LayerId, Name, SnapshotId, VolumeId};
use crate::region::Region;
use crate::volume::host_error::{HostError, Result};
use crate::volume::vouch;

/// Digits of an id in a name that is made from it.
const NAME_DIGITS: usize = 8;

/// What a new row is made with.
struct Names<'a> {
    region: &'a Region,
    old: &'a Salvaged,
    taken: HashSet<String>,
}

/// Inserts all of it in one transaction.
pub(super) fn insert(
    region: &Region,
    mut layers: Vec<FoundLayer>,
    old: &Salvaged,
    recovered: &mut Recovered,
) -> Result<()> {
    // Two active layers of one volume: a rollback was under way. The one that its row names is the volume, for want of a row the
    // later, and the other becomes one. (An older one is refused where this machine saw a newer.)
    let is_named = |layer: &FoundLayer| {
        old.volumes.iter().any(|v| v.id == layer.header.volume && v.active == layer.row.id && !v.deleting)
    };
    let mut newest: HashMap<VolumeId, (bool, u64, LayerId)> = HashMap::new();
    for layer in layers.iter().filter(|l| l.row.state == LayerState::Active) {
        let place = (is_named(layer), layer.header.turn, layer.row.id);
        let of = newest.entry(layer.header.volume).or_insert(place);
        *of = place.max(*of);
    }
    for layer in layers.iter_mut().filter(|l| l.row.state == LayerState::Active) {
        if newest.get(&layer.header.volume).is_none_or(|(_, _, id)| *id != layer.row.id) {
            let volume = VolumeId::random();
            layer.row.volume = Some(volume);
            recovered.adopted.push((layer.row.id, volume));
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
    let mut names = Names { region, old, taken: HashSet::new() };
    let kept = kept_snapshots(region, &layers, old, recovered)?;
    // Names that were kept come before those that are made.
    names.taken.extend(kept.iter().map(|s| format!("snapshot {}", s.name)));
    // Some layers may have had a name that is lost; none has where all rows read and are believed.
    // And one that can't be used may have been all that needed another.
    let lacks_names = old.lacks_names || kept.len() < old.snapshots.len() || !recovered.unusable.is_empty();
    // One whose parent has a name after all is left as it is.
    let may_go_on = |fold: &Fold| fold.is_moved || kept.iter().all(|s| s.layer != Some(fold.parent));
    let folds: Vec<_> = layers.iter().filter_map(FoundLayer::fold).filter(may_go_on).collect();
    // One that an earlier repair could not use has no row: with its header put right it is there again, and had a name once. And one
    // that has ended since the old catalog was written may have got one.
    let may_have_had_one = |layer: &FoundLayer| lacks_names || !old.ended_layers.contains(&layer.row.id);
    region.catalog()?.write(|tx| {
        for layer in &layers {
            // Nothing may be put on a layer in a fold: they get their state afterwards.
            let state = if layer.row.state.is_folding() { LayerState::Sealed } else { layer.row.state };
            tx.insert_layer(&crate::catalog::Layer { state, ..layer.row.clone() }, &layer.points)?;
        }
        insert_bin_rules(tx, old)?;
        for snapshot in &kept {
            tx.insert_snapshot(snapshot)?;
            insert_tags(tx, &snapshot.id.to_string(), old)?;
            keep_lock(tx, snapshot, old, recovered)?;
            keep_endings(region, tx, snapshot, old, recovered)?;
            recovered.snapshots.push((snapshot.id.to_string(), snapshot.name.to_string()));
        }
        let known = kept_volume_names(&layers, old, &mut names, recovered);
        for layer in &layers {
            let is_named = kept.iter().any(|s| s.layer == Some(layer.row.id));
            // A fold takes it away, or puts it in another's place, since it had no name.
            let is_parent_in_fold = folds.iter().any(|fold| !fold.is_moved && fold.parent == layer.row.id);
            match layer.row.state {
                LayerState::Active => insert_volume(tx, layer, &next_of, &known, &mut names, recovered)?,
                LayerState::Sealed | LayerState::Filling
                    if !is_named && !is_parent_in_fold && may_have_had_one(layer) =>
                {
                    insert_snapshot(tx, layer, &mut names, recovered)?
                }
                _ => {}
            }
        }
        for layer in layers.iter().filter(|l| l.row.state.is_folding()) {
            tx.set_layer_state(layer.row.id, layer.row.state)?;
        }
        folds.iter().try_for_each(|fold| Ok(tx.insert_fold(fold)?))
    })
}

/// The old catalog's snapshots that are believed, each of the layer whose moment it is.
fn kept_snapshots(
    region: &Region,
    layers: &[FoundLayer],
    old: &Salvaged,
    recovered: &mut Recovered,
) -> Result<Vec<Snapshot>> {
    let mut kept: Vec<Snapshot> = Vec::new();
    for copy in old.snapshots.iter().filter(|s| s.state == SnapshotState::Processing && s.layer.is_none()) {
        recovered.notes.push(format!("copy {} ({}) waited to be made: ask for it again", copy.name, copy.id));
    }
    let sealed = |l: &&FoundLayer| matches!(l.row.state, LayerState::Sealed | LayerState::Filling);
    // What was in the bin comes last: it takes nobody's name.
    let of = |state| old.snapshots.iter().filter(move |s| s.state == state);
    for row in of(SnapshotState::Success).chain(of(SnapshotState::Deleted)) {
        let agrees = |l: &FoundLayer| {
            (row.size_bytes, row.cipher, row.key, row.account)
                == (l.row.size_bytes, l.row.cipher, l.row.key, l.row.account)
        };
        let mut layer = None;
        for found in layers.iter().filter(sealed).filter(|l| agrees(l)) {
            let Some(point) = found.row.point else { continue };
            // Where nothing vouches for it, it was made by an earlier version: the yes that follows does.
            let is_of = match row.mac {
                Some(_) => vouch::is_vouched(region, row, point)?,
                None => {
                    row.layer == Some(found.row.id) && row.volume.is_none_or(|v| v == found.header.volume)
                }
            };
            if is_of {
                layer = Some((found.row.id, point));
            }
        }
        let what = format!("snapshot {} ({})", row.name, row.id);
        // A name has one bit wrong, or a broken tree holds a row twice.
        let has_its_name = |other: &Snapshot| other.name == row.name && other.state == row.state;
        let is_in_bin = row.state == SnapshotState::Deleted;
        let is_taken = kept.iter().any(|other| other.id == row.id || has_its_name(other) && !is_in_bin);
        match layer.filter(|_| !is_taken) {
            Some((layer, point)) => {
                if row.mac.is_none() {
                    recovered.notes.push(format!("nothing vouches for {what}: it is taken as its row says"));
                }
                let mut row = Snapshot { layer: Some(layer), ..row.clone() };
                if is_in_bin && bin_entry(region, row.id, old)?.is_none() {
                    give_back(&mut row, &kept, recovered)?;
                }
                kept.push(vouch::sign_snapshot(region, row, point)?);
            }
            None => recovered.notes.push(format!("{what}: its row is not believed, and its name is lost")),
        }
    }
    Ok(kept)
}

/// Where the old catalog says that a snapshot is in the bin, and until when, if that is vouched for.
fn bin_entry<'o>(region: &Region, id: SnapshotId, old: &'o Salvaged) -> Result<Option<&'o BinEntry>> {
    let Some((_, entry)) = old.bin.iter().find(|(of, _)| *of == id) else { return Ok(None) };
    Ok(vouch::is_bin_entry_vouched(region, id, entry)?.then_some(entry))
}

/// A snapshot of which nobody knows until when it is in the bin is in no bin.
fn give_back(row: &mut Snapshot, kept: &[Snapshot], recovered: &mut Recovered) -> Result<()> {
    let mut taken: HashSet<_> = kept.iter().map(|s| format!("snapshot {}", s.name)).collect();
    let was = row.name.clone();
    if !taken.insert(format!("snapshot {was}")) {
        row.name = name(row.id.to_string().trim_start_matches(SnapshotId::PREFIX), "snapshot ", &mut taken)?;
    }
    row.state = SnapshotState::Success;
    recovered.notes.push(format!(
        "snapshot {was} ({}): nothing vouches for its time in the bin, and it is given back as {}",
        row.id, row.name
    ));
    Ok(())
}

/// The place in the bin of a snapshot that is kept, and what vouches for its retention.
fn keep_endings(
    region: &Region,
    tx: &WriteTx,
    snapshot: &Snapshot,
    old: &Salvaged,
    recovered: &mut Recovered,
) -> Result<()> {
    let id = snapshot.id;
    if snapshot.state == SnapshotState::Deleted
        && let Some(entry) = bin_entry(region, id, old)?
    {
        tx.set_bin_entry(id, entry)?;
        let until = entry.purge_at;
        recovered.notes.push(format!("snapshot {} ({id}) is in the bin, until {until}", snapshot.name));
    }
    let said = old.retention_macs.iter().find(|(of, _)| *of == id).map(|(_, mac)| *mac);
    let is_vouched = said.is_some() && said == vouch::retention_mac(region, snapshot)?;
    Ok(tx.set_retention_mac(id, said.filter(|_| is_vouched))?)
}

/// Rules say how long is waited, and harm nothing.
fn insert_bin_rules(tx: &WriteTx, old: &Salvaged) -> Result<()> {
    for rule in &old.bin_rules {
        let tags: Vec<_> = tags_of(&rule.id.to_string(), old);
        let rule = BinRule { account: tx.default_account()?.id, ..rule.clone() };
        // Such as no command would have made are left out.
        if check_tags(&tags).is_ok() && tx.find_bin_rule(rule.id)?.is_none() {
            match tx.insert_bin_rule(&rule, &tags) {
                Err(CatalogError::Exists { .. }) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Names of volumes that old rows say, each of one volume: before any is made.
fn kept_volume_names(
    layers: &[FoundLayer],
    old: &Salvaged,
    names: &mut Names,
    recovered: &mut Recovered,
) -> HashMap<VolumeId, Name> {
    let mut kept = HashMap::new();
    for layer in layers.iter().filter(|l| l.row.state == LayerState::Active) {
        let id = layer.row.volume.unwrap_or(layer.header.volume);
        let row = old.volumes.iter().find(|v| v.id == id && !v.deleting);
        let Some(name) = row.and_then(|v| v.name.clone()) else { continue };
        match names.taken.insert(format!("volume {name}")) {
            true => drop(kept.insert(id, name)),
            false => recovered
                .notes
                .push(format!("volume {id}: its name {name} is another's too, and gets another")),
        }
    }
    kept
}

fn tags_of(resource: &str, old: &Salvaged) -> Vec<Tag> {
    old.tags.iter().filter(|(of, _)| of == resource).map(|(_, tag)| tag.clone()).collect()
}

fn insert_tags(tx: &WriteTx, resource: &str, old: &Salvaged) -> Result<()> {
    let tags = tags_of(resource, old);
    // Such as no command would have made are left out.
    match check_tags(&tags) {
        Ok(()) => Ok(tx.set_tags(resource, &tags)?),
        Err(_) => Ok(()),
    }
}

/// The lock of a snapshot that is kept; nothing bears out until when it says it is.
fn keep_lock(tx: &WriteTx, snapshot: &Snapshot, old: &Salvaged, recovered: &mut Recovered) -> Result<()> {
    match old.locks.iter().find(|(id, _)| *id == snapshot.id) {
        None => Ok(()),
        Some((id, Some(lock))) => Ok(tx.set_snapshot_lock(*id, Some(*lock))?),
        Some((id, None)) => {
            let what = format!("snapshot {} ({id}): its lock does not read, and is lost", snapshot.name);
            recovered.notes.push(what);
            Ok(())
        }
    }
}

fn insert_volume(
    tx: &WriteTx,
    layer: &FoundLayer,
    next_of: &HashMap<LayerId, LayerId>,
    kept_names: &HashMap<VolumeId, Name>,
    names: &mut Names,
    recovered: &mut Recovered,
) -> Result<()> {
    let row = &layer.row;
    let id = row.volume.unwrap_or(layer.header.volume);
    let known = names.old.volumes.iter().find(|v| v.id == id && !v.deleting);
    let name = match (known.map(|known| &known.name), kept_names.get(&id)) {
        (Some(None), _) => None,
        (Some(Some(_)), Some(kept)) => Some(kept.clone()),
        _ => Some(name(id.to_string().trim_start_matches(VolumeId::PREFIX), "volume ", &mut names.taken)?),
    };
    let shown = name.as_ref().map_or_else(|| id.to_string(), ToString::to_string);
    // What its header says of it is so; the row adds what a header does not know.
    tx.insert_volume(&Volume {
        id,
        account: row.account,
        name,
        size_bytes: row.size_bytes,
        kind: kind(layer),
        cipher: row.cipher,
        key: row.key,
        active: row.id,
        next: next_of.get(&row.id).copied(),
        source_snapshot: known.and_then(|v| v.source_snapshot),
        deleting: false,
        created_at: known.map_or(row.created_at, |v| v.created_at),
    })?;
    insert_tags(tx, &id.to_string(), names.old)?;
    recovered.volumes.push((id.to_string(), shown));
    Ok(())
}

fn insert_snapshot(
    tx: &WriteTx,
    layer: &FoundLayer,
    names: &mut Names,
    recovered: &mut Recovered,
) -> Result<()> {
    let row = &layer.row;
    let id = SnapshotId::random();
    let name = name(&row.id.to_string(), "snapshot ", &mut names.taken)?;
    let snapshot = Snapshot {
        id,
        account: row.account,
        name: name.clone(),
        description: None,
        layer: Some(row.id),
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
    tx.insert_snapshot(&vouch::sign_snapshot(names.region, snapshot, point)?)?;
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
