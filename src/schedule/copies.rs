//! Asking for the copies of what a schedule took: each once, in the queue of its target, as `snapshot copy` does. That it was asked for
//! is written into the target's catalog in the transaction that queues it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::error::{Result, ScheduleError};
use super::made::{self, Made};
use super::run::{Outcome, Run};
use super::take::free_name;
use super::terms::CopyTo;
use super::vouch::Voucher;
use crate::catalog::{ScheduledCopy, SnapshotState};
use crate::copy::{self, CopyError, Details};
use crate::ids::{AccountId, GroupId, VolumeId};
use crate::region::{Region, RegionError};
use crate::volume::{Host, HostError};

/// A region that copies are made in.
pub(super) struct Target<'a> {
    pub to: &'a CopyTo,
    pub host: Arc<Host>,
    pub voucher: Voucher,
}

/// Opens the regions that copies are made in; those that can't be are troubles.
pub(super) fn open_targets<'a>(run: &'a Run, outcome: &mut Outcome) -> Vec<Target<'a>> {
    let mut targets = Vec::new();
    for to in &run.terms.copies {
        match open(run, to) {
            Ok(target) => targets.push(target),
            Err(error) => {
                outcome.troubles.push(format!("copies to region {}: {error}", to.region_name));
            }
        }
    }
    targets
}

fn open<'a>(run: &Run, to: &'a CopyTo) -> Result<Target<'a>> {
    if to.region == run.region().id() {
        return Ok(Target { to, host: run.source.clone(), voucher: Voucher::of(run.region())? });
    }
    let config = run.caller.config;
    if config.entry(to.region)?.is_none() {
        let hint = "terrane region add DIR";
        return Err(ScheduleError::refused("it is not known here", hint));
    }
    let region = Region::choose(Some(&to.region.to_string()), config)?;
    if region.asks_for_passphrase() {
        let why = "its passphrase is asked for on a terminal; `terrane region add` with --passphrase-file lets \
                   schedules copy to it";
        return Err(RegionError::Passphrase { why: why.into() }.into());
    }
    let voucher = Voucher::of(&region)?;
    Ok(Target { to, host: Host::new(region, None), voucher })
}

/// Asks for a copy of each snapshot that is newer than all that were asked for there, of as many as are to be kept there. Those for
/// which that could not be done go into `unasked`.
pub(super) fn ask_for_copies(
    run: &Run,
    target: &Target,
    outcome: &mut Outcome,
    unasked: &mut HashSet<String>,
) -> Result<Option<ScheduleError>> {
    let asked = made::copies(target.host.region(), &target.voucher, run.row.id, run.region().now())?;
    let newest = newest_due(asked.iter().map(|(_, made)| made));
    let made = made::snapshots(run.region(), &run.voucher, run.row.id)?;
    let is_whole = |made: &Made| made.row.as_ref().is_some_and(|row| row.state == SnapshotState::Success);
    let whole: Vec<Made> = made.into_iter().map(|(_, made)| made).filter(is_whole).collect();
    let mut wanted = newest_of_each(whole, target.to.keep);
    wanted.retain(|made| newest.get(&made.volume).is_none_or(|due| made.due > *due));
    let mut first_error = None;
    // Those of one time together, the oldest first: each is the base of the next.
    for of_one_time in wanted.chunk_by(|a, b| a.due == b.due) {
        if run.caller.is_cancelled() {
            break;
        }
        match ask(run, target, of_one_time) {
            Ok((asked, error)) => {
                outcome.asked += asked;
                first_error = first_error.or(error);
            }
            // Most often all meet the same.
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    let copies = made::copies(target.host.region(), &target.voucher, run.row.id, run.region().now())?;
    let is_asked = |id| copies.iter().any(|(record, _)| record.source == id);
    unasked.extend(wanted.iter().filter(|made| !is_asked(made.id)).map(|made| made.id.to_string()));
    let is_open = |made: &Made| made.row.as_ref().is_some_and(|row| row.state == SnapshotState::Processing);
    if copies.iter().any(|(_, made)| is_open(made)) {
        outcome.waits_for.push(target.host.region().dir().to_owned());
    }
    Ok(first_error)
}

/// The newest due time of each volume.
pub(super) fn newest_due<'m>(made: impl Iterator<Item = &'m Made>) -> HashMap<VolumeId, Timestamp> {
    let mut newest = HashMap::new();
    for made in made {
        newest.entry(made.volume).and_modify(|due| *due = made.due.max(*due)).or_insert(made.due);
    }
    newest
}

/// The newest so many of each volume, of those that are in order.
fn newest_of_each(mut made: Vec<Made>, keep: Option<u32>) -> Vec<Made> {
    let mut counts: HashMap<VolumeId, u32> = HashMap::new();
    made.reverse();
    made.retain(|made| {
        let count = counts.entry(made.volume).or_default();
        *count += 1;
        keep.is_none_or(|keep| *count <= keep)
    });
    made.reverse();
    made
}

/// Queues copies of the snapshots of one time, as far as they may be made: all of those, or none. One that may not is no end of the
/// others; the first error of such.
fn ask(run: &Run, target: &Target, snapshots: &[Made]) -> Result<(u64, Option<ScheduleError>)> {
    let region = target.host.region();
    let account = account_of(target)?;
    let group = (snapshots.len() > 1).then(GroupId::random);
    let (mut plans, mut first_error) = (Vec::new(), None);
    for made in snapshots {
        let Some(row) = &made.row else { continue };
        let details = Details {
            account,
            name: region.catalog()?.read(|tx| free_name(tx, row.name.as_str(), made.id))?,
            description: Some(format!("asked for by schedule {}, due {}", run.row.name, made.due)),
            tags: Vec::new(),
            retention_days: None,
            group,
        };
        match copy::plan(run.source, made.id, &target.host, &details.name, &target.to.key) {
            Ok(plan) => plans.push((made, plan, details)),
            Err(error) => drop(first_error.get_or_insert(error.into())),
        }
    }
    let wanted: Vec<_> = plans.iter().map(|(_, plan, details)| (plan, details)).collect();
    let held = copy::enqueue_all_and(run.region(), &target.host, &wanted, |tx, ids| {
        for ((made, ..), id) in plans.iter().zip(ids) {
            let (schedule, source, volume, due) = (run.row.id, made.id, made.volume, made.due);
            let row = ScheduledCopy { snapshot: *id, schedule, source, volume, due, mac: None };
            let row = ScheduledCopy { mac: target.voucher.copy(&row), ..row };
            tx.insert_scheduled_copy(&row).map_err(HostError::from).map_err(CopyError::from)?;
        }
        Ok(())
    })?;
    // From here on they are anybody's.
    Ok((held.len() as u64, first_error))
}

/// Whose the copies are: of a catalog that was rebuilt since, the default account.
fn account_of(target: &Target) -> Result<AccountId> {
    target.host.region().catalog()?.read(|tx| -> Result<_> {
        let accounts = tx.accounts()?;
        let is_there = accounts.iter().any(|account| account.id == target.to.account);
        Ok(if is_there { target.to.account } else { tx.default_account()?.id })
    })
}
