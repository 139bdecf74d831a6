//! `terrane snapshot copy …`

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use super::options::{DetailArgs, KeyArgs};
use super::{App, Outcome, size_text};
use crate::catalog::SnapshotState;
use crate::copy::{self, Copy, CopyError, Details, Plan, Watch};
use crate::ids::{LayerId, Name};
use crate::region::Region;
use crate::volume::{Host, LayersLock, folder, remove_abandoned_copies};

/// Programs are told of progress so often.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

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
    if !args.dry_run {
        remove_abandoned_copies(target.region())?;
    }
    let make_plan = || copy::plan(&source, snapshot.id, &target, &args.name, &args.key.choice());
    let mut plan = make_plan()?;
    if args.dry_run {
        return show(app, &plan);
    }
    let details = Details {
        account,
        name: args.name.clone(),
        description: args.details.description.clone(),
        tags,
        retention_days: args.details.retention_days,
    };
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, cancel.clone()).context("waiting for signals")?;
    }
    for tries_left in (0..PLANS_MAX).rev() {
        let mut progress = Progress::new(app, plan.ship_bytes);
        let copied = Copy::new(&source, &target, plan, details.clone())
            .run(Watch { cancel: &cancel, progress: &mut |done| progress.report(done) });
        progress.end(copied.is_ok());
        match copied {
            Err(CopyError::Overtaken { .. }) if tries_left > 0 => plan = make_plan()?,
            copied => return app.output().id(copied?),
        }
    }
    unreachable!("the last try returns")
}

/// Finishes the seals a killed mount left, where nobody else owns the layers who would.
fn finish_seals(app: &App, source: &Region, text: &str, layer: LayerId) -> Outcome {
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

/// Progress on stderr: a bar on a terminal, a line of JSON a second for programs.
struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
    total: u64,
    began: Instant,
    reported: Option<Instant>,
    done: u64,
}

impl Progress {
    fn new(app: &App, total: u64) -> Self {
        let quiet = app.output().is_quiet();
        let json = app.output().is_json();
        let bar = (!quiet && !json && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template = "copying [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, lines: !quiet && json, total, began: Instant::now(), reported: None, done: 0 }
    }

    fn report(&mut self, done: u64) {
        self.done = done;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
        if self.lines && self.reported.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
            self.line();
        }
    }

    fn line(&mut self) {
        self.reported = Some(Instant::now());
        let rate = (self.done as f64 / self.began.elapsed().as_secs_f64().max(1e-3)) as u64;
        eprintln!(
            "{}",
            json!({ "bytes_done": self.done, "bytes_total": self.total, "bytes_per_second": rate })
        );
    }

    fn end(&mut self, well: bool) {
        match &self.bar {
            Some(bar) if well => bar.finish(),
            Some(bar) => bar.abandon(),
            None => {}
        }
        if self.lines && well {
            self.line();
        }
    }
}
