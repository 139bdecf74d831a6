//! A host's volumes and snapshots as the files of a mount.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, Entry, Errno, Export, Shelf};
use crate::catalog::{Snapshot, SnapshotState, Volume};
use crate::ids::{LayerId, SnapshotId, VolumeId};
use crate::units::SectorNo;
use crate::volume::{Host, HostError, OpenSnapshot, OpenVolume, VolumeError};

/// Damaged sectors that are told of; a disk that is damaged all over is told of this often.
const TOLD_MAX: usize = 1024;

/// What a mount of a region shows.
pub struct Shelves {
    host: Arc<Host>,
    /// Volumes can be opened; else snapshots alone.
    read_write: bool,
}

impl Shelves {
    /// Of this host.
    pub fn new(host: Arc<Host>, read_write: bool) -> Self {
        Self { host, read_write }
    }
}

fn of_volume(volume: Volume) -> Entry {
    Entry {
        id: volume.id.to_string(),
        name: volume.name.map(|n| n.to_string()),
        size_bytes: volume.size_bytes,
        created_at: volume.created_at.as_second(),
    }
}

fn of_snapshot(snapshot: Snapshot) -> Entry {
    Entry {
        id: snapshot.id.to_string(),
        name: Some(snapshot.name.to_string()),
        size_bytes: snapshot.size_bytes,
        created_at: snapshot.created_at.as_second(),
    }
}

fn told<T>(what: &str, result: Result<T, HostError>) -> Result<T, Errno> {
    result.map_err(|e| {
        tracing::error!("{what}: {e}");
        e.errno()
    })
}

impl Export for Shelves {
    fn list(&self, shelf: Shelf) -> Result<Vec<Entry>, Errno> {
        let list = || -> Result<Vec<Entry>, HostError> {
            let mut catalog = self.host.region().catalog()?;
            Ok(match shelf {
                Shelf::Volumes if self.read_write => {
                    let volumes = catalog.read(|tx| tx.volumes())?;
                    volumes.into_iter().filter(|v| !v.deleting).map(of_volume).collect()
                }
                Shelf::Volumes => Vec::new(),
                Shelf::Snapshots => {
                    let snapshots = catalog.read(|tx| tx.snapshots())?;
                    let whole = snapshots.into_iter().filter(|s| s.state == SnapshotState::Success);
                    whole.map(of_snapshot).collect()
                }
            })
        };
        let mut entries = told("the catalog", list())?;
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(entries)
    }

    fn find(&self, shelf: Shelf, id: &str) -> Result<Option<Entry>, Errno> {
        let find = || -> Result<Option<Entry>, HostError> {
            let mut catalog = self.host.region().catalog()?;
            Ok(match shelf {
                Shelf::Volumes => {
                    let Ok(id) = id.parse::<VolumeId>() else { return Ok(None) };
                    let found = catalog.read(|tx| tx.find_volume(id))?;
                    found.filter(|v| self.read_write && !v.deleting).map(of_volume)
                }
                Shelf::Snapshots => {
                    let Ok(id) = id.parse::<SnapshotId>() else { return Ok(None) };
                    let found = catalog.read(|tx| tx.find_snapshot(id))?;
                    found.filter(|s| s.state == SnapshotState::Success).map(of_snapshot)
                }
            })
        };
        told("the catalog", find())
    }

    fn find_by_name(&self, shelf: Shelf, name: &str) -> Result<Option<Entry>, Errno> {
        let find = || -> Result<Option<Entry>, HostError> {
            let mut catalog = self.host.region().catalog()?;
            Ok(match shelf {
                Shelf::Volumes => {
                    let found = catalog.read(|tx| tx.find_volume_by_name(name))?;
                    found.filter(|v| self.read_write && !v.deleting).map(of_volume)
                }
                Shelf::Snapshots => {
                    let found = catalog.read(|tx| tx.find_snapshot_by_name(name))?;
                    found.filter(|s| s.state == SnapshotState::Success).map(of_snapshot)
                }
            })
        };
        told("the catalog", find())
    }

    fn open(&self, shelf: Shelf, id: &str, write: bool, opener: u32) -> Result<Arc<dyn Disk>, Errno> {
        let what = format!("{id} can't be opened");
        match shelf {
            Shelf::Volumes => {
                let id: VolumeId = id.parse().map_err(|_| libc::ENOENT)?;
                if !self.read_write {
                    return Err(libc::EROFS);
                }
                let mut anew_once = false;
                let open = loop {
                    let open = told(&what, self.host.open_volume(id, true))?;
                    // A volume that was latched starts anew once nobody has it open any more.
                    // Once: what is latched may be a layer that somebody else holds.
                    let anew = !anew_once && open.is_latched() && self.host.forget_latched(id);
                    anew_once |= anew;
                    if !anew && open.enter(opener) {
                        break open;
                    }
                    // It was rolled back or deleted between the two.
                    std::thread::yield_now();
                };
                Ok(Arc::new(VolumeDisk { open, told: Told::default() }))
            }
            Shelf::Snapshots => {
                let id: SnapshotId = id.parse().map_err(|_| libc::ENOENT)?;
                if write {
                    return Err(libc::EROFS);
                }
                let open = told(&what, self.host.open_snapshot_file(id, opener))?;
                let size_bytes = open.stack.size_bytes();
                Ok(Arc::new(SnapshotDisk { id, open, size_bytes, told: Told::default() }))
            }
        }
    }

    fn close(&self, shelf: Shelf, id: &str, opener: u32) {
        // A snapshot's disk counts itself.
        let Shelf::Volumes = shelf else { return };
        let Some(open) = id.parse().ok().and_then(|id| self.host.find_live(id)) else { return };
        if open.leave(opener) {
            open.wake();
            self.host.wake_folding();
        }
    }

    fn space(&self) -> Result<(u64, u64), Errno> {
        let found = rustix::fs::statvfs(self.host.region().dir()).map_err(|e| e.raw_os_error())?;
        Ok((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
    }
}

/// Damaged sectors and map pages that were told of.
#[derive(Default)]
struct Told(Mutex<HashSet<(LayerId, SectorNo)>>);

impl Told {
    /// The errno of an error, which is told where it is not the caller's: of each damaged sector once.
    fn errno(&self, error: &VolumeError, tell: impl FnOnce(&VolumeError)) -> Errno {
        let anew = match error.damaged_place() {
            Some(place) => {
                let mut told = self.0.lock();
                told.len() < TOLD_MAX && told.insert(place)
            }
            None => error.errno() == libc::EIO,
        };
        if anew {
            tell(error);
        }
        error.errno()
    }
}

struct VolumeDisk {
    open: Arc<OpenVolume>,
    told: Told,
}

impl VolumeDisk {
    fn told<T>(&self, result: Result<T, VolumeError>) -> Result<T, Errno> {
        result.map_err(|e| self.told.errno(&e, |e| self.open.tell(e)))
    }
}

impl Disk for VolumeDisk {
    fn size_bytes(&self) -> u64 {
        self.open.disk.size_bytes()
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.told(self.open.disk.read(offset, into))
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.told(self.open.disk.write(offset, from))?;
        self.open.wrote(from.len() as u64);
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        self.told(self.open.disk.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.told(self.open.disk.discard(offset, len))?;
        self.open.wrote(0);
        Ok(())
    }

    fn seek(&self, offset: u64, hole: bool) -> Result<Option<u64>, Errno> {
        self.told(self.open.disk.seek(offset, hole))
    }
}

struct SnapshotDisk {
    id: SnapshotId,
    open: OpenSnapshot,
    size_bytes: u64,
    told: Told,
}

impl SnapshotDisk {
    fn told<T>(&self, result: Result<T, VolumeError>) -> Result<T, Errno> {
        let tell = |e: &VolumeError| match self.open.volume {
            Some(volume) => tracing::error!("snapshot {} of volume {volume}: {e}", self.id),
            None => tracing::error!("snapshot {}: {e}", self.id),
        };
        result.map_err(|e| self.told.errno(&e, tell))
    }
}

impl Disk for SnapshotDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let done = into
            .chunks_mut(1 << 20)
            .enumerate()
            .try_for_each(|(i, piece)| self.open.stack.read(offset + ((i as u64) << 20), piece));
        self.told(done)
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), Errno> {
        Err(libc::EROFS)
    }

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> Result<(), Errno> {
        Err(libc::EROFS)
    }

    fn seek(&self, offset: u64, hole: bool) -> Result<Option<u64>, Errno> {
        self.told(self.open.stack.seek(offset, hole))
    }
}
