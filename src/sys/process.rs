//! What a process that serves disks and holds keys does to itself, and what it asks about others.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::mm::MlockAllFlags;
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, Resource, Rlimit, WaitOptions};
use zeroize::Zeroizing;

use super::large_buffers::LARGE;

/// Keeps this process's memory out of core dumps and away from other processes of the same user.
pub fn keep_memory_private() -> io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

/// Keeps all of this process's memory, and so its keys and what disks hold, out of swap, where it may: a user's limit is
/// mostly so low that it would fail later, in the middle of work. Whether it does. Not inherited by a process split off.
pub fn keep_out_of_swap() -> bool {
    let limit = rustix::process::getrlimit(Resource::Memlock);
    let may = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::IPC_LOCK));
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    (may || limit.current.is_none()) && rustix::mm::mlockall(flags).is_ok()
}

/// Tells the kernel that memory it needs may have to be written through this process, so that it doesn't wait for
/// itself when a file system lies on what is served. Called before threads are started, which inherit it; only root may.
pub fn become_io_flusher() -> bool {
    rustix::process::configure_io_flusher_behavior(true).is_ok()
}

/// Few arenas for many threads: each keeps what its thread once needed (a tenth of a busy mount's memory). Blocks of less than [`LARGE`]
/// come from them, so that their pages are used again.
pub fn limit_arenas() {
    // SAFETY: they set numbers of the allocator's; called before threads are started.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE as libc::c_int);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 << 20);
    }
}

/// Which side of [`background`] this process is.
pub enum Background {
    /// The one a person started; it waits for the other and exits with what it says.
    Foreground(Waiting),
    /// The one that serves.
    Serving(Readiness),
}

/// Splits off a process of its own session that goes on after the command has returned. The command learns whether it
/// got ready, or why not. Refused once threads run, since only the calling one would go on.
pub fn background() -> io::Result<Background> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with several threads cannot go to the background"));
    }
    let (reader, writer) = io::pipe()?;
    let (handed, hand) = io::pipe()?;
    io::stdout().flush()?;
    // SAFETY: this is the only thread, so no lock is held and no invariant half done in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop((reader, hand));
            let inherited = inherited()?;
            rustix::process::setsid()?;
            Ok(Background::Serving(Readiness { writer, handed, inherited }))
        }
        pid => {
            drop((writer, handed));
            let pid = Pid::from_raw(pid).expect("fork gives a pid above nought");
            Ok(Background::Foreground(Waiting { reader, hand, pid }))
        }
    }
}

/// What whoever started this program had open, but for the standard three. What this program opens is closed by an exec; what came to it
/// through one is not.
fn inherited() -> io::Result<Vec<RawFd>> {
    let open = fs::read_dir("/proc/self/fd")?.map(|entry| entry.map(|entry| entry.file_name()));
    let names = open.collect::<io::Result<Vec<_>>>()?;
    let numbers = names.iter().filter_map(|name| name.to_str()?.parse::<RawFd>().ok());
    let came = |number: &RawFd| {
        // SAFETY: asks for a flag; a number that nothing is open under any more gives an error.
        let flags = unsafe { libc::fcntl(*number, libc::F_GETFD) };
        *number > 2 && flags >= 0 && flags & libc::FD_CLOEXEC == 0
    };
    Ok(numbers.filter(came).collect())
}

/// What the serving process said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It serves; the words are for standard output.
    Ready(String),
    /// It could not; the words are for standard error.
    Failed {
        /// The exit number of the command.
        exit: u8,
        /// Why.
        words: String,
    },
    /// It ended without a word.
    Died(String),
}

/// The command's end.
pub struct Waiting {
    reader: io::PipeReader,
    hand: io::PipeWriter,
    pid: Pid,
}

impl Waiting {
    /// The serving process.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Hands over a secret that only this side can ask for, through a pipe that nobody else has. The serving process
    /// was split off before it was asked, so that nothing of the asking lies in its memory.
    pub fn hand(&mut self, secret: &[u8; 32]) -> io::Result<()> {
        self.hand.write_all(secret)
    }

    /// Waits for the serving process to say how it went.
    pub fn wait(mut self) -> io::Result<Outcome> {
        let mut said = Vec::new();
        self.reader.read_to_end(&mut said)?;
        let Some((exit, words)) = said.split_first() else {
            let status = rustix::process::waitpid(Some(self.pid), WaitOptions::empty())?;
            let words = match status.map(|(_, status)| (status.terminating_signal(), status.exit_status())) {
                Some((Some(signal), _)) => format!("the serving process was killed by signal {signal}"),
                Some((None, Some(exit))) => format!("the serving process ended with {exit}"),
                _ => "the serving process ended".to_owned(),
            };
            return Ok(Outcome::Died(words));
        };
        let words = String::from_utf8_lossy(words).into_owned();
        Ok(if *exit == 0 { Outcome::Ready(words) } else { Outcome::Failed { exit: *exit, words } })
    }
}

/// The serving process's end; dropped without a word, the command reports a death.
pub struct Readiness {
    writer: io::PipeWriter,
    handed: io::PipeReader,
    inherited: Vec<RawFd>,
}

impl Readiness {
    /// Waits for the secret that the command hands over; `None`: it ended without.
    pub fn handed(&mut self) -> io::Result<Option<Zeroizing<[u8; 32]>>> {
        let mut secret = Zeroizing::new([0; 32]);
        match self.handed.read_exact(secret.as_mut()) {
            Ok(()) => Ok(Some(secret)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets the command return. From here on there is no terminal and no current folder; relative paths end here.
    pub fn ready(mut self, words: &str) -> io::Result<()> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        std::env::set_current_dir("/")?;
        for standard in 0..=2 {
            // SAFETY: replaces one of the standard descriptors, which nobody owns, by a copy of an open one.
            if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // A lock, or a pipe that somebody reads to its end, is not to be held for as long as a disk is there. Until now a passphrase may have
        // been read from one (`/dev/fd/3`).
        for number in &self.inherited {
            // SAFETY: no part of this program opened it, or owns it, and since it was open all the while none has its number.
            unsafe { libc::close(*number) };
        }
        self.writer.write_all(&[0])?;
        self.writer.write_all(words.as_bytes())
    }

    /// Tells the command why nothing is served, and with what number to exit (not nought).
    pub fn failed(mut self, exit: u8, words: &str) -> io::Result<()> {
        self.writer.write_all(&[exit.max(1)])?;
        self.writer.write_all(words.as_bytes())
    }
}

/// The process a thread belongs to; the number itself where it has ended or is not ours to see.
pub fn process_of_thread(thread: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let process =
        status.lines().find_map(|line| line.strip_prefix("Tgid:")).and_then(|text| text.trim().parse().ok());
    process.unwrap_or(thread)
}

/// A process to wait for, which is meant even if its pid is given to another; `None` if there is none.
pub fn watch(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Waits until a watched process has ended, and with it all its files are closed; whether it has.
pub fn wait_for_end(watched: &OwnedFd, time: Duration) -> io::Result<bool> {
    wait_until_readable(watched, time)
}

/// Waits until something can be read, or nothing will any more; whether that came within the time.
pub(super) fn wait_until_readable(file: impl AsFd, time: Duration) -> io::Result<bool> {
    let until = Instant::now() + time;
    loop {
        let left =
            Timespec::try_from(until.saturating_duration_since(Instant::now())).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// A process that holds a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its pid.
    pub pid: u32,
    /// The name of its program.
    pub program: String,
}

/// The other processes that have a file of device `(major, minor)` open, mapped, or as their folder; `inode` narrows it
/// to one file. Sees all processes as root, else the user's own.
pub fn holders(device: (u32, u32), inode: Option<u64>) -> io::Result<Vec<Holder>> {
    let own = std::process::id();
    let mut holders = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let folder = entry.path();
        if pid != own && (has_open(&folder, device, inode) || has_mapped(&folder, device, inode)) {
            let program = fs::read_to_string(folder.join("comm")).unwrap_or_default().trim_end().to_owned();
            holders.push(Holder { pid, program });
        }
    }
    holders.sort_by_key(|holder| holder.pid);
    Ok(holders)
}

fn has_open(process: &Path, device: (u32, u32), inode: Option<u64>) -> bool {
    let mut links = vec![process.join("cwd"), process.join("root")];
    if let Ok(open) = fs::read_dir(process.join("fd")) {
        links.extend(open.flatten().map(|entry| entry.path()));
    }
    links.iter().any(|link| {
        // Without asking the file system, which may be a dead or stuck one.
        let stat = rustix::fs::statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::INO);
        stat.is_ok_and(|stat| {
            (stat.stx_dev_major, stat.stx_dev_minor) == device
                && inode.is_none_or(|inode| inode == stat.stx_ino)
        })
    })
}

fn has_mapped(process: &Path, device: (u32, u32), inode: Option<u64>) -> bool {
    let Ok(maps) = fs::read_to_string(process.join("maps")) else { return false };
    maps.lines().any(|line| {
        // 7f00-7f01 rw-s 00000000 00:2f 1234 /path
        let mut fields = line.split_ascii_whitespace().skip(3);
        let numbers = fields.next().and_then(|field| field.split_once(':'));
        let numbers = numbers.and_then(|(major, minor)| {
            Some((u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?))
        });
        let mapped = fields.next().and_then(|field| field.parse::<u64>().ok());
        numbers == Some(device)
            && mapped.is_some_and(|mapped| mapped != 0 && inode.is_none_or(|inode| inode == mapped))
    })
}
