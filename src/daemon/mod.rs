//! The daemon: works off the queues of the known regions, and has carried out in them what is due: schedules, and what ends by the clock.
//!
//! Owns the choice of what is done next, how many at once, and when what failed is tried again. Decides nothing about copies
//! (`copy` does) nor about schedules (`schedule` does), and keeps nothing: queues and schedules are rows of their region's catalog, and who
//! works on them is said by locks.
//!
//! (`volume` decides what ends by the clock, and `region` whether this machine's is believed; the daemon has that remembered.)
//!
//! Invariants: a region is open only while one of its tasks or schedules, or what is over, is looked for or done; an idle daemon looks once a second
//! whether a catalog's files have changed, and by the clock alone whether something is due; any number of daemons, of any processes, may work on the same queues.
//!
//! Called by `cli`.

mod backoff;
mod keeping;
mod queue;
mod schedules;
mod stamp;
mod work;

pub use backoff::Backoff;
pub use work::{Event, Settings, Summary, work};
