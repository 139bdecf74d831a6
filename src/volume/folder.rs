//! A layer's folder in a region: `layers/<id>/{header.toml, data, map}`, made, opened and removed.
//!
//! A row precedes its folder (`preparing`) and outlives it (`deleting`) (rule 22). What lies in a region is not
//! trusted: files are opened as [`crate::sys::owned`] says.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use super::bookmarks;
use super::footing;
use super::host_error::{HostError, Result};
use crate::catalog::{DiskKind, Layer as LayerRow, LayerState};
use crate::crypto::{Cipher, LayerKeys, ProofKey};
use crate::ids::{AccountId, KeyId, LayerId, Point, SnapshotId, VolumeId};
use crate::kms::{self, KmsError};
use crate::layer::header::{self, Folding, Header, UntrustedHeader};
use crate::layer::{Anchor, FileStore, Layer, LayerError, PageCache, Parts, SLOTS_OFFSET, SealedMark};
use crate::region::Region;
use crate::sys::crashsafe;
use crate::sys::open_files;
use crate::sys::owned;
use crate::sys::process::{self, Holder};

const DATA: &str = "data";
/// The same until it is locked.
const UNNAMED: &str = "data.new";
const MAP: &str = "map";
const HEADER: &str = "header.toml";
const WORDS: &str = "words";

/// What a new layer is to be.
#[derive(Clone, Debug)]
pub struct LayerSpec {
    /// Its owner.
    pub account: AccountId,
    /// The volume it is made for; for a copy, of none, its snapshot's id as one.
    pub volume: VolumeId,
    /// The layer below, and the moment that it holds.
    pub parent: Option<(LayerId, Point)>,
    /// Size of the disk.
    pub size_bytes: u64,
    /// How its sectors are encrypted.
    pub cipher: Cipher,
    /// The key; none: plain.
    pub key: Option<KeyId>,
    /// The disk's kind.
    pub kind: DiskKind,
    /// The points of all layers below, nearest first.
    pub points: Vec<Point>,
    /// Its number among the layers that take the volume's writes.
    pub turn: u64,
    /// What its disk's content is known by. None: of the layer below, and of a new disk a fresh one.
    pub proof_key: Option<Arc<ProofKey>>,
}

/// Makes a layer: its row (`preparing`), then its folder, durable. The caller commits the row's next state.
pub fn make_layer(region: &Region, cache: &Arc<PageCache>, spec: &LayerSpec) -> Result<(LayerRow, Layer)> {
    let id = LayerId::random();
    let aad = header::associated_data(region.id(), id, spec.cipher);
    let (data_key, wrapped) = kms::new_data_key(region, spec.key, &aad)?;
    let keys = Arc::new(LayerKeys::derive(spec.cipher, &data_key).map_err(HostError::Crypto)?);
    let row = LayerRow {
        id,
        account: spec.account,
        volume: Some(spec.volume),
        parent: spec.parent.map(|(layer, _)| layer),
        size_bytes: spec.size_bytes,
        state: LayerState::Preparing,
        cipher: spec.cipher,
        key: wrapped.key,
        key_version: wrapped.version,
        wrapped_key: wrapped.bytes,
        point: None,
        sealed_generation: None,
        sealed_mac: None,
        stored_bytes: 0,
        created_at: region.now(),
    };
    region.catalog()?.write(|tx| tx.insert_layer(&row, &spec.points))?;
    let made = make_folder(region, cache, &row, spec, keys);
    if made.is_err() {
        // Best effort: what stays is swept later, as long as its row is there. So the row goes only after a folder that is
        // gone for good.
        let _ =
            remove_folder(region, id).and_then(|()| Ok(region.catalog()?.write(|tx| tx.delete_layer(id))?));
    }
    made.map(|layer| (row, layer))
}

fn make_folder(
    region: &Region,
    cache: &Arc<PageCache>,
    row: &LayerRow,
    spec: &LayerSpec,
    keys: Arc<LayerKeys>,
) -> Result<Layer> {
    let dir = region.layer_dir(row.id);
    let io = |what| HostError::io(what, &dir);
    fs::DirBuilder::new().create(&dir).map_err(io("making a layer's folder"))?;
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .map_err(io("closing a layer's folder"))?;
    // Locked before it has its name, so that nobody takes it for one whose maker has died ([`is_abandoned`]).
    let unnamed = dir.join(UNNAMED);
    let data = create_file(&unnamed).map_err(io("making a layer's data"))?;
    flock(&data, FlockOperation::NonBlockingLockExclusive).map_err(|e| io("locking a layer")(e.into()))?;
    fs::rename(&unnamed, dir.join(DATA)).map_err(io("naming a layer's data"))?;
    let map = create_file(&dir.join(MAP)).map_err(io("making a layer's map"))?;
    let parts = parts(row.id, data, map, keys, cache, 0);
    let layer = Layer::create(parts, spec.size_bytes)?;
    let wrapped_proof_key = layer.keys().wrap_proof_key(&*proof_key_for(region, spec)?);
    write_header(region, row, spec, layer.keys(), wrapped_proof_key)?;
    crashsafe::sync_dir(&dir).map_err(io("syncing a layer's folder"))?;
    crashsafe::sync_dir(&region.layers_dir()).map_err(io("syncing the layers' folder"))?;
    Ok(layer)
}

fn proof_key_for(region: &Region, spec: &LayerSpec) -> Result<Arc<ProofKey>> {
    if let Some(key) = &spec.proof_key {
        return Ok(key.clone());
    }
    let Some((parent, _)) = spec.parent else { return Ok(Arc::new(ProofKey::random())) };
    let row = region.catalog()?.read(|tx| tx.layer(parent))?;
    let keys = layer_keys(region, &row)?;
    proof_key(region, parent, &keys).map(Arc::new)
}

/// What the content of a layer's disk is known by, in every region where a copy of it is.
pub fn proof_key(region: &Region, layer: LayerId, keys: &LayerKeys) -> Result<ProofKey> {
    let header = header_by(region, layer, keys)?;
    keys.unwrap_proof_key(&header.wrapped_proof_key).map_err(HostError::Crypto)
}

/// Writes a new layer's header.
fn write_header(
    region: &Region,
    row: &LayerRow,
    spec: &LayerSpec,
    keys: &LayerKeys,
    wrapped_proof_key: Vec<u8>,
) -> Result<()> {
    let header = Header {
        region: region.id(),
        volume: spec.volume,
        layer: row.id,
        parent: row.parent,
        parent_point: spec.parent.map(|(_, point)| point),
        size_bytes: row.size_bytes,
        cipher: row.cipher,
        kind: spec.kind.as_str().to_owned(),
        key: row.key,
        key_version: row.key_version,
        wrapped_key: row.wrapped_key.clone(),
        wrapped_proof_key,
        mint: LayerId::random().0,
        points: spec.points.clone(),
        sealed: None,
        turn: spec.turn,
        edition: 0,
        reached: None,
        fold: None,
        took: None,
    };
    let path = region.layer_dir(row.id).join(HEADER);
    let text = header.to_text(keys.header());
    crashsafe::write_file(&path, text.as_bytes(), 0o600)
        .map_err(HostError::io("writing a layer's header", &path))
}

fn create_file(path: &Path) -> io::Result<File> {
    let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    open_files::check_lasting(made)
}

fn parts(
    id: LayerId,
    data: File,
    map: File,
    keys: Arc<LayerKeys>,
    cache: &Arc<PageCache>,
    edition: u64,
) -> Parts {
    let [data, map] = [data, map].map(|file| Arc::new(FileStore::new(file)));
    Parts { id, data, map, keys, cache: cache.clone(), edition }
}

/// How a layer is opened.
#[derive(Clone, Copy, Debug)]
pub enum Opening {
    /// It takes writes, or its seal is to be finished: recovered, and locked by its data file.
    Recover(Option<Anchor>),
    /// Its log has ended, and its seal is to be finished: recovered if that is so, else left as it is; locked by its data file.
    Ended,
    /// It is sealed, and its seal finished.
    Sealed(SealedMark),
    /// A fold writes to it, and it is only read: it was sealed with this mark, or has gone on from there.
    Folding(SealedMark),
    /// To take the writes of this fold, as a disk of this size: locked by its data file. Its header says so first.
    Reopen(Folding, u64),
}

/// Opens a layer. Its header must be of its key and say what the row says.
pub fn open_layer(
    region: &Region,
    cache: &Arc<PageCache>,
    row: &LayerRow,
    opening: Opening,
) -> Result<Layer> {
    let write = matches!(opening, Opening::Recover(_) | Opening::Ended | Opening::Reopen(..));
    loop {
        let (parts, header) = open_parts(region, cache, row, write)?;
        let keys = parts.keys.clone();
        let opened = open_as_header_says(region, parts, &header, opening);
        // A fold of another process may have begun to write between the look at the header and that at the data.
        if opened.is_err() && !write && header_by(region, row.id, &keys)? != header {
            continue;
        }
        return check_size(row, opened.map_err(|e| e.of_layer(row.id))?);
    }
}

/// A layer that was sealed is as its seal left it, whatever its row says, unless its header says that a fold writes to it.
fn open_as_header_says(region: &Region, parts: Parts, header: &Header, opening: Opening) -> Result<Layer> {
    Ok(match (opening, header.sealed) {
        (Opening::Recover(_) | Opening::Ended, Some(mark)) => Layer::open_sealed(parts, mark)?,
        (Opening::Recover(anchor), None) => Layer::recover(parts, seen(anchor, header))?,
        (Opening::Ended, None) => Layer::recover_ended(parts, seen(None, header))?,
        (Opening::Sealed(mark), _) => Layer::open_sealed(parts, mark)?,
        (Opening::Folding(_), Some(sealed)) if header.fold.is_some() => Layer::open_folding(parts, sealed)?,
        (Opening::Folding(mark), sealed) => Layer::open_sealed(parts, sealed.unwrap_or(mark))?,
        (Opening::Reopen(fold, size_bytes), sealed) => {
            let parts = announce_fold(region, parts, header, fold)?;
            if let Some(mark) = sealed {
                Layer::open_folding(parts.clone(), mark)?;
            }
            Layer::reopen(parts, size_bytes)?
        }
    })
}

/// Makes a layer's header say which fold writes to it, durable before the first byte changes: a lost catalog does not lose it,
/// and a header from before is told from then on.
fn announce_fold(region: &Region, parts: Parts, header: &Header, fold: Folding) -> Result<Parts> {
    match (header.fold, header.sealed) {
        (Some(said), _) if said == fold => Ok(parts),
        (None, Some(mark)) => {
            Layer::open_sealed(parts.clone(), mark)?;
            let edition = header.edition + 1;
            change_header(region, parts.id, &parts.keys, |header| {
                header.fold = Some(fold);
                header.edition = edition;
            })?;
            Ok(Parts { edition, ..parts })
        }
        (said, _) => {
            Err(damaged_layer(parts.id, format!("a header of the fold {fold:?}"), format!("one of {said:?}")))
        }
    }
}

/// What a layer that takes writes was at least: its header is written after what it says.
fn seen(anchor: Option<Anchor>, header: &Header) -> Option<Anchor> {
    let (Some(a), Some(b)) = (anchor, header.reached) else { return anchor.or(header.reached) };
    Some(Anchor { generation: a.generation.max(b.generation), confirmed: a.confirmed.max(b.confirmed) })
}

/// Opens a layer that is not sealed, or whose seal is not finished, to check it: reads only. Whether its log has ended. The
/// caller sees to it that nobody writes to it.
pub fn inspect_layer(
    region: &Region,
    cache: &Arc<PageCache>,
    row: &LayerRow,
    anchor: Option<Anchor>,
) -> Result<(Layer, bool)> {
    let (parts, header) = open_parts(region, cache, row, false)?;
    let (layer, ended) = match header.sealed {
        Some(mark) => (Layer::open_sealed(parts, mark)?, true),
        None => Layer::inspect(parts, seen(anchor, &header))?,
    };
    Ok((check_size(row, layer)?, ended))
}

fn open_parts(
    region: &Region,
    cache: &Arc<PageCache>,
    row: &LayerRow,
    write: bool,
) -> Result<(Parts, Header)> {
    let dir = region.layer_dir(row.id);
    let keys = Arc::new(layer_keys(region, row)?);
    let header = check_header(region, row, &keys)?;
    owned::check_folder(&dir).map_err(HostError::io("opening a layer", &dir))?;
    let open = |name: &str| {
        let path = dir.join(name);
        let opened = owned::open(&path, write).and_then(open_files::check_lasting);
        opened.map_err(HostError::io("opening a layer", &path))
    };
    let (data, map) = (open(DATA)?, open(MAP)?);
    if write {
        lock_data(&data, row.id)?;
    }
    Ok((parts(row.id, data, map, keys, cache, header.edition), header))
}

fn check_size(row: &LayerRow, layer: Layer) -> Result<Layer> {
    // A fold may have made it larger already.
    if layer.size_bytes() != row.size_bytes
        && !(row.state.is_folding() && layer.size_bytes() > row.size_bytes)
    {
        let found = format!("{} bytes", layer.size_bytes());
        return Err(damaged_layer(row.id, format!("{} bytes", row.size_bytes), found));
    }
    Ok(layer)
}

/// Waits a little: a process that was killed lets go only once it is gone.
fn lock_data(data: &File, layer: LayerId) -> Result<()> {
    for _ in 0..100 {
        match flock(data, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(std::time::Duration::from_millis(20)),
            Err(e) => return Err(HostError::io("locking a layer", Path::new(DATA))(e.into())),
        }
    }
    Err(HostError::InUse { what: format!("layer {layer}"), by: "another process".into() })
}

/// A layer's header as it stands; its MAC is not checked.
pub(super) fn untrusted_header(region: &Region, layer: LayerId) -> Result<UntrustedHeader> {
    let path = header_path(region, layer);
    let bytes = owned::read(&path, header::HEADER_LEN_MAX)
        .map_err(HostError::io("reading a layer's header", &path))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| damaged_layer(layer, "a header in UTF-8".into(), "other bytes".into()))?;
    Ok(UntrustedHeader::parse(&text, layer)?)
}

fn check_header(region: &Region, row: &LayerRow, keys: &LayerKeys) -> Result<Header> {
    let mut before = None;
    loop {
        let header = untrusted_header(region, row.id)?.verify(keys.header())?;
        match disagreement(region, row, &header)? {
            None => return Ok(header),
            // A fold may have mended it between the look at it and that at the catalog.
            Some(_) if before.as_ref() != Some(&header) => before = Some(header),
            Some((expected, found)) => return Err(damaged_layer(row.id, expected, found)),
        }
    }
}

/// An open or well-known layer's header, checked with its keys.
pub fn header_by(region: &Region, layer: LayerId, keys: &LayerKeys) -> Result<Header> {
    Ok(untrusted_header(region, layer)?.verify(keys.header())?)
}

/// A layer's header, which says what its row says, and the layer's keys.
pub(super) fn checked_header(region: &Region, row: &LayerRow) -> Result<(Header, LayerKeys)> {
    let keys = layer_keys(region, row)?;
    Ok((check_header(region, row, &keys)?, keys))
}

/// What a row lets one expect, and what the header says instead.
fn disagreement(region: &Region, row: &LayerRow, header: &Header) -> Result<Option<(String, String)>> {
    let said = (header.region, header.layer, header.cipher);
    let known = (region.id(), row.id, row.cipher);
    if said != known {
        return Ok(Some((format!("a header that says {known:?}"), format!("{said:?}"))));
    }
    let size_fits = match row.state.is_folding() {
        // A fold writes the header before it commits what is in it.
        true => header.size_bytes >= row.size_bytes,
        false => header.size_bytes == row.size_bytes,
    };
    let stands_on = header.parent == row.parent || footing::is_folded_away(region, header, row)?;
    if !size_fits || !stands_on {
        let (said, known) = ((header.parent, header.size_bytes), (row.parent, row.size_bytes));
        return Ok(Some((format!("a header that says {known:?}"), format!("{said:?}"))));
    }
    // A fold that gives a layer its child's place writes the header first, and so does a copy that comes to its end; nothing names
    // the layer then.
    let is_its_moment = header.sealed.is_none()
        || header.points.first() == row.point.as_ref()
        || matches!(row.state, LayerState::Absorbing | LayerState::Preparing);
    if !is_its_moment {
        let (said, known) = (header.points.first(), row.point);
        return Ok(Some((format!("a header of the moment {known:?}"), format!("one of {said:?}"))));
    }
    Ok(match (sealed_mark(row), header.sealed) {
        // The header says so before the row does.
        (Some(mark), None) => {
            Some((format!("a seal of generation {}", mark.generation), "a layer that was not sealed".into()))
        }
        (Some(mark), Some(sealed)) if row.state.is_folding() && sealed.generation > mark.generation => None,
        (Some(mark), Some(sealed)) if mark != sealed => {
            Some((format!("a seal of generation {}", mark.generation), sealed.generation.to_string()))
        }
        _ => None,
    })
}

/// A layer's header by itself, checked with the key it names; and when it was written. For a region whose catalog is lost.
pub(super) fn read_header(region: &Region, layer: LayerId) -> Result<(Header, std::time::SystemTime)> {
    let path = header_path(region, layer);
    let io = |what| HostError::io(what, &path);
    let file = owned::open(&path, false).map_err(io("reading a layer's header"))?;
    let written = file.metadata().and_then(|m| m.modified()).map_err(io("reading a layer's header"))?;
    let bytes =
        crashsafe::read_open(&file, header::HEADER_LEN_MAX).map_err(io("reading a layer's header"))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| damaged_layer(layer, "a header in UTF-8".into(), "other bytes".into()))?;
    let untrusted = UntrustedHeader::parse(&text, layer)?;
    let claims = untrusted.claims();
    if (claims.region, claims.layer) != (region.id(), layer) {
        let found = format!("one of layer {} of region {}", claims.layer, claims.region);
        return Err(damaged_layer(layer, "its own header".into(), found));
    }
    let (aad, wrapped) = (claims.associated_data(), &claims.wrapped_key);
    let data_key = kms::unwrap_data_key(region, claims.key, claims.key_version, &aad, wrapped)
        .map_err(|e| HostError::from(e).of_layer(layer))?;
    let keys = LayerKeys::derive(claims.cipher, &data_key).map_err(HostError::Crypto)?;
    let verified = untrusted.verify(keys.header()).map_err(|e| HostError::from(e).of_layer(layer))?;
    Ok((verified, written))
}

/// The highest version of a key that layers' headers say to be under; 0 without one. Unchecked, since a version that is lost can't bear
/// them out.
pub fn claimed_version(region: &Region, key: KeyId) -> Result<u32> {
    let dir = region.layers_dir();
    let mut highest = 0;
    for entry in fs::read_dir(&dir).map_err(HostError::io("listing", &dir))? {
        let name = entry.map_err(HostError::io("listing", &dir))?.file_name();
        let Some(layer) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // What can't be read says nothing.
        let Ok(header) = untrusted_header(region, layer) else { continue };
        let claims = header.claims();
        if (claims.region, claims.key) == (region.id(), Some(key)) {
            highest = highest.max(claims.key_version);
        }
    }
    Ok(highest)
}

/// What a folder that no row names holds, in words, where it is a layer: of such a one something may be left to save.
pub fn words_of_unknown(region: &Region, dir: &Path) -> Option<&'static str> {
    let layer = dir.file_name()?.to_str()?.parse().ok()?;
    match read_header(region, layer) {
        Ok(_) => Some("a layer that can be read: of a later catalog, or of one that is lost"),
        Err(HostError::Kms(e)) if e.is_of_state() => Some("a layer whose key is disabled"),
        Err(HostError::Kms(KmsError::NotFound { version: Some(_), .. })) => {
            Some("a layer whose key is lost here: with the key's file in keys/ again it could be read")
        }
        Err(HostError::Kms(KmsError::NotFound { version: None, .. })) => {
            Some("a layer whose key no catalog names: one rebuilt with the key's file in keys/ could read it")
        }
        _ if has_no_slot(region, layer) => None,
        Err(_) => Some("it holds sectors of a layer whose key or header is damaged, or can't be read"),
    }
}

/// A layer's subkeys, by its row.
pub fn layer_keys(region: &Region, row: &LayerRow) -> Result<LayerKeys> {
    let aad = header::associated_data(region.id(), row.id, row.cipher);
    let data_key = kms::unwrap_data_key(region, row.key, row.key_version, &aad, &row.wrapped_key)
        .map_err(|e| HostError::from(e).of_layer(row.id))?;
    LayerKeys::derive(row.cipher, &data_key).map_err(HostError::Crypto)
}

/// Changes a header that was written with these keys.
pub fn change_header(
    region: &Region,
    layer: LayerId,
    keys: &LayerKeys,
    change: impl FnOnce(&mut Header),
) -> Result<()> {
    let mut header = untrusted_header(region, layer)?.verify(keys.header())?;
    change(&mut header);
    let path = header_path(region, layer);
    crashsafe::write_file(&path, header.to_text(keys.header()).as_bytes(), 0o600)
        .map_err(HostError::io("writing a layer's header", &path))
}

pub(super) fn damaged_layer(layer: LayerId, expected: String, found: String) -> HostError {
    LayerError::Corrupted { what: format!("layer {layer}"), expected, found }.into()
}

/// The seal a row names, once it is finished.
pub fn sealed_mark(row: &LayerRow) -> Option<SealedMark> {
    match (row.sealed_generation, row.sealed_mac) {
        (Some(generation), Some(mac)) => Some(SealedMark { generation, mac }),
        _ => None,
    }
}

/// A lock on a snapshot, by a file in `run/` that stays the same while folds bring its name from layer to layer and write
/// their headers anew. Shared: while it is held, the snapshot can't be deleted.
pub struct ReadLock {
    #[allow(dead_code)]
    file: File,
    path: PathBuf,
}

impl ReadLock {
    /// The snapshot is gone: takes the file away. Who opened it before finds that out when he has the lock.
    pub fn remove(self) {
        // One that stays is of no worth.
        let _ = fs::remove_file(&self.path);
    }
}

fn open_lock(region: &Region, snapshot: SnapshotId) -> io::Result<ReadLock> {
    let path = region.run_dir().join(format!("{snapshot}.lock"));
    Ok(ReadLock { file: owned::open_or_create(&path)?, path })
}

/// Locks a snapshot against deletion while it is read by another process than the owner of the layers. The caller asks for
/// its row afterwards.
pub fn lock_for_reading(region: &Region, snapshot: SnapshotId) -> Result<ReadLock> {
    let locked = open_lock(region, snapshot).and_then(|lock| {
        flock(&lock.file, FlockOperation::LockShared)?;
        Ok(lock)
    });
    locked.map_err(HostError::io("locking a snapshot in", &region.run_dir()))
}

/// Locks a snapshot against readers of other processes while it is deleted; or says who reads it.
pub fn lock_for_removal(region: &Region, snapshot: SnapshotId) -> Result<Result<ReadLock, Vec<Holder>>> {
    let lock = open_lock(region, snapshot);
    let lock = lock.map_err(HostError::io("locking a snapshot in", &region.run_dir()))?;
    if flock(&lock.file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return Ok(Ok(lock));
    }
    let file = lock.file;
    let holders = file.metadata().and_then(|header| {
        let device = (rustix::fs::major(header.dev()), rustix::fs::minor(header.dev()));
        process::holders(device, Some(header.ino()))
    });
    Ok(Err(holders.unwrap_or_default()))
}

/// What a copy read, in its layer's folder while it is made.
pub fn words_path(region: &Region, layer: LayerId) -> PathBuf {
    region.layer_dir(layer).join(WORDS)
}

fn header_path(region: &Region, layer: LayerId) -> PathBuf {
    region.layer_dir(layer).join(HEADER)
}

/// Removes a layer that nobody needs, and then those below it that nobody needs any more.
pub fn remove_unneeded(region: &Region, layer: LayerId) -> Result<()> {
    let mut at = Some(layer);
    while let Some(id) = at {
        let parent = region.catalog()?.write(|tx| -> Result<_> {
            let Some(row) = tx.find_layer(id)? else { return Ok(None) };
            if !tx.layer_needs(id)?.is_empty() {
                return Ok(None);
            }
            tx.set_layer_state(id, LayerState::Deleting)?;
            Ok(Some(row.parent))
        })?;
        let Some(parent) = parent else { return Ok(()) };
        remove_folder(region, id)?;
        region.catalog()?.write(|tx| match tx.find_layer(id)? {
            Some(_) => tx.delete_layer(id),
            // Another process removed it at the same time.
            None => Ok(()),
        })?;
        at = parent;
    }
    Ok(())
}

/// Removes a layer's folder. Its row goes afterwards.
pub fn remove_folder(region: &Region, layer: LayerId) -> Result<()> {
    let dir = region.layer_dir(layer);
    // A link instead of a folder: what it leads to is not ours to remove.
    if fs::symlink_metadata(&dir).is_ok_and(|found| !found.is_dir()) {
        return crashsafe::remove_file(&dir).map_err(HostError::io("removing a layer", &dir));
    }
    // The header first: a folder without it is no layer to a repair, and one without its data would be a volume that can't be opened.
    for name in [HEADER, DATA, MAP] {
        match fs::remove_file(dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(HostError::io("removing a layer", &dir)(e));
            }
            _ => {}
        }
    }
    match fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(HostError::io("removing a layer", &dir)(e)),
        _ => crashsafe::sync_dir(&region.layers_dir())
            .map_err(HostError::io("syncing the layers' folder", &dir)),
    }
}

/// Whether a layer's folder has no header, with which its removal begins.
pub(super) fn has_lost_header(region: &Region, layer: LayerId) -> bool {
    lacks(region, layer, &[HEADER])
}

/// Whether a layer's folder holds none of its files: a removal was cut short after the last of them.
pub(super) fn is_emptied(region: &Region, layer: LayerId) -> bool {
    lacks(region, layer, &[DATA, UNNAMED, MAP, HEADER])
}

/// Whether a layer's folder has no slot: the layer is new, its removal has come beyond the data, or it holds no sector. By the length
/// of a file, which anybody may change: for words alone.
pub(super) fn has_no_slot(region: &Region, layer: LayerId) -> bool {
    match fs::symlink_metadata(region.layer_dir(layer).join(DATA)) {
        Ok(found) => found.is_file() && found.len() <= SLOTS_OFFSET,
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    }
}

fn lacks(region: &Region, layer: LayerId, names: &[&str]) -> bool {
    let dir = region.layer_dir(layer);
    let is_missing = |name: &&str| {
        fs::symlink_metadata(dir.join(name)).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    };
    names.iter().all(is_missing)
}

/// Held while a copy is taken up, so that one process does and the others find it at work.
pub fn lock_copies(region: &Region) -> Result<File> {
    let path = region.run_dir().join("copies.lock");
    let io = HostError::io("locking the copies in", &path);
    let locked = owned::open_or_create(&path).and_then(|file| {
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    });
    locked.map_err(io)
}

/// Whether a layer that is being made has lost its maker: that holds the data file's lock, from a moment after the row.
pub fn is_abandoned(region: &Region, row: &LayerRow) -> bool {
    let age = region.now().as_second() - row.created_at.as_second();
    match owned::open(&region.layer_dir(row.id).join(DATA), true) {
        // Shared: two who ask at once don't take each other for the maker.
        Ok(data) => flock(&data, FlockOperation::NonBlockingLockShared).is_ok(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => age > 60,
        Err(_) => false,
    }
}

/// Whether a layer's header says that it was made for this volume; its MAC is not checked.
pub fn is_made_for(region: &Region, layer: LayerId, volume: VolumeId) -> bool {
    untrusted_header(region, layer).is_ok_and(|header| header.claims().volume == volume)
}

/// Bytes a layer's files take on the file system below.
pub fn stored_bytes(region: &Region, layer: LayerId) -> io::Result<u64> {
    let dir = region.layer_dir(layer);
    let blocks = |name: &&str| Ok(fs::symlink_metadata(dir.join(name))?.blocks() * 512);
    let files: u64 = [DATA, MAP, HEADER].iter().map(blocks).sum::<io::Result<_>>()?;
    Ok(files + bookmarks::stored_bytes(region, layer))
}

/// A layer's header as it stands, its form checked and not its MAC: no key is needed.
pub fn peek_header(region: &Region, layer: LayerId) -> Result<()> {
    untrusted_header(region, layer).map(drop)
}
