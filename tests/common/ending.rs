//! Waiting for a program that is to end by itself.

use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// How it ended; it is killed where that took longer than it may.
pub fn wait(what: &str, child: &mut Child, patience: Duration) -> ExitStatus {
    let since = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if since.elapsed() > patience {
            let _ = child.kill();
            panic!("{what} hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
