//! Disks that can't be opened, as far as rows and headers tell: no key is used, and no sector read.

use std::collections::HashMap;

use super::folder;
use super::host_error::Result;
use crate::catalog::{CatalogError, ReadTx};
use crate::ids::LayerId;
use crate::region::Region;

/// A volume or snapshot, as the catalog has it.
pub(super) struct Disk {
    /// Its own id.
    id: String,
    /// What it is, its name and its id.
    pub words: String,
    /// Its uppermost layer.
    pub layer: LayerId,
    /// It should be readable: it is neither being made nor being deleted.
    is_whole: bool,
}

/// A layer whose header is missing or damaged, and the disks that it is the uppermost such layer of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableLayer {
    /// The layer.
    pub layer: LayerId,
    /// What is wrong with it.
    pub why: String,
    /// The ids of the volumes and snapshots that need it.
    pub ids: Vec<String>,
    /// The same in words.
    pub needed_by: Vec<String>,
}

/// The disks of a region that can't be opened, by what is wrong. It reads the header of each layer that a disk stands on, once.
pub fn unreadable_layers(region: &Region) -> Result<Vec<UnreadableLayer>> {
    let mut found = look(region)?;
    if !found.is_empty() {
        // A row outlives its folder: what was being deleted meanwhile has neither now.
        let now = look(region)?;
        found = now.into_iter().filter(|now| found.iter().any(|then| then.layer == now.layer)).collect();
    }
    Ok(found)
}

/// What is wrong with the headers of a layer and of those below it, if anything: that of the nearest.
pub fn damaged_header(region: &Region, top: LayerId) -> Result<Option<String>> {
    let mut before = None;
    loop {
        let chain = region.catalog()?.read(|tx| tx.layer_chain(top))?;
        let damaged = chain.iter().find_map(|layer| Some((layer.id, damage_of(region, layer.id)?)));
        match damaged {
            // A fold may have taken it away between the look at the catalog and that at its folder.
            Some((layer, _)) if before != Some(layer) => before = Some(layer),
            other => return Ok(other.map(|(_, why)| why)),
        }
    }
}

fn damage_of(region: &Region, layer: LayerId) -> Option<String> {
    folder::peek_header(region, layer).err().map(|error| format!("layer {layer}: {error}"))
}

/// The volumes and snapshots of a region, copies that are being made too, but for those that wait.
pub(super) fn disks(tx: &ReadTx) -> Result<Vec<Disk>, CatalogError> {
    let volumes = tx.volumes()?.into_iter().map(|v| {
        let id = v.id.to_string();
        let words = v.name.map_or(format!("volume {id}"), |name| format!("volume {name} ({id})"));
        Disk { id, words, layer: v.active, is_whole: !v.deleting }
    });
    let snapshots = tx.snapshots()?.into_iter().filter_map(|s| {
        let (id, is_whole) = (s.id.to_string(), s.state.is_whole());
        Some(Disk { words: format!("snapshot {} ({id})", s.name), id, layer: s.layer?, is_whole })
    });
    Ok(volumes.chain(snapshots).collect())
}

fn look(region: &Region) -> Result<Vec<UnreadableLayer>> {
    let (disks, parents) = region.catalog()?.read(|tx| -> Result<_, CatalogError> {
        let parents = tx.layers()?.into_iter().map(|layer| (layer.id, layer.parent)).collect();
        Ok((disks(tx)?, parents))
    })?;
    let mut headers = Headers { region, parents, nearest: HashMap::new(), why: HashMap::new() };
    let mut found: Vec<UnreadableLayer> = Vec::new();
    for disk in disks.into_iter().filter(|disk| disk.is_whole) {
        let Some(layer) = headers.nearest_damaged(disk.layer) else { continue };
        let place = found.iter().position(|one| one.layer == layer).unwrap_or_else(|| {
            let why = headers.why.get(&layer).cloned().unwrap_or_default();
            found.push(UnreadableLayer { layer, why, ids: vec![], needed_by: vec![] });
            found.len() - 1
        });
        found[place].ids.push(disk.id);
        found[place].needed_by.push(disk.words);
    }
    Ok(found)
}

/// What the headers of a region's layers say, each looked at once.
struct Headers<'a> {
    region: &'a Region,
    parents: HashMap<LayerId, Option<LayerId>>,
    /// Of each layer looked at, the nearest damaged one at or below it.
    nearest: HashMap<LayerId, Option<LayerId>>,
    why: HashMap<LayerId, String>,
}

impl Headers<'_> {
    fn nearest_damaged(&mut self, top: LayerId) -> Option<LayerId> {
        let (mut passed, mut at) = (Vec::new(), Some(top));
        let found = loop {
            let Some(layer) = at else { break None };
            if let Some(known) = self.nearest.get(&layer) {
                break *known;
            }
            // A chain that bites its tail comes back to one that was passed.
            self.nearest.insert(layer, None);
            passed.push(layer);
            if let Some(why) = self.damage_of(layer) {
                self.why.insert(layer, why);
                break Some(layer);
            }
            at = self.parents.get(&layer).copied().flatten();
        };
        for layer in passed {
            self.nearest.insert(layer, found);
        }
        found
    }

    fn damage_of(&self, layer: LayerId) -> Option<String> {
        if !self.parents.contains_key(&layer) {
            return Some(format!("the catalog has no layer {layer}"));
        }
        damage_of(self.region, layer)
    }
}
