//! A volume in layers, with a catalog of three variables: what `volume`'s host does, without SQLite.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use terrane::crypto::{Cipher, LayerKeys, Secret};
use terrane::ids::{LayerId, VolumeId};
use terrane::layer::{FileStore, Layer, LayerError, PageCache, Parts, SealedMark, Store};
use terrane::volume::{Chain, LiveVolume, Seal, Stack, VolumeError, seal_together};

use super::sim::{Machine, SimStore};

/// Where layers' files lie.
#[derive(Clone)]
pub enum Place {
    Folder(PathBuf),
    Machine(Arc<Machine>),
}

impl Place {
    pub fn store(&self, layer: LayerId, file: &str) -> Arc<dyn Store> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(format!("{layer}.{file}"));
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(path)
                    .unwrap();
                Arc::new(FileStore::new(file))
            }
            Self::Machine(machine) => {
                Arc::new(SimStore { machine: machine.clone(), name: format!("{layer}.{file}") })
            }
        }
    }

    /// A catalog commit: durable at once, or the machine is off.
    fn commit(&self) -> Result<(), LayerError> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Machine(machine) => {
                machine.operate().map_err(|source| LayerError::Io { what: "committing", source })
            }
        }
    }
}

/// What the catalog would hold.
#[derive(Clone, Default)]
pub struct Rows {
    /// Sealed layers, oldest first, and the marks of those whose seal is finished.
    pub sealed: Vec<(LayerId, Option<SealedMark>)>,
    pub active: Option<LayerId>,
    pub next: Option<LayerId>,
}

/// A volume and its catalog.
pub struct Shelf {
    pub place: Place,
    pub size_bytes: u64,
    pub rows: Mutex<Rows>,
    pub cipher: Cipher,
    cache: Arc<PageCache>,
}

impl Shelf {
    pub fn new(place: Place, size_bytes: u64, cipher: Cipher) -> Self {
        Self { place, size_bytes, rows: Mutex::default(), cipher, cache: Arc::new(PageCache::new(256)) }
    }

    /// The same catalog over another machine.
    pub fn moved(&self, place: Place) -> Self {
        Self {
            place,
            size_bytes: self.size_bytes,
            rows: Mutex::new(self.rows.lock().clone()),
            cipher: self.cipher,
            cache: Arc::new(PageCache::new(256)),
        }
    }

    pub fn parts(&self, id: LayerId) -> Parts {
        let mut key = [0; 64];
        key[..16].copy_from_slice(&id.0);
        key[63] = 1;
        Parts {
            id,
            data: self.place.store(id, "data"),
            map: self.place.store(id, "map"),
            keys: Arc::new(LayerKeys::derive(self.cipher, &Secret::new(key)).unwrap()),
            cache: self.cache.clone(),
        }
    }

    fn make_next(&self) -> Result<Arc<Layer>, LayerError> {
        let id = LayerId::random();
        let layer = Layer::create(self.parts(id), self.size_bytes)?;
        self.place.commit()?;
        self.rows.lock().next = Some(id);
        Ok(Arc::new(layer))
    }

    /// Makes or opens the volume, as a host does.
    pub fn open(&self) -> Result<LiveVolume, LayerError> {
        let rows = self.rows.lock().clone();
        let Some(active) = rows.active else {
            let layer = self.make_next()?;
            let mut rows = self.rows.lock();
            rows.active = rows.next.take();
            drop(rows);
            return Ok(LiveVolume::new(
                VolumeId::random(),
                Stack { active: Some(layer), chain: Chain::new(Vec::new()) },
            ));
        };
        let mut layers = Vec::new();
        for (i, (id, mark)) in rows.sealed.iter().enumerate() {
            layers.push(match mark {
                Some(mark) => Arc::new(Layer::open_sealed(self.parts(*id), *mark)?),
                None => self.recover_sealed(i, *id)?,
            });
        }
        let mut top = Layer::recover(self.parts(active), None)?;
        if top.is_ended() {
            // *end* makes `next` active.
            let next = rows.next.expect("a layer ends only when its next is there");
            self.place.commit()?;
            let number = {
                let mut rows = self.rows.lock();
                rows.sealed.push((active, None));
                rows.active = rows.next.take();
                rows.sealed.len() - 1
            };
            self.finish(number, &top)?;
            layers.push(Arc::new(top));
            top = Layer::recover(self.parts(next), None)?;
        }
        Ok(LiveVolume::new(
            VolumeId::random(),
            Stack { active: Some(Arc::new(top)), chain: Chain::new(layers) },
        ))
    }

    fn recover_sealed(&self, number: usize, id: LayerId) -> Result<Arc<Layer>, LayerError> {
        let layer = Layer::recover(self.parts(id), None)?;
        assert!(layer.is_ended(), "a layer committed as sealed lost its end");
        self.finish(number, &layer)?;
        Ok(Arc::new(layer))
    }

    /// Finishes a seal and commits its mark.
    pub fn finish(&self, number: usize, layer: &Layer) -> Result<(), LayerError> {
        let mark = layer.finish_seal()?;
        self.place.commit()?;
        self.rows.lock().sealed[number].1 = Some(mark);
        Ok(())
    }

    /// A snapshot: returns the sealed layer's number, before its seal is finished.
    pub fn seal(&self, volume: &LiveVolume) -> Result<usize, VolumeError> {
        let next = self.make_next()?;
        let ended = seal_together(vec![Seal { volume, next }])?;
        ended[0].flush()?;
        self.place.commit()?;
        let mut rows = self.rows.lock();
        rows.sealed.push((ended[0].id(), None));
        rows.active = rows.next.take();
        Ok(rows.sealed.len() - 1)
    }

    /// Finishes the seals that are not.
    pub fn finish_seals(&self, volume: &LiveVolume) -> Result<(), LayerError> {
        let stack = volume.stack();
        let rows = self.rows.lock().clone();
        for (number, (id, mark)) in rows.sealed.iter().enumerate() {
            if mark.is_none() {
                let layer = stack.chain.layers().iter().find(|l| l.id() == *id).expect("it is in the chain");
                self.finish(number, layer)?;
            }
        }
        Ok(())
    }

    /// A snapshot's disk: the chain up to a sealed layer.
    pub fn snapshot(&self, volume: &LiveVolume, number: usize) -> Stack {
        let layers = volume.stack().chain.layers()[..=number].to_vec();
        Stack { active: None, chain: Chain::new(layers) }
    }
}
