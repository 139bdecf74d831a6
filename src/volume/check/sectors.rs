//! All pages and sectors of one layer: pages are walked by one thread, sectors read and checked by a few.
//!
//! Sectors are gathered over many chunks and then read in the order of their slots, up to 1 MiB at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use super::{CheckWatch, Finding, Findings};
use crate::layer::{Layer, Walked};
use crate::sys::page_buffer::PageBuffer;
use crate::units::{CHUNK_SECTORS, ChunkNo, SECTOR_BYTES, SECTOR_LEN, SectorNo, SlotNo};
use crate::volume::pace::Pace;
use crate::volume::places::recorded;

/// Threads that read and check.
const WORKERS_MAX: usize = 4;
/// Sectors gathered before they are put into the order of their slots: 64 MiB.
const GATHERED_MAX: usize = 16 << 10;
/// Slots read at once: 1 MiB.
const PIECE_SLOTS: u64 = 256;
/// Slots between two wanted ones that are read with them.
const GAP_SLOTS: u64 = 8;
/// How often progress is told, and signals are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// A sector whose entry has changed this often while it was checked is taken for damaged.
const CHANGED_MAX: usize = 100;

/// A layer, and the layers above it whose sectors hide its own from whom the check is for.
pub(super) struct Target {
    pub layer: Arc<Layer>,
    pub above: Vec<Arc<Layer>>,
}

/// A sector that is to be checked.
#[derive(Clone, Copy)]
struct Wanted {
    sector: u64,
    slot: u64,
    tag: u64,
}

/// Bytes of a whole check, over all its layers.
pub(super) struct Meter {
    pace: Option<Pace>,
    done: AtomicU64,
    total: AtomicU64,
}

impl Meter {
    pub fn new(total: u64, max_rate: Option<u64>) -> Self {
        Self { pace: max_rate.map(Pace::new), done: AtomicU64::new(0), total: AtomicU64::new(total) }
    }

    /// Bytes read.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Tells the watcher.
    pub fn tell(&self, watch: &mut CheckWatch) {
        let done = self.done();
        (watch.progress)(done, self.total.load(Ordering::Relaxed).max(done));
    }

    /// There is so much to read, and not so much.
    pub fn recount(&self, not: u64, but: u64) {
        let _ = self.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |total| {
            Some(total.saturating_sub(not).saturating_add(but))
        });
    }

    /// Waits until so many bytes more may be read; false: the check was told to end.
    fn claim(&self, bytes: u64, is_cancelled: &dyn Fn() -> bool) -> bool {
        self.pace.as_ref().map_or(!is_cancelled(), |pace| pace.claim(bytes, is_cancelled))
    }
}

/// Checks all of a layer, as the device holds it: what is cached may be whole where that is not. What is found when it was told to
/// end is not all there is.
pub(super) fn check_layer(target: &Target, meter: &Meter, watch: &mut CheckWatch) -> Findings {
    let mut findings = Findings::default();
    if let Err(error) = target.layer.forget_cached() {
        findings.add(Finding { layer: target.layer.id(), sector: None, what: error.to_string() });
    }
    let findings = Mutex::new(findings);
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, WORKERS_MAX));
    let cancel = watch.cancel;
    let is_cancelled = || cancel.load(Ordering::Relaxed);
    let (pieces, to_check) = bounded::<Vec<Wanted>>(4 * threads);
    let (alive, ended) = bounded::<()>(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (to_check, alive, findings) = (to_check.clone(), alive.clone(), &findings);
            scope.spawn(move || {
                let _alive = alive;
                let mut buffer = PageBuffer::new(PIECE_SLOTS as usize * SECTOR_LEN);
                for piece in &to_check {
                    let bytes = piece.len() as u64 * SECTOR_BYTES;
                    if meter.claim(bytes, &is_cancelled) {
                        check_piece(&target.layer, &piece, &mut buffer, findings);
                        meter.done.fetch_add(bytes, Ordering::Relaxed);
                    }
                }
            });
        }
        drop((to_check, alive));
        gather(target, &findings, meter, watch, pieces);
        wait(&ended, meter, watch);
    });
    findings.into_inner()
}

fn wait(ended: &Receiver<()>, meter: &Meter, watch: &mut CheckWatch) {
    while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        meter.tell(watch);
    }
    meter.tell(watch);
}

/// Walks the pages, and hands the sectors on.
fn gather(
    target: &Target,
    findings: &Mutex<Findings>,
    meter: &Meter,
    watch: &mut CheckWatch,
    pieces: Sender<Vec<Wanted>>,
) {
    let layer = &*target.layer;
    let mut wanted = Vec::with_capacity(GATHERED_MAX + CHUNK_SECTORS as usize);
    let walked = layer.walk(&mut |found| {
        match found {
            Walked::Lost(chunks, error) => {
                let (first, end) = (chunks.start * CHUNK_SECTORS, chunks.end * CHUNK_SECTORS);
                let end = end.min(layer.sectors());
                let what = format!("sectors {first} to {} can't be read: {error}", end.saturating_sub(1));
                findings.lock().add(Finding { layer: layer.id(), sector: None, what });
            }
            Walked::Chunk(chunk, entries) => {
                let hidden = hidden(target, chunk);
                let before = wanted.len();
                let sectors = (chunk.first_sector().0..).zip(entries);
                wanted.extend(sectors.zip(hidden).filter(|(_, hidden)| !hidden).filter_map(
                    |((sector, entry), _)| {
                        entry.slot().map(|slot| Wanted { sector, slot: slot.0, tag: entry.tag() })
                    },
                ));
                let recorded = entries.iter().filter(|e| e.slot().is_some()).count();
                let left_out = (recorded - (wanted.len() - before)) as u64 * SECTOR_BYTES;
                meter.recount(left_out, 0);
            }
        }
        wanted.len() < GATHERED_MAX || hand_on(&mut wanted, meter, watch, &pieces)
    });
    if let Err(error) = walked {
        findings.lock().add(Finding { layer: layer.id(), sector: None, what: error.to_string() });
    }
    hand_on(&mut wanted, meter, watch, &pieces);
}

/// Which sectors of a chunk are hidden by a layer above. Where such a layer can't tell, it hides nothing.
fn hidden(target: &Target, chunk: ChunkNo) -> [bool; CHUNK_SECTORS as usize] {
    let mut hidden = [false; CHUNK_SECTORS as usize];
    for above in &target.above {
        if let Ok(Some(entries)) = recorded(above, chunk) {
            hidden.iter_mut().zip(&entries).for_each(|(hidden, entry)| *hidden |= !entry.is_absent());
        }
    }
    hidden
}

/// Cuts what was gathered into pieces for the workers; false: the check was told to end.
fn hand_on(
    wanted: &mut Vec<Wanted>,
    meter: &Meter,
    watch: &mut CheckWatch,
    pieces: &Sender<Vec<Wanted>>,
) -> bool {
    wanted.sort_unstable_by_key(|w| w.slot);
    let mut rest = wanted.as_slice();
    while let Some(first) = rest.first() {
        let near = |i: &usize| {
            let (before, here) = (rest[i - 1].slot, rest[*i].slot);
            here - before <= GAP_SLOTS && here - first.slot < PIECE_SLOTS
        };
        let len = 1 + (1..rest.len()).take_while(near).count();
        let (piece, others) = rest.split_at(len);
        let mut piece = piece.to_vec();
        while let Err(SendTimeoutError::Timeout(again)) = pieces.send_timeout(piece, LOOK) {
            meter.tell(watch);
            piece = again;
        }
        if watch.cancel.load(Ordering::Relaxed) {
            wanted.clear();
            return false;
        }
        rest = others;
    }
    wanted.clear();
    meter.tell(watch);
    true
}

/// Checks sectors whose slots lie close together.
fn check_piece(layer: &Layer, piece: &[Wanted], buffer: &mut [u8], findings: &Mutex<Findings>) {
    let (Some(first), Some(last)) = (piece.first(), piece.last()) else { return };
    let buffer = &mut buffer[..(last.slot - first.slot + 1) as usize * SECTOR_LEN];
    let read = layer.read_unchecked(SlotNo(first.slot), buffer);
    for wanted in piece {
        let at = (wanted.slot - first.slot) as usize * SECTOR_LEN;
        let sector = SectorNo(wanted.sector);
        if read.is_ok() && layer.fits(sector, &buffer[at..][..SECTOR_LEN], wanted.tag) {
            continue;
        }
        if let Err(what) = check_again(layer, *wanted) {
            findings.lock().add(Finding { layer: layer.id(), sector: Some(wanted.sector), what });
        }
    }
}

/// A fold may have given the sector another slot, and the slot to another sector: only while its entry stays the same is
/// a bad tag damage.
fn check_again(layer: &Layer, mut wanted: Wanted) -> Result<(), String> {
    let sector = SectorNo(wanted.sector);
    let mut bytes = [0; SECTOR_LEN];
    for _ in 0..CHANGED_MAX {
        let read = layer.read_unchecked(SlotNo(wanted.slot), &mut bytes);
        if read.is_ok() && layer.fits(sector, &bytes, wanted.tag) {
            return Ok(());
        }
        let now = layer.newest_entry(sector).map_err(|e| e.to_string())?;
        let Some(slot) = now.slot() else { return Ok(()) };
        if (slot.0, now.tag()) == (wanted.slot, wanted.tag) {
            read.map_err(|e| format!("it can't be read: {e}"))?;
            break;
        }
        wanted = Wanted { slot: slot.0, tag: now.tag(), ..wanted };
    }
    Err("its bytes do not match its tag".into())
}
