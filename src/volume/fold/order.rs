//! Which layers are joined, and which way.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Job, SMALL_BYTES, WORTH_IT, overtaken};
use crate::catalog::{CatalogError, Fold, FoldWay, Layer as LayerRow, LayerState, ReadTx};
use crate::ids::LayerId;
use crate::layer::SealedMark;
use crate::units::SECTOR_BYTES;
use crate::volume::folder;
use crate::volume::host::Host;
use crate::volume::host_error::{HostError, Result};
use crate::volume::open_volume::OpenVolume;

/// What is to be done with a layer without a name.
enum Choice {
    Fold(FoldWay),
    /// Its child takes a volume's writes, and is small beside it: it is sealed first, and then joined.
    Seal,
    /// Its child holds too little yet.
    Leave,
}

impl Host {
    /// The next fold, its row committed; `None` where there is nothing to fold. Errors name the parent, unless they are of the catalog.
    pub(super) fn begin_fold(
        self: &Arc<Self>,
        keep: bool,
        failed: &HashSet<LayerId>,
    ) -> Result<Option<Job>, (Option<LayerId>, Box<HostError>)> {
        let _one = self.changing.lock();
        let of_catalog = |e: HostError| (None, Box::new(e));
        self.settle_begun().map_err(of_catalog)?;
        let read = || -> Result<_> {
            Ok(self.region.catalog()?.read(|tx| -> Result<_, crate::catalog::CatalogError> {
                Ok((tx.folds()?, tx.foldable_layers()?))
            })?)
        };
        let (begun, candidates) = read().map_err(of_catalog)?;
        let is_tried =
            |parent, child| failed.contains(&parent) || self.unfoldable.lock().contains(&(parent, child));
        for fold in begun.into_iter().filter(|f| !is_tried(f.parent, f.child)) {
            let parent = fold.parent;
            let name = |e| (Some(parent), Box::new(e));
            match fold.is_moved {
                true => self.replace_in_stacks(&fold).and_then(|()| self.finish_fold(&fold)).map_err(name)?,
                false => return self.open_job(fold, keep, true).map(Some).map_err(name),
            }
        }
        let mut candidates: Vec<_> = candidates.into_iter().filter(|(p, c)| !is_tried(p.id, c.id)).collect();
        // The lowest first: a layer that was sealed to go down is not to go up, whatever times its rows say.
        let children: HashSet<LayerId> = candidates.iter().map(|(_, child)| child.id).collect();
        candidates.sort_by_key(|(parent, _)| children.contains(&parent.id));
        for (parent, child) in candidates {
            let name = |e| (Some(parent.id), Box::new(e));
            match self.choose(&parent, &child, keep).map_err(name)? {
                Choice::Leave => {}
                Choice::Fold(way) => return self.start(&parent, &child, way, keep).map(Some).map_err(name),
                Choice::Seal => {
                    let open = self.seal_unnamed(&child, keep).map_err(name)?;
                    if keep {
                        // To finish it takes long, and whoever holds `changing` has snapshots wait. Its keeper does, and wakes us.
                        return Ok(None);
                    }
                    self.finish_seals(&open).map_err(name)?;
                    let sealed = self.region.catalog().and_then(|mut c| Ok(c.read(|tx| tx.layer(child.id))?));
                    let sealed = sealed.map_err(|e| name(e.into()))?;
                    return self.start(&parent, &sealed, FoldWay::Down, keep).map(Some).map_err(name);
                }
            }
        }
        Ok(None)
    }

    /// Folds cut short whose end, or beginning, has been decided otherwise than by their rows. Where the header of the layer that
    /// stays says that it took the other, the rows follow: nothing of that one is missing. Else, of a fold into a volume's
    /// active layer that was sealed since: nobody was told that it is written to, so it may not be. The fold begins anew with
    /// the layers as they are; what was moved stays.
    fn settle_begun(&self) -> Result<()> {
        let folds = self.region.catalog()?.read(|tx| tx.folds())?;
        for fold in folds.into_iter().filter(|f| !f.is_moved) {
            match self.took(&fold) {
                Ok(Some(mark)) => {
                    let _headers = self.headers.lock();
                    if let Err(error) = self.commit(&fold, mark) {
                        tracing::warn!(layer = %fold.parent, %error, "the end of a fold could not be written down");
                    }
                    continue;
                }
                Ok(None) => {}
                // Such as one under a disabled key: it is tried again.
                Err(error) => {
                    tracing::warn!(layer = %fold.parent, %error, "how far a fold is could not be told");
                    continue;
                }
            }
            self.region.catalog()?.write(|tx| -> Result<_, CatalogError> {
                let child = tx.find_layer(fold.child)?;
                let is_sealed = child.is_some_and(|row| row.state == LayerState::Sealed);
                match fold.way == FoldWay::Up && is_sealed {
                    true => tx.delete_fold(fold.parent),
                    false => Ok(()),
                }
            })?;
        }
        Ok(())
    }

    /// Whether the layer that stays says that it took the other; then also its seal, if it has one.
    fn took(&self, fold: &Fold) -> Result<Option<Option<SealedMark>>> {
        // What can't be read is told when it is opened; and without this word no key is needed.
        match folder::untrusted_header(&self.region, fold.kept()) {
            Ok(header) if header.claims().took == Some(fold.gone()) => {}
            _ => return Ok(None),
        }
        let Some(row) = self.region.catalog()?.read(|tx| tx.find_layer(fold.kept()))? else {
            return Ok(None);
        };
        let (header, _) = folder::checked_header(&self.region, &row)?;
        let is_done = header.took == Some(fold.gone()) && header.fold.is_none();
        Ok(is_done.then_some(header.sealed))
    }

    fn choose(self: &Arc<Self>, parent: &LayerRow, child: &LayerRow, keep: bool) -> Result<Choice> {
        let bytes = |sectors: u64| sectors * SECTOR_BYTES;
        let alike = |row: &LayerRow| (row.key, row.cipher, row.account);
        let is_active = child.state == LayerState::Active;
        // Nothing may come under another key than its own: only the parent's is the child's alone now.
        if alike(parent) != alike(child) {
            return Ok(Choice::Fold(FoldWay::Up));
        }
        let of_parent = bytes(self.open_sealed(parent)?.data_sectors());
        if is_active {
            let of_child = bytes(self.open_active(child, keep)?.disk.active().data_sectors());
            return Ok(match () {
                () if of_parent <= of_child.max(SMALL_BYTES) => Choice::Fold(FoldWay::Up),
                () if of_child >= of_parent / WORTH_IT => Choice::Seal,
                () => Choice::Leave,
            });
        }
        let of_child = bytes(self.open_sealed(child)?.data_sectors());
        Ok(Choice::Fold(if of_child <= of_parent { FoldWay::Down } else { FoldWay::Up }))
    }

    fn start(self: &Arc<Self>, parent: &LayerRow, child: &LayerRow, way: FoldWay, keep: bool) -> Result<Job> {
        let fold = Fold {
            parent: parent.id,
            child: child.id,
            way,
            next_chunk: 0,
            mac: None,
            moved_bytes: 0,
            is_moved: false,
        };
        self.region.catalog()?.write(|tx| -> Result<_> {
            check(tx, &fold)?;
            match way {
                FoldWay::Down => tx.set_layer_state(parent.id, LayerState::Absorbing)?,
                FoldWay::Up if child.state == LayerState::Sealed => {
                    tx.set_layer_state(child.id, LayerState::Filling)?;
                }
                FoldWay::Up => {}
            }
            Ok(tx.insert_fold(&fold)?)
        })?;
        self.open_job(fold, keep, false)
    }

    /// Seals a volume's active layer without a snapshot.
    fn seal_unnamed(self: &Arc<Self>, child: &LayerRow, keep: bool) -> Result<Arc<OpenVolume>> {
        let open = self.open_active(child, keep)?;
        self.seal_volume(&open, open.disk.size_bytes())?;
        Ok(open)
    }
}

/// The rows of a fold, if it still may be: nothing but the child needs the parent.
pub(super) fn check(tx: &ReadTx, fold: &Fold) -> Result<(LayerRow, LayerRow)> {
    let (Some(parent), Some(child)) = (tx.find_layer(fold.parent)?, tx.find_layer(fold.child)?) else {
        return Err(overtaken());
    };
    let needs = tx.layer_needs(fold.parent)?;
    let only = needs.children == [fold.child]
        && needs.snapshots.is_empty()
        && needs.active_of.is_empty()
        && needs.next_of.is_empty();
    match only && child.state != LayerState::Deleting {
        true => Ok((parent, child)),
        false => Err(overtaken()),
    }
}
