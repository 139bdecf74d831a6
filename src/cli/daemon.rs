//! `terrane daemon`

use anyhow::Result;
use clap::Args;

use super::exit::Exit;
use super::progress::cancelled_by_signals;
use super::waiting::exit_of;
use super::{App, Failure, Outcome, owner, parse_bytes, size_text};
use crate::catalog::Task;
use crate::copy::CopyError;
use crate::daemon::{Event, Settings, Summary, work};
use crate::region::Region;
use crate::schedule;
use crate::sys::process;

/// What `daemon` takes.
#[derive(Args)]
pub struct DaemonArgs {
    /// End when nothing is to be done now; exit 1 if a task failed
    #[arg(long)]
    once: bool,
    /// How many tasks are done at once
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Bytes a second that may cross at most, all tasks together, as 100M
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    max_rate: Option<u64>,
}

/// Works until it is told to end.
pub fn run(args: &DaemonArgs, app: &App) -> Outcome {
    let only = app.region_text().map(|_| known_id(app)).transpose()?;
    process::limit_arenas();
    let cancel = cancelled_by_signals()?;
    let settings = Settings {
        config: app.config(),
        only,
        jobs: args.jobs.into(),
        max_rate: args.max_rate,
        once: args.once,
        cancel: &cancel,
        exit_of,
        perform: owner::carry_out_unseen,
    };
    let summary = work(&settings, &mut |event| tell(app, &event))?;
    let Summary { succeeded, failed, put_off } = summary;
    if !args.once {
        return Ok(());
    }
    app.output().note(format!("{succeeded} done, {failed} failed, {put_off} put off"));
    match failed {
        _ if cancel.load(std::sync::atomic::Ordering::Relaxed) => Err(CopyError::Interrupted.into()),
        0 => Ok(()),
        n => {
            let message = format!("{n} task{} failed", if n == 1 { "" } else { "s" });
            let hint = Some("`terrane task list` says why".into());
            Err(Failure { exit: Exit::Other, message, hint }.into())
        }
    }
}

/// The region of `--region`, which must be in the configuration.
fn known_id(app: &App) -> Result<crate::ids::RegionId> {
    let region: Region = app.region()?;
    if app.config().entry(region.id())?.is_none() {
        let message = format!("region {} is not in the configuration", region.name());
        let hint = format!("terrane region add {}", region.dir().display());
        return Err(Failure::refused(message, hint));
    }
    Ok(region.id())
}

/// A line for people; none of progress, which `task list` shows.
fn tell(app: &App, event: &Event) {
    let line = match event {
        Event::Began { region, task } => format!("{}: {} begins", words(region, task), task.kind),
        Event::Ended { region, task, error: None, .. } => format!("{}: done", words(region, task)),
        Event::Ended { region, task, error: Some(error), again_in: Some(pause) } => {
            format!("{}: {error}; trying again in {} s", words(region, task), pause.as_secs())
        }
        Event::Ended { region, task, error: Some(error), .. } => format!("{}: {error}", words(region, task)),
        Event::Over { region, what } => format!("region {region}: {what}"),
        Event::Carried { region, schedule, outcome, again_in } => {
            format!("schedule {schedule} in region {region}: {}", carried_text(outcome, *again_in))
        }
        Event::Doubted { doubt: Some(doubt) } => doubt.to_string(),
        Event::Doubted { doubt: None } => "this machine's clock is believed again: what is over ends".into(),
        Event::Forgotten { why } => {
            format!(
                "what is known of this machine's clock can't be read or written down, and where it can't be read nothing ends by it: {why}"
            )
        }
        Event::Troubled { why } => format!("the configuration can't be read: {why}"),
        Event::Left { region, why } => format!("region {region} is left alone: {why}"),
    };
    app.output().note(line);
}

/// `2 snapshots taken, 2 copies asked for, 1 expired; volume db: …; trying again in 4 s`
fn carried_text(outcome: &schedule::Outcome, again_in: Option<std::time::Duration>) -> String {
    let counts =
        [(outcome.taken, "taken"), (outcome.asked, "copies asked for"), (outcome.expired, "expired")];
    let done: Vec<_> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    let done = (!done.is_empty()).then(|| done.join(", "));
    let again = again_in.map(|pause| format!("trying again in {} s", pause.as_secs()));
    [done, outcome.error(), again].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn words(region: &str, task: &Task) -> String {
    let left = task.bytes_total.saturating_sub(task.bytes_done);
    let name = crate::copy::Request::of_task(task).map_or_else(|_| "?".into(), |request| request.name);
    format!("{} ({name} in region {region}, {})", task.id, size_text(left))
}
