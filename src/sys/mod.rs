//! What Linux offers beneath the standard library: mounts, loop devices, process hygiene, mappings.
//! The few unsafe calls live here, each file saying so at its head; nothing here knows what terrane stores.
//! Callers: `fuse` (mount), `cli` (loop devices, process), `layer` (mapping).

pub mod loopdev; // a file as a block device
pub mod mapping; // a shared window of a file, for the layer's log
pub mod mount; // mounting, unmounting and listing FUSE mounts
pub mod process; // hygiene, background, who has a file open
