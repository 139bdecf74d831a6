//! What the headers say, and what state each layer was in.
//!
//! | header | log or superblock | state |
//! |---|---|---|
//! | sealed | the superblock it names | sealed |
//! | sealed | a newer superblock | a fold was writing to it: left so, read as it is |
//! | not sealed | its log has ended | sealed, its seal to be finished at the next opening |
//! | not sealed | not ended, on a layer of its volume that has not ended either | next, if nothing is in it |
//! | not sealed | else | active |

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::sync::Arc;

use jiff::Timestamp;

use super::Recovered;
use crate::catalog::{Layer as LayerRow, LayerState};
use crate::ids::{LayerId, Point};
use crate::layer::PageCache;
use crate::layer::header::Header;
use crate::region::Region;
use crate::units::SECTOR_BYTES;
use crate::volume::fold::SMALL_BYTES;
use crate::volume::folder::{self, Opening};
use crate::volume::host_error::{HostError, Result};
use crate::volume::vouch;

/// A layer that gets a row.
pub(super) struct FoundLayer {
    pub header: Header,
    pub row: LayerRow,
    pub points: Vec<Point>,
    /// Bytes of its sectors, where it could be opened.
    pub data_bytes: u64,
}

/// All layers that can be used, parents first.
pub(super) fn find(region: &Region, recovered: &mut Recovered) -> Result<Vec<FoundLayer>> {
    let mut headers = read_headers(region, recovered)?;
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
        let row = row_of(region, account, &header, written);
        let lone = match above.as_slice() {
            [child] => headers.get(child).is_some_and(|(header, _)| header.sealed.is_some()),
            _ => false,
        };
        match examine(region, &cache, header, row, parent, lone, recovered) {
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
    Ok(found)
}

type Headers = HashMap<LayerId, (Header, Timestamp)>;

fn read_headers(region: &Region, recovered: &mut Recovered) -> Result<Headers> {
    let dir = region.layers_dir();
    let mut headers = HashMap::new();
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
            Err(e) => recovered.unusable.push(format!("layer {id}: {e}")),
        }
    }
    Ok(headers)
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
    has_lone_sealed_child: bool,
    recovered: &mut Recovered,
) -> Result<FoundLayer, String> {
    let points = header.points.clone();
    let layer = FoundLayer { header, row, points, data_bytes: 0 };
    match layer.header.sealed {
        Some(mark) => Ok(examine_sealed(region, cache, layer, mark, has_lone_sealed_child, recovered)),
        None => examine_unsealed(region, cache, layer, parent, recovered),
    }
}

fn examine_sealed(
    region: &Region,
    cache: &Arc<PageCache>,
    mut layer: FoundLayer,
    mark: crate::layer::SealedMark,
    has_lone_sealed_child: bool,
    recovered: &mut Recovered,
) -> FoundLayer {
    let id = layer.row.id;
    layer.row.point = layer.points.first().copied();
    let error = match folder::open_layer(region, cache, &layer.row, Opening::Sealed(mark)) {
        Ok(open) => {
            layer.data_bytes = open.data_sectors() * SECTOR_BYTES;
            return layer;
        }
        Err(e) => e,
    };
    let folding = LayerRow { state: LayerState::Filling, ..layer.row.clone() };
    match folder::open_layer(region, cache, &folding, Opening::Folding(mark)) {
        Ok(open) => {
            layer.data_bytes = open.data_sectors() * SECTOR_BYTES;
            layer.row = folding;
            if may_absorb(&layer, has_lone_sealed_child) {
                layer.row.state = LayerState::Absorbing;
            }
            recovered.notes.push(format!(
                "layer {id} was being joined with another: it is left so, and what stands on it reads as before"
            ));
        }
        // Its row stays as it would be: what can be read of it is read, and a check names the rest.
        Err(_) => recovered.notes.push(format!("layer {id} is damaged: {error}")),
    }
    layer
}

/// Whether a layer in a fold may have been taking its child's sectors: then it is no moment of a disk any more. One that was
/// taking its parent's still is. A fold takes a child only into a parent that holds much, and only if both are sealed.
fn may_absorb(layer: &FoundLayer, has_lone_sealed_child: bool) -> bool {
    has_lone_sealed_child && (layer.row.parent.is_none() || layer.data_bytes > SMALL_BYTES)
}

fn examine_unsealed(
    region: &Region,
    cache: &Arc<PageCache>,
    mut layer: FoundLayer,
    parent: Option<&FoundLayer>,
    recovered: &mut Recovered,
) -> Result<FoundLayer, String> {
    let id = layer.row.id;
    layer.row.state = LayerState::Active;
    // The header may lack the point that its parent was sealed with.
    layer.points = parent.map_or(Vec::new(), |parent| parent.points.clone());
    let open = match folder::inspect_layer(region, cache, &layer.row, None) {
        Ok((open, ended)) => {
            layer.data_bytes = open.data_sectors() * SECTOR_BYTES;
            if ended {
                let point = vouch::mint_point(id, open.keys());
                layer.row.state = LayerState::Sealed;
                layer.row.point = Some(point);
                layer.points.insert(0, point);
                return Ok(layer);
            }
            Some(open)
        }
        Err(e) => {
            recovered.notes.push(format!("layer {id} is damaged: {e}"));
            None
        }
    };
    if parent.is_some_and(|parent| !parent.row.state.is_sealed()) {
        let is_empty = open.is_some_and(|open| open.is_empty().unwrap_or(false));
        let stands_by = parent.is_some_and(|p| p.row.state == LayerState::Active);
        if !is_empty || !stands_by || parent.is_some_and(|p| p.header.volume != layer.header.volume) {
            return Err("it stands on a layer that still takes writes".into());
        }
        layer.row.state = LayerState::Next;
    }
    Ok(layer)
}
