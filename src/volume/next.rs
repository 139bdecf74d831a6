//! A volume's next layer, while a seal has it in hand.

use std::sync::Arc;

use super::live::Seal;
use super::open_volume::OpenVolume;
use crate::catalog::Layer as LayerRow;
use crate::ids::{LayerId, VolumeId};
use crate::layer::Layer;

/// A next layer taken for a seal. Where the seal does not come about, it goes back to stand ready: the catalog names it
/// as the volume's next, so that another one in its place would leave it to nobody.
pub(super) struct TakenNext<'a> {
    open: &'a OpenVolume,
    ready: Option<(LayerRow, Arc<Layer>)>,
}

impl<'a> TakenNext<'a> {
    /// `ready` is what the catalog names as the volume's next.
    pub fn new(open: &'a OpenVolume, ready: (LayerRow, Arc<Layer>)) -> Self {
        Self { open, ready: Some(ready) }
    }

    fn layer(&self) -> &Arc<Layer> {
        &self.ready.as_ref().expect("only `used` takes it").1
    }

    /// The volume, the layer that takes its writes now, and the next.
    pub fn ids(&self) -> (VolumeId, LayerId, LayerId) {
        (self.open.disk.id(), self.open.disk.active().id(), self.layer().id())
    }

    /// What is to be sealed.
    pub fn seal(&self) -> Seal<'a> {
        Seal { volume: &self.open.disk, next: self.layer().clone() }
    }

    /// The seal came about: it is the active one now.
    pub fn used(mut self) -> &'a OpenVolume {
        self.ready = None;
        self.open
    }
}

impl Drop for TakenNext<'_> {
    fn drop(&mut self) {
        if let Some(ready) = self.ready.take() {
            self.open.next.lock().get_or_insert(ready);
        }
    }
}
