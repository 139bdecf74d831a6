//! Asking a file system that may never answer. Holds `unsafe`: a process is split off for the question.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use super::process::wait_for_end;

/// What a file system said of a path: nothing wrong, or the number of the error.
pub type Answer = Result<(), i32>;

/// Whether a path can be asked for its attributes, for so long at most; `None` where no answer came.
///
/// Asked by a process of its own: a FUSE request that its server has taken and not answered can't be interrupted, and a
/// process with such a thread doesn't end, not by a signal and not by itself.
pub fn ask(path: &Path, patience: Duration) -> io::Result<Option<Answer>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the child makes system calls only, all on memory that was ready before, and ends without unwinding.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => unsafe { stat_and_exit(&path) },
        pid => Pid::from_raw(pid).expect("fork gives a pid above nought"),
    };
    let watched = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    if !wait_for_end(&watched, patience)? {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        // It ends now, or when the server answers; then whoever is above this process takes it.
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        return Ok(None);
    }
    let (_, status) =
        rustix::process::waitpid(Some(pid), WaitOptions::empty())?.ok_or(io::ErrorKind::NotFound)?;
    Ok(status.exit_status().map(|exit| if exit == 0 { Ok(()) } else { Err(exit) }))
}

/// The child's whole life. It may linger: it holds no file, so that no lock and no reader of a pipe waits for it.
///
/// # Safety
/// Called in a child after `fork`, whose descriptors nobody uses any more.
unsafe fn stat_and_exit(path: &CString) -> ! {
    // SAFETY: as said above; `stat` is written by the call and not read, and errno is this thread's own.
    unsafe {
        libc::close_range(0, u32::MAX, 0);
        let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
        let failed = libc::stat(path.as_ptr(), stat.as_mut_ptr()) != 0;
        libc::_exit(if failed { *libc::__errno_location() & 0xff } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let long = Duration::from_secs(60);
        assert_eq!(ask(Path::new("/"), long).unwrap(), Some(Ok(())));
        assert_eq!(ask(Path::new("/no/such/path"), long).unwrap(), Some(Err(libc::ENOENT)));
        assert!(ask(Path::new("a\0b"), long).is_err());
    }
}
