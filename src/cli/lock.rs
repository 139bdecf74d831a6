//! `terrane snapshot lock …` and `unlock …`

use clap::Args;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::{App, Outcome};
use crate::catalog::{LockMode, SnapshotLock};
use crate::ids::SnapshotId;
use crate::region::Region;
use crate::volume::{lock_snapshot, unlock_snapshot};

/// What `lock` takes.
#[derive(Args)]
pub struct LockArgs {
    /// The snapshot
    snapshot: String,
    /// Until when: a time as 2031-05-01T10:00:00Z, or a day, 2031-05-01, at midnight UTC; at most 100 years away
    #[arg(long, value_name = "DATE", value_parser = parse_date)]
    until: Timestamp,
    /// governance: its owner can lift and change it; compliance: it can only be extended
    #[arg(long, value_name = "governance|compliance")]
    mode: LockMode,
}

#[derive(Serialize)]
struct Shown {
    snapshot_id: String,
    locked_until: Option<String>,
    lock_mode: Option<LockMode>,
}

/// Locks a snapshot, or changes its lock.
pub fn lock(args: &LockArgs, app: &App, region: &Region) -> Outcome {
    let account = app.account(&mut region.catalog()?)?;
    let found = region.catalog()?.read(|tx| tx.resolve_snapshot(&args.snapshot))?;
    lock_snapshot(region, &account, found.id, SnapshotLock { until: args.until, mode: args.mode })?;
    app.output().note(format!("snapshot {} is locked until {} ({})", found.name, args.until, args.mode));
    print(app, region, found.id)
}

/// Lifts a snapshot's lock.
pub fn unlock(snapshot: &str, app: &App, region: &Region) -> Outcome {
    let account = app.account(&mut region.catalog()?)?;
    let found = region.catalog()?.read(|tx| tx.resolve_snapshot(snapshot))?;
    unlock_snapshot(region, &account, found.id)?;
    app.output().note(format!("snapshot {} is not locked", found.name));
    print(app, region, found.id)
}

/// The lock that holds: what has expired is none.
pub fn in_force(region: &Region, id: SnapshotId) -> anyhow::Result<Option<SnapshotLock>> {
    let lock = region.catalog()?.read(|tx| tx.snapshot_lock(id))?;
    Ok(lock.filter(|lock| lock.holds(region.certain())))
}

/// For programs; people have the note.
fn print(app: &App, region: &Region, id: SnapshotId) -> Outcome {
    if !app.output().is_json() {
        return Ok(());
    }
    let lock = in_force(region, id)?;
    let shown = Shown {
        snapshot_id: id.to_string(),
        locked_until: lock.map(|lock| lock.until.to_string()),
        lock_mode: lock.map(|lock| lock.mode),
    };
    app.output().object(&shown, |_| Vec::new())
}

/// An RFC 3339 time, or a day. A time without a zone is neither: whose it would be nobody can tell.
fn parse_date(text: &str) -> Result<Timestamp, String> {
    let refused = || {
        let shown: String = text.chars().take(40).collect();
        format!("{shown:?} is no date: write 2031-05-01, or 2031-05-01T10:00:00Z")
    };
    let is_day = text.len() == "2031-05-01".len() && text.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    if is_day {
        let day: Date = text.parse().map_err(|_| refused())?;
        return day
            .to_zoned_datetime(TimeZone::UTC)
            .map(|midnight| midnight.timestamp())
            .map_err(|_| refused());
    }
    text.parse().map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    // X6
    #[test]
    fn a_date_is_a_day_or_a_time_of_a_zone() {
        for (text, time) in [
            ("2031-05-01", "2031-05-01T00:00:00Z"),
            ("2032-02-29", "2032-02-29T00:00:00Z"),
            ("2031-05-01T10:00:00Z", "2031-05-01T10:00:00Z"),
            ("2031-05-01T10:00:00.25+02:00", "2031-05-01T08:00:00.25Z"),
        ] {
            assert_eq!(parse_date(text).unwrap().to_string(), time);
        }
        for text in [
            "",
            "tomorrow",
            "2031",
            "2031-5-1",
            "2031-02-29",
            "2031-13-01",
            "20310501",
            "2031-05-01T10:00:00",
            "2031-05-01 ",
            "-031-05-01",
            "1767225600",
            "2031-05-01T25:00:00Z",
            &"9".repeat(10_000),
        ] {
            assert!(parse_date(text).is_err(), "{text}");
        }
    }
}
