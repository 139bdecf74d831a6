//! Guards against loop devices that lose what was synced (longhorn-engine#207), are left behind, or can't carry a file system.

mod fuse_support;

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use fuse_support::{TestMount, VOLUME, is_root, must, pattern};
use terrane::fuse::{Options, Shelf};
use terrane::sys::loopdev::{
    LoopDevice, LoopError, LoopOptions, attach, backed_by, below, detach, flush, list, take_new_size,
};

const SIZE: u64 = 64 << 20;

/// A volume attached, detached when dropped.
struct Attached {
    device: LoopDevice,
    mount: TestMount,
}

impl Attached {
    fn new(options: &LoopOptions) -> Self {
        let mount = TestMount::with(&Options::default());
        mount.export.add(Shelf::Volumes, VOLUME, Some("web"), SIZE);
        let device = attach(&mount.volume(), options).unwrap();
        Self { device, mount }
    }

    fn path(&self) -> &Path {
        &self.device.device
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = detach(self.path());
    }
}

/// A file system mounted on a device, unmounted when dropped.
struct FileSystem {
    folder: tempfile::TempDir,
}

impl FileSystem {
    fn mount(device: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        must("mount", &[device, folder.path()]);
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().into()
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.folder.path()).status();
    }
}

#[test]
fn ext4_lives_on_a_volume() {
    if !is_root() {
        return;
    }
    let attached = Attached::new(&LoopOptions::default());
    assert!(attached.device.direct, "direct I/O was refused");
    let device = attached.path();
    assert_eq!(must("blockdev", &["--getss", device.to_str().unwrap()]).trim(), "4096");
    assert_eq!(must("blockdev", &["--getsize64", device.to_str().unwrap()]).trim(), SIZE.to_string());
    must("mkfs.ext4", &["-q", "-F", device.to_str().unwrap()]);
    let bytes = pattern(5 << 20, 9);
    {
        let system = FileSystem::mount(device);
        fs::write(system.path().join("file"), &bytes).unwrap();
        must("sync", &["-f", system.path().to_str().unwrap()]);
        fs::remove_file(system.path().join("file")).unwrap();
        fs::write(system.path().join("other"), &bytes).unwrap();
        must("fstrim", &[system.path()]);
        assert!(matches!(detach(device), Err(LoopError::InUse(_))), "it is mounted");
        assert!(attached.mount.mounted.unmount().is_err_and(|error| error.is_busy()));
        let expected = std::slice::from_ref(&attached.device);
        assert_eq!(below(attached.mount.path()).unwrap(), expected);
        assert_eq!(backed_by(&attached.mount.path().join("by-name/volumes/web")).unwrap(), expected);
    }
    must("e2fsck", &["-f", "-n", device.to_str().unwrap()]);
    let system = FileSystem::mount(device);
    assert!(fs::read(system.path().join("other")).unwrap() == bytes);
    drop(system);
    detach(device).unwrap();
    assert!(matches!(detach(device), Err(LoopError::NotAttached(_))));
    assert!(!list().unwrap().iter().any(|other| other.device == device));
    attached.mount.mounted.unmount().unwrap();
}

#[test]
fn a_flush_brings_the_devices_writes_into_the_volume() {
    if !is_root() {
        return;
    }
    let attached = Attached::new(&LoopOptions::default());
    let disk = attached.mount.export.volumes.lock()[VOLUME].disk.clone();
    let mut device = fs::File::options().write(true).open(attached.path()).unwrap();
    device.seek(SeekFrom::Start(8192)).unwrap();
    device.write_all(&[7; 4096]).unwrap();
    let before = disk.flushes.load(Ordering::SeqCst);
    flush(attached.path()).unwrap();
    assert_eq!(disk.bytes()[8192..12288], [7; 4096]);
    assert!(disk.flushes.load(Ordering::SeqCst) > before);
    drop(device);
    detach(attached.path()).unwrap();
}

#[test]
fn small_sectors_read_only_and_growth() {
    if !is_root() {
        return;
    }
    let attached = Attached::new(&LoopOptions { sector_bytes: 512, read_only: true });
    let device = attached.path().to_str().unwrap();
    assert!(attached.device.read_only);
    assert_eq!(
        must("blockdev", &["--getss", "--getro", device]).split_whitespace().collect::<Vec<_>>(),
        ["512", "1"]
    );
    let disk = attached.mount.export.volumes.lock()[VOLUME].disk.clone();
    disk.grow(SIZE * 2);
    take_new_size(attached.path()).unwrap();
    assert_eq!(must("blockdev", &["--getsize64", device]).trim(), (SIZE * 2).to_string());
}

#[test]
fn many_attach_at_once() {
    if !is_root() {
        return;
    }
    let mount = TestMount::new();
    for index in 2..18 {
        mount.export.add(Shelf::Volumes, &format!("vol-{index:017x}"), None, 1 << 20);
    }
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (2..18)
            .map(|index| {
                let file = mount.path().join(format!("volumes/vol-{index:017x}"));
                scope.spawn(move || attach(&file, &LoopOptions::default()))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let devices: Vec<_> = results.iter().flatten().map(|device| device.device.clone()).collect();
    let detached: Vec<_> = devices.iter().map(|device| detach(device)).collect();
    assert_eq!(devices.len(), 16, "{results:?}");
    assert!(detached.iter().all(Result::is_ok), "{detached:?}");
}

#[test]
fn what_is_no_file_is_refused() {
    if !is_root() {
        return;
    }
    assert!(attach(Path::new("/nowhere/at/all"), &LoopOptions::default()).is_err());
    assert!(detach(Path::new("/dev/null")).is_err());
    assert!(detach(Path::new("/dev/loop4000000")).is_err());
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    assert!(attach(file.path(), &LoopOptions { sector_bytes: 3, read_only: false }).is_err());
}
