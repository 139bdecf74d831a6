//! Guards against mounts that are left behind, mounted twice, unmounted under somebody, or unexplained when they fail.

mod fuse_support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fuse_support::{MemoryExport, SIZE, TestMount, VOLUME, errno, is_root, must, run};
use terrane::fuse::{Life, MountError, Options, Shelf, life, mount, mounts, unmount};
use terrane::sys;

const NOBODY: u32 = 65534;
/// Longer than an answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server in a process of its own, killed and unmounted when dropped.
struct Server {
    child: Child,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Server {
    /// As `uid`, which for another than ours goes through the mount helper.
    fn start(uid: u32, allow_other: bool) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mnt");
        fs::create_dir(&path).unwrap();
        chown(folder.path(), Some(uid), Some(uid)).unwrap();
        chown(&path, Some(uid), Some(uid)).unwrap();
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups", "--"])
            .arg(program);
        command.args(["--exact", "serve_for_another_test", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env("TERRANE_TEST_SERVE", &path).env("TERRANE_TEST_ALLOW_OTHER", allow_other.to_string());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let server = Self { child, path, _folder: folder };
        let said = lines.find_map(|line| line.unwrap().split_once("SERVE ").map(|(_, said)| said.to_owned()));
        match said.as_deref() {
            Some("ready") => Ok(server),
            other => Err(other.unwrap_or("died").to_owned()),
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn ends_within(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while Instant::now() < until {
            if self.child.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = sys::mount::unmount(&self.path, true);
    }
}

/// Not a test: the process that [`Server`] starts.
#[test]
#[ignore = "started by other tests"]
fn serve_for_another_test() {
    let Some(path) = std::env::var_os("TERRANE_TEST_SERVE") else { return };
    let export = Arc::new(MemoryExport::default());
    export.add(Shelf::Volumes, VOLUME, Some("web"), SIZE);
    let allow_other = std::env::var("TERRANE_TEST_ALLOW_OTHER").is_ok_and(|value| value == "true");
    let options = Options { allow_other, source: "a, region".into(), ..Options::default() };
    match mount(export, Path::new(&path), &options) {
        Ok(mounted) => {
            println!("SERVE ready");
            mounted.wait().unwrap();
        }
        Err(error) => println!("SERVE {error}"),
    }
}

#[test]
fn a_mount_point_that_is_none_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let export = Arc::new(MemoryExport::default());
    let words = |path: &Path| mount(export.clone(), path, &Options::default()).err().unwrap().to_string();
    assert!(words(&folder.path().join("absent")).contains("does not exist"));
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(words(&file).contains("is not a directory"));
    assert!(words(&file.join("below")).contains("below"));
    assert!(words(folder.path()).contains("not empty"));
    assert!(mounts().unwrap().iter().all(|mount| !mount.path.starts_with(folder.path())));
}

#[test]
fn a_second_mount_on_a_live_one_is_refused() {
    let first = TestMount::new();
    let error = mount(first.export.clone(), first.path(), &Options::default()).err().unwrap();
    assert!(matches!(error, MountError::AlreadyMounted { .. }), "{error}");
    assert!(error.is_busy());
    let listed = mounts().unwrap();
    let listed = listed.iter().find(|mount| mount.path == first.path()).unwrap();
    assert_eq!((listed.kind.as_str(), life(first.path(), PATIENCE)), ("fuse.terrane", Life::Live));
    assert_eq!(listed.device, first.mounted.device());
    let stat = fs::metadata(first.path()).unwrap();
    assert_eq!(listed.device, (libc::major(stat.dev()), libc::minor(stat.dev())));
}

#[test]
fn unmounting_waits_for_users_and_names_them() {
    let mount = TestMount::new();
    let mut user =
        Command::new("sleep").arg("60").stdin(File::open(mount.volume()).unwrap()).spawn().unwrap();
    let inode = fs::metadata(mount.volume()).unwrap().ino();
    let holders = sys::process::holders(mount.mounted.device(), Some(inode));
    let refused = mount.mounted.unmount();
    user.kill().unwrap();
    user.wait().unwrap();
    let holders = holders.unwrap();
    assert_eq!(holders.iter().map(|holder| holder.pid).collect::<Vec<_>>(), [user.id()]);
    assert_eq!(holders[0].program, "sleep");
    assert!(refused.is_err_and(|error| error.is_busy()));
    mount.mounted.unmount().unwrap();
    mount.mounted.unmount().unwrap();
    assert!(fs::read_dir(mount.path()).unwrap().next().is_none());
}

#[test]
fn an_outside_umount_ends_the_server() {
    let mount = TestMount::new();
    fs::metadata(mount.volume()).unwrap();
    must("umount", &[mount.path()]);
    mount.mounted.wait().unwrap();
    // Somebody else's mount in its place is left alone.
    let export = Arc::new(MemoryExport::default());
    let second = terrane::fuse::mount(export, mount.path(), &Options::default()).unwrap();
    // Its folder stays.
    let TestMount { mounted, folder, .. } = mount;
    drop(mounted);
    assert!(folder.path().join("volumes").exists());
    drop(second);
}

#[test]
fn a_lazy_umount_serves_on_until_the_last_close() {
    let mount = TestMount::new();
    let file = File::options().read(true).write(true).open(mount.volume()).unwrap();
    must("umount", &["-l", mount.path().to_str().unwrap()]);
    file.write_all_at(b"still", 0).unwrap();
    assert_eq!(&mount.disk.bytes()[..5], b"still");
    drop(file);
    mount.mounted.wait().unwrap();
    assert_eq!(mount.export.opens.load(Ordering::SeqCst), mount.export.closes.load(Ordering::SeqCst));
}

#[test]
fn dropping_a_busy_mount_frees_its_path() {
    let mount = TestMount::new();
    let file = File::open(mount.volume()).unwrap();
    let path = mount.path().to_owned();
    drop(mount);
    assert!(sys::mount::mounted_at(&path).unwrap().is_none());
    drop(file);
}

#[test]
fn a_dead_mount_is_named_and_cleared() {
    if !is_root() {
        return;
    }
    let mut server = Server::start(0, false).unwrap();
    assert_eq!(fs::metadata(server.path.join("volumes").join(VOLUME)).unwrap().len(), SIZE);
    server.kill();
    assert_eq!(errno(fs::metadata(&server.path)), libc::ENOTCONN);
    let export = Arc::new(MemoryExport::default());
    let error = mount(export.clone(), &server.path, &Options::default()).err().unwrap();
    assert!(matches!(error, MountError::Dead(_)));
    assert!(error.to_string().contains("terrane unmount"), "{error}");
    assert!(mounts().unwrap().iter().any(|mount| mount.path == server.path));
    assert_eq!(life(&server.path, PATIENCE), Life::Dead);
    unmount(&server.path).unwrap();
    assert!(unmount(&server.path).unwrap_err().to_string().contains("not mounted"));
    drop(mount(export, &server.path, &Options::default()).unwrap());
}

#[test]
fn an_aborted_connection_ends_the_server_and_frees_the_path() {
    if !is_root() {
        return;
    }
    for waits in [true, false] {
        let control = tempfile::tempdir().unwrap();
        if !run("mount", &["-t", "fusectl", "none", control.path().to_str().unwrap()]).status.success() {
            return;
        }
        let mount = TestMount::new();
        let aborted = fs::write(control.path().join(mount.mounted.device().1.to_string()).join("abort"), "1");
        must("umount", &[control.path()]);
        aborted.unwrap();
        let path = mount.path().to_owned();
        if waits {
            mount.mounted.wait().unwrap();
        }
        drop(mount);
        assert!(sys::mount::mounted_at(&path).unwrap().is_none());
    }
}

#[test]
fn unmount_from_another_process_ends_the_server() {
    if !is_root() {
        return;
    }
    let mut server = Server::start(0, false).unwrap();
    unmount(&server.path).unwrap();
    assert!(server.ends_within(Duration::from_secs(10)));
}

#[test]
fn what_is_not_ours_is_not_unmounted() {
    let error = unmount(Path::new("/proc")).unwrap_err();
    assert!(matches!(error, MountError::Covered { .. }), "{error}");
    let folder = tempfile::tempdir().unwrap();
    assert!(unmount(folder.path()).unwrap_err().to_string().contains("not mounted"));
}

/// Runs one of the tests below where `/dev/fuse` is open to all, as it is under Debian's udev and not in every container,
/// in a mount namespace of its own.
fn with_open_device(test: &str) {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = r#"set -e
        mount -t tmpfs -o mode=755 none "$1"
        mknod -m 666 "$1/fuse" c 10 229
        mount --bind "$1/fuse" /dev/fuse
        exec "$2" --exact "$3" --ignored --nocapture"#;
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(folder.path()).arg(program).arg(test);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn an_unprivileged_user_mounts_through_the_helper() {
    with_open_device("unprivileged_mount_with_open_device");
}

#[test]
fn the_helpers_refusals_are_words() {
    with_open_device("helper_refusals_with_open_device");
}

#[test]
fn a_closed_device_is_named() {
    let open_to_all = fs::metadata("/dev/fuse").unwrap().mode() & 0o006 == 0o006;
    if is_root() && !open_to_all {
        let error = Server::start(NOBODY, false).err().unwrap();
        assert!(error.contains("/dev/fuse") && error.contains("chmod"), "{error}");
    }
}

#[test]
#[ignore = "run by with_open_device"]
fn unprivileged_mount_with_open_device() {
    let mut server = Server::start(NOBODY, false).unwrap();
    let found = sys::mount::mounted_at(&server.path).unwrap().unwrap();
    assert_eq!((found.kind.as_str(), found.source.to_str()), ("fuse.terrane", Some("a, region")));
    assert_eq!(errno(fs::metadata(server.path.join("volumes"))), libc::EACCES, "root is another user");
    let volume = server.path.join("volumes").join(VOLUME);
    let as_nobody = |program: &str, arguments: &[&str]| {
        let id = NOBODY.to_string();
        let mut all = vec!["--reuid", &id, "--regid", &id, "--clear-groups", "--", program];
        all.extend(arguments);
        run("setpriv", &all)
    };
    let output =
        as_nobody("dd", &["if=/dev/urandom", &format!("of={}", volume.display()), "bs=1M", "count=4"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(as_nobody("fusermount3", &["-u", server.path.to_str().unwrap()]).status.success());
    assert!(server.ends_within(Duration::from_secs(10)));
}

#[test]
#[ignore = "run by with_open_device"]
fn helper_refusals_with_open_device() {
    let allowed = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if !allowed.lines().any(|line| line.trim() == "user_allow_other") {
        let error = Server::start(NOBODY, true).err().unwrap();
        assert!(error.contains("user_allow_other in /etc/fuse.conf"), "{error}");
    }
}

#[test]
fn with_allow_other_only_owner_and_root_get_in() {
    if !is_root() {
        return;
    }
    let mount = TestMount::with(&Options { allow_other: true, ..Options::default() });
    let id = NOBODY.to_string();
    let as_nobody = |program: &str, path: &Path| {
        let path = path.to_str().unwrap();
        run("setpriv", &["--reuid", &id, "--regid", &id, "--clear-groups", "--", program, path])
    };
    assert!(!as_nobody("ls", &mount.path().join("volumes")).status.success());
    assert!(!as_nobody("cat", &mount.volume()).status.success());
    let mut bytes = Vec::new();
    File::options().read(true).custom_flags(0).open(mount.volume()).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, SIZE);
}

#[test]
fn a_missing_helper_is_named() {
    if !is_root() {
        return;
    }
    // The message alone: the helper cannot be taken from a machine that other tests share.
    let words = sys::mount::MountError::NoHelper.to_string();
    assert!(words.contains("fusermount3") && words.contains("fuse3"));
}
