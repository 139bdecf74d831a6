//! A volume as a process has it live: its disk, its next layer, the seals not finished, who has it open, and its keeper.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use super::error::{Result, VolumeError};
use super::live::LiveVolume;
use crate::catalog::Layer as LayerRow;
use crate::ids::LayerId;
use crate::layer::{Layer, LayerError, UNFLUSHED_MAX};
use crate::sys::process;

/// What is answered is durable after this long, flushed or not (rule 6): `sync(2)` never reaches the mount.
const FLUSH_AFTER: Duration = Duration::from_secs(5);
/// The keeper looks at a busy volume after so many bytes or requests.
const POKE_BYTES: u64 = 8 << 20;
const POKE_REQUESTS: u64 = 2 << 10;

/// A volume, live.
pub struct OpenVolume {
    /// Its disk.
    pub disk: LiveVolume,
    /// The layer that stands ready, and its row.
    pub next: Mutex<Option<(LayerRow, Arc<Layer>)>>,
    /// Ended layers whose seal is not finished.
    pub sealing: Mutex<Vec<Arc<Layer>>>,
    /// Held while seals are finished, in the order in which they ended.
    pub finishing: Mutex<()>,
    /// A layer that has ended and the one that took over, where the catalog could not be told (its disk was full).
    pub uncommitted: Mutex<Option<(Arc<Layer>, LayerId)>>,
    openers: Mutex<Openers>,
    /// When the keeper last began a flush.
    flushed: Mutex<Instant>,
    bytes: AtomicU64,
    requests: AtomicU64,
    /// Written since the keeper last found it clean.
    dirty: AtomicBool,
    poke: Sender<()>,
    poked: Receiver<()>,
    stopping: AtomicBool,
    told_of_latch: AtomicBool,
    trouble: Mutex<Trouble>,
}

/// Errors of the disk since it was opened, but for that it is latched.
#[derive(Default)]
struct Trouble {
    first: String,
    count: u64,
}

/// Who has a volume's file open.
#[derive(Default)]
struct Openers {
    /// The threads, once an opening, and the process of each: the kernel tells of threads.
    pids: Vec<(u32, u32)>,
    /// It is being removed or replaced: whoever opens it now must ask the host again.
    retired: bool,
}

impl OpenVolume {
    /// A live volume without a keeper.
    pub fn new(disk: LiveVolume) -> Self {
        let (poke, poked) = bounded(1);
        Self {
            disk,
            next: Mutex::default(),
            sealing: Mutex::default(),
            finishing: Mutex::default(),
            uncommitted: Mutex::default(),
            openers: Mutex::default(),
            flushed: Mutex::new(Instant::now()),
            bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            dirty: AtomicBool::new(false),
            poke,
            poked,
            stopping: AtomicBool::new(false),
            told_of_latch: AtomicBool::new(false),
            trouble: Mutex::default(),
        }
    }

    /// Counts an opening by a thread; false if the volume is no longer the one to open.
    pub fn enter(&self, opener: u32) -> bool {
        let mut openers = self.openers.lock();
        if !openers.retired {
            openers.pids.push((opener, process::process_of_thread(opener)));
        }
        !openers.retired
    }

    /// Counts a closing; true if it was the last.
    pub fn leave(&self, opener: u32) -> bool {
        let mut openers = self.openers.lock();
        if let Some(at) = openers.pids.iter().position(|(thread, _)| *thread == opener) {
            openers.pids.swap_remove(at);
        }
        openers.pids.is_empty()
    }

    /// The processes that have its file open, once an opening.
    pub fn openers(&self) -> Vec<u32> {
        self.openers.lock().pids.iter().map(|(_, process)| *process).collect()
    }

    /// Lets nobody open it any more; or, if somebody has it open, says who.
    pub fn retire(&self) -> std::result::Result<(), Vec<u32>> {
        let mut openers = self.openers.lock();
        openers.retired = openers.pids.is_empty();
        match openers.retired {
            true => Ok(()),
            false => Err(openers.pids.iter().map(|(_, process)| *process).collect()),
        }
    }

    /// Counts what was written, and wakes the keeper where there is something for it to do.
    pub fn wrote(&self, bytes: u64) {
        let total = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let count = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let due = total / POKE_BYTES != (total - bytes) / POKE_BYTES || count.is_multiple_of(POKE_REQUESTS);
        if due || !self.dirty.load(Ordering::Relaxed) && !self.dirty.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// Wakes the keeper.
    pub fn wake(&self) {
        let _ = self.poke.try_send(());
    }

    /// Logs an error of the disk. That it is latched is told once: opened anew, it is another of these.
    pub fn tell(&self, error: &VolumeError) {
        let id = self.disk.id();
        if !matches!(error, VolumeError::Layer(LayerError::Latched)) {
            tracing::error!("volume {id}: {error}");
            let mut trouble = self.trouble.lock();
            if trouble.count == 0 {
                trouble.first = error.to_string();
            }
            trouble.count += 1;
        } else if !self.told_of_latch.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "volume {id} is latched after a failed write or sync: what was not flushed may be lost, and requests are \
                 refused, without a further word here, until it is opened anew. See to the disk below the region, close \
                 the volume's file (`terrane status --output json` names its openers) and open it again"
            );
        }
    }

    /// What went wrong since it was opened, in words.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock();
        match trouble.count {
            0 => None,
            1 => Some(trouble.first.clone()),
            more => Some(format!("{} (the first of {more} errors)", trouble.first)),
        }
    }

    /// Whether a failed write or sync has latched it: its active layer, or an ended one whose seal is not finished.
    pub fn is_latched(&self) -> bool {
        let stack = self.disk.stack();
        stack.active.iter().chain(stack.chain.layers()).any(|layer| layer.is_latched())
    }

    /// Ends the keeper at its next look.
    pub fn stop_keeper(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether the keeper is to end.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Keeps the volume until [`OpenVolume::stop_keeper`]: flushes what is old or much, checkpoints full halves, gives
    /// space back, and calls `tend` for what needs the catalog. Sleeps without a timer while nothing is dirty.
    pub fn keep(&self, tend: impl Fn(&Self)) {
        // What an earlier session freed and did not give back is learnt here.
        let mut settled = false;
        if let Err(e) = self.disk.active().learn_free_slots_while(&mut || !self.is_stopping()) {
            tracing::warn!(volume = %self.disk.id(), error = %e, "free space of earlier sessions is not used");
        }
        loop {
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            tend(self);
            let dirty = self.dirty.load(Ordering::Acquire);
            let quiet = !dirty && self.since_flush() >= FLUSH_AFTER;
            let done = match (dirty, settled) {
                (true, _) => self.look(),
                (false, false) if quiet => self.settle(),
                (false, _) => Ok(()),
            };
            settled = !dirty && (settled || quiet);
            if let Err(e) = done {
                self.dirty.store(false, Ordering::Release);
                settled = true;
                self.tell(&e);
            }
            let wait = match self.dirty.load(Ordering::Acquire) || !settled {
                true => self.poked.recv_timeout(FLUSH_AFTER.saturating_sub(self.since_flush())),
                false => self.poked.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if wait == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }

    fn since_flush(&self) -> Duration {
        self.flushed.lock().elapsed()
    }

    /// A look between the keeper's own, if the volume is being written.
    pub fn attend(&self) -> Result<()> {
        match self.dirty.load(Ordering::Acquire) {
            true => self.look(),
            false => Ok(()),
        }
    }

    /// A look at a volume that is being written. Space is given back only under pressure: what is freed is soon
    /// written again, and a hole punched meanwhile makes every writer wait for the file's lock.
    fn look(&self) -> Result<()> {
        let active = self.disk.active();
        if active.needs_checkpoint() {
            active.checkpoint_closed()?;
        }
        if active.unflushed_bytes() >= UNFLUSHED_MAX || self.since_flush() >= FLUSH_AFTER {
            *self.flushed.lock() = Instant::now();
            self.dirty.store(false, Ordering::Release);
            self.disk.flush()?;
        }
        // A snapshot waits for what is on its way, and so does a flush.
        active.begin_write_back();
        let some = Cell::new(false);
        active.punch_free_while(&|| {
            // Some at each look; more, where nothing else is due.
            let is_due = active.unflushed_bytes() >= UNFLUSHED_MAX
                || self.since_flush() >= FLUSH_AFTER
                || active.needs_checkpoint();
            active.is_pressed() && !self.is_stopping() && !(some.replace(true) && is_due)
        });
        Ok(())
    }

    /// Nothing was written for a while: free what waits, and give it back, until something is written again.
    fn settle(&self) -> Result<()> {
        let active = self.disk.active();
        active.settle()?;
        active.settle()?;
        // A mark that found its half full has closed that; what it superseded is free after its checkpoint.
        active.checkpoint_closed()?;
        active.punch_free_while(&|| !self.dirty.load(Ordering::Acquire) && !self.is_stopping());
        Ok(())
    }
}
