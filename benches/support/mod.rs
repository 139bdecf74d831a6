//! Layers in files below a temporary folder, in memory where the machine has such a place: the disk is no part of what is
//! measured.
#![allow(dead_code)] // each bench uses a part

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use terrane::crypto::{Cipher, LayerKeys, Secret};
use terrane::ids::LayerId;
use terrane::layer::{FileStore, Layer, PageCache, Parts, Store, UNFLUSHED_MAX};
use terrane::units::{SECTOR_LEN, SectorNo};

/// Pages that a process keeps: 16 MiB, as a mount does.
const PAGES: usize = 2048;

/// A folder in memory, or where temporary files go.
pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("terrane-bench.").tempdir_in(parent).expect("a temporary folder")
}

/// Where new layers are made.
pub struct Shelf {
    folder: TempDir,
    cache: Arc<PageCache>,
}

impl Shelf {
    pub fn new() -> Self {
        Self { folder: folder(), cache: Arc::new(PageCache::new(PAGES)) }
    }

    fn store(&self, path: PathBuf) -> Arc<dyn Store> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(path).expect("a new file");
        Arc::new(FileStore::new(file))
    }

    /// An empty layer.
    pub fn layer(&self, size_bytes: u64) -> Layer {
        let id = LayerId::random();
        let file = |kind| self.store(self.folder.path().join(format!("{id}.{kind}")));
        let keys = LayerKeys::derive(Cipher::XtsAes256, &Secret::random()).expect("random halves differ");
        let parts = Parts {
            id,
            data: file("data"),
            map: file("map"),
            keys: Arc::new(keys),
            cache: self.cache.clone(),
            edition: 0,
        };
        Layer::create(parts, size_bytes).expect("a layer")
    }

    /// Takes the files of a layer away.
    pub fn remove(&self, layer: Layer) {
        let id = layer.id();
        drop(layer);
        for kind in ["data", "map"] {
            std::fs::remove_file(self.folder.path().join(format!("{id}.{kind}"))).expect("it was there");
        }
    }
}

/// Writes sectors, and does what falls due, which a mount's keeper does.
pub fn write(layer: &Layer, first: SectorNo, plain: &[u8]) {
    layer.write(first, plain, &[], &|_| Ok(false)).expect("a write");
    if layer.unflushed_bytes() >= UNFLUSHED_MAX {
        layer.flush().expect("a flush");
    }
    if layer.needs_checkpoint() {
        layer.checkpoint_closed().expect("a checkpoint");
    }
}

/// Ends a layer and seals it.
pub fn seal(layer: &Layer) {
    layer.flush().expect("a flush");
    layer.lock_for_seal().and_then(|mut guard| guard.end()).expect("an end");
    layer.finish_seal().expect("a seal");
}

/// Bytes that are no zeros, which would be kept as such.
pub fn bytes(sectors: usize) -> Vec<u8> {
    vec![0x5a; sectors * SECTOR_LEN]
}

/// The numbers 0 to `count` - 1 without end, scattered and each as often as another. `count` is a power of two.
pub fn scattered(count: u64) -> impl FnMut() -> u64 {
    assert!(count.is_power_of_two());
    let mut state = 0u64;
    move || {
        // A full-period linear congruential generator (Hull and Dobell): 5 = 1 modulo 4, the step odd.
        state = (state.wrapping_mul(5).wrapping_add(0x9e37_79b9_7f4a_7c15)) % count;
        state
    }
}
