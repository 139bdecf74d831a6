//! Two snapshots compared by content, across regions and keys: by their proofs, which moves no data, or by reading both whole.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::{CopyError, Result};
use super::pace::Pace;
use super::verity::{SALT_LEN, Verity};
use crate::catalog::Snapshot;
use crate::crypto::ProofKey;
use crate::ids::{Point, SnapshotId};
use crate::units::SECTOR_BYTES;
use crate::volume::folder::{self, ReadLock};
use crate::volume::proof::{self, Leaves, Proof, Reading, measure};
use crate::volume::{Host, HostError, Moments, Stack};

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

/// What reading a whole snapshot gave.
pub struct Measured {
    leaves: Leaves,
    /// The root by the disk's own proof key.
    pub root: [u8; 16],
    /// The root of dm-verity's tree, if it was asked for.
    pub verity_root: Option<[u8; 32]>,
    /// What its own proof says otherwise; none: it had none.
    pub against_proof: Option<Differing>,
}

impl Side {
    /// Opens a snapshot, which must be whole.
    pub fn open(host: &Arc<Host>, snapshot: SnapshotId) -> Result<Self> {
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

    /// Reads all of it, and makes its proof where it has none. `key`: by whose leaves are wanted, else its own.
    pub fn measure(
        &self,
        by: &Self,
        salt: Option<[u8; SALT_LEN]>,
        watch: &mut VerifyWatch,
    ) -> Result<Measured> {
        let verity = salt.map(Verity::new);
        let (cancel, pace) = (watch.cancel, watch.pace);
        let is_over = || cancel.load(Ordering::Relaxed);
        let reading = Reading {
            admit: &|bytes| pace.map_or(!is_over(), |pace| pace.claim(bytes, is_over)),
            each: &|chunk, bytes| {
                if let Some(verity) = &verity {
                    verity.chunk(chunk, bytes);
                }
            },
        };
        let leaves = measure(&self.disk, &by.key, &reading, |read| {
            (watch.progress)(read);
            if is_over() { Err(CopyError::Interrupted) } else { Ok(()) }
        })?;
        let is_own = self.key.is(&by.key);
        Ok(Measured {
            root: leaves.root(&by.key),
            verity_root: verity.map(|verity| verity.root(leaves.size_bytes())),
            against_proof: if is_own { self.check_proof(&leaves)? } else { None },
            leaves,
        })
    }

    /// What its proof says otherwise; where it has none, or one that can't be read, it is given this one.
    fn check_proof(&self, leaves: &Leaves) -> Result<Option<Differing>> {
        let region = self.host.region();
        let read = proof::read(region, &self.row, self.point);
        let said = read.and_then(|proof| {
            proof.map(|proof| proof.leaves(&self.key).map_err(HostError::from)).transpose()
        });
        match said {
            Ok(Some(said)) => return Ok(Some(Differing::between(&said, leaves))),
            Ok(None) => {}
            Err(error) => tracing::warn!(snapshot = %self.row.id, %error, "its proof is made anew"),
        }
        proof::write(region, &self.row, self.point, leaves, &self.key)?;
        Ok(None)
    }
}

/// Compares two snapshots by their proofs. Where the roots are equal nothing else is looked at.
pub fn compare_proofs(a: &Side, b: &Side) -> Result<Differing> {
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
    if of_a.head == of_b.head {
        return Ok(Differing { chunks: Vec::new(), sizes: false });
    }
    let open = |proof: &Proof, side: &Side| proof.leaves(&side.key).map_err(CopyError::from);
    Ok(Differing::between(&open(&of_a, a)?, &open(&of_b, b)?))
}

/// Compares what two readings gave, by one key.
pub fn compare_measured(a: &Measured, b: &Measured) -> Differing {
    Differing::between(&a.leaves, &b.leaves)
}

/// Whether a base's content is known to be another than the source's at that moment; so it is none.
pub(super) fn disagrees(source: &Host, base: (&Host, &Snapshot), point: Point) -> Result<bool> {
    let Some(there) = proof::find_head(base.0.region(), base.1, point) else { return Ok(false) };
    let here = source.region().catalog()?.read(|tx| tx.snapshots_at_point(point))?;
    let heads = here.iter().filter_map(|row| proof::find_head(source.region(), row, point));
    Ok(heads.into_iter().any(|head| head != there))
}
