//! The rows of a lost catalog, from the headers of layers and the files of keys.
//!
//! Conservative: a layer that has a header of its key gets a row, and each sealed one a snapshot, so that nothing is folded
//! away that had a name. What can't be told is said. Layers are only read.

mod layers;
mod rows;

use crate::region::Region;

use super::host_error::Result;

/// What a new catalog holds, and what it lacks.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Keys, by id.
    pub keys: Vec<String>,
    /// Volumes: id and new name.
    pub volumes: Vec<(String, String)>,
    /// Snapshots: id and new name.
    pub snapshots: Vec<(String, String)>,
    /// Files and folders that could not be used, and why, in sentences.
    pub unusable: Vec<String>,
    /// What else a person should know, in sentences.
    pub notes: Vec<String>,
}

/// Fills an empty catalog of a region from what lies in `keys/` and `layers/`.
pub fn recover_rows(region: &Region) -> Result<Recovered> {
    let restored = crate::kms::restore(region)?;
    let mut recovered = Recovered {
        keys: restored.keys.iter().map(ToString::to_string).collect(),
        unusable: restored.unusable,
        ..Recovered::default()
    };
    let layers = layers::find(region, &mut recovered)?;
    rows::insert(region, layers, &mut recovered)?;
    Ok(recovered)
}
