//! A whole region: every layer once, whoever needs it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::sectors::{Meter, Target, check_layer};
use super::{CheckWatch, Finding, Findings, is_damage};
use crate::catalog::{CatalogError, Fold, Layer as LayerRow, LayerState, ReadTx, Snapshot};
use crate::ids::{LayerId, VolumeId};
use crate::layer::{Anchor, Layer};
use crate::units::SECTOR_BYTES;
use crate::volume::bookmarks;
use crate::volume::folder;
use crate::volume::footing;
use crate::volume::host::Host;
use crate::volume::host_error::{HostError, Result};
use crate::volume::owner::LayersLock;
use crate::volume::unreadable::disks;
use crate::volume::vouch;

/// Other commands hold the layers briefly.
const PATIENCE: Duration = Duration::from_secs(30);
/// A layer that changes under the check is begun anew so often.
const TRIES: usize = 5;
/// How often a superblock that is being written is looked at again.
const SUPERBLOCK_TRIES: usize = 5;

/// What became of it.
#[derive(Debug, Default)]
pub struct RegionCheck {
    /// What is damaged.
    pub findings: Findings,
    /// Those of the findings that are rows which layers do not bear out.
    pub misled_rows: u64,
    /// Who reads through each damaged layer: volumes and snapshots, in words.
    pub needed_by: HashMap<LayerId, Vec<String>>,
    /// Layers that were not checked, and why.
    pub left: Vec<(LayerId, String)>,
    /// Bytes of sectors that were read.
    pub checked_bytes: u64,
    /// It was told to end before its end.
    pub cancelled: bool,
}

/// Checks every layer of the region. Those that take writes are read as their recovery would find them, where no mount has
/// them: nobody else can take them meanwhile.
pub fn check_region(host: &Arc<Host>, watch: &mut CheckWatch) -> Result<RegionCheck> {
    let owner = match LayersLock::take_or_mount(&host.region, PATIENCE) {
        Ok(Ok(lock)) => Ok(lock),
        Ok(Err(owner)) => Err(format!("the mount (process {})", owner.pid)),
        Err(HostError::InUse { by, .. }) => Err(by),
        Err(e) => return Err(e),
    };
    let rows = host.region.catalog()?.read(|tx| tx.layers())?;
    let rows = rows.into_iter().filter(|r| !matches!(r.state, LayerState::Preparing | LayerState::Deleting));
    let (finished, unfinished): (Vec<_>, Vec<_>) =
        rows.partition(|r| r.state.is_sealed() && folder::sealed_mark(r).is_some());
    let mut report = RegionCheck::default();
    // How much there is to read is known of layers that are closed by their rows alone, and then made exact.
    let stored = finished.iter().chain(&unfinished).map(|row| row.stored_bytes).sum();
    let meter = Meter::new(stored, watch.max_rate);
    match owner {
        Ok(lock) => {
            check_unfinished(host, &unfinished, &meter, watch, &mut report)?;
            drop(lock);
        }
        Err(owner) => {
            let why = format!("it takes writes, and is left to {owner}");
            report.left.extend(unfinished.iter().map(|row| (row.id, why.clone())));
        }
    }
    for row in &finished {
        check_sealed(host, row, &meter, watch, &mut report)?;
        if watch.cancel.load(Ordering::Relaxed) {
            break;
        }
    }
    check_footings(host, &mut report)?;
    check_rows(host, &mut report)?;
    report.cancelled = watch.cancel.load(Ordering::Relaxed);
    report.checked_bytes = meter.done();
    report.needed_by = needed_by(host, &report.findings)?;
    Ok(report)
}

/// Rows that layers do not bear out, in sentences: of volumes, of snapshots, and of layers whose headers are whole.
pub fn unvouched_rows(host: &Host) -> Result<Vec<String>> {
    let mut report = RegionCheck::default();
    check_rows(host, &mut report)?;
    let rows = host.region.catalog()?.read(|tx| tx.layers())?;
    for row in rows.iter().filter(|r| !matches!(r.state, LayerState::Preparing | LayerState::Deleting)) {
        let is_whole = || folder::read_header(&host.region, row.id).is_ok();
        match folder::checked_header(&host.region, row) {
            Err(error) if is_damage(&error) && is_whole() => {
                report.findings.add(Finding { layer: row.id, sector: None, what: error.to_string() });
            }
            _ => {}
        }
    }
    Ok(report.findings.listed.into_iter().map(|finding| finding.what).collect())
}

/// The rows of volumes and snapshots: whether their layers bear them out.
fn check_rows(host: &Host, report: &mut RegionCheck) -> Result<()> {
    let (volumes, snapshots) = host
        .region
        .catalog()?
        .read(|tx| -> Result<_, CatalogError> { Ok((tx.volumes()?, tx.snapshots()?)) })?;
    for id in volumes.iter().filter(|v| !v.deleting).map(|v| v.id) {
        let look = || -> Result<_> {
            let read = |tx: &ReadTx| Ok::<_, CatalogError>(tx.find_volume(id)?.map(|v| (v.active, v)));
            Ok(host.region.catalog()?.read(read)?)
        };
        check_row(look, |row| vouch::check_volume_row(&host.region, row), report)?;
    }
    for id in snapshots.iter().filter(|s| s.state.is_whole()).map(|s| s.id) {
        let look = || -> Result<_> {
            let read = |tx: &ReadTx| {
                let row = tx.find_snapshot(id)?;
                Ok::<_, CatalogError>(row.and_then(|s| s.layer.map(|layer| (layer, s))))
            };
            Ok(host.region.catalog()?.read(read)?)
        };
        let check = |row: &Snapshot| {
            host.region.catalog()?.read(|tx| vouch::check_endings(&host.region, tx, row))?;
            vouch::header_of_snapshot(&host.region, row).map(drop)
        };
        check_row(look, check, report)?;
    }
    Ok(())
}

/// A layer's row, its parent's, and the fold that joins them.
type Standing = (LayerRow, Option<LayerRow>, Option<Fold>);

/// Where layers stand: each on what it was put on. What is wrong with a layer itself is told of the layer.
fn check_footings(host: &Host, report: &mut RegionCheck) -> Result<()> {
    let mut failed: Option<HashMap<LayerId, (Standing, bool)>> = None;
    // Those that fail are looked at again: a fold may join them just now.
    while failed.as_ref().is_none_or(|failed| !failed.is_empty()) {
        let before = failed.take();
        let mut again = HashMap::new();
        for standing in standings(host)? {
            let id = standing.0.id;
            let last = match &before {
                None => None,
                Some(before) => match before.get(&id) {
                    None => continue,
                    Some((last, was_misfit)) if *last == standing && !was_misfit => continue,
                    Some((last, _)) => Some(last),
                },
            };
            let (row, parent, fold) = &standing;
            let Err(error) = footing::check_row(&host.region, row, parent.as_ref(), fold.is_some()) else {
                continue;
            };
            let is_misfit = matches!(error, HostError::Misfit { .. });
            if last != Some(&standing) {
                again.insert(id, (standing, is_misfit));
            } else if is_misfit {
                report.findings.add(Finding { layer: id, sector: None, what: error.to_string() });
            }
        }
        failed = Some(again);
    }
    Ok(())
}

/// Of all layers, but for those that are being made or removed, and those whose parent has no row: that is told of the catalog.
fn standings(host: &Host) -> Result<Vec<Standing>> {
    let read = |tx: &ReadTx| Ok::<_, CatalogError>((tx.layers()?, tx.folds()?));
    let (rows, folds) = host.region.catalog()?.read(read)?;
    let folds: HashMap<_, _> = folds.into_iter().map(|fold| (fold.child, fold)).collect();
    let by_id: HashMap<_, _> = rows.iter().map(|row| (row.id, row)).collect();
    let settled = rows.iter().filter(|r| !matches!(r.state, LayerState::Preparing | LayerState::Deleting));
    let standing = |row: &LayerRow| {
        let parent = match row.parent {
            Some(parent) => Some((*by_id.get(&parent)?).clone()),
            None => None,
        };
        Some((row.clone(), parent, folds.get(&row.id).cloned()))
    };
    Ok(settled.filter_map(standing).collect())
}

/// A row that is found wrong while it is changed is looked at again. What is wrong with a layer itself is told of the layer.
fn check_row<Row: PartialEq>(
    look: impl Fn() -> Result<Option<(LayerId, Row)>>,
    check: impl Fn(&Row) -> Result<()>,
    report: &mut RegionCheck,
) -> Result<()> {
    let mut before = None;
    while let Some((layer, row)) = look()? {
        match check(&row) {
            Err(HostError::Unvouched { .. }) if before.as_ref() != Some(&row) => before = Some(row),
            Err(error @ HostError::Unvouched { .. }) => {
                report.misled_rows += 1;
                report.findings.add(Finding { layer, sector: None, what: error.to_string() });
                break;
            }
            _ => break,
        }
    }
    Ok(())
}

/// Active layers, next ones, and those whose seal is not finished. The caller owns the layers.
fn check_unfinished(
    host: &Arc<Host>,
    rows: &[LayerRow],
    meter: &Meter,
    watch: &mut CheckWatch,
    report: &mut RegionCheck,
) -> Result<()> {
    for row in rows {
        let anchor = match row.volume {
            Some(volume) => anchor_of(host, volume, row.id)?,
            None => None,
        };
        match folder::inspect_layer(&host.region, &host.cache, row, anchor) {
            Ok((layer, _)) => {
                let target = Target { layer: Arc::new(layer), above: Vec::new() };
                meter.count(&target, row.stored_bytes);
                report.findings.append(check_layer(&target, meter, watch));
                check_bookmarks(host, &target.layer, &mut report.findings);
            }
            Err(e) => not_opened(row.id, e, report)?,
        }
        if watch.cancel.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

/// What this machine last saw of a volume's layer. An anchor that is damaged itself is told when the volume is opened.
fn anchor_of(host: &Host, volume: VolumeId, layer: LayerId) -> Result<Option<Anchor>> {
    let anchor = host.region.volume_anchor(volume)?.filter(|a| a.layer == layer);
    Ok(anchor.map(|a| Anchor { generation: a.generation, confirmed: a.confirmed_seq }))
}

/// A sealed layer. What is found while a fold changes it is looked for again.
fn check_sealed(
    host: &Arc<Host>,
    row: &LayerRow,
    meter: &Meter,
    watch: &mut CheckWatch,
    report: &mut RegionCheck,
) -> Result<()> {
    let mut row = row.clone();
    for _ in 0..TRIES {
        let mut found = Findings::default();
        let mut not_checked = None;
        match open(host, &row) {
            Ok(target) => {
                meter.count(&target, row.stored_bytes);
                found.append(check_layer(&target, meter, watch));
                // After that, which has let go of the superblocks in the cache too.
                if !row.state.is_folding() && !superblocks_are_whole(&target.layer) {
                    let what = "one of its two superblocks is damaged; the other serves".into();
                    found.add(Finding { layer: row.id, sector: None, what });
                }
                check_bookmarks(host, &target.layer, &mut found);
            }
            Err(e) => not_checked = Some(e),
        }
        if found.count == 0 && not_checked.is_none() {
            return Ok(());
        }
        let now = host.region.catalog()?.read(|tx| tx.find_layer(row.id))?;
        match now {
            // It was folded away, or deleted.
            None => return Ok(()),
            Some(now) if now.state == LayerState::Deleting => return Ok(()),
            Some(now) if is_same(&now, &row) => {
                report.findings.append(found);
                return not_checked.map_or(Ok(()), |e| not_opened(row.id, e, report));
            }
            Some(now) => row = now,
        }
    }
    report.left.push((row.id, "it was being changed by folds; run the check again".into()));
    Ok(())
}

fn check_bookmarks(host: &Host, layer: &Layer, found: &mut Findings) {
    for what in bookmarks::problems(&host.region, layer.id(), layer.keys()) {
        found.add(Finding { layer: layer.id(), sector: None, what });
    }
}

fn is_same(now: &LayerRow, then: &LayerRow) -> bool {
    let place = |r: &LayerRow| (r.state, r.parent, r.size_bytes, r.sealed_generation, r.sealed_mac);
    place(now) == place(then)
}

/// A layer that takes its child's sectors may use the slots of its own anew, which the child hides.
fn open(host: &Arc<Host>, row: &LayerRow) -> Result<Target> {
    let mut above = Vec::new();
    if row.state == LayerState::Absorbing {
        for child in host.region.catalog()?.read(|tx| tx.children_of_layer(row.id))? {
            above.push(host.open_sealed(&child)?);
        }
    }
    Ok(Target { layer: host.open_sealed(row)?, above })
}

/// One that is just being written is whole a moment later.
fn superblocks_are_whole(layer: &Layer) -> bool {
    (0..SUPERBLOCK_TRIES).any(|n| {
        std::thread::sleep(Duration::from_millis(if n == 0 { 0 } else { 20 }));
        layer.other_superblock_is_whole().unwrap_or(false)
    })
}

fn not_opened(layer: LayerId, error: HostError, report: &mut RegionCheck) -> Result<()> {
    match is_damage(&error) {
        true => report.findings.add(Finding { layer, sector: None, what: error.to_string() }),
        false => report.left.push((layer, error.to_string())),
    }
    Ok(())
}

/// Who reads through each damaged layer.
fn needed_by(host: &Host, findings: &Findings) -> Result<HashMap<LayerId, Vec<String>>> {
    let mut found: HashMap<LayerId, Vec<String>> =
        findings.listed.iter().map(|f| (f.layer, Vec::new())).collect();
    if found.is_empty() {
        return Ok(found);
    }
    host.region.catalog()?.read(|tx| -> Result<(), CatalogError> {
        for disk in disks(tx)? {
            for row in tx.layer_chain(disk.layer)? {
                if let Some(list) = found.get_mut(&row.id) {
                    list.push(disk.words.clone());
                }
            }
        }
        Ok(())
    })?;
    Ok(found)
}

impl Meter {
    /// What a layer holds, where its row only told what its files take.
    fn count(&self, target: &Target, by_row: u64) {
        self.recount(by_row, target.layer.data_sectors() * SECTOR_BYTES);
    }
}
