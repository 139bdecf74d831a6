//! Customer master keys: their rows, aliases and wrapped versions. What unwraps them is the room `kms`.

use jiff::Timestamp;
use rusqlite::params;

use super::row::{Fields, worded};
use super::{CatalogError, Kind, ReadTx, WriteTx};
use crate::ids::{AccountId, InstanceId, KeyId, Name};

/// A wrapped version is well under this.
const WRAPPED_BYTES_MAX: usize = 1024;

worded! {
    /// Whether a key may be used.
    KeyState {
        /// It may.
        Enabled = "enabled",
        /// Not until it is enabled again.
        Disabled = "disabled",
        /// Not any more: it waits for its deletion.
        PendingDeletion = "pending_deletion",
    }
}

/// A customer master key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// The account that owns it.
    pub account: AccountId,
    /// The instance that holds it.
    pub instance: InstanceId,
    /// Whether it may be used.
    pub state: KeyState,
    /// The region's service key, made by the KMS itself.
    pub is_default: bool,
    /// The version that wraps new data keys, from 1.
    pub current_version: u32,
    /// Free words.
    pub description: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Its other names, unique in the region, in order. [`WriteTx::insert_key`] adds them as well.
    pub aliases: Vec<Name>,
}

/// A key's state, and one of its versions, whose row may be missing.
#[derive(Debug)]
pub struct WrappedVersion {
    /// Of the key.
    pub state: KeyState,
    /// The version's number.
    pub version: u32,
    /// Its 32 bytes, wrapped; `None` without a row.
    pub wrapped: Option<Vec<u8>>,
}

/// One version of a key, wrapped by the root key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVersion {
    /// The key.
    pub key: KeyId,
    /// From 1.
    pub version: u32,
    /// Its 32 bytes, wrapped.
    pub wrapped: Vec<u8>,
    /// When it was made.
    pub created_at: Timestamp,
}

pub(super) const KEY: &str =
    "SELECT id, account, instance, state, is_default, current_version, description, created_at FROM keys";

pub(super) fn key(f: &Fields) -> Result<Key, CatalogError> {
    Ok(Key {
        id: f.parsed("id", "a key's id")?,
        account: f.parsed("account", "an account's id")?,
        instance: f.parsed("instance", "an instance's id")?,
        state: f.parsed("state", "a key's state")?,
        is_default: f.flag("is_default")?,
        current_version: f.small("current_version", u32::MAX)?,
        description: f.opt_text("description")?.map(str::to_owned),
        created_at: f.time("created_at")?,
        aliases: Vec::new(),
    })
}

impl ReadTx<'_> {
    /// All keys, oldest first.
    pub fn keys(&self) -> Result<Vec<Key>, CatalogError> {
        let keys = self.list(&format!("{KEY} ORDER BY created_at, id"), [], key)?;
        keys.into_iter().map(|key| self.with_aliases(key)).collect()
    }

    /// The key of this id.
    pub fn find_key(&self, id: KeyId) -> Result<Option<Key>, CatalogError> {
        let found = self.first(&format!("{KEY} WHERE id = ?1"), [id.to_string()], key)?;
        found.map(|key| self.with_aliases(key)).transpose()
    }

    /// The region's default service key.
    pub fn default_key(&self) -> Result<Key, CatalogError> {
        let found = self.first(&format!("{KEY} WHERE is_default = 1"), [], key)?;
        self.with_aliases(found.ok_or_else(|| self.not_found(Kind::Key, "default"))?)
    }

    /// The key an alias names.
    pub fn key_of_alias(&self, alias: &str) -> Result<Option<KeyId>, CatalogError> {
        self.first("SELECT key FROM key_aliases WHERE alias = ?1", [alias], |f| f.parsed("key", "a key's id"))
    }

    /// What is needed of a key to open one of its versions, or the current one: by one question, since each layer asks.
    pub fn wrapped_key(
        &self,
        id: KeyId,
        version: Option<u32>,
    ) -> Result<Option<WrappedVersion>, CatalogError> {
        self.first(
            "SELECT keys.id AS id, keys.state AS state, coalesce(?2, keys.current_version) AS version, v.wrapped AS wrapped
             FROM keys LEFT JOIN key_versions v ON v.key = keys.id AND v.version = coalesce(?2, keys.current_version)
             WHERE keys.id = ?1",
            params![id.to_string(), version],
            |f| {
                Ok(WrappedVersion {
                    state: f.parsed("state", "a key's state")?,
                    version: f.small("version", u32::MAX)?,
                    wrapped: f.opt_blob("wrapped", WRAPPED_BYTES_MAX)?,
                })
            },
        )
    }

    /// All versions of a key, oldest first.
    pub fn key_versions(&self, key: KeyId) -> Result<Vec<KeyVersion>, CatalogError> {
        self.list(&format!("{KEY_VERSION} WHERE key = ?1 ORDER BY version"), [key.to_string()], key_version)
    }

    fn with_aliases(&self, mut key: Key) -> Result<Key, CatalogError> {
        key.aliases = self.list(
            "SELECT alias, key AS id FROM key_aliases WHERE key = ?1 ORDER BY alias",
            [key.id.to_string()],
            |f| f.parsed("alias", "a name"),
        )?;
        Ok(key)
    }
}

pub(super) const KEY_VERSION: &str = "SELECT key AS id, version, wrapped, created_at FROM key_versions";

pub(super) fn key_version(f: &Fields) -> Result<KeyVersion, CatalogError> {
    Ok(KeyVersion {
        key: f.parsed("id", "a key's id")?,
        version: f.small("version", u32::MAX)?,
        wrapped: f.blob("wrapped", WRAPPED_BYTES_MAX)?,
        created_at: f.time("created_at")?,
    })
}

impl WriteTx<'_> {
    /// Adds a key and its aliases; its versions are added one by one.
    pub fn insert_key(&self, row: &Key) -> Result<(), CatalogError> {
        self.insert(
            Kind::Key,
            &row.id.to_string(),
            "INSERT INTO keys (id, account, instance, state, is_default, current_version, description, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                row.id.to_string(),
                row.account.to_string(),
                row.instance.to_string(),
                row.state.as_str(),
                row.is_default,
                row.current_version,
                row.description,
                row.created_at.as_microsecond()
            ],
        )?;
        row.aliases.iter().try_for_each(|alias| self.insert_alias(alias, row.id))
    }

    /// Gives a key one more alias.
    pub fn insert_alias(&self, alias: &Name, key: KeyId) -> Result<(), CatalogError> {
        self.refuse_id_as_name(alias)?;
        self.insert(
            Kind::Alias,
            alias.as_str(),
            "INSERT INTO key_aliases (alias, key) VALUES (?1, ?2)",
            params![alias.as_str(), key.to_string()],
        )
    }

    /// Takes an alias away.
    pub fn delete_alias(&self, alias: &str) -> Result<(), CatalogError> {
        self.update(Kind::Alias, alias, "DELETE FROM key_aliases WHERE alias = ?1", [alias])
    }

    /// Adds a version and makes it the one that wraps new data keys.
    pub fn insert_key_version(&self, row: &KeyVersion) -> Result<(), CatalogError> {
        self.insert(
            Kind::Key,
            &format!("{} version {}", row.key, row.version),
            "INSERT INTO key_versions (key, version, wrapped, created_at) VALUES (?1, ?2, ?3, ?4)",
            params![row.key.to_string(), row.version, row.wrapped, row.created_at.as_microsecond()],
        )?;
        self.update(
            Kind::Key,
            row.key,
            "UPDATE keys SET current_version = ?2 WHERE id = ?1",
            params![row.key.to_string(), row.version],
        )
    }

    /// Puts a version of a key in the place of the row that it has, if any.
    pub fn put_key_version(&self, row: &KeyVersion) -> Result<(), CatalogError> {
        self.insert(
            Kind::Key,
            &format!("{} version {}", row.key, row.version),
            "INSERT INTO key_versions (key, version, wrapped, created_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (key, version) DO UPDATE SET wrapped = ?3, created_at = ?4",
            params![row.key.to_string(), row.version, row.wrapped, row.created_at.as_microsecond()],
        )
    }

    /// Allows or forbids a key's use.
    pub fn set_key_state(&self, id: KeyId, state: KeyState) -> Result<(), CatalogError> {
        self.update(
            Kind::Key,
            id,
            "UPDATE keys SET state = ?2 WHERE id = ?1",
            params![id.to_string(), state.as_str()],
        )
    }
}
