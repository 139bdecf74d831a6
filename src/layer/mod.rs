//! One layer: the sectors written during one period of a disk's life, in slots, a log and a map of their own.
//!
//! Owns the bytes of `data` and `map` and every rule about their order; `docs/format.md` draws them and
//! `docs/durability.md` says what each order protects. Knows sectors, not volumes: what an absent sector means, and
//! which layer comes next, is decided above. Called by `volume` and `copy`.
//!
//! Invariants: nothing promised is overwritten; every byte read is checked against a key of the layer before it is
//! believed; what is sealed never changes; after a failed write or sync nothing more is promised.

mod bookmark;
mod bytes;
mod durable;
mod engine;
mod error;
mod expect;
pub mod header;
mod log;
mod overlay;
mod recover;
mod reopen;
mod scan;
mod sector_set;
mod slots;
mod store;
mod tree;

pub use bookmark::{BOOKMARK_LEN_MAX, Bookmark, Taken, TakenChunk};
pub use bytes::{Entry, FLAG_CLEAN, FLAG_SEALED, SLOTS_OFFSET, State, Superblock, slot_offset};
pub use durable::{SealGuard, SealedMark, UNFLUSHED_MAX};
pub use engine::{Guard, Layer, Parts};
pub(crate) use error::is_no_space;
pub use error::{LayerError, Result};
pub use recover::Anchor;
pub use scan::Walked;
pub use sector_set::{ChunkBits, SectorSet};
pub use store::{FileStore, Store};
pub use tree::{Leaf, PageCache};
