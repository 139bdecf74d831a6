//! `terrane snapshot copy …`

use std::sync::atomic::AtomicBool;

use clap::Args;
use serde::Serialize;

use super::options::{DetailArgs, KeyArgs};
use super::progress::Progress;
use super::{App, Outcome, size_text};
use crate::catalog::{Snapshot, SnapshotState};
use crate::copy::{self, Begun, Copy, CopyError, Details, Plan, Watch};
use crate::ids::{LayerId, Name, SnapshotId};
use crate::region::Region;
use crate::volume::{Host, LayersLock, folder};

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
    /// Return once the copy is whole (every copy does so now)
    #[arg(long)]
    wait: bool,
    /// Print what would be shipped, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// A base may be folded into another layer between plan and copy.
const PLANS_MAX: u32 = 5;

#[derive(Serialize)]
struct ShownPlan {
    base_snapshot_id: Option<String>,
    ship_bytes: u64,
    reencrypt_bytes: u64,
    changed_bytes: u64,
    key_id: Option<String>,
}

/// Copies a snapshot, or shows the plan.
pub fn run(args: &CopyArgs, app: &App) -> Outcome {
    let tags = args.details.tags()?.to_vec();
    let (source, text) = app.region_of_thing(&args.snapshot)?;
    let target = app.region_named(&args.to)?;
    let account = app.account(&mut target.catalog()?)?.id;
    let snapshot = source.catalog()?.read(|tx| tx.resolve_snapshot(text))?;
    if snapshot.state == SnapshotState::Success {
        finish_seals(app, &source, &args.snapshot, snapshot.layer)?;
    }
    // Within a region one opening serves both sides: a passphrase is asked for once.
    let same = source.id() == target.id();
    let source = Host::new(source, None);
    let target = if same { source.clone() } else { Host::new(target, None) };
    let details = Details {
        account,
        name: args.name.clone(),
        description: args.details.description.clone(),
        tags,
        retention_days: args.details.retention_days,
    };
    if let Some(begun) = copy::find_begun(&source, snapshot.id, &target, &args.key.choice(), &details)? {
        return match args.dry_run {
            true => show_begun(app, &source, &target, &begun),
            false => go_on(app, &source, &target, &begun),
        };
    }
    let make_plan = || copy::plan(&source, snapshot.id, &target, &args.name, &args.key.choice());
    let mut plan = make_plan()?;
    if args.dry_run {
        return show(app, &plan);
    }
    let cancel = super::progress::cancelled_by_signals()?;
    let mut plans = 1;
    loop {
        match carry(app, Copy::new(&source, &target, plan, details.clone()), &cancel) {
            Err(CopyError::Overtaken { .. }) if plans < PLANS_MAX => plan = make_plan()?,
            copied => return app.output().id(copied?),
        }
        plans += 1;
    }
}

/// Carries the rest of a copy whose process was killed.
fn go_on(app: &App, source: &Host, target: &Host, begun: &Snapshot) -> Outcome {
    let cancel = super::progress::cancelled_by_signals()?;
    let begun = Begun::take_up(target, begun)?;
    let there = begun.bytes_done();
    let copy = Copy::rest(source, target, begun)?;
    app.output().note(format!(
        "going on with what was begun: {} of {} are there",
        size_text(there),
        size_text(copy.total_bytes())
    ));
    app.output().id(carry(app, copy, &cancel)?)
}

fn show_begun(app: &App, source: &Host, target: &Host, begun: &Snapshot) -> Outcome {
    app.output().note(format!("it was begun: {} % is there", begun.progress_percent));
    show(app, &copy::plan_begun(source, target, begun)?)
}

/// Makes a copy, with progress.
fn carry(app: &App, copy: Copy, cancel: &AtomicBool) -> Result<SnapshotId, CopyError> {
    let total = copy.total_bytes();
    let mut progress = Progress::new(app, "copying", total);
    let copied = copy.run(Watch { cancel, progress: &mut |done| progress.report(done, total) });
    progress.end(copied.is_ok());
    copied
}

/// Finishes the seals a killed mount left, where nobody else owns the layers who would.
pub(super) fn finish_seals(app: &App, source: &Region, text: &str, layer: LayerId) -> Outcome {
    let chain = source.catalog()?.read(|tx| tx.layer_chain(layer))?;
    if chain.iter().all(|row| folder::sealed_mark(row).is_some()) {
        return Ok(());
    }
    if let Ok(lock) = LayersLock::take(source, None)? {
        let (region, _) = app.region_of_thing(text)?;
        Host::new(region, Some(lock)).open_chain(layer)?;
    }
    Ok(())
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
