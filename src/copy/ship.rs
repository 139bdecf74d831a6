//! The pipeline: ciphertext of the source is read, checked and decrypted, then encrypted and written to a layer of the
//! target, by as many workers as keep the processors busy, a chunk at a time.
//!
//! Plaintext lies in each worker's one buffer, which zeroes itself; what the target's writing keeps is ciphertext.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::difference::{Carried, Chunk, Difference};
use super::error::{CopyError, Result};
use super::pace::Pace;
use crate::crypto::ProofKey;
use crate::layer::{Entry, Layer, LayerError, State};
use crate::units::{
    CHUNK_BYTES, CHUNK_SECTORS, ChunkNo, REQUEST_BYTES_MAX, SECTOR_BYTES, SECTOR_LEN, SectorNo,
    VOLUME_BYTES_MAX,
};
use crate::volume::{VolumeError, recorded};

/// Chunks that are planned ahead of the workers.
const AHEAD: usize = 8;
/// More workers than this only compete for the memory's bandwidth.
const WORKERS_MAX: usize = 8;
/// How often the watcher is asked.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

struct Job {
    chunk: ChunkNo,
    carried: Box<Chunk>,
    /// Nothing of it was there from an earlier process.
    is_whole: bool,
}

/// What the sectors that were read are known by, a chunk: the XOR of their words. Of chunks that this process carried whole.
pub type Words = Mutex<HashMap<u64, u128>>;

/// Bytes of the source that crossed to the target, in all processes that made a copy: what an earlier one lost is counted twice, as
/// far as it said how far it was.
#[derive(Default)]
pub struct Crossed {
    /// As the row said when this process took it up.
    before: u64,
    /// Found at the target from before.
    found: AtomicU64,
    /// In this process.
    now: AtomicU64,
}

impl Crossed {
    /// Of a copy that is taken up, whose row says so much of it: more than any disk has is not believed.
    pub fn since(before: u64) -> Self {
        Self { before: before.min(VOLUME_BYTES_MAX), ..Self::default() }
    }

    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.now.load(Ordering::Relaxed) + self.found.load(Ordering::Relaxed).max(self.before)
    }

    /// The layer was whole already: nothing is left to cross.
    pub fn all_was_there(&self, bytes: u64) {
        self.found.store(bytes, Ordering::Relaxed);
    }
}

/// Where to, and how.
pub struct Link<'a> {
    /// The layer that is filled.
    pub target: &'a Layer,
    /// What errors name.
    pub names: &'a Names,
    /// Counts what crosses.
    pub crossed: &'a Crossed,
    /// How fast sectors of the source may cross.
    pub pace: Option<&'a Pace>,
    /// By which their content is known.
    pub proof_key: &'a ProofKey,
    /// Told what was read.
    pub words: &'a Words,
}

/// What workers share.
struct Shared<'a> {
    difference: &'a Difference,
    link: &'a Link<'a>,
    stop: AtomicBool,
    first_error: Mutex<Option<CopyError>>,
}

/// What errors name.
pub struct Names {
    /// The source region.
    pub source_region: String,
    /// The snapshot that is read.
    pub snapshot: String,
    /// The target region.
    pub target_region: String,
}

impl Shared<'_> {
    fn fail(&self, error: CopyError) {
        self.first_error.lock().get_or_insert(error);
        self.stop.store(true, Ordering::Release);
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// Writes to the target all that `difference` carries and it lacks. `watch` is asked all the while, on this thread, and ends it
/// by an error. Nothing is durable before the target is flushed.
pub fn ship(difference: &Difference, link: &Link, mut watch: impl FnMut() -> Result<()>) -> Result<()> {
    let (stop, first_error) = (AtomicBool::new(false), Mutex::new(None));
    let shared = Shared { difference, link, stop, first_error };
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, WORKERS_MAX);
    std::thread::scope(|scope| {
        let (jobs_in, jobs) = bounded::<Job>(AHEAD);
        // Closed when every worker has ended.
        let (alive, ended) = bounded::<()>(0);
        for _ in 0..workers {
            let (jobs, alive, shared) = (jobs.clone(), alive.clone(), &shared);
            scope.spawn(move || {
                let _alive = alive;
                if let Err(e) = work(shared, &jobs) {
                    shared.fail(e);
                }
            });
        }
        drop((jobs, alive));
        let shared = &shared;
        scope.spawn(move || {
            if let Err(e) = feed(shared, &jobs_in) {
                shared.fail(e);
            }
        });
        while ended.recv_timeout(WATCH_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            // The disk works from the first moment on, so that the flush at the end finds little to do.
            shared.link.target.begin_write_back();
            if !shared.is_stopped()
                && let Err(e) = watch()
            {
                shared.fail(e);
            }
        }
    });
    match shared.first_error.into_inner() {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

fn feed(shared: &Shared, jobs: &Sender<Job>) -> Result<()> {
    let mut at = 0;
    while let Some(chunk) = shared.difference.next(at)? {
        let mut carried = Box::new([Carried::Nothing; CHUNK_SECTORS as usize]);
        let mut any = shared.difference.chunk(chunk, &mut carried)?;
        let mut is_whole = true;
        if let Some(there) = recorded(shared.link.target, chunk)? {
            is_whole = !leave_out(shared, chunk, &mut carried, &there);
            any = carried.iter().any(|c| *c != Carried::Nothing);
        }
        // A closed channel: the workers have ended, and said why.
        if shared.is_stopped() || any && jobs.send(Job { chunk, carried, is_whole }).is_err() {
            return Ok(());
        }
        at = chunk.0 + 1;
    }
    Ok(())
}

/// Leaves out what the target has from an earlier process, and reads well; whether it has anything.
fn leave_out(
    shared: &Shared,
    chunk: ChunkNo,
    carried: &mut Chunk,
    there: &[Entry; CHUNK_SECTORS as usize],
) -> bool {
    let mut cipher = [0; SECTOR_LEN];
    let (mut any, mut found) = (false, 0);
    for (i, (carried, entry)) in carried.iter_mut().zip(there).enumerate() {
        let sector = SectorNo(chunk.first_sector().0 + i as u64);
        let is_there = match (&carried, entry.state()) {
            (Carried::Nothing, _) => continue,
            (Carried::Zero, state) => state == State::Zero,
            // It may have waited for long.
            (Carried::Data { .. }, State::Data(slot)) => {
                shared.link.target.read_cipher(sector, slot, &[entry.tag()], &mut cipher).is_ok()
            }
            (Carried::Data { .. }, _) => false,
        };
        if is_there {
            any = true;
            found += u64::from(is_of_source(shared, carried));
            *carried = Carried::Nothing;
        }
    }
    shared.link.crossed.found.fetch_add(found * SECTOR_BYTES, Ordering::Relaxed);
    any
}

fn work(shared: &Shared, jobs: &Receiver<Job>) -> Result<()> {
    let mut plain = Zeroizing::new(vec![0; CHUNK_BYTES as usize]);
    let mut tags = Vec::with_capacity(CHUNK_SECTORS as usize);
    for job in jobs {
        if shared.is_stopped() {
            return Ok(());
        }
        let of_source = job.carried.iter().filter(|c| is_of_source(shared, c)).count() as u64;
        if !shared.link.pace.is_none_or(|pace| pace.claim(of_source * SECTOR_BYTES, || shared.is_stopped())) {
            return Ok(());
        }
        let (difference, names) = (shared.difference, shared.link.names);
        let instead = read_chunk(difference, names, job.chunk, &job.carried, &mut plain, &mut tags)?;
        if job.is_whole {
            let words = words_of(shared.link.proof_key, job.chunk, &job.carried, &plain);
            shared.link.words.lock().insert(job.chunk.0, words);
        }
        write_chunk(shared, &job, &plain)
            .map_err(|e| CopyError::of_target(e, &shared.link.names.target_region))?;
        shared.link.crossed.now.fetch_add((of_source + instead) * SECTOR_BYTES, Ordering::Relaxed);
        // Both log halves full would stop every worker; this way only one of them is busy with the map.
        if shared.link.target.needs_checkpoint() {
            let done = shared.link.target.checkpoint_closed();
            done.map_err(|e| CopyError::of_target(e, &shared.link.names.target_region))?;
        }
    }
    Ok(())
}

fn is_of_source(shared: &Shared, carried: &Carried) -> bool {
    matches!(carried, Carried::Data { layer, .. } if !shared.difference.is_of_base(*layer))
}

/// Reads, checks and decrypts what a chunk carries into its place in `plain`; runs of slots by one read each. How many sectors
/// that are damaged in the base were read from the source instead.
pub(super) fn read_chunk(
    difference: &Difference,
    names: &Names,
    chunk: ChunkNo,
    carried: &Chunk,
    plain: &mut [u8],
    tags: &mut Vec<u64>,
) -> Result<u64> {
    let mut instead = 0;
    let mut at = 0;
    for run in carried.chunk_by(is_next_slot) {
        let index = at;
        at += run.len();
        let Carried::Data { layer, slot, .. } = run[0] else { continue };
        tags.clear();
        tags.extend(run.iter().map(|c| if let Carried::Data { tag, .. } = c { *tag } else { 0 }));
        let first = SectorNo(chunk.first_sector().0 + index as u64);
        let is_of_base = difference.is_of_base(layer);
        let layer = difference.layer(layer);
        let into = &mut plain[index * SECTOR_LEN..][..run.len() * SECTOR_LEN];
        let damaged = |sector, layer| CopyError::Damaged {
            sector,
            layer,
            snapshot: names.snapshot.clone(),
            region: names.source_region.clone(),
        };
        match layer.read_slots(first, slot, tags, into) {
            Ok(()) => {}
            // The source has all of it.
            Err(_) if is_of_base => {
                tracing::warn!(layer = %layer.id(), sector = first.0, "a base is damaged: what it lacks is shipped");
                difference.source().read_sectors(first, into).map_err(|e| match e {
                    VolumeError::DamagedSector { sector, layer } => damaged(sector, layer),
                    other => other.into(),
                })?;
                instead += run.len() as u64;
            }
            Err(Err(error)) => return Err(error.into()),
            Err(Ok(bad)) => return Err(damaged(SectorNo(first.0 + bad as u64), layer.id())),
        }
    }
    Ok(instead)
}

/// What the data that a chunk carries is known by, once it lies in its place.
pub(super) fn words_of(key: &ProofKey, chunk: ChunkNo, carried: &Chunk, plain: &[u8]) -> u128 {
    let mut at = 0;
    let mut words = 0;
    for run in carried.chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b)) {
        let index = at;
        at += run.len();
        if let Carried::Data { .. } = run[0] {
            let bytes = &plain[index * SECTOR_LEN..][..run.len() * SECTOR_LEN];
            words ^= key.words(SectorNo(chunk.first_sector().0 + index as u64), bytes);
        }
    }
    words
}

/// Encrypts and writes what a chunk carries: neighbouring sectors by one request, of at most 1 MiB.
fn write_chunk(shared: &Shared, job: &Job, plain: &[u8]) -> Result<(), LayerError> {
    let hides = |chunk: ChunkNo| {
        shared.difference.hides(chunk).map_err(|e| match e {
            VolumeError::Layer(e) => e,
            other => LayerError::corrupted("the base's map", "entries", other.to_string()),
        })
    };
    let mut at = 0;
    for run in job.carried.chunk_by(|a, b| std::mem::discriminant(a) == std::mem::discriminant(b)) {
        let index = at;
        at += run.len();
        let first = job.chunk.first_sector().0 + index as u64;
        match run[0] {
            Carried::Nothing => {}
            Carried::Zero => shared.link.target.discard(SectorNo(first), run.len() as u64, &hides)?,
            Carried::Data { .. } => {
                let bytes = &plain[index * SECTOR_LEN..][..run.len() * SECTOR_LEN];
                for (i, piece) in bytes.chunks(REQUEST_BYTES_MAX as usize).enumerate() {
                    let sector = first + i as u64 * (REQUEST_BYTES_MAX / SECTOR_BYTES);
                    shared.link.target.write(SectorNo(sector), piece, &[], &hides)?;
                }
            }
        }
    }
    Ok(())
}

fn is_next_slot(a: &Carried, b: &Carried) -> bool {
    match (a, b) {
        (Carried::Data { layer: l, slot: s, .. }, Carried::Data { layer: m, slot: t, .. }) => {
            l == m && s.0 + 1 == t.0
        }
        (a, b) => {
            std::mem::discriminant(a) == std::mem::discriminant(b) && !matches!(a, Carried::Data { .. })
        }
    }
}
