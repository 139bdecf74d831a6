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

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::KmsError;
use crate::catalog::KeyVersion;
use crate::ids::KeyId;
use crate::region::{Region, RegionError, check_format, hex};
use crate::sys::{crashsafe, open_files, owned};

const FORMAT: &str = "terrane-key";
const FORMAT_VERSION: i64 = 1;
const BYTES_MAX: u64 = 4096;
const MODE: u32 = 0o600;
/// Of 32 bytes in an envelope.
const WRAPPED_LEN: usize = 61;

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
    match crashsafe::create_file(&path, text(region, version).as_bytes(), MODE) {
        Ok(()) => Ok(path),
        Err(source) => Err(KmsError::Io { path, source }),
    }
}

/// The same, in the place of whatever has that name.
pub(super) fn replace(region: &Region, version: &KeyVersion) -> Result<(), KmsError> {
    let path = path(region, version.key, version.version);
    crashsafe::write_file(&path, text(region, version).as_bytes(), MODE)
        .map_err(|source| KmsError::Io { path, source })
}

fn text(region: &Region, version: &KeyVersion) -> String {
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
    toml::to_string(&fields).expect("plain fields are always TOML")
}

/// A version as its file has it.
pub(super) struct Filed {
    /// Whether it opens says whether it is that version's: it is bound to region, key and number.
    pub wrapped: Vec<u8>,
    /// `None`: that does not read.
    pub created_at: Option<Timestamp>,
    /// What the file is besides. No key rests on that.
    pub form: Form,
}

/// What a key file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// It reads, and says of itself whose it is.
    Whole,
    /// It says to be another's, or does not read as a key file.
    Harmed,
    /// It says to be of a format to come.
    Newer,
    /// It is there, and is not read: open to others, not ours, no file, or on a bad disk.
    Unread,
}

impl Filed {
    /// The row that it was written for. One that does not say when it was made counts as made now, so that no key is newer.
    pub fn into_row(self, region: &Region, key: KeyId, version: u32) -> KeyVersion {
        let created_at = self.created_at.unwrap_or_else(|| region.now());
        KeyVersion { key, version, wrapped: self.wrapped, created_at }
    }
}

/// A version as its file has it, as far as that reads; `None` if there is no such file. An error says that no more files can be open.
pub(super) fn read(region: &Region, key: KeyId, version: u32) -> Result<Option<Filed>, KmsError> {
    let path = path(region, key, version);
    let bytes = match owned::read(&path, BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(source) if open_files::is_exhausted(&source) => return Err(KmsError::Io { path, source }),
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) => return Ok(Some(Filed { wrapped: vec![], created_at: None, form: Form::Unread })),
    };
    let parsed = parse(&bytes);
    let form = if matches!(parsed, Err(Unread::Newer)) { Form::Newer } else { Form::Harmed };
    let whole = parsed.ok().and_then(|fields| Some((hex::decode(&fields.wrapped_key)?, fields)));
    let Some((wrapped, fields)) = whole else {
        return Ok(Some(Filed { wrapped: wrapped_in(&bytes), created_at: None, form }));
    };
    let said = (fields.region.as_str(), fields.key_id.as_str(), fields.key_version);
    let names_itself = said == (region.id().to_string().as_str(), key.to_string().as_str(), version);
    let form = if names_itself { Form::Whole } else { Form::Harmed };
    Ok(Some(Filed { wrapped, created_at: fields.created_at.parse().ok(), form }))
}

/// What in a damaged file may be a wrapped key, by its length; nothing if nothing is.
fn wrapped_in(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let mut quoted = text.split('"').filter_map(hex::decode);
    quoted.find(|bytes| bytes.len() == WRAPPED_LEN).unwrap_or_default()
}

/// What lies in `keys/`.
pub(super) struct Entry {
    pub path: PathBuf,
    /// The key and version that its name says it is of, if any.
    pub named: Option<(KeyId, u32)>,
}

/// All that lies in `keys/`.
pub(super) fn list(region: &Region) -> Result<Vec<Entry>, KmsError> {
    let dir = region.keys_dir();
    let io = |source| KmsError::Io { path: dir.clone(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let named = name.to_str().and_then(|name| {
            let (key, version) = name.split_once('.')?;
            let named: (KeyId, u32) = (key.parse().ok()?, version.parse().ok()?);
            // By no other spelling.
            (named.1 > 0 && *name == *format!("{}.{}", named.0, named.1)).then_some(named)
        });
        found.push(Entry { path: dir.join(name), named });
    }
    Ok(found)
}

enum Unread {
    Newer,
    Damaged,
}

fn parse(bytes: &[u8]) -> Result<Fields, Unread> {
    let text = std::str::from_utf8(bytes).map_err(|_| Unread::Damaged)?;
    let table: toml::Table = text.parse().map_err(|_| Unread::Damaged)?;
    match check_format(&table, Path::new("a key file"), FORMAT, FORMAT_VERSION, &[]) {
        Ok(()) => table.try_into().map_err(|_| Unread::Damaged),
        Err(RegionError::Newer { .. }) => Err(Unread::Newer),
        Err(_) => Err(Unread::Damaged),
    }
}

/// Whether bytes have the form of a key file.
pub(crate) fn parse_key_file(bytes: &[u8]) -> bool {
    let is_whole = parse(bytes).is_ok_and(|fields| hex::decode(&fields.wrapped_key).is_some());
    is_whole || wrapped_in(bytes).len() == WRAPPED_LEN
}

fn path(region: &Region, key: KeyId, version: u32) -> PathBuf {
    region.keys_dir().join(format!("{key}.{version}"))
}
