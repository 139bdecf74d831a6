//! Making it durable: flush, checkpoint, seal. Each order below is numbered with what a wrong one loses.

use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

use super::bytes::{BARE_RECORD_LEN, FLAG_CLEAN, HALF_BYTES, SLOTS_OFFSET, Superblock, slot_offset};
use super::engine::Layer;
use super::error::{LayerError, Result, no_space_or};
use super::log::{Log, half_offset};
use super::recover::Anchor;
use super::tree::Leaf;
use crate::units::{CHUNK_SECTORS, ChunkNo, SECTOR_BYTES, SlotNo};

/// Bytes of unflushed slots after which a flush is due [6]: recovery's check stays short, and so does a snapshot's wait; what was
/// overwritten is free again soon, so that writers find slots that are backed.
pub const UNFLUSHED_MAX: u64 = 64 << 20;

/// Runs given back before a caller has its turn: each takes 30 µs on a disk at rest, and 10 ms on a busy one.
pub(super) const PUNCHES_AT_ONCE: usize = 16;
/// Chunks whose pages are read before a caller has its turn: some 10 ms of a disk.
const CHUNKS_AT_ONCE: u64 = 64;

/// A sealed layer's superblock: what header and catalog keep, so that an older one is noticed [15].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedMark {
    /// Its generation.
    pub generation: u64,
    /// Its MAC.
    pub mac: [u8; 16],
}

/// The log's lock, held so that the layer (and others, in the order of their ids) can be ended at one moment [14].
pub struct SealGuard<'a> {
    layer: &'a Layer,
    log: MutexGuard<'a, Log>,
}

impl SealGuard<'_> {
    /// Appends *end*: from here on writes belong to the next layer.
    pub fn end(&mut self) -> Result<()> {
        self.log.end()
    }

    /// Latches the layer: it was ended with others, and one of those could not be.
    pub fn latch(&mut self) {
        self.log.latched = true;
    }

    /// The layer.
    pub fn layer(&self) -> &Layer {
        self.layer
    }
}

impl Layer {
    /// Everything answered so far is durable when this returns [6]. Concurrent calls share a sync.
    pub fn flush(&self) -> Result<()> {
        let want = {
            let log = self.log.lock();
            if log.latched {
                return Err(LayerError::Latched);
            }
            log.newest
        };
        self.flush_unless(|log| log.confirmed >= want)
    }

    /// Frees what waits for a second flush, when nobody else is likely to ask for one.
    pub fn settle(&self) -> Result<()> {
        self.flush_unless(|log| {
            log.ended.is_some() || log.superseded.is_empty() && log.confirmed_unsaid.is_empty()
        })
    }

    fn flush_unless(&self, is_done: impl Fn(&Log) -> bool) -> Result<()> {
        let _one = self.flushing.lock();
        loop {
            let mut log = self.log.lock();
            if log.latched {
                return Err(LayerError::Latched);
            }
            if is_done(&log) {
                return Ok(());
            }
            let Some(upto) = self.append_mark(&mut log)? else {
                drop(log);
                self.checkpoint_closed()?;
                continue;
            };
            drop(log);
            self.sync_data()?;
            return self.confirm(upto);
        }
    }

    /// Appends the mark a flush covers; `None` where both halves are full. An ended layer's *end* is its mark.
    fn append_mark(&self, log: &mut Log) -> Result<Option<u64>> {
        if log.ended.is_some() {
            return Ok(log.ended);
        }
        if !log.has_room(BARE_RECORD_LEN, 0) {
            if !log.other_free {
                return Ok(None);
            }
            self.close_half(log, 0)?;
        }
        let seq = log.mark()?;
        let superseded = std::mem::take(&mut log.superseded);
        log.marked.extend(superseded);
        Ok(Some(seq))
    }

    /// A mark's sync has returned: say so, and free what the mark before it confirmed. (Freed now, a slot of this
    /// mark could be written while the disk still lacks the record that confirms it: recovery would check it and cut.)
    fn confirm(&self, upto: u64) -> Result<()> {
        let mut log = self.log.lock();
        log.confirmed = log.confirmed.max(upto);
        log.marked_bytes = 0;
        let marked = std::mem::take(&mut log.marked);
        let free = std::mem::replace(&mut log.confirmed_unsaid, marked);
        if let Err(slot) = self.slots.free_superseded(&free) {
            log.latched = true;
            return Err(self.damaged_slot(slot));
        }
        log.done()?;
        // What is not written again need not fill the memory of the process. Under the lock: later the half may be in use again.
        match log.ended {
            Some(_) => self.release_log(),
            None => {
                let durable = log.take_durable_windows();
                durable.into_iter().for_each(|(offset, len)| self.data.release_log(offset, len));
            }
        }
        Ok(())
    }

    /// Nothing is appended any more.
    fn release_log(&self) {
        for half in [0, 1] {
            self.data.release_log(half_offset(half), HALF_BYTES);
        }
    }

    /// The map named a slot that no sector can have.
    fn damaged_slot(&self, slot: SlotNo) -> LayerError {
        let what = format!("the map of layer {}", self.id);
        LayerError::corrupted(what, "each slot in use once", format!("slot {} otherwise", slot.0))
    }

    fn sync_data(&self) -> Result<()> {
        self.latch(self.data.sync().map_err(LayerError::io("syncing a layer")))
    }

    /// Latches the layer if `result` is an error, but for a full file system that changed nothing [8].
    fn latch<T>(&self, result: Result<T>) -> Result<T> {
        if result.as_ref().is_err_and(|e| !matches!(e, LayerError::NoSpace)) {
            self.log.lock().latched = true;
        }
        result
    }

    /// Begins to write back what slots hold, without waiting: what a flush finds left to do is what was written since.
    pub fn begin_write_back(&self) {
        self.data.begin_sync(SLOTS_OFFSET, self.slots.high() * SECTOR_BYTES);
    }

    /// Whether something answered is not durable yet.
    pub fn needs_flush(&self) -> bool {
        let log = self.log.lock();
        !log.latched && log.confirmed < log.newest
    }

    /// Bytes written since the last mark.
    pub fn unflushed_bytes(&self) -> u64 {
        self.log.lock().unflushed_bytes
    }

    /// Bytes written and not known to be durable.
    pub fn undurable_bytes(&self) -> u64 {
        let log = self.log.lock();
        match log.confirmed >= log.newest {
            true => 0,
            false => log.unflushed_bytes + log.marked_bytes,
        }
    }

    /// Whether a closed half waits for its checkpoint.
    pub fn needs_checkpoint(&self) -> bool {
        let log = self.log.lock();
        !log.latched && log.closed.is_some()
    }

    /// Brings a closed half into the map, if one waits [10].
    pub fn checkpoint_closed(&self) -> Result<()> {
        let mut current = self.superblock.lock();
        self.checkpoint_into(&mut current)
    }

    /// The same, unless that is done already when no other checkpoint is under way.
    pub(super) fn checkpoint_closed_unless(&self, is_done: &dyn Fn(&Log) -> bool) -> Result<()> {
        let mut current = self.superblock.lock();
        if is_done(&self.log.lock()) {
            return Ok(());
        }
        self.checkpoint_into(&mut current)
    }

    /// Brings everything into the map.
    pub fn checkpoint(&self) -> Result<()> {
        self.checkpoint_all(0)
    }

    /// The layer's header has this edition from now on: no older one goes with what is written after this has returned.
    pub fn require_edition(&self, edition: u64) -> Result<()> {
        self.edition.fetch_max(edition, Ordering::AcqRel);
        self.checkpoint_all(0)
    }

    /// Flushes, brings everything into the map and says that the layer was closed in order.
    pub fn close(&self) -> Result<()> {
        self.flush()?;
        self.checkpoint_all(FLAG_CLEAN)
    }

    fn checkpoint_all(&self, flags: u32) -> Result<()> {
        let mut current = self.superblock.lock();
        loop {
            self.checkpoint_into(&mut current)?;
            let mut log = self.log.lock();
            if log.latched {
                return Err(LayerError::Latched);
            }
            let is_said =
                log.is_empty() && flags == 0 && current.0.edition >= self.edition.load(Ordering::Acquire);
            if log.ended.is_some() || self.sealed.load(Ordering::Acquire) || is_said {
                return Ok(());
            }
            // A writer that waited for room may have closed a half meanwhile.
            if log.other_free {
                self.close_half(&mut log, flags)?;
                break;
            }
        }
        self.checkpoint_into(&mut current)
    }

    fn checkpoint_into(&self, current: &mut (Superblock, [u8; 16])) -> Result<()> {
        {
            let log = self.log.lock();
            if log.latched {
                return Err(LayerError::Latched);
            }
            if log.closed.is_none() {
                return Ok(());
            }
        }
        let done = self.write_checkpoint(current);
        self.latch(done)
    }

    fn write_checkpoint(&self, current: &mut (Superblock, [u8; 16])) -> Result<()> {
        let (next, seq, data_sectors, flags, recovered) = {
            let log = self.log.lock();
            let closed = log.closed.as_ref().expect("asked before, and only a checkpoint takes it");
            (closed.next, closed.seq, closed.data_sectors, closed.flags, closed.recovered)
        };
        let io = LayerError::io;
        // 1. Slots before the map that names them: else entries name data that never came.
        self.data.sync().map_err(io("syncing a layer"))?;
        self.data.release_log(half_offset(1 - next.half), HALF_BYTES);
        // 2. Pages, each to the place not in use: else a torn one takes its chunk with it.
        let written = self.tree.write_frozen(&self.overlay, recovered)?;
        // 3. Pages before the superblock that names them: else a lost page write leaves an old page.
        self.map.sync().map_err(io("syncing a map"))?;
        // 4. The superblock, to the place of the one before the last.
        let sb = Superblock {
            flags,
            generation: current.0.generation + 1,
            size_bytes: self.size_bytes,
            log: next,
            slots_high: self.slots.high(),
            data_sectors,
            edition: self.edition.load(Ordering::Acquire),
            top: written.top,
        };
        let (bytes, mac) = sb.to_bytes(self.id, self.keys.superblock());
        let put = self.data.write_at(&bytes, Superblock::offset(sb.generation));
        put.map_err(|e| no_space_or(e, "writing a superblock"))?;
        // 5. Durable before the half is used again: else the old superblock lists records that are gone.
        self.data.sync().map_err(io("syncing a layer"))?;
        *current = (sb, mac);
        // 6. Roots before the entries they replace go: a reader asks in the other order.
        let mut log = self.log.lock();
        self.tree.publish(written.top);
        self.overlay.thaw();
        self.checkpoints.fetch_add(1, Ordering::Release);
        log.other_free = true;
        log.confirmed = log.confirmed.max(seq);
        let superseded = log.closed.take().map(|closed| closed.superseded).unwrap_or_default();
        let freed = self.slots.free_superseded(&superseded).map_err(|slot| self.damaged_slot(slot));
        drop(log);
        self.tree.forget_replaced(&written);
        freed
    }

    /// Takes the log's lock for a seal; refused where the layer takes no writes, or where no room is left to end it.
    pub fn lock_for_seal(&self) -> Result<SealGuard<'_>> {
        let mut log = self.log.lock();
        if log.latched {
            return Err(LayerError::Latched);
        }
        if log.ended.is_some() || self.sealed.load(Ordering::Acquire) {
            return Err(LayerError::Ended);
        }
        log.prepare_end()?;
        Ok(SealGuard { layer: self, log })
    }

    /// Brings an ended layer's log into its map for good, and gives its free slots back: they hold older versions [15].
    pub fn finish_seal(&self) -> Result<SealedMark> {
        self.finish_seal_beside(&|| ())
    }

    /// The same for a caller who has more to do: `between` is called again and again while space is given back, which may take
    /// seconds where much was overwritten here and there.
    pub fn finish_seal_beside(&self, between: &dyn Fn()) -> Result<SealedMark> {
        let mark = self.settle_seal()?;
        if self.unpunched.swap(false, Ordering::AcqRel) {
            self.punch_sealed(&mut || {
                between();
                true
            });
        }
        Ok(mark)
    }

    /// The first half of [`Layer::finish_seal`]: from here on the layer needs no memory for what was changed.
    pub fn settle_seal(&self) -> Result<SealedMark> {
        let (mark, newly) = self.checkpoint_ended()?;
        if newly {
            self.unpunched.store(true, Ordering::Release);
            self.release_log();
        }
        Ok(mark)
    }

    /// The mark, and whether this call sealed the layer. One that failed, as on a full file system, may be repeated.
    fn checkpoint_ended(&self) -> Result<(SealedMark, bool)> {
        // No flush is under way then, whose superseded slots would be free only after it.
        let _one = self.flushing.lock();
        let mut current = self.superblock.lock();
        let newly = !self.sealed.load(Ordering::Acquire);
        if newly {
            if self.log.lock().ended.is_none() {
                return Err(LayerError::corrupted("a layer to be sealed", "an end record", "none"));
            }
            self.checkpoint_into(&mut current)?;
            if !current.0.is_sealed() {
                let mut log = self.log.lock();
                log.close_ended();
                self.overlay.freeze();
                drop(log);
                self.checkpoint_into(&mut current)?;
            }
            self.sealed.store(true, Ordering::Release);
        }
        let (sb, mac) = &*current;
        Ok((SealedMark { generation: sb.generation, mac: *mac }, newly))
    }

    /// What is durable of it now, for this machine to remember.
    pub fn anchor(&self) -> Anchor {
        let generation = self.superblock.lock().0.generation;
        Anchor { generation, confirmed: self.log.lock().confirmed }
    }

    /// The seal of a layer that was [opened again](Layer::reopen): only what the fold itself has freed is given back. To look for
    /// more would read the whole map, however little was folded; that is done where the fold was `resumed`, since what it had freed
    /// before a cut is not known. None: `goes_on` said no, and the fold is to be resumed.
    pub fn finish_fold(
        &self,
        resumed: bool,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<SealedMark>> {
        let (mark, newly) = self.checkpoint_ended()?;
        if newly {
            let is_done = match resumed | self.unpunched.swap(false, Ordering::AcqRel) {
                true => self.punch_sealed(goes_on),
                false => self.punch_all(goes_on),
            };
            if !is_done {
                return Ok(None);
            }
            self.release_log();
        }
        Ok(Some(mark))
    }

    /// What lies behind the highest slot that any durable word names, after a cut: slots written ahead, and writes that were lost.
    pub(super) fn punch_beyond(&self) {
        let from = slot_offset(SlotNo(self.slots.high()));
        let punched = self.data.len().and_then(|len| match len > from {
            true => self.data.punch(from, len - from),
            false => Ok(()),
        });
        if let Err(e) = punched {
            tracing::warn!(layer = %self.id, error = %e, "space of writes that a cut took is kept");
        }
    }

    /// Best effort: what is not given back costs space only. False: it was told to end.
    fn punch_sealed(&self, goes_on: &mut dyn FnMut() -> bool) -> bool {
        match self.learn_free_slots_while(goes_on) {
            Ok(true) => self.punch_all(goes_on),
            Ok(false) => false,
            Err(e) => {
                tracing::warn!(layer = %self.id, error = %e, "free space of a sealed layer is kept");
                true
            }
        }
    }

    fn punch_all(&self, goes_on: &mut dyn FnMut() -> bool) -> bool {
        for (i, runs) in self.slots.take_all_punchable().chunks(PUNCHES_AT_ONCE).enumerate() {
            if i > 0 && !goes_on() {
                return false;
            }
            self.punch(runs);
        }
        self.sync_holes();
        true
    }

    /// Holes before the row that says that the seal is finished: nobody looks for them again.
    fn sync_holes(&self) {
        if let Err(e) = self.data.sync() {
            tracing::warn!(layer = %self.id, error = %e, "a power cut may bring space back that was given up");
        }
    }

    /// Finds the free slots below those this process has taken [17]. Writes and checkpoints go on meanwhile.
    pub fn learn_free_slots(&self) -> Result<()> {
        self.learn_free_slots_while(&mut || true).map(|_| ())
    }

    /// The same, while `goes_on`, which is asked every so many chunks; whether it came to its end. One that did not has learnt nothing.
    pub fn learn_free_slots_while(&self, goes_on: &mut dyn FnMut() -> bool) -> Result<bool> {
        let end = self.slots.unknown_below();
        if end == 0 {
            return Ok(true);
        }
        let mut used = vec![0u64; end.div_ceil(64) as usize];
        let mut mark = |slot: SlotNo| {
            let bit = 1 << (slot.0 % 64);
            let word = used.get_mut(slot.0 as usize / 64).filter(|_| slot.0 < end);
            word.is_none_or(|word| std::mem::replace(word, *word | bit) & bit == 0)
        };
        let chunks = self.sectors().div_ceil(CHUNK_SECTORS);
        let (mut at, mut passed) = (0, 0);
        while let Some(chunk) = self.tree.next_present(at..chunks)? {
            passed += 1;
            if passed % CHUNKS_AT_ONCE == 0 && !goes_on() {
                return Ok(false);
            }
            if let Leaf::Page(page) = self.leaf(ChunkNo(chunk))? {
                // None below `end` is taken while the pass runs. Where one has two sectors none is freed, ever.
                let high = self.slots.high();
                let mut slots = page.entries().iter().filter_map(|e| e.slot());
                if let Some(slot) = slots.find(|slot| slot.0 >= high || !mark(*slot)) {
                    return Err(self.damaged_slot(slot));
                }
            }
            at = chunk + 1;
        }
        // Under the lock every slot is named by the map, waiting, or freed and told so.
        let log = self.log.lock();
        for slot in log.waiting() {
            mark(slot);
        }
        self.slots.learn(&used);
        Ok(true)
    }
}
