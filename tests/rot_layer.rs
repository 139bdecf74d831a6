//! Guards against wrong bytes, panics and needless loss where the disk below returns what was not written: flipped,
//! swapped, stale and zeroed sectors, map pages and superblocks; files cut, extended and put back.
//!
//! Always: the right bytes, or a corruption error for exactly what is concerned.

mod rot_support;

use std::ops::Range;
use std::sync::Arc;

use rot_support::common::Random;
use rot_support::common::sim::{Machine, State};
use rot_support::{Disk, SECTORS, damaged, looked_at, open, shelf_on};
use terrane::ids::LayerId;
use terrane::layer::{Layer, LayerError, Superblock, slot_offset};
use terrane::units::{SECTOR_LEN, SectorNo};
use terrane::volume::LiveVolume;

/// The bytes of a sector's slot.
fn slot_of(layer: &Layer, sector: u64) -> Option<u64> {
    layer.entry(SectorNo(sector)).unwrap().slot().map(slot_offset)
}

fn each_slot_spoiled(disk: &Disk, layer: &Layer) {
    let (state, data) = (disk.machine.state(), disk.file(layer.id(), "data"));
    let stored: Vec<_> = looked_at().into_iter().filter_map(|s| Some((s, slot_of(layer, s)?))).collect();
    assert!(stored.len() >= 48);
    let stale = stale_state(disk, layer).machine();
    for (i, (sector, at)) in stored.iter().enumerate() {
        let (other, other_at) = stored[(i + 1) % stored.len()];
        let of = |machine: &Machine, at: u64| machine.peek(&data, at, SECTOR_LEN);
        type Spoil<'a> = Box<dyn Fn(&Machine) + 'a>;
        let ways: [(&str, Vec<u64>, Spoil); 5] = [
            (
                "flipped",
                vec![*sector],
                Box::new(|m| m.flip(&data, at + (i as u64 * 97) % 4096, 1 << (i % 8))),
            ),
            ("zeroed", vec![*sector], Box::new(|m| m.poke(&data, *at, &[0; SECTOR_LEN]))),
            ("another's", vec![*sector], Box::new(|m| m.poke(&data, *at, &of(m, other_at)))),
            (
                "swapped",
                vec![*sector, other],
                Box::new(|m| {
                    let (a, b) = (of(m, *at), of(m, other_at));
                    m.poke(&data, *at, &b);
                    m.poke(&data, other_at, &a);
                }),
            ),
            ("stale", vec![*sector], Box::new(|m| m.poke(&data, *at, &of(&stale, *at)))),
        ];
        for (how, mut concerned, spoil) in ways {
            let machine = state.machine();
            spoil(&machine);
            let volume = open(&machine).expect("a slot is no reason to refuse a layer");
            concerned.sort_unstable();
            assert_eq!(damaged(&volume.stack(), &disk.content), concerned, "sector {sector} {how}");
        }
    }
}

/// The same sectors, in the same slots, written with other bytes: what a lost write leaves.
fn stale_state(disk: &Disk, layer: &Layer) -> State {
    let machine = disk.machine.state().machine();
    let mut random = Random::new(77);
    for sector in looked_at() {
        if let Some(at) = slot_of(layer, sector) {
            // Sealed by the layer's own key, for this very sector.
            let mut plain = vec![0; SECTOR_LEN];
            random.fill(&mut plain);
            let (mut cipher, mut tags) = (vec![0; SECTOR_LEN], [0]);
            layer.keys().seal_sectors(SectorNo(sector), &plain, &mut cipher, &mut tags);
            machine.poke(&disk.file(layer.id(), "data"), at, &cipher);
        }
    }
    machine.state()
}

#[test]
fn spoiled_slots_of_an_active_layer_are_told() {
    let disk = Disk::filled();
    let layer = disk.volume.active();
    each_slot_spoiled(&disk, &layer);
}

#[test]
fn spoiled_slots_of_a_sealed_layer_are_told() {
    let (disk, layer) = Disk::filled().sealed();
    each_slot_spoiled(&disk, &layer);
}

/// (file offset of the place, chunks it covers)
fn page_places() -> Vec<(u64, Range<u64>)> {
    let pages = [(0, 0..3), (128, 0..3), (65664, 0..1), (65665, 1..2), (65666, 2..3)];
    pages.into_iter().flat_map(|(n, c)| [(n << 14, c.clone()), ((n << 14) + 8192, c)]).collect()
}

/// `above`: the sectors that a layer above holds.
fn each_page_spoiled(state: &State, content: &[u8], layer: LayerId, above: &[u64]) {
    let map = format!("{layer}.map");
    let (mut told, mut harmless) = (0, 0);
    for (i, (at, chunks)) in page_places().into_iter().enumerate() {
        let neighbour = at ^ 8192;
        for way in 0..4 {
            let machine = state.machine();
            let page = machine.peek(&map, at, 8192);
            match way {
                0 => machine.flip(&map, at + (i as u64 * 1237) % 8192, 4),
                1 => machine.poke(&map, at, &[0; 8192]),
                // What was vouched for once, at the same number.
                2 => machine.poke(&map, at, &machine.peek(&map, neighbour, 8192)),
                _ => machine.poke(&map, at, &machine.peek(&map, page_places()[(i + 2) % 10].0, 8192)),
            }
            let Some(volume) = open(&machine) else { panic!("a page is no reason to refuse a layer") };
            let bad = damaged(&volume.stack(), content);
            assert!(bad.iter().all(|s| chunks.contains(&(s / 512))), "page at {at}, way {way}: {bad:?}");
            if bad.is_empty() {
                harmless += 1;
                continue;
            }
            told += 1;
            let of_span = |s: &u64| chunks.contains(&(s / 512)) && !above.contains(s);
            let whole: Vec<_> = looked_at().into_iter().filter(of_span).collect();
            assert_eq!(bad, whole, "page at {at}, way {way}: all of its span is told");
            goes_on_beside(&machine, volume, content, &chunks, &map, at, &page);
        }
    }
    assert!(told >= 20 && harmless > 0, "{told} told, {harmless} in the place not in use");
}

/// The rest of the disk takes writes; a damaged page that turns up again, older than what was written meanwhile, never
/// brings wrong bytes.
fn goes_on_beside(
    machine: &Arc<Machine>,
    volume: LiveVolume,
    content: &[u8],
    chunks: &Range<u64>,
    map: &str,
    at: u64,
    page: &[u8],
) {
    let Some(free) = (0..3).find(|c| !chunks.contains(c)) else { return };
    let mut content = content.to_vec();
    let offset = (free * 512 + 8) as usize * SECTOR_LEN;
    content[offset..offset + SECTOR_LEN].fill(0x5a);
    volume.write(offset as u64, &[0x5a; SECTOR_LEN]).unwrap();
    volume.flush().unwrap();
    volume.active().checkpoint().unwrap();
    damaged(&volume.stack(), &content);
    drop(volume);
    machine.poke(map, at, page);
    let volume = open(machine).unwrap();
    damaged(&volume.stack(), &content);
}

#[test]
fn spoiled_map_pages_are_told_and_spoil_nothing_beside() {
    let disk = Disk::filled();
    let layer = disk.volume.active().id();
    each_page_spoiled(&disk.machine.state(), &disk.content, layer, &[]);
    let (disk, layer) = Disk::filled().sealed();
    each_page_spoiled(&disk.machine.state(), &disk.content, layer.id(), &[19]);
}

/// A damaged page below records of the log: the layer opens, and the page's older self is not believed afterwards.
#[test]
fn a_damaged_page_under_the_log_costs_its_span_only() {
    let mut disk = Disk::filled();
    disk.write(2..4);
    disk.write(1026..1027);
    disk.volume.flush().unwrap();
    let map = disk.file(disk.volume.active().id(), "map");
    let state = disk.machine.state();
    for (at, chunks) in page_places() {
        let machine = state.machine();
        let page = machine.peek(&map, at, 8192);
        machine.flip(&map, at + 777, 1);
        let volume = open(&machine).expect("a page is no reason to refuse a layer");
        let bad = damaged(&volume.stack(), &disk.content);
        assert!(bad.iter().all(|s| chunks.contains(&(s / 512))), "page at {at}: {bad:?}");
        machine.poke(&map, at, &page);
        let again = open(&machine).unwrap();
        damaged(&again.stack(), &disk.content);
    }
}

#[test]
fn flipped_superblocks_are_refused_or_not_needed() {
    for (sealed, clean) in [(false, false), (false, true), (true, false)] {
        let (disk, layer) = match sealed {
            true => {
                let (disk, layer) = Disk::filled().sealed();
                (disk, layer.id())
            }
            false => {
                let mut disk = Disk::filled();
                disk.write(5..9);
                disk.volume.flush().unwrap();
                if clean {
                    disk.volume.active().close().unwrap();
                }
                let layer = disk.volume.active().id();
                (disk, layer)
            }
        };
        let (state, data) = (disk.machine.state(), disk.file(layer, "data"));
        let mut opened = 0;
        for at in (0..8192u64).step_by(61) {
            let machine = state.machine();
            machine.flip(&data, at, 16);
            if let Some(volume) = open(&machine) {
                assert_eq!(damaged(&volume.stack(), &disk.content), Vec::<u64>::new());
                opened += 1;
            }
            machine.flip(&data, at ^ 4096, 16);
            assert!(open(&machine).is_none() || opened > 0, "both superblocks are damaged");
        }
        let machine = state.machine();
        machine.flip(&data, 100, 1);
        machine.flip(&data, 5000, 1);
        assert!(open(&machine).is_none(), "both superblocks are damaged");
        // One of the two is needed, and of a sealed layer the other is not.
        assert!(opened > 0, "sealed {sealed}, clean {clean}");
    }
}

#[test]
fn files_cut_short_or_too_long_are_told() {
    for sealed in [false, true] {
        let (disk, layer) = match sealed {
            true => Disk::filled().sealed(),
            false => {
                let mut disk = Disk::filled();
                disk.write(10..12);
                disk.volume.flush().unwrap();
                let layer = disk.volume.active();
                (disk, layer)
            }
        };
        let state = disk.machine.state();
        for file in ["data", "map"] {
            let name = disk.file(layer.id(), file);
            let len = disk.machine.len(&name);
            let lens = [0, 1, 4096, 8192, 1 << 20, 3 << 20, (64 << 20) - 1, 64 << 20, (64 << 20) + 40_000];
            for new in lens.into_iter().chain([len / 2, len - 4096, len - 1, len + 1, len + (5 << 20)]) {
                let machine = state.machine();
                machine.poke_len(&name, new);
                if let Some(volume) = open(&machine) {
                    let bad = damaged(&volume.stack(), &disk.content);
                    assert!(new < len || bad.is_empty(), "{file} of {new} bytes: {bad:?}");
                } else {
                    assert!(new < len, "{file} of {new} bytes instead of {len} refused");
                }
            }
        }
    }
}

/// Rule 15: data and map of an earlier moment, put back together, fit each other and no longer the catalog.
#[test]
fn a_sealed_layer_put_back_is_refused() {
    let disk = Disk::filled();
    let active = disk.volume.active();
    let unsealed = disk.machine.state();
    disk.shelf.seal(&disk.volume).unwrap();
    let ended = disk.machine.state();
    disk.shelf.finish_seals(&disk.volume).unwrap();
    let state = disk.machine.state();
    assert!(open(&state.machine()).is_some());
    let prefix = active.id().to_string();
    for older in [&unsealed, &ended] {
        let mut state = state.clone();
        state.put_back(older, &prefix, &prefix);
        let refused = shelf_on(&state.machine()).open().err().expect("an older state is refused");
        assert!(matches!(refused, LayerError::Corrupted { .. }), "{refused}");
    }
    // Nor is another layer's.
    let mut swapped = state.clone();
    swapped.put_back(&state, &disk.volume.active().id().to_string(), &prefix);
    assert!(open(&swapped.machine()).is_none());
}

/// A layer of the bytes of a key holder: pages and superblocks whose every MAC is right, and what they say is not.
struct Crafted<'a> {
    machine: Arc<Machine>,
    layer: &'a Layer,
}

/// Pages on the way to the first chunk: the root, 1 GiB, the leaf.
const WAY: [u64; 3] = [0, 128, 65664];

impl Crafted<'_> {
    fn superblock(&self) -> Superblock {
        let data = format!("{}.data", self.layer.id());
        let parse = |at: u64| {
            let bytes = self.machine.peek(&data, at, 4096).try_into().unwrap();
            Superblock::parse(&bytes, self.layer.id(), self.layer.keys().superblock()).unwrap().0
        };
        let (a, b) = (parse(0), parse(4096));
        if a.generation > b.generation { a } else { b }
    }

    fn put_superblock(&self, sb: &Superblock) {
        let (bytes, _) = sb.to_bytes(self.layer.id(), self.layer.keys().superblock());
        self.machine.poke(&format!("{}.data", self.layer.id()), Superblock::offset(sb.generation), &bytes);
    }

    /// Changes the entry of a sector of the first chunk: its slot becomes what `slot` makes of it.
    fn put_slot(&self, sector: usize, slot: impl Fn(&[u8]) -> u64) {
        let (map, mut sb) = (format!("{}.map", self.layer.id()), self.superblock());
        let mut page_ref = sb.top[0].0;
        let mut pages = Vec::new();
        for n in WAY {
            let at = (n << 14) + ((page_ref as u64 >> 1 & 1) << 13);
            let page = self.machine.peek(&map, at, 8192);
            let below = u128::from_le_bytes(page[..16].try_into().unwrap());
            pages.push((n, at, page_ref, page));
            page_ref = below;
        }
        let leaf = &mut pages.last_mut().unwrap().3;
        let place = 1 << 62 | slot(leaf);
        leaf[sector * 16 + 8..][..8].copy_from_slice(&place.to_le_bytes());
        let mut below = None;
        for (n, at, old, mut page) in pages.into_iter().rev() {
            if let Some(below) = below {
                page[..16].copy_from_slice(&u128::to_le_bytes(below));
            }
            self.machine.poke(&map, at, &page);
            let mac = u128::from_le_bytes(self.layer.keys().page().mac(&[&page, &n.to_le_bytes()]));
            below = Some(mac & !3 | old & 3);
        }
        sb.top[0].0 = below.unwrap();
        self.put_superblock(&sb);
    }
}

fn slot_in(leaf: &[u8], sector: usize) -> u64 {
    u64::from_le_bytes(leaf[sector * 16 + 8..][..8].try_into().unwrap()) & ((1 << 40) - 1)
}

/// Uses all of a disk; whether it told of damage.
fn use_up(volume: &LiveVolume, learn: bool) -> bool {
    let active = volume.active();
    let mut told = false;
    let mut tell = |done: Result<(), LayerError>| match done {
        Ok(()) => {}
        Err(e) => {
            assert!(matches!(e, LayerError::Corrupted { .. } | LayerError::Latched), "{e}");
            told |= e.is_corruption();
        }
    };
    if learn {
        tell(active.learn_free_slots());
    }
    for round in 0..4u8 {
        for sector in 0..16 {
            let done = volume.write(sector * 4096, &[round + 1; 4096]);
            assert!(done.is_ok() || active.is_latched(), "{done:?}");
        }
        tell(active.flush());
        tell(active.settle());
        active.punch_free();
    }
    tell(active.checkpoint());
    told
}

#[test]
fn a_map_that_names_a_slot_twice_or_one_never_used_is_told() {
    type Slot = fn(&[u8]) -> u64;
    let ways: [(&str, Slot); 4] = [
        ("another's", |leaf| slot_in(leaf, 9)),
        ("just past the last", |leaf| (0..512).map(|i| slot_in(leaf, i)).max().unwrap() + 10_000),
        ("of 2^39", |_| 1 << 39),
        ("the largest", |_| (1 << 40) - 1),
    ];
    for (how, slot) in ways {
        for learn in [true, false] {
            let disk = Disk::filled();
            disk.volume.active().close().unwrap();
            let layer = disk.volume.active();
            let crafted = Crafted { machine: disk.machine.state().machine(), layer: &layer };
            crafted.put_slot(5, slot);
            let volume = open(&crafted.machine).expect("no page is read at an opening");
            assert_eq!(damaged(&volume.stack(), &disk.content), [5], "{how}");
            // Without the pass no slot of before is free, so that one named twice is never used again.
            assert!(use_up(&volume, learn) || !learn && how == "another's", "{how}: {learn}");
            drop(volume);
            assert!(open(&crafted.machine).is_some());
        }
    }
}

#[test]
fn a_superblock_that_counts_slots_no_file_holds_is_refused() {
    let disk = Disk::filled();
    disk.volume.active().close().unwrap();
    let layer = disk.volume.active();
    let crafted = Crafted { machine: disk.machine.state().machine(), layer: &layer };
    let sound = crafted.superblock();
    for slots_high in [(1 << 40) - 1, 1 << 39, 1 << 30, 2 << 20] {
        crafted.put_superblock(&Superblock { slots_high, ..sound.clone() });
        let refused = shelf_on(&crafted.machine).open().err().expect("more than the file holds");
        assert!(refused.is_corruption() && refused.to_string().contains("number of slots"), "{refused}");
    }
    // What was taken and not written counts too.
    crafted.put_superblock(&Superblock { slots_high: sound.slots_high + 70_000, ..sound.clone() });
    assert!(open(&crafted.machine).is_some());
    crafted.put_superblock(&Superblock { data_sectors: u64::MAX, generation: sound.generation + 2, ..sound });
    let volume = open(&crafted.machine).unwrap();
    volume.write(1 << 20, &[1; 4096]).unwrap();
    assert!(volume.active().data_sectors() <= SECTORS + 1, "a count that was not believed");
}
