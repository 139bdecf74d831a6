//! The bytes of a bookmark, a file in a layer's folder: what a fold would have everybody forget.
//!
//! A *bookmark* says of two moments of a disk, two points, that between them no sector changed but these. A *taken* file says
//! what the sectors of a layer held that a fold brings into one that takes writes: their tags there, by which those are told that
//! were written since.
//!
//! Both are true for ever: points are never minted twice, and a tag is that of its bytes. So none is ever changed, and an
//! older one that is put back says nothing wrong. They carry a MAC by the key of the layer in whose folder they lie.

use super::error::{LayerError, Result};
use super::sector_set::{CHUNKS_MAX, ChunkBits, Piece, SectorSet};
use crate::crypto::Prf;
use crate::ids::{LayerId, Point};

const MAGIC: [u8; 8] = *b"terrmark";
const VERSION: u32 = 1;
/// A longer file is neither written nor read: 1.6 TiB of disk written here and there.
pub const BOOKMARK_LEN_MAX: u64 = 64 << 20;

/// Between two moments nothing changed but these sectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bookmark {
    /// The earlier moment.
    pub from: Point,
    /// The later one.
    pub to: Point,
    /// What may hold something else at the later one.
    pub changed: SectorSet,
}

/// What sectors held at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// That moment: the point of the first layer that was brought into this one.
    pub since: Point,
    /// What the layer stood on before this fold: the point of the layer whose sectors these are.
    pub before: Point,
    /// What it stands on after it.
    pub after: Option<Point>,
    /// In order.
    pub chunks: Vec<TakenChunk>,
}

/// The sectors of one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenChunk {
    /// Which.
    pub chunk: u64,
    /// Sectors with bytes.
    pub data: ChunkBits,
    /// Sectors that were zero, and said to be.
    pub zero: ChunkBits,
    /// The tag that each with bytes has in this layer, in order.
    pub tags: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Changed = 1,
    Taken = 2,
}

impl Bookmark {
    /// Its bytes, in the folder of this layer.
    pub fn to_bytes(&self, layer: LayerId, prf: &Prf) -> Vec<u8> {
        let pieces = self.changed.pieces();
        let mut bytes = head(Kind::Changed, layer, pieces.len());
        bytes.extend_from_slice(&self.from.0);
        bytes.extend_from_slice(&self.to.0);
        for piece in pieces {
            put(&mut bytes, &[piece.first, piece.chunks]);
            put(&mut bytes, &piece.bits.0);
        }
        seal(bytes, prf)
    }

    /// Reads one of this layer's folder.
    pub fn parse(bytes: &[u8], layer: LayerId, prf: &Prf) -> Result<Self> {
        let (count, mut rest) = open(bytes, Kind::Changed, layer, prf)?;
        let (from, to) = (Point(rest.array()?), Point(rest.array()?));
        let mut changed = SectorSet::default();
        let mut end = 0;
        for _ in 0..count {
            let piece = Piece { first: rest.number()?, chunks: rest.number()?, bits: rest.bits()? };
            let is_within = piece.first.checked_add(piece.chunks).is_some_and(|end| end <= CHUNKS_MAX);
            if !is_within || piece.first < end || piece.chunks == 0 || piece.bits.is_empty() {
                return Err(bad("chunks of a disk, in order", "others"));
            }
            end = piece.end();
            changed.push_piece(piece);
        }
        rest.end()?;
        Ok(Self { from, to, changed })
    }
}

impl Taken {
    /// Its bytes, in the folder of this layer.
    pub fn to_bytes(&self, layer: LayerId, prf: &Prf) -> Vec<u8> {
        let mut bytes = head(Kind::Taken, layer, self.chunks.len());
        bytes.extend_from_slice(&self.since.0);
        bytes.extend_from_slice(&self.before.0);
        bytes.extend_from_slice(&self.after.map_or([0; 16], |after| after.0));
        put(&mut bytes, &[u64::from(self.after.is_some())]);
        for chunk in &self.chunks {
            put(&mut bytes, &[chunk.chunk]);
            put(&mut bytes, &chunk.data.0);
            put(&mut bytes, &chunk.zero.0);
            put(&mut bytes, &chunk.tags);
        }
        seal(bytes, prf)
    }

    /// Reads one of this layer's folder.
    pub fn parse(bytes: &[u8], layer: LayerId, prf: &Prf) -> Result<Self> {
        let (count, mut rest) = open(bytes, Kind::Taken, layer, prf)?;
        let (since, before, after) = (Point(rest.array()?), Point(rest.array()?), Point(rest.array()?));
        let after = match rest.number()? {
            0 => None,
            1 => Some(after),
            other => return Err(bad("0 or 1", other.to_string())),
        };
        let mut chunks: Vec<TakenChunk> = Vec::new();
        for _ in 0..count {
            let (chunk, data, zero) = (rest.number()?, rest.bits()?, rest.bits()?);
            if chunk >= CHUNKS_MAX || chunks.last().is_some_and(|last| last.chunk >= chunk) {
                return Err(bad("chunks of a disk, in order", "others"));
            }
            let tags = (0..data.count()).map(|_| rest.number()).collect::<Result<_>>()?;
            chunks.push(TakenChunk { chunk, data, zero, tags });
        }
        rest.end()?;
        Ok(Self { since, before, after, chunks })
    }

    /// What it says of a chunk.
    pub fn chunk(&self, chunk: u64) -> Option<&TakenChunk> {
        self.chunks.binary_search_by_key(&chunk, |taken| taken.chunk).ok().map(|at| &self.chunks[at])
    }
}

fn head(kind: Kind, layer: LayerId, count: usize) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(kind as u32).to_le_bytes());
    put(&mut bytes, &[0, count as u64]);
    bytes.extend_from_slice(&layer.0);
    bytes
}

fn put(bytes: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
}

fn seal(mut bytes: Vec<u8>, prf: &Prf) -> Vec<u8> {
    let mac = mac_of(&bytes, prf);
    bytes.extend_from_slice(&mac);
    bytes
}

/// Apart from all else that this key speaks for.
fn mac_of(bytes: &[u8], prf: &Prf) -> [u8; 16] {
    prf.mac(&[b"bookmark\0", bytes])
}

/// The count that the head says, and what follows the head.
fn open<'a>(bytes: &'a [u8], kind: Kind, layer: LayerId, prf: &Prf) -> Result<(u64, Rest<'a>)> {
    let (body, mac) = bytes.split_last_chunk::<16>().ok_or_else(|| bad("a head and a MAC", "fewer bytes"))?;
    let mut rest = Rest(body);
    if rest.array()? != MAGIC {
        return Err(bad("a bookmark", "another file"));
    }
    let version = u32::from_le_bytes(rest.array()?);
    if version != VERSION {
        return Err(bad(format!("version {VERSION}"), version.to_string()));
    }
    let found = u32::from_le_bytes(rest.array()?);
    let features = rest.number()?;
    if (found, features) != (kind as u32, 0) {
        return Err(bad(format!("kind {} without features", kind as u32), format!("{found}, {features:#x}")));
    }
    let count = rest.number()?;
    let of = LayerId(rest.array()?);
    if of != layer {
        return Err(bad("one of this layer", format!("one of layer {of}")));
    }
    match prf.verify(&[b"bookmark\0", body], mac) {
        true => Ok((count, rest)),
        false => Err(bad("a MAC of this layer's key", "another")),
    }
}

/// What of a file was not read yet.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, left) = self.0.split_first_chunk().ok_or_else(|| bad("more bytes", "its end"))?;
        self.0 = left;
        Ok(*taken)
    }

    fn number(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn bits(&mut self) -> Result<ChunkBits> {
        let mut bits = ChunkBits::NONE;
        for word in &mut bits.0 {
            *word = self.number()?;
        }
        Ok(bits)
    }

    fn end(self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(bad("its end", format!("{left} more bytes"))),
        }
    }
}

fn bad(expected: impl Into<String>, found: impl Into<String>) -> LayerError {
    LayerError::corrupted("a bookmark", expected, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Secret;

    const LAYER: LayerId = LayerId([7; 16]);

    fn prf() -> Prf {
        Prf::new(&Secret::new(std::array::from_fn(|i| i as u8)))
    }

    fn bookmark() -> Bookmark {
        let mut changed = SectorSet::default();
        let mut bits = ChunkBits::NONE;
        [0, 77, 511].into_iter().for_each(|index| bits.insert(index));
        changed.push(3, bits);
        changed.push(4, bits);
        changed.push(900, ChunkBits([u64::MAX; WORDS]));
        Bookmark { from: Point([1; 16]), to: Point([2; 16]), changed }
    }

    const WORDS: usize = 8;

    fn taken() -> Taken {
        let (mut data, mut zero) = (ChunkBits::NONE, ChunkBits::NONE);
        data.insert(9);
        data.insert(64);
        zero.insert(10);
        let chunks = vec![TakenChunk { chunk: 5, data, zero, tags: vec![3, 4] }];
        Taken { since: Point([1; 16]), before: Point([2; 16]), after: None, chunks }
    }

    #[test]
    fn what_is_written_reads_back_and_nothing_else_does() {
        let prf = prf();
        let (mark, of_fold) = (bookmark().to_bytes(LAYER, &prf), taken().to_bytes(LAYER, &prf));
        assert_eq!(Bookmark::parse(&mark, LAYER, &prf).unwrap(), bookmark());
        assert_eq!(Taken::parse(&of_fold, LAYER, &prf).unwrap(), taken());
        assert!(Taken::parse(&mark, LAYER, &prf).is_err() && Bookmark::parse(&of_fold, LAYER, &prf).is_err());
        assert!(Bookmark::parse(&mark, LayerId([8; 16]), &prf).is_err());
        for bytes in [&mark, &of_fold] {
            let is_read = |bytes: &[u8]| {
                Bookmark::parse(bytes, LAYER, &prf).is_ok() || Taken::parse(bytes, LAYER, &prf).is_ok()
            };
            assert!((0..bytes.len()).all(|len| !is_read(&bytes[..len])), "a part of it");
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 4;
                assert!(!is_read(&changed), "byte {at}");
            }
        }
    }

    /// By a key that is known, what no disk has.
    #[test]
    fn what_can_not_be_is_refused_without_a_panic() {
        let prf = prf();
        for piece in [[u64::MAX, 1], [1, u64::MAX], [5, 0], [CHUNKS_MAX, 1]] {
            let mut bytes = head(Kind::Changed, LAYER, 1);
            bytes.extend_from_slice(&[0; 32]);
            put(&mut bytes, &piece);
            put(&mut bytes, &[1; WORDS]);
            assert!(Bookmark::parse(&seal(bytes, &prf), LAYER, &prf).is_err(), "{piece:?}");
        }
        let bytes = head(Kind::Taken, LAYER, usize::MAX);
        assert!(Taken::parse(&seal(bytes, &prf), LAYER, &prf).is_err());
    }

    /// Whoever changes these bytes bumps the version.
    #[test]
    fn the_bytes_are_frozen() {
        let bytes = bookmark().to_bytes(LAYER, &prf());
        assert_eq!(bytes.len(), 80 + 2 * 80 + 16);
        assert_eq!(bytes[..12], *b"terrmark\x01\0\0\0");
        assert_eq!((bytes[12], bytes[24], bytes[80], bytes[88], bytes[96]), (1, 2, 3, 2, 1));
        assert_eq!(taken().to_bytes(LAYER, &prf()).len(), 104 + 136 + 16 + 16);
    }
}
