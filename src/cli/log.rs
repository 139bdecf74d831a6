//! Where log lines go: stderr; for a process in the background a file that is rotated, and syslog where there is one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::time::SystemTime;

use crate::sys::owned;

/// A log of this size becomes `NAME.1`, and the one before goes.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// RFC 3164: facility daemon (3), severity warning (4).
const SYSLOG_PRIORITY: u8 = 3 << 3 | 4;

static FILE: Mutex<Option<LogFile>> = Mutex::new(None);

struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    syslog: Option<UnixDatagram>,
}

/// The system's log, if anybody listens. It never blocks: a line it has no room for is in the file.
fn syslog() -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect("/dev/log").ok()?;
    Some(socket)
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = owned::open_to_append(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, syslog: syslog() })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes >= LOG_BYTES_MAX {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            fs::rename(&self.path, old)?;
            *self = Self::open(&self.path)?;
        }
        if let Some(syslog) = &self.syslog {
            let text = String::from_utf8_lossy(line);
            let _ = syslog.send(
                format!("<{SYSLOG_PRIORITY}>terrane[{}]: {}", std::process::id(), text.trim_end()).as_bytes(),
            );
        }
        self.bytes += line.len() as u64;
        self.file.write_all(line)
    }
}

/// From here on log lines go to this file.
pub fn to_file(path: &Path) -> io::Result<()> {
    *FILE.lock() = Some(LogFile::open(path)?);
    Ok(())
}

struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match FILE.lock().as_mut() {
            Some(file) => file.write(line)?,
            None => io::stderr().write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct ToLines;

impl MakeWriter<'_> for ToLines {
    type Writer = Lines;

    fn make_writer(&self) -> Lines {
        Lines
    }
}

/// Warnings and errors; `TERRANE_LOG` (as `debug` or `terrane::kms=trace`) shows more.
pub fn set_up() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TERRANE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(ToLines)
        .with_timer(SystemTime)
        .with_target(false)
        .with_ansi(false)
        .try_init();
}
