//! Looking a region over: its catalog, its keys, its layers' folders. Reads only.

use std::fs;

use super::anchor::Anchors;
use super::{Config, Region, RegionError, peek};
use crate::catalog::LayerState;
use crate::kms;

/// What is wrong with a region, in sentences; nothing if all is well.
pub fn check(region: &Region) -> Result<Vec<String>, RegionError> {
    let mut problems = Vec::new();
    let (keys, layers) = region.catalog()?.read(|tx| {
        problems.extend(tx.integrity_problems()?.into_iter().map(|what| format!("the catalog: {what}")));
        tx.volumes()?;
        tx.snapshots()?;
        tx.tasks()?;
        Ok::<_, RegionError>((tx.keys()?, tx.layers()?))
    })?;
    region.root_key()?;
    for key in keys {
        problems.extend(kms::check_key(region, key.id)?);
    }
    for layer in &layers {
        let whole = !matches!(layer.state, LayerState::Preparing | LayerState::Deleting);
        if whole && !region.layer_dir(layer.id).join("header.toml").is_file() {
            problems.push(format!("layer {}: its folder or its header is missing", layer.id));
        }
    }
    let dir = region.layers_dir();
    for found in fs::read_dir(&dir).map_err(RegionError::io("listing it", &dir))? {
        let name = found.map_err(RegionError::io("listing it", &dir))?.file_name();
        if !layers.iter().any(|layer| name == layer.id.to_string().as_str()) {
            problems.push(format!("{}: a folder that no layer of the catalog has", dir.join(name).display()));
        }
    }
    Ok(problems)
}

/// Takes the region in this directory as it is, though it is older than this machine has seen it.
pub fn accept_older(dir: &std::path::Path, config: &Config) -> Result<(), RegionError> {
    let header = peek(dir)?;
    let _lock = config.lock()?;
    Anchors::new(config, header.id, true).clear()
}
