//! A volume in layers, with a catalog of three variables: what `volume`'s host does, without SQLite.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use terrane::catalog::FoldWay;
use terrane::crypto::{Cipher, LayerKeys, Secret};
use terrane::ids::{LayerId, VolumeId};
use terrane::layer::{Anchor, FileStore, Layer, LayerError, PageCache, Parts, SealedMark, Store};
use terrane::volume::{Chain, LiveVolume, Move, Seal, Stack, VolumeError, seal_together};

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
            Self::Machine(machine) => Arc::new(SimStore::new(machine.clone(), &format!("{layer}.{file}"))),
        }
    }
}

/// What the catalog would hold.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Sealed layers, oldest first, and the marks of those whose seal is finished.
    pub sealed: Vec<(LayerId, Option<SealedMark>)>,
    /// Chains that the volume was rolled back from, oldest layer first: snapshots still name what is not below it any more.
    pub aside: Vec<Vec<(LayerId, SealedMark)>>,
    pub active: Option<LayerId>,
    pub next: Option<LayerId>,
    /// The number of the sealed layer that is being joined with the one on it, and which way.
    pub folding: Option<(usize, FoldWay)>,
}

impl Rows {
    fn is_written_by_fold(&self, number: usize) -> bool {
        match self.folding {
            Some((parent, FoldWay::Up)) => number == parent + 1,
            Some((parent, FoldWay::Down)) => number == parent,
            None => false,
        }
    }
}

/// How far layers were seen to have come.
pub type Anchors = BTreeMap<LayerId, Anchor>;

/// A volume and its catalog.
pub struct Shelf {
    pub place: Place,
    pub size_bytes: u64,
    pub cipher: Cipher,
    /// What a recovery may not fall behind.
    pub anchors: Anchors,
    /// The catalog of a folder; a machine keeps its own.
    rows: Mutex<Rows>,
    cache: Arc<PageCache>,
    /// The fold was begun here, and not by a process that was cut.
    began_fold: Mutex<bool>,
}

impl Shelf {
    pub fn new(place: Place, size_bytes: u64, cipher: Cipher) -> Self {
        Self {
            place,
            size_bytes,
            cipher,
            anchors: Anchors::new(),
            rows: Mutex::default(),
            cache: Arc::new(PageCache::new(256)),
            began_fold: Mutex::default(),
        }
    }

    pub fn rows(&self) -> Rows {
        match &self.place {
            Place::Folder(_) => self.rows.lock().clone(),
            Place::Machine(machine) => machine.rows(),
        }
    }

    /// Changes the catalog: durable at once, or it fails.
    fn commit(&self, change: impl FnOnce(&mut Rows)) -> Result<(), LayerError> {
        let mut rows = self.rows();
        change(&mut rows);
        match &self.place {
            Place::Folder(_) => *self.rows.lock() = rows,
            Place::Machine(machine) => {
                machine.commit(rows).map_err(|source| LayerError::Io { what: "committing", source })?;
            }
        }
        Ok(())
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
            edition: 0,
        }
    }

    /// Makes the layer that the next seal needs.
    pub fn make_next(&self) -> Result<Arc<Layer>, LayerError> {
        let id = LayerId::random();
        let layer = Layer::create(self.parts(id), self.size_bytes)?;
        self.commit(|rows| rows.next = Some(id))?;
        Ok(Arc::new(layer))
    }

    /// Makes or opens the volume, as a host does.
    pub fn open(&self) -> Result<LiveVolume, LayerError> {
        let rows = self.rows();
        let Some(active) = rows.active else {
            let layer = self.make_next()?;
            self.commit(|rows| rows.active = rows.next.take())?;
            return Ok(live(layer, Vec::new()));
        };
        let mut layers = Vec::new();
        for (i, (id, mark)) in rows.sealed.iter().enumerate() {
            layers.push(match mark {
                Some(mark) if rows.is_written_by_fold(i) => {
                    Arc::new(Layer::open_folding(self.parts(*id), *mark)?)
                }
                Some(mark) => Arc::new(Layer::open_sealed(self.parts(*id), *mark)?),
                None => self.recover_sealed(i, *id)?,
            });
        }
        let mut top = self.recover(active)?;
        if top.is_ended() {
            // *end* makes `next` active.
            let next = rows.next.expect("a layer ends only when its next is there");
            self.commit(|rows| {
                rows.sealed.push((active, None));
                rows.active = rows.next.take();
            })?;
            self.finish(layers.len(), &top)?;
            layers.push(Arc::new(top));
            top = self.recover(next)?;
        }
        Ok(live(Arc::new(top), layers))
    }

    fn recover_sealed(&self, number: usize, id: LayerId) -> Result<Arc<Layer>, LayerError> {
        let layer = Layer::recover_ended(self.parts(id), None)?;
        self.finish(number, &layer)?;
        Ok(Arc::new(layer))
    }

    fn recover(&self, id: LayerId) -> Result<Layer, LayerError> {
        Layer::recover(self.parts(id), self.anchors.get(&id).copied())
    }

    /// Finishes a seal and commits its mark.
    pub fn finish(&self, number: usize, layer: &Layer) -> Result<(), LayerError> {
        let mark = layer.finish_seal()?;
        self.commit(|rows| rows.sealed[number].1 = Some(mark))
    }

    /// A snapshot: returns the sealed layer's number, before its seal is finished.
    pub fn seal(&self, volume: &LiveVolume) -> Result<usize, VolumeError> {
        let ended = self.begin_seal(volume)?;
        self.commit_seal(&ended)
    }

    /// The moment of the snapshot; its name follows with [`Shelf::commit_seal`].
    pub fn begin_seal(&self, volume: &LiveVolume) -> Result<Arc<Layer>, VolumeError> {
        let next = self.make_next()?;
        Ok(seal_together(vec![Seal { volume, next }])?.remove(0))
    }

    /// The snapshot is answered when this returns.
    pub fn commit_seal(&self, ended: &Layer) -> Result<usize, VolumeError> {
        ended.flush()?;
        self.commit(|rows| {
            rows.sealed.push((ended.id(), None));
            rows.active = rows.next.take();
        })?;
        Ok(self.rows().sealed.len() - 1)
    }

    /// Finishes the seals that are not.
    pub fn finish_seals(&self, volume: &LiveVolume) -> Result<(), LayerError> {
        let stack = volume.stack();
        for (number, (id, mark)) in self.rows().sealed.iter().enumerate() {
            if mark.is_none() {
                let layer = stack.chain.layers().iter().find(|l| l.id() == *id).expect("it is in the chain");
                self.finish(number, layer)?;
            }
        }
        Ok(())
    }

    /// Puts the volume back to sealed layer `number`: a new layer on that one takes its writes. What was written since the last snapshot
    /// is lost; snapshots of what is left behind stay.
    pub fn roll_back(&self, volume: &LiveVolume, number: usize) -> Result<LiveVolume, LayerError> {
        self.finish_seals(volume)?;
        let id = self.make_next()?.id();
        self.commit(|rows| {
            let finished = |(id, mark): &(LayerId, Option<SealedMark>)| (*id, mark.expect("it is finished"));
            rows.aside.push(rows.sealed.iter().map(finished).collect());
            rows.sealed.truncate(number + 1);
            (rows.active, rows.next) = (Some(id), None);
        })?;
        self.open()
    }

    /// The disk of snapshot `number` of a chain that the volume was rolled back from.
    pub fn aside(&self, chain: usize, number: usize) -> Result<Stack, LayerError> {
        let layers = self.rows().aside[chain][..=number].to_vec();
        let layers =
            layers.into_iter().map(|(id, mark)| Layer::open_sealed(self.parts(id), mark).map(Arc::new));
        Ok(Stack { active: None, chain: Chain::new(layers.collect::<Result<_, _>>()?) })
    }

    /// Begins to join sealed layer `number` with the one on it: nothing names it any more.
    pub fn begin_fold(&self, number: usize, way: FoldWay) -> Result<(), LayerError> {
        *self.began_fold.lock() = true;
        self.commit(|rows| rows.folding = Some((number, way)))
    }

    /// Carries on with the fold that was begun. `watch` is called after each chunk. Where the active layer is sealed
    /// meanwhile the fold is called off.
    pub fn fold(&self, volume: &LiveVolume, watch: &mut dyn FnMut()) -> Result<(), VolumeError> {
        let rows = self.rows();
        let Some((number, way)) = rows.folding else { return Ok(()) };
        let stack = volume.stack();
        let layers = stack.chain.layers();
        let (parent, child) = (&layers[number], layers.get(number + 1));
        let (from, kept) = match (way, child) {
            (FoldWay::Up, child) => (parent.clone(), child.map(|c| c.id())),
            (FoldWay::Down, child) => (child.expect("both are sealed").clone(), Some(parent.id())),
        };
        let into = match kept {
            Some(id) => Arc::new(Layer::reopen(self.parts(id), self.size_bytes)?),
            None => volume.active(),
        };
        let below = Chain::new(layers[..number].to_vec());
        let moved = Move { way, from: &from, into: &into, below: &below }.run(0, &mut |_, _| {
            watch();
            true
        });
        match moved {
            Err(VolumeError::Layer(LayerError::Ended)) => return Ok(self.commit(|rows| rows.folding = None)?),
            other => assert!(other?, "it came to the end"),
        }
        let mark = match kept {
            Some(_) => {
                into.lock_for_seal()?.end()?;
                into.flush()?;
                // As the host does: who goes on does not know what was freed before.
                into.finish_fold(!*self.began_fold.lock(), &mut || true)?
            }
            None => into.flush().map(|()| None)?,
        };
        let gone = if way == FoldWay::Up { number } else { number + 1 };
        self.commit(|rows| {
            if let Some(kept) = kept {
                rows.sealed.iter_mut().filter(|(id, _)| *id == kept).for_each(|row| row.1 = mark);
            }
            rows.sealed.remove(gone);
            rows.folding = None;
        })?;
        // The live volume's chain may have grown meanwhile.
        let now = volume.stack();
        let left = now.chain.layers().iter().filter(|l| l.id() != from.id());
        let left: Result<Vec<_>, LayerError> = left
            .map(|layer| match (mark, kept == Some(layer.id())) {
                (Some(mark), true) => Ok(Arc::new(Layer::open_sealed(self.parts(layer.id()), mark)?)),
                _ => Ok(layer.clone()),
            })
            .collect();
        volume.replace_chain(Chain::new(left?));
        Ok(())
    }

    /// A snapshot's disk: the chain up to a sealed layer.
    pub fn snapshot(&self, volume: &LiveVolume, number: usize) -> Stack {
        let layers = volume.stack().chain.layers()[..=number].to_vec();
        Stack { active: None, chain: Chain::new(layers) }
    }
}

fn live(active: Arc<Layer>, layers: Vec<Arc<Layer>>) -> LiveVolume {
    LiveVolume::new(VolumeId::random(), Stack { active: Some(active), chain: Chain::new(layers) })
}
