//! What a snapshot's content is known by, in whatever region and under whatever key: a leaf for each chunk, and a root.
//!
//! Owns the leaves, their file in `proofs/`, and the reading of a whole disk to make them. A proof is made from plaintext that
//! was read through the disk's own chain, never from maps. It is nothing that a snapshot needs to be read: one that is lost
//! is made anew.
//!
//! Called by `copy` (makes and compares them) and by the orders that delete snapshots.

mod file;
mod leaves;
mod measure;
mod problems;
mod shelf;

pub use file::{Head, Proof, Rests, check_replaceable, find_head, read, try_find_head, write};
pub use leaves::Leaves;
pub use measure::{Reading, measure};
pub use problems::problems;
pub(super) use shelf::forget_unnamed;
pub use shelf::{forget, make};
