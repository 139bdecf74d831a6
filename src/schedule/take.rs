//! Taking the snapshots that are due. Each is written down first, with its id and name: what was cut is done again as it was to be, and
//! a due time has one snapshot of a volume.

use std::collections::HashMap;

use jiff::Timestamp;

use super::error::Result;
use super::made;
use super::run::{Outcome, Run, since};
use super::terms::{What, unvouched};
use crate::catalog::{CatalogError, ReadTx, ScheduledSnapshot, Tag, Volume};
use crate::ids::{GroupId, Name, SnapshotId, VolumeId};
use crate::kms;
use crate::volume::{HostError, Order, SnapshotItem, TagText};

/// What is left of a name for that of a volume, with the rest of it and what may tell it from another.
const VOLUME_CHARS_MAX: usize = 40;

/// Takes the snapshots of the last due time that is not over, of each volume that has none for it yet. The time, if it is not over
/// then.
pub(super) fn take_due(run: &Run, outcome: &mut Outcome) -> Result<Option<Timestamp>> {
    let region = run.region();
    let now = region.now();
    // A region's clock never goes back.
    if run.row.last_due.is_some_and(|last| last > now) {
        return Err(unvouched(&run.row, "its row says that it was due at a time that is to come"));
    }
    let wanted = wanted(run, outcome)?;
    let Some(due) = run.terms.when.last_until(since(&run.row), now) else { return Ok(None) };
    if run.caller.is_cancelled() {
        return Ok(Some(due));
    }
    let before = missing(run, due, &wanted)?;
    let mut ready = Vec::new();
    for volume in &before {
        // One whose key is disabled is no reason to take the others not, or not of one moment.
        match volume.key.map(|key| kms::check_usable(region, key)).transpose() {
            Ok(_) => ready.push(volume),
            Err(error) => outcome.troubles.push(format!("volume {}: {error}", called(volume))),
        }
    }
    take(run, due, &ready, outcome)?;
    remember_taken(run, due)?;
    let left = missing(run, due, &wanted)?;
    outcome.taken += before.len().saturating_sub(left.len()) as u64;
    if !left.is_empty() {
        return Ok(Some(due));
    }
    region.catalog()?.write(|tx| tx.end_due(run.row.id, due, region.now()))?;
    Ok(None)
}

/// The volumes to take snapshots of.
fn wanted(run: &Run, outcome: &mut Outcome) -> Result<Vec<Volume>> {
    let all = run.region().catalog()?.read(|tx| -> Result<_> {
        let is_wanted = |volume: &Volume| -> Result<bool, CatalogError> {
            Ok(match &run.terms.what {
                What::Volumes(ids) => ids.contains(&volume.id),
                What::Tagged(tags) => has_all(&tx.tags(&volume.id.to_string())?, tags),
            })
        };
        let mut wanted = Vec::new();
        for volume in tx.volumes()?.into_iter().filter(|volume| !volume.deleting) {
            if is_wanted(&volume)? {
                wanted.push(volume);
            }
        }
        Ok(wanted)
    })?;
    match &run.terms.what {
        What::Volumes(ids) => {
            let gone = ids.iter().filter(|id| !all.iter().any(|volume| volume.id == **id));
            outcome.notes.extend(gone.map(|id| format!("volume {id} is gone")));
        }
        What::Tagged(_) if all.is_empty() => outcome.notes.push("no volume has its tags".into()),
        What::Tagged(_) => {}
    }
    Ok(all)
}

fn has_all(tags: &[Tag], wanted: &[Tag]) -> bool {
    wanted.iter().all(|tag| tags.contains(tag))
}

/// Those of the volumes that have no snapshot for this time, and had none: what was deleted since is not taken again.
fn missing(run: &Run, due: Timestamp, wanted: &[Volume]) -> Result<Vec<Volume>> {
    let made = made::snapshots(run.region(), &run.voucher, run.row.id)?;
    let is_made = |volume: &&Volume| {
        let mut of_it = made.iter().filter(|(_, made)| made.volume == volume.id && made.due == due);
        of_it.any(|(record, made)| record.is_taken || made.row.is_some())
    };
    Ok(wanted.iter().filter(|volume| !is_made(volume)).cloned().collect())
}

/// Says which snapshots of this time were there, so that no other ever has the id of one.
fn remember_taken(run: &Run, due: Timestamp) -> Result<()> {
    let made = made::snapshots(run.region(), &run.voucher, run.row.id)?;
    let is_new = |record: &ScheduledSnapshot| record.due == due && !record.is_taken;
    let new = made.iter().filter(|(record, made)| is_new(record) && made.row.is_some());
    let ids: Vec<_> = new.map(|(record, _)| record.snapshot).collect();
    if ids.is_empty() {
        return Ok(());
    }
    Ok(run.region().catalog()?.write(|tx| ids.iter().try_for_each(|id| tx.set_scheduled_taken(*id)))?)
}

/// Takes snapshots of these volumes: at one moment, or, where that can't be done for one of them, each by itself.
fn take(run: &Run, due: Timestamp, volumes: &[&Volume], outcome: &mut Outcome) -> Result<()> {
    if volumes.is_empty() {
        return Ok(());
    }
    let items = write_down(run, due, volumes)?;
    let Err(error) = perform(run, due, items.clone()) else { return Ok(()) };
    if items.len() == 1 || !is_of_a_volume(&error) {
        outcome.troubles.push(format!("its snapshots for {due} could not be taken: {error}"));
        return Ok(());
    }
    outcome.notes.push(format!("its snapshots for {due} are not of one moment, which could not be: {error}"));
    let owned: Vec<Volume> = volumes.iter().map(|volume| (*volume).clone()).collect();
    // It may have come to the error after they were taken.
    for volume in missing(run, due, &owned)? {
        let item = items.iter().filter(|item| item.volume == volume.id.to_string()).cloned();
        if let Err(error) = perform(run, due, item.collect()) {
            outcome.troubles.push(format!("volume {}: {error}", called(&volume)));
        }
    }
    Ok(())
}

/// Writes down the snapshots that are to be taken. What was written down before, and not taken, is to be taken as it was.
fn write_down(run: &Run, due: Timestamp, volumes: &[&Volume]) -> Result<Vec<SnapshotItem>> {
    let known = made::snapshots(run.region(), &run.voucher, run.row.id)?;
    let known: HashMap<VolumeId, ScheduledSnapshot> = known
        .into_iter()
        .filter(|(record, _)| record.due == due)
        .map(|(record, _)| (record.volume, record))
        .collect();
    run.region().catalog()?.write(|tx| -> Result<_> {
        let mut items = Vec::with_capacity(volumes.len());
        for volume in volumes {
            let record = match known.get(&volume.id) {
                Some(record)
                    if !record.is_taken && tx.find_snapshot_by_name(record.name.as_str())?.is_none() =>
                {
                    record.clone()
                }
                _ => {
                    let id = SnapshotId::random();
                    let row = ScheduledSnapshot {
                        snapshot: id,
                        schedule: run.row.id,
                        volume: volume.id,
                        due,
                        name: free_name(tx, &name(&run.row.name, volume, due), id)?,
                        mac: None,
                        is_taken: false,
                    };
                    let row = ScheduledSnapshot { mac: run.voucher.snapshot(&row), ..row };
                    tx.insert_scheduled_snapshot(&row)?;
                    row
                }
            };
            items.push(SnapshotItem {
                volume: volume.id.to_string(),
                snapshot: record.snapshot.to_string(),
                name: record.name.to_string(),
            });
        }
        Ok(items)
    })
}

fn perform(run: &Run, due: Timestamp, items: Vec<SnapshotItem>) -> Result<(), HostError> {
    let order = Order::Snapshot {
        group: (items.len() > 1).then(|| GroupId::random().to_string()),
        items,
        account: run.row.account.to_string(),
        description: Some(format!("taken by schedule {}, due {due}", run.row.name)),
        tags: tags_of(&run.terms.what),
        retention_days: None,
    };
    run.caller.perform_in(run.region().id(), &order)
}

/// What it chooses volumes by its snapshots bear too: a rule of the bin that names the same holds for them.
fn tags_of(what: &What) -> Vec<TagText> {
    match what {
        What::Volumes(_) => Vec::new(),
        What::Tagged(tags) => {
            let text = |tag: &Tag| TagText { key: tag.key.clone(), value: tag.value.clone() };
            tags.iter().map(text).collect()
        }
    }
}

/// Whether something is wrong with one volume, rather than with all of the region.
fn is_of_a_volume(error: &HostError) -> bool {
    match error {
        HostError::Region(_) | HostError::InUse { .. } => false,
        HostError::Catalog(error) => !matches!(
            error,
            CatalogError::Busy { .. }
                | CatalogError::NoSpace { .. }
                | CatalogError::OpenFiles { .. }
                | CatalogError::Corrupted { .. }
        ),
        _ => true,
    }
}

fn called(volume: &Volume) -> String {
    volume.name.as_ref().map_or_else(|| volume.id.to_string(), ToString::to_string)
}

/// SCHEDULE-VOLUME-20261129T120000Z.
fn name(schedule: &Name, volume: &Volume, due: Timestamp) -> String {
    let by_name = called(volume);
    let volume = if by_name.len() <= VOLUME_CHARS_MAX { by_name } else { volume.id.to_string() };
    format!("{schedule}-{volume}-{}", due.strftime("%Y%m%dT%H%M%SZ"))
}

/// This name, or where another snapshot has it, one that ends with digits of the id.
pub(super) fn free_name(tx: &ReadTx, wanted: &str, id: SnapshotId) -> Result<Name, CatalogError> {
    let digits = id.to_string();
    let name = match tx.find_snapshot_by_name(wanted)? {
        None => wanted.to_owned(),
        Some(_) => format!("{wanted}-{}", &digits[digits.len() - 6..]),
    };
    name.parse().map_err(|error| CatalogError::Refused { what: format!("{error}") })
}
