//! Guards against a power cut amid a fold (engine rule 20) that changes what the disk or a snapshot on it reads, or after
//! which the fold can't go on.
//!
//! As in `crash_volume`: a seeded script runs once on a simulated disk, then the disk is opened as a cut at each place of
//! the trace leaves it. The fold goes on there, is cut again, and is brought to its end.
//!
//! `TERRANE_CRASH_SEEDS=n` runs n seeds, and each prefix and each lack of one operation instead of one of them; `tools/crash` does.

mod common;

use std::cell::Cell;
use std::sync::Arc;

use common::shelf::{Place, Shelf};
use common::shrink::{named, run_or_shrink};
use common::sim::{CUTS, Cut, Event, Machine, State};
use common::slots::{check_free, check_owners, check_sealed};
use common::{Random, seeds};
use terrane::catalog::FoldWay;
use terrane::crypto::Cipher;
use terrane::volume::{LiveVolume, Stack};

const DISK: u64 = 6 << 20;
const WINDOW_AT: u64 = (512 - 14) * 4096;
const WINDOW: usize = 40 * 4096;

fn window_of(stack: &Stack) -> Vec<u8> {
    let mut bytes = vec![0xaa; WINDOW];
    stack.read(WINDOW_AT, &mut bytes).expect("a disk is readable amid a fold");
    bytes
}

fn shelf(machine: &Arc<Machine>) -> Shelf {
    Shelf::new(Place::Machine(machine.clone()), DISK, Cipher::XtsAes256)
}

/// A disk with some snapshots and a fold that was run to its end.
struct Folded {
    start: State,
    trace: Vec<Event>,
    /// The disk after each write in the fold: (began, ended, bytes).
    states: Vec<(usize, usize, Vec<u8>)>,
    /// Flushes in the fold: (ended, the state covered).
    flushes: Vec<(usize, usize)>,
    /// What the snapshots on the folded pair hold, from the newest down.
    above: Vec<Vec<u8>>,
}

/// What is done to the disk, in sectors of the window.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write {
        first: usize,
        sectors: usize,
        seed: u64,
    },
    /// Begins and ends within a sector.
    Part {
        first: usize,
        sectors: usize,
        seed: u64,
    },
    Discard {
        first: usize,
        sectors: usize,
    },
    Flush,
    Seal,
}

/// When.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum When {
    /// As this layer takes the writes, the lowest being 0.
    In(usize),
    /// As the fold has moved so many chunks.
    Moved(usize),
}

/// Layers below the one that takes writes, and pauses of a fold: after each chunk of the window.
const LAYERS: usize = 3;
const PAUSES: usize = 2;

impl Step {
    fn any_change(random: &mut Random) -> Self {
        let sectors = 1 + random.below(12) as usize;
        let first = random.below((WINDOW / 4096 - sectors) as u64 + 1) as usize;
        match random.below(4) {
            0 => Self::Discard { first, sectors },
            1 => Self::Part { first, sectors, seed: random.next() },
            _ => Self::Write { first, sectors, seed: random.next() },
        }
    }

    /// Four changes in each layer, three above; amid the fold one at each pause, some flushed, and a snapshot at most.
    fn script(seed: u64) -> Vec<(When, Self)> {
        let mut random = Random::new(seed);
        let mut steps = Vec::new();
        for layer in 0..=LAYERS {
            let count = if layer < LAYERS { 4 } else { 3 };
            steps.extend((0..count).map(|_| (When::In(layer), Self::any_change(&mut random))));
        }
        let mut sealed = false;
        for pause in (0..PAUSES).map(When::Moved) {
            steps.push((pause, Self::any_change(&mut random)));
            if random.one_in(2) {
                steps.push((pause, Self::Flush));
            }
            if random.one_in(3) && !sealed {
                steps.push((pause, Self::Seal));
                sealed = true;
            }
        }
        steps
    }

    /// Does it; whether all before it is durable now.
    fn run(self, shelf: &Shelf, volume: &LiveVolume, model: &mut [u8]) -> bool {
        let (first, sectors, within, seed) = match self {
            Self::Write { first, sectors, seed } => (first, sectors, 0, Some(seed)),
            Self::Part { first, sectors, seed } => (first, sectors, 700, Some(seed)),
            Self::Discard { first, sectors } => (first, sectors, 0, None),
            Self::Flush => {
                volume.flush().unwrap();
                return true;
            }
            Self::Seal => {
                shelf.seal(volume).unwrap();
                shelf.finish_seals(volume).unwrap();
                return true;
            }
        };
        let at = first * 4096 + within;
        let bytes = &mut model[at..first * 4096 + sectors * 4096 - 2 * within];
        let place = WINDOW_AT + at as u64;
        match seed {
            Some(seed) => {
                Random::new(seed).fill(bytes);
                volume.write(place, bytes).unwrap();
            }
            None => {
                bytes.fill(0);
                volume.discard(place, bytes.len() as u64).unwrap();
            }
        }
        false
    }
}

/// Layer `number` is folded.
fn run(script: &[(When, Step)], number: usize, way: FoldWay) -> Folded {
    let steps = |when| script.iter().filter(move |s| s.0 == when).map(|s| s.1);
    let machine = Machine::new();
    let shelf = shelf(&machine);
    let volume = shelf.open().unwrap();
    let mut model = vec![0; WINDOW];
    let mut contents = Vec::new();
    for layer in 0..=LAYERS {
        for step in steps(When::In(layer)) {
            step.run(&shelf, &volume, &mut model);
        }
        if layer < LAYERS {
            shelf.seal(&volume).unwrap();
            contents.push(model.clone());
        }
    }
    volume.flush().unwrap();
    shelf.finish_seals(&volume).unwrap();
    let start = machine.start_trace();
    let mut states = vec![(0, 0, model.clone())];
    let mut flushes = vec![(0, 0)];
    let mut pauses = (0..).map(When::Moved);
    shelf.begin_fold(number, way).unwrap();
    shelf
        .fold(&volume, &mut || {
            for step in pauses.next().into_iter().flat_map(steps) {
                let began = machine.traced();
                match step.run(&shelf, &volume, &mut model) {
                    true => flushes.push((machine.traced(), states.len() - 1)),
                    false => states.push((began, machine.traced(), model.clone())),
                }
            }
        })
        .unwrap();
    let above = contents.split_off(number + 1);
    assert!(window_of(&volume.stack()) == model, "the fold itself changed the disk");
    Folded { start, trace: machine.take_trace(), states, flushes, above }
}

impl Folded {
    fn check(&self, machine: &Arc<Machine>, n: usize, cut: Cut, random: &mut Random) -> u64 {
        let (shelf, volume) = self.open(machine, n, cut);
        let held = window_of(&volume.stack());
        // Going on, and cut again.
        let before = machine.start_trace();
        shelf.fold(&volume, &mut || {}).expect("a fold goes on after a cut");
        let trace = machine.take_trace();
        assert!(window_of(&volume.stack()) == held, "the disk changed as the fold went on");
        self.check_above(&shelf, &volume);
        check_owners(&volume.stack(), WINDOW_AT / 4096..(WINDOW_AT + WINDOW as u64) / 4096);
        let mut again = before;
        let chosen = random.below(trace.len() as u64 + 1) as usize;
        trace[..chosen].iter().for_each(|e| again.apply(e));
        let second = CUTS[random.below(CUTS.len() as u64) as usize];
        let machine = again.after(second, random);
        let (shelf, volume) = self.open(&machine, n, cut);
        assert!(
            window_of(&volume.stack()) == held,
            "a second cut, {second:?} after {chosen}, changed the disk"
        );
        shelf.fold(&volume, &mut || {}).expect("a fold goes on after two cuts");
        assert!(
            window_of(&volume.stack()) == held,
            "the disk changed as the fold went on after a second cut"
        );
        self.check_above(&shelf, &volume);
        assert!(shelf.rows().folding.is_none());
        if random.one_in(4) {
            let volume = shelf.open().expect("a volume opens after a fold");
            assert!(window_of(&volume.stack()) == held, "the disk changed when it was opened after the fold");
            check_free(&machine, &volume.active());
            check_sealed(&machine, &volume.stack());
        }
        2
    }

    /// Opens a disk cut after `n` operations: a state that is allowed there, and the snapshots as they were.
    fn open(&self, machine: &Arc<Machine>, n: usize, cut: Cut) -> (Shelf, LiveVolume) {
        let answered = self.states.iter().rposition(|s| s.1 <= n).unwrap_or(0);
        let flushed = self.flushes.iter().filter(|f| f.0 <= n).map(|f| f.1).max().unwrap_or(0);
        let least = if cut == Cut::All { answered } else { flushed };
        let most = self.states.iter().rposition(|s| s.0 < n).unwrap_or(0).max(least);
        let shelf = shelf(machine);
        let volume = shelf.open().expect("a volume opens after a cut amid a fold");
        let bytes = window_of(&volume.stack());
        assert!(
            self.states[least..=most].iter().any(|s| s.2 == bytes),
            "the disk is none of {least}..={most}"
        );
        self.check_above(&shelf, &volume);
        (shelf, volume)
    }

    /// Snapshots taken before the fold, on the pair, read as they did. Counted from the newest, past one taken amid it.
    fn check_above(&self, shelf: &Shelf, volume: &LiveVolume) {
        let there: Vec<_> =
            (0..volume.stack().chain.layers().len()).map(|n| window_of(&shelf.snapshot(volume, n))).collect();
        let mut from = 0;
        for (i, content) in self.above.iter().enumerate() {
            let found = there[from..].iter().position(|bytes| bytes == content);
            from += found.unwrap_or_else(|| panic!("snapshot {i} above the fold is gone or differs")) + 1;
        }
    }
}

/// Folds, and opens the disk as each kind of cut at each place leaves it; how many disks.
fn cut_everywhere(script: &[(When, Step)], seed: u64, (number, way): (usize, FoldWay), full: bool) -> u64 {
    let folded = run(script, number, way);
    let mut state = folded.start.clone();
    let mut states = 0;
    for n in 0..=folded.trace.len() {
        if n > 0 {
            state.apply(&folded.trace[n - 1]);
        }
        for (cut, turn) in CUTS.into_iter().flat_map(|c| state.turns(c, full).map(move |t| (c, t))) {
            let number = turn.map_or(0, |turn| turn + 1);
            let mut random = Random::new(seed ^ (n as u64) << 20 ^ number << 40 ^ (cut as u64) << 56);
            let machine = state.after_each(cut, turn, &mut random);
            let of = folded.trace.len();
            states += named(
                || format!("cut after {n} of {of}, {cut:?} {turn:?}"),
                || folded.check(&machine, n, cut, &mut random),
            );
        }
    }
    states
}

#[test]
fn a_cut_amid_a_fold_changes_nothing_that_is_read() {
    let states = Cell::new(0);
    let (seeds, full) = seeds(1);
    let mut amid = Vec::new();
    for seed in seeds {
        // The lowest layer, one in the middle, the one under the active layer; both ways.
        let folds =
            [(0, FoldWay::Down), (1, FoldWay::Down), (0, FoldWay::Up), (1, FoldWay::Up), (2, FoldWay::Up)];
        for (n, (number, way)) in folds.into_iter().enumerate() {
            let name = format!("seed {seed}, layer {number} {way:?}");
            let script = Step::script(seed << 8 | n as u64);
            amid.extend(script.iter().filter(|s| matches!(s.0, When::Moved(_))).map(|s| s.1));
            run_or_shrink(&name, &script, |script| {
                states.set(states.get() + cut_everywhere(script, seed, (number, way), full));
            });
            if full {
                println!("{name}: {} disks so far", states.get());
            }
        }
    }
    let flushes = amid.iter().filter(|step| matches!(step, Step::Flush)).count();
    let seals = amid.iter().filter(|step| matches!(step, Step::Seal)).count();
    // Of other seeds there may be none.
    assert!(full || flushes > 0 && seals > 0, "{flushes} flushes and {seals} seals amid folds");
    println!("{} disks after a cut amid a fold", states.get());
}

/// Rule 15: data and map of a sealed layer, both as they were sealed once, put back after a fold has sealed them anew.
#[test]
fn a_layer_from_before_a_fold_is_refused() {
    let machine = Machine::new();
    let shelf = shelf(&machine);
    let volume = shelf.open().unwrap();
    let mut random = Random::new(1);
    let mut model = vec![0; WINDOW];
    for _ in 0..2 {
        for _ in 0..4 {
            Step::any_change(&mut random).run(&shelf, &volume, &mut model);
        }
        shelf.seal(&volume).unwrap();
    }
    shelf.finish_seals(&volume).unwrap();
    let before = machine.state();
    shelf.begin_fold(0, FoldWay::Down).unwrap();
    shelf.fold(&volume, &mut || {}).unwrap();
    volume.flush().unwrap();
    let kept = shelf.rows().sealed[0].0.to_string();
    let mut after = machine.state();
    let reopened = self::shelf(&after.machine()).open().expect("as the fold left it");
    assert!(window_of(&reopened.stack()) == model);
    after.put_back(&before, &kept, &kept);
    let refused = self::shelf(&after.machine()).open();
    assert!(refused.is_err_and(|e| e.is_corruption()), "an older seal is believed");
}
