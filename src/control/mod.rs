//! The socket between a command and the process that has a volume live: one request, one answer, one connection.
//!
//! It carries messages and knows none of them. What it keeps to:
//! - Only the same uid talks: the folder is 0700, the socket 0600, and both ends check whom the kernel says is at the other.
//! - A message has a magic, a version and a length below 1 MiB, and must arrive within 5 s; nothing is allocated on the word of a length.
//! - Connections that have not sent their message yet are kept by one thread and are few; the oldest goes first. So a
//!   slow client stalls nobody.
//! - A socket whose process died is replaced; one whose process lives is not.
//!
//! Callers: `volume` (calls), the mount (serves).

mod client; // call
mod folder; // run/ and the names in it
mod frame; // bytes of a message
mod server; // serve
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use thiserror::Error;

pub use client::call;
pub(crate) use frame::decode as decode_frame;
pub use server::{Server, serve};

/// How long a message may take to arrive.
const MESSAGE_TIME: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Nobody serves under this name.
    #[error("no process serves here")]
    NotRunning,
    /// Somebody serves under this name already.
    #[error("another process (pid {pid}) serves here already")]
    AlreadyServed {
        /// Who.
        pid: u32,
    },
    /// The answer took longer than the caller would wait.
    #[error("no answer within {} s; the serving process may be busy", .0.as_secs())]
    TimedOut(Duration),
    /// The connection ended without an answer.
    #[error("the serving process ended before it answered")]
    Ended,
    /// The other end is another version of the program.
    #[error(
        "the serving process speaks version {theirs} of the protocol, this one {ours}; unmount and mount again with one version"
    )]
    Version {
        /// Of this program.
        ours: u32,
        /// Of the other.
        theirs: u32,
    },
    /// The folder, or the process at the other end, is another user's.
    #[error("{0} belongs to another user")]
    ForeignUser(String),
    /// The other end refused the message.
    #[error("the serving process refused the request: {0}")]
    Refused(String),
    /// What arrived is no message.
    #[error("damaged message: {0}")]
    Damaged(String),
    /// The system refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
}
