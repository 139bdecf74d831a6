//! Data keys and what wraps them: root key → CMK version → data key, each AES-256-GCM with what it belongs to as
//! associated data.

use super::{KmsError, key_file};
use crate::catalog::{Key, KeyVersion, ReadTx, WrappedVersion};
use crate::crypto::{self, Secret};
use crate::ids::{KeyId, RegionId};
use crate::region::Region;

/// A wrapped data key, and what opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// The key; none: the root key wraps it.
    pub key: Option<KeyId>,
    /// The key's version; 0 for the root key.
    pub version: u32,
    /// The wrapped bytes.
    pub bytes: Vec<u8>,
}

/// A fresh data key, and the same wrapped under `key`'s current version (none: under the root key). It opens only with
/// the same `aad`.
pub fn new_data_key(
    region: &Region,
    key: Option<KeyId>,
    aad: &[u8],
) -> Result<(Secret<64>, WrappedKey), KmsError> {
    let data_key = Secret::random();
    let wrapped = wrap_again(region, key, aad, &data_key)?;
    Ok((data_key, wrapped))
}

/// An existing data key wrapped under `key`'s current version (none: under the root key), with this `aad`.
pub fn wrap_again(
    region: &Region,
    key: Option<KeyId>,
    aad: &[u8],
    data_key: &Secret<64>,
) -> Result<WrappedKey, KmsError> {
    let aad = data_key_aad(aad);
    let Some(id) = key else {
        let bytes = crypto::wrap(region.root_key()?, &aad, data_key.expose());
        return Ok(WrappedKey { key, version: 0, bytes });
    };
    let (version, material) = material(region, id, None)?;
    let bytes = crypto::wrap(&material, &aad, data_key.expose());
    Ok(WrappedKey { key, version, bytes })
}

/// Opens a data key that [`new_data_key`] or [`wrap_again`] wrapped. A key that is not enabled opens nothing.
pub fn unwrap_data_key(
    region: &Region,
    key: Option<KeyId>,
    version: u32,
    aad: &[u8],
    bytes: &[u8],
) -> Result<Secret<64>, KmsError> {
    let aad = data_key_aad(aad);
    let opened = match key {
        None => crypto::unwrap(region.root_key()?, &aad, bytes),
        Some(id) => crypto::unwrap(&material(region, id, Some(version))?.1, &aad, bytes),
    };
    let damaged = || KmsError::Damaged {
        what: match key {
            Some(id) => format!("a data key under key {id} version {version}"),
            None => "a data key under the root key".into(),
        },
        region: region.name().into(),
    };
    let opened = opened.map_err(|_| damaged())?;
    Secret::try_from_slice(&opened).map_err(|_| damaged())
}

/// Whether a version's wrapped bytes open with the region's root key.
pub(super) fn version_opens(region: &Region, version: &KeyVersion) -> Result<bool, KmsError> {
    Ok(open_version(region, version)?.is_some())
}

/// A version's material; `None` if its wrapped bytes do not open as that version of that key of this region.
pub(super) fn open_version(region: &Region, version: &KeyVersion) -> Result<Option<Secret<32>>, KmsError> {
    let aad = version_aad(region.id(), version.key, version.version);
    let opened = crypto::unwrap(region.root_key()?, &aad, &version.wrapped);
    Ok(opened.ok().and_then(|bytes| Secret::try_from_slice(&bytes).ok()))
}

/// Refuses a key that is not there or not enabled.
pub fn check_usable(region: &Region, key: KeyId) -> Result<(), KmsError> {
    region.catalog()?.read(|tx| usable(tx, key)).map(drop)
}

/// The key, which must be there and enabled.
pub(super) fn usable(tx: &ReadTx, id: KeyId) -> Result<Key, KmsError> {
    let key = existing(tx, id)?;
    match KmsError::of_state(key.state, id, tx.region()) {
        None => Ok(key),
        Some(error) => Err(error),
    }
}

/// The key, which must be there.
pub(super) fn existing(tx: &ReadTx, id: KeyId) -> Result<Key, KmsError> {
    tx.find_key(id)?.ok_or_else(|| KmsError::NotFound { key: id, version: None, region: tx.region().into() })
}

/// A version's material wrapped by the root key.
pub(super) fn wrap_version(
    root_key: &Secret<32>,
    region: RegionId,
    key: KeyId,
    version: u32,
    material: &Secret<32>,
) -> Vec<u8> {
    crypto::wrap(root_key, &version_aad(region, key, version), material.expose())
}

/// A version's material, from its row, or from its file if the row's is damaged. Without a version, the current one's. The key must
/// be enabled.
fn material(region: &Region, key: KeyId, version: Option<u32>) -> Result<(u32, Secret<32>), KmsError> {
    let found = region.catalog()?.read(|tx| tx.wrapped_key(key, version))?;
    let Some(WrappedVersion { state, version, wrapped: row }) = found else {
        return Err(KmsError::NotFound { key, version: None, region: region.name().into() });
    };
    if let Some(error) = KmsError::of_state(state, key, region.name()) {
        return Err(error);
    }
    let root_key = region.root_key()?;
    let aad = version_aad(region.id(), key, version);
    let open = |wrapped: &[u8]| {
        let bytes = crypto::unwrap(root_key, &aad, wrapped).ok()?;
        Secret::try_from_slice(&bytes).ok()
    };
    if let Some(material) = row.as_ref().and_then(|wrapped| open(wrapped)) {
        return Ok((version, material));
    }
    if let Some(material) = key_file::read(region, key, version)?.and_then(|filed| open(&filed.wrapped)) {
        tracing::warn!(
            "key {key} version {version}: its row is damaged or missing, its file in keys/ serves"
        );
        return Ok((version, material));
    }
    Err(match row {
        Some(_) => {
            KmsError::Damaged { what: format!("key {key} version {version}"), region: region.name().into() }
        }
        None => KmsError::NotFound { key, version: Some(version), region: region.name().into() },
    })
}

fn version_aad(region: RegionId, key: KeyId, version: u32) -> Vec<u8> {
    [b"terrane key\0", &region.0[..], key.to_string().as_bytes(), &version.to_le_bytes()].concat()
}

/// Apart from everything else that the root key wraps.
fn data_key_aad(aad: &[u8]) -> Vec<u8> {
    [b"terrane data key\0", aad].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::CatalogError;
    use crate::kms::{create_key, rotate_key, set_key_enabled};
    use crate::region::scratch;

    fn make_key(region: &Region, alias: &str) -> Result<Key, KmsError> {
        let account = region.catalog()?.read(|tx| tx.default_account())?.id;
        create_key(region, account, Some(alias.parse().unwrap()), None)
    }

    #[test]
    fn data_keys_open_only_as_what_they_are() {
        let (_dir, region) = scratch();
        let key = make_key(&region, "mine").unwrap();
        for id in [None, Some(key.id)] {
            let (data_key, wrapped) = new_data_key(&region, id, b"layer 1").unwrap();
            let open = |key, version, aad: &[u8]| unwrap_data_key(&region, key, version, aad, &wrapped.bytes);
            assert_eq!(open(id, wrapped.version, b"layer 1").unwrap().expose(), data_key.expose());
            assert!(matches!(open(id, wrapped.version, b"layer 2"), Err(KmsError::Damaged { .. })));
            let again = wrap_again(&region, id, b"layer 2", &data_key).unwrap();
            let opened = unwrap_data_key(&region, id, again.version, b"layer 2", &again.bytes).unwrap();
            assert_eq!(opened.expose(), data_key.expose());
        }
        let (_, wrapped) = new_data_key(&region, Some(key.id), b"").unwrap();
        let wrong = unwrap_data_key(&region, Some(key.id), 9, b"", &wrapped.bytes);
        assert!(matches!(wrong, Err(KmsError::NotFound { version: Some(9), .. })));
        let other = unwrap_data_key(&region, Some(KeyId::random()), 1, b"", &wrapped.bytes);
        assert!(matches!(other, Err(KmsError::NotFound { version: None, .. })));
        assert!(unwrap_data_key(&region, None, 0, b"", &wrapped.bytes).is_err());
    }

    #[test]
    fn a_rotated_key_opens_what_its_old_version_wrapped() {
        let (_dir, region) = scratch();
        let key = make_key(&region, "mine").unwrap();
        let (data_key, old) = new_data_key(&region, Some(key.id), b"").unwrap();
        assert_eq!(rotate_key(&region, key.id, 0).unwrap().key.current_version, 2);
        let (_, new) = new_data_key(&region, Some(key.id), b"").unwrap();
        assert_eq!((old.version, new.version), (1, 2));
        let opened = unwrap_data_key(&region, Some(key.id), 1, b"", &old.bytes).unwrap();
        assert_eq!(opened.expose(), data_key.expose());
        for version in [1, 2] {
            assert!(key_file::read(&region, key.id, version).unwrap().is_some());
        }
    }

    #[test]
    fn a_disabled_key_opens_nothing_and_others_serve() {
        let (_dir, region) = scratch();
        let key = make_key(&region, "mine").unwrap();
        let other = make_key(&region, "other").unwrap();
        let (_, wrapped) = new_data_key(&region, Some(key.id), b"").unwrap();
        set_key_enabled(&region, key.id, false).unwrap();
        let open = || unwrap_data_key(&region, Some(key.id), 1, b"", &wrapped.bytes);
        assert!(matches!(open(), Err(KmsError::Disabled { .. })));
        assert!(matches!(new_data_key(&region, Some(key.id), b""), Err(KmsError::Disabled { .. })));
        assert!(matches!(rotate_key(&region, key.id, 0), Err(KmsError::Disabled { .. })));
        new_data_key(&region, Some(other.id), b"").unwrap();
        set_key_enabled(&region, key.id, true).unwrap();
        open().unwrap();
    }

    /// A lost catalog does not lose keys.
    #[test]
    fn the_file_serves_when_the_row_is_damaged() {
        let (_dir, region) = scratch();
        let key = make_key(&region, "mine").unwrap();
        let (data_key, wrapped) = new_data_key(&region, Some(key.id), b"").unwrap();
        let raw = rusqlite::Connection::open(region.dir().join("catalog.db")).unwrap();
        raw.execute("UPDATE key_versions SET wrapped = x'00'", []).unwrap();
        let opened = unwrap_data_key(&region, Some(key.id), 1, b"", &wrapped.bytes).unwrap();
        assert_eq!(opened.expose(), data_key.expose());
        std::fs::write(region.keys_dir().join(format!("{}.1", key.id)), "nonsense").unwrap();
        let damaged = unwrap_data_key(&region, Some(key.id), 1, b"", &wrapped.bytes);
        assert!(matches!(damaged, Err(KmsError::Damaged { .. })));
    }

    #[test]
    fn a_taken_alias_leaves_nothing() {
        let (_dir, region) = scratch();
        make_key(&region, "mine").unwrap();
        let files = || std::fs::read_dir(region.keys_dir()).unwrap().count();
        let before = files();
        assert!(matches!(make_key(&region, "mine"), Err(KmsError::Catalog(CatalogError::Exists { .. }))));
        assert!(make_key(&region, "key-0123456789abcdef0").is_err(), "an alias of the form of an id");
        assert_eq!(files(), before);
    }
}
