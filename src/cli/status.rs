//! `terrane status`: what is mounted, what is wrong.

use anyhow::Result;
use jiff::SignedDuration;
use serde::Serialize;

use super::exit::Exit;
use super::newest::{self, LeftOut, ShownNewest};
use super::volume::{could_not_be_opened, in_trouble};
use super::{App, Failure, Outcome, owner, size_text};
use crate::catalog::{Schedule, Snapshot, SnapshotState, TaskState};
use crate::copy::{Copies, is_held};
use crate::fuse::{self, Life};
use crate::region::{MachineClock, Region};
use crate::schedule::{Terms, next_due};
use crate::sys::mount::MountedAt;
use crate::volume::{HostError, HostState, UnreadableLayer, is_interrupted, unreadable_layers};

/// A daemon is a second late at most; one that begins with the machine, and has much to do, some minutes.
const OVERDUE: SignedDuration = SignedDuration::from_mins(10);

#[derive(Serialize)]
struct Status {
    regions: Vec<RegionStatus>,
    /// Regions that may have copies that are not told of.
    left_out: Vec<LeftOut>,
    dead_mounts: Vec<String>,
    problems: Vec<String>,
}

#[derive(Serialize)]
struct RegionStatus {
    name: String,
    directory: String,
    mount: Option<HostState>,
    log: String,
    free_bytes: u64,
    total_bytes: u64,
    volumes: usize,
    snapshots: usize,
    deleted_snapshots: usize,
    open_tasks: usize,
    failed_tasks: usize,
    schedules: usize,
    newest_copies: Vec<ShownNewest>,
    /// Its clock is the machine's.
    #[serde(skip)]
    is_by_machine: bool,
}

/// Of the chosen region, or of all known ones. Exit 6 where anything is bad.
pub fn run(app: &App) -> Outcome {
    let mut problems = Vec::new();
    let chosen = app.region_text().map(|_| app.region()).transpose()?;
    let (regions, left_out) = look_at_regions(app, chosen.as_ref(), &mut problems)?;
    if regions.iter().any(|region| region.is_by_machine) {
        problems.extend(match MachineClock::new(app.config()).doubt() {
            Ok(doubt) => doubt.map(|doubt| doubt.to_string()),
            Err(error) => Some(format!(
                "what is remembered of this machine's clock can't be read, and nothing ends by it, neither retentions nor the bin nor locks: \
                 {error}; if the clock is right, `terrane region trust-clock` writes it anew"
            )),
        });
    }
    let dead_mounts = look_at_mounts(chosen.as_ref(), &mut problems)?;
    let status = Status { regions, left_out, dead_mounts, problems };
    app.output().object(&status, fields)?;
    match status.problems.len() {
        0 => Ok(()),
        n => {
            let message = format!("{n} problem{}", if n == 1 { "" } else { "s" });
            Err(Failure { exit: Exit::Corrupted, message, hint: None }.into())
        }
    }
}

/// The chosen region, or all known ones; and those whose copies are not known.
fn look_at_regions(
    app: &App,
    chosen: Option<&Region>,
    problems: &mut Vec<String>,
) -> Result<(Vec<RegionStatus>, Vec<LeftOut>)> {
    let (others, mut left_out) = open_others(app, chosen)?;
    if chosen.is_none() {
        problems.extend(left_out.iter().map(|out| format!("region {}: {}", out.region, out.why)));
    }
    let mut copies = Vec::new();
    for region in chosen.into_iter().chain(&others) {
        match Copies::of(region) {
            Ok(held) => copies.push(held),
            Err(e) => left_out.push(LeftOut { region: region.name().to_owned(), why: e.to_string() }),
        }
    }
    if let Some(region) = chosen {
        return Ok((vec![of_region(region, &copies, problems)?], left_out));
    }
    let mut regions = Vec::new();
    for region in &others {
        match of_region(region, &copies, problems) {
            Ok(status) => regions.push(status),
            Err(e) => problems.push(format!("region {}: {e:#}", region.name())),
        }
    }
    Ok((regions, left_out))
}

/// The known regions but for the chosen one, and those that can't be opened.
fn open_others(app: &App, chosen: Option<&Region>) -> Result<(Vec<Region>, Vec<LeftOut>)> {
    let (mut others, mut left_out) = (Vec::new(), Vec::new());
    for known in app.config().known()? {
        if chosen.is_some_and(|chosen| chosen.id() == known.id) {
            continue;
        }
        match app.region_named(&known.directory.display().to_string()) {
            Ok(region) => others.push(region),
            Err(e) => left_out.push(LeftOut { region: known.name.to_string(), why: format!("{e:#}") }),
        }
    }
    Ok((others, left_out))
}

/// Mounts of the chosen region, or of whichever, whose server is dead.
fn look_at_mounts(chosen: Option<&Region>, problems: &mut Vec<String>) -> Result<Vec<String>> {
    let mut dead_mounts = Vec::new();
    let is_meant = |at: &MountedAt| chosen.is_none_or(|region| at.source == region.dir().as_os_str());
    for at in fuse::mounts()?.into_iter().filter(is_meant).map(|mount| mount.path) {
        let name = at.display().to_string();
        match fuse::life(&at, owner::MOUNT_TIME) {
            Life::Live => {}
            Life::Dead => {
                problems.push(format!("{name} is a dead mount; clear it: terrane unmount {name}"));
                dead_mounts.push(name);
            }
            Life::Silent => {
                problems.push(format!("the mount at {name} does not answer; its server may be stopped"))
            }
        }
    }
    Ok(dead_mounts)
}

fn fields(s: &Status) -> Vec<(&'static str, String)> {
    let mut fields: Vec<_> = s.regions.iter().flat_map(region_fields).collect();
    for out in &s.left_out {
        fields.push(("left out", format!("copies in region {}: {}", out.region, out.why)));
    }
    let bad = if s.problems.is_empty() { "none".into() } else { s.problems.join("\n") };
    fields.push(("problems", bad));
    fields
}

fn region_fields(r: &RegionStatus) -> Vec<(&'static str, String)> {
    let mount = match &r.mount {
        Some(state) => {
            format!("{} by process {}, {} volumes live", state.mount_point, state.pid, state.live.len())
        }
        None => "not mounted".into(),
    };
    vec![
        ("region", format!("{} in {}", r.name, r.directory)),
        ("mount", mount),
        ("log", r.log.clone()),
        ("space", format!("{} free of {}", size_text(r.free_bytes), size_text(r.total_bytes))),
        (
            "holds",
            format!(
                "{} volumes, {} snapshots, {} more in the bin",
                r.volumes, r.snapshots, r.deleted_snapshots
            ),
        ),
        ("tasks", format!("{} queued or being done, {} failed", r.open_tasks, r.failed_tasks)),
        ("schedules", r.schedules.to_string()),
        ("newest copies", newest::text(&r.newest_copies)),
    ]
}

/// Why a copy is not being made, unless it just waits for its turn.
fn waits(region: &Region, copy: &Snapshot) -> Result<Option<String>> {
    let task = region.catalog()?.read(|tx| tx.task_of(&copy.id.to_string()))?;
    let what = format!("copy {} in region {}", copy.name, region.name());
    if let Some(task) = &task
        && is_held(region, task.id).unwrap_or(false)
    {
        return Ok(None);
    }
    Ok(match task.and_then(|task| task.error) {
        Some(error) => Some(format!("{what} waits: {error}")),
        None if is_interrupted(region, copy)? => Some(format!(
            "{what} was interrupted: `terrane daemon` goes on with it, `terrane snapshot delete` takes it away"
        )),
        None => None,
    })
}

/// What stands in a schedule's way, or that nobody carries it out.
fn schedule_problem(region: &Region, row: &Schedule) -> Option<String> {
    let what = format!("schedule {} in region {}", row.name, region.name());
    if let Err(error) = Terms::of_row(row) {
        return Some(format!("{what}: {error}"));
    }
    if let Some(error) = &row.error {
        return Some(format!("{what}: {error}"));
    }
    let due = next_due(row).filter(|due| region.now().duration_since(*due) > OVERDUE)?;
    Some(format!("{what} was due {due}, and nobody carried it out: is `terrane daemon` running?"))
}

/// A region's clock never goes back by itself: where it was ahead once it stands still until that time, and nothing is due.
fn clock_problem(region: &Region) -> Option<String> {
    let (now, shown) = (region.now(), region.clock().shown());
    (now.duration_since(shown) > OVERDUE).then(|| {
        let machines = region.clock().machine().is_some();
        let clock = if machines { "this machine's clock" } else { "what replaces this machine's clock" };
        format!(
            "the clock of region {} stands at {now}, which it was told once, and {clock} shows {shown}: until then nothing more is due \
             there, and what is made is dated so; if {clock} is right, `terrane region trust-clock --region {}` puts the region's back",
            region.name(),
            region.name()
        )
    })
}

/// The most disks that are named of one damaged layer.
const NAMED_MAX: usize = 20;

/// What can't be read, by damaged layer. A disk whose key somebody disabled is as he wants it.
fn unreadable_words(region: &Region, found: &Result<Vec<UnreadableLayer>, HostError>) -> Vec<String> {
    let region = region.name();
    let found = match found {
        Ok(found) => found,
        Err(error) => return vec![format!("what can be read in region {region} is not known: {error}")],
    };
    let words = |layer: &UnreadableLayer| {
        let named = layer.needed_by.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
        let more = match layer.needed_by.len().saturating_sub(NAMED_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "region {region}: {named}{more} can't be read: {}; `terrane region check` names all that is wrong",
            layer.why
        )
    };
    found.iter().map(words).collect()
}

fn of_region(region: &Region, copies: &[Copies], problems: &mut Vec<String>) -> Result<RegionStatus> {
    problems.extend(clock_problem(region));
    if let Err(error) = region.catalog()?.read(|tx| tx.bin_rules()) {
        problems.push(format!(
            "region {}: a rule of the bin can't be read, and no snapshot is deleted: {error}; `terrane bin delete ID` takes it away",
            region.name()
        ));
    }
    let mount = owner::mounted(region)?;
    for live in mount.iter().flat_map(|m| &m.live) {
        problems.extend(in_trouble(live).map(|trouble| format!("volume {}: {trouble}", live.volume)));
    }
    let unreadable = unreadable_layers(region);
    problems.extend(unreadable_words(region, &unreadable));
    let is_named = |id: &String| unreadable.iter().flatten().any(|layer| layer.ids.contains(id));
    let (volumes, snapshots, tasks) =
        region.catalog()?.read(|tx| -> Result<_> { Ok((tx.volumes()?, tx.snapshots()?, tx.tasks()?)) })?;
    for unopened in mount.iter().flat_map(|m| &m.unopened) {
        let is_there = volumes.iter().any(|v| v.id.to_string() == unopened.volume);
        if is_there && !is_named(&unopened.volume) {
            problems.push(format!("volume {}: {}", unopened.volume, could_not_be_opened(unopened)));
        }
    }
    for copy in &snapshots {
        if copy.state == SnapshotState::Processing {
            problems.extend(waits(region, copy)?);
        }
    }
    let failed = tasks.iter().filter(|t| t.state == TaskState::Failed).count();
    if failed > 0 {
        problems.push(format!(
            "{failed} failed tasks in region {}: `terrane task list` says why, `terrane task forget` is done with one",
            region.name()
        ));
    }
    let deleted = snapshots.iter().filter(|s| s.state == SnapshotState::Deleted).count();
    let (schedules, unreadable) =
        region.catalog()?.read(|tx| -> Result<_> { Ok((tx.schedules()?, tx.schedule_problems()?)) })?;
    problems.extend(unreadable.into_iter().map(|what| format!("region {}: {what}", region.name())));
    problems.extend(schedules.iter().filter_map(|row| schedule_problem(region, row)));
    let space = rustix::fs::statvfs(region.dir())?;
    Ok(RegionStatus {
        name: region.name().to_owned(),
        directory: region.dir().display().to_string(),
        mount,
        log: region.run_dir().join("mount.log").display().to_string(),
        free_bytes: space.f_bavail * space.f_frsize,
        total_bytes: space.f_blocks * space.f_frsize,
        volumes: volumes.len(),
        snapshots: snapshots.len() - deleted,
        deleted_snapshots: deleted,
        open_tasks: tasks.iter().filter(|t| t.is_open()).count(),
        failed_tasks: failed,
        schedules: schedules.len(),
        newest_copies: newest::of_region(region, copies)?,
        is_by_machine: region.clock().machine().is_some(),
    })
}
