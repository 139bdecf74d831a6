//! Two snapshots compared by content, across regions and keys: by their proofs, which moves no data, or by reading both whole.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::error::{CopyError, Result};
use super::verity::{SALT_LEN, Verity};
use crate::catalog::Snapshot;
use crate::crypto::ProofKey;
use crate::ids::{Point, SnapshotId};
use crate::layer::LayerError;
use crate::units::SECTOR_BYTES;
use crate::volume::folder::{self, ReadLock};
use crate::volume::pace::Pace;
use crate::volume::proof::{self, Leaves, Proof, Reading, Rests, measure};
use crate::volume::{Host, HostError, Moments, Stack, VolumeError};

/// A snapshot is opened so often where folds take away, between two steps, what was about to be opened.
const TRIES: usize = 10;

/// A snapshot that is compared: open, and held against deletion.
pub struct Side {
    host: Arc<Host>,
    row: Snapshot,
    point: Point,
    disk: Stack,
    key: ProofKey,
    _lock: ReadLock,
}

/// What two contents have not in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differing {
    /// Runs of chunks, in order.
    pub chunks: Vec<Range<u64>>,
    /// The disks are of different sizes.
    pub sizes: bool,
}

impl Differing {
    /// Whether there is nothing.
    pub fn is_nothing(&self) -> bool {
        self.chunks.is_empty() && !self.sizes
    }

    fn between(a: &Leaves, b: &Leaves) -> Self {
        Self { chunks: a.differing(b), sizes: a.size_bytes() != b.size_bytes() }
    }
}

/// How a reading is watched and held back.
pub struct VerifyWatch<'a> {
    /// Set: it ends early.
    pub cancel: &'a AtomicBool,
    /// How fast sectors are read.
    pub pace: Option<&'a Pace>,
    /// Told the bytes that were read.
    pub progress: &'a mut dyn FnMut(u64),
}

/// What two proofs say.
pub struct Compared {
    /// What they have not in common.
    pub differing: Differing,
    /// The root of each.
    pub roots: [[u8; 16]; 2],
}

/// What reading a whole snapshot gave.
pub struct Measured {
    leaves: Leaves,
    /// The root, by the proof key that was asked for.
    pub root: [u8; 16],
    /// The root of dm-verity's tree, if it was asked for.
    pub verity_root: Option<[u8; 32]>,
    /// What became of its own proof.
    pub own_proof: OwnProof,
}

/// A snapshot's own proof, once all of it was read.
#[derive(Debug)]
pub enum OwnProof {
    /// It says what was read.
    Equal,
    /// It says something else. It stays.
    Differs(Differing),
    /// There was none; there is one now.
    Made,
    /// What was there was damaged; it was made anew.
    Replaced,
    /// It could not be read for another reason than damage, or not be written.
    Failed(HostError),
}

impl Side {
    /// Opens a snapshot, which must be whole.
    pub fn open(host: &Arc<Host>, snapshot: SnapshotId) -> Result<Self> {
        let mut tries = TRIES;
        loop {
            match Self::open_once(host, snapshot) {
                // A fold has just brought its moment into another layer.
                Err(CopyError::Host(error)) if is_gone(&error) && tries > 1 => tries -= 1,
                opened => return opened,
            }
        }
    }

    fn open_once(host: &Arc<Host>, snapshot: SnapshotId) -> Result<Self> {
        let lock = folder::lock_for_reading(host.region(), snapshot)?;
        let row = host.whole_snapshot(snapshot)?;
        let (disk, Moments { all, .. }) = host.open_snapshot_with_moments(snapshot)?;
        let top = disk.chain.layers().last();
        let (Some(top), Some(point)) = (top, all.first().copied()) else {
            return Err(
                HostError::unvouched(format!("snapshot {}", row.name), "its layer has no moment").into()
            );
        };
        let key = folder::proof_key(host.region(), top.id(), top.keys())?;
        Ok(Self { host: host.clone(), row, point, disk, key, _lock: lock })
    }

    /// Its row.
    pub fn row(&self) -> &Snapshot {
        &self.row
    }

    /// The name of its region.
    pub fn region(&self) -> &str {
        self.host.region().name()
    }

    /// Bytes of sectors that a reading reads, at most.
    pub fn data_bytes(&self) -> u64 {
        let layers = self.disk.chain.layers();
        layers.iter().map(|layer| layer.data_sectors() * SECTOR_BYTES).sum()
    }

    /// Its proof; refuses where it has none.
    pub fn proof(&self) -> Result<Proof> {
        let proof = proof::read(self.host.region(), &self.row, self.point)?;
        proof.ok_or_else(|| {
            let (name, region) = (&self.row.name, self.region());
            CopyError::refused(
                format!(
                    "snapshot {name} of region {region} has no proof: it was neither copied nor read whole"
                ),
                format!(
                    "terrane snapshot verify {name} --deep --region {region} reads all of it, and makes one"
                ),
            )
        })
    }

    /// Reads all of it, compares it with its own proof, and makes that where there is none or it is damaged. `by`: by whose proof key
    /// the leaves are that are compared. Refuses, before anything is read, where the proof may not be made anew.
    pub fn measure(
        &self,
        by: &Self,
        salt: Option<[u8; SALT_LEN]>,
        watch: &mut VerifyWatch,
    ) -> Result<Measured> {
        proof::check_replaceable(self.host.region(), self.row.id)?;
        let size = self.disk.size_bytes();
        let verity = salt.map(|salt| Verity::new(salt, size));
        // By its own key too, where that is another.
        let own = (!self.key.is(&by.key)).then(|| Mutex::new(Leaves::of_zeros(size)));
        let (cancel, pace) = (watch.cancel, watch.pace);
        let is_over = || cancel.load(Ordering::Relaxed);
        let reading = Reading {
            admit: &|bytes| pace.map_or(!is_over(), |pace| pace.claim(bytes, is_over)),
            each: &|chunk, bytes| {
                if let Some(verity) = &verity {
                    verity.chunk(chunk, bytes);
                }
                if let Some(own) = &own {
                    let words = self.key.words(chunk.first_sector(), bytes);
                    own.lock().change(chunk, words);
                }
            },
        };
        let leaves = measure(&self.disk, &by.key, &reading, |read| {
            (watch.progress)(read);
            if is_over() { Err(CopyError::Interrupted) } else { Ok(()) }
        })?;
        let own = own.map(Mutex::into_inner);
        Ok(Measured {
            root: leaves.root(&by.key),
            verity_root: verity.map(Verity::root),
            own_proof: self.check_proof(own.as_ref().unwrap_or(&leaves)),
            leaves,
        })
    }

    /// Compares its proof with what was read; where it has none, or one that is damaged, it is given this one.
    fn check_proof(&self, leaves: &Leaves) -> OwnProof {
        let region = self.host.region();
        let read = proof::read(region, &self.row, self.point);
        let said = read.and_then(|proof| {
            proof.map(|proof| proof.leaves(&self.key).map_err(HostError::from)).transpose()
        });
        let became = match said {
            Ok(Some(said)) => {
                let differing = Differing::between(&said, leaves);
                return if differing.is_nothing() { OwnProof::Equal } else { OwnProof::Differs(differing) };
            }
            Ok(None) => OwnProof::Made,
            Err(error) if is_damage(&error) => {
                tracing::warn!(snapshot = %self.row.id, %error, "its proof is made anew");
                OwnProof::Replaced
            }
            Err(error) => return OwnProof::Failed(error),
        };
        match proof::write(region, &self.row, self.point, leaves, &self.key, Rests::Bytes) {
            Ok(()) => became,
            Err(error) => OwnProof::Failed(error),
        }
    }
}

/// Whether what was to be opened is not there.
fn is_gone(error: &HostError) -> bool {
    let is_gone = |source: &io::Error| source.kind() == io::ErrorKind::NotFound;
    match error {
        HostError::Io { source, .. } => is_gone(source),
        HostError::Volume(VolumeError::Layer(LayerError::Io { source, .. })) => is_gone(source),
        other => other.is_missing_layer(),
    }
}

/// Whether a proof is not what was written, rather than closed to us or on a device that fails.
fn is_damage(error: &HostError) -> bool {
    match error {
        HostError::Volume(error) => error.is_corruption(),
        HostError::Io { source, .. } => source.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// Compares two snapshots by their proofs. Where the roots are equal nothing else is looked at.
pub fn compare_proofs(a: &Side, b: &Side) -> Result<Compared> {
    if !a.key.is(&b.key) {
        let message = format!(
            "snapshot {} of region {} and snapshot {} of region {} are not of one disk: their proofs have nothing in common",
            a.row.name,
            a.region(),
            b.row.name,
            b.region()
        );
        return Err(CopyError::refused(message, "compare what they hold: add --deep"));
    }
    let (of_a, of_b) = (a.proof()?, b.proof()?);
    let differing = match of_a.head.agrees_with(&of_b.head) {
        true => Differing { chunks: Vec::new(), sizes: false },
        false => Differing::between(&of_a.leaves(&a.key)?, &of_b.leaves(&b.key)?),
    };
    Ok(Compared { differing, roots: [of_a.head.root, of_b.head.root] })
}

/// Compares what two readings gave, by one key.
pub fn compare_measured(a: &Measured, b: &Measured) -> Differing {
    Differing::between(&a.leaves, &b.leaves)
}

/// Whether a base's content is known to be another than the source's at that moment; so it is none.
pub(super) fn disagrees(source: &Host, base: (&Host, &Snapshot), point: Point) -> Result<bool> {
    let Some(there) = proof::try_find_head(base.0.region(), base.1, point)? else { return Ok(false) };
    for row in source.region().catalog()?.read(|tx| tx.snapshots_at_point(point))? {
        let here = proof::try_find_head(source.region(), &row, point)?;
        if here.is_some_and(|head| !head.agrees_with(&there)) {
            return Ok(true);
        }
    }
    Ok(false)
}
