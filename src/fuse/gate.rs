//! Lets requests through until the mount is to end: first no more files are opened, then nothing is done any more. Who
//! shuts it knows when the last request has left, so that what was answered is all there is.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// As many as threads that serve a mount; with more they share.
const LANES: usize = 64;

const OPEN: u8 = 0;
const NO_OPENS: u8 = 1;
const SHUT: u8 = 2;

/// The requests of some threads that are inside; alone in its cache line, so that entering costs next to nothing.
#[derive(Default)]
#[repr(align(128))]
struct Lane(AtomicUsize);

/// One for a mount.
pub(super) struct Gate {
    state: AtomicU8,
    lanes: [Lane; LANES],
}

/// A request inside; it leaves when this is dropped.
pub(super) struct Pass<'g>(&'g Lane);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// This thread's lane.
fn lane() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LANE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % LANES;
    }
    LANE.with(|lane| *lane)
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { state: AtomicU8::new(OPEN), lanes: std::array::from_fn(|_| Lane::default()) }
    }

    /// Lets a request in, unless it is shut.
    pub(super) fn enter(&self) -> Option<Pass<'_>> {
        let lane = &self.lanes[lane()];
        // First counted, then asked; shutting does both the other way round, and so sees whoever was let in.
        lane.0.fetch_add(1, Ordering::SeqCst);
        let pass = Pass(lane);
        (self.state.load(Ordering::SeqCst) != SHUT).then_some(pass)
    }

    /// Whether files may be opened.
    pub(super) fn admits_opens(&self) -> bool {
        self.state.load(Ordering::SeqCst) == OPEN
    }

    /// From now on no file is opened.
    pub(super) fn refuse_opens(&self) {
        self.state.fetch_max(NO_OPENS, Ordering::SeqCst);
    }

    /// From now on nothing is let in. Whether all have left within `time`.
    pub(super) fn shut(&self, time: Duration) -> bool {
        self.state.store(SHUT, Ordering::SeqCst);
        let until = Instant::now() + time;
        while self.lanes.iter().any(|lane| lane.0.load(Ordering::SeqCst) != 0) {
            if Instant::now() > until {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_done_after_it_was_shut() {
        let gate = Gate::new();
        let done = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(_pass) = gate.enter() {
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            while done.load(Ordering::SeqCst) < 1000 {
                thread::yield_now();
            }
            gate.refuse_opens();
            assert!(!gate.admits_opens() && gate.enter().is_some());
            assert!(gate.shut(Duration::from_secs(20)));
            let then = done.load(Ordering::SeqCst);
            thread::sleep(Duration::from_millis(20));
            assert_eq!(done.load(Ordering::SeqCst), then);
        });
        gate.refuse_opens();
        assert!(gate.enter().is_none(), "it was opened again");
    }

    #[test]
    fn who_stays_is_not_waited_for_for_ever() {
        let gate = Gate::new();
        let pass = gate.enter();
        assert!(!gate.shut(Duration::from_millis(10)));
        drop(pass);
        assert!(gate.shut(Duration::ZERO));
    }
}
