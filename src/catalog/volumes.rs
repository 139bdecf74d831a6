//! Volumes: which layers make a disk now.

use jiff::Timestamp;
use rusqlite::params;

use super::row::{Fields, stored, worded};
use super::{CatalogError, Kind, ReadTx, WriteTx};
use crate::crypto::Cipher;
use crate::ids::{AccountId, KeyId, LayerId, Name, SnapshotId, VolumeId};

worded! {
    /// What a disk is for; it travels with its snapshots and their copies.
    DiskKind {
        /// A machine starts from it.
        System = "system",
        /// Anything else.
        Data = "data",
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// The account that owns it.
    pub account: AccountId,
    /// Its name, unique in the region.
    pub name: Option<Name>,
    /// Its size.
    pub size_bytes: u64,
    /// What it is for.
    pub kind: DiskKind,
    /// How its sectors are encrypted.
    pub cipher: Cipher,
    /// The key of its layers; none: it is plain.
    pub key: Option<KeyId>,
    /// The layer that takes its writes.
    pub active: LayerId,
    /// The layer that stands ready to take over.
    pub next: Option<LayerId>,
    /// The snapshot it was made from, which may be gone.
    pub source_snapshot: Option<SnapshotId>,
    /// It is being deleted.
    pub deleting: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

pub(super) const VOLUME: &str =
    "SELECT id, account, name, size_bytes, kind, cipher, key, active, next, source_snapshot, deleting,
    created_at FROM volumes";

pub(super) fn volume(f: &Fields) -> Result<Volume, CatalogError> {
    Ok(Volume {
        id: f.parsed("id", "a volume's id")?,
        account: f.parsed("account", "an account's id")?,
        name: f.opt_parsed("name", "a name")?,
        size_bytes: f.disk_size("size_bytes")?,
        kind: f.parsed("kind", "system or data")?,
        cipher: f.parsed("cipher", "a cipher")?,
        key: f.opt_parsed("key", "a key's id")?,
        active: f.parsed("active", "a layer's id")?,
        next: f.opt_parsed("next", "a layer's id")?,
        source_snapshot: f.opt_parsed("source_snapshot", "a snapshot's id")?,
        deleting: f.flag("deleting")?,
        created_at: f.time("created_at")?,
    })
}

impl ReadTx<'_> {
    /// All volumes, oldest first, those being deleted included.
    pub fn volumes(&self) -> Result<Vec<Volume>, CatalogError> {
        self.list(&format!("{VOLUME} ORDER BY created_at, id"), [], volume)
    }

    /// The volume of this id.
    pub fn find_volume(&self, id: VolumeId) -> Result<Option<Volume>, CatalogError> {
        self.first(&format!("{VOLUME} WHERE id = ?1"), [id.to_string()], volume)
    }

    /// The volume of this id, which must be there.
    pub fn volume(&self, id: VolumeId) -> Result<Volume, CatalogError> {
        self.find_volume(id)?.ok_or_else(|| self.not_found(Kind::Volume, id))
    }

    /// The volume of this name.
    pub fn find_volume_by_name(&self, name: &str) -> Result<Option<Volume>, CatalogError> {
        self.first(&format!("{VOLUME} WHERE name = ?1"), [name], volume)
    }

    /// Volumes under one key, oldest first.
    pub fn volumes_of_key(&self, key: KeyId) -> Result<Vec<Volume>, CatalogError> {
        self.list(&format!("{VOLUME} WHERE key = ?1 ORDER BY created_at, id"), [key.to_string()], volume)
    }
}

impl WriteTx<'_> {
    /// Adds a volume; its layers are there already.
    pub fn insert_volume(&self, row: &Volume) -> Result<(), CatalogError> {
        let id = row.id.to_string();
        if let Some(name) = &row.name {
            self.refuse_id_as_name(name)?;
        }
        self.insert(
            Kind::Volume,
            row.name.as_ref().map_or(id.as_str(), Name::as_str),
            "INSERT INTO volumes (id, account, name, size_bytes, kind, cipher, key, active, next, source_snapshot,
             deleting, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            params![
                id,
                row.account.to_string(),
                row.name.as_ref().map(Name::as_str),
                stored(row.size_bytes)?,
                row.kind.as_str(),
                row.cipher.to_string(),
                row.key.map(|v| v.to_string()),
                row.active.to_string(),
                row.next.map(|v| v.to_string()),
                row.source_snapshot.map(|v| v.to_string()),
                row.deleting,
                row.created_at.as_microsecond()
            ],
        )
    }

    /// Sets the layers that make the disk now.
    pub fn set_volume_layers(
        &self,
        id: VolumeId,
        active: LayerId,
        next: Option<LayerId>,
    ) -> Result<(), CatalogError> {
        self.update(
            Kind::Volume,
            id,
            "UPDATE volumes SET active = ?2, next = ?3 WHERE id = ?1",
            params![id.to_string(), active.to_string(), next.map(|v| v.to_string())],
        )
    }

    /// Sets the layer that stands ready to take over.
    pub fn set_volume_next(&self, id: VolumeId, next: Option<LayerId>) -> Result<(), CatalogError> {
        self.update(
            Kind::Volume,
            id,
            "UPDATE volumes SET next = ?2 WHERE id = ?1",
            params![id.to_string(), next.map(|v| v.to_string())],
        )
    }

    /// Sets a volume's size.
    pub fn set_volume_size(&self, id: VolumeId, size_bytes: u64) -> Result<(), CatalogError> {
        self.update(
            Kind::Volume,
            id,
            "UPDATE volumes SET size_bytes = ?2 WHERE id = ?1",
            params![id.to_string(), stored(size_bytes)?],
        )
    }

    /// Gives a volume another name, or none.
    pub fn set_volume_name(&self, id: VolumeId, name: Option<&Name>) -> Result<(), CatalogError> {
        if let Some(name) = name {
            self.refuse_id_as_name(name)?;
        }
        let text = name.map(Name::as_str);
        self.volume(id)?;
        self.insert(
            Kind::Volume,
            text.unwrap_or_default(),
            "UPDATE volumes SET name = ?2 WHERE id = ?1",
            params![id.to_string(), text],
        )
    }

    /// Marks a volume as being deleted, which frees its name.
    pub fn set_volume_deleting(&self, id: VolumeId) -> Result<(), CatalogError> {
        self.update(
            Kind::Volume,
            id,
            "UPDATE volumes SET deleting = 1, name = NULL WHERE id = ?1",
            [id.to_string()],
        )
    }

    /// Takes a volume's row and tags away.
    pub fn delete_volume(&self, id: VolumeId) -> Result<(), CatalogError> {
        self.delete_tags(&id.to_string())?;
        self.update(Kind::Volume, id, "DELETE FROM volumes WHERE id = ?1", [id.to_string()])
    }
}
