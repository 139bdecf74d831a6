//! Schedules: when snapshots of which volumes are due, taking them, asking for their copies, and expiring the old ones.
//!
//! Owns the times ([`When`]), what a schedule was asked ([`Terms`]), and the rules of what is taken, copied and expired. Knows no sector
//! and no SQL; never waits for a time (the daemon does), and makes no copy (it asks for them as `snapshot copy` does, and whoever works
//! off the target's queue makes them).
//!
//! Invariants: a due time has one snapshot of a volume: it is written down, with its id and name, before it is taken, and held by the
//! lock `run/<schedule>.lock`, which death frees; what was missed is made up for once, for the last time that was due; only what a
//! schedule took itself, or asked for, is expired, by rows that keys bear out, and only while as many newer ones are whole as it is to
//! keep; rows of a region speak of that region alone, but for what a copy there is of.
//!
//! Called by `cli` and `daemon`.

mod copies;
mod cron;
mod error;
mod expire;
mod made;
mod redate;
mod run;
mod take;
mod terms;
mod vouch;
mod when;

pub use cron::Cron;
pub use error::ScheduleError;
pub use made::{Made, made_by};
pub use redate::{made_after, redate};
pub use run::{Caller, Outcome, carry_out, next_due, next_due_after};
pub use terms::{CopyTo, Terms, What, create, delete};
pub use when::{Every, When};
