//! Regions in a scratch directory, a volume with a model of its bytes, and copies between them.
#![allow(dead_code)]

#[path = "../common/mod.rs"]
pub mod common;
pub mod daemon;
pub mod line;
pub mod proofs;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use terrane::catalog::{DiskKind, Snapshot};
use terrane::copy::{self, Copy, CopyError, Details, KeyChoice, Plan, Watch};
use terrane::ids::{KeyId, Name, SnapshotId, VolumeId};
use terrane::kms;
use terrane::region::{Config, InitRequest, Region, init};
use terrane::volume::{Host, LayersLock, Order, SnapshotItem, VolumeSpec, create_volume, remove_litter};

pub use common::Random;

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub config: Config,
}

impl World {
    pub fn new(regions: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::at(&dir.path().join("config")).unwrap();
        for region in regions {
            let request = InitRequest {
                dir: dir.path().join(region),
                name: name(region),
                root_key_file: None,
                passphrase: None,
            };
            init(&request, &config).unwrap();
        }
        Self { dir, config }
    }

    pub fn path(&self, part: &str) -> PathBuf {
        self.dir.path().join(part)
    }

    pub fn region(&self, region: &str) -> Region {
        Region::open(&self.path(region), &self.config).unwrap()
    }

    pub fn key(&self, region: &str, alias: &str) -> KeyId {
        let region = self.region(region);
        let account = region.catalog().unwrap().read(|tx| tx.default_account()).unwrap().id;
        kms::create_key(&region, account, Some(name(alias)), None).unwrap().id
    }

    pub fn default_key(&self, region: &str) -> KeyId {
        self.region(region).catalog().unwrap().read(|tx| tx.default_key()).unwrap().id
    }

    pub fn reader(&self, region: &str) -> Arc<Host> {
        Host::new(self.region(region), None)
    }

    pub fn owner(&self, region: &str) -> Arc<Host> {
        let region = self.region(region);
        let Ok(lock) = LayersLock::take(&region, None).unwrap() else {
            panic!("somebody else owns the layers")
        };
        remove_litter(&region).unwrap();
        Host::new(region, Some(lock))
    }

    pub fn snapshot(&self, region: &str, id: SnapshotId) -> Snapshot {
        self.region(region).catalog().unwrap().read(|tx| tx.snapshot(id)).unwrap()
    }

    pub fn details(&self, region: &str, called: &str) -> Details {
        let account = self.region(region).catalog().unwrap().read(|tx| tx.default_account()).unwrap().id;
        Details {
            account,
            name: name(called),
            description: None,
            tags: vec![],
            retention_days: None,
            group: None,
        }
    }

    pub fn plan(
        &self,
        from: (&str, SnapshotId),
        to: &str,
        called: &str,
        key: KeyChoice,
    ) -> Result<Plan, CopyError> {
        copy::plan(&self.reader(from.0), from.1, &self.reader(to), &name(called), &key)
    }

    pub fn try_copy(
        &self,
        from: (&str, SnapshotId),
        to: &str,
        called: &str,
        key: KeyChoice,
    ) -> Result<SnapshotId, CopyError> {
        let (source, target) = (self.reader(from.0), self.reader(to));
        let plan = copy::plan(&source, from.1, &target, &name(called), &key)?;
        let (cancel, mut progress) = (AtomicBool::new(false), |_, _| {});
        let watch = Watch::new(&cancel, &mut progress);
        Copy::new(&source, &target, plan, self.details(to, called)).run(watch)
    }

    pub fn copy(&self, from: (&str, SnapshotId), to: &str, called: &str, key: KeyChoice) -> SnapshotId {
        self.try_copy(from, to, called, key).unwrap()
    }

    pub fn delete(&self, region: &str, id: SnapshotId) {
        self.owner(region).execute(&Order::DeleteSnapshot { snapshot: id.to_string() }, false).unwrap();
    }

    /// Every byte of a snapshot's disk.
    pub fn bytes(&self, region: &str, id: SnapshotId) -> Vec<u8> {
        let stack = self.reader(region).open_snapshot(id).unwrap();
        let mut all = vec![0xaa; stack.size_bytes() as usize];
        all.chunks_mut(1 << 20).enumerate().for_each(|(i, c)| stack.read((i as u64) << 20, c).unwrap());
        all
    }

    #[track_caller]
    pub fn equal(&self, region: &str, id: SnapshotId, model: &[u8]) {
        let found = self.bytes(region, id);
        assert_eq!(found.len(), model.len());
        let differs = found.chunks(4096).zip(model.chunks(4096)).position(|(a, b)| a != b);
        assert_eq!(differs, None, "the first sector that differs");
    }

    /// What a region holds: layers' folders, layers' rows, snapshots.
    pub fn holdings(&self, region: &str) -> (usize, usize, usize) {
        let opened = self.region(region);
        let mut catalog = opened.catalog().unwrap();
        let folders = std::fs::read_dir(opened.layers_dir()).unwrap().count();
        let layers = catalog.read(|tx| tx.layers()).unwrap().len();
        let snapshots = catalog.read(|tx| tx.snapshots()).unwrap().len();
        (folders, layers, snapshots)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("terrane"));
        for name in ["TERRANE_REGION", "TERRANE_ACCOUNT", "TERRANE_CLOCK", "TERRANE_LOG"] {
            command.env_remove(name);
        }
        command.env("TERRANE_CONFIG_DIR", self.path("config")).args(args).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    #[track_caller]
    pub fn fails(&self, args: &[&str], exit: i32, words: &[&str]) {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty() && !stderr.contains("panicked"), "{args:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{args:?}: {word:?} is missing in: {stderr}");
        }
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[args, &["--output", "json", "-q"]].concat())).unwrap()
    }
}

/// A volume of a region, with what it should hold.
pub struct Disk {
    pub region: String,
    pub id: VolumeId,
    pub model: Vec<u8>,
}

impl Disk {
    pub fn new(world: &World, region: &str, size_bytes: usize, key: Option<KeyId>, kind: DiskKind) -> Self {
        let opened = world.region(region);
        let account = opened.catalog().unwrap().read(|tx| tx.default_account()).unwrap().id;
        let spec =
            VolumeSpec { account, name: None, size_bytes: size_bytes as u64, kind, snapshot: None, key };
        let id = create_volume(&opened, &spec).unwrap();
        Self { region: region.into(), id, model: vec![0; size_bytes] }
    }

    /// Changes it, then takes a snapshot.
    pub fn change(&mut self, world: &World, called: &str, change: impl FnMut(&mut Change)) -> SnapshotId {
        let (id, host) = self.change_and_die(world, called, change);
        host.close().unwrap();
        id
    }

    /// The same, by a host that does not finish the seal unless it is closed.
    pub fn change_and_die(
        &mut self,
        world: &World,
        called: &str,
        mut change: impl FnMut(&mut Change),
    ) -> (SnapshotId, Arc<Host>) {
        let host = world.owner(&self.region);
        let open = host.open_volume(self.id, false).unwrap();
        change(&mut Change { disk: &open.disk, model: &mut self.model });
        drop(open);
        (take(&host, self.id, called), host)
    }
}

/// Takes a snapshot; its id.
pub fn take(host: &Arc<Host>, volume: VolumeId, called: &str) -> SnapshotId {
    let account = host.region().catalog().unwrap().read(|tx| tx.default_account()).unwrap().id;
    let id = SnapshotId::random();
    let item = SnapshotItem { volume: volume.to_string(), snapshot: id.to_string(), name: called.into() };
    let order = Order::Snapshot {
        items: vec![item],
        account: account.to_string(),
        group: None,
        description: None,
        tags: vec![],
        retention_days: None,
    };
    host.execute(&order, false).unwrap();
    id
}

pub struct Change<'a> {
    disk: &'a terrane::volume::LiveVolume,
    model: &'a mut Vec<u8>,
}

impl Change<'_> {
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        self.disk.write(at as u64, bytes).unwrap();
        self.model[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn random(&mut self, random: &mut Random, at: usize, len: usize) {
        let mut bytes = vec![0; len];
        random.fill(&mut bytes);
        self.write(at, &bytes);
    }

    pub fn discard(&mut self, at: usize, len: usize) {
        self.disk.discard(at as u64, len as u64).unwrap();
        self.model[at..at + len].fill(0);
    }
}

/// Damages one byte of a file.
pub fn flip(path: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

/// A file or folder with all below; holes stay holes. By no other program: one that is just being started shares all locks.
pub fn copy_files(from: &Path, to: &Path) {
    use std::os::unix::fs::FileExt;

    use rustix::fs::SeekFrom;
    if from.is_dir() {
        std::fs::create_dir(to).unwrap();
        std::fs::set_permissions(to, std::fs::metadata(from).unwrap().permissions()).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            copy_files(&entry.path(), &to.join(entry.file_name()));
        }
        return;
    }
    let (source, target) = (std::fs::File::open(from).unwrap(), std::fs::File::create(to).unwrap());
    target.set_permissions(source.metadata().unwrap().permissions()).unwrap();
    target.set_len(source.metadata().unwrap().len()).unwrap();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(&source, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&source, SeekFrom::Hole(start)).unwrap();
        let mut bytes = vec![0; (at - start) as usize];
        source.read_exact_at(&mut bytes, start).unwrap();
        target.write_all_at(&bytes, start).unwrap();
    }
}
