//! One snapshot: every page of its chain, and every sector that is read through it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::sectors::{Meter, Target, check_layer};
use super::{CheckWatch, Finding, Findings, is_damage};
use crate::catalog::Layer as LayerRow;
use crate::ids::SnapshotId;
use crate::layer::Layer;
use crate::units::SECTOR_BYTES;
use crate::volume::host::Host;
use crate::volume::host_error::Result;
use crate::volume::{folder, footing};

/// What became of it.
#[derive(Debug)]
pub struct SnapshotCheck {
    /// What is damaged.
    pub findings: Findings,
    /// Bytes of sectors that were read.
    pub checked_bytes: u64,
    /// It was told to end before its end.
    pub cancelled: bool,
}

/// Checks all of a snapshot's disk: its layers, and of their sectors those that no layer above hides.
pub fn verify_snapshot(host: &Host, id: SnapshotId, watch: &mut CheckWatch) -> Result<SnapshotCheck> {
    // While it is held the snapshot can't be deleted.
    let _lock = folder::lock_for_reading(host.region(), id)?;
    let (layers, mut findings) = open_all(host, id)?;
    let is_whole = findings.count == 0;
    let total: u64 = layers.iter().map(|l| l.data_sectors() * SECTOR_BYTES).sum();
    let meter = Meter::new(total, watch.max_rate);
    for (number, layer) in layers.iter().enumerate() {
        let target = Target { layer: layer.clone(), above: layers[..number].to_vec() };
        findings.append(check_layer(&target, &meter, watch));
        if watch.cancel.load(Ordering::Relaxed) {
            break;
        }
    }
    // Where its layers can't be opened that is what is wrong.
    if is_whole && let Err(error) = host.open_snapshot(id) {
        let Some(top) = layers.first().filter(|_| is_damage(&error)) else { return Err(error) };
        findings.add(Finding { layer: top.id(), sector: None, what: error.to_string() });
    }
    let cancelled = watch.cancel.load(Ordering::Relaxed);
    Ok(SnapshotCheck { findings, checked_bytes: meter.done(), cancelled })
}

/// The layers of a snapshot that can be opened, nearest first; the others are findings.
fn open_all(host: &Host, id: SnapshotId) -> Result<(Vec<Arc<Layer>>, Findings)> {
    // A fold may move the snapshot to another layer.
    let chain = || -> Result<Vec<LayerRow>> {
        let layer = host.region.catalog()?.read(|tx| tx.layer_of_snapshot(id))?;
        footing::chain_rows(&host.region, layer)
    };
    let mut rows = chain()?;
    loop {
        let mut layers = Vec::new();
        let mut findings = Findings::default();
        for row in &rows {
            match host.open_sealed(row) {
                Ok(layer) => layers.push(layer),
                Err(e) if is_damage(&e) => {
                    findings.add(Finding { layer: row.id, sector: None, what: e.to_string() });
                }
                Err(e) => return Err(e),
            }
        }
        // A fold, perhaps of another process, joins layers while they are being opened.
        let now = chain()?;
        if findings.count == 0 || now == rows {
            return Ok((layers, findings));
        }
        rows = now;
    }
}
