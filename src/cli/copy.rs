//! `terrane snapshot copy …`

use clap::Args;
use serde::Serialize;

use super::options::{DetailArgs, KeyArgs};
use super::waiting::{Asked, Sides, carry_out};
use super::{App, Outcome, size_text};
use crate::catalog::Snapshot;
use crate::copy::{self, Details, Plan, enqueue};
use crate::ids::Name;
use crate::sys::process;
use crate::volume::{Host, HostError};

/// What `copy` takes.
#[derive(Args)]
pub struct CopyArgs {
    /// The snapshot, or REGION/SNAPSHOT
    snapshot: String,
    /// The region the copy is made in; may be the same one
    #[arg(long, value_name = "REGION")]
    to: String,
    /// Its name
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
    base_snapshot_id: Option<String>,
    ship_bytes: u64,
    reencrypt_bytes: u64,
    changed_bytes: u64,
    key_id: Option<String>,
}

/// Asks for a copy of a snapshot and perhaps waits for it, or shows the plan.
pub fn run(args: &CopyArgs, app: &App) -> Outcome {
    // Two a layer, on either side.
    process::raise_open_files();
    let tags = args.details.tags()?.to_vec();
    let open = || open(args, app);
    let (source, target) = open()?;
    let text = args.snapshot.rsplit_once('/').map_or(args.snapshot.as_str(), |(_, thing)| thing);
    let account = app.account(&mut target.region().catalog()?)?.id;
    let snapshot = source.region().catalog()?.read(|tx| tx.resolve_snapshot(text))?;
    let details = Details {
        account,
        name: args.name.clone(),
        description: args.details.description.clone(),
        tags,
        retention_days: args.details.retention_days,
    };
    let asked = copy::find_asked(&source, snapshot.id, &target, &args.key.choice(), &details)?;
    if args.dry_run {
        return match &asked {
            None => show(app, &copy::plan(&source, snapshot.id, &target, &args.name, &args.key.choice())?),
            Some(asked) => show_asked(app, &source, &target, asked),
        };
    }
    let asked = match asked {
        Some(there) => {
            let task = target.region().catalog()?.read(|tx| tx.task_of(&there.id.to_string()))?;
            let task =
                task.ok_or_else(|| HostError::unvouched(format!("copy {}", there.name), "it has no task"))?;
            Asked::before((source, target), &open, there.id, task.id)
        }
        None => {
            let plan = copy::plan(&source, snapshot.id, &target, &args.name, &args.key.choice())?;
            let held = enqueue(source.region(), &target, &plan, &details)?;
            Asked::now((source, target), &open, held, plan)
        }
    };
    match args.wait {
        true => carry_out(app, asked),
        false => say_queued(app, &args.name, &asked),
    }
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

fn say_queued(app: &App, name: &Name, asked: &Asked) -> Outcome {
    let region = asked.target().name().to_owned();
    app.output().note(format!(
        "copy {name} is queued in region {region} as {}: `terrane daemon` makes it, and so does the same command with --wait",
        asked.task
    ));
    app.output().id(asked.snapshot)
}

fn show_asked(app: &App, source: &Host, target: &Host, asked: &Snapshot) -> Outcome {
    app.output().note(match asked.layer {
        None => "it waits in the queue".into(),
        Some(_) => format!("it was begun: {} % is there", asked.progress_percent),
    });
    show(app, &copy::plan_asked(source, target, asked)?)
}

fn show(app: &App, plan: &Plan) -> Outcome {
    let shown = ShownPlan {
        base_snapshot_id: plan.base.as_ref().map(|b| b.snapshot.to_string()),
        ship_bytes: plan.ship_bytes,
        reencrypt_bytes: plan.reencrypt_bytes,
        changed_bytes: plan.changed_bytes,
        key_id: plan.key.map(|k| k.to_string()),
    };
    app.output().object(&shown, |plan| {
        vec![
            (
                "base",
                plan.base_snapshot_id.clone().unwrap_or_else(|| "none: all that is stored is shipped".into()),
            ),
            ("to ship", size_text(plan.ship_bytes)),
            ("to re-encrypt", size_text(plan.reencrypt_bytes)),
            ("changed", size_text(plan.changed_bytes)),
            ("key", plan.key_id.clone().unwrap_or_else(|| "none: not encrypted".into())),
        ]
    })
}
