//! The bookmarks in layers' folders: what changed between two moments of a disk, where no layer ends at the first any more.
//!
//! A layer holds what was recorded between the point below it and its own. Where a fold made one layer of two, or a copy holds
//! several moments in one, those in between are in its list of points only; its folder says of each, in a file by the point's name, which
//! sectors changed until the next one. Followed from moment to moment, up to the layer's own, they say what changed since.
//!
//! They only ever spare bytes: one that is missing, damaged or of another layer is none, and a copy carries more then. What one
//! says is true for ever, of the points that it names ([`crate::layer::Bookmark`]), so that neither a cut nor an older file that is
//! put back makes a copy wrong.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::folder;
use super::host_error::{HostError, Result};
use super::places::recorded;
use super::vouch;
use crate::crypto::LayerKeys;
use crate::ids::{LayerId, Point};
use crate::layer::header::Folding;
use crate::layer::{BOOKMARK_LEN_MAX, Bookmark, ChunkBits, Layer, LayerError, SectorSet, Taken};
use crate::region::Region;
use crate::sys::crashsafe;
use crate::sys::owned;
use crate::units::{CHUNK_SECTORS, ChunkNo};

const FOLDER: &str = "bookmarks";
/// What a fold brings into a layer that takes writes, by the name of the point it had been put on.
const TAKEN: &str = ".taken";
/// Of a layer, those of its newest moments are kept.
pub const BOOKMARKS_MAX: usize = 64;
/// More are in no folder, but for a fold that is being carried out.
const STEPS_MAX: usize = 4 * BOOKMARKS_MAX;
/// More pieces of a disk, 80 bytes each, are not held in memory: 4 TiB written here and there.
const PIECES_MAX: usize = 1 << 21;

/// Asked between chunks.
pub(super) type GoOn<'a> = &'a mut dyn FnMut() -> bool;

fn folder_of(region: &Region, layer: LayerId) -> PathBuf {
    region.layer_dir(layer).join(FOLDER)
}

/// What changed in a layer since a moment within it, up to its own; `None` where that is not known.
pub fn changed_since(
    region: &Region,
    layer: LayerId,
    keys: &LayerKeys,
    own: Point,
    since: Point,
) -> Option<SectorSet> {
    let mut changed = SectorSet::default();
    let mut at = since;
    for _ in 0..STEPS_MAX {
        let mark = match read(region, layer, keys, at) {
            Ok(mark) => mark?,
            Err(error) => {
                tracing::warn!(%layer, %error, "a bookmark is not used");
                return None;
            }
        };
        changed = changed.union(&mark.changed);
        if changed.pieces_count() > PIECES_MAX {
            return None;
        }
        if mark.to == own {
            return Some(changed);
        }
        at = mark.to;
    }
    None
}

/// The bookmark of a moment, if there is one.
pub(super) fn read(
    region: &Region,
    layer: LayerId,
    keys: &LayerKeys,
    from: Point,
) -> Result<Option<Bookmark>> {
    let Some(bytes) = read_file(region, layer, &from.to_string())? else { return Ok(None) };
    let mark = Bookmark::parse(&bytes, layer, keys.header())?;
    match mark.from == from {
        true => Ok(Some(mark)),
        false => {
            let (expected, found) = (format!("one of the moment {from}"), format!("one of {}", mark.from));
            Err(LayerError::corrupted("a bookmark", expected, found).into())
        }
    }
}

/// Notes that between two moments nothing changed but what a layer records, unless bookmarks tell it already. False: `go_on` said no.
pub(super) fn note(
    region: &Region,
    kept: &Layer,
    (from, to): (Point, Point),
    recorded_by: &Layer,
    go_on: GoOn,
) -> Result<bool> {
    if changed_since(region, kept.id(), kept.keys(), to, from).is_some() {
        return Ok(true);
    }
    let Some(changed) = recorded_sectors(recorded_by, go_on)? else { return Ok(false) };
    write(region, kept.id(), kept.keys(), &Bookmark { from, to, changed })?;
    Ok(true)
}

/// What was taken in a fold from a layer of this moment.
fn read_taken(region: &Region, layer: LayerId, keys: &LayerKeys, before: Point) -> Result<Option<Taken>> {
    let Some(bytes) = read_file(region, layer, &format!("{before}{TAKEN}"))? else { return Ok(None) };
    let taken = Taken::parse(&bytes, layer, keys.header())?;
    match taken.before == before {
        true => Ok(Some(taken)),
        false => {
            let (expected, found) = (format!("what moment {before} had"), format!("of {}", taken.before));
            Err(LayerError::corrupted("a bookmark", expected, found).into())
        }
    }
}

fn read_file(region: &Region, layer: LayerId, name: &str) -> Result<Option<Vec<u8>>> {
    let path = folder_of(region, layer).join(name);
    match owned::read(&path, BOOKMARK_LEN_MAX) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(HostError::io("reading a bookmark", &path)(e)),
    }
}

/// Writes a bookmark, durable once this returns. One that would be very large is left out.
pub(super) fn write(region: &Region, layer: LayerId, keys: &LayerKeys, mark: &Bookmark) -> Result<()> {
    write_file(region, layer, &mark.from.to_string(), &mark.to_bytes(layer, keys.header()))
}

/// Writes down what a fold is about to take.
pub(super) fn write_taken(region: &Region, layer: LayerId, keys: &LayerKeys, taken: &Taken) -> Result<()> {
    write_file(region, layer, &format!("{}{TAKEN}", taken.before), &taken.to_bytes(layer, keys.header()))
}

fn write_file(region: &Region, layer: LayerId, name: &str, bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 > BOOKMARK_LEN_MAX {
        tracing::info!(%layer, name, bytes = bytes.len(), "too long a bookmark is left out: copies onto its moment carry more");
        return Ok(());
    }
    let folder = folder_of(region, layer);
    let io = HostError::io("writing a bookmark in", &folder);
    let made = match crashsafe::create_dir(&folder, 0o700) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => owned::check_folder(&folder),
        made => made,
    };
    made.and_then(|()| crashsafe::write_file(&folder.join(name), bytes, 0o600)).map_err(io)
}

/// The names in a layer's folder of bookmarks; none if there is none.
fn names(region: &Region, layer: LayerId) -> Result<Vec<String>> {
    let folder = folder_of(region, layer);
    let listed = || -> io::Result<Vec<String>> {
        owned::check_folder(&folder)?;
        let names = fs::read_dir(&folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    };
    match listed() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(HostError::io("listing the bookmarks in", &folder)),
    }
}

/// Bytes that a layer's bookmarks take on the file system below, as far as that can be told.
pub(super) fn stored_bytes(region: &Region, layer: LayerId) -> u64 {
    let folder = folder_of(region, layer);
    let names = names(region, layer).unwrap_or_default();
    names.iter().filter_map(|name| Some(fs::symlink_metadata(folder.join(name)).ok()?.blocks() * 512)).sum()
}

/// The moments of which a layer has bookmarks, whatever those are worth.
pub(super) fn moments(region: &Region, layer: LayerId) -> Result<Vec<Point>> {
    Ok(names(region, layer)?.iter().filter_map(|name| name.parse().ok()).collect())
}

/// All that was taken into a layer, as far as it reads.
pub(super) fn all_taken(region: &Region, layer: LayerId, keys: &LayerKeys) -> Result<Vec<Taken>> {
    let names = names(region, layer)?;
    let points = names.iter().filter_map(|name| name.strip_suffix(TAKEN)?.parse::<Point>().ok());
    let mut all = Vec::new();
    for before in points {
        match read_taken(region, layer, keys, before) {
            Ok(taken) => all.extend(taken),
            Err(error) => tracing::warn!(%layer, %error, "what a fold took is not used for a bookmark"),
        }
    }
    Ok(all)
}

/// Removes all but the bookmarks of the newest moments of `points`, nearest first; `keep_taken`: and what was taken.
pub(super) fn keep_newest(region: &Region, layer: LayerId, points: &[Point], keep_taken: bool) -> Result<()> {
    let folder = folder_of(region, layer);
    let all = names(region, layer)?;
    let there: HashSet<&str> = all.iter().map(String::as_str).collect();
    let named: Vec<String> = points.iter().map(ToString::to_string).collect();
    let kept = named.iter().map(String::as_str).filter(|name| there.contains(name)).take(BOOKMARKS_MAX);
    let kept: HashSet<&str> = kept.collect();
    for name in all.iter().filter(|name| !kept.contains(name.as_str())) {
        if keep_taken && name.ends_with(TAKEN) {
            continue;
        }
        // Best effort: what stays costs space only.
        let _ = fs::remove_file(folder.join(name));
    }
    Ok(())
}

/// Takes away all bookmarks of a layer, one of which did not name all that changed; whether they are gone. They only ever spare bytes.
pub fn distrust(region: &Region, layer: LayerId) -> bool {
    let folder = folder_of(region, layer);
    let remove = |name: &String| match fs::remove_file(folder.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%layer, name, %error, "a bookmark that is wrong could not be removed");
            false
        }
        _ => true,
    };
    match names(region, layer) {
        // Each, whatever became of those before.
        Ok(names) => names.iter().filter(|name| !remove(name)).count() == 0,
        Err(error) => {
            tracing::warn!(%layer, %error, "bookmarks that are wrong could not be removed");
            false
        }
    }
}

/// Which sectors a layer records: as data, or as zero. What it was put on, and it, differ nowhere else. `None`: `go_on` said no.
fn recorded_sectors(layer: &Layer, go_on: GoOn) -> Result<Option<SectorSet>> {
    let mut set = SectorSet::default();
    let chunks = layer.sectors().div_ceil(CHUNK_SECTORS);
    let mut at = 0;
    while let Some(chunk) = layer.next_present(at..chunks)? {
        let mut bits = ChunkBits::NONE;
        if let Some(entries) = recorded(layer, ChunkNo(chunk))? {
            let said = entries.iter().enumerate().filter(|(_, entry)| !entry.is_absent());
            said.for_each(|(index, _)| bits.insert(index));
        }
        set.push(chunk, bits);
        at = chunk + 1;
        if !go_on() {
            return Ok(None);
        }
    }
    Ok(Some(set))
}

/// A source's disk as a copy has it open: its layers, oldest first, and the moment of each.
pub struct Origin<'a> {
    /// Where it lies.
    pub region: &'a Region,
    /// Its layers.
    pub layers: &'a [Arc<Layer>],
    /// Their moments.
    pub moments: &'a [Point],
}

/// Gives the layer of a copy the bookmarks of its source's moments that `are_within` it: what the source's layers record, and
/// their own bookmarks. What can't be read or written is left out.
pub fn carry(source: &Origin, are_within: &[Point], target: &Region, copy: &Layer) {
    if let Err(error) = try_to_carry(source, are_within, target, copy) {
        tracing::warn!(layer = %copy.id(), %error, "copies of this copy may carry more: bookmarks could not be written");
    }
}

fn try_to_carry(source: &Origin, are_within: &[Point], target: &Region, copy: &Layer) -> Result<()> {
    let wanted: HashSet<Point> = are_within.iter().take(BOOKMARKS_MAX).copied().collect();
    let write = |mark: &Bookmark| write(target, copy.id(), copy.keys(), mark);
    // Of the layer above: its moment, and what it records.
    let mut above: Option<(Point, SectorSet)> = None;
    for (number, layer) in source.layers.iter().enumerate().rev() {
        let own = source.moments[number];
        let from = number.checked_sub(1).map(|below| source.moments[below]);
        if own != source.moments[source.moments.len() - 1] && !wanted.contains(&own) {
            break;
        }
        let marks = marks_of(source.region, layer, &wanted).unwrap_or_else(|error| {
            tracing::info!(layer = %layer.id(), %error, "bookmarks of a source's layer are left out");
            Vec::new()
        });
        marks.iter().try_for_each(write)?;
        let Some(from) = from.filter(|from| wanted.contains(from)) else { break };
        let Some((to, changed)) = look(source.region, number, source, above.take()) else { break };
        if from != to && !marks.iter().any(|mark| mark.from == from) {
            write(&Bookmark { from, to, changed: changed.clone() })?;
        }
        above = Some((to, changed));
    }
    Ok(())
}

/// What a layer of a source, with all above it up to a moment, records, and that moment: its own, unless a fold is bringing the layer
/// above into it. `None`: a fold has made something else of it since it was opened.
fn look(
    region: &Region,
    number: usize,
    source: &Origin,
    above: Option<(Point, SectorSet)>,
) -> Option<(Point, SectorSet)> {
    let (layer, own) = (&source.layers[number], source.moments[number]);
    let changed = recorded_sectors(layer, &mut || true).ok()??;
    // After the map: a header says what a fold does before it does it.
    let header = folder::header_by(region, layer.id(), layer.keys()).ok()?;
    let is_of_its_moment = vouch::point_in(layer.id(), layer.keys(), &header) == own;
    let child = source.layers.get(number + 1).map(|child| child.id());
    match header.fold {
        _ if !is_of_its_moment => None,
        None => header.sealed.is_some_and(|mark| layer.is_sealed_as(mark)).then_some((own, changed)),
        Some(Folding::Fills(_)) => Some((own, changed)),
        Some(Folding::Absorbs(absorbed)) if child == Some(absorbed) => {
            above.map(|(moment, of_child)| (moment, changed.union(&of_child)))
        }
        Some(Folding::Absorbs(_)) => None,
    }
}

/// The bookmarks in a layer's folder of the moments that are wanted.
fn marks_of(region: &Region, layer: &Layer, wanted: &HashSet<Point>) -> Result<Vec<Bookmark>> {
    let mut marks = Vec::new();
    for point in moments(region, layer.id())?.iter().filter(|point| wanted.contains(point)) {
        marks.extend(read(region, layer.id(), layer.keys(), *point)?);
    }
    Ok(marks)
}

/// What is wrong with a layer's bookmarks, in sentences.
pub(super) fn problems(region: &Region, layer: LayerId, keys: &LayerKeys) -> Vec<String> {
    let names = match names(region, layer) {
        Ok(names) => names,
        Err(error) => return vec![error.to_string()],
    };
    let look = |name: &String| {
        let checked = match name.strip_suffix(TAKEN) {
            Some(point) => read_taken(region, layer, keys, point.parse().ok()?).map(drop),
            None => read(region, layer, keys, name.parse().ok()?).map(drop),
        };
        let error = checked.err()?;
        Some(format!(
            "{FOLDER}/{name} serves no copy any more, which carry more for it, and can be removed: {error}"
        ))
    };
    names.iter().filter_map(look).collect()
}
