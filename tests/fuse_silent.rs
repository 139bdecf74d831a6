//! Guards against a mount whose server has taken a request and never answers it: no signal ends who waits for that answer.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fuser::{Config, FileHandle, Filesystem, INodeNo, ReplyAttr, Request, Session, SessionACL};
use terrane::sys::mount::{MountRequest, mount, unmount};

/// Longer than a command waits for a mount.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes what it is asked, and keeps it.
struct Silent(Arc<Mutex<Vec<ReplyAttr>>>);

impl Filesystem for Silent {
    fn getattr(&self, _request: &Request, _inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.0.lock().unwrap().push(reply);
    }
}

#[test]
fn a_command_ends_whose_question_is_taken_and_never_answered() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let at = tempfile::tempdir().unwrap();
    let taken = Arc::new(Mutex::new(Vec::new()));
    let request = MountRequest { source: "silent", allow_other: false, read_only: false };
    let channel = mount(at.path(), &request).unwrap();
    let silent = Silent(Arc::clone(&taken));
    let session = Session::from_fd(silent, channel, SessionACL::All, Config::default()).unwrap();
    let server = std::thread::spawn(move || session.run());
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("terrane"))
        .args(["unmount".as_ref(), at.path().as_os_str()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Its words end when it does: nothing it leaves behind holds them open.
    let mut stderr = command.stderr.take().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let listener = std::thread::spawn(move || {
        let mut words = String::new();
        tell.send(stderr.read_to_string(&mut words).map(|_| words))
    });
    let words = told.recv_timeout(PATIENCE);
    let until = Instant::now() + PATIENCE;
    let mut exit = None;
    while exit.is_none() && words.is_ok() && Instant::now() < until {
        exit = command.try_wait().unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    // Lets go of whoever waits yet, before anything can fail.
    let asked = std::mem::take(&mut *taken.lock().unwrap()).len();
    let _ = (unmount(at.path(), true), server.join(), command.wait(), listener.join());
    assert!(asked > 0, "nothing was asked: {words:?}");
    assert!(words.as_ref().is_ok_and(|w| w.as_ref().unwrap().contains("does not answer")), "{words:?}");
    assert_eq!(exit.and_then(|exit| exit.code()), Some(5));
}
