//! The catalog: one SQLite file a region, with a row for every account, key, layer, fold, volume, snapshot, schedule,
//! tag, task and rule of the bin.
//!
//! Owns the schema, its numbered migrations and every query; the only room that knows SQL. Never touches keys' material
//! (it stores wrapped bytes), layer folders or configuration.
//!
//! Invariants: a write is one `BEGIN IMMEDIATE` transaction, durable when it returns (WAL, `synchronous=FULL`); what a
//! row says is checked when it is read, so a damaged or hostile file gives [`CatalogError::Corrupted`] and no panic;
//! names are unique by region and kind, but for those of what is in the bin; times are microseconds since the epoch.
//!
//! Called by `region` (opening), `kms`, `volume`, `copy`, `schedule`, `daemon` and `cli`, each through [`Catalog::read`] and
//! [`Catalog::write`]. A connection is used by one thread at a time and never across a fork: a process that goes to the
//! background opens its region afterwards.

mod accounts;
mod bin;
mod clock;
mod connection;
mod endings;
mod error;
mod folds;
mod keys;
mod last_time;
mod layers;
mod locks;
mod resolve;
mod row;
mod salvage;
mod schedules;
mod schema;
mod settings;
mod snapshots;
mod tags;
mod tasks;
#[cfg(test)]
mod tests;
mod volumes;

pub use accounts::{Account, Instance, InstanceKind};
pub use bin::{BIN_DAYS_MAX, BinEntry, BinKind, BinRule};
pub use clock::before;
pub use connection::{Catalog, Pool, ReadTx, WriteTx};
pub use endings::Endings;
pub use error::{CatalogError, Kind};
pub use folds::{Fold, FoldWay};
pub use keys::{Key, KeyState, KeyVersion, WrappedVersion};
pub use last_time::LastTime;
pub use layers::{Layer, LayerNeeds, LayerState};
pub use locks::{LockMode, SnapshotLock};
pub use salvage::Salvaged;
pub use schedules::{Schedule, ScheduledCopy, ScheduledSnapshot};
pub use settings::Setting;
pub use snapshots::{Snapshot, SnapshotState, check_description};
pub use tags::{TAGS_MAX, Tag, check_tags};
pub use tasks::{QueuePlace, Task, TaskEnd, TaskState};
pub use volumes::{DiskKind, Volume};

/// The newest schema this version reads and writes.
pub const SCHEMA_VERSION: u32 = schema::MIGRATIONS.len() as u32;
