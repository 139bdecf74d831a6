//! What a snapshot's lock forbids, and whom. Locks bind commands, not the owner of the files: who may write the catalog can
//! take one out of it.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::host_error::{HostError, Result};
use super::restore::refuse_in_bin;
use crate::catalog::{Account, LockMode, ReadTx, Snapshot, SnapshotLock, SnapshotState};
use crate::ids::SnapshotId;
use crate::region::Region;

/// A lock ends within so many years: nobody may lift one of mode `compliance`, not even one that was a slip of the pen.
const YEARS_MAX: i64 = 100;

/// Locks a snapshot, or changes its lock. Only its owner may.
pub fn lock_snapshot(region: &Region, account: &Account, id: SnapshotId, wanted: SnapshotLock) -> Result<()> {
    // As the catalog keeps it.
    let micros = wanted.until.as_microsecond();
    let wanted =
        SnapshotLock { until: Timestamp::from_microsecond(micros).unwrap_or(wanted.until), ..wanted };
    region.catalog()?.write(|tx| {
        let snapshot = tx.snapshot(id)?;
        refuse_stranger(account, &snapshot)?;
        refuse_in_bin(&snapshot)?;
        if snapshot.state != SnapshotState::Success {
            return Err(HostError::refused(
                format!("snapshot {} is {}: only a whole one can be locked", snapshot.name, snapshot.state),
                "`terrane snapshot list` shows how far it is",
            ));
        }
        // In here, by what the catalog knows: what has expired for one process has for all.
        let now = region.certain();
        check_until(wanted.until, now)?;
        if let Some(lock) = tx.snapshot_lock(id)?.filter(|lock| lock.holds(now)) {
            refuse_weakening(&snapshot, lock, wanted)?;
        }
        Ok(tx.set_snapshot_lock(id, Some(wanted))?)
    })
}

/// Lifts a snapshot's lock, where there is one. Only its owner may, and nobody one of mode `compliance`.
pub fn unlock_snapshot(region: &Region, account: &Account, id: SnapshotId) -> Result<()> {
    region.catalog()?.write(|tx| {
        let snapshot = tx.snapshot(id)?;
        refuse_stranger(account, &snapshot)?;
        let now = region.certain();
        match tx.snapshot_lock(id)? {
            Some(lock) if lock.holds(now) && lock.mode == LockMode::Compliance => {
                Err(HostError::refused(words(&snapshot, lock), "nobody can lift a lock of mode compliance"))
            }
            _ => Ok(tx.set_snapshot_lock(id, None)?),
        }
    })
}

/// Refuses to delete what is locked: asked in the transaction that deletes the row.
pub(super) fn refuse_locked(tx: &ReadTx, snapshot: &Snapshot, region: &Region) -> Result<()> {
    let lock = tx.snapshot_lock(snapshot.id)?.filter(|lock| lock.holds(region.certain()));
    let Some(lock) = lock else { return Ok(()) };
    // Over by what the machine shows, which is in doubt.
    let is_in_doubt = lock.until <= region.clock().shown();
    let hint = match lock.mode {
        _ if is_in_doubt => {
            "this machine's clock is in doubt: `terrane status` says why, and what to do".into()
        }
        LockMode::Governance => {
            format!("`terrane snapshot unlock {}` lifts it, for the snapshot's owner", snapshot.name)
        }
        LockMode::Compliance => "nobody can lift a lock of mode compliance: wait until it ends".into(),
    };
    Err(HostError::refused(words(snapshot, lock), hint))
}

fn words(snapshot: &Snapshot, lock: SnapshotLock) -> String {
    format!("snapshot {} is locked until {} (mode {})", snapshot.name, lock.until, lock.mode)
}

fn refuse_stranger(account: &Account, snapshot: &Snapshot) -> Result<()> {
    if account.id == snapshot.account {
        return Ok(());
    }
    Err(HostError::refused(
        format!("snapshot {} is account {}'s, not {}'s", snapshot.name, snapshot.account, account.name),
        format!("its owner can lock it and unlock it: --account {}", snapshot.account),
    ))
}

fn check_until(until: Timestamp, now: Timestamp) -> Result<()> {
    if until <= now {
        let message = format!("a lock until {until} is none: by the region's clock it is {now}");
        return Err(HostError::refused(message, "give a later date"));
    }
    let last = now.to_zoned_datetime(TimeZone::UTC).checked_add(YEARS_MAX.years());
    if last.is_ok_and(|last| until > last.timestamp()) {
        let message = format!("{until} is too far away: a lock ends within {YEARS_MAX} years");
        return Err(HostError::refused(message, "give an earlier date"));
    }
    Ok(())
}

/// A lock of mode `compliance` may be extended, and nothing else.
fn refuse_weakening(snapshot: &Snapshot, lock: SnapshotLock, wanted: SnapshotLock) -> Result<()> {
    let weaker = wanted.mode != LockMode::Compliance || wanted.until < lock.until;
    if lock.mode == LockMode::Compliance && weaker {
        let hint = format!(
            "such a lock can only be extended: --mode compliance, and --until {} or later",
            lock.until
        );
        return Err(HostError::refused(words(snapshot, lock), hint));
    }
    Ok(())
}
