//! The newest copy of each volume of a region, by what the catalogs of other regions hold.
//!
//! A copy keeps the point of its source: by that it is known also where it is a copy of a copy, and where its source is gone. Rows
//! are taken at their word, as in a list.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use super::error::Result;
use crate::catalog::{CatalogError, ReadTx, Snapshot, SnapshotState};
use crate::ids::{LayerId, Name, Point, RegionId, SnapshotId, VolumeId};
use crate::region::Region;

/// The copies that a region has.
pub struct Copies {
    region: RegionId,
    name: String,
    copies: Vec<(Point, Snapshot)>,
}

/// A volume, and the newest copy of it that other regions have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    /// The volume.
    pub volume: VolumeId,
    /// Its name.
    pub name: Option<Name>,
    /// Its newest copy.
    pub copy: Option<NewestCopy>,
}

/// A copy, and the age of what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewestCopy {
    /// The region that has it.
    pub region: String,
    /// Its id there.
    pub snapshot: SnapshotId,
    /// Its name there.
    pub name: Name,
    /// When its source was taken, by the clock of the volume's region; where that knows the moment no more, when the copy was asked
    /// for, which is later.
    pub taken_at: Timestamp,
}

impl Copies {
    /// The whole copies that a region has, without those in the bin.
    pub fn of(region: &Region) -> Result<Self> {
        let mut copies = region.catalog()?.read(moments)?;
        copies.retain(|(_, row)| row.state == SnapshotState::Success && row.source_snapshot.is_some());
        Ok(Self { region: region.id(), name: region.name().to_owned(), copies })
    }
}

/// The newest copy of each volume of a region among those that other regions have. Of a volume that was made from a snapshot, a copy of
/// that, or of what that was taken on, is one too.
pub fn newest_copies(region: &Region, copies: &[Copies]) -> Result<Vec<Newest>> {
    let (volumes, known) = region.catalog()?.read(|tx| -> Result<_, CatalogError> {
        let mut volumes = Vec::new();
        for volume in tx.volumes()?.into_iter().filter(|volume| !volume.deleting) {
            let line = tx.layer_points(volume.active)?;
            volumes.push((volume, line));
        }
        Ok((volumes, moments(tx)?))
    })?;
    // What was taken here, and is no copy, is the older where both are of one moment.
    let mut taken: HashMap<Point, Timestamp> = HashMap::new();
    for (point, row) in &known {
        let at = taken.entry(*point).or_insert(row.created_at);
        *at = row.created_at.min(*at);
    }
    let newest = volumes.into_iter().map(|(volume, line)| {
        // Its line lacks those that it was rolled back behind, and its own lack those that were deleted.
        let own = known.iter().filter(|(_, row)| row.volume == Some(volume.id)).map(|(point, _)| *point);
        let points: HashSet<Point> = own.chain(line).collect();
        let elsewhere = copies.iter().filter(|copies| copies.region != region.id());
        let of_it = elsewhere.flat_map(|held| held.copies.iter().map(move |(point, row)| (held, point, row)));
        let of_it =
            of_it.filter(|(_, point, _)| points.contains(point)).map(|(held, point, row)| NewestCopy {
                region: held.name.clone(),
                snapshot: row.id,
                name: row.name.clone(),
                taken_at: taken.get(point).copied().unwrap_or(row.created_at),
            });
        Newest { volume: volume.id, name: volume.name, copy: of_it.max_by_key(|copy| copy.taken_at) }
    });
    Ok(newest.collect())
}

/// Whole snapshots, those in the bin too, and the moments that they are of.
fn moments(tx: &ReadTx) -> Result<Vec<(Point, Snapshot)>, CatalogError> {
    let points: HashMap<LayerId, Point> =
        tx.layers()?.into_iter().filter_map(|layer| Some((layer.id, layer.point?))).collect();
    let mut whole = tx.snapshots()?;
    whole.retain(|row| row.state.is_whole());
    Ok(whole.into_iter().filter_map(|row| Some((*points.get(&row.layer?)?, row))).collect())
}
