//! The first rows of a new catalog in a region whose old one is lost: keys from `keys/`.

use std::collections::BTreeMap;
use std::fs;

use super::keys::{default_name, defaults, initialise, insert_defaults};
use super::{KmsError, envelope, key_file};
use crate::catalog::{Key, KeyState, KeyVersion};
use crate::ids::KeyId;
use crate::region::Region;

/// What became of the files in `keys/`.
#[derive(Debug, Default)]
pub struct Restored {
    /// Keys that are there again.
    pub keys: Vec<KeyId>,
    /// Files that hold no key of this region, in sentences.
    pub unusable: Vec<String>,
}

/// Makes account, instance and settings as in a new region, and the keys whose files open. All are enabled, the oldest is the
/// default one; what else the catalog knew of them is lost. With no key at all a new default one is made.
pub fn restore(region: &Region) -> Result<Restored, KmsError> {
    let (versions, unusable) = read_all(region)?;
    if versions.is_empty() {
        initialise(region)?;
        return Ok(Restored { keys: Vec::new(), unusable });
    }
    let mut keys: Vec<_> = versions.into_iter().collect();
    keys.sort_by_key(|(id, versions)| (versions.values().map(|v| v.created_at).min(), *id));
    let (account, instance) = defaults(region);
    region.catalog()?.write(|tx| {
        insert_defaults(tx, &account, &instance)?;
        for (number, (id, versions)) in keys.iter().enumerate() {
            let is_default = number == 0;
            let first = versions.values().map(|v| v.created_at).min().unwrap_or(account.created_at);
            tx.insert_key(&Key {
                id: *id,
                account: account.id,
                instance: instance.id,
                state: KeyState::Enabled,
                is_default,
                current_version: versions.keys().next_back().copied().unwrap_or(1),
                description: None,
                created_at: first,
                aliases: if is_default { vec![default_name()] } else { Vec::new() },
            })?;
            versions.values().try_for_each(|version| tx.insert_key_version(version))?;
        }
        Ok::<_, KmsError>(())
    })?;
    Ok(Restored { keys: keys.into_iter().map(|(id, _)| id).collect(), unusable })
}

type Versions = BTreeMap<KeyId, BTreeMap<u32, KeyVersion>>;

/// Versions by key and number, and sentences on the other files.
fn read_all(region: &Region) -> Result<(Versions, Vec<String>), KmsError> {
    let dir = region.keys_dir();
    let io = |source| KmsError::Io { path: dir.clone(), source };
    let mut found = Versions::new();
    let mut unusable = Vec::new();
    for entry in fs::read_dir(&dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let version = name.to_str().and_then(|name| {
            let (key, version) = name.split_once('.')?;
            key_file::read_version(region, key.parse().ok()?, version.parse().ok()?)
        });
        match version {
            Some(version) if envelope::version_opens(region, &version)? => {
                found.entry(version.key).or_default().insert(version.version, version);
            }
            _ => unusable.push(format!(
                "{}: no key of this region that its root key opens",
                dir.join(&name).display()
            )),
        }
    }
    unusable.sort();
    Ok((found, unusable))
}
