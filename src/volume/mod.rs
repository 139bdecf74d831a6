//! A stack of layers as a disk: read, write, flush, discard, seal.
//!
//! Owns how layers make a disk and when one ends and the next begins. Never touches a file itself (layers do) and never
//! decides names. Called by `fuse` (through the host of live volumes), `cli` and `copy`.
//!
//! Invariants: a sector is what the uppermost layer that records it says, else zero; sealed layers are only ever put on
//! top; a flush of the active layer is preceded by those of the layers it follows.

mod chain;
mod error;
mod live;
mod read;

pub use chain::{Chain, Source};
pub use error::{Result, VolumeError};
pub use live::{LiveVolume, Seal, chunks_of_bytes, seal_together};
pub use read::Stack;
