//! Guards against a disk that is not the bytes written to it: random reads, writes, discards, flushes, seals,
//! rollbacks, checkpoints and reopens against an array of bytes, on real files.

mod common;

use common::Random;
use common::shelf::{Place, Shelf};
use terrane::crypto::Cipher;
use terrane::volume::{LiveVolume, OpenVolume, Stack};

const DISK: usize = 6 << 20;

fn read_all(stack: &Stack) -> Vec<u8> {
    let mut all = vec![0xaa; DISK];
    all.chunks_mut(1 << 20).enumerate().for_each(|(i, c)| stack.read((i as u64) << 20, c).unwrap());
    all
}

struct Run {
    shelf: Shelf,
    volume: LiveVolume,
    model: Vec<u8>,
    /// Of the sealed layers below it.
    snapshots: Vec<Vec<u8>>,
    /// Of those that it was rolled back from, each time: the number of the first, and what they held.
    aside: Vec<(usize, Vec<Vec<u8>>)>,
    random: Random,
}

impl Run {
    fn range(&mut self) -> (usize, usize) {
        let r = &mut self.random;
        let len = match r.below(6) {
            0 => 4096,
            1 => 1 + r.below(9000) as usize,
            2 => 4096 * (1 + r.below(16) as usize),
            3 => 4096 * (17 + r.below(240) as usize),
            4 => 512 * (1 + r.below(64) as usize),
            _ => 1 << 20,
        };
        let align = [1u64, 512, 4096][r.below(3) as usize];
        let offset = (r.below((DISK - len) as u64 + 1) / align * align) as usize;
        (offset, len)
    }

    fn step(&mut self) {
        let (offset, len) = self.range();
        match self.random.below(21) {
            0..8 => {
                let mut bytes = vec![0; len];
                match self.random.below(8) {
                    0 => {}
                    1 => self.random.fill(&mut bytes[..len / 2]),
                    _ => self.random.fill(&mut bytes),
                }
                self.volume.write(offset as u64, &bytes).unwrap();
                self.model[offset..offset + len].copy_from_slice(&bytes);
            }
            8..13 => {
                let mut bytes = vec![0xaa; len];
                self.volume.read(offset as u64, &mut bytes).unwrap();
                assert!(bytes == self.model[offset..offset + len], "read of {len} at {offset} differs");
            }
            13 | 14 => {
                let len = (len * (1 + self.random.below(4) as usize)).min(DISK - offset);
                self.volume.discard(offset as u64, len as u64).unwrap();
                self.model[offset..offset + len].fill(0);
            }
            15 => self.volume.flush().unwrap(),
            16 => {
                self.volume.active().checkpoint().unwrap();
                self.volume.active().punch_free();
            }
            17 if self.random.one_in(4) => {
                self.shelf.seal(&self.volume).unwrap();
                self.snapshots.push(self.model.clone());
                if self.random.one_in(2) {
                    self.shelf.finish_seals(&self.volume).unwrap();
                }
            }
            18 if self.random.one_in(3) => self.reopen(),
            19 => self.check_seek(offset as u64),
            20 if self.random.one_in(3) && !self.snapshots.is_empty() => self.roll_back(),
            _ => {}
        }
    }

    fn reopen(&mut self) {
        match self.random.below(3) {
            0 => self.volume.active().close().unwrap(),
            1 => self.volume.flush().unwrap(),
            // As after kill -9: what was answered is there.
            _ => {}
        }
        self.volume = self.shelf.open().unwrap();
        if self.random.one_in(2) {
            self.volume.active().learn_free_slots().unwrap();
        }
    }

    /// To any of its snapshots, the last one too.
    fn roll_back(&mut self) {
        let number = self.random.below(self.snapshots.len() as u64) as usize;
        self.aside.push((number + 1, self.snapshots.split_off(number + 1)));
        self.model.clone_from(&self.snapshots[number]);
        self.volume = self.shelf.roll_back(&self.volume, number).unwrap();
    }

    /// What is called a hole reads as zeros.
    fn check_seek(&self, offset: u64) {
        let data = self.volume.seek(offset, false).unwrap().unwrap_or(DISK as u64);
        assert!(self.model[offset as usize..data as usize].iter().all(|b| *b == 0), "a hole that holds data");
        let hole = self.volume.seek(offset, true).unwrap().unwrap();
        assert!(hole >= offset && hole <= DISK as u64);
    }

    fn check_all(&self) {
        assert!(read_all(&self.volume.stack()) == self.model, "the disk differs");
        for (number, snapshot) in self.snapshots.iter().enumerate() {
            assert!(
                read_all(&self.shelf.snapshot(&self.volume, number)) == *snapshot,
                "snapshot {number} differs"
            );
        }
        for (chain, (first, snapshots)) in self.aside.iter().enumerate() {
            for (number, snapshot) in (*first..).zip(snapshots) {
                let found = read_all(&self.shelf.aside(chain, number).unwrap());
                assert!(found == *snapshot, "snapshot {number}, which rollback {chain} left behind, differs");
            }
        }
    }
}

/// The number of rollbacks, and of snapshots that they left behind.
fn run(seed: u64, steps: usize, cipher: Cipher) -> (usize, usize) {
    println!("seed {seed}");
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::new(Place::Folder(folder.path().into()), DISK as u64, cipher);
    let volume = shelf.open().unwrap();
    let (model, random) = (vec![0; DISK], Random::new(seed));
    let mut run = Run { shelf, volume, model, snapshots: Vec::new(), aside: Vec::new(), random };
    for _ in 0..steps {
        run.step();
    }
    run.check_all();
    run.reopen();
    run.check_all();
    (run.aside.len(), run.aside.iter().map(|(_, left)| left.len()).sum())
}

#[test]
fn a_volume_is_the_bytes_written_to_it() {
    let ran: Vec<_> = (1..=12).map(|seed| run(seed, 700, Cipher::XtsAes256)).collect();
    let (rollbacks, left) = ran.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(rollbacks > 12 && left > 6, "{rollbacks} rollbacks left {left} snapshots behind");
}

#[test]
fn a_plain_volume_is_too() {
    for seed in 101..=103 {
        run(seed, 500, Cipher::Plain);
    }
}

/// Rule 16: what is overwritten and discarded is given back.
#[test]
fn space_stays_within_the_bound() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::new(Place::Folder(folder.path().into()), DISK as u64, Cipher::XtsAes256);
    let volume = shelf.open().unwrap();
    let mut random = Random::new(5);
    let mut bytes = vec![0; 1 << 20];
    for round in 0..4000u64 {
        let len = if random.one_in(40) { 1 << 20 } else { 4096 * (1 + random.below(12) as usize) };
        random.fill(&mut bytes[..len]);
        let offset = random.below((DISK - len) as u64) / 4096 * 4096;
        volume.write(offset, &bytes[..len]).unwrap();
        if random.one_in(50) {
            volume.discard(offset, len as u64).unwrap();
        }
        if round % 64 == 0 {
            volume.flush().unwrap();
            volume.active().punch_free();
        }
    }
    volume.flush().unwrap();
    volume.flush().unwrap();
    volume.active().checkpoint().unwrap();
    volume.active().punch_free();
    let live = volume.active().data_sectors() * 4096;
    let chunks = (DISK / (2 << 20)) as u64;
    // The run zero-written ahead is a constant, and the log is what was prepared of it.
    let log = 34 << 20;
    let bound = live + live / 10 + (16 << 10) * chunks + log + (1 << 20);
    let stored = volume.active().stored_bytes().unwrap();
    assert!(stored <= bound, "{stored} bytes stored for {live} live, bound {bound}");
    let (backed, _, high) = volume.active().slot_counts();
    assert!(backed <= live / 4096 / 10 + 256, "{backed} backed free slots for {} live", live / 4096);
    assert!(high < 40_000, "slots were used again: {high}");
}

/// What is freed last is given back though nothing more is written, also where the flush after it closes a half of the log.
#[test]
fn an_idle_volume_gives_its_space_back() {
    let machine = common::sim::Machine::new();
    let shelf = Shelf::new(Place::Machine(machine), 8 << 20, Cipher::XtsAes256);
    let open = OpenVolume::new(shelf.open().unwrap());
    open.disk.write(0, &[1; 4 << 20]).unwrap();
    // A half has 4092 blocks and the room that is kept; each flush takes one, the first, behind 4 MiB, three, and so does a
    // mark ahead of a flush that does not come. In the last, records of 2144, 1816 and 120 bytes leave no room for a mark.
    for round in 0..4089u64 {
        open.disk.write(4 << 20, &[round as u8 | 1; 4096]).unwrap();
        if round < 4088 {
            open.disk.flush().unwrap();
        }
    }
    open.disk.write(5 << 20, &[1; 256 * 4096]).unwrap();
    open.disk.write(6 << 20, &[1; 215 * 4096]).unwrap();
    open.disk.discard(0, 4 << 20).unwrap();
    open.wrote(0);
    let active = open.disk.active();
    assert!(!active.needs_checkpoint(), "the flush that follows is to close the half");
    let holes = || active.slot_counts().1;
    let given = std::thread::scope(|scope| {
        scope.spawn(|| open.keep(|_| ()));
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while holes() < 1024 && std::time::Instant::now() < until {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        open.stop_keeper();
        holes()
    });
    assert!(given >= 1024, "{given} of 1024 slots are holes");
}

/// Much that nobody flushes is flushed at the keeper's next look, and not after its time alone.
#[test]
fn much_that_is_not_flushed_is_flushed() {
    const MOST: u64 = 64 << 20;
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::new(Place::Folder(folder.path().into()), 2 * MOST, Cipher::XtsAes256);
    let open = OpenVolume::new(shelf.open().unwrap());
    let bytes = vec![1; 1 << 20];
    let mut most = 0;
    for at in (0..MOST + MOST / 4).step_by(bytes.len()) {
        open.disk.write(at, &bytes).unwrap();
        open.wrote(bytes.len() as u64);
        open.attend().unwrap();
        most = most.max(open.disk.active().unflushed_bytes());
    }
    assert!(most < MOST, "{most} bytes were not flushed");
}

/// What is not durable yet counts until it is, also of a layer that ended meanwhile.
#[test]
fn bytes_of_a_layer_that_ended_count_until_they_are_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::new(Place::Folder(folder.path().into()), DISK as u64, Cipher::XtsAes256);
    let volume = shelf.open().unwrap();
    assert_eq!(volume.undurable_bytes(), 0);
    volume.write(0, &[1; 3 * 4096]).unwrap();
    let ended = shelf.begin_seal(&volume).unwrap();
    volume.write(0, &[2; 2 * 4096]).unwrap();
    assert_eq!(volume.undurable_bytes(), 5 * 4096);
    ended.flush().unwrap();
    assert_eq!(volume.undurable_bytes(), 2 * 4096);
    volume.flush().unwrap();
    assert_eq!(volume.undurable_bytes(), 0);
}

/// Writers of neighbouring bytes, flushes and seals at once: each writer's bytes are its last.
#[test]
fn concurrent_writers_do_not_lose_neighbours() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::new(Place::Folder(folder.path().into()), DISK as u64, Cipher::XtsAes256);
    let volume = shelf.open().unwrap();
    const WRITERS: u64 = 6;
    const STRIPE: usize = 1000;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| {
                let volume = &volume;
                scope.spawn(move || {
                    let mut random = Random::new(w + 77);
                    let mut last = vec![0u8; 40];
                    for round in 1..400u64 {
                        let slot = random.below(40) as usize;
                        let byte = (round % 250 + 1) as u8;
                        // Stripes of all writers share sectors.
                        let offset = (slot as u64 * WRITERS + w) * STRIPE as u64;
                        volume.write(offset, &[byte; STRIPE]).unwrap();
                        last[slot] = byte;
                        let mut back = [0; STRIPE];
                        volume.read(offset, &mut back).unwrap();
                        assert!(back == [byte; STRIPE], "a writer reads what it wrote");
                    }
                    last
                })
            })
            .collect();
        for round in 0..30 {
            volume.flush().unwrap();
            volume.active().punch_free();
            if round % 5 == 0 {
                shelf.seal(&volume).unwrap();
                shelf.finish_seals(&volume).unwrap();
            }
            if round % 7 == 0 {
                volume.active().checkpoint().unwrap();
            }
        }
        for (w, writer) in writers.into_iter().enumerate() {
            for (slot, byte) in writer.join().unwrap().into_iter().enumerate() {
                let mut back = [0xaa; STRIPE];
                volume.read((slot as u64 * WRITERS + w as u64) * STRIPE as u64, &mut back).unwrap();
                assert!(back == [byte; STRIPE], "writer {w}, stripe {slot}");
            }
        }
    });
}

/// Rule 19, and `volume create`'s promise: what a volume could hold costs nothing.
#[test]
fn a_new_layer_of_64_tib_takes_its_first_window() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = Shelf::new(Place::Folder(folder.path().into()), 64 << 40, Cipher::XtsAes256);
    let volume = shelf.open().unwrap();
    assert!(volume.active().stored_bytes().unwrap() <= (256 << 10) + (64 << 10));
    volume.discard(0, 64 << 40).unwrap();
    volume.write((64 << 40) - 4096, &[7; 4096]).unwrap();
    volume.active().checkpoint().unwrap();
    let mut back = [0; 4096];
    volume.read((64 << 40) - 4096, &mut back).unwrap();
    assert_eq!(back, [7; 4096]);
    assert_eq!(volume.seek(0, false).unwrap(), Some((64 << 40) - 4096));
}
