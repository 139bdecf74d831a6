//! `terrane snapshot …`

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::check::ReadingArgs;
use super::copy::CopyArgs;
use super::diff::DiffArgs;
use super::filter::{self, Filter};
use super::lock::{self, LockArgs};
use super::options::{DetailArgs, tags_text};
use super::set::{self, SetArgs};
use super::{App, Failure, Outcome, owner, size_text};
use crate::catalog::{DiskKind, LockMode, Snapshot, SnapshotState, Tag, Volume};
use crate::ids::{GroupId, Name, SnapshotId};
use crate::region::Region;
use crate::volume::folder;
use crate::volume::{Order, SnapshotItem, cancel_copy, is_interrupted};

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
    },
    /// Describe a snapshot
    Show {
        /// The snapshot
        snapshot: String,
    },
    /// List the ranges of the disk that were recorded differently in two snapshots
    Diff(DiffArgs),
    /// Read all of a snapshot and check every sector; exit 6 if anything is damaged
    Verify {
        /// The snapshot
        snapshot: String,
        #[command(flatten)]
        reading: ReadingArgs,
    },
    /// Change what people say of a snapshot: its description, tags and retention
    Set(SetArgs),
    /// Forbid a snapshot's deletion until a date, or change that
    Lock(LockArgs),
    /// Lift a lock of mode governance
    Unlock {
        /// The snapshot
        snapshot: String,
    },
    /// Delete a snapshot; volumes made from it go on
    Delete {
        /// The snapshot
        snapshot: String,
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
    locked_until: Option<String>,
    lock_mode: Option<LockMode>,
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
        Command::List { filters } => {
            let snapshots = region.catalog()?.read(|tx| filter::snapshots(tx, &filters))?;
            let shown: Vec<_> = snapshots.into_iter().map(|s| describe(&region, s)).collect::<Result<_>>()?;
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
        Command::Show { snapshot } => {
            let found = region.catalog()?.read(|tx| tx.resolve_snapshot(&snapshot))?;
            app.output().object(&describe(&region, found)?, fields)
        }
        Command::Diff(args) => super::diff::run(&args, app, region),
        Command::Verify { snapshot, reading } => super::check::snapshot(app, region, &snapshot, &reading),
        Command::Set(args) => set::run(&args, &region),
        Command::Lock(args) => lock::lock(&args, app, &region),
        Command::Unlock { snapshot } => lock::unlock(&snapshot, app, &region),
        Command::Delete { snapshot } => {
            let found = region.catalog()?.read(|tx| tx.resolve_snapshot(&snapshot))?;
            // A copy that is not whole is nobody's layer but its maker's.
            if found.state != SnapshotState::Success && cancel_copy(&region, found.id)? {
                return Ok(());
            }
            owner::refuse_attached(
                &region,
                "snapshots",
                &found.id.to_string(),
                &format!("snapshot {}", found.name),
            )?;
            owner::perform(region, &Order::DeleteSnapshot { snapshot: found.id.to_string() })
        }
    }
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
        ("retention", s.retention_days.map(|d| format!("{d} days")).unwrap_or_default()),
        (
            "lock",
            match (&s.locked_until, s.lock_mode) {
                (Some(until), Some(mode)) => format!("until {until} ({mode})"),
                _ => String::new(),
            },
        ),
        ("tags", tags_text(&s.tags)),
        ("created at", s.created_at.clone()),
    ]
}

fn describe(region: &Region, s: Snapshot) -> Result<Shown> {
    let tags = region.catalog()?.read(|tx| tx.tags(&s.id.to_string()))?;
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
        locked_until: lock.map(|lock| lock.until.to_string()),
        lock_mode: lock.map(|lock| lock.mode),
        tags,
        created_at: s.created_at.to_string(),
    })
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
