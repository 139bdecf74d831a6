//! A copy from its first row to its last: all of them in the target's catalog, none left where it does not end well.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::begun::Begun;
use super::behind::refuse_behind;
use super::error::{CopyError, Result};
use super::hold::{Held, Slot};
use super::link::{Crossed, Directory, Link};
use super::plan::{Base, Plan, plan_rest, plan_waiting};
use super::prove::{Made, leave_with_source};
use super::request::{Request, check_row, enqueue};
use super::room::Room;
use super::ship::{Names, Shipping};
use super::words::Words;
use crate::catalog::{Layer as LayerRow, Snapshot, SnapshotState, Tag, Task, TaskEnd, TaskState};
use crate::ids::{AccountId, GroupId, LayerId, Name, Point, SnapshotId};
use crate::layer::{Layer, LayerError, PageCache, SealedMark};
use crate::region::{Region, peek};
use crate::volume::folder::{self, LayerSpec, Opening};
use crate::volume::pace::Pace;
use crate::volume::proof::{self, Leaves, Rests};
use crate::volume::{Host, bookmarks, footing, remove_copy, vouch};

/// How often progress goes to the catalog, and whether the copy was cancelled there is asked.
const CATALOG_INTERVAL: Duration = Duration::from_secs(1);
/// Map pages that are kept while a copy is read back: 32 MiB.
const PROOF_PAGES: usize = 4096;
/// A base may be folded into another layer between plan and begin.
const PLANS_MAX: u32 = 5;

/// What a new copy is given, as a new snapshot is: nothing of it comes from the source.
#[derive(Clone, Debug)]
pub struct Details {
    /// Its owner.
    pub account: AccountId,
    /// Its name.
    pub name: Name,
    /// Free words, 2 to 256 characters.
    pub description: Option<String>,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Days after which it may go.
    pub retention_days: Option<u32>,
    /// Copies of the snapshots of one moment share it, as those do.
    pub group: Option<GroupId>,
}

/// How a caller sees and ends a copy.
pub struct Watch<'a> {
    /// Set to interrupt it: what was done is kept.
    pub cancel: &'a AtomicBool,
    /// Told, several times a second, the bytes that are there and those that will be; then, from the beginning, those that were read
    /// back.
    pub progress: &'a mut dyn FnMut(u64, u64),
    /// How fast sectors may cross; none: as fast as they can.
    pub pace: Option<&'a Pace>,
    /// The number of those who wait for a copy that fails so.
    pub exit_of: ExitOf,
}

type ExitOf = fn(&CopyError) -> u8;

impl<'a> Watch<'a> {
    /// At full speed; who waits for a copy that fails gets 1.
    pub fn new(cancel: &'a AtomicBool, progress: &'a mut dyn FnMut(u64, u64)) -> Self {
        Self { cancel, progress, pace: None, exit_of: |_| 1 }
    }
}

/// A copy to be made by a plan, or to be gone on with.
pub struct Copy<'a> {
    job: Job<'a>,
    start: Start,
}

/// From where to where, and what.
struct Job<'a> {
    source: &'a Host,
    target: &'a Host,
    plan: Plan,
}

enum Start {
    New(Details),
    Rest(Box<Begun>),
}

impl<'a> Copy<'a> {
    /// A copy by this plan, which was made for these hosts and this name.
    pub fn new(source: &'a Host, target: &'a Host, plan: Plan, details: Details) -> Self {
        Self { job: Job { source, target, plan }, start: Start::New(details) }
    }

    /// The rest of a copy that another process began.
    pub fn rest(source: &'a Host, target: &'a Host, begun: Begun) -> Result<Self> {
        let plan = plan_rest(source, target, &begun)?;
        begun.check(target.region(), &plan)?;
        Ok(Self { job: Job { source, target, plan }, start: Start::Rest(Box::new(begun)) })
    }

    /// What its layer will hold: shipped or encrypted anew, also by an earlier process.
    pub fn total_bytes(&self) -> u64 {
        self.job.plan.write_bytes()
    }

    /// Makes the copy. When it fails or is cancelled, neither snapshot nor layer is left; what is there of one that waits for
    /// something ([`CopyError::is_kept`]) stays.
    pub fn run(self, mut watch: Watch) -> Result<SnapshotId> {
        let Self { job, start } = self;
        match start {
            Start::Rest(begun) => job.run(*begun, &mut watch),
            Start::New(details) => {
                let held = enqueue(job.source.region(), job.target, &job.plan, &details)?;
                let begun = match job.begin(&held.task) {
                    Ok(begun) => begun,
                    // There is no other plan.
                    Err(error @ CopyError::Overtaken { .. }) => {
                        return Err(give_up(job.region(), &held.task, None, error, watch.exit_of));
                    }
                    Err(error) => return Err(settle(job.region(), &held.task, error, watch.exit_of)),
                };
                job.run(begun, &mut watch)
            }
        }
    }
}

/// Makes the copy of a task, or goes on with it, on the source that `find_source` gives; `plan`, if one was just made for it, may
/// serve. As [`Copy::run`] else; each error has been written into the task's row, and what panics fails its own copy alone.
pub fn carry_out(
    held: &Held,
    _slot: &Slot,
    target: &Host,
    find_source: impl FnOnce(&Request) -> Result<Arc<Host>>,
    plan: Option<Plan>,
    watch: Watch,
) -> Result<SnapshotId> {
    let exit_of = watch.exit_of;
    let carried = catch_unwind(AssertUnwindSafe(|| carry_out_task(held, target, find_source, plan, watch)));
    carried.unwrap_or_else(|_| Err(settle(target.region(), &held.task, CopyError::Panicked, exit_of)))
}

fn carry_out_task(
    held: &Held,
    target: &Host,
    find_source: impl FnOnce(&Request) -> Result<Arc<Host>>,
    plan: Option<Plan>,
    mut watch: Watch,
) -> Result<SnapshotId> {
    let region = target.region();
    let exit_of = watch.exit_of;
    let prepare = || -> Result<_> {
        let copy = copy_of(region, &held.task)?;
        let request = Request::of_task(&held.task)?;
        // Before anything that the row names is looked at.
        request.check(region, &held.task, &copy)?;
        let source = find_source(&request)?;
        Ok((copy, request, source))
    };
    let settle = |error| settle(region, &held.task, error, exit_of);
    let (copy, request, source) = prepare().map_err(|e| settle(away_of(e, region)))?;
    let settle = |error| settle(away_of(away_of(error, source.region()), region));
    if copy.layer.is_some() {
        let begun = Begun::take_up(target, &copy);
        let rest = begun.and_then(|begun| Copy::rest(&source, target, begun));
        return rest.map_err(settle)?.run(watch);
    }
    let mut plan = plan;
    let mut begin = || -> Result<(Job, Begun)> {
        refuse_behind(source.region(), region, &held.task, &request)?;
        let mut plans = 1;
        loop {
            let planned = match plan.take() {
                Some(plan) => plan,
                None => plan_waiting(&source, request.snapshot, target, request.key)?,
            };
            let job = Job { source: &source, target, plan: planned };
            check_row(&copy, &job.plan)?;
            match job.begin(&held.task) {
                Err(CopyError::Overtaken { .. }) if plans < PLANS_MAX => plans += 1,
                begun => return begun.map(|begun| (job, begun)),
            }
        }
    };
    let (job, begun) = begin().map_err(settle)?;
    job.run(begun, &mut watch)
}

fn away_of(error: CopyError, region: &Region) -> CopyError {
    away(error, region.dir(), region.name())
}

/// The snapshot that a task makes.
fn copy_of(region: &Region, task: &Task) -> Result<Snapshot> {
    let found =
        task.snapshot().map(|id| region.catalog()?.read(|tx| Ok::<_, CopyError>(tx.find_snapshot(id)?)));
    let found = found.transpose()?.flatten().filter(|copy| copy.state == SnapshotState::Processing);
    found.ok_or(CopyError::Cancelled)
}

/// An error of a region that is not where it was is told as that.
pub(super) fn away(error: CopyError, directory: &std::path::Path, name: &str) -> CopyError {
    if matches!(error, CopyError::Interrupted | CopyError::Cancelled) || error.is_of_open_files() {
        return error;
    }
    match peek(directory) {
        Err(why) if why.is_of_open_files() => error,
        Err(why) => CopyError::Away { region: name.to_owned(), why: why.to_string() },
        Ok(_) => error,
    }
}

/// Writes into a task's row what came of it before its copy began, or where that could not be taken up.
fn settle(region: &Region, task: &Task, error: CopyError, exit_of: ExitOf) -> CopyError {
    match error.is_kept() || error.is_of_strangers() {
        true => requeue(region, task, error),
        false => {
            let layer = copy_of(region, task).ok().and_then(|copy| copy.layer);
            give_up(region, task, layer, error, exit_of)
        }
    }
}

/// Puts a task back into the queue, with what it waits for.
fn requeue(region: &Region, task: &Task, error: CopyError) -> CopyError {
    let is_well = matches!(error, CopyError::Interrupted | CopyError::Behind { .. });
    let words = (!is_well).then(|| error.to_string());
    let now = region.now();
    let written = region.catalog().map_err(CopyError::from).and_then(|mut catalog| {
        catalog.write(|tx| Ok::<_, CopyError>(tx.requeue_task(task.id, words.as_deref(), now)?))
    });
    match written {
        Ok(true) => error,
        Ok(false) => CopyError::Cancelled,
        // Nobody holds it any more, which says the same.
        Err(e) => {
            tracing::warn!(task = %task.id, error = %e, "what it waits for could not be written down");
            error
        }
    }
}

/// Takes away what there is of a copy; its task says why. The error to report: where the snapshot was deleted meanwhile, that is
/// the reason.
fn give_up(
    region: &Region,
    task: &Task,
    layer: Option<LayerId>,
    error: CopyError,
    exit_of: ExitOf,
) -> CopyError {
    let Some(snapshot) = task.snapshot() else { return error };
    let read = region.catalog().map_err(CopyError::from);
    let found = read.and_then(|mut catalog| catalog.read(|tx| Ok(tx.find_snapshot(snapshot)?)));
    let is_gone = matches!(found, Ok(None));
    let is_unfinished = is_gone || matches!(&found, Ok(Some(row)) if !row.state.is_whole());
    let error = if is_gone { CopyError::Cancelled } else { error };
    let words = error.to_string();
    let end = match error {
        CopyError::Cancelled => TaskEnd::CANCELLED,
        _ => TaskEnd { state: TaskState::Failed, error: Some(&words), exit: Some(exit_of(&error)) },
    };
    let remove = || remove_copy(region, snapshot, layer, end).map_err(CopyError::from);
    let removed = remove().or_else(|e| {
        let is_its_own = |layer: &LayerId| folder::is_made_for(region, *layer, snapshot.as_volume());
        let Some(layer) = layer.filter(|layer| is_unfinished && is_its_own(layer)) else { return Err(e) };
        // The file system below is so full that not even rows can go: the space first, then.
        folder::remove_folder(region, layer)?;
        remove()
    });
    if let Err(e) = removed {
        tracing::error!(snapshot = %snapshot, error = %e, "what the copy left could not be removed; `terrane snapshot delete` does");
    }
    error
}

impl Job<'_> {
    fn region(&self) -> &Region {
        self.target.region()
    }

    /// Carries what is left of a copy that has begun.
    fn run(&self, begun: Begun, watch: &mut Watch) -> Result<SnapshotId> {
        let id = begun.snapshot.id;
        let Err(error) = self.fill(&begun, watch) else { return Ok(id) };
        let error = away_of(away_of(error, self.source.region()), self.region());
        let is_kept = error.is_kept() && self.keep(&begun);
        let Begun { task, row, layer, .. } = begun;
        drop(layer);
        Err(match is_kept {
            true => requeue(self.region(), &task, error),
            false => give_up(self.region(), &task, Some(row.id), error, watch.exit_of),
        })
    }

    /// The layer, then in one transaction the row of the snapshot, which waited for it, and of the task.
    fn begin(&self, task: &Task) -> Result<Begun> {
        self.begin_in(task).map_err(|e| CopyError::of_target(e, self.region().name()))
    }

    fn begin_in(&self, task: &Task) -> Result<Begun> {
        // Of two that begin together the second sees the first.
        let _one = folder::lock_copies(self.region())?;
        Room::beside_others(self.region(), task.id)?.refuse_more(self.plan.write_bytes(), self.region())?;
        // What will be in the way of its proof is, before anything is carried.
        proof::make(self.region())?;
        let waiting = copy_of(self.region(), task)?;
        let source = &self.plan.source;
        let spec = LayerSpec {
            account: waiting.account,
            volume: waiting.id.as_volume(),
            parent: self.plan.parent().map(|b| (b.layer, b.point)),
            size_bytes: source.size_bytes,
            cipher: self.plan.cipher,
            key: self.plan.key,
            kind: source.kind,
            // Its own point heads the list once it is sealed.
            points: self.plan.points.get(1..).unwrap_or_default().to_vec(),
            turn: 0,
            proof_key: Some(self.plan.proof_key.clone()),
        };
        let made = folder::make_layer(self.region(), self.target.cache(), &spec);
        let (row, layer) = made.map_err(|e| match self.plan.parent() {
            // Its base was deleted, or folded into another layer, since the plan.
            Some(base) if e.is_missing_layer() => CopyError::Overtaken { what: base_words(base) },
            _ => e.into(),
        })?;
        let snapshot = Snapshot { layer: Some(row.id), changed_bytes: self.plan.changed_bytes, ..waiting };
        let snapshot = vouch::sign_snapshot(self.region(), snapshot, self.point()?)?;
        let (task, stands_on) = (task.clone(), spec.parent);
        let begun = Begun { task, snapshot, row, layer, stands_on, crossed: Crossed::default() };
        match self.begin_rows(&begun) {
            Ok(()) => Ok(begun),
            Err(error) => {
                let id = begun.row.id;
                drop(begun);
                folder::remove_unneeded(self.region(), id)?;
                Err(error)
            }
        }
    }

    /// The moment that source and copy share.
    fn point(&self) -> Result<Point> {
        self.plan.points.first().copied().ok_or_else(|| no_points(&self.plan.source))
    }

    fn begin_rows(&self, begun: &Begun) -> Result<()> {
        let now = self.region().now();
        self.region().catalog()?.write(|tx| {
            // From the moment this layer's row names its parent the parent stays; it may have begun to go before, or hold
            // what a fold has put into it since.
            let is_base = |row: &LayerRow, point| row.state.is_sealed() && row.point == Some(point);
            if let Some(base) = self.plan.parent()
                && !tx.find_layer(base.layer)?.is_some_and(|row| is_base(&row, base.point))
            {
                return Err(CopyError::Overtaken { what: base_words(base) });
            }
            let Snapshot { id, mac, changed_bytes, .. } = begun.snapshot;
            if !tx.begin_snapshot(id, begun.row.id, mac, changed_bytes)? {
                return Err(CopyError::Cancelled);
            }
            tx.start_task(begun.task.id, now)?;
            tx.set_task_progress(begun.task.id, (0, self.plan.write_bytes()), 0, now)?;
            Ok(())
        })
    }

    fn fill(&self, begun: &Begun, watch: &mut Watch) -> Result<()> {
        let names = Names {
            source_region: self.source.region().name().to_owned(),
            snapshot: self.plan.source.name.to_string(),
            target_region: self.region().name().to_owned(),
        };
        let words = Words::open(self.region(), &begun.layer);
        let total = self.plan.write_bytes();
        let done = || begun.bytes_done().min(total);
        self.region().catalog()?.write(|tx| tx.start_task(begun.task.id, self.region().now()))?;
        (watch.progress)(done(), total);
        let (cancel, pace) = (watch.cancel, watch.pace);
        let mut speed = Speed::new(done());
        let mut look = |done: u64| {
            (watch.progress)(done.min(total), total);
            self.look(begun, cancel, &mut speed, done)
        };
        let link = Directory {
            region: self.region(),
            row: &begun.row,
            layer: &begun.layer,
            difference: &self.plan.difference,
            crossed: &begun.crossed,
            words: &words,
        };
        match link.has_layer() {
            true => begun.crossed.all_was_there(self.plan.ship_bytes),
            false => {
                Room::of(self.region())?.refuse_more(total - done(), self.region())?;
                let (difference, proof_key) = (&self.plan.difference, &*self.plan.proof_key);
                let shipping =
                    Shipping { difference, link: &link, names: &names, pace, proof_key, words: &words };
                shipping.ship(|| {
                    look(done())?;
                    Room::of(self.region())?.refuse_more(0, self.region())
                })?;
            }
        }
        if cancel.load(Ordering::Relaxed) {
            return Err(CopyError::Interrupted);
        }
        let mark = link.commit(&self.plan.points)?;
        self.carry_bookmarks(&begun.layer);
        let (leaves, rests) = self.prove(begun, mark, (&names, &words, pace), &mut look)?;
        (watch.progress)(total, total);
        let committed = self.commit(begun, mark, cancel);
        committed.map_err(|e| CopyError::of_target(e, self.region().name()))?;
        words.remove();
        leave_with_source(self.source, &self.plan, self.point()?, &leaves, rests);
        Ok(())
    }

    /// Asked several times a second: tells those who look on, and learns whether it is to go on.
    fn look(&self, begun: &Begun, cancel: &AtomicBool, speed: &mut Speed, done: u64) -> Result<()> {
        if cancel.load(Ordering::Relaxed) {
            return Err(CopyError::Interrupted);
        }
        if speed.since.elapsed() >= CATALOG_INTERVAL {
            speed.look(done);
            match self.write_progress(begun, speed.bytes_per_second) {
                Err(CopyError::Cancelled) => return Err(CopyError::Cancelled),
                // It is for those who look on: what was shipped is no worse for it.
                Err(error) => tracing::warn!(%error, "how far a copy is could not be written down"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn write_progress(&self, begun: &Begun, bytes_per_second: u64) -> Result<()> {
        let total = self.plan.write_bytes();
        // A fold of the source amid a copy may make it more than was planned.
        let done = begun.bytes_done().min(total);
        let shipped = begun.crossed.bytes();
        let percent = (done.saturating_mul(100)).checked_div(total).unwrap_or(0).min(99) as u32;
        let now = self.region().now();
        self.region().catalog()?.write(|tx| {
            if !tx.set_snapshot_progress(begun.snapshot.id, percent, shipped)? {
                return Err(CopyError::Cancelled);
            }
            tx.set_task_progress(begun.task.id, (done, total), bytes_per_second, now)?;
            Ok(())
        })
    }

    /// What is known of the moments within the layer: before anybody can ask for it.
    fn carry_bookmarks(&self, layer: &Layer) {
        let source = bookmarks::Origin {
            region: self.source.region(),
            layers: self.plan.difference.source().chain.layers(),
            moments: &self.plan.of_layers,
        };
        bookmarks::carry(&source, self.plan.points_within(), self.region(), layer);
    }

    /// Reads the copy back from its files, and gives it its proof; the leaves, and what they rest on.
    fn prove(
        &self,
        begun: &Begun,
        mark: SealedMark,
        (names, words, pace): (&Names, &Words, Option<&Pace>),
        watch: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<(Leaves, Rests)> {
        let of_target = |e: CopyError| CopyError::of_target(e, self.region().name());
        // With a cache of its own: nothing of what this process wrote is taken for what is there.
        let cache = Arc::new(PageCache::new(PROOF_PAGES));
        let opened = folder::open_layer(self.region(), &cache, &begun.row, Opening::Sealed(mark));
        let top = Arc::new(opened.map_err(|e| of_target(e.into()))?);
        let Self { source, target, plan, .. } = self;
        let crossed = &begun.crossed;
        let made = Made { source, target, copy: begun.snapshot.id, top, plan, names, words, pace, crossed };
        let (leaves, rests) = made.prove(watch)?;
        made.write(self.point()?, &leaves, rests)?;
        Ok((leaves, rests))
    }

    /// The rows, at once, which say that the copy is there.
    fn commit(&self, begun: &Begun, mark: SealedMark, cancel: &AtomicBool) -> Result<()> {
        let Begun { layer, row, .. } = begun;
        let stored = layer.stored_bytes()?;
        let now = self.region().now();
        let point = self.point()?;
        let shipped = begun.crossed.bytes();
        footing::commit_made(self.region(), row.id, |tx| {
            if cancel.load(Ordering::Relaxed) {
                return Err(CopyError::Interrupted);
            }
            if !tx.finish_snapshot(begun.snapshot.id, begun.snapshot.changed_bytes, shipped, stored)? {
                return Err(CopyError::Cancelled);
            }
            tx.seal_layer(row.id, point)?;
            tx.set_layer_seal(row.id, mark.generation, mark.mac)?;
            tx.set_layer_stored_bytes(row.id, stored)?;
            let total = self.plan.write_bytes();
            tx.set_task_progress(begun.task.id, (total, total), 0, now)?;
            let succeeded = TaskEnd { state: TaskState::Succeeded, error: None, exit: None };
            tx.end_task(begun.task.id, succeeded, now)?;
            Ok(())
        })
    }

    /// Keeps what was done, for whoever goes on with it; false where it was deleted meanwhile.
    fn keep(&self, begun: &Begun) -> bool {
        // Best effort: what is not durable is sent again.
        let kept = begun.layer.flush().map_err(CopyError::from);
        match kept.and_then(|()| self.write_progress(begun, 0)) {
            Err(CopyError::Cancelled) => false,
            Err(error) => {
                tracing::warn!(%error, "how far an interrupted copy is could not be written down");
                true
            }
            Ok(()) => true,
        }
    }
}

/// How fast a copy goes, as it is seen once a second.
struct Speed {
    since: Instant,
    done: u64,
    bytes_per_second: u64,
}

impl Speed {
    fn new(done: u64) -> Self {
        Self { since: Instant::now(), done, bytes_per_second: 0 }
    }

    /// Half of what was before, half of what is now.
    fn look(&mut self, done: u64) {
        let now =
            (done.saturating_sub(self.done) as f64 / self.since.elapsed().as_secs_f64().max(1e-3)) as u64;
        let before = if self.bytes_per_second == 0 { now } else { self.bytes_per_second };
        *self = Self { since: Instant::now(), done, bytes_per_second: before / 2 + now / 2 };
    }
}

fn base_words(base: &Base) -> String {
    format!("snapshot {}, its base,", base.snapshot)
}

fn no_points(source: &Snapshot) -> CopyError {
    let what = format!("the layer of snapshot {}", source.id);
    LayerError::corrupted(what, "a point, as every sealed layer has", "none").into()
}
