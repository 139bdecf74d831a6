//! What a fold keeps of the moment that goes: which sectors changed since, for copies onto a base of that moment.
//!
//! Before the first sector moves, durable, into the folder of the layer that stays:
//! - the bookmarks of the layer that goes;
//! - where both are sealed: what the upper one records, which is what changed between the lower's moment and its own;
//! - where the upper one takes a volume's writes that is not known before it ends. So the tags that the lower one's sectors have in
//!   it: at its seal those are left out that still have them.
//!
//! All of it is best effort: without it copies carry more, and are as right.

use zeroize::Zeroizing;

use super::super::bookmarks::{self, GoOn};
use super::super::places::recorded;
use super::{Into, Job};
use crate::catalog::FoldWay;
use crate::ids::Point;
use crate::layer::header::Header;
use crate::layer::{
    BOOKMARK_LEN_MAX, Bookmark, ChunkBits, Entry, Layer, SectorSet, State, Taken, TakenChunk,
};
use crate::region::Region;
use crate::sys::page_buffer::PageBuffer;
use crate::units::{CHUNK_BYTES, CHUNK_SECTORS, ChunkNo, SECTOR_LEN, SectorNo};
use crate::volume::folder::header_by;
use crate::volume::host_error::{HostError, Result};
use crate::volume::{VolumeError, vouch};

/// Keeps what a fold is about to make unknown. The layers are as they were when the upper one was put on the lower, or the fold
/// goes on. False: `go_on` said no. An error says that no more files can be open: the fold can wait.
pub(super) fn keep(region: &Region, job: &Job, go_on: GoOn) -> Result<bool> {
    match try_to_keep(region, job, go_on) {
        Err(error) if !error.is_of_open_files() => {
            tracing::warn!(layer = %job.fold.parent, %error, "copies on a base of this layer's moment will carry more: it gets no bookmark");
            Ok(true)
        }
        kept => kept,
    }
}

fn try_to_keep(region: &Region, job: &Job, go_on: GoOn) -> Result<bool> {
    let (gone, kept) = (&*job.from, job.into.layer());
    let (upper, lower) = match job.fold.way {
        FoldWay::Up => (kept, gone),
        FoldWay::Down => (gone, kept),
    };
    let header = header_by(region, upper.id(), upper.keys())?;
    let Some(moment) = header.parent_point else { return Ok(true) };
    bring_over(region, gone, kept)?;
    let is_live = matches!(job.into, Into::Live(_));
    let is_kept = match is_live {
        true => keep_live(region, (lower, moment), (upper, &header), go_on)?,
        false => {
            // Not anew where the fold goes on: the upper one may record more by now.
            let own = vouch::point_in(upper.id(), upper.keys(), &header);
            bookmarks::note(region, kept, (moment, own), upper, go_on)?
        }
    };
    let points = vouch::points_of(upper.id(), upper.keys(), &header);
    bookmarks::keep_newest(region, kept.id(), &points, is_live)?;
    Ok(is_kept)
}

/// The bookmarks of the layer that goes, in that which stays.
fn bring_over(region: &Region, gone: &Layer, kept: &Layer) -> Result<()> {
    for moment in bookmarks::moments(region, gone.id())? {
        match bookmarks::read(region, gone.id(), gone.keys(), moment) {
            Ok(Some(mark)) => match bookmarks::read(region, kept.id(), kept.keys(), moment) {
                Ok(Some(there)) if there == mark => {}
                _ => bookmarks::write(region, kept.id(), kept.keys(), &mark)?,
            },
            Ok(None) => {}
            Err(error) if error.is_of_open_files() => return Err(error),
            Err(error) => tracing::warn!(layer = %gone.id(), %error, "a bookmark is not kept"),
        }
    }
    Ok(())
}

/// Of a layer that goes into one that takes writes.
fn keep_live(
    region: &Region,
    (lower, moment): (&Layer, Point),
    (upper, header): (&Layer, &Header),
    go_on: GoOn,
) -> Result<bool> {
    let below = header_by(region, lower.id(), lower.keys())?.parent_point;
    if let Some(from) = below
        && !bookmarks::note(region, upper, (from, moment), lower, go_on)?
    {
        return Ok(false);
    }
    let before = bookmarks::all_taken(region, upper.id(), upper.keys())?;
    if before.iter().any(|taken| (taken.before, taken.after) == (moment, below)) {
        return Ok(true);
    }
    // Without reading all of it to find that out.
    let tags_bytes = lower.data_sectors() * 8;
    if tags_bytes > BOOKMARK_LEN_MAX / 2 {
        tracing::info!(layer = %upper.id(), gone = %lower.id(), bytes = tags_bytes,
            "too long a bookmark is left out: copies onto the moment of the layer that goes carry more");
        return Ok(true);
    }
    // What earlier folds brought into it lies above this.
    let on_it = before.iter().find(|taken| taken.after == header.parent_point);
    let since = on_it.map_or(moment, |taken| taken.since);
    let Some(chunks) = tags_in(lower, upper, go_on)? else { return Ok(false) };
    let taken = Taken { since, before: moment, after: below, chunks };
    bookmarks::write_taken(region, upper.id(), upper.keys(), &taken)?;
    Ok(true)
}

/// The tags that the sectors of a layer have in another. `None`: `go_on` said no.
fn tags_in(lower: &Layer, upper: &Layer, go_on: GoOn) -> Result<Option<Vec<TakenChunk>>> {
    let mut plain = Zeroizing::new(PageBuffer::new(CHUNK_BYTES as usize));
    let mut cipher = vec![0; CHUNK_BYTES as usize];
    let mut chunks = Vec::new();
    let (end, mut at) = (lower.sectors().div_ceil(CHUNK_SECTORS), 0);
    while let Some(chunk) = lower.next_present(at..end)? {
        at = chunk + 1;
        let Some(entries) = recorded(lower, ChunkNo(chunk))? else { continue };
        let mut taken = TakenChunk { chunk, data: ChunkBits::NONE, zero: ChunkBits::NONE, tags: Vec::new() };
        for (index, entry) in entries.iter().enumerate() {
            match entry.state() {
                State::Absent => {}
                State::Zero => taken.zero.insert(index),
                State::Data(_) => taken.data.insert(index),
            }
        }
        read_data(lower, ChunkNo(chunk), &entries, &mut plain)?;
        let mut tags = vec![0; CHUNK_SECTORS as usize];
        upper.keys().seal_sectors(ChunkNo(chunk).first_sector(), &plain, &mut cipher, &mut tags);
        let of_data = tags.iter().enumerate().filter(|(index, _)| taken.data.contains(*index));
        taken.tags = of_data.map(|(_, tag)| *tag).collect();
        chunks.push(taken);
        if !go_on() {
            return Ok(None);
        }
    }
    Ok(Some(chunks))
}

/// Reads, checks and decrypts a chunk's data into its place in `plain`; what lies between stays as it is.
fn read_data(layer: &Layer, chunk: ChunkNo, entries: &[Entry], plain: &mut [u8]) -> Result<()> {
    let is_next = |a: &Entry, b: &Entry| a.slot().zip(b.slot()).is_some_and(|(a, b)| a.is_right_before(b));
    let mut at = 0;
    for run in entries.chunk_by(is_next) {
        let index = at;
        at += run.len();
        let Some(slot) = run[0].slot() else { continue };
        let tags: Vec<u64> = run.iter().map(|entry| entry.tag()).collect();
        let first = SectorNo(chunk.first_sector().0 + index as u64);
        let into = &mut plain[index * SECTOR_LEN..][..run.len() * SECTOR_LEN];
        layer.read_still_slots(first, slot, &tags, into).map_err(|e| match e {
            Err(error) => HostError::from(error),
            Ok(bad) => {
                let sector = SectorNo(first.0 + bad as u64);
                VolumeError::DamagedSector { sector, layer: layer.id() }.into()
            }
        })?;
    }
    Ok(())
}

/// Makes a bookmark of what folds took into a layer while it took writes. It has ended, and no fold has written to it since.
pub fn settle_taken(region: &Region, layer: &Layer) {
    if let Err(error) = try_to_settle(region, layer) {
        tracing::warn!(layer = %layer.id(), %error, "copies will carry more: what a fold took gets no bookmark");
    }
}

fn try_to_settle(region: &Region, layer: &Layer) -> Result<()> {
    let all = bookmarks::all_taken(region, layer.id(), layer.keys())?;
    if all.is_empty() {
        return Ok(());
    }
    let header = header_by(region, layer.id(), layer.keys())?;
    // What another fold writes to it meanwhile is not of its moment.
    if header.fold.is_some() {
        return Ok(());
    }
    let points = vouch::points_of(layer.id(), layer.keys(), &header);
    if let (Some(own), Some(parts)) = (points.first(), in_order(&all, header.parent_point)) {
        let mark = Bookmark { from: parts[0].0.since, to: *own, changed: changed_over(layer, &parts)? };
        bookmarks::write(region, layer.id(), layer.keys(), &mark)?;
    }
    bookmarks::keep_newest(region, layer.id(), &points, false)
}

/// What one fold took, and whether that fold came to its end: then what the layer does not record is not what was below any more.
type Part<'a> = (&'a Taken, bool);

/// From the first moment down to what the layer stands on, as far up as what all the folds took is known.
fn in_order(all: &[Taken], stands_on: Option<Point>) -> Option<Vec<Part<'_>>> {
    let firsts = all.iter().filter(|taken| taken.before == taken.since);
    firsts.filter_map(|first| down_from(first, all, stands_on)).max_by_key(Vec::len)
}

fn down_from<'a>(first: &'a Taken, all: &'a [Taken], stands_on: Option<Point>) -> Option<Vec<Part<'a>>> {
    let mut next = first;
    let mut parts: Vec<Part> = Vec::new();
    while parts.len() < all.len() {
        let is_ended = stands_on != Some(next.before);
        parts.push((next, is_ended));
        if !is_ended {
            return Some(parts);
        }
        let is_further = |taken: &&Taken| taken.since == first.since && Some(taken.before) == next.after;
        match all.iter().find(is_further) {
            Some(taken) => next = taken,
            None => return (next.after == stands_on).then_some(parts),
        }
    }
    None
}

/// What a layer holds otherwise than at the first moment of what was taken into it.
fn changed_over(layer: &Layer, parts: &[Part]) -> Result<SectorSet> {
    let chunks = layer.sectors().div_ceil(CHUNK_SECTORS);
    let mut taken: Vec<u64> =
        parts.iter().flat_map(|(part, _)| part.chunks.iter().map(|c| c.chunk)).collect();
    taken.sort_unstable();
    let mut changed = SectorSet::default();
    let mut at = 0;
    loop {
        let recorded_next = layer.next_present(at..chunks)?;
        let taken_next = taken.get(taken.partition_point(|chunk| *chunk < at)).copied();
        let Some(chunk) = recorded_next.into_iter().chain(taken_next).min() else { return Ok(changed) };
        let entries = recorded(layer, ChunkNo(chunk))?.unwrap_or([Entry::ABSENT; CHUNK_SECTORS as usize]);
        changed.push(chunk, changed_in(chunk, &entries, parts));
        at = chunk + 1;
    }
}

fn changed_in(chunk: u64, entries: &[Entry], parts: &[Part]) -> ChunkBits {
    let mut changed = ChunkBits::NONE;
    let mut known = ChunkBits::NONE;
    for (part, is_ended) in parts {
        let Some(taken) = part.chunk(chunk) else { continue };
        let mut tags = taken.tags.iter();
        for (index, entry) in entries.iter().enumerate() {
            let tag = taken.data.contains(index).then(|| tags.next()).flatten();
            if tag.is_none() && !taken.zero.contains(index) || known.contains(index) {
                continue;
            }
            known.insert(index);
            let is_same = match entry.state() {
                State::Absent => !is_ended,
                State::Zero => tag.is_none(),
                State::Data(_) => tag == Some(&entry.tag()),
            };
            if !is_same {
                changed.insert(index);
            }
        }
    }
    let said =
        entries.iter().enumerate().filter(|(index, entry)| !entry.is_absent() && !known.contains(*index));
    said.for_each(|(index, _)| changed.insert(index));
    changed
}
