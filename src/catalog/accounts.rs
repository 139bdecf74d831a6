//! Accounts, which own every resource, and the KMS instances that hold their keys.

use jiff::Timestamp;
use rusqlite::params;

use super::row::{Fields, worded};
use super::{CatalogError, Kind, ReadTx, WriteTx};
use crate::ids::{AccountId, InstanceId, Name};

/// Owner of resources in a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its id.
    pub id: AccountId,
    /// Its name, unique in the region.
    pub name: Name,
    /// The one that owns what no other account was named for.
    pub is_default: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

worded! {
    /// What keeps an instance's keys.
    InstanceKind {
        /// Keys wrapped by the root key, which can be backed up.
        Software = "software",
        /// Keys that never leave their instance.
        Hardware = "hardware",
    }
}

/// A KMS instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// The account that owns it.
    pub account: AccountId,
    /// Its name, unique in the region.
    pub name: Name,
    /// What keeps its keys.
    pub kind: InstanceKind,
    /// The one that keys are made in when no other is named.
    pub is_default: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

pub(super) const INSTANCE: &str = "SELECT id, account, name, kind, is_default, created_at FROM kms_instances";
pub(super) const ACCOUNT: &str = "SELECT id, name, is_default, created_at FROM accounts";

pub(super) fn account(f: &Fields) -> Result<Account, CatalogError> {
    Ok(Account {
        id: f.parsed("id", "an account's id")?,
        name: f.parsed("name", "a name")?,
        is_default: f.flag("is_default")?,
        created_at: f.time("created_at")?,
    })
}

pub(super) fn instance(f: &Fields) -> Result<Instance, CatalogError> {
    Ok(Instance {
        id: f.parsed("id", "an instance's id")?,
        account: f.parsed("account", "an account's id")?,
        name: f.parsed("name", "a name")?,
        kind: f.parsed("kind", "software or hardware")?,
        is_default: f.flag("is_default")?,
        created_at: f.time("created_at")?,
    })
}

impl ReadTx<'_> {
    /// All accounts, oldest first.
    pub fn accounts(&self) -> Result<Vec<Account>, CatalogError> {
        self.list(&format!("{ACCOUNT} ORDER BY created_at, id"), [], account)
    }

    /// The account that owns what no other was named for.
    pub fn default_account(&self) -> Result<Account, CatalogError> {
        self.first(&format!("{ACCOUNT} WHERE is_default = 1"), [], account)?
            .ok_or_else(|| self.not_found(Kind::Account, "default"))
    }

    /// The account of this id or name.
    pub fn resolve_account(&self, text: &str) -> Result<Account, CatalogError> {
        self.first(&format!("{ACCOUNT} WHERE id = ?1 OR name = ?1 ORDER BY id <> ?1"), [text], account)?
            .ok_or_else(|| self.not_found(Kind::Account, text))
    }

    /// All KMS instances, oldest first.
    pub fn instances(&self) -> Result<Vec<Instance>, CatalogError> {
        self.list(&format!("{INSTANCE} ORDER BY created_at, id"), [], instance)
    }

    /// The instance that keys are made in when no other is named.
    pub fn default_instance(&self) -> Result<Instance, CatalogError> {
        self.first(&format!("{INSTANCE} WHERE is_default = 1"), [], instance)?
            .ok_or_else(|| self.not_found(Kind::Instance, "default"))
    }
}

impl WriteTx<'_> {
    /// Adds an account.
    pub fn insert_account(&self, row: &Account) -> Result<(), CatalogError> {
        self.refuse_id_as_name(&row.name)?;
        self.insert(
            Kind::Account,
            row.name.as_str(),
            "INSERT INTO accounts (id, name, is_default, created_at) VALUES (?1, ?2, ?3, ?4)",
            params![row.id.to_string(), row.name.as_str(), row.is_default, row.created_at.as_microsecond()],
        )
    }

    /// Adds a KMS instance.
    pub fn insert_instance(&self, row: &Instance) -> Result<(), CatalogError> {
        self.refuse_id_as_name(&row.name)?;
        self.insert(
            Kind::Instance,
            row.name.as_str(),
            "INSERT INTO kms_instances (id, account, name, kind, is_default, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                row.id.to_string(),
                row.account.to_string(),
                row.name.as_str(),
                row.kind.as_str(),
                row.is_default,
                row.created_at.as_microsecond()
            ],
        )
    }
}
