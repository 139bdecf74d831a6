//! `header.toml`: what a layer is, enough to open it without the catalog.
//!
//! Parsing gives an [`UntrustedHeader`]; its wrapped key, once unwrapped, gives the subkey that vouches for the rest.

use serde::{Deserialize, Serialize};

use super::durable::SealedMark;
use super::error::{LayerError, Result};
use crate::crypto::{Cipher, Prf};
use crate::ids::{KeyId, LayerId, Point, RegionId, VolumeId};
use crate::units::{SECTOR_BYTES, VOLUME_BYTES_MAX};

/// The version of `header.toml` and of the layer beside it.
pub const FORMAT: u32 = 1;
/// A header longer than this is not read (a chain of 10,000 points is 350 KiB).
pub const HEADER_LEN_MAX: u64 = 1 << 20;

/// What a layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The region it was made in.
    pub region: RegionId,
    /// The volume it was made for.
    pub volume: VolumeId,
    /// Its id.
    pub layer: LayerId,
    /// The layer below.
    pub parent: Option<LayerId>,
    /// Size of the disk.
    pub size_bytes: u64,
    /// How its sectors are encrypted.
    pub cipher: Cipher,
    /// `system` or `data`.
    pub kind: String,
    /// The key that wraps its data key; `None`: the root key.
    pub key: Option<KeyId>,
    /// That key's version.
    pub key_version: u32,
    /// The data key.
    pub wrapped_key: Vec<u8>,
    /// The point minted at its seal (once sealed), then those of all layers below.
    pub points: Vec<Point>,
    /// Set once sealed.
    pub sealed: Option<SealedMark>,
    /// How many layers had taken its volume's writes when it was made: of two, the one of the higher number is the later.
    pub turn: u64,
    /// A layer whose sectors this one has taken in a fold: what stood on that stands on this.
    pub took: Option<LayerId>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: u32,
    features: Vec<String>,
    region: String,
    volume: String,
    layer: String,
    parent: Option<String>,
    size_bytes: u64,
    cipher: String,
    kind: String,
    key_id: Option<String>,
    key_version: u32,
    wrapped_key: String,
    points: Vec<String>,
    sealed_generation: Option<u64>,
    sealed_mac: Option<String>,
    #[serde(default)]
    turn: u64,
    took: Option<String>,
}

/// Far below what TOML holds, so that the layers that follow have numbers, too.
const TURN_MAX: u64 = 1 << 62;

/// The feature of a header that has `took`.
const TOOK: &str = "took";

/// A header whose MAC has not been checked.
pub struct UntrustedHeader {
    header: Header,
    body: String,
    mac: [u8; 16],
}

const MAC_LINE: &str = "mac = \"";

impl Header {
    /// What the wrapped key is bound to: region, layer and cipher.
    pub fn associated_data(&self) -> Vec<u8> {
        associated_data(self.region, self.layer, self.cipher)
    }

    /// Its text; the last line is the MAC of all before.
    pub fn to_text(&self, prf: &Prf) -> String {
        let text = Text {
            format: FORMAT,
            features: self.took.iter().map(|_| TOOK.to_owned()).collect(),
            region: self.region.to_string(),
            volume: self.volume.to_string(),
            layer: self.layer.to_string(),
            parent: self.parent.map(|p| p.to_string()),
            size_bytes: self.size_bytes,
            cipher: self.cipher.to_string(),
            kind: self.kind.clone(),
            key_id: self.key.map(|k| k.to_string()),
            key_version: self.key_version,
            wrapped_key: hex(&self.wrapped_key),
            points: self.points.iter().map(ToString::to_string).collect(),
            sealed_generation: self.sealed.map(|s| s.generation),
            sealed_mac: self.sealed.map(|s| hex(&s.mac)),
            turn: self.turn,
            took: self.took.map(|t| t.to_string()),
        };
        let body = toml::to_string(&text).expect("plain fields serialise");
        let mac = prf.mac(&[body.as_bytes()]);
        format!("{body}{MAC_LINE}{}\"\n", hex(&mac))
    }
}

/// What a layer's wrapped key is bound to.
pub fn associated_data(region: RegionId, layer: LayerId, cipher: Cipher) -> Vec<u8> {
    format!("{region}\0{layer}\0{cipher}").into_bytes()
}

impl UntrustedHeader {
    /// Reads a header's text and checks its form.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |found: String| LayerError::corrupted("header.toml", "a layer's header", found);
        let at = text.rfind(MAC_LINE).ok_or_else(|| bad("no MAC".into()))?;
        let (body, last) = text.split_at(at);
        let mac = last[MAC_LINE.len()..].strip_suffix("\"\n").and_then(unhex).and_then(|m| m.try_into().ok());
        let mac = mac.ok_or_else(|| bad("a malformed MAC".into()))?;
        let t: Text = toml::from_str(body).map_err(|e| bad(e.message().to_owned()))?;
        let features: &[&str] = if t.took.is_some() { &[TOOK] } else { &[] };
        if t.format != FORMAT || t.features != features {
            return Err(bad(format!(
                "format {} with features {:?}; this program knows format {FORMAT}",
                t.format, t.features
            )));
        }
        if t.size_bytes == 0 || t.size_bytes > VOLUME_BYTES_MAX || !t.size_bytes.is_multiple_of(SECTOR_BYTES)
        {
            return Err(bad(format!("a size of {} bytes", t.size_bytes)));
        }
        if t.turn > TURN_MAX {
            return Err(bad(format!("turn {}", t.turn)));
        }
        if t.kind != "system" && t.kind != "data" {
            return Err(bad("an unknown kind".into()));
        }
        let id = |e: crate::ids::IdError| bad(e.to_string());
        let sealed = match (t.sealed_generation, t.sealed_mac) {
            (None, None) => None,
            (Some(generation), Some(mac)) => {
                let mac = unhex(&mac)
                    .and_then(|m| m.try_into().ok())
                    .ok_or_else(|| bad("a malformed seal".into()))?;
                Some(SealedMark { generation, mac })
            }
            _ => return Err(bad("half a seal".into())),
        };
        let header = Header {
            region: t.region.parse().map_err(id)?,
            volume: t.volume.parse().map_err(id)?,
            layer: t.layer.parse().map_err(id)?,
            parent: t.parent.map(|p| p.parse()).transpose().map_err(id)?,
            size_bytes: t.size_bytes,
            cipher: t.cipher.parse().map_err(|_| bad("an unknown cipher".into()))?,
            kind: t.kind,
            key: t.key_id.map(|k| k.parse()).transpose().map_err(id)?,
            key_version: t.key_version,
            wrapped_key: unhex(&t.wrapped_key).ok_or_else(|| bad("a malformed wrapped key".into()))?,
            points: t.points.iter().map(|p| p.parse()).collect::<Result<_, _>>().map_err(id)?,
            sealed,
            turn: t.turn,
            took: t.took.map(|t| t.parse()).transpose().map_err(id)?,
        };
        Ok(Self { header, body: body.to_owned(), mac })
    }

    /// The fields as they stand: only to unwrap the key that [`UntrustedHeader::verify`] needs.
    pub fn claims(&self) -> &Header {
        &self.header
    }

    /// The header, if it was written with this layer's key.
    pub fn verify(self, prf: &Prf) -> Result<Header> {
        match prf.verify(&[self.body.as_bytes()], &self.mac) {
            true => Ok(self.header),
            false => Err(LayerError::corrupted("header.toml", "a MAC of this layer's key", "another")),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok()).collect()
}
