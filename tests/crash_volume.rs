//! Guards against a power cut, or `kill -9`, that loses an answered flush, tears a request, mixes old and new, spoils a
//! snapshot or leaves a volume that does not open.
//!
//! A seeded script runs once on a simulated disk that keeps a trace. Then, for places in the trace and each kind of cut,
//! the disk as that cut leaves it is opened and held against the script's states: it must be the one after some prefix of
//! the writes, at least up to the last answered flush. Recovery is cut too, and what was recovered is written and cut again.
//!
//! `TERRANE_CRASH_SEEDS=n` runs n seeds at every place of the trace instead of the gate's sample, and there each prefix and each
//! lack of one operation instead of one of them; `tools/crash` does.

mod common;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use common::shelf::{Place, Shelf};
use common::shrink::{failure, named, run_or_shrink};
use common::sim::{CUTS, Cut, Event, Machine, State};
use common::slots::{check_free, check_owners, check_sealed};
use common::{Random, seeds};
use terrane::crypto::Cipher;
use terrane::layer::Layer;
use terrane::volume::{LiveVolume, Stack};

/// Three chunks, and a window of sectors over the border of the first two, so that each state can be read whole.
const DISK: u64 = 6 << 20;
const WINDOW_AT: u64 = (512 - 14) * 4096;
const WINDOW: usize = 40 * 4096;
const WINDOW_SECTORS: Range<u64> = 512 - 14..512 - 14 + 40;

type Bytes = Arc<Vec<u8>>;

fn window_of(stack: &Stack) -> Bytes {
    let mut bytes = vec![0xaa; WINDOW];
    stack.read(WINDOW_AT, &mut bytes).expect("a disk is readable after a cut");
    Arc::new(bytes)
}

/// What the script did, with where in the trace it began and ended.
#[derive(Default)]
struct Oracle {
    /// The disk after each write: (began, ended, bytes). The first is the empty disk.
    states: Vec<(usize, usize, Bytes)>,
    /// Answered flushes: (ended, the newest state they cover).
    flushes: Vec<(usize, usize)>,
    /// The state each snapshot holds, and when it was answered.
    snapshots: Vec<(usize, Option<usize>)>,
}

impl Oracle {
    /// The states a disk may hold that was cut after `n` operations.
    fn allowed(&self, n: usize, cut: Cut) -> std::ops::RangeInclusive<usize> {
        let answered = self.states.iter().rposition(|s| s.1 <= n).unwrap_or(0);
        let flushed = self.flushes.iter().filter(|f| f.0 <= n).map(|f| f.1).max().unwrap_or(0);
        let least = if cut == Cut::All { answered } else { flushed };
        let most = self.states.iter().rposition(|s| s.0 < n).unwrap_or(0);
        least..=most.max(least)
    }

    /// The state a disk holds, which must be an allowed one.
    fn find(&self, bytes: &[u8], allowed: std::ops::RangeInclusive<usize>) -> usize {
        let found = allowed.clone().find(|i| *self.states[*i].2 == bytes);
        found.unwrap_or_else(|| {
            let others: Vec<_> = (0..self.states.len()).filter(|i| *self.states[*i].2 == bytes).collect();
            panic!("the disk is none of the states {allowed:?}; the same as {others:?}")
        })
    }
}

struct Script {
    machine: Arc<Machine>,
    shelf: Shelf,
    volume: LiveVolume,
    /// Sealed, not yet named.
    unnamed: Option<Arc<Layer>>,
    model: Vec<u8>,
    oracle: Oracle,
    random: Random,
}

impl Script {
    fn new(seed: u64) -> (Self, State) {
        let machine = Machine::new();
        let shelf = Shelf::new(Place::Machine(machine.clone()), DISK, Cipher::XtsAes256);
        let volume = shelf.open().unwrap();
        let start = machine.start_trace();
        let model = vec![0; WINDOW];
        let mut oracle = Oracle::default();
        oracle.states.push((0, 0, Arc::new(model.clone())));
        let random = Random::new(seed);
        (Self { machine, shelf, volume, unnamed: None, model, oracle, random }, start)
    }

    fn began(&self) -> usize {
        self.machine.traced()
    }

    fn changed(&mut self, began: usize) {
        self.oracle.states.push((began, self.machine.traced(), Arc::new(self.model.clone())));
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let began = self.began();
        self.volume.write(WINDOW_AT + at as u64, bytes).unwrap();
        self.model[at..at + bytes.len()].copy_from_slice(bytes);
        self.changed(began);
    }

    /// What a flush follows, to fill a half block by block. Near its end more than one write, so that none appends the mark
    /// of the flush, which then has no place in the half.
    fn write_round(&mut self, round: u64) {
        let writes = if (4080..4095).contains(&(round % 4092)) { 4 } else { 1 };
        for n in 0..writes {
            self.write(((round + n) % 40) as usize * 4096, &[(round + n) as u8 | 1; 4096]);
        }
    }

    fn discard(&mut self, offset: u64, len: u64) {
        let began = self.began();
        self.volume.discard(offset, len).unwrap();
        let within = |byte: u64| byte.saturating_sub(WINDOW_AT).min(WINDOW as u64) as usize;
        self.model[within(offset)..within(offset + len)].fill(0);
        self.changed(began);
    }

    fn flush(&mut self) {
        let covers = self.oracle.states.len() - 1;
        self.volume.flush().unwrap();
        self.oracle.flushes.push((self.machine.traced(), covers));
    }

    fn begin_seal(&mut self) {
        self.unnamed = Some(self.shelf.begin_seal(&self.volume).unwrap());
        self.oracle.snapshots.push((self.oracle.states.len() - 1, None));
    }

    fn commit_seal(&mut self) {
        if let Some(ended) = self.unnamed.take() {
            let number = self.shelf.commit_seal(&ended).unwrap();
            self.oracle.snapshots[number].1 = Some(self.machine.traced());
            // It is durable, so what it holds is.
            self.oracle.flushes.push((self.machine.traced(), self.oracle.snapshots[number].0));
        }
    }

    fn reopen(&mut self, clean: bool) {
        self.commit_seal();
        if clean {
            self.volume.active().close().unwrap();
        }
        self.volume = self.shelf.open().unwrap();
        let covers = self.oracle.states.len() - 1;
        self.oracle.flushes.push((self.machine.traced(), covers));
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write { at, len, zeros, fill } => {
                let mut bytes = vec![0; len];
                Random::new(fill).fill(&mut bytes[zeros..]);
                self.write(at, &bytes);
            }
            Step::Discard { offset, len } => self.discard(offset, len),
            Step::Flush => self.flush(),
            Step::Checkpoint => self.volume.active().checkpoint().unwrap(),
            Step::Punch => self.volume.active().punch_free(),
            Step::LearnFree => self.volume.active().learn_free_slots().unwrap(),
            Step::Seal if self.unnamed.is_some() => self.commit_seal(),
            Step::Seal if self.oracle.snapshots.len() < 5 => self.begin_seal(),
            Step::FinishSeals if self.unnamed.is_none() => self.shelf.finish_seals(&self.volume).unwrap(),
            Step::Reopen { clean } => self.reopen(clean),
            Step::Seal | Step::FinishSeals => {}
        }
    }
}

/// One step of a script. Any part of a script is one too.
#[derive(Clone, Debug)]
enum Step {
    /// Random bytes, the first `zeros` of them zero.
    Write {
        at: usize,
        len: usize,
        zeros: usize,
        fill: u64,
    },
    Discard {
        offset: u64,
        len: u64,
    },
    Flush,
    Checkpoint,
    Punch,
    LearnFree,
    /// The moment of a snapshot; or its name, if that is still to come.
    Seal,
    FinishSeals,
    Reopen {
        clean: bool,
    },
}

impl Step {
    fn random(r: &mut Random) -> Self {
        match r.below(100) {
            0..30 => Self::write_sectors(r, 4, 0),
            30..45 => {
                let len = 1 + r.below(9000) as usize;
                let at = r.below((WINDOW - len) as u64) as usize;
                Self::Write { at, len, zeros: 0, fill: r.next() }
            }
            45..51 => Self::write_sectors(r, 20, 2),
            51..58 => Self::write_sectors(r, 40, 0),
            58..61 => {
                let (at, len) = sectors(r, 10);
                Self::Discard { offset: WINDOW_AT + at as u64, len: len as u64 }
            }
            61 => {
                let len = 1 + r.below(30_000);
                Self::Discard { offset: WINDOW_AT + r.below(WINDOW as u64 - len), len }
            }
            // The largest that is whole or absent, whatever it begins in.
            62 => Self::Discard { offset: WINDOW_AT - r.below((1 << 20) - WINDOW as u64), len: 1 << 20 },
            63 => Self::Discard { offset: 0, len: 2 << 20 },
            64 => Self::Discard { offset: 0, len: DISK },
            65..80 => Self::Flush,
            80..86 => Self::Checkpoint,
            86..90 => Self::Punch,
            90 => Self::LearnFree,
            91..95 => Self::Seal,
            95 | 96 => Self::FinishSeals,
            97 => Self::Reopen { clean: true },
            98 => Self::Reopen { clean: false },
            _ => Self::Flush,
        }
    }

    /// One of `part` parts of it zeros.
    fn write_sectors(r: &mut Random, most: u64, part: usize) -> Self {
        let (at, len) = sectors(r, most);
        Self::Write { at, len, zeros: len.checked_div(part).unwrap_or(0), fill: r.next() }
    }
}

/// A range of whole sectors of the window.
fn sectors(r: &mut Random, most: u64) -> (usize, usize) {
    let count = 1 + r.below(most);
    let first = r.below(WINDOW as u64 / 4096 - count + 1);
    (first as usize * 4096, count as usize * 4096)
}

/// One state of the disk, opened.
struct Opened {
    shelf: Shelf,
    volume: LiveVolume,
    bytes: Bytes,
}

fn open(machine: &Arc<Machine>) -> Opened {
    let shelf = Shelf::new(Place::Machine(machine.clone()), DISK, Cipher::XtsAes256);
    let volume = shelf.open().expect("a volume opens after a cut");
    let bytes = window_of(&volume.stack());
    Opened { shelf, volume, bytes }
}

struct Sweep<'a> {
    oracle: &'a Oracle,
    states: AtomicU64,
}

impl Sweep<'_> {
    /// A disk cut after `n` operations.
    fn check(&self, state: &State, n: usize, (cut, turn): (Cut, Option<u64>), random: &mut Random) {
        self.states.fetch_add(1, Ordering::Relaxed);
        let allowed = self.oracle.allowed(n, cut);
        let machine = state.after_each(cut, turn, random);
        let before = machine.start_trace();
        let opened = open(&machine);
        let recovery = machine.take_trace();
        let found = self.oracle.find(&opened.bytes, allowed.clone());
        self.check_snapshots(&opened, n);
        check_owners(&opened.volume.stack(), WINDOW_SECTORS);
        self.cut_recovery(before, &recovery, n, allowed, random);
        self.go_on(&machine, opened, found, random);
    }

    /// An answered snapshot exists, and every one has exactly its bytes.
    fn check_snapshots(&self, opened: &Opened, n: usize) {
        let answered = self.oracle.snapshots.iter().filter(|s| s.1.is_some_and(|at| at <= n)).count();
        let there = opened.volume.stack().chain.layers().len();
        assert!(there >= answered, "{there} of {answered} answered snapshots");
        for number in 0..there {
            let bytes = window_of(&opened.shelf.snapshot(&opened.volume, number));
            let expected = &self.oracle.states[self.oracle.snapshots[number].0].2;
            assert!(bytes == *expected, "snapshot {number} differs");
        }
    }

    /// A second cut, during recovery: nothing was answered meanwhile.
    fn cut_recovery(
        &self,
        mut state: State,
        recovery: &[Event],
        n: usize,
        allowed: std::ops::RangeInclusive<usize>,
        random: &mut Random,
    ) {
        let chosen = random.below(recovery.len() as u64 + 1) as usize;
        recovery[..chosen].iter().for_each(|e| state.apply(e));
        let cut = CUTS[random.below(CUTS.len() as u64) as usize];
        // Recovery's own record may share a device sector with records that no flush covered.
        let allowed = match cut {
            Cut::Garbage => *self.oracle.allowed(n, cut).start()..=*allowed.end(),
            _ => allowed,
        };
        self.states.fetch_add(1, Ordering::Relaxed);
        let opened = open(&state.after(cut, random));
        let check = || {
            self.oracle.find(&opened.bytes, allowed);
            self.check_snapshots(&opened, n);
        };
        if let Some(why) = failure(check) {
            panic!("recovery was cut after {chosen} of {} operations, {cut:?}: {why}", recovery.len());
        }
    }

    /// What was recovered stays, and takes writes that a further cut does not harm.
    fn go_on(&self, machine: &Arc<Machine>, opened: Opened, found: usize, random: &mut Random) {
        let Opened { volume, .. } = &opened;
        if random.one_in(3) {
            check_free(machine, &volume.active());
        }
        let mut expected = self.oracle.states[found].2.to_vec();
        let mut allowed = vec![expected.clone()];
        let writes = random.below(9);
        for _ in 0..writes {
            let len = 1 + random.below(12_000) as usize;
            let at = random.below((WINDOW - len) as u64) as usize;
            random.fill(&mut expected[at..at + len]);
            volume.write(WINDOW_AT + at as u64, &expected[at..at + len]).unwrap();
            allowed.push(expected.clone());
            match random.below(5) {
                2 => volume.active().learn_free_slots().unwrap(),
                0 => {
                    volume.flush().unwrap();
                    allowed.drain(..allowed.len() - 1);
                }
                1 => volume.active().punch_free(),
                _ => {}
            }
        }
        if random.one_in(3) {
            volume.active().checkpoint().unwrap();
            allowed.drain(..allowed.len() - 1);
        }
        let cut = CUTS[random.below(CUTS.len() as u64) as usize];
        self.states.fetch_add(1, Ordering::Relaxed);
        let machine = machine.state().after(cut, random);
        let again = open(&machine);
        assert!(
            allowed.iter().any(|a| *a == *again.bytes),
            "what was recovered, and {writes} writes after it, was lost or mixed by a second cut, {cut:?}"
        );
        let stack = again.volume.stack();
        let check = || {
            check_owners(&stack, WINDOW_SECTORS);
            check_free(&machine, &again.volume.active());
            check_sealed(&machine, &stack);
        };
        if let Some(why) = failure(check) {
            panic!("after {writes} writes and a second cut, {cut:?}: {why}");
        }
    }
}

/// Cuts at each of `places`, every kind of cut (and, with `each`, [all turns](State::turns) of each, once a place); returns how many
/// disks were opened.
fn sweep(seed: u64, start: &State, trace: &[Event], oracle: &Oracle, places: &[usize], each: bool) -> u64 {
    let sweep = Sweep { oracle, states: AtomicU64::new(0) };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (sweep, failed) = (&sweep, &failed);
            scope.spawn(move || {
                let (mut state, mut done) = (start.clone(), 0);
                for (turn, n) in places.iter().enumerate().skip(thread).step_by(threads) {
                    trace[done..*n].iter().for_each(|e| state.apply(e));
                    done = *n;
                    let each = each && turn.checked_sub(1).is_none_or(|before| places[before] != *n);
                    for (cut, one) in CUTS.into_iter().flat_map(|c| state.turns(c, each).map(move |t| (c, t)))
                    {
                        let number = one.map_or(0, |one| one + 1);
                        let mut random =
                            Random::new(seed ^ (turn as u64) << 20 ^ number << 40 ^ (cut as u64) << 56);
                        if let Some(why) = failure(|| sweep.check(&state, *n, (cut, one), &mut random)) {
                            let (all, one) = (trace.len(), one.map_or("any".into(), |one| one.to_string()));
                            let why = format!(
                                "seed {seed}, cut after {n} of {all} operations, {cut:?} ({one}): {why}"
                            );
                            failed.lock().get_or_insert(why);
                        }
                        if failed.lock().is_some() {
                            return;
                        }
                    }
                }
            });
        }
    });
    if let Some(why) = failed.into_inner() {
        panic!("{why}");
    }
    sweep.states.into_inner()
}

#[test]
fn a_cut_leaves_a_prefix_of_the_writes() {
    let (seeds, full) = seeds(5);
    let stride = if full { 1 } else { 4 };
    let states = AtomicU64::new(0);
    for seed in seeds {
        let mut random = Random::new(seed);
        let steps: Vec<_> = (0..120).map(|_| Step::random(&mut random)).collect();
        run_or_shrink(&format!("seed {seed}"), &steps, |steps| {
            let (mut script, start) = Script::new(seed);
            steps.iter().for_each(|step| script.step(step));
            let trace = script.machine.take_trace();
            // Of the sample too: before and after each sync.
            let is_at_a_sync =
                |n: usize| trace[n.saturating_sub(1)..].iter().take(2).any(|e| matches!(e, Event::Sync(_)));
            let is_chosen = |n: &usize| n % stride == seed as usize % stride || is_at_a_sync(*n);
            let places: Vec<_> = (0..=trace.len()).filter(is_chosen).collect();
            states.fetch_add(sweep(seed, &start, &trace, &script.oracle, &places, full), Ordering::Relaxed);
        });
        if full {
            println!("{} so far, with seed {seed}", states.load(Ordering::Relaxed));
        }
    }
    println!("{} disks after a cut", states.into_inner());
}

#[test]
fn of_a_script_that_fails_the_steps_that_matter_are_left() {
    let script: Vec<u32> = (0..60).collect();
    let run = |steps: &[u32]| assert!(!(steps.contains(&17) && steps.contains(&41)), "both");
    let found = failure(|| run_or_shrink("seed 1", &script, run)).unwrap();
    assert_eq!(found, "seed 1: the shortest of its scripts that fail has 2 of 60 steps, [17, 41]: both");
}

/// A size that was not durable yet is lost with all beyond it, while what lies below, in other files too, is kept: nothing that is
/// durable may name what is beyond.
#[test]
fn a_lost_size_leaves_a_prefix() {
    let (seeds, full) = seeds(1);
    let mut shorter = 0;
    // Files grow as long as a layer is young.
    let seeds = seeds.flat_map(|seed| (0..if full { 200 } else { 20 }).map(move |part| (seed, part)));
    for (seed, part) in seeds {
        let (mut script, mut state) = Script::new(seed);
        let mut random = Random::new(seed << 20 ^ part);
        for _ in 0..6 {
            (0..2).for_each(|_| script.step(&Step::random(&mut random)));
            script.step(&Step::write_sectors(&mut random, 40, 0));
            script.step(&Step::Checkpoint);
        }
        let trace = script.machine.take_trace();
        let sweep = Sweep { oracle: &script.oracle, states: AtomicU64::new(0) };
        for (n, event) in (1..).zip(&trace) {
            state.apply(event);
            let Some(machine) = state.without_growth() else { continue };
            shorter += 1;
            let check = || {
                let opened = open(&machine);
                sweep.oracle.find(&opened.bytes, sweep.oracle.allowed(n, Cut::Subset));
                sweep.check_snapshots(&opened, n);
                check_owners(&opened.volume.stack(), WINDOW_SECTORS);
            };
            if let Some(why) = failure(check) {
                let of = trace.len();
                panic!("seed {seed}, part {part}, cut after {n} of {of} operations, sizes lost: {why}");
            }
        }
    }
    assert!(shorter > 0, "no file grows");
    println!("{shorter} disks after a cut");
}

/// Each flush takes a block of the log, so that a few thousand fill its halves: both get closed and used again.
#[test]
fn a_cut_beside_a_full_half_leaves_a_prefix_too() {
    let mut states = 0;
    let (seeds, full) = seeds(1);
    for seed in seeds {
        let (mut script, start) = Script::new(seed ^ 0xfeed);
        let mut places = Vec::new();
        for round in 0..8200u64 {
            let from = script.machine.traced();
            script.write_round(round);
            // A half has 4092 blocks and the room that is kept. At its end a flush leaves no record of its own behind,
            // so that recovery would write the very close that was cut away.
            let turn = (4090..4095).contains(&(round % 4092));
            if !(turn && round % 2 == 1) {
                script.flush();
            }
            if script.volume.active().needs_checkpoint() && round % 8 == 3 {
                script.volume.active().checkpoint_closed().unwrap();
                places.extend(from..=script.machine.traced());
            }
            if turn || round < 3 && round > 0 {
                let all = from..=script.machine.traced();
                let times = if full { 40 } else { 1 };
                (0..times).for_each(|_| places.extend(all.clone()));
            }
        }
        let trace = script.machine.take_trace();
        places.sort_unstable();
        states += sweep(seed, &start, &trace, &script.oracle, &places, full);
    }
    println!("{states} disks after a cut");
}

/// Rule 8, the chain: what recovery has cut away does not come back at the next open. At the end of a half a flush leaves
/// no record of its own, so that recovery's close could be the very one that was lost, with records after it in the other
/// half.
#[test]
fn what_was_cut_away_stays_away() {
    let (mut script, _) = Script::new(3);
    let mut lost = 0;
    for round in 0..4094u64 {
        script.write_round(round);
        if round < 4090 {
            script.flush();
            continue;
        }
        let left = script.machine.state().without_each();
        for (number, machine) in left.into_iter().enumerate() {
            let first = open(&machine).bytes;
            let again = open(&machine.state().after(Cut::None, &mut script.random)).bytes;
            assert!(first == again, "round {round}, without operation {number}: writes came back");
            lost += u64::from(*first != script.model);
        }
        script.flush();
    }
    assert!(lost > 0, "some cut loses a write");
}

/// Recovery closes the half that the list ends in. Where a writer had closed the other and that recovery is cut before its
/// superblock, the list has two closes: the next recovery must not close a half again over the records of the first.
#[test]
fn a_half_closed_twice_loses_nothing() {
    let (mut script, _) = Script::new(5);
    let mut behind = 0;
    for round in 0..5000u64 {
        script.write((round % 40) as usize * 4096, &[round as u8 | 1; 4096]);
        script.flush();
        behind += u64::from(script.volume.active().needs_checkpoint());
        if behind == 3 {
            break;
        }
    }
    assert_eq!(behind, 3, "a half is closed, and records stand in the other");
    let (model, mut random) = (script.model, script.random);
    let recover = |machine: &Arc<Machine>| {
        let before = machine.start_trace();
        assert!(*open(machine).bytes == model, "what was flushed is lost");
        (before, machine.take_trace())
    };
    let (mut state, first) = recover(&script.machine.state().machine());
    for n in 0..=first.len() {
        let (mut again, second) = recover(&state.machine());
        for m in 0..=second.len() {
            for cut in [Cut::None, Cut::All, Cut::Subset] {
                let left = again.after(cut, &mut random);
                let of = (first.len(), second.len());
                named(|| format!("cut after {n}, then {m}, of {of:?}, {cut:?}"), || recover(&left));
            }
            second.get(m).into_iter().for_each(|event| again.apply(event));
        }
        first.get(n).into_iter().for_each(|event| state.apply(event));
    }
}
