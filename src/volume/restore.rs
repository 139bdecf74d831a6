//! Giving back what is in the bin, and what may not be done with it before.

use super::ending::retention_end;
use super::host_error::{HostError, Result};
use super::vouch;
use crate::catalog::{Snapshot, SnapshotState};
use crate::ids::{Name, SnapshotId};
use crate::region::Region;

/// A snapshot that was given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Its name now.
    pub name: Name,
    /// The retention that it had, in days: it was over, and would have ended it again at once, and was taken away.
    pub lost_retention: Option<u32>,
}

/// Refuses what needs a snapshot that is not in the bin.
pub fn refuse_in_bin(snapshot: &Snapshot) -> Result<()> {
    match snapshot.state {
        SnapshotState::Deleted => {
            Err(in_bin(snapshot, &format!("give it back first: terrane snapshot restore {}", snapshot.id)))
        }
        _ => Ok(()),
    }
}

pub(super) fn in_bin(snapshot: &Snapshot, hint: &str) -> HostError {
    HostError::refused(format!("snapshot {} ({}) is in the bin", snapshot.name, snapshot.id), hint)
}

/// Gives a snapshot back from the bin, under the name that it had or another one. A name that is taken meanwhile is
/// [`crate::catalog::CatalogError::Exists`].
pub fn restore_snapshot(region: &Region, id: SnapshotId, name: Option<&Name>) -> Result<Restored> {
    loop {
        let row = region.catalog()?.read(|tx| tx.snapshot(id))?;
        let name = name.unwrap_or(&row.name);
        let mac = match *name == row.name {
            true => row.mac,
            // A fold may bring its name to another layer meanwhile.
            false => match renamed_mac(region, &row, name) {
                Err(_) if region.catalog()?.read(|tx| tx.find_snapshot(id))?.as_ref() != Some(&row) => {
                    continue;
                }
                other => other?,
            },
        };
        let restored = region.catalog()?.write(|tx| -> Result<_> {
            if tx.find_snapshot(id)?.as_ref() != Some(&row) {
                return Ok(None);
            }
            if row.state != SnapshotState::Deleted {
                let message = format!("snapshot {} ({id}) is not in the bin", row.name);
                return Err(HostError::refused(message, "`terrane snapshot list --deleted` shows what is"));
            }
            tx.take_out_of_bin(&row, name, mac)?;
            // Whoever gives it back keeps it: no schedule ends it again.
            tx.forget_scheduled_snapshot(id)?;
            tx.forget_scheduled_copy(id)?;
            let now = region.certain();
            let lost_retention =
                row.retention_days.filter(|_| retention_end(&row).is_some_and(|end| end <= now));
            if lost_retention.is_some() {
                tx.set_snapshot_details(id, row.description.as_deref(), None)?;
                tx.set_retention_mac(id, None)?;
            }
            Ok(Some(Restored { name: name.clone(), lost_retention }))
        })?;
        if let Some(restored) = restored {
            return Ok(restored);
        }
    }
}

/// The MAC of a row under another name, if it is what its MAC and its layer say.
fn renamed_mac(region: &Region, row: &Snapshot, name: &Name) -> Result<Option<[u8; 16]>> {
    let header = vouch::header_of_snapshot(region, row)?;
    let point = header.points.first().copied();
    let point =
        point.ok_or_else(|| HostError::unvouched(format!("snapshot {}", row.name), "it has no point"))?;
    let renamed = Snapshot { name: name.clone(), ..row.clone() };
    Ok(vouch::sign_snapshot(region, renamed, point)?.mac)
}
