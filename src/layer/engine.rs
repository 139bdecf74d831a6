//! One layer, open: writing and reading its sectors. Numbers in brackets are the engine's rules (`docs/durability.md`).

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::bytes::{
    Entry, Kind, LogStart, RUNS_MAX, RecordBuffer, Run, SLOTS_OFFSET, State, Superblock, slot_offset,
};
use super::durable::PUNCHES_AT_ONCE;
use super::error::{LayerError, Result, is_no_space, no_space_or};
use super::log::{BLOCK, FIRST_WINDOW, Log};
use super::overlay::Overlay;
use super::slots::{AHEAD, SMALL_MAX, Slots};
use super::store::{Store, write_zeros};
use super::tree::{Leaf, PageCache, Tree};
use crate::crypto::LayerKeys;
use crate::ids::LayerId;
use crate::units::{
    CHUNK_SECTORS, ChunkNo, REQUEST_SECTORS_MAX, SECTOR_BYTES, SECTOR_LEN, SectorNo, SlotNo, by_chunk,
    sectors_of_bytes,
};

/// What a layer is made from.
#[derive(Clone)]
pub struct Parts {
    /// Its id, covered by every superblock's MAC.
    pub id: LayerId,
    /// Superblocks, log and slots.
    pub data: Arc<dyn Store>,
    /// The map's pages.
    pub map: Arc<dyn Store>,
    /// Its subkeys.
    pub keys: Arc<LayerKeys>,
    /// Pages of all layers of the process.
    pub cache: Arc<PageCache>,
    /// That of its header: data that goes with a newer one only is refused.
    pub edition: u64,
}

/// A partial sector was merged over `entry`; the write holds only while that is the sector's entry [2].
#[derive(Clone, Copy, Debug)]
pub struct Guard {
    /// The sector.
    pub sector: SectorNo,
    /// Its entry in this layer when it was read.
    pub entry: Entry,
}

/// One layer, open.
pub struct Layer {
    pub(super) id: LayerId,
    pub(super) data: Arc<dyn Store>,
    pub(super) map: Arc<dyn Store>,
    pub(super) keys: Arc<LayerKeys>,
    pub(super) size_bytes: u64,
    pub(super) log: Mutex<Log>,
    pub(super) overlay: Overlay,
    pub(super) tree: Tree,
    pub(super) slots: Slots,
    /// One flush at a time; those that wait share the next [6].
    pub(super) flushing: Mutex<()>,
    /// The newest superblock; held through a checkpoint.
    pub(super) superblock: Mutex<(Superblock, [u8; 16])>,
    /// That of the header: superblocks written from now on go with no older one.
    pub(super) edition: AtomicU64,
    /// How often frozen entries went into the pages; counted under the log's lock.
    pub(super) checkpoints: AtomicU64,
    /// A run is being zero-written.
    zeroing: Mutex<()>,
    /// Sealed and read-only: nothing here may change what is on disk.
    pub(super) sealed: AtomicBool,
    /// Sealed by this process, which has not given its free slots back yet.
    pub(super) unpunched: AtomicBool,
}

/// Bytes encrypted and written at once: what is read twice then stays in the processor's nearer caches, and a thread keeps no
/// second copy of its request.
const TILE: usize = 256 << 10;
/// Changed chunks after which a half is closed, once the other is free: entries wait in memory, of a disk that is written all over some 150
/// bytes each.
const HALF_CHUNKS_MAX: usize = 1 << 13;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Buffers of a writing thread.
#[derive(Default)]
struct Scratch {
    cipher: Vec<u8>,
    tags: Vec<u64>,
    slots: Vec<SlotNo>,
    runs: Vec<Run>,
    entries: Vec<Entry>,
    old: Vec<Entry>,
    record: RecordBuffer,
    /// The file system below is full: take freed slots wherever they are.
    scattered: bool,
}

impl Scratch {
    fn clear(&mut self) {
        self.runs.clear();
        self.slots.clear();
        self.tags.clear();
        self.entries.clear();
    }
}

impl Layer {
    /// Makes a new layer in empty files. Durable when it returns, but for the files' folder.
    pub fn create(parts: Parts, size_bytes: u64) -> Result<Self> {
        let first = Superblock {
            flags: 0,
            generation: 0,
            size_bytes,
            log: LogStart { half: 0, epoch: 1, seq: 1, chain: LayerId::random().0 },
            slots_high: 0,
            data_sectors: 0,
            edition: parts.edition,
            top: [super::bytes::PageRef::ABSENT; 128],
        };
        let second = Superblock { generation: 1, ..first.clone() };
        let make = || {
            parts.data.set_len(SLOTS_OFFSET)?;
            for sb in [&first, &second] {
                let (bytes, _) = sb.to_bytes(parts.id, parts.keys.superblock());
                parts.data.write_at(&bytes, Superblock::offset(sb.generation))?;
            }
            parts.data.prepare_log(super::bytes::LOG_OFFSET, FIRST_WINDOW)?;
            parts.data.sync()?;
            parts.map.sync()
        };
        make().map_err(|e| no_space_or(e, "creating a layer"))?;
        let (_, mac) = second.to_bytes(parts.id, parts.keys.superblock());
        Ok(Self::assemble(parts, second, mac, [FIRST_WINDOW, 0]))
    }

    /// Puts a layer together around a superblock; the log begins, empty, where that says.
    pub(super) fn assemble(parts: Parts, sb: Superblock, mac: [u8; 16], prepared: [u64; 2]) -> Self {
        let Parts { id, data, map, keys, cache, edition } = parts;
        Self {
            id,
            size_bytes: sb.size_bytes,
            log: Mutex::new(Log::new(data.clone(), keys.clone(), sb.log, prepared, sb.data_sectors)),
            overlay: Overlay::new(),
            tree: Tree::new((id, sectors_of_bytes(sb.size_bytes)), map.clone(), keys.clone(), cache, sb.top),
            slots: Slots::new(if sb.is_sealed() { 0 } else { sb.slots_high }),
            flushing: Mutex::new(()),
            sealed: AtomicBool::new(sb.is_sealed()),
            unpunched: AtomicBool::new(false),
            superblock: Mutex::new((sb, mac)),
            edition: AtomicU64::new(edition),
            checkpoints: AtomicU64::new(0),
            zeroing: Mutex::new(()),
            data,
            map,
            keys,
        }
    }

    /// Its id.
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// Size of the disk it belongs to.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Sectors it has.
    pub fn sectors(&self) -> u64 {
        sectors_of_bytes(self.size_bytes)
    }

    /// Sectors it holds in slots.
    pub fn data_sectors(&self) -> u64 {
        self.log.lock().data_sectors
    }

    /// Bytes its files occupy on the file system below.
    pub fn stored_bytes(&self) -> Result<u64> {
        let of = |s: &Arc<dyn Store>| s.stored_bytes().map_err(LayerError::io("asking a layer's size"));
        Ok(of(&self.data)? + of(&self.map)?)
    }

    /// Whether a write or sync failed, so that nothing is promised until it is opened again [8].
    pub fn is_latched(&self) -> bool {
        self.log.lock().latched
    }

    /// Whether it takes no more writes.
    pub fn is_ended(&self) -> bool {
        self.sealed.load(Ordering::Acquire) || self.log.lock().ended.is_some()
    }

    /// The subkeys, for the header's MAC.
    pub fn keys(&self) -> &Arc<LayerKeys> {
        &self.keys
    }

    /// The entries of consecutive sectors of one chunk, from `index` on. Sectors past the disk's end are absent.
    pub fn entries(&self, chunk: ChunkNo, index: usize, out: &mut [Entry]) -> Result<()> {
        // The overlay first, then the roots: a checkpoint publishes roots before it drops what it put below them.
        let known = self.overlay.lookup(chunk, index, out);
        if known.all {
            return Ok(());
        }
        let leaf = self.leaf(chunk)?;
        for (i, entry) in out.iter_mut().enumerate().filter(|(i, _)| !known.has(*i)) {
            *entry = leaf.entry(index + i);
        }
        Ok(())
    }

    /// A chunk's entries as the pages have them, where nothing of them waits for its checkpoint. Those of a chunk that the disk
    /// ends in go beyond its end.
    pub fn settled_leaf(&self, chunk: ChunkNo) -> Result<Option<Leaf>> {
        if self.overlay.touches(chunk) {
            return Ok(None);
        }
        self.leaf(chunk).map(Some)
    }

    /// One sector's entry.
    pub fn entry(&self, sector: SectorNo) -> Result<Entry> {
        let mut out = [Entry::ABSENT];
        self.entries(sector.chunk(), sector.index_in_chunk(), &mut out)?;
        Ok(out[0])
    }

    /// Whether nothing is recorded in it.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.next_present(0..self.sectors().div_ceil(CHUNK_SECTORS))?.is_none())
    }

    /// Whether anything is recorded of a chunk.
    pub fn records(&self, chunk: ChunkNo) -> Result<bool> {
        Ok(self.overlay.touches(chunk) || self.ask_pages(|| self.tree.may_have(chunk))?)
    }

    /// The first chunk in `range` of which anything is recorded.
    pub fn next_present(&self, range: std::ops::Range<u64>) -> Result<Option<u64>> {
        let changed = self.overlay.first_in(range.clone());
        let in_pages = self.ask_pages(|| self.tree.next_present(range.clone()))?;
        Ok(match (changed, in_pages) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        })
    }

    /// Reads consecutive slots as consecutive sectors, checks their tags, decrypts. `Err(Ok(i))`: the i-th tag differs.
    pub fn read_slots(
        &self,
        first: SectorNo,
        slot: SlotNo,
        tags: &[u64],
        into: &mut [u8],
    ) -> Result<(), std::result::Result<usize, LayerError>> {
        assert_eq!(into.len(), tags.len() * SECTOR_LEN, "a tag for each sector");
        for (i, (bytes, tags)) in into.chunks_mut(TILE).zip(tags.chunks(TILE / SECTOR_LEN)).enumerate() {
            let before = (i * TILE / SECTOR_LEN) as u64;
            let read = self.data.read_at(bytes, slot_offset(SlotNo(slot.0 + before)));
            read.map_err(|e| Err(LayerError::io("reading sectors")(e)))?;
            let opened = self.keys.open_sectors(SectorNo(first.0 + before), bytes, tags);
            opened.map_err(|bad| Ok(before as usize + bad))?;
        }
        Ok(())
    }

    /// As [`Layer::read_slots`], of what nobody writes: what does not fit is asked of the device before it is called damaged.
    pub fn read_still_slots(
        &self,
        first: SectorNo,
        slot: SlotNo,
        tags: &[u64],
        into: &mut [u8],
    ) -> Result<(), std::result::Result<usize, LayerError>> {
        let read = self.read_slots(first, slot, tags, into);
        let Err(Ok(_)) = read else { return read };
        self.forget_slots(slot, tags.len() as u64);
        self.read_slots(first, slot, tags, into)
    }

    /// The next read of these slots is of what the device holds, where the system can forget what it keeps of them.
    pub fn forget_slots(&self, slot: SlotNo, count: u64) {
        let _ = self.data.drop_cached(slot_offset(slot), count * SECTOR_LEN as u64);
    }

    /// Reads the ciphertext of consecutive slots and checks its tags.
    pub fn read_cipher(&self, first: SectorNo, slot: SlotNo, tags: &[u64], into: &mut [u8]) -> Result<()> {
        self.data.read_at(into, slot_offset(slot)).map_err(LayerError::io("reading sectors"))?;
        self.keys
            .check_sectors(first, into, tags)
            .map_err(|bad| self.damaged_sector(SectorNo(first.0 + bad as u64)))
    }

    /// The error of a sector whose tag differs.
    pub fn damaged_sector(&self, sector: SectorNo) -> LayerError {
        LayerError::corrupted(
            format!("sector {} of layer {}", sector.0, self.id),
            "bytes that match its tag",
            "other bytes",
        )
    }

    /// Writes whole sectors (1 MiB, or what an unaligned request of that size touches) as one record. `zero_hides(chunk)` says whether an
    /// ancestor has data there, so that zeros must be recorded as *zero* and not as *absent*.
    pub fn write(
        &self,
        first: SectorNo,
        plain: &[u8],
        guards: &[Guard],
        zero_hides: &dyn Fn(ChunkNo) -> Result<bool>,
    ) -> Result<()> {
        let count = (plain.len() / SECTOR_LEN) as u64;
        assert!(plain.len().is_multiple_of(SECTOR_LEN) && (1..=REQUEST_SECTORS_MAX + 1).contains(&count));
        assert!(first.0 + count <= self.sectors(), "writes past the end are refused above");
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.scattered = false;
            let done = self.write_request(first, plain, guards, zero_hides, scratch);
            if !matches!(done, Err(LayerError::NoSpace)) {
                return done;
            }
            // No space for fresh runs: slots freed in earlier sessions [17], or anywhere, are backed already.
            self.learn_free_slots()?;
            scratch.scattered = true;
            self.write_request(first, plain, guards, zero_hides, scratch)
        })
    }

    fn write_request(
        &self,
        first: SectorNo,
        plain: &[u8],
        guards: &[Guard],
        zero_hides: &dyn Fn(ChunkNo) -> Result<bool>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        scratch.clear();
        let seen = self.look_at(first, plain.len() / SECTOR_LEN, &mut scratch.old)?;
        let written = self.write_slots(first, plain, scratch, zero_hides);
        let done = written.and_then(|()| self.record(first, guards, scratch, seen));
        if done.is_err() {
            self.slots.give_back(&scratch.slots);
        }
        done
    }

    /// The entries of sectors as they are now, with the number of checkpoints until then: as long as there is no other, what is not in
    /// the overlay is as it was.
    fn look_at(&self, first: SectorNo, count: usize, out: &mut Vec<Entry>) -> Result<u64> {
        let checkpoints = self.checkpoints();
        out.resize(count, Entry::ABSENT);
        let mut done = 0;
        for (chunk, index, len) in by_chunk(first, count as u64) {
            self.entries(chunk, index, &mut out[done..done + len])?;
            done += len;
        }
        Ok(checkpoints)
    }

    /// Encrypts into fresh slots [1, 3]: fills the scratch's runs, tags, slots and entries. Without a lock.
    fn write_slots(
        &self,
        first: SectorNo,
        plain: &[u8],
        s: &mut Scratch,
        zero_hides: &dyn Fn(ChunkNo) -> Result<bool>,
    ) -> Result<()> {
        let count = plain.len() / SECTOR_LEN;
        let mut at = 0;
        while at < count {
            let sector = SectorNo(first.0 + at as u64);
            let zero = is_zero(&plain[at * SECTOR_LEN..][..SECTOR_LEN]);
            let same = |i: &usize| is_zero(&plain[i * SECTOR_LEN..][..SECTOR_LEN]) == zero;
            let mut len = (at..count).take_while(same).count();
            if zero {
                let in_chunk = CHUNK_SECTORS as usize - sector.index_in_chunk();
                len = len.min(in_chunk);
                let state = if zero_hides(sector.chunk())? { State::Zero } else { State::Absent };
                s.runs.push(Run { sector: sector.0, state, count: len as u32 });
                let entry = if state == State::Zero { Entry::ZERO } else { Entry::ABSENT };
                s.entries.resize(s.entries.len() + len, entry);
            } else {
                let from = &plain[at * SECTOR_LEN..][..len * SECTOR_LEN];
                let near = s.old[at].slot();
                self.write_data(sector, from, near, s)?;
            }
            at += len;
        }
        Ok(())
    }

    /// Encrypts consecutive sectors into fresh slots, best `near` this one, and writes those, a tile at a time.
    fn write_data(&self, first: SectorNo, plain: &[u8], near: Option<SlotNo>, s: &mut Scratch) -> Result<()> {
        let count = plain.len() / SECTOR_LEN;
        let (slots_at, tags_at) = (s.slots.len(), s.tags.len());
        self.take_slots(count, near, s.scattered, &mut s.slots)?;
        s.tags.resize(tags_at + count, 0);
        s.cipher.resize(TILE, 0);
        let (slots, tags) = (&s.slots[slots_at..], &mut s.tags[tags_at..]);
        let mut at = 0;
        for run in slots.chunk_by(|a, b| a.is_right_before(*b)) {
            let state = State::Data(run[0]);
            s.runs.push(Run { sector: first.0 + at as u64, state, count: run.len() as u32 });
            for tile in run.chunks(TILE / SECTOR_LEN) {
                let from = &plain[at * SECTOR_LEN..][..tile.len() * SECTOR_LEN];
                let cipher = &mut s.cipher[..from.len()];
                self.keys.seal_sectors(
                    SectorNo(first.0 + at as u64),
                    from,
                    cipher,
                    &mut tags[at..][..tile.len()],
                );
                let written = self.data.write_at(cipher, slot_offset(tile[0]));
                written.map_err(|e| self.latch_unless_full("writing sectors", e))?;
                at += tile.len();
            }
        }
        let placed = slots.iter().zip(&*tags);
        s.entries.extend(placed.map(|(slot, tag)| Entry::data(*slot, *tag)));
        Ok(())
    }

    /// Takes slots for `count` sectors [16].
    fn take_slots(
        &self,
        count: usize,
        near: Option<SlotNo>,
        scattered: bool,
        out: &mut Vec<SlotNo>,
    ) -> Result<()> {
        let wanted = out.len() + count;
        if scattered {
            return if self.slots.take_anywhere(count, out) { Ok(()) } else { Err(LayerError::NoSpace) };
        }
        if count > SMALL_MAX {
            let run = self.slots.take_run(count as u64).ok_or(LayerError::NoSpace)?;
            out.extend((0..count as u64).map(|i| SlotNo(run.0 + i)));
            return Ok(());
        }
        while out.len() < wanted {
            self.slots.take_small(wanted - out.len(), near, out);
            if out.len() < wanted {
                self.write_ahead()?;
            }
        }
        out[wanted - count..].sort_unstable();
        Ok(())
    }

    /// Zero-writes a run for small writes, so that theirs change no extent [16].
    fn write_ahead(&self) -> Result<()> {
        let _one = self.zeroing.lock();
        if self.slots.has_ahead() {
            return Ok(());
        }
        let run = self.slots.take_run(AHEAD).ok_or(LayerError::NoSpace)?;
        if let Err(e) = write_zeros(&*self.data, slot_offset(run), AHEAD * SECTOR_LEN as u64) {
            self.slots.give_back_run(run, AHEAD);
            return Err(self.latch_unless_full("writing ahead", e));
        }
        self.slots.give_ahead(run, AHEAD);
        Ok(())
    }

    /// A full file system fails the write alone; any other error latches the layer [8].
    fn latch_unless_full(&self, what: &'static str, error: std::io::Error) -> LayerError {
        if is_no_space(&error) {
            return LayerError::NoSpace;
        }
        self.log.lock().latched = true;
        LayerError::io(what)(error)
    }

    /// Appends the record of what the scratch holds and installs its entries, under the lock [3]. `seen`: what [`Layer::look_at`] gave.
    fn record(&self, first: SectorNo, guards: &[Guard], s: &mut Scratch, mut seen: u64) -> Result<()> {
        let count = s.entries.len();
        s.record.lay_out(Kind::Write, &s.runs, &s.tags);
        let mut map_is_full = false;
        loop {
            // What stood in the overlay may have moved into pages since.
            if self.checkpoints() != seen {
                seen = self.look_at(first, count, &mut s.old)?;
            }
            if s.slots.is_empty() && s.old == s.entries {
                return self.check_writable();
            }
            let mut log = self.writable()?;
            if self.checkpoints() != seen {
                continue;
            }
            let unchanged = |g: &Guard| {
                let now = self.overlay.find(g.sector.chunk(), g.sector.index_in_chunk());
                now.unwrap_or(s.old[(g.sector.0 - first.0) as usize]) == g.entry
            };
            if !guards.iter().all(unchanged) {
                return Err(LayerError::Changed);
            }
            if !self.make_room(&mut log, s.record.len(), count as u64, map_is_full)? {
                drop(log);
                map_is_full = self.wait_for_room(s.record.len(), count as u64)?;
                continue;
            }
            log.append(&mut s.record, count as u64)?;
            log.unflushed_bytes += (s.slots.len() * SECTOR_LEN) as u64;
            let mut done = 0;
            for (chunk, index, len) in by_chunk(first, count as u64) {
                let (old, new) = (&s.old[done..done + len], &s.entries[done..done + len]);
                self.install(&mut log, chunk, index, new.iter().copied(), old);
                done += len;
            }
            let block = log.mark_ahead();
            drop(log);
            if let Some(block) = block {
                self.begin_sync(&s.slots, block);
            }
            return Ok(());
        }
    }

    /// A flush is likely to follow: the device may have these slots, and the block of the log that names them, while the
    /// program that wrote them asks for it. By one call: what lies between is clean, and two would be two submissions.
    fn begin_sync(&self, slots: &[SlotNo], block: u64) {
        let ends = slots.iter().map(|slot| slot_offset(*slot) + SECTOR_LEN as u64);
        let end = ends.fold(block + BLOCK, u64::max);
        self.data.begin_sync(block, end - block);
    }

    /// Installs entries of one chunk and notes the slots they supersede; `old` is what the pages say.
    pub(super) fn install(
        &self,
        log: &mut Log,
        chunk: ChunkNo,
        index: usize,
        new: impl ExactSizeIterator<Item = Entry> + Clone,
        old: &[Entry],
    ) {
        log.data_sectors += new.clone().filter(|e| e.slot().is_some()).count() as u64;
        self.overlay.install(chunk, index, new, |i, was| {
            if let Some(slot) = was.unwrap_or(old[i]).slot() {
                log.superseded.push(slot);
                log.data_sectors = log.data_sectors.saturating_sub(1);
            }
        });
    }

    /// Whole sectors read as zeros from now on, and their slots become free [18]. At most 1 GiB, as one record.
    pub fn discard(
        &self,
        first: SectorNo,
        count: u64,
        zero_hides: &dyn Fn(ChunkNo) -> Result<bool>,
    ) -> Result<()> {
        assert!(first.0 + count <= self.sectors(), "discards past the end are refused above");
        let mut record = RecordBuffer::default();
        let mut map_is_full = false;
        loop {
            let checkpoints = self.checkpoints();
            let pieces = self.discard_pieces(first, count, zero_hides)?;
            let runs: Vec<_> = pieces.iter().map(|p| p.run).collect();
            assert!(runs.len() <= RUNS_MAX, "a discard is cut into pieces of 1 GiB above");
            record.lay_out(Kind::Write, &runs, &[]);
            let mut log = self.writable()?;
            if runs.is_empty() {
                return Ok(());
            }
            if self.checkpoints() != checkpoints {
                continue;
            }
            if !self.make_room(&mut log, record.len(), runs.len() as u64, map_is_full)? {
                drop(log);
                map_is_full = self.wait_for_room(record.len(), runs.len() as u64)?;
                continue;
            }
            log.append(&mut record, runs.len() as u64)?;
            for piece in &pieces {
                let entry = if piece.run.state == State::Zero { Entry::ZERO } else { Entry::ABSENT };
                let sector = SectorNo(piece.run.sector);
                let new = std::iter::repeat_n(entry, piece.run.count as usize);
                self.install(&mut log, sector.chunk(), sector.index_in_chunk(), new, &piece.old);
            }
            return Ok(());
        }
    }

    /// The parts of a discard that change something, a chunk each, with their entries now.
    fn discard_pieces(
        &self,
        first: SectorNo,
        count: u64,
        zero_hides: &dyn Fn(ChunkNo) -> Result<bool>,
    ) -> Result<Vec<DiscardPiece>> {
        let mut pieces = Vec::new();
        for (chunk, index, len) in by_chunk(first, count) {
            let hides = zero_hides(chunk)?;
            if !hides && !self.records(chunk)? {
                continue;
            }
            let wanted = if hides { Entry::ZERO } else { Entry::ABSENT };
            let mut old = vec![Entry::ABSENT; len];
            self.entries(chunk, index, &mut old)?;
            if old.iter().any(|e| *e != wanted) {
                let state = if hides { State::Zero } else { State::Absent };
                let sector = chunk.first_sector().0 + index as u64;
                pieces.push(DiscardPiece { run: Run { sector, state, count: len as u32 }, old });
            }
        }
        Ok(pieces)
    }

    fn checkpoints(&self) -> u64 {
        self.checkpoints.load(Ordering::Acquire)
    }

    fn check_writable(&self) -> Result<()> {
        self.writable().map(drop)
    }

    /// The log's lock, if the layer takes writes.
    fn writable(&self) -> Result<MutexGuard<'_, Log>> {
        let log = self.log.lock();
        if log.latched {
            return Err(LayerError::Latched);
        }
        if log.ended.is_some() || self.sealed.load(Ordering::Acquire) {
            return Err(LayerError::Ended);
        }
        Ok(log)
    }

    /// Waits for the checkpoint that makes room for a record [10]; not for one more, where another writer's has made some. True: the
    /// file system is too full for the map, and the half has room but for the number of its chunks.
    fn wait_for_room(&self, len: usize, entries: u64) -> Result<bool> {
        let is_roomy =
            |log: &Log| log.has_room(len, entries) && self.overlay.current_chunks() < HALF_CHUNKS_MAX;
        match self.checkpoint_closed_unless(&is_roomy) {
            Err(LayerError::NoSpace) if self.log.lock().has_room(len, entries) => Ok(true),
            done => done.map(|()| false),
        }
    }

    /// Makes room for a record, closing a full half; false where both are full and a checkpoint must come first [10]. How many chunks a
    /// half has does not count where the `map_is_full`.
    fn make_room(&self, log: &mut Log, len: usize, entries: u64, map_is_full: bool) -> Result<bool> {
        let has_room = log.has_room(len, entries);
        if has_room && (map_is_full || self.overlay.current_chunks() < HALF_CHUNKS_MAX) {
            return Ok(true);
        }
        if !log.other_free {
            return Ok(false);
        }
        match self.close_half(log, 0) {
            // The other half can't be prepared on a full file system: this one has room yet.
            Err(LayerError::NoSpace) if has_room => Ok(true),
            closed => closed.map(|()| true),
        }
    }

    /// Closes the live half: its entries wait, frozen, for their checkpoint.
    pub(super) fn close_half(&self, log: &mut Log, flags: u32) -> Result<()> {
        assert!(log.other_free, "a half is closed only when the other is free");
        log.close(flags)?;
        self.overlay.freeze();
        Ok(())
    }

    /// Whether freed space is so much that it should be given back even while writes go on.
    pub fn is_pressed(&self) -> bool {
        self.slots.is_pressed()
    }

    /// Gives free runs back to the file system [16]; what it does not take stays free.
    pub fn punch_free(&self) {
        self.punch_free_while(&|| true);
    }

    /// The same, a few runs at a time: each makes writers wait for the file's lock.
    pub fn punch_free_while(&self, goes_on: &dyn Fn() -> bool) {
        let min = self.slots.punchable_min();
        while goes_on() {
            let runs = self.slots.take_punchable(min, PUNCHES_AT_ONCE);
            // What was refused is free as before, and comes first again: where all is, there is no end to it.
            if runs.is_empty() || !self.punch(&runs) {
                return;
            }
        }
    }

    /// Whether any of them is a hole now.
    pub(super) fn punch(&self, runs: &[std::ops::Range<u64>]) -> bool {
        let mut holes = Vec::with_capacity(runs.len());
        for run in runs {
            let len = (run.end - run.start) * SECTOR_BYTES;
            match self.data.punch(slot_offset(SlotNo(run.start)), len) {
                Ok(()) => holes.push(run.clone()),
                Err(e) => {
                    tracing::warn!(layer = %self.id, error = %e, "space could not be given back");
                    self.slots.give_back_run(SlotNo(run.start), run.end - run.start);
                }
            }
        }
        self.slots.punched(&holes);
        !holes.is_empty()
    }

    /// Free slots: (backed, holes), and the number no slot has reached.
    pub fn slot_counts(&self) -> (u64, u64, u64) {
        let (backed, holes) = self.slots.free();
        (backed, holes, self.slots.high())
    }
}

struct DiscardPiece {
    run: Run,
    old: Vec<Entry>,
}

/// Whether bytes, a multiple of 16 of them, are all zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (words, _) = bytes.as_chunks::<16>();
    words.iter().all(|w| u128::from_ne_bytes(*w) == 0)
}
