//! A layer's files by somebody who has its key: superblocks, a whole log, map pages, with their MACs made right again after they
//! were changed. The bytes are those of docs/format.md.

use std::sync::{Arc, OnceLock};

use terrane::crypto::{Cipher, LayerKeys, Secret};
use terrane::ids::LayerId;
use terrane::layer::{Layer, PageCache, Parts, SealedMark, State, Store, Superblock, Walked};
use terrane::units::{ChunkNo, SECTOR_LEN, SectorNo};

use super::input::Input;
use super::store::Memory;

const ID: LayerId = LayerId([7; 16]);
/// Two pages of 1 GiB.
const DISK: u64 = 3 << 29;
const LOG: u64 = 1 << 20;
const HALF: u64 = 16 << 20;
const MAC: usize = 16;

fn keys() -> Arc<LayerKeys> {
    static KEYS: OnceLock<Arc<LayerKeys>> = OnceLock::new();
    let derive = || LayerKeys::derive(Cipher::XtsAes256, &Secret::new(std::array::from_fn(|i| i as u8)));
    KEYS.get_or_init(|| Arc::new(derive().unwrap())).clone()
}

/// The files of a layer.
struct Files {
    data: Arc<Memory>,
    map: Arc<Memory>,
}

impl Files {
    fn fork(&self) -> Self {
        Self { data: Arc::new(self.data.fork()), map: Arc::new(self.map.fork()) }
    }

    fn parts(&self) -> Parts {
        let cache = Arc::new(PageCache::new(64));
        Parts { id: ID, data: self.data.clone(), map: self.map.clone(), keys: keys(), cache, edition: 0 }
    }

    /// Where the superblock of the higher generation lies.
    fn newest(&self) -> u64 {
        let generation = |at: u64| u64::from_le_bytes(self.data.get(at + 32));
        if generation(4096) > generation(0) { 4096 } else { 0 }
    }

    /// Changes the newest superblock.
    fn with_superblock(&self, change: impl FnOnce(&mut [u8])) {
        let at = self.newest();
        let mut bytes = self.data.get::<4096>(at);
        change(&mut bytes[..4096 - MAC]);
        let mac = keys().superblock().mac(&[&bytes[..4096 - MAC]]);
        bytes[4096 - MAC..].copy_from_slice(&mac);
        self.data.write_at(&bytes, at).unwrap();
    }
}

fn write(layer: &Layer, sector: u64, count: u64) {
    let bytes: Vec<u8> = (0..count as usize * SECTOR_LEN).map(|i| (i / 7 + sector as usize) as u8).collect();
    layer.write(SectorNo(sector), &bytes, &[], &|_| Ok(true)).unwrap();
}

/// A layer with a map of four leaves, and on top of that a log with records of each kind.
fn filled() -> Files {
    let files = Files { data: Arc::new(Memory::default()), map: Arc::new(Memory::default()) };
    let layer = Layer::create(files.parts(), DISK).unwrap();
    for sector in [0, 500, 1024, 5000, 300_000] {
        write(&layer, sector, 20);
    }
    layer.discard(SectorNo(502), 3, &|_| Ok(true)).unwrap();
    layer.flush().unwrap();
    layer.checkpoint().unwrap();
    for sector in [3, 510, 300_001, 390_000] {
        write(&layer, sector, 5);
        layer.flush().unwrap();
    }
    layer.discard(SectorNo(1000), 600, &|_| Ok(true)).unwrap();
    write(&layer, 40, 1);
    write(&layer, 42, 3);
    files
}

fn unsealed() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(filled)
}

fn sealed() -> &'static (Files, SealedMark) {
    static FILES: OnceLock<(Files, SealedMark)> = OnceLock::new();
    FILES.get_or_init(|| {
        let files = filled();
        let layer = Layer::recover(files.parts(), None).unwrap();
        layer.lock_for_seal().unwrap().end().unwrap();
        let mark = layer.finish_seal().unwrap();
        (files, mark)
    })
}

/// One superblock, any bytes, under a MAC that fits or not.
pub fn superblock(bytes: &[u8]) {
    let mut input = Input(bytes);
    let files = unsealed();
    let mut block = files.data.get::<4096>(files.newest());
    let fits = input.byte() < 230;
    while !input.is_empty() {
        input.edit(&mut block[..4096 - MAC]);
    }
    if fits {
        let mac = keys().superblock().mac(&[&block[..4096 - MAC]]);
        block[4096 - MAC..].copy_from_slice(&mac);
    }
    if let Ok((parsed, mac)) = Superblock::parse(&block, ID, keys().superblock()) {
        assert_eq!(parsed.to_bytes(ID, keys().superblock()), (block, mac), "what is read is what is written");
    }
}

/// The records of the live half, without the MACs.
fn records(files: &Files) -> Vec<Vec<u8>> {
    let half = u64::from_le_bytes(files.data.get(files.newest() + 80));
    let mut at = LOG + half * HALF;
    let mut found = Vec::new();
    loop {
        let len = u32::from_le_bytes(files.data.get(at + 4)) as usize;
        let head: [u8; 56] = files.data.get(at);
        if &head[..4] != b"TERL" {
            return found;
        }
        let mut bytes = vec![0; len];
        files.data.read_at(&mut bytes, at).unwrap();
        bytes.truncate(len - MAC);
        at += len as u64;
        if head[32] == 2 {
            at = at.next_multiple_of(4096);
        }
        found.push(bytes);
    }
}

/// A record of runs that no writer of ours made.
fn invented(input: &mut Input) -> Vec<u8> {
    let mut bytes = vec![0; 56];
    bytes[..4].copy_from_slice(b"TERL");
    bytes[32] = input.byte() % 6;
    let runs = usize::from(input.byte() % 8);
    bytes[34] = runs as u8;
    let mut tags = 0;
    for _ in 0..runs {
        let state = u64::from(input.byte() % 4);
        let count = input.number();
        for word in [input.number(), state << 62 | input.number() >> 24, count] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        tags += if state == 1 { count.min(1000) as usize } else { 0 };
    }
    (0..tags).for_each(|_| bytes.extend_from_slice(&7u64.to_le_bytes()));
    bytes
}

/// Writes records as a log: numbers, chain and MACs fit, but for what `edits` change before the MAC is made.
fn lay_out(files: &Files, records: Vec<Vec<u8>>, confirmed: Option<u64>, mut edits: Vec<(usize, Vec<u8>)>) {
    let superblock = files.data.get::<4096>(files.newest());
    let word = |at: usize| u64::from_le_bytes(superblock[at..at + 8].try_into().unwrap());
    let (mut half, mut epoch, mut seq) = (word(80) & 1, word(48), word(56));
    let mut chain: [u8; MAC] = superblock[64..80].try_into().unwrap();
    let mut pos = 0;
    for (number, mut bytes) in records.into_iter().enumerate() {
        let len = (bytes.len() + MAC) as u32;
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        bytes[8..16].copy_from_slice(&seq.to_le_bytes());
        bytes[16..24].copy_from_slice(&epoch.to_le_bytes());
        if let Some(confirmed) = confirmed {
            bytes[24..32].copy_from_slice(&confirmed.to_le_bytes());
        }
        bytes[40..56].copy_from_slice(&chain);
        for (_, edit) in edits.iter_mut().filter(|(of, _)| *of == number) {
            Input(edit).edit(&mut bytes);
        }
        let claimed = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
        if (72..=64 << 10).contains(&claimed) {
            bytes.resize(claimed - MAC, 0);
        }
        chain = keys().log().mac(&[&bytes]);
        let kind = bytes[32];
        bytes.extend_from_slice(&chain);
        if pos + bytes.len() as u64 > HALF {
            return;
        }
        files.data.write_at(&bytes, LOG + half * HALF + pos).unwrap();
        pos += bytes.len() as u64;
        seq += 1;
        match kind {
            2 => pos = pos.next_multiple_of(4096),
            4 => (half, pos, epoch) = (1 - half, 0, epoch + 1),
            _ => {}
        }
    }
}

/// A whole log, recovered.
pub fn log(bytes: &[u8]) {
    let mut input = Input(bytes);
    let files = unsealed().fork();
    let mut list = records(&files);
    let mut edits = Vec::new();
    let mut confirmed = None;
    let mut cut = None;
    for _ in 0..32 {
        if input.is_empty() || list.is_empty() {
            break;
        }
        let at = usize::from(input.byte()) % list.len();
        match input.byte() % 10 {
            0..=2 => edits.push((at, input.bytes(16))),
            3 => files.with_superblock(|block| input.edit(block)),
            4 => drop(list.remove(at)),
            5 => list.insert(at, list[at].clone()),
            6 => list.swap(at, 0),
            7 => confirmed = Some(input.number()),
            // Work is in proportion to what a file spans: 256 GiB are a tenth of a second.
            8 => cut = Some(input.number() % (1 << 38)),
            _ => list.insert(at, invented(&mut input)),
        }
    }
    lay_out(&files, list, confirmed, edits);
    if let Some(len) = cut {
        files.data.set_len(len).unwrap();
    }
    if let Ok((layer, _)) = Layer::inspect(files.fork().parts(), None) {
        read_all(&layer);
    }
    if let Ok(layer) = Layer::recover(files.parts(), None) {
        use_all(&layer);
    }
}

/// The page's number of entry `index` of page `n`; none: a leaf has no pages below.
fn below(n: u64, index: u64) -> Option<u64> {
    match n {
        0..128 => Some(128 + n * 512 + index),
        128..65_664 => Some(65_664 + (n - 128) * 512 + index),
        _ => None,
    }
}

fn page_offset(n: u64, reference: u128) -> u64 {
    n * 16_384 + (reference as u64 >> 1 & 1) * 8192
}

/// Makes the reference to a page anew, once those in it are.
fn refer(files: &Files, n: u64, reference: u128, edits: &mut [(u64, Vec<u8>)]) -> u128 {
    let at = page_offset(n, reference);
    let mut page = files.map.get::<8192>(at);
    for (index, slot) in page.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let old = u128::from_le_bytes(*slot);
        if old & 1 == 1
            && let Some(child) = below(n, index as u64)
        {
            *slot = refer(files, child, old, edits).to_le_bytes();
        }
    }
    for (_, edit) in edits.iter_mut().filter(|(of, _)| *of == n) {
        Input(edit).edit(&mut page);
    }
    files.map.write_at(&page, at).unwrap();
    let mac = u128::from_le_bytes(keys().page().mac(&[&page, &n.to_le_bytes()]));
    mac & !3 | 1 | reference & 2
}

/// Numbers of the pages there are.
fn numbers(files: &Files) -> Vec<u64> {
    let mut numbers: Vec<u64> = files.map.pages().iter().map(|page| page / 4).collect();
    numbers.dedup();
    numbers
}

/// Map pages of a sealed layer, and of one that is recovered.
pub fn pages(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (base, mark) = sealed();
    let is_sealed = input.byte() % 2 == 0;
    let files = if is_sealed { base.fork() } else { unsealed().fork() };
    let numbers = numbers(&files);
    let mut edits = Vec::new();
    let mut after = Vec::new();
    for _ in 0..32 {
        if input.is_empty() {
            break;
        }
        match input.byte() % 8 {
            0 => after.push(input.bytes(16)),
            n => {
                let index = usize::from(n) * usize::from(input.byte()) % numbers.len();
                edits.push((numbers[index], input.bytes(16)));
            }
        }
    }
    files.with_superblock(|block| {
        for (root, slot) in block[2032..].as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let old = u128::from_le_bytes(*slot);
            if old & 1 == 1 {
                *slot = refer(&files, root as u64, old, &mut edits).to_le_bytes();
            }
        }
        after.iter().for_each(|edit| Input(edit).edit(block));
    });
    if is_sealed {
        let mac = files.data.get(files.newest() + 4080);
        if let Ok(layer) = Layer::open_sealed(files.parts(), SealedMark { mac, ..*mark }) {
            read_all(&layer);
        }
        if let Ok(layer) = Layer::reopen(files.parts(), DISK) {
            use_all(&layer);
        }
    } else if let Ok(layer) = Layer::recover(files.parts(), None) {
        use_all(&layer);
    }
}

/// Chunks and sectors that are looked at.
const LOOKED_AT: usize = 200;

fn read_all(layer: &Layer) {
    let mut left = LOOKED_AT;
    let mut sectors = Vec::new();
    let _ = layer.walk(&mut |walked| {
        if let Walked::Chunk(chunk, entries) = walked {
            let first = chunk.first_sector().0;
            let of_chunk = entries.iter().zip(first..).filter(|(entry, _)| !entry.is_absent());
            sectors.extend(of_chunk.map(|(entry, sector)| (sector, *entry)).take(20));
        }
        left -= 1;
        left > 0
    });
    for (sector, entry) in sectors.iter().take(LOOKED_AT) {
        if let State::Data(slot) = entry.state() {
            let _ = layer.read_slots(SectorNo(*sector), slot, &[entry.tag()], &mut [0; SECTOR_LEN]);
        }
    }
    for sector in [0, 511, 512, 300_000, layer.sectors().saturating_sub(1)] {
        let _ = layer.entry(SectorNo(sector));
        let _ = layer.records(SectorNo(sector).chunk());
    }
    let _ = layer.next_present(0..layer.sectors().div_ceil(512));
    let _ = layer.is_empty();
    let _ = layer.stored_bytes();
}

fn use_all(layer: &Layer) {
    read_all(layer);
    let hides = |_: ChunkNo| Ok(true);
    for sector in [0, 1, 505, 300_010, layer.sectors().saturating_sub(10)] {
        if sector + 9 < layer.sectors() {
            let _ = layer.write(SectorNo(sector), &[5; 9 * SECTOR_LEN], &[], &hides);
            let _ = layer.discard(SectorNo(sector), 3, &hides);
        }
    }
    let _ = layer.flush();
    let _ = layer.learn_free_slots();
    let _ = layer.checkpoint();
    layer.punch_free();
    if let Ok(mut guard) = layer.lock_for_seal() {
        let _ = guard.end();
    }
    let _ = layer.finish_seal();
    read_all(layer);
}
