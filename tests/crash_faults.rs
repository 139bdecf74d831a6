//! Guards against a write or sync that fails below and is then forgotten: a flush answered after a failed one, a full disk
//! that stops a volume for good, wrong bytes after either; and against a disk that lies and is believed.
//!
//! A script runs again and again; each time another of its operations fails, once or from then on, or is a lie.
//!
//! `TERRANE_CRASH_SEEDS=n` runs n seeds, each with all cuts and lies instead of the gate's sample; `tools/crash` does.

mod common;

use std::cell::Cell;
use std::sync::Arc;

use common::shelf::{Anchors, Place, Shelf};
use common::shrink::{named, run_or_shrink};
use common::sim::{CUTS, Cut, Event, Fault, Lie, Machine};
use common::{Random, seeds};
use terrane::catalog::FoldWay;
use terrane::crypto::Cipher;
use terrane::layer::LayerError;
use terrane::volume::{LiveVolume, Seal, Stack, VolumeError, seal_together};

const DISK: u64 = 4 << 20;
const WINDOW_AT: u64 = (512 - 14) * 4096;
const WINDOW: usize = 40 * 4096;

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(usize, usize),
    Discard(usize, usize),
    Read(usize, usize),
    Flush,
    Checkpoint,
    Punch,
    Seal,
    Finish,
    /// The two lowest of the sealed layers become one: the snapshot of the lower is gone.
    Fold,
    /// As after `kill -9`.
    Reopen,
}

fn steps(seed: u64) -> Vec<Step> {
    let mut random = Random::new(seed);
    let mut of = |n: u64| random.below(n) as usize;
    let mut steps: Vec<_> = (0..45)
        .map(|i| match of(26) {
            0..5 => Step::Write(of(36) * 4096, (1 + of(4)) * 4096),
            5..8 => Step::Write(of(30 * 4096), 1 + of(9000)),
            8 => Step::Write(of(10) * 4096, 30 * 4096),
            9 if of(2) == 0 => Step::Discard(of(30) * 4096, (1 + of(10)) * 4096),
            9 => Step::Discard(of(30 * 4096), 1 + of(30_000)),
            10..14 => Step::Flush,
            14 | 15 => Step::Checkpoint,
            16 | 17 => Step::Punch,
            18 if i > 10 => Step::Seal,
            20.. => Step::Read(of(30) * 4096, (1 + of(10)) * 4096),
            _ => Step::Finish,
        })
        .collect();
    steps.extend([Step::Seal, Step::Write(0, 4096), Step::Flush, Step::Finish, Step::Checkpoint]);
    steps
}

struct Run {
    machine: Arc<Machine>,
    shelf: Shelf,
    volume: LiveVolume,
    /// The disk after each answered write; `flushed` is the last that an answered flush covers.
    states: Vec<Vec<u8>>,
    flushed: usize,
    /// How far the layers were at that flush; nothing where the machine does not remember.
    anchors: Anchors,
    forgets: bool,
    snapshots: Vec<Vec<u8>>,
    random: Random,
}

/// What a step's failure means for the rest of the script.
enum Outcome {
    Done,
    Failed(VolumeError),
    /// A snapshot half made: what comes next is the catalog's business.
    Stop,
}

impl Run {
    fn new() -> Self {
        let machine = Machine::new();
        let shelf = shelf_of(&machine);
        let volume = shelf.open().unwrap();
        let (states, random) = (vec![vec![0; WINDOW]], Random::new(9));
        let (anchors, snapshots) = (Anchors::new(), Vec::new());
        Self { machine, shelf, volume, states, flushed: 0, anchors, forgets: false, snapshots, random }
    }

    fn last(&self) -> &Vec<u8> {
        self.states.last().unwrap()
    }

    fn step(&mut self, step: Step) -> Outcome {
        let done = match step {
            Step::Write(at, len) => {
                let mut state = self.last().clone();
                self.random.fill(&mut state[at..at + len]);
                let done = self.volume.write(WINDOW_AT + at as u64, &state[at..at + len]);
                done.map(|()| self.states.push(state))
            }
            Step::Discard(at, len) => {
                let done = self.volume.discard(WINDOW_AT + at as u64, len as u64);
                done.map(|()| {
                    let mut state = self.last().clone();
                    state[at..at + len].fill(0);
                    self.states.push(state);
                })
            }
            Step::Read(at, len) => {
                let mut bytes = vec![0xaa; len];
                let done = self.volume.read(WINDOW_AT + at as u64, &mut bytes);
                assert!(done.is_err() || bytes == self.last()[at..at + len], "{step:?} reads wrong");
                done
            }
            Step::Flush => self.volume.flush().map(|()| self.all_is_flushed()),
            Step::Checkpoint => self.volume.active().checkpoint().map_err(Into::into),
            Step::Punch => {
                self.volume.active().punch_free();
                Ok(())
            }
            Step::Seal => match self.shelf.begin_seal(&self.volume) {
                Ok(ended) => {
                    self.snapshots.push(self.last().clone());
                    match self.shelf.commit_seal(&ended) {
                        Ok(_) => {
                            self.all_is_flushed();
                            Ok(())
                        }
                        Err(_) => return Outcome::Stop,
                    }
                }
                Err(e) => Err(e),
            },
            Step::Finish => self.shelf.finish_seals(&self.volume).map_err(Into::into),
            Step::Fold => self.fold(),
            Step::Reopen => self.reopen(),
        };
        done.map_or_else(Outcome::Failed, |()| Outcome::Done)
    }

    fn all_is_flushed(&mut self) {
        self.flushed = self.states.len() - 1;
        let active = self.volume.active();
        if !self.forgets {
            self.anchors = Anchors::from([(active.id(), active.anchor())]);
        }
    }

    fn fold(&mut self) -> Result<(), VolumeError> {
        if self.shelf.rows().folding.is_none() {
            self.shelf.finish_seals(&self.volume)?;
            if self.volume.stack().chain.layers().len() < 2 {
                return Ok(());
            }
            let way = if self.random.one_in(2) { FoldWay::Up } else { FoldWay::Down };
            self.shelf.begin_fold(0, way)?;
        }
        let layers = self.shelf.rows().sealed.len();
        let done = self.shelf.fold(&self.volume, &mut || {});
        if self.shelf.rows().sealed.len() < layers {
            self.snapshots.remove(0);
        }
        done
    }

    fn reopen(&mut self) -> Result<(), VolumeError> {
        self.shelf = self.shelf_on(&self.machine);
        self.volume = self.shelf.open()?;
        self.volume.active().learn_free_slots()?;
        Ok(())
    }

    /// A process that remembers how far the layers were.
    fn shelf_on(&self, machine: &Arc<Machine>) -> Shelf {
        let mut shelf = shelf_of(machine);
        shelf.anchors.clone_from(&self.anchors);
        shelf
    }

    /// Every sector is right or an error.
    fn check_live(&self) {
        assert!(is_like(&sectors(&self.volume.stack()), self.last()), "a sector of the window reads wrong");
    }

    /// Every sector is right.
    fn check_whole(&self) {
        let mut bytes = vec![0xaa; WINDOW];
        self.volume.read(WINDOW_AT, &mut bytes).unwrap();
        assert!(bytes == *self.last(), "the window reads wrong");
    }

    /// After each kind of cut, in full each prefix and each lack of one operation.
    fn check_cuts(&self, full: bool) -> u64 {
        let state = self.machine.state();
        let turns = CUTS.into_iter().flat_map(|cut| state.turns(cut, full).map(move |turn| (cut, turn)));
        turns.inspect(|(cut, turn)| self.check_reopened(*cut, *turn, self.flushed)).count() as u64
    }

    fn check_reopened(&self, cut: Cut, turn: Option<u64>, least: usize) {
        named(|| format!("after {cut:?} {turn:?}"), || self.reopened(cut, turn, least));
    }

    fn reopened(&self, cut: Cut, turn: Option<u64>, least: usize) {
        let mut random = Random::new(least as u64 + 3);
        let machine = self.machine.state().after_each(cut, turn, &mut random);
        // The first opening meets a fault too: that may fail, and does no harm.
        let second = Fault { at: random.below(24), of_reads: random.one_in(2), ..ONCE };
        machine.set_fault(Some(second));
        let opened = self.shelf_on(&machine).open();
        drop(opened);
        machine.set_fault(None);
        let again = Cut::any(&mut random);
        let found = self.check_opened(&machine.state().after(again, &mut random), least);
        assert!(found.is_some(), "{second:?}, {again:?}: not a state since the last answered flush");
    }

    /// Opens a disk that reads whole: the number of its state, if that is one from `least` on. Snapshots are what they were.
    fn check_opened(&self, machine: &Arc<Machine>, least: usize) -> Option<usize> {
        let shelf = self.shelf_on(machine);
        let volume = shelf.open().expect("a volume opens when what failed works again");
        let stack = volume.stack();
        let mut bytes = vec![0xaa; WINDOW];
        stack.read(WINDOW_AT, &mut bytes).expect("a disk is readable when what failed works again");
        self.check_snapshots(&shelf, &volume, false);
        (least..self.states.len()).rev().find(|i| self.states[*i] == bytes)
    }

    /// Each snapshot reads as it was; of a disk that lied or lies sectors may be errors.
    fn check_snapshots(&self, shelf: &Shelf, volume: &LiveVolume, lies: bool) {
        let folding = shelf.rows().folding.map(|(number, _)| number);
        let there = volume.stack().chain.layers().len();
        for number in (0..there).filter(|number| folding != Some(*number)) {
            let found = sectors(&shelf.snapshot(volume, number));
            let is_whole = lies || found.iter().all(Option::is_some);
            assert!(is_whole && is_like(&found, &self.snapshots[number]), "snapshot {number} differs");
        }
    }
}

type Sectors = Vec<Option<[u8; 4096]>>;

/// The window; none where there is an error.
fn sectors(stack: &Stack) -> Sectors {
    let mut whole = vec![0xaa; WINDOW];
    let reads = stack.read(WINDOW_AT, &mut whole).is_ok();
    let pieces = whole.as_chunks::<4096>().0.iter().enumerate();
    pieces
        .map(|(i, bytes)| {
            let mut alone = [0xaa; 4096];
            let at = WINDOW_AT + i as u64 * 4096;
            if reads { Some(*bytes) } else { stack.read(at, &mut alone).is_ok().then_some(alone) }
        })
        .collect()
}

/// Where a window is not an error it is this.
fn is_like(found: &[Option<[u8; 4096]>], state: &[u8]) -> bool {
    found.iter().zip(state.chunks(4096)).all(|(found, expected)| found.is_none_or(|found| found == *expected))
}

fn shelf_of(machine: &Arc<Machine>) -> Shelf {
    Shelf::new(Place::Machine(machine.clone()), DISK, Cipher::XtsAes256)
}

/// Runs a script with a fault, and holds what it leaves against what was answered; disks opened after a cut.
fn run(steps: &[Step], fault: Fault, failing: Option<&Event>, full_cuts: bool) -> u64 {
    let mut run = Run::new();
    run.machine.set_fault(Some(fault));
    let is_full = fault.errno == libc::ENOSPC && !matches!(failing, Some(Event::Sync(_)));
    let mut stopped = false;
    for step in steps {
        let was_latched = run.volume.active().is_latched();
        match run.step(*step) {
            Outcome::Done => {
                assert!(!(was_latched && run.promises(*step)), "{step:?} answered after an error")
            }
            Outcome::Failed(e) if is_full => run.check_full(*step, &e),
            Outcome::Failed(_) => run.check_latched(*step, fault),
            Outcome::Stop => {
                stopped = true;
                break;
            }
        }
    }
    assert!(run.machine.fault_fired(), "the fault met nothing");
    run.check_live();
    if is_full {
        assert!(!stopped, "a full disk stops a snapshot whose moment was");
        run.check_whole();
        run.volume.flush().expect("a flush on a full disk");
        run.all_is_flushed();
    }
    run.machine.lift_fault();
    run.check_live();
    if is_full {
        run.go_on(if fault.for_ever { steps } else { &[] });
    }
    // `kill -9` keeps what was answered, unless a failed sync has dropped it.
    let dropped = fault.half_done;
    run.check_reopened(Cut::All, None, if dropped { run.flushed } else { run.states.len() - 1 });
    2 * (1 + run.check_cuts(full_cuts))
}

impl Run {
    /// Whether a step that was just answered must have done something.
    fn promises(&self, step: Step) -> bool {
        match step {
            Step::Flush | Step::Write(..) => true,
            // To discard what is not there is no change.
            Step::Discard(..) => !self.states.ends_with(&[self.last().clone(), self.last().clone()]),
            _ => false,
        }
    }

    /// A full disk fails what needs space, and nothing is latched by it.
    fn check_full(&self, step: Step, error: &VolumeError) {
        assert!(matches!(error, VolumeError::Layer(LayerError::NoSpace)), "{step:?}: {error}");
        assert!(!matches!(step, Step::Flush | Step::Read(..)), "{step:?} on a full disk");
        assert!(!self.volume.active().is_latched(), "latched by a full disk, {step:?}");
    }

    /// A failed step is told from then on.
    fn check_latched(&self, step: Step, fault: Fault) {
        let stack = self.volume.stack();
        let latched = stack.chain.layers().iter().chain(&stack.active).any(|l| l.is_latched());
        let tells = matches!(step, Step::Write(..) | Step::Discard(..) | Step::Flush | Step::Checkpoint);
        assert!(
            // Of a sync that a seal's new layer asked for, only the space that stays gone is told later.
            latched || !tells || fault.of_reads || fault.for_ever && fault.errno == libc::ENOSPC,
            "{step:?} failed and nothing is latched"
        );
    }

    /// Space is back: everything works, without reopening.
    fn go_on(&mut self, steps: &[Step]) {
        for step in
            steps.iter().chain(&[Step::Write(4096, 9000), Step::Finish, Step::Checkpoint, Step::Flush])
        {
            assert!(matches!(self.step(*step), Outcome::Done), "{step:?} fails when space is back");
        }
        self.check_whole();
    }
}

/// Each operation of some scripts fails in turn, or each read.
fn every_operation(fault: Fault) {
    every_one(fault, |_| true);
}

/// Each sync of some scripts fails in turn.
fn every_sync(fault: Fault) {
    every_one(fault, |event| matches!(event, Some(Event::Sync(_))));
}

/// Those of the traced operations (of reads there is no trace) fail in turn for which `is_meant` holds, and that the fault meets.
fn every_one(fault: Fault, is_meant: impl Fn(Option<&Event>) -> bool) {
    let (seeds, full) = seeds(1);
    let disks = Cell::new(0);
    for seed in seeds {
        run_or_shrink(&format!("seed {seed}"), &steps(seed), |steps| {
            let plain = Plain::run(steps, fault);
            for at in 0..plain.count(fault) {
                let failing = plain.trace.get(at as usize).filter(|_| !fault.of_reads);
                let fault = Fault { at, ..fault };
                if is_meant(failing) && plain.is_met(fault) {
                    let left = named(|| format!("{fault:?}"), || run(steps, fault, failing, full));
                    disks.set(disks.get() + left);
                }
            }
        });
    }
    println!("{} disks after a cut and a fault", disks.get());
}

/// A script that meets nothing.
struct Plain {
    trace: Vec<Event>,
    spared: Vec<u64>,
    reads: u64,
}

impl Plain {
    fn run(steps: &[Step], fault: Fault) -> Self {
        let mut run = Run::new();
        run.machine.set_fault(Some(Fault { at: u64::MAX, ..fault }));
        run.machine.start_trace();
        for step in steps {
            assert!(matches!(run.step(*step), Outcome::Done), "{step:?} fails by itself");
        }
        let (spared, reads) = (run.machine.spared(), run.machine.reads());
        run.check_whole();
        Self { trace: run.machine.take_trace(), spared, reads }
    }

    fn count(&self, fault: Fault) -> u64 {
        if fault.of_reads { self.reads } else { self.trace.len() as u64 }
    }

    /// A full disk lets some operations through.
    fn is_met(&self, fault: Fault) -> bool {
        let meets = |n: u64| {
            !self.spared.contains(&n) || n == fault.at && matches!(self.trace[n as usize], Event::Sync(_))
        };
        match fault.fresh_only {
            true if fault.for_ever => (fault.at..self.trace.len() as u64).any(meets),
            true => meets(fault.at),
            false => true,
        }
    }
}

const ONCE: Fault = Fault {
    of_reads: false,
    lie: None,
    at: 0,
    for_ever: false,
    errno: libc::EIO,
    half_done: false,
    fresh_only: false,
    in_place: false,
};

#[test]
fn an_error_latches_until_reopened() {
    every_operation(ONCE);
    every_operation(Fault { for_ever: true, ..ONCE });
}

#[test]
fn a_failed_sync_that_drops_pages_is_never_followed_by_a_yes() {
    every_operation(Fault { half_done: true, ..ONCE });
    every_operation(Fault { half_done: true, for_ever: true, ..ONCE });
}

#[test]
fn a_full_disk_fails_the_write_and_nothing_else() {
    every_operation(Fault { errno: libc::ENOSPC, fresh_only: true, ..ONCE });
}

/// Nothing but what needs space fails as long as it lasts, and nothing once there is space again.
#[test]
fn a_disk_that_stays_full_fails_writes_and_nothing_else() {
    let full = Fault { errno: libc::ENOSPC, fresh_only: true, for_ever: true, ..ONCE };
    every_operation(full);
    every_operation(Fault { in_place: true, ..full });
}

/// Rule 8: a sync that is told of a full disk has lost what it was to keep, as after any other error; the next says yes falsely.
#[test]
fn a_sync_that_finds_the_disk_full_latches_until_reopened() {
    let full = Fault { errno: libc::ENOSPC, half_done: true, fresh_only: true, ..ONCE };
    every_sync(full);
    every_sync(Fault { for_ever: true, ..full });
}

#[test]
fn a_read_that_fails_is_an_error_and_nothing_else() {
    every_operation(Fault { of_reads: true, ..ONCE });
    every_operation(Fault { of_reads: true, for_ever: true, ..ONCE });
}

/// Rule 5: the room for a mark, a close or an end is there before it is needed, also at the end of what was prepared.
#[test]
fn a_full_disk_never_meets_a_flush() {
    // The log's first window has 64 blocks, of which each flush takes one. Discards take no slots, so that only the log could
    // be full; how many come first moves the end of the window between the record, the mark and nothing.
    for before in 0..8 {
        let mut run = Run::new();
        let write = |run: &mut Run, n: usize| {
            assert!(matches!(run.step(Step::Write(n % 40 * 4096, 4096)), Outcome::Done));
        };
        for n in 0..63 {
            write(&mut run, n);
            assert!(matches!(run.step(Step::Flush), Outcome::Done));
        }
        (0..before).for_each(|n| write(&mut run, n));
        let full = Fault { errno: libc::ENOSPC, fresh_only: true, for_ever: true, ..ONCE };
        run.machine.set_fault(Some(full));
        for n in 0..40 {
            let done = run.step(Step::Discard(n * 4096, 4096));
            let flushed = if n % 4 == 3 || n > 30 { run.step(Step::Flush) } else { Outcome::Done };
            let discard_fits =
                matches!(done, Outcome::Done | Outcome::Failed(VolumeError::Layer(LayerError::NoSpace)));
            assert!(discard_fits, "discard {n} after {before} writes fails otherwise");
            assert!(matches!(flushed, Outcome::Done), "a flush fails after {before} writes, {n} discards");
        }
        run.machine.set_fault(None);
        let check = || run.check_reopened(Cut::None, None, run.flushed);
        named(|| format!("{before} writes before the disk was full"), check);
    }
}

/// What came of lies.
#[derive(Default)]
struct Seen {
    disks: Cell<u64>,
    refused: Cell<u64>,
    damaged: Cell<u64>,
}

fn one_more(count: &Cell<u64>) {
    count.set(count.get() + 1);
}

impl Run {
    /// A disk that has lied about a write, or lies: it does not open, or is what it was at one moment, `least` or later, but for
    /// sectors that are an error.
    fn check_lied(&self, shelf: &Shelf, least: usize, seen: &Seen) {
        one_more(&seen.disks);
        let volume = match shelf.open() {
            Ok(volume) => volume,
            Err(e) => {
                assert!(e.is_corruption(), "refused otherwise: {e}");
                return one_more(&seen.refused);
            }
        };
        let found = sectors(&volume.stack());
        if found.iter().any(Option::is_none) {
            one_more(&seen.damaged);
        }
        let fits = |states: &[Vec<u8>]| states.iter().any(|state| is_like(&found, state));
        assert!(fits(&self.states), "the disk is none that it ever was");
        assert!(fits(&self.states[least..]), "what was flushed is gone without a word");
        self.check_snapshots(shelf, &volume, true);
    }

    /// After `kill -9`, records that followed a flush say what the log has lost. After a power cut those may be gone too, and with a
    /// lie about the log's own end nothing on that disk tells it from one before: only a machine that remembers does.
    fn check_after_lie(&self, random: &mut Random, seen: &Seen) {
        let state = self.machine.state();
        let any = Cut::any(random);
        for (cut, remembers, least) in [
            (Cut::All, false, self.flushed),
            (Cut::None, false, 0),
            (Cut::None, true, self.flushed),
            (any, true, self.flushed),
        ] {
            let machine = state.after(cut, random);
            let shelf = if remembers { self.shelf_on(&machine) } else { shelf_of(&machine) };
            named(|| format!("{cut:?}, remembered {remembers}"), || self.check_lied(&shelf, least, seen));
        }
    }
}

/// Runs a script with a lie about a write; after the step it falls in, and some later ones, the disk is opened.
fn lie_about_a_write(steps: &[Step], fault: Fault, full: bool, seen: &Seen) {
    let mut run = Run::new();
    let mut random = Random::new(fault.at);
    run.machine.set_fault(Some(fault));
    let mut since = 0;
    for (number, step) in steps.iter().enumerate() {
        let stopped = matches!(run.step(*step), Outcome::Stop);
        if run.machine.fault_fired() {
            since += 1;
            if full || since < 3 || number + 1 == steps.len() || stopped || random.one_in(8) {
                run.check_live();
                named(|| format!("after step {number}, {step:?}"), || run.check_after_lie(&mut random, seen));
            }
        }
        if stopped {
            break;
        }
    }
}

/// A write that is lost, or comes elsewhere, is found by keys and by what records say of those before: the disk is of one moment,
/// and what was flushed is there, an error, or the reason why it does not open.
#[test]
fn a_disk_that_lies_is_not_believed() {
    let (seeds, full) = seeds(1);
    let seen = Seen::default();
    for (seed, lie) in seeds.flat_map(|seed| [(seed, Lie::Lost), (seed, Lie::Astray)]) {
        run_or_shrink(&format!("seed {seed}"), &steps(seed), |steps| {
            let plain = Plain::run(steps, ONCE);
            let is_write = |at: &u64| matches!(plain.trace[*at as usize], Event::Change(..));
            for at in (0..plain.trace.len() as u64).filter(is_write) {
                let fault = Fault { at, lie: Some(lie), ..ONCE };
                named(|| format!("{fault:?}"), || lie_about_a_write(steps, fault, full, &seen));
            }
        });
    }
    let Seen { disks, refused, damaged } = seen;
    assert!(refused.get() > 0 && damaged.get() > 0, "no lie is seen at all");
    println!(
        "{} disks after a cut and a fault; {} refused, {} damaged",
        disks.get(),
        refused.get(),
        damaged.get()
    );
}

/// The steps, with openings and folds among them.
fn steps_with_openings(seed: u64) -> Vec<Step> {
    let mut steps = steps(seed);
    for at in [45, 30, 15] {
        steps.splice(at..at, [Step::Reopen, Step::Fold]);
    }
    steps.extend([
        Step::Reopen,
        Step::Fold,
        Step::Write(0, 4096),
        Step::Flush,
        Step::Write(8192, 9000),
        Step::Reopen,
    ]);
    steps
}

/// Runs a script with a lie about a read, to its end, or to the first opening after it; whether it was told.
fn lie_about_a_read(steps: &[Step], fault: Fault, seen: &Seen) -> bool {
    let mut run = Run::new();
    // What stands reads alike each time: where that is the log's end, only a machine that remembers tells it from a cut.
    run.forgets = !fault.for_ever;
    run.machine.set_fault(Some(fault));
    let mut opened = false;
    for step in steps {
        let was_latched = run.volume.active().is_latched();
        match run.step(*step) {
            Outcome::Done => {
                assert!(!(was_latched && run.promises(*step)), "{step:?} answered after an error")
            }
            Outcome::Failed(_) => {}
            Outcome::Stop => break,
        }
        match step {
            Step::Reopen if run.machine.fault_fired() => {
                opened = true;
                break;
            }
            Step::Reopen => run.all_is_flushed(),
            // Reads are counted until then.
            _ if run.machine.fault_fired() => run.check_live(),
            _ => {}
        }
    }
    if !run.machine.fault_fired() {
        return false;
    }
    // An opening gives up the span of a page that can't be read, since what the log says of it has nowhere to go, and what the page
    // said must not come back beside that: an error, from then on.
    let gives_up = fault.for_ever && run.machine.lied_of(".map");
    if opened || !gives_up {
        run.check_lied(&run.shelf_on(&run.machine), run.flushed, seen);
    }
    run.machine.lift_fault();
    if opened && gives_up {
        run.check_lied(&run.shelf_on(&run.machine), run.flushed, seen);
        return true;
    }
    let found = run.check_opened(&run.machine, run.flushed).expect("what was flushed is there again");
    run.states.truncate(found + 1);
    run.reopen().unwrap();
    run.go_on(&[Step::Fold]);
    run.check_reopened(Cut::None, None, run.states.len() - 1);
    true
}

/// Whatever is read wrong, once or as long as it stands there: live answers are right or an error, and nothing that follows from it
/// is made durable, so that everything flushed is there when the disk reads right again. A log's end that reads wrong for as long as it
/// stands is told from a cut by what the machine remembers; one that reads wrong once, by the second reading.
#[test]
fn what_reads_wrong_is_never_made_durable() {
    let (seeds, _) = seeds(1);
    let seen = Seen::default();
    let mut told = 0;
    for seed in seeds {
        for (lie, for_ever) in [Lie::Flipped, Lie::Stale, Lie::Neighbours, Lie::Zeros]
            .into_iter()
            .flat_map(|l| [(l, false), (l, true)])
        {
            let fault = Fault { of_reads: true, lie: Some(lie), for_ever, ..ONCE };
            let count = Cell::new(0);
            run_or_shrink(&format!("seed {seed}"), &steps_with_openings(seed), |steps| {
                let plain = Plain::run(steps, fault);
                for at in 0..plain.reads {
                    let fault = Fault { at, ..fault };
                    let told = named(|| format!("{fault:?}"), || lie_about_a_read(steps, fault, &seen));
                    count.set(count.get() + u64::from(told));
                }
            });
            println!("{lie:?}, for ever {for_ever}: {} told", count.get());
            told += count.get();
        }
    }
    let Seen { disks, refused, damaged } = seen;
    assert!(refused.get() > 0 && damaged.get() > 0, "no lie is seen at all");
    println!(
        "{} disks after a cut and a fault; {told} lies, {} refused, {} damaged",
        disks.get(),
        refused.get(),
        damaged.get()
    );
}

impl Run {
    /// After a cut, each read of the opening is wrong once; how often that was told.
    fn check_openings_that_misread(&self, lie: Lie) -> u64 {
        let (mut told, mut at, mut reads) = (0, 0, 1);
        while at < reads {
            let fault = Fault { of_reads: true, lie: Some(lie), at, ..ONCE };
            let machine = self.machine.state().after(Cut::None, &mut Random::new(at));
            machine.remember_what_was(&self.machine);
            machine.set_fault(Some(fault));
            drop(self.shelf_on(&machine).open());
            told += u64::from(machine.fault_fired());
            reads = machine.reads().max(reads);
            machine.set_fault(None);
            let found = named(|| format!("{fault:?}"), || self.check_opened(&machine, self.flushed));
            assert!(found.is_some(), "{fault:?}: what was flushed is gone");
            at += 1;
        }
        told
    }
}

/// After a power cut nothing on the disk, and where it was moved nothing on the machine, says how far the log went: what reads wrong
/// once as it is opened is not taken for its end.
#[test]
fn what_reads_wrong_once_is_no_cut() {
    let (seeds, _) = seeds(1);
    for seed in seeds {
        for lie in [Lie::Flipped, Lie::Stale, Lie::Neighbours, Lie::Zeros] {
            let told = Cell::new(0);
            run_or_shrink(&format!("seed {seed}, {lie:?}"), &steps(seed), |steps| {
                let mut run = Run::new();
                run.forgets = true;
                // What is written over is kept from now on; nothing is read wrong yet.
                run.machine.set_fault(Some(Fault { of_reads: true, lie: Some(lie), at: u64::MAX, ..ONCE }));
                for (number, step) in steps.iter().enumerate() {
                    assert!(matches!(run.step(*step), Outcome::Done), "{step:?} fails by itself");
                    if matches!(step, Step::Flush) {
                        let count = || run.check_openings_that_misread(lie);
                        told.set(told.get() + named(|| format!("after step {number}"), count));
                    }
                }
            });
            println!("{lie:?}: {} told", told.get());
            assert!(told.get() > 0, "no lie was told");
        }
    }
}

/// Rule 14: of a group, all layers end or none goes on.
#[test]
fn a_group_that_cannot_be_ended_as_a_whole_is_latched_as_a_whole() {
    for failing in 0..2 {
        let (mut a, mut b) = (Run::new(), Run::new());
        // One disk is enough to fail; which of the two ends first is by their ids.
        for run in [&mut a, &mut b] {
            assert!(matches!(run.step(Step::Write(0, 8192)), Outcome::Done));
        }
        let nexts = [a.shelf.make_next().unwrap(), b.shelf.make_next().unwrap()];
        let broken = if failing == 0 { &a } else { &b };
        broken.machine.set_fault(Some(Fault { for_ever: true, ..ONCE }));
        let seals =
            [&a, &b].into_iter().zip(nexts).map(|(r, next)| Seal { volume: &r.volume, next }).collect();
        assert!(seal_together(seals).is_err());
        broken.machine.set_fault(None);
        for run in [&mut a, &mut b] {
            assert!(run.volume.active().is_latched());
            assert!(matches!(run.step(Step::Write(0, 4096)), Outcome::Failed(_)));
            assert!(matches!(run.step(Step::Flush), Outcome::Failed(_)));
            run.snapshots.push(run.last().clone());
            let check = || {
                run.check_live();
                run.check_reopened(Cut::All, None, 1);
                run.check_reopened(Cut::None, None, 0);
            };
            named(|| format!("disk {failing} fails"), check);
        }
    }
}
