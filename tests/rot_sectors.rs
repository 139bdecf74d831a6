//! Guards against wrong bytes wherever a layer of 512 sectors is touched: each sector's slot and each sector's entry, in each
//! way; and every part of a layer put back to what it was at an earlier moment, alone or with others.
//!
//! Always: the right bytes, or a corruption error for exactly what is concerned; put back as a whole, a state that the disk
//! once had, and with an anchor not even that.

mod common;

use std::sync::Arc;

use common::Random;
use common::shelf::{Place, Shelf};
use common::sim::{Machine, State};
use terrane::crypto::Cipher;
use terrane::layer::{Anchor, Layer, LayerError, slot_offset};
use terrane::units::{SECTOR_LEN, SectorNo};
use terrane::volume::{Chain, Stack};

const SECTORS: u64 = 512;
const DISK: u64 = SECTORS * 4096;
/// The two places of the one leaf.
const LEAF: [u64; 2] = [65_664 << 14, (65_664 << 14) + 8192];

fn shelf_on(machine: &Arc<Machine>, cipher: Cipher) -> Shelf {
    Shelf::new(Place::Machine(machine.clone()), DISK, cipher)
}

/// A layer whose every sector was written twice, and what it held first and last.
struct Written {
    state: State,
    layer: Arc<Layer>,
    first: State,
    content: Vec<u8>,
    cipher: Cipher,
}

impl Written {
    fn new(sealed: bool, cipher: Cipher) -> Self {
        let machine = Machine::new();
        let shelf = shelf_on(&machine, cipher);
        let volume = shelf.open().unwrap();
        let mut random = Random::new(9);
        let mut content = vec![0; DISK as usize];
        let mut first = None;
        for _ in 0..2 {
            random.fill(&mut content);
            for at in (0..DISK).step_by(128 << 10) {
                volume.write(at, &content[at as usize..][..128 << 10]).unwrap();
            }
            volume.active().checkpoint().unwrap();
            first.get_or_insert_with(|| machine.state());
        }
        let layer = volume.active();
        match sealed {
            true => {
                shelf.seal(&volume).unwrap();
                shelf.finish_seals(&volume).unwrap();
            }
            false => layer.close().unwrap(),
        }
        Self { state: machine.state(), layer, first: first.unwrap(), content, cipher }
    }

    fn slot(&self, sector: u64) -> u64 {
        slot_offset(self.layer.entry(SectorNo(sector)).unwrap().slot().expect("it was written"))
    }

    /// Sectors of those in question that are told to be damaged; the others read right.
    fn damaged(&self, machine: &Arc<Machine>, sectors: impl Iterator<Item = u64>) -> Vec<u64> {
        let volume =
            shelf_on(machine, self.cipher).open().expect("no sector or page is a reason to refuse a layer");
        let stack = volume.stack();
        let mut bytes = [0xaa; SECTOR_LEN];
        let bad = |sector: &u64| match stack.read(sector * 4096, &mut bytes) {
            Ok(()) => {
                let right = &self.content[*sector as usize * SECTOR_LEN..][..SECTOR_LEN];
                assert!(bytes == right, "sector {sector} reads wrong");
                false
            }
            Err(e) => {
                assert!(e.is_corruption(), "sector {sector}: {e}");
                true
            }
        };
        sectors.filter(bad).collect()
    }
}

/// What is done to a sector's bytes or entry; `other` is another sector. True: its entry, and so the page.
type Way = (&'static str, bool, fn(&Written, &Machine, u64, u64));

const WAYS: [Way; 9] = [
    ("flipped", false, |w, m, s, _| m.flip(&data(w), w.slot(s) + s * 8 % 4096, 1 << (s % 8))),
    ("zeroed", false, |w, m, s, _| m.poke(&data(w), w.slot(s), &[0; SECTOR_LEN])),
    ("another's", false, |w, m, s, o| m.poke(&data(w), w.slot(s), &m.peek(&data(w), w.slot(o), SECTOR_LEN))),
    ("stale", false, |w, m, s, _| {
        // Of the same key and place, and of its time well vouched for.
        let older = w.first.machine();
        let first = shelf_on(&older, w.cipher).open().unwrap().active().entry(SectorNo(s)).unwrap();
        let bytes = older.peek(&data(w), slot_offset(first.slot().unwrap()), SECTOR_LEN);
        m.poke(&data(w), w.slot(s), &bytes);
    }),
    ("absent", true, |w, m, s, _| put_entry(w, m, s, [0; 16])),
    ("said to be zero", true, |w, m, s, _| put_entry(w, m, s, (2u128 << 126).to_le_bytes())),
    ("another's entry", true, |w, m, s, o| {
        let entry = entry(w, m, o);
        put_entry(w, m, s, entry);
    }),
    ("entries swapped", true, |w, m, s, o| {
        let (a, b) = (entry(w, m, s), entry(w, m, o));
        put_entry(w, m, s, b);
        put_entry(w, m, o, a);
    }),
    ("a stale entry", true, |w, m, s, _| {
        let stale = entry(w, &w.first.machine(), s);
        put_entry(w, m, s, stale);
    }),
];

fn data(w: &Written) -> String {
    format!("{}.data", w.layer.id())
}

fn map(w: &Written) -> String {
    format!("{}.map", w.layer.id())
}

/// An entry of the leaf, by the first of its places that was written.
fn entry(w: &Written, machine: &Machine, sector: u64) -> [u8; 16] {
    let read = |place: u64| machine.peek(&map(w), place + sector * 16, 16);
    let found = LEAF.map(read).into_iter().find(|bytes| bytes.iter().any(|b| *b != 0));
    found.expect("its page was written").try_into().unwrap()
}

/// In both places of the page, so that the one in use is among them.
fn put_entry(w: &Written, machine: &Machine, sector: u64, entry: [u8; 16]) {
    LEAF.iter().for_each(|place| machine.poke(&map(w), place + sector * 16, &entry));
}

/// One sector of `every` is spoiled.
fn each_sector_in_each_way(sealed: bool, cipher: Cipher, every: usize) {
    let w = Written::new(sealed, cipher);
    let mut cases = 0;
    for (how, is_page, spoil) in WAYS {
        for sector in (0..SECTORS).step_by(every) {
            let other = (sector * 7 + 13) % SECTORS;
            let machine = w.state.machine();
            spoil(&w, &machine, sector, other);
            let what = format!("sector {sector} {how}, sealed {sealed}");
            // All of the disk of some, the neighbourhood of each.
            let all = sector % 32 == 5;
            let near = |s: &u64| all || s.abs_diff(sector) <= 2 || *s == other || s % 97 == 3;
            let looked: Vec<u64> = (0..SECTORS).filter(near).collect();
            let bad = w.damaged(&machine, looked.iter().copied());
            match is_page {
                true => assert_eq!(bad, looked, "{what}: its page's span is told"),
                false => assert_eq!(bad, [sector], "{what}"),
            }
            cases += 1;
        }
    }
    assert_eq!(cases, 9 * 512 / every);
    eprintln!("{cases} cases");
    assert_eq!(w.damaged(&w.state.machine(), 0..SECTORS), Vec::<u64>::new(), "untouched");
}

#[test]
fn each_sector_of_an_active_layer_in_each_way() {
    each_sector_in_each_way(false, Cipher::XtsAes256, 1);
}

#[test]
fn each_sector_of_a_sealed_layer_in_each_way() {
    each_sector_in_each_way(true, Cipher::XtsAes256, 1);
}

/// A plain layer's tags and MACs are as keyed.
#[test]
fn sectors_of_a_plain_layer_in_each_way() {
    each_sector_in_each_way(true, Cipher::Plain, 8);
}

/// A disk of two layers, the lower one sealed: of each of its sectors both have other bytes, in the same slot.
struct TwoLayers {
    cipher: Cipher,
    state: State,
    layers: [Arc<Layer>; 2],
    contents: [Vec<u8>; 2],
}

impl TwoLayers {
    const SECTORS: u64 = 64;

    fn new(cipher: Cipher) -> Self {
        let machine = Machine::new();
        let shelf = shelf_on(&machine, cipher);
        let volume = shelf.open().unwrap();
        let contents = [1, 2].map(|seed| {
            let mut content = vec![0; Self::SECTORS as usize * SECTOR_LEN];
            Random::new(seed).fill(&mut content);
            volume.write(0, &content).unwrap();
            if seed == 1 {
                shelf.seal(&volume).unwrap();
                shelf.finish_seals(&volume).unwrap();
            }
            content
        });
        volume.active().close().unwrap();
        let layers = [volume.stack().chain.layers()[0].clone(), volume.active()];
        Self { cipher, state: machine.state(), layers, contents }
    }

    /// The file and the place in it of a sector's bytes.
    fn place(&self, layer: usize, sector: u64) -> (String, u64) {
        let layer = &self.layers[layer];
        let slot = layer.entry(SectorNo(sector)).unwrap().slot().expect("it was written");
        (format!("{}.data", layer.id()), slot_offset(slot))
    }

    /// The bytes of a sector moved from layer to layer; which sectors of each are damaged then. The others read right.
    fn damaged(&self, sector: u64, moves: &[(usize, usize)]) -> [Vec<u64>; 2] {
        let machine = self.state.machine();
        for (from, to) in moves {
            let ((source, at), (target, there)) = (self.place(*from, sector), self.place(*to, sector));
            machine.poke(&target, there, &self.state.machine().peek(&source, at, SECTOR_LEN));
        }
        let shelf = shelf_on(&machine, self.cipher);
        let volume = shelf.open().expect("a slot is no reason to refuse a layer");
        let disks = [Arc::new(shelf.snapshot(&volume, 0)), volume.stack()];
        [0, 1].map(|of| {
            let mut bytes = [0xaa; SECTOR_LEN];
            let right = |sector: u64| &self.contents[of][sector as usize * SECTOR_LEN..][..SECTOR_LEN];
            let is_bad = |sector: &u64| match disks[of].read(sector * 4096, &mut bytes) {
                Ok(()) => {
                    assert!(bytes == right(*sector), "sector {sector} of layer {of} reads wrong: {moves:?}");
                    false
                }
                Err(e) => e.is_corruption(),
            };
            (0..Self::SECTORS).filter(is_bad).collect()
        })
    }
}

/// The bytes of one layer's sector in the other's place, either way, or both exchanged.
#[test]
fn sectors_moved_between_layers_are_told() {
    for cipher in [Cipher::XtsAes256, Cipher::Plain] {
        let disk = TwoLayers::new(cipher);
        for sector in 0..TwoLayers::SECTORS {
            assert_eq!(disk.place(0, sector).1, disk.place(1, sector).1);
            assert_eq!(disk.damaged(sector, &[(0, 1)]), [vec![], vec![sector]]);
            assert_eq!(disk.damaged(sector, &[(1, 0)]), [vec![sector], vec![]]);
            assert_eq!(disk.damaged(sector, &[(0, 1), (1, 0)]), [vec![sector], vec![sector]]);
        }
    }
}

/// Parts of a layer's files: superblock 0, superblock 1, the log's halves, slots, map.
const PARTS: [&str; 6] = ["superblock 0", "superblock 1", "log half 0", "log half 1", "slots", "map"];

fn put_back(machine: &Machine, older: &Machine, layer: &Layer, part: usize) {
    let file = |name: &str| format!("{}.{name}", layer.id());
    let (name, ranges): (String, Vec<(u64, usize)>) = match part {
        0 => (file("data"), vec![(0, 4096)]),
        1 => (file("data"), vec![(4096, 4096)]),
        2 => (file("data"), vec![(1 << 20, 1 << 20)]),
        3 => (file("data"), vec![(17 << 20, 1 << 20)]),
        4 => (file("data"), vec![(64 << 20, 8 << 20)]),
        _ => (file("map"), [0u64, 128, 65_664].iter().map(|n| (n << 14, 16384)).collect()),
    };
    for (at, len) in ranges {
        machine.poke(&name, at, &older.peek(&name, at, len));
    }
}

/// A moment: what the files held, how far an anchor would say it was, and the disk after each write up to it.
struct Moment {
    state: State,
    anchor: Anchor,
    writes: usize,
}

/// Flushes and checkpoints among writes over few sectors, so that slots are used again.
fn history() -> (Arc<Layer>, Vec<Moment>, Vec<Vec<u8>>) {
    let machine = Machine::new();
    let shelf = shelf_on(&machine, Cipher::XtsAes256);
    let volume = shelf.open().unwrap();
    let layer = volume.active();
    let mut random = Random::new(31);
    let mut disk = vec![0; DISK as usize];
    let (mut disks, mut moments) = (vec![disk.clone()], Vec::new());
    for round in 0..6 {
        for _ in 0..5 {
            let at = random.below(24) as usize * SECTOR_LEN;
            random.fill(&mut disk[at..at + 2 * SECTOR_LEN]);
            volume.write(at as u64, &disk[at..at + 2 * SECTOR_LEN]).unwrap();
            disks.push(disk.clone());
        }
        volume.flush().unwrap();
        // The flush before is confirmed by a record from here on.
        volume.flush().unwrap();
        if round % 2 == 1 {
            layer.checkpoint().unwrap();
            volume.flush().unwrap();
        }
        moments.push(Moment { state: machine.state(), anchor: layer.anchor(), writes: disks.len() - 1 });
    }
    (layer, moments, disks)
}

/// The number of the newest state of the disk that all readable sectors are of; none: a mixture.
fn state_read(layer: Layer, disks: &[Vec<u8>]) -> Option<usize> {
    let stack = Stack { active: Some(Arc::new(layer)), chain: Chain::new(Vec::new()) };
    let mut bytes = [0xaa; SECTOR_LEN];
    let mut read = Vec::new();
    for sector in 0..32 {
        match stack.read(sector * 4096, &mut bytes) {
            Ok(()) => read.push((sector as usize * SECTOR_LEN, bytes)),
            Err(e) => assert!(e.is_corruption(), "{e}"),
        }
    }
    disks.iter().rposition(|disk| read.iter().all(|(at, bytes)| disk[*at..][..SECTOR_LEN] == *bytes))
}

/// Each set of parts from each earlier moment: among them the log of an earlier epoch, pages and superblocks with valid MACs of
/// their time, and the whole.
#[test]
fn parts_put_back_are_refused_or_a_state_the_disk_had() {
    let (layer, moments, disks) = history();
    let (mut refused, mut older, mut whole, mut cases) = (0, 0, 0, 0);
    let newest = moments.last().unwrap();
    for moment in &moments[..moments.len() - 1] {
        for set in 1u32..1 << PARTS.len() {
            let machine = newest.state.machine();
            let from = moment.state.machine();
            let parts: Vec<usize> = (0..PARTS.len()).filter(|part| set >> part & 1 == 1).collect();
            parts.iter().for_each(|part| put_back(&machine, &from, &layer, *part));
            let names: Vec<_> = parts.iter().map(|part| PARTS[*part]).collect();
            let what = format!("{names:?} of after write {}", moment.writes);
            let spoiled = machine.state();
            for anchor in [None, Some(newest.anchor)] {
                cases += 1;
                let shelf = shelf_on(&spoiled.machine(), Cipher::XtsAes256);
                match Layer::recover(shelf.parts(layer.id()), anchor) {
                    Err(e) => {
                        assert!(matches!(e, LayerError::Corrupted { .. }), "{what}: {e}");
                        refused += 1;
                    }
                    Ok(opened) => {
                        let read = state_read(opened, &disks).unwrap_or_else(|| panic!("{what}: a mixture"));
                        match (read == newest.writes, anchor) {
                            (true, _) => whole += 1,
                            (false, None) => older += 1,
                            (false, Some(_)) => panic!("{what}: older than this machine saw it"),
                        }
                    }
                }
            }
        }
    }
    eprintln!("{cases} cases: {refused} refused, {older} older, {whole} the newest");
    assert!(cases == 2 * 5 * 63 && refused > 100 && older > 10 && whole > 10, "{refused} {older} {whole}");
}
