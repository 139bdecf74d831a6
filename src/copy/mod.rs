//! Copies of snapshots: what differs from what the target has, and shipping that under another key.
//!
//! Owns the rules of a copy (which are refused), the choice of its base, the plan in bytes, and the pipeline from a
//! source layer to a fresh layer of the target. Never changes the source, nor an existing layer; never puts plaintext on
//! a disk; decides nothing about how sectors are stored (`layer` does).
//!
//! Invariants: a copy is rows of the target's catalog alone, and each start plans anew from both sides; a sector is
//! shipped only after its tag was checked; what is not whole is never listed as `success`; a copy that fails or is
//! cancelled leaves neither snapshot nor layer. A running copy is held by the lock of its layer's data file, never by
//! time; one whose process was killed stays, `processing`, until it is taken up ([`Begun`]) or deleted.
//!
//! Called by `cli`.

mod begun;
mod difference;
mod error;
mod plan;
mod ship;
mod task;

pub use begun::Begun;
pub use error::CopyError;
pub use plan::{Base, KeyChoice, Plan, find_begun, plan, plan_begun};
pub use task::{Copy, Details, Watch};
