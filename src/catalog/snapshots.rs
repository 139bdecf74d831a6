//! Snapshots: names for sealed layers. Several may name the same layer.

use jiff::Timestamp;
use rusqlite::params;

use super::row::{Fields, stored, worded};
use super::{CatalogError, DiskKind, Kind, ReadTx, WriteTx};
use crate::crypto::Cipher;
use crate::ids::{AccountId, GroupId, KeyId, LayerId, Name, Point, SnapshotId, VolumeId};

worded! {
    /// How far a snapshot is.
    SnapshotState {
        /// A copy that is being made.
        Processing = "processing",
        /// Whole.
        Success = "success",
        /// A copy that could not be made.
        Failed = "failed",
        /// Whole, and in the bin.
        Deleted = "deleted",
    }
}

impl SnapshotState {
    /// Its disk is there, whole: it is no copy that is being made or could not be.
    pub fn is_whole(self) -> bool {
        matches!(self, Self::Success | Self::Deleted)
    }
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The account that owns it.
    pub account: AccountId,
    /// Its name, unique among those of the region that are not in the bin.
    pub name: Name,
    /// Free words, 2 to 256 characters.
    pub description: Option<String>,
    /// The layer it names; none: of a copy that waits.
    pub layer: Option<LayerId>,
    /// The volume it was taken of, which may be gone; none for a copy.
    pub volume: Option<VolumeId>,
    /// Size of the disk.
    pub size_bytes: u64,
    /// What the disk was for.
    pub kind: DiskKind,
    /// How its sectors are encrypted.
    pub cipher: Cipher,
    /// The key of its layers; none: it is plain.
    pub key: Option<KeyId>,
    /// How far it is.
    pub state: SnapshotState,
    /// The same in percent.
    pub progress_percent: u32,
    /// The command that made it: `snapshot create`, `snapshot copy`.
    pub created_by: String,
    /// What a copy was made of.
    pub source_snapshot: Option<String>,
    /// And in which region.
    pub source_region: Option<String>,
    /// Bytes that changed since the snapshot before, or since a copy's base.
    pub changed_bytes: u64,
    /// Bytes a copy shipped.
    pub shipped_bytes: u64,
    /// Bytes its layer takes.
    pub stored_bytes: u64,
    /// Snapshots of the same moment share it.
    pub group: Option<GroupId>,
    /// Days after which it may go.
    pub retention_days: Option<u32>,
    /// When it was taken.
    pub created_at: Timestamp,
    /// Vouches for what never changes of it, and for whose moment it is.
    pub mac: Option<[u8; 16]>,
}

pub(super) const SNAPSHOT: &str = "SELECT id, account, name, description, layer, volume, size_bytes, kind, cipher, key, state,
    progress_percent, created_by, source_snapshot, source_region, changed_bytes, shipped_bytes, stored_bytes, group_id,
    retention_days, created_at, mac FROM snapshots";

pub(super) fn snapshot(f: &Fields) -> Result<Snapshot, CatalogError> {
    let (state, layer) = (f.parsed("state", "a snapshot's state")?, f.opt_parsed("layer", "a layer's id")?);
    if layer.is_none() && SnapshotState::is_whole(state) {
        return Err(f.corrupted("layer", "a layer's id", "nothing"));
    }
    let retention = f.opt_unsigned("retention_days")?;
    let retention = retention
        .map(|days| u32::try_from(days).map_err(|_| f.corrupted("retention_days", "days", &days.to_string())))
        .transpose()?;
    Ok(Snapshot {
        id: f.parsed("id", "a snapshot's id")?,
        account: f.parsed("account", "an account's id")?,
        name: f.parsed("name", "a name")?,
        description: f.opt_text("description")?.map(str::to_owned),
        layer,
        volume: f.opt_parsed("volume", "a volume's id")?,
        size_bytes: f.disk_size("size_bytes")?,
        kind: f.parsed("kind", "system or data")?,
        cipher: f.parsed("cipher", "a cipher")?,
        key: f.opt_parsed("key", "a key's id")?,
        state,
        progress_percent: f.small("progress_percent", 100)?,
        created_by: f.text("created_by")?.to_owned(),
        source_snapshot: f.opt_text("source_snapshot")?.map(str::to_owned),
        source_region: f.opt_text("source_region")?.map(str::to_owned),
        changed_bytes: f.unsigned("changed_bytes")?,
        shipped_bytes: f.unsigned("shipped_bytes")?,
        stored_bytes: f.unsigned("stored_bytes")?,
        group: f.opt_parsed("group_id", "a group's id")?,
        retention_days: retention,
        created_at: f.time("created_at")?,
        // Of another length it vouches for nothing.
        mac: f.opt_blob("mac", 64)?.and_then(|mac| mac.try_into().ok()),
    })
}

impl ReadTx<'_> {
    /// All snapshots, those in the bin too, oldest first.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, CatalogError> {
        self.list(&format!("{SNAPSHOT} ORDER BY created_at, id"), [], snapshot)
    }

    /// The snapshot of this id.
    pub fn find_snapshot(&self, id: SnapshotId) -> Result<Option<Snapshot>, CatalogError> {
        self.first(&format!("{SNAPSHOT} WHERE id = ?1"), [id.to_string()], snapshot)
    }

    /// The snapshot of this id, which must be there.
    pub fn snapshot(&self, id: SnapshotId) -> Result<Snapshot, CatalogError> {
        self.find_snapshot(id)?.ok_or_else(|| self.not_found(Kind::Snapshot, id))
    }

    /// The layer of a snapshot. A copy that waits has none.
    pub fn layer_of_snapshot(&self, id: SnapshotId) -> Result<LayerId, CatalogError> {
        let row = self.snapshot(id)?;
        row.layer.ok_or_else(|| CatalogError::Refused {
            what: format!("snapshot {} is not complete: its copy has not begun", row.name),
        })
    }

    /// The snapshot of this name. What is in the bin has none.
    pub fn find_snapshot_by_name(&self, name: &str) -> Result<Option<Snapshot>, CatalogError> {
        self.first(&format!("{SNAPSHOT} WHERE name = ?1 AND state <> 'deleted'"), [name], snapshot)
    }

    /// Snapshots that name this layer, oldest first.
    pub fn snapshots_of_layer(&self, layer: LayerId) -> Result<Vec<Snapshot>, CatalogError> {
        self.list(
            &format!("{SNAPSHOT} WHERE layer = ?1 ORDER BY created_at, id"),
            [layer.to_string()],
            snapshot,
        )
    }

    /// Snapshots of one moment, without those in the bin, by name.
    pub fn snapshots_of_group(&self, group: GroupId) -> Result<Vec<Snapshot>, CatalogError> {
        self.list(
            &format!("{SNAPSHOT} WHERE group_id = ?1 AND state <> 'deleted' ORDER BY name"),
            [group.to_string()],
            snapshot,
        )
    }

    /// Copies that are not whole, oldest first.
    pub fn processing_snapshots(&self) -> Result<Vec<Snapshot>, CatalogError> {
        self.list(&format!("{SNAPSHOT} WHERE state = 'processing' ORDER BY created_at, id"), [], snapshot)
    }

    /// Snapshots taken of this volume, oldest first.
    pub fn snapshots_of_volume(&self, volume: VolumeId) -> Result<Vec<Snapshot>, CatalogError> {
        self.list(
            &format!("{SNAPSHOT} WHERE volume = ?1 ORDER BY created_at, id"),
            [volume.to_string()],
            snapshot,
        )
    }

    /// Snapshots under one key, oldest first.
    pub fn snapshots_of_key(&self, key: KeyId) -> Result<Vec<Snapshot>, CatalogError> {
        self.list(&format!("{SNAPSHOT} WHERE key = ?1 ORDER BY created_at, id"), [key.to_string()], snapshot)
    }

    /// Whole snapshots whose layer was sealed at `point`, newest first: what a copy of that moment may build on. So it may on what
    /// is in the bin.
    pub fn snapshots_at_point(&self, point: Point) -> Result<Vec<Snapshot>, CatalogError> {
        self.list(
            &format!(
                "{SNAPSHOT} WHERE state IN ('success', 'deleted') AND layer IN (SELECT id FROM layers WHERE point = ?1)
                 ORDER BY created_at DESC, id"
            ),
            [point.to_string()],
            snapshot,
        )
    }
}

impl WriteTx<'_> {
    /// Adds a snapshot; its layer, if it has one, is there already.
    pub fn insert_snapshot(&self, row: &Snapshot) -> Result<(), CatalogError> {
        self.refuse_id_as_name(&row.name)?;
        if let Some(layer) = row.layer {
            self.refuse_unsteady(layer)?;
        }
        if let Some(text) = &row.description {
            check_description(text)?;
        }
        self.insert(
            Kind::Snapshot,
            row.name.as_str(),
            "INSERT INTO snapshots (id, account, name, description, layer, volume, size_bytes, kind, cipher, key, state,
             progress_percent, created_by, source_snapshot, source_region, changed_bytes, shipped_bytes, stored_bytes,
             group_id, retention_days, created_at, mac) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13,
             ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)",
            params![
                row.id.to_string(),
                row.account.to_string(),
                row.name.as_str(),
                row.description,
                row.layer.map(|v| v.to_string()),
                row.volume.map(|v| v.to_string()),
                stored(row.size_bytes)?,
                row.kind.as_str(),
                row.cipher.to_string(),
                row.key.map(|v| v.to_string()),
                row.state.as_str(),
                row.progress_percent.min(100),
                row.created_by,
                row.source_snapshot,
                row.source_region,
                stored(row.changed_bytes)?,
                stored(row.shipped_bytes)?,
                stored(row.stored_bytes)?,
                row.group.map(|v| v.to_string()),
                row.retention_days,
                row.created_at.as_microsecond(),
                row.mac.map(|mac| mac.to_vec())
            ],
        )
    }

    /// Gives a copy that waits its layer, its MAC and what it will carry; whether it still waits (else it was cancelled, and
    /// nothing is changed).
    pub fn begin_snapshot(
        &self,
        id: SnapshotId,
        layer: LayerId,
        mac: Option<[u8; 16]>,
        changed_bytes: u64,
    ) -> Result<bool, CatalogError> {
        self.refuse_unsteady(layer)?;
        let changed = self.execute(
            "UPDATE snapshots SET layer = ?2, mac = ?3, changed_bytes = ?4
             WHERE id = ?1 AND state = 'processing' AND layer IS NULL",
            params![id.to_string(), layer.to_string(), mac.map(|mac| mac.to_vec()), stored(changed_bytes)?],
        )?;
        Ok(changed == 1)
    }

    /// Records a copy's progress; whether it is still `processing` (else it was cancelled, and nothing is changed).
    pub fn set_snapshot_progress(
        &self,
        id: SnapshotId,
        percent: u32,
        shipped_bytes: u64,
    ) -> Result<bool, CatalogError> {
        let changed = self.execute(
            "UPDATE snapshots SET progress_percent = ?2, shipped_bytes = ?3 WHERE id = ?1 AND state = 'processing'",
            params![id.to_string(), percent.min(100), stored(shipped_bytes)?],
        )?;
        Ok(changed == 1)
    }

    /// Ends a copy well; whether it was still `processing` (else it was cancelled, and nothing is changed).
    pub fn finish_snapshot(
        &self,
        id: SnapshotId,
        changed_bytes: u64,
        shipped_bytes: u64,
        stored_bytes: u64,
    ) -> Result<bool, CatalogError> {
        let changed = self.execute(
            "UPDATE snapshots SET state = 'success', progress_percent = 100, changed_bytes = ?2, shipped_bytes = ?3,
             stored_bytes = ?4 WHERE id = ?1 AND state = 'processing'",
            params![id.to_string(), stored(changed_bytes)?, stored(shipped_bytes)?, stored(stored_bytes)?],
        )?;
        Ok(changed == 1)
    }

    /// Ends a copy badly; whether it was still `processing`.
    pub fn fail_snapshot(&self, id: SnapshotId) -> Result<bool, CatalogError> {
        let changed = self.execute(
            "UPDATE snapshots SET state = 'failed' WHERE id = ?1 AND state = 'processing'",
            [id.to_string()],
        )?;
        Ok(changed == 1)
    }

    /// Records the bytes that changed before it and the bytes its layer takes.
    pub fn set_snapshot_bytes(
        &self,
        id: SnapshotId,
        changed: u64,
        stored_bytes: u64,
    ) -> Result<(), CatalogError> {
        self.update(
            Kind::Snapshot,
            id,
            "UPDATE snapshots SET changed_bytes = ?2, stored_bytes = ?3 WHERE id = ?1",
            params![id.to_string(), stored(changed)?, stored(stored_bytes)?],
        )
    }

    /// Changes a snapshot's description or retention.
    pub fn set_snapshot_details(
        &self,
        id: SnapshotId,
        description: Option<&str>,
        retention_days: Option<u32>,
    ) -> Result<(), CatalogError> {
        if let Some(text) = description {
            check_description(text)?;
        }
        self.update(
            Kind::Snapshot,
            id,
            "UPDATE snapshots SET description = ?2, retention_days = ?3 WHERE id = ?1",
            params![id.to_string(), description, retention_days],
        )
    }

    /// Takes a snapshot's row, all that is said of it, and its place in the bin away; its layer stays.
    pub fn delete_snapshot(&self, id: SnapshotId) -> Result<(), CatalogError> {
        self.delete_tags(&id.to_string())?;
        self.set_retention_mac(id, None)?;
        self.delete_bin_entry(id)?;
        self.update(Kind::Snapshot, id, "DELETE FROM snapshots WHERE id = ?1", [id.to_string()])
    }
}

/// Refuses free words that are too short or too long.
pub fn check_description(text: &str) -> Result<(), CatalogError> {
    if (2..=256).contains(&text.chars().count()) {
        return Ok(());
    }
    Err(CatalogError::Refused { what: "a description has 2 to 256 characters".into() })
}
