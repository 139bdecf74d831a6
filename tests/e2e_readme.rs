//! Guards against a README whose tour does not work, or shows what the program does not print.
//!
//! Every command of the tour is run, as root, in one shell; what it prints has to be what stands there but for ids, times and numbers.
//! `TERRANE_TOUR=write` writes it there instead.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
const BEGIN: &str = "<!-- tour -->";
const END: &str = "<!-- end of tour -->";
/// Where the tour is taken, and the loop device it gets, as the README has them.
const PLACE: &str = "/srv/tour";
const DEVICE: &str = "/dev/loop0";
/// Said after each command's output.
const MARK: &str = "-- that was all of it --";

/// A shell, and what has to be taken away where the tour ends early.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    place: PathBuf,
    device: String,
}

impl Shell {
    fn new(dir: &Path) -> Self {
        let place = dir.join("tour");
        fs::create_dir(&place).unwrap();
        let programs = Path::new(env!("CARGO_BIN_EXE_terrane")).parent().unwrap();
        let path = format!("{}:{}:/usr/sbin:/sbin", programs.display(), std::env::var("PATH").unwrap());
        let mut child = Command::new("bash")
            .current_dir(&place)
            .env("PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        input.write_all(b"exec 2>&1\n").unwrap();
        Self { child, input, output: BufReader::new(output), place, device: DEVICE.to_owned() }
    }

    /// What a command of the README prints here, with the README's names of what is called otherwise here.
    fn run(&mut self, command: &str) -> Vec<String> {
        let here = command.replace(DEVICE, &self.device);
        writeln!(self.input, "{here}\necho '{MARK}'").unwrap();
        let mut printed = Vec::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the shell ended at: {command}");
            match line.trim_end() {
                MARK => break,
                // How far it is, for programs.
                line if line.starts_with('{') => {}
                line => printed.push(line.to_owned()),
            }
        }
        if command.starts_with("terrane attach") {
            self.device = printed.last().expect("a device").clone();
        }
        let place = self.place.display().to_string();
        printed.iter().map(|line| line.replace(&place, PLACE).replace(&self.device, DEVICE)).collect()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let run = |program: &str, arguments: &[&str]| {
            let _ =
                Command::new(program).args(arguments).current_dir(&self.place).stderr(Stdio::null()).status();
        };
        // Where it came to its end there is none of it.
        if self.place.exists() {
            run("umount", &["-l", "files"]);
            run("losetup", &["-d", &self.device]);
            run("umount", &["-l", "mnt", "mnt-south"]);
        }
    }
}

/// A line without what is another each time.
fn shape(line: &str) -> String {
    let is_number = |word: &str| {
        let digits = word.strip_suffix(['K', 'M', 'G', 'T']).unwrap_or(word);
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    };
    let is_id = |word: &str| {
        let hex = word.split_once('-').map_or(word, |(_, hex)| hex);
        matches!(hex.len(), 17 | 32) && hex.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let is_time =
        |word: &str| word.len() >= 20 && word.starts_with("20") && word.ends_with('Z') && word.contains('T');
    let of_word = |word: &str| match word {
        word if is_number(word) => "N".to_owned(),
        word if is_id(word) => "ID".to_owned(),
        word if is_time(word) => "TIME".to_owned(),
        word => match word.split_once('.') {
            Some((id, kind)) if is_id(id) => format!("ID.{kind}"),
            _ => word.to_owned(),
        },
    };
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':');
    let mut out = String::new();
    let mut rest = line.trim_end();
    while let Some(first) = rest.chars().next() {
        let len = rest.find(|c| is_part(c) != is_part(first)).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(len);
        match is_part(first) {
            true => out.push_str(&of_word(piece)),
            // Columns are as wide as what is in them.
            false if piece.contains("  ") => out.push(' '),
            false => out.push_str(piece),
        }
        rest = after;
    }
    out
}

/// The tour with what its commands print.
fn taken(tour: &str, shell: &mut Shell) -> String {
    let mut out = String::new();
    let mut in_code = false;
    for line in tour.lines() {
        if line.starts_with("```") {
            in_code = !in_code;
        }
        let command = line.strip_prefix("$ ").filter(|_| in_code);
        // What stands there is what another run printed.
        if !in_code || line.starts_with("```") || command.is_some() {
            out += &format!("{line}\n");
        }
        if let Some(command) = command {
            shell.run(command).iter().for_each(|line| out += &format!("{line}\n"));
        }
    }
    out
}

#[test]
fn the_tour_prints_what_it_shows() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: the tour attaches a disk, as root");
        return;
    }
    let readme = fs::read_to_string(README).unwrap();
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (tour, after) = rest.split_once(END).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut shell = Shell::new(dir.path());
    let now = taken(tour, &mut shell);
    assert!(!shell.place.exists(), "the tour ends with nothing left");
    drop(shell);
    if std::env::var("TERRANE_TOUR").is_ok_and(|word| word == "write") {
        fs::write(README, format!("{before}{BEGIN}{now}{END}{after}")).unwrap();
        return;
    }
    let shapes = |text: &str| text.lines().map(shape).collect::<Vec<_>>();
    for (shown, printed) in shapes(tour).iter().zip(&shapes(&now)) {
        assert_eq!(shown, printed, "the README shows the first; TERRANE_TOUR=write mends it");
    }
    assert_eq!(shapes(tour).len(), shapes(&now).len());
}

#[test]
fn the_shape_of_a_line_is_all_but_what_is_another_each_time() {
    let shapes = [
        "snap-2db42847b11496834  monday   1G    22.3M  2026-11-24T09:30:18.321717Z",
        "vol-0b96514623b7ff4b5 web 23.3M",
    ]
    .map(shape);
    assert_eq!(shapes, ["ID monday N N TIME", "ID web N"]);
    assert_eq!(shape("/keys/5e3b0efa571f9fac3a3f1a3aefe93269.root-key"), "/keys/ID.root-key");
    assert_eq!(shape("problems   none"), "problems none");
}
