//! Opening: recovery of a layer that takes writes, and the plain opening of a sealed one.

use std::ops::Range;

use super::bytes::{
    Entry, HALF_BYTES, Kind, LogStart, RECORD_MAGIC, Record, SLOTS_OFFSET, State, Superblock, slot_offset,
};
use super::durable::SealedMark;
use super::engine::{Layer, Parts, is_zero};
use super::error::{LayerError, Result};
use super::log::{BLOCK, half_offset};
use super::store::Store;
use crate::crypto::LayerKeys;
use crate::ids::LayerId;
use crate::sys::page_buffer::PageBuffer;
use crate::units::{SECTOR_LEN, SectorNo, by_chunk, sectors_of_bytes};

/// What this machine last saw of a layer, kept beside the root key: an older state is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anchor {
    /// A superblock of this generation was durable.
    pub generation: u64,
    /// The record of this seq, and all before, were durable.
    pub confirmed: u64,
}

/// The records that follow from a superblock.
struct List {
    records: Vec<(Position, Record)>,
    /// Where the list ends, and what a next record would name.
    end: Position,
    next: LogStart,
    /// It ends with the close of a recovery that was cut.
    closed_twice: bool,
    /// Both halves as read.
    halves: [PageBuffer; 2],
    /// It was cut at this record, whose slots hold something else.
    lost: Option<Record>,
}

impl List {
    fn has_ended(&self) -> bool {
        self.records.last().is_some_and(|(_, record)| record.kind == Kind::End)
    }

    /// Its records name no slot at or above.
    fn slots_high(&self) -> u64 {
        let named = self.records.iter().flat_map(|(_, r)| &r.runs).filter_map(|run| match run.state {
            State::Data(slot) => Some(slot.0 + u64::from(run.count)),
            State::Absent | State::Zero => None,
        });
        named.max().unwrap_or(0)
    }
}

/// Slots that a layer may count beyond the end of its file (4 GiB): what was taken and not written yet by any thread, or
/// could not be on a full file system; or was written, and the file cut since: then the sectors are told one by one.
const SLOTS_BEYOND_MAX: u64 = 1 << 20;

/// A number of slots is memory that this process takes: not for what no file holds.
fn refuse_slots_past_the_file(parts: &Parts, slots_high: u64, file_bytes: u64) -> Result<()> {
    let most = (file_bytes - SLOTS_OFFSET).div_ceil(SECTOR_LEN as u64) + SLOTS_BEYOND_MAX;
    if slots_high <= most {
        return Ok(());
    }
    let what = format!("the number of slots of layer {}", parts.id);
    Err(LayerError::corrupted(what, format!("at most {most} by its file's length"), format!("{slots_high}")))
}

#[derive(Clone, Copy, Debug)]
struct Position {
    half: usize,
    pos: u64,
}

impl Layer {
    /// Opens a layer that may take writes: its state is that of a prefix of the writes given, at least up to the last
    /// flush that returned. Everything is in the map and a new epoch begun when this returns, unless it
    /// [is ended](Layer::is_ended): then [`Layer::finish_seal`] is due. The caller holds the lock of the data file.
    pub fn recover(parts: Parts, anchor: Option<Anchor>) -> Result<Self> {
        Self::recover_if(parts, anchor, |_| Ok(()))
    }

    /// The same for a layer that a row says to have ended: where its log does not, nothing is written. A log that is read wrong
    /// once would else be cut there for good.
    pub fn recover_ended(parts: Parts, anchor: Option<Anchor>) -> Result<Self> {
        let id = parts.id;
        Self::recover_if(parts, anchor, |list| match list.has_ended() {
            true => Ok(()),
            false => Err(LayerError::corrupted(format!("the log of layer {id}"), "an end record", "none")),
        })
    }

    fn recover_if(
        parts: Parts,
        anchor: Option<Anchor>,
        allows: impl FnOnce(&List) -> Result<()>,
    ) -> Result<Self> {
        // 2. What is only cached may never have been written: make it so, and read what the device holds.
        for store in [&parts.data, &parts.map] {
            store.sync().map_err(LayerError::io("syncing a layer"))?;
            store.drop_cache().map_err(LayerError::io("reading a layer"))?;
        }
        let Examined { sb, mac, list } = examine_twice(&parts, anchor)?;
        list.as_ref().map_or(Ok(()), allows)?;
        let slots_high = sb.slots_high;
        let layer = Self::assemble(parts, sb, mac, [0; 2]);
        let Some(list) = list else {
            // Sealed by a process that was ended before it had given all free slots back.
            layer.slots.raise(slots_high);
            layer.unpunched.store(true, std::sync::atomic::Ordering::Release);
            layer.punch_beyond();
            return Ok(layer);
        };
        // 7, 8.
        layer.install_list(&list)?;
        layer.punch_beyond();
        Ok(layer)
    }

    /// Opens a sealed layer: the superblock must be the one header and catalog name.
    pub fn open_sealed(parts: Parts, mark: SealedMark) -> Result<Self> {
        let found = read_superblocks(&parts)?;
        let (sb, mac) = found.newest;
        refuse_older_header(&parts, &sb)?;
        if !sb.is_sealed() || sb.generation != mark.generation || mac != mark.mac {
            return Err(LayerError::corrupted(
                format!("the superblock of sealed layer {}", parts.id),
                format!("generation {}, sealed", mark.generation),
                format!("generation {}, sealed: {}", sb.generation, sb.is_sealed()),
            ));
        }
        Ok(Self::assemble(parts, sb, mac, [0; 2]))
    }

    /// Opens a layer as its recovery would find it, to check it: reads only, and what is read stays in memory. Whether its log has
    /// ended. The caller sees to it that nobody writes to it.
    pub fn inspect(parts: Parts, anchor: Option<Anchor>) -> Result<(Self, bool)> {
        parts.data.drop_cache().map_err(LayerError::io("reading a layer"))?;
        let Examined { sb, mac, list } = examine(&parts, anchor)?;
        let layer = Self::assemble(parts, sb, mac, [0; 2]);
        let mut ended = true;
        if let Some(list) = list {
            layer.install_records(&list)?;
            ended = layer.log.lock().ended.is_some();
        }
        // Nothing may change what is on disk.
        layer.sealed.store(true, std::sync::atomic::Ordering::Release);
        Ok((layer, ended))
    }

    /// Whether the superblock that does not count is whole too.
    pub fn other_superblock_is_whole(&self) -> Result<bool> {
        Ok(superblocks(self.id(), &*self.data, &self.keys)?.other_is_valid)
    }

    fn install_list(&self, list: &List) -> Result<()> {
        self.install_records(list)?;
        let mut log = self.log.lock();
        if log.ended.is_some() {
            return Ok(());
        }
        // A close, so that a cut in this checkpoint's superblock is not taken for rot [6], and what lies beyond the list
        // can't join what follows [8].
        if list.closed_twice {
            log.reopen_closed();
            self.overlay.freeze();
        } else {
            self.close_half(&mut log, 0)?;
        }
        drop(log);
        self.checkpoint_closed()
    }

    /// Puts the records of the list into memory.
    fn install_records(&self, list: &List) -> Result<()> {
        self.slots.raise(list.slots_high());
        let mut log = self.log.lock();
        for (_, record) in &list.records {
            for run in record.entries().collect::<Vec<_>>().chunk_by(|a, b| a.0 + 1 == b.0) {
                let mut done = 0;
                for (chunk, index, len) in by_chunk(SectorNo(run[0].0), run.len() as u64) {
                    let mut old = vec![Entry::ABSENT; len];
                    match self.entries(chunk, index, &mut old) {
                        // The checkpoint will find that page again: its span is lost [10], not the disk.
                        Err(e) if e.is_corruption() => old.fill(Entry::ABSENT),
                        other => other?,
                    }
                    self.install(&mut log, chunk, index, run[done..done + len].iter().map(|e| e.1), &old);
                    done += len;
                }
            }
        }
        // The pass finds the superseded slots: they are below `slots_high`.
        log.superseded.clear();
        let last = list.records.last().map(|(_, r)| (r.kind, r.seq));
        let ended = last.filter(|(kind, _)| *kind == Kind::End).map(|(_, seq)| seq);
        log.resume(list.next, list.end.pos, ended);
        Ok(())
    }
}

/// What a layer's files say, before anything is changed.
struct Examined {
    sb: Superblock,
    mac: [u8; 16],
    /// The records that the map lacks; none: it is sealed.
    list: Option<List>,
}

/// How often it is tried to read a layer alike twice.
const READINGS: usize = 3;

/// What two readings in turn agree on. What is read wrong once must not be taken for the log's end, which would then be written down,
/// nor for damage.
fn examine_twice(parts: &Parts, anchor: Option<Anchor>) -> Result<Examined> {
    for _ in 0..READINGS {
        let seen = examine(parts, anchor);
        // The second reading is of the device.
        parts.data.drop_cache().map_err(LayerError::io("reading a layer"))?;
        match seen {
            Ok(seen) => match still_reads(parts, &seen) {
                Ok(true) => return Ok(seen),
                Err(e) if !e.is_corruption() => return Err(e),
                _ => {}
            },
            Err(e) if e.is_corruption() => {
                examine(parts, anchor)?;
            }
            Err(e) => return Err(e),
        }
        tracing::warn!(layer = %parts.id, "it does not read alike twice: the device, or the way to it, is failing");
    }
    let unlike = std::io::Error::other("each reading says something else; nothing was changed");
    Err(LayerError::io("reading the log")(unlike))
}

/// Whether the superblock, what lies behind the log's end, and the slots it ends at are as they were. What stands before the end has
/// proven itself.
fn still_reads(parts: &Parts, seen: &Examined) -> Result<bool> {
    let is_same = read_superblocks(parts)?.newest.1 == seen.mac;
    let Some(list) = &seen.list else { return Ok(is_same) };
    let (half, from) = (list.end.half, list.end.pos / BLOCK * BLOCK);
    let behind = list.halves[half].get(from as usize..).unwrap_or_default();
    let is_lost = match &list.lost {
        Some(record) => !slots_hold(parts, record, &mut piece_buffer())?,
        None => true,
    };
    Ok(is_same && is_lost && read_log(parts, half, from)?[..] == *behind)
}

/// Steps 3 to 6: reads only.
fn examine(parts: &Parts, anchor: Option<Anchor>) -> Result<Examined> {
    // Its log area is there from the moment of its creation.
    let len = parts.data.len().map_err(LayerError::io("asking a layer's size"))?;
    if len < SLOTS_OFFSET {
        let found = format!("{len} bytes");
        return Err(LayerError::corrupted(format!("the data of layer {}", parts.id), "its log area", found));
    }
    // 3.
    let found = read_superblocks(parts)?;
    let (sb, mac) = found.newest;
    refuse_older_header(parts, &sb)?;
    if let Some(anchor) = anchor
        && sb.generation < anchor.generation
    {
        let expected = format!(
            "generation {} or newer, as its header says, or what this machine last saw",
            anchor.generation
        );
        return Err(LayerError::corrupted(
            format!("layer {}", parts.id),
            expected,
            format!("generation {}", sb.generation),
        ));
    }
    refuse_slots_past_the_file(parts, sb.slots_high, len)?;
    if sb.is_sealed() {
        return Ok(Examined { sb, mac, list: None });
    }
    // 4, 5, 6.
    let mut list = list_records(parts, &sb)?;
    let closes = list.records.iter().any(|(_, r)| matches!(r.kind, Kind::Close | Kind::End));
    cut_at_first_lost(parts, &mut list)?;
    refuse_damage(parts, &sb, &list, anchor)?;
    if !found.other_is_valid && !closes {
        let found = "a damaged one, and no log that explains it";
        return Err(LayerError::corrupted("the other superblock", "a valid one", found));
    }
    refuse_slots_past_the_file(parts, list.slots_high(), len)?;
    Ok(Examined { sb, mac, list: Some(list) })
}

/// An older header may name another parent than the one that its data was written over since.
pub(super) fn refuse_older_header(parts: &Parts, sb: &Superblock) -> Result<()> {
    if sb.edition <= parts.edition {
        return Ok(());
    }
    Err(LayerError::corrupted(
        format!("the header of layer {}", parts.id),
        format!("edition {} or newer, as its data says", sb.edition),
        format!("edition {}", parts.edition),
    ))
}

struct Superblocks {
    newest: (Superblock, [u8; 16]),
    other_is_valid: bool,
}

fn read_superblocks(parts: &Parts) -> Result<Superblocks> {
    superblocks(parts.id, &*parts.data, &parts.keys)
}

/// The newest valid superblock of a layer, and its MAC.
pub(super) fn newest_superblock(
    id: LayerId,
    data: &dyn Store,
    keys: &LayerKeys,
) -> Result<(Superblock, [u8; 16])> {
    superblocks(id, data, keys).map(|found| found.newest)
}

fn superblocks(id: LayerId, data: &dyn Store, keys: &LayerKeys) -> Result<Superblocks> {
    let read = |place: u64| {
        let mut bytes = [0; 4096];
        data.read_at(&mut bytes, place * 4096).map_err(LayerError::io("reading a superblock"))?;
        let parsed = Superblock::parse(&bytes, id, keys.superblock());
        parsed.and_then(|(sb, mac)| match sb.generation & 1 == place {
            // It is counted on from there, so that it must be a number of sectors.
            true => {
                let data_sectors = sb.data_sectors.min(sectors_of_bytes(sb.size_bytes));
                Ok((Superblock { data_sectors, ..sb }, mac))
            }
            false => Err(LayerError::corrupted("a superblock", "its own place", "the other's")),
        })
    };
    match (read(0), read(1)) {
        (Ok(a), Ok(b)) => {
            let newest = if a.0.generation > b.0.generation { a } else { b };
            Ok(Superblocks { newest, other_is_valid: true })
        }
        (Ok(newest), Err(e)) | (Err(e), Ok(newest)) if e.is_corruption() => {
            Ok(Superblocks { newest, other_is_valid: false })
        }
        (Err(e), _) | (_, Err(e)) => Err(e),
    }
}

fn list_records(parts: &Parts, sb: &Superblock) -> Result<List> {
    let sectors = sectors_of_bytes(sb.size_bytes);
    let halves = [read_log(parts, 0, 0)?, read_log(parts, 1, 0)?];
    let mut records = Vec::new();
    let mut next = sb.log;
    let mut end = Position { half: next.half, pos: 0 };
    let mut closed_twice = false;
    let at = |halves: &[PageBuffer; 2], end: Position| {
        let rest = halves[end.half].get(end.pos as usize..)?;
        Record::parse(rest, parts.keys.log(), sectors)
    };
    while let Some(record) = at(&halves, end) {
        if (record.seq, record.epoch, record.chain) != (next.seq, next.epoch, next.chain) {
            break;
        }
        let kind = record.kind;
        next.seq += 1;
        next.chain = record.mac;
        let at = end;
        end.pos += record.len as u64;
        records.push((at, record));
        match kind {
            Kind::Mark => end.pos = end.pos.next_multiple_of(BLOCK),
            // The other half holds at most one epoch beyond the superblock's.
            Kind::Close if next.epoch == sb.log.epoch => {
                end = Position { half: 1 - end.half, pos: 0 };
                next.half = end.half;
                next.epoch += 1;
            }
            Kind::Close => {
                // Closed by a recovery that was cut.
                next.half = 1 - end.half;
                next.epoch += 1;
                end = Position { half: next.half, pos: 0 };
                closed_twice = true;
                break;
            }
            Kind::End => break,
            Kind::Write | Kind::Done => {}
        }
    }
    Ok(List { records, end, next, closed_twice, halves, lost: None })
}

/// A half of the log from a block on. What was never prepared is a hole: zeros, which hold no record.
fn read_log(parts: &Parts, half: usize, from: u64) -> Result<PageBuffer> {
    let failed = || LayerError::io("reading the log");
    let offset = half_offset(half);
    let end = parts.data.data_end(offset + from.min(HALF_BYTES)..offset + HALF_BYTES).map_err(failed())?;
    let mut bytes = PageBuffer::new((end - offset).next_multiple_of(BLOCK).saturating_sub(from) as usize);
    parts.data.read_at(&mut bytes, offset + from).map_err(failed())?;
    Ok(bytes)
}

/// Sectors of a record that are read at once.
const PIECE_SECTORS: usize = 256;

/// Step 5: slots of records not known to be durable may be lost: the list is cut at the first, so that what remains is a
/// prefix. (None of them was used again: a slot is free only once a durable record says that its successor is.)
fn cut_at_first_lost(parts: &Parts, list: &mut List) -> Result<()> {
    let confirmed = list.records.iter().map(|(_, r)| r.confirmed).max().unwrap_or(0);
    let mut buffer = piece_buffer();
    for i in 0..list.records.len() {
        let (at, record) = &list.records[i];
        if record.seq <= confirmed || slots_hold(parts, record, &mut buffer)? {
            continue;
        }
        list.end = *at;
        list.next = LogStart { half: at.half, epoch: record.epoch, seq: record.seq, chain: record.chain };
        list.closed_twice = false;
        list.lost = list.records.drain(i..).next().map(|(_, record)| record);
        break;
    }
    Ok(())
}

fn piece_buffer() -> PageBuffer {
    PageBuffer::new(PIECE_SECTORS * SECTOR_LEN)
}

fn slots_hold(parts: &Parts, record: &Record, buffer: &mut [u8]) -> Result<bool> {
    let mut tags = record.tags.as_slice();
    for run in &record.runs {
        let State::Data(slot) = run.state else { continue };
        let (run_tags, rest) = tags.split_at(run.count as usize);
        tags = rest;
        for (i, piece) in run_tags.chunks(PIECE_SECTORS).enumerate() {
            let first = (i * PIECE_SECTORS) as u64;
            let bytes = &mut buffer[..piece.len() * SECTOR_LEN];
            let slot = crate::units::SlotNo(slot.0 + first);
            parts.data.read_at(bytes, slot_offset(slot)).map_err(LayerError::io("reading sectors"))?;
            if parts.keys.check_sectors(SectorNo(run.sector + first), bytes, piece).is_err() {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Step 6: damage, not a cut: a record beyond the list's end, or the anchor, says that what is missing was durable.
fn refuse_damage(parts: &Parts, sb: &Superblock, list: &List, anchor: Option<Anchor>) -> Result<()> {
    let lost = list.next.seq;
    let damage = |by: String| {
        let what = format!("record {lost} of the log of layer {}", parts.id);
        Err(LayerError::corrupted(
            what,
            "a record that was flushed",
            format!("none, though {by} confirms it"),
        ))
    };
    if let Some(anchor) = anchor
        && anchor.confirmed >= lost
    {
        return damage("what this machine last saw".into());
    }
    let sectors = sectors_of_bytes(sb.size_bytes);
    let epochs: Range<u64> = sb.log.epoch..sb.log.epoch + 2;
    for bytes in &list.halves {
        // Records begin at multiples of 8. Most of a log is zeros: those are left out a block at a time.
        for (number, block) in bytes.chunks(BLOCK as usize).enumerate().filter(|(_, b)| !is_zero(b)) {
            let starts = block.as_chunks().0.iter().enumerate();
            for (i, _) in starts.filter(|(_, b)| u64::from_le_bytes(**b) as u32 == RECORD_MAGIC) {
                let at = number * BLOCK as usize + i * 8;
                if let Some(record) = Record::parse(&bytes[at..], parts.keys.log(), sectors)
                    && epochs.contains(&record.epoch)
                    && record.seq >= lost
                    && record.confirmed >= lost
                {
                    return damage(format!("record {}", record.seq));
                }
            }
        }
    }
    Ok(())
}
