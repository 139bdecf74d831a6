//! Layers, and for each the list of points it and all below it were sealed at.

use std::collections::HashSet;

use jiff::Timestamp;
use rusqlite::params;

use super::row::{Fields, stored, worded};
use super::{CatalogError, Kind, ReadTx, WriteTx};
use crate::crypto::Cipher;
use crate::ids::{AccountId, KeyId, LayerId, Point, SnapshotId, VolumeId};

const WRAPPED_BYTES_MAX: usize = 1024;

worded! {
    /// Where a layer stands in its life.
    LayerState {
        /// Its row is there, its folder may not be whole yet.
        Preparing = "preparing",
        /// It takes a volume's writes.
        Active = "active",
        /// It stands ready to take over from the active one.
        Next = "next",
        /// Its content never changes.
        Sealed = "sealed",
        /// Sealed; in a fold, it takes from its parent what it lacks. What is read through it stays the same.
        Filling = "filling",
        /// Sealed; in a fold, it takes the sectors and then the place of its child. Nothing else may stand on it.
        Absorbing = "absorbing",
        /// Its folder is being removed.
        Deleting = "deleting",
    }
}

impl LayerState {
    /// A fold is writing to it.
    pub fn is_folding(self) -> bool {
        matches!(self, Self::Filling | Self::Absorbing)
    }

    /// Its content never changes.
    pub fn is_sealed(self) -> bool {
        self == Self::Sealed || self.is_folding()
    }
}

/// A layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Its id, and the name of its folder.
    pub id: LayerId,
    /// The account that owns it.
    pub account: AccountId,
    /// The volume it was made for, which may be gone.
    pub volume: Option<VolumeId>,
    /// The layer below.
    pub parent: Option<LayerId>,
    /// Size of the disk while it was written.
    pub size_bytes: u64,
    /// Where it stands.
    pub state: LayerState,
    /// How its sectors are encrypted.
    pub cipher: Cipher,
    /// The key that wraps its data key; none: the root key does.
    pub key: Option<KeyId>,
    /// That key's version; 0 for the root key.
    pub key_version: u32,
    /// Its data key, wrapped.
    pub wrapped_key: Vec<u8>,
    /// The moment it was sealed at.
    pub point: Option<Point>,
    /// Its superblock's generation when it was sealed.
    pub sealed_generation: Option<u64>,
    /// That superblock's MAC.
    pub sealed_mac: Option<[u8; 16]>,
    /// Bytes its folder takes.
    pub stored_bytes: u64,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Who needs a layer: it goes only when nobody does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerNeeds {
    /// Volumes it is the active layer of.
    pub active_of: Vec<VolumeId>,
    /// Volumes it is the next layer of.
    pub next_of: Vec<VolumeId>,
    /// Snapshots that name it.
    pub snapshots: Vec<SnapshotId>,
    /// Layers right above it.
    pub children: Vec<LayerId>,
}

impl LayerNeeds {
    /// Nobody needs it.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}

const LAYER: &str =
    "SELECT id, account, volume, parent, size_bytes, state, cipher, key, key_version, wrapped_key, point,
    sealed_generation, sealed_mac, stored_bytes, created_at FROM layers";

fn layer(f: &Fields) -> Result<Layer, CatalogError> {
    let mac = f
        .opt_blob("sealed_mac", 16)?
        .map(|bytes| bytes.try_into().map_err(|_| f.corrupted("sealed_mac", "16 bytes", "fewer")))
        .transpose()?;
    Ok(Layer {
        id: f.parsed("id", "a layer's id")?,
        account: f.parsed("account", "an account's id")?,
        volume: f.opt_parsed("volume", "a volume's id")?,
        parent: f.opt_parsed("parent", "a layer's id")?,
        size_bytes: f.disk_size("size_bytes")?,
        state: f.parsed("state", "a layer's state")?,
        cipher: f.parsed("cipher", "a cipher")?,
        key: f.opt_parsed("key", "a key's id")?,
        key_version: f.small("key_version", u32::MAX)?,
        wrapped_key: f.blob("wrapped_key", WRAPPED_BYTES_MAX)?,
        point: f.opt_parsed("point", "a point")?,
        sealed_generation: f.opt_unsigned("sealed_generation")?,
        sealed_mac: mac,
        stored_bytes: f.unsigned("stored_bytes")?,
        created_at: f.time("created_at")?,
    })
}

impl ReadTx<'_> {
    /// All layers, oldest first.
    pub fn layers(&self) -> Result<Vec<Layer>, CatalogError> {
        self.list(&format!("{LAYER} ORDER BY created_at, id"), [], layer)
    }

    /// The highest version of a key that a layer's row says to be under; 0 without one.
    pub fn highest_key_version(&self, key: KeyId) -> Result<u32, CatalogError> {
        let sql = "SELECT coalesce(max(key_version), 0) AS version FROM layers WHERE key = ?1";
        let found = self.first(sql, [key.to_string()], |f| f.small("version", u32::MAX))?;
        Ok(found.unwrap_or(0))
    }

    /// Layers in one state, oldest first.
    pub fn layers_in_state(&self, state: LayerState) -> Result<Vec<Layer>, CatalogError> {
        self.list(&format!("{LAYER} WHERE state = ?1 ORDER BY created_at, id"), [state.as_str()], layer)
    }

    /// Layers that no volume, snapshot or layer refers to, but for those that are being made; oldest first.
    pub fn unneeded_layers(&self) -> Result<Vec<Layer>, CatalogError> {
        let sql = format!(
            "{LAYER} WHERE state <> 'preparing'
             AND NOT EXISTS (SELECT 1 FROM volumes WHERE active = layers.id OR next = layers.id)
             AND NOT EXISTS (SELECT 1 FROM snapshots WHERE layer = layers.id)
             AND NOT EXISTS (SELECT 1 FROM layers AS above WHERE above.parent = layers.id)
             ORDER BY created_at, id"
        );
        self.list(&sql, [], layer)
    }

    /// The layer of this id.
    pub fn find_layer(&self, id: LayerId) -> Result<Option<Layer>, CatalogError> {
        self.first(&format!("{LAYER} WHERE id = ?1"), [id.to_string()], layer)
    }

    /// The layer of this id, which must be there.
    pub fn layer(&self, id: LayerId) -> Result<Layer, CatalogError> {
        self.find_layer(id)?.ok_or_else(|| self.not_found(Kind::Layer, id))
    }

    /// A layer and all below it, nearest first. A chain that bites its tail is [`CatalogError::Corrupted`].
    pub fn layer_chain(&self, id: LayerId) -> Result<Vec<Layer>, CatalogError> {
        let mut chain = vec![self.layer(id)?];
        let mut met = HashSet::from([id]);
        while let Some(parent) = chain.last().and_then(|layer| layer.parent) {
            if !met.insert(parent) {
                return Err(CatalogError::Corrupted {
                    region: self.region().to_owned(),
                    what: format!("the chain of layer {id}"),
                    expected: "each layer once".into(),
                    found: format!("{parent} twice"),
                });
            }
            chain.push(self.layer(parent)?);
        }
        Ok(chain)
    }

    /// Layers right above this one.
    pub fn children_of_layer(&self, id: LayerId) -> Result<Vec<Layer>, CatalogError> {
        self.list(&format!("{LAYER} WHERE parent = ?1 ORDER BY created_at, id"), [id.to_string()], layer)
    }

    /// A layer's points, nearest first: its own once sealed, then those of all below it.
    pub fn layer_points(&self, id: LayerId) -> Result<Vec<Point>, CatalogError> {
        self.list(
            "SELECT point, layer AS id FROM layer_points WHERE layer = ?1 ORDER BY place",
            [id.to_string()],
            |f| f.parsed("point", "a point"),
        )
    }

    /// Who needs this layer.
    pub fn layer_needs(&self, id: LayerId) -> Result<LayerNeeds, CatalogError> {
        let id = id.to_string();
        let volume = |f: &Fields| f.parsed("id", "a volume's id");
        Ok(LayerNeeds {
            active_of: self.list("SELECT id FROM volumes WHERE active = ?1 ORDER BY id", [&id], volume)?,
            next_of: self.list("SELECT id FROM volumes WHERE next = ?1 ORDER BY id", [&id], volume)?,
            snapshots: self.list("SELECT id FROM snapshots WHERE layer = ?1 ORDER BY id", [&id], |f| {
                f.parsed("id", "a snapshot's id")
            })?,
            children: self.list("SELECT id FROM layers WHERE parent = ?1 ORDER BY id", [&id], |f| {
                f.parsed("id", "a layer's id")
            })?,
        })
    }
}

impl WriteTx<'_> {
    /// Adds a layer with its list of points, nearest first (a new layer's list is its parent's).
    pub fn insert_layer(&self, row: &Layer, points: &[Point]) -> Result<(), CatalogError> {
        let id = row.id.to_string();
        if let Some(parent) = row.parent {
            self.refuse_unsteady(parent)?;
        }
        self.insert(
            Kind::Layer,
            &id,
            "INSERT INTO layers (id, account, volume, parent, size_bytes, state, cipher, key, key_version, wrapped_key,
             point, sealed_generation, sealed_mac, stored_bytes, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            params![
                id,
                row.account.to_string(),
                row.volume.map(|v| v.to_string()),
                row.parent.map(|v| v.to_string()),
                stored(row.size_bytes)?,
                row.state.as_str(),
                row.cipher.to_string(),
                row.key.map(|v| v.to_string()),
                row.key_version,
                row.wrapped_key,
                row.point.map(|v| v.to_string()),
                row.sealed_generation.map(stored).transpose()?,
                row.sealed_mac.map(|v| v.to_vec()),
                stored(row.stored_bytes)?,
                row.created_at.as_microsecond()
            ],
        )?;
        for (place, point) in (0i64..).zip(points) {
            self.execute(
                "INSERT INTO layer_points (layer, place, point) VALUES (?1, ?2, ?3)",
                params![id, place, point.to_string()],
            )?;
        }
        Ok(())
    }

    /// Nothing new may name, or stand on, a layer that a fold is taking away or putting in another's place, or that goes.
    pub(super) fn refuse_unsteady(&self, id: LayerId) -> Result<(), CatalogError> {
        match self.find_layer(id)?.map(|row| row.state) {
            Some(LayerState::Absorbing | LayerState::Deleting) => Err(self.not_found(Kind::Layer, id)),
            _ if self.is_parent_in_fold(id)? => Err(self.not_found(Kind::Layer, id)),
            _ => Ok(()),
        }
    }

    /// Replaces a layer's list of points, nearest first.
    pub fn set_layer_points(&self, id: LayerId, points: &[Point]) -> Result<(), CatalogError> {
        self.execute("DELETE FROM layer_points WHERE layer = ?1", [id.to_string()])?;
        for (place, point) in (0i64..).zip(points) {
            self.execute(
                "INSERT INTO layer_points (layer, place, point) VALUES (?1, ?2, ?3)",
                params![id.to_string(), place, point.to_string()],
            )?;
        }
        Ok(())
    }

    /// Records that a layer's writes ended at `point`: its state is sealed, the point heads its list.
    pub fn seal_layer(&self, id: LayerId, point: Point) -> Result<(), CatalogError> {
        let text = id.to_string();
        self.update(
            Kind::Layer,
            id,
            "UPDATE layers SET state = 'sealed', point = ?2 WHERE id = ?1",
            [&text, &point.to_string()],
        )?;
        self.execute(
            "INSERT INTO layer_points (layer, place, point)
             SELECT ?1, coalesce(min(place), 1) - 1, ?2 FROM layer_points WHERE layer = ?1",
            [&text, &point.to_string()],
        )
        .map(drop)
    }

    /// Records the superblock a sealed layer ended with.
    pub fn set_layer_seal(&self, id: LayerId, generation: u64, mac: [u8; 16]) -> Result<(), CatalogError> {
        self.update(
            Kind::Layer,
            id,
            "UPDATE layers SET sealed_generation = ?2, sealed_mac = ?3 WHERE id = ?1",
            params![id.to_string(), stored(generation)?, mac.to_vec()],
        )
    }

    /// Moves a layer to another state.
    pub fn set_layer_state(&self, id: LayerId, state: LayerState) -> Result<(), CatalogError> {
        self.update(
            Kind::Layer,
            id,
            "UPDATE layers SET state = ?2 WHERE id = ?1",
            params![id.to_string(), state.as_str()],
        )
    }

    /// Moves a layer from one state to another; whether it was in the first.
    pub fn move_layer_state(
        &self,
        id: LayerId,
        from: LayerState,
        to: LayerState,
    ) -> Result<bool, CatalogError> {
        let changed = self.execute(
            "UPDATE layers SET state = ?3 WHERE id = ?1 AND state = ?2",
            params![id.to_string(), from.as_str(), to.as_str()],
        )?;
        Ok(changed == 1)
    }

    /// Records the bytes a layer's folder takes.
    pub fn set_layer_stored_bytes(&self, id: LayerId, bytes: u64) -> Result<(), CatalogError> {
        self.update(
            Kind::Layer,
            id,
            "UPDATE layers SET stored_bytes = ?2 WHERE id = ?1",
            params![id.to_string(), stored(bytes)?],
        )
    }

    /// Puts a layer on another one.
    pub fn set_layer_parent(&self, id: LayerId, parent: Option<LayerId>) -> Result<(), CatalogError> {
        self.update(
            Kind::Layer,
            id,
            "UPDATE layers SET parent = ?2 WHERE id = ?1",
            params![id.to_string(), parent.map(|v| v.to_string())],
        )
    }

    /// Records how a layer's data key is wrapped now.
    pub fn set_layer_key(
        &self,
        id: LayerId,
        key: Option<KeyId>,
        version: u32,
        wrapped: &[u8],
    ) -> Result<(), CatalogError> {
        self.update(
            Kind::Layer,
            id,
            "UPDATE layers SET key = ?2, key_version = ?3, wrapped_key = ?4 WHERE id = ?1",
            params![id.to_string(), key.map(|v| v.to_string()), version, wrapped],
        )
    }

    /// Takes a layer's row away; refused while anything needs it.
    pub fn delete_layer(&self, id: LayerId) -> Result<(), CatalogError> {
        self.update(Kind::Layer, id, "DELETE FROM layers WHERE id = ?1", [id.to_string()])
    }
}
