//! Guards against a layer that gives out a slot twice, or takes more memory or space than its rules allow (engine rules 11, 17
//! and 19).

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::Random;
use common::shelf::{Place, Shelf};
use common::sim::{Fault, Machine};
use terrane::crypto::Cipher;
use terrane::ids::LayerId;
use terrane::layer::{Layer, LayerError, PageCache, Parts, Store};
use terrane::units::{CHUNK_BYTES, ChunkNo, SectorNo};
use terrane::volume::VolumeError;

const DISK: u64 = 8 << 20;

fn shelf(machine: &Arc<Machine>, size_bytes: u64) -> Shelf {
    Shelf::new(Place::Machine(machine.clone()), size_bytes, Cipher::XtsAes256)
}

/// Rule 17: the pass that looks for free slots finds one that no page names any more, and that waits for a flush whose sync is
/// under way: it is not free yet, else it would be freed once more when it is in use again.
#[test]
fn a_slot_that_waits_for_a_sync_is_not_found_free() {
    let machine = Machine::new();
    let shelf = shelf(&machine, DISK);
    let mut model = vec![0; DISK as usize];
    let mut random = Random::new(17);
    let mut write =
        |volume: &terrane::volume::LiveVolume, model: &mut [u8], sectors: std::ops::Range<usize>| {
            for sector in sectors {
                let at = sector * 4096;
                random.fill(&mut model[at..at + 4096]);
                volume.write(at as u64, &model[at..at + 4096]).unwrap();
            }
        };
    let volume = shelf.open().unwrap();
    write(&volume, &mut model, 0..64);
    volume.active().close().unwrap();
    drop(volume);
    // From now on what the slots below are used for is known to the map alone.
    let volume = Arc::new(shelf.open().unwrap());
    write(&volume, &mut model, 0..64);
    let passed = {
        let volume = volume.clone();
        move || {
            let active = volume.active();
            active.checkpoint().unwrap();
            active.learn_free_slots().unwrap();
        }
    };
    machine.before_next_sync(passed);
    volume.flush().unwrap();
    // What was found free is taken, and what waited is freed.
    for round in 1..5 {
        write(&volume, &mut model, round * 96..(round + 1) * 96);
        volume.flush().expect("each slot is freed once");
    }
    let mut found = vec![0xaa; DISK as usize];
    volume.read(0, &mut found).unwrap();
    assert!(found == model, "the disk differs");
    volume.active().close().unwrap();
}

#[test]
fn a_pass_for_free_slots_ends_when_told_and_begins_anew() {
    let machine = Machine::new();
    let shelf = shelf(&machine, 80 * CHUNK_BYTES);
    let volume = shelf.open().unwrap();
    (0..80).for_each(|chunk| volume.write(chunk * CHUNK_BYTES, &[7; 4096]).unwrap());
    volume.active().close().unwrap();
    drop(volume);
    let volume = shelf.open().unwrap();
    let active = volume.active();
    let pass = |goes_on: bool| {
        let mut asked = 0;
        let done = active.learn_free_slots_while(&mut || {
            asked += 1;
            goes_on
        });
        (done.unwrap(), asked)
    };
    assert_eq!((pass(false), pass(true)), ((false, 1), (true, 1)));
    assert_eq!(pass(true), (true, 0), "there is nothing left to learn");
}

/// A map that counts the pages read since one was last written, and can be full.
struct Counted {
    map: Arc<dyn Store>,
    read: AtomicU64,
    most: AtomicU64,
    is_full: AtomicBool,
}

impl Counted {
    fn new(map: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            map,
            read: AtomicU64::new(0),
            most: AtomicU64::new(0),
            is_full: AtomicBool::new(false),
        })
    }
}

impl Store for Counted {
    fn len(&self) -> io::Result<u64> {
        self.map.len()
    }
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.read.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(read, Ordering::Relaxed);
        self.map.read_at(into, offset)
    }
    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        self.read.store(0, Ordering::Relaxed);
        match self.is_full.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            false => self.map.write_at(from, offset),
        }
    }
    fn append(&self, _: &[u8], _: u64) -> io::Result<()> {
        unreachable!("a map has no log")
    }
    fn prepare_log(&self, _: u64, _: u64) -> io::Result<()> {
        unreachable!("a map has no log")
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.map.set_len(len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.map.punch(offset, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.map.sync()
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.map.drop_cache()
    }
    fn stored_bytes(&self) -> io::Result<u64> {
        self.map.stored_bytes()
    }
}

/// Rule 11: however much of a disk is written and read, of its pages as many are in memory as the cache has room for, and a
/// checkpoint changes one after the other.
#[test]
fn pages_in_memory_are_bounded() {
    const PAGES: usize = 64;
    const CHUNKS: u64 = 2000;
    let machine = Machine::new();
    let shelf = shelf(&machine, CHUNKS * CHUNK_BYTES);
    let cache = Arc::new(PageCache::new(PAGES));
    let of_shelf = shelf.parts(LayerId::random());
    let map = Counted::new(of_shelf.map.clone());
    let parts = Parts { cache: cache.clone(), map: map.clone(), ..of_shelf };
    let layer = Layer::create(parts, CHUNKS * CHUNK_BYTES).unwrap();
    for round in 1..=2 {
        for chunk in 0..CHUNKS {
            layer.write(ChunkNo(chunk).first_sector(), &[round; 4096], &[], &|_| Ok(false)).unwrap();
        }
        map.read.store(0, Ordering::Relaxed);
        map.most.store(0, Ordering::Relaxed);
        layer.checkpoint().unwrap();
        let read = map.most.load(Ordering::Relaxed);
        // A leaf, and those above it.
        assert!(read <= 3, "{read} pages were read to be changed at once");
        assert!(cache.pages() <= PAGES, "{} pages after a checkpoint", cache.pages());
    }
    for chunk in (0..CHUNKS).rev() {
        assert!(layer.entry(ChunkNo(chunk).first_sector()).unwrap().slot().is_some());
    }
    assert!(cache.pages() <= PAGES, "{} pages after reading", cache.pages());
    assert!(layer.entry(SectorNo(1)).unwrap().is_absent());
}

/// What is written all over a large disk waits in memory for its checkpoint: that is due long before the log's half is full.
#[test]
fn chunks_that_wait_for_a_checkpoint_are_bounded() {
    const MOST: u64 = 1 << 13;
    let shelf = shelf(&Machine::new(), DISK);
    let layer = Layer::create(shelf.parts(LayerId::random()), 2 * MOST * CHUNK_BYTES).unwrap();
    let mut write = (0..2 * MOST).map(|chunk| {
        layer.write(ChunkNo(chunk).first_sector(), &[7; 4096], &[], &|_| Ok(false)).unwrap();
        layer.needs_checkpoint()
    });
    assert_eq!(write.position(|is_due| is_due), Some(MOST as usize));
    layer.checkpoint_closed().unwrap();
    assert!(!layer.needs_checkpoint());
}

/// Where the file system has no room for the map, the log's bounds memory: to refuse writes by the number of chunks would refuse
/// overwrites and discards too, which need no space.
#[test]
fn a_full_map_refuses_no_write_that_the_log_has_room_for() {
    const MOST: u64 = 1 << 13;
    let of_shelf = shelf(&Machine::new(), DISK).parts(LayerId::random());
    let map = Counted::new(of_shelf.map.clone());
    let parts = Parts { map: map.clone(), ..of_shelf };
    let layer = Layer::create(parts, 3 * MOST * CHUNK_BYTES).unwrap();
    let write =
        |chunk: u64| layer.write(ChunkNo(chunk).first_sector(), &[7; 4096], &[], &|_| Ok(false)).unwrap();
    map.is_full.store(true, Ordering::Relaxed);
    (0..2 * MOST + 20).for_each(write);
    layer.discard(ChunkNo(0).first_sector(), 1, &|_| Ok(true)).unwrap();
    layer.flush().unwrap();
    let LayerError::NoSpace = layer.checkpoint_closed().unwrap_err() else { panic!("the map has room") };
    map.is_full.store(false, Ordering::Relaxed);
    write(3 * MOST - 1);
    layer.close().unwrap();
    assert!(!layer.needs_checkpoint());
}

fn at_each_sync(machine: &Arc<Machine>, deed: Arc<dyn Fn() + Send + Sync>) {
    let again = machine.clone();
    machine.before_next_sync(move || {
        deed();
        at_each_sync(&again, deed);
    });
}

/// Rule 11: a page that a checkpoint replaced, and those of a layer that nobody has open, leave their room to others.
#[test]
fn pages_that_nobody_asks_for_any_more_leave_memory() {
    const SIZE: u64 = 2 << 30;
    const SECTORS: [SectorNo; 2] = [SectorNo(0), SectorNo(SIZE / 4096 - 1)];
    let machine = Machine::new();
    let shelf = shelf(&machine, SIZE);
    let cache = Arc::new(PageCache::new(64));
    let open = || {
        let parts = Parts { cache: cache.clone(), ..shelf.parts(LayerId::random()) };
        Arc::new(Layer::create(parts, SIZE).unwrap())
    };
    let (stays, goes) = (open(), open());
    for round in 1..=10 {
        for layer in [&stays, &goes] {
            for sector in SECTORS {
                layer.write(sector, &[round; 4096], &[], &|_| Ok(false)).unwrap();
            }
            // The old pages are in use until the new ones are durable.
            let reader = layer.clone();
            at_each_sync(
                &machine,
                Arc::new(move || {
                    let beside = [SectorNo(1), SectorNo(SIZE / 4096 - 2)];
                    assert!(beside.iter().all(|sector| reader.entry(*sector).unwrap().is_absent()));
                }),
            );
            layer.checkpoint().unwrap();
            machine.before_next_sync(|| ());
        }
        // Of each two leaves, the two above them, and the one above those.
        assert_eq!(cache.pages(), 10, "after {round} checkpoints");
    }
    drop(goes);
    assert_eq!(cache.pages(), 5, "a layer is gone, and its pages are not");
    assert!(SECTORS.iter().all(|sector| stays.entry(*sector).unwrap().slot().is_some()));
    assert_eq!(cache.pages(), 5, "a page of the other layer went, too");
    stays.discard(SectorNo(0), SIZE / 4096, &|_| Ok(false)).unwrap();
    stays.checkpoint().unwrap();
    assert_eq!(cache.pages(), 0, "nothing is there, and pages of it are");
}

/// Rule 19: where a file can't grow any more, as at 16 TiB on ext4, a write fails as on a full disk, and the layer goes on.
#[test]
fn the_end_of_what_a_file_may_be_is_a_full_disk() {
    let machine = Machine::new();
    let shelf = shelf(&machine, DISK);
    let volume = shelf.open().unwrap();
    volume.write(0, &[1; 4096]).unwrap();
    volume.flush().unwrap();
    let ended = Fault {
        of_reads: false,
        lie: None,
        at: 0,
        for_ever: true,
        errno: libc::EFBIG,
        half_done: false,
        fresh_only: true,
        in_place: false,
    };
    machine.set_fault(Some(ended));
    let failed = volume.write(1 << 20, &[2; 1 << 20]);
    assert!(matches!(failed, Err(VolumeError::Layer(LayerError::NoSpace))), "{failed:?}");
    assert!(machine.fault_fired());
    volume.flush().expect("nothing is latched");
    let mut bytes = [0; 4096];
    volume.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [1; 4096]);
    machine.set_fault(None);
    volume.write(1 << 20, &[2; 1 << 20]).unwrap();
    volume.flush().unwrap();
}

/// A sealer that is ended between the seal and the giving back of free slots, which hold older versions: whoever finishes the
/// seal gives them back.
#[test]
fn a_seal_finished_by_another_gives_back_what_is_free() {
    let machine = Machine::new();
    let shelf = shelf(&machine, DISK);
    let volume = shelf.open().unwrap();
    for round in 1..5 {
        volume.write(0, &vec![round; 4 << 20]).unwrap();
        volume.flush().unwrap();
    }
    let ended = shelf.begin_seal(&volume).unwrap();
    ended.flush().unwrap();
    shelf.commit_seal(&ended).unwrap();
    ended.settle_seal().unwrap();
    let before = ended.stored_bytes().unwrap();
    drop((ended, volume));
    let volume = shelf.open().unwrap();
    let stored = volume.stack().chain.layers()[0].stored_bytes().unwrap();
    assert!(before >= 8 << 20, "{before}: nothing is free");
    assert!(stored < 5 << 20, "{stored} bytes of {before} are kept");
    let mut bytes = vec![0; 4 << 20];
    volume.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 4));
}
