//! Whether a copy may be made, on what, and what it has to carry. Reads catalogs and maps, and no sector.

use std::sync::Arc;

use super::begun::Begun;
use super::difference::{Difference, Gap, Standing};
use super::error::{CopyError, Result};
use super::verify::disagrees;
use crate::catalog::{KeyState, Kind, Layer as LayerRow, ReadTx, Setting, Snapshot};
use crate::crypto::{Cipher, ProofKey};
use crate::ids::{KeyId, LayerId, Name, Point, SnapshotId};
use crate::kms::{self, KmsError};
use crate::region::Region;
use crate::units::SECTOR_BYTES;
use crate::volume::folder::{self, ReadLock};
use crate::volume::{Chain, Host, HostError, Moments, Stack, bookmarks, footing};

/// Under what a copy, or another new disk, is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KeyChoice {
    /// Nothing was said. A copy: as its source, plain or encrypted under the target's default key.
    #[default]
    AsSource,
    /// Encrypted under the default key of the region where it lies.
    Default,
    /// Encrypted under this key of that region: an id, an alias, or the beginning of an id.
    Named(String),
    /// Plain.
    Plain,
}

/// A snapshot at the target that a copy is put on, or takes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The snapshot; where a copy that is taken up stands on a layer that has lost its name, that copy.
    pub snapshot: SnapshotId,
    /// Its layer.
    pub layer: LayerId,
    /// The moment both sides have.
    pub point: Point,
    /// It is under another key: the copy stands alone, and what it has of the base is encrypted anew at the target (X1).
    pub is_reencrypted: bool,
}

/// A base that was found, its disk, and what keeps it there while it is read.
struct FoundBase {
    base: Base,
    disk: Chain,
    lock: Option<ReadLock>,
}

/// What a copy will be, and what it costs.
pub struct Plan {
    /// The source as it was found.
    pub(super) source: Snapshot,
    /// The points of the source's layer and of all below it, nearest first.
    pub(super) points: Vec<Point>,
    /// The moment of each layer of the source, oldest first.
    pub(super) of_layers: Vec<Point>,
    /// What the copy is put on or takes from; none: all that is stored is shipped.
    pub base: Option<Base>,
    /// Bytes that are read from the source, encrypted anew and written.
    pub ship_bytes: u64,
    /// Bytes that the target encrypts anew from a base under another key.
    pub reencrypt_bytes: u64,
    /// Bytes written or discarded since the base.
    pub changed_bytes: u64,
    /// The key of the copy; none: plain.
    pub key: Option<KeyId>,
    /// How its sectors are encrypted.
    pub cipher: Cipher,
    /// What the content of the disk is known by, on both sides.
    pub(super) proof_key: Arc<ProofKey>,
    pub(super) difference: Difference,
    /// While they are held neither the source nor a base that is read can be deleted.
    _locks: (ReadLock, Option<ReadLock>),
}

impl Plan {
    /// The base that the copy's layer is put on.
    pub(super) fn parent(&self) -> Option<&Base> {
        self.base.as_ref().filter(|base| !base.is_reencrypted)
    }

    /// The moments of the source that the copy's layer holds beside its own, nearest first: those after what it is put on.
    pub(super) fn points_within(&self) -> &[Point] {
        let base = self.parent().and_then(|base| self.points.iter().position(|point| *point == base.point));
        self.points.get(1..base.unwrap_or(self.points.len())).unwrap_or_default()
    }

    /// Bytes that the copy's layer will hold.
    pub fn write_bytes(&self) -> u64 {
        self.ship_bytes + self.reencrypt_bytes
    }
}

/// Plans a copy of a snapshot of `source` to `target` under `name`, or refuses it. Changes nothing.
pub fn plan(
    source: &Host,
    snapshot: SnapshotId,
    target: &Host,
    name: &Name,
    key: &KeyChoice,
) -> Result<Plan> {
    let row = source.whole_snapshot(snapshot)?;
    let same_region = source.region().id() == target.region().id();
    let key = target.region().catalog()?.read(|tx| {
        tx.refuse_taken_name(Kind::Snapshot, name)?;
        key_of_copy(tx, &row, key, same_region)
    })?;
    plan_by(source, row, key, |points, size_bytes| find_proven_base(source, target, points, size_bytes, key))
}

/// Plans a copy that waits, under the rules of now, which may be others than when it was asked for.
pub(super) fn plan_waiting(
    source: &Host,
    snapshot: SnapshotId,
    target: &Host,
    key: Option<KeyId>,
) -> Result<Plan> {
    let row = source.whole_snapshot(snapshot)?;
    let same_region = source.region().id() == target.region().id();
    let key = target.region().catalog()?.read(|tx| key_of_copy(tx, &row, &choice_of(key), same_region))?;
    plan_by(source, row, key, |points, size_bytes| find_proven_base(source, target, points, size_bytes, key))
}

/// The plan of a copy that waits, or has begun, as it will be gone on with; nothing is changed, and its layer is not opened.
pub fn plan_asked(source: &Host, target: &Host, begun: &Snapshot) -> Result<Plan> {
    let snapshot = source_of(begun)?;
    let Some(layer) = begun.layer else { return plan_waiting(source, snapshot, target, begun.key) };
    let parent = target.region().catalog()?.read(|tx| -> Result<_> {
        let parent = tx.layer(layer)?.parent;
        Ok(parent.map(|parent| tx.layer(parent)).transpose()?)
    })?;
    let row = source.whole_snapshot(snapshot)?;
    plan_by(source, row, begun.key, |points, size_bytes| {
        let Some(parent) = &parent else {
            return proven(source, target, find_base_beside(target, points, size_bytes, begun.key)?);
        };
        let Some(point) = parent.point else { return Ok(None) };
        let names = target.region().catalog()?.read(|tx| tx.snapshots_of_layer(parent.id))?;
        let snapshot = names.first().map_or(begun.id, |named| named.id);
        let base = Base { snapshot, layer: parent.id, point, is_reencrypted: false };
        Ok(Some(FoundBase { base, disk: target.open_chain(parent.id)?.chain, lock: None }))
    })
}

/// What a copy is made of, by its row.
fn source_of(copy: &Snapshot) -> Result<SnapshotId> {
    let named = copy.source_snapshot.as_deref().and_then(|id| id.parse().ok());
    named.ok_or_else(|| HostError::unvouched(copy_words(copy), "its row names no source").into())
}

/// A copy in words.
pub(super) fn copy_words(copy: &Snapshot) -> String {
    format!("the copy {} ({})", copy.name, copy.id)
}

/// Plans what is left of a copy that was begun, under the rules of now: on what its layer was put on, and of no other key.
pub(super) fn plan_rest(source: &Host, target: &Host, begun: &Begun) -> Result<Plan> {
    let snapshot = source_of(&begun.snapshot)?;
    let row = source.whole_snapshot(snapshot)?;
    let same_region = source.region().id() == target.region().id();
    let choice = choice_of(begun.row.key);
    let key = target.region().catalog()?.read(|tx| key_of_copy(tx, &row, &choice, same_region))?;
    plan_by(source, row, key, |points, size_bytes| {
        // Its layer stands alone: what it takes from a base may as well come from another one.
        let Some((layer, point)) = begun.stands_on else {
            return proven(source, target, find_base_beside(target, points, size_bytes, key)?);
        };
        let named = target.region().catalog()?.read(|tx| tx.snapshots_of_layer(layer))?;
        let named = named.iter().find(|named| named.state.is_whole());
        let snapshot = named.map_or(begun.snapshot.id, |named| named.id);
        let base = Base { snapshot, layer, point, is_reencrypted: false };
        // A fold may have put another layer in its place since the copy was taken up: it is taken up again.
        let opened = target.open_chain(layer).map_err(|error| match &error {
            HostError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => overtaken(),
            missing if missing.is_missing_layer() => overtaken(),
            _ => error.into(),
        });
        let disk = opened?.chain;
        if let Some(top) = disk.layers().last() {
            footing::check_pair(target.region(), top, &begun.layer)?;
        }
        Ok(Some(FoundBase { base, disk, lock: None }))
    })
}

fn overtaken() -> CopyError {
    CopyError::Overtaken { what: "the layer that it stands on".into() }
}

/// A key that was chosen before.
fn choice_of(key: Option<KeyId>) -> KeyChoice {
    key.map_or(KeyChoice::Plain, |key| KeyChoice::Named(key.to_string()))
}

/// Under what a copy under this key is.
fn cipher_of(key: Option<KeyId>) -> Cipher {
    if key.is_some() { Cipher::XtsAes256 } else { Cipher::Plain }
}

/// A plan on the base that `find_base` gives for the source's points, nearest first, and size.
fn plan_by(
    source: &Host,
    row: Snapshot,
    key: Option<KeyId>,
    find_base: impl FnOnce(&[Point], u64) -> Result<Option<FoundBase>>,
) -> Result<Plan> {
    let snapshot = row.id;
    let lock = folder::lock_for_reading(source.region(), snapshot)?;
    if source.region().catalog()?.read(|tx| tx.find_snapshot(snapshot))?.is_none() {
        return Err(CopyError::Overtaken { what: format!("snapshot {}", row.name) });
    }
    // All by its layers' own word: what a row says would leave out what differs.
    let (stack, Moments { of_layers, all: points }, proof_key) = open_source(source, snapshot)?;
    let found = find_base(&points, row.size_bytes)?;
    let over = |found: Option<&FoundBase>| {
        let own = Own { region: source.region(), points: &points, of_layers: &of_layers, disk: &stack.chain };
        let difference = difference_over(found, &own, row.size_bytes);
        difference.count().map(|counts| (difference, counts))
    };
    let (found, (difference, counts)) = match over(found.as_ref()) {
        Ok(counted) => (found, counted),
        // Perhaps for the base's map: what can't be read is no base.
        Err(error)
            if found.as_ref().is_some_and(|found| found.base.is_reencrypted) && !error.is_of_open_files() =>
        {
            tracing::warn!(%error, "a base under another key is not used");
            (None, over(None)?)
        }
        Err(error) => return Err(error),
    };
    let (base, base_lock) = found.map(|found| (found.base, found.lock)).unzip();
    Ok(Plan {
        points,
        of_layers,
        base,
        ship_bytes: counts.data * SECTOR_BYTES,
        reencrypt_bytes: counts.of_base * SECTOR_BYTES,
        changed_bytes: (counts.data + counts.zero) * SECTOR_BYTES,
        key,
        cipher: cipher_of(key),
        proof_key,
        difference,
        source: row,
        _locks: (lock, base_lock.flatten()),
    })
}

/// A source's disk, its moments, and what its content is known by.
fn open_source(source: &Host, snapshot: SnapshotId) -> Result<(Stack, Moments, Arc<ProofKey>)> {
    let mut tries = 0;
    loop {
        let (stack, moments) = source.open_snapshot_with_moments(snapshot)?;
        let Some(top) = stack.chain.layers().last() else {
            return Err(CopyError::Overtaken { what: "a snapshot's layer".into() });
        };
        match folder::proof_key(source.region(), top.id(), top.keys()) {
            Ok(key) => return Ok((stack, moments, Arc::new(key))),
            // A fold has taken the layer away since it was opened.
            Err(HostError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound && tries < 5 =>
            {
                tries += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A source by its layers' own word: all its moments, nearest first, those of its layers, oldest first, and its disk.
struct Own<'a> {
    region: &'a Region,
    points: &'a [Point],
    of_layers: &'a [Point],
    disk: &'a Chain,
}

/// What a source holds over a base.
fn difference_over(found: Option<&FoundBase>, source: &Own, size_bytes: u64) -> Difference {
    let layers = source.disk.layers();
    let Some(FoundBase { base, disk: below, .. }) = found else {
        return Difference::new(layers.to_vec(), size_bytes, source.disk.clone(), Standing::Alone, Gap::None);
    };
    // A layer that was folded holds what changed since its lower neighbour's point: more than is asked, never less. So does one
    // of a moment that is not listed.
    let place = |point: &Point| source.points.iter().position(|p| p == point);
    let base_place = place(&base.point).unwrap_or(usize::MAX);
    let is_above = |point: &&Point| place(point).is_none_or(|at| at < base_place);
    let count = source.of_layers.iter().rev().take_while(is_above).count();
    let mut above = &layers[layers.len() - count..];
    let mut gap = if source.of_layers.contains(&base.point) { Gap::None } else { Gap::Unknown };
    // Where a bookmark says which sectors of the lowest changed since, they need not be all that it records.
    if let Some((lowest, others)) = above.split_first() {
        let own = source.of_layers[layers.len() - count];
        let changed = bookmarks::changed_since(source.region, lowest.id(), lowest.keys(), own, base.point);
        if let Some(changed) = changed {
            (above, gap) = (others, Gap::Changed(Arc::new(changed)));
        }
    }
    let standing = match base.is_reencrypted {
        true => Standing::Beside(below.clone()),
        false => Standing::Above(below.clone()),
    };
    Difference::new(above.to_vec(), size_bytes, source.disk.clone(), standing, gap)
}

/// The rules S1–S20: the key a copy will be under, none for a plain one, or why there may be no copy.
pub(super) fn key_of_copy(
    tx: &ReadTx,
    source: &Snapshot,
    choice: &KeyChoice,
    same_region: bool,
) -> Result<Option<KeyId>> {
    let encrypted = source.cipher != Cipher::Plain;
    let to_plain = match choice {
        KeyChoice::Plain => true,
        KeyChoice::AsSource => !encrypted,
        KeyChoice::Default | KeyChoice::Named(_) => false,
    };
    if to_plain && encrypted {
        let message = format!("snapshot {} is encrypted: a copy of it can't be plain", source.name);
        return Err(CopyError::refused(message, "leave --unencrypted out, or give --key"));
    }
    if to_plain && same_region {
        let message = format!(
            "snapshot {} is plain and of region {} already: a plain copy there is refused",
            source.name,
            tx.region()
        );
        return Err(CopyError::refused(message, "copy it to another region, or give --encrypt or --key"));
    }
    if to_plain {
        return Ok(None);
    }
    let region = tx.region();
    let switches = [
        (
            Setting::CopyAndEncrypt,
            "region {} does not offer copy-and-encrypt",
            "region set copy_and_encrypt=true",
        ),
        (
            Setting::KmsEnabled,
            "the KMS of region {} is not enabled, and an encrypted copy needs it",
            "kms enable",
        ),
        (
            Setting::StorageAuthorized,
            "the storage of region {} is not authorised to use its KMS, and an encrypted copy needs that",
            "kms authorize",
        ),
    ];
    for (setting, sentence, command) in switches {
        if !tx.flag(setting)? {
            let hint = format!("terrane {command} --region {region}");
            return Err(CopyError::refused(sentence.replace("{}", region), hint));
        }
    }
    let key = match choice {
        KeyChoice::Named(text) => tx.resolve_key(text)?,
        _ => tx.default_key()?,
    };
    if same_region && source.key == Some(key.id) {
        let message = format!("snapshot {} of region {region} is under key {} already", source.name, key.id);
        return Err(CopyError::refused(message, "give another --key, or copy it to another region"));
    }
    match key.state {
        KeyState::Enabled => Ok(Some(key.id)),
        KeyState::Disabled => Err(KmsError::Disabled { key: key.id, region: region.into() }.into()),
        KeyState::PendingDeletion => {
            Err(KmsError::PendingDeletion { key: key.id, region: region.into() }.into())
        }
    }
}

/// What a new copy is put on, or takes from.
fn find_proven_base(
    source: &Host,
    target: &Host,
    points: &[Point],
    size_bytes: u64,
    key: Option<KeyId>,
) -> Result<Option<FoundBase>> {
    proven(source, target, find_base(target, points, size_bytes, key)?)
}

/// A base, unless its proof is another than that of the source's own snapshot of that moment.
fn proven(source: &Host, target: &Host, found: Option<FoundBase>) -> Result<Option<FoundBase>> {
    let Some(found) = found else { return Ok(None) };
    let Base { snapshot, point, .. } = found.base;
    let row = target.region().catalog()?.read(|tx| tx.find_snapshot(snapshot))?;
    if let Some(row) = row
        && disagrees(source, (target, &row), point)?
    {
        tracing::warn!(%snapshot, "its proof is another than that of the source: not used as a base");
        return Ok(None);
    }
    Ok(Some(found))
}

/// The nearest base under the copy's own key, however old, else the nearest under another: what is encrypted anew is written
/// and stored whole, each time.
fn find_base(
    target: &Host,
    points: &[Point],
    size_bytes: u64,
    key: Option<KeyId>,
) -> Result<Option<FoundBase>> {
    match find_base_below(target, points, size_bytes, key)? {
        Some(found) => Ok(Some(found)),
        None => find_base_beside(target, points, size_bytes, key),
    }
}

/// A readable snapshot at the target of the nearest moment the source also went through, whose every layer is under the
/// copy's key; and its disk.
fn find_base_below(
    target: &Host,
    points: &[Point],
    size_bytes: u64,
    key: Option<KeyId>,
) -> Result<Option<FoundBase>> {
    let cipher = cipher_of(key);
    nearest(target, points, size_bytes, |snapshot, point| {
        let Some(layer) = snapshot.layer else { return Ok(None) };
        let chain = match target.region().catalog()?.read(|tx| tx.layer_chain(layer)) {
            Err(error) if error.is_of_open_files() => return Err(error.into()),
            chain => chain,
        };
        let alike = |l: &LayerRow| l.key == key && l.cipher == cipher && l.state.is_sealed();
        match chain.is_ok_and(|chain| chain.iter().all(alike)) {
            true => open_base(target, snapshot, point, false),
            false => Ok(None),
        }
    })
}

/// A readable snapshot of the nearest moment under another key. A plain copy has none that is encrypted.
fn find_base_beside(
    target: &Host,
    points: &[Point],
    size_bytes: u64,
    key: Option<KeyId>,
) -> Result<Option<FoundBase>> {
    nearest(target, points, size_bytes, |snapshot, point| {
        if key.is_none() && snapshot.cipher != Cipher::Plain {
            return Ok(None);
        }
        if let Some(key) = snapshot.key {
            kms::check_usable(target.region(), key)?;
        }
        open_base(target, snapshot, point, true)
    })
}

/// A base, if its layer says itself that it is of this moment.
fn open_base(
    target: &Host,
    snapshot: &Snapshot,
    point: Point,
    is_reencrypted: bool,
) -> Result<Option<FoundBase>> {
    // What is put on it keeps its layers; what only reads it has to hold it.
    let lock = folder::lock_for_reading(target.region(), snapshot.id)?;
    let (stack, moments) = target.open_snapshot_with_moments(snapshot.id)?;
    let top = stack.chain.layers().last().filter(|_| moments.of_layers.last() == Some(&point));
    let base = top.map(|layer| Base { snapshot: snapshot.id, layer: layer.id(), point, is_reencrypted });
    Ok(base.map(|base| FoundBase { base, disk: stack.chain, lock: is_reencrypted.then_some(lock) }))
}

/// The first that `open` gives of the target's snapshots of the source's moments, nearest first.
fn nearest(
    target: &Host,
    points: &[Point],
    size_bytes: u64,
    open: impl Fn(&Snapshot, Point) -> Result<Option<FoundBase>>,
) -> Result<Option<FoundBase>> {
    for point in points {
        let candidates = target.region().catalog()?.read(|tx| tx.snapshots_at_point(*point))?;
        for snapshot in candidates.into_iter().filter(|s| s.size_bytes <= size_bytes) {
            match open(&snapshot, *point) {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                // It is there, and another time it can be read: without it all would be shipped.
                Err(error) if error.is_of_open_files() => return Err(error),
                // What can't be read is no base; the copy carries more then.
                Err(error) => tracing::warn!(snapshot = %snapshot.id, error = %error, "not used as a base"),
            }
        }
    }
    Ok(None)
}
