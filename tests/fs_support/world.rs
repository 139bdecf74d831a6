//! Two regions on a simulated disk, and the processes that have them open.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use terrane::catalog::SnapshotState;
use terrane::copy::{self, Copy, Details, Held, KeyChoice, Slot, Taken, Watch, carry_out};
use terrane::ids::{Name, SnapshotId, VolumeId};
use terrane::kms;
use terrane::region::{Config, InitRequest, Region, init};
use terrane::volume::{
    CheckWatch, Host, LayersLock, LiveVolume, Order, SnapshotItem, Stack, cancel_copy, check_region,
    remove_litter,
};

use super::{FsDisk, FsMount, FsState};

pub const REGIONS: [&str; 2] = ["north", "south"];
/// A second key of each region.
pub const OTHER_KEY: &str = "other";

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A disk with two regions and their keys, all durable.
pub fn new_regions(mount: &FsMount) -> FsState<'_> {
    let disk = mount.empty_disk();
    let config = Config::at(&disk.path().join("config")).unwrap();
    for region in REGIONS {
        let dir = disk.path().join(region);
        let request = InitRequest { dir, name: name(region), root_key_file: None, passphrase: None };
        let region = init(&request, &config).unwrap();
        let account = region.catalog().unwrap().read(|tx| tx.default_account()).unwrap().id;
        kms::create_key(&region, account, Some(name(OTHER_KEY)), None).unwrap();
        // Each disk has a path of its own: the root key is found where the configuration keeps it.
        let entry = disk.path().join(format!("config/regions/{}.toml", region.id()));
        let text = std::fs::read_to_string(&entry).unwrap();
        let kept: Vec<_> = text.lines().filter(|line| !line.starts_with("root_key_file")).collect();
        std::fs::write(&entry, kept.join("\n")).unwrap();
    }
    disk.state()
}

/// What lies on a disk, as processes open it.
#[derive(Clone)]
pub struct World {
    dir: PathBuf,
}

impl World {
    pub fn of(disk: &FsDisk) -> Self {
        Self { dir: disk.path().to_owned() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn region(&self, region: &str) -> Result<Region, Failure> {
        let config = Config::at(&self.dir.join("config"))?;
        Ok(Region::open(&self.dir.join(region), &config)?)
    }

    /// The process that owns a region's layers, as a mount begins.
    pub fn owner(&self, region: &str) -> Result<Arc<Host>, Failure> {
        let region = self.region(region)?;
        let lock = LayersLock::take(&region, None)?.map_err(|owner| format!("{owner:?} owns the layers"))?;
        remove_litter(&region)?;
        Ok(Host::new(region, Some(lock)))
    }

    /// Layers whose maker may still live but for their age are older than that now.
    pub fn a_minute_later(&self, region: &str) {
        let catalog = rusqlite::Connection::open(self.dir.join(region).join("catalog.db")).unwrap();
        let sql = "UPDATE layers SET created_at = created_at - 61000000 WHERE state = 'preparing'";
        catalog.execute(sql, []).unwrap();
    }

    /// A re-keyed copy, by a process that owns no layers.
    pub fn copy(&self, from: &str, id: SnapshotId, to: &str, called: &str) -> Result<SnapshotId, Failure> {
        let (source, target) = (Host::new(self.region(from)?, None), Host::new(self.region(to)?, None));
        let key = KeyChoice::Named(OTHER_KEY.into());
        let plan = copy::plan(&source, id, &target, &name(called), &key)?;
        let account = target.region().catalog()?.read(|tx| tx.default_account())?.id;
        let details = Details {
            account,
            name: name(called),
            description: None,
            tags: vec![],
            retention_days: None,
            group: None,
        };
        let (cancel, mut progress) = (AtomicBool::new(false), |_, _| {});
        let watch = Watch::new(&cancel, &mut progress);
        Ok(Copy::new(&source, &target, plan, details).run(watch)?)
    }

    /// Copies that were cut: each is gone on with, by a process that owns no layers, or deleted. How many there were.
    pub fn end_copies(&self, to: &str, go_on: bool) -> Result<usize, Failure> {
        let target = Host::new(self.region(to)?, None);
        let rows = target.region().catalog()?.read(|tx| tx.snapshots())?;
        let cut: Vec<_> = rows.into_iter().filter(|row| row.state == SnapshotState::Processing).collect();
        for row in &cut {
            if !go_on {
                assert!(cancel_copy(target.region(), row.id)?, "copy {} is not whole", row.name);
                continue;
            }
            let from = row.source_region.as_deref().expect("copies have a source");
            let source = Host::new(self.region(from)?, None);
            let task = target.region().catalog()?.read(|tx| tx.task_of(&row.id.to_string()))?;
            let task = task.expect("a copy that is not whole has a task").id;
            let Taken::Held(held) = Held::take(target.region(), task)? else {
                panic!("nobody makes the copy {}, and it is not over", row.name)
            };
            let slot = Slot::take(target.region())?.expect("no other copy is made");
            let (cancel, mut progress) = (AtomicBool::new(false), |_, _| {});
            let watch = Watch::new(&cancel, &mut progress);
            assert_eq!(carry_out(&held, &slot, &target, |_| Ok(source), None, watch)?, row.id);
        }
        Ok(cut.len())
    }

    /// Everything is read, nothing is wrong, and nothing is there that nobody needs. No process has the region open.
    pub fn check(&self, region: &str) {
        let host = Host::new(self.region(region).unwrap(), None);
        let mut watch =
            CheckWatch { cancel: &AtomicBool::new(false), max_rate: None, progress: &mut |_, _| {} };
        let report = check_region(&host, &mut watch).unwrap();
        assert!(report.findings.listed.is_empty(), "region check of {region} finds {:?}", report.findings);
        assert!(report.left.is_empty(), "region check of {region} leaves out {:?}", report.left);
        let mut catalog = host.region().catalog().unwrap();
        let problems = catalog.read(|tx| tx.integrity_problems()).unwrap();
        assert!(problems.is_empty(), "the catalog of {region}: {problems:?}");
        let unneeded = catalog.read(|tx| tx.unneeded_layers()).unwrap();
        assert!(unneeded.is_empty(), "layers of {region} that nobody needs: {unneeded:?}");
        let folds = catalog.read(|tx| tx.folds()).unwrap();
        assert!(folds.is_empty(), "folds of {region} that do not end: {folds:?}");
        let mut rows: Vec<_> =
            catalog.read(|tx| tx.layers()).unwrap().into_iter().map(|row| row.id.to_string()).collect();
        let folders = std::fs::read_dir(host.region().layers_dir()).unwrap();
        let mut folders: Vec<_> =
            folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        rows.sort_unstable();
        folders.sort_unstable();
        assert_eq!(folders, rows, "folders and rows of layers of {region}");
        for layer in folders {
            let text =
                std::fs::read_to_string(host.region().layers_dir().join(&layer).join("header.toml")).unwrap();
            let of_fold =
                |line: &&str| ["took", "fills_from", "absorbs"].iter().any(|word| line.starts_with(word));
            assert_eq!(text.lines().find(of_fold), None, "the header of layer {layer}, after all folds");
        }
    }
}

pub fn order_of_snapshots(host: &Host, wanted: &[(VolumeId, SnapshotId, String)]) -> Result<Order, Failure> {
    let account = host.region().catalog()?.read(|tx| tx.default_account())?.id;
    let item = |(volume, snapshot, name): &(VolumeId, SnapshotId, String)| SnapshotItem {
        volume: volume.to_string(),
        snapshot: snapshot.to_string(),
        name: name.clone(),
    };
    Ok(Order::Snapshot {
        items: wanted.iter().map(item).collect(),
        account: account.to_string(),
        group: None,
        description: None,
        tags: vec![],
        retention_days: None,
    })
}

/// Sizes of disks: all hold the first window, and the larger ones what lies around the end of the smallest.
pub const SIZES: [u64; 3] = [4 << 20, 5 << 20, (6 << 20) + 4096];
/// Where writes go: over the border of two chunks, and around the end of the smallest disk.
const WINDOWS: [(u64, usize); 2] = [((512 - 14) * 4096, 32 * 4096), ((4 << 20) - 4 * 4096, 8 * 4096)];
pub const BYTES: usize = WINDOWS[0].1 + WINDOWS[1].1;

/// A disk's size, and the bytes of its windows; past its end they are zero.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    pub size_bytes: u64,
    pub bytes: Vec<u8>,
}

impl Content {
    pub fn empty(size_bytes: u64) -> Self {
        Self { size_bytes, bytes: vec![0; BYTES] }
    }

    /// What a disk holds.
    pub fn of(stack: &Stack) -> Self {
        let mut content = Self::empty(stack.size_bytes());
        for (at, window) in content.pieces() {
            let len = window.len();
            let bytes = &mut content.bytes[window];
            stack.read(at, bytes).unwrap_or_else(|e| panic!("{len} bytes at {at} can't be read: {e}"));
        }
        content
    }

    pub fn of_volume(volume: &LiveVolume) -> Self {
        Self::of(&volume.stack())
    }

    /// The windows' parts within the disk: the place there, and that in `bytes`.
    fn pieces(&self) -> Vec<(u64, std::ops::Range<usize>)> {
        let mut first = 0;
        let mut pieces = Vec::new();
        for (at, len) in WINDOWS {
            let within = self.size_bytes.saturating_sub(at).min(len as u64) as usize;
            pieces.push((at, first..first + within));
            first += len;
        }
        pieces
    }

    /// The parts of a range of `bytes` that lie within the disk.
    pub fn parts(&self, range: std::ops::Range<usize>) -> Vec<(u64, std::ops::Range<usize>)> {
        let part = |(at, piece): (u64, std::ops::Range<usize>)| {
            let (start, end) = (range.start.max(piece.start), range.end.min(piece.end));
            (start < end).then(|| (at + (start - piece.start) as u64, start..end))
        };
        self.pieces().into_iter().filter_map(part).collect()
    }
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let sectors = self.bytes.chunks(4096).map(|s| format!("{:02x}{:02x}", s[0], s[4095]));
        write!(f, "{} bytes, {}", self.size_bytes, sectors.collect::<Vec<_>>().join(" "))
    }
}
