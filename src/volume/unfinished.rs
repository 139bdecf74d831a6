//! Seals that a killed mount left unfinished.

use super::folder;
use super::host::Host;
use super::host_error::{HostError, Result};
use super::owner::LayersLock;
use crate::ids::LayerId;
use crate::region::{Region, RegionError};

/// Finishes the seals of a layer and of those below it, where nobody else owns the layers who would. `open` opens the same
/// region once more.
pub fn finish_seals<E>(
    region: &Region,
    layer: LayerId,
    open: impl FnOnce() -> Result<Region, E>,
) -> Result<(), E>
where
    E: From<HostError> + From<RegionError>,
{
    let chain = region.catalog()?.read(|tx| tx.layer_chain(layer)).map_err(HostError::from)?;
    if chain.iter().all(|row| folder::sealed_mark(row).is_some()) {
        return Ok(());
    }
    if let Ok(lock) = LayersLock::take(region, None)? {
        Host::new(open()?, Some(lock)).open_chain(layer)?;
    }
    Ok(())
}
