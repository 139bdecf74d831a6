//! A script of everything that changes a volume, done to a real mount, and what the region must hold after each step.
//!
//! Used by `#[path = "common/script.rs"] mod script;` beside `world`.
#![allow(dead_code)] // each test file uses a part

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

use super::world::{World, must, pattern, read_at, within, writable};

/// The volume `web`.
pub const SIZE: usize = 8 << 20;
/// The largest request the kernel makes of a write from memory that begins within a page.
const LARGE: usize = (1 << 20) - 4096;

/// A step; what is written is told by its number.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Write {
        offset: u64,
        len: usize,
    },
    Zeros {
        offset: u64,
        len: usize,
    },
    Discard {
        offset: u64,
        len: u64,
    },
    Sync,
    Snapshot(&'static str),
    Rollback(&'static str),
    Delete(&'static str),
    /// Waits until so many layers are left.
    Folded(usize),
}

use Step::{Delete, Discard, Folded, Rollback, Snapshot, Sync, Write, Zeros};

pub const SCRIPT: &[Step] = &[
    Write { offset: 0, len: LARGE },
    Write { offset: 5000, len: 3000 },
    Sync,
    Write { offset: 3 << 20, len: 64 << 10 },
    Write { offset: (3 << 20) + 4096, len: 4096 },
    Sync,
    Snapshot("one"),
    Write { offset: (1 << 20) - 100, len: 200 },
    Discard { offset: 64 << 10, len: 300 << 10 },
    Zeros { offset: 512 << 10, len: 64 << 10 },
    Sync,
    Write { offset: 6 << 20, len: 256 << 10 },
    Snapshot("two"),
    Write { offset: 0, len: 8192 },
    Write { offset: 7 << 20, len: LARGE },
    Snapshot("three"),
    Discard { offset: 0, len: 8 << 20 },
    Write { offset: 2 << 20, len: 100_000 },
    Sync,
    Rollback("two"),
    Write { offset: 40960, len: 4096 },
    Sync,
    Delete("three"),
    Delete("two"),
    Folded(4),
    Write { offset: 3 << 20, len: 12345 },
    Delete("one"),
    Folded(3),
    Write { offset: 4 << 20, len: 512 },
    Sync,
];

impl Step {
    /// What came before it is durable once it is answered.
    pub fn is_durable(self) -> bool {
        matches!(self, Sync | Snapshot(_) | Rollback(_))
    }

    /// Done through the volume's file, by one request.
    pub fn is_of_the_file(self) -> bool {
        matches!(self, Write { .. } | Zeros { .. } | Discard { .. } | Sync)
    }

    /// Does it to the volume and the region.
    pub fn perform(self, world: &World, number: usize, patience: u64) -> Outcome {
        let command = |args: &[&str]| {
            let output = world.run(args);
            let words = super::world::words(&output);
            if output.status.success() { Ok(()) } else { Err(io::Error::other(words)) }
        };
        let done = match self {
            Snapshot(name) => command(&["snapshot", "create", "web", "--name", name]),
            Rollback(name) => command(&["volume", "rollback", "web", "--snapshot", name]),
            Delete(name) => command(&["snapshot", "delete", name]),
            Folded(layers) => {
                let is_dead = || fs::metadata(world.path("mnt/volumes")).is_err();
                within(patience, || world.layers() <= layers || is_dead());
                Ok(())
            }
            _ => match writable(&world.file("web")) {
                Ok(file) => self.change(&file, number),
                Err(e) => return Outcome::NotBegun(e),
            },
        };
        done.map_or_else(Outcome::Failed, |()| Outcome::Done)
    }

    fn change(self, file: &fs::File, number: usize) -> io::Result<()> {
        match self {
            Write { offset, len } => file.write_all_at(&pattern(len, number as u64), offset),
            Zeros { offset, len } => file.write_all_at(&vec![0; len], offset),
            Discard { offset, len } => {
                Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?)
            }
            Sync => file.sync_data(),
            Snapshot(_) | Rollback(_) | Delete(_) | Folded(_) => unreachable!("not of the file"),
        }
    }
}

/// How a step ended.
pub enum Outcome {
    Done,
    /// The volume's file could not be opened.
    NotBegun(io::Error),
    /// It may have been carried out all the same.
    Failed(io::Error),
}

impl Outcome {
    pub fn error(&self) -> Option<&io::Error> {
        match self {
            Self::Done => None,
            Self::NotBegun(e) | Self::Failed(e) => Some(e),
        }
    }
}

/// What the region holds: the volume's bytes, and those of each snapshot.
#[derive(Clone, PartialEq)]
pub struct State {
    pub disk: Vec<u8>,
    pub snapshots: BTreeMap<&'static str, Vec<u8>>,
}

impl State {
    pub fn new() -> Self {
        Self { disk: vec![0; SIZE], snapshots: BTreeMap::new() }
    }

    pub fn after(&self, number: usize, step: Step) -> Self {
        let mut next = self.clone();
        let mut put = |offset: u64, bytes: &[u8]| {
            next.disk[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        };
        match step {
            Write { offset, len } => put(offset, &pattern(len, number as u64)),
            Zeros { offset, len } => put(offset, &vec![0; len]),
            Discard { offset, len } => put(offset, &vec![0; len as usize]),
            Snapshot(name) => drop(next.snapshots.insert(name, self.disk.clone())),
            Rollback(name) => next.disk.clone_from(self.snapshots.get(name).unwrap_or(&self.disk)),
            Delete(name) => drop(next.snapshots.remove(name)),
            Sync | Folded(_) => {}
        }
        next
    }

    /// What a mounted region holds now.
    pub fn found(world: &World) -> Self {
        let read = |name| (name, read_at(&world.snapshot_file(name), 0, SIZE).unwrap());
        Self {
            disk: read_at(&world.file("web"), 0, SIZE).unwrap(),
            snapshots: listed(world).into_iter().map(read).collect(),
        }
    }
}

/// The script's snapshots that the region lists.
pub fn listed(world: &World) -> Vec<&'static str> {
    let listed = world.json(&["snapshot", "list"]);
    let is_there = |name: &&str| listed.as_array().unwrap().iter().any(|s| s["name"] == **name);
    ["one", "three", "two"].into_iter().filter(is_there).collect()
}

/// Keeps the region as it is, for [`put_back`].
pub fn keep(world: &World) {
    fs::create_dir(world.path("kept")).unwrap();
    copy(world, "", "kept/");
}

pub fn put_back(world: &World) {
    ["r", "config"].iter().for_each(|name| drop(fs::remove_dir_all(world.path(name))));
    copy(world, "kept/", "");
}

fn copy(world: &World, from: &str, to: &str) {
    for name in ["r", "config"] {
        let (source, target) = (world.at(&format!("{from}{name}")), world.at(&format!("{to}{name}")));
        must("cp", &["-a", "--sparse=always", &source, &target]);
    }
}
