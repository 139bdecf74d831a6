//! `region.toml`: what a region says of itself. Readable by a person; parsed as an untrusted text.
//!
//! ```toml
//! format = "terrane-region"
//! format_version = 1
//! features = []                  # an unknown one refuses
//! id = "…"                       # 32 hexadecimal digits
//! name = "cn-hangzhou"
//! created_at = "2026-05-01T00:00:00Z"
//! replaced_clock = false         # made under TERRANE_CLOCK, which then counts here
//! root_key_check = "…"           # a constant wrapped under the root key: shows whether a root key is the right one
//! [passphrase]                   # only with a passphrase: Argon2id (RFC 9106), and the root key wrapped under its result
//! memory_kib = 262144
//! passes = 3
//! lanes = 1
//! salt = "…"
//! wrapped_root_key = "…"
//! ```

use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{RegionError, hex};
use crate::crypto::{self, KdfParams, Secret};
use crate::ids::{Name, RegionId};

/// The version of a region's layout this program writes and reads.
pub const FORMAT_VERSION: i64 = 1;
const FORMAT: &str = "terrane-region";
/// Features this program knows: none so far.
const FEATURES: &[&str] = &[];
/// What `root_key_check` holds, wrapped.
const CHECK: &[u8; 16] = b"terrane root key";

/// What `region.toml` holds.
#[derive(Clone, Debug)]
pub struct Header {
    /// The region's id.
    pub id: RegionId,
    /// The region's name.
    pub name: Name,
    /// When it was made.
    pub created_at: Timestamp,
    /// It was made under `TERRANE_CLOCK`, which then replaces its wall clock.
    pub replaced_clock: bool,
    pub(super) root_key_check: Vec<u8>,
    pub(super) passphrase: Option<WrappedRootKey>,
}

/// The root key as a passphrase opens it.
#[derive(Clone, Debug)]
pub(super) struct WrappedRootKey {
    kdf: KdfParams,
    wrapped: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    format: String,
    format_version: i64,
    features: Vec<String>,
    id: String,
    name: String,
    created_at: String,
    replaced_clock: bool,
    root_key_check: String,
    passphrase: Option<PassphraseFields>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PassphraseFields {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: String,
    wrapped_root_key: String,
}

impl Header {
    /// Of a new region.
    pub(super) fn new(
        name: Name,
        created_at: Timestamp,
        replaced_clock: bool,
        root_key: &Secret<32>,
    ) -> Self {
        let id = RegionId::random();
        let root_key_check = crypto::wrap(root_key, &aad(b"check", id), CHECK);
        Self { id, name, created_at, replaced_clock, root_key_check, passphrase: None }
    }

    /// Whether a passphrase opens this region.
    pub fn has_passphrase(&self) -> bool {
        self.passphrase.is_some()
    }

    /// Whether this is the region's root key.
    pub(super) fn accepts(&self, root_key: &Secret<32>) -> bool {
        crypto::unwrap(root_key, &aad(b"check", self.id), &self.root_key_check)
            .is_ok_and(|found| found[..] == CHECK[..])
    }

    /// Wraps the root key under a passphrase.
    pub(super) fn set_passphrase(
        &mut self,
        root_key: &Secret<32>,
        passphrase: &[u8],
    ) -> Result<(), RegionError> {
        let kdf = KdfParams::recommended();
        let kek = kdf.derive(passphrase).map_err(|source| self.crypto(source))?;
        let wrapped = crypto::wrap(&kek, &aad(b"passphrase", self.id), root_key.expose());
        self.passphrase = Some(WrappedRootKey { kdf, wrapped });
        Ok(())
    }

    /// The root key, by passphrase; `None` if it is not the right one.
    pub(super) fn root_key_by_passphrase(
        &self,
        passphrase: &[u8],
    ) -> Result<Option<Secret<32>>, RegionError> {
        let Some(wrapped) = &self.passphrase else { return Ok(None) };
        let kek = wrapped.kdf.derive(passphrase).map_err(|source| self.crypto(source))?;
        let Ok(bytes) = crypto::unwrap(&kek, &aad(b"passphrase", self.id), &wrapped.wrapped) else {
            return Ok(None);
        };
        let root_key = Secret::try_from_slice(&bytes).map_err(|source| self.crypto(source))?;
        Ok(self.accepts(&root_key).then_some(root_key))
    }

    fn crypto(&self, source: crypto::CryptoError) -> RegionError {
        RegionError::Crypto { region: self.name.to_string(), source }
    }

    /// As it is written.
    pub(crate) fn to_toml(&self) -> String {
        let fields = Fields {
            format: FORMAT.into(),
            format_version: FORMAT_VERSION,
            features: Vec::new(),
            id: self.id.to_string(),
            name: self.name.to_string(),
            created_at: self.created_at.to_string(),
            replaced_clock: self.replaced_clock,
            root_key_check: hex::encode(&self.root_key_check),
            passphrase: self.passphrase.as_ref().map(|wrapped| PassphraseFields {
                memory_kib: wrapped.kdf.memory_kib,
                passes: wrapped.kdf.passes,
                lanes: wrapped.kdf.lanes,
                salt: hex::encode(&wrapped.kdf.salt),
                wrapped_root_key: hex::encode(&wrapped.wrapped),
            }),
        };
        toml::to_string(&fields).expect("plain fields are always TOML")
    }

    /// Reads what [`Header::to_toml`] wrote; `path` is for sentences.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, RegionError> {
        let corrupted = |what: &str, expected: &str, found: &str| RegionError::Corrupted {
            path: path.to_owned(),
            what: what.into(),
            expected: expected.into(),
            found: found.chars().take(80).collect(),
        };
        // 1. Version and features, before anything that a newer version may have changed.
        let table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| corrupted("the file", "TOML", error.message()))?;
        check_format(&table, path, FORMAT, FORMAT_VERSION, FEATURES)?;
        // 2. The fields.
        let fields: Fields = table
            .try_into()
            .map_err(|error: toml::de::Error| corrupted("a field", "one of format 1", error.message()))?;
        let bytes = |what: &str, digits: &str| {
            hex::decode(digits)
                .filter(|bytes| (1..=256).contains(&bytes.len()))
                .ok_or_else(|| corrupted(what, "hexadecimal digits", digits))
        };
        let passphrase = fields.passphrase.map(|p| -> Result<_, RegionError> {
            let salt = bytes("passphrase.salt", &p.salt)?;
            let salt = salt.try_into().map_err(|_| corrupted("passphrase.salt", "16 bytes", &p.salt))?;
            let kdf = KdfParams { memory_kib: p.memory_kib, passes: p.passes, lanes: p.lanes, salt };
            Ok(WrappedRootKey { kdf, wrapped: bytes("passphrase.wrapped_root_key", &p.wrapped_root_key)? })
        });
        Ok(Self {
            id: fields.id.parse().map_err(|_| corrupted("id", "32 hexadecimal digits", &fields.id))?,
            name: fields.name.parse().map_err(|_| corrupted("name", "a name", &fields.name))?,
            created_at: fields
                .created_at
                .parse()
                .map_err(|_| corrupted("created_at", "a time", &fields.created_at))?,
            replaced_clock: fields.replaced_clock,
            root_key_check: bytes("root_key_check", &fields.root_key_check)?,
            passphrase: passphrase.transpose()?,
        })
    }
}

/// Refuses another format, a newer version and unknown features of a TOML file of ours.
pub(crate) fn check_format(
    table: &toml::Table,
    path: &Path,
    format: &str,
    version: i64,
    features: &[&str],
) -> Result<(), RegionError> {
    let corrupted = |what: &str, expected: String, found: Option<&toml::Value>| RegionError::Corrupted {
        path: path.to_owned(),
        what: what.into(),
        expected,
        found: found.map_or("missing".into(), |value| value.to_string().chars().take(80).collect()),
    };
    let found = table.get("format");
    if found.and_then(toml::Value::as_str) != Some(format) {
        return Err(corrupted("format", format!("{format:?}"), found));
    }
    let found = table.get("format_version");
    match found.and_then(toml::Value::as_integer) {
        Some(number) if number > version => {
            return Err(RegionError::Newer {
                path: path.to_owned(),
                what: "format",
                found: number.to_string(),
                known: format!("up to {version}"),
            });
        }
        Some(number) if number >= 1 => {}
        _ => return Err(corrupted("format_version", format!("1 to {version}"), found)),
    }
    let found = table.get("features");
    let list =
        found.and_then(toml::Value::as_array).ok_or_else(|| corrupted("features", "a list".into(), found))?;
    for feature in list {
        match feature.as_str() {
            Some(name) if features.contains(&name) => {}
            Some(name) => {
                return Err(RegionError::Newer {
                    path: path.to_owned(),
                    what: "the feature",
                    found: format!("{:?}", name.chars().take(80).collect::<String>()),
                    known: if features.is_empty() { "none".into() } else { features.join(", ") },
                });
            }
            None => return Err(corrupted("features", "words".into(), Some(feature))),
        }
    }
    Ok(())
}

fn aad(purpose: &[u8], id: RegionId) -> Vec<u8> {
    [b"terrane region root key ", purpose, b"\0", &id.0[..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(root_key: &Secret<32>) -> Header {
        Header::new("here".parse().unwrap(), "2026-05-01T00:00:00Z".parse().unwrap(), false, root_key)
    }

    fn parse(text: &str) -> Result<Header, RegionError> {
        Header::parse(text, Path::new("region.toml"))
    }

    #[test]
    fn a_header_comes_back_and_knows_its_root_key() {
        let root_key = Secret::random();
        let mut written = header(&root_key);
        written.set_passphrase(&root_key, b"open sesame").unwrap();
        let read = parse(&written.to_toml()).unwrap();
        assert_eq!((read.id, &read.name, read.created_at), (written.id, &written.name, written.created_at));
        assert!(read.accepts(&root_key));
        assert!(!read.accepts(&Secret::random()));
        assert!(read.root_key_by_passphrase(b"open sesame!").unwrap().is_none());
        let opened = read.root_key_by_passphrase(b"open sesame").unwrap().unwrap();
        assert_eq!(opened.expose(), root_key.expose());
        let mut moved = read.clone();
        moved.id = RegionId::random();
        assert!(!moved.accepts(&root_key), "the check is bound to the region");
    }

    /// The keys of version 1, frozen. If this fails, bump the version.
    #[test]
    fn the_format_is_frozen() {
        let text = "format = \"terrane-region\"\nformat_version = 1\nfeatures = []\n\
            id = \"000102030405060708090a0b0c0d0e0f\"\nname = \"here\"\ncreated_at = \"2026-05-01T00:00:00Z\"\n\
            replaced_clock = false\nroot_key_check = \"0102\"\n\n[passphrase]\nmemory_kib = 65536\npasses = 3\nlanes = 1\n\
            salt = \"000102030405060708090a0b0c0d0e0f\"\nwrapped_root_key = \"0a\"\n";
        assert_eq!(parse(text).unwrap().to_toml(), text);
    }

    #[test]
    fn newer_formats_and_unknown_features_are_refused_by_name() {
        let good = header(&Secret::random()).to_toml();
        let newer = good.replace("format_version = 1", "format_version = 2\nshape = \"new\"");
        assert!(matches!(parse(&newer), Err(RegionError::Newer { what: "format", .. })));
        let feature = good.replace("features = []", "features = [\"object-store\"]");
        let error = parse(&feature).unwrap_err().to_string();
        assert!(error.contains("object-store"), "{error}");
    }

    #[test]
    fn hostile_texts_never_panic() {
        let good = header(&Secret::random()).to_toml();
        for (from, to) in [
            ("format_version = 1", "format_version = 0"),
            ("format_version = 1", "format_version = \"1\""),
            ("format_version = 1", "format_version = -9223372036854775808"),
            ("features = []", "features = [7]"),
            ("features = []", "features = \"\""),
            ("features = []", "features = []\nsurprise = 1"),
            ("name = \"here\"", "name = \"../..\""),
            ("name = \"here\"", "name = \"\\u001b[2J\""),
            ("replaced_clock = false", "replaced_clock = 3"),
            ("root_key_check = \"", "root_key_check = \"xyz"),
        ] {
            assert!(good.contains(from));
            let text = good.replacen(from, to, 1);
            assert!(matches!(parse(&text), Err(RegionError::Corrupted { .. })), "{to}");
        }
        for end in 0..good.len() - 1 {
            assert!(parse(&good[..end]).is_err(), "cut at {end}");
        }
        assert!(parse(&"[".repeat(60_000)).is_err());
        assert!(parse(&format!("x = {}", "[".repeat(60_000))).is_err());
    }

    #[test]
    fn hostile_argon2_parameters_are_refused() {
        let root_key = Secret::random();
        let mut written = header(&root_key);
        written.set_passphrase(&root_key, b"x").unwrap();
        let good = written.to_toml();
        let memory = format!("memory_kib = {}", written.passphrase.as_ref().unwrap().kdf.memory_kib);
        for (from, to) in
            [(memory.as_str(), "memory_kib = 4294967295"), ("passes = 3", "passes = 4294967295")]
        {
            let header = parse(&good.replacen(from, to, 1)).unwrap();
            assert!(matches!(header.root_key_by_passphrase(b"x"), Err(RegionError::Crypto { .. })), "{to}");
        }
        for to in ["passes = -1", "passes = 4294967296"] {
            assert!(matches!(parse(&good.replacen("passes = 3", to, 1)), Err(RegionError::Corrupted { .. })));
        }
    }
}
