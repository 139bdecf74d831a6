//! A copy from its first row to its last: all of them in the target's catalog, none left where it does not end well.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::begun::Begun;
use super::error::{CopyError, Result};
use super::plan::{Base, Plan, plan_rest};
use super::ship::{Names, ship};
use crate::catalog::{Layer as LayerRow, Snapshot, SnapshotState, Tag, Task, TaskState};
use crate::ids::{AccountId, LayerId, Name, Point, SnapshotId, TaskId};
use crate::layer::LayerError;
use crate::region::Region;
use crate::volume::folder::{self, LayerSpec};
use crate::volume::{Host, footing, remove_copy, vouch};

/// How often progress goes to the catalog, and whether the copy was cancelled there is asked.
const CATALOG_INTERVAL: Duration = Duration::from_secs(1);
/// The kind of its tasks.
const TASK_KIND: &str = "copy";

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
}

/// How a caller sees and ends a copy.
pub struct Watch<'a> {
    /// Set to cancel it.
    pub cancel: &'a AtomicBool,
    /// Told, several times a second, the bytes shipped so far.
    pub progress: &'a mut dyn FnMut(u64),
}

/// A copy to be made.
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

    /// Makes the copy. When it fails or is cancelled, neither snapshot nor layer is left; interrupted, what was done stays.
    pub fn run(self, mut watch: Watch) -> Result<SnapshotId> {
        let Self { job, start } = self;
        let begun = match start {
            Start::New(details) => {
                job.begin(details).map_err(|e| CopyError::of_target(e, job.region().name()))?
            }
            Start::Rest(begun) => *begun,
        };
        let id = begun.snapshot.id;
        match job.fill(&begun, &mut watch) {
            Ok(()) => Ok(id),
            Err(CopyError::Interrupted) if job.keep(&begun) => Err(CopyError::Interrupted),
            Err(error) => Err(job.undo(begun, error)),
        }
    }
}

impl Job<'_> {
    fn region(&self) -> &Region {
        self.target.region()
    }

    /// The layer, then in one transaction the task and the `processing` snapshot.
    fn begin(&self, details: Details) -> Result<Begun> {
        let id = SnapshotId::random();
        let source = &self.plan.source;
        let spec = LayerSpec {
            account: details.account,
            volume: id.as_volume(),
            parent: self.plan.parent().map(|b| (b.layer, b.point)),
            size_bytes: source.size_bytes,
            cipher: self.plan.cipher,
            key: self.plan.key,
            kind: source.kind,
            // Its own point heads the list once it is sealed.
            points: self.plan.points.get(1..).unwrap_or_default().to_vec(),
            turn: 0,
        };
        let made = folder::make_layer(self.region(), self.target.cache(), &spec);
        let (row, layer) = made.map_err(|e| match self.plan.parent() {
            // Its base was deleted, or folded into another layer, since the plan.
            Some(base) if e.is_missing_layer() => CopyError::Overtaken { what: base_words(base) },
            _ => e.into(),
        })?;
        let (task, stands_on) = (TaskId::random(), spec.parent);
        let snapshot = self.snapshot_row(id, &row, &details)?;
        let begun = Begun { task, snapshot, row, layer, stands_on, shipped: AtomicU64::new(0) };
        match self.insert_rows(&begun, &details) {
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

    fn snapshot_row(&self, id: SnapshotId, layer: &LayerRow, details: &Details) -> Result<Snapshot> {
        let source = &self.plan.source;
        let snapshot = Snapshot {
            id,
            account: details.account,
            name: details.name.clone(),
            description: details.description.clone(),
            layer: layer.id,
            volume: None,
            size_bytes: source.size_bytes,
            kind: source.kind,
            cipher: self.plan.cipher,
            key: self.plan.key,
            state: SnapshotState::Processing,
            progress_percent: 0,
            created_by: "snapshot copy".into(),
            source_snapshot: Some(source.id.to_string()),
            source_region: Some(self.source.region().name().to_owned()),
            changed_bytes: self.plan.changed_bytes,
            shipped_bytes: 0,
            stored_bytes: 0,
            group: None,
            retention_days: details.retention_days,
            created_at: self.region().now(),
            mac: None,
        };
        Ok(vouch::sign_snapshot(self.region(), snapshot, self.point()?)?)
    }

    fn insert_rows(&self, begun: &Begun, details: &Details) -> Result<()> {
        let now = begun.snapshot.created_at;
        let source = &self.plan.source;
        let detail = serde_json::json!({
            "source_region": self.source.region().name(),
            "source_snapshot": source.id.to_string(),
            "name": details.name.as_str(),
        });
        let task = Task {
            id: begun.task,
            account: details.account,
            kind: TASK_KIND.into(),
            resource: Some(begun.snapshot.id.to_string()),
            detail: detail.to_string(),
            state: TaskState::Running,
            bytes_done: 0,
            bytes_total: self.plan.write_bytes(),
            error: None,
            created_at: now,
            updated_at: now,
        };
        self.region().catalog()?.write(|tx| {
            // From the moment this layer's row names its parent the parent stays; it may have begun to go before, or hold
            // what a fold has put into it since.
            let is_base = |row: &LayerRow, point| row.state.is_sealed() && row.point == Some(point);
            if let Some(base) = self.plan.parent()
                && !tx.find_layer(base.layer)?.is_some_and(|row| is_base(&row, base.point))
            {
                return Err(CopyError::Overtaken { what: base_words(base) });
            }
            tx.insert_snapshot(&begun.snapshot)?;
            tx.set_tags(&begun.snapshot.id.to_string(), &details.tags)?;
            Ok(tx.insert_task(&task)?)
        })
    }

    fn fill(&self, begun: &Begun, watch: &mut Watch) -> Result<()> {
        let names = Names {
            source_region: self.source.region().name().to_owned(),
            snapshot: self.plan.source.name.to_string(),
            target_region: self.region().name().to_owned(),
        };
        let total = self.plan.write_bytes();
        let mut written = Instant::now();
        let mut watch_ship = || {
            (watch.progress)(begun.bytes_done().min(total));
            if watch.cancel.load(Ordering::Relaxed) {
                return Err(CopyError::Interrupted);
            }
            if written.elapsed() >= CATALOG_INTERVAL {
                written = Instant::now();
                match self.write_progress(begun) {
                    Err(CopyError::Cancelled) => return Err(CopyError::Cancelled),
                    // It is for those who look on: what was shipped is no worse for it.
                    Err(error) => tracing::warn!(%error, "how far a copy is could not be written down"),
                    Ok(()) => {}
                }
            }
            Ok(())
        };
        match begun.layer.is_ended() {
            true => begun.shipped.store(self.plan.ship_bytes, Ordering::Relaxed),
            false => ship(&self.plan.difference, &begun.layer, &names, &begun.shipped, &mut watch_ship)?,
        }
        (watch.progress)(total);
        self.finish(begun, watch.cancel).map_err(|e| CopyError::of_target(e, self.region().name()))
    }

    fn write_progress(&self, begun: &Begun) -> Result<()> {
        let total = self.plan.write_bytes();
        // A fold of the source amid a copy may make it more than was planned.
        let done = begun.bytes_done().min(total);
        // What is there from before is counted as it is met.
        let shipped = begun.shipped.load(Ordering::Relaxed).max(begun.snapshot.shipped_bytes);
        let percent = (done.saturating_mul(100)).checked_div(total).unwrap_or(0).min(99) as u32;
        let now = self.region().now();
        self.region().catalog()?.write(|tx| {
            if !tx.set_snapshot_progress(begun.snapshot.id, percent, shipped)? {
                return Err(CopyError::Cancelled);
            }
            tx.set_task_progress(begun.task, done, total, now)?;
            Ok(())
        })
    }

    /// Seals the layer and says that the copy is there.
    fn finish(&self, begun: &Begun, cancel: &AtomicBool) -> Result<()> {
        let Begun { layer, row, .. } = begun;
        // 1. What was written, durable, then in the map, durable.
        // An earlier process may have come so far.
        if !layer.is_ended() {
            layer.flush()?;
            layer.lock_for_seal()?.end()?;
        }
        if cancel.load(Ordering::Relaxed) {
            return Err(CopyError::Interrupted);
        }
        let mark = layer.finish_seal()?;
        // 2. The header with all points and the seal, before the row that makes it count.
        folder::change_header(self.region(), row.id, layer.keys(), |header| {
            header.points.clone_from(&self.plan.points);
            header.sealed = Some(mark);
        })?;
        let stored = layer.stored_bytes()?;
        // 3. The rows, at once.
        let now = self.region().now();
        let point = self.point()?;
        let shipped = begun.shipped.load(Ordering::Relaxed);
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
            tx.set_task_progress(begun.task, total, total, now)?;
            tx.move_task(begun.task, TaskState::Running, TaskState::Succeeded, None, now)?;
            Ok(())
        })
    }

    /// Keeps what was done, for whoever goes on with it; false where it was deleted meanwhile.
    fn keep(&self, begun: &Begun) -> bool {
        // Best effort: what is not durable is sent again.
        let kept = begun.layer.flush().map_err(CopyError::from);
        match kept.and_then(|()| self.write_progress(begun)) {
            Err(CopyError::Cancelled) => false,
            Err(error) => {
                tracing::warn!(%error, "how far an interrupted copy is could not be written down");
                true
            }
            Ok(()) => true,
        }
    }

    /// Takes away what was begun; the error to report. Where the snapshot was deleted meanwhile, that is the reason.
    fn undo(&self, begun: Begun, error: CopyError) -> CopyError {
        let Begun { snapshot, row, layer, .. } = begun;
        let snapshot = snapshot.id;
        let read = self.region().catalog().map_err(CopyError::from);
        let found = read.and_then(|mut catalog| catalog.read(|tx| Ok(tx.find_snapshot(snapshot)?)));
        let is_gone = matches!(found, Ok(None));
        let is_unfinished = is_gone || matches!(&found, Ok(Some(row)) if row.state != SnapshotState::Success);
        let error = if is_gone { CopyError::Cancelled } else { error };
        drop(layer);
        let removed = remove(self.region(), snapshot, row.id, &error).or_else(|e| {
            if !is_unfinished {
                return Err(e);
            }
            // The file system below is so full that not even rows can go: the space first, then.
            folder::remove_folder(self.region(), row.id)?;
            remove(self.region(), snapshot, row.id, &error)
        });
        if let Err(e) = removed {
            tracing::error!(snapshot = %snapshot, error = %e, "what the copy left could not be removed; `terrane snapshot delete` does");
        }
        error
    }
}

fn base_words(base: &Base) -> String {
    format!("snapshot {}, its base,", base.snapshot)
}

fn no_points(source: &Snapshot) -> CopyError {
    LayerError::corrupted(format!("layer {}", source.layer), "a point, as every sealed layer has", "none")
        .into()
}

/// Takes away a copy that is not whole; its task says why.
fn remove(region: &Region, id: SnapshotId, layer: LayerId, why: &CopyError) -> Result<()> {
    Ok(match why {
        CopyError::Cancelled => remove_copy(region, id, layer, TaskState::Cancelled, None),
        other => remove_copy(region, id, layer, TaskState::Failed, Some(&other.to_string())),
    }?)
}
