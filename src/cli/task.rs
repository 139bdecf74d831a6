//! `terrane task …`

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

use super::progress::cancelled_by_signals;
use super::{App, Failure, Outcome, size_text, waiting};
use crate::catalog::{Task, TaskEnd, TaskState};
use crate::copy::{self, Request};
use crate::region::Region;
use crate::volume::cancel_copy;

/// How often `--watch` looks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How long a cancelled task's worker may take to take away what it made.
const CLEARING: Duration = Duration::from_secs(60);

/// Commands on tasks. TASK is an id, the beginning of one, or the name or id of the snapshot it makes.
#[derive(Subcommand)]
pub enum Command {
    /// List the region's tasks: what waits, in order, what is being done, and what ended in the last 90 days
    List {
        /// Again each second, until nothing waits or is being done
        #[arg(long)]
        watch: bool,
    },
    /// Describe a task
    Show {
        /// The task
        task: String,
    },
    /// Wait until a task is over, and end as it did
    Wait {
        /// The task
        task: String,
    },
    /// Call a task off: what it made is taken away
    Cancel {
        /// The task
        task: String,
    },
    /// Forget a task that is over, as one that failed; what it made stays
    Forget {
        /// The task
        task: String,
    },
}

#[derive(Serialize, PartialEq)]
struct Shown {
    id: String,
    kind: String,
    state: TaskState,
    queue_position: Option<u64>,
    bytes_done: u64,
    bytes_total: u64,
    bytes_per_second: u64,
    eta_seconds: Option<u64>,
    error: Option<String>,
    exit: Option<u8>,
    snapshot_id: Option<String>,
    name: Option<String>,
    source_region: Option<String>,
    source_snapshot_id: Option<String>,
    created_at: String,
    updated_at: String,
}

pub(super) fn run(command: &Command, app: &App) -> Outcome {
    let region = app.region()?;
    let find = |text: &str| region.catalog()?.read(|tx| Ok::<_, anyhow::Error>(tx.resolve_task(text)?));
    match command {
        Command::List { watch: false } => list(app, &region),
        Command::List { watch: true } => watch(app, &region),
        Command::Show { task } => {
            let id = find(task)?.id;
            let shown = shown_tasks(&region)?.into_iter().find(|shown| shown.id == id.to_string());
            let gone =
                || Failure::refused(format!("task {id} is not there any more"), "see `terrane task list`");
            app.output().object(&shown.ok_or_else(gone)?, fields)
        }
        Command::Wait { task } => waiting::until_over(app, &region, find(task)?.id),
        Command::Forget { task } => {
            let id = find(task)?.id;
            match region.catalog()?.write(|tx| tx.forget_task(id))? {
                true => Ok(()),
                false => {
                    let message = format!("task {id} is not over");
                    Err(Failure::refused(message, format!("terrane task cancel {id}")))
                }
            }
        }
        Command::Cancel { task } => {
            let task = find(task)?;
            cancel(&region, &task)
        }
    }
}

fn list(app: &App, region: &Region) -> Outcome {
    let columns = ["id", "kind", "state", "name", "from", "done", "of", "rate", "left", "error"];
    app.output().list(&shown_tasks(region)?, &columns, |t| {
        vec![
            t.id.clone(),
            t.kind.clone(),
            state_text(t),
            t.name.clone().unwrap_or_default(),
            t.source_region.clone().unwrap_or_default(),
            size_text(t.bytes_done),
            size_text(t.bytes_total),
            rate_text(t),
            t.eta_seconds.map(|s| format!("{s} s")).unwrap_or_default(),
            t.error.clone().unwrap_or_default(),
        ]
    })
}

/// The list each second; for programs a line for each task that changed.
fn watch(app: &App, region: &Region) -> Outcome {
    let cancel = cancelled_by_signals()?;
    let mut before: Vec<Shown> = Vec::new();
    loop {
        let now = shown_tasks(region)?;
        if app.output().is_json() {
            for task in now.iter().filter(|task| !before.contains(task)) {
                app.output().json_line(task)?;
            }
        } else {
            if std::io::stdout().is_terminal() {
                // Home, and clear what is below.
                print!("\x1b[H\x1b[J");
                std::io::stdout().flush()?;
            }
            list(app, region)?;
        }
        let is_over = |task: &Shown| !matches!(task.state, TaskState::Queued | TaskState::Running);
        if now.iter().all(is_over) {
            return Ok(());
        }
        before = now;
        let since = Instant::now();
        while since.elapsed() < WATCH_INTERVAL {
            if cancel.load(std::sync::atomic::Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// All tasks of a region, with their places in the queue and when they may be done, as things go now.
fn shown_tasks(region: &Region) -> Result<Vec<Shown>> {
    let tasks = region.catalog()?.read(|tx| tx.tasks())?;
    let mut shown = Vec::with_capacity(tasks.len());
    let (mut position, mut left) = (0, 0u64);
    let states: Vec<TaskState> = tasks.iter().map(|task| state(region, task)).collect();
    let running = tasks.iter().zip(&states).filter(|(_, state)| **state == TaskState::Running);
    // Rows may say anything.
    let rate = running.fold(0u64, |sum, (task, _)| sum.saturating_add(task.bytes_per_second));
    for (task, state) in tasks.into_iter().zip(states) {
        let own = task.bytes_total.saturating_sub(task.bytes_done);
        if task.is_open() {
            left = left.saturating_add(own);
        }
        let (place, eta) = match state {
            TaskState::Queued => {
                position += 1;
                (Some(position), left.checked_div(rate))
            }
            TaskState::Running => (None, own.checked_div(task.bytes_per_second)),
            _ => (None, None),
        };
        shown.push(describe(task, state, place, eta));
    }
    Ok(shown)
}

/// A task that nobody works on waits, whatever its row says: who did was killed.
fn state(region: &Region, task: &Task) -> TaskState {
    match task.state {
        TaskState::Running if !copy::is_held(region, task.id).unwrap_or(false) => TaskState::Queued,
        state => state,
    }
}

fn describe(task: Task, state: TaskState, queue_position: Option<u64>, eta_seconds: Option<u64>) -> Shown {
    let request = Request::of_task(&task).ok();
    Shown {
        id: task.id.to_string(),
        kind: task.kind,
        state,
        queue_position,
        bytes_done: task.bytes_done,
        bytes_total: task.bytes_total,
        bytes_per_second: if state == TaskState::Running { task.bytes_per_second } else { 0 },
        eta_seconds,
        error: task.error,
        exit: task.exit,
        snapshot_id: task.resource,
        name: request.as_ref().map(|request| request.name.clone()),
        source_region: request.as_ref().map(|request| request.region_name.clone()),
        source_snapshot_id: request.map(|request| request.snapshot.to_string()),
        created_at: task.created_at.to_string(),
        updated_at: task.updated_at.to_string(),
    }
}

fn state_text(t: &Shown) -> String {
    match t.queue_position {
        Some(place) if t.bytes_done > 0 => format!("queued {place}, begun"),
        Some(place) => format!("queued {place}"),
        None => t.state.as_str().into(),
    }
}

fn rate_text(t: &Shown) -> String {
    match t.bytes_per_second {
        0 => String::new(),
        rate => format!("{}/s", size_text(rate)),
    }
}

fn fields(t: &Shown) -> Vec<(&'static str, String)> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    vec![
        ("id", t.id.clone()),
        ("kind", t.kind.clone()),
        ("state", state_text(t)),
        ("done", format!("{} of {}", size_text(t.bytes_done), size_text(t.bytes_total))),
        ("rate", rate_text(t)),
        ("left", t.eta_seconds.map(|s| format!("{s} s")).unwrap_or_default()),
        ("error", text(&t.error)),
        ("snapshot", text(&t.snapshot_id)),
        ("name", text(&t.name)),
        ("source", format!("{}/{}", text(&t.source_region), text(&t.source_snapshot_id))),
        ("created at", t.created_at.clone()),
        ("updated at", t.updated_at.clone()),
    ]
}

/// A task that was cancelled is so: again is no error.
fn cancel(region: &Region, task: &Task) -> Outcome {
    match task.state {
        TaskState::Cancelled => return Ok(()),
        TaskState::Succeeded | TaskState::Failed => return Err(is_over(task, Some(task.clone()))),
        TaskState::Queued | TaskState::Running => {}
    }
    if !task.snapshot().map_or(Ok(false), |id| cancel_copy(region, id))? {
        // Of no snapshot that is being made; or that has just become whole, and is the caller's.
        let now = region.now();
        if !region.catalog()?.write(|tx| tx.end_task(task.id, TaskEnd::CANCELLED, now))? {
            return Err(is_over(task, region.catalog()?.read(|tx| tx.find_task(task.id))?));
        }
    }
    // Who works on it sees that its row is gone within a second.
    let since = Instant::now();
    // A lock that is not one is nobody's.
    while copy::is_held(region, task.id).unwrap_or(false) && since.elapsed() < CLEARING {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn is_over(task: &Task, now: Option<Task>) -> anyhow::Error {
    let state = now.map_or(TaskState::Cancelled, |now| now.state);
    let message = format!("task {} is over: it {state}", task.id);
    Failure::refused(message, "`terrane snapshot delete` takes a copy away")
}
