//! The first rows of a new catalog in a region whose old one is lost: keys from `keys/`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use subtle::ConstantTimeEq;

use super::keys::{default_name, defaults, initialise, insert_defaults};
use super::{KmsError, envelope, key_file};
use crate::catalog::{Key, KeyState, KeyVersion, Salvaged};
use crate::ids::{AccountId, KeyId};
use crate::region::Region;

/// What became of the files in `keys/`.
#[derive(Debug, Default)]
pub struct Restored {
    /// Keys that are there again.
    pub keys: Vec<KeyId>,
    /// Files that hold no key of this region, in sentences.
    pub unusable: Vec<String>,
    /// Keys of which the old catalog, though it reads, says nothing: enabled now, whatever they were.
    pub unknown: Vec<KeyId>,
    /// Keys that are not to be enabled, once nothing has to be opened with them any more.
    pub states: Vec<(KeyId, KeyState)>,
}

/// Makes the keys whose files open, with account, instance and settings: as the old catalog had them, as far as it reads; else as in a
/// new region, each key enabled, the oldest the default one. With no key at all a new default one is made.
pub fn restore(region: &Region, old: &Salvaged) -> Result<Restored, KmsError> {
    let (versions, unusable) = read_all(region, old)?;
    if versions.is_empty() {
        initialise(region)?;
        return Ok(Restored { unusable, ..Restored::default() });
    }
    let mut keys: Vec<_> = versions.into_iter().collect();
    keys.sort_by_key(|(id, versions)| (versions.values().map(|v| v.created_at).min(), *id));
    let (mut account, mut instance) = defaults(region);
    if let Some(id) = old_account(old) {
        account.id = id;
    }
    instance.account = account.id;
    if let Some(known) = old.instances.iter().find(|i| i.is_default && i.account == account.id) {
        instance = known.clone();
    }
    let mut unknown = Vec::new();
    let kept = old.keys.iter().filter(|key| key.state != KeyState::Enabled);
    let states =
        kept.map(|key| (key.id, key.state)).filter(|(id, _)| keys.iter().any(|(k, _)| k == id)).collect();
    let has_default = |id: &KeyId| old.keys.iter().any(|k| k.id == *id && k.is_default);
    let default = keys.iter().position(|(id, _)| has_default(id)).unwrap_or(0);
    region.catalog()?.write(|tx| {
        insert_defaults(tx, &account, &instance)?;
        old.settings.iter().try_for_each(|(setting, on)| tx.set_flag(*setting, *on))?;
        for (number, (id, versions)) in keys.iter().enumerate() {
            let is_default = number == default;
            let known = old.keys.iter().find(|key| key.id == *id);
            if known.is_none() && !old.keys.is_empty() {
                unknown.push(*id);
            }
            let first = versions.values().map(|v| v.created_at).min().unwrap_or(account.created_at);
            tx.insert_key(&Key {
                id: *id,
                account: account.id,
                instance: instance.id,
                state: KeyState::Enabled,
                is_default,
                current_version: versions.keys().next_back().copied().unwrap_or(1),
                description: known.and_then(|key| key.description.clone()),
                created_at: first,
                aliases: match known {
                    Some(key) => key.aliases.clone(),
                    None if is_default => vec![default_name()],
                    None => Vec::new(),
                },
            })?;
            versions.values().try_for_each(|version| tx.insert_key_version(version))?;
        }
        Ok::<_, KmsError>(())
    })?;
    Ok(Restored { keys: keys.into_iter().map(|(id, _)| id).collect(), unusable, unknown, states })
}

/// The account that most of what reads is of.
fn old_account(old: &Salvaged) -> Option<AccountId> {
    let rows = old.snapshots.iter().map(|s| s.account).chain(old.volumes.iter().map(|v| v.account));
    let known = old.accounts.iter().filter(|a| a.is_default).map(|a| a.id);
    known.chain(rows).next()
}

type Versions = BTreeMap<KeyId, BTreeMap<u32, KeyVersion>>;

/// Versions by key and number, and sentences on the other files. Whose a file is says its name, and whether it opens so; a row of the old
/// catalog that opens counts before it.
fn read_all(region: &Region, old: &Salvaged) -> Result<(Versions, Vec<String>), KmsError> {
    let mut found = Versions::new();
    let mut unusable = Vec::new();
    for key_file::Entry { path, named } in key_file::list(region)? {
        let read = |(key, version)| {
            let filed = key_file::read(region, key, version)?;
            Ok::<_, KmsError>(filed.map(|filed| filed.into_row(region, key, version)))
        };
        match named.map(read).transpose()?.flatten() {
            Some(version) if envelope::version_opens(region, &version)? => {
                found.entry(version.key).or_default().insert(version.version, version);
            }
            _ => unusable.push((named, path)),
        }
    }
    // Where both open, and are two keys, the row's is what wrapped: a check tells of the file, which stays.
    for row in &old.key_versions {
        let of_file = found.get(&row.key).and_then(|of| of.get(&row.version));
        let of_file = of_file.map_or(Ok(None), |filed| envelope::open_version(region, filed))?;
        let Some(of_row) = envelope::open_version(region, row)? else { continue };
        // Of one key the file's word counts for when it was made.
        if of_file.is_none_or(|of_file| !bool::from(of_file.expose().ct_eq(of_row.expose()))) {
            found.entry(row.key).or_default().insert(row.version, row.clone());
        }
    }
    let has_row = |named: &Option<(KeyId, u32)>| {
        named.is_some_and(|(key, version)| found.get(&key).is_some_and(|of| of.contains_key(&version)))
    };
    unusable.retain(|(named, _)| !has_row(named));
    unusable.sort();
    let sentence =
        |path: PathBuf| format!("{}: no key of this region that its root key opens", path.display());
    let unusable = unusable.into_iter().map(|(_, path)| sentence(path)).collect();
    Ok((found, unusable))
}
