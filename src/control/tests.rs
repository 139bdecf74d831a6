//! Guards against a socket that another user reaches, that one client blocks for all, or that takes memory on a liar's word.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;
use serde::{Deserialize, Serialize};

use super::{ControlError, Server, call, serve};

const NAME: &str = "mount.sock";
const LONG: Duration = Duration::from_secs(20);

#[derive(Debug, Serialize, Deserialize, PartialEq)]
enum Request {
    Echo(String),
    Sleep(u64),
    Panic,
    Fill(usize),
}

fn handle(request: Request) -> String {
    match request {
        Request::Echo(words) => words,
        Request::Sleep(milliseconds) => {
            thread::sleep(Duration::from_millis(milliseconds));
            "slept".into()
        }
        Request::Panic => panic!("asked to"),
        Request::Fill(len) => "x".repeat(len),
    }
}

fn start(folder: &Path) -> Server {
    serve(folder, NAME, handle).unwrap()
}

fn ask(folder: &Path, request: &Request) -> Result<String, ControlError> {
    call(folder, NAME, request, LONG)
}

fn echo(folder: &Path) {
    assert_eq!(ask(folder, &Request::Echo("hello".into())).unwrap(), "hello");
}

#[test]
fn a_request_gets_its_answer_and_modes_are_tight() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    assert!(matches!(ask(&run, &Request::Echo("x".into())), Err(ControlError::NotRunning)));
    let server = start(&run);
    echo(&run);
    assert_eq!(fs::metadata(&run).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(run.join(NAME)).unwrap().mode() & 0o7777, 0o600);
    let large = "y".repeat(1_000_000);
    assert_eq!(ask(&run, &Request::Echo(large.clone())).unwrap(), large);
    drop(server);
    assert!(!run.join(NAME).exists());
    assert!(matches!(ask(&run, &Request::Echo("x".into())), Err(ControlError::NotRunning)));
}

#[test]
fn a_path_longer_than_a_socket_name_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = folder.path().to_owned();
    for _ in 0..8 {
        run.push("a-folder-with-a-rather-long-name-as-people-make-them");
    }
    fs::create_dir_all(&run).unwrap();
    let _server = start(&run);
    echo(&run);
}

#[test]
fn a_panic_or_nonsense_is_refused_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    for _ in 0..20 {
        assert!(matches!(ask(folder.path(), &Request::Panic), Err(ControlError::Refused(_))));
    }
    let nonsense: Result<String, _> = call(folder.path(), NAME, &[1, 2, 3], LONG);
    assert!(matches!(nonsense, Err(ControlError::Refused(words)) if words.contains("not understood")));
    let deep = "[".repeat(100_000);
    let mut stream = UnixStream::connect(folder.path().join(NAME)).unwrap();
    stream.write_all(&super::frame::encode(deep.as_bytes())).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("not understood"), "{answer}");
    assert!(matches!(ask(folder.path(), &Request::Fill(2 << 20)), Err(ControlError::Refused(_))));
    let long = Request::Echo("z".repeat(2 << 20));
    assert!(matches!(ask(folder.path(), &long), Err(ControlError::Damaged(_))));
    echo(folder.path());
}

#[test]
fn a_length_of_four_gigabytes_takes_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    let mut stream = UnixStream::connect(folder.path().join(NAME)).unwrap();
    stream.write_all(b"trrn\x01\0\0\0\xff\xff\xff\xff").unwrap();
    let mut answer = String::new();
    let asked = Instant::now();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("are more than"), "{answer}");
    assert!(asked.elapsed() < Duration::from_secs(2));
    echo(folder.path());
}

#[test]
fn half_a_message_stalls_nobody_and_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    let mut halves: Vec<_> =
        (0..200).map(|_| UnixStream::connect(folder.path().join(NAME)).unwrap()).collect();
    for half in &mut halves {
        let _ = half.write_all(b"trrn\x01\0\0\0\x08\0\0\0half");
    }
    let asked = Instant::now();
    echo(folder.path());
    assert!(asked.elapsed() < Duration::from_secs(2));
    let mut rest = [0; 1];
    let last = halves.last_mut().unwrap();
    last.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(last.read(&mut rest).unwrap(), 0, "dropped after 5 s");
    assert!(asked.elapsed() > Duration::from_secs(3) && asked.elapsed() < Duration::from_secs(10));
}

#[test]
fn slow_answers_do_not_hold_up_others() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| assert_eq!(ask(folder.path(), &Request::Sleep(1500)).unwrap(), "slept"));
        }
        thread::sleep(Duration::from_millis(100));
        let asked = Instant::now();
        echo(folder.path());
        assert!(asked.elapsed() < Duration::from_secs(1));
    });
    let late: Result<String, _> =
        call(folder.path(), NAME, &Request::Sleep(2000), Duration::from_millis(200));
    assert!(matches!(late, Err(ControlError::TimedOut(_))));
}

#[test]
fn ten_thousand_connections() {
    let folder = tempfile::tempdir().unwrap();
    let _server = start(folder.path());
    let start = Instant::now();
    for index in 0..10_000 {
        let mut stream = UnixStream::connect(folder.path().join(NAME)).unwrap();
        if index % 2 == 0 {
            let _ = stream.write_all(b"trrn\x01");
        }
        if index % 1000 == 0 {
            echo(folder.path());
        }
    }
    echo(folder.path());
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn another_version_is_named_by_both_ends() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path());
    let mut stream = UnixStream::connect(folder.path().join(NAME)).unwrap();
    stream.write_all(b"trrn\x63\0\0\0").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("version 99"), "{answer}");
    drop(server);
    // A server of another version answers in its own.
    let listener = UnixListener::bind(folder.path().join(NAME)).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"trrn\x63\0\0\0\x02\0\0\0{}").unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    });
    let error = ask(folder.path(), &Request::Echo("x".into())).unwrap_err();
    assert!(matches!(error, ControlError::Version { theirs: 99, .. }), "{error}");
    server.join().unwrap();
}

#[test]
fn a_server_that_dies_or_lies_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for said in [&b""[..], b"trrn\x01\0\0\0\x10\0\0\0{", b"HTTP/1.1", b"trrn\x01\0\0\0\x01\0\0\0{"] {
        let path = folder.path().join(NAME);
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 12];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(said).unwrap();
        });
        let error = ask(folder.path(), &Request::Echo("x".into())).unwrap_err();
        assert!(matches!(error, ControlError::Ended | ControlError::Damaged(_)), "{error}");
        server.join().unwrap();
    }
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(folder.path().join(NAME)).unwrap());
    assert!(folder.path().join(NAME).exists());
    let server = start(folder.path());
    echo(folder.path());
    let second = serve(folder.path(), NAME, handle).err().unwrap();
    assert!(matches!(second, ControlError::AlreadyServed { pid } if pid == std::process::id()), "{second}");
    echo(folder.path());
    // One whose name was taken over leaves the new owner's socket be.
    fs::remove_file(folder.path().join(NAME)).unwrap();
    let _newer = start(folder.path());
    drop(server);
    echo(folder.path());
    fs::write(folder.path().join("file"), "precious").unwrap();
    assert!(serve(folder.path(), "file", handle).is_err());
    assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"precious");
    for name in ["", ".", "..", "a/b", "x\0y"] {
        assert!(serve(folder.path(), name, handle).is_err());
    }
}

#[test]
fn many_that_start_at_once_are_one() {
    let folder = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(folder.path().join(NAME)).unwrap());
    let servers: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..16).map(|_| scope.spawn(|| serve(folder.path(), NAME, handle).ok())).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(servers.len(), 1);
    echo(folder.path());
}

#[test]
fn stopping_waits_for_the_answer_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path());
    let path = folder.path().to_owned();
    let client = thread::spawn(move || ask(&path, &Request::Sleep(300)));
    thread::sleep(Duration::from_millis(100));
    drop(server);
    assert_eq!(client.join().unwrap().unwrap(), "slept");
}

/// Runs `deed` as another user, on a thread of its own.
fn as_nobody<T: Send>(deed: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let nobody = Uid::from_raw(65534);
            set_thread_res_uid(nobody, nobody, nobody).unwrap();
            deed()
        });
        thread.join().unwrap()
    })
}

#[test]
fn another_user_is_refused_by_both_ends() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let _server = serve(&path, NAME, move |request: Request| {
        counted.fetch_add(1, Ordering::SeqCst);
        handle(request)
    })
    .unwrap();
    let socket = path.join(NAME);
    assert!(as_nobody(|| UnixStream::connect(&socket)).is_err(), "the folder is closed");
    // Even with the doors open, the uid is asked for.
    for door in [folder.path(), &path, &socket] {
        fs::set_permissions(door, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut stream = as_nobody(|| UnixStream::connect(&socket)).unwrap();
    let _ = stream.write_all(&super::frame::encode(br#"{"Echo":"x"}"#));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(String::from_utf8_lossy(&answer).contains("another user"));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    let error = as_nobody(|| ask(&path, &Request::Echo("x".into()))).unwrap_err();
    assert!(matches!(error, ControlError::ForeignUser(_)), "{error}");
    // A folder that another user made is not ours to use, for root neither.
    let foreign = folder.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    std::os::unix::fs::chown(&foreign, Some(65534), None).unwrap();
    assert!(matches!(serve(&foreign, NAME, handle), Err(ControlError::ForeignUser(_))));
    assert!(matches!(ask(&foreign, &Request::Panic), Err(ControlError::ForeignUser(_))));
}
