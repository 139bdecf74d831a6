//! What `snapshot list --filter` and `volume list --filter` let through.

use std::str::FromStr;

use anyhow::Result;

use crate::catalog::{CatalogError, ReadTx, Snapshot, SnapshotState, Tag, Volume};
use crate::ids::VolumeId;

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// It has this tag.
    Tag(Tag),
    /// It is in this state.
    State(SnapshotState),
    /// It is a copy of the snapshot of this id, or one of this region.
    Source(String),
    /// It was taken of the volume of this name, id or beginning of an id.
    Volume(String),
    /// Its name fits; `*` stands for any letters, or none.
    Name(String),
}

/// Every form there is, for who typed another one.
const KNOWN: &str = "tag:K=V, state=success|processing|failed|deleted, source=SNAPSHOT-ID|REGION, volume=NAME|ID, name=NAME (with *: any letters)";

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("no such filter; known are: {KNOWN}");
        if let Some(tag) = text.strip_prefix("tag:") {
            return Ok(Self::Tag(tag.parse()?));
        }
        let (word, value) = text.split_once('=').ok_or_else(unknown)?;
        let value = value.to_owned();
        match word {
            "state" | "source" | "volume" | "name" if value.is_empty() => {
                Err(format!("{word}= wants a value; known are: {KNOWN}"))
            }
            "state" => value.parse().map(Self::State).map_err(|known| format!("no state {value:?}; {known}")),
            "source" => Ok(Self::Source(value)),
            "volume" => Ok(Self::Volume(value)),
            "name" => Ok(Self::Name(value)),
            _ => Err(unknown()),
        }
    }
}

/// The snapshots of a region for which all filters hold, in their order: those in the bin, or the others. A volume that is not
/// there is an error, unless it is named by its whole id: a snapshot outlives it.
pub fn snapshots(tx: &ReadTx, filters: &[Filter], deleted: bool) -> Result<Vec<Snapshot>, CatalogError> {
    let mut kept = tx.snapshots()?;
    kept.retain(|s| (s.state == SnapshotState::Deleted) == deleted);
    for filter in filters {
        match filter {
            Filter::Tag(tag) => {
                let mut with = Vec::new();
                for snapshot in kept {
                    if tx.tags(&snapshot.id.to_string())?.contains(tag) {
                        with.push(snapshot);
                    }
                }
                kept = with;
            }
            Filter::State(state) => kept.retain(|s| s.state == *state),
            Filter::Source(text) => {
                kept.retain(|s| [&s.source_snapshot, &s.source_region].contains(&&Some(text.clone())));
            }
            Filter::Volume(text) => {
                let volume = match text.parse::<VolumeId>() {
                    Ok(id) => id,
                    Err(_) => tx.resolve_volume(text)?.id,
                };
                kept.retain(|s| s.volume == Some(volume));
            }
            Filter::Name(pattern) => kept.retain(|s| fits(s.name.as_str(), pattern)),
        }
    }
    Ok(kept)
}

/// One condition on volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeFilter {
    /// It has this tag.
    Tag(Tag),
    /// Its name fits; `*` stands for any letters, or none.
    Name(String),
}

impl FromStr for VolumeFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = "known are: tag:K=V, name=NAME (with *: any letters)";
        if let Some(tag) = text.strip_prefix("tag:") {
            return Ok(Self::Tag(tag.parse()?));
        }
        match text.strip_prefix("name=") {
            Some("") => Err(format!("name= wants a value; {known}")),
            Some(name) => Ok(Self::Name(name.to_owned())),
            None => Err(format!("no such filter; {known}")),
        }
    }
}

/// The volumes of a region for which all filters hold, in their order.
pub fn volumes(tx: &ReadTx, filters: &[VolumeFilter]) -> Result<Vec<Volume>, CatalogError> {
    let mut kept = Vec::new();
    for volume in tx.volumes()? {
        let mut holds = true;
        for filter in filters {
            holds &= match filter {
                VolumeFilter::Tag(tag) => tx.tags(&volume.id.to_string())?.contains(tag),
                VolumeFilter::Name(pattern) => {
                    volume.name.as_ref().is_some_and(|name| fits(name.as_str(), pattern))
                }
            };
        }
        kept.extend(holds.then_some(volume));
    }
    Ok(kept)
}

/// Whether a text is of this form, where `*` is any letters. Each piece is taken where it first comes, so that no pattern takes
/// long.
fn fits(text: &str, pattern: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return text == pattern };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(text) = text.strip_prefix(head).and_then(|text| text.strip_suffix(tail)) else { return false };
    let found =
        middle.split('*').try_fold(text, |text, piece| text.find(piece).map(|at| &text[at + piece.len()..]));
    found.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_or_not() {
        for (text, pattern) in [
            ("nightly-1", "nightly-1"),
            ("nightly-1", "nightly-*"),
            ("nightly-", "nightly-*"),
            ("nightly-1", "*"),
            ("nightly-1", "**"),
            ("nightly-1", "*-1"),
            ("nightly-1", "n*t*-*1"),
            ("abcabc", "a*c"),
            ("abcabc", "*bc*bc*"),
        ] {
            assert!(fits(text, pattern), "{text} {pattern}");
        }
        for (text, pattern) in [
            ("nightly-1", "nightly"),
            ("nightly-1", "nightly-1*1"),
            ("nightly-1", "Nightly*"),
            ("nightly-1", "ightly*"),
            ("aba", "aba*ba"),
            ("abc", "*b*b*"),
            ("abc", "a.c"),
            ("abc", "?bc"),
            ("abc", ""),
        ] {
            assert!(!fits(text, pattern), "{text} {pattern}");
        }
        assert!(!fits(&"a".repeat(128), &format!("{}b", "a*".repeat(10_000))));
    }

    #[test]
    fn what_is_no_filter_lists_those_there_are() {
        for text in ["", "x", "colour=red", "tag=a=b", "State=success", "state=", "name=", "=x", "tags:a=b"] {
            let refused = text.parse::<Filter>().unwrap_err();
            for word in ["tag:K=V", "state=success|processing|failed|deleted", "source=", "volume=", "name="]
            {
                assert!(refused.contains(word), "{text}: {refused}");
            }
        }
        assert!("state=done".parse::<Filter>().unwrap_err().contains("processing"));
        assert!("tag:a".parse::<Filter>().unwrap_err().contains("KEY=VALUE"));
        let tag = Tag { key: "a:b".into(), value: "c=d".into() };
        assert_eq!("tag:a:b=c=d".parse(), Ok(Filter::Tag(tag)));
    }
}
