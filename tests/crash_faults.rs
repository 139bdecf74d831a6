//! Guards against a write or sync that fails below and is then forgotten: a flush answered after a failed one, a full disk
//! that stops a volume for good, wrong bytes after either.
//!
//! A script runs again and again; each time another of its operations fails, once or from then on.

mod common;

use std::sync::Arc;

use common::shelf::{Place, Shelf};
use common::sim::{CUTS, Cut, Event, Fault, Lie, Machine, State};
use common::{Random, seeds};
use terrane::crypto::Cipher;
use terrane::layer::LayerError;
use terrane::volume::{LiveVolume, Seal, VolumeError, seal_together};

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
        Self { machine, shelf, volume, states, flushed: 0, snapshots: Vec::new(), random }
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
            Step::Flush => self.volume.flush().map(|()| self.flushed = self.states.len() - 1),
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
                            self.flushed = self.states.len() - 1;
                            Ok(())
                        }
                        Err(_) => return Outcome::Stop,
                    }
                }
                Err(e) => Err(e),
            },
            Step::Finish => self.shelf.finish_seals(&self.volume).map_err(Into::into),
        };
        done.map_or_else(Outcome::Failed, |()| Outcome::Done)
    }

    /// Every sector is right or an error.
    fn check_live(&self) {
        for (i, expected) in self.last().chunks(4096).enumerate() {
            let mut bytes = [0xaa; 4096];
            if self.volume.read(WINDOW_AT + i as u64 * 4096, &mut bytes).is_ok() {
                assert!(bytes == *expected, "sector {i} of the window reads wrong");
            }
        }
    }

    fn check_reopened(&self, cut: Cut, least: usize) {
        let mut random = Random::new(least as u64 + 3);
        let machine = self.machine.state().after(cut, &mut random);
        // The first opening meets a fault too: that may fail, and does no harm.
        let second = Fault { at: random.below(24), of_reads: random.one_in(2), ..ONCE };
        machine.set_fault(Some(second));
        let opened = shelf_of(&machine).open();
        drop(opened);
        machine.set_fault(None);
        let again = Cut::any(&mut random);
        let shelf = shelf_of(&machine.state().after(again, &mut random));
        let volume = shelf.open().expect("a volume opens when what failed works again");
        let mut bytes = vec![0xaa; WINDOW];
        volume.read(WINDOW_AT, &mut bytes).unwrap();
        assert!(self.states[least..].contains(&bytes), "not a state since the last answered flush, {cut:?}");
        for (number, expected) in self.snapshots[..volume.stack().chain.layers().len()].iter().enumerate() {
            shelf.snapshot(&volume, number).read(WINDOW_AT, &mut bytes).unwrap();
            assert!(bytes == *expected, "snapshot {number} differs, {cut:?}");
        }
    }

    /// A disk that lied: what a sector reads, if anything, it has held before.
    fn check_believed(&self, left: &State) {
        let Ok(volume) = shelf_of(&left.machine()).open() else { return };
        for sector in 0..WINDOW / 4096 {
            let mut bytes = [0xaa; 4096];
            if volume.read(WINDOW_AT + sector as u64 * 4096, &mut bytes).is_ok() {
                let held = self.states.iter().any(|state| state[sector * 4096..][..4096] == bytes);
                assert!(held, "sector {sector} of the window reads what it never held");
            }
        }
    }
}

fn shelf_of(machine: &Arc<Machine>) -> Shelf {
    Shelf::new(Place::Machine(machine.clone()), DISK, Cipher::XtsAes256)
}

fn run(seed: u64, fault: Fault, failing: Option<&Event>) {
    let context = format!("seed {seed}, {fault:?}");
    let mut run = Run::new();
    run.machine.set_fault(Some(fault));
    let full = fault.errno == libc::ENOSPC && !matches!(failing, Some(Event::Sync(_)));
    let mut stopped = false;
    for step in steps(seed) {
        let was_latched = run.volume.active().is_latched();
        match run.step(step) {
            Outcome::Done => {
                // To discard what is not there is no change.
                let changed = !run.states.ends_with(&[run.last().clone(), run.last().clone()]);
                let promises = match step {
                    Step::Flush | Step::Write(..) => true,
                    Step::Discard(..) => changed,
                    _ => false,
                };
                assert!(!(was_latched && promises), "{context}: {step:?} answered after an error");
            }
            Outcome::Failed(e) if full => {
                assert!(matches!(e, VolumeError::Layer(LayerError::NoSpace)), "{context}: {step:?}: {e}");
                assert!(!run.volume.active().is_latched(), "{context}: latched by a full disk, {step:?}");
                // Space comes back after a while.
                run.machine.set_fault(None);
            }
            Outcome::Failed(_) => {
                let stack = run.volume.stack();
                let latched = stack.chain.layers().iter().chain(&stack.active).any(|l| l.is_latched());
                let tells =
                    matches!(step, Step::Write(..) | Step::Discard(..) | Step::Flush | Step::Checkpoint);
                assert!(
                    // Of a sync that a seal's new layer asked for, only the space that stays gone is told later.
                    latched || !tells || fault.of_reads || fault.for_ever && fault.errno == libc::ENOSPC,
                    "{context}: {step:?} failed and nothing is latched"
                );
            }
            Outcome::Stop => {
                stopped = true;
                break;
            }
        }
    }
    let fired = run.machine.fault_fired();
    run.check_live();
    run.machine.set_fault(None);
    run.check_live();
    if full && !stopped {
        run.volume.flush().unwrap_or_else(|e| panic!("{context}: {e}"));
        run.flushed = run.states.len() - 1;
        run.check_live();
    }
    assert!(fired || full, "{context}: the fault met nothing");
    // `kill -9` keeps what was answered, unless a failed sync has dropped it.
    let dropped = fault.half_done;
    run.check_reopened(Cut::All, if dropped { run.flushed } else { run.states.len() - 1 });
    for cut in CUTS {
        run.check_reopened(cut, run.flushed);
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

/// Those of the traced operations (of reads there is no trace) fail in turn for which `is_meant` holds.
fn every_one(fault: Fault, is_meant: impl Fn(Option<&Event>) -> bool) {
    let (seeds, _) = seeds(1);
    let mut runs = 0;
    for seed in seeds {
        let mut plain = Run::new();
        plain.machine.set_fault(None);
        plain.machine.start_trace();
        for step in steps(seed) {
            assert!(matches!(plain.step(step), Outcome::Done));
        }
        let reads = plain.machine.reads();
        plain.check_live();
        let trace = plain.machine.take_trace();
        let count = if fault.of_reads { reads } else { trace.len() as u64 };
        for at in 0..count {
            let failing = trace.get(at as usize).filter(|_| !fault.of_reads);
            if is_meant(failing) {
                run(seed, Fault { at, ..fault }, failing);
                runs += 1;
            }
        }
    }
    println!("{} disks after a cut and a fault", runs * (CUTS.len() as u64 + 1) * 2);
}

const ONCE: Fault = Fault {
    of_reads: false,
    lie: None,
    at: 0,
    for_ever: false,
    errno: libc::EIO,
    half_done: false,
    fresh_only: false,
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
    every_operation(Fault { errno: libc::ENOSPC, fresh_only: true, for_ever: true, ..ONCE });
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
        run.check_reopened(Cut::None, run.flushed);
    }
}

/// A write that is lost, or comes elsewhere, is found by keys: no bytes are read that were not written there.
#[test]
fn a_disk_that_lies_is_not_believed() {
    for (seed, lie) in seeds(1).0.flat_map(|seed| [(seed, Lie::Lost), (seed, Lie::Astray)]) {
        let mut plain = Run::new();
        plain.machine.start_trace();
        steps(seed).into_iter().for_each(|step| drop(plain.step(step)));
        let count = plain.machine.take_trace().len() as u64;
        let mut damaged = 0;
        for at in 0..count {
            let mut run = Run::new();
            run.machine.set_fault(Some(Fault { at, lie: Some(lie), ..ONCE }));
            for step in steps(seed) {
                if matches!(run.step(step), Outcome::Stop) {
                    break;
                }
            }
            run.check_live();
            let errors = |run: &Run| run.volume.read(WINDOW_AT, &mut vec![0; WINDOW]).is_err();
            damaged += u64::from(errors(&run));
            run.check_believed(&run.machine.state());
        }
        assert!(damaged > 0, "no lie is seen at all");
        println!("{} disks after a cut and a fault", count * 2);
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
            run.check_live();
            run.snapshots.push(run.last().clone());
            run.check_reopened(Cut::All, 1);
            run.check_reopened(Cut::None, 0);
        }
    }
}
