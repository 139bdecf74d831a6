//! Guards against a fold (engine rule 20) that disturbs who reads or writes beside it, or that takes damage for data.

mod common;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::Random;
use common::shelf::{Place, Shelf};
use common::sim::Machine;
use parking_lot::Mutex;
use terrane::catalog::FoldWay;
use terrane::crypto::Cipher;
use terrane::layer::{Entry, Layer, PageCache, Parts, State, Store, slot_offset};
use terrane::units::{ChunkNo, SectorNo};
use terrane::volume::{Chain, LiveVolume, Move, Stack, VolumeError};

const DISK: u64 = 8 << 20;

fn shelf(machine: &Arc<Machine>) -> Shelf {
    Shelf::new(Place::Machine(machine.clone()), DISK, Cipher::XtsAes256)
}

fn whole(stack: &Stack) -> Vec<u8> {
    let mut bytes = vec![0; DISK as usize];
    (0..DISK as usize).step_by(1 << 20).for_each(|at| {
        stack.read(at as u64, &mut bytes[at..at + (1 << 20)]).expect("a disk is readable beside a fold");
    });
    bytes
}

/// Random sectors of the whole disk.
fn scribble(volume: &LiveVolume, random: &mut Random, times: usize) {
    for _ in 0..times {
        let mut bytes = vec![0; 4096 * (1 + random.below(9) as usize)];
        random.fill(&mut bytes);
        let at = random.below((DISK - bytes.len() as u64) / 4096) * 4096;
        volume.write(at, &bytes).unwrap();
    }
}

/// Who opened the layers before a fold reads the same while it is under way and long after, though their pages were
/// written over and their slots freed: as another process would, without sharing its cache.
#[test]
fn a_reader_from_before_reads_the_same_after_many_folds() {
    let machine = Machine::new();
    let shelf = shelf(&machine);
    let volume = shelf.open().unwrap();
    let mut random = Random::new(7);
    for _ in 0..6 {
        scribble(&volume, &mut random, 60);
        shelf.seal(&volume).unwrap();
        shelf.finish_seals(&volume).unwrap();
    }
    // Small caches of their own: what it reads, it reads from the disk.
    let reader = Shelf::new(Place::Machine(machine.clone()), DISK, Cipher::XtsAes256);
    let cache = Arc::new(PageCache::new(1));
    let open = |(id, mark): &(_, Option<_>)| {
        let parts = Parts { cache: cache.clone(), ..reader.parts(*id) };
        Arc::new(Layer::open_sealed(parts, mark.unwrap()).unwrap())
    };
    let layers: Vec<_> = shelf.rows().sealed.iter().map(open).collect();
    let expected = whole(&shelf.snapshot(&volume, 5));
    // No chunk was resolved yet: a fresh chain asks the pages.
    let disk = || Stack { active: None, chain: Chain::new(layers.clone()) };
    for turn in 0..5 {
        let way = if turn % 2 == 0 { FoldWay::Down } else { FoldWay::Up };
        shelf.begin_fold(0, way).unwrap();
        shelf
            .fold(&volume, &mut || assert!(whole(&disk()) == expected, "turn {turn}, amid the fold"))
            .unwrap();
        assert!(whole(&disk()) == expected, "turn {turn}, after the fold");
    }
    assert!(whole(&shelf.snapshot(&volume, 0)) == expected);
}

/// A file that calls back when slots are read.
struct Watched {
    store: Arc<dyn Store>,
    on_read: Mutex<Box<dyn FnMut() + Send>>,
    armed: Arc<AtomicBool>,
}

impl Store for Watched {
    fn len(&self) -> io::Result<u64> {
        self.store.len()
    }
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.store.read_at(into, offset)?;
        if self.armed.load(Ordering::Acquire) && offset >= terrane::layer::SLOTS_OFFSET {
            (self.on_read.lock())();
        }
        Ok(())
    }
    fn write_at(&self, from: &[u8], offset: u64) -> io::Result<()> {
        self.store.write_at(from, offset)
    }
    fn append(&self, from: &[u8], offset: u64) -> io::Result<()> {
        self.store.append(from, offset)
    }
    fn prepare_log(&self, offset: u64, len: u64) -> io::Result<()> {
        self.store.prepare_log(offset, len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.store.set_len(len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.store.punch(offset, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.store.sync()
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.store.drop_cache()
    }
    fn stored_bytes(&self) -> io::Result<u64> {
        self.store.stored_bytes()
    }
    fn data_end(&self, range: Range<u64>) -> io::Result<u64> {
        self.store.data_end(range)
    }
}

/// What the disk's user writes between a fold's reading and its writing stays, and so does what he discards.
#[test]
fn a_write_beside_a_fold_wins() {
    let machine = Machine::new();
    let shelf = shelf(&machine);
    let volume = Arc::new(shelf.open().unwrap());
    let mut random = Random::new(3);
    scribble(&volume, &mut random, 200);
    shelf.seal(&volume).unwrap();
    shelf.finish_seals(&volume).unwrap();
    let (id, mark) = shelf.rows().sealed[0];
    let model = Arc::new(Mutex::new(whole(&volume.stack())));
    let armed = Arc::new(AtomicBool::new(true));
    let meddle = {
        let (volume, model, mut random) = (volume.clone(), model.clone(), Random::new(5));
        move || {
            let mut model = model.lock();
            let sector = random.below(DISK / 4096) as usize * 4096;
            let piece = &mut model[sector..sector + 4096];
            match random.one_in(3) {
                true => {
                    piece.fill(0);
                    volume.discard(sector as u64, 4096).unwrap();
                }
                false => {
                    random.fill(piece);
                    volume.write(sector as u64, piece).unwrap();
                }
            }
        }
    };
    let parts = shelf.parts(id);
    let data = Watched { store: parts.data, on_read: Mutex::new(Box::new(meddle)), armed: armed.clone() };
    let parent = Layer::open_sealed(Parts { data: Arc::new(data), ..parts }, mark.unwrap()).unwrap();
    let active = volume.active();
    let below = Chain::new(Vec::new());
    let fold = Move { way: FoldWay::Up, from: &parent, into: &active, below: &below };
    assert!(fold.run(0, &mut |_, _| true).unwrap());
    armed.store(false, Ordering::Release);
    volume.replace_chain(below);
    assert!(whole(&volume.stack()) == *model.lock(), "a write beside the fold was lost");
}

/// Damage ends the fold, and is not tagged anew: what was unreadable stays so, and the rest reads.
#[test]
fn damage_is_never_moved() {
    for way in [FoldWay::Up, FoldWay::Down] {
        let machine = Machine::new();
        let shelf = shelf(&machine);
        let volume = shelf.open().unwrap();
        let mut random = Random::new(11);
        for _ in 0..2 {
            scribble(&volume, &mut random, 40);
            shelf.seal(&volume).unwrap();
        }
        shelf.finish_seals(&volume).unwrap();
        let expected = whole(&volume.stack());
        // One that nothing above hides, of the layer that would go.
        let number = if way == FoldWay::Up { 0 } else { 1 };
        let layers = volume.stack().chain.layers().to_vec();
        let hidden = |sector| number == 0 && !layers[1].entry(SectorNo(sector)).unwrap().is_absent();
        let slot_of = |sector| match layers[number].entry(SectorNo(sector)).map(Entry::state).unwrap() {
            State::Data(slot) if !hidden(sector) => Some((sector, slot)),
            _ => None,
        };
        let (sector, slot) = (0..DISK / 4096).rev().find_map(slot_of).expect("some sector is in it");
        machine.flip(&format!("{}.data", layers[number].id()), slot_offset(slot) + 99, 4);
        shelf.begin_fold(0, way).unwrap();
        match shelf.fold(&volume, &mut || {}) {
            Err(VolumeError::DamagedSector { sector: found, layer }) => {
                assert_eq!((found.0, layer), (sector, layers[number].id()), "{way:?}");
            }
            other => panic!("{way:?}: a damaged sector was folded: {other:?}"),
        }
        let mut bytes = vec![0; 4096];
        for at in 0..DISK / 4096 {
            let read = volume.stack().read(at * 4096, &mut bytes);
            match at == sector {
                true => assert!(matches!(read, Err(VolumeError::DamagedSector { .. })), "{way:?}: {read:?}"),
                false => assert!(read.is_ok() && bytes == expected[at as usize * 4096..][..4096], "{way:?}"),
            }
        }
        assert!(layers[number].records(ChunkNo(0)).is_ok());
    }
}
