//! A region: a directory with its own catalog, keys, volumes and snapshots.
//!
//! Owns the directory's layout, `region.toml`, the root key's place and passphrase, the configuration of known regions,
//! the lock that every process with the region open holds shared, the region's clock, and whether this machine's is believed. Never reads sectors, and knows
//! no SQL beyond the catalog's rows.
//!
//! Invariants: `region.toml` is written last when a region is made, so a directory with one is whole; only the owner of
//! the directory opens it; a root key is used only once the region's check value has shown that it is the right one;
//! opening needs no root key, [`Region::root_key`] loads it when first asked.
//!
//! Called by `cli`, `kms`, `volume`, `copy`, `schedule`, `daemon` and the mount. A [`Region`] is `Sync` and may be shared by threads; it must
//! not be carried across a fork (SQLite's connections would be): fork first, open then.

mod anchor;
mod check;
mod clock;
mod config;
mod doubt;
mod error;
mod files;
mod format;
pub mod hex;
mod init;
mod lock;
mod machine_clock;
mod open;
mod passphrase;
mod rebuild;
mod root_key;

pub(crate) use anchor::Anchors;
pub use anchor::VolumeAnchor;
pub use check::{accept_older, check, missing_layers, unknown_folders};
pub use clock::Clock;
pub use config::{Config, ConfigLock, KeySource, KnownRegion};
pub use doubt::Doubt;
pub use error::RegionError;
pub use files::uid_name;
pub(crate) use format::check_format;
pub use format::{FORMAT_VERSION, Header};
#[cfg(test)]
pub(crate) use init::scratch;
pub use init::{InitRequest, add, forget, init};
pub use machine_clock::{EARLIEST_CLOCK, MachineClock};
pub use open::{Region, peek};
pub use passphrase::{NewPassphrase, remove_passphrase, set_passphrase};
pub use rebuild::Rebuilding;
pub use root_key::{RootKeyPlace, export_root_key, read_passphrase_file};
