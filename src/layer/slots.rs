//! Which slots are free: fresh space at the end, freed slots still backed by the file system, and holes.
//!
//! Small writes take freed, backed slots near the ones they replace, or slots of a run zero-written ahead (an
//! unwritten extent makes a synced write slower); larger ones take fresh runs, so that large reads stay one `pread`.

use std::collections::BTreeSet;
use std::ops::Range;

use parking_lot::Mutex;

use super::bytes::SLOTS_MAX;
use crate::units::SlotNo;

/// Slots in a segment, the unit of bookkeeping (2 MiB).
const SEGMENT: u64 = 512;
/// Slots zero-written ahead for small writes (1 MiB).
pub const AHEAD: u64 = 256;
/// Writes of at most this many sectors are small (64 KiB).
pub const SMALL_MAX: usize = 16;
/// Free runs of at least this many slots are given back (64 KiB).
const PUNCH_MIN: usize = 16;
/// Backed free slots below which nothing presses (256 MiB): a flush frees 64 MiB at a time, which writers take again at
/// once; punched meanwhile, it costs them the file's lock and new extents (sequential overwrites: half the speed).
const PRESSED_MIN: u64 = (256 << 20) / 4096;
/// Segments looked at for a run before taking fresh space.
const SEARCH_MAX: usize = 16;

/// Free slots of a segment: `free`, and those of them that are holes.
#[derive(Clone, Default)]
struct Segment {
    free: [u64; 8],
    hole: [u64; 8],
    /// How many of them are backed, and how many are holes.
    counts: Counts,
    /// Is among [`Inner::freed_in`].
    listed: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    backed: u64,
    holes: u64,
}

impl Counts {
    /// Room for a large write: at least half of the slots are free.
    fn is_roomy(self) -> bool {
        self.backed + self.holes >= SEGMENT / 2
    }
}

fn bit(map: &[u64; 8], i: usize) -> bool {
    map[i / 64] >> (i % 64) & 1 != 0
}

fn set(map: &mut [u64; 8], i: usize, to: bool) {
    match to {
        true => map[i / 64] |= 1 << (i % 64),
        false => map[i / 64] &= !(1 << (i % 64)),
    }
}

impl Segment {
    fn backed(&self) -> [u64; 8] {
        std::array::from_fn(|i| self.free[i] & !self.hole[i])
    }

    /// A slot is taken, if it was free.
    fn claim(&mut self, i: usize) {
        if !bit(&self.free, i) {
            return;
        }
        match bit(&self.hole, i) {
            true => self.counts.holes -= 1,
            false => self.counts.backed -= 1,
        }
        set(&mut self.free, i, false);
        set(&mut self.hole, i, false);
    }

    /// A slot is free; whether it was not before.
    fn free(&mut self, i: usize, hole: bool) -> bool {
        if bit(&self.free, i) {
            return false;
        }
        match hole {
            true => self.counts.holes += 1,
            false => self.counts.backed += 1,
        }
        set(&mut self.free, i, true);
        set(&mut self.hole, i, hole);
        true
    }

    /// The first run of `n` set bits.
    fn run_of(map: &[u64; 8], n: usize) -> Option<usize> {
        if n == 1 {
            let word = map.iter().position(|word| *word != 0)?;
            return Some(word * 64 + map[word].trailing_zeros() as usize);
        }
        let mut len = 0;
        for i in 0..SEGMENT as usize {
            if i % 64 == 0 && map[i / 64] == 0 {
                len = 0;
                continue;
            }
            len = if bit(map, i) { len + 1 } else { 0 };
            if len == n {
                return Some(i + 1 - n);
            }
        }
        None
    }

    /// Free runs worth punching: at least [`PUNCH_MIN`] long and not all holes.
    fn to_punch(&self, min: usize) -> Vec<Range<usize>> {
        let mut runs = Vec::new();
        let mut start = None;
        for i in 0..=SEGMENT as usize {
            let free = i < SEGMENT as usize && bit(&self.free, i);
            match (free, start) {
                (true, None) => start = Some(i),
                (false, Some(from)) => {
                    if i - from >= min && (from..i).any(|j| !bit(&self.hole, j)) {
                        runs.push(from..i);
                    }
                    start = None;
                }
                _ => {}
            }
        }
        runs
    }
}

struct Inner {
    /// Slots at or above have never been used.
    high: u64,
    /// By number; `None`: nothing free.
    segments: Vec<Option<Box<Segment>>>,
    /// Segments with a backed free slot.
    partial: BTreeSet<u64>,
    /// Segments with room for a large write: at least half of the slots are free.
    roomy: BTreeSet<u64>,
    /// Segments where slots were freed since the last punch.
    freed_in: BTreeSet<u64>,
    /// Free and backed, free and holes.
    backed: u64,
    holes: u64,
    /// What is left of the run zero-written ahead.
    ahead: Range<u64>,
    /// Until the free-slot pass ends: slots below this are unknown, and those freed meanwhile are listed.
    unknown_below: u64,
    freed_unknown: Vec<u64>,
    /// Where the search for a run goes on.
    cursor: u64,
}

/// The slots of one layer.
pub struct Slots {
    inner: Mutex<Inner>,
}

impl Slots {
    /// Slots below `high` are in use or unknown (rule 17).
    pub fn new(high: u64) -> Self {
        let mut inner = Inner {
            high,
            segments: Vec::new(),
            partial: BTreeSet::new(),
            roomy: BTreeSet::new(),
            freed_in: BTreeSet::new(),
            backed: 0,
            holes: 0,
            ahead: 0..0,
            unknown_below: high,
            freed_unknown: Vec::new(),
            cursor: 0,
        };
        inner.segments.resize(high.div_ceil(SEGMENT) as usize, None);
        Self { inner: Mutex::new(inner) }
    }

    /// No slot at or above has been used.
    pub fn high(&self) -> u64 {
        self.inner.lock().high
    }

    /// Recovery: slots below `high` are in use or unknown too.
    pub fn raise(&self, high: u64) {
        let mut inner = self.inner.lock();
        inner.high = inner.high.max(high);
        inner.unknown_below = inner.high;
        let segments = inner.high.div_ceil(SEGMENT) as usize;
        inner.segments.resize(segments, None);
    }

    /// Whether so much freed space is still backed that it should be given back even while writes go on.
    pub fn is_pressed(&self) -> bool {
        let inner = self.inner.lock();
        inner.backed > PRESSED_MIN && inner.backed * 2 > inner.used()
    }

    /// Free slots: (backed, holes).
    pub fn free(&self) -> (u64, u64) {
        let inner = self.inner.lock();
        (inner.backed, inner.holes)
    }

    /// Takes up to `n` slots for a small write, near `hint`; fewer or none where a run must be zero-written first.
    pub fn take_small(&self, n: usize, hint: Option<SlotNo>, out: &mut Vec<SlotNo>) {
        let mut inner = self.inner.lock();
        let wanted = out.len() + n;
        if let Some(hint) = hint {
            inner.take_backed(hint.0 / SEGMENT, n, out);
        }
        // Much of the space free: reuse before extending.
        while out.len() < wanted && inner.is_crowded() {
            let Some(segment) = inner.partial.first().copied() else { break };
            inner.take_backed(segment, wanted - out.len(), out);
        }
        while out.len() < wanted && !inner.ahead.is_empty() {
            out.push(SlotNo(inner.ahead.start));
            inner.ahead.start += 1;
        }
    }

    /// Takes `n` backed free slots wherever they are, or none.
    pub fn take_anywhere(&self, n: usize, out: &mut Vec<SlotNo>) -> bool {
        let mut inner = self.inner.lock();
        if inner.backed < n as u64 {
            return false;
        }
        let wanted = out.len() + n;
        while out.len() < wanted
            && let Some(segment) = inner.partial.first().copied()
        {
            inner.take_backed(segment, wanted - out.len(), out);
        }
        out.len() == wanted
    }

    /// Takes `n` slots of fresh or whole free space, as few runs.
    pub fn take_run(&self, n: u64) -> Option<SlotNo> {
        let mut inner = self.inner.lock();
        if let Some(found) = inner.find_run(n) {
            return Some(SlotNo(found));
        }
        inner.extend(n).map(SlotNo)
    }

    /// A run zero-written ahead: small writes may use it. What was left of the run before becomes free.
    pub fn give_ahead(&self, first: SlotNo, n: u64) {
        let mut inner = self.inner.lock();
        let rest = std::mem::replace(&mut inner.ahead, first.0..first.0 + n);
        inner.free_run(rest, false);
    }

    /// Whether a zero-written run has slots left.
    pub fn has_ahead(&self) -> bool {
        !self.inner.lock().ahead.is_empty()
    }

    /// Slots that were taken and not used.
    pub fn give_back(&self, slots: &[SlotNo]) {
        // One that is free already: a map that names it for some sector was believed. That was told when it was freed.
        let _ = self.free_superseded(slots);
    }

    /// Slots nobody refers to any more. The first, if any, that was not in use: what the map said of it was wrong. It is
    /// left as it was.
    pub fn free_superseded(&self, slots: &[SlotNo]) -> Result<(), SlotNo> {
        let mut inner = self.inner.lock();
        let runs = slots.chunk_by(|a, b| a.is_right_before(*b));
        let wrong = runs.filter_map(|run| inner.free_run(run[0].0..run[run.len() - 1].0 + 1, false));
        wrong.reduce(|first, _| first).map_or(Ok(()), |slot| Err(SlotNo(slot)))
    }

    /// A run that was taken and not used.
    pub fn give_back_run(&self, first: SlotNo, n: u64) {
        self.inner.lock().free_run(first.0..first.0 + n, false);
    }

    /// Of which length free runs are worth giving back now: where much of the space is free, single slots too.
    pub fn punchable_min(&self) -> usize {
        if self.inner.lock().is_crowded() { 1 } else { PUNCH_MIN }
    }

    /// Free runs of at least `min` slots to give back to the file system: `count` of them, fewer only where there are no more. They can't be taken until [`Slots::punched`].
    pub fn take_punchable(&self, min: usize, count: usize) -> Vec<Range<u64>> {
        self.inner.lock().punchable(min, count)
    }

    /// Every free run that is not a hole, for a layer that takes no more writes; of slots that no pass has told of, those that were
    /// freed since.
    pub fn take_all_punchable(&self) -> Vec<Range<u64>> {
        let mut inner = self.inner.lock();
        let rest = std::mem::replace(&mut inner.ahead, 0..0);
        inner.free_run(rest, false);
        inner.freed_in = (0..inner.segments.len() as u64).collect();
        let mut runs = inner.punchable(1, usize::MAX);
        let mut freed = std::mem::take(&mut inner.freed_unknown);
        freed.sort_unstable();
        let freed = freed.chunk_by(|a, b| a + 1 == *b);
        runs.extend(freed.map(|run| run[0]..run[run.len() - 1] + 1));
        runs
    }

    /// Runs of [`Slots::take_punchable`] that are holes now.
    pub fn punched(&self, runs: &[Range<u64>]) {
        let mut inner = self.inner.lock();
        for run in runs {
            inner.free_run(run.clone(), true);
        }
    }

    /// The slots below the first `high` whose use is unknown until a pass over the map tells.
    pub fn unknown_below(&self) -> u64 {
        self.inner.lock().unknown_below
    }

    /// Ends the free-slot pass: `used` has a bit for each slot below [`Slots::unknown_below`] that the map names or
    /// that waits to be freed. What was freed while the pass ran is taken off here.
    pub fn learn(&self, used: &[u64]) {
        let mut inner = self.inner.lock();
        let end = std::mem::take(&mut inner.unknown_below);
        let freed: BTreeSet<u64> = std::mem::take(&mut inner.freed_unknown).into_iter().collect();
        let is_used = |slot: u64| used[slot as usize / 64] >> (slot % 64) & 1 != 0 && !freed.contains(&slot);
        let mut at = 0;
        while at < end {
            let from = at;
            while at < end && !is_used(at) {
                at += 1;
            }
            inner.free_run(from..at, false);
            at += 1;
        }
    }
}

impl Inner {
    /// Slots in use, or waiting to be free.
    fn used(&self) -> u64 {
        self.high - self.backed - self.holes
    }

    /// More than 1/16 as much is free and backed as is used.
    fn is_crowded(&self) -> bool {
        self.backed * 16 > self.used()
    }

    fn take_backed(&mut self, segment: u64, n: usize, out: &mut Vec<SlotNo>) {
        let Some(Some(found)) = self.segments.get(segment as usize) else { return };
        let backed = found.backed();
        let before = out.len();
        // In one piece where possible, else what there is.
        if let Some(at) = Segment::run_of(&backed, n) {
            out.extend((at..at + n).map(|i| SlotNo(segment * SEGMENT + i as u64)));
        } else {
            let free = (0..SEGMENT as usize).filter(|i| bit(&backed, *i)).take(n);
            out.extend(free.map(|i| SlotNo(segment * SEGMENT + i as u64)));
        }
        for slot in &out[before..] {
            self.claim(slot.0..slot.0 + 1);
        }
    }

    /// Claims the free runs of at least `min` slots in segments where some were freed, until they are `count`.
    fn punchable(&mut self, min: usize, count: usize) -> Vec<Range<u64>> {
        let mut out = Vec::new();
        while out.len() < count
            && let Some(number) = self.freed_in.pop_first()
        {
            let Some(segment) = self.segments.get_mut(number as usize).and_then(|s| s.as_deref_mut()) else {
                continue;
            };
            let runs = segment.to_punch(min);
            let now = runs.len().min(count - out.len());
            // The rest another time.
            segment.listed = now < runs.len();
            if segment.listed {
                self.freed_in.insert(number);
            }
            for run in &runs[..now] {
                let range = number * SEGMENT + run.start as u64..number * SEGMENT + run.end as u64;
                self.claim(range.clone());
                out.push(range);
            }
        }
        out
    }

    /// A free run: of backed slots where there is one, since overwriting them changes no extent, else of any.
    fn find_run(&mut self, n: u64) -> Option<u64> {
        let mut any = None;
        let mut found = None;
        let roomy = self.roomy.range(self.cursor..).chain(self.roomy.range(..self.cursor));
        for number in roomy.take(SEARCH_MAX) {
            let Some(segment) = self.segments[*number as usize].as_deref() else { continue };
            if let Some(at) = Segment::run_of(&segment.backed(), n as usize) {
                found = Some((*number, at));
                break;
            }
            if any.is_none() {
                any = Segment::run_of(&segment.free, n as usize).map(|at| (*number, at));
            }
        }
        let (number, at) = found.or(any)?;
        // The next search goes on here: what was passed over had no run.
        self.cursor = number;
        let start = number * SEGMENT + at as u64;
        self.claim(start..start + n);
        Some(start)
    }

    fn extend(&mut self, n: u64) -> Option<u64> {
        let start = self.high;
        let end = start.checked_add(n).filter(|e| *e < SLOTS_MAX)?;
        self.high = end;
        self.segments.resize(end.div_ceil(SEGMENT) as usize, None);
        Some(start)
    }

    /// Marks free slots as taken.
    fn claim(&mut self, range: Range<u64>) {
        self.each_segment(range, |_, segment, part| part.for_each(|i| segment.claim(i)));
    }

    /// Frees what of the range is in use; the first slot that is not, because it is free or was never taken. Such numbers
    /// come from a map, which is bytes of a disk: no reason to panic.
    fn free_run(&mut self, range: Range<u64>, hole: bool) -> Option<u64> {
        let end = range.end.min(self.high);
        let mut wrong = (end < range.end).then_some(end.max(range.start));
        let known = range.start.max(self.unknown_below).min(end);
        self.freed_unknown.extend(range.start..known);
        let mut newly_listed = Vec::new();
        self.each_segment(known..end, |number, segment, part| {
            for i in part {
                if !segment.free(i, hole) {
                    wrong = Some(wrong.unwrap_or(u64::MAX).min(number * SEGMENT + i as u64));
                }
            }
            if !hole && !std::mem::replace(&mut segment.listed, true) {
                newly_listed.push(number);
            }
        });
        self.freed_in.extend(newly_listed);
        wrong
    }

    /// Changes segments, and the sums and sets that follow from them: for each write and each slot it supersedes, and so by
    /// what has changed alone.
    fn each_segment(&mut self, range: Range<u64>, mut change: impl FnMut(u64, &mut Segment, Range<usize>)) {
        let mut at = range.start;
        while at < range.end {
            let number = at / SEGMENT;
            let end = range.end.min((number + 1) * SEGMENT);
            let segment = self.segments[number as usize].get_or_insert_default();
            let was = segment.counts;
            change(number, segment, (at % SEGMENT) as usize..(end - number * SEGMENT) as usize);
            let is = segment.counts;
            self.backed = self.backed + is.backed - was.backed;
            self.holes = self.holes + is.holes - was.holes;
            membership(&mut self.partial, number, was.backed > 0, is.backed > 0);
            membership(&mut self.roomy, number, was.is_roomy(), is.is_roomy());
            if is == Counts::default() {
                self.segments[number as usize] = None;
            }
            at = end;
        }
    }
}

fn membership(set: &mut BTreeSet<u64>, number: u64, was: bool, is: bool) {
    match (was, is) {
        (false, true) => drop(set.insert(number)),
        (true, false) => drop(set.remove(&number)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_writes_reuse_near_slots_and_large_ones_take_runs() {
        let slots = Slots::new(0);
        let run = slots.take_run(256).unwrap();
        assert_eq!(run, SlotNo(0));
        slots.give_back(&[SlotNo(3), SlotNo(5)]);
        let mut out = Vec::new();
        slots.take_small(1, Some(SlotNo(200)), &mut out);
        assert_eq!(out, [SlotNo(3)]);
        let again = slots.take_run(256).unwrap();
        assert_eq!(again, SlotNo(256));
        out.clear();
        slots.take_small(2, None, &mut out);
        assert!(out.is_empty(), "no run was zero-written yet");
        let ahead = slots.take_run(AHEAD).unwrap();
        slots.give_ahead(ahead, AHEAD);
        slots.take_small(2, None, &mut out);
        assert_eq!(out, [ahead, SlotNo(ahead.0 + 1)]);
        slots.take_small(1, None, &mut out);
        assert_eq!(out.len(), 3, "as many as asked for, whatever was there before");
    }

    #[test]
    fn freed_runs_are_punched_once_and_taken_again() {
        let slots = Slots::new(0);
        slots.take_run(512).unwrap();
        slots.take_run(512).unwrap();
        slots.give_back_run(SlotNo(0), 512);
        let punchable = slots.take_punchable(PUNCH_MIN, 1);
        assert!(punchable.iter().eq([&(0..512)]));
        assert_ne!(slots.take_run(256).unwrap(), SlotNo(0), "not while it is being punched");
        slots.punched(&punchable);
        assert!(slots.take_punchable(1, 1).is_empty());
        assert_eq!(slots.take_run(256).unwrap(), SlotNo(0));
        assert_eq!(slots.free(), (0, 256));
    }

    #[test]
    fn the_pass_keeps_what_is_used_and_frees_the_rest() {
        let slots = Slots::new(128);
        assert_eq!(slots.take_run(8), Some(SlotNo(128)), "unknown slots are left alone");
        slots.give_back(&[SlotNo(7)]);
        let mut used = [0u64; 2];
        used[0] = 0b1111_1111;
        slots.learn(&used);
        assert_eq!(slots.free(), (121, 0));
        let mut out = Vec::new();
        slots.take_small(1, Some(SlotNo(0)), &mut out);
        assert_eq!(out, [SlotNo(7)]);
    }

    #[test]
    fn no_more_runs_are_taken_than_were_asked_for() {
        let slots = Slots::new(0);
        slots.take_run(1024).unwrap();
        let freed: Vec<_> = (0..1000).step_by(2).map(SlotNo).collect();
        slots.give_back(&freed);
        let mut punched = 0;
        loop {
            let runs = slots.take_punchable(1, 16);
            assert!(runs.len() <= 16);
            punched += runs.len();
            slots.punched(&runs);
            if runs.is_empty() {
                break;
            }
        }
        assert_eq!((punched, slots.free()), (500, (0, 500)));
    }

    #[test]
    fn what_was_freed_of_unknown_slots_is_given_back_without_a_pass() {
        let slots = Slots::new(128);
        slots.take_run(8).unwrap();
        slots.give_back(&[SlotNo(7), SlotNo(130), SlotNo(5), SlotNo(6)]);
        assert_eq!(slots.take_all_punchable(), [130..131, 5..8]);
    }

    #[test]
    fn a_full_disk_uses_what_is_freed_wherever_it_lies() {
        let slots = Slots::new(0);
        slots.take_run(512).unwrap();
        slots.take_run(512).unwrap();
        let freed: Vec<_> = (0..1000).step_by(100).map(SlotNo).collect();
        slots.give_back(&freed);
        let mut out = Vec::new();
        assert!(!slots.take_anywhere(11, &mut out) && out.is_empty(), "all or none");
        assert!(slots.take_anywhere(10, &mut out));
        assert_eq!(out, freed);
    }

    #[test]
    fn a_slot_that_is_not_in_use_is_told_and_left() {
        let slots = Slots::new(0);
        slots.take_run(4).unwrap();
        assert_eq!(slots.free_superseded(&[SlotNo(1)]), Ok(()));
        assert_eq!(slots.free_superseded(&[SlotNo(2), SlotNo(1), SlotNo(0)]), Err(SlotNo(1)), "freed twice");
        assert_eq!(slots.free_superseded(&[SlotNo(3), SlotNo(4)]), Err(SlotNo(4)), "never taken");
        assert_eq!(slots.free_superseded(&[SlotNo(1 << 39)]), Err(SlotNo(1 << 39)));
        assert_eq!(slots.free(), (4, 0));
    }
}
