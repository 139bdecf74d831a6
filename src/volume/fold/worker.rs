//! The thread that folds beside a mount's reads and writes, and tidies up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use crate::volume::host::Host;

/// A volume's active layer may have grown enough to be joined with what lies below, and another process may have died over a
/// layer it made.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// The thread, while it lives.
pub struct FoldWorker {
    stop: Arc<AtomicBool>,
    wake: Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl FoldWorker {
    /// Starts it.
    pub fn start(host: &Arc<Host>) -> std::io::Result<Self> {
        let (wake, woken) = bounded(1);
        let stop = Arc::new(AtomicBool::new(false));
        let (host, stopped) = (Arc::downgrade(host), stop.clone());
        let work = move || {
            let mut swept: Option<Instant> = None;
            while !stopped.load(Ordering::Acquire) {
                let Some(host) = host.upgrade() else { return };
                if let Err(error) = host.let_go() {
                    tracing::warn!(%error, "a volume whose key may not be used could not be closed");
                }
                if swept.is_none_or(|then| then.elapsed() >= LOOK_AGAIN) {
                    host.sweep();
                    swept = Some(Instant::now());
                }
                // It has said in the log what it could not do.
                let _ = host.fold(true, &mut |_| !stopped.load(Ordering::Acquire));
                drop(host);
                if woken.recv_timeout(LOOK_AGAIN) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("terrane-fold".into()).spawn(work)?;
        Ok(Self { stop, wake, thread })
    }

    /// Something was deleted, or a file closed: there may be something to fold or to close.
    pub fn wake(&self) {
        let _ = self.wake.try_send(());
    }

    /// Stops it; a fold under way goes on at the next start.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        if self.thread.join().is_err() {
            tracing::error!("the folding thread had panicked");
        }
    }
}
