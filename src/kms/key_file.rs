//! `keys/<id>.<version>`: one version of a CMK, wrapped by the root key, so that a lost catalog does not lose keys.
//!
//! ```toml
//! format = "terrane-key"
//! format_version = 1
//! features = []
//! region = "…"
//! key_id = "key-…"
//! key_version = 1
//! created_at = "2026-05-01T00:00:00Z"
//! wrapped_key = "…"              # associated data: region, key, version
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::KmsError;
use crate::catalog::KeyVersion;
use crate::ids::KeyId;
use crate::region::{Region, check_format, hex};
use crate::sys::{crashsafe, open_files, owned};

const FORMAT: &str = "terrane-key";
const FORMAT_VERSION: i64 = 1;
const BYTES_MAX: u64 = 4096;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    format: String,
    format_version: i64,
    features: Vec<String>,
    region: String,
    key_id: String,
    key_version: u32,
    created_at: String,
    wrapped_key: String,
}

/// Writes a version's file and syncs it and its folder; never replaces one.
pub(super) fn write(region: &Region, version: &KeyVersion) -> Result<PathBuf, KmsError> {
    let path = path(region, version.key, version.version);
    let fields = Fields {
        format: FORMAT.into(),
        format_version: FORMAT_VERSION,
        features: Vec::new(),
        region: region.id().to_string(),
        key_id: version.key.to_string(),
        key_version: version.version,
        created_at: version.created_at.to_string(),
        wrapped_key: hex::encode(&version.wrapped),
    };
    let text = toml::to_string(&fields).expect("plain fields are always TOML");
    match crashsafe::create_file(&path, text.as_bytes(), 0o600) {
        Ok(()) => Ok(path),
        Err(source) => Err(KmsError::Io { path, source }),
    }
}

/// A version's wrapped bytes as its file has them; `None` if there is no such file or it is damaged. An error says that no more files
/// can be open.
pub(super) fn read(region: &Region, key: KeyId, version: u32) -> Result<Option<Vec<u8>>, KmsError> {
    Ok(fields(region, key, version)?.and_then(|fields| hex::decode(&fields.wrapped_key)))
}

/// A version as its file has it; `None` as for [`read`], or where it says that it is another's.
pub(super) fn read_version(
    region: &Region,
    key: KeyId,
    version: u32,
) -> Result<Option<KeyVersion>, KmsError> {
    let Some(fields) = fields(region, key, version)? else { return Ok(None) };
    let said = (fields.region.as_str(), fields.key_id.as_str(), fields.key_version);
    let is_its = said == (region.id().to_string().as_str(), key.to_string().as_str(), version);
    let (created_at, wrapped) = (fields.created_at.parse().ok(), hex::decode(&fields.wrapped_key));
    let (Some(created_at), Some(wrapped)) = (created_at, wrapped) else { return Ok(None) };
    Ok(is_its.then_some(KeyVersion { key, version, wrapped, created_at }))
}

fn fields(region: &Region, key: KeyId, version: u32) -> Result<Option<Fields>, KmsError> {
    let path = path(region, key, version);
    match owned::read(&path, BYTES_MAX) {
        Ok(bytes) => Ok(parse(&bytes)),
        Err(source) if open_files::is_exhausted(&source) => Err(KmsError::Io { path, source }),
        Err(_) => Ok(None),
    }
}

fn parse(bytes: &[u8]) -> Option<Fields> {
    let table: toml::Table = std::str::from_utf8(bytes).ok()?.parse().ok()?;
    check_format(&table, Path::new("a key file"), FORMAT, FORMAT_VERSION, &[]).ok()?;
    table.try_into().ok()
}

/// Whether bytes have the form of a key file.
pub(crate) fn parse_key_file(bytes: &[u8]) -> bool {
    parse(bytes).is_some_and(|fields| hex::decode(&fields.wrapped_key).is_some())
}

fn path(region: &Region, key: KeyId, version: u32) -> PathBuf {
    region.keys_dir().join(format!("{key}.{version}"))
}
