//! Copies of snapshots: what differs from what the target has, and shipping that under another key.
//!
//! Owns the rules of a copy (which are refused), the choice of its base, the plan in bytes, and the pipeline from a
//! source layer to a fresh layer of the target. Never changes what is read of the source, nor an existing layer; never puts plaintext on
//! a disk; decides nothing about how sectors are stored (`layer` does).
//!
//! Invariants: a copy is rows of the target's catalog alone, and each start plans anew from both sides; a sector is
//! shipped only after its tag was checked; a copy counts only after it
//! was read back and proven equal to what was read; what is not whole is never listed as `success`; a copy that fails or is
//! cancelled leaves neither snapshot nor layer. Copies wait in their target's queue ([`enqueue`]) until somebody carries them
//! out ([`carry_out`]): he holds the task's lock, one of the region's places ([`Slot`]), and the lock of the layer's data file,
//! never anything by time; a copy whose process was killed stays, `processing`, until it is taken up ([`Begun`]) or deleted.
//!
//! Called by `cli`, `schedule` and `daemon`.

mod ahead;
mod begun;
mod behind;
mod difference;
mod error;
mod hold;
mod link;
mod newest;
mod plan;
mod prove;
mod request;
mod room;
mod ship;
mod task;
mod unsaid;
mod verify;
mod verity;
pub(crate) mod words;

use crate::volume::pace;

pub use begun::Begun;
pub use error::CopyError;
pub use hold::{COPIES_MAX, Held, Slot, Taken, is_held};
pub use newest::{Copies, Newest, NewestCopy, newest_copies};
pub use pace::Pace;
pub use plan::{Base, KeyChoice, Plan, plan, plan_asked};
pub use request::{Request, TASK_KIND, enqueue, enqueue_all, enqueue_all_and, find_asked};
pub use task::{Copy, Details, Watch, carry_out};
pub use verify::{
    Compared, Differing, Measured, OwnProof, Side, VerifyWatch, compare_measured, compare_proofs,
};
pub use verity::SALT_LEN;
