//! terrane: encrypted virtual disks with snapshots and re-keyed copies.
//!
//! The map of the house, one line a room. A write flows `fuse → volume → layer → crypto → file`;
//! a copy flows `copy::plan → layer (source) → crypto → layer (target) → catalog (target)`.

pub mod catalog; // SQLite: schema, migrations, typed queries; the only room that knows SQL
pub mod cli; // one file a noun; tables for people, JSON for programs
pub mod control; // the socket between a command and the process that has a volume live
pub mod copy; // plan (what differs) and ship (re-key)
pub mod crypto; // sector cipher, tags, key wrapping; no I/O
pub mod daemon; // works off the queues of the known regions
#[doc(hidden)]
pub mod doors; // to parsers of untrusted bytes, for the fuzz targets
pub mod fuse; // the mount: names, attributes, requests; translates, decides nothing
pub mod ids; // the identities of things: ids, names, points
pub mod kms; // keys, versions, envelope
pub mod layer; // slots, log and map of one layer; knows sectors, not volumes
pub mod region; // opening a region: paths, format version, root key, configuration
pub mod schedule; // when snapshots are due, taking and copying them, expiring the old ones
pub mod sys; // the few unsafe calls: mount, loop devices, process hygiene, mappings
pub mod units; // sectors, chunks, slots and all arithmetic between them and bytes
pub mod volume; // a stack of layers as a disk: read, write, flush, discard, seal
