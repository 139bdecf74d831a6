//! What a layer stands on: its parent, at the moment that it was put on it.
//!
//! Both are said by the layer's header, under its own key, and held against the parent's: its point is minted from its key when
//! it ends, and goes with a snapshot's content from layer to layer when folds join them. So neither files nor rows from before
//! a fold, put back, lie under what was written over another moment. Rows only say where to look.

use std::sync::Arc;

use super::folder::{self, change_header, damaged_layer, header_by, layer_keys, untrusted_header};
use super::host_error::{HostError, Result};
use super::vouch::point_in;
use crate::catalog::{CatalogError, FoldWay, Layer as LayerRow, LayerState, ReadTx, WriteTx};
use crate::ids::{LayerId, Point};
use crate::layer::Layer;
use crate::layer::header::{Folding, Header};
use crate::region::{Region, RegionError};

/// Whether a layer was put on this one, at the moment that this one holds. While a fold brings a child's sectors into its
/// parent, the child hides all that differs there, whatever moment the parent says.
pub(super) fn fits(upper: &Header, lower: &Header, lower_point: Option<Point>) -> bool {
    let is_parent = upper.parent == Some(lower.layer) || upper.parent.is_some() && upper.parent == lower.took;
    let hides_it = [lower.took, absorbed(lower)].contains(&Some(upper.layer));
    is_parent && (hides_it || lower_point.is_some() && upper.parent_point == lower_point)
}

fn absorbed(header: &Header) -> Option<LayerId> {
    match header.fold {
        Some(Folding::Absorbs(child)) => Some(child),
        _ => None,
    }
}

/// Refuses a layer that does not stand on this one as it is. Both headers are looked at again where one is being mended.
pub fn check_pair(region: &Region, lower: &Layer, upper: &Layer) -> Result<()> {
    let read = |layer: &Layer| header_by(region, layer.id(), layer.keys());
    let mut before = None;
    loop {
        let (above, below) = (read(upper)?, read(lower)?);
        let point = point_in(lower.id(), lower.keys(), &below);
        if fits(&above, &below, Some(point)) {
            return Ok(());
        }
        let seen = Some((above, below));
        if before == seen {
            return Err(misfit(upper.id(), lower.id()));
        }
        before = seen;
    }
}

/// Refuses a chain of open layers, oldest first, whose lowest or any other does not stand where it was put.
pub(super) fn check_chain(region: &Region, layers: &[Arc<Layer>]) -> Result<()> {
    if let Some(lowest) = layers.first() {
        check_lowest(region, lowest)?;
    }
    layers.windows(2).try_for_each(|pair| check_pair(region, &pair[0], &pair[1]))
}

/// Refuses a layer without anything below it that was put on something.
pub(super) fn check_lowest(region: &Region, layer: &Layer) -> Result<()> {
    match header_by(region, layer.id(), layer.keys())?.parent {
        None => Ok(()),
        Some(parent) => Err(misfit(layer.id(), parent)),
    }
}

/// The same of a layer's row and that of its parent, by headers alone. `in_fold`: the layer may have taken all of that one, and
/// say so before its row does.
pub(super) fn check_row(
    region: &Region,
    row: &LayerRow,
    parent: Option<&LayerRow>,
    in_fold: bool,
) -> Result<()> {
    let (header, _) = folder::checked_header(region, row)?;
    if in_fold && header.took.is_some() && header.took == row.parent {
        return Ok(());
    }
    let Some(parent) = parent else {
        return header.parent.map_or(Ok(()), |parent| Err(misfit(row.id, parent)));
    };
    let (below, keys) = folder::checked_header(region, parent)?;
    match fits(&header, &below, Some(point_in(parent.id, &keys, &below))) {
        true => Ok(()),
        false => Err(misfit(row.id, parent.id)),
    }
}

fn misfit(upper: LayerId, lower: LayerId) -> HostError {
    HostError::Misfit { upper, lower }
}

/// The rows of a layer and of all below it, nearest first, without one that a fold has taken away: the header of the layer that
/// took it says so before the rows do, and from then on it lies under nothing. The row of that layer is as it will be: who has it
/// open from before the fold must not take that for what it has become.
pub fn chain_rows(region: &Region, layer: LayerId) -> Result<Vec<LayerRow>> {
    let read = |tx: &ReadTx| Ok::<_, CatalogError>((tx.layer_chain(layer)?, tx.folds()?));
    let (mut rows, folds) = region.catalog()?.read(read)?;
    for fold in folds.iter().filter(|f| f.way == FoldWay::Up && !f.is_moved) {
        let Some(at) = rows.iter().position(|row| row.id == fold.child) else { continue };
        if rows.get(at + 1).is_none_or(|row| row.id != fold.parent) {
            continue;
        }
        // What can't be read is told when it is opened, and so is what its MAC does not bear out.
        let Ok(untrusted) = untrusted_header(region, fold.child) else { continue };
        let says = untrusted.claims();
        if says.took == Some(fold.parent) && says.parent != Some(fold.parent) {
            rows.remove(at + 1);
            let row = &mut rows[at];
            row.parent = says.parent;
            if let Some(mark) = says.sealed {
                row.state = LayerState::Sealed;
                row.sealed_generation = Some(mark.generation);
                row.sealed_mac = Some(mark.mac);
            }
        }
    }
    Ok(rows)
}

/// Whether header and row name other parents for a fold's sake, by the word of a layer's own key: the layer itself took the
/// parent that its row still names, or the parent that its row names took the one that its header names.
pub(super) fn is_folded_away(region: &Region, header: &Header, row: &LayerRow) -> Result<bool> {
    match row.parent {
        Some(parent) if header.took == Some(parent) => Ok(true),
        _ => is_rehomed(region, header, row),
    }
}

/// Whether the parent that its row names took the one that its header names.
fn is_rehomed(region: &Region, header: &Header, row: &LayerRow) -> Result<bool> {
    let Some(parent) = row.parent else { return Ok(false) };
    let claims = untrusted_header(region, parent)?;
    if header.parent.is_none() || claims.claims().took != header.parent {
        return Ok(false);
    }
    let Some(parent) = region.catalog()?.read(|tx| tx.find_layer(parent))? else { return Ok(false) };
    let keys = layer_keys(region, &parent)?;
    Ok(claims.verify(keys.header())?.layer == parent.id)
}

/// Makes a layer's header name the parent that its row does: a fold has put that in another's place. The moment stays.
pub fn name_parent(region: &Region, row: &LayerRow) -> Result<()> {
    // A header that is right already needs no key, which may be disabled.
    if untrusted_header(region, row.id)?.claims().parent == row.parent {
        return Ok(());
    }
    let keys = layer_keys(region, row)?;
    let header = header_by(region, row.id, &keys)?;
    // Not on the word of a row alone: what the header says is believed afterwards.
    let is_vouched = is_rehomed(region, &header, row)?
        || row.state == LayerState::Preparing && stands_on_moment_of(region, &header, row)?;
    if !is_vouched {
        let (expected, found) =
            (format!("{:?} to have its place by a fold", header.parent), format!("{:?}", row.parent));
        return Err(damaged_layer(row.id, expected, found));
    }
    change_header(region, row.id, &keys, |header| header.parent = row.parent)
}

/// Whether the parent that its row names is of the moment that its header, made before folds, says it stands on.
fn stands_on_moment_of(region: &Region, header: &Header, row: &LayerRow) -> Result<bool> {
    let Some(parent) = row.parent else { return Ok(false) };
    let Some(parent) = region.catalog()?.read(|tx| tx.find_layer(parent))? else { return Ok(false) };
    let keys = layer_keys(region, &parent)?;
    let below = header_by(region, parent.id, &keys)?;
    Ok(header.parent_point == Some(point_in(parent.id, &keys, &below)))
}

/// Commits what makes a new layer count, once its header names the parent that its row does: where another process makes it,
/// the owner of the layers may have folded its parent away since the header was written.
pub fn commit_made<T, E>(
    region: &Region,
    id: LayerId,
    commit: impl Fn(&WriteTx) -> Result<T, E>,
) -> Result<T, E>
where
    E: From<HostError> + From<CatalogError> + From<RegionError>,
{
    loop {
        let row = region.catalog()?.read(|tx| tx.layer(id))?;
        if let Err(error) = name_parent(region, &row) {
            // That parent may have been folded away in its turn while it was looked at.
            match region.catalog()?.read(|tx| tx.layer(id))?.parent == row.parent {
                true => return Err(error.into()),
                false => continue,
            }
        }
        let committed = region.catalog()?.write(|tx| match tx.layer(id)?.parent == row.parent {
            true => commit(tx).map(Some),
            false => Ok(None),
        })?;
        if let Some(committed) = committed {
            return Ok(committed);
        }
    }
}

/// Both ends of a fold's last step in the header of the layer that stays: until the rows and the other headers say the same, it
/// says which layer it took. The caller has seen to it that they do.
pub(super) fn forget_taken(region: &Region, kept: &LayerRow, gone: LayerId) -> Result<()> {
    if untrusted_header(region, kept.id)?.claims().took != Some(gone) {
        return Ok(());
    }
    change_header(region, kept.id, &layer_keys(region, kept)?, |header| header.took = None)
}
