//! Carrying a schedule out: all of it that can be done now, and what stands in the way of the rest.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;

use super::copies::{Target, ask_for_copies, open_targets};
use super::error::Result;
use super::expire::{expire_copies, expire_snapshots};
use super::take::take_due;
use super::terms::{Terms, lock_error, lock_path};
use super::vouch::Voucher;
use crate::catalog::Schedule;
use crate::ids::{RegionId, ScheduleId};
use crate::region::{Config, Region};
use crate::sys::lock_file::LockFile;
use crate::volume::{Host, HostError, Order};

/// No more is said of what stands in a schedule's way.
const ERROR_CHARS_MAX: usize = 1000;

/// What is needed of whoever has a schedule carried out.
pub struct Caller<'a> {
    /// The known regions.
    pub config: &'a Config,
    /// Has an order carried out: by the mount that owns the region's layers, else by this process.
    pub perform: &'a (dyn Fn(Region, &Order) -> Result<(), HostError> + Sync),
    /// Set to end it between two steps: the rest is done by whoever comes next.
    pub cancel: &'a AtomicBool,
}

impl Caller<'_> {
    /// Has an order carried out in a region.
    pub(super) fn perform_in(&self, region: RegionId, order: &Order) -> Result<(), HostError> {
        (self.perform)(Region::choose(Some(&region.to_string()), self.config)?, order)
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Another process carries it out just now.
    pub is_busy: bool,
    /// Snapshots that were taken.
    pub taken: u64,
    /// Copies that were asked for.
    pub asked: u64,
    /// Snapshots and copies that were deleted.
    pub expired: u64,
    /// Something waits for copies, in the regions of these directories, or for who reads a snapshot.
    pub waits_for: Vec<PathBuf>,
    /// What may pass stands in the way: it is tried again.
    pub troubles: Vec<String>,
    /// What is not as it should be, and nothing comes of trying again.
    pub notes: Vec<String>,
}

impl Outcome {
    /// Whether anything was done.
    pub fn did_anything(&self) -> bool {
        self.taken + self.asked + self.expired > 0
    }

    /// What stands in the way, in words.
    pub fn error(&self) -> Option<String> {
        let words: Vec<&str> = self.troubles.iter().chain(&self.notes).map(String::as_str).collect();
        let words = words.join("; ");
        let cut = words.char_indices().nth(ERROR_CHARS_MAX).map(|(at, _)| format!("{} …", &words[..at]));
        (!words.is_empty()).then(|| cut.unwrap_or(words))
    }
}

/// A schedule that this process carries out, and no other.
pub(super) struct Run<'a> {
    pub source: &'a Arc<Host>,
    pub row: Schedule,
    pub terms: Terms,
    pub voucher: Voucher,
    pub caller: &'a Caller<'a>,
}

impl Run<'_> {
    pub fn region(&self) -> &Region {
        self.source.region()
    }
}

/// When a schedule is due next: after what is over, and after it was made. Of one whose row does not read, never.
pub fn next_due(row: &Schedule) -> Option<Timestamp> {
    let terms = Terms::of_row(row).ok()?;
    terms.when.next_after(since(row))
}

/// When a schedule is due next after a moment.
pub fn next_due_after(row: &Schedule, after: Timestamp) -> Option<Timestamp> {
    let terms = Terms::of_row(row).ok()?;
    terms.when.next_after(after.max(since(row)))
}

/// Up to when nothing is due any more.
pub(super) fn since(row: &Schedule) -> Timestamp {
    row.last_due.map_or(row.created_at, |last| last.max(row.created_at))
}

/// Carries out what a schedule is to do now: takes what is due, asks for copies, expires what is too much. What stood in its way is
/// written into its row.
pub fn carry_out(source: &Arc<Host>, id: ScheduleId, caller: &Caller) -> Result<Outcome> {
    let region = source.region();
    let lock = LockFile::take(&lock_path(region, id)).map_err(lock_error(region, id))?;
    let Some(_lock) = lock else { return Ok(Outcome { is_busy: true, ..Outcome::default() }) };
    // Behind the lock: another process may just have carried it out.
    let Some(row) = region.catalog()?.read(|tx| tx.find_schedule(id))? else { return Ok(Outcome::default()) };
    let mut outcome = Outcome::default();
    if let Err(error) = Run::new(source, row.clone(), caller).and_then(|run| run.carry_out(&mut outcome)) {
        outcome.troubles.push(error.to_string());
    }
    write_error(region, &row, outcome.error())?;
    Ok(outcome)
}

/// Nothing is written where nothing is new.
fn write_error(region: &Region, row: &Schedule, error: Option<String>) -> Result<()> {
    if error == row.error {
        return Ok(());
    }
    let since = row.error_at.unwrap_or_else(|| region.now());
    let error = error.as_deref().map(|words| (words, since));
    Ok(region.catalog()?.write(|tx| tx.set_schedule_error(row.id, error))?)
}

impl<'a> Run<'a> {
    fn new(source: &'a Arc<Host>, row: Schedule, caller: &'a Caller<'a>) -> Result<Self> {
        let voucher = Voucher::of(source.region())?;
        let terms = Terms::checked(&row, &voucher)?;
        Ok(Self { source, row, terms, voucher, caller })
    }

    /// 1. Snapshots, before anything that may fail elsewhere. 2. Copies of them, before what they would be made of goes. 3. What is too
    ///    much, of snapshots that no copy waits for, and of copies.
    fn carry_out(&self, outcome: &mut Outcome) -> Result<()> {
        let unfinished = take_due(self, outcome)?;
        let targets = open_targets(self, outcome);
        let mut unasked = HashSet::new();
        // What can't be looked at may hold a copy that waits for any of them, or be about to be asked for one.
        let mut is_all_known = targets.len() == self.terms.copies.len();
        for target in &targets {
            if self.caller.is_cancelled() {
                is_all_known = false;
                continue;
            }
            match ask_for_copies(self, target, outcome, &mut unasked) {
                Ok(None) => {}
                Ok(Some(error)) => outcome.troubles.push(to_region(target, &error)),
                Err(error) => {
                    is_all_known = false;
                    outcome.troubles.push(to_region(target, &error));
                }
            }
        }
        if is_all_known {
            expire_snapshots(self, &targets, unfinished, unasked, outcome)?;
        }
        for target in &targets {
            if let Err(error) = expire_copies(self, target, outcome) {
                outcome.troubles.push(to_region(target, &error));
            }
        }
        Ok(())
    }
}

fn to_region(target: &Target, error: &super::ScheduleError) -> String {
    format!("copies to region {}: {error}", target.to.region_name)
}
