//! Folding (rule 20): a sealed layer that no snapshot names any more and that has one child is joined with that child, the
//! smaller into the larger, so that an expiry costs what changed and not the disk.
//!
//! The order, so that a cut leaves a disk that reads the same and a fold that goes on:
//! 1. The fold's row; a sealed layer that will be written to is `filling` or `absorbing` from here on.
//! 2. That layer's header says the same, and which layer it is joined with: from here on no older header goes with its data.
//! 3. What is known of the moment that goes, as bookmarks into the folder of the layer that stays: afterwards it is not.
//! 4. Sectors through that layer's log and pages, like any writes. Readers see both layers: what they read stays the same.
//! 5. That layer is durable, and sealed again; its header says so, what it stands on now, and which layer it took.
//! 6. One transaction: the layer that stays has the other's place, the other is being deleted. Where this fails, the header of 5
//!    has decided it: it is done by whoever goes on.
//! 7. Headers that name the layer that goes are mended; then its folder goes, then what the header says of it, then its row.

mod ahead;
mod bookmarks;
mod order;
mod sectors;
mod steps;
mod worker;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub use bookmarks::settle_taken;
pub use sectors::Move;
pub use worker::FoldWorker;

use super::chain::Chain;
use super::folder::{self, Opening};
use super::footing;
use super::host::Host;
use super::host_error::{HostError, Result};
use super::open_volume::OpenVolume;
use crate::catalog::{Fold, FoldWay, Layer as LayerRow, LayerState};
use crate::ids::LayerId;
use crate::layer::header::Folding;
use crate::layer::{Anchor, Layer, LayerError, SealedMark, UNFLUSHED_MAX};
use crate::units::SECTOR_BYTES;
use steps::Steps;

/// A parent of at most this much data goes into its child, whichever is smaller.
pub(super) const SMALL_BYTES: u64 = 64 << 20;
/// A child that takes a volume's writes is joined with a larger parent once it holds 1/16 of that: as much as may lie in
/// both by the space bound (rule 16).
const WORTH_IT: u64 = 16;
/// Bytes moved between two flushes, each of which records how far the fold is. While one is under way the next step moves: together
/// they are as much as may be undurable.
pub(super) const STEP: u64 = UNFLUSHED_MAX / 2;
/// What may be moved again, rather than flushed and recorded, when all was moved.
const AGAIN_BYTES: u64 = 4 << 20;
/// A fold that is slow is recorded as often.
const STEP_TIME: Duration = Duration::from_secs(5);
/// How often one that moves nothing yet asks whether to go on.
const LOOK: Duration = Duration::from_secs(1);

/// How far a fold is.
#[derive(Clone, Copy, Debug)]
pub struct FoldProgress {
    /// The layer that goes.
    pub gone: LayerId,
    /// The layer that stays.
    pub kept: LayerId,
    /// Bytes moved so far.
    pub moved_bytes: u64,
    /// All was moved, and the space it had is being given back: a fold that is stopped here does that anew.
    pub gives_back: bool,
    /// Folds that could not be carried out so far.
    pub failures: usize,
}

impl FoldProgress {
    fn of(fold: &Fold) -> Self {
        let (gone, kept) = (fold.gone(), fold.kept());
        Self { gone, kept, moved_bytes: fold.moved_bytes, gives_back: false, failures: 0 }
    }
}

/// Says whether to go on.
pub type Watch<'a> = &'a mut dyn FnMut(FoldProgress) -> bool;

/// What a fold needs while sectors move.
struct Job {
    fold: Fold,
    from: Arc<Layer>,
    into: Into,
    below: Chain,
}

enum Into {
    /// The active layer of a live volume.
    Live(Arc<Layer>),
    /// A sealed layer, opened again; whether for an earlier try, which knew what it had freed.
    Sealed { layer: Box<Layer>, resumed: bool },
}

impl Into {
    fn layer(&self) -> &Layer {
        match self {
            Self::Live(layer) => layer,
            Self::Sealed { layer, .. } => layer,
        }
    }
}

impl Host {
    /// Folds what can be folded, until nothing is left or `watch` says no. `keep`: volumes opened for it stay live. What fails
    /// is left as it is, readable, until the next call, or where it is damaged until the next host; the first such error is the
    /// answer.
    pub fn fold(self: &Arc<Self>, keep: bool, watch: Watch) -> Result<()> {
        let mut failed = HashSet::new();
        let mut first = Ok(());
        loop {
            let (parent, child, done) = match self.begin_fold(keep, &failed) {
                Ok(None) => return first,
                Ok(Some(job)) => (
                    job.fold.parent,
                    Some(job.fold.child),
                    self.carry_out(job, &mut |p| watch(FoldProgress { failures: failed.len(), ..p })),
                ),
                Err((Some(parent), error)) => (parent, None, Err(*error)),
                // The catalog can't say what there is to fold: to ask it at once again would never end.
                Err((None, error)) => {
                    tracing::warn!(%error, "nothing could be folded");
                    return first.and(Err(*error));
                }
            };
            match done {
                Ok(true) => {}
                Ok(false) => return first,
                // Its layers were removed meanwhile.
                Err(_) if self.region.catalog()?.read(|tx| tx.find_layer(parent))?.is_none() => {}
                Err(error) => {
                    tracing::warn!(layer = %parent, %error, "a layer without a name could not be folded");
                    failed.insert(parent);
                    if let (Some(child), HostError::Volume(e)) = (child, &error)
                        && e.is_corruption()
                    {
                        self.unfoldable.lock().insert((parent, child));
                    }
                    first = first.and(Err(error));
                    // There may be thousands that fail.
                    let so_far = FoldProgress {
                        gone: parent,
                        kept: parent,
                        moved_bytes: 0,
                        gives_back: false,
                        failures: failed.len(),
                    };
                    if !watch(so_far) {
                        return first;
                    }
                }
            }
        }
    }

    /// Moves the sectors, and commits that they have moved. False: it was told to stop.
    fn carry_out(self: &Arc<Self>, job: Job, watch: Watch) -> Result<bool> {
        if !self.keep_bookmarks(&job, watch)? {
            return Ok(false);
        }
        let mut fold = job.fold.clone();
        let unflushed = match self.move_all(&mut fold, &job, watch) {
            Ok(Some(unflushed)) => unflushed,
            Ok(None) => return Ok(false),
            Err(HostError::Volume(super::VolumeError::Layer(LayerError::Ended))) => {
                return self.begin_anew(&fold);
            }
            Err(other) => return Err(other),
        };
        if unflushed >= AGAIN_BYTES && matches!(job.into, Into::Sealed { .. }) {
            // To give space back takes a while: a fold that is stopped there does not move all this again. One that can't say so on a
            // full disk gives space back all the same.
            if let Err(error) = self.record_progress(&fold, job.into.layer()) {
                tracing::warn!(%error, gone = %fold.gone(), "how far a fold is could not be written down");
            }
        }
        self.conclude(&fold, job, watch)
    }

    /// Moves all sectors, each step flushed and recorded while the next one moves; the bytes moved since the last step. None: it was
    /// told to stop, and has recorded how far it is.
    fn move_all(&self, fold: &mut Fold, job: &Job, watch: Watch) -> Result<Option<u64>> {
        let into = job.into.layer();
        let moving = Move { way: fold.way, from: &job.from, into, below: &job.below };
        let step_bytes = self.fold_step.load(Ordering::Relaxed);
        let (mut unflushed, mut said) = (0, fold.next_chunk);
        let mut since = Instant::now();
        let finished = std::thread::scope(|scope| {
            let mut steps = Steps::new(scope);
            let mut failed = Ok(());
            let finished = moving.run(fold.next_chunk, &mut |next, sectors| {
                fold.next_chunk = next;
                fold.moved_bytes += sectors * SECTOR_BYTES;
                unflushed += sectors * SECTOR_BYTES;
                if unflushed >= step_bytes || since.elapsed() >= STEP_TIME {
                    let step = fold.clone();
                    failed = steps.next(move || self.record_progress(&step, into));
                    // After the wait for the step before.
                    (unflushed, said, since) = (0, next, Instant::now());
                }
                // A volume is closed where its key may not be used any more: then its layer goes, too.
                failed.is_ok() && self.is_served(&job.into) && watch(FoldProgress::of(fold))
            });
            let recorded = failed.and(steps.end());
            let finished = finished?;
            recorded.map(|()| finished)
        })?;
        if finished {
            return Ok(Some(unflushed));
        }
        if said != fold.next_chunk {
            self.record_progress(fold, into)?;
        }
        Ok(None)
    }

    /// What is known of the moment that goes. False: `watch`, which is asked once a second, said no.
    fn keep_bookmarks(&self, job: &Job, watch: Watch) -> Result<bool> {
        let mut since = Instant::now();
        let mut go_on = || {
            if since.elapsed() < LOOK {
                return true;
            }
            since = Instant::now();
            watch(FoldProgress::of(&job.fold))
        };
        bookmarks::keep(&self.region, job, &mut go_on)
    }

    fn is_served(&self, into: &Into) -> bool {
        match into {
            Into::Live(layer) => self.live().iter().any(|open| Arc::ptr_eq(&open.disk.active(), layer)),
            Into::Sealed { .. } => true,
        }
    }

    /// What was moved is durable, and the catalog knows how far the fold is.
    fn record_progress(&self, fold: &Fold, into: &Layer) -> Result<()> {
        into.flush()?;
        let fold = Fold { mac: Some(vouch(fold, into, into.anchor())), ..fold.clone() };
        match self.region.catalog()?.write(|tx| tx.set_fold_progress(&fold))? {
            true => Ok(()),
            false => Err(overtaken()),
        }
    }

    /// Everything was moved: seals the layer that stays, if it was, and gives it the other's place. False: its volume was closed
    /// meanwhile, or it was told to stop.
    fn conclude(self: &Arc<Self>, fold: &Fold, job: Job, watch: Watch) -> Result<bool> {
        let sealed = match &job.into {
            Into::Live(layer) => {
                layer.flush()?;
                None
            }
            Into::Sealed { layer, resumed } => {
                let progress = FoldProgress { gives_back: true, ..FoldProgress::of(fold) };
                match seal_again(layer, *resumed, &mut || watch(progress))? {
                    Some(mark) => Some((layer, mark)),
                    None => return Ok(false),
                }
            }
        };
        let _one = self.changing.lock();
        // Until here it may have been sealed or closed. What a sealed layer says of its moment is not to be changed.
        if !self.is_served(&job.into) {
            return match job.into.layer().is_ended() {
                true => self.begin_anew(fold),
                false => Ok(false),
            };
        }
        let headers = self.headers.lock();
        match sealed {
            None => self.settle_live(fold, &job.from, job.into.layer())?,
            Some((layer, mark)) => self.settle_sealed(fold, &job.from, layer, mark)?,
        }
        self.commit(fold, sealed.map(|(_, mark)| mark))?;
        drop(headers);
        // It goes on as the sealed layer that it is: to open it once more its key may be disabled by now.
        let _kept = match job.into {
            Into::Live(layer) => layer,
            Into::Sealed { layer, .. } => {
                layer.release_lock();
                self.register(*layer)
            }
        };
        drop(job.from);
        self.replace_in_stacks(fold)?;
        tracing::info!(gone = %fold.gone(), kept = %fold.kept(), moved_bytes = fold.moved_bytes, "folded");
        self.finish_fold(fold).map(|()| true)
    }

    /// A snapshot was taken: the fold begins anew with the layer that is sealed now; what was moved stays.
    fn begin_anew(&self, fold: &Fold) -> Result<bool> {
        self.region.catalog()?.write(|tx| tx.delete_fold(fold.parent))?;
        Ok(true)
    }

    /// What follows a fold's commit in headers and folders. The caller holds `changing`.
    fn finish_fold(&self, fold: &Fold) -> Result<()> {
        let _headers = self.headers.lock();
        finish(&self.region, fold.gone())
    }

    /// The header of a volume's active layer that has all of its parent: it stands on what lies below that. Older data of it
    /// does not.
    fn settle_live(&self, fold: &Fold, from: &Layer, layer: &Layer) -> Result<()> {
        let (parent, _) = self.region.catalog()?.read(|tx| order::check(tx, fold))?;
        let taken = folder::header_by(&self.region, fold.parent, from.keys())?;
        let reached = layer.anchor();
        folder::change_header(&self.region, fold.child, layer.keys(), |header| {
            // Its points stay: those of the parent are among them, and so are others where it is not the first that it takes.
            header.parent = parent.parent;
            header.parent_point = taken.parent_point;
            header.edition += 1;
            header.reached = Some(reached);
            header.took = Some(fold.parent);
        })
    }

    /// The header first: it vouches for what the rows say afterwards.
    fn settle_sealed(&self, fold: &Fold, from: &Layer, layer: &Layer, mark: SealedMark) -> Result<()> {
        let (parent, _) = self.region.catalog()?.read(|tx| order::check(tx, fold))?;
        let taken = folder::header_by(&self.region, fold.gone(), from.keys())?;
        folder::change_header(&self.region, fold.kept(), layer.keys(), |header| {
            header.parent = parent.parent;
            match fold.way {
                FoldWay::Up => header.parent_point = taken.parent_point,
                FoldWay::Down => {
                    header.size_bytes = taken.size_bytes;
                    header.points = taken.points;
                }
            }
            header.sealed = Some(mark);
            header.fold = None;
            header.took = Some(fold.gone());
        })
    }

    /// The rows say what the header of the layer that stays does; with its seal, if it has one.
    fn commit(&self, fold: &Fold, mark: Option<SealedMark>) -> Result<()> {
        let stored = self.stored_bytes(fold.kept())?;
        if mark.is_some() {
            // Whoever asks for it by its new row must not get one that was opened before.
            self.unregister(fold.kept());
        }
        self.region.catalog()?.write(|tx| {
            let (parent, child) = order::check(tx, fold)?;
            match fold.way {
                FoldWay::Up => tx.set_layer_parent(fold.child, parent.parent)?,
                FoldWay::Down => tx.give_layers_place(&child, fold.parent)?,
            }
            if let Some(mark) = mark {
                tx.set_layer_seal(fold.kept(), mark.generation, mark.mac)?;
                tx.set_layer_stored_bytes(fold.kept(), stored)?;
                tx.set_layer_state(fold.kept(), LayerState::Sealed)?;
            }
            tx.set_layer_state(fold.gone(), LayerState::Deleting)?;
            tx.set_fold_progress(&Fold { is_moved: true, ..fold.clone() })?;
            Ok(())
        })
    }

    /// Live volumes go on through the layers that are left; the space of the one that goes is free once nobody has it open.
    /// Through those that the rows name, and not those they had but for one: where this failed after an earlier fold they
    /// still have what that one took away, which is no harm until what is left goes on without it.
    fn replace_in_stacks(&self, fold: &Fold) -> Result<()> {
        for open in self.live() {
            if !open.disk.stack().chain.layers().iter().any(|l| l.id() == fold.gone()) {
                continue;
            }
            let active = open.disk.active();
            let rows = footing::chain_rows(&self.region, active.id())?;
            let below = self.open_sealed_rows(&rows[1..])?;
            if let Some(top) = below.last() {
                footing::check_pair(&self.region, top, &active)?;
            }
            // Before it is written to without what goes: its header from before names that.
            let edition = folder::header_by(&self.region, active.id(), active.keys())?.edition;
            active.require_edition(edition)?;
            open.disk.replace_chain(Chain::new(below));
        }
        Ok(())
    }

    /// The layers of a fold, open. The caller holds `changing`.
    fn open_job(self: &Arc<Self>, fold: Fold, keep: bool, resumed: bool) -> Result<Job> {
        let (rows, child) = self.region.catalog()?.read(|tx| -> Result<_> {
            // A row that says so of layers that others need would have them overwritten.
            order::check(tx, &fold)?;
            Ok((tx.layer_chain(fold.parent)?, tx.layer(fold.child)?))
        })?;
        let below = Chain::new(self.open_sealed_rows(&rows[1..])?);
        let parent = &rows[0];
        let folding = match fold.way {
            FoldWay::Up => Folding::Fills(fold.parent),
            FoldWay::Down => Folding::Absorbs(fold.child),
        };
        let reopen = |row: &LayerRow, size_bytes: u64| -> Result<Into> {
            let opening = Opening::Reopen(folding, size_bytes.max(row.size_bytes));
            let layer = folder::open_layer(&self.region, &self.cache, row, opening)?;
            Ok(Into::Sealed { layer: Box::new(layer), resumed })
        };
        let from = self.open_sealed(if fold.way == FoldWay::Down { &child } else { parent })?;
        // Before anything is written: they are what they were when the child was put on the parent.
        if child.state != LayerState::Active {
            footing::check_row(&self.region, &child, Some(parent), false)?;
        }
        let into = match fold.way {
            FoldWay::Down => reopen(parent, child.size_bytes)?,
            FoldWay::Up if child.state == LayerState::Active => {
                let active = self.open_active(&child, keep)?.disk.active();
                footing::check_pair(&self.region, &from, &active)?;
                Into::Live(active)
            }
            FoldWay::Up => reopen(&child, child.size_bytes)?,
        };
        let mut fold = fold;
        // The catalog has no MAC of its own: what it made us leave out would be lost.
        if fold.next_chunk > 0 && !is_vouched(&fold, into.layer()) {
            tracing::warn!(layer = %fold.parent, "how far a fold was is not vouched for: it begins anew");
            fold.next_chunk = 0;
        }
        Ok(Job { fold, from, into, below })
    }

    /// The live volume whose active layer this is.
    fn open_active(self: &Arc<Self>, layer: &LayerRow, keep: bool) -> Result<Arc<OpenVolume>> {
        let needs = self.region.catalog()?.read(|tx| tx.layer_needs(layer.id))?;
        let volume = *needs.active_of.first().ok_or_else(overtaken)?;
        let open = self.open_volume_locked(volume, keep)?;
        match open.disk.active().id() == layer.id {
            true => Ok(open),
            false => Err(overtaken()),
        }
    }
}

/// What the layer that stays says of how far a fold is, and how far itself.
fn vouch(fold: &Fold, kept: &Layer, reached: Anchor) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&reached.generation.to_le_bytes());
    bytes[8..16].copy_from_slice(&reached.confirmed.to_le_bytes());
    let mac = kept.keys().header().mac(&[
        b"fold\0",
        &fold.parent.0,
        &fold.child.0,
        fold.way.as_str().as_bytes(),
        &fold.next_chunk.to_le_bytes(),
        &bytes[..16],
    ]);
    bytes[16..].copy_from_slice(&mac);
    bytes
}

/// Whether the layer that stays says so, and is not older than it was then: such has not what was moved.
fn is_vouched(fold: &Fold, kept: &Layer) -> bool {
    let Some(said) = fold.mac else { return false };
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| said[at + i]));
    let (reached, now) = (Anchor { generation: number(0), confirmed: number(8) }, kept.anchor());
    said == vouch(fold, kept, reached)
        && now.generation >= reached.generation
        && now.confirmed >= reached.confirmed
}

fn seal_again(layer: &Layer, resumed: bool, goes_on: &mut dyn FnMut() -> bool) -> Result<Option<SealedMark>> {
    layer.lock_for_seal()?.end()?;
    layer.flush()?;
    Ok(layer.finish_fold(resumed, goes_on)?)
}

/// Takes away the layer that a fold has emptied, once no header names it any more.
pub(super) fn finish(region: &crate::region::Region, gone: LayerId) -> Result<()> {
    let fold = region.catalog()?.read(|tx| tx.find_fold_of_gone(gone))?.filter(|f| f.is_moved);
    if let Some(fold) = &fold {
        mend_headers(region, fold)?;
    }
    folder::remove_unneeded(region, gone)?;
    match fold {
        Some(fold) => Ok(region.catalog()?.write(|tx| tx.delete_fold(fold.parent))?),
        None => Ok(()),
    }
}

/// Nothing names the layer that goes, on which its folder goes; and then nothing says any more that it was taken, so that it
/// can't be put back under that word. Its row, and with it the fold's, is still there: a cut repeats this.
fn mend_headers(region: &crate::region::Region, fold: &Fold) -> Result<()> {
    let (kept, named_by, is_needed) = region.catalog()?.read(|tx| -> Result<_> {
        let named_by = match fold.way {
            // Its header said so before the rows did.
            FoldWay::Up => Vec::new(),
            FoldWay::Down => tx.children_of_layer(fold.parent)?,
        };
        Ok((tx.find_layer(fold.kept())?, named_by, !tx.layer_needs(fold.gone())?.is_empty()))
    })?;
    // Who makes a layer sees to its header himself ([`footing::commit_made`]).
    let is_whole = |row: &&LayerRow| !matches!(row.state, LayerState::Preparing | LayerState::Deleting);
    for row in named_by.iter().filter(is_whole) {
        footing::name_parent(region, row)?;
    }
    if is_needed {
        return Err(overtaken());
    }
    folder::remove_folder(region, fold.gone())?;
    match kept {
        Some(kept) => footing::forget_taken(region, &kept, fold.gone()),
        None => Ok(()),
    }
}

fn overtaken() -> HostError {
    HostError::refused("the layers of a fold were changed meanwhile", "nothing: it begins anew")
}
