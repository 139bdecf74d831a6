//! From an [`Export`] to a served mount point, and back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fuser::{Config, Session, SessionACL};
use parking_lot::{Condvar, Mutex};
use thiserror::Error;

use super::Export;
use super::gate::Gate;
use super::requests::Requests;
use crate::sys;
use crate::sys::mount::{MountRequest, MountedAt};

/// Whether the kernel keeps pages of the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// No: each request reaches the server, and writers run in parallel.
    #[default]
    None,
    /// Yes: small buffered reads are faster, writers of one volume go one at a time.
    Kernel,
}

/// How to mount and serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// Threads that read requests and answer them.
    pub threads: usize,
    /// A descriptor of its own for each thread. Slower where measured: eight readers on one descriptor beat four on their own.
    pub clone_descriptor: bool,
    /// Whether the kernel keeps pages.
    pub cache: Cache,
    /// Nothing can be written.
    pub read_only: bool,
    /// Root may use a user's mount, as `attach` needs; other users are still refused.
    pub allow_other: bool,
    /// What `mount` lists as the source, such as the region's name.
    pub source: String,
    /// Asynchronous requests the kernel may have under way.
    pub max_background: u16,
    /// Read-ahead of cached files, where it may be set.
    pub read_ahead_kib: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 8,
            clone_descriptor: false,
            cache: Cache::None,
            read_only: false,
            allow_other: false,
            source: "terrane".to_owned(),
            max_background: 128,
            read_ahead_kib: 1024,
        }
    }
}

/// Why a mount could not be made or ended.
#[derive(Debug, Error)]
pub enum MountError {
    /// The mount point does not exist.
    #[error("{} does not exist; make it first: mkdir {}", .0.display(), .0.display())]
    NoSuchFolder(PathBuf),
    /// The mount point is no folder.
    #[error("{} is not a directory", .0.display())]
    NotAFolder(PathBuf),
    /// The mount point holds files, which would be hidden.
    #[error("{} is not empty, and a mount would hide what is in it; choose an empty directory", .0.display())]
    NotEmpty(PathBuf),
    /// A terrane mount is there and alive.
    #[error("{} is already mounted (from {region})", path.display())]
    AlreadyMounted {
        /// The mount point.
        path: PathBuf,
        /// The source it was mounted with.
        region: String,
    },
    /// A mount is there whose server is gone.
    #[error("{} is a dead mount whose server has ended; clear it with: terrane unmount {}", .0.display(), .0.display())]
    Dead(PathBuf),
    /// A mount is there whose server does not answer.
    #[error("the server of {} does not answer: it may be stopped, or wait for the disk below", .0.display())]
    Silent(PathBuf),
    /// Something else is mounted over it.
    #[error("{} is covered by another mount ({kind}); unmount that first", path.display())]
    Covered {
        /// The mount point.
        path: PathBuf,
        /// The type of what is there.
        kind: String,
    },
    /// Unmounted here, yet another mount namespace still holds it.
    #[error("{} is unmounted here, but still in use by another mount namespace (a container?)", .0.display())]
    HeldElsewhere(PathBuf),
    /// Serving failed.
    #[error("serving the mount failed: {0}")]
    Serving(io::Error),
    /// The mount point could not be looked at.
    #[error("{}: {source}", path.display())]
    Io {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Mounting or unmounting itself failed.
    #[error(transparent)]
    System(#[from] sys::mount::MountError),
}

impl MountError {
    /// Whether something below the mount point is in use (exit 5).
    pub fn is_busy(&self) -> bool {
        matches!(
            self,
            Self::System(sys::mount::MountError::Busy(_))
                | Self::HeldElsewhere(_)
                | Self::AlreadyMounted { .. }
        )
    }
}

/// Mounts `export` at `at` and serves it until [`Mounted::unmount`] or an outside `umount`. Returns once the mount answers.
pub fn mount(export: Arc<dyn Export>, at: &Path, options: &Options) -> Result<Mounted, MountError> {
    let path = usable_mount_point(at)?;
    let request = MountRequest {
        source: &options.source,
        allow_other: options.allow_other,
        read_only: options.read_only,
    };
    let channel = sys::mount::mount(&path, &request)?;
    // Whoever enters now is answered, or waits for the first thread. We never enter ourselves: killed while we wait for our own
    // answer, our threads would be gone and our descriptor not, and the kernel would let everybody wait for ever.
    let state = match serve(Requests::new(export, options), channel, options) {
        Ok(state) => state,
        Err(source) => {
            let _ = sys::mount::unmount(&path, true);
            return Err(MountError::Serving(source));
        }
    };
    let device = match sys::mount::mounted_at(&path) {
        Ok(Some(mount)) => mount.device,
        Ok(None) | Err(_) => (0, 0),
    };
    if options.cache == Cache::Kernel {
        // Only root may; without it buffered reads come in pieces of 128 KiB.
        let _ = sys::mount::raise_read_ahead(device, options.read_ahead_kib);
    }
    Ok(Mounted { path, device, state })
}

/// Unmounts whatever terrane mount is at `at`, from any process; a dead one too. Who serves it ends by itself.
pub fn unmount(at: &Path) -> Result<(), MountError> {
    let path = resolve(at)?;
    match find_mount(&path)? {
        None => Err(sys::mount::MountError::NotMounted(path).into()),
        Some(mount) if !mount.is_ours() => Err(MountError::Covered { path, kind: mount.kind }),
        Some(_) => match life(&path, PATIENCE) {
            Life::Silent => Err(MountError::Silent(path)),
            life => Ok(sys::mount::unmount(&path, life == Life::Dead)?),
        },
    }
}

/// All terrane mounts of this user that this process sees. Another's may call itself as it likes, and need not answer when
/// it is asked something.
pub fn mounts() -> io::Result<Vec<MountedAt>> {
    let user = rustix::process::geteuid().as_raw();
    Ok(sys::mount::mounts()?
        .into_iter()
        .filter(|mount| mount.is_ours() && mount.user == Some(user))
        .collect())
}

/// How a mount stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Its server answers.
    Live,
    /// Its server is gone.
    Dead,
    /// Its server is there, and does not answer.
    Silent,
}

/// How long a mount is waited for that is to be ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a mount stands, asked for so long at most.
pub fn life(path: &Path, patience: Duration) -> Life {
    match sys::asking::ask(path, patience) {
        // A FUSE mount whose server has gone answers everything so.
        Ok(Some(Err(libc::ENOTCONN))) => Life::Dead,
        Ok(Some(_)) => Life::Live,
        Ok(None) | Err(_) => Life::Silent,
    }
}

/// A mount being served by threads of this process. Dropping it unmounts, by force if need be.
pub struct Mounted {
    path: PathBuf,
    device: (u32, u32),
    state: Arc<State>,
}

/// How the serving threads stand.
struct State {
    progress: Mutex<Progress>,
    changed: Condvar,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Progress {
    /// Nothing is served any more.
    ended: Option<Result<(), String>>,
    /// Nobody is waited for any more.
    hurried: bool,
}

impl State {
    fn has_ended(&self) -> bool {
        self.progress.lock().ended.is_some()
    }

    fn end(&self, result: Result<(), String>) {
        self.progress.lock().ended.get_or_insert(result);
        self.changed.notify_all();
    }

    /// Waits until it has ended, for so long or until somebody is in a hurry.
    fn ends_within(&self, time: Duration, or_hurried: bool) -> bool {
        let until = Instant::now().checked_add(time);
        let mut progress = self.progress.lock();
        while progress.ended.is_none() && !(or_hurried && progress.hurried) {
            let late = match until {
                Some(until) => self.changed.wait_until(&mut progress, until).timed_out(),
                None => {
                    self.changed.wait(&mut progress);
                    false
                }
            };
            if late {
                break;
            }
        }
        progress.ended.is_some()
    }
}

impl Mounted {
    /// How long a mount without users may take to end after it was unmounted.
    const END_TIME: Duration = Duration::from_secs(10);

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its device number (major, minor), as in `st_dev` of its files.
    pub fn device(&self) -> (u32, u32) {
        self.device
    }

    /// Waits until the mount has ended, by whomever, and every disk is closed.
    pub fn wait(&self) -> Result<(), MountError> {
        self.state.ends_within(Duration::MAX, false);
        let result = self.state.progress.lock().ended.clone();
        self.clear();
        match result {
            Some(Err(words)) => Err(MountError::Serving(io::Error::other(words))),
            _ => Ok(()),
        }
    }

    /// Ends the mount, whoever uses it: frees the place, opens no more files, and serves those that are open until they
    /// are closed, for `grace` at most. Then nothing is done any more, and [`Mounted::wait`] returns: what was answered
    /// is in the disks, for the caller to close. The kernel lets go of the rest when the process ends.
    ///
    /// Whether every file was closed in time.
    pub fn end(&self, grace: Duration) -> bool {
        self.state.gate.refuse_opens();
        if let Ok(Some(mount)) = find_mount(&self.path)
            && mount.device == self.device
            && let Err(error) = sys::mount::unmount(&self.path, true)
        {
            tracing::error!("{} can't be freed: {error}", self.path.display());
        }
        if self.state.ends_within(grace, true) {
            return true;
        }
        if !self.state.gate.shut(Self::END_TIME) {
            tracing::error!("a request is stuck; the mount ends without it");
        }
        self.state.end(Ok(()));
        false
    }

    /// Lets [`Mounted::end`] wait no longer.
    pub fn hurry(&self) {
        self.state.progress.lock().hurried = true;
        self.state.changed.notify_all();
    }

    /// Unmounts and waits until every disk is closed. Refused while a file of it is open, and then serves on.
    pub fn unmount(&self) -> Result<(), MountError> {
        if self.state.has_ended() {
            return self.wait();
        }
        match find_mount(&self.path)? {
            Some(mount) if mount.device == self.device => sys::mount::unmount(&self.path, false)?,
            Some(mount) => return Err(MountError::Covered { path: self.path.clone(), kind: mount.kind }),
            None => {} // unmounted from outside just now
        }
        if !self.state.ends_within(Self::END_TIME, false) {
            return Err(MountError::HeldElsewhere(self.path.clone()));
        }
        self.wait()
    }

    /// Frees the mount point where the server is gone or leaves it busy. Device numbers are given again once a mount has
    /// ended, so what is found then is ours only if it is dead.
    fn clear(&self) {
        let ended = self.state.has_ended();
        if let Ok(Some(mount)) = find_mount(&self.path)
            && mount.device == self.device
            && (!ended || is_dead(&self.path))
        {
            let _ = sys::mount::unmount(&self.path, true);
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let ended = self.state.has_ended();
        if ended || self.unmount().is_err() {
            self.clear();
            self.state.ends_within(Duration::from_secs(1), false);
        }
    }
}

fn serve(requests: Requests, channel: std::os::fd::OwnedFd, options: &Options) -> io::Result<Arc<State>> {
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = options.clone_descriptor;
    // The library's own check refuses a loop device's requests, which come as root. The kernel lets nobody else in
    // without allow_other, and with it we check at open.
    let gate = Arc::clone(requests.gate());
    let session = Session::from_fd(requests, channel, SessionACL::All, config)?;
    let state = Arc::new(State { progress: Mutex::default(), changed: Condvar::new(), gate });
    let ours = Arc::clone(&state);
    thread::Builder::new().name("terrane-mount".to_owned()).spawn(move || {
        ours.end(session.run().map_err(|error| error.to_string()));
    })?;
    Ok(state)
}

/// Whether [`mount`] would refuse this place; asked before a person is asked for anything.
pub fn check_mount_point(at: &Path) -> Result<(), MountError> {
    usable_mount_point(at).map(drop)
}

fn usable_mount_point(at: &Path) -> Result<PathBuf, MountError> {
    let path = resolve(at)?;
    if let Some(mount) = find_mount(&path)?
        && mount.is_ours()
    {
        return Err(match life(&path, PATIENCE) {
            Life::Dead => MountError::Dead(path),
            _ => MountError::AlreadyMounted { path, region: mount.source.to_string_lossy().into_owned() },
        });
    }
    let meta = fs::metadata(&path).map_err(|source| match source.raw_os_error() {
        Some(libc::ENOTCONN) => MountError::Dead(path.clone()),
        _ => MountError::Io { path: path.clone(), source },
    })?;
    if !meta.is_dir() {
        return Err(MountError::NotAFolder(path));
    }
    let mut inside = fs::read_dir(&path).map_err(|source| MountError::Io { path: path.clone(), source })?;
    if inside.next().is_some() {
        return Err(MountError::NotEmpty(path));
    }
    Ok(path)
}

fn resolve(at: &Path) -> Result<PathBuf, MountError> {
    sys::mount::resolve_mount_point(at).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => MountError::NoSuchFolder(at.into()),
        _ => MountError::Io { path: at.into(), source },
    })
}

fn find_mount(path: &Path) -> Result<Option<MountedAt>, MountError> {
    sys::mount::mounted_at(path).map_err(|source| MountError::Io { path: path.into(), source })
}

/// Nothing is served any more, so that an answer comes at once.
fn is_dead(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
}
