//! The few calls to the system that need `unsafe`, and the order in which files are made durable.
//!
//! Owns mounts, loop devices, mappings, memory that is large or begins at a page, process hygiene, the limit of open files and crash-safe
//! file replacement. Knows nothing of regions, layers or keys. Each file that needs `unsafe` says so at its head; no other file of the crate
//! but the cipher kernels may.

pub mod asking;
pub mod crashsafe;
pub mod large_buffers;
pub mod lock_file;
pub mod loopdev;
pub mod mapping;
pub mod mount;
pub mod open_files;
pub mod owned;
pub mod page_buffer;
pub mod process;
pub mod writeback;
