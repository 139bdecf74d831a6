//! A copy waits for another of the same line that is being made at the same time: on that one as its base it ships little, beside it
//! all.

use super::error::{CopyError, Result};
use super::hold::is_held;
use super::plan::Plan;
use crate::catalog::{Snapshot, SnapshotState};
use crate::ids::{Point, SnapshotId};
use crate::region::Region;
use crate::volume::Host;

/// Refuses to begin `copy` while a nearer base than its plan's is being made under the same key. Rows alone are asked: what they
/// say wrongly costs time or bytes, and no more.
pub(super) fn refuse_behind(source: &Host, target: &Region, copy: &Snapshot, plan: &Plan) -> Result<()> {
    let others = target.catalog()?.read(|tx| Ok::<_, CopyError>(tx.processing_snapshots()?))?;
    let name = source.region().name();
    for other in others.iter().filter(|other| other.id != copy.id && other.key == copy.key) {
        if other.state != SnapshotState::Processing || other.source_region.as_deref() != Some(name) {
            continue;
        }
        let is_nearer = point_of(source.region(), other)?.is_some_and(|point| is_nearer(plan, point));
        if is_nearer && is_made(target, other)? {
            return Err(CopyError::Behind { copy: other.name.to_string() });
        }
    }
    Ok(())
}

/// Whether a copy of that moment would be a better base than the one that was found. Of the very moment it is as well.
fn is_nearer(plan: &Plan, point: Point) -> bool {
    let place = |point: &Point| plan.points.iter().position(|p| p == point);
    let base = plan.parent().and_then(|base| place(&base.point)).unwrap_or(usize::MAX);
    place(&point).is_some_and(|at| at < base)
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

fn is_made(target: &Region, copy: &Snapshot) -> Result<bool> {
    let task = target.catalog()?.read(|tx| Ok::<_, CopyError>(tx.task_of(&copy.id.to_string())?))?;
    task.map_or(Ok(false), |task| is_held(target, task.id))
}
