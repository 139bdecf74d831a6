//! A rate that all who read share: copies, checks, verifications.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How soon who waits hears that he need not any more.
const LOOK: Duration = Duration::from_millis(50);

/// So many bytes a second, for all who claim them.
pub struct Pace {
    bytes_per_second: u64,
    /// When all that was claimed will have had its time.
    free_at: Mutex<Instant>,
}

impl Pace {
    /// At this rate, which is not 0.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes more may be read; false: `is_over` said first that none are to.
    pub fn claim(&self, bytes: u64, is_over: impl Fn() -> bool) -> bool {
        let takes = Duration::from_secs_f64((bytes as f64 / self.bytes_per_second as f64).min(1e9));
        let begin = {
            let mut free_at = self.free_at.lock();
            // Time in which nobody claimed anything is not saved up.
            let begin = (*free_at).max(Instant::now());
            *free_at = begin + takes;
            begin
        };
        loop {
            if is_over() {
                return false;
            }
            match begin.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                Some(left) => std::thread::sleep(left.min(LOOK)),
                None => return true,
            }
        }
    }
}
