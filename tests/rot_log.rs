//! Guards against flushed writes that are gone without a word, and against states a disk never had, where the disk below returns
//! other records of the log than were written: flipped, zeroed, swapped, left out, repeated, stale, or cut off with all behind them.

mod rot_support;

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::channel;

use rot_support::common::shelf::Anchors;
use rot_support::common::sim::{Machine, State};
use rot_support::{Content, Disk, open, shelf_on};
use terrane::crypto::Prf;
use terrane::layer::{Anchor, Layer};
use terrane::units::SECTOR_LEN;
use terrane::volume::LiveVolume;

#[test]
fn flipped_log_records_are_refused_or_were_never_promised() {
    let mut disk = Disk::filled();
    let mut contents = vec![disk.content.clone()];
    let mut flushed = 0;
    for i in 0..12u64 {
        disk.write(i..i + 2);
        contents.push(disk.content.clone());
        if i % 4 == 3 && i < 11 {
            disk.volume.flush().unwrap();
            flushed = contents.len() - 1;
        }
    }
    let state = disk.machine.state();
    let data = disk.file(disk.volume.active().id(), "data");
    let (mut refused, mut cut) = (0, 0);
    for half in 0..2u64 {
        let area = (1 << 20) + half * (16 << 20);
        let bytes = state.machine().peek(&data, area, 32 << 10);
        for at in (0..bytes.len()).filter(|at| bytes[*at] != 0).step_by(5) {
            let machine = state.machine();
            machine.flip(&data, area + at as u64, 1 << (at % 8));
            let Some(volume) = open(&machine) else {
                refused += 1;
                continue;
            };
            let mut bytes = vec![0; 20 * SECTOR_LEN];
            volume.read(0, &mut bytes).unwrap();
            let found = contents.iter().rposition(|c| c[..bytes.len()] == bytes);
            let found = found.unwrap_or_else(|| panic!("half {half}, byte {at}: no state of the disk"));
            assert!(found >= flushed, "half {half}, byte {at}: flushed writes are gone without a word");
            cut += usize::from(found + 1 < contents.len());
        }
    }
    assert!(refused > 100 && cut > 20, "{refused} refused, {cut} cut");
}

/// Of each half of the log, more than the tests fill.
const HALF_LEN: usize = 32 << 10;
/// What records of the log are written to.
const LOGGED: Range<usize> = 0..20 * SECTOR_LEN;

type Halves = [Vec<u8>; 2];

fn halves_of(machine: &Machine, data: &str) -> Halves {
    [1 << 20, 17 << 20].map(|at| machine.peek(data, at, HALF_LEN))
}

/// A record as it lies in the log (docs/format.md).
#[derive(Clone, Copy, Debug)]
struct Lying {
    half: usize,
    at: usize,
    len: usize,
    seq: u64,
    epoch: u64,
    confirmed: u64,
    kind: u16,
}

impl Lying {
    fn range(&self) -> Range<usize> {
        self.at..self.at + self.len
    }
}

/// All that have a right MAC, wherever they lie, by their numbers.
fn lying_in(halves: &Halves, prf: &Prf) -> Vec<Lying> {
    let mut found = Vec::new();
    for (half, bytes) in halves.iter().enumerate() {
        for at in (0..HALF_LEN).step_by(8).filter(|at| bytes[*at..].starts_with(b"TERL")) {
            let word = |n: usize| u64::from_le_bytes(bytes[at + n..at + n + 8].try_into().unwrap());
            let len = (word(0) >> 32) as usize;
            let (said, mac) = bytes[at..at + len].split_last_chunk::<16>().unwrap();
            if prf.verify(&[said], mac) {
                let (seq, epoch, confirmed, kind) = (word(8), word(16), word(24), word(32) as u16);
                found.push(Lying { half, at, len, seq, epoch, confirmed, kind });
            }
        }
    }
    found.sort_by_key(|record| record.seq);
    found
}

/// A layer that takes writes, of whose log both halves have records that the map lacks.
struct Logged {
    state: State,
    layer: Arc<Layer>,
    halves: Halves,
    /// What lay there when the half was used before.
    before: Halves,
    records: Vec<Lying>,
    /// After each write whose record is there, and before the first; the last that was flushed.
    contents: Vec<Content>,
    flushed: usize,
    anchor: Anchor,
}

impl Logged {
    /// `unflushed` writes follow the last flush.
    fn new(unflushed: usize) -> Self {
        let mut disk = Disk::new();
        let layer = disk.volume.active();
        let data = disk.file(layer.id(), "data");
        // A half is zeros again once the other is closed.
        let before = [0, 1].map(|half: usize| {
            disk.fill_half(unflushed);
            layer.checkpoint().unwrap();
            halves_of(&disk.machine, &data)[half].clone()
        });
        let (mut contents, _) = disk.fill_half(unflushed);
        let generation = layer.anchor().generation;
        // The other half is filled while the one that is closed is on its way to the map.
        let (sender, receiver) = channel();
        let machine = disk.machine.clone();
        machine.before_next_sync(move || {
            let filled = disk.fill_half(unflushed);
            sender.send((disk.machine.state(), filled)).unwrap();
        });
        layer.checkpoint().unwrap();
        let (state, (then, flushed)) = receiver.recv().unwrap();
        let flushed = contents.len() - 1 + flushed;
        contents.extend_from_slice(&then[1..]);
        let halves = halves_of(&state.machine(), &data);
        let records = lying_in(&halves, layer.keys().log());
        let confirmed = records.last().unwrap().confirmed;
        let anchor = Anchor { generation, confirmed };
        let logged = Self { state, layer, halves, before, records, contents, flushed, anchor };
        assert_eq!(logged.proven(&logged.halves), flushed);
        logged
    }

    /// The content up to which records that are whole say that all was flushed.
    fn proven(&self, halves: &Halves) -> usize {
        let epochs = self.records[0].epoch..=self.records.last().unwrap().epoch;
        let whole = lying_in(halves, self.layer.keys().log());
        let said = whole.iter().filter(|r| epochs.contains(&r.epoch)).map(|r| r.confirmed).max();
        self.records.iter().filter(|r| r.kind == 1 && Some(r.seq) <= said).count()
    }
}

impl Disk {
    /// Records of all kinds that a log has while it goes on, several of each length; each time at the same places. The
    /// contents from before the first write on, and which of them was flushed last.
    fn fill_half(&mut self, unflushed: usize) -> (Vec<Content>, usize) {
        let mut contents = vec![self.content[LOGGED].to_vec()];
        let mut flushed = 0;
        for n in 1..=9 + unflushed as u64 {
            // Of one run each: how many a longer one takes depends on which slots are free.
            match n % 4 {
                0 => self.discard(n - 1),
                _ => self.write(n..n + 1),
            }
            contents.push(self.content[LOGGED].to_vec());
            if n % 3 == 0 && n <= 9 {
                self.volume.flush().unwrap();
                flushed = contents.len() - 1;
            }
        }
        (contents, flushed)
    }
}

/// The halves with that record not as it was written; none where the log has no such case.
type Misplace = fn(&Logged, &Lying) -> Option<Halves>;

fn zeroed(log: &Logged, record: &Lying) -> Option<Halves> {
    let mut halves = log.halves.clone();
    halves[record.half][record.range()].fill(0);
    Some(halves)
}

/// With the next that takes as much room.
fn swapped(log: &Logged, record: &Lying) -> Option<Halves> {
    let other = log.records.iter().find(|r| r.seq > record.seq && r.len == record.len)?;
    let mut halves = log.halves.clone();
    halves[record.half][record.range()].copy_from_slice(&log.halves[other.half][other.range()]);
    halves[other.half][other.range()].copy_from_slice(&log.halves[record.half][record.range()]);
    Some(halves)
}

/// What follows moves up.
fn left_out(log: &Logged, record: &Lying) -> Option<Halves> {
    let mut halves = log.halves.clone();
    let half = &mut halves[record.half];
    half.drain(record.range());
    half.resize(HALF_LEN, 0);
    Some(halves)
}

/// What follows moves down.
fn repeated(log: &Logged, record: &Lying) -> Option<Halves> {
    let mut halves = log.halves.clone();
    let half = &mut halves[record.half];
    half.copy_within(record.at..HALF_LEN - record.len, record.at + record.len);
    Some(halves)
}

/// What lay there in the epoch before, whose MAC is right too.
fn stale(log: &Logged, record: &Lying) -> Option<Halves> {
    let before = lying_in(&log.before, log.layer.keys().log());
    let old = before.iter().find(|r| (r.half, r.range()) == (record.half, record.range()))?;
    let mut halves = log.halves.clone();
    halves[old.half][old.range()].copy_from_slice(&log.before[old.half][old.range()]);
    Some(halves)
}

/// It and all behind it: what a disk loses that lied about syncs. Slots that were used again since then read as damage.
const CUT_OFF: &str = "cut off";

fn cut_off(log: &Logged, record: &Lying) -> Option<Halves> {
    let mut halves = log.halves.clone();
    for lost in log.records.iter().filter(|r| r.seq >= record.seq) {
        halves[lost.half][lost.range()].fill(0);
    }
    Some(halves)
}

/// What a disk holds, without the sectors that are damaged.
fn held(volume: &LiveVolume) -> Vec<Option<Vec<u8>>> {
    let read = |at: usize| {
        let mut bytes = vec![0; SECTOR_LEN];
        match volume.stack().read(at as u64, &mut bytes) {
            Ok(()) => Some(bytes),
            Err(e) => {
                assert!(e.is_corruption(), "{e}");
                None
            }
        }
    };
    LOGGED.step_by(SECTOR_LEN).map(read).collect()
}

/// Each record is misplaced, with an anchor as new as the last flush and without one: the layer is refused, or is of a moment that is not
/// before what its log still proves, or the anchor knows, to be flushed.
#[test]
fn misplaced_log_records_are_refused_or_were_never_promised() {
    let ways: [(&str, Misplace); 6] = [
        ("zeroed", zeroed),
        ("swapped", swapped),
        ("left out", left_out),
        ("repeated", repeated),
        ("stale", stale),
        (CUT_OFF, cut_off),
    ];
    for (log, (how, misplace)) in
        [0, 2].map(Logged::new).iter().flat_map(|log| ways.iter().map(move |w| (log, w)))
    {
        let data = format!("{}.data", log.layer.id());
        let (mut tried, mut refused, mut cut) = (0, [0; 2], [0; 2]);
        for record in &log.records {
            let Some(halves) = misplace(log, record) else { continue };
            tried += 1;
            for anchor in [None, Some(log.anchor)] {
                let what = format!("{record:?} {how}, {anchor:?}");
                let machine = log.state.machine();
                for (at, bytes) in [1 << 20, 17 << 20].into_iter().zip(&halves) {
                    machine.poke(&data, at, bytes);
                }
                let mut shelf = shelf_on(&machine);
                shelf.anchors = Anchors::from_iter(anchor.map(|anchor| (log.layer.id(), anchor)));
                let with_anchor = usize::from(anchor.is_some());
                let volume = match shelf.open() {
                    Ok(volume) => volume,
                    Err(e) => {
                        assert!(e.is_corruption(), "{what}: {e}");
                        refused[with_anchor] += 1;
                        continue;
                    }
                };
                let least = if anchor.is_some() { log.flushed } else { log.proven(&halves) };
                let (held, is_older) = (held(&volume), least < log.flushed);
                assert!(is_older || !held.contains(&None), "{what}: damaged sectors");
                let is_it = |content: &Content| {
                    content.chunks(SECTOR_LEN).zip(&held).all(|(c, h)| h.as_ref().is_none_or(|h| h == c))
                };
                let found = log.contents.iter().rposition(is_it);
                let found = found.unwrap_or_else(|| panic!("{what}: no state of the disk"));
                assert!(found >= least, "{what}: flushed writes are gone without a word");
                cut[with_anchor] += usize::from(found + 1 < log.contents.len());
                drop(volume);
                // Nothing of what was cut away comes back.
                let again = open(&machine).expect("it was opened before");
                assert!(self::held(&again) == held, "{what}: another state the second time");
            }
        }
        let many = log.records.len() - 4;
        let is_told = if *how == CUT_OFF { refused[0] == 0 } else { refused[0] == refused[1] };
        assert!(tried >= many && refused[1] + 1 >= many && is_told, "{how}: {tried}, {refused:?} refused");
        assert_eq!(*how == CUT_OFF, cut[0] > cut[1], "{how}: {cut:?} cut");
    }
}
