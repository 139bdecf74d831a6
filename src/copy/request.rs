//! What a copy was asked: the row that stands for it until it begins, its task, and whether another's words were the same.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::{CopyError, Result};
use super::hold::{Held, TaskLock};
use super::plan::{KeyChoice, Plan, copy_words, key_of_copy};
use super::task::{Details, away};
use crate::catalog::{Snapshot, SnapshotState, Task, TaskState, WriteTx};
use crate::ids::{KeyId, RegionId, SnapshotId, TaskId};
use crate::region::{Config, Region, RegionError};
use crate::volume::{Host, HostError, vouch};

/// The kind of its tasks.
pub const TASK_KIND: &str = "copy";
/// Tasks that ended are told of so long.
const TOLD: jiff::SignedDuration = jiff::SignedDuration::from_hours(90 * 24);

/// What a task is to copy, and how it will be called. Kept in its row, under a MAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where the source lies.
    pub region: RegionId,
    /// That region's name, as it was.
    pub region_name: String,
    /// That region's directory, as it was: for one that the configuration does not know.
    pub directory: PathBuf,
    /// The source.
    pub snapshot: SnapshotId,
    /// The key of the copy; none: plain.
    pub key: Option<KeyId>,
    /// Its name.
    pub name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    source_region_id: String,
    source_region: String,
    source_directory: PathBuf,
    source_snapshot: String,
    key: Option<String>,
    name: String,
}

impl Request {
    /// Opens the region of the source; for a copy within a region that is `target` itself.
    pub fn open_source(&self, config: &Config, target: &Arc<Host>) -> Result<Arc<Host>> {
        if self.region == target.region().id() {
            return Ok(target.clone());
        }
        let entry = config.entry(self.region)?;
        let directory = entry.as_ref().map_or(&self.directory, |entry| &entry.directory);
        let source = self.open(config).map_err(|e| away(e, directory, &self.region_name))?;
        if source.asks_for_passphrase() {
            return Err(RegionError::Passphrase {
                why: format!("that of region {} is asked for on a terminal", source.name()),
            }
            .into());
        }
        Ok(Host::new(source, None))
    }

    fn open(&self, config: &Config) -> Result<Region> {
        if config.entry(self.region)?.is_some() {
            return Ok(Region::choose(Some(&self.region.to_string()), config)?);
        }
        let found = Region::open(&self.directory, config)?;
        match found.id() == self.region {
            true => Ok(found),
            false => Err(RegionError::AnotherRegion {
                dir: self.directory.clone(),
                expected: self.region.to_string(),
                found: found.id().to_string(),
            }
            .into()),
        }
    }

    fn to_text(&self) -> String {
        let fields = Fields {
            source_region_id: self.region.to_string(),
            source_region: self.region_name.clone(),
            source_directory: self.directory.clone(),
            source_snapshot: self.snapshot.to_string(),
            key: self.key.map(|key| key.to_string()),
            name: self.name.clone(),
        };
        serde_json::to_string(&fields).unwrap_or_default()
    }

    /// What a task's row asks. It may not be what was asked: [`check`] tells.
    pub fn of_task(task: &Task) -> Result<Self> {
        let bad = || unvouched(task, "what it asks for can't be read");
        let fields: Fields = serde_json::from_str(&task.detail).map_err(|_| bad())?;
        Ok(Self {
            region: fields.source_region_id.parse().map_err(|_| bad())?,
            region_name: fields.source_region,
            directory: fields.source_directory,
            snapshot: fields.source_snapshot.parse().map_err(|_| bad())?,
            key: fields.key.map(|key| key.parse()).transpose().map_err(|_| bad())?,
            name: fields.name,
        })
    }

    /// Refuses what was not asked: by the task's MAC, and the row of the copy that waits.
    pub(super) fn check(&self, region: &Region, task: &Task, copy: &Snapshot) -> Result<()> {
        if !vouch::is_task_vouched(region, task)? {
            return Err(unvouched(task, "its row is not what was asked"));
        }
        let asked = (self.name.as_str(), self.key, task.account, task.resource.clone());
        match asked == (copy.name.as_str(), copy.key, copy.account, Some(copy.id.to_string())) {
            true => Ok(()),
            false => Err(unvouched(task, "the row of its snapshot is not what was asked")),
        }
    }
}

fn unvouched(task: &Task, why: &str) -> CopyError {
    HostError::unvouched(format!("task {}", task.id), why).into()
}

/// Writes down a copy to be made: [`enqueue_all`] of one.
pub fn enqueue(source: &Region, target: &Host, plan: &Plan, details: &Details) -> Result<Held> {
    let mut held = enqueue_all(source, target, &[(plan, details)])?;
    held.pop().ok_or(CopyError::Cancelled)
}

/// Writes down copies to be made, as they were planned, each under its details: in one transaction of the target's catalog for each
/// its task, and a snapshot, `processing`, without a layer. They are this process's until what is returned is dropped; then
/// anybody's.
pub fn enqueue_all(source: &Region, target: &Host, wanted: &[(&Plan, &Details)]) -> Result<Vec<Held>> {
    enqueue_all_and(source, target, wanted, |_, _| Ok(()))
}

/// The same, and in that transaction what `also` writes of the copies' ids.
pub fn enqueue_all_and(
    source: &Region,
    target: &Host,
    wanted: &[(&Plan, &Details)],
    also: impl FnOnce(&WriteTx, &[SnapshotId]) -> Result<()>,
) -> Result<Vec<Held>> {
    // All were asked for before.
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let region = target.region();
    let now = region.now();
    let (mut rows, mut locks) = (Vec::new(), Vec::new());
    for (plan, details) in wanted {
        let id = SnapshotId::random();
        let task = task_that_waits(id, source, region, plan, details, now)?;
        // Nobody can have it before it has a row.
        let lock = TaskLock::take(region, task.id)?.ok_or_else(|| HostError::InUse {
            what: format!("task {}", task.id),
            by: "another process".into(),
        })?;
        let row = row_that_waits(id, source, plan, details, now);
        let retention = vouch::retention_mac(region, &row)?;
        rows.push((row, retention, task, &details.tags));
        locks.push(lock);
    }
    let tasks = region.catalog()?.write(|tx| -> Result<Vec<Task>> {
        let mut tasks = Vec::with_capacity(rows.len());
        for (snapshot, retention, task, tags) in &rows {
            tx.insert_snapshot(snapshot)?;
            tx.set_retention_mac(snapshot.id, *retention)?;
            tx.set_tags(&snapshot.id.to_string(), tags)?;
            tasks.push(tx.insert_task(task.clone())?);
        }
        also(tx, &rows.iter().map(|(snapshot, ..)| snapshot.id).collect::<Vec<_>>())?;
        if let Ok(before) = region.certain().checked_sub(TOLD) {
            tx.forget_tasks(before)?;
        }
        Ok(tasks)
    })?;
    Ok(tasks.into_iter().zip(locks).map(|(task, lock)| Held::new(task, lock)).collect())
}

fn task_that_waits(
    id: SnapshotId,
    source: &Region,
    region: &Region,
    plan: &Plan,
    details: &Details,
    now: jiff::Timestamp,
) -> Result<Task> {
    let request = Request {
        region: source.id(),
        region_name: source.name().to_owned(),
        directory: source.dir().to_owned(),
        snapshot: plan.source.id,
        key: plan.key,
        name: details.name.to_string(),
    };
    let task = Task {
        id: TaskId::random(),
        account: details.account,
        kind: TASK_KIND.into(),
        resource: Some(id.to_string()),
        detail: request.to_text(),
        mac: None,
        state: TaskState::Queued,
        bytes_done: 0,
        bytes_total: plan.write_bytes(),
        bytes_per_second: 0,
        error: None,
        exit: None,
        created_at: now,
        updated_at: now,
    };
    Ok(vouch::sign_task(region, task)?)
}

fn row_that_waits(
    id: SnapshotId,
    source: &Region,
    plan: &Plan,
    details: &Details,
    now: jiff::Timestamp,
) -> Snapshot {
    let from = &plan.source;
    Snapshot {
        id,
        account: details.account,
        name: details.name.clone(),
        description: details.description.clone(),
        layer: None,
        volume: None,
        size_bytes: from.size_bytes,
        kind: from.kind,
        cipher: plan.cipher,
        key: plan.key,
        state: SnapshotState::Processing,
        progress_percent: 0,
        created_by: "snapshot copy".into(),
        source_snapshot: Some(from.id.to_string()),
        source_region: Some(source.name().to_owned()),
        changed_bytes: plan.changed_bytes,
        shipped_bytes: 0,
        stored_bytes: 0,
        group: details.group,
        retention_days: details.retention_days,
        created_at: now,
        mac: None,
    }
}

/// The copy that the same words asked for, if there is one: of this snapshot, under this name and key, with these details. It waits,
/// has begun, or is whole.
pub fn find_asked(
    source: &Host,
    snapshot: SnapshotId,
    target: &Host,
    key: &KeyChoice,
    details: &Details,
) -> Result<Option<Snapshot>> {
    let region = target.region();
    let found = region.catalog()?.read(|tx| tx.find_snapshot_by_name(details.name.as_str()))?;
    let Some(asked) = found.filter(|row| row.state != SnapshotState::Failed) else { return Ok(None) };
    let row = source.whole_snapshot(snapshot)?;
    let same_region = source.region().id() == region.id();
    let (key, tags) = region.catalog()?.read(|tx| -> Result<_> {
        Ok((key_of_copy(tx, &row, key, same_region)?, tx.tags(&asked.id.to_string())?))
    })?;
    let is_of = asked.source_snapshot == Some(snapshot.to_string())
        && asked.source_region.as_deref() == Some(source.region().name())
        && (asked.account, asked.key) == (details.account, key);
    let is_told_so = asked.description == details.description
        && asked.retention_days == details.retention_days
        && tags.len() == details.tags.len()
        && tags.iter().all(|tag| details.tags.contains(tag));
    Ok((is_of && is_told_so).then_some(asked))
}

/// Refuses to begin a copy otherwise than its row says it was asked.
pub(super) fn check_row(copy: &Snapshot, plan: &Plan) -> Result<()> {
    let source = &plan.source;
    let asked = (copy.size_bytes, copy.kind, copy.cipher, copy.key);
    let is_of = copy.source_snapshot == Some(source.id.to_string())
        && asked == (source.size_bytes, source.kind, plan.cipher, plan.key);
    match is_of {
        true => Ok(()),
        false => {
            Err(HostError::unvouched(copy_words(copy), "its row is not of the snapshot that is copied")
                .into())
        }
    }
}
