//! Work on a disk's chunks by as many threads as keep the processors busy, watched by the caller's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use parking_lot::Mutex;

use crate::units::ChunkNo;

/// More workers than this only compete for the memory's bandwidth.
const WORKERS_MAX: usize = 8;
/// How often the watcher is asked.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Set once nothing more is to be done: somebody failed, or the watcher said so.
#[derive(Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// Whether it is.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Does `work` on each chunk that `next` gives from a number on, in order of their beginnings; `make` gives each thread what it
/// works with. `watch` is asked all the while, on this thread, and ends it by an error. The first error of any is returned.
pub fn each_chunk<W, E: Send>(
    next: impl Fn(u64) -> Result<Option<ChunkNo>, E> + Sync,
    make: impl Fn() -> W + Sync,
    work: impl Fn(&mut W, ChunkNo, &Stop) -> Result<(), E> + Sync,
    mut watch: impl FnMut() -> Result<(), E>,
) -> Result<(), E> {
    let at = Mutex::new(0);
    let take = || {
        let mut at = at.lock();
        let chunk = next(*at)?;
        *at = chunk.map_or(*at, |chunk| chunk.0 + 1);
        Ok(chunk)
    };
    let (stop, first_error) = (Stop::default(), Mutex::new(None));
    let fail = |error| {
        first_error.lock().get_or_insert(error);
        stop.0.store(true, Ordering::Release);
    };
    let work_all = || {
        let mut with = make();
        while !stop.is_set() {
            let done = take().and_then(|chunk| chunk.map(|chunk| work(&mut with, chunk, &stop)).transpose());
            match done {
                Ok(Some(())) => {}
                Ok(None) => return,
                Err(error) => fail(error),
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get()).clamp(2, WORKERS_MAX);
    std::thread::scope(|scope| {
        // Closed when every worker has ended.
        let (alive, ended) = bounded::<()>(0);
        for _ in 0..workers {
            let alive = alive.clone();
            let work_all = &work_all;
            scope.spawn(move || {
                let _alive = alive;
                work_all();
            });
        }
        drop(alive);
        while ended.recv_timeout(WATCH_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if !stop.is_set()
                && let Err(error) = watch()
            {
                fail(error);
            }
        }
    });
    first_error.into_inner().map_or(Ok(()), Err)
}
