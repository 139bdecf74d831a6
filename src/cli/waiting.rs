//! Waiting for tasks: by doing them, or by watching who does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::exit::{Exit, of_copy};
use super::progress::{Progress, cancelled_by_signals};
use super::{App, Failure, Outcome, size_text};
use crate::catalog::{Kind, Task, TaskState};
use crate::copy::{self, CopyError, Held, Plan, Slot, Taken, Watch};
use crate::daemon::Backoff;
use crate::ids::{SnapshotId, TaskId};
use crate::region::{Region, RootKeyPlace};
use crate::volume::Host;

/// How often the row of another's task is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Source and target of a copy.
pub type Sides = (Arc<Host>, Arc<Host>);

/// A copy that somebody asked for.
pub struct Asked<'a> {
    sides: Sides,
    /// Opens them anew: a disk that was away may be another device now.
    reopen: &'a dyn Fn() -> Result<Sides>,
    /// What it will be.
    pub snapshot: SnapshotId,
    /// Its task.
    pub task: TaskId,
    held: Option<(Held, Plan)>,
}

impl<'a> Asked<'a> {
    /// By this command.
    pub fn now(sides: Sides, reopen: &'a dyn Fn() -> Result<Sides>, held: Held, plan: Plan) -> Self {
        let task = held.task().id;
        let snapshot = held.snapshot();
        Self { sides, reopen, snapshot, task, held: Some((held, plan)) }
    }

    /// By the same words before.
    pub fn before(
        sides: Sides,
        reopen: &'a dyn Fn() -> Result<Sides>,
        snapshot: SnapshotId,
        task: TaskId,
    ) -> Self {
        Self { sides, reopen, snapshot, task, held: None }
    }

    /// The region it is made in.
    pub fn target(&self) -> &Region {
        self.sides.1.region()
    }
}

/// The number of those who wait for a copy that fails so.
pub fn exit_of(error: &CopyError) -> u8 {
    of_copy(error) as u8
}

/// Makes a copy, or watches who does, until it is over. What stands in its way is waited for. Prints its id.
pub fn carry_out(app: &App, asked: Asked) -> Outcome {
    let cancel = cancelled_by_signals()?;
    let Asked { mut sides, reopen, snapshot, task, mut held } = asked;
    let mut backoff = Backoff::default();
    loop {
        let region = sides.1.region();
        let (held, plan) = match held.take() {
            Some((held, plan)) => (held, Some(plan)),
            None => match Held::take(region, task)? {
                Taken::Held(held) => (*held, None),
                Taken::Over => return end_of(region, task).and_then(|()| app.output().id(snapshot)),
                Taken::Busy => {
                    watch(app, region, task, &cancel)?;
                    continue;
                }
            },
        };
        match carry_held(app, &held, &sides, plan, &cancel) {
            Ok(id) => return app.output().id(id),
            Err(CopyError::Behind { copy, task }) => {
                drop(held);
                app.output().note(format!("it waits for copy {copy}, which will be its base"));
                while copy::is_held(region, task)? {
                    sleep(LOOK, &cancel)?;
                }
            }
            Err(error) if error.is_kept() && !matches!(error, CopyError::Interrupted) => {
                drop(held);
                let pause = backoff.pause();
                app.output().note(format!("{error}; trying again in {} s", pause.as_secs()));
                sleep(pause, &cancel)?;
                sides = open_again(app, sides, reopen, &mut backoff, &cancel)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Both sides anew, once they are there and are the same regions as before. Where a person would be asked for a passphrase again, as they
/// were.
fn open_again(
    app: &App,
    sides: Sides,
    reopen: &dyn Fn() -> Result<Sides>,
    backoff: &mut Backoff,
    cancel: &AtomicBool,
) -> Result<Sides, CopyError> {
    let asks = |host: &Host| *host.region().root_key_place() == RootKeyPlace::Terminal;
    if asks(&sides.0) || asks(&sides.1) {
        return Ok(sides);
    }
    let ids = |sides: &Sides| (sides.0.region().id(), sides.1.region().id());
    let before = ids(&sides);
    drop(sides);
    loop {
        let why = match reopen() {
            Ok(anew) if ids(&anew) == before => return Ok(anew),
            Ok(_) => "another region is in its place".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        let pause = backoff.pause();
        app.output().note(format!("{why}; trying again in {} s", pause.as_secs()));
        sleep(pause, cancel)?;
    }
}

fn carry_held(
    app: &App,
    held: &Held,
    (source, target): &Sides,
    plan: Option<Plan>,
    cancel: &AtomicBool,
) -> Result<SnapshotId, CopyError> {
    let slot = wait_for_slot(app, target.region(), cancel)?;
    let mut progress: Option<Progress> = None;
    let mut report = |done, total| {
        let progress = progress.get_or_insert_with(|| {
            if done > 0 {
                let (done, total) = (size_text(done), size_text(total));
                app.output().note(format!("going on with what was begun: {done} of {total} are there"));
            }
            Progress::new(app, "copying", total)
        });
        progress.report(done, total);
    };
    let watch = Watch { exit_of, ..Watch::new(cancel, &mut report) };
    let copied = copy::carry_out(held, &slot, target, |_| Ok(source.clone()), plan, watch);
    if let Some(mut progress) = progress {
        progress.end(copied.is_ok());
    }
    copied
}

fn wait_for_slot(app: &App, region: &Region, cancel: &AtomicBool) -> Result<Slot, CopyError> {
    let mut told = false;
    loop {
        if let Some(slot) = Slot::take(region)? {
            return Ok(slot);
        }
        if !std::mem::replace(&mut told, true) {
            let (name, max) = (region.name(), copy::COPIES_MAX);
            app.output()
                .note(format!("{max} copies are being made in region {name}: this one waits for its turn"));
        }
        sleep(LOOK, cancel)?;
    }
}

/// Shows the progress of a task that another process works on, until it does not any more.
fn watch(app: &App, region: &Region, id: TaskId, cancel: &AtomicBool) -> Result<(), CopyError> {
    app.output().note(format!("another process makes it: watching task {id}"));
    let mut progress: Option<Progress> = None;
    loop {
        let task = region.catalog()?.read(|tx| Ok::<_, CopyError>(tx.find_task(id)?))?;
        let Some(task) = task.filter(|task| task.is_open() && copy::is_held(region, id).unwrap_or(false))
        else {
            if let Some(mut progress) = progress {
                progress.end(true);
            }
            return Ok(());
        };
        progress
            .get_or_insert_with(|| Progress::new(app, "copying", task.bytes_total))
            .report(task.bytes_done, task.bytes_total);
        sleep(LOOK, cancel)?;
    }
}

/// Waits until a task is over, whoever does it.
pub fn until_over(app: &App, region: &Region, id: TaskId) -> Outcome {
    let cancel = cancelled_by_signals()?;
    let mut progress: Option<Progress> = None;
    loop {
        let task = find(region, id)?;
        if !task.is_open() {
            if let Some(mut progress) = progress {
                progress.end(task.state == TaskState::Succeeded);
            }
            return as_outcome(&task);
        }
        progress
            .get_or_insert_with(|| Progress::new(app, "waiting", task.bytes_total))
            .report(task.bytes_done, task.bytes_total);
        if sleep(LOOK, &cancel).is_err() {
            let message = format!("task {id} was not waited for to its end");
            let hint = Some("it goes on without this command".into());
            return Err(Failure { exit: Exit::Cancelled, message, hint }.into());
        }
    }
}

fn find(region: &Region, id: TaskId) -> Result<Task> {
    let not_found = || crate::catalog::CatalogError::NotFound {
        kind: Kind::Task,
        text: id.to_string(),
        region: region.name().to_owned(),
    };
    Ok(region.catalog()?.read(|tx| tx.find_task(id))?.ok_or_else(not_found)?)
}

fn end_of(region: &Region, id: TaskId) -> Outcome {
    as_outcome(&find(region, id)?)
}

/// How a task that is over ended, as the error that it would have been here.
fn as_outcome(task: &Task) -> Outcome {
    let (exit, message) = match task.state {
        TaskState::Cancelled => (Exit::Cancelled, format!("task {} was cancelled", task.id)),
        TaskState::Failed => (
            task.exit.filter(|exit| *exit != 0).map_or(Exit::Other, |exit| Exit::of_number(exit.into())),
            task.error.clone().unwrap_or_else(|| format!("task {} failed", task.id)),
        ),
        TaskState::Succeeded | TaskState::Queued | TaskState::Running => return Ok(()),
    };
    Err(Failure { exit, message, hint: None }.into())
}

/// Sleeps, unless it is told to end.
fn sleep(pause: Duration, cancel: &AtomicBool) -> Result<(), CopyError> {
    let since = Instant::now();
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(CopyError::Interrupted);
        }
        match pause.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) {
            Some(left) => std::thread::sleep(left.min(LOOK)),
            None => return Ok(()),
        }
    }
}
