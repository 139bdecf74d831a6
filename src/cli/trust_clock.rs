//! `terrane region trust-clock`: a person says that this machine's clock is right. What regions were told while it was not is put right.

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;

use super::confirm::confirm;
use super::{App, Failure, Outcome};
use crate::region::{Doubt, EARLIEST_CLOCK, MachineClock, Region};
use crate::schedule;
use crate::volume::Later;

#[derive(Serialize)]
struct Shown {
    clock: String,
    was_in_doubt: bool,
    regions: Vec<Found>,
}

/// What is dated later than its clock shows, of one region.
#[derive(Serialize)]
struct Found {
    name: String,
    /// What its own clock stands at.
    stood_at: String,
    is_ahead: bool,
    snapshots: usize,
    in_bin: usize,
    schedules: usize,
    /// Tasks, layers, or due times that are over.
    has_others: bool,
}

/// Of the chosen region, or of all known ones.
pub(super) fn run(app: &App, yes: bool) -> Outcome {
    let (regions, failed) = open(app)?;
    let is_machines = |region: &Region| region.clock().machine().is_some();
    let machine = Some(MachineClock::new(app.config()))
        .filter(|_| regions.is_empty() && failed.is_none() || regions.iter().any(is_machines));
    let clock = match (&machine, regions.first()) {
        (None, Some(region)) => region.clock().read()?,
        _ => Timestamp::now(),
    };
    // A boot script that trusts it before the network has set it would date everything so, and all of it would be over once it is set.
    if machine.is_some() && clock < EARLIEST_CLOCK {
        let message = format!("this machine's clock shows {clock}, which is past: it can't be right");
        return Err(Failure::refused(message, "set it first"));
    }
    let (doubt, unreadable) = match machine.as_ref().map(MachineClock::doubt).transpose() {
        Ok(doubt) => (doubt.flatten(), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let behind = machine.as_ref().and_then(|machine| machine.behind().ok().flatten());
    let was_in_doubt = doubt.is_some() || unreadable.is_some();
    let found = regions.iter().map(find).collect::<Result<Vec<_>>>()?;
    if was_in_doubt || behind.is_some() || found.iter().any(Found::is_anything) {
        let of_clock = of_clock(clock, doubt.as_ref(), behind, unreadable.as_deref());
        confirm(&plan(of_clock, &found), yes)?;
    }
    for (region, found) in regions.iter().zip(&found).filter(|(_, found)| found.is_anything()) {
        put_right(region)?;
        app.output().note(format!("the clock of region {} is right", found.name));
    }
    // At last: nothing ends by it before all is dated by it.
    machine.map_or(Ok(()), |machine| machine.believe())?;
    if app.output().is_json() {
        let shown = Shown { clock: clock.to_string(), was_in_doubt, regions: found };
        app.output().object(&shown, |_| Vec::new())?;
    }
    failed.map_or(Ok(()), Err)
}

/// The regions, and why the first that can't be opened can't.
fn open(app: &App) -> Result<(Vec<Region>, Option<anyhow::Error>)> {
    if app.region_text().is_some() {
        return Ok((vec![app.region()?], None));
    }
    let (mut regions, mut failed) = (Vec::new(), None);
    for known in app.config().known()? {
        match app.region_named(&known.id.to_string()) {
            Ok(region) => regions.push(region),
            Err(error) => {
                app.output().note(format!("region {} is left as it is", known.name));
                failed = failed.or(Some(error));
            }
        }
    }
    Ok((regions, failed))
}

fn find(region: &Region) -> Result<Found> {
    let stood_at = region.now().to_string();
    region.catalog()?.read(|tx| {
        let shown = region.clock().read()?;
        let (snapshots, in_bin) = Later::than(shown, tx)?.counts();
        Ok(Found {
            name: region.name().to_owned(),
            stood_at,
            is_ahead: tx.is_clock_after(shown)?,
            snapshots,
            in_bin,
            schedules: schedule::made_after(shown, tx)?.len(),
            has_others: tx.is_work_after(shown)?,
        })
    })
}

/// All of it at once, or nothing.
fn put_right(region: &Region) -> Result<()> {
    // It vouches for dates, and may be asked for on the terminal: no other writer should wait for that.
    region.root_key()?;
    region.catalog()?.write(|tx| {
        let shown = region.clock().read()?;
        Later::than(shown, tx)?.redate(region, tx, shown)?;
        schedule::redate(region, &schedule::made_after(shown, tx)?, tx, shown)?;
        Ok(tx.put_clock_back_to(shown)?)
    })
}

/// What is known of the clock that is to be believed.
fn of_clock(
    clock: Timestamp,
    doubt: Option<&Doubt>,
    behind: Option<Timestamp>,
    unreadable: Option<&str>,
) -> Vec<String> {
    let mut lines = vec![format!("the clock shows {clock}; if that is wrong, say no, and set it first")];
    let believed =
        |at| format!("it showed {at} when it was believed last: it will be believed, and what is over ends");
    lines.extend(doubt.map(|doubt| believed(doubt.believed)));
    lines.extend(behind.map(|at| {
        format!("it is BEHIND: it showed {at} already when it was believed last; what was rightly dated until then is dated anew")
    }));
    lines.extend(unreadable.map(|error| {
        format!(
            "what was remembered of it can't be read ({error}): it will be believed, and what is over ends"
        )
    }));
    lines
}

fn plan(mut lines: Vec<String>, found: &[Found]) -> String {
    lines.extend(found.iter().filter(|found| found.is_anything()).map(Found::plan));
    lines.join("\n")
}

impl Found {
    fn is_anything(&self) -> bool {
        self.is_ahead || self.has_others || self.snapshots + self.in_bin + self.schedules > 0
    }

    fn plan(&self) -> String {
        let ahead = match self.is_ahead {
            true => format!("its clock stands at {}, and will be put back; ", self.stood_at),
            false => String::new(),
        };
        format!(
            "region {}: {ahead}dated later, and dated anew: {} snapshots, {} places in the bin, {} schedules; their days count from now, \
             and schedules go on",
            self.name, self.snapshots, self.in_bin, self.schedules
        )
    }
}
