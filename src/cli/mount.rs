//! `terrane mount` and `terrane unmount`.

use std::io::IsTerminal;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use super::exit::Exit;
use super::{App, Failure, Outcome, log};
use crate::control::{self, Server};
use crate::crypto::Secret;
use crate::fuse::{self, Cache, MountError, Mounted, Options, Shelves};
use crate::region::Region;
use crate::sys::mount::MountError as System;
use crate::sys::{crashsafe, loopdev, owned, process};
use crate::volume::{Answer, Host, HostState, LayersLock, Order, Owner, SOCKET, remove_litter};

/// How long an unmount waits for the server to have written everything.
const CLOSE_TIME: Duration = Duration::from_secs(300);
/// How much longer than the grace a signal may take to end the process, whatever is stuck.
const STUCK_TIME: Duration = Duration::from_secs(30);
/// How long an unmount waits for a server that has written everything to be gone.
const LEAVE_TIME: Duration = Duration::from_secs(5);
/// How long an unmount waits for files that are being closed.
const BUSY_TIME: Duration = Duration::from_millis(500);

/// What `mount` takes.
#[derive(Args)]
pub struct MountArgs {
    /// An empty directory
    mount_point: PathBuf,
    /// Serve here, until unmounted or interrupted, and not in the background
    #[arg(long)]
    foreground: bool,
    /// Threads that answer requests
    #[arg(long, default_value_t = Options::default().threads as u8, value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: u8,
    /// Whether the kernel keeps pages of volumes
    #[arg(long, value_enum, default_value_t = CacheChoice::None)]
    cache: CacheChoice,
    /// Snapshots alone; also beside a read-write mount
    #[arg(long)]
    read_only: bool,
    /// Let root use a user's mount, as `attach` needs
    #[arg(long)]
    allow_other: bool,
    /// How long SIGTERM or SIGINT leaves programs to close their files
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CacheChoice {
    None,
    Kernel,
}

/// Mounts the region.
pub fn mount(args: MountArgs, app: &App) -> Outcome {
    let args = MountArgs { mount_point: std::path::absolute(&args.mount_point)?, ..args };
    if args.foreground {
        return serve(&args, app, None, |_| Ok(()));
    }
    let asks = app.region()?.asks_for_passphrase() && std::io::stdin().is_terminal();
    match process::background().context("going to the background")? {
        process::Background::Foreground(mut waiting) => {
            if asks {
                // An error or Ctrl-C at the question ends the serving process too, which waits for the answer.
                let region = app.region()?;
                refuse_place(args.read_only, &args.mount_point, &region)?;
                waiting.hand(region.root_key()?.expose()).context("handing over the root key")?;
            }
            report(waiting)
        }
        process::Background::Serving(readiness) => serve_in_background(&args, app, readiness, asks),
    }
}

/// The serving process of a mount in the background. `asks`: the root key comes from the command, which has the terminal.
fn serve_in_background(
    args: &MountArgs,
    app: &App,
    mut readiness: process::Readiness,
    asks: bool,
) -> Outcome {
    let mut root_key = None;
    if asks {
        // Without a word: the command has said why.
        let Some(handed) = readiness.handed()? else { return Ok(()) };
        root_key = Some(Secret::try_from_slice(handed.as_ref())?);
    }
    let mut readiness = Some(readiness);
    let served = serve(args, app, root_key, |at| match readiness.take() {
        Some(readiness) => Ok(readiness.ready(&at.display().to_string())?),
        None => Ok(()),
    });
    match (served, readiness) {
        (Err(e), Some(readiness)) => {
            let failure = Failure::of(&e);
            let words = serde_json::to_string(&(failure.message, failure.hint))?;
            Ok(readiness.failed(failure.exit.number() as u8, &words)?)
        }
        (Err(e), None) => {
            tracing::error!("the mount ended: {e:#}");
            Err(e)
        }
        (Ok(()), _) => Ok(()),
    }
}

/// The command's end of a mount in the background.
fn report(waiting: process::Waiting) -> Outcome {
    match waiting.wait()? {
        process::Outcome::Ready(_) => Ok(()),
        process::Outcome::Failed { exit, words } => {
            let (message, hint) = serde_json::from_str(&words).unwrap_or((words, None));
            Err(Failure { exit: Exit::of_number(exit.into()), message, hint }.into())
        }
        process::Outcome::Died(words) => Err(anyhow::anyhow!("{words}")),
    }
}

/// Opens the region, mounts it, serves until the mount ends, and closes every volume.
fn serve(
    args: &MountArgs,
    app: &App,
    root_key: Option<Secret<32>>,
    ready: impl FnOnce(&Path) -> Result<()>,
) -> Outcome {
    // Split off, it has to ask anew.
    process::keep_out_of_swap();
    process::become_io_flusher();
    process::limit_arenas();
    let region = app.region()?;
    refuse_place(args.read_only, &args.mount_point, &region)?;
    // Wrong or missing: said now, and not at the first open. Before the layers are taken: nobody waits for a person.
    match root_key {
        Some(key) => region.give_root_key(key)?,
        None => drop(region.root_key()?),
    }
    let owner = match args.read_only {
        true => None,
        false => Some(own_layers(&region, &args.mount_point)?),
    };
    if owner.is_some() {
        remove_litter(&region)?;
    }
    let (run_dir, source) = (region.run_dir(), region.dir().display().to_string());
    let host = Host::new(region, owner);
    let options = Options {
        threads: usize::from(args.threads),
        cache: if args.cache == CacheChoice::Kernel { Cache::Kernel } else { Cache::None },
        read_only: args.read_only,
        allow_other: args.allow_other,
        source,
        ..Options::default()
    };
    let export = Arc::new(Shelves::new(host.clone(), !args.read_only));
    let signals = signal_hook::iterator::Signals::new([libc::SIGTERM, libc::SIGINT])?;
    let mounted = Arc::new(fuse::mount(export, &args.mount_point, &options)?);
    let server = match args.read_only {
        true => None,
        false => Some(listen(&run_dir, &host, &mounted)?),
    };
    if !args.foreground {
        log::to_file(&run_dir.join("mount.log")).context("opening the log")?;
    }
    ready(mounted.path())?;
    if !args.read_only {
        host.start_folding()?;
    }
    let saying = Arc::new(parking_lot::Mutex::new(()));
    end_on_signal(signals, &host, &mounted, Duration::from_secs(args.grace.into()), &saying);
    let ended = mounted.wait();
    drop(server);
    host.close()?;
    // What is still to be said of the end is said before the process goes.
    drop(saying.try_lock_for(SAYING_TIME));
    // The region itself may be kept from its own end by files that are still open.
    host.region().advance_anchor()?;
    Ok(ended?)
}

/// What can be said before anybody is asked for a passphrase: this place can't be, or the region is mounted already.
fn refuse_place(read_only: bool, at: &Path, region: &Region) -> Outcome {
    if !read_only && let Err(Owner { pid, mount_point: Some(place) }) = LayersLock::take(region, None)? {
        return Err(mounted_already(region, pid, &place));
    }
    Ok(fuse::check_mount_point(at)?)
}

fn mounted_already(region: &Region, pid: u32, place: &Path) -> anyhow::Error {
    let message = format!(
        "region {} is already mounted read-write at {} by process {pid}",
        region.name(),
        place.display()
    );
    let hint = Some("use that mount, unmount it first, or mount with --read-only".into());
    Failure { exit: Exit::InUse, message, hint }.into()
}

fn own_layers(region: &Region, at: &Path) -> Result<LayersLock> {
    let since = Instant::now();
    loop {
        match LayersLock::take(region, Some(at))? {
            Ok(lock) => return Ok(lock),
            Err(Owner { pid, mount_point: Some(place) }) => return Err(mounted_already(region, pid, &place)),
            Err(Owner { pid, mount_point: None }) if since.elapsed() > Duration::from_secs(120) => {
                let message = format!("region {} is in use by process {pid}", region.name());
                return Err(
                    Failure { exit: Exit::InUse, message, hint: Some("wait for it to end".into()) }.into()
                );
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn listen(run_dir: &Path, host: &Arc<Host>, mounted: &Arc<Mounted>) -> Result<Server> {
    let (host, mounted) = (host.clone(), mounted.clone());
    let handler = move |order: Order| -> Answer {
        let done = match &order {
            Order::Status => {
                return Answer::Status(HostState {
                    pid: std::process::id(),
                    mount_point: mounted.path().display().to_string(),
                    live: host.live_states(),
                    unopened: host.unopened(),
                });
            }
            Order::Unmount => mounted.unmount().map_err(anyhow::Error::from),
            _ => host.execute(&order, true).map_err(anyhow::Error::from),
        };
        match done {
            Ok(()) => Answer::Done,
            Err(e) => {
                let Failure { exit, message, hint } = Failure::of(&e);
                Answer::Failed { exit: exit.number(), message, hint }
            }
        }
    };
    Ok(control::serve(run_dir, SOCKET, handler)?)
}

/// Finding out who had files open looks at every process of the machine.
const SAYING_TIME: Duration = Duration::from_secs(5);

/// SIGTERM and SIGINT end the mount in order, and within a bounded time; the second of them at once.
fn end_on_signal(
    mut signals: signal_hook::iterator::Signals,
    host: &Arc<Host>,
    mounted: &Arc<Mounted>,
    grace: Duration,
    saying: &Arc<parking_lot::Mutex<()>>,
) {
    let (host, mounted, saying) = (Arc::downgrade(host), Arc::downgrade(mounted), saying.clone());
    std::thread::spawn(move || {
        let mut ending = false;
        for _ in signals.forever() {
            let (Some(host), Some(mounted)) = (host.upgrade(), mounted.upgrade()) else { return };
            if std::mem::replace(&mut ending, true) {
                mounted.hurry();
                continue;
            }
            let saying = saying.clone();
            std::thread::spawn(move || {
                let _saying = saying.lock();
                end_in_order(&host, &mounted, grace);
            });
            std::thread::spawn(move || {
                std::thread::sleep(grace.saturating_add(STUCK_TIME));
                tracing::error!(
                    "the mount does not end; it is left as after a kill, which loses no answered write"
                );
                std::process::exit(Exit::Other.number());
            });
        }
    });
}

/// Makes everything durable and unmounts. What is open is served on for the grace; then the mount ends without it.
fn end_in_order(host: &Host, mounted: &Mounted, grace: Duration) {
    for device in loopdev::below(mounted.path()).unwrap_or_default() {
        if let Err(e) = let_go_elsewhere(&device.device) {
            tracing::warn!("{e:#}");
        }
    }
    for open in host.live() {
        if let Err(e) = open.disk.flush() {
            tracing::error!(volume = %open.disk.id(), error = %e, "it could not be flushed");
        }
    }
    let Err(e) = mounted.unmount() else { return };
    let users = words_of_users(mounted.device()).unwrap_or_default();
    let seconds = grace.as_secs();
    tracing::warn!("{e} ({users}); it ends when its files are closed, in {seconds} s at the latest");
    if !mounted.end(grace) {
        let users = words_of_users(mounted.device()).unwrap_or_default();
        tracing::warn!("{} has ended though it was in use ({users})", mounted.path().display());
    }
}

/// [`loopdev::let_go`] in a process of its own: what the device flushes comes to this one. Were it killed while a thread of its own
/// waits for that, the thread would keep the descriptor of the mount open, and nobody would ever be answered.
fn let_go_elsewhere(device: &Path) -> Result<()> {
    use std::process::{Command, Stdio};
    let mut command = Command::new("/proc/self/exe");
    command.args(["let-go".as_ref(), device.as_os_str()]).stdin(Stdio::null()).stdout(Stdio::null());
    let output = command.output().with_context(|| format!("flushing {}", device.display()))?;
    match output.status.success() {
        true => Ok(()),
        false => anyhow::bail!(
            "{}",
            String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("terrane: ")
        ),
    }
}

/// Detaches a loop device, now or when it is free, for a mount that ends.
pub fn let_go(device: &Path) -> Outcome {
    match loopdev::let_go(device)? {
        true => Ok(()),
        false => {
            let message = format!("{} is in use: unmount what is on it", device.display());
            Err(Failure { exit: Exit::InUse, message, hint: None }.into())
        }
    }
}

/// Who has files of a mount open, in words; none: nobody that can be seen.
fn words_of_users(device: (u32, u32)) -> Option<String> {
    let holders = process::holders(device, None).ok()?;
    let words: Vec<_> = holders.iter().map(|h| format!("process {} ({})", h.pid, h.program)).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// Unmounts; returns once everything is written.
pub fn unmount(mount_point: &Path) -> Outcome {
    let path = crate::sys::mount::resolve_mount_point(mount_point)
        .with_context(|| mount_point.display().to_string())?;
    let found = crate::sys::mount::mounted_at(&path)?;
    if let Some(device) = loopdev::below(&path)?.first() {
        let message = format!("{} is in use by {}", path.display(), device.device.display());
        let hint = Some(format!("unmount what is on it, then: terrane detach {}", device.device.display()));
        return Err(Failure { exit: Exit::InUse, message, hint }.into());
    }
    let lock = found.as_ref().map(|m| PathBuf::from(&m.source).join("run/layers.lock"));
    let server = lock.as_ref().and_then(|lock| server_of(lock, &path));
    unmount_idle(mount_point, &path, found.map(|m| m.device))?;
    if let Some(lock) = lock {
        wait_for_close(&lock, &path)?;
    }
    if let Some(server) = server {
        // All is written; until it is gone it keeps the file system below the region busy.
        process::wait_for_end(&server, LEAVE_TIME)?;
    }
    Ok(())
}

/// The process that serves the read-write mount at `path`.
fn server_of(lock: &Path, path: &Path) -> Option<OwnedFd> {
    let text = text_of(lock)?;
    let mut lines = text.lines();
    let pid = lines.next()?.parse().ok()?;
    (lines.next()? == path.display().to_string()).then(|| process::watch(pid)).flatten()
}

fn text_of(lock: &Path) -> Option<String> {
    // A process and a path.
    String::from_utf8(crashsafe::read_open(&owned::open_any(lock).ok()?, 8192).ok()?).ok()
}

/// Unmounts, or names who keeps it busy. Programs that close their files now may keep it so for a moment longer: the
/// kernel closes behind their backs, and a child between fork and exec has its parent's files.
fn unmount_idle(mount_point: &Path, path: &Path, device: Option<(u32, u32)>) -> Outcome {
    let since = Instant::now();
    loop {
        let error = match fuse::unmount(mount_point) {
            Err(error) if error.is_busy() => error,
            other => return Ok(other?),
        };
        if since.elapsed() > BUSY_TIME {
            let Some(users) = device.and_then(words_of_users) else { return Err(error.into()) };
            let message = format!("{} is in use by {users}", path.display());
            let hint = Some("let them close its files, or end them".into());
            return Err(Failure { exit: Exit::InUse, message, hint }.into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the server that was mounted at `path` has let go of the layers.
fn wait_for_close(lock: &Path, path: &Path) -> Result<()> {
    let file = match owned::open_any(lock) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => {
            let message = format!(
                "{} is unmounted, but whether its server has ended can't be told: {}: {e}",
                path.display(),
                lock.display()
            );
            let hint = Some("wait until no process of `terrane mount` is left".into());
            return Err(Failure { exit: Exit::Other, message, hint }.into());
        }
    };
    let since = Instant::now();
    while rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_err() {
        // Somebody else's by now.
        let text = text_of(lock).unwrap_or_default();
        if text.lines().nth(1) != Some(&path.display().to_string()) {
            return Ok(());
        }
        if since.elapsed() > CLOSE_TIME {
            let message = format!("{} is unmounted, but its server is still writing", path.display());
            return Err(Failure {
                exit: Exit::Other,
                message,
                hint: Some("see run/mount.log in the region".into()),
            }
            .into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The exit number of what a mount could not do.
pub(super) fn exit_of(error: &MountError) -> Exit {
    match error {
        _ if error.is_busy() => Exit::InUse,
        MountError::NoSuchFolder(_) => Exit::NotFound,
        MountError::NotAFolder(_) | MountError::NotEmpty(_) | MountError::Covered { .. } => Exit::Refused,
        MountError::Dead(_) | MountError::Silent(_) => Exit::InUse,
        MountError::AlreadyMounted { .. } | MountError::HeldElsewhere(_) => Exit::InUse,
        MountError::System(System::NotMounted(_)) => Exit::NotFound,
        MountError::System(System::AllowOtherForbidden | System::ClosedDevice) => Exit::Refused,
        MountError::Serving(_) | MountError::Io { .. } | MountError::System(_) => Exit::Other,
    }
}
