//! The layer's bytes: superblock, log records, map pages. Parsing gives values whose every field has been checked.
//!
//! `docs/format.md` draws them. All integers are little-endian; reserved bits are zero, else the bytes are refused.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::error::{LayerError, Result};
use crate::crypto::{LayerKeys, Prf};
use crate::ids::LayerId;
use crate::units::{CHUNK_SECTORS, SECTOR_BYTES, SlotNo, VOLUME_BYTES_MAX};

/// Begins every superblock.
pub const MAGIC: [u8; 8] = *b"terrane\x01";
/// The version of these bytes.
pub const VERSION: u32 = 2;
/// Where the two log halves begin.
pub const LOG_OFFSET: u64 = 1 << 20;
/// Bytes of one log half.
pub const HALF_BYTES: u64 = 16 << 20;
/// Where slot 0 begins.
pub const SLOTS_OFFSET: u64 = 64 << 20;
/// Slots a layer can name (40 bits).
pub const SLOTS_MAX: u64 = 1 << 40;
/// Bytes of a map page.
pub const PAGE_LEN: usize = 8192;
/// Superblock flag: closed in order, the log is empty.
pub const FLAG_CLEAN: u32 = 1;
/// Superblock flag: sealed, the content never changes.
pub const FLAG_SEALED: u32 = 2;

/// Offset of a slot in the data file.
pub fn slot_offset(slot: SlotNo) -> u64 {
    SLOTS_OFFSET + slot.0 * SECTOR_BYTES
}

/// What a layer says of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing: ask the parent.
    Absent,
    /// In this slot.
    Data(SlotNo),
    /// All zero, whatever the parent holds.
    Zero,
}

const STATE_SHIFT: u32 = 62;
const SLOT_MASK: u64 = SLOTS_MAX - 1;

/// A map entry: where a sector is, and the tag its ciphertext must have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Entry {
    tag: U64,
    place: U64,
}

impl Entry {
    /// The sector is not in this layer.
    pub const ABSENT: Self = Self { tag: U64::ZERO, place: U64::ZERO };
    /// The sector is all zero.
    pub const ZERO: Self = Self { tag: U64::ZERO, place: U64::new(2 << STATE_SHIFT) };

    /// The sector is in a slot.
    pub fn data(slot: SlotNo, tag: u64) -> Self {
        Self { tag: U64::new(tag), place: U64::new(1 << STATE_SHIFT | slot.0) }
    }

    /// The tag of a sector in a slot.
    pub fn tag(self) -> u64 {
        self.tag.get()
    }

    /// The state, for entries already checked by [`Entry::is_valid`].
    pub fn state(self) -> State {
        match self.place.get() >> STATE_SHIFT {
            0 => State::Absent,
            1 => State::Data(SlotNo(self.place.get() & SLOT_MASK)),
            _ => State::Zero,
        }
    }

    /// The slot, where it has one.
    pub fn slot(self) -> Option<SlotNo> {
        match self.state() {
            State::Data(slot) => Some(slot),
            State::Absent | State::Zero => None,
        }
    }

    /// Whether nothing is recorded of the sector.
    pub fn is_absent(self) -> bool {
        self.place.get() == 0
    }

    fn is_valid(self) -> bool {
        let place = self.place.get();
        match place >> STATE_SHIFT {
            1 => place & !(3 << STATE_SHIFT) & !SLOT_MASK == 0,
            0 | 2 => place & !(3 << STATE_SHIFT) == 0 && self.tag.get() == 0,
            _ => false,
        }
    }
}

/// A reference to a map page: whether and where it exists, and 126 bits of its MAC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PageRef(pub u128);

impl PageRef {
    /// No page: everything below is absent.
    pub const ABSENT: Self = Self(0);
    /// No page: everything below is zero.
    pub const ZERO: Self = Self(2);
    /// A page that was found damaged while entries below it were to be changed: no page has this MAC (but for one in
    /// 2¹²⁶), so that its span is an error from then on, and an older page that turns up again is not believed.
    pub const LOST: Self = Self(u128::MAX);

    /// The reference to a page written to `place`.
    pub fn new(keys: &LayerKeys, page: &Page, n: u64, place: u8) -> Self {
        let mac = u128::from_le_bytes(keys.page().mac(&[page.as_bytes(), &n.to_le_bytes()]));
        Self(mac & !3 | 1 | u128::from(place & 1) << 1)
    }

    /// Whether a page exists.
    pub fn exists(self) -> bool {
        self.0 & 1 != 0
    }

    /// Which of the page's two places holds it.
    pub fn place(self) -> u8 {
        (self.0 >> 1 & 1) as u8
    }

    /// What every sector below is, where no page exists.
    pub fn uniform(self) -> Entry {
        if self == Self::ZERO { Entry::ZERO } else { Entry::ABSENT }
    }

    /// Whether `page` is what this refers to.
    pub fn vouches(self, keys: &LayerKeys, page: &Page, n: u64) -> bool {
        Self::new(keys, page, n, self.place()) == self
    }
}

/// A map page: 512 entries (leaf) or 512 references (inner).
///
/// Aligned to no more than any block of memory: pages come and go beside small blocks, and glibc before 2.38 does not find room
/// again that was given back where more is asked for (112 MiB resident with 30 in use, and 57 so).
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(16))]
pub struct Page([u8; PAGE_LEN]);

impl Page {
    /// A page of zero bytes: all absent.
    pub fn boxed() -> Box<Self> {
        Box::new(Self([0; PAGE_LEN]))
    }

    /// A leaf whose every entry is the same.
    pub fn uniform(entry: Entry) -> Box<Self> {
        let mut page = Self::boxed();
        page.entries_mut().fill(entry);
        page
    }

    /// An inner page whose every reference is the same.
    pub fn uniform_refs(page_ref: PageRef) -> Box<Self> {
        let mut page = Self::boxed();
        (0..512).for_each(|i| page.set_page_ref(i, page_ref));
        page
    }

    /// All bytes, to read into.
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_LEN] {
        &mut self.0
    }

    /// The entries of a leaf.
    pub fn entries(&self) -> &[Entry; CHUNK_SECTORS as usize] {
        zerocopy::transmute_ref!(&self.0)
    }

    /// The entries of a leaf, to change.
    pub fn entries_mut(&mut self) -> &mut [Entry; CHUNK_SECTORS as usize] {
        zerocopy::transmute_mut!(&mut self.0)
    }

    /// A reference of an inner page.
    pub fn page_ref(&self, index: usize) -> PageRef {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.0[index * 16..][..16]);
        PageRef(u128::from_le_bytes(bytes))
    }

    /// Sets a reference of an inner page.
    pub fn set_page_ref(&mut self, index: usize, page_ref: PageRef) {
        self.0[index * 16..][..16].copy_from_slice(&page_ref.0.to_le_bytes());
    }

    /// Whether all entries of a leaf are well-formed. (Its MAC says who wrote it, not that it is well-formed.)
    pub fn is_valid_leaf(&self) -> bool {
        self.entries().iter().all(|e| e.is_valid())
    }

    /// The one entry all of a leaf's are, if none needs a page.
    pub fn uniform_entry(&self) -> Option<PageRef> {
        let first = self.entries()[0];
        let same = first.slot().is_none() && self.entries().iter().all(|e| *e == first);
        same.then_some(if first == Entry::ZERO { PageRef::ZERO } else { PageRef::ABSENT })
    }

    /// The one reference all of an inner page's are, if none exists.
    pub fn uniform_page_ref(&self) -> Option<PageRef> {
        let first = self.page_ref(0);
        (!first.exists() && (1..512).all(|i| self.page_ref(i) == first)).then_some(first)
    }
}

/// A place in the log: which half, epoch, the next seq and the MAC before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogStart {
    /// 0 or 1.
    pub half: usize,
    /// Counts uses of a half; records of other epochs do not fit.
    pub epoch: u64,
    /// Seq of the first record.
    pub seq: u64,
    /// What the first record names as the MAC before it.
    pub chain: [u8; 16],
}

/// A superblock whose MAC and fields have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// `FLAG_CLEAN`, `FLAG_SEALED`.
    pub flags: u32,
    /// Counts superblocks; its lowest bit is the place it is written to.
    pub generation: u64,
    /// Size of the disk.
    pub size_bytes: u64,
    /// Where the records not yet in the map begin.
    pub log: LogStart,
    /// No slot at or above has been used by what the map names.
    pub slots_high: u64,
    /// Sectors in slots.
    pub data_sectors: u64,
    /// The least edition of the layer's header that this goes with.
    pub edition: u64,
    /// The map's roots, 512 GiB each.
    pub top: [PageRef; 128],
}

const TOP_AT: usize = 2032;
const MAC_AT: usize = 4080;

impl Superblock {
    /// Where the superblock of a generation lies.
    pub fn offset(generation: u64) -> u64 {
        (generation & 1) * 4096
    }

    /// Whether the layer is sealed.
    pub fn is_sealed(&self) -> bool {
        self.flags & FLAG_SEALED != 0
    }

    /// Its bytes, and the MAC in them.
    pub fn to_bytes(&self, layer: LayerId, prf: &Prf) -> ([u8; 4096], [u8; 16]) {
        let mut b = [0; 4096];
        b[..8].copy_from_slice(&MAGIC);
        b[8..12].copy_from_slice(&VERSION.to_le_bytes());
        b[12..16].copy_from_slice(&self.flags.to_le_bytes());
        b[16..32].copy_from_slice(&layer.0);
        let words = [self.generation, self.size_bytes, self.log.epoch, self.log.seq];
        words.iter().enumerate().for_each(|(i, w)| b[32 + 8 * i..][..8].copy_from_slice(&w.to_le_bytes()));
        b[64..80].copy_from_slice(&self.log.chain);
        let words = [self.log.half as u64, self.slots_high, self.data_sectors, self.edition];
        words.iter().enumerate().for_each(|(i, w)| b[80 + 8 * i..][..8].copy_from_slice(&w.to_le_bytes()));
        for (i, page_ref) in self.top.iter().enumerate() {
            b[TOP_AT + 16 * i..][..16].copy_from_slice(&page_ref.0.to_le_bytes());
        }
        let mac = prf.mac(&[&b[..MAC_AT]]);
        b[MAC_AT..].copy_from_slice(&mac);
        (b, mac)
    }

    /// Checks and reads one; also its MAC.
    pub fn parse(b: &[u8; 4096], layer: LayerId, prf: &Prf) -> Result<(Self, [u8; 16])> {
        let bad = |expected: &str, found: String| LayerError::corrupted("a superblock", expected, found);
        if b[..8] != MAGIC {
            return Err(bad("its magic", format!("{:02x?}", &b[..8])));
        }
        let version = u32_at(b, 8);
        if version != VERSION {
            let found = match version < VERSION {
                true => format!("version {version}, of an earlier version of this program"),
                false => format!("version {version}"),
            };
            return Err(bad(&format!("version {VERSION}"), found));
        }
        let mut mac = [0; 16];
        mac.copy_from_slice(&b[MAC_AT..]);
        if !prf.verify(&[&b[..MAC_AT]], &mac) {
            return Err(bad("a MAC of this layer's key", "another".into()));
        }
        let sb = Self {
            flags: u32_at(b, 12),
            generation: u64_at(b, 32),
            size_bytes: u64_at(b, 40),
            log: LogStart {
                half: usize::try_from(u64_at(b, 80)).unwrap_or(usize::MAX),
                epoch: u64_at(b, 48),
                seq: u64_at(b, 56),
                chain: array_at(b, 64),
            },
            slots_high: u64_at(b, 88),
            data_sectors: u64_at(b, 96),
            edition: u64_at(b, 104),
            top: std::array::from_fn(|i| PageRef(u128::from_le_bytes(array_at(b, TOP_AT + 16 * i)))),
        };
        let known = sb.flags & !(FLAG_CLEAN | FLAG_SEALED) == 0 && b[112..TOP_AT].iter().all(|x| *x == 0);
        let bounded = sb.log.half < 2
            && sb.slots_high < SLOTS_MAX
            && sb.size_bytes <= VOLUME_BYTES_MAX
            && sb.size_bytes.is_multiple_of(SECTOR_BYTES)
            && sb.generation < u64::MAX / 2
            && sb.edition < u64::MAX / 2
            && sb.log.epoch < u64::MAX / 2
            // The first record is number 1.
            && (1..u64::MAX / 2).contains(&sb.log.seq);
        if b[16..32] != layer.0 || !known || !bounded {
            return Err(bad("fields of this layer within their bounds", "others".into()));
        }
        Ok((sb, mac))
    }
}

/// What a log record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sectors went to slots, or became absent or zero.
    Write = 1,
    /// A flush covers what stands before.
    Mark = 2,
    /// Names the newest confirmed mark.
    Done = 3,
    /// The half is full; the log goes on in the other.
    Close = 4,
    /// The layer is sealed.
    End = 5,
}

impl Kind {
    fn parse(n: u16) -> Option<Self> {
        [Self::Write, Self::Mark, Self::Done, Self::Close, Self::End].into_iter().find(|k| *k as u16 == n)
    }
}

/// Consecutive sectors in consecutive slots, or all in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First sector.
    pub sector: u64,
    /// Its state; for data, of the first: the others follow.
    pub state: State,
    /// Number of sectors.
    pub count: u32,
}

/// Begins every record.
pub const RECORD_MAGIC: u32 = 0x4c52_4554; // "TERL"
const HEAD_LEN: usize = 56;
const RUN_LEN: usize = 24;
const MAC_LEN: usize = 16;
/// Bytes of a record without runs.
pub const BARE_RECORD_LEN: usize = HEAD_LEN + MAC_LEN;
/// More than any record has: 256 sectors, each a run of its own, or the pieces of a discard.
pub const RECORD_LEN_MAX: usize = 32 << 10;
/// Runs a record may hold.
pub const RUNS_MAX: usize = (RECORD_LEN_MAX - BARE_RECORD_LEN) / (RUN_LEN + 8);

/// A record being built: its place in the log is filled in under the log's lock.
#[derive(Default)]
pub struct RecordBuffer {
    bytes: Vec<u8>,
}

impl RecordBuffer {
    /// Lays out runs and tags; the head stays blank.
    pub fn lay_out(&mut self, kind: Kind, runs: &[Run], tags: &[u64]) {
        debug_assert!(runs.len() <= RUNS_MAX);
        let b = &mut self.bytes;
        b.clear();
        b.resize(HEAD_LEN, 0);
        b[32..34].copy_from_slice(&(kind as u16).to_le_bytes());
        b[34..36].copy_from_slice(&(runs.len() as u16).to_le_bytes());
        for run in runs {
            b.extend_from_slice(&run.sector.to_le_bytes());
            let place = match run.state {
                State::Absent => 0,
                State::Data(slot) => 1 << STATE_SHIFT | slot.0,
                State::Zero => 2 << STATE_SHIFT,
            };
            b.extend_from_slice(&place.to_le_bytes());
            b.extend_from_slice(&u64::from(run.count).to_le_bytes());
        }
        tags.iter().for_each(|t| b.extend_from_slice(&t.to_le_bytes()));
        b.resize(b.len() + MAC_LEN, 0);
    }

    /// Its length in the log.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Fills in where it stands; the bytes to append and their MAC, which the next record names.
    pub fn finish(
        &mut self,
        prf: &Prf,
        seq: u64,
        epoch: u64,
        confirmed: u64,
        chain: &[u8; 16],
    ) -> (&[u8], [u8; 16]) {
        let b = &mut self.bytes;
        let len = b.len();
        b[..4].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
        b[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        for (at, word) in [(8, seq), (16, epoch), (24, confirmed)] {
            b[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        b[40..56].copy_from_slice(chain);
        let mac = prf.mac(&[&b[..len - MAC_LEN]]);
        b[len - MAC_LEN..].copy_from_slice(&mac);
        (b, mac)
    }
}

/// A record of the log whose MAC and fields have been checked.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number.
    pub seq: u64,
    /// The use of the half it belongs to.
    pub epoch: u64,
    /// The newest mark known to be durable when it was written.
    pub confirmed: u64,
    /// The MAC of the record before.
    pub chain: [u8; 16],
    /// What it says.
    pub kind: Kind,
    /// The sectors.
    pub runs: Vec<Run>,
    /// A tag for each sector in a slot, in the order of the runs. Of a close that recovery wrote: a random number.
    pub tags: Vec<u64>,
    /// Its own MAC.
    pub mac: [u8; 16],
    /// Bytes it takes.
    pub len: usize,
}

impl Record {
    /// The record at the start of `b`, if its MAC is one of this layer's key and its fields are well-formed.
    pub fn parse(b: &[u8], prf: &Prf, disk_sectors: u64) -> Option<Self> {
        if b.len() < BARE_RECORD_LEN || u32_at(b, 0) != RECORD_MAGIC {
            return None;
        }
        let len = u32_at(b, 4) as usize;
        if !(BARE_RECORD_LEN..=RECORD_LEN_MAX).contains(&len) || !len.is_multiple_of(8) || len > b.len() {
            return None;
        }
        let b = &b[..len];
        let mac = array_at(b, len - MAC_LEN);
        if !prf.verify(&[&b[..len - MAC_LEN]], &mac) {
            return None;
        }
        let count = u16_at(b, 34) as usize;
        let tags_at = HEAD_LEN + RUN_LEN * count;
        if tags_at + MAC_LEN > len || u32_at(b, 36) != 0 {
            return None;
        }
        let runs = (0..count)
            .map(|i| parse_run(&b[HEAD_LEN + RUN_LEN * i..], disk_sectors))
            .collect::<Option<Vec<_>>>()?;
        let tags: Vec<u64> = b[tags_at..len - MAC_LEN].chunks_exact(8).map(|t| u64_at(t, 0)).collect();
        let wanted: u64 =
            runs.iter().filter(|r| matches!(r.state, State::Data(_))).map(|r| u64::from(r.count)).sum();
        let kind = Kind::parse(u16_at(b, 32))?;
        // A close may carry a random number instead of tags.
        let random = u64::from(kind == Kind::Close && count == 0).min(tags.len() as u64);
        if tags.len() as u64 != wanted + random {
            return None;
        }
        Some(Self {
            seq: u64_at(b, 8),
            epoch: u64_at(b, 16),
            confirmed: u64_at(b, 24),
            chain: array_at(b, 40),
            kind,
            runs,
            tags,
            mac,
            len,
        })
    }

    /// The entries it installs: (sector, entry).
    pub fn entries(&self) -> impl Iterator<Item = (u64, Entry)> + '_ {
        let mut tags = self.tags.iter();
        self.runs.iter().flat_map(move |run| {
            let of_run = if matches!(run.state, State::Data(_)) { run.count as usize } else { 0 };
            let run_tags = &tags.as_slice()[..of_run];
            tags = tags.as_slice()[of_run..].iter();
            (0..u64::from(run.count)).map(move |i| {
                let entry = match run.state {
                    State::Absent => Entry::ABSENT,
                    State::Zero => Entry::ZERO,
                    State::Data(slot) => Entry::data(SlotNo(slot.0 + i), run_tags[i as usize]),
                };
                (run.sector + i, entry)
            })
        })
    }
}

fn parse_run(b: &[u8], disk_sectors: u64) -> Option<Run> {
    let (sector, place, count) = (u64_at(b, 0), u64_at(b, 8), u64_at(b, 16));
    // A run is of one request, or of a discard's part in one chunk: a larger one would be work and memory without end.
    let count = u32::try_from(count).ok().filter(|c| (1..=CHUNK_SECTORS as u32).contains(c))?;
    let entry = Entry { tag: U64::ZERO, place: U64::new(place) };
    if !entry.is_valid() || sector.checked_add(u64::from(count))? > disk_sectors {
        return None;
    }
    if let State::Data(slot) = entry.state()
        && slot.0 + u64::from(count) > SLOTS_MAX
    {
        return None;
    }
    Some(Run { sector, state: entry.state(), count })
}

fn array_at<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&b[at..at + N]);
    out
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(b, at))
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(b, at))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(b, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Cipher, Secret};

    fn keys() -> LayerKeys {
        LayerKeys::derive(Cipher::XtsAes256, &Secret::new(std::array::from_fn(|i| i as u8))).unwrap()
    }

    fn superblock() -> Superblock {
        Superblock {
            flags: FLAG_CLEAN,
            generation: 6,
            size_bytes: 1 << 30,
            log: LogStart { half: 1, epoch: 4, seq: 77, chain: [9; 16] },
            slots_high: 1000,
            data_sectors: 900,
            edition: 3,
            top: std::array::from_fn(|i| PageRef(i as u128 * 4)),
        }
    }

    fn page() -> Box<Page> {
        let mut page = Page::boxed();
        page.entries_mut()[0] = Entry::data(SlotNo(5), 0x0123_4567_89ab_cdef);
        page.entries_mut()[511] = Entry::ZERO;
        page
    }

    fn record() -> Vec<u8> {
        let runs = [
            Run { sector: 3, state: State::Data(SlotNo(40)), count: 2 },
            Run { sector: 9, state: State::Zero, count: 512 },
        ];
        let mut buffer = RecordBuffer::default();
        buffer.lay_out(Kind::Write, &runs, &[1, 2]);
        buffer.finish(keys().log(), 77, 4, 70, &[9; 16]).0.to_vec()
    }

    /// A short digest that other programs can make as well.
    fn digest(bytes: &[u8]) -> String {
        use sha2::{Digest, Sha256};
        Sha256::digest(bytes)[..8].iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The bytes are a promise to every disk there is. If this test fails and the change is meant: bump [`VERSION`]
    /// (and `header::FORMAT`), refuse the old one in words, and only then write the new digests here.
    #[test]
    fn the_bytes_of_version_2_are_frozen_else_bump_the_version() {
        let (sb, _) = superblock().to_bytes(LayerId([7; 16]), keys().superblock());
        let page_ref = PageRef::new(&keys(), &page(), 65_664, 1);
        let frozen = [
            ("superblock", digest(&sb)),
            ("page", digest(page().as_bytes())),
            ("page reference", digest(&page_ref.0.to_le_bytes())),
            ("record", digest(&record())),
        ];
        let known = FROZEN.map(|(what, digest)| (what, digest.to_owned()));
        assert_eq!((VERSION, frozen), (2, known));
    }

    const FROZEN: [(&str, &str); 4] = [
        ("superblock", "00ff76f714c22f19"),
        ("page", "a5f372986f93b0b4"),
        ("page reference", "b896cc6c09bcc900"),
        ("record", "4f7902eee99e37c8"),
    ];

    #[test]
    fn what_is_written_is_read_back_and_any_changed_byte_is_refused() {
        let (bytes, mac) = superblock().to_bytes(LayerId([7; 16]), keys().superblock());
        let parsed = Superblock::parse(&bytes, LayerId([7; 16]), keys().superblock()).unwrap();
        assert_eq!(parsed, (superblock(), mac));
        for at in (0..4096).step_by(13) {
            let mut changed = bytes;
            changed[at] ^= 0x10;
            assert!(Superblock::parse(&changed, LayerId([7; 16]), keys().superblock()).is_err(), "byte {at}");
        }
        let bytes = record();
        let parsed = Record::parse(&bytes, keys().log(), 1 << 20).unwrap();
        assert_eq!((parsed.seq, parsed.epoch, parsed.confirmed, parsed.len), (77, 4, 70, bytes.len()));
        assert_eq!(parsed.entries().count(), 514);
        assert_eq!(parsed.entries().nth(1), Some((4, Entry::data(SlotNo(41), 2))));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(Record::parse(&changed, keys().log(), 1 << 20).is_none(), "byte {at}");
        }
        assert!(Record::parse(&bytes, keys().log(), 520).is_none(), "a run past the end of the disk");
        for (count, is_taken) in [(0, false), (1, true), (512, true), (513, false), (u32::MAX, false)] {
            let mut buffer = RecordBuffer::default();
            buffer.lay_out(Kind::Write, &[Run { sector: 9, state: State::Zero, count }], &[]);
            let bytes = buffer.finish(keys().log(), 77, 4, 70, &[9; 16]).0;
            assert_eq!(Record::parse(bytes, keys().log(), 1 << 40).is_some(), is_taken, "a run of {count}");
        }
    }

    /// With a right MAC: what no layer has, and arithmetic must not meet.
    #[test]
    fn superblocks_out_of_bounds_are_refused() {
        let (layer, keys): (LayerId, LayerKeys) = (LayerId([7; 16]), keys());
        let is_read = |change: fn(&mut Superblock)| {
            let mut sb = superblock();
            change(&mut sb);
            Superblock::parse(&sb.to_bytes(layer, keys.superblock()).0, layer, keys.superblock()).is_ok()
        };
        assert!(is_read(|_| {}));
        assert!(is_read(|sb| sb.log.seq = 1));
        let beyond: [fn(&mut Superblock); 9] = [
            |sb| sb.log.seq = 0,
            |sb| sb.log.seq = u64::MAX,
            |sb| sb.log.epoch = u64::MAX,
            |sb| sb.log.half = 2,
            |sb| sb.generation = u64::MAX,
            |sb| sb.edition = u64::MAX,
            |sb| sb.slots_high = SLOTS_MAX,
            |sb| sb.size_bytes = VOLUME_BYTES_MAX + SECTOR_BYTES,
            |sb| sb.flags = 1 << 9,
        ];
        for (number, change) in beyond.into_iter().enumerate() {
            assert!(!is_read(change), "{number}");
        }
    }
}
