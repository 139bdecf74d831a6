//! What the catalog says of a disk, held against what keys say of it: the catalog itself has no MAC.
//!
//! - A snapshot's row carries a MAC by a key derived from the root key, over what never changes in its life: whose moment it is,
//!   its name, size and kind. The moment, the point, is that of its layer's header, under the layer's own key.
//! - A task's row carries one over all that was asked.
//! - So do the dates by which a snapshot ends without being asked for: those of its place in the bin, and its retention. A row that
//!   somebody put there, or a date that was moved, takes nothing away.
//! - A volume takes the layers that were made for it, by their headers, of the cipher, key and size that its row says; and of
//!   those none before the one that this machine saw last.
//! - A point is minted from the key of the layer that ends, and from what its header says since it was last opened: nobody else can
//!   say it, it needs no row to be known, and a copy of the region has others.

use super::host_error::{HostError, Result};
use super::{folder, footing};
use crate::catalog::{
    BinEntry, Layer as LayerRow, LayerState, ReadTx, Snapshot, SnapshotState, Task, Volume,
};
use crate::crypto::{LayerKeys, Prf};
use crate::ids::{LayerId, Point, SnapshotId};
use crate::layer::Layer;
use crate::layer::header::{Folding, Header};
use crate::region::Region;

/// The point that a layer is sealed at, by its header.
pub fn mint_point(layer: LayerId, keys: &LayerKeys, header: &Header) -> Point {
    Point(keys.header().mac(&[b"point\0", &layer.0, &header.mint]))
}

/// Gives a layer that is to take writes another point to end at than it had: the same layer of another copy of the region may have
/// gone on to that. Before a next layer is made, which names it.
pub(super) fn mint_anew(region: &Region, layer: &Layer) -> Result<()> {
    let mint = LayerId::random().0;
    folder::change_header(region, layer.id(), layer.keys(), |header| header.mint = mint)
}

/// The points of a layer that has ended, or is to, nearest first, by its header: its own, and those below.
pub(super) fn points_of(layer: LayerId, keys: &LayerKeys, header: &Header) -> Vec<Point> {
    match header.sealed {
        Some(_) => header.points.clone(),
        None => {
            std::iter::once(mint_point(layer, keys, header)).chain(header.points.iter().copied()).collect()
        }
    }
}

/// The moment that an open layer holds, by its own word.
pub fn own_point(region: &Region, layer: &Layer) -> Result<Point> {
    let header = folder::header_by(region, layer.id(), layer.keys())?;
    Ok(point_in(layer.id(), layer.keys(), &header))
}

/// The moment that a layer holds, or will when it ends, by its header.
pub(super) fn point_in(layer: LayerId, keys: &LayerKeys, header: &Header) -> Point {
    match (header.sealed, header.points.first()) {
        (Some(_), Some(point)) => *point,
        _ => mint_point(layer, keys, header),
    }
}

/// Puts the MAC into the row of a snapshot of the moment `point`.
pub fn sign_snapshot(region: &Region, row: Snapshot, point: Point) -> Result<Snapshot> {
    let mac = Some(snapshot_mac(region, &row, point)?);
    Ok(Snapshot { mac, ..row })
}

fn snapshot_mac(region: &Region, row: &Snapshot, point: Point) -> Result<[u8; 16]> {
    let prf = Prf::derive(region.root_key()?, "terrane catalog");
    let [id, account, volume] =
        [row.id.to_string(), row.account.to_string(), row.volume.map(|v| v.to_string()).unwrap_or_default()];
    let mut text = Vec::new();
    for part in ["snapshot", &id, &account, row.name.as_str(), &volume, row.kind.as_str()] {
        text.extend_from_slice(part.as_bytes());
        // Of no name or id.
        text.push(0);
    }
    Ok(prf.mac(&[&text, &region.id().0, &point.0, &row.size_bytes.to_le_bytes()]))
}

/// Whether the row of a snapshot is what was said when it was taken, of this moment.
pub fn is_vouched(region: &Region, row: &Snapshot, point: Point) -> Result<bool> {
    Ok(row.mac == Some(snapshot_mac(region, row, point)?))
}

/// Puts the MAC into the row of a task: over all that was asked.
pub fn sign_task(region: &Region, row: Task) -> Result<Task> {
    let mac = Some(task_mac(region, &row)?);
    Ok(Task { mac, ..row })
}

/// Whether a task's row asks what was asked.
pub fn is_task_vouched(region: &Region, row: &Task) -> Result<bool> {
    Ok(row.mac == Some(task_mac(region, row)?))
}

fn task_mac(region: &Region, row: &Task) -> Result<[u8; 16]> {
    let resource = row.resource.as_deref().unwrap_or_default();
    let (id, account) = (row.id.to_string(), row.account.to_string());
    let text = ["task", &id, &account, &row.kind, resource, &row.detail].join("\0");
    Ok(Prf::derive(region.root_key()?, "terrane catalog").mac(&[text.as_bytes(), &region.id().0]))
}

/// Puts the MAC into a snapshot's place in the bin.
pub fn sign_bin_entry(region: &Region, id: SnapshotId, entry: BinEntry) -> Result<BinEntry> {
    let mac = Some(bin_mac(region, id, &entry)?);
    Ok(BinEntry { mac, ..entry })
}

/// Whether it is in the bin since and until when that was said.
pub fn is_bin_entry_vouched(region: &Region, id: SnapshotId, entry: &BinEntry) -> Result<bool> {
    Ok(entry.mac == Some(bin_mac(region, id, entry)?))
}

fn bin_mac(region: &Region, id: SnapshotId, entry: &BinEntry) -> Result<[u8; 16]> {
    let dates = [entry.deleted_at, entry.purge_at].map(|at| at.as_microsecond().to_le_bytes());
    dates_mac(region, "bin", id, &dates.concat())
}

/// What vouches for the retention of a snapshot; none: it has none.
pub fn retention_mac(region: &Region, row: &Snapshot) -> Result<Option<[u8; 16]>> {
    let Some(days) = row.retention_days else { return Ok(None) };
    let dates = [i64::from(days), row.created_at.as_microsecond()].map(i64::to_le_bytes);
    dates_mac(region, "retention", row.id, &dates.concat()).map(Some)
}

fn dates_mac(region: &Region, what: &str, id: SnapshotId, dates: &[u8]) -> Result<[u8; 16]> {
    let text = format!("{what}\0{id}\0");
    let prf = Prf::derive(region.root_key()?, "terrane catalog");
    Ok(prf.mac(&[text.as_bytes(), &region.id().0, dates]))
}

/// Refuses what is said of a snapshot's end where it is not what was said first. A retention that nothing vouches for, as of an
/// earlier version, is let be: nothing ends by it.
pub(super) fn check_endings(region: &Region, tx: &ReadTx, row: &Snapshot) -> Result<()> {
    let (entry, retention) = (tx.bin_entry(row.id)?, tx.retention_mac(row.id)?);
    let is_said = match entry {
        Some(entry) => is_bin_entry_vouched(region, row.id, &entry)?,
        None => row.state != SnapshotState::Deleted,
    };
    let why = if !is_said {
        "nothing vouches for its time in the bin: it was not put there by a command, or its dates were changed"
    } else if retention.is_some() && retention != retention_mac(region, row)? {
        "its retention, or when it was taken, was changed"
    } else {
        return Ok(());
    };
    Err(HostError::unvouched(format!("snapshot {} ({})", row.name, row.id), why))
}

/// Refuses a snapshot whose row is not what was said when it was taken, or names a layer of another moment.
pub(super) fn check_snapshot(
    region: &Region,
    row: &Snapshot,
    header: &Header,
    keys: &LayerKeys,
) -> Result<()> {
    let point = point_in(header.layer, keys, header);
    let why = if matches!(header.fold, Some(Folding::Absorbs(_))) {
        "its layer is being made another's, since no snapshot named it"
    } else if row.mac.is_none() {
        "nothing vouches for its row: it was made by an earlier version, or changed"
    } else if !is_vouched(region, row, point)? {
        "its row is not what was said when it was taken: name, size, owner, volume or layer were changed"
    } else if (row.size_bytes, row.cipher, row.key) != (header.size_bytes, header.cipher, header.key) {
        "its row says another size or key than its layer"
    } else {
        return Ok(());
    };
    Err(HostError::unvouched(format!("snapshot {} ({})", row.name, row.id), why))
}

/// Refuses a snapshot that its layer does not bear out, or whose key may not be used.
pub fn check_whole(region: &Region, row: &Snapshot) -> Result<()> {
    header_of_snapshot(region, row).map(drop)
}

/// The header of a snapshot's layer, if the snapshot is what its row says.
pub(super) fn header_of_snapshot(region: &Region, row: &Snapshot) -> Result<Header> {
    let layer = region.catalog()?.read(|tx| match row.layer {
        Some(layer) => tx.layer(layer),
        None => tx.layer(tx.layer_of_snapshot(row.id)?),
    })?;
    let (header, keys) = folder::checked_header(region, &layer)?;
    check_snapshot(region, row, &header, &keys)?;
    let points = points_of(header.layer, &keys, &header);
    Ok(Header { points, ..header })
}

/// Refuses a volume whose row names a layer made for another, or not the newest that this machine saw.
pub(super) fn check_volume(region: &Region, row: &Volume, active: &Header) -> Result<()> {
    let said = (row.cipher, row.key, row.size_bytes, row.kind.as_str());
    let why = if active.volume != row.id {
        format!("its row names layer {}, which was made for volume {}", active.layer, active.volume)
    } else if said != (active.cipher, active.key, active.size_bytes, active.kind.as_str()) {
        format!("its row says another size, kind or key than its layer {}", active.layer)
    } else {
        match region.volume_anchor(row.id)? {
            Some(seen) if seen.layer != active.layer && seen.turn >= active.turn => format!(
                "its row names layer {} (its {}.), and this machine has seen layer {} (its {}.) take its writes",
                active.layer, active.turn, seen.layer, seen.turn
            ),
            _ => return Ok(()),
        }
    };
    Err(HostError::unvouched(words_of(row), &why))
}

fn words_of(row: &Volume) -> String {
    let name = row.name.as_ref().map_or_else(|| row.id.to_string(), |name| format!("{name} ({})", row.id));
    format!("volume {name}")
}

/// The same of a volume by its row alone. One that names a layer which is sealed, as its row of before the seal does, has nothing to write to.
pub(super) fn check_volume_row(region: &Region, row: &Volume) -> Result<()> {
    let layer = region.catalog()?.read(|tx| tx.layer(row.active))?;
    let ended = || {
        let why = format!("its row names layer {}, which takes no writes any more", layer.id);
        Err(HostError::unvouched(words_of(row), &why))
    };
    // Of that no key is needed.
    if layer.state == LayerState::Sealed {
        return ended();
    }
    let header = folder::checked_header(region, &layer)?.0;
    if header.sealed.is_some() { ended() } else { check_volume(region, row, &header) }
}

/// Refuses a layer as the next of a volume unless it was made to follow the active one.
pub(super) fn check_next(
    volume: &Volume,
    active: &Layer,
    active_header: &Header,
    row: &LayerRow,
    header: &Header,
) -> Result<()> {
    let point = point_in(active.id(), active.keys(), active_header);
    let follows = row.parent == Some(active.id())
        && footing::fits(header, active_header, Some(point))
        && (header.volume, header.cipher, header.key) == (volume.id, volume.cipher, volume.key);
    match follows {
        true => Ok(()),
        false => {
            let why = format!("its row names layer {} as the next, which was not made for that", row.id);
            Err(HostError::unvouched(format!("volume {}", volume.id), &why))
        }
    }
}
