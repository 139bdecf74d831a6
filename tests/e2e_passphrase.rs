//! Guards against a region that can't be mounted because its passphrase is asked for where nobody is, against a command
//! that waits for a person who isn't there, and against a passphrase that stays where it was typed.

#[path = "common/world.rs"]
mod world;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::pty::OpenptFlags;
use world::{Running, World, is_root, pattern, read_at, within, write_at};

const PASSPHRASE: &str = "correct-horse-battery-staple";

/// A region of which the configuration knows nothing: its passphrase is asked for.
fn closed() -> World {
    let world = World::bare(None);
    fs::write(world.path("p"), PASSPHRASE).unwrap();
    fs::set_permissions(world.path("p"), fs::Permissions::from_mode(0o600)).unwrap();
    world.ok(&[
        "region",
        "init",
        &world.at("r"),
        "--name",
        "here",
        "-q",
        "--passphrase-file",
        &world.at("p"),
    ]);
    world.volume("web", "8M");
    world.ok(&["region", "forget", "here", "-q"]);
    fs::remove_file(world.path("p")).unwrap();
    world
}

/// A command on a terminal of its own.
struct OnTerminal {
    child: Running,
    keys: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    fn start(world: &World, args: &[&str]) -> Self {
        let keys =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        rustix::pty::grantpt(&keys).unwrap();
        rustix::pty::unlockpt(&keys).unwrap();
        let name = rustix::pty::ptsname(&keys, Vec::new()).unwrap().into_string().unwrap();
        let line = File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name).unwrap();
        let inner = world.command(args);
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(inner.get_program()).args(inner.get_args());
        command.env("TERRANE_CONFIG_DIR", world.path("config")).env_remove("TERRANE_REGION");
        let copy = || Stdio::from(line.try_clone().unwrap());
        let child = Running(command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap());
        drop(command);
        let keys = File::from(keys);
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut from, shown) = (keys.try_clone().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut piece = [0; 1024];
            // It ends with EIO once nobody has the terminal open any more.
            while let Ok(len @ 1..) = from.read(&mut piece) {
                shown.lock().extend_from_slice(&piece[..len]);
            }
        });
        Self { child, keys, screen }
    }

    fn shows(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock()).into_owned()
    }

    #[track_caller]
    fn answer(&mut self, asked: &str, keys: &str) {
        assert!(within(20, || self.shows().contains(asked)), "not asked: {:?}", self.shows());
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Its exit number, -1 for a signal; and what the screen shows then.
    #[track_caller]
    fn end(mut self) -> (i32, String) {
        let mut status = None;
        let ended = within(60, || {
            status = self.child.0.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "it does not end: {:?}", self.shows());
        // Its last words may still be on their way.
        within(1, || self.shows().contains("hint"));
        (status.unwrap().code().unwrap_or(-1), self.shows())
    }
}

/// Whether a process's memory, arguments or environment hold these bytes.
fn holds(pid: i32, wanted: &[u8]) -> bool {
    let has = |bytes: &[u8]| bytes.windows(wanted.len()).any(|piece| piece == wanted);
    let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap();
    if has(&read("cmdline")) || has(&read("environ")) {
        return true;
    }
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = String::from_utf8(read("maps")).unwrap();
    maps.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut bytes = vec![0; (to - from).min(64 << 20) as usize];
        rights.starts_with("rw") && memory.read_exact_at(&mut bytes, from).is_ok() && has(&bytes)
    })
}

#[test]
fn what_is_typed_mounts_in_the_background_and_stays_nowhere() {
    let world = closed();
    let region = world.at("r");
    let mut mount = OnTerminal::start(&world, &["mount", &world.mnt(), "--region", &region]);
    mount.answer("Passphrase of region here:", &format!("{PASSPHRASE}\n"));
    let (exit, said) = mount.end();
    assert_eq!(exit, 0, "{said}");
    write_at(&world.file("web"), 0, &pattern(4096, 1)).unwrap();
    assert!(read_at(&world.file("web"), 0, 4096).unwrap() == pattern(4096, 1));
    if is_root() {
        let server = world.server();
        assert!(holds(server, b"terrane"), "the search itself finds nothing");
        assert!(!holds(server, PASSPHRASE.as_bytes()), "the passphrase is in the server's memory");
        // Not even the pieces that a growing buffer leaves.
        assert!(!holds(server, &PASSPHRASE.as_bytes()[..16]));
    }
    world.unmount();
}

#[test]
fn a_wrong_answer_or_none_leaves_nothing() {
    let world = closed();
    let region = world.at("r");
    let args = ["mount", &world.mnt(), "--region", &region];
    for foreground in [false, true] {
        let args = if foreground { [&args[..], &["--foreground"]].concat() } else { args.to_vec() };
        let mut wrong = OnTerminal::start(&world, &args);
        wrong.answer("Passphrase", "incorrect\n");
        let (exit, said) = wrong.end();
        assert_eq!(exit, 4, "{said}");
        assert!(said.contains("the passphrase does not open region here"), "{said}");
        let mut interrupted = OnTerminal::start(&world, &args);
        interrupted.answer("Passphrase", "half\x03");
        assert_ne!(interrupted.end().0, 0);
        assert!(!world.path("mnt/volumes").exists());
    }
    // Refused before anybody is asked.
    let mut mount = OnTerminal::start(&world, &args);
    mount.answer("Passphrase", &format!("{PASSPHRASE}\n"));
    assert_eq!(mount.end().0, 0);
    fs::create_dir(world.path("second")).unwrap();
    for (place, expected, number) in [("second", "already mounted", 5), ("absent", "mkdir", 3)] {
        if number == 3 {
            world.unmount();
        }
        let (exit, said) = OnTerminal::start(&world, &["mount", &world.at(place), "--region", &region]).end();
        assert_eq!(exit, number, "{said}");
        assert!(said.contains(expected) && !said.contains("Passphrase"), "{said}");
    }
}

#[test]
fn without_a_terminal_it_is_said_at_once() {
    let world = closed();
    let region = world.at("r");
    // Not even a command that holds the layers for long is waited for.
    let held = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(world.path("r/run/layers.lock"))
        .unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    for foreground in [false, true] {
        let mut args = vec!["mount".to_owned(), world.mnt(), "--region".into(), region.clone()];
        args.extend(foreground.then(|| "--foreground".to_owned()));
        let mut child = Running(world.command(&args).stderr(Stdio::piped()).spawn().unwrap());
        let mut status = None;
        assert!(within(60, || {
            status = child.0.try_wait().unwrap();
            status.is_some()
        }));
        let mut said = String::new();
        child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(status.unwrap().code(), Some(4), "{said}");
        for word in ["region here", "passphrase", "no terminal", "hint", "--passphrase-file"] {
            assert!(said.contains(word), "{word:?} is missing in: {said}");
        }
    }
}

/// A mount in the background keeps nothing open of who mounted, but reads the passphrase first where that comes so.
#[test]
fn a_passphrase_comes_through_an_inherited_descriptor() {
    let world = closed();
    fs::write(world.path("p"), PASSPHRASE).unwrap();
    let inheriting = |args: &[&str]| {
        let inner = world.command(args);
        let mut script = Command::new("sh");
        script.args(["-c", r#"exec 7<"$0" && exec "$@""#]).arg(world.path("p"));
        script.arg(inner.get_program()).args(inner.get_args());
        script.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        script.stdin(Stdio::null()).status().unwrap().success()
    };
    assert!(inheriting(&["region", "add", &world.at("r"), "--passphrase-file", "/dev/fd/7", "-q"]));
    assert!(inheriting(&["mount", &world.mnt()]));
    assert!(read_at(&world.file("web"), 0, 4096).unwrap() == [0; 4096]);
}
