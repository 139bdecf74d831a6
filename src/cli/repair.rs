//! `terrane region check --repair`: says what it will do, asks, and does it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use super::confirm::confirm;
use super::{App, check};
use crate::catalog::CatalogError;
use crate::kms::{self, KmsError};
use crate::region::{self, Rebuilding, Region, RegionError};
use crate::volume::{Host, Recovered, recover_rows, unvouched_rows};

/// What headers and key files do not say.
const LOST: &str = "of what does not read, or is not believed, names, descriptions, tags, aliases, settings, groups, retention, locks, the bin and \
    its rules, and which keys were disabled are lost; so is the history of tasks";

/// What was done.
#[derive(Serialize, Default)]
pub struct Repaired {
    catalog_rebuilt: bool,
    /// Where the old catalog is now.
    old_catalog: Option<PathBuf>,
    keys: Vec<String>,
    volumes: Vec<Named>,
    snapshots: Vec<Named>,
    /// Files and folders that could not be used, and why.
    unusable: Vec<String>,
    removed_folders: Vec<PathBuf>,
    /// Rows of keys and files in keys/ that were written anew, each from the other.
    mended_keys: Vec<String>,
}

#[derive(Serialize)]
struct Named {
    id: String,
    name: String,
}

/// Rebuilds the catalog where it is lost or damaged; writes what is lost of a key anew from its other place; removes folders without a row
/// where that was asked for.
pub fn run(app: &App, remove_unknown: bool, yes: bool) -> Result<Repaired> {
    if let Some(why) = catalog_damage(app)? {
        let rebuilt = rebuild(app, &why, yes)?;
        let rebuilt = Repaired { mended_keys: mend_keys(app, &app.region()?)?, ..rebuilt };
        if remove_unknown {
            app.output().note(
                "nothing was removed from layers/: see first what was recovered, then run --remove-unknown again",
            );
        }
        return Ok(rebuilt);
    }
    let region = app.region()?;
    app.output().note(format!("the catalog of region {} is whole", region.name()));
    let mut repaired = Repaired { mended_keys: mend_keys(app, &region)?, ..Repaired::default() };
    let unknown = region::unknown_folders(&region)?;
    if unknown.is_empty() {
        return Ok(repaired);
    }
    let list: Vec<_> = unknown.iter().map(|path| format!("  {}", check::unknown(&region, path))).collect();
    let what = format!("in layers/, and no layer of the catalog:\n{}", list.join("\n"));
    if !remove_unknown {
        app.output().note(format!("{what}\nthey stay; `--remove-unknown` removes them"));
        return Ok(repaired);
    }
    confirm(&format!("{what}\nthey will be removed, for ever"), yes)?;
    for path in unknown {
        remove(&region, &path)?;
        repaired.removed_folders.push(path);
    }
    Ok(repaired)
}

/// Why the catalog can't be used; none: it can.
fn catalog_damage(app: &App) -> Result<Option<String>> {
    let looked = Region::choose(app.region_text(), app.config()).and_then(|region| {
        let problems = region.catalog()?.read(|tx| tx.integrity_problems())?;
        if problems.is_empty() {
            // Rows that can't be read are damage too.
            region::check(&region)?;
        }
        Ok(problems)
    });
    match looked {
        Ok(problems) if !problems.is_empty() => Ok(problems.first().cloned()),
        Ok(_) => Ok(misled_rows(app)?.into_iter().next()),
        Err(RegionError::Catalog(e @ CatalogError::Corrupted { .. })) => Ok(Some(e.to_string())),
        Err(RegionError::Kms(e)) if matches!(*e, KmsError::Catalog(CatalogError::Corrupted { .. })) => {
            Ok(Some(e.to_string()))
        }
        Err(other) => Err(other.into()),
    }
}

/// Rows that layers do not bear out.
fn misled_rows(app: &App) -> Result<Vec<String>> {
    let host = Host::new(app.region()?, None);
    Ok(unvouched_rows(&host)?)
}

fn rebuild(app: &App, why: &str, yes: bool) -> Result<Repaired> {
    let rebuilding = Rebuilding::begin(app.region_text(), app.config())?;
    let found = recover_rows(rebuilding.region(), rebuilding.old())?;
    confirm(&plan(why, &found), yes)?;
    found.adopt(rebuilding.region())?;
    let old_catalog = rebuilding.commit()?;
    if let Some(path) = &old_catalog {
        app.output().note(format!("the old catalog is in {}", path.display()));
    }
    app.output().note("the catalog is rebuilt");
    let named = |list: Vec<(String, String)>| list.into_iter().map(|(id, name)| Named { id, name }).collect();
    Ok(Repaired {
        catalog_rebuilt: true,
        old_catalog,
        keys: found.keys,
        volumes: named(found.volumes),
        snapshots: named(found.snapshots),
        unusable: found.unusable,
        ..Repaired::default()
    })
}

/// Destroys nothing: what is written over holds no key, or the same. What could not be mended is told again by the check that follows.
fn mend_keys(app: &App, region: &Region) -> Result<Vec<String>> {
    let mended = kms::mend_keys(region)?;
    mended.done.iter().chain(&mended.failed).for_each(|what| app.output().note(what));
    Ok(mended.done)
}

fn plan(why: &str, found: &Recovered) -> String {
    let mut lines = vec![
        why.to_owned(),
        format!(
            "a new catalog will take its place, with {} keys, {} volumes and {} snapshots; the old one is moved aside:",
            found.keys.len(),
            found.volumes.len(),
            found.snapshots.len()
        ),
    ];
    lines.extend(found.keys.iter().map(|id| format!("  key {id}")));
    lines.extend(found.volumes.iter().map(|(id, name)| format!("  volume {name} ({id})")));
    lines.extend(found.snapshots.iter().map(|(id, name)| format!("  snapshot {name} ({id})")));
    lines.extend(found.unusable.iter().map(|what| format!("  not recovered, and left where it is: {what}")));
    lines.extend(found.notes.iter().map(|what| format!("  {what}")));
    lines.push(LOST.into());
    lines.join("\n")
}

/// Looks again that no layer has it.
fn remove(region: &Region, path: &PathBuf) -> Result<()> {
    if !region::unknown_folders(region)?.contains(path) {
        return Ok(());
    }
    let is_dir = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("removing {}", path.display()))
}
