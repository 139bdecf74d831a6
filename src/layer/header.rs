//! `header.toml`: what a layer is, enough to open it without the catalog.
//!
//! Parsing gives an [`UntrustedHeader`]; its wrapped key, once unwrapped, gives the subkey that vouches for the rest.

use serde::{Deserialize, Serialize};

use super::durable::SealedMark;
use super::error::{LayerError, Result};
use super::recover::Anchor;
use crate::crypto::{Cipher, Prf};
use crate::ids::{KeyId, LayerId, Point, RegionId, VolumeId};
use crate::units::{SECTOR_BYTES, VOLUME_BYTES_MAX};

/// The version of `header.toml` and of the layer beside it.
pub const FORMAT: u32 = 4;
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
    /// The moment at which that one ended, as this layer was put on it; there if a parent is. What is below at any other is
    /// not what was written over.
    pub parent_point: Option<Point>,
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
    /// The key that the disk's content is known by in every region, wrapped by a subkey of the data key.
    pub wrapped_proof_key: Vec<u8>,
    /// What its point is minted from, with its key and id: new each time it is opened to take writes. Of two copies of a region
    /// that both went on, none has the other's moments.
    pub mint: [u8; 16],
    /// The point minted at its seal (once sealed), then those of all layers below.
    pub points: Vec<Point>,
    /// Set once sealed.
    pub sealed: Option<SealedMark>,
    /// How many layers had taken its volume's writes when it was made: of two, the one of the higher number is the later.
    pub turn: u64,
    /// Counts the changes of this header that its data is not to be read without: a superblock names the least that it goes
    /// with, so that an older header beside newer data is noticed.
    pub edition: u64,
    /// How far its data was when it was put on another parent; older data goes with the parent before.
    pub reached: Option<Anchor>,
    /// A fold is writing to it, sealed as it is: said before the first byte changes.
    pub fold: Option<Folding>,
    /// A layer whose sectors this one has taken in a fold, until the rows and the other headers say the same.
    pub took: Option<LayerId>,
}

/// What a fold does with the sealed layer that it writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folding {
    /// It takes from its parent what it lacks: it reads the same meanwhile.
    Fills(LayerId),
    /// It takes its child's sectors, and then that one's place: it is no moment of a disk meanwhile.
    Absorbs(LayerId),
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
    parent_point: Option<String>,
    size_bytes: u64,
    cipher: String,
    kind: String,
    key_id: Option<String>,
    key_version: u32,
    wrapped_key: String,
    wrapped_proof_key: String,
    mint: String,
    points: Vec<String>,
    sealed_generation: Option<u64>,
    sealed_mac: Option<String>,
    turn: u64,
    edition: u64,
    reached_generation: Option<u64>,
    reached_confirmed: Option<u64>,
    fills_from: Option<String>,
    absorbs: Option<String>,
    took: Option<String>,
}

/// Far below what TOML holds, so that the layers that follow have numbers, too.
const TURN_MAX: u64 = 1 << 62;

/// What tells a header's version before the rest is looked at.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// A header whose MAC has not been checked.
pub struct UntrustedHeader {
    /// Where it was read, in words.
    what: String,
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
            features: Vec::new(),
            region: self.region.to_string(),
            volume: self.volume.to_string(),
            layer: self.layer.to_string(),
            parent: self.parent.map(|p| p.to_string()),
            parent_point: self.parent_point.map(|p| p.to_string()),
            size_bytes: self.size_bytes,
            cipher: self.cipher.to_string(),
            kind: self.kind.clone(),
            key_id: self.key.map(|k| k.to_string()),
            key_version: self.key_version,
            wrapped_key: hex(&self.wrapped_key),
            wrapped_proof_key: hex(&self.wrapped_proof_key),
            mint: hex(&self.mint),
            points: self.points.iter().map(ToString::to_string).collect(),
            sealed_generation: self.sealed.map(|s| s.generation),
            sealed_mac: self.sealed.map(|s| hex(&s.mac)),
            turn: self.turn,
            edition: self.edition,
            reached_generation: self.reached.map(|r| r.generation),
            reached_confirmed: self.reached.map(|r| r.confirmed),
            fills_from: match self.fold {
                Some(Folding::Fills(parent)) => Some(parent.to_string()),
                _ => None,
            },
            absorbs: match self.fold {
                Some(Folding::Absorbs(child)) => Some(child.to_string()),
                _ => None,
            },
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
    /// Reads the text of the header in this layer's folder and checks its form.
    pub fn parse(text: &str, layer: LayerId) -> Result<Self> {
        let what = format!("header.toml of layer {layer}");
        let bad = |found: String| LayerError::corrupted(what.clone(), "a layer's header", found);
        let at = text.rfind(MAC_LINE).ok_or_else(|| bad("no MAC".into()))?;
        let (body, last) = text.split_at(at);
        let mac = last[MAC_LINE.len()..].strip_suffix("\"\n").and_then(unhex).and_then(|m| m.try_into().ok());
        let mac = mac.ok_or_else(|| bad("a malformed MAC".into()))?;
        let malformed = |e: toml::de::Error| bad(e.message().to_owned());
        let Version { format } = toml::from_str(body).map_err(malformed)?;
        if format < FORMAT {
            return Err(bad(format!(
                "format {format}, of an earlier version of this program, which alone can read it; this one knows format {FORMAT}"
            )));
        }
        if format > FORMAT {
            return Err(bad(format!("format {format}; this program knows format {FORMAT}")));
        }
        let t: Text = toml::from_str(body).map_err(malformed)?;
        if !t.features.is_empty() {
            return Err(bad(format!("features {:?}; this program knows none", t.features)));
        }
        if t.size_bytes == 0 || t.size_bytes > VOLUME_BYTES_MAX || !t.size_bytes.is_multiple_of(SECTOR_BYTES)
        {
            return Err(bad(format!("a size of {} bytes", t.size_bytes)));
        }
        if t.turn > TURN_MAX || t.edition > TURN_MAX {
            return Err(bad(format!("turn {}, edition {}", t.turn, t.edition)));
        }
        if t.parent.is_some() != t.parent_point.is_some() {
            return Err(bad("a parent without a point, or a point without a parent".into()));
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
        let mint = unhex(&t.mint).and_then(|m| m.try_into().ok());
        let mint = mint.ok_or_else(|| bad("a malformed mint".into()))?;
        let reached = match (t.reached_generation, t.reached_confirmed) {
            (None, None) => None,
            (Some(generation), Some(confirmed)) => Some(Anchor { generation, confirmed }),
            _ => return Err(bad("half of how far it was".into())),
        };
        let fold = match (t.fills_from, t.absorbs) {
            (None, None) => None,
            (Some(parent), None) => Some(Folding::Fills(parent.parse().map_err(id)?)),
            (None, Some(child)) => Some(Folding::Absorbs(child.parse().map_err(id)?)),
            _ => return Err(bad("two folds".into())),
        };
        if fold.is_some() && sealed.is_none() {
            return Err(bad("a fold into a layer that was not sealed".into()));
        }
        let wrapped = |text: &str| unhex(text).ok_or_else(|| bad("a malformed wrapped key".into()));
        let header = Header {
            region: t.region.parse().map_err(id)?,
            volume: t.volume.parse().map_err(id)?,
            layer: t.layer.parse().map_err(id)?,
            parent: t.parent.map(|p| p.parse()).transpose().map_err(id)?,
            parent_point: t.parent_point.map(|p| p.parse()).transpose().map_err(id)?,
            size_bytes: t.size_bytes,
            cipher: t.cipher.parse().map_err(|_| bad("an unknown cipher".into()))?,
            kind: t.kind,
            key: t.key_id.map(|k| k.parse()).transpose().map_err(id)?,
            key_version: t.key_version,
            wrapped_key: wrapped(&t.wrapped_key)?,
            wrapped_proof_key: wrapped(&t.wrapped_proof_key)?,
            mint,
            points: t.points.iter().map(|p| p.parse()).collect::<Result<_, _>>().map_err(id)?,
            sealed,
            turn: t.turn,
            edition: t.edition,
            reached,
            fold,
            took: t.took.map(|t| t.parse()).transpose().map_err(id)?,
        };
        Ok(Self { header, body: body.to_owned(), mac, what })
    }

    /// The fields as they stand: only to unwrap the key that [`UntrustedHeader::verify`] needs.
    pub fn claims(&self) -> &Header {
        &self.header
    }

    /// The header, if it was written with this layer's key.
    pub fn verify(self, prf: &Prf) -> Result<Header> {
        match prf.verify(&[self.body.as_bytes()], &self.mac) {
            true => Ok(self.header),
            false => Err(LayerError::corrupted(self.what, "a MAC of this layer's key", "another")),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{LayerKeys, Secret};

    fn header() -> Header {
        Header {
            region: RegionId([1; 16]),
            volume: "vol-0123456789abcdef0".parse().unwrap(),
            layer: LayerId([2; 16]),
            parent: Some(LayerId([3; 16])),
            parent_point: Some(Point([4; 16])),
            size_bytes: 1 << 20,
            cipher: Cipher::XtsAes256,
            kind: "data".into(),
            key: None,
            key_version: 0,
            wrapped_key: vec![9; 93],
            wrapped_proof_key: vec![11; 61],
            mint: [10; 16],
            points: vec![Point([5; 16]), Point([4; 16])],
            sealed: Some(SealedMark { generation: 3, mac: [6; 16] }),
            turn: 7,
            edition: 2,
            reached: Some(Anchor { generation: 3, confirmed: 70 }),
            fold: Some(Folding::Fills(LayerId([3; 16]))),
            took: Some(LayerId([8; 16])),
        }
    }

    /// A text by our own key, and what is said of it.
    fn refused(change: impl Fn(String) -> String) -> String {
        let keys =
            LayerKeys::derive(Cipher::XtsAes256, &Secret::new(std::array::from_fn(|i| i as u8))).unwrap();
        match UntrustedHeader::parse(&change(header().to_text(keys.header())), LayerId([2; 16])) {
            Ok(read) => read.verify(keys.header()).expect_err("it was changed").to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn an_earlier_format_is_refused_in_words() {
        let earlier = |text: String| {
            let gone = ["wrapped_proof_key"];
            let lines = text.lines().filter(|line| !gone.iter().any(|word| line.starts_with(word)));
            lines.map(|line| format!("{line}\n")).collect::<String>().replace("format = 4", "format = 3")
        };
        assert!(refused(earlier).contains("of an earlier version"), "{}", refused(earlier));
        let later = |text: String| text.replace("format = 4", "format = 5\nshape = \"new\"");
        assert!(refused(later).contains("this program knows format 4"), "{}", refused(later));
    }

    #[test]
    fn what_a_layer_stands_on_is_whole_and_vouched_for() {
        let lines = ["parent", "parent_point", "reached_generation", "reached_confirmed", "sealed_mac"];
        for gone in lines {
            let without = |text: String| {
                let kept = text.lines().filter(|line| !line.starts_with(&format!("{gone} =")));
                kept.map(|line| format!("{line}\n")).collect::<String>()
            };
            assert!(!refused(without).contains("a MAC of this layer's key"), "{gone}: {}", refused(without));
        }
        for (from, to) in [("0404", "0405"), ("edition = 2", "edition = 3"), ("fills_from", "absorbs")] {
            let changed = |text: String| text.replacen(from, to, 1);
            assert!(refused(changed).contains("a MAC of this layer's key"), "{from}: {}", refused(changed));
        }
    }
}
