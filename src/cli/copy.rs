//! `terrane snapshot copy …`

use clap::Args;
use serde::Serialize;

use super::options::{DetailArgs, KeyArgs};
use super::waiting::{Asked, Sides, carry_out};
use super::{App, Failure, Outcome, size_text};
use crate::catalog::{Snapshot, SnapshotState};
use crate::copy::{self, Details, enqueue_all};
use crate::ids::{GroupId, Name, TaskId};
use crate::region::Region;
use crate::volume::{Host, HostError};

/// What `copy` takes.
#[derive(Args)]
pub struct CopyArgs {
    /// The snapshot, or REGION/SNAPSHOT; or the id of a group, for all its snapshots
    snapshot: String,
    /// The region the copy is made in; may be the same one
    #[arg(long, value_name = "REGION")]
    to: String,
    /// Its name; of a group: the beginning of their names, NAME-SNAPSHOT
    #[arg(long)]
    name: Name,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    details: DetailArgs,
    /// Make it now, or watch who does, and return once it is whole; interrupted, it stays queued
    #[arg(long)]
    wait: bool,
    /// Print what would be shipped, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct ShownPlan {
    name: String,
    base_snapshot_id: Option<String>,
    ship_bytes: u64,
    reencrypt_bytes: u64,
    changed_bytes: u64,
    key_id: Option<String>,
}

/// Asks for copies of a snapshot, or of those of a group, and perhaps waits for them, or shows the plans.
pub fn run(args: &CopyArgs, app: &App) -> Outcome {
    let open = || open(args, app);
    let (source, target) = open()?;
    let mut wanted = wanted(args, app, &source, &target)?;
    if args.dry_run {
        return show_all(app, &source, &target, args, &wanted);
    }
    // Those that nobody asked for yet: all of them, or none.
    let group = wanted
        .iter()
        .find_map(|(.., asked)| asked.as_ref()?.group)
        .or_else(|| (wanted.len() > 1).then(GroupId::random));
    wanted.iter_mut().for_each(|(_, details, _)| details.group = group);
    let mut plans = Vec::new();
    for (snapshot, details, _) in wanted.iter().filter(|(.., asked)| asked.is_none()) {
        let plan = copy::plan(&source, snapshot.id, &target, &details.name, &args.key.choice())?;
        plans.push((plan, details));
    }
    let new: Vec<_> = plans.iter().map(|(plan, details)| (plan, *details)).collect();
    let mut held = enqueue_all(source.region(), &target, &new)?.into_iter();
    let sides = (source, target);
    if let ([_], [_]) = (wanted.as_slice(), plans.as_slice())
        && let (Some(held), Some((plan, _))) = (held.next(), plans.pop())
    {
        return wait_or_say(args, app, Asked::now(sides, &open, held, plan));
    }
    // Of several each is anybody's until its turn comes: one may be the base of another.
    drop((held, plans));
    let mut ended = Ok(());
    for (snapshot, details, asked) in &wanted {
        let there = match asked {
            Some(there) => Some(there.clone()),
            None => sides.1.region().catalog()?.read(|tx| tx.find_snapshot_by_name(details.name.as_str()))?,
        };
        let there = there.ok_or_else(|| HostError::InUse {
            what: format!("the copy of {}", snapshot.name),
            by: "somebody who has deleted it".into(),
        })?;
        let one = match there.state {
            SnapshotState::Success => app.output().id(there.id),
            _ => {
                let task = task_of(sides.1.region(), &there)?;
                wait_or_say(args, app, Asked::before(sides.clone(), &open, there.id, task))
            }
        };
        // One that can't be made is no end of the others.
        ended = ended.and(one);
    }
    ended
}

fn wait_or_say(args: &CopyArgs, app: &App, asked: Asked) -> Outcome {
    match args.wait {
        true => carry_out(app, asked),
        false => say_queued(app, &asked),
    }
}

/// Each snapshot that is to be copied, under what details; and the copy that the same words asked for before.
type Wanted = (Snapshot, Details, Option<Snapshot>);

/// The one of this name or id; or those of a group, each called by the name that was given and its own.
fn wanted(args: &CopyArgs, app: &App, source: &Host, target: &Host) -> anyhow::Result<Vec<Wanted>> {
    let text = args.snapshot.rsplit_once('/').map_or(args.snapshot.as_str(), |(_, thing)| thing);
    let mut catalog = source.region().catalog()?;
    let of_group = match text.parse::<GroupId>() {
        Ok(group) => catalog.read(|tx| tx.snapshots_of_group(group))?,
        Err(_) => Vec::new(),
    };
    let is_group = !of_group.is_empty();
    let snapshots = match is_group {
        true => of_group,
        false => vec![catalog.read(|tx| tx.resolve_snapshot(text))?],
    };
    let account = app.account(&mut target.region().catalog()?)?.id;
    let mut wanted = Vec::with_capacity(snapshots.len());
    for snapshot in snapshots {
        let name = match is_group {
            true => format!("{}-{}", args.name, snapshot.name)
                .parse()
                .map_err(|e| Failure::usage(format!("{e}")))?,
            false => args.name.clone(),
        };
        let details = Details {
            account,
            name,
            description: args.details.description.clone(),
            tags: args.details.tags()?.to_vec(),
            retention_days: args.details.retention_days,
            group: None,
        };
        // Some of a group may be whole already; of one alone the name is taken then.
        let asked = copy::find_asked(source, snapshot.id, target, &args.key.choice(), &details)?;
        let asked = asked.filter(|row| is_group || row.state == SnapshotState::Processing);
        wanted.push((snapshot, details, asked));
    }
    Ok(wanted)
}

fn task_of(region: &Region, copy: &Snapshot) -> anyhow::Result<TaskId> {
    let task = region.catalog()?.read(|tx| tx.task_of(&copy.id.to_string()))?;
    let none = || HostError::unvouched(format!("copy {}", copy.name), "it has no task");
    Ok(task.ok_or_else(none)?.id)
}

/// Both sides. Within a region one opening serves both: a passphrase is asked for once.
fn open(args: &CopyArgs, app: &App) -> anyhow::Result<Sides> {
    let source = app.region_of_thing(&args.snapshot)?.0;
    let target = app.region_named(&args.to)?;
    let same = source.id() == target.id();
    let source = Host::new(source, None);
    let target = if same { source.clone() } else { Host::new(target, None) };
    Ok((source, target))
}

fn say_queued(app: &App, asked: &Asked) -> Outcome {
    let region = asked.target().name().to_owned();
    let found = asked.target().catalog()?.read(|tx| tx.find_snapshot(asked.snapshot))?;
    let name = found.map_or_else(|| asked.snapshot.to_string(), |row| row.name.to_string());
    app.output().note(format!(
        "copy {name} is queued in region {region} as {}: `terrane daemon` makes it, and so does the same command with --wait",
        asked.task
    ));
    app.output().id(asked.snapshot)
}

/// The plan of a copy, or those of a group's.
fn show_all(app: &App, source: &Host, target: &Host, args: &CopyArgs, wanted: &[Wanted]) -> Outcome {
    let mut shown = Vec::new();
    for (snapshot, details, asked) in wanted {
        let plan = match asked {
            None => copy::plan(source, snapshot.id, target, &details.name, &args.key.choice())?,
            Some(asked) => {
                app.output().note(match (asked.state, asked.layer) {
                    (SnapshotState::Success, _) => format!("{} is there", asked.name),
                    (_, None) => format!("{} waits in the queue", asked.name),
                    (_, Some(_)) => {
                        format!("{} was begun: {} % is there", asked.name, asked.progress_percent)
                    }
                });
                copy::plan_asked(source, target, asked)?
            }
        };
        shown.push(ShownPlan {
            name: details.name.to_string(),
            base_snapshot_id: plan.base.as_ref().map(|b| b.snapshot.to_string()),
            ship_bytes: plan.ship_bytes,
            reencrypt_bytes: plan.reencrypt_bytes,
            changed_bytes: plan.changed_bytes,
            key_id: plan.key.map(|k| k.to_string()),
        });
    }
    match shown.as_slice() {
        [plan] => app.output().object(plan, fields),
        plans => {
            let columns = ["name", "base", "to ship", "to re-encrypt", "changed", "key"];
            app.output()
                .list(plans, &columns, |plan| fields(plan).into_iter().map(|(_, value)| value).collect())
        }
    }
}

fn fields(plan: &ShownPlan) -> Vec<(&'static str, String)> {
    let base = plan.base_snapshot_id.clone().unwrap_or_else(|| "none: all that is stored is shipped".into());
    vec![
        ("name", plan.name.clone()),
        ("base", base),
        ("to ship", size_text(plan.ship_bytes)),
        ("to re-encrypt", size_text(plan.reencrypt_bytes)),
        ("changed", size_text(plan.changed_bytes)),
        ("key", plan.key_id.clone().unwrap_or_else(|| "none: not encrypted".into())),
    ]
}
