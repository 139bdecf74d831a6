//! The log: what was answered, in order. Everything here happens under the layer's one short lock.
//!
//! Two halves alternate; each record names the MAC of the one before, so nothing can be left out, put in or moved.

use std::sync::Arc;

use super::bytes::{BARE_RECORD_LEN, FLAG_SEALED, HALF_BYTES, Kind, LOG_OFFSET, LogStart, RecordBuffer};
use super::error::{LayerError, Result, is_no_space};
use super::store::Store;
use crate::crypto::LayerKeys;
use crate::units::SlotNo;

/// Durable blocks are never written again: after a mark the log goes on in a new one.
pub const BLOCK: u64 = 4096;
/// Entries after which a half is closed even if it has room.
pub const HALF_ENTRIES_MAX: u64 = 1 << 19;
/// Room always kept in a half for a done, a mark with its padding, and a close or end.
const RESERVE: u64 = 4 * BLOCK;
/// Bytes of a half prepared at creation, and at a time afterwards.
pub const FIRST_WINDOW: u64 = 256 << 10;
const WINDOW: u64 = 1 << 20;
/// Records between two marks up to which they go by plain writes. The first store to a page of the mapping that was written
/// back faults, and the next sync has to take the page from all processors again: 12 us a synced write. Many records want the
/// mapping, which never waits for other writes.
const SPARSE: u32 = 8;
/// Records of an interval with one write: the done of the flush before, the write, the mark.
const SINGLE: u32 = 3;

/// The log's state; guarded by the layer's lock.
pub struct Log {
    store: Arc<dyn Store>,
    keys: Arc<LayerKeys>,
    /// Where the next record goes.
    at: LogStart,
    pos: u64,
    /// Bytes of each half that can be appended to without fail, or could since the half began. A half that begins anew is prepared
    /// anew: what memory gave up of it would have to be read from the disk, while all writers wait.
    prepared: [u64; 2],
    /// Where the log goes on after the mark that is being made durable: half, bytes.
    marked_end: (usize, u64),
    /// Bytes of the live half that are durable and not in memory any more.
    released: u64,
    /// Recovery appends behind a list that must stay as it is until the superblock moves on: by plain writes.
    resuming: bool,
    /// What waits here was read by recovery, not answered by this process.
    recovered: bool,
    buffer: RecordBuffer,
    /// Records since the newest mark.
    since_mark: u32,
    /// The last interval between marks held few records: the next goes by plain writes [`SPARSE`].
    sparse: bool,
    /// The last interval was one write: it is likely that a flush follows the next one, too.
    single: bool,
    /// A mark that was appended ahead of its flush, with nothing after it.
    mark_ahead: Option<u64>,
    /// Entries appended to this half.
    pub entries: u64,
    /// The other half may be used.
    pub other_free: bool,
    /// All records up to this seq are durable, and so is what they name.
    pub confirmed: u64,
    /// Seq of the newest record that changed something.
    pub newest: u64,
    /// The layer was sealed by the record of this seq.
    pub ended: Option<u64>,
    /// A write or sync failed: nothing more is promised.
    pub latched: bool,
    /// Slots superseded since the last mark.
    pub superseded: Vec<SlotNo>,
    /// Slots superseded before the mark whose sync is under way.
    pub marked: Vec<SlotNo>,
    /// Slots whose superseding record is confirmed, but no durable record says so yet: recovery would still check
    /// them, and cut the list where they hold something newer.
    pub confirmed_unsaid: Vec<SlotNo>,
    /// Bytes of slots written since the last mark.
    pub unflushed_bytes: u64,
    /// Those before the mark whose sync is under way.
    pub marked_bytes: u64,
    /// Sectors in slots.
    pub data_sectors: u64,
    /// Where the records not yet in the map begin, while a half waits for its checkpoint.
    pub closed: Option<Closed>,
}

/// Where a half lies in the file.
pub fn half_offset(half: usize) -> u64 {
    LOG_OFFSET + half as u64 * HALF_BYTES
}

/// What a checkpoint of a closed half needs to know.
pub struct Closed {
    /// Seq of the record that closed the half.
    pub seq: u64,
    /// Where the log went on.
    pub next: LogStart,
    /// Slots that are free once the checkpoint is durable.
    pub superseded: Vec<SlotNo>,
    /// Sectors in slots at that record.
    pub data_sectors: u64,
    /// The superblock's flags.
    pub flags: u32,
    /// Its entries come from recovery.
    pub recovered: bool,
}

impl Log {
    /// An empty log that begins at `start`.
    pub fn new(
        store: Arc<dyn Store>,
        keys: Arc<LayerKeys>,
        start: LogStart,
        prepared: [u64; 2],
        data_sectors: u64,
    ) -> Self {
        Self {
            store,
            keys,
            at: start,
            pos: 0,
            prepared,
            marked_end: (start.half, 0),
            released: 0,
            resuming: false,
            recovered: false,
            buffer: RecordBuffer::default(),
            since_mark: 0,
            sparse: false,
            single: false,
            mark_ahead: None,
            entries: 0,
            other_free: true,
            confirmed: start.seq - 1,
            newest: start.seq - 1,
            ended: None,
            latched: false,
            superseded: Vec::new(),
            marked: Vec::new(),
            confirmed_unsaid: Vec::new(),
            unflushed_bytes: 0,
            marked_bytes: 0,
            data_sectors,
            closed: None,
        }
    }

    /// Seq of the newest record.
    pub fn last_seq(&self) -> u64 {
        self.at.seq - 1
    }

    /// Whether nothing was recorded in this half.
    pub fn is_empty(&self) -> bool {
        self.pos == 0
    }

    /// Whether a record of `len` bytes and `entries` fits in this half.
    pub fn has_room(&self, len: usize, entries: u64) -> bool {
        self.pos + len as u64 + RESERVE <= HALF_BYTES
            && (self.entries == 0 || self.entries + entries <= HALF_ENTRIES_MAX)
    }

    /// Appends a record that changes something, laid out before; its seq. The caller has asked [`Log::has_room`]. The
    /// room kept behind it is prepared too, so that no mark, close or end ever meets a full file system.
    pub fn append(&mut self, record: &mut RecordBuffer, entries: u64) -> Result<u64> {
        self.single &= self.mark_ahead.is_none();
        self.prepare(self.at.half, self.pos + record.len() as u64 + RESERVE)?;
        let seq = self.append_prepared(record)?;
        self.newest = seq;
        self.entries += entries;
        Ok(seq)
    }

    fn append_prepared(&mut self, record: &mut RecordBuffer) -> Result<u64> {
        let len = record.len() as u64;
        let LogStart { half, epoch, seq, chain } = self.at;
        let (bytes, mac) = record.finish(self.keys.log(), seq, epoch, self.confirmed, &chain);
        let offset = half_offset(half) + self.pos;
        self.since_mark += 1;
        self.mark_ahead = None;
        let appended = match self.resuming || (self.sparse && self.since_mark <= SPARSE) {
            true => self.store.write_at(bytes, offset),
            false => self.store.append(bytes, offset),
        };
        if let Err(e) = appended {
            self.latched = true;
            return Err(LayerError::io("appending to the log")(e));
        }
        self.pos += len;
        self.at.seq += 1;
        self.at.chain = mac;
        Ok(seq)
    }

    /// Appends a record without runs. The room for it is always kept.
    fn append_bare(&mut self, kind: Kind, tags: &[u64]) -> Result<u64> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.lay_out(kind, &[], tags);
        let prepared = self.prepare(self.at.half, self.pos + buffer.len() as u64);
        let seq = prepared.and_then(|()| self.append_prepared(&mut buffer));
        self.buffer = buffer;
        seq
    }

    /// A mark: what stands before it is durable once a sync begun after it returns. The log goes on in a new block.
    pub fn mark(&mut self) -> Result<u64> {
        let seq = match self.mark_ahead.take() {
            Some(seq) => seq,
            None => self.append_mark()?,
        };
        self.sparse = self.since_mark <= SPARSE;
        self.single = self.since_mark <= SINGLE;
        self.since_mark = 0;
        self.marked_bytes += std::mem::take(&mut self.unflushed_bytes);
        self.marked_end = (self.at.half, self.pos);
        Ok(seq)
    }

    fn append_mark(&mut self) -> Result<u64> {
        let seq = self.append_bare(Kind::Mark, &[])?;
        self.pos = self.pos.next_multiple_of(BLOCK);
        Ok(seq)
    }

    /// The newest mark is durable: the windows (offset, length) before it, which are never written again.
    pub fn take_durable_windows(&mut self) -> Option<(u64, u64)> {
        let (half, pos) = self.marked_end;
        let end = pos / WINDOW * WINDOW;
        if half != self.at.half || end <= self.released {
            return None;
        }
        let from = std::mem::replace(&mut self.released, end);
        Some((half_offset(half) + from, end - from))
    }

    /// After a write: where each is flushed by itself, appends the flush's mark now. The block is full with it, so that the
    /// device can have it while the program that wrote asks for the flush; the block's offset. If another write comes first,
    /// the mark was in vain, and so will be none until the next flush of one write.
    pub fn mark_ahead(&mut self) -> Option<u64> {
        if !self.single || self.resuming || self.ended.is_some() || !self.has_room(BARE_RECORD_LEN, 0) {
            return None;
        }
        let block = half_offset(self.at.half) + self.pos / BLOCK * BLOCK;
        // An error has latched the layer.
        self.mark_ahead = self.append_mark().ok();
        self.mark_ahead.map(|_| block)
    }

    /// Says, without a sync, which mark is confirmed (rule 7). Left out where only the kept room is left.
    pub fn done(&mut self) -> Result<()> {
        if self.ended.is_none() && self.has_room(BARE_RECORD_LEN, 0) {
            self.append_bare(Kind::Done, &[])?;
        }
        Ok(())
    }

    /// Closes this half and goes on in the other, which must be free. Its checkpoint's superblock gets `flags`.
    ///
    /// Recovery's close carries a random number, on which all later MACs depend: what lies in the log from before, cut off
    /// or never listed, can't join what is written from then on, even where that is the same again.
    pub fn close(&mut self, flags: u32) -> Result<()> {
        let random: [u64; 2] = zerocopy::transmute!(crate::ids::LayerId::random().0);
        let tags = if self.resuming { &random[..1] } else { &[] };
        if !self.resuming {
            // First, so that a full file system changes nothing here.
            self.prepare(1 - self.at.half, RESERVE)?;
        }
        let seq = self.append_bare(Kind::Close, tags)?;
        self.resuming = false;
        self.prepared[self.at.half] = 0;
        self.at.half = 1 - self.at.half;
        self.at.epoch += 1;
        self.pos = 0;
        self.released = 0;
        self.marked_end = (self.at.half, 0);
        self.entries = 0;
        self.other_free = false;
        let superseded = self.take_superseded();
        self.wait_for_checkpoint(seq, superseded, flags);
        Ok(())
    }

    /// Seals the layer: the last record it ever gets.
    pub fn end(&mut self) -> Result<()> {
        self.newest = self.append_bare(Kind::End, &[])?;
        self.ended = Some(self.newest);
        Ok(())
    }

    /// After *end*: nothing follows, so that the whole log goes into the map.
    pub fn close_ended(&mut self) {
        let seq = self.last_seq();
        self.at = LogStart {
            half: 1 - self.at.half,
            epoch: self.at.epoch + 1,
            seq: self.at.seq,
            chain: crate::ids::LayerId::random().0,
        };
        let superseded = self.take_superseded();
        self.wait_for_checkpoint(seq, superseded, FLAG_SEALED);
    }

    fn wait_for_checkpoint(&mut self, seq: u64, superseded: Vec<SlotNo>, flags: u32) {
        self.closed = Some(Closed {
            seq,
            next: self.at,
            superseded,
            data_sectors: self.data_sectors,
            flags,
            recovered: std::mem::take(&mut self.recovered),
        });
    }

    /// Recovery: the list ended at `pos` before this record, and all of it is durable.
    pub fn resume(&mut self, at: LogStart, pos: u64, ended: Option<u64>) {
        self.at = at;
        self.pos = pos;
        self.confirmed = self.last_seq();
        self.newest = self.confirmed;
        self.ended = ended;
        self.resuming = ended.is_none();
        self.recovered = true;
    }

    /// Recovery: the list ended with the close of a recovery before, whose checkpoint was cut.
    pub fn reopen_closed(&mut self) {
        self.resuming = false;
        self.other_free = false;
        self.wait_for_checkpoint(self.last_seq(), Vec::new(), 0);
    }

    /// The slots that are free once everything recorded so far is in the map.
    fn take_superseded(&mut self) -> Vec<SlotNo> {
        let mut slots = std::mem::take(&mut self.superseded);
        slots.append(&mut self.confirmed_unsaid);
        slots
    }

    /// Slots that are not referred to any more and not free yet.
    pub fn waiting(&self) -> impl Iterator<Item = SlotNo> + '_ {
        let closed = self.closed.iter().flat_map(|c| &c.superseded);
        self.superseded.iter().chain(&self.marked).chain(&self.confirmed_unsaid).chain(closed).copied()
    }

    /// Makes sure that the kept room of the live half is there, so that it can be ended.
    pub fn prepare_end(&mut self) -> Result<()> {
        self.prepare(self.at.half, self.pos + BARE_RECORD_LEN as u64)
    }

    /// Makes sure that a half can be appended to up to `end`. A full file system changes nothing; any other error latches.
    fn prepare(&mut self, half: usize, end: u64) -> Result<()> {
        if self.resuming {
            return Ok(());
        }
        let end = end.min(HALF_BYTES);
        while self.prepared[half] < end {
            let from = self.prepared[half];
            let len = if from == 0 { FIRST_WINDOW } else { WINDOW.min(HALF_BYTES - from) };
            match self.store.prepare_log(half_offset(half) + from, len) {
                Ok(()) => {}
                Err(e) if is_no_space(&e) => return Err(LayerError::NoSpace),
                Err(e) => {
                    self.latched = true;
                    return Err(LayerError::io("preparing the log")(e));
                }
            }
            self.prepared[half] = from + len;
        }
        Ok(())
    }
}
