//! The daemon: works off the queues of the known regions, and has their schedules carried out when they are due.
//!
//! Owns the choice of what is done next, how many at once, and when what failed is tried again. Decides nothing about copies
//! (`copy` does) nor about schedules (`schedule` does), and keeps nothing: queues and schedules are rows of their region's catalog, and who
//! works on them is said by locks.
//!
//! Invariants: a region is open only while one of its tasks or schedules is looked for or done; an idle daemon looks once a second
//! whether a catalog's files have changed, and by the clock alone whether a schedule is due; any number of daemons, of any processes, may work on the same queues.
//!
//! Called by `cli`.

mod backoff;
mod queue;
mod schedules;
mod stamp;
mod work;

pub use backoff::Backoff;
pub use work::{Event, Settings, Summary, work};
