//! A copy waits for another of the same line that is being made at the same time: on that one as its base it ships little, beside it
//! all.

use super::error::{CopyError, Result};
use super::hold::is_held;
use super::request::Request;
use crate::catalog::{Snapshot, Task};
use crate::ids::{Point, SnapshotId};
use crate::region::Region;

/// Refuses to begin a copy while a nearer base than the target has is being made there, which was asked for earlier. Rows alone are
/// asked, before anything is planned: what they say wrongly costs time or bytes, and no more.
pub(super) fn refuse_behind(source: &Region, target: &Region, task: &Task, request: &Request) -> Result<()> {
    let others = target.catalog()?.read(|tx| Ok::<_, CopyError>(tx.processing_snapshots()?))?;
    let is_alike = |other: &&Snapshot| {
        other.key == request.key
            && other.source_region.as_deref() == Some(source.name())
            && Some(other.id) != task.snapshot()
    };
    let mut points: Option<Vec<Point>> = None;
    for other in others.iter().filter(is_alike) {
        let found = target.catalog()?.read(|tx| Ok::<_, CopyError>(tx.task_of(&other.id.to_string())?))?;
        let Some(earlier) = found.filter(|t| t.is_open() && t.place() < task.place()) else { continue };
        let Some(point) = point_of(source, other)? else { continue };
        let nearer = match &points {
            Some(points) => points,
            None => points.insert(nearer_points(source, target, request)?),
        };
        if !nearer.contains(&point) {
            continue;
        }
        let is_held = match is_held(target, earlier.id) {
            // Another time it can be asked.
            Err(error) if error.is_of_open_files() => return Err(error),
            // What can't be asked of another's lock is no reason to wait.
            held => held.unwrap_or(false),
        };
        if is_held {
            return Err(CopyError::Behind { copy: other.name.to_string(), task: earlier.id });
        }
    }
    Ok(())
}

/// The source's points that are nearer than the target's nearest under the same key. Of the very moment a base is as well.
fn nearer_points(source: &Region, target: &Region, request: &Request) -> Result<Vec<Point>> {
    let layer = source.catalog()?.read(|tx| Ok::<_, CopyError>(tx.layer_of_snapshot(request.snapshot)?))?;
    let mut points = source.catalog()?.read(|tx| Ok::<_, CopyError>(tx.layer_points(layer)?))?;
    let has = |point: &Point| -> Result<bool> {
        let there = target.catalog()?.read(|tx| Ok::<_, CopyError>(tx.snapshots_at_point(*point)?))?;
        Ok(there.iter().any(|row| row.key == request.key))
    };
    for (at, point) in points.iter().enumerate() {
        if has(point)? {
            points.truncate(at);
            break;
        }
    }
    Ok(points)
}

fn point_of(source: &Region, copy: &Snapshot) -> Result<Option<Point>> {
    let Some(id) = copy.source_snapshot.as_deref().and_then(|id| id.parse::<SnapshotId>().ok()) else {
        return Ok(None);
    };
    source.catalog()?.read(|tx| {
        let layer = tx.find_snapshot(id)?.and_then(|row| row.layer);
        Ok(layer.map(|layer| tx.find_layer(layer)).transpose()?.flatten().and_then(|row| row.point))
    })
}
