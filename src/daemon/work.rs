//! The daemon's loop: tasks are begun in the order they were asked for, as many at once as it may, and schedules carried out, until it
//! is told to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Sender, select, unbounded};

use super::keeping::Keeping;
use super::queue::{Job, Queue};
use super::schedules::Schedules;
use crate::catalog::Task;
use crate::copy::{CopyError, Pace, Watch, carry_out};
use crate::ids::{RegionId, TaskId};
use crate::region::{Config, Doubt, MachineClock, Region, RegionError};
use crate::schedule::Outcome;
use crate::volume::{HostError, Order};

/// An idle daemon looks so often whether anything changed.
const LOOK: Duration = Duration::from_secs(1);

/// What a daemon is told.
pub struct Settings<'a> {
    /// The known regions.
    pub config: &'a Config,
    /// Only this one of them.
    pub only: Option<RegionId>,
    /// How many tasks are done at once.
    pub jobs: usize,
    /// How fast sectors may cross, all tasks together, in bytes a second.
    pub max_rate: Option<u64>,
    /// It ends when nothing is to be done now.
    pub once: bool,
    /// Set to end it: what is being done is interrupted, and stays queued.
    pub cancel: &'a AtomicBool,
    /// The number of those who wait for a copy that fails so.
    pub exit_of: fn(&CopyError) -> u8,
    /// Has an order carried out: by the mount that owns the region's layers, else by this process.
    pub perform: fn(Region, &Order) -> Result<(), HostError>,
}

/// What happened, for people.
pub enum Event<'a> {
    /// A task is being done.
    Began {
        /// Its region's name.
        region: &'a str,
        /// The task.
        task: &'a Task,
    },
    /// A task ended, or was left.
    Ended {
        /// Its region's name.
        region: &'a str,
        /// The task as it was when it was begun.
        task: &'a Task,
        /// How; none: well.
        error: Option<&'a CopyError>,
        /// When it is tried again.
        again_in: Option<Duration>,
    },
    /// Something ended in a region because its time was over, or could not be ended now.
    Over {
        /// Its name.
        region: &'a str,
        /// What, in words.
        what: &'a str,
    },
    /// A schedule was carried out, or could not be.
    Carried {
        /// Its region's name.
        region: &'a str,
        /// Its own.
        schedule: &'a str,
        /// What came of it.
        outcome: &'a Outcome,
        /// When it is tried again.
        again_in: Option<Duration>,
    },
    /// This machine's clock can't be believed, and nothing ends by it; or, with none, it can again.
    Doubted {
        /// Why.
        doubt: Option<&'a Doubt>,
    },
    /// What is known of this machine's clock could not be read or written down.
    Forgotten {
        /// Why.
        why: &'a str,
    },
    /// The configuration could not be read: what was known of it is gone on with.
    Troubled {
        /// Why.
        why: &'a str,
    },
    /// A region could not be looked at.
    Left {
        /// Its name.
        region: &'a str,
        /// Why.
        why: &'a str,
    },
}

/// What a daemon did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Tasks that ended well.
    pub succeeded: u64,
    /// Tasks that failed.
    pub failed: u64,
    /// Tasks, schedules, regions, and what ends by the clock, that had to wait for something, each time that they were tried.
    pub put_off: u64,
}

struct Done {
    queue: RegionId,
    region: String,
    task: Task,
    error: Option<CopyError>,
}

/// Works off the queues until it is told to end, or with `once` until nothing is to be done now.
pub fn work(settings: &Settings, tell: &mut dyn FnMut(Event)) -> Result<Summary, RegionError> {
    let pace = settings.max_rate.map(Pace::new);
    let mut summary = Summary::default();
    let mut queues: Vec<(String, Queue)> = Vec::new();
    let mut schedules = Schedules::new();
    find_queues(settings, &mut queues, &mut schedules)?;
    let mut trouble: Option<String> = None;
    let (done_in, done) = unbounded::<Done>();
    let mut keeping = Keeping::default();
    let (looked_in, looked) = unbounded();
    let mut watching = Watching::new(settings.config);
    let is_told_to_end = || settings.cancel.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let mut running = 0;
        loop {
            let mut began = false;
            if !is_told_to_end() {
                // Before anything is looked for that ends by it.
                watching.look(tell);
                match find_queues(settings, &mut queues, &mut schedules) {
                    Ok(()) => trouble = None,
                    // Those that were known are served on.
                    Err(error) => {
                        let words = error.to_string();
                        if trouble.as_ref() != Some(&words) {
                            tell(Event::Troubled { why: &words });
                        }
                        trouble = Some(words);
                    }
                }
                for (name, queue) in &queues {
                    if let Some(look) = keeping.begin(queue.id(), name, queue.dir()) {
                        let looked_in = looked_in.clone();
                        scope
                            .spawn(move || drop(looked_in.send(look.take(settings.config, settings.cancel))));
                    }
                }
                // In turn: the one that was served comes last.
                for _ in 0..queues.len() {
                    if running >= settings.jobs {
                        break;
                    }
                    queues.rotate_left(1);
                    let Some((name, queue)) = queues.last_mut() else { break };
                    let (job, problem) = queue.next(settings.config);
                    if let Some(why) = problem {
                        summary.put_off += 1;
                        tell(Event::Left { region: name, why: &why });
                    }
                    let Some(job) = job else { continue };
                    tell(Event::Began { region: name, task: job.held.task() });
                    (running, began) = (running + 1, true);
                    let (pace, done_in) = (pace.as_ref(), done_in.clone());
                    scope.spawn(move || run(settings, job, pace, &done_in));
                }
                schedules.begin(scope, settings);
            }
            // One of each region at a time, so that none waits for all of another's.
            if began && running < settings.jobs {
                continue;
            }
            let is_idle = || !queues.iter().any(|(_, queue)| queue.has_behind());
            let is_over = is_told_to_end() || settings.once && is_idle();
            if running == 0 && !schedules.is_busy() && !keeping.is_busy() && is_over {
                return;
            }
            select! {
                recv(done) -> ended => if let Ok(ended) = ended {
                    running -= 1;
                    count(&ended, &mut queues, &mut summary, tell);
                    schedules.touch();
                },
                recv(schedules.ended()) -> ended => if let Ok(ended) = ended
                    && schedules.take_back(ended, &mut summary, tell)
                {
                    queues.iter_mut().for_each(|(_, queue)| queue.look_again());
                },
                recv(looked) -> looked => {
                    let Ok(looked) = looked else { continue };
                    let told = keeping.end(looked);
                    summary.put_off += u64::from(told.is_put_off);
                    told.lines.iter().for_each(|what| tell(Event::Over { region: &told.region, what }));
                }
                default(LOOK) => {}
            }
        }
    });
    Ok(summary)
}

/// What was told of this machine's clock. Who ends something asks anew: here it is remembered, and told of.
struct Watching {
    clock: MachineClock,
    is_doubted: bool,
    failed: Option<String>,
}

impl Watching {
    fn new(config: &Config) -> Self {
        Self { clock: MachineClock::new(config), is_doubted: false, failed: None }
    }

    fn look(&mut self, tell: &mut dyn FnMut(Event)) {
        match self.clock.watch() {
            Ok(doubt) => {
                self.failed = None;
                if doubt.is_some() != self.is_doubted {
                    self.is_doubted = doubt.is_some();
                    tell(Event::Doubted { doubt: doubt.as_ref() });
                }
            }
            Err(error) => {
                let words = error.to_string();
                if self.failed.as_ref() != Some(&words) {
                    tell(Event::Forgotten { why: &words });
                }
                self.failed = Some(words);
            }
        }
    }
}

/// The regions may be others than they were.
fn find_queues(
    settings: &Settings,
    queues: &mut Vec<(String, Queue)>,
    schedules: &mut Schedules,
) -> Result<(), RegionError> {
    let mut known = settings.config.known()?;
    known.retain(|region| settings.only.is_none_or(|only| region.id == only));
    queues.retain(|(_, queue)| known.iter().any(|region| queue.is_of(region)));
    for region in &known {
        if !queues.iter().any(|(_, queue)| queue.is_of(region)) {
            queues.push((region.name.to_string(), Queue::new(region)));
        }
    }
    schedules.know(&known);
    Ok(())
}

fn run(settings: &Settings, job: Job, pace: Option<&Pace>, done: &Sender<Done>) {
    let Job { target, held, slot } = job;
    let task = held.task().clone();
    let (queue, region) = (target.region().id(), target.region().name().to_owned());
    let mut progress = |_, _| {};
    let watch = Watch { pace, exit_of: settings.exit_of, ..Watch::new(settings.cancel, &mut progress) };
    let find_source = |request: &crate::copy::Request| request.open_source(settings.config, &target);
    // What panics even as it is written down that it did: the others go on.
    let carried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        carry_out(&held, &slot, &target, find_source, None, watch)
    }));
    let error = carried.unwrap_or(Err(CopyError::Panicked)).err();
    drop((held, slot, target));
    let _ = done.send(Done { queue, region, task, error });
}

fn count(ended: &Done, queues: &mut [(String, Queue)], summary: &mut Summary, tell: &mut dyn FnMut(Event)) {
    let mut queue = queues.iter_mut().map(|(_, queue)| queue).find(|queue| queue.id() == ended.queue);
    let mut again_in = None;
    let task: TaskId = ended.task.id;
    if let Some(queue) = &mut queue {
        queue.is_let_go(task);
    }
    match &ended.error {
        None | Some(CopyError::Cancelled) => {
            summary.succeeded += u64::from(ended.error.is_none());
            if let Some(queue) = queue {
                queue.forget(task);
            }
        }
        Some(CopyError::Behind { task: other, .. }) => {
            if let Some(queue) = queue {
                queue.put_behind(task, *other);
            }
            return;
        }
        Some(error) if error.is_kept() => {
            summary.put_off += 1;
            again_in = queue.map(|queue| queue.put_off(task));
            tell(Event::Ended { region: &ended.region, task: &ended.task, error: Some(error), again_in });
            return;
        }
        // One that is still there, such as what a person has to look at, is not tried again at once.
        Some(_) => {
            summary.failed += 1;
            queue.map(|queue| queue.put_off(task));
        }
    }
    tell(Event::Ended { region: &ended.region, task: &ended.task, error: ended.error.as_ref(), again_in });
}
