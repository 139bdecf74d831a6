//! The volumes and snapshots of a region as one process has them open, and the orders that change layers.
//!
//! The host that owns the region's layers (it holds `run/layers.lock`) is the only one that recovers, seals or removes
//! existing layers; another may only read what is sealed.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::chain::Chain;
use super::fold::{FoldWorker, STEP as FOLD_STEP, settle_taken};
use super::folder::{self, LayerSpec, Opening};
use super::footing;
use super::host_error::{HostError, Result};
use super::litter;
use super::live::LiveVolume;
use super::next::TakenNext;
use super::open_snapshot::{OpenSnapshot, SnapshotOpeners};
use super::open_volume::OpenVolume;
use super::order::Unopened;
use super::owner::LayersLock;
use super::read::Stack;
use super::restore::refuse_in_bin;
use super::vouch;
use crate::catalog::{CatalogError, Kind, Layer as LayerRow, LayerState, Snapshot, SnapshotState};
use crate::ids::{LayerId, Point, SnapshotId, VolumeId};
use crate::kms;
use crate::layer::{Anchor, Layer, PageCache, SealedMark};
use crate::region::{Region, VolumeAnchor};

/// Map pages kept in memory: 8 KiB each, 8 MiB, for 2 GiB of disk.
const PAGES_MAX: usize = 1024;
/// How long a reader waits for another process to finish a seal.
const SEAL_WAIT: Duration = Duration::from_secs(60);
/// A volume's anchor is not written more often, but for seals and closings.
const ANCHOR_INTERVAL: Duration = Duration::from_secs(60);

/// The moments of a snapshot's disk.
pub struct Moments {
    /// That of each of its layers, oldest first.
    pub of_layers: Vec<Point>,
    /// All that it went through, nearest first.
    pub all: Vec<Point>,
}

/// A region's disks, as one process has them open.
pub struct Host {
    pub(super) region: Region,
    pub(super) cache: Arc<PageCache>,
    owner: Option<LayersLock>,
    volumes: Mutex<HashMap<VolumeId, Kept>>,
    pub(super) snapshot_openers: Arc<SnapshotOpeners>,
    /// Layers that are open, so that disks share them.
    layers: Mutex<HashMap<LayerId, Weak<Layer>>>,
    /// One opening, sealing or removal at a time.
    pub(super) changing: Mutex<()>,
    /// Held from the reading of a row to the writing of the header that says the same, and while a fold changes both.
    pub(super) headers: Mutex<()>,
    /// When anchors were last written, and what.
    anchored: Mutex<HashMap<VolumeId, (Instant, VolumeAnchor)>>,
    folding: Mutex<Option<FoldWorker>>,
    /// Bytes that a fold moves between two flushes.
    pub(super) fold_step: AtomicU64,
    /// Layers, each with its child, whose fold met damage: reading it again would tell the same.
    pub(super) unfoldable: Mutex<HashSet<(LayerId, LayerId)>>,
    /// Why volumes could not be opened when they last were to be.
    unopened: Mutex<HashMap<VolumeId, String>>,
}

struct Kept {
    volume: Arc<OpenVolume>,
    keeper: Option<std::thread::JoinHandle<()>>,
}

impl Host {
    /// A host that owns the region's layers, or (`owner` none) only reads.
    pub fn new(region: Region, owner: Option<LayersLock>) -> Arc<Self> {
        Arc::new(Self {
            region,
            cache: Arc::new(PageCache::new(PAGES_MAX)),
            owner,
            volumes: Mutex::default(),
            snapshot_openers: Arc::default(),
            layers: Mutex::default(),
            changing: Mutex::default(),
            headers: Mutex::default(),
            anchored: Mutex::default(),
            folding: Mutex::default(),
            fold_step: AtomicU64::new(FOLD_STEP),
            unfoldable: Mutex::default(),
            unopened: Mutex::default(),
        })
    }

    /// Has folds flush and say how far they are as often as they have moved so much, for a disk that is smaller than a step.
    pub fn set_fold_step(&self, bytes: u64) {
        self.fold_step.store(bytes, Ordering::Relaxed);
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The cache of map pages.
    pub fn cache(&self) -> &Arc<PageCache> {
        &self.cache
    }

    /// The volumes that are live.
    pub fn live(&self) -> Vec<Arc<OpenVolume>> {
        self.volumes.lock().values().map(|k| k.volume.clone()).collect()
    }

    /// The volumes that could not be opened when they last were to be, and why.
    pub fn unopened(&self) -> Vec<Unopened> {
        let of = |(id, trouble): (&VolumeId, &String)| Unopened {
            volume: id.to_string(),
            trouble: trouble.clone(),
        };
        self.unopened.lock().iter().map(of).collect()
    }

    /// A volume, if it is live.
    pub fn find_live(&self, id: VolumeId) -> Option<Arc<OpenVolume>> {
        self.volumes.lock().get(&id).map(|k| k.volume.clone())
    }

    /// A volume, live: recovered if it was not. With `keep` it gets a keeper of its own.
    pub fn open_volume(self: &Arc<Self>, id: VolumeId, keep: bool) -> Result<Arc<OpenVolume>> {
        if let Some(open) = self.find_live(id) {
            // Who has it open goes on when its key is disabled; who opens it now is refused.
            if let Some(key) = self.region.catalog()?.read(|tx| tx.volume(id))?.key {
                kms::check_usable(&self.region, key)?;
            }
            return Ok(open);
        }
        let _one = self.changing.lock();
        self.open_volume_locked(id, keep)
    }

    /// The same for a caller that holds `changing`.
    pub(super) fn open_volume_locked(self: &Arc<Self>, id: VolumeId, keep: bool) -> Result<Arc<OpenVolume>> {
        if let Some(open) = self.find_live(id) {
            return Ok(open);
        }
        let recovered = self.recover_volume(id);
        match &recovered {
            Ok(_) => drop(self.unopened.lock().remove(&id)),
            // The state of a key is told as it is now, and not as it was then.
            Err(HostError::Kms(e)) if e.is_of_state() => drop(self.unopened.lock().remove(&id)),
            Err(e) => drop(self.unopened.lock().insert(id, e.to_string())),
        }
        let open = Arc::new(recovered?);
        let keeper = match keep {
            true => Some(self.start_keeper(open.clone())?),
            false => None,
        };
        self.volumes.lock().insert(id, Kept { volume: open.clone(), keeper });
        Ok(open)
    }

    fn start_keeper(self: &Arc<Self>, open: Arc<OpenVolume>) -> Result<std::thread::JoinHandle<()>> {
        let host = Arc::downgrade(self);
        let keep = move || {
            open.keep(|open| {
                if let Some(host) = host.upgrade()
                    && let Err(e) = host.tend(open)
                {
                    match e {
                        HostError::Volume(e) => open.tell(&e),
                        e => tracing::error!("volume {} could not be tended: {e}", open.disk.id()),
                    }
                }
            });
        };
        let spawned = std::thread::Builder::new().name("terrane-keeper".into()).spawn(keep);
        spawned.map_err(HostError::io("starting a thread for", std::path::Path::new("a volume")))
    }

    /// Recovery of a volume (rules 14 and 22, recovery 9): its chain, its active layer, and the next one where the
    /// active one has ended.
    fn recover_volume(self: &Arc<Self>, id: VolumeId) -> Result<OpenVolume> {
        self.must_own()?;
        let row = self.region.catalog()?.read(|tx| tx.volume(id))?;
        let chain_rows = footing::chain_rows(&self.region, row.active)?;
        // Recovery writes: only to what is the volume's.
        vouch::check_volume(&self.region, &row, &folder::checked_header(&self.region, &chain_rows[0])?.0)?;
        let mut layers = self.open_sealed_rows(&chain_rows[1..])?;
        let anchor = self.region.volume_anchor(id)?.filter(|a| a.layer == row.active);
        let anchor = anchor.map(|a| Anchor { generation: a.generation, confirmed: a.confirmed_seq });
        let active = folder::open_layer(&self.region, &self.cache, &chain_rows[0], Opening::Recover(anchor))?;
        let active = self.register(active);
        match layers.last() {
            Some(below) => footing::check_pair(&self.region, below, &active)?,
            None => footing::check_lowest(&self.region, &active)?,
        }
        let open = if active.is_ended() {
            let next_id = row.next.ok_or_else(|| {
                HostError::refused(
                    format!("volume {id} was sealed, and its next layer is missing"),
                    "run `terrane region check`",
                )
            })?;
            let next_row = self.region.catalog()?.read(|tx| tx.layer(next_id))?;
            let next_header = folder::checked_header(&self.region, &next_row)?.0;
            let ended_header = folder::header_by(&self.region, active.id(), active.keys())?;
            vouch::check_next(&row, &active, &ended_header, &next_row, &next_header)?;
            let next = folder::open_layer(&self.region, &self.cache, &next_row, Opening::Recover(None))?;
            // It takes writes from here on, in whichever copy of the region.
            let headers = self.headers.lock();
            vouch::mint_anew(&self.region, &next)?;
            drop(headers);
            self.commit_seals(&[(id, &active, next_id)], |_| Ok(()))?;
            layers.push(active.clone());
            let stack = Stack { active: Some(self.register(next)), chain: Chain::new(layers) };
            let open = OpenVolume::new(LiveVolume::new(id, stack));
            open.sealing.lock().push(active);
            open
        } else {
            // Without *end* what a next layer holds is void.
            if let Some(next) = row.next {
                self.region.catalog()?.write(|tx| tx.set_volume_next(id, None))?;
                folder::remove_unneeded(&self.region, next)?;
            }
            let headers = self.headers.lock();
            vouch::mint_anew(&self.region, &active)?;
            drop(headers);
            let stack = Stack { active: Some(active), chain: Chain::new(layers) };
            OpenVolume::new(LiveVolume::new(id, stack))
        };
        Ok(open)
    }

    fn must_own(&self) -> Result<()> {
        match self.owner {
            Some(_) => Ok(()),
            None => Err(HostError::refused("this process only reads the region", "use the read-write mount")),
        }
    }

    pub(super) fn register(&self, layer: Layer) -> Arc<Layer> {
        let layer = Arc::new(layer);
        let mut layers = self.layers.lock();
        layers.retain(|_, known| known.strong_count() > 0);
        layers.insert(layer.id(), Arc::downgrade(&layer));
        layer
    }

    /// Forgets an open layer: whoever asks for it opens it anew.
    pub(super) fn unregister(&self, id: LayerId) {
        self.layers.lock().remove(&id);
    }

    /// Sealed layers by their rows, nearest first, down to the lowest; the answer is oldest first. Each stands on what it was put
    /// on.
    pub(super) fn open_sealed_rows(&self, rows: &[LayerRow]) -> Result<Vec<Arc<Layer>>> {
        let layers = rows.iter().rev().map(|row| self.open_sealed(row)).collect::<Result<Vec<_>>>()?;
        footing::check_chain(&self.region, &layers)?;
        Ok(layers)
    }

    /// A sealed layer by its row. One that is open is taken, if it is as the row says: a fold may have gone on without it.
    pub(super) fn open_sealed(&self, row: &LayerRow) -> Result<Arc<Layer>> {
        let mark = folder::sealed_mark(row);
        let known = self.layers.lock().get(&row.id).and_then(Weak::upgrade);
        let is_as_said = |layer: &Arc<Layer>| {
            mark.is_none_or(|mark| match row.state.is_folding() {
                true => layer.is_at_least(mark),
                false => layer.is_sealed_as(mark),
            })
        };
        if let Some(layer) = known.filter(is_as_said) {
            return Ok(layer);
        }
        if let Some(mark) = mark {
            let opening = match row.state.is_folding() {
                true => Opening::Folding(mark),
                false => Opening::Sealed(mark),
            };
            return Ok(self.register(folder::open_layer(&self.region, &self.cache, row, opening)?));
        }
        if row.state != LayerState::Sealed {
            return Err(HostError::refused(
                format!("layer {} is not sealed", row.id),
                "run `terrane region check`",
            ));
        }
        if self.owner.is_none() {
            return self.wait_for_seal(row.id);
        }
        let layer = self.register(folder::open_layer(&self.region, &self.cache, row, Opening::Ended)?);
        self.finish_seal(&layer, &|| ())?;
        Ok(layer)
    }

    /// Another process is finishing it; or, where nobody owns the layers since that was killed, this one does.
    fn wait_for_seal(&self, id: LayerId) -> Result<Arc<Layer>> {
        let since = Instant::now();
        loop {
            let row = self.region.catalog()?.read(|tx| tx.layer(id))?;
            if let Some(mark) = folder::sealed_mark(&row) {
                return Ok(self.register(folder::open_layer(
                    &self.region,
                    &self.cache,
                    &row,
                    Opening::Sealed(mark),
                )?));
            }
            if let Ok(_owner) = LayersLock::take(&self.region, None)? {
                // Who had it may just have finished.
                let row = self.region.catalog()?.read(|tx| tx.layer(id))?;
                if folder::sealed_mark(&row).is_some() {
                    continue;
                }
                // Not on the word of a row: recovery writes, and only to what has ended by its own log.
                let (_, has_ended) = folder::inspect_layer(&self.region, &self.cache, &row, None)?;
                if !has_ended {
                    return Err(HostError::unvouched(
                        format!("layer {id}"),
                        "its row says that it has ended, and it has not",
                    ));
                }
                let opened = folder::open_layer(&self.region, &self.cache, &row, Opening::Ended)?;
                self.finish_seal(&opened, &|| ())?;
                return Ok(self.register(opened));
            }
            if since.elapsed() > SEAL_WAIT {
                let by = "the owner of the layers, which has not finished its seal".into();
                return Err(HostError::InUse { what: format!("layer {id}"), by });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The disk of a snapshot.
    pub fn open_snapshot(&self, id: SnapshotId) -> Result<Stack> {
        let layer_of =
            || -> Result<LayerId> { Ok(self.region.catalog()?.read(|tx| tx.layer_of_snapshot(id))?) };
        let mut layer = layer_of()?;
        loop {
            let opened = self.open_vouched(id, layer);
            if opened.is_err() {
                // A fold may have given its name to another layer, and taken this one away.
                let now = layer_of()?;
                if now != layer {
                    layer = now;
                    continue;
                }
            }
            return opened;
        }
    }

    /// The disk of a snapshot that its row says to be in this layer, if that is so.
    fn open_vouched(&self, id: SnapshotId, layer: LayerId) -> Result<Stack> {
        let stack = self.open_chain(layer)?;
        let row = self.region.catalog()?.read(|tx| tx.snapshot(id))?;
        if let Some(top) = stack.chain.layers().last() {
            let header = folder::header_by(&self.region, top.id(), top.keys())?;
            vouch::check_snapshot(&self.region, &row, &header, top.keys())?;
        }
        Ok(stack)
    }

    /// A snapshot's disk and its moments, by its layers' own word: rows have no MAC. The caller holds the snapshot against
    /// deletion.
    pub fn open_snapshot_with_moments(&self, id: SnapshotId) -> Result<(Stack, Moments)> {
        loop {
            let stack = self.open_snapshot(id)?;
            let moments = self.moments_of(&stack);
            // A fold may have ended since the opening, and taken a header away.
            if self.is_of_now(id, &stack)? {
                return Ok((stack, moments?));
            }
        }
    }

    fn moments_of(&self, stack: &Stack) -> Result<Moments> {
        let layers = stack.chain.layers();
        let own = layers.iter().map(|layer| vouch::own_point(&self.region, layer)).collect::<Result<_>>()?;
        let all = match layers.last() {
            None => Vec::new(),
            Some(top) => {
                let header = folder::header_by(&self.region, top.id(), top.keys())?;
                vouch::points_of(top.id(), top.keys(), &header)
            }
        };
        Ok(Moments { of_layers: own, all })
    }

    /// Whether a snapshot's chain is still of the layers that were opened.
    pub(super) fn is_of_now(&self, id: SnapshotId, stack: &Stack) -> Result<bool> {
        let layer = self.region.catalog()?.read(|tx| tx.layer_of_snapshot(id))?;
        match footing::chain_rows(&self.region, layer) {
            Ok(rows) => {
                Ok(stack.chain.layers().iter().rev().map(|l| l.id()).eq(rows.iter().map(|row| row.id)))
            }
            // A fold has just brought its name to another layer.
            Err(e) if e.is_missing_layer() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The row of a snapshot that is whole.
    pub fn whole_snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        let row = self.region.catalog()?.read(|tx| tx.snapshot(id))?;
        refuse_in_bin(&row)?;
        match row.state {
            SnapshotState::Success => Ok(row),
            state => {
                let message = format!("snapshot {} is not complete: its state is {state}", row.name);
                Err(HostError::refused(message, "wait until its state is success"))
            }
        }
    }

    /// A snapshot's disk for its file, which a thread opens; until it is dropped the snapshot stays.
    pub fn open_snapshot_file(&self, id: SnapshotId, opener: u32) -> Result<OpenSnapshot> {
        let opening = self.snapshot_openers.enter(id, opener);
        let lock = match self.owner {
            Some(_) => None,
            None => Some(folder::lock_for_reading(&self.region, id)?),
        };
        // It may have been deleted, or put into the bin, before we were counted or had the lock. A layer that is open has its key, whatever that may now.
        let row = self.region.catalog()?.read(|tx| tx.snapshot(id))?;
        if row.state != SnapshotState::Success {
            let (text, region) = (id.to_string(), self.region.name().to_owned());
            return Err(CatalogError::NotFound { kind: Kind::Snapshot, text, region }.into());
        }
        if let Some(key) = row.key {
            kms::check_usable(&self.region, key)?;
        }
        let stack = self.open_snapshot(id)?;
        Ok(OpenSnapshot { stack, volume: row.volume, _opening: opening, _lock: lock })
    }

    /// A sealed layer and all below it, as a disk.
    pub fn open_chain(&self, layer: LayerId) -> Result<Stack> {
        let mut rows = footing::chain_rows(&self.region, layer)?;
        loop {
            let opened = self.open_sealed_rows(&rows);
            if opened.is_err() {
                // A fold, perhaps of another process, joins layers while they are being opened.
                let now = footing::chain_rows(&self.region, layer)?;
                if now != rows {
                    rows = now;
                    continue;
                }
            }
            return Ok(Stack { active: None, chain: Chain::new(opened?) });
        }
    }

    /// What a volume's keeper does that needs the catalog: finishes seals, makes the next layer, writes the anchor.
    pub(super) fn tend(&self, open: &OpenVolume) -> Result<()> {
        if open.uncommitted.lock().is_some() {
            // Whoever changes something settles it first, and may be waiting for this keeper to end.
            let Some(_one) = self.changing.try_lock() else { return Ok(()) };
            self.settle(open)?;
        }
        let sealed = !open.sealing.lock().is_empty();
        // First the next layer: the snapshot after this one would have to make it, and to finish a seal takes longer.
        if open.next.lock().is_none() {
            self.between_seals(open, || self.prepare_next(open))?;
        }
        self.finish_seals(open)?;
        if sealed || self.anchor_is_due(open) {
            self.between_seals(open, || self.write_anchor(open))?;
        }
        Ok(self.region.advance_anchor()?)
    }

    /// Does what no seal may be under way for, such as making the next layer: its parent would be the one just ended. Not by
    /// waiting for the lock: whoever closes the volume holds it and waits for the keeper.
    fn between_seals(&self, open: &OpenVolume, act: impl FnOnce() -> Result<()>) -> Result<()> {
        while !open.is_stopping() {
            if let Some(_one) = self.changing.try_lock_for(Duration::from_millis(20)) {
                // One may have failed meanwhile: neither a next layer nor an anchor of what no row names.
                self.settle(open)?;
                return act();
            }
            // Who holds the lock may be at it for long: another volume's seal, say.
            attend(open);
        }
        Ok(())
    }

    /// Commits a seal the catalog could not be told of. Before that the volume can't be sealed again: its chain in the
    /// catalog would miss a layer. The caller holds `changing`.
    pub(super) fn settle(&self, open: &OpenVolume) -> Result<()> {
        let mut uncommitted = open.uncommitted.lock();
        if let Some((ended, next)) = uncommitted.as_ref() {
            ended.flush()?;
            self.commit_seals(&[(open.disk.id(), ended, *next)], |_| Ok(()))?;
            open.sealing.lock().extend(uncommitted.take().map(|(ended, _)| ended));
        }
        Ok(())
    }

    pub(super) fn finish_seals(&self, open: &OpenVolume) -> Result<()> {
        let _one = open.finishing.lock();
        // Locked for moments only: a snapshot puts its layer there.
        let first = || open.sealing.lock().first().cloned();
        while let Some(layer) = first() {
            self.finish_seal(&layer, &|| attend(open))?;
            open.sealing.lock().remove(0);
        }
        Ok(())
    }

    /// Brings an ended layer's log into its map for good; header, then row (recovery 9).
    fn finish_seal(&self, layer: &Layer, between: &dyn Fn()) -> Result<()> {
        let mark = layer.finish_seal_beside(between)?;
        // Before its row says that it is finished: from then on a fold may write to it.
        settle_taken(&self.region, layer);
        let headers = self.headers.lock();
        let points = self.write_sealed_header(layer, mark)?;
        drop(headers);
        let stored = self.stored_bytes(layer.id())?;
        self.commit_finished_seal(layer, mark, &points, stored)?;
        layer.release_lock();
        self.wake_folding();
        Ok(())
    }

    /// As the file system below counts.
    pub(super) fn stored_bytes(&self, layer: LayerId) -> Result<u64> {
        let dir = self.region.layer_dir(layer);
        folder::stored_bytes(&self.region, layer)
            .map_err(HostError::io("asking the size of a layer in", &dir))
    }

    /// Nothing of it comes from the catalog: what a header says is believed afterwards. The layer's points, nearest first.
    fn write_sealed_header(&self, layer: &Layer, mark: SealedMark) -> Result<Vec<Point>> {
        let header = folder::header_by(&self.region, layer.id(), layer.keys())?;
        let points = vouch::points_of(layer.id(), layer.keys(), &header);
        folder::change_header(&self.region, layer.id(), layer.keys(), |header| {
            header.points.clone_from(&points);
            header.sealed = Some(mark);
        })?;
        Ok(points)
    }

    fn commit_finished_seal(
        &self,
        layer: &Layer,
        mark: SealedMark,
        points: &[Point],
        stored: u64,
    ) -> Result<()> {
        self.region.catalog()?.write(|tx| -> Result<_> {
            if tx.layer_points(layer.id())? != points {
                tracing::warn!(layer = %layer.id(), "its points in the catalog were not its own: they are put right");
                tx.set_layer_points(layer.id(), points)?;
            }
            tx.set_layer_seal(layer.id(), mark.generation, mark.mac)?;
            tx.set_layer_stored_bytes(layer.id(), stored)?;
            for snapshot in tx.snapshots_of_layer(layer.id())? {
                tx.set_snapshot_bytes(snapshot.id, snapshot.changed_bytes, stored)?;
            }
            Ok(())
        })
    }

    /// Makes a volume's next layer, so that a seal waits for nothing (rule 14).
    pub(super) fn prepare_next(&self, open: &OpenVolume) -> Result<()> {
        let mut next = open.next.lock();
        if next.is_none() {
            *next = Some(self.make_next(open, open.disk.size_bytes())?);
        }
        Ok(())
    }

    /// Takes the next layer, or makes one of `size_bytes`.
    pub(super) fn take_next<'a>(&self, open: &'a OpenVolume, size_bytes: u64) -> Result<TakenNext<'a>> {
        let ready = open.next.lock().take();
        let active = open.disk.active().id();
        let ready = match ready {
            Some(ready) if ready.0.size_bytes == size_bytes && ready.0.parent == Some(active) => ready,
            Some((other, _)) => {
                self.region.catalog()?.write(|tx| tx.set_volume_next(open.disk.id(), None))?;
                folder::remove_unneeded(&self.region, other.id)?;
                self.make_next(open, size_bytes)?
            }
            None => self.make_next(open, size_bytes)?,
        };
        Ok(TakenNext::new(open, ready))
    }

    fn make_next(&self, open: &OpenVolume, size_bytes: u64) -> Result<(LayerRow, Arc<Layer>)> {
        let id = open.disk.id();
        let active = open.disk.active();
        let volume = self.region.catalog()?.read(|tx| tx.volume(id))?;
        // What the row says is believed of a new layer from here on: its cipher and its key above all.
        let header = folder::header_by(&self.region, active.id(), active.keys())?;
        vouch::check_volume(&self.region, &volume, &header)?;
        // It ends at a moment that is known already: nothing of a header waits for a seal.
        let points = vouch::points_of(active.id(), active.keys(), &header);
        let spec = LayerSpec {
            account: volume.account,
            volume: id,
            parent: points.first().map(|point| (active.id(), *point)),
            size_bytes,
            cipher: volume.cipher,
            key: volume.key,
            kind: volume.kind,
            points,
            turn: header.turn + 1,
            proof_key: None,
        };
        let (row, layer) = folder::make_layer(&self.region, &self.cache, &spec)?;
        self.region.catalog()?.write(|tx| -> Result<_> {
            tx.set_layer_state(row.id, LayerState::Next)?;
            Ok(tx.set_volume_next(id, Some(row.id))?)
        })?;
        Ok((row, self.register(layer)))
    }

    /// Commits that layers have ended and their next ones are active, with whatever else happens at that moment.
    pub(super) fn commit_seals(
        &self,
        seals: &[(VolumeId, &Layer, LayerId)],
        also: impl FnOnce(&crate::catalog::WriteTx) -> Result<()>,
    ) -> Result<()> {
        let point = |(_, ended, _): &(VolumeId, &Layer, LayerId)| vouch::own_point(&self.region, ended);
        let points = seals.iter().map(point).collect::<Result<Vec<_>>>()?;
        self.region.catalog()?.write(|tx| {
            for ((volume, ended, next), point) in seals.iter().zip(points) {
                tx.seal_layer(ended.id(), point)?;
                tx.set_layer_state(*next, LayerState::Active)?;
                tx.set_layer_points(*next, &tx.layer_points(ended.id())?)?;
                tx.set_volume_layers(*volume, *next, None)?;
                // Of a resize that was cut short too.
                tx.set_volume_size(*volume, tx.layer(*next)?.size_bytes)?;
            }
            also(tx)
        })
    }

    /// Whether how far a volume has come was not written down for a while.
    fn anchor_is_due(&self, open: &OpenVolume) -> bool {
        let last = self.anchored.lock().get(&open.disk.id()).copied();
        last.is_none_or(|(at, _)| at.elapsed() >= ANCHOR_INTERVAL)
    }

    /// Writes down, beside the root key, how far a volume has come. The caller holds `changing`.
    pub(super) fn write_anchor(&self, open: &OpenVolume) -> Result<()> {
        let id = open.disk.id();
        let last = self.anchored.lock().get(&id).copied();
        let active = open.disk.active();
        let Anchor { generation, confirmed } = active.anchor();
        let turn = folder::header_by(&self.region, active.id(), active.keys())?.turn;
        let anchor = VolumeAnchor { layer: active.id(), turn, generation, confirmed_seq: confirmed };
        if last.is_none_or(|(_, written)| written != anchor) {
            self.region.set_volume_anchor(id, &anchor)?;
        }
        self.anchored.lock().insert(id, (Instant::now(), anchor));
        Ok(())
    }

    /// Closes a live volume in order. The caller holds `changing`.
    pub(super) fn close_volume(&self, id: VolumeId) -> Result<()> {
        let Some(kept) = self.volumes.lock().remove(&id) else { return Ok(()) };
        kept.volume.stop_keeper();
        if let Some(keeper) = kept.keeper
            && keeper.join().is_err()
        {
            tracing::error!(volume = %id, "its keeper had panicked");
        }
        let open = kept.volume;
        let settled = open.disk.flush().map_err(HostError::from).and_then(|()| self.settle(&open));
        // Also of a latched volume: snapshots need its sealed layers.
        self.finish_seals(&open)?;
        settled?;
        let active = open.disk.active();
        active.close()?;
        let stored = self.stored_bytes(active.id())?;
        self.region.catalog()?.write(|tx| tx.set_layer_stored_bytes(active.id(), stored))?;
        self.write_anchor(&open)
    }

    /// Folds from now on whatever can be folded, beside everything else, until [`Host::close`].
    pub fn start_folding(self: &Arc<Self>) -> Result<()> {
        self.must_own()?;
        let started = FoldWorker::start(self);
        let worker = started.map_err(HostError::io("starting a thread for", self.region.dir()))?;
        *self.folding.lock() = Some(worker);
        Ok(())
    }

    /// What is due each minute. Takes away what killed processes left half-made, such as a layer, which others may stand
    /// beside; and writes down how far all has come: the keeper of a volume that is at rest sleeps.
    pub(super) fn sweep(&self) {
        let one = self.changing.lock();
        if let Err(error) = litter::remove_abandoned(&self.region) {
            tracing::warn!(%error, "what killed processes left could not be removed");
        }
        drop(one);
        let live = self.live();
        let written = live.iter().map(|open| {
            // One at a time: a snapshot of another volume need not wait for all.
            let _one = self.changing.lock();
            let is_kept = self.find_live(open.disk.id()).is_some_and(|live| Arc::ptr_eq(&live, open));
            match is_kept && open.uncommitted.lock().is_none() {
                true => self.write_anchor(open),
                false => Ok(()),
            }
        });
        let written = written.fold(Ok(()), Result::and);
        if let Err(error) = written.and_then(|()| Ok(self.region.advance_anchor()?)) {
            tracing::warn!(%error, "how far the region has come could not be written down");
        }
    }

    /// A layer may have lost its last name, or a volume its last opener.
    pub fn wake_folding(&self) {
        if let Some(worker) = &*self.folding.lock() {
            worker.wake();
        }
    }

    /// Closes every live volume; the first error, once all were tried.
    pub fn close(&self) -> Result<()> {
        let worker = self.folding.lock().take();
        if let Some(worker) = worker {
            worker.stop();
        }
        // Who opens one meanwhile waits, and finds its files closed.
        let _one = self.changing.lock();
        let ids: Vec<_> = self.volumes.lock().keys().copied().collect();
        let mut first = Ok(());
        for id in ids {
            let closed = self.close_volume(id);
            if let Err(e) = &closed {
                tracing::error!(volume = %id, error = %e, "the volume could not be closed in order");
            }
            first = first.and(closed);
        }
        first
    }

    /// Forgets a latched volume that nobody has open: the next opening recovers it (rule 8). Whether it did.
    pub fn forget_latched(&self, id: VolumeId) -> bool {
        let _one = self.changing.lock();
        let Some(open) = self.find_live(id) else { return false };
        let forgotten = open.is_latched() && open.retire().is_ok();
        if forgotten {
            tracing::warn!(volume = %id, "opening the latched volume anew");
            self.drop_volume(id);
        }
        forgotten
    }

    /// Forgets a live volume without closing it: it is being removed or replaced.
    pub(super) fn drop_volume(&self, id: VolumeId) {
        let kept = self.volumes.lock().remove(&id);
        if let Some(kept) = kept {
            kept.volume.stop_keeper();
            if let Some(keeper) = kept.keeper {
                let _ = keeper.join();
            }
        }
    }
}

/// What a volume needs while one of its layers gives space back: what was promised of writes goes on, and other layers that
/// have ended give up their memory.
fn attend(open: &OpenVolume) {
    let waiting = open.sealing.lock().clone();
    for layer in waiting {
        // An error is told by whoever finishes the layer.
        let _ = layer.settle_seal();
    }
    if let Err(e) = open.attend() {
        open.tell(&e);
    }
}
