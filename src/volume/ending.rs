//! How a snapshot ends: by a command or by the clock; at once, or by way of the bin.
//!
//! All of it is one transaction, which finds the row as it was looked at, its lock, and the rules of the bin; then, where the row is
//! gone, its layer goes if nothing needs it. By the clock it ends by [`crate::region::Region::certain`] alone, whoever was told to end it. What is in the bin keeps its layer, and its file in `run/`, which readers lock.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

use super::execute::CLOSE_LAG;
use super::folder;
use super::host::Host;
use super::host_error::{HostError, Result};
use super::locks::refuse_locked;
use super::restore::in_bin;
use super::{proof, vouch};
use crate::catalog::{BinEntry, BinKind, Snapshot, SnapshotState, TaskEnd, WriteTx};
use crate::ids::{LayerId, SnapshotId};

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// Why a snapshot is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Somebody deletes it: it may go to the bin.
    Deleted,
    /// Somebody wants it gone, be it in the bin or not.
    Purged,
    /// Its time may be over.
    Over,
}

/// What becomes of it.
enum Fate {
    Stays,
    ToBin { days: u32 },
    Goes,
}

/// What was done in a transaction.
enum Done {
    Kept,
    /// With its layer.
    Gone(Option<LayerId>),
    /// It is not as it was looked at.
    Changed,
}

/// When a retention is over; none: past what a clock can say.
pub fn retention_end(row: &Snapshot) -> Option<Timestamp> {
    row.created_at.checked_add(DAY.checked_mul(row.retention_days?.try_into().ok()?)?).ok()
}

impl Host {
    /// Ends a snapshot, unless it is locked, or its file is open here or elsewhere.
    pub(super) fn end_snapshot(&self, id: SnapshotId, why: Why) -> Result<()> {
        let _one = self.changing.lock();
        // The kernel tells of a close a moment after it returned.
        let since = Instant::now();
        loop {
            let snapshot = self.region.catalog()?.read(|tx| tx.snapshot(id))?;
            match self.end_unless_open(&snapshot, why) {
                Err(HostError::InUse { .. }) if since.elapsed() < CLOSE_LAG => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                Err(e) => return Err(e),
                Ok(Done::Changed) => {}
                Ok(Done::Kept | Done::Gone(None)) => return Ok(()),
                Ok(Done::Gone(Some(layer))) => return folder::remove_unneeded(&self.region, layer),
            }
        }
    }

    /// Where nobody has the snapshot's file open, here or in another process, nobody can until it has ended.
    fn end_unless_open(&self, snapshot: &Snapshot, why: Why) -> Result<Done> {
        let in_use = |by| HostError::InUse { what: format!("snapshot {}", snapshot.name), by };
        let _nobody_here = self
            .snapshot_openers
            .keep_out(snapshot.id)
            .map_err(|pids| in_use(super::owner::words_of_openers(&pids)))?;
        let nobody_elsewhere = folder::lock_for_removal(&self.region, snapshot.id)?.map_err(|holders| {
            let words: Vec<_> = holders
                .iter()
                .map(|h| format!("process {} ({}), which reads it", h.pid, h.program))
                .collect();
            in_use(if words.is_empty() { "another process, which reads it".into() } else { words.join(", ") })
        })?;
        if !self.may_be_ended(snapshot, why)? {
            return Ok(Done::Changed);
        }
        let done = self.region.catalog()?.write(|tx| self.end_row(tx, snapshot, why));
        if matches!(done, Ok(Done::Gone(_))) {
            proof::forget(&self.region, snapshot.id);
            nobody_elsewhere.remove();
        }
        done
    }

    /// What has to be asked before the transaction. By the clock nothing ends that is not, by its layer's own word, what its row
    /// says: the layer that goes might be another's. Whether the row is still as it was.
    fn may_be_ended(&self, snapshot: &Snapshot, why: Why) -> Result<bool> {
        let may_go_to_bin = why == Why::Deleted && snapshot.state == SnapshotState::Success;
        if may_go_to_bin && !self.region.catalog()?.read(|tx| tx.bin_rules())?.is_empty() {
            // It may be asked for on the terminal, which no other writer should wait for.
            self.region.root_key()?;
        }
        if why != Why::Over || !snapshot.state.is_whole() {
            return Ok(true);
        }
        match vouch::header_of_snapshot(&self.region, snapshot) {
            Ok(_) => Ok(true),
            Err(error) => {
                // A fold may have brought its name to another layer.
                let now = self.region.catalog()?.read(|tx| tx.find_snapshot(snapshot.id))?;
                if now.as_ref() == Some(snapshot) { Err(error) } else { Ok(false) }
            }
        }
    }

    fn end_row(&self, tx: &WriteTx, snapshot: &Snapshot, why: Why) -> Result<Done> {
        let (now, certain) = (self.region.now(), self.region.certain());
        let row = tx.snapshot(snapshot.id)?;
        // What its copy shows of its progress is no other snapshot.
        if row.state != snapshot.state || why == Why::Over && row != *snapshot {
            return Ok(Done::Changed);
        }
        // In here: a lock that is taken meanwhile is before this, and holds, or finds no row.
        refuse_locked(tx, &row, &self.region)?;
        match self.fate(tx, &row, why, certain)? {
            Fate::Stays => Ok(Done::Kept),
            Fate::ToBin { days } => {
                let purge_at = DAY.checked_mul(days.try_into().unwrap_or(i32::MAX));
                let purge_at = purge_at.and_then(|time| now.checked_add(time).ok()).unwrap_or(Timestamp::MAX);
                let entry = BinEntry { deleted_at: now, purge_at, mac: None };
                tx.put_in_bin(row.id, &vouch::sign_bin_entry(&self.region, row.id, entry)?)?;
                Ok(Done::Kept)
            }
            Fate::Goes => {
                // Of a copy that is being made: its process learns of it by the row that is gone, if it lives (S34).
                tx.end_tasks_of(&row.id.to_string(), TaskEnd::CANCELLED, now)?;
                tx.delete_snapshot(row.id)?;
                // A copy that waited may have begun since it was looked at: its layer is that of now.
                Ok(Done::Gone(row.layer))
            }
        }
    }

    fn fate(&self, tx: &WriteTx, row: &Snapshot, why: Why, certain: Timestamp) -> Result<Fate> {
        match (why, row.state) {
            (Why::Purged, _) | (Why::Deleted, SnapshotState::Processing | SnapshotState::Failed) => {
                Ok(Fate::Goes)
            }
            (Why::Deleted, SnapshotState::Deleted) => Err(in_bin(
                row,
                &format!("`terrane snapshot delete {} --purge` takes it away for good", row.id),
            )),
            (Why::Over, SnapshotState::Processing | SnapshotState::Failed) => Ok(Fate::Stays),
            (Why::Over, SnapshotState::Deleted) => {
                vouch::check_endings(&self.region, tx, row)?;
                let is_over = tx.bin_entry(row.id)?.is_some_and(|entry| entry.purge_at <= certain);
                Ok(if is_over { Fate::Goes } else { Fate::Stays })
            }
            (Why::Over, SnapshotState::Success) if retention_end(row).is_none_or(|end| end > certain) => {
                Ok(Fate::Stays)
            }
            (Why::Over, SnapshotState::Success) => {
                self.refuse_unvouched_retention(tx, row)?;
                by_rules(tx, row)
            }
            (Why::Deleted, SnapshotState::Success) => by_rules(tx, row),
        }
    }

    fn refuse_unvouched_retention(&self, tx: &WriteTx, row: &Snapshot) -> Result<()> {
        let found = tx.retention_mac(row.id)?;
        if found.is_some() && found == vouch::retention_mac(&self.region, row)? {
            return Ok(());
        }
        let days = row.retention_days.unwrap_or_default();
        Err(HostError::refused(
            format!(
                "nothing vouches for the retention of snapshot {}: it is not deleted by itself",
                row.name
            ),
            format!("where it is meant: terrane snapshot set {} --retention-days {days}", row.id),
        ))
    }
}

fn by_rules(tx: &WriteTx, row: &Snapshot) -> Result<Fate> {
    let tags = tx.tags(&row.id.to_string())?;
    Ok(match tx.days_in_bin(BinKind::Snapshot, &tags)? {
        Some(days) => Fate::ToBin { days },
        None => Fate::Goes,
    })
}
