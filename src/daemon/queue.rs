//! One region's queue, as the daemon sees it: whether to look at it, and its next task.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::stamp::Stamp;
use crate::catalog::{ReadTx, Task};
use crate::copy::{CopyError, Held, Slot, TASK_KIND, Taken, is_held};
use crate::ids::{RegionId, TaskId};
use crate::region::{Config, KnownRegion, Region, RegionError};
use crate::volume::Host;

/// So many tasks are read at once.
const PAGE: u32 = 64;
/// What another process works on, and a region whose places are all taken, is looked at again so soon.
const LATER: Duration = Duration::from_secs(1);

/// Why a task is left alone, and until when.
struct Rest {
    until: Instant,
    backoff: Backoff,
    /// Another task is done first; nothing is wrong.
    behind: Option<TaskId>,
}

/// A task that this process works on now.
pub struct Job {
    /// The task's region.
    pub target: Arc<Host>,
    /// The task.
    pub held: Held,
    /// Its place.
    pub slot: Slot,
}

/// What a look at a queue gives.
enum Look {
    Job(Box<Job>),
    Nothing,
    /// All places of the region are taken.
    Full,
}

/// The queue of one region.
pub struct Queue {
    id: RegionId,
    dir: PathBuf,
    /// As the catalog was when nothing in it was to be done.
    idle: Option<Stamp>,
    resting: HashMap<TaskId, Rest>,
    /// What this process works on.
    in_hand: HashSet<TaskId>,
    /// After a task that others waited for, which of them was taken first.
    followed_by: HashMap<TaskId, TaskId>,
    /// Of the region itself, where it can't be opened.
    rest: Option<Rest>,
    /// What was said of it last.
    said: Option<String>,
}

impl Queue {
    /// Of a region that the configuration knows.
    pub fn new(known: &KnownRegion) -> Self {
        let (id, dir) = (known.id, known.directory.clone());
        Self {
            id,
            dir,
            idle: None,
            resting: HashMap::new(),
            in_hand: HashSet::new(),
            followed_by: HashMap::new(),
            rest: None,
            said: None,
        }
    }

    /// The region.
    pub fn id(&self) -> RegionId {
        self.id
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether this is the queue of that entry.
    pub fn is_of(&self, known: &KnownRegion) -> bool {
        self.id == known.id && self.dir == known.directory
    }

    /// Takes its next task to work on it, if one is to be done now; what stands in the way of the region itself once.
    pub fn next(&mut self, config: &Config) -> (Option<Job>, Option<String>) {
        if !self.is_to_be_looked_at() {
            return (None, None);
        }
        let before = Stamp::of(&self.dir);
        match self.look(config) {
            Ok(Look::Job(job)) => {
                self.in_hand.insert(job.held.task().id);
                (self.idle, self.rest, self.said) = (None, None, None);
                (Some(*job), None)
            }
            // Another process gives one back without a word in the catalog.
            Ok(Look::Full) => {
                self.idle = None;
                (None, None)
            }
            Ok(Look::Nothing) => {
                (self.rest, self.said) = (None, None);
                // The last to close a catalog empties its log. Another's change meanwhile looks the same: once more, then.
                self.idle = Some(before).filter(|before| *before == Stamp::of(&self.dir));
                (None, None)
            }
            Err(error) => {
                let mut backoff = self.rest.take().map(|rest| rest.backoff).unwrap_or_default();
                let until = Instant::now() + backoff.pause();
                self.rest = Some(Rest { until, backoff, behind: None });
                let words = error.to_string();
                let is_new = self.said.as_ref() != Some(&words);
                self.said = Some(words.clone());
                (None, is_new.then_some(words))
            }
        }
    }

    /// Leaves a task alone for a while, longer each time; how long.
    pub fn put_off(&mut self, task: TaskId) -> Duration {
        let mut backoff = self.resting.get(&task).map(|rest| rest.backoff).unwrap_or_default();
        let pause = backoff.pause();
        self.resting.insert(task, Rest { until: Instant::now() + pause, backoff, behind: None });
        pause
    }

    /// Leaves a task alone until nobody works on another one any more.
    pub fn put_behind(&mut self, task: TaskId, other: TaskId) {
        self.leave(task, LATER);
        self.resting.entry(task).and_modify(|rest| rest.behind = Some(other));
    }

    /// Whether some task is to be done as soon as another is, which this process or another has in hand.
    pub fn has_behind(&self) -> bool {
        self.rest.is_none() && self.resting.values().any(|rest| rest.behind.is_some())
    }

    /// A task that this process worked on is over.
    pub fn forget(&mut self, task: TaskId) {
        self.resting.remove(&task);
    }

    /// This process has put something into some queue: the catalog's files may tell of it by a coarse clock.
    pub fn look_again(&mut self) {
        self.idle = None;
    }

    /// This process works on a task no more.
    pub fn is_let_go(&mut self, task: TaskId) {
        self.in_hand.remove(&task);
        // All that wait for some other: looked at in their order, so that the nearest comes first.
        let now = Instant::now();
        self.resting.values_mut().filter(|rest| rest.behind.is_some()).for_each(|rest| rest.until = now);
        // Others may have waited for its place.
        self.idle = None;
    }

    fn is_to_be_looked_at(&self) -> bool {
        let now = Instant::now();
        if let Some(rest) = &self.rest {
            return rest.until <= now;
        }
        let is_due = self.resting.values().any(|rest| rest.until <= now);
        is_due || self.idle != Some(Stamp::of(&self.dir))
    }

    fn look(&mut self, config: &Config) -> Result<Look, CopyError> {
        let region = Region::choose(Some(&self.id.to_string()), config)?;
        if region.asks_for_passphrase() {
            return Err(RegionError::Passphrase {
                why: format!(
                    "that of region {} is asked for on a terminal, and its queue is left to commands with --wait; \
                     `terrane region add` with --passphrase-file lets the daemon do it",
                    region.name()
                ),
            }
            .into());
        }
        let mut slot = Some(match Slot::take(&region)? {
            Some(slot) => slot,
            None => return Ok(Look::Full),
        });
        let mut place = None;
        let mut seen = Vec::new();
        let mut region = Some(region);
        loop {
            let Some(opened) = &region else { return Ok(Look::Nothing) };
            let read = |tx: &ReadTx| Ok::<_, CopyError>(tx.open_tasks_behind(place.take(), PAGE)?);
            let (page, last) = opened.catalog()?.read(read)?;
            let Some(last) = last else { break };
            place = Some(last);
            seen.extend(page.iter().map(|task| task.id));
            for task in page.iter().filter(|task| task.kind == TASK_KIND) {
                // What is wrong with one is no end of the others' turns.
                let taken = self.try_take(opened, task).unwrap_or_else(|error| {
                    let pause = self.put_off(task.id);
                    tracing::warn!(task = %task.id, %error, "left alone for {} s", pause.as_secs());
                    None
                });
                if let Some(held) = taken {
                    let Some(slot) = slot.take() else { return Ok(Look::Nothing) };
                    let target = region.take().map(|region| Host::new(region, None));
                    return Ok(target
                        .map_or(Look::Nothing, |target| Look::Job(Box::new(Job { target, held, slot }))));
                }
            }
        }
        // What is over rests no more.
        self.resting.retain(|id, _| seen.contains(id));
        if !self.has_behind() {
            self.followed_by.clear();
        }
        Ok(Look::Nothing)
    }

    fn try_take(&mut self, region: &Region, task: &Task) -> Result<Option<Held>, CopyError> {
        let rest = self.resting.get(&task.id);
        if self.in_hand.contains(&task.id) || rest.is_some_and(|rest| rest.until > Instant::now()) {
            return Ok(None);
        }
        if let Some(other) = rest.and_then(|rest| rest.behind) {
            // Of those that waited for one the first is taken, and until that has begun, and says itself whether it is in their way, the
            // others wait for it: one is tried at a time, and not all.
            let mut last = other;
            for _ in 0..self.followed_by.len() {
                last = *self.followed_by.get(&last).unwrap_or(&last);
            }
            let is_in_the_way = last != task.id && is_held(region, last)? && !has_begun(region, last)?;
            if is_held(region, other)? || is_in_the_way {
                self.resting.entry(task.id).and_modify(|rest| rest.until = Instant::now() + LATER);
                return Ok(None);
            }
            // Each once: no chain bites its tail.
            if last != task.id && self.followed_by.values().all(|follower| *follower != task.id) {
                self.followed_by.insert(last, task.id);
            }
        }
        match Held::take(region, task.id)? {
            Taken::Held(held) => Ok(Some(*held)),
            Taken::Over => Ok(None),
            Taken::Busy => {
                self.leave(task.id, LATER);
                Ok(None)
            }
        }
    }

    fn leave(&mut self, task: TaskId, pause: Duration) {
        let backoff = self.resting.get(&task).map(|rest| rest.backoff).unwrap_or_default();
        self.resting.insert(task, Rest { until: Instant::now() + pause, backoff, behind: None });
    }
}

/// Whether a copy has its layer.
fn has_begun(region: &Region, task: TaskId) -> Result<bool, CopyError> {
    let copy = region.catalog()?.read(|tx| -> Result<_, CopyError> {
        let made = tx.find_task(task)?.and_then(|task| task.snapshot());
        Ok(made.map(|id| tx.find_snapshot(id)).transpose()?.flatten())
    })?;
    Ok(copy.is_none_or(|copy| copy.layer.is_some()))
}
