//! What the headers say, and what state each layer was in.
//!
//! | header | log or superblock | state |
//! |---|---|---|
//! | sealed | the superblock it names | sealed |
//! | sealed, and a fold writes to it | that or a newer one | in that fold, which begins anew |
//! | not sealed | its log has ended | sealed, its seal to be finished at the next opening |
//! | not sealed | not ended, on a layer of its volume that has not ended either | next, if nothing is in it |
//! | not sealed | else | active |

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::sync::Arc;

use jiff::Timestamp;

use super::Recovered;
use crate::catalog::{Fold, FoldWay, Layer as LayerRow, LayerState};
use crate::ids::{LayerId, Point};
use crate::layer::PageCache;
use crate::layer::header::{Folding, Header};
use crate::region::Region;
use crate::units::SECTOR_BYTES;
use crate::volume::folder::{self, Opening};
use crate::volume::footing;
use crate::volume::host_error::{HostError, Result};
use crate::volume::vouch;

/// A layer that gets a row.
pub(super) struct FoundLayer {
    pub header: Header,
    pub row: LayerRow,
    pub points: Vec<Point>,
    /// Bytes of its sectors, where it could be opened.
    pub data_bytes: u64,
    /// The moment that it holds, or will when it ends; none: it takes writes and can't be opened.
    moment: Option<Point>,
    is_open: bool,
    /// The layer that stays of a fold that took this one.
    taken: Option<(LayerId, FoldWay)>,
}

impl FoundLayer {
    /// The fold that was writing to it, from its beginning; or that which took it, at its end.
    pub fn fold(&self) -> Option<Fold> {
        let id = self.row.id;
        let (parent, child, way) = match (self.taken, self.header.fold) {
            (Some((kept, FoldWay::Up)), _) => (id, kept, FoldWay::Up),
            (Some((kept, FoldWay::Down)), _) => (kept, id, FoldWay::Down),
            (None, Some(Folding::Fills(parent))) => (parent, id, FoldWay::Up),
            (None, Some(Folding::Absorbs(child))) => (id, child, FoldWay::Down),
            (None, None) => return None,
        };
        let is_moved = self.taken.is_some();
        Some(Fold { parent, child, way, next_chunk: 0, mac: None, moved_bytes: 0, is_moved })
    }
}

/// All layers that can be used, parents first.
pub(super) fn find(region: &Region, recovered: &mut Recovered) -> Result<Vec<FoundLayer>> {
    let (mut headers, headless) = read_headers(region, recovered)?;
    let account = region.catalog()?.read(|tx| tx.default_account())?.id;
    let cache = Arc::new(PageCache::new(64));
    let mut children: HashMap<Option<LayerId>, Vec<LayerId>> = HashMap::new();
    for (id, (header, _)) in &headers {
        children.entry(header.parent).or_default().push(*id);
    }
    let mut found: Vec<FoundLayer> = Vec::new();
    let mut numbers: HashMap<LayerId, usize> = HashMap::new();
    let mut waiting: VecDeque<LayerId> = children.remove(&None).unwrap_or_default().into();
    while let Some(id) = waiting.pop_front() {
        let Some((header, written)) = headers.remove(&id) else { continue };
        let parent = header.parent.and_then(|parent| numbers.get(&parent)).map(|n| &found[*n]);
        let above = children.remove(&Some(id)).unwrap_or_default();
        if let Some(why) = misfit(&header, parent, &above) {
            recovered.unusable.push(format!("layer {id}: {why}"));
            continue;
        }
        let row = row_of(region, account, &header, written);
        match examine(region, &cache, header, row, parent, recovered)? {
            Ok(layer) => {
                numbers.insert(id, found.len());
                found.push(layer);
                waiting.extend(above);
            }
            Err(why) => recovered.unusable.push(format!("layer {id}: {why}")),
        }
    }
    // What is left stands on nothing.
    let mut left: Vec<_> = headers
        .into_iter()
        .map(|(id, (header, _))| {
            let parent = header.parent.map(|p| p.to_string()).unwrap_or_default();
            format!("layer {id}: it stands on layer {parent}, which is missing or can't be used")
        })
        .collect();
    left.sort();
    recovered.unusable.append(&mut left);
    end_folds(&mut found);
    let is_gone = |layer: &LayerId| folder::has_lost_header(region, *layer);
    let took = found.iter().filter_map(|l| Some((l.row.id, l.header.took.filter(is_gone)?)));
    recovered.taken = took.collect();
    for (id, why) in headless {
        let is_taken = recovered.taken.iter().any(|(_, gone)| *gone == id);
        if is_taken || folder::is_emptied(region, id) {
            recovered.notes.push(format!("layer {id} was being removed: nothing of it is needed"));
            continue;
        }
        // It counts as one that can't be used all the same: what a lost header was of may have been all that needed another.
        let no_loss = folder::has_no_slot(region, id)
            .then_some(" (it has no sector: its making or its removal was cut short, most likely)");
        recovered.unusable.push(format!("layer {id}: {why}{}", no_loss.unwrap_or_default()));
    }
    Ok(found)
}

/// A layer that says that it took another has all of that one: it has its place, and the other goes, as after any fold. Where it
/// can't be opened the other stays.
fn end_folds(found: &mut [FoundLayer]) {
    let took = |kept: &FoundLayer| {
        let gone = kept.header.took.filter(|_| kept.is_open && kept.header.fold.is_none())?;
        Some((kept.row.id, gone))
    };
    for (kept, gone) in found.iter().filter_map(took).collect::<Vec<_>>() {
        let is_on_gone = |layer: &FoundLayer| layer.row.parent == Some(gone);
        let is_needed = found.iter().any(is_on_gone);
        let Some(layer) = found.iter_mut().find(|l| l.row.id == gone && l.row.state == LayerState::Sealed)
        else {
            continue;
        };
        let way = if layer.row.parent == Some(kept) { FoldWay::Down } else { FoldWay::Up };
        if is_needed && way == FoldWay::Up {
            continue;
        }
        layer.taken = Some((kept, way));
        layer.row.state = LayerState::Deleting;
        found.iter_mut().filter(|layer| is_on_gone(layer)).for_each(|layer| layer.row.parent = Some(kept));
    }
}

type Headers = HashMap<LayerId, (Header, Timestamp)>;
/// Layers without a header, with which a removal begins; and the error of reading it.
type Headless = Vec<(LayerId, HostError)>;

fn read_headers(region: &Region, recovered: &mut Recovered) -> Result<(Headers, Headless)> {
    let dir = region.layers_dir();
    let (mut headers, mut headless) = (HashMap::new(), Vec::new());
    for entry in fs::read_dir(&dir).map_err(HostError::io("listing", &dir))? {
        let name = entry.map_err(HostError::io("listing", &dir))?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<LayerId>().ok()) else {
            recovered.unusable.push(format!("{}: no layer's folder", dir.join(&name).display()));
            continue;
        };
        match folder::read_header(region, id) {
            Ok((header, written)) => {
                let written = Timestamp::try_from(written).unwrap_or(Timestamp::UNIX_EPOCH);
                headers.insert(id, (header, written.min(region.now())));
            }
            Err(e) if e.is_of_open_files() => return Err(e),
            Err(e) if folder::has_lost_header(region, id) => headless.push((id, e)),
            Err(e) => recovered.unusable.push(format!("layer {id}: {e}")),
        }
    }
    Ok((headers, headless))
}

fn row_of(
    region: &Region,
    account: crate::ids::AccountId,
    header: &Header,
    created_at: Timestamp,
) -> LayerRow {
    LayerRow {
        id: header.layer,
        account,
        volume: Some(header.volume),
        parent: header.parent,
        size_bytes: header.size_bytes,
        state: LayerState::Sealed,
        cipher: header.cipher,
        key: header.key,
        key_version: header.key_version,
        wrapped_key: header.wrapped_key.clone(),
        point: None,
        sealed_generation: header.sealed.map(|s| s.generation),
        sealed_mac: header.sealed.map(|s| s.mac),
        stored_bytes: folder::stored_bytes(region, header.layer).unwrap_or(0),
        created_at,
    }
}

/// The state of a layer; or why it can't have a row.
fn examine(
    region: &Region,
    cache: &Arc<PageCache>,
    header: Header,
    row: LayerRow,
    parent: Option<&FoundLayer>,
    recovered: &mut Recovered,
) -> Result<Result<FoundLayer, String>> {
    let points = header.points.clone();
    let layer = FoundLayer { header, row, points, data_bytes: 0, moment: None, is_open: false, taken: None };
    match layer.header.sealed {
        Some(mark) => examine_sealed(region, cache, layer, mark, recovered).map(Ok),
        None => examine_unsealed(region, cache, layer, parent, recovered),
    }
}

/// Why a layer can't stand where its header says, or hold what a fold was bringing into it.
fn misfit(header: &Header, parent: Option<&FoundLayer>, above: &[LayerId]) -> Option<String> {
    if let Some(parent) = parent
        && parent.moment.is_some()
        && !footing::fits(header, &parent.header, parent.moment)
    {
        return Some(HostError::Misfit { upper: header.layer, lower: parent.row.id }.to_string());
    }
    if let Some(FoundLayer { header: Header { layer, fold: Some(Folding::Absorbs(child)), .. }, .. }) = parent
        && *child != header.layer
    {
        return Some(format!("it stands on layer {layer}, which was taking the sectors of layer {child}"));
    }
    match header.fold {
        // It is no moment of a disk without that one.
        Some(Folding::Absorbs(child)) if !above.contains(&child) => {
            Some(format!("it was taking the sectors of layer {child}, which is missing or can't be used"))
        }
        Some(Folding::Fills(from)) if header.parent != Some(from) => {
            Some(format!("it was taking the sectors of layer {from}, on which it does not stand"))
        }
        _ => None,
    }
}

fn examine_sealed(
    region: &Region,
    cache: &Arc<PageCache>,
    mut layer: FoundLayer,
    mark: crate::layer::SealedMark,
    recovered: &mut Recovered,
) -> Result<FoundLayer> {
    let id = layer.row.id;
    layer.row.point = layer.points.first().copied();
    layer.moment = layer.row.point;
    let opening = match layer.header.fold {
        Some(fold) => {
            layer.row.state = match fold {
                Folding::Fills(_) => LayerState::Filling,
                Folding::Absorbs(_) => LayerState::Absorbing,
            };
            recovered.notes.push(format!(
                "layer {id} was being joined with another: what stands on it reads as before, and it is gone on with"
            ));
            Opening::Folding(mark)
        }
        None => Opening::Sealed(mark),
    };
    match folder::open_layer(region, cache, &layer.row, opening) {
        Ok(open) => {
            layer.data_bytes = open.data_sectors() * SECTOR_BYTES;
            layer.is_open = true;
        }
        Err(error) if error.is_of_open_files() => return Err(error),
        // Its row stays as it would be: what can be read of it is read, and a check names the rest.
        Err(error) => recovered.notes.push(format!("layer {id} is damaged: {error}")),
    }
    Ok(layer)
}

fn examine_unsealed(
    region: &Region,
    cache: &Arc<PageCache>,
    mut layer: FoundLayer,
    parent: Option<&FoundLayer>,
    recovered: &mut Recovered,
) -> Result<Result<FoundLayer, String>> {
    let id = layer.row.id;
    layer.row.state = LayerState::Active;
    let open = match folder::inspect_layer(region, cache, &layer.row, None) {
        Ok((open, ended)) => {
            layer.data_bytes = open.data_sectors() * SECTOR_BYTES;
            layer.is_open = true;
            let point = vouch::mint_point(id, open.keys(), &layer.header);
            layer.moment = Some(point);
            if ended {
                layer.row.state = LayerState::Sealed;
                layer.row.point = Some(point);
                layer.points.insert(0, point);
                return Ok(Ok(layer));
            }
            Some(open)
        }
        Err(e) if e.is_of_open_files() => return Err(e),
        Err(e) => {
            recovered.notes.push(format!("layer {id} is damaged: {e}"));
            None
        }
    };
    if parent.is_some_and(|parent| !parent.row.state.is_sealed()) {
        let is_empty = open.is_some_and(|open| open.is_empty().unwrap_or(false));
        let stands_by = parent.is_some_and(|p| p.row.state == LayerState::Active);
        if !is_empty || !stands_by || parent.is_some_and(|p| p.header.volume != layer.header.volume) {
            return Ok(Err("it stands on a layer that still takes writes".into()));
        }
        layer.row.state = LayerState::Next;
    }
    Ok(Ok(layer))
}
