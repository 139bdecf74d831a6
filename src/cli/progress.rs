//! Progress of what takes long, and its end by a signal.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::App;

/// Programs are told of progress so often.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// A flag that SIGINT and SIGTERM set, where they would end the process.
pub fn cancelled_by_signals() -> Result<Arc<AtomicBool>> {
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, cancel.clone()).context("waiting for signals")?;
    }
    Ok(cancel)
}

/// Progress on stderr: a bar on a terminal, a line of JSON a second for programs.
pub struct Progress {
    bar: Option<ProgressBar>,
    lines: bool,
    total: u64,
    began: Instant,
    reported: Option<Instant>,
    done: u64,
}

impl Progress {
    /// Of what is being done (`copying`), to so many bytes.
    pub fn new(app: &App, what: &str, total: u64) -> Self {
        let quiet = app.output().is_quiet();
        let json = app.output().is_json();
        let bar = (!quiet && !json && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template = format!(
                "{what} [{{bar:30}}] {{binary_bytes}} of {{binary_total_bytes}}, {{binary_bytes_per_sec}}, {{eta}} left"
            );
            bar.set_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, lines: !quiet && json, total, began: Instant::now(), reported: None, done: 0 }
    }

    /// So many bytes are done, of so many.
    pub fn report(&mut self, done: u64, total: u64) {
        (self.done, self.total) = (done, total);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
        if self.lines && self.reported.is_none_or(|at| at.elapsed() >= REPORT_INTERVAL) {
            self.line();
        }
    }

    fn line(&mut self) {
        self.reported = Some(Instant::now());
        let rate = (self.done as f64 / self.began.elapsed().as_secs_f64().max(1e-3)) as u64;
        eprintln!(
            "{}",
            json!({ "bytes_done": self.done, "bytes_total": self.total, "bytes_per_second": rate })
        );
    }

    /// It is over; whether it went well.
    pub fn end(&mut self, well: bool) {
        match &self.bar {
            Some(bar) if well => bar.finish(),
            Some(bar) => bar.abandon(),
            None => {}
        }
        if self.lines && well {
            self.line();
        }
    }
}
