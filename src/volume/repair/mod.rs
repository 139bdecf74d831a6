//! The rows of a lost catalog, from the headers of layers and the files of keys.
//!
//! Conservative: a layer that has a header of its key gets a row, and each sealed one a snapshot, so that nothing is folded
//! away that had a name. What can't be told is said. Layers are only read.

mod layers;
mod rows;

use crate::catalog::{KeyState, Salvaged};
use crate::ids::{KeyId, LayerId, VolumeId};
use crate::region::Region;

use super::host_error::Result;
use super::{folder, footing};

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
    /// Layers that are to be those of another volume: an older state of one volume becomes a volume of its own.
    adopted: Vec<(LayerId, VolumeId)>,
    /// Layers, each with one that it took, of which nothing is left to be taken away.
    taken: Vec<(LayerId, LayerId)>,
    /// What keys were; until then all are enabled, since headers are read with them.
    key_states: Vec<(KeyId, KeyState)>,
}

impl Recovered {
    /// Makes layers' headers say what the new catalog says of them, and keys what they were, right before that takes its place.
    pub fn adopt(&self, region: &Region) -> Result<()> {
        for (layer, volume) in &self.adopted {
            let row = region.catalog()?.read(|tx| tx.layer(*layer))?;
            let keys = folder::checked_header(region, &row)?.1;
            folder::change_header(region, *layer, &keys, |header| header.volume = *volume)?;
        }
        for (kept, gone) in &self.taken {
            let row = region.catalog()?.read(|tx| tx.layer(*kept))?;
            footing::forget_taken(region, &row, *gone)?;
        }
        Ok(region
            .catalog()?
            .write(|tx| self.key_states.iter().try_for_each(|(key, state)| tx.set_key_state(*key, *state)))?)
    }
}

/// Fills an empty catalog of a region from what lies in `keys/` and `layers/`; and from the rows of the old one, as far as they
/// read and keys bear them out.
pub fn recover_rows(region: &Region, old: &Salvaged) -> Result<Recovered> {
    let restored = crate::kms::restore(region, old)?;
    let mut recovered = Recovered {
        keys: restored.keys.iter().map(ToString::to_string).collect(),
        unusable: restored.unusable,
        ..Recovered::default()
    };
    let unknown = restored.unknown.iter();
    recovered
        .notes
        .extend(unknown.map(|id| format!("whether key {id} was disabled is not known: it is enabled")));
    let layers = layers::find(region, &mut recovered)?;
    rows::insert(region, layers, old, &mut recovered)?;
    recovered.key_states = restored.states;
    Ok(recovered)
}
