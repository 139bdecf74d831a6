//! How many files this process may have open, and what it means that no more can be.
//!
//! Layers stay open for long, two files each, and a chain may have hundreds; all else is opened for a moment. So what stays open leaves
//! the last of the limit to the rest: else one chain too long would take catalog, headers and locks from every other disk.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What stays open leaves this part of the limit,
const LEFT_PART: u64 = 4;
/// but no more files than this.
const LEFT_MAX: u64 = 128;

/// Raises the limit as far as this process may, and says where it is: it is meant for programs that know no more than 1024.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // Where it can't be, it stays.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    self::limit()
}

/// So many may be open at once.
fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Refuses a file that is to stay open where it has one of the last numbers: the system gives the lowest that is free.
pub fn check_lasting(file: File) -> io::Result<File> {
    let limit = limit();
    let left = (limit / LEFT_PART).min(LEFT_MAX);
    match (file.as_raw_fd() as u64) < limit - left {
        true => Ok(file),
        false => Err(io::Error::from_raw_os_error(libc::EMFILE)),
    }
}

/// Whether an error says that no more files can be open, in this process or on this machine: nothing is wrong with the file.
pub fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Whether no more can be open now: for where another's code tells only that a file could not be opened.
pub fn are_exhausted() -> Option<io::Error> {
    File::open("/dev/null").err().filter(is_exhausted)
}

/// Such an error in words, with the limit.
pub fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE) => {
            format!("too many open files: this process may have {} open at once (RLIMIT_NOFILE)", limit())
        }
        _ => format!("too many open files on this machine ({error})"),
    }
}

/// What to do about it; none: the error is another.
pub fn hint(error: &io::Error) -> Option<String> {
    Some(match error.raw_os_error()? {
        libc::EMFILE => "each layer of a disk takes two: raise the hard limit (`ulimit -Hn` where it is started, `LimitNOFILE=` in a \
                         unit of systemd, `nofile` in limits.conf), or delete snapshots, whose layers are folded then"
            .into(),
        libc::ENFILE => "raise it: `sysctl fs.file-max`".into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_means_that_no_more_can_be_open() {
        let of = io::Error::from_raw_os_error;
        for errno in [libc::EMFILE, libc::ENFILE] {
            assert!(is_exhausted(&of(errno)) && hint(&of(errno)).is_some());
            assert!(words(&of(errno)).contains("open files"));
        }
        assert!(words(&of(libc::EMFILE)).contains(&limit().to_string()));
        for errno in [libc::ENOENT, libc::EIO, libc::ENOSPC] {
            assert!(!is_exhausted(&of(errno)) && hint(&of(errno)).is_none());
        }
        check_lasting(tempfile::tempfile().unwrap()).unwrap();
        assert!(are_exhausted().is_none());
    }
}
