//! A simulated disk whose content is known, for what lies on it to be spoiled.
#![allow(dead_code)] // each test file uses a part

#[path = "../common/mod.rs"]
pub mod common;

use std::ops::Range;
use std::sync::Arc;

use common::Random;
use common::shelf::{Place, Shelf};
use common::sim::Machine;
use terrane::crypto::Cipher;
use terrane::ids::LayerId;
use terrane::layer::Layer;
use terrane::units::SECTOR_LEN;
use terrane::volume::{LiveVolume, Stack};

/// Three chunks; sectors of all three are written.
pub const DISK: u64 = 6 << 20;
pub const SECTORS: u64 = DISK / 4096;

pub type Content = Vec<u8>;

pub fn shelf_on(machine: &Arc<Machine>) -> Shelf {
    Shelf::new(Place::Machine(machine.clone()), DISK, Cipher::XtsAes256)
}

/// Sectors the tests look at, some never written.
pub fn looked_at() -> Vec<u64> {
    (0..20).chain(500..524).chain(1024..1044).chain([SECTORS - 1]).collect()
}

pub struct Disk {
    pub machine: Arc<Machine>,
    pub shelf: Shelf,
    pub volume: LiveVolume,
    pub content: Content,
    pub random: Random,
}

impl Disk {
    pub fn new() -> Self {
        let machine = Machine::new();
        let shelf = shelf_on(&machine);
        let volume = shelf.open().unwrap();
        Self { machine, shelf, volume, content: vec![0; DISK as usize], random: Random::new(4) }
    }

    pub fn write(&mut self, sectors: Range<u64>) {
        let bytes = &mut self.content[sectors.start as usize * SECTOR_LEN..sectors.end as usize * SECTOR_LEN];
        self.random.fill(bytes);
        self.volume.write(sectors.start * 4096, bytes).unwrap();
    }

    pub fn discard(&mut self, sector: u64) {
        self.content[sector as usize * SECTOR_LEN..][..SECTOR_LEN].fill(0);
        self.volume.discard(sector * 4096, 4096).unwrap();
    }

    /// Three chunks with data, a part of it written twice, all in the map; a page of each has both places used.
    pub fn filled() -> Self {
        let mut disk = Self::new();
        for _ in 0..2 {
            disk.write(0..16);
            disk.write(504..520);
            disk.write(1024..1040);
            for sector in [3, 7, 505, 515, 1030] {
                disk.write(sector..sector + 1);
            }
            disk.volume.active().checkpoint().unwrap();
        }
        disk
    }

    pub fn file(&self, layer: LayerId, file: &str) -> String {
        format!("{layer}.{file}")
    }

    pub fn sealed(mut self) -> (Self, Arc<Layer>) {
        self.shelf.seal(&self.volume).unwrap();
        self.shelf.finish_seals(&self.volume).unwrap();
        let layer = self.volume.stack().chain.layers()[0].clone();
        self.write(19..20);
        self.volume.flush().unwrap();
        (self, layer)
    }
}

/// Each sector reads right or is damage; returns those that are damage.
pub fn damaged(stack: &Stack, content: &[u8]) -> Vec<u64> {
    let mut bytes = [0xaa; SECTOR_LEN];
    let bad = |sector: &u64| match stack.read(sector * 4096, &mut bytes) {
        Ok(()) => {
            let expected = &content[*sector as usize * SECTOR_LEN..][..SECTOR_LEN];
            assert!(bytes == expected, "sector {sector} reads wrong");
            false
        }
        Err(e) => {
            assert!(e.is_corruption(), "sector {sector}: {e}");
            true
        }
    };
    looked_at().into_iter().filter(bad).collect()
}

/// Opens what the machine holds; a refusal must be for corruption.
pub fn open(machine: &Arc<Machine>) -> Option<LiveVolume> {
    match shelf_on(machine).open() {
        Ok(volume) => Some(volume),
        Err(e) => {
            assert!(e.is_corruption(), "{e}");
            None
        }
    }
}
