//! The schedules of the known regions, as the daemon sees them: when to look at a region's, and when what failed is tried again.
//!
//! A look is a thread's, so that no copy waits for it. Between looks a region is closed: its catalog's files and its clock tell when to
//! look again.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::Scope;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use jiff::Timestamp;

use super::backoff::Backoff;
use super::stamp::Stamp;
use super::work::{Event, Settings, Summary};
use crate::catalog::Schedule;
use crate::ids::{RegionId, ScheduleId};
use crate::region::{Clock, KnownRegion, Region, RegionError};
use crate::schedule::{Caller, Outcome, ScheduleError, carry_out, next_due, next_due_after};
use crate::volume::Host;

/// What another process carries out is looked at again so soon.
const LATER: Duration = Duration::from_secs(1);

/// Those of all known regions.
pub struct Schedules {
    regions: Vec<Watched>,
    ended_in: Sender<Ended>,
    ended: Receiver<Ended>,
}

struct Watched {
    known: KnownRegion,
    /// None: a thread has it, which looks.
    memory: Option<Memory>,
    /// A copy was made meanwhile.
    is_touched: bool,
}

/// What is known of a region's schedules from one look to the next.
#[derive(Default)]
struct Memory {
    /// As the catalog was when nothing was to be done.
    idle: Option<Stamp>,
    /// When the first of them is due, by the region's clock.
    next: Option<(Arc<Clock>, Timestamp)>,
    /// Those that are left alone until then, but for what is said of them.
    resting: HashMap<ScheduleId, Rest>,
    /// Those of which nothing is to be done until they are due.
    settled: HashSet<ScheduleId>,
    /// What stood in their way last.
    said: HashMap<ScheduleId, String>,
    /// Of the region itself, where it can't be looked at, and why.
    rest: Option<(Rest, String)>,
}

#[derive(Clone, Copy)]
struct Rest {
    until: Instant,
    backoff: Backoff,
    /// It waits for a copy, and may be done once one is made.
    is_for_copies: bool,
    /// By the region's clock, when it was tried: what is due since is no reason to wait.
    tried: Option<Timestamp>,
}

impl Rest {
    fn longer(before: Option<&Self>, is_for_copies: bool) -> (Self, Duration) {
        let mut backoff = before.map(|rest| rest.backoff).unwrap_or_default();
        let pause = backoff.pause();
        (Self { until: Instant::now() + pause, backoff, is_for_copies, tried: None }, pause)
    }
}

/// A look that is over.
pub struct Ended {
    region: RegionId,
    memory: Memory,
    reports: Vec<Report>,
    /// Why the region can't be looked at, if that is new.
    problem: Option<String>,
}

/// What came of one schedule.
struct Report {
    schedule: String,
    outcome: Outcome,
    again_in: Option<Duration>,
    /// The same was not said before.
    is_new: bool,
}

impl Schedules {
    /// Of no region yet.
    pub fn new() -> Self {
        let (ended_in, ended) = unbounded();
        Self { regions: Vec::new(), ended_in, ended }
    }

    /// The regions may be others than they were.
    pub fn know(&mut self, known: &[KnownRegion]) {
        let is_known = |watched: &Watched| known.iter().any(|region| is_of(watched, region));
        self.regions.retain(is_known);
        for region in known {
            if !self.regions.iter().any(|watched| is_of(watched, region)) {
                let memory = Some(Memory::default());
                self.regions.push(Watched { known: region.clone(), memory, is_touched: false });
            }
        }
    }

    /// Begins to look at what is to be looked at, each region's on a thread.
    pub fn begin<'scope>(&mut self, scope: &'scope Scope<'scope, '_>, settings: &'scope Settings<'_>) {
        for watched in &mut self.regions {
            let dir = &watched.known.directory;
            let Some(memory) = watched.memory.take_if(|memory| memory.is_to_be_looked_at(dir)) else {
                continue;
            };
            let (known, ended) = (watched.known.clone(), self.ended_in.clone());
            scope.spawn(move || drop(ended.send(look(&known, memory, settings))));
        }
    }

    /// Whether a look is under way.
    pub fn is_busy(&self) -> bool {
        self.regions.iter().any(|watched| watched.memory.is_none())
    }

    /// Where looks that are over come out.
    pub fn ended(&self) -> &Receiver<Ended> {
        &self.ended
    }

    /// A copy is over: what waited for one may be done.
    pub fn touch(&mut self) {
        for watched in &mut self.regions {
            match &mut watched.memory {
                Some(memory) => memory.touch(),
                None => watched.is_touched = true,
            }
        }
    }

    /// Takes back what a look found out, and tells of it; whether copies were asked for.
    pub fn take_back(&mut self, ended: Ended, summary: &mut Summary, tell: &mut dyn FnMut(Event)) -> bool {
        let has_asked = ended.reports.iter().any(|report| report.outcome.asked > 0);
        let found = self.regions.iter_mut().find(|watched| watched.known.id == ended.region);
        // One that is not known any more is not looked at again.
        let Some(watched) = found else { return has_asked };
        let region = watched.known.name.as_str();
        if let Some(why) = &ended.problem {
            summary.put_off += 1;
            tell(Event::Left { region, why });
        }
        for report in &ended.reports {
            summary.put_off += u64::from(!report.outcome.troubles.is_empty());
            if report.outcome.did_anything() || report.is_new {
                let Report { schedule, outcome, again_in, .. } = report;
                tell(Event::Carried { region, schedule, outcome, again_in: *again_in });
            }
        }
        let mut memory = ended.memory;
        if std::mem::take(&mut watched.is_touched) {
            memory.touch();
        }
        watched.memory = Some(memory);
        has_asked
    }
}

fn is_of(watched: &Watched, region: &KnownRegion) -> bool {
    (watched.known.id, &watched.known.directory) == (region.id, &region.directory)
}

impl Memory {
    fn is_to_be_looked_at(&self, dir: &Path) -> bool {
        let now = Instant::now();
        if let Some((rest, _)) = &self.rest {
            return rest.until <= now;
        }
        self.resting.values().any(|rest| rest.until <= now)
            || self.next.as_ref().is_some_and(|(clock, next)| clock.now() >= *next)
            || self.idle != Some(Stamp::of(dir))
    }

    fn touch(&mut self) {
        let now = Instant::now();
        self.resting.values_mut().filter(|rest| rest.is_for_copies).for_each(|rest| rest.until = now);
    }

    fn is_to_be_done(&self, row: &Schedule, now: Timestamp) -> bool {
        match self.resting.get(&row.id) {
            Some(rest) => {
                let is_newer =
                    rest.tried.and_then(|tried| next_due_after(row, tried)).is_some_and(|next| next <= now);
                rest.until <= Instant::now() || rest.is_for_copies && is_due(row, now) || is_newer
            }
            None => !self.settled.contains(&row.id) || is_due(row, now),
        }
    }

    /// What is to be done of one that was carried out, and what is said of that.
    fn remember(
        &mut self,
        row: &Schedule,
        tried: Timestamp,
        carried: Result<Outcome, ScheduleError>,
    ) -> Report {
        let outcome = carried
            .unwrap_or_else(|error| Outcome { troubles: vec![error.to_string()], ..Outcome::default() });
        self.settled.remove(&row.id);
        let mut again_in = None;
        if outcome.is_busy {
            let rest = Rest {
                until: Instant::now() + LATER,
                backoff: Backoff::default(),
                is_for_copies: false,
                tried: None,
            };
            self.resting.insert(row.id, rest);
        } else if !outcome.troubles.is_empty() || !outcome.waits_for.is_empty() {
            let is_well = outcome.troubles.is_empty();
            let (rest, pause) = Rest::longer(self.resting.get(&row.id), is_well);
            self.resting.insert(row.id, Rest { tried: Some(tried), ..rest });
            again_in = (!is_well).then_some(pause);
        } else {
            self.resting.remove(&row.id);
            self.settled.insert(row.id);
        }
        let words = outcome.error();
        let is_new = words.is_some() && self.said.get(&row.id) != words.as_ref();
        match words {
            Some(words) => drop(self.said.insert(row.id, words)),
            None => drop(self.said.remove(&row.id)),
        }
        Report { schedule: row.name.to_string(), outcome, again_in, is_new }
    }
}

fn is_due(row: &Schedule, now: Timestamp) -> bool {
    next_due(row).is_some_and(|next| next <= now)
}

/// Carries out what is to be carried out of a region's schedules.
fn look(known: &KnownRegion, mut memory: Memory, settings: &Settings) -> Ended {
    let mut reports = Vec::new();
    let before = Stamp::of(&known.directory);
    // What panics is a fault of its own region.
    let looked = catch_unwind(AssertUnwindSafe(|| look_at(known, &mut memory, settings, &mut reports)));
    let looked = looked.unwrap_or_else(|_| Err(RegionError::Refused("it failed inside".into()).into()));
    let mut problem = None;
    match looked {
        Ok(()) => {
            memory.rest = None;
            // Another's change meanwhile looks the same as ours: once more, then.
            memory.idle = Some(before).filter(|before| *before == Stamp::of(&known.directory));
        }
        Err(error) => {
            let words = error.to_string();
            let before = memory.rest.take();
            problem = before.as_ref().is_none_or(|(_, said)| *said != words).then(|| words.clone());
            memory.rest = Some((Rest::longer(before.as_ref().map(|(rest, _)| rest), false).0, words));
        }
    }
    Ended { region: known.id, memory, reports, problem }
}

fn look_at(
    known: &KnownRegion,
    memory: &mut Memory,
    settings: &Settings,
    reports: &mut Vec<Report>,
) -> Result<(), ScheduleError> {
    memory.next = None;
    let region = Region::choose(Some(&known.id.to_string()), settings.config)?;
    let rows = region.catalog()?.read(|tx| tx.schedules())?;
    let is_there = |id: &ScheduleId| rows.iter().any(|row| row.id == *id);
    memory.resting.retain(|id, _| is_there(id));
    memory.settled.retain(is_there);
    memory.said.retain(|id, _| is_there(id));
    if rows.is_empty() {
        return Ok(());
    }
    if region.asks_for_passphrase() {
        let why = format!(
            "that of region {} is asked for on a terminal, and its schedules are not carried out; \
             `terrane region add` with --passphrase-file lets the daemon do it",
            region.name()
        );
        return Err(RegionError::Passphrase { why }.into());
    }
    let host = Host::new(region, None);
    let caller = Caller { config: settings.config, perform: &settings.perform, cancel: settings.cancel };
    for row in &rows {
        let now = host.region().now();
        if memory.is_to_be_done(row, now) {
            let carried = carry_out(&host, row.id, &caller);
            let report = memory.remember(row, now, carried);
            reports.push(report);
        }
    }
    let rows = host.region().catalog()?.read(|tx| tx.schedules())?;
    // Of one that rests for other reasons the end of that is awaited, or that it is due anew.
    let next_of = |row: &Schedule| match memory.resting.get(&row.id) {
        Some(Rest { is_for_copies: false, tried, .. }) => next_due_after(row, (*tried)?),
        _ => next_due(row),
    };
    let next = rows.iter().filter_map(next_of).min();
    memory.next = next.map(|next| (host.region().clock(), next));
    Ok(())
}
