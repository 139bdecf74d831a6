//! `terrane schedule …`

use anyhow::Result;
use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;

use super::copy_to::{CopyToArgs, Wanted};
use super::options::{checked_tags, tags_text};
use super::{App, Failure, Outcome};
use crate::catalog::{Schedule, Tag};
use crate::copy::KeyChoice;
use crate::ids::Name;
use crate::region::Region;
use crate::schedule::{self, CopyTo, Cron, Every, Terms, What, When};

/// Commands on schedules, which `terrane daemon` carries out. SCHEDULE is an id, a name, or the beginning of an id.
#[derive(Subcommand)]
pub enum Command {
    /// Take snapshots from now on, and copy and expire them, and print the schedule's id
    Create(Create),
    /// List the region's schedules
    List,
    /// Describe a schedule, and list the snapshots that it took
    Show {
        /// The schedule
        schedule: String,
    },
    /// Delete a schedule; its snapshots and their copies stay
    Delete {
        /// The schedule
        schedule: String,
    },
}

/// What `create` takes.
#[derive(Args)]
#[command(
    group = ArgGroup::new("what").required(true),
    group = ArgGroup::new("when").required(true)
)]
pub struct Create {
    /// Its name, with which those of its snapshots begin; at most 64 characters
    #[arg(long)]
    name: Name,
    /// A volume; may be given again
    #[arg(long = "volume", value_name = "VOLUME", group = "what")]
    volumes: Vec<String>,
    /// All volumes that have this tag when it is due, K=V; of several, each
    #[arg(long = "tag", value_name = "K=V", group = "what", conflicts_with = "volumes")]
    tags: Vec<Tag>,
    /// How often: 15m, 1h, 1d, 1w; on the hour, at midnight, on Monday, in UTC
    #[arg(long, value_name = "SPAN", group = "when")]
    every: Option<Every>,
    /// When, in UTC, as cron has it: minute, hour, day of the month, month, day of the week
    #[arg(long, value_name = "M H D M W", group = "when")]
    cron: Option<Cron>,
    /// So many of its snapshots of each volume stay, the newest; all, if it is not said
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    keep: Option<u32>,
    #[command(flatten)]
    copies: CopyToArgs,
}

#[derive(Serialize)]
struct Shown {
    id: String,
    name: String,
    every: Option<String>,
    cron: Option<String>,
    volume_ids: Vec<String>,
    tags: Vec<Tag>,
    keep: Option<u32>,
    copies: Vec<ShownCopy>,
    last_due_at: Option<String>,
    last_run_at: Option<String>,
    next_due_at: Option<String>,
    error: Option<String>,
    error_at: Option<String>,
    account_id: String,
    created_at: String,
}

#[derive(Serialize)]
struct ShownCopy {
    region_id: String,
    region: String,
    key: String,
    keep: Option<u32>,
}

#[derive(Serialize)]
struct ShownWhole {
    #[serde(flatten)]
    schedule: Shown,
    snapshots: Vec<ShownSnapshot>,
}

#[derive(Serialize)]
struct ShownSnapshot {
    id: String,
    name: String,
    volume_id: String,
    due_at: String,
}

pub(super) fn run(command: Command, app: &App) -> Outcome {
    let region = app.region()?;
    match command {
        Command::Create(args) => create(&args, app, &region),
        Command::List => {
            let rows = region.catalog()?.read(|tx| tx.schedules())?;
            let shown: Vec<_> = rows.iter().map(describe).collect();
            let columns = ["id", "name", "when", "of", "keep", "copies", "last run", "next due", "problem"];
            app.output().list(&shown, &columns, |s| {
                let problem = s.error.clone().unwrap_or_default();
                vec![
                    s.id.clone(),
                    s.name.clone(),
                    when_text(s),
                    what_text(s),
                    keep_text(s.keep),
                    copies_text(s),
                    s.last_run_at.clone().unwrap_or_default(),
                    s.next_due_at.clone().unwrap_or_default(),
                    problem,
                ]
            })
        }
        Command::Show { schedule } => {
            let id = region.catalog()?.read(|tx| tx.resolve_schedule(&schedule))?;
            let row = region.catalog()?.read(|tx| tx.find_schedule(id))?;
            // It was there a moment before.
            let row =
                row.ok_or_else(|| Failure::refused(format!("schedule {id} was just deleted"), "list them"))?;
            show(&row, app, &region)
        }
        Command::Delete { schedule } => {
            let id = region.catalog()?.read(|tx| tx.resolve_schedule(&schedule))?;
            Ok(schedule::delete(&region, id, app.config())?)
        }
    }
}

fn create(args: &Create, app: &App, region: &Region) -> Outcome {
    if app.config().entry(region.id())?.is_none() {
        let message =
            format!("region {} is not in the configuration, where the daemon finds it", region.name());
        return Err(Failure::refused(message, format!("terrane region add {}", region.dir().display())));
    }
    let account = app.account(&mut region.catalog()?)?.id;
    let when = match (&args.every, &args.cron) {
        (Some(every), _) => When::Every(*every),
        (None, Some(cron)) => When::Cron(cron.clone()),
        (None, None) => return Err(Failure::usage("--every or --cron says when")),
    };
    let copies = args.copies.wanted()?.iter().map(|to| copy_to(to, app, region)).collect::<Result<_>>()?;
    let terms = Terms { when, what: what(args, app, region)?, keep: args.keep, copies };
    app.output().id(schedule::create(region, account, args.name.clone(), &terms)?)
}

fn what(args: &Create, app: &App, region: &Region) -> Result<What> {
    if !args.tags.is_empty() {
        let tags = checked_tags(&args.tags)?;
        let has_all = |id: String| {
            region
                .catalog()?
                .read(|tx| tx.tags(&id))
                .map(|has| tags.iter().all(|tag| has.contains(tag)))
                .map_err(anyhow::Error::from)
        };
        let volumes = region.catalog()?.read(|tx| tx.volumes())?;
        let found = volumes.into_iter().map(|v| has_all(v.id.to_string())).collect::<Result<Vec<_>>>()?;
        if !found.contains(&true) {
            app.output().note(format!(
                "no volume has the tags {} yet: terrane volume set VOLUME --tag K=V",
                tags_text(tags)
            ));
        }
        return Ok(What::Tagged(tags.to_vec()));
    }
    let mut ids = Vec::new();
    for text in &args.volumes {
        let id = region.catalog()?.read(|tx| tx.resolve_volume(text))?.id;
        if ids.contains(&id) {
            return Err(Failure::usage(format!("volume {text:?} is named twice")));
        }
        ids.push(id);
    }
    Ok(What::Volumes(ids))
}

/// What is named is found now: a slip of the pen is told at once, and not when it is due.
fn copy_to(wanted: &Wanted, app: &App, region: &Region) -> Result<CopyTo> {
    let opened;
    let target = match app.region_named(&wanted.region)? {
        target if target.id() == region.id() => region,
        target => {
            opened = target;
            &opened
        }
    };
    if app.config().entry(target.id())?.is_none() {
        let message =
            format!("region {} is not in the configuration, where the daemon finds it", target.name());
        return Err(Failure::refused(message, format!("terrane region add {}", target.dir().display())));
    }
    let key = match &wanted.key {
        KeyChoice::Named(text) => {
            let key = target.catalog()?.read(|tx| tx.resolve_key(text))?;
            KeyChoice::Named(key.id.to_string())
        }
        other => other.clone(),
    };
    Ok(CopyTo {
        region: target.id(),
        region_name: target.name().to_owned(),
        account: app.account(&mut target.catalog()?)?.id,
        key,
        keep: wanted.keep,
    })
}

fn show(row: &Schedule, app: &App, region: &Region) -> Outcome {
    let snapshot = |made: schedule::Made| {
        let row = made.row?;
        Some(ShownSnapshot {
            id: row.id.to_string(),
            name: row.name.to_string(),
            volume_id: made.volume.to_string(),
            due_at: made.due.to_string(),
        })
    };
    let snapshots = schedule::made_by(region, row)?.into_iter().filter_map(snapshot).collect();
    app.output().object(&ShownWhole { schedule: describe(row), snapshots }, |whole| {
        let s = &whole.schedule;
        let problem = match (&s.error, &s.error_at) {
            (Some(error), Some(at)) => format!("since {at}: {error}"),
            _ => "none".into(),
        };
        let mut fields = vec![
            ("id", s.id.clone()),
            ("name", s.name.clone()),
            ("when", when_text(s)),
            ("of", what_text(s)),
            ("keep", keep_text(s.keep)),
            ("copies", copies_text(s)),
            ("last due", s.last_due_at.clone().unwrap_or_default()),
            ("last run", s.last_run_at.clone().unwrap_or_default()),
            ("next due", s.next_due_at.clone().unwrap_or_default()),
            ("problem", problem),
            ("created at", s.created_at.clone()),
        ];
        fields.extend(whole.snapshots.iter().map(|snapshot| ("snapshot", snapshot.name.clone())));
        fields
    })
}

/// A row that does not read is shown with what reads of it.
fn describe(row: &Schedule) -> Shown {
    let terms = Terms::of_row(row);
    let trouble = terms.as_ref().err().map(ToString::to_string);
    let mut shown = Shown {
        id: row.id.to_string(),
        name: row.name.to_string(),
        every: None,
        cron: None,
        volume_ids: Vec::new(),
        tags: Vec::new(),
        keep: None,
        copies: Vec::new(),
        last_due_at: row.last_due.map(|at| at.to_string()),
        last_run_at: row.last_run_at.map(|at| at.to_string()),
        next_due_at: schedule::next_due(row).map(|at| at.to_string()),
        error: row.error.clone().or(trouble),
        error_at: row.error_at.map(|at| at.to_string()),
        account_id: row.account.to_string(),
        created_at: row.created_at.to_string(),
    };
    let Ok(terms) = terms else { return shown };
    match &terms.when {
        When::Every(every) => shown.every = Some(every.to_string()),
        When::Cron(cron) => shown.cron = Some(cron.to_string()),
    }
    match terms.what {
        What::Volumes(ids) => shown.volume_ids = ids.iter().map(ToString::to_string).collect(),
        What::Tagged(tags) => shown.tags = tags,
    }
    shown.keep = terms.keep;
    let copy = |to: &CopyTo| ShownCopy {
        region_id: to.region.to_string(),
        region: to.region_name.clone(),
        key: to.key_text().to_owned(),
        keep: to.keep,
    };
    shown.copies = terms.copies.iter().map(copy).collect();
    shown
}

fn when_text(s: &Shown) -> String {
    match (&s.every, &s.cron) {
        (Some(every), _) => format!("every {every}"),
        (None, Some(cron)) => format!("cron {cron}"),
        (None, None) => String::new(),
    }
}

fn what_text(s: &Shown) -> String {
    match s.tags.is_empty() {
        true => s.volume_ids.join(", "),
        false => format!("volumes with {}", tags_text(&s.tags)),
    }
}

fn keep_text(keep: Option<u32>) -> String {
    keep.map_or_else(|| "all".into(), |keep| format!("the newest {keep}"))
}

fn copies_text(s: &Shown) -> String {
    let copy = |to: &ShownCopy| format!("to {} (key: {}), keep {}", to.region, to.key, keep_text(to.keep));
    s.copies.iter().map(copy).collect::<Vec<_>>().join("; ")
}
