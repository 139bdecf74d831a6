//! Making, rotating, enabling and disabling keys.

use super::{KmsError, envelope, key_file};
use crate::catalog::{Account, Instance, InstanceKind, Key, KeyState, KeyVersion, Kind, Setting, WriteTx};
use crate::crypto::Secret;
use crate::ids::{AccountId, InstanceId, KeyId, Name};
use crate::region::Region;
use crate::sys::crashsafe;

/// The first rows of a new region: its default account, its KMS instance, its default service key, its settings.
pub fn initialise(region: &Region) -> Result<(), KmsError> {
    let (account, instance) = defaults(region);
    let (key, version) = mint(region, account.id, instance.id, Some(default_name()), None, true)?;
    key_file::write(region, &version)?;
    region.catalog()?.write(|tx| {
        insert_defaults(tx, &account, &instance)?;
        insert(tx, &key, &version)
    })
}

pub(super) fn default_name() -> Name {
    "default".parse().expect("a name")
}

/// A region's first account and KMS instance.
pub(super) fn defaults(region: &Region) -> (Account, Instance) {
    let created_at = region.now();
    let account = Account { id: AccountId::random(), name: default_name(), is_default: true, created_at };
    let instance = Instance {
        id: InstanceId::random(),
        account: account.id,
        name: default_name(),
        kind: InstanceKind::Software,
        is_default: true,
        created_at,
    };
    (account, instance)
}

/// Adds them, and the settings.
pub(super) fn insert_defaults(tx: &WriteTx, account: &Account, instance: &Instance) -> Result<(), KmsError> {
    tx.insert_account(account)?;
    tx.insert_instance(instance)?;
    Setting::ALL.iter().try_for_each(|setting| tx.set_flag(*setting, true))?;
    Ok(())
}

/// Makes a key in the default instance. A taken alias is [`crate::catalog::CatalogError::Exists`], and leaves nothing.
pub fn create_key(
    region: &Region,
    account: AccountId,
    alias: Option<Name>,
    description: Option<String>,
) -> Result<Key, KmsError> {
    let instance = region.catalog()?.read(|tx| {
        if let Some(alias) = &alias
            && tx.key_of_alias(alias.as_str())?.is_some()
        {
            return Err(KmsError::Catalog(crate::catalog::CatalogError::Exists {
                kind: Kind::Alias,
                name: alias.to_string(),
                region: region.name().into(),
            }));
        }
        Ok(tx.default_instance()?.id)
    })?;
    let (key, version) = mint(region, account, instance, alias, description, false)?;
    // The file first, outside of the transaction: its syncs hold nobody up, and a cut leaves a file that no row names.
    let path = key_file::write(region, &version)?;
    let inserted = region.catalog()?.write(|tx| insert(tx, &key, &version));
    if inserted.is_err() {
        let _ = crashsafe::remove_file(&path);
    }
    inserted.map(|()| key)
}

/// What a rotation has done.
#[derive(Debug)]
pub struct Rotated {
    /// The key, with its new version.
    pub key: Key,
    /// The version was in `keys/`, and no row knew it.
    pub was_filed: bool,
}

/// Adds a version, which wraps data keys from now on. Old versions go on unwrapping what they wrapped. A file that opens as a higher version
/// than is known is that version: a cut before its row committed has left it, or it was the current one of a later catalog than this.
/// Numbers up to `claimed` are those of versions that some layer names: where one is lost with row and file, its number is not given again.
pub fn rotate_key(region: &Region, id: KeyId, claimed: u32) -> Result<Rotated, KmsError> {
    let root_key = region.root_key()?;
    let created_at = region.now();
    region.catalog()?.write(|tx| {
        let mut key = envelope::usable(tx, id)?;
        let last = tx.key_versions(id)?.last().map_or(0, |version| version.version);
        let known = last.max(key.current_version);
        let (version, was_filed) = match unnamed_version(region, id, known)? {
            Unnamed::Opens(version) => (version, true),
            Unnamed::Highest(highest) => {
                let taken = highest.max(claimed).max(tx.highest_key_version(id)?);
                let number = taken.checked_add(1).ok_or_else(|| KmsError::Damaged {
                    what: format!(
                        "the list of versions of key {id}, in rows, in keys/ or in layers' headers,"
                    ),
                    region: region.name().into(),
                })?;
                let wrapped = envelope::wrap_version(root_key, region.id(), id, number, &Secret::random());
                let version = KeyVersion { key: id, version: number, wrapped, created_at };
                // Synced before the row commits.
                key_file::write(region, &version)?;
                (version, false)
            }
        };
        tx.insert_key_version(&version)?;
        key.current_version = version.version;
        Ok(Rotated { key, was_filed })
    })
}

/// What `keys/` has of versions above those that rows know.
enum Unnamed {
    /// The highest that opens.
    Opens(KeyVersion),
    /// None does. The highest number that is taken, by a row or by what may be left of a key.
    Highest(u32),
}

fn unnamed_version(region: &Region, key: KeyId, known: u32) -> Result<Unnamed, KmsError> {
    let mut above: Vec<u32> = key_file::list(region)?
        .iter()
        .filter_map(|file| file.named)
        .filter(|(id, _)| *id == key)
        .map(|(_, n)| n)
        .collect();
    above.retain(|number| *number > known);
    above.sort_unstable();
    for number in above.iter().rev() {
        let Some(filed) = key_file::read(region, key, *number)? else { continue };
        let version = filed.into_row(region, key, *number);
        if envelope::version_opens(region, &version)? {
            // As durable as if it were written now.
            let dir = region.keys_dir();
            crashsafe::sync_dir(&dir).map_err(|source| KmsError::Io { path: dir, source })?;
            return Ok(Unnamed::Opens(version));
        }
    }
    Ok(Unnamed::Highest(above.last().copied().unwrap_or(known)))
}

/// Allows or forbids a key's use. One that waits for its deletion stays so.
pub fn set_key_enabled(region: &Region, id: KeyId, enabled: bool) -> Result<Key, KmsError> {
    let state = if enabled { KeyState::Enabled } else { KeyState::Disabled };
    region.catalog()?.write(|tx| {
        let mut key = envelope::existing(tx, id)?;
        if key.state == KeyState::PendingDeletion {
            return Err(KmsError::PendingDeletion { key: id, region: region.name().into() });
        }
        tx.set_key_state(id, state)?;
        key.state = state;
        Ok(key)
    })
}

/// Gives a key one more alias.
pub fn add_alias(region: &Region, id: KeyId, alias: &Name) -> Result<(), KmsError> {
    region.catalog()?.write(|tx| {
        envelope::existing(tx, id)?;
        Ok(tx.insert_alias(alias, id)?)
    })
}

/// Takes an alias away; the key stays.
pub fn remove_alias(region: &Region, alias: &str) -> Result<(), KmsError> {
    Ok(region.catalog()?.write(|tx| tx.delete_alias(alias))?)
}

fn mint(
    region: &Region,
    account: AccountId,
    instance: InstanceId,
    alias: Option<Name>,
    description: Option<String>,
    is_default: bool,
) -> Result<(Key, KeyVersion), KmsError> {
    let id = KeyId::random();
    let created_at = region.now();
    let wrapped = envelope::wrap_version(region.root_key()?, region.id(), id, 1, &Secret::random());
    let key = Key {
        id,
        account,
        instance,
        state: KeyState::Enabled,
        is_default,
        current_version: 1,
        description,
        created_at,
        aliases: alias.into_iter().collect(),
    };
    Ok((key, KeyVersion { key: id, version: 1, wrapped, created_at }))
}

fn insert(tx: &WriteTx, key: &Key, version: &KeyVersion) -> Result<(), KmsError> {
    tx.insert_key(key)?;
    tx.insert_key_version(version)?;
    Ok(())
}
