//! Deleting what is too much of what a schedule took or asked for: the oldest of a volume, while as many newer ones as are to be kept
//! are whole by their layers' own word.

use std::collections::HashSet;

use jiff::Timestamp;

use super::copies::{Target, newest_due};
use super::error::Result;
use super::made::{self, Made};
use super::run::{Outcome, Run};
use crate::catalog::{CatalogError, Snapshot, SnapshotState, WriteTx};
use crate::ids::{SnapshotId, VolumeId};
use crate::region::Region;
use crate::volume::{HostError, Order, vouch};

/// A command's number for what is in use.
const IN_USE: i32 = 5;

/// What is kept, and how it is forgotten.
struct Rule<'a> {
    keep: Option<u32>,
    /// Those that something waits for.
    needed: &'a HashSet<String>,
    forget: fn(&WriteTx, SnapshotId) -> Result<(), CatalogError>,
}

/// Deletes snapshots that are too much, but for those that a copy waits for. Of what is not there any more nothing is remembered.
pub(super) fn expire_snapshots(
    run: &Run,
    targets: &[Target],
    unfinished: Option<Timestamp>,
    unasked: HashSet<String>,
    outcome: &mut Outcome,
) -> Result<()> {
    let region = run.region();
    let all = made::snapshots(region, &run.voucher, run.row.id)?;
    let (there, gone): (Vec<_>, Vec<_>) =
        all.into_iter().map(|(_, made)| made).partition(|made| whole_row(made).is_some());
    // What is about to be taken is not there yet.
    let gone: Vec<_> = gone.iter().filter(|made| Some(made.due) != unfinished).map(|made| made.id).collect();
    if !gone.is_empty() {
        region.catalog()?.write(|tx| gone.iter().try_for_each(|id| tx.forget_scheduled_snapshot(*id)))?;
    }
    // What no copy was asked for yet, and what one is open of.
    let mut needed = unasked;
    for target in targets {
        let open = target.host.region().catalog()?.read(|tx| tx.processing_snapshots())?;
        needed.extend(open.into_iter().filter_map(|copy| copy.source_snapshot));
    }
    let rule =
        Rule { keep: run.terms.keep, needed: &needed, forget: |tx, id| tx.forget_scheduled_snapshot(id) };
    expire(run, region, &there, &rule, outcome)
}

/// The same of the copies in one region. An older one goes once enough newer ones are made.
pub(super) fn expire_copies(run: &Run, target: &Target, outcome: &mut Outcome) -> Result<()> {
    let region = target.host.region();
    let all = made::copies(region, &target.voucher, run.row.id, run.region().now())?;
    let is_there = |made: &Made| {
        let state = made.row.as_ref().map(|row| row.state);
        matches!(state, Some(SnapshotState::Processing | SnapshotState::Success))
    };
    // The newest of a volume is remembered for ever: what is older is not asked for again.
    let newest = newest_due(all.iter().map(|(_, made)| made));
    let is_newest = |made: &Made| newest.get(&made.volume) == Some(&made.due);
    let gone: Vec<_> =
        all.iter().filter(|(_, made)| !is_there(made) && !is_newest(made)).map(|(_, made)| made.id).collect();
    if !gone.is_empty() {
        region.catalog()?.write(|tx| gone.iter().try_for_each(|id| tx.forget_scheduled_copy(*id)))?;
    }
    let whole: Vec<_> =
        all.into_iter().map(|(_, made)| made).filter(|made| whole_row(made).is_some()).collect();
    let needed = HashSet::new();
    let rule = Rule { keep: target.to.keep, needed: &needed, forget: |tx, id| tx.forget_scheduled_copy(id) };
    expire(run, region, &whole, &rule, outcome)
}

fn whole_row(made: &Made) -> Option<&Snapshot> {
    made.row.as_ref().filter(|row| row.state == SnapshotState::Success)
}

fn expire(run: &Run, region: &Region, made: &[Made], rule: &Rule, outcome: &mut Outcome) -> Result<()> {
    let Some(keep) = rule.keep else { return Ok(()) };
    // Nothing goes for what is of a time that may not have come.
    let certain = run.region().certain();
    let made: Vec<_> = made.iter().filter(|made| made.due <= certain).collect();
    let volumes: HashSet<VolumeId> = made.iter().map(|made| made.volume).collect();
    for volume in volumes {
        // Newest first.
        let of_volume: Vec<_> = made.iter().rev().filter(|made| made.volume == volume).collect();
        if of_volume.len() <= keep as usize {
            continue;
        }
        let mut kept = 0;
        for made in of_volume {
            let Some(row) = whole_row(made) else { continue };
            if kept < keep {
                // What can't be read, now or for ever, is not what others go for.
                kept += u32::from(is_borne_out(region, row));
                continue;
            }
            if run.caller.is_cancelled() {
                return Ok(());
            }
            expire_one(run, region, row, rule, outcome)?;
        }
    }
    Ok(())
}

fn is_borne_out(region: &Region, row: &Snapshot) -> bool {
    let checked = vouch::check_whole(region, row);
    if let Err(error) = &checked {
        tracing::warn!(snapshot = %row.name, %error, "it does not count as one that is kept");
    }
    checked.is_ok()
}

/// Deletes one, unless it is locked, or something needs it.
fn expire_one(run: &Run, region: &Region, row: &Snapshot, rule: &Rule, outcome: &mut Outcome) -> Result<()> {
    let lock = region.catalog()?.read(|tx| tx.snapshot_lock(row.id))?;
    if lock.is_some_and(|lock| lock.holds(region.certain())) || !is_borne_out(region, row) {
        return Ok(());
    }
    if rule.needed.contains(&row.id.to_string()) {
        return Ok(());
    }
    match delete(run, region, row.id) {
        Ok(()) => {
            outcome.expired += 1;
            Ok(region.catalog()?.write(|tx| (rule.forget)(tx, row.id))?)
        }
        // Somebody reads it.
        Err(HostError::InUse { .. } | HostError::Answered { exit: IN_USE, .. }) => {
            outcome.waits_for.push(region.dir().to_owned());
            Ok(())
        }
        Err(error) => {
            outcome.troubles.push(format!("snapshot {} could not be expired: {error}", row.name));
            Ok(())
        }
    }
}

/// The one way in which a schedule deletes: as `snapshot delete` does.
fn delete(run: &Run, region: &Region, id: SnapshotId) -> Result<(), HostError> {
    run.caller.perform_in(region.id(), &Order::DeleteSnapshot { snapshot: id.to_string() })
}
