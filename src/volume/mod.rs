//! A stack of layers as a disk, and a region's disks as one process has them open.
//!
//! Owns how layers make a disk, when one ends and the next begins, where a layer's folder lies, and the orders that
//! change existing layers, which one process at a time carries out. Never writes a sector past `layer`, never speaks SQL,
//! never parses what a person typed. Called by `fuse` (disks), `cli` and `daemon` (orders) and `copy` (snapshots to
//! read, layers to make).
//!
//! Invariants: a sector is what the uppermost layer that records it says, else zero; sealed layers are only ever put on
//! top; a flush of the active layer is preceded by those of the layers it follows; a row precedes its folder and outlives it.

pub mod bookmarks;
mod chain;
mod changes;
mod check;
mod create;
mod edges;
mod ending;
mod error;
mod execute;
mod fold;
pub mod folder;
pub mod footing;
mod host;
mod host_error;
mod litter;
mod live;
mod locks;
mod next;
mod open_snapshot;
mod open_volume;
mod order;
mod owner;
pub mod pace;
mod perform;
mod places;
pub mod proof;
mod read;
mod redate;
mod repair;
mod restore;
mod unreadable;
pub mod vouch;
mod walk;

pub use chain::Chain;
pub use changes::{ChangedRun, Changes, Holds};
pub use check::{
    CheckWatch, Finding, Findings, RegionCheck, SnapshotCheck, check_region, unvouched_rows, verify_snapshot,
};
pub use create::{VolumeSpec, create_tagged_volume, create_volume};
pub use ending::retention_end;
pub use error::{Result, VolumeError};
pub use fold::{FoldProgress, Move};
pub use folder::{claimed_version, words_of_unknown};
pub use host::{Host, Moments};
pub use host_error::HostError;
pub use litter::{cancel_copy, is_interrupted, remove_copy, remove_litter};
pub use live::{LiveVolume, Seal, chunks_of_bytes, seal_together};
pub use locks::{lock_snapshot, unlock_snapshot};
pub use open_snapshot::OpenSnapshot;
pub use open_volume::OpenVolume;
pub use order::{Answer, HostState, LiveState, Order, SnapshotItem, TagText, Unopened};
pub use owner::{LayersLock, Owner};
pub use perform::{SOCKET, Waits, ask, perform, perform_all};
pub use places::{Source, recorded};
pub use read::Stack;
pub use redate::Later;
pub use repair::{Recovered, recover_rows};
pub use restore::{Restored, refuse_in_bin, restore_snapshot};
pub use unreadable::{UnreadableLayer, damaged_header, unreadable_layers};
pub use walk::{Stop, each_chunk};
