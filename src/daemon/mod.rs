//! The daemon: works off the queues of the known regions, and has done in them what is due by the clock.
//!
//! Owns the choice of what is done next, how many at once, and when what failed is tried again. Decides nothing about copies
//! (`copy` does), and keeps nothing: a queue is rows of its region's catalog, and who works on a task is said by locks.
//!
//! (`volume` decides what ends by the clock.)
//!
//! Invariants: a region is open only while one of its tasks, or what is due, is looked for or done; an idle daemon looks once a second whether a
//! catalog's files have changed; any number of daemons, of any processes, may work on the same queues.
//!
//! Called by `cli`.

mod backoff;
mod keeping;
mod queue;
mod work;

pub use backoff::Backoff;
pub use work::{Event, Settings, Summary, work};
