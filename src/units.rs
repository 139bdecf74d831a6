//! Sectors, chunks, slots, and all arithmetic between them and bytes. No I/O.

use std::ops::Range;

/// Bytes in a sector: the unit of encryption, presence and integrity.
pub const SECTOR_BYTES: u64 = 4096;
/// The same, as a length in memory.
pub const SECTOR_LEN: usize = SECTOR_BYTES as usize;
/// Sectors in a chunk: the unit of a map page and of shipping.
pub const CHUNK_SECTORS: u64 = 512;
/// Bytes in a chunk (2 MiB).
pub const CHUNK_BYTES: u64 = CHUNK_SECTORS * SECTOR_BYTES;
/// The largest volume: 64 TiB.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;
/// The largest request that is one log record: 1 MiB.
pub const REQUEST_BYTES_MAX: u64 = 1 << 20;
/// Sectors in the largest request.
pub const REQUEST_SECTORS_MAX: u64 = REQUEST_BYTES_MAX / SECTOR_BYTES;

/// A sector's number in the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectorNo(pub u64);

/// A chunk's number in the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkNo(pub u64);

/// A slot's number in a layer's data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotNo(pub u64);

impl SlotNo {
    /// Whether `other` lies right behind it: both are read or written by one call.
    pub fn is_right_before(self, other: Self) -> bool {
        self.0 + 1 == other.0
    }
}

impl SectorNo {
    /// The chunk this sector lies in.
    pub fn chunk(self) -> ChunkNo {
        ChunkNo(self.0 / CHUNK_SECTORS)
    }

    /// Its place among the chunk's 512 sectors.
    pub fn index_in_chunk(self) -> usize {
        (self.0 % CHUNK_SECTORS) as usize
    }

    /// Offset of its first byte in the disk.
    pub fn byte(self) -> u64 {
        self.0 * SECTOR_BYTES
    }
}

impl ChunkNo {
    /// The chunk's first sector.
    pub fn first_sector(self) -> SectorNo {
        SectorNo(self.0 * CHUNK_SECTORS)
    }
}

/// The sector that holds a byte of the disk.
pub fn sector_of_byte(byte: u64) -> SectorNo {
    SectorNo(byte / SECTOR_BYTES)
}

/// Sectors a disk of this size has.
pub fn sectors_of_bytes(bytes: u64) -> u64 {
    bytes.div_ceil(SECTOR_BYTES)
}

/// A byte range of the disk as the sectors it touches, with how far it reaches into the first and last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First sector touched.
    pub first: SectorNo,
    /// Number of sectors touched; at least one.
    pub count: u64,
    /// Bytes of the first sector before the range.
    pub head: usize,
    /// Bytes of the last sector after the range.
    pub tail: usize,
}

impl Span {
    /// The span of `len` > 0 bytes from `offset`; `None` where that overflows or is empty.
    pub fn of_bytes(offset: u64, len: u64) -> Option<Self> {
        let end = offset.checked_add(len)?;
        if len == 0 {
            return None;
        }
        let first = offset / SECTOR_BYTES;
        let count = end.div_ceil(SECTOR_BYTES) - first;
        let head = (offset % SECTOR_BYTES) as usize;
        let tail = (end.next_multiple_of(SECTOR_BYTES) - end) as usize;
        Some(Self { first: SectorNo(first), count, head, tail })
    }

    /// Whether it begins and ends at sector borders.
    pub fn is_whole(&self) -> bool {
        self.head == 0 && self.tail == 0
    }
}

/// Only the whole sectors inside a byte range (what a discard may drop), possibly none.
pub fn whole_sectors_within(bytes: Range<u64>) -> Range<u64> {
    let first = bytes.start.div_ceil(SECTOR_BYTES);
    let end = bytes.end / SECTOR_BYTES;
    first..end.max(first)
}

/// Cuts a run of sectors at chunk borders: each piece is (chunk, first index, count).
pub fn by_chunk(first: SectorNo, count: u64) -> impl Iterator<Item = (ChunkNo, usize, usize)> {
    let end = first.0 + count;
    let mut at = first.0;
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let sector = SectorNo(at);
            let index = sector.index_in_chunk();
            let take = (CHUNK_SECTORS - index as u64).min(end - at);
            at += take;
            (sector.chunk(), index, take as usize)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_cover_their_bytes_exactly() {
        for offset in [0, 1, 4095, 4096, 4097, 1 << 40] {
            for len in [1, 2, 4095, 4096, 4097, 8192, 1 << 20] {
                let span = Span::of_bytes(offset, len).unwrap();
                assert_eq!(span.first.byte() + span.head as u64, offset);
                assert_eq!((span.first.0 + span.count) * SECTOR_BYTES - span.tail as u64, offset + len);
                assert!(span.head < SECTOR_LEN && span.tail < SECTOR_LEN);
            }
        }
        assert_eq!(Span::of_bytes(5, 0), None);
        assert_eq!(Span::of_bytes(u64::MAX, 2), None);
    }

    #[test]
    fn chunks_partition_a_run() {
        let pieces: Vec<_> = by_chunk(SectorNo(510), 516).collect();
        assert_eq!(pieces, [(ChunkNo(0), 510, 2), (ChunkNo(1), 0, 512), (ChunkNo(2), 0, 2)]);
        assert_eq!(by_chunk(SectorNo(3), 0).count(), 0);
    }

    #[test]
    fn a_discard_keeps_partial_sectors() {
        assert_eq!(whole_sectors_within(1..8191), 1..1);
        assert_eq!(whole_sectors_within(0..8191), 0..1);
        assert_eq!(whole_sectors_within(4096..12288), 1..3);
    }
}
