//! Orders carried out by the process that owns the layers.

use std::sync::Arc;

use super::ending::Why;
use super::folder::{self, LayerSpec};
use super::host::Host;
use super::host_error::{HostError, Result};
use super::live::seal_together;
use super::next::TakenNext;
use super::open_volume::OpenVolume;
use super::order::{LiveState, Order, SnapshotItem, TagText};
use super::restore::refuse_in_bin;
use super::vouch;
use crate::catalog::{Kind, LayerState, Snapshot, SnapshotState, Tag, Volume};
use crate::ids::{AccountId, GroupId, IdError, LayerId, Name, SnapshotId, VolumeId};
use crate::kms;
use crate::layer::{Anchor, Layer};
use crate::region::VolumeAnchor;
use crate::units::{SECTOR_BYTES, VOLUME_BYTES_MAX};

/// How long after a close the mount may learn of it.
pub(super) const CLOSE_LAG: std::time::Duration = std::time::Duration::from_millis(300);

/// What snapshots of one moment share.
struct Shared {
    account: AccountId,
    group: Option<GroupId>,
    description: Option<String>,
    tags: Vec<Tag>,
    retention_days: Option<u32>,
}

/// One snapshot to take.
struct Wanted {
    volume: Volume,
    open: Arc<OpenVolume>,
    id: SnapshotId,
    name: Name,
}

fn parse<T: std::str::FromStr<Err = IdError>>(text: &str) -> Result<T> {
    text.parse()
        .map_err(|e: IdError| HostError::refused(e.to_string(), "this is a mistake of the asking program"))
}

impl Host {
    /// Carries out an order. `keep`: volumes opened for it stay live, with a keeper.
    pub fn execute(self: &Arc<Self>, order: &Order, keep: bool) -> Result<()> {
        let done = self.carry_out_order(order, keep);
        self.wake_folding();
        done
    }

    fn carry_out_order(self: &Arc<Self>, order: &Order, keep: bool) -> Result<()> {
        match order {
            Order::Snapshot { items, account, group, description, tags, retention_days } => {
                let shared = Shared {
                    account: parse(account)?,
                    group: group.as_deref().map(parse).transpose()?,
                    description: description.clone(),
                    tags: tags
                        .iter()
                        .map(|TagText { key, value }| Tag { key: key.clone(), value: value.clone() })
                        .collect(),
                    retention_days: *retention_days,
                };
                self.take_snapshots(items, &shared, keep)
            }
            Order::Rollback { volume, snapshot } => self.roll_back(parse(volume)?, parse(snapshot)?),
            Order::Resize { volume, size_bytes } => self.resize(parse(volume)?, *size_bytes, keep),
            Order::DeleteVolume { volume } => self.delete_volume(parse(volume)?),
            Order::DeleteSnapshot { snapshot } => self.end_snapshot(parse(snapshot)?, Why::Deleted),
            Order::PurgeSnapshot { snapshot } => self.end_snapshot(parse(snapshot)?, Why::Purged),
            Order::EndSnapshot { snapshot } => self.end_snapshot(parse(snapshot)?, Why::Over),
            Order::LetGo => self.let_go(),
            Order::Status | Order::Unmount => Err(HostError::refused("no mount here", "mount the region")),
        }
    }

    /// Closes live volumes that nobody has open and whose key is not enabled: their keys go with them.
    pub(super) fn let_go(&self) -> Result<()> {
        let mut first = Ok(());
        for id in self.live().iter().map(|open| open.disk.id()) {
            let is_closed = |key| matches!(kms::check_usable(&self.region, key), Err(e) if e.is_of_state());
            let key = |id| -> Result<_> {
                Ok(self.region.catalog()?.read(|tx| tx.find_volume(id))?.and_then(|row| row.key))
            };
            if !key(id)?.is_some_and(is_closed) {
                continue;
            }
            // Asked again: it may have been closed, its key enabled, and opened since.
            let _one = self.changing.lock();
            if key(id)?.is_some_and(is_closed) && self.find_live(id).is_some_and(|open| open.retire().is_ok())
            {
                first = first.and(self.close_volume(id));
            }
        }
        first
    }

    /// What is live here.
    pub fn live_states(&self) -> Vec<LiveState> {
        let of = |open: &Arc<OpenVolume>| LiveState {
            volume: open.disk.id().to_string(),
            latched: open.is_latched(),
            trouble: open.trouble(),
            openers: open.openers(),
            unflushed_bytes: open.disk.undurable_bytes(),
        };
        self.live().iter().map(of).collect()
    }

    fn take_snapshots(self: &Arc<Self>, items: &[SnapshotItem], shared: &Shared, keep: bool) -> Result<()> {
        let _one = self.changing.lock();
        let mut wanted = Vec::with_capacity(items.len());
        for item in items {
            let (id, name) = (parse(&item.snapshot)?, parse(&item.name)?);
            self.region.catalog()?.read(|tx| tx.refuse_taken_name(Kind::Snapshot, &name))?;
            let open = self.open_volume_locked(parse(&item.volume)?, keep)?;
            // A request from the socket: to seal one volume twice would wait for its own lock for ever.
            if wanted.iter().any(|w: &Wanted| Arc::ptr_eq(&w.open, &open)) {
                let message = format!("volume {} is named twice", item.volume);
                return Err(HostError::refused(message, "name each volume once"));
            }
            self.settle(&open)?;
            let volume = self.region.catalog()?.read(|tx| tx.volume(open.disk.id()))?;
            wanted.push(Wanted { volume, open, id, name });
        }
        // A volume nobody wrote since its last seal: the snapshot names the same layer, unless a fold is taking that away.
        let mut changed = Vec::new();
        for w in &wanted {
            let stack = w.open.disk.stack();
            let untouched = stack.active.as_ref().is_some_and(|a| matches!(a.is_empty(), Ok(true)));
            let same = match stack.chain.layers().last() {
                Some(top) if untouched && top.size_bytes() == w.volume.size_bytes => {
                    !self.region.catalog()?.read(|tx| tx.is_parent_in_fold(top.id()))?
                }
                _ => false,
            };
            if !same {
                changed.push(w);
            }
        }
        let nexts = changed.iter().map(|w| self.take_next(&w.open, w.volume.size_bytes));
        let nexts = nexts.collect::<Result<Vec<_>>>()?;
        let committed: Vec<_> = nexts.iter().map(TakenNext::ids).collect();
        let ended = self.seal(nexts, &committed)?;
        let rows = wanted.iter().map(|w| {
            let sealed = ended.iter().zip(&changed).find(|(_, c)| c.id == w.id).map(|(layer, _)| layer);
            self.snapshot_row(w, sealed, shared)
        });
        let rows = rows.map(|row| row.and_then(|row| Ok((vouch::retention_mac(&self.region, &row)?, row))));
        let commit = rows.collect::<Result<Vec<_>>>().and_then(|rows| {
            self.commit_seals(&with_layers(&committed, &ended), |tx| {
                rows.iter().try_for_each(|(retention, row)| -> Result<()> {
                    tx.insert_snapshot(row)?;
                    tx.set_retention_mac(row.id, *retention)?;
                    Ok(tx.set_tags(&row.id.to_string(), &shared.tags)?)
                })
            })
        });
        self.after_seal(changed.iter().map(|w| &*w.open), ended, &committed, commit)
    }

    /// Ends the layers, and makes them durable.
    fn seal(
        &self,
        nexts: Vec<TakenNext<'_>>,
        ids: &[(VolumeId, LayerId, LayerId)],
    ) -> Result<Vec<Arc<Layer>>> {
        let ended = seal_together(nexts.iter().map(TakenNext::seal).collect())?;
        let opens: Vec<_> = nexts.into_iter().map(TakenNext::used).collect();
        let flushed = ended.iter().try_for_each(|layer| layer.flush());
        match flushed {
            Ok(()) => Ok(ended),
            Err(e) => {
                self.after_seal(opens.into_iter(), ended, ids, Err(e.into()))?;
                unreachable!("the error was handed on")
            }
        }
    }

    /// Hands ended layers to the keepers. Where the catalog could not be told that they have ended, it is told later.
    fn after_seal<'a>(
        &self,
        opens: impl Iterator<Item = &'a OpenVolume>,
        ended: Vec<Arc<Layer>>,
        ids: &[(VolumeId, LayerId, LayerId)],
        committed: Result<()>,
    ) -> Result<()> {
        for ((open, layer), (.., next)) in opens.zip(ended).zip(ids) {
            match committed {
                Ok(()) => open.sealing.lock().push(layer),
                Err(_) => *open.uncommitted.lock() = Some((layer, *next)),
            }
            open.wake();
        }
        committed
    }

    /// Puts a volume back: a new active layer on the snapshot's; what came after goes, as far as nothing else needs it.
    fn roll_back(self: &Arc<Self>, id: VolumeId, snapshot: SnapshotId) -> Result<()> {
        let _one = self.changing.lock();
        let (volume, snapshot) = self
            .region
            .catalog()?
            .read(|tx| -> Result<_> { Ok((tx.volume(id)?, tx.snapshot(snapshot)?)) })?;
        if snapshot.volume != Some(id) {
            return Err(HostError::refused(
                format!("snapshot {} was not taken of volume {id}", snapshot.name),
                format!("make a volume from it: terrane volume create --snapshot {}", snapshot.name),
            ));
        }
        refuse_in_bin(&snapshot)?;
        let header = vouch::header_of_snapshot(&self.region, &snapshot)?;
        if (volume.cipher, volume.key) != (header.cipher, header.key) {
            let why = "its row says another key than that of its snapshots' layers";
            return Err(HostError::unvouched(format!("volume {id}"), why));
        }
        // Before anything is thrown away: the snapshot can be read.
        let layer = self.region.catalog()?.read(|tx| tx.layer_of_snapshot(snapshot.id))?;
        self.open_chain(layer)?;
        self.refuse_open(&volume)?;
        // What is closed here is thrown away: that it is latched, or can't be written any more, is no reason to keep it.
        if let Err(e) = self.close_volume(id) {
            tracing::warn!(volume = %id, error = %e, "rolled back without having been closed in order");
        }
        // The closing may have committed a seal, a larger size with it.
        let volume = self.region.catalog()?.read(|tx| tx.volume(id))?;
        let spec = LayerSpec {
            account: volume.account,
            volume: id,
            parent: header.points.first().map(|point| (layer, *point)),
            size_bytes: volume.size_bytes.max(snapshot.size_bytes),
            cipher: volume.cipher,
            key: volume.key,
            kind: volume.kind,
            points: header.points,
            turn: self.next_turn(&volume)?,
            proof_key: None,
        };
        let (row, layer) = folder::make_layer(&self.region, &self.cache, &spec)?;
        let Anchor { generation, confirmed } = layer.anchor();
        drop(layer);
        self.region.catalog()?.write(|tx| -> Result<_> {
            tx.set_layer_state(row.id, LayerState::Active)?;
            Ok(tx.set_volume_layers(id, row.id, None)?)
        })?;
        // Of a lower turn until then, the anchor refuses neither.
        let anchor = VolumeAnchor { layer: row.id, turn: spec.turn, generation, confirmed_seq: confirmed };
        self.region.set_volume_anchor(id, &anchor)?;
        for old in [volume.next, Some(volume.active)].into_iter().flatten() {
            folder::remove_unneeded(&self.region, old)?;
        }
        Ok(())
    }

    /// Higher than that of any layer that took the volume's writes. Those may be damaged: then the anchor has to do.
    fn next_turn(&self, volume: &Volume) -> Result<u64> {
        let seen = self.region.volume_anchor(volume.id)?.map_or(0, |anchor| anchor.turn);
        let row = self.region.catalog()?.read(|tx| tx.find_layer(volume.active))?;
        let header = row.and_then(|row| folder::checked_header(&self.region, &row).ok());
        Ok(seen.max(header.map_or(0, |(header, _)| header.turn)) + 1)
    }

    /// Rule 21: a larger layer takes over, as at a seal.
    fn resize(self: &Arc<Self>, id: VolumeId, size_bytes: u64, keep: bool) -> Result<()> {
        let _one = self.changing.lock();
        let open = self.open_volume_locked(id, keep)?;
        self.settle(&open)?;
        let volume = self.region.catalog()?.read(|tx| tx.volume(id))?;
        if size_bytes < volume.size_bytes {
            let message = format!("volume {id} has {} bytes: it can't shrink", volume.size_bytes);
            return Err(HostError::refused(message, "make a smaller volume and copy the files"));
        }
        if size_bytes > VOLUME_BYTES_MAX || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(HostError::refused("a size is a multiple of 4096, at most 64 TiB", "choose another"));
        }
        if size_bytes == volume.size_bytes {
            return Ok(());
        }
        self.seal_volume(&open, size_bytes)
    }

    /// A layer of this size takes over, without a snapshot.
    pub(super) fn seal_volume(&self, open: &OpenVolume, size_bytes: u64) -> Result<()> {
        self.settle(open)?;
        let next = self.take_next(open, size_bytes)?;
        let ids = [next.ids()];
        let ended = self.seal(vec![next], &ids)?;
        let committed = self.commit_seals(&with_layers(&ids, &ended), |_| Ok(()));
        self.after_seal(std::iter::once(open), ended, &ids, committed)
    }

    fn delete_volume(self: &Arc<Self>, id: VolumeId) -> Result<()> {
        let _one = self.changing.lock();
        let volume = self.region.catalog()?.read(|tx| tx.volume(id))?;
        self.refuse_open(&volume)?;
        if let Some(open) = self.find_live(id) {
            // Snapshots still need its sealed layers; one that can't be finished now is when it is opened anew.
            if let Err(e) = self.finish_seals(&open) {
                tracing::warn!(volume = %id, error = %e, "deleted before its seals were finished");
            }
            self.drop_volume(id);
        }
        let volume = self.region.catalog()?.read(|tx| tx.volume(id))?;
        self.region.catalog()?.write(|tx| tx.delete_volume(id))?;
        for layer in [volume.next, Some(volume.active)].into_iter().flatten() {
            folder::remove_unneeded(&self.region, layer)?;
        }
        Ok(self.region.remove_volume_anchor(id)?)
    }

    /// Where nobody has the volume open, nobody can from here on; the caller drops or closes it.
    fn refuse_open(&self, volume: &Volume) -> Result<()> {
        let Some(open) = self.find_live(volume.id) else { return Ok(()) };
        // The kernel tells of a close a moment after it returned.
        let since = std::time::Instant::now();
        while !open.openers().is_empty() && since.elapsed() < CLOSE_LAG {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let Err(openers) = open.retire() else { return Ok(()) };
        let what = volume.name.as_ref().map_or_else(|| volume.id.to_string(), ToString::to_string);
        Err(HostError::InUse { what: format!("volume {what}"), by: super::owner::words_of_openers(&openers) })
    }
}

fn with_layers<'a>(
    ids: &[(VolumeId, LayerId, LayerId)],
    ended: &'a [Arc<Layer>],
) -> Vec<(VolumeId, &'a Layer, LayerId)> {
    ids.iter().zip(ended).map(|((volume, _, next), ended)| (*volume, &**ended, *next)).collect()
}

impl Host {
    /// The row of a snapshot: of the layer that was sealed for it, or of the one below where nothing was written.
    fn snapshot_row(&self, w: &Wanted, sealed: Option<&Arc<Layer>>, shared: &Shared) -> Result<Snapshot> {
        let (layer, point) = match sealed {
            Some(layer) => (layer.id(), vouch::own_point(&self.region, layer)?),
            None => {
                let stack = w.open.disk.stack();
                let top = stack.chain.layers().last().expect("asked before the seal");
                (top.id(), vouch::own_point(&self.region, top)?)
            }
        };
        let row = Snapshot {
            id: w.id,
            account: shared.account,
            name: w.name.clone(),
            description: shared.description.clone(),
            layer: Some(layer),
            volume: Some(w.volume.id),
            size_bytes: w.volume.size_bytes,
            kind: w.volume.kind,
            cipher: w.volume.cipher,
            key: w.volume.key,
            state: SnapshotState::Success,
            progress_percent: 100,
            created_by: "snapshot create".into(),
            source_snapshot: None,
            source_region: None,
            changed_bytes: sealed.map_or(0, |layer| layer.data_sectors() * SECTOR_BYTES),
            shipped_bytes: 0,
            stored_bytes: 0,
            group: shared.group,
            retention_days: shared.retention_days,
            created_at: self.region.now(),
            mac: None,
        };
        vouch::sign_snapshot(&self.region, row, point)
    }
}
