//! Guards against a neighbour, or a confused program of the same user, that stops a mount by its socket, fills its memory, or gets
//! in as somebody else; and against a socket that makes a command wait or eat memory.

#[path = "common/hostile.rs"]
mod hostile;
#[path = "common/world.rs"]
mod world;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hostile::{Trap, bounded, chmod};
use terrane::control;
use terrane::volume::{Answer, Order};
use world::{World, errno, is_root, pattern, read_at, tool, words, write_at};

const NOBODY: &str = "65534";
/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// One that receives, eight that answer, whatever comes.
const CONTROL_THREADS: usize = 9;

fn mounted() -> World {
    let world = World::new();
    world.volume("web", "8M");
    world.mount();
    write_at(&world.file("web"), 0, &pattern(4096, 1)).unwrap();
    world
}

fn socket(world: &World) -> PathBuf {
    world.path("r/run/mount.sock")
}

fn message(version: u32, len: u32, body: &[u8]) -> Vec<u8> {
    [&b"trrn"[..], &version.to_le_bytes(), &len.to_le_bytes(), body].concat()
}

/// Sends bytes, as far as they are taken; what comes back until the end.
fn send(world: &World, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket(world)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A number of a line of the server's `/proc` status, such as `VmHWM:`.
fn of_server(world: &World, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", world.server())).unwrap();
    let found = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    found.split_whitespace().next().unwrap().parse().unwrap()
}

/// Threads of the server by this name. The others come up as the kernel's requests do, so that a count of all says nothing.
fn threads_named(world: &World, name: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", world.server())).unwrap();
    let named = |task: std::io::Result<fs::DirEntry>| {
        // One that has ended meanwhile has no name.
        fs::read_to_string(task.unwrap().path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    tasks.map(named).filter(|named| *named).count()
}

/// It serves and answers, in time and memory; the quickest of three answers counts, since machines may be busy.
#[track_caller]
fn serves(world: &World, what: &str) {
    let ask = || control::call(&world.path("r/run"), "mount.sock", &Order::Status, PATIENCE);
    let in_time = (0..3).any(|_| {
        let since = Instant::now();
        let answer = ask();
        assert!(matches!(answer, Ok(Answer::Status(_))), "{what}: {answer:?}");
        since.elapsed() < hostile::TIME_MAX
    });
    assert!(in_time, "{what}: it takes too long to answer");
    assert!(read_at(&world.file("web"), 0, 4096).unwrap() == pattern(4096, 1), "{what}");
    let memory = of_server(world, "VmHWM:");
    assert!(memory < hostile::MEMORY_KIB_MAX as u64, "{what}: the server took {memory} KiB");
}

#[test]
fn messages_that_are_none() {
    let world = mounted();
    let order = |text: &str| message(1, text.len() as u32, text.as_bytes());
    let deep = format!("{}1{}", "[".repeat(200_000), "]".repeat(200_000));
    let long_name = "x".repeat(900_000);
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("nothing", vec![], ""),
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "does not begin"),
        ("a version from the future", message(99, 2, b"{}"), "version 99"),
        ("version 0", message(0, 2, b"{}"), "version 0"),
        ("a length of 4 GiB", message(1, u32::MAX, b"{}"), "are more than"),
        ("a length of 1 MiB and one", message(1, (1 << 20) + 1, b"{}"), "are more than"),
        (
            "a length of 2 GiB and a megabyte of it",
            message(1, 1 << 31, &vec![b' '; 1 << 20]),
            "are more than",
        ),
        ("no body", message(1, 0, b""), "not understood"),
        ("more than was said", message(1, 2, b"{}{}"), "more bytes"),
        ("not UTF-8", message(1, 4, b"\xff\xfe\xff\xfe"), "not understood"),
        ("no JSON", order("rm -rf /"), "not understood"),
        ("another order", order(r#"{"format_disk":{}}"#), "not understood"),
        ("nested deeply", order(&deep), "not understood"),
        ("an id that leads out", order(r#"{"delete_volume":{"volume":"../../x"}}"#), "is not an id"),
        (
            "an id of 900,000 characters",
            order(&format!(r#"{{"delete_volume":{{"volume":"{long_name}"}}}}"#)),
            "is not an id",
        ),
        ("an id with a NUL", order(r#"{"delete_snapshot":{"snapshot":"snap-\u0000"}}"#), "is not an id"),
        (
            "a negative size",
            order(r#"{"resize":{"volume":"vol-00000000000000000","size_bytes":-1}}"#),
            "not understood",
        ),
        (
            "a size of 2^64",
            order(r#"{"resize":{"volume":"vol-00000000000000000","size_bytes":18446744073709551616}}"#),
            "not understood",
        ),
        (
            "the largest number as a size",
            order(r#"{"resize":{"volume":"vol-00000000000000000","size_bytes":18446744073709551615}}"#),
            "failed",
        ),
        ("a field given twice", order(r#"{"delete_volume":{"volume":"a","volume":"b"}}"#), "not understood"),
        ("two orders in one", order(r#"{"delete_volume":{"volume":"a"},"status":null}"#), "not understood"),
    ];
    for (name, bytes, expected) in cases {
        let since = Instant::now();
        let answer = send(&world, bytes);
        assert!(answer.contains(expected), "{name}: {:?}", answer.chars().take(300).collect::<String>());
        assert!(answer.len() < 4096, "{name}: an answer of {} bytes", answer.len());
        assert!(since.elapsed() < PATIENCE, "{name}");
    }
    serves(&world, "after messages that are none");
    assert!(!world.log().contains("panicked"), "{}", world.log());
    // Cut at each byte, and one bit off at each.
    let whole = order(r#"{"delete_volume":{"volume":"vol-00000000000000000"}}"#);
    for at in 0..whole.len() {
        assert_eq!(send(&world, &whole[..at]), "", "cut at {at}");
        let mut flipped = whole.clone();
        flipped[at] ^= 0x04;
        assert!(!send(&world, &flipped).contains("done"), "flipped at {at}");
    }
    serves(&world, "after cut and flipped messages");
}

#[test]
fn a_crowd_and_those_who_never_end_stall_nobody() {
    let world = mounted();
    let files = || fs::read_dir(format!("/proc/{}/fd", world.server())).unwrap().count();
    let threads = || threads_named(&world, "terrane-control");
    assert!(world::within(20, || threads() == CONTROL_THREADS), "{} threads", threads());
    let before = files();
    let mut halves = Vec::new();
    for n in 0..10_000 {
        let Ok(mut stream) = UnixStream::connect(socket(&world)) else { continue };
        match n % 3 {
            0 => drop(stream.write_all(b"trrn\x01")),
            1 => drop(stream.write_all(&message(1, 1 << 20, &[b' '; 4096]))),
            _ => {}
        }
        // Some stay, and send no more.
        if n % 40 == 0 {
            halves.push(stream);
        }
    }
    serves(&world, "with halves of messages");
    // So do those that fill up all there is for messages on their way.
    let mut large = Vec::new();
    for _ in 0..100 {
        let mut stream = UnixStream::connect(socket(&world)).unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let _ = stream.write_all(&message(1, 1 << 20, &vec![b' '; (1 << 20) - 1]));
        large.push(stream);
    }
    serves(&world, "with large halves of messages");
    drop((halves, large));
    assert!(world::within(20, || files() <= before + 8), "{} files are open, {before} were", files());
    assert_eq!(threads(), CONTROL_THREADS);
    serves(&world, "after the crowd");
}

/// The one who answers may lie as well.
#[test]
fn a_socket_that_lies_is_an_error_and_not_a_wait() {
    let world = World::new();
    world.volume("web", "8M");
    world.ok(&["snapshot", "create", "web", "--name", "s1"]);
    // As a mount would hold it.
    fs::write(world.path("r/run/layers.lock"), format!("{}\n{}\n", std::process::id(), world.mnt())).unwrap();
    let lock = File::open(world.path("r/run/layers.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let cases: &[(&str, Vec<u8>, i32, &str)] = &[
        ("a length of 4 GiB", message(1, u32::MAX, b"{}"), 1, "are more than"),
        ("another version", message(7, 2, b"{}"), 4, "version 7"),
        ("another protocol", b"HTTP/1.1 400".to_vec(), 1, "damaged message"),
        ("nothing", vec![], 1, "ended before it answered"),
        ("no JSON", message(1, 2, b"no"), 1, "damaged message"),
        ("half an answer", message(1, 100, b"{\"answer\""), 1, "ended before it answered"),
        (
            "words that steer the terminal",
            {
                let text =
                    r#"{"answer":{"failed":{"exit":4,"message":"\u001b[2J\u009b1m","hint":"\u0007"}}}"#;
                message(1, text.len() as u32, text.as_bytes())
            },
            4,
            "\\u{1b}[2J",
        ),
    ];
    for (name, answer, exit, expected) in cases {
        let listener = UnixListener::bind(socket(&world)).unwrap();
        chmod(&socket(&world), 0o600);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for stream in listener.incoming() {
                    if stop.load(std::sync::atomic::Ordering::SeqCst) {
                        return;
                    }
                    let mut stream = stream.unwrap();
                    let mut piece = [0; 4096];
                    let _ = stream.read(&mut piece);
                    let _ = stream.write_all(answer);
                }
            });
            let ended = bounded(name, || world.command(&["snapshot", "delete", "s1"]));
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
            drop(UnixStream::connect(socket(&world)));
            assert_eq!(ended.exit, Some(*exit), "{name}: {ended:?}");
            assert!(ended.stderr.contains(expected), "{name}: {ended:?}");
        });
        fs::remove_file(socket(&world)).unwrap();
    }
    // Nor is another's socket asked, to which a link leads.
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    let _other = UnixListener::bind(outside.join("other.sock")).unwrap();
    std::os::unix::fs::symlink(outside.join("other.sock"), socket(&world)).unwrap();
    let trap = Trap::set(&outside);
    let ended = bounded("a link", || world.command(&["snapshot", "delete", "s1"]));
    assert_eq!(ended.exit, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("mount.sock is no socket"), "{ended:?}");
    trap.check("a link", &outside);
}

#[test]
fn what_lies_in_the_place_of_socket_or_log_refuses_the_mount() {
    let world = World::new();
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "nobody's business\n").unwrap();
    let socket = socket(&world);
    let log = world.path("r/run/mount.log");
    let cases: &[(&str, &dyn Fn(), &str)] = &[
        (
            "the socket is a link",
            &|| std::os::unix::fs::symlink(outside.join("victim"), &socket).unwrap(),
            "no socket",
        ),
        ("the socket is a pipe", &|| hostile::make_pipe(&socket), "no socket"),
        ("the socket is a folder", &|| fs::create_dir(&socket).unwrap(), "no socket"),
        (
            "the log is a link",
            &|| std::os::unix::fs::symlink(outside.join("victim"), &log).unwrap(),
            "symbolic link",
        ),
        ("the log is a hard link", &|| fs::hard_link(outside.join("victim"), &log).unwrap(), "2 names"),
        ("the log is a pipe", &|| hostile::make_pipe(&log), "a pipe"),
    ];
    for (name, harm, expected) in cases {
        harm();
        let trap = Trap::set(&outside);
        let ended = bounded(name, || world.command(&["mount", &world.mnt()]));
        assert!(!matches!(ended.exit, Some(0)), "{name}: {ended:?}");
        assert!(ended.stderr.contains(expected), "{name}: {ended:?}");
        trap.check(name, &outside);
        for path in [&socket, &log] {
            let _ = fs::remove_file(path);
            let _ = fs::remove_dir(path);
        }
    }
    world.mount();
}

fn as_nobody(args: &[&str]) -> std::process::Output {
    tool("setpriv", &[&["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"], args].concat())
}

/// Asks for the state as another user: this thread stays so.
fn send_as_nobody(world: &World) -> String {
    let nobody = rustix::process::Uid::from_raw(65534);
    rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
    send(world, &message(1, 8, b"\"status\""))
}

#[test]
fn only_the_owner_gets_in() {
    if !is_root() {
        return;
    }
    let world = World::new();
    world.volume("web", "8M");
    // So that the folders on the way are no reason.
    chmod(&world.path(""), 0o755);
    for allow_other in [false, true] {
        let args: &[&str] = if allow_other { &["--allow-other"] } else { &[] };
        world.ok(&[&["mount", &world.mnt()], args].concat());
        write_at(&world.file("web"), 0, &pattern(4096, 1)).unwrap();
        let file = world.file("web");
        for args in [
            vec!["ls", "-l", &world.mnt()],
            vec!["cat", file.to_str().unwrap()],
            vec!["dd", "if=/dev/zero", &format!("of={}", file.display()), "count=1"],
            vec!["ls", &world.at("r")],
            vec!["cat", &world.at("r/region.toml")],
            vec!["cat", &world.at("r/run/mount.log")],
        ] {
            let output = as_nobody(&args);
            assert!(!output.status.success(), "{args:?} allow_other {allow_other}");
            assert!(words(&output).contains("Permission denied"), "{args:?}: {}", words(&output));
        }
        // Nor with the region's doors opened: each end asks the kernel who the other is.
        let doors = [(world.path("r"), 0o755), (world.path("r/run"), 0o755), (socket(&world), 0o666)];
        let before = doors.clone().map(|(door, _)| fs::metadata(door).unwrap().permissions());
        doors.iter().for_each(|(door, mode)| chmod(door, *mode));
        let said = std::thread::scope(|scope| scope.spawn(|| send_as_nobody(&world)).join().unwrap());
        assert!(said.contains("another user"), "{said}");
        let command = assert_cmd::cargo::cargo_bin!("terrane").to_str().unwrap();
        let output = as_nobody(&[command, "volume", "list", "--region", &world.at("r")]);
        // The program itself may lie where nobody gets.
        assert!(!output.status.success(), "{}", words(&output));
        doors.iter().zip(before).for_each(|((door, _), mode)| fs::set_permissions(door, mode).unwrap());
        assert!(read_at(&file, 0, 4096).unwrap() == pattern(4096, 1));
        world.unmount();
    }
}

/// A mount of another user may call itself as it likes, and never answer.
#[test]
fn a_mount_that_is_silent_stops_no_command() {
    if !is_root() {
        return;
    }
    let (world, other) = (mounted(), mounted());
    let stopped = other.signal(rustix::process::Signal::STOP);
    // Of another region: nothing is asked of it.
    world.snapshot("web", "s1");
    let ended = bounded("a silent mount", || world.command(&["snapshot", "delete", "s1"]));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(stopped).unwrap(),
        rustix::process::Signal::CONT,
    )
    .unwrap();
    assert_eq!(ended.exit, Some(0), "{ended:?}");
    assert_eq!(errno(read_at(&other.file("web"), 0, 4096)), 0);
}
