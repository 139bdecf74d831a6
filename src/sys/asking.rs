//! Asking a file system that may never answer. Holds `unsafe`: a process is split off for the question.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions};

use super::process::wait_until_readable;

/// What a file system said of a path: nothing wrong, or the number of the error.
pub type Answer = Result<(), i32>;

/// Whether a path can be asked for its attributes, for so long at most; `None` where no answer came.
///
/// Asked by a process of its own: a FUSE request that its server has taken and not answered can't be interrupted, and a
/// process with such a thread doesn't end, not by a signal and not by itself.
pub fn ask(path: &Path, patience: Duration) -> io::Result<Option<Answer>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let (mut answer, told) = io::pipe()?;
    // SAFETY: the child makes system calls only, all on memory that was ready before, and ends without unwinding.
    let pid = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => unsafe { stat_and_exit(&path, told.as_raw_fd()) },
        pid => Pid::from_raw(pid).expect("fork gives a pid above nought"),
    };
    drop(told);
    let mut said = [0; 4];
    let answered = wait_until_readable(&answer, patience)? && answer.read_exact(&mut said).is_ok();
    if !answered {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
    // One without an answer ends now, or when the server answers; then whoever is above this process takes it. An error says that
    // this process is told of no child's end (SIGCHLD is ignored), and so has none to take.
    let options = if answered { WaitOptions::empty() } else { WaitOptions::NOHANG };
    let _ = rustix::process::waitpid(Some(pid), options);
    Ok(answered.then(|| match i32::from_ne_bytes(said) {
        0 => Ok(()),
        errno => Err(errno),
    }))
}

/// The child's whole life: it tells the error's number, 0 for none. It may linger, and so holds no other file: no lock and no
/// reader of another pipe waits for it. A mapped file would stay with it; who asks has none.
///
/// # Safety
/// Called in a child after `fork`, whose descriptors nobody uses any more.
unsafe fn stat_and_exit(path: &CString, tell: RawFd) -> ! {
    // SAFETY: as said above; `stat` is written by the call and not read, errno is this thread's own, and four bytes of it are
    // read.
    unsafe {
        let number = tell as libc::c_uint;
        let below = if number > 0 { libc::close_range(0, number - 1, 0) } else { 0 };
        if below == 0 && libc::close_range(number + 1, u32::MAX, 0) == 0 {
            let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
            let failed = libc::stat(path.as_ptr(), stat.as_mut_ptr()) != 0;
            let errno = if failed { *libc::__errno_location() } else { 0 };
            libc::write(tell, (&raw const errno).cast(), 4);
        }
        libc::_exit(0)
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
