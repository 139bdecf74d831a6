//! Looking a region over: its catalog, its keys, its layers' folders. Reads only; what lies in layers the room `volume` checks.

use std::fs;
use std::path::{Path, PathBuf};

use super::anchor::Anchors;
use super::{Config, Region, RegionError, peek};
use crate::catalog::{Layer, LayerState};
use crate::kms;

/// What is wrong with a region's catalog and keys, in sentences; nothing if all is well.
pub fn check(region: &Region) -> Result<Vec<String>, RegionError> {
    let mut problems = Vec::new();
    region.catalog()?.read(|tx| {
        problems.extend(tx.integrity_problems()?.into_iter().map(|what| format!("the catalog: {what}")));
        tx.volumes()?;
        for snapshot in tx.snapshots()? {
            tx.snapshot_lock(snapshot.id)?;
            tx.bin_entry(snapshot.id)?;
            tx.retention_mac(snapshot.id)?;
        }
        tx.bin_rules()?;
        tx.tasks()?;
        tx.layers()?;
        problems.extend(tx.schedule_problems()?);
        Ok::<_, RegionError>(())
    })?;
    region.root_key()?;
    problems.extend(kms::check_keys(region)?);
    Ok(problems)
}

/// Layers whose folder or header is missing, in sentences.
pub fn missing_layers(region: &Region) -> Result<Vec<String>, RegionError> {
    let is_missing = |layer: &Layer| {
        let whole = !matches!(layer.state, LayerState::Preparing | LayerState::Deleting);
        whole && !region.layer_dir(layer.id).join("header.toml").is_file()
    };
    let mut missing: Vec<_> = region.catalog()?.read(|tx| tx.layers())?;
    missing.retain(is_missing);
    if !missing.is_empty() {
        // One that was being deleted meanwhile is not missing.
        let now = region.catalog()?.read(|tx| tx.layers())?;
        missing.retain(|layer| now.iter().any(|row| row.id == layer.id && is_missing(row)));
    }
    Ok(missing
        .iter()
        .map(|layer| format!("layer {}: its folder or its header is missing", layer.id))
        .collect())
}

/// What lies in `layers/` without a row. A row precedes its folder and outlives it, so the folders are listed first.
pub fn unknown_folders(region: &Region) -> Result<Vec<PathBuf>, RegionError> {
    let dir = region.layers_dir();
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(RegionError::io("listing it", &dir))? {
        found.push(entry.map_err(RegionError::io("listing it", &dir))?.file_name());
    }
    let layers = region.catalog()?.read(|tx| tx.layers())?;
    found.retain(|name| !layers.iter().any(|layer| *name == *layer.id.to_string()));
    let mut unknown: Vec<_> = found.into_iter().map(|name| dir.join(name)).collect();
    // Those that were taken away in good order meanwhile are not there any more.
    unknown.retain(|path| fs::symlink_metadata(path).is_ok());
    unknown.sort();
    Ok(unknown)
}

/// Takes the region in this directory as it is, though it is older than this machine has seen it.
pub fn accept_older(dir: &Path, config: &Config) -> Result<(), RegionError> {
    let header = peek(dir)?;
    let _lock = config.lock()?;
    Anchors::new(config, header.id, true).clear()
}
