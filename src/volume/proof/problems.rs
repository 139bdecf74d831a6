//! What is wrong with a region's proofs.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{file, shelf};
use crate::catalog::Snapshot;
use crate::ids::Point;
use crate::region::Region;
use crate::volume::host_error::{HostError, Result};
use crate::volume::{folder, vouch};

/// What is wrong with proofs, in sentences: each is opened, leaves and all. Of those whose key is closed nothing is said, nor of those of
/// snapshots that can't be opened themselves. Ends early once `cancel` is set.
pub fn problems(region: &Region, cancel: &AtomicBool) -> Result<Vec<String>> {
    if let Err(error) = shelf::is_there(region) {
        return Ok(vec![format!("{error}; until that is put right no proof is read or written")]);
    }
    let mut problems = Vec::new();
    for row in region.catalog()?.read(|tx| tx.snapshots())? {
        if cancel.load(Ordering::Relaxed) {
            break;
        }
        let header = row.layer.and_then(|_| vouch::header_of_snapshot(region, &row).ok());
        let Some(point) = header.and_then(|header| header.points.first().copied()) else { continue };
        let what = format!("snapshot {} ({}): its proof can't be read", row.name, row.id);
        if let Err(error) = file::check_replaceable(region, row.id) {
            problems.push(format!("{what}: {error}"));
        } else if let Err(error) = open(region, &row, point)
            && !matches!(&error, HostError::Kms(error) if error.is_of_state())
        {
            problems.push(format!(
                "{what}: {error}; `terrane snapshot verify {} --deep` makes it anew",
                row.name
            ));
        }
    }
    Ok(problems)
}

fn open(region: &Region, row: &Snapshot, point: Point) -> Result<()> {
    let Some(proof) = file::read(region, row, point)? else { return Ok(()) };
    let layer = region.catalog()?.read(|tx| tx.layer(tx.layer_of_snapshot(row.id)?))?;
    let keys = folder::layer_keys(region, &layer)?;
    let key = folder::proof_key(region, layer.id, &keys)?;
    proof.leaves(&key)?;
    Ok(())
}
