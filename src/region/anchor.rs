//! Anchors: small files beside the root key that say how far a region's catalog and volumes had come, so that an older
//! state put back in the region is noticed on this machine.
//!
//! ```text
//! <configuration>/anchors/<region id>/catalog        generation
//! <configuration>/anchors/<region id>/<volume id>    layer, turn, generation, confirmed_seq
//! ```
//! An anchor is renamed in after what it names is durable: at most once a minute, and at seals and unmounts, never on a
//! flush. A region that is not in the configuration has none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::format::check_format;
use super::{Config, RegionError, files};
use crate::ids::{LayerId, RegionId, VolumeId};
use crate::sys::crashsafe;

const FORMAT: &str = "terrane-anchor";
const FORMAT_VERSION: i64 = 1;
/// The catalog's anchor is not written more often.
const INTERVAL: Duration = Duration::from_secs(60);

/// How far a volume had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeAnchor {
    /// Its active layer.
    pub layer: LayerId,
    /// Its number among the layers that took the volume's writes.
    pub turn: u64,
    /// That layer's superblock generation.
    pub generation: u64,
    /// The newest confirmed record.
    pub confirmed_seq: u64,
}

/// The anchors of one region.
#[derive(Clone, Debug)]
pub(crate) struct Anchors {
    dir: PathBuf,
    /// Where nothing is kept: the region is not in the configuration.
    kept: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    format: String,
    format_version: i64,
    features: Vec<String>,
    layer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    turn: Option<u64>,
    generation: u64,
    confirmed_seq: Option<u64>,
}

impl Anchors {
    pub fn new(config: &Config, id: RegionId, kept: bool) -> Self {
        Self { dir: config.dir().join("anchors").join(id.to_string()), kept }
    }

    /// Forgets all anchors of the region: what it holds now is accepted, however old.
    pub fn clear(&self) -> Result<(), RegionError> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RegionError::io("removing it", &self.dir)(error))
            }
            _ => Ok(()),
        }
    }

    /// Forgets the catalog's anchor: a rebuilt one counts anew. Those of volumes hold on.
    pub fn clear_catalog(&self) -> Result<(), RegionError> {
        let path = self.dir.join("catalog");
        match crashsafe::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RegionError::io("removing it", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a catalog older than its anchor.
    pub fn check_catalog(&self, region: &str, generation: u64) -> Result<(), RegionError> {
        match self.read(&self.dir.join("catalog"))? {
            Some(anchor) if generation < anchor.generation => Err(RegionError::Older {
                what: "the catalog".into(),
                region: region.to_owned(),
                found: generation,
                expected: anchor.generation,
            }),
            _ => Ok(()),
        }
    }

    /// Moves the catalog's anchor on, unless that was done within the last minute.
    pub fn advance_catalog(&self, generation: u64) -> Result<(), RegionError> {
        let path = self.dir.join("catalog");
        let age = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok();
        // A time in the future (the clock was set back) counts as long ago.
        let recent = age.is_some_and(|at| at.elapsed().is_ok_and(|age| age < INTERVAL));
        if recent || self.read(&path)?.is_some_and(|anchor| anchor.generation >= generation) {
            return Ok(());
        }
        self.write(&path, generation, None)
    }

    pub fn volume(&self, volume: VolumeId) -> Result<Option<VolumeAnchor>, RegionError> {
        let path = self.dir.join(volume.to_string());
        let Some(fields) = self.read(&path)? else { return Ok(None) };
        let layer = fields.layer.as_deref().and_then(|id| id.parse().ok());
        match (layer, fields.confirmed_seq) {
            (Some(layer), Some(confirmed_seq)) => {
                let turn = fields.turn.unwrap_or(0);
                Ok(Some(VolumeAnchor { layer, turn, generation: fields.generation, confirmed_seq }))
            }
            _ => Err(RegionError::Corrupted {
                path,
                what: "layer or confirmed_seq".into(),
                expected: "an anchor of a volume".into(),
                found: "another".into(),
            }),
        }
    }

    pub fn set_volume(&self, volume: VolumeId, anchor: &VolumeAnchor) -> Result<(), RegionError> {
        let place = Some((anchor.layer, anchor.turn, anchor.confirmed_seq));
        self.write(&self.dir.join(volume.to_string()), anchor.generation, place)
    }

    pub fn remove_volume(&self, volume: VolumeId) -> Result<(), RegionError> {
        let path = self.dir.join(volume.to_string());
        match crashsafe::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RegionError::io("removing it", path)(error))
            }
            _ => Ok(()),
        }
    }

    fn read(&self, path: &Path) -> Result<Option<Fields>, RegionError> {
        let text = match files::read_toml(path) {
            Err(RegionError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            other => other?,
        };
        let corrupted = |error: toml::de::Error| RegionError::Corrupted {
            path: path.to_owned(),
            what: "the file".into(),
            expected: "an anchor".into(),
            found: error.message().chars().take(80).collect(),
        };
        let table: toml::Table = text.parse().map_err(corrupted)?;
        check_format(&table, path, FORMAT, FORMAT_VERSION, &[])?;
        table.try_into().map(Some).map_err(corrupted)
    }

    fn write(
        &self,
        path: &Path,
        generation: u64,
        place: Option<(LayerId, u64, u64)>,
    ) -> Result<(), RegionError> {
        if !self.kept {
            return Ok(());
        }
        for dir in [self.dir.parent().unwrap_or(&self.dir), &self.dir] {
            match crashsafe::create_dir(dir, 0o700) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(RegionError::io("making it", dir)(error));
                }
                _ => {}
            }
        }
        let fields = Fields {
            format: FORMAT.into(),
            format_version: FORMAT_VERSION,
            features: Vec::new(),
            layer: place.map(|(layer, ..)| layer.to_string()),
            turn: place.map(|(_, turn, _)| turn.min(i64::MAX as u64)),
            generation: generation.min(i64::MAX as u64),
            confirmed_seq: place.map(|(.., seq)| seq.min(i64::MAX as u64)),
        };
        let text = toml::to_string(&fields).expect("plain fields are always TOML");
        crashsafe::write_file(path, text.as_bytes(), 0o600).map_err(RegionError::io("writing it", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_catalog_is_noticed_until_it_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::at(dir.path()).unwrap();
        let anchors = Anchors::new(&config, RegionId::random(), true);
        anchors.check_catalog("here", 0).unwrap();
        anchors.advance_catalog(7).unwrap();
        anchors.advance_catalog(9).unwrap();
        anchors.check_catalog("here", 7).unwrap();
        assert!(matches!(
            anchors.check_catalog("here", 6),
            Err(RegionError::Older { found: 6, expected: 7, .. })
        ));
        let path = anchors.dir.join("catalog");
        let yesterday = std::time::SystemTime::now() - Duration::from_secs(86_400);
        fs::File::options().write(true).open(&path).unwrap().set_modified(yesterday).unwrap();
        anchors.advance_catalog(9).unwrap();
        assert!(anchors.check_catalog("here", 8).is_err());
        anchors.clear().unwrap();
        anchors.check_catalog("here", 0).unwrap();
    }

    #[test]
    fn volumes_have_anchors_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::at(dir.path()).unwrap();
        let anchors = Anchors::new(&config, RegionId::random(), true);
        let (volume, anchor) = (
            VolumeId::random(),
            VolumeAnchor { layer: LayerId::random(), turn: 5, generation: 3, confirmed_seq: 9 },
        );
        assert_eq!(anchors.volume(volume).unwrap(), None);
        anchors.set_volume(volume, &anchor).unwrap();
        assert_eq!(anchors.volume(volume).unwrap(), Some(anchor));
        fs::write(anchors.dir.join(volume.to_string()), "generation = -1").unwrap();
        assert!(anchors.volume(volume).is_err());
        anchors.remove_volume(volume).unwrap();
        anchors.remove_volume(volume).unwrap();
        assert_eq!(anchors.volume(volume).unwrap(), None);
        let unknown = Anchors::new(&config, RegionId::random(), false);
        unknown.set_volume(volume, &anchor).unwrap();
        assert_eq!(unknown.volume(volume).unwrap(), None);
    }
}
