//! Guards against what only several threads do: writers of neighbouring bytes beside flushes, checkpoints, seals, punches and
//! the free-slot pass, cut at any moment.
//!
//! Each writer owns halves of sectors and fills one with a rising number at a time. After a cut each half holds one number
//! as a whole, not below the last that an answered flush covers (after `kill -9`: that was answered), not above the last that was begun.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::Random;
use common::shelf::{Place, Shelf};
use common::shrink::named;
use common::sim::{CUTS, Cut, Machine};
use terrane::crypto::Cipher;
use terrane::units::SectorNo;
use terrane::volume::LiveVolume;

const DISK: u64 = 4 << 20;
const WINDOW_AT: u64 = (512 - 8) * 4096;
const HALF: usize = 2048;
const WRITERS: usize = 4;
/// Halves of a writer; those of all alternate.
const HALVES: usize = 8;
const WRITES: u64 = 250;

/// (began, ended) in the trace, of the write of number 1, 2, …
type Written = Vec<(usize, usize)>;

fn offset(writer: usize, half: usize) -> u64 {
    WINDOW_AT + ((half * WRITERS + writer) * HALF) as u64
}

fn run(seed: u64, places: usize) {
    let machine = Machine::new();
    let shelf = Shelf::new(Place::Machine(machine.clone()), DISK, Cipher::XtsAes256);
    let volume = shelf.open().unwrap();
    // The first number everywhere, and a reopen, so that there are slots of which only the free-slot pass knows.
    for (w, half) in (0..WRITERS).flat_map(|w| (0..HALVES).map(move |h| (w, h))) {
        volume.write(offset(w, half), &1u64.to_le_bytes().repeat(HALF / 8)).unwrap();
    }
    volume.active().close().unwrap();
    let volume = shelf.open().unwrap();
    let start = machine.start_trace();
    let done = AtomicBool::new(false);
    let (written, flushes) = std::thread::scope(|scope| {
        let (volume, machine, done) = (&volume, &machine, &done);
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| {
                scope.spawn(move || {
                    let mut random = Random::new(seed ^ (w as u64 + 1) << 32);
                    let mut written = vec![Written::from([(0, 0)]); HALVES];
                    for _ in 0..WRITES {
                        let half = random.below(HALVES as u64) as usize;
                        let number = written[half].len() as u64 + 1;
                        let bytes: Vec<u8> = number.to_le_bytes().repeat(HALF / 8);
                        let began = machine.traced();
                        volume.write(offset(w, half), &bytes).unwrap();
                        written[half].push((began, machine.traced()));
                        let mut back = vec![0; HALF];
                        volume.read(offset(w, half), &mut back).unwrap();
                        assert!(back == bytes, "a writer reads what it wrote");
                    }
                    written
                })
            })
            .collect();
        let flusher = scope.spawn(move || {
            let mut flushes = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let began = machine.traced();
                volume.flush().unwrap();
                flushes.push((began, machine.traced()));
                std::thread::yield_now();
            }
            flushes
        });
        let pass = scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                volume.active().punch_free();
                volume.active().learn_free_slots().unwrap();
                volume.active().checkpoint_closed().unwrap();
                std::thread::yield_now();
            }
        });
        let mut random = Random::new(seed);
        while !writers.iter().all(|w| w.is_finished()) {
            match random.below(8) {
                0 if volume.stack().chain.layers().len() < 6 => {
                    shelf.seal(volume).unwrap();
                    shelf.finish_seals(volume).unwrap();
                }
                1..4 => match volume.active().checkpoint() {
                    Ok(()) => {}
                    Err(e) => panic!("{e}"),
                },
                _ => std::thread::sleep(std::time::Duration::from_micros(random.below(2000))),
            }
        }
        done.store(true, Ordering::Relaxed);
        pass.join().unwrap();
        let flushes: Vec<(usize, usize)> = flusher.join().unwrap();
        let written: Vec<_> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        (written, flushes)
    });

    let trace = machine.take_trace();
    let mut random = Random::new(seed + 1);
    let (mut state, mut at) = (start, 0);
    for place in 0..=places {
        let n = trace.len() * place / places;
        trace[at..n].iter().for_each(|e| state.apply(e));
        at = n;
        let cut = CUTS[random.below(CUTS.len() as u64) as usize];
        let machine = state.after(cut, &mut random);
        let context = format!("seed {seed}, cut after {n} of {}, {cut:?}", trace.len());
        let shelf = Shelf::new(Place::Machine(machine), DISK, Cipher::XtsAes256);
        let volume = shelf.open().unwrap_or_else(|e| panic!("{context}: {e}"));
        let covered = flushes.iter().filter(|f| f.1 <= n).map(|f| f.0).max().unwrap_or(0);
        for (w, halves) in written.iter().enumerate() {
            for (half, writes) in halves.iter().enumerate() {
                let mut bytes = vec![0xaa; HALF];
                volume.read(offset(w, half), &mut bytes).unwrap_or_else(|e| panic!("{context}: {e}"));
                let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                assert!(bytes == number.to_le_bytes().repeat(HALF / 8), "{context}: a torn write");
                // `kill -9` keeps all that was answered.
                let durable = if cut == Cut::All { n } else { covered };
                let least = writes.iter().filter(|w| w.1 <= durable).count() as u64;
                let most = writes.iter().filter(|w| w.0 < n || w.1 == 0).count() as u64;
                assert!(
                    (least..=most).contains(&number),
                    "{context}: writer {w}, half {half}: {number} is not in {least}..={most}"
                );
            }
        }
    }
}

/// Rule 12: a reader that found a sector's slot is overtaken by writes until the slot holds another sector: no rot.
#[test]
fn a_reader_that_is_overtaken_reads_again() {
    let machine = Machine::new();
    let shelf = Shelf::new(Place::Machine(machine.clone()), DISK, Cipher::XtsAes256);
    let volume = Arc::new(shelf.open().unwrap());
    volume.write(WINDOW_AT, &[1; 4096]).unwrap();
    let slot = |volume: &LiveVolume, at: u64| volume.active().entry(SectorNo(at / 4096)).unwrap().slot();
    let first = slot(&volume, WINDOW_AT).expect("it has one");
    let (writer, taken) = (volume.clone(), Arc::new(AtomicBool::new(false)));
    let found = taken.clone();
    machine.before_next_read(move || {
        for round in 0..20 {
            for sector in [1, 2, 0] {
                writer.write(WINDOW_AT + sector * 4096, &[2 + round; 4096]).unwrap();
                let again = slot(&writer, WINDOW_AT + sector * 4096) == Some(first);
                found.fetch_or(again && sector > 0, Ordering::Relaxed);
            }
            writer.flush().unwrap();
            if found.load(Ordering::Relaxed) {
                break;
            }
        }
    });
    let mut bytes = [0; 4096];
    volume.read(WINDOW_AT, &mut bytes).expect("a sector that was written over is not damaged");
    assert!(taken.load(Ordering::Relaxed), "the slot was taken for another sector");
    assert!(bytes[0] > 1 && bytes == [bytes[0]; 4096], "it reads what was written last");
}

#[test]
fn threads_and_a_cut_leave_what_was_flushed() {
    const PLACES: usize = 150;
    let (seeds, _) = common::seeds(6);
    let count = seeds.end - seeds.start;
    seeds.for_each(|seed| named(|| format!("seed {seed}"), || run(seed, PLACES)));
    println!("{} disks after a cut", count * (PLACES as u64 + 1));
}
