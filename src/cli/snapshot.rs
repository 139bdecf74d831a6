//! `terrane snapshot …`

use anyhow::Result;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;

use super::copy::CopyArgs;
use super::diff::DiffArgs;
use super::exit::Exit;
use super::filter::{self, Filter};
use super::lock::{self, LockArgs};
use super::options::{DetailArgs, tags_text};
use super::set::{self, SetArgs};
use super::verify::{self, VerifyArgs};
use super::{App, Failure, Outcome, owner, size_text};
use crate::catalog::{CatalogError, DiskKind, LockMode, Snapshot, SnapshotState, Tag, Volume};
use crate::ids::{GroupId, Name, SnapshotId};
use crate::region::Region;
use crate::volume::folder;
use crate::volume::{HostError, Order, SnapshotItem, cancel_copy, is_interrupted, restore_snapshot};

/// Commands on snapshots. SNAPSHOT is an id, a name, or the beginning of an id.
#[derive(Subcommand)]
pub enum Command {
    /// Take snapshots of one or several volumes at one moment, and print their ids
    Create(Create),
    /// Copy a snapshot to a region, under a key of that region, and print the copy's id
    Copy(CopyArgs),
    /// List the region's snapshots
    List {
        /// Only those that are so; of several, all must hold: tag:K=V, state=S, source=ID|REGION, volume=V, name=N*
        #[arg(long = "filter", value_name = "F")]
        filters: Vec<Filter>,
        /// Those that are in the bin instead
        #[arg(long)]
        deleted: bool,
    },
    /// Describe a snapshot
    Show {
        /// The snapshot
        snapshot: String,
    },
    /// List the ranges of the disk that were recorded differently in two snapshots
    Diff(DiffArgs),
    /// Read all of a snapshot and check every sector, or compare its content with another's; exit 6 if anything is damaged or differs
    Verify(VerifyArgs),
    /// Change what people say of a snapshot: its description, tags and retention
    Set(SetArgs),
    /// Forbid a snapshot's deletion until a date, or change that
    Lock(LockArgs),
    /// Lift a lock of mode governance
    Unlock {
        /// The snapshot
        snapshot: String,
    },
    /// Delete a snapshot, or put it into the bin if a rule of `terrane bin` applies; volumes made from it go on
    Delete {
        /// The snapshot
        snapshot: String,
        /// Let it not wait in the bin, and take it away if it does, which is named by its id
        #[arg(long)]
        purge: bool,
    },
    /// Give a snapshot back from the bin
    Restore {
        /// The snapshot: its id, the name that it had, or the beginning of its id
        snapshot: String,
        /// Its name from now on
        #[arg(long)]
        name: Option<Name>,
    },
}

/// What `create` takes.
#[derive(Args)]
pub struct Create {
    /// The volumes
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
    /// Its name; of several volumes: the beginning of their names, NAME-VOLUME
    #[arg(long)]
    name: Name,
    #[command(flatten)]
    details: DetailArgs,
}

#[derive(Serialize)]
struct Shown {
    id: String,
    name: String,
    description: Option<String>,
    state: SnapshotState,
    progress_percent: u32,
    /// A copy that nobody works on: its process was killed.
    interrupted: bool,
    size_bytes: u64,
    stored_bytes: u64,
    changed_bytes: u64,
    shipped_bytes: u64,
    encrypted: bool,
    key_id: Option<String>,
    kind: DiskKind,
    volume_id: Option<String>,
    group_id: Option<String>,
    created_by: String,
    source_snapshot_id: Option<String>,
    source_region: Option<String>,
    retention_days: Option<u32>,
    /// It will end the snapshot; not one that an earlier version gave, for which nothing vouches.
    retention_applies: Option<bool>,
    locked_until: Option<String>,
    lock_mode: Option<LockMode>,
    /// Since when it is in the bin.
    deleted_at: Option<String>,
    /// When it goes from there for good.
    purge_at: Option<String>,
    #[serde(skip)]
    days_left: Option<i64>,
    tags: Vec<Tag>,
    created_at: String,
}

pub(super) fn run(command: Command, app: &App) -> Outcome {
    // A copy may name its region with the snapshot.
    let command = match command {
        Command::Copy(args) => return super::copy::run(&args, app),
        other => other,
    };
    let region = app.region()?;
    match command {
        Command::Copy(_) => unreachable!("returned above"),
        Command::Create(args) => create(&args, app, region),
        Command::List { filters, deleted } => list(app, &region, &filters, deleted),
        Command::Show { snapshot } => {
            let found = region.catalog()?.read(|tx| tx.resolve_snapshot(&snapshot))?;
            app.output().object(&describe(&region, found)?, fields)
        }
        Command::Diff(args) => super::diff::run(&args, app, region),
        Command::Verify(args) => verify::run(&args, app, region),
        Command::Set(args) => set::run(&args, &region),
        Command::Lock(args) => lock::lock(&args, app, &region),
        Command::Unlock { snapshot } => lock::unlock(&snapshot, app, &region),
        Command::Delete { snapshot, purge } => delete(app, region, &snapshot, purge),
        Command::Restore { snapshot, name } => restore(app, &region, &snapshot, name.as_ref()),
    }
}

fn list(app: &App, region: &Region, filters: &[Filter], deleted: bool) -> Outcome {
    let deleted = deleted || filters.contains(&Filter::State(SnapshotState::Deleted));
    let snapshots = region.catalog()?.read(|tx| filter::snapshots(tx, filters, deleted))?;
    let shown: Vec<_> = snapshots.into_iter().map(|s| describe(region, s)).collect::<Result<_>>()?;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    if deleted {
        let columns = ["id", "name", "size", "key", "deleted at", "purged at", "days left"];
        return app.output().list(&shown, &columns, |s| {
            vec![
                s.id.clone(),
                s.name.clone(),
                size_text(s.size_bytes),
                s.key_id.clone().unwrap_or_else(|| "none".into()),
                text(&s.deleted_at),
                text(&s.purge_at),
                s.days_left.map(|days| days.to_string()).unwrap_or_default(),
            ]
        });
    }
    let columns = ["id", "name", "size", "changed", "shipped", "key", "state", "created at"];
    app.output().list(&shown, &columns, |s| {
        vec![
            s.id.clone(),
            s.name.clone(),
            size_text(s.size_bytes),
            size_text(s.changed_bytes),
            size_text(s.shipped_bytes),
            s.key_id.clone().unwrap_or_else(|| "none".into()),
            state_text(s),
            s.created_at.clone(),
        ]
    })
}

fn delete(app: &App, region: Region, text: &str, purge: bool) -> Outcome {
    let found = region.catalog()?.read(|tx| tx.resolve_snapshot(text))?;
    // A copy that is not whole is nobody's layer but its maker's.
    if !found.state.is_whole() && cancel_copy(&region, found.id)? {
        return Ok(());
    }
    let snapshot = found.id.to_string();
    owner::refuse_attached(&region, "snapshots", &snapshot, &format!("snapshot {}", found.name))?;
    owner::perform(
        region,
        &match purge {
            true => Order::PurgeSnapshot { snapshot },
            false => Order::DeleteSnapshot { snapshot },
        },
    )?;
    if let Some(entry) = app.region()?.catalog()?.read(|tx| tx.bin_entry(found.id))? {
        app.output().note(format!(
            "snapshot {} is in the bin until {}; `terrane snapshot restore {}` gives it back",
            found.name, entry.purge_at, found.id
        ));
    }
    Ok(())
}

fn restore(app: &App, region: &Region, text: &str, name: Option<&Name>) -> Outcome {
    let found = region.catalog()?.read(|tx| tx.resolve_deleted_snapshot(text))?;
    let restored = restore_snapshot(region, found.id, name).map_err(|error| match error {
        HostError::Catalog(taken @ CatalogError::Exists { .. }) => {
            let hint = Some(format!("give it another: terrane snapshot restore {} --name NAME", found.id));
            Failure { exit: Exit::InUse, message: taken.to_string(), hint }.into()
        }
        other => anyhow::Error::from(other),
    })?;
    if let Some(days) = restored.lost_retention {
        app.output().note(format!(
            "the retention of snapshot {}, {days} days, is over: it has none now, and stays until somebody deletes it",
            restored.name
        ));
    }
    app.output().note(format!("snapshot {} ({}) is out of the bin", restored.name, found.id));
    Ok(())
}

fn state_text(s: &Shown) -> String {
    match s.state {
        SnapshotState::Processing if s.interrupted => format!("interrupted at {} %", s.progress_percent),
        SnapshotState::Processing => format!("processing {} %", s.progress_percent),
        other => other.as_str().into(),
    }
}

fn fields(s: &Shown) -> Vec<(&'static str, String)> {
    vec![
        ("id", s.id.clone()),
        ("name", s.name.clone()),
        ("description", s.description.clone().unwrap_or_default()),
        ("state", state_text(s)),
        ("size", size_text(s.size_bytes)),
        ("changed", size_text(s.changed_bytes)),
        ("shipped", size_text(s.shipped_bytes)),
        ("stored", size_text(s.stored_bytes)),
        ("encrypted", if s.encrypted { "yes" } else { "no" }.into()),
        ("key", s.key_id.clone().unwrap_or_default()),
        ("kind", s.kind.as_str().into()),
        ("volume", s.volume_id.clone().unwrap_or_default()),
        ("group", s.group_id.clone().unwrap_or_default()),
        ("created by", s.created_by.clone()),
        (
            "source",
            match (&s.source_region, &s.source_snapshot_id) {
                (Some(region), Some(snapshot)) => format!("{region}/{snapshot}"),
                _ => String::new(),
            },
        ),
        ("retention", retention_text(s)),
        (
            "lock",
            match (&s.locked_until, s.lock_mode) {
                (Some(until), Some(mode)) => format!("until {until} ({mode})"),
                _ => String::new(),
            },
        ),
        (
            "bin",
            match (&s.deleted_at, &s.purge_at) {
                (Some(since), Some(until)) => format!("since {since}, until {until}"),
                _ => String::new(),
            },
        ),
        ("tags", tags_text(&s.tags)),
        ("created at", s.created_at.clone()),
    ]
}

fn retention_text(s: &Shown) -> String {
    match (s.retention_days, s.retention_applies) {
        (None, _) => String::new(),
        (Some(days), Some(true)) => format!("{days} days"),
        (Some(days), _) => format!(
            "{days} days, which nothing vouches for and which end nothing: `snapshot set --retention-days {days}` gives them anew"
        ),
    }
}

fn describe(region: &Region, s: Snapshot) -> Result<Shown> {
    let (tags, bin, retention_mac) = region.catalog()?.read(|tx| -> Result<_, CatalogError> {
        Ok((tx.tags(&s.id.to_string())?, tx.bin_entry(s.id)?, tx.retention_mac(s.id)?))
    })?;
    let days_left = bin.as_ref().map(|entry| days_until(entry.purge_at, region.certain()));
    let lock = lock::in_force(region, s.id)?;
    Ok(Shown {
        id: s.id.to_string(),
        interrupted: is_interrupted(region, &s)?,
        name: s.name.to_string(),
        description: s.description,
        state: s.state,
        progress_percent: s.progress_percent,
        size_bytes: s.size_bytes,
        stored_bytes: s.layer.and_then(|l| folder::stored_bytes(region, l).ok()).unwrap_or(s.stored_bytes),
        changed_bytes: s.changed_bytes,
        shipped_bytes: s.shipped_bytes,
        encrypted: s.key.is_some(),
        key_id: s.key.map(|k| k.to_string()),
        kind: s.kind,
        volume_id: s.volume.map(|v| v.to_string()),
        group_id: s.group.map(|g| g.to_string()),
        created_by: s.created_by,
        source_snapshot_id: s.source_snapshot,
        source_region: s.source_region,
        retention_days: s.retention_days,
        retention_applies: s.retention_days.map(|_| retention_mac.is_some()),
        locked_until: lock.map(|lock| lock.until.to_string()),
        lock_mode: lock.map(|lock| lock.mode),
        deleted_at: bin.as_ref().map(|entry| entry.deleted_at.to_string()),
        purge_at: bin.map(|entry| entry.purge_at.to_string()),
        days_left,
        tags,
        created_at: s.created_at.to_string(),
    })
}

/// Days that have begun count.
fn days_until(end: Timestamp, now: Timestamp) -> i64 {
    const DAY_SECONDS: i64 = 24 * 3600;
    (end.duration_since(now).as_secs().max(0) + DAY_SECONDS - 1) / DAY_SECONDS
}

fn create(args: &Create, app: &App, region: Region) -> Outcome {
    let tags = args.details.tags()?.iter().map(Into::into).collect();
    let account = app.account(&mut region.catalog()?)?.id;
    let mut volumes: Vec<Volume> = Vec::new();
    for text in &args.volumes {
        let volume = region.catalog()?.read(|tx| tx.resolve_volume(text))?;
        if volumes.iter().any(|v| v.id == volume.id) {
            return Err(Failure::usage(format!("volume {text:?} is named twice")));
        }
        volumes.push(volume);
    }
    let mut items = Vec::new();
    for volume in &volumes {
        let of_several = || {
            format!(
                "{}-{}",
                args.name,
                volume.name.as_ref().map_or(volume.id.to_string(), ToString::to_string)
            )
        };
        let name = if volumes.len() == 1 { args.name.to_string() } else { of_several() };
        let name: Name = name.parse().map_err(|e| Failure::usage(format!("{e}")))?;
        let snapshot = SnapshotId::random().to_string();
        items.push(SnapshotItem { volume: volume.id.to_string(), snapshot, name: name.to_string() });
    }
    if let Some(state) = owner::mounted(&region)? {
        owner::flush_loops(&state, &items, |words| app.output().note(words));
    }
    let ids: Vec<String> = items.iter().map(|i| i.snapshot.clone()).collect();
    let order = Order::Snapshot {
        group: (items.len() > 1).then(|| GroupId::random().to_string()),
        items,
        account: account.to_string(),
        description: args.details.description.clone(),
        tags,
        retention_days: args.details.retention_days,
    };
    owner::perform(region, &order)?;
    ids.iter().try_for_each(|id| app.output().id(id))
}
