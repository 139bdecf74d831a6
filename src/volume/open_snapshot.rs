//! A snapshot whose file is open: it can't be deleted meanwhile, by the process that has it open or by another.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::folder::ReadLock;
use super::read::Stack;
use crate::ids::{SnapshotId, VolumeId};
use crate::sys::process;

type Openings = HashMap<SnapshotId, Vec<u32>>;

/// The snapshots a process has open, and for whom: the process, once an opening.
#[derive(Default)]
pub struct SnapshotOpeners(Mutex<Openings>);

/// While this lives, no snapshot is opened; so that one that nobody has open can be deleted.
pub struct NobodyOpens<'o>(#[allow(dead_code)] MutexGuard<'o, Openings>);

impl SnapshotOpeners {
    /// Counts an opening by a thread.
    pub(super) fn enter(self: &Arc<Self>, id: SnapshotId, thread: u32) -> Opening {
        let opener = process::process_of_thread(thread);
        self.0.lock().entry(id).or_default().push(opener);
        Opening { openers: self.clone(), id, opener }
    }

    /// Keeps everybody from opening; or, if somebody has the snapshot open, says who.
    pub(super) fn keep_out(&self, id: SnapshotId) -> Result<NobodyOpens<'_>, Vec<u32>> {
        let openings = self.0.lock();
        match openings.get(&id) {
            Some(pids) => Err(pids.clone()),
            None => Ok(NobodyOpens(openings)),
        }
    }
}

/// An opening, counted until dropped.
pub(super) struct Opening {
    openers: Arc<SnapshotOpeners>,
    id: SnapshotId,
    opener: u32,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut openings = self.openers.0.lock();
        let Some(pids) = openings.get_mut(&self.id) else { return };
        if let Some(at) = pids.iter().position(|pid| *pid == self.opener) {
            pids.swap_remove(at);
        }
        if pids.is_empty() {
            openings.remove(&self.id);
        }
    }
}

/// A snapshot with its file open.
pub struct OpenSnapshot {
    /// Its disk.
    pub stack: Stack,
    /// The volume that its row says it to be of.
    pub volume: Option<VolumeId>,
    pub(super) _opening: Opening,
    /// Against the process that owns the layers, where that is another.
    pub(super) _lock: Option<ReadLock>,
}
